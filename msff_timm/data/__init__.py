"""Data sets, behind one door: `load(name, split)`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import InputError, unknown

if TYPE_CHECKING:
    import datasets

__all__ = ['label_names', 'load']

READERS = {'scenes': 'scenes', 'coco2014': 'coco'}


def load(
    name: str,
    split: str,
    root: str | None = None,
    size: int | None = None,
    image_size: int = 128,
) -> datasets.Dataset:
    """Loads one split of a data set.

    Args:
        name: `scenes` (drawn by code, nothing on disk) or `coco2014` (official layout).
        split: `train` or `validation`.
        root: Folder of a data set that lies on disk.
        size: Number of pictures: as many `scenes`, or the first ones; None for 10,000 scenes, or all.
        image_size: Side in pixels at which `scenes` are drawn.

    Returns:
        Columns `image` (a PIL picture when read), `labels` (sorted list of `ClassLabel`), `area` (the largest area of
        each of these labels, relative to the picture), `image_id`.

    Raises:
        InputError: The name, split, root or size is none that can be loaded.
        ModuleNotFoundError: The `train` extra is not installed.
    """
    if name not in READERS:
        raise unknown('data set', name, READERS)
    if size is not None and size < 1:
        raise InputError(f'data size {size} must be at least 1.')
    reader = import_module(f'.{READERS[name]}', __name__)
    if name == 'scenes':
        return reader.load(split, size or reader.DEFAULT_SIZE, image_size)
    dataset = reader.load(split, root)
    return dataset.select(range(min(size or len(dataset), len(dataset))))


def label_names(dataset: datasets.Dataset) -> list[str]:
    """Returns the names of a loaded data set's labels, in the order of the logits."""
    return dataset.features['labels'].feature.names
