"""Reader of data sets of the Hub, and of local files that `datasets` reads; `msff_timm.hub` is about models instead."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import datasets
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, LargeList, List, Value

from ..errors import InputError, unknown
from . import table
from .columns import ColumnSettings, find_label_columns, labels_note, match_names
from .hub_source import Source, find_split
from .label_cells import encode, read_state
from .label_lists import LabelLists, find_lists
from .records import features, set_notes
from .table_splits import standard_split
from .text import check_names

__all__ = ['load']

ID_COLUMNS = ('image_id', 'id')
OURS = ('labels', 'ignore', 'area', 'image_id')


def load(
    split: str, root: str | None, settings: ColumnSettings, config_name: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Loads one split of a data set of the Hub.

    Labels are a `ClassLabel` or text, one or a list of them, or one column per label of 1, 0 and -1 or null. Images
    are named by `image_id` or `id` if there is such a column, else by the split and their row (`train-7`); in a stream,
    the row is counted within the part that the process reads.

    Only the Parquet files of the split are fetched, unless all splits are needed to find the names of the labels.

    Args:
        split: Name of the split.
        root: `ORG/NAME` or `ORG/NAME@REVISION`, or a folder.
        settings: Settings of the columns.
        config_name: Configuration; None for the default.
        streaming: True to read the data set while it is used.

    Raises:
        InputError: The data set cannot be loaded, or has no images or labels. In a stream, an invalid row raises when
            it is read.
    """
    if not root:
        raise InputError(
            'hub needs data.root: set it to the id of a data set on the Hub, or a folder of Parquet files.'
        )
    source = Source(root, config_name)
    if source.folder is not None:
        if streaming:
            raise InputError(
                f'{root}: its labels are in a metadata file above the splits: set data.streaming to false.'
            )
        settings = replace(settings, image_column=None, image_root=None)
        return table.load('folder', split, source.fetch_folder(split), settings)
    found = find_split(split, source.splits, root)
    dataset, where = source.read(found, streaming), f'{root}, split {found}'
    schema, label_names = dataset.features, settings.label_names
    if schema is None:
        raise InputError(
            f'{root}: its columns are unknown until it is read: convert it to Parquet, or set data.streaming to false.'
        )
    image = _image_column(schema, settings.image_column, where)
    columns = find_label_columns(schema, image, settings, where)
    for name in columns if len(columns) > 1 else ():
        if not _is_number(schema[name]):
            raise InputError(
                f'{where}: the column {name!r} does not hold 1, 0 and -1: set data.label_columns to the label columns.'
            )
    is_binary = len(columns) > 1 or columns != ['labels'] and _is_number(schema[columns[0]])
    used = [*columns, *(['ignore'] if 'ignore' in schema and 'ignore' not in columns else [])]
    class_names = {name: names for name in used if (names := _class_names(schema[name]))}
    notes = [f'labels: column {columns[0]!r}']
    if is_binary:
        check_names(where, columns)
        label_names = match_names(columns, label_names, where)
        notes = [labels_note(columns, [name for name in schema if name not in (image, *used, *ID_COLUMNS)])]
    elif label_names is None:
        label_names = class_names.get(columns[0])
    if source.has_label_folders and columns == ['label'] and all(map(standard_split, class_names.get('label', ['']))):
        raise InputError(
            f'{root}: has no labels: its only folders are the splits: add a metadata.csv with the columns file_name and'
            ' labels.'
        )
    texts = [name for name in used if not (is_binary and name in columns) and name not in class_names]
    lists = LabelLists(settings.label_delimiter, label_names)
    if streaming and texts:
        if label_names is None:
            raise InputError(f'{root}: the labels of a stream are not known in advance: set data.label_names.')
        lists = replace(lists, has_vectors=columns[0] in texts and _is_number(_inner(schema[columns[0]])))
    elif texts:
        parts = {found: dataset} if label_names is not None else {key: source.read(key, False) for key in source.splits}
        if len(parts) > 1 and not source.is_local:
            notes[0] += ', names found in all splits (set data.label_names to fetch this split only)'
        cells = {
            name: list(chain.from_iterable(_values(part, name) for part in parts.values() if name in part.features))
            for name in texts
        }
        labels = cells.pop(columns[0], [])
        others = list(chain.from_iterable(cells.values()))
        column = f'{root}: {columns[0]!r}'
        lists, note = find_lists(labels, others, settings.label_delimiter, label_names, column)
        notes[0] += note
        if label_names is None:
            label_names = _find_names(parts, texts, lists, columns[0], root)
    if not streaming and not len(dataset):
        raise InputError(f'{where}: contains no rows.')
    image_id = next((name for name in ID_COLUMNS if name in schema and name not in (image, *columns)), None)
    rows = _Rows(columns, is_binary, lists, class_names, image_id, list(label_names), settings, found, where)
    result_schema = features(list(label_names))
    inputs = used + ([image_id] if image_id else [])
    if not streaming:
        images = dataset.select_columns([image]).rename_columns({image: 'image'}).cast_column('image', Image())
        # The images are left out of `map`, which would write them to the cache once more.
        rest = dataset.select_columns(inputs).map(
            rows,
            batched=True,
            with_indices=True,
            remove_columns=inputs,
            features=Features({name: result_schema[name] for name in OURS}),
        )
        return set_notes(datasets.concatenate_datasets([images, rest], axis=1), notes)
    stream = dataset.select_columns([image, *inputs]).cast_column(image, Image(decode=False))
    mapped = stream.map(
        partial(_with_image, rows=rows, image=image),
        batched=True,
        with_indices=True,
        remove_columns=[image, *inputs],
    )
    # `cast` after `map`: with the features as an argument, `map` would expect decoded images.
    return set_notes(mapped.cast(result_schema), notes)


