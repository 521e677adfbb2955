"""What a run goes on from after any death: whole checkpoints, found, checked, written, and thinned out."""

import hashlib
import json
import os
import random
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from ..data.records import file_digest
from ..data.text import quote as shown
from ..errors import InputError
from .config import TrainConfig

__all__ = ['Checkpoints', 'Progress', 'about_run', 'differences', 'fingerprint', 'is_shared', 'sync']

VERSION = 2  # of the files of a checkpoint
MANIFEST = 'whole.json'  # written last: names every other file with its size and digest
STATE = 'state.json'
WEIGHTS = 'model.safetensors'
EMA = 'ema.safetensors'
OPTIMIZER = 'optimizer.safetensors'  # tensors, named by the number of their parameter: `7.exp_avg`
# Settings that change neither what is computed nor what it is measured on, as far as a run that goes on is concerned
FREE = ('output', 'overwrite', 'resume', 'force', 'trackers', 'log_every', 'push_to', 'push_private', 'checkpoint')
FREE += ('data.root', 'data.image_root', 'data.workers', 'optim.max_per_process', 'optim.early_stop')
FREE += ('model.compile', 'model.channels_last')
LAST_BITS = {'threads', 'torch', 'data.workers'}  # what changes no more than these


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: That is being trained, from 1.
        step: Steps of this epoch that are done.
        steps_done: Of the whole run.
        losses: Sums of `loss` and `grad_norm` over the steps of this epoch.
        history: An entry for each epoch that was measured.
        best: The epoch whose EMA weights are for use: its number `epoch`, `mAP`, `steps_done`, `line` and `results`;
            and `files`, the SHA-256 digests of what the output folder holds of it, {} while its weights could not be
            written there. Its checkpoint has them then.
        unreadable: Messages of the training images that were passed over.
        seconds: That the run has taken.
    """

    epoch: int = 1
    step: int = 0
    steps_done: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run, in `{output}/checkpoints/step-{steps_done}`.

    A checkpoint is safetensors and JSON, since whoever loads one may have it from somebody else: Accelerate's own is
    pickled, in part without the restrictions of `weights_only`. Every process calls every method.

    Args:
        accelerator: Its processes share the run.
        folder: That holds the checkpoints.
        keep: Newest ones that stay.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, keep: int):
        self.accelerator = accelerator
        self.folder = folder
        self.keep = keep
        self.saved: int | None = None  # steps_done of the newest that this process has saved
        self.newest: Path | None = None  # that `find('auto')` would find
        # Machines with disks of their own each save everything: whichever starts again finds its own copy.
        on_each = not is_shared(accelerator, folder)
        self._writes = accelerator.is_local_main_process if on_each else accelerator.is_main_process

    def register(
        self, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler
    ) -> None:
        """Names what is saved, besides the random states.

        Args:
            model: Model as it was before it was prepared, so that any number of processes can resume from its weights.
            ema: Module of the EMA weights.
            optimizer: Optimiser, prepared or not.
            schedule: Schedule of the optimiser that was prepared. Nothing of it is saved: the settings and the number
                of steps decide it.
        """
        self.model, self.ema, self.optimizer, self.schedule = model, ema, optimizer, schedule

    def save(self, progress: Progress, about: dict) -> bool:
        """Saves the run, unless it is saved as it is; returns whether that went well, and says what is wrong if not.

        Whatever happens, no whole checkpoint of the run is touched before the new one is whole.

        Args:
            progress: Where the run is.
            about: What the run is: see `differences`.

        Raises:
            InputError: What is to be saved is not finite.
        """
        if progress.steps_done == self.saved:
            return True
        tensors = self._tensors()
        self._check_finite(tensors, progress)
        path = self.folder / f'step-{progress.steps_done:08}'
        temporary = self.folder / f'.saving-{path.name}'
        problem = None
        try:
            if self._writes:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
        except OSError as e:
            problem = e
        problem = self._first(problem)
        if problem is None:
            try:
                _write(temporary / f'random_{self.accelerator.process_index}.json', _random_states(self._device))
                for name, content in tensors.items() if self._writes else ():
                    save_file({key: value.contiguous() for key, value in content.items()}, temporary / name)
            except Exception as e:  # safetensors has errors of its own for a disk that is full
                problem = e
            problem = self._first(problem)
        if problem is None:
            try:
                if self._writes:
                    _write(temporary / STATE, self._state(progress, about))
                    _seal(temporary)
                    self._set_aside(path)
                    os.replace(temporary, path)
                    sync(self.folder)
                    self._thin_out(progress)
            except OSError as e:
                problem = e
            problem = self._first(problem)
        if problem is not None:
            if self._writes:
                shutil.rmtree(temporary, ignore_errors=True)
            if self.accelerator.is_main_process:
                tqdm.write(f'{path}: cannot be saved ({problem}); the run goes on without it.', file=sys.stderr)
            return False
        self.saved, self.newest = progress.steps_done, path
        return True

    @property
    def _device(self) -> str:
        return self.accelerator.device.type

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Collects the tensors of each file."""
        state = self.optimizer.state_dict()['state']
        moments = {f'{i}.{key}': value for i, values in state.items() for key, value in values.items()}
        return {WEIGHTS: self.model.state_dict(), EMA: self.ema.state_dict(), OPTIMIZER: moments}

    def _check_finite(self, tensors: dict[str, dict[str, torch.Tensor]], progress: Progress) -> None:
        broken = (
            f'{name} in {file}' for file, of in tensors.items() for name, value in of.items() if not _is_finite(value)
        )
        found = next((text for text in gather_object([next(broken, None)]) if text), None)
        if found:
            raise InputError(
                f'after step {progress.steps_done} of the run not all weights are finite ({found}): they are not saved.'
                f' A lower optim.lr may help; {self.advice()}.'
            )

    def holds(self, steps_done: int) -> bool:
        """Tells whether the newest whole checkpoint is the one after that step, in the folder."""
        return self.newest == self.folder / f'step-{steps_done:08}'

    def advice(self) -> str:
        """Says from where the run can be resumed."""
        if self.newest is None:
            return 'there is no checkpoint to resume from yet'
        return f'--resume auto resumes from {self.newest} (with --force true, where settings have changed)'

    def _state(self, progress: Progress, about: dict) -> dict:
        scaler = self.accelerator.scaler
        return {
            'version': VERSION,
            'progress': asdict(progress),
            'about': about,
            'computed_with': self._computed_with(),
            'scaler': scaler and scaler.state_dict(),
        }

    def threads(self, path: Path) -> int | None:
        """Returns the number of threads that a checkpoint's run computed with; None where it does not tell."""
        threads = _read_state(path / STATE)['computed_with'].get('threads')
        return threads if type(threads) is int and threads > 0 else None

    def _computed_with(self) -> dict:
        """Returns what decides the last bits of the results, besides the run itself."""
        return {
            'processes': self.accelerator.num_processes,
            'threads': torch.get_num_threads(),
            'device': self._device,
            'mixed_precision': self.accelerator.mixed_precision,
            'torch': torch.__version__,
        }

    def _first(self, problem: Exception | None) -> str | None:
        """Tells every process what went wrong in any of them."""
        told = problem and ' '.join(f'{getattr(problem, "strerror", None) or problem}'.split())
        return next((text for text in gather_object([told]) if text), None)

    def _set_aside(self, path: Path) -> None:
        """Renames a checkpoint that is damaged, or of what this run does not go on from, so that none finds it."""
        if path.exists():
            aside = path.with_name(f'aside-{path.name}')
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)

    def _thin_out(self, progress: Progress) -> None:
        names = self._names()
        kept = set(names[-self.keep :])
        if progress.best:
            kept.add(f'step-{progress.best["steps_done"]:08}')
        for name in names:
            if name not in kept:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob('step-*') if path.is_dir())

    def find(self, resume: str) -> Path | None:
        """Finds the checkpoint to go on from: the newest that is whole on all machines, or the one that is named.

        One that is damaged is named on standard error and passed over.

        Raises:
            InputError: The one that is named is not there or not whole.
        """
        damage = None
        if self.accelerator.is_local_main_process:
            names = self._names() if resume == 'auto' else [resume]
            damage = {name: _damage(self._path(resume, name)) for name in names}
        machines = [found for found in gather_object([damage]) if found is not None]
        whole = None
        for name in sorted({name for found in machines for name in found}):
            reason = next((r for r in (found.get(name, 'not on all machines') for found in machines) if r), None)
            if reason is None:
                whole = self._path(resume, name)
            elif resume != 'auto':
                raise InputError(f'resume is {resume}: {reason}.')
            elif self.accelerator.is_main_process:
                tqdm.write(f'{self.folder / name}: {reason}; passed over.', file=sys.stderr)
        return whole

    def _path(self, resume: str, name: str) -> Path:
        return self.folder / name if resume == 'auto' else Path(resume)

    def load(self, path: Path, about: dict, force: bool) -> Progress:
        """Loads a checkpoint into what was registered, and returns where the run was.

        Later ones, which are damaged or were left behind by naming an earlier one, are renamed to `aside-step-...`.

        Raises:
            InputError: It is of another run, and `force` is false.
        """
        problem = None
        try:
            state = self._read(path, about, force)
            self._load(path, state)
        except InputError as e:
            problem = e
        except Exception as e:  # a file that is not what it should be shows itself in many types of exception
            problem = InputError(f'{path}: cannot be loaded ({type(e).__name__}: {shown(str(e))}).')
        problem = self._first(problem)
        if problem is not None:
            raise InputError(problem)
        progress = Progress(**state['progress'])
        self.newest = path
        if self._writes:
            for name in self._names():
                if name > f'step-{progress.steps_done:08}':
                    self._set_aside(self.folder / name)
        return progress

    def _read(self, path: Path, about: dict, force: bool) -> dict:
        """Reads where a run was, and shows what may make the results others than without the interruption."""
        state = _read_state(path / STATE)
        different = list(differences(state['about'], about))
        if different and not force:
            raise InputError(
                f'{path} is of another run: {"; ".join(different)}. Make these the same, choose another output, or set'
                ' force to true.'
            )
        before = {**state['computed_with'], 'data.workers': dict(_flat(state['about'])).get('config.data.workers')}
        now = {**self._computed_with(), 'data.workers': dict(_flat(about)).get('config.data.workers')}
        changed = [key for key in now if before.get(key) != now[key]]
        if changed and self.accelerator.is_main_process:
            changes = ', '.join(f'{key} was {shown(before.get(key))} and is {shown(now[key])}' for key in changed)
            extent = ' in the last bits' if LAST_BITS.issuperset(changed) else ''
            tqdm.write(f'{path}: {changes}; the results may differ{extent} from an unbroken run.', file=sys.stderr)
        return state

    def _load(self, path: Path, state: dict) -> None:
        self.model.load_state_dict(load_file(path / WEIGHTS))
        self.ema.load_state_dict(load_file(path / EMA))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in load_file(path / OPTIMIZER).items():
            number, _, key = name.partition('.')
            moments.setdefault(int(number), {})[key] = value
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        for number, values in moments.items():  # PyTorch finds out when it takes a step
            shape = parameters[number].shape if number < len(parameters) else None
            if {key: value.shape for key, value in values.items()} != {
                'step': (),
                'exp_avg': shape,
                'exp_avg_sq': shape,
            }:
                raise ValueError(f'{OPTIMIZER} is not of these parameters')
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), 'state': moments})
        # The learning rate is that of the settings of now.
        steps_done = state['progress']['steps_done']
        place = {'last_epoch': steps_done - 1, '_step_count': steps_done + 1}
        self.schedule.load_state_dict({**self.schedule.state_dict(), **place})
        self.schedule.step()
        if self.accelerator.scaler is not None and state['scaler']:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        rank = self.accelerator.process_index
        if rank < state['computed_with']['processes']:  # another keeps that of its seed
            text = (path / f'random_{rank}.json').read_text(encoding='utf-8')
            _set_random_states(json.loads(text), self._device)

    def ema_weights(self, steps_done: int) -> dict[str, torch.Tensor] | None:
        """Loads the EMA weights of a checkpoint in the folder; None where that is not whole."""
        path = self.folder / f'step-{steps_done:08}'
        return None if _damage(path) else load_file(path / EMA)


