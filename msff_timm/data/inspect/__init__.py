"""The look at a data set before training: label counts, missing, duplicate and unreadable images, and figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from .. import label_names, load
from .figures import draw
from .files import decode_images, find_duplicates, find_images
from .report import Report, SplitReport

if TYPE_CHECKING:
    import datasets

__all__ = ['Report', 'SplitReport', 'draw', 'inspect', 'load_splits']

DEFAULT_SPLITS = ('train', 'validation')
BLOCK = 8192  # rows whose labels are multiplied at once


def load_splits(
    name: str, splits: Sequence[str] | None = None, **arguments: object
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Loads splits of a data set.

    Args:
        name: Name of the data set, as for `msff_timm.data.load`.
        splits: Names of the splits; None for those of `train` and `validation` that exist.
        **arguments: Further arguments of `msff_timm.data.load`.

    Returns:
        The splits by name, and the error message of each one that could not be loaded.

    Raises:
        InputError: No split loads, one of `splits` does not load, or an extra is not installed.

    Examples:
        >>> splits, errors = load_splits('scenes', size=3)
        >>> {split: len(dataset) for split, dataset in splits.items()}, errors
        ({'train': 3, 'validation': 3}, [])
    """
    loaded, errors = {}, []
    for split in splits or DEFAULT_SPLITS:
        try:
            loaded[split] = load(name, split, **arguments)
        except ModuleNotFoundError as e:
            raise InputError(f"data sets need {e.name}: pip install 'msff-timm[train]'") from None
        except InputError as e:
            if splits:
                raise
            errors.append(e)
    if not loaded:
        raise errors[0]
    return loaded, [str(e) for e in errors]


def inspect(
    splits: dict[str, datasets.Dataset], check: bool = False, workers: int | None = None, data: str | None = None
) -> Report:
    """Counts labels, and finds missing and duplicate images.

    Args:
        splits: Data sets of `msff_timm.data.load` by the names of the splits.
        check: True to decode every image.
        workers: Number of processes that decode; 0 for this process, None for one per processor.
        data: Name of the data set, as for `msff_timm.data.load`.

    Raises:
        InputError: The splits have different labels, `workers` is negative, or a process ended early.

    Examples:
        >>> from msff_timm.data import load
        >>> report = inspect({'train': load('scenes', 'train', size=3)})
        >>> report.splits['train'].num_images
        3
    """
    if workers is not None and workers < 0:
        raise InputError(f'workers is {workers}: must be at least 0.')
    names = {split: label_names(dataset) for split, dataset in splits.items()}
    first = next(iter(names))
    for split in names:
        if names[split] != names[first]:
            raise InputError(f'the labels of {split} differ from those of {first}: give both the same label names.')
    co_occurrence = np.zeros((len(names[first]),) * 2, np.int64)
    reports, ids, images = {}, {}, []
    for split, dataset in splits.items():
        reports[split], ids[split] = _count(dataset, co_occurrence)
        if _has_files(dataset):
            images += find_images(split, dataset, ids[split], reports[split])
    duplicates = find_duplicates(images, splits, reports)
    if check:
        decode_images(images, splits, reports, (os.cpu_count() or 1) if workers is None else workers)
    shared = {}
    for a, b in combinations(ids, 2):
        others = set(ids[b])
        if common := [image_id for image_id in ids[a] if image_id in others]:
            shared[a, b] = common
    return Report(names[first], reports, co_occurrence, duplicates, shared, data)


def _has_files(dataset: datasets.Dataset) -> bool:
    import datasets

    return isinstance(dataset.features['image'], datasets.Image)


def _count(dataset: datasets.Dataset, co_occurrence: np.ndarray) -> tuple[SplitReport, list[str]]:
    """Counts the labels of a split, and adds its co-occurrences; returns the report and the image ids."""
    import pyarrow.compute as pc

    num_classes = len(co_occurrence)
    table = dataset.select_columns(['labels', 'ignore', 'image_id']).with_format('arrow')[:]
    per_image = pc.list_value_length(table['labels']).to_numpy()
    labels = pc.list_flatten(table['labels']).to_numpy()
    ignored = pc.list_flatten(table['ignore']).to_numpy()
    rows = np.repeat(np.arange(len(per_image)), per_image)
    for start in range(0, len(per_image), BLOCK):
        low, high = np.searchsorted(rows, [start, start + BLOCK])
        present = np.zeros((BLOCK, num_classes), np.float32)
        present[rows[low:high] - start, labels[low:high]] = 1
        co_occurrence += (present.T @ present).astype(np.int64)
    report = SplitReport(
        num_images=len(per_image),
        num_unlabelled=int((per_image == 0).sum()),
        labels_per_image={key: float(getattr(np, key)(per_image)) for key in ('min', 'mean', 'median', 'max')},
        positives=np.bincount(labels, minlength=num_classes).tolist(),
        ignored=np.bincount(ignored, minlength=num_classes).tolist(),
    )
    return report, table['image_id'].to_pylist()
