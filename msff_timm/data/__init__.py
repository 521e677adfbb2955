"""Data sets, behind one door: `load(name, split)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import InputError, unknown

if TYPE_CHECKING:
    import datasets

__all__ = ['DIFFICULT', 'MEANINGS', 'MISSING', 'NAMES', 'SPLITS', 'label_names', 'load', 'notes']

READERS = {
    'coco2014': 'coco',
    'coco2017': 'coco',
    'folder': 'table',
    'hub': 'hub',
    'scenes': 'scenes',
    'table': 'table',
    'voc2007': 'voc',
    'voc2012': 'voc',
}
NAMES = tuple(READERS)
# Of a data set of the Hub only its files know them.
SPLITS = {
    **dict.fromkeys(('coco2014', 'coco2017'), ('train', 'validation')),
    **dict.fromkeys(('folder', 'scenes', 'table'), ('train', 'validation', 'test')),
    **dict.fromkeys(('voc2007', 'voc2012'), ('train', 'validation', 'trainval', 'test')),
}
DIFFICULT = ('ignore', 'negative', 'positive')
MISSING = ('error', 'skip')
MEANINGS = ('unannotated', 'absent')  # of -1 and of blank


def load(
    name: str,
    split: str,
    root: str | None = None,
    size: int | None = None,
    *,
    image_size: int = 128,
    keep_unlabelled: bool | None = None,
    difficult: str = 'ignore',
    missing: str | None = None,
    image_root: str | None = None,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_delimiter: str | None = None,
    label_names: Sequence[str] | None = None,
    minus_one: str = 'unannotated',
    blank: str = 'unannotated',
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads one split of a data set.

    Args:
        name: `coco2014`, `coco2017`, `voc2007`, `voc2012` (official layouts, or data of your own in the same layout),
            `table` (CSV, TSV, JSON Lines, Parquet), `folder` (images with a metadata file), `hub` (a data set of the
            Hub, or Parquet files), or `scenes` (drawn by code, nothing on disk).
        split: `train`, `validation` (or `val`), `test`, or, for VOC, `trainval`.
        root: Folder of a data set that lies on disk; for `table` the folder of `{split}.csv` and the like, or one file
            with a column `split`; for `hub` the data set's id or a folder.
        size: Number of images: as many `scenes`, or the first ones; None for 10,000 scenes, or all.
        image_size: Side in pixels at which `scenes` are drawn.
        keep_unlabelled: Keep images without any label of `coco*`; None keeps them in training only, as published
            results do.
        difficult: What a label of `voc*` counts as where all its objects are difficult: `ignore`, `negative` or
            `positive`.
        missing: Treatment of images of `coco*` and `voc*` that are not there, and of annotations of no image or
            category: `skip` (left out, with a warning that counts them) or `error`; None skips them in the splits
            `train` and `trainval` only.
        image_root: Folder of the images that a `table` names; None for the table's own.
        image_column: Of a `table` or `hub`; None for `image`, `file_name` or the only one that holds images.
        label_columns: Columns of the labels in a `table`, `folder` or `hub`: one column of lists, or one column of 1, 0
            and -1 or empty for each label; None for `labels` if there is such a column, else all that are left but
            those that tools write beside labels (`cells.NOT_LABELS`).
        label_delimiter: Text between the labels of a column of text; `none` where each text is one label; None to find
            it, which is an error where the texts can be read in two ways.
        label_names: Names in the order of the logits, where the data do not fix them; None for all that occur, sorted.
            Of `voc*`, None for VOC's 20, or, where class files or XML have other names, for theirs.
        minus_one: Meaning of -1 in a column for one label: `unannotated` (masked in loss and metrics) or `absent`.
        blank: Meaning of an empty cell in such a column, likewise.
        streaming: Read a `hub` data set while it is used, without a copy on disk.

    Returns:
        Columns `image` (a PIL image when read), `labels` (sorted list of `ClassLabel`), `ignore` (labels that are
        neither present nor absent), `area` (the largest area of each label in `labels`, relative to the image: NaN
        where it is unknown, an empty list where all are), `image_id` (a string).

    Raises:
        InputError: The name, split, root or another argument is none that can be loaded, or a file is not as it should
            be.
        ModuleNotFoundError: The `train` extra is not installed.
    """
    if name not in READERS:
        raise unknown('data set', name, READERS)
    if size is not None and size < 1:
        raise InputError(f'data size {size} must be at least 1.')
    if difficult not in DIFFICULT:
        raise unknown('value of difficult', difficult, DIFFICULT)
    if missing is not None and missing not in MISSING:
        raise unknown('value of missing', missing, MISSING)
    if streaming and name != 'hub':
        raise InputError(f'streaming is for data sets of the Hub: {name} lies on this machine.')
    for setting, path in (('root', root), ('image_root', image_root)):
        try:
            os.path.abspath(path or '').encode()
        except UnicodeEncodeError:
            raise InputError(
                f'{setting} {ascii(str(path))}: its path is not UTF-8; rename it, or link to it.'
            ) from None
    split = 'validation' if split == 'val' else split
    reader = import_module(f'.{READERS[name]}', __name__)
    columns = {
        'image_column': image_column,
        'label_columns': label_columns,
        'label_names': label_names,
        'label_delimiter': label_delimiter,
        'minus_one': minus_one,
        'blank': blank,
    }
    if name == 'scenes':
        return reader.load(split, size or reader.DEFAULT_SIZE, image_size)
    if name == 'hub':
        dataset = reader.load(split, root, **columns, streaming=streaming)
    elif name in ('table', 'folder'):
        dataset = reader.load(name, split, root, **columns, image_root=image_root)
    elif reader.__name__.endswith('voc'):
        dataset = reader.load(name, split, root, difficult, label_names, missing)
    else:
        dataset = reader.load(name, split, root, keep_unlabelled, missing)
    if size is None:
        return dataset
    return dataset.take(size) if streaming else dataset.select(range(min(size, len(dataset))))


def label_names(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Returns the names of a loaded data set's labels, in the order of the logits."""
    return dataset.features['labels'].feature.names


def notes(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Returns lines on how the files of a loaded data set were read: columns, delimiters, splits."""
    return dataset.info.description.splitlines()
