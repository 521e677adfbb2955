"""Results for any number of images in one file: resumable, shared by several processes, in constant memory.

Until `tags.parquet` is complete, the folder `tags.parquet.parts` beside it holds a list of the images, the settings,
and one file for each part of the list that is done. These files appear in one step: after a kill at any moment, each
image is in one of them or in none.
"""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import __version__
from ..data.transforms import Normalize
from ..errors import InputError, unknown
from ..files import check_file, write_text
from ..locks import lock, release
from .decoding import Batches, make_loader, map_in_threads, num_cores
from .folding import folded
from .logits import Preprocessing
from .sidecars import FORMATS, Sidecars
from .sinks import merge, read_header, write_part
from .sources import ImageList, Sources, list_entries, open_rows
from .tasks import Task
from .team import Team

if TYPE_CHECKING:
    import datasets

__all__ = ['PART_SIZE', 'PRECISIONS', 'Settings', 'Summary', 'run']

PART_SIZE = 256  # number of images that a kill can cost each process
PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
MOST_WORKERS = 16
MOST_REPORTED = 20  # unreadable images; the output names all
HEADER, IMAGES, LOCK = 'header.json', 'images.jsonl', '.lock'
INFORMATION = ('model', 'version', 'num_images', 'num_unreadable')  # keys of a header that determine no result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of a run, whatever it computes.

    Attributes:
        batch_size: Number of images computed at once, at most `PART_SIZE`; None for 16 on a CPU and 64 elsewhere.
        workers: Number of threads that decode and compute on a CPU, or of processes that decode for other devices;
            None for one per core, at most 16. 0 does all in the main thread.
        precision: Precision of autocast: `fp32`, `bf16` or `fp16`.
        compile: True to compile the model.
        full_decode: True to decode every pixel of large JPEG files.
        sidecar: Format of a file with the labels beside each image, `txt` or `xmp`; None for no such files.
    """

    batch_size: int | None = None
    workers: int | None = None
    precision: str = 'fp32'
    compile: bool = False
    full_decode: bool = False
    sidecar: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and not 1 <= self.batch_size <= PART_SIZE:
            raise InputError(f'the batch size is {self.batch_size}: must be from 1 to {PART_SIZE}.')
        if self.workers is not None and self.workers < 0:
            raise InputError(f'the number of workers is {self.workers}: must be at least 0.')
        if self.precision not in PRECISIONS:
            raise unknown('precision', self.precision, PRECISIONS)
        if self.sidecar is not None and self.sidecar not in FORMATS:
            raise unknown('sidecar format', self.sidecar, FORMATS)


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        num_images: Number of images in the output.
        num_unreadable: Number of images that could not be read.
        num_computed: Number of images that this run has computed, in all processes; the others were done before.
        seconds: Time that they took.
    """

    num_images: int
    num_unreadable: int
    num_computed: int = 0
    seconds: float = 0.0


def run(
    task: Task, sources: Sources, output: str | Path, settings: Settings | None = None, team: Team | None = None
) -> Summary:
    """Computes a result for each image, or resumes where a run with the same arguments stopped.

    Args:
        task: Task to compute.
        sources: Sources of the images, which are listed once, when the output is begun.
        output: File to write: Parquet, JSON Lines or CSV, by its suffix.
        settings: Further settings; None for the defaults.
        team: Processes that share the work; None for those that a launcher has started.

    Raises:
        InputError: An argument is invalid, the output belongs to another model or other settings, or another run is
            writing it.
    """
    settings, team = settings or Settings(), team or Team()
    task.check(Path(output).suffix)
    check_file(output, '--output')
    if Path(output).suffix == '.parquet':
        import pyarrow  # noqa: F401  raises before any work if the `bulk` extra is missing
    rows = open_rows(sources)
    header = {
        **task.header,
        'precision': settings.precision,
        'full_decode': settings.full_decode,
        'sidecar': settings.sidecar,
        'images': {**vars(sources), 'paths': {path: os.path.abspath(path) for path in sources.paths}},
        'num_rows': None if rows is None else len(rows),
        'version': __version__,
    }
    run = _Run(task, Path(output), json.loads(json.dumps(header)), settings, team)
    with run.locked(), _stoppable():
        try:
            if summary := team.first(lambda: run.prepare(sources, rows)):
                return Summary(**summary)
            return run.compute(rows)
        except (KeyboardInterrupt, SystemExit):
            run.report_stop()
            raise


