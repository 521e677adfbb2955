"""Samples: rows of a data set as pixels and targets, in random access or as a stream, and their batches."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from ..errors import InputError
from .images import open_row, undecoded

__all__ = ['Samples', 'StreamedSamples', 'collate', 'seeded']


class Samples(Dataset):
    """Pixels and targets in the order of a data set of `msff_timm.data.load`.

    Args:
        dataset: Data set with the columns `image`, `labels`, `ignore` and `area`.
        transform: Map from a PIL image to pixels (C, H, W); its attribute `decode_size`, if any, limits the decoding.
        skip_unreadable: True to replace an unreadable image by the next readable one instead of raising.
        seed: Seed of the transform. With a seed, the augmentation of an image depends only on the seed and the key of
            the sample; None uses the current random states.
    """

    def __init__(
        self, dataset: datasets.Dataset, transform: Callable, skip_unreadable: bool = False, seed: int | None = None
    ):
        self.dataset = undecoded(dataset)
        self.transform = transform
        self.skip_unreadable = skip_unreadable
        self.seed = seed
        self.num_classes = dataset.features['labels'].feature.num_classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> dict:
        """Returns a sample (see `collate`).

        Args:
            key: Row, plus the length of the data set for each earlier epoch.

        Raises:
            InputError: The image is unreadable, and is not skipped or has no replacement.
        """
        epoch, index = divmod(key, len(self))
        unreadable = []
        for number in range(index, index + len(self)):
            row = self.dataset[number % len(self)]
            try:
                image = open_row(row, getattr(self.transform, 'decode_size', None))
            except InputError as e:
                if not self.skip_unreadable:
                    raise
                unreadable.append(str(e))
                continue
            with seeded(self.seed, epoch, index):
                return _sample(row, self.transform(image), self.num_classes, number % len(self), unreadable)
        raise InputError(unreadable[0])

    @cached_property
    def targets(self) -> np.ndarray:
        """Targets of all images (N, K): 1 present, 0 absent, -1 masked."""
        targets = np.zeros((len(self), self.num_classes), np.int8)
        for column, value in (('labels', 1), ('ignore', -1)):
            rows, labels, _ = self._entries(column)
            targets[rows, labels] = value
        return targets

    @cached_property
    def areas(self) -> np.ndarray | None:
        """Relative area of the largest instance of each present label (N, K), NaN elsewhere; None without areas."""
        rows, labels, counts = self._entries('labels')
        _, areas, num_areas = self._entries('area')
        if not len(areas):
            return None
        has_areas = np.repeat(num_areas == counts, counts)  # a row has areas for all its labels or for none
        result = np.full((len(self), self.num_classes), np.nan)
        result[rows[has_areas], labels[has_areas]] = areas
        return result

    def _entries(self, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flattens a column of lists; returns the row of each entry, the entries, and their number in each row."""
        lists = self.dataset.select_columns([column]).with_format('arrow')[:][column]
        counts = pc.list_value_length(lists).to_numpy()
        return np.repeat(np.arange(len(lists)), counts), pc.list_flatten(lists).to_numpy(), counts


class StreamedSamples(IterableDataset):
    """Pixels and targets of a data set that is read while it is used.

    The stream restarts at its end, so that all processes take the same number of steps, whatever their shards hold.

    Args:
        dataset: Rows of this process.
        transform: Transform, see `Samples`.
        skip_unreadable: True to skip an unreadable image instead of raising.
        seed: Seed, see `Samples`.
        epoch: Epoch, which determines the order of the shards and the augmentation.
        batch_size: Batch size of the loader, whose workers produce batches in turn.
        start: Number of batches of the epoch that were used before the run was resumed, a multiple of the workers of
            the loader; their rows are read, but not decoded.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: Callable,
        skip_unreadable: bool = False,
        seed: int | None = None,
        epoch: int = 0,
        batch_size: int = 1,
        start: int = 0,
    ):
        self.dataset = undecoded(dataset)
        self.transform = transform
        self.skip_unreadable = skip_unreadable
        self.seed = seed
        self.epoch = epoch
        self.batch_size = batch_size
        self.start = start
        self.num_classes = dataset.features['labels'].feature.num_classes

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        to_skip = self.batch_size * len(range(number, self.start, workers))
        unreadable: list[str] = []
        used = 0
        self.dataset.set_epoch(self.epoch)  # only once, since `datasets` shares the epoch among the workers
        while True:
            is_empty = True
            for row in self.dataset:
                if used >= to_skip:
                    try:
                        image = open_row(row, getattr(self.transform, 'decode_size', None))
                    except InputError as e:
                        if not self.skip_unreadable:
                            raise
                        unreadable.append(str(e))
                        continue
                    with seeded(self.seed, self.epoch, number, used):
                        sample = _sample(row, self.transform(image), self.num_classes, -1, unreadable)
                    yield sample
                    unreadable = []
                used, is_empty = used + 1, False
            if is_empty:
                raise InputError(unreadable[0] if unreadable else 'the stream contains no images for this process.')


def collate(samples: list[dict]) -> dict:
    """Collates samples to a batch.

    Returns:
        `image` (B, C, H, W), `target` (B, K) of 1 present, 0 absent and -1 masked, `index` (B,), the row in the data
        set, -1 in a stream, and `unreadable`, the list of messages on skipped images.
    """
    unreadable = [message for sample in samples for message in sample['unreadable']]
    rest = [{key: value for key, value in sample.items() if key != 'unreadable'} for sample in samples]
    return {**default_collate(rest), 'unreadable': unreadable}


@contextmanager
def seeded(seed: int | None, *place: int) -> Iterator[None]:
    """Sets the random states of Python, NumPy and PyTorch for one position in the order of images, then restores them.

    Args:
        seed: Seed; None leaves the random states as they are.
        *place: Position, e.g. epoch and row.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    number = int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` would initialise CUDA in a worker of the loader
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _sample(row: dict, pixels: object, num_classes: int, index: int, unreadable: list[str]) -> dict:
    target = torch.zeros(num_classes)
    target[row['labels']] = 1
    target[row['ignore']] = -1
    return {'image': pixels, 'target': target, 'index': index, 'unreadable': unreadable}
