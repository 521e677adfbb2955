"""Reader of data sets of the Hub, and of local files that `datasets` reads; `msff_timm.hub` is about models instead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, IterableDataset, LargeList, List, Value

from ..errors import InputError, unknown
from . import table
from .columns import ColumnSettings, find_label_columns, labels_note, match_names
from .hub_source import Source, find_split
from .label_lists import LabelLists
from .label_reader import Format, Labels, find_format, holds_states, read_labels
from .records import features, set_notes
from .table_files import Table
from .table_splits import split_by_fold, split_rows, standard_split
from .text import check_names

__all__ = ['ID_COLUMNS', 'find_image_column', 'load']

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
    for setting, is_set in (
        ('repeated_images', settings.repeated_images != 'error'),
        ('image_suffix', settings.image_suffix is not None),
        ('validation_fold', streaming and settings.validation_fold is not None),
    ):
        if is_set:
            kind = 'a stream' if streaming else 'a data set whose images are in its rows'
            raise InputError(f'{root}: data.{setting} cannot be used with {kind}: leave it out.')
    has_folds = settings.validation_fold is not None and standard_split(split) != 'test'
    if has_folds and 'validation' in map(standard_split, source.splits):
        raise InputError(f'{root}: data.validation_fold is set, but it has a validation split: leave it out.')
    is_divided = has_folds or not streaming and list(source.splits) == ['train']
    found = find_split('train' if is_divided else split, source.splits, root)
    dataset, where = source.read(found, streaming), f'{root}, split {found}'
    schema, label_names = dataset.features, settings.label_names
    if schema is None:
        raise InputError(
            f'{root}: its columns are unknown until it is read: convert it to Parquet, or set data.streaming to false.'
        )
    image = find_image_column(schema, settings.image_column, where)
    columns = find_label_columns(schema, image, settings, where)
    for name in columns if len(columns) > 1 else ():
        if not _is_number(schema[name]):
            raise InputError(
                f'{where}: the column {name!r} does not hold 1, 0 and -1: set data.label_columns to the label columns.'
            )
    is_binary = len(columns) > 1 or columns != ['labels'] and _is_number(schema[columns[0]])
    if is_binary and len(columns) == 1 and not streaming:
        values = _table(dataset, where, {}).distinct(columns[0])[0]
        is_binary = holds_states(columns[0], values, settings) is not False
    elif is_binary and len(columns) == 1 and label_names is not None:
        is_binary = columns[0] in label_names
    used = [*columns, *(['ignore'] if 'ignore' in schema and 'ignore' not in columns else [])]
    class_names = {name: names for name in used if (names := _class_names(schema[name]))}
    if is_binary:
        check_names(where, columns)
        label_names = match_names(columns, label_names, settings.none_label, where)
    elif label_names is None:
        label_names = class_names.get(columns[0])
    if source.has_label_folders and columns == ['label'] and all(map(standard_split, class_names.get('label', ['']))):
        raise InputError(
            f'{root}: has no labels: its only folders are the splits: add a metadata.csv with the columns file_name and'
            ' labels.'
        )
    others = [name for name in schema if name not in (image, *used, *ID_COLUMNS)]
    note = labels_note(columns, others) if is_binary else f'labels: column {columns[0]!r}'
    image_id = next((name for name in ID_COLUMNS if name in schema and name not in (image, *columns)), None)
    if streaming:
        if label_names is None:
            raise InputError(f'{root}: the labels of a stream are not known in advance: set data.label_names.')
        is_list = _is_number(_inner(schema[columns[0]])) and {'0', '1'}.isdisjoint(label_names)
        kind = 'columns' if is_binary else 'vectors' if is_list else 'lists'
        format = Format(columns, kind, LabelLists(settings.label_delimiter, label_names), label_names)
        rows = _Rows(format, settings, class_names, image_id, found, where)
        return set_notes(_stream(dataset, image, used, rows), [note])
    if not len(dataset):
        raise InputError(f'{where}: contains no rows.')
    ours = _table(dataset, where, class_names)
    parts = []
    if label_names is None:
        splits = [key for key in source.splits if key != found]
        parts = [_table(source.read(key, False), f'{root}, split {key}', class_names) for key in splits]
        if parts and not source.is_local:
            note += ', names found in all splits (set data.label_names to fetch this split only)'
    format = find_format([ours, *parts], label_names if is_binary else columns, is_binary, settings, label_names)
    labels = read_labels(replace(format, note=note + format.ending), ours, settings, parts)
    ids = _image_ids(ours, image_id, found)
    images = dataset.select_columns([image]).rename_columns({image: 'image'}).cast_column('image', Image())
    result = datasets.concatenate_datasets([images, _with_features(labels, ids)], axis=1)
    notes = labels.notes
    if is_divided:
        chosen = settings.label_columns or settings.label_names or ()
        if settings.validation_fold is not None:
            divided, rule = split_by_fold(ours, settings.validation_fold, chosen)
        else:
            # A column `split` of other words is no partition of this data set.
            others = [name for name in schema if name.lower() == 'split' and not _are_splits(ours.distinct(name)[0])]
            divided, rule = split_rows(ours, image, [*chosen, *others], None, False, False)
        key = standard_split(split) or split
        if key not in divided:
            raise InputError(f'{where}: {unknown("split", split, divided)}')
        if rule:
            result, notes = result.select(divided[key].numbers), [f'splits: {rule}', *notes]
    return set_notes(result, notes)


def find_image_column(schema: Features, wanted: str | None, where: str) -> str:
    """Returns the column of images: `wanted`, `image`, `file_name`, or the only column of images.

    Raises:
        InputError: There is no such column, or it is not clear which one is meant.
    """
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


def _table(dataset: Dataset, where: str, class_names: dict[str, list[str]]) -> Table:
    def read(name: str) -> pa.ChunkedArray | list:
        cells = dataset.select_columns([name]).with_format('arrow')[:][name]
        return _named(cells.to_pylist(), class_names[name], f'{where}: row', name) if name in class_names else cells

    return Table(where, list(dataset.features), 'row', range(len(dataset)), read)


def _named(cells: list, names: Sequence[str], where: str, column: str) -> list[list[str] | None]:
    """Converts the numbers of a `ClassLabel`, or lists of them, to lists of names."""
    result = []
    for row, cell in enumerate(cells):
        numbers = cell if isinstance(cell, list) or cell is None else [cell]
        for number in numbers or ():
            if number is None or not 0 <= number < len(names):
                raise InputError(f'{where} {row}: {column!r} is {number}: must be a label from 0 to {len(names) - 1}.')
        result.append(None if numbers is None else [names[number] for number in numbers])
    return result


def _are_splits(values: list) -> bool:
    return all(map(standard_split, values))


def _image_ids(table: Table, column: str | None, split: str) -> list[str]:
    return [f'{split}-{row}' for row in table.numbers] if column is None else list(map(str, table.column(column)))


def _with_features(labels: Labels, ids: list[str]) -> Dataset:
    schema = features(labels.names)
    ours = Features({name: schema[name] for name in OURS})
    columns = [labels.present, labels.ignore, [[] for _ in ids], ids]
    return Dataset(
        pa.table(dict(zip(OURS, columns, strict=True)), schema=ours.arrow_schema), DatasetInfo(features=ours)
    )


@dataclass
class _Rows:
    """Map from a batch of a stream to the columns of every data set except the images.

    Attributes:
        format: Format of the labels.
        settings: Settings of the columns.
        class_names: Names of columns of the type `ClassLabel`.
        image_id: Column that names the images, or None.
        split: Name of the split.
        where: Data set and split, for messages.
    """

    format: Format
    settings: ColumnSettings
    class_names: dict[str, list[str]]
    image_id: str | None
    split: str
    where: str

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        cells = {
            name: _named(values, self.class_names[name], f'{self.where}: row', name)
            if name in self.class_names
            else list(values)
            for name, values in batch.items()
        }
        rows = Table(self.where, list(cells), 'row', indices, cells.__getitem__)
        labels = read_labels(self.format, rows, self.settings)
        ids = _image_ids(rows, self.image_id, self.split)
        columns = labels.present.to_pylist(), labels.ignore.to_pylist(), [[] for _ in ids], ids
        return dict(zip(OURS, columns, strict=True))


def _stream(dataset: IterableDataset, image: str, used: list[str], rows: _Rows) -> IterableDataset:
    inputs = [image, *used, *([rows.image_id] if rows.image_id else [])]
    stream = dataset.select_columns(inputs).cast_column(image, Image(decode=False))
    mapped = stream.map(
        partial(_with_image, rows=rows, image=image), batched=True, with_indices=True, remove_columns=inputs
    )
    # `cast` after `map`: with the features as an argument, `map` would expect decoded images.
    names = [name for name in rows.format.label_names if name != rows.settings.none_label]
    return mapped.cast(features(names))


def _with_image(batch: dict[str, list], indices: list[int], rows: _Rows, image: str) -> dict[str, list]:
    rest = {name: values for name, values in batch.items() if name != image}
    return {'image': batch[image], **rows(rest, indices)}
