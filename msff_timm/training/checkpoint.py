"""Checkpoints: a run that dies at any moment resumes from the newest one that is whole.

What protects against what:

- A process or a machine that dies while a checkpoint is written: the files go to a temporary folder, are flushed to the
  disk, and the folder is renamed. `step-...` appears complete or not at all, and older checkpoints stay until then.
- A disk or a copy that damages files later: `whole.json` holds the size and SHA-256 of every other file. They are
  compared before a checkpoint is loaded; a damaged one is reported and skipped.
- A checkpoint from somebody else: its files are safetensors and JSON, which run no code. Accelerate's are pickled.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from .. import __version__
from ..data.records import file_digest
from ..errors import InputError, one_line
from .identity import change, differences
from .parsing import flatten
from .storage import is_shared, sync
from .yaml12 import format_value

__all__ = ['WEIGHTS', 'Checkpoints', 'Progress']

FORMAT = 2  # version of the files of a checkpoint
MANIFEST = 'whole.json'
STATE = 'state.json'
WEIGHTS = 'model.safetensors'
EMA = 'ema.safetensors'
OPTIMIZER = 'optimizer.safetensors'  # tensors named by the number of their parameter, e.g. `7.exp_avg`
LAST_BITS = {'threads', 'torch', 'data.workers'}  # these change the last bits of the results only


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: Number of the current epoch, from 1.
        step: Number of steps of the epoch that are done.
        steps_done: Number of steps of the run that are done.
        losses: Sums of the loss and of the gradient's norm over the steps of the epoch.
        history: Loss and metrics of each epoch.
        best: Epoch whose EMA weights are for use: `epoch`, `mAP`, `steps_done`, `line` and `results`; and `files`, the
            digests of its files in the output folder, {} if they could not be written there.
        unreadable: Messages of the training images that cannot be read.
        seconds: Duration of the run.
    """

    epoch: int = 1
    step: int = 0
    steps_done: int = 0
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def is_over(self, epochs: int, early_stop: int | None) -> bool:
        """Returns True after `epochs` epochs, or after `early_stop` epochs without a better mAP."""
        if self.epoch > epochs:
            return True
        if not early_stop or not self.best:
            return False
        return self.history[-1]['epoch'] - self.best['epoch'] >= early_stop