class _Run:
    """A run and its folder."""

    def __init__(self, task: Task, output: Path, header: dict, settings: Settings, team: Team):
        self.task, self.output, self.header, self.settings, self.team = task, output, header, settings, team
        self.folder = output.with_name(f'{output.name}.parts')
        self.num_reported = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out; the first process holds the lock for all."""
        path, descriptor = self.folder / LOCK, None

        def acquire() -> None:
            nonlocal descriptor
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = lock(path, self.output)

        self.team.first(acquire)
        try:
            yield
        finally:
            if descriptor is not None:
                release(path, descriptor)
                with suppress(OSError):  # it holds finished parts
                    self.folder.rmdir()

    def prepare(self, sources: Sources, rows: 'datasets.Dataset | None') -> dict | None:
        """Lists the images, or checks that the output continues; returns a summary if the output is complete."""
        if self.output.exists():
            found = read_header(self.output)
            if found is None:
                raise InputError(f'{self.output}: exists, and no such command wrote it: choose another --output.')
            self._check_same(found)
            self._clear()  # left by a kill between the last two steps
            log.info('%s is complete; nothing to do.', self.output)
            return {key: found[key] for key in ('num_images', 'num_unreadable')}
        if (self.folder / HEADER).exists():
            self._check_same(json.loads((self.folder / HEADER).read_text(encoding='utf-8')))
            for path in self.folder.glob('.saving-*'):  # of a killed run
                shutil.rmtree(path)
            return None
        log.info('listing images ...')
        ImageList.write(self.folder / IMAGES, list_entries(sources, rows))
        write_text(self.folder / HEADER, json.dumps(self.header, indent=2) + '\n')
        return None

    def _check_same(self, found: dict) -> None:
        if differences := _differences(found, self.header):
            raise InputError(
                f'{self.output}: was begun with other settings: {"; ".join(differences)}. Repeat the command as it was,'
                f' choose another --output, or remove the file and {self.folder.name}.'
            )

    def compute(self, rows: 'datasets.Dataset | None') -> Summary:
        """Computes this process's share of the parts; the first process merges all of them."""
        if not (self.folder / HEADER).exists():
            raise InputError(
                f'{self.folder}: cannot be seen here: --output must lie in a folder that all machines share.'
            )
        images = ImageList(self.folder / IMAGES, PART_SIZE)
        done = self.team.first(lambda: sorted(self._parts()))
        waiting = sorted(set(range(images.num_parts)) - set(done))
        if done:
            log.info('resuming: %d of %d images are done.', sum(map(images.num_images, done)), len(images))
        start = time.perf_counter()
        self._compute_parts(images, waiting[self.team.rank :: self.team.size], rows)
        self.team.wait()
        seconds = time.perf_counter() - start
        num_unreadable = self.team.first(lambda: self._merge(images))
        return Summary(len(images), num_unreadable, sum(map(images.num_images, waiting)), seconds)

    def _compute_parts(self, images: ImageList, parts: Sequence[int], rows: 'datasets.Dataset | None') -> None:
        if not parts:
            return
        compute, settings = _Compute(self.task, self.settings), self.settings
        batch_size = settings.batch_size or (16 if compute.device.type == 'cpu' else 64)
        workers = settings.workers
        if workers is None:
            workers = min(max(1, num_cores() // self.team.local_size), MOST_WORKERS)
        keys = _Keys(images, parts, batch_size)
        batches = Batches(images, compute.data_config, rows, settings.full_decode)
        results = compute.in_order(batches, keys, min(workers, len(keys)))
        sidecars = Sidecars(settings.sidecar, _files(images)) if settings.sidecar else None
        bar = tqdm(
            total=sum(map(images.num_images, parts)),
            desc=f'process 1 of {self.team.size}' if self.team.size > 1 else None,
            unit=' images',
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=self.team.rank > 0 or not log.isEnabledFor(logging.INFO),
        )
        values, errors = [], []
        with bar, logging_redirect_tqdm([logging.getLogger('msff_timm')]):
            for (part, _, last), (some, messages) in zip(keys, results, strict=True):
                values.append(some)
                errors += messages
                if last == images.num_images(part):
                    self._write(images, part, np.concatenate(values), errors, sidecars)
                    values, errors = [], []
                bar.update(len(messages))

    def _write(
        self, images: ImageList, part: int, values: np.ndarray, errors: list[str | None], sidecars: Sidecars | None
    ) -> None:
        entries = images.read(part)
        columns = self.task.columns(values, [error is None for error in errors])
        if sidecars:
            for entry, labels in zip(entries, self.task.labels(columns), strict=True):
                if labels is not None:
                    self._try_sidecar(sidecars, entry.path, labels)
        for error in filter(None, errors):
            self._report(error)
        names = [_printable(entry.name) for entry in entries]
        columns = {'image': names, **columns, 'error': [error and _printable(error) for error in errors]}
        unreadable = len(errors) - errors.count(None)
        write_part(self.folder / f'{part:08}-{unreadable}{self.output.suffix}', columns)

    def _try_sidecar(self, sidecars: Sidecars, path: str, labels: list[str]) -> None:
        try:
            sidecars.write(path, labels)
        except InputError as e:
            self._report(str(e))

    def _report(self, message: str) -> None:
        self.num_reported += 1
        if self.num_reported <= MOST_REPORTED:
            log.error('%s', message)
        if self.num_reported == MOST_REPORTED:
            log.error('further messages are left out; the column `error` names each image that could not be read.')

    def _parts(self) -> dict[int, Path]:
        """Returns the files of finished parts."""
        return {int(path.name[:8]): path for path in self.folder.glob(f'????????-*{self.output.suffix}')}

    def _merge(self, images: ImageList) -> int:
        """Merges all parts; returns the number of unreadable images."""
        parts = [path for _, path in sorted(self._parts().items())]
        num_unreadable = sum(int(path.stem.partition('-')[2]) for path in parts)
        counts = {'num_images': len(images), 'num_unreadable': num_unreadable}
        merge(parts, self.output, {**self.header, **counts})
        self._clear()
        return num_unreadable

    def _clear(self) -> None:
        """Removes all files of the folder but the lock, which is held."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def report_stop(self) -> None:
        """Shows how much is done, and how the run is resumed."""
        if self.team.rank == 0 and (self.folder / HEADER).exists():
            images = ImageList(self.folder / IMAGES, PART_SIZE)
            num_done = sum(map(images.num_images, self._parts()))
            log.error('stopped: %d of %d images are done; the same command resumes.', num_done, len(images))


class _Compute:
    """Map from bytes (B, C, H, W) to the values (B, D) of a task, on the device of its model."""

    def __init__(self, task: Task, settings: Settings):
        preprocessing = Preprocessing(task.model)
        self.data_config, self.task = preprocessing.data_config, task
        self.device = next(task.model.parameters()).device
        self.model = folded(task.model, preprocessing.noise(1))
        if settings.compile:
            self.model = torch.compile(self.model)
        self.normalize = Normalize(self.data_config).to(self.device)
        self.dtype = PRECISIONS[settings.precision]

    def in_order(self, batches: Batches, keys: '_Keys', workers: int) -> Iterator[tuple[np.ndarray, list[str | None]]]:
        """Computes batches in the order of their keys; returns the values of each, and errors as `Batches` does."""

        def load_and_compute(key: tuple[int, int, int]) -> tuple[np.ndarray, list[str | None]]:
            pixels, errors = batches[key]
            return self(pixels), errors

        if decodes_in_threads(self.device):
            yield from map_in_threads(load_and_compute, keys, workers)
        else:
            for pixels, errors in make_loader(batches, keys, workers, pin_memory=self.device.type == 'cuda'):
                yield self(pixels), errors

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        images = self.normalize(pixels.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            values = self.task.compute(self.model, images)
        return values.float().cpu().numpy()


def decodes_in_threads(device: torch.device) -> bool:
    """Returns whether threads decode and compute whole batches, rather than processes decode for a faster device."""
    return device.type == 'cpu'


class _Keys:
    """Keys of `Batches` for parts of a list, in order."""

    def __init__(self, images: ImageList, parts: Sequence[int], batch_size: int):
        self.images, self.parts, self.batch_size = images, parts, batch_size

    def __len__(self) -> int:
        return sum(-(-self.images.num_images(part) // self.batch_size) for part in self.parts)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for part in self.parts:
            size = self.images.num_images(part)
            for first in range(0, size, self.batch_size):
                yield part, first, min(first + self.batch_size, size)


def _files(images: ImageList) -> Iterator[str]:
    for part in range(images.num_parts):
        for entry in images.read(part):
            if entry.path is None or entry.size is not None:
                raise InputError(f'{entry.name}: is in an archive or data set: --sidecar needs image files.')
            yield entry.path


def _differences(found: dict, wanted: dict, above: str = '') -> list[str]:
    """Describes the values that differ between two headers."""
    lines = []
    for key in dict.fromkeys([*found, *wanted]):
        one, other, name = found.get(key), wanted.get(key), f'{above}{key}'
        if one == other or name in INFORMATION:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            lines += _differences(one, other, f'{name}.')
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            k = next(k for k in range(len(one)) if one[k] != other[k])
            lines.append(f'{name}[{k}] {one[k]!r} instead of {other[k]!r}')
        elif isinstance(one, list) and isinstance(other, list):
            lines.append(f'{len(one)} {name} instead of {len(other)}')
        else:
            lines.append(f'{name} {one!r} instead of {other!r}')
    return lines


def _printable(text: str) -> str:
    r"""Returns text with bytes that are not UTF-8 as `\xNN`."""
    return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


@contextmanager
def _stoppable() -> Iterator[None]:
    """Makes SIGTERM end the process as Ctrl-C does, with the exit code 143."""
    if threading.current_thread() is not threading.main_thread():  # others cannot change it
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