def is_shared(accelerator: Accelerator, folder: Path) -> bool:
    """Finds out whether all machines see the same folder, which is made.

    Raises:
        InputError: Nothing can be written to it.
    """
    sign, problem = folder / f'.{broadcast_object_list([uuid.uuid4().hex])[0]}', None
    try:
        if accelerator.is_local_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            sign.touch()
    except OSError as e:
        problem = e.strerror or f'{e}'
    for found in gather_object([problem]):
        if found:
            raise InputError(f'{folder}: cannot be written to ({found}); choose another --output.')
    seen = gather_object([sign.exists()])
    if accelerator.is_main_process:
        sign.unlink()
    return all(seen)


def fingerprint(targets: np.ndarray, image_ids: list[str]) -> str:
    """Tells data sets apart by their images' names and targets (N, K)."""
    digest = hashlib.sha256(repr(targets.shape).encode() + targets.tobytes())
    digest.update(json.dumps(image_ids).encode())
    return digest.hexdigest()[:16]


def differences(before: dict, now: dict) -> Iterator[str]:
    """Names what a checkpoint and this run do not share: settings, labels, data; but not what is free to change."""
    before, now = dict(_flat(before)), dict(_flat(now))
    for key in {**before, **now}:
        setting = key.removeprefix('config.')
        if any(setting == free or setting.startswith(f'{free}.') for free in FREE):
            continue
        if before.get(key) != now.get(key):
            yield f'{setting} was {shown(before.get(key))} and is {shown(now.get(key))}'


