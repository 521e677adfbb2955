"""What a run goes on from after any death: whole checkpoints, found, checked, written, and thinned out."""

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from config import TrainConfig
from msff_timm.data.records import file_digest, shown
from msff_timm.errors import InputError

__all__ = ['Checkpoints', 'Progress', 'about_run', 'differences', 'fingerprint']

MANIFEST = 'whole.json'  # written last: names every other file with its size and digest
STATE = 'state.json'
WEIGHTS = 'model.safetensors'
# Settings that change neither what is computed nor what it is measured on, as far as a run that goes on is concerned
FREE = ('output', 'overwrite', 'resume', 'force', 'trackers', 'log_every', 'push_to', 'push_private', 'checkpoint')
FREE += ('data.root', 'data.image_root', 'data.workers', 'optim.max_per_process', 'optim.early_stop')
FREE += ('model.compile', 'model.channels_last')


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: That is being trained, from 1.
        step: Steps of this epoch that are done.
        steps_done: Of the whole run.
        losses: Sums of `loss` and `grad_norm` over the steps of this epoch.
        history: An entry for each epoch that was measured.
        best: The epoch whose weights are kept for use: its number, `mAP`, `steps_done` and results.
        unreadable: Messages of the training pictures that were passed over.
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

    Accelerate saves and loads the states; this decides when a checkpoint is whole. Every process calls every method.

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
        folder.mkdir(parents=True, exist_ok=True)
        # Machines with disks of their own each save everything: whichever starts again finds its own copy.
        accelerator.project_configuration.save_on_each_node = not self._is_shared()

    def register(self, model: nn.Module, *others: object) -> None:
        """Names what is saved besides what the accelerator has prepared.

        Args:
            model: As it was before it was prepared, so that any number of processes can go on from its weights.
            *others: With `state_dict` and `load_state_dict`.
        """
        self.model = model
        self.accelerator.register_save_state_pre_hook(self._save_weights)
        self.accelerator.register_load_state_pre_hook(self._load_weights)
        self.accelerator.register_for_checkpointing(*others)

    @property
    def _writes(self) -> bool:
        on_each = self.accelerator.project_configuration.save_on_each_node
        return self.accelerator.is_local_main_process if on_each else self.accelerator.is_main_process

    def _is_shared(self) -> bool:
        """Finds out whether all machines see the same folder."""
        token = broadcast_object_list([uuid.uuid4().hex])[0]
        sign = self.folder / f'.{token}'
        if self.accelerator.is_main_process:
            sign.touch()
        self.accelerator.wait_for_everyone()
        seen = gather_object([sign.exists()])
        if self.accelerator.is_main_process:
            sign.unlink()
        return all(seen)

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        weights.clear()  # Accelerate would save them with the names that several processes give them
        if self._writes:
            save_file(
                {name: value.contiguous() for name, value in self.model.state_dict().items()}, Path(folder, WEIGHTS)
            )

    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        self.model.load_state_dict(load_file(Path(folder, WEIGHTS)))

    def save(self, progress: Progress, about: dict) -> bool:
        """Saves the run, unless it is saved as it is; returns whether that went well, and says what is wrong if not.

        Whatever happens, no whole checkpoint of the run is touched before the new one is whole.

        Args:
            progress: Where the run is.
            about: What the run is: see `differences`.
        """
        if progress.steps_done == self.saved:
            return True
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
                self.accelerator.save_state(str(temporary))
            except Exception as e:  # PyTorch and safetensors have errors of their own for a disk that is full
                problem = e
            problem = self._first(problem)
        if problem is None:
            try:
                if self._writes:
                    _write(temporary / STATE, {'progress': asdict(progress), 'about': about})
                    _seal(temporary)
                    self._set_aside(path)
                    os.replace(temporary, path)
                    _sync(self.folder)
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
        self.saved = progress.steps_done
        return True

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
        state = json.loads((path / STATE).read_text(encoding='utf-8'))
        different = list(differences(state['about'], about))
        if different and not force:
            raise InputError(
                f'{path} is of another run: {"; ".join(different)}. Make these the same, choose another output, or set'
                ' force to true.'
            )
        self.accelerator.load_state(str(path))
        progress = Progress(**state['progress'])
        self.accelerator.wait_for_everyone()
        if self._writes:
            for name in self._names():
                if name > f'step-{progress.steps_done:08}':
                    self._set_aside(self.folder / name)
        return progress


def fingerprint(targets: np.ndarray, image_ids: list[str]) -> str:
    """Tells data sets apart by their pictures' names and targets (N, K)."""
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


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding='utf-8')


def _seal(folder: Path) -> None:
    """Puts every file on the disk, then the list of them: a checkpoint that has the list has lost nothing."""
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = [path.stat().st_size, file_digest(path).hex()]
        _sync(path)
    _write(folder / MANIFEST, files)
    _sync(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damage(path: Path) -> str | None:
    """Tells what is wrong with a checkpoint; None if it is whole."""
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
