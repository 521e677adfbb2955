"""Data sets: `load(name, split)` gives rows of images and labels, whatever their files look like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from . import exports
from .columns import MEANINGS, REPEATED, ColumnSettings

if TYPE_CHECKING:
    import datasets

__all__ = ['DIFFICULT', 'MEANINGS', 'MISSING', 'NAMES', 'REPEATED', 'SPLITS', 'label_names', 'load', 'notes']

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
NAMES = ('auto', *READERS, *exports.FORMATS)
# The splits of a Hub data set are known from its files only.
SPLITS = {
    **dict.fromkeys(('coco2014', 'coco2017'), ('train', 'validation')),
    **dict.fromkeys(('folder', 'scenes', 'table', *exports.FORMATS), ('train', 'validation', 'test')),
    **dict.fromkeys(('voc2007', 'voc2012'), ('train', 'validation', 'trainval', 'test')),
}
# Settings that each reader uses, see `load`
COLUMNS = tuple(field.name for field in fields(ColumnSettings))
USED = {
    'coco': ('keep_unlabelled', 'missing'),
    'hub': COLUMNS,
    'scenes': (),
    'table': COLUMNS,
    'voc': ('difficult', 'label_names', 'missing'),
}
DIFFICULT = ('ignore', 'negative', 'positive')
MISSING = ('error', 'skip')


def load(
    name: str,
    split: str,
    root: str | None = None,
    size: int | None = None,
    *,
    config_name: str | None = None,
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
    none_label: str | None = None,
    repeated_images: str = 'error',
    image_suffix: str | None = None,
    validation_fold: int | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads one split of a data set.

    Args:
        name: Name of the data set or of its format: `coco2014`, `coco2017`, `voc2007`, `voc2012` (official files, or
            files of your own in the same layout), `table` (CSV, TSV, JSON Lines, Parquet), `folder` (images with a
            metadata file), `hub` (a data set of the Hub, or Parquet files), one of `exports.FORMATS` (exports of
            annotation tools), `scenes` (drawn by code), or `auto` to recognise the format of `root`.
        split: Name of the split: `train`, `validation` (or `val`), `test`, or, for VOC, `trainval`.
        root: Folder of the data set. For `table`, the folder of `{split}.csv` etc., or one file with a column `split`;
            for `hub`, the id of the data set, or a folder; for exports, the folder or the file of annotations.
        size: Number of images: the first ones of the split, or the number of `scenes`. None loads all images, or 10,000
            scenes.
        config_name: Configuration of a `hub` data set that has several; None for its default.
        image_size: Side of `scenes` in pixels.
        keep_unlabelled: True to keep images of `coco*` without labels. None keeps them in training only, as
            published results do; those of exports in evaluation, too.
        difficult: Meaning of a label of `voc*` whose objects are all difficult: `ignore` (masked), `negative` or
            `positive`.
        missing: Treatment of missing images of `coco*`, `voc*` and exports, and of annotations without image or
            category: `skip` (with a warning that counts them) or `error`. None skips them in the splits `train` and
            `trainval` only.
        image_root: Folder of the images of a `table` or an export. None for the folder of the table, or its only
            subfolder that holds the first image; or for the folder of the export.
        image_column: Column of the images in a `table` or `hub` data set; field of a `label_studio` task; extension in
            `webdataset` shards. None selects `image`, `file_name`, in a `table` also `path` or a column such as
            `image_name` whose first image exists; else the only one of images.
        label_columns: Columns of the labels in a `table`, `folder` or `hub` data set: one column that lists labels, or
            one column per label that holds 1, 0, -1 or nothing. None selects `labels` if there is such a column, else
            all columns but those that tools write beside labels (`columns.NOT_LABELS`). A column of vectors, i.e. of
            lists of 1, 0 and -1, needs `label_names`. For `label_studio`, names of controls; for `webdataset`, an
            extension or a key of `.json`.
        label_delimiter: Text between two labels in a column of text, or `none` if each text is one label. None finds
            it; text that can be read in two ways is an error.
        label_names: Label names in the order of the logits. None takes all names that occur, sorted, unless the data
            fix their order. For `voc20*`, None takes VOC's 20, or the names of class files or XML that have other ones.
        minus_one: Meaning of -1 in a column of one label: `unannotated` (masked in loss and metrics) or `absent`.
        blank: Meaning of an empty cell in a column of one label: `unannotated` or `absent`.
        none_label: Label of a `table`, `folder` or `hub` data set that means that an image has no label, e.g.
            `No Finding`. Its images are kept, and their unannotated labels are absent.
        repeated_images: Treatment of rows of a `table` or `folder` that name the same image: `error`, `unite` (a label
            is present if a row says so, else absent if a row says so) or `repeat` (the same, and each row is a
            training image, as in tables that repeat rare labels).
        image_suffix: Suffix of images that a `table` names without, e.g. `.jpg`. None finds it for each image, if only
            one image file has that name.
        validation_fold: Fold that is the validation split of a `table`, `folder` or `hub` data set with a column
            `fold` (or `kfold`, ...); the other folds are the training split. None to ignore folds.
        streaming: True to read a `hub` or `webdataset` data set while it is used, without a copy on disk.

    Returns:
        Rows with the columns `image` (PIL image, decoded when read), `labels` (sorted list of `ClassLabel`), `ignore`
        (masked labels), `area` (relative area of the largest instance of each label in `labels`; NaN for an unknown
        area, an empty list if all are unknown) and `image_id` (string).

    Raises:
        InputError: An argument is invalid, or a file is missing or invalid.
        ModuleNotFoundError: The `train` extra is not installed.

    Examples:
        >>> dataset = load('scenes', 'train', size=3)
        >>> dataset['image_id'][:]
        ['train-0', 'train-1', 'train-2']
        >>> dataset[0]['image'].size
        (128, 128)
    """
    if name not in NAMES:
        raise unknown('data set', name, NAMES)
    if size is not None and size < 1:
        raise InputError(f'data size is {size}: must be at least 1.')
    if difficult not in DIFFICULT:
        raise unknown('value of difficult', difficult, DIFFICULT)
    if missing is not None and missing not in MISSING:
        raise unknown('value of missing', missing, MISSING)
    recognised = exports.recognise(root) if name == 'auto' else None
    if recognised is not None:
        name, root = recognised.name, recognised.root
    if streaming and name not in ('hub', 'webdataset'):
        raise InputError(f'streaming is for hub and webdataset, but data.name is {name}: set it to false.')
    if config_name is not None and name != 'hub':
        raise InputError(f'config_name is {config_name}: {name} has no configurations: set it to null.')
    for setting, path in (('root', root), ('image_root', image_root)):
        try:
            os.path.abspath(path or '').encode()
        except UnicodeEncodeError:
            raise InputError(
                f'{setting} {ascii(str(path))}: its path is not UTF-8: rename it, or use a link to it.'
            ) from None
    split = 'validation' if split == 'val' else split
    choices: dict[str, Any] = dict(
        keep_unlabelled=keep_unlabelled,
        difficult=difficult,
        missing=missing,
        image_root=image_root,
        image_column=image_column,
        label_columns=label_columns,
        label_delimiter=label_delimiter,
        label_names=label_names,
        minus_one=minus_one,
        blank=blank,
        none_label=none_label,
        repeated_images=repeated_images,
        image_suffix=image_suffix,
        validation_fold=validation_fold,
    )
    used = exports.settings_of(name) if name in exports.FORMATS else USED[READERS[name]]
    for key, value in choices.items():
        if key not in used and value != signature(load).parameters[key].default:
            raise InputError(f'data.{key} is {value}, which {name} does not use: leave it out.')
    if name in exports.FORMATS:
        return _first(exports.load(name, split, root, streaming=streaming, **choices), size, recognised)
    reader = import_module(f'.{READERS[name]}', __name__)
    if name == 'scenes':
        return reader.load(split, size or reader.DEFAULT_SIZE, image_size)
    if READERS[name] in ('table', 'hub'):
        settings = ColumnSettings(**{key: choices[key] for key in used})
        settings.check()
        if name == 'hub':
            dataset = reader.load(split, root, settings, config_name, streaming)
        else:
            dataset = reader.load(name, split, root, settings)
    else:
        dataset = reader.load(name, split, root, **{key: choices[key] for key in used})
    return _first(dataset, size, recognised)


def _first(
    dataset: datasets.Dataset | datasets.IterableDataset, size: int | None, recognised: exports.Recognised | None
) -> datasets.Dataset | datasets.IterableDataset:
    """Returns the first rows of a data set, with a note on how its format was recognised."""
    if recognised is not None:
        dataset.info.description = '\n'.join([recognised.note, *notes(dataset)])
    if size is None:
        return dataset
    return dataset.select(range(min(size, len(dataset)))) if hasattr(dataset, 'select') else dataset.take(size)


def label_names(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Returns the label names of a loaded data set in the order of the logits.

    Examples:
        >>> label_names(load('scenes', 'train', size=1))[:3]
        ['arrow', 'bolt', 'crescent']
    """
    return dataset.features['labels'].feature.names


def notes(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Returns lines on how the files of a loaded data set were read: label columns, delimiters, splits.

    Examples:
        >>> from pathlib import Path
        >>> load('scenes', 'train', size=1)[0]['image'].save('1.png')
        >>> _ = Path('train.csv').write_text('image,cat,dog,fold\\n1.png,1,0,3\\n')
        >>> notes(load('table', 'train', '.'))
        ['labels: 2 columns (cat, dog); not labels: fold']
    """
    return dataset.info.description.splitlines()