def about_run(config: TrainConfig, label_names: list[str], data: dict[str, str]) -> dict:
    """Makes what `differences` compares: all settings, the labels, and the fingerprints of the data."""
    return json.loads(json.dumps({'config': asdict(config), 'label_names': label_names, 'data': data}))


def _flat(content: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _read_state(path: Path) -> dict:
    """Reads a state.json.

    Raises:
        InputError: It is not what `Checkpoints.save` writes.
    """
    try:
        state = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f'{path}: cannot be read ({shown(str(e))}).') from None
    if not isinstance(state, dict) or state.get('version') != VERSION:
        raise InputError(
            f'{path}: is of another version of msff-timm, or of something else; resume it with that version, or start'
            ' anew.'
        )
    kinds = {'progress': dict, 'about': dict, 'computed_with': dict, 'scaler': dict | None}
    _check_kinds(path, '', state, kinds)
    progress = state['progress']
    _check_kinds(path, 'progress.', progress, {f.name: f.type for f in fields(Progress)})
    for number, entry in enumerate(progress['history']):
        kinds = {'epoch': int, **dict.fromkeys(('loss', 'mAP', 'CF1', 'OF1'), float)}
        _check_kinds(path, f'progress.history.{number}.', entry, kinds)
    if progress['best'] is not None:
        kinds = {'epoch': int, 'mAP': float, 'steps_done': int, 'line': str, 'results': dict, 'files': dict}
        _check_kinds(path, 'progress.best.', progress['best'], kinds)
    _check_kinds(path, 'computed_with.', state['computed_with'], {'processes': int})
    unknown_keys = progress.keys() - {f.name for f in fields(Progress)}
    if unknown_keys or progress['epoch'] < 1 or min(progress['step'], progress['steps_done']) < 0:
        raise InputError(f'{path}: progress is {shown(progress)}, where no run can be.')
    return state