def _image_column(schema: Features, wanted: str | None, where: str) -> str:
    if wanted is not None and wanted not in schema:
        raise InputError(f'{where}: {unknown("image column", wanted, schema)}')
    images = [name for name, feature in schema.items() if _is_image(feature)]
    for name in [wanted] if wanted else ['image', 'file_name', *(images if len(images) == 1 else [])]:
        if name in images:
            return name
    problem = f'{wanted!r} does not hold images' if wanted else 'has no image column, or several'
    raise InputError(f'{where}: {problem}: set data.image_column (columns of images: {", ".join(images) or "none"}).')


def _is_image(feature: object) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {'bytes', 'path'}
    return isinstance(feature, Image) or isinstance(feature, Value) and feature.dtype in ('binary', 'large_binary')


def _is_number(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(('int', 'uint', 'float', 'bool', 'null'))


def _inner(feature: object) -> object:
    return feature.feature if isinstance(feature, (List, LargeList)) else None


def _class_names(feature: object) -> list[str] | None:
    inner = _inner(feature) or feature
    return inner.names if isinstance(inner, ClassLabel) else None


def _find_names(splits: dict[str, Dataset], columns: list[str], lists: LabelLists, column: str, root: str) -> list[str]:
    """Returns the label names of all splits: each label needs the same index in training and validation."""
    found = set()
    for split, dataset in splits.items():
        for name in set(columns) & set(dataset.features):
            for row, value in enumerate(_values(dataset, name)):
                found.update(lists.read(value, f'{root}, split {split}: row {row}: {name!r}'))
    if not found:
        raise InputError(f'{root}: contains no labels: fill the column {column!r}, or set data.label_names.')
    check_names(root, sorted(found))
    return sorted(found)


def _values(dataset: Dataset, column: str, size: int = 1000) -> Iterable[object]:
    """Yields the values of a column, read in batches of rows."""
    for batch in dataset.select_columns([column]).iter(size):
        yield from batch[column]


@dataclass
class _Rows:
    """Map from a batch of rows to the columns of every data set except the images.

    Attributes:
        columns: Label columns.
        is_binary: True if each of them holds the states of one label.
        lists: Format of cells that hold several labels.
        class_names: Names of columns of the type `ClassLabel`.
        image_id: Column that names the images, or None.
        label_names: Label names in the order of the logits.
        settings: Settings of the columns.
        split: Name of the split.
        where: Data set and split, for messages.
    """

    columns: list[str]
    is_binary: bool
    lists: LabelLists
    class_names: dict[str, list[str]]
    image_id: str | None
    label_names: list[str]
    settings: ColumnSettings
    split: str
    where: str

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        number_of = {name: number for number, name in enumerate(self.label_names)}
        has_ignore = 'ignore' in batch and 'ignore' not in self.columns
        result = {name: [] for name in OURS}
        for position, index in enumerate(indices):
            row = {name: values[position] for name, values in batch.items()}
            where = f'{self.where}: row {index}'
            ignore = self._labels(row, 'ignore', where) if has_ignore else []
            if self.is_binary:
                meanings = self.settings.minus_one, self.settings.blank
                states = {name: read_state(row[name], f'{where}: {name!r}', *meanings) for name in self.columns}
                labels = [name for name, state in states.items() if state == 1]
                ignore += [name for name, state in states.items() if state == -1 and name not in ignore]
            else:
                labels = self._labels(row, self.columns[0], where)
            present, unannotated = encode(labels, ignore, number_of, where)
            image_id = str(row[self.image_id]) if self.image_id else f'{self.split}-{index}'
            for name, value in zip(OURS, (present, unannotated, [], image_id), strict=True):
                result[name].append(value)
        return result

    def _labels(self, row: dict, column: str, where: str) -> list[str]:
        value, class_names, where = row[column], self.class_names.get(column), f'{where}: {column!r}'
        if class_names is None or value is None:
            return (self.lists.read_names if column == 'ignore' else self.lists.read)(value, where)
        labels = []
        for number in value if isinstance(value, list) else [value]:
            if number is None or not 0 <= number < len(class_names):
                raise InputError(f'{where} is {number}: must be a label from 0 to {len(class_names) - 1}.')
            if class_names[number] in labels:
                raise InputError(f'{where} has the label {class_names[number]!r} twice.')
            labels.append(class_names[number])
        return labels


def _with_image(batch: dict[str, list], indices: list[int], rows: _Rows, image: str) -> dict[str, list]:
    return {'image': batch[image], **rows(batch, indices)}
