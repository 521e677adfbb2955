"""The image files of a data set: which are missing, duplicates of others, or cannot be decoded."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import InputError
from ..bit_depth import ValueRange
from ..images import decode, undecoded
from .report import BY_VALUES, SplitReport

if TYPE_CHECKING:
    import datasets

__all__ = ['ImageFile', 'decode_images', 'find_duplicates', 'find_images', 'group_same']

TAIL = 4096  # bytes at the end of a file that are compared first
CHUNK = 16  # images that a process decodes at once


@dataclass(slots=True)
class ImageFile:
    """An image of a file or of a row.

    Attributes:
        split: Name of the split.
        row: Row in the split.
        name: Path of the file, or name for messages.
        size: Number of bytes.
        path: Path of the file; None for an image within the row.
        tail: Digest of the last bytes; None until it is computed.
    """

    split: str
    row: int
    name: str
    size: int
    path: str | None = None
    tail: bytes | None = None

    def digest(self, rows: dict[str, datasets.Dataset]) -> bytes:
        """Returns the SHA-256 of the content."""
        source = self.source(rows)
        return hashlib.sha256(Path(source).read_bytes() if self.path else source).digest()

    def tail_digest(self, _: object = None) -> bytes:
        """Returns the SHA-256 of the last bytes."""
        if self.tail is None:
            with open(self.path, 'rb') as file:
                file.seek(max(self.size - TAIL, 0))
                self.tail = hashlib.sha256(file.read()).digest()
        return self.tail

    def source(self, rows: dict[str, datasets.Dataset]) -> str | bytes:
        """Returns the path, or the content of an image within the row."""
        return self.path or rows[self.split][self.row]['image']['bytes']


def find_images(split: str, dataset: datasets.Dataset, ids: list[str], report: SplitReport) -> Iterator[ImageFile]:
    """Yields the images of a split that exist, and adds the others to the report."""
    row = -1
    for batch in dataset.select_columns(['image']).with_format('arrow').iter(batch_size=1000):
        images = batch['image'].combine_chunks()
        for content, path in zip(images.field('bytes'), images.field('path').to_pylist(), strict=True):
            row += 1
            name, is_file = path or f'image {ids[row]}', True
            if content.is_valid:
                buffer = content.as_buffer()
                tail = hashlib.sha256(buffer[max(len(buffer) - TAIL, 0) :]).digest()
                image = ImageFile(split, row, name, len(buffer), None, tail)
            else:
                try:
                    image = ImageFile(split, row, name, os.stat(path or '').st_size, path)
                except OSError:
                    report.missing.append(name)
                    continue
                is_file = os.path.isfile(path)
            if image.size:
                yield image
            else:
                report.unreadable.append(f'{name}: is {"empty" if is_file else "not a file"}.')


def find_duplicates(
    images: list[ImageFile], splits: dict[str, datasets.Dataset], reports: dict[str, SplitReport]
) -> list[list[tuple[str, str]]]:
    """Groups images of the same content.

    Images that cannot be opened are removed from the list and added to the reports.
    """
    groups, failed = group_same(images, splits)
    for image, reason in failed:
        reports[image.split].unreadable.append(f'{image.name}: cannot be read as an image ({reason}).')
    places = {(image.split, image.row) for image, _ in failed}
    images[:] = [image for image in images if (image.split, image.row) not in places]
    duplicates = [[(image.split, image.name) for image in group] for group in groups]
    return sorted(duplicates, key=lambda group: len({split for split, _ in group}) == 1)


def group_same(
    images: list[ImageFile], splits: dict[str, datasets.Dataset]
) -> tuple[list[list[ImageFile]], list[tuple[ImageFile, str | None]]]:
    """Groups images of the same content: by size, then by the last bytes, then by the whole content.

    Returns:
        Groups of two images or more, and the images that cannot be opened, each with the reason.
    """
    rows = {split: undecoded(dataset) for split, dataset in splits.items()}
    keys: tuple[Callable, ...] = (lambda image, _: image.size, ImageFile.tail_digest, ImageFile.digest)
    groups, failed = [images], []
    for key in keys:
        finer = []
        for group in groups:
            by_key = defaultdict(list)
            for image in group:
                try:
                    by_key[key(image, rows)].append(image)
                except OSError as e:
                    failed.append((image, e.strerror))
            finer += [same for same in by_key.values() if len(same) > 1]
        groups = finer
    return groups, failed


def decode_images(
    images: list[ImageFile], splits: dict[str, datasets.Dataset], reports: dict[str, SplitReport], workers: int
) -> None:
    """Decodes every image and adds sizes, modes, ranges of values and errors to the reports."""
    from tqdm import tqdm

    rows = {split: undecoded(dataset) for split, dataset in splits.items()}
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    tasks = ([(image.source(rows), image.name) for image in chunk] for chunk in chunks)
    results: dict[int, list] = {}
    with tqdm(total=len(images), unit='image', leave=False, file=sys.stderr) as progress:
        for number, result in _decode_in_processes(tasks, workers):
            results[number] = result
            progress.update(len(result))
    decoded = defaultdict(list)
    for number, chunk in enumerate(chunks):
        for image, result in zip(chunk, results[number], strict=True):
            if isinstance(result, str):
                reports[image.split].unreadable.append(result)
            else:
                decoded[image.split].append(result)
    for split, found in decoded.items():
        report = reports[split]
        report.num_read = len(found)
        report.modes = dict(Counter(image.mode for image in found).most_common())
        report.widths, report.heights = (
            [float(value) for value in (min(sides), np.median(sides), max(sides))]
            for sides in zip(*(image.size for image in found), strict=True)
        )
        if deep := [image.values for image in found if image.values]:
            report.values = [min(values.lowest for values in deep), max(values.highest for values in deep)]
            scales = Counter(
                f'{v.black:,.10g} and {v.white:,.10g}, {"as the file states" if v.is_stated else BY_VALUES}'
                for v in deep
            )
            report.scales = dict(scales.most_common())


class _Decoded(NamedTuple):
    mode: str
    size: tuple[int, int]
    values: ValueRange | None


def _decode_chunk(task: list[tuple[str | bytes, str]]) -> list[_Decoded | str]:
    """Decodes images, each a source and a name; returns an error message for those that cannot be decoded."""
    results = []
    for source, name in task:
        try:
            decoded = decode(source, name)
            results.append(_Decoded(decoded.mode, decoded.image.size, decoded.values))
        except InputError as e:
            results.append(str(e))
    return results


def _decode_in_processes(tasks: Iterator[list], workers: int) -> Iterator[tuple[int, list]]:
    """Yields number and result of each task; few tasks are read ahead, since images of Parquet files fill memory."""
    if not workers:
        yield from enumerate(map(_decode_chunk, tasks))
        return
    # A forked process has all modules at once, a spawned one needs seconds to import PyTorch. It only runs Pillow.
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
    pool = ProcessPoolExecutor(workers, context, _reset_interrupt)
    running, numbered = {}, enumerate(tasks)
    try:
        while True:
            for number, task in islice(numbered, 3 * workers - len(running)):
                running[pool.submit(_decode_chunk, task)] = number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as e:
        raise InputError(f'a process that decodes images ended early ({e}): use fewer workers.') from None
    finally:
        pool.shutdown(cancel_futures=True)


def _reset_interrupt() -> None:
    # Ctrl-C reaches all processes of the terminal: the workers end at once, without a traceback. They ignore it if
    # their parent does, as in the background of a shell.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