def _check_kinds(path: Path, where: str, content: dict, kinds: dict[str, object]) -> None:
    """Checks that a dict has certain keys, with values of their types: `list[float]`, `dict | None` and the like."""
    for key, kind in kinds.items():
        if key not in content:
            raise InputError(f'{path}: {where}{key} is missing.')
        if not _is_of(content[key], kind):
            name = getattr(kind, '__name__', None) if not get_args(kind) else str(kind)
            raise InputError(f'{path}: {where}{key} is {shown(content[key])}: must be {name}.')


def _is_of(value: object, kind: object) -> bool:
    if get_origin(kind) is UnionType:
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(item, get_args(kind)[0]) for item in value)
    return type(value) in ((float, int) if kind is float else (kind,))


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _random_states(device: str) -> dict:
    """Returns the random states of Python, NumPy, PyTorch, and of this process's GPU, as JSON values."""
    name, keys, *rest = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': [name, keys.tolist(), *rest],
        'torch': torch.get_rng_state().tolist(),
        'device': None if device == 'cpu' else torch.get_device_module(device).get_rng_state().tolist(),
    }


def _set_random_states(states: dict, device: str) -> None:
    version, keys, gauss = states['python']
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(states['numpy'])
    torch.set_rng_state(torch.tensor(states['torch'], dtype=torch.uint8))
    if device != 'cpu' and states['device'] is not None:
        torch.get_device_module(device).set_rng_state(torch.tensor(states['device'], dtype=torch.uint8))


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding='utf-8')


def _seal(folder: Path) -> None:
    """Puts every file on the disk, then the list of them: a checkpoint that has the list has lost nothing."""
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = [path.stat().st_size, file_digest(path).hex()]
        sync(path)
    _write(folder / MANIFEST, files)
    sync(folder / MANIFEST)
    sync(folder)


def sync(path: Path) -> None:
    """Puts a file, or the list of a folder's files, on the disk."""
    if os.name == 'nt' and path.is_dir():  # Windows has no such call
        return
    descriptor = os.open(path, os.O_RDWR if os.name == 'nt' else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damage(path: Path) -> str | None:
    """Tells what is wrong with a checkpoint; None if it is whole."""
    if path.is_dir() and not (path / MANIFEST).is_file():
        return f'{MANIFEST} cannot be read (there is none)'
    try:
        for name, (size, digest) in json.loads((path / MANIFEST).read_text(encoding='utf-8')).items():
            file = path / name
            if not file.is_file():
                return f'{name} is missing'
            if file.stat().st_size != size or file_digest(file).hex() != digest:
                return f'{name} is damaged'
    except (OSError, ValueError, AttributeError, TypeError) as e:
        return 'there is no such checkpoint' if not path.is_dir() else f'{MANIFEST} cannot be read ({e})'
    return None