class Checkpoints:
    """The checkpoints of a run, in `{output}/checkpoints/step-{steps_done}`. Every process calls every method.

    Args:
        accelerator: Accelerator of this process.
        folder: Folder of the checkpoints.
        keep: Number of newest checkpoints to keep; the best epoch's is kept too.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, keep: int):
        self.accelerator = accelerator
        self.folder = folder
        self.keep = keep
        self.saved: int | None = None  # steps_done of the newest checkpoint that this process has saved
        self.newest: Path | None = None  # checkpoint to resume from
        # Machines with disks of their own each save everything: any of them finds its own copy.
        on_each = not is_shared(accelerator, folder)
        self._writes = accelerator.is_local_main_process if on_each else accelerator.is_main_process

    def register(
        self, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler
    ) -> None:
        """Sets what is saved in addition to the random states.

        Args:
            model: Model before it was prepared, so that any number of processes can load its weights.
            ema: Module of the EMA weights.
            optimizer: Optimizer, prepared or not.
            schedule: Schedule. It is not saved: the settings and the number of steps define it.
        """
        self.model, self.ema, self.optimizer, self.schedule = model, ema, optimizer, schedule

    def save(self, progress: Progress, about: dict) -> bool:
        """Saves the run, unless this step is saved already; returns False, with a warning, if it cannot.

        Args:
            progress: Progress of the run.
            about: Description of the run: see `about_run`.

        Raises:
            InputError: A weight is not finite.
        """
        if progress.steps_done == self.saved:
            return True
        tensors = self._tensors()
        self._check_finite(tensors, progress)
        path = self.folder / f'step-{progress.steps_done:08}'
        temporary = self.folder / f'.saving-{path.name}'
        problem = (
            self._try(self._begin, temporary)
            or self._try(self._write, temporary, tensors)
            or self._try(self._complete, temporary, path, progress, about)
        )
        if problem is not None:
            if self._writes:
                shutil.rmtree(temporary, ignore_errors=True)
            if self.accelerator.is_main_process:
                tqdm.write(f'{path}: cannot be saved ({problem}); the run continues without it.', file=sys.stderr)
            return False
        self.saved, self.newest = progress.steps_done, path
        return True

    def _try(self, write: Callable[..., None], *args: object) -> str | None:
        """Calls a function in all processes; returns in each of them what failed in any, or None."""
        problem = None
        try:
            write(*args)
        except Exception as e:  # safetensors reports a full disk by an exception of its own
            problem = one_line(e)
        return next((text for text in gather_object([problem]) if text), None)

    def _begin(self, temporary: Path) -> None:
        if self._writes:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()

    def _write(self, temporary: Path, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        """Writes the random state of this process, and the tensors of the run."""
        random_state = json.dumps(_random_states(self._device))
        (temporary / f'random_{self.accelerator.process_index}.json').write_text(random_state, encoding='utf-8')
        for name, content in tensors.items() if self._writes else ():
            save_file({key: value.contiguous() for key, value in content.items()}, temporary / name)

    def _complete(self, temporary: Path, path: Path, progress: Progress, about: dict) -> None:
        """Flushes all files and the list of their digests to the disk, and makes the checkpoint appear."""
        if not self._writes:
            return
        scaler = self.accelerator.scaler
        state = {
            'version': FORMAT,
            'msff_timm': __version__,
            'progress': asdict(progress),
            'about': about,
            'computed_with': self._computed_with(),
            'scaler': scaler and scaler.state_dict(),
        }
        (temporary / STATE).write_text(json.dumps(state), encoding='utf-8')
        files = {}
        for file in sorted(temporary.iterdir()):
            files[file.name] = [file.stat().st_size, file_digest(file).hex()]
            sync(file)
        (temporary / MANIFEST).write_text(json.dumps(files), encoding='utf-8')
        sync(temporary / MANIFEST)
        sync(temporary)
        self._set_aside(path)
        os.replace(temporary, path)
        sync(self.folder)
        self._thin_out(progress)

    @property
    def _device(self) -> str:
        return self.accelerator.device.type

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the tensors of each file."""
        state = self.optimizer.state_dict()['state']
        moments = {f'{i}.{key}': value for i, values in state.items() for key, value in values.items()}
        return {WEIGHTS: self.model.state_dict(), EMA: self.ema.state_dict(), OPTIMIZER: moments}

    def _check_finite(self, tensors: dict[str, dict[str, torch.Tensor]], progress: Progress) -> None:
        broken = (
            f'{name} in {file}'
            for file, content in tensors.items()
            for name, value in content.items()
            if value.is_floating_point() and not value.isfinite().all()
        )
        found = next((text for text in gather_object([next(broken, None)]) if text), None)
        if found:
            raise InputError(
                f'after step {progress.steps_done}, not all weights are finite ({found}): they are not saved. A lower'
                f' optim.lr may help; {self.advice()}.'
            )

    def holds(self, steps_done: int) -> bool:
        """Returns True if the newest checkpoint is the one after that step."""
        return self.newest == self.folder / f'step-{steps_done:08}'

    def advice(self) -> str:
        """Describes how the run can be resumed."""
        if self.newest is None:
            return 'there is no checkpoint to resume from yet'
        return f'--resume auto resumes from {self.newest} (with --force true if settings have changed)'

    def threads(self, path: Path) -> int:
        """Returns the number of PyTorch threads of the run that saved a checkpoint."""
        return _read_state(path)['computed_with']['threads']

    def _computed_with(self) -> dict:
        """Returns what decides the last bits of the results, apart from the settings."""
        return {
            'processes': self.accelerator.num_processes,
            'threads': torch.get_num_threads(),
            'device': self._device,
            'mixed_precision': self.accelerator.mixed_precision,
            'torch': torch.__version__,
        }

    def _set_aside(self, path: Path) -> None:
        """Renames a checkpoint that is damaged, or left behind, so that `find` ignores it."""
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
        """Finds the checkpoint to resume from: the newest that is whole on all machines, or the given one.

        Args:
            resume: auto, or the folder of a checkpoint.

        Returns:
            Path of the checkpoint; None if `resume` is auto and there is none.

        Raises:
            InputError: The given checkpoint is missing or damaged.
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
                tqdm.write(f'{self.folder / name}: {reason}; skipped.', file=sys.stderr)
        return whole

    def _path(self, resume: str, name: str) -> Path:
        return self.folder / name if resume == 'auto' else Path(resume)

    def load(self, path: Path, about: dict, force: bool) -> Progress:
        """Loads a checkpoint into the registered objects.

        Later checkpoints, which are damaged or left behind, are renamed to `aside-step-...`.

        Args:
            path: Checkpoint to load.
            about: Description of the run, which the checkpoint's must match.
            force: True to load it although they differ.

        Returns:
            Progress of the run.

        Raises:
            InputError: The checkpoint is of another run or version, or cannot be loaded.
        """
        problem = None
        try:
            state = self._read(path, about, force)
            progress = Progress(**state['progress'])
            self._load(path, state)
        except InputError as e:
            problem = str(e)
        except Exception as e:  # files with other content raise exceptions of many types
            problem = f'{path}: cannot be loaded ({type(e).__name__}: {format_value(one_line(e))}).'
        problem = next((text for text in gather_object([problem]) if text), None)
        if problem is not None:
            raise InputError(problem)
        self.newest = path
        if self._writes:
            for name in self._names():
                if name > f'step-{progress.steps_done:08}':
                    self._set_aside(self.folder / name)
        return progress

    def _read(self, path: Path, about: dict, force: bool) -> dict:
        """Reads the state of a run, and reports changes that may lead to other results."""
        state = _read_state(path)
        different = list(differences(state['about'], about))
        if different and not force:
            raise InputError(
                f'{path} is of another run: {"; ".join(different)}. Restore these, choose another output, or set force'
                ' to true.'
            )
        before = {**state['computed_with'], 'data.workers': dict(flatten(state['about'])).get('config.data.workers')}
        now = {**self._computed_with(), 'data.workers': dict(flatten(about)).get('config.data.workers')}
        changed = [key for key in now if before.get(key) != now[key]]
        if changed and self.accelerator.is_main_process:
            changes = ', '.join(change(key, before.get(key), now[key]) for key in changed)
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
        for row, values in moments.items():  # with force, other settings may order the parameters differently
            if values['exp_avg'].shape != parameters[row].shape:
                raise ValueError(f'{OPTIMIZER} is of other parameters')
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), 'state': moments})
        # The learning rate follows the present settings.
        steps_done = state['progress']['steps_done']
        place = {'last_epoch': steps_done - 1, '_step_count': steps_done + 1}
        self.schedule.load_state_dict({**self.schedule.state_dict(), **place})
        self.schedule.step()
        if self.accelerator.scaler is not None and state['scaler']:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        rank = self.accelerator.process_index
        if rank < state['computed_with']['processes']:  # an additional process keeps the state of its seed
            text = (path / f'random_{rank}.json').read_text(encoding='utf-8')
            _set_random_states(json.loads(text), self._device)

    def ema_weights(self, steps_done: int) -> dict[str, torch.Tensor] | None:
        """Loads the EMA weights of the checkpoint after that step; returns None if it is missing or damaged."""
        path = self.folder / f'step-{steps_done:08}'
        return None if _damage(path) else load_file(path / EMA)


def _read_state(path: Path) -> dict:
    """Reads the state of a checkpoint.

    Raises:
        InputError: It cannot be read, or is of another format.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding='utf-8'))
        found = state.get('version')
    except (OSError, ValueError, RecursionError, AttributeError) as e:
        raise InputError(f'{path / STATE}: cannot be read ({one_line(e)}).') from None
    if found != FORMAT:
        writer = f'msff-timm {state["msff_timm"]}' if 'msff_timm' in state else 'an earlier version of msff-timm'
        raise InputError(
            f'{path}: was written by {writer} in format {found or 1}, and msff-timm {__version__} reads format'
            f' {FORMAT}: resume it with that version, or start a new run.'
        )
    return state


def _damage(path: Path) -> str | None:
    """Describes what is wrong with a checkpoint; returns None if it is whole."""
    if not path.is_dir():
        return 'there is no such checkpoint'
    try:
        files = json.loads((path / MANIFEST).read_text(encoding='utf-8'))
        for name, (size, digest) in files.items():
            file = path / name
            if not file.is_file():
                return f'{name} is missing'
            if file.stat().st_size != size or file_digest(file).hex() != digest:
                return f'{name} is damaged'
    except (OSError, ValueError, AttributeError, TypeError) as e:
        return f'{MANIFEST} cannot be read ({one_line(e)})'
    return None


def _random_states(device: str) -> dict:
    """Returns the random states of Python, NumPy, PyTorch and this process's GPU, as JSON values."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
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
