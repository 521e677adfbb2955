"""From rows of a data set to what a batch is made of."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from ..errors import InputError
from .transforms import open_image

__all__ = ['Samples', 'StreamedSamples', 'collate', 'seeded']


class Samples(Dataset):
    """Images as tensors with their targets, in the order of a data set that `msff_timm.data.load` made.

    Args:
        dataset: Rows of `image`, `labels`, `ignore` and `area`.
        transform: Map from a PIL image to a tensor (C, H, W); its `decode_size`, if any, bounds what is decoded.
        skip_unreadable: Give the next image that can be read in the place of one that cannot, instead of an error.
        seed: Of the transform, together with the key of the sample: how a image is augmented then depends neither on
            the process that does it nor on what was done before. None for whatever the random states are.
    """

    def __init__(
        self, dataset: datasets.Dataset, transform: Callable, skip_unreadable: bool = False, seed: int | None = None
    ):
        self.dataset = _undecoded(dataset)
        self.transform = transform
        self.skip_unreadable = skip_unreadable
        self.seed = seed
        self.num_classes = dataset.features['labels'].feature.num_classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> dict:
        """Returns a sample: see `collate`.

        Args:
            key: Number of the row, plus the length for each time that the data set has been gone through before.

        Raises:
            InputError: The image cannot be read, and it may not be skipped, or there is no other.
        """
        epoch, index = divmod(key, len(self))
        unreadable = []
        for number in range(index, index + len(self)):
            row = self.dataset[number % len(self)]
            try:
                picture = _open(row, self.transform)
            except InputError as e:
                if not self.skip_unreadable:
                    raise
                unreadable.append(str(e))
                continue
            with seeded(self.seed, epoch, index):
                image = self.transform(picture)
            return {
                'image': image,
                'target': _target(row, self.num_classes),
                'index': number % len(self),
                'unreadable': unreadable,
            }
        raise InputError(unreadable[0])

    @cached_property
    def targets(self) -> np.ndarray:
        """The targets of all images (N, K): 1 present, 0 absent, -1 not known or not to be counted."""
        targets = np.zeros((len(self), self.num_classes), np.int8)
        for column, value in (('labels', 1), ('ignore', -1)):
            rows, labels, _ = self._entries(column)
            targets[rows, labels] = value
        return targets

    @cached_property
    def areas(self) -> np.ndarray | None:
        """The relative area of each present label's largest instance (N, K), NaN elsewhere; None without areas."""
        rows, labels, counts = self._entries('labels')
        _, areas, known = self._entries('area')
        if not len(areas):
            return None
        has_areas = np.repeat(known == counts, counts)  # of a image either all labels have one or none has
        result = np.full((len(self), self.num_classes), np.nan)
        result[rows[has_areas], labels[has_areas]] = areas
        return result

    def _entries(self, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flattens a column of lists: the row of each entry, the entries, and how many each row has."""
        lists = self.dataset[column][:]
        counts = np.array([len(entries) for entries in lists])
        kind = np.float64 if column == 'area' else np.int64
        return np.repeat(np.arange(len(lists)), counts), np.array(list(chain.from_iterable(lists)), kind), counts


class StreamedSamples(IterableDataset):
    """Images as tensors with their targets from a data set that is read while it is used.

    It never ends but starts again, so that every process takes as many steps as the others, whatever its shards hold.

    Args:
        dataset: This process's share of the rows.
        transform: As for `Samples`.
        skip_unreadable: Pass over a image that cannot be read, instead of an error.
        seed: As for `Samples`.
        epoch: That is to be read: of the order of the shards, and of the transform.
        batch_size: Of the loader; its workers give batches in turns.
        start: Batches of the epoch that were taken before the run was resumed, a multiple of the loader's workers; they
            are read, but not decoded.
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
        self.dataset = _undecoded(dataset)
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
        given = 0
        self.dataset.set_epoch(self.epoch)  # once: `datasets` shares it among the workers
        while True:
            read = 0
            for row in self.dataset:
                if given < to_skip:
                    given, read = given + 1, read + 1
                    continue
                try:
                    picture = _open(row, self.transform)
                except InputError as e:
                    if not self.skip_unreadable:
                        raise
                    unreadable.append(str(e))
                    continue
                with seeded(self.seed, self.epoch, number, given):
                    image = self.transform(picture)
                given, read = given + 1, read + 1
                yield {
                    'image': image,
                    'target': _target(row, self.num_classes),
                    'index': -1,
                    'unreadable': unreadable,
                }
                unreadable = []
            if not read:
                raise InputError(unreadable[0] if unreadable else 'the stream holds no image for this process.')


def collate(samples: list[dict]) -> dict:
    """Makes a batch: `image` (B, C, H, W), `target` (B, K) of 1, 0 and -1, `index` (B,), and `unreadable` images.

    `index` is the row's number in the data set, -1 in a stream; `unreadable` is a list with a message for each image
    that was passed over.
    """
    unreadable = [message for sample in samples for message in sample['unreadable']]
    rest = [{key: value for key, value in sample.items() if key != 'unreadable'} for sample in samples]
    return {**default_collate(rest), 'unreadable': unreadable}


def _undecoded(dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.Dataset | datasets.IterableDataset:
    # Files are opened by `open_image`, as `predict` opens them, so that training sees what inference will see.
    is_file = isinstance(dataset.features['image'], datasets.Image)
    return dataset.cast_column('image', datasets.Image(decode=False)) if is_file else dataset


def _open(row: dict, transform: Callable) -> object:
    image = row['image']
    if not isinstance(image, dict):
        return image
    source = image['path'] if image['bytes'] is None else image['bytes']
    return open_image(source, image['path'] or f'image {row["image_id"]}', getattr(transform, 'decode_size', None))


@contextmanager
def seeded(seed: int | None, *place: int) -> Iterator[None]:
    """Gives Python, NumPy and PyTorch the random states of one place in the order of images, and theirs back."""
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    number = int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` would start CUDA in a loader's worker
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _target(row: dict, num_classes: int) -> torch.Tensor:
    target = torch.zeros(num_classes)
    target[row['labels']] = 1
    target[row['ignore']] = -1
    return target
