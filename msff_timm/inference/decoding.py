"""Batches of images as bytes, and the threads or processes that decode them."""

import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..data.images import MAX_PIXELS
from ..data.transforms import eval_transform
from ..errors import InputError, one_line
from .sources import Entry, ImageList, open_entry

if TYPE_CHECKING:
    import datasets

__all__ = ['Batches', 'make_loader', 'map_in_threads', 'num_cores']

Item = TypeVar('Item')
Result = TypeVar('Result')

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is at least this many times the size that it is resized to.
REDUCED = 4


class Batches(Dataset):
    """Batches of images of a list. A key is a part of the list, and the first and last image of the batch in it.

    Args:
        images: List of the images.
        data_config: Preprocessing of the model, as in `Preprocessing`.
        rows: Rows of the Hub data set, from `open_rows`.
        full_decode: True to decode every pixel of large JPEG files.
    """

    def __init__(
        self, images: ImageList, data_config: dict, rows: 'datasets.Dataset | None' = None, full_decode: bool = False
    ):
        self.images, self.rows = images, rows
        self.input_size = tuple(data_config['input_size'])
        self.transform = eval_transform(data_config, as_bytes=True)
        resized = [side / data_config['crop_pct'] for side in self.input_size[1:]]
        self.at_least = None if full_decode else tuple(math.ceil(REDUCED * side) for side in resized)
        self.shorter = min(resized) if data_config['crop_mode'] == 'center' else None

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, list[str | None]]:
        """Returns a batch.

        Returns:
            Bytes (B, C, H, W) in memory format channels-last, and for each image the reason why it could not be read,
            or None. Images that could not be read are black.
        """
        part, first, last = key
        entries = self.images.read(part)[first:last]
        pixels = torch.zeros(len(entries), *self.input_size, dtype=torch.uint8)
        pixels = pixels.to(memory_format=torch.channels_last)
        errors = []
        for number, entry in enumerate(entries):
            try:
                pixels[number] = self._load(entry)
                errors.append(None)
            except InputError as e:
                errors.append(str(e))
        return pixels, errors

    def _load(self, entry: Entry) -> torch.Tensor:
        image = open_entry(entry, self.rows, self.at_least)
        if self.shorter and max(image.size) / min(image.size) * self.shorter**2 > MAX_PIXELS:
            raise InputError(f'{entry.name}: is too long for the crop of the model ({image.width} x {image.height}).')
        try:
            return self.transform(image)
        except Exception as e:  # e.g. a side that would be resized to 0
            raise InputError(
                f'{entry.name}: cannot be resized ({image.width} x {image.height}; {one_line(e)}).'
            ) from None


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Applies a function that computes with PyTorch on the CPU to items; returns the results in order.

    The threads share PyTorch's own threads: many small tensors are computed faster side by side than each of them by
    all threads.

    Args:
        function: Function to apply.
        items: Items, of which few more than `num_threads` are taken at a time.
        num_threads: Number of threads; 0 computes in this one.
    """
    if not num_threads:
        yield from map(function, items)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(max(1, before // num_threads),))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def make_loader(
    batches: Batches, keys: Iterable[tuple[int, int, int]], workers: int, pin_memory: bool = False
) -> DataLoader:
    """Returns a loader of batches in the order of their keys.

    Args:
        batches: Batches to load.
        keys: Keys of `batches`.
        workers: Number of worker processes, of any start method; 0 loads in this process.
        pin_memory: True to copy batches to memory from which a GPU reads faster.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # of its own: it draws the seeds of workers
    )


def _start_worker(worker: int) -> None:
    """Leaves Ctrl-C and SIGTERM, which reach all processes of a terminal or launcher, to the main process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an exception of a worker's thread, unless it is that the main process has ended."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def num_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
