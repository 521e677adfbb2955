"""Tables of the user's own images: CSV, TSV, JSON Lines or Parquet, for each split or one for all."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..errors import InputError, unknown
from .label_cells import (
    NOT_LABELS,
    cells_note,
    check_names,
    check_settings,
    encode,
    has_comma_lists,
    is_label,
    is_missing,
    labels_note,
    name_vector,
    read_states,
    split_labels,
    state_of,
)
from .label_delimiters import find_delimiter, texts_of
from .records import Records, cached, is_one_line, locate, shown
from .table_files import Table, read
from .table_splits import SPLITS, SUFFIXES, check_split, find_files, no_split, part

__all__ = ['NOT_LABELS', 'load', 'match_names']

IMAGE_COLUMNS = {'table': ('image', 'file_name', 'path'), 'folder': ('file_name',)}


def load(
    name: str,
    split: str,
    root: str | None,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    image_root: str | None = None,
    label_delimiter: str | None = None,
    minus_one: str = 'unannotated',
    blank: str = 'unannotated',
) -> Dataset:
    """Reads one split of a `table` or `folder`; `msff_timm.data.load` explains the arguments and the columns.

    A column of labels holds lists, lists as tools write them into text, or text with a delimiter; empty or null is no
    label, and what the column `ignore` names is unannotated. A column for each label holds 1 (or true), 0 (or false),
    and -1, empty or null, as `minus_one` and `blank` read them; one column that `label_columns` names is such a column
    if it holds nothing else and is not called `labels`. Rows are named by `image_id` where there is such a column, else
    by the path of the image as written.

    Raises:
        InputError: There is no such table, or it does not hold what it should; the message names file and row.
    """
    if split not in SPLITS:
        raise unknown(f'split of a {name}', split, SPLITS)
    if not root:
        what = 'the folder of train.csv and the like, or one file' if name == 'table' else 'the folder of metadata.csv'
        raise InputError(f'{name} needs data.root: {what}.')
    check_settings(label_delimiter, minus_one, blank)
    check_names('data.label_names', label_names)
    check_names('data.label_columns', label_columns)
    base = Path(os.path.abspath(root))
    is_file = name == 'table' and base.is_file()
    if is_file and base.suffix.lower() not in SUFFIXES[name]:
        raise InputError(f'{base}: ends in none of {", ".join(SUFFIXES[name])}.')
    files = {'train': base} if is_file else find_files(name, base)
    # One table above all splits may part its rows itself.
    is_single = is_file or list(files) == ['train'] and files['train'].parent == base
    if split not in files and not is_single:
        raise no_split(name, split, base, files)
    # Names that the data fix are those of all splits, or training and validation would number them differently.
    used = {key: path for key, path in files.items() if is_single or label_names is None or key == split}
    for path in used.values():
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: may not be read.')
    columns = _Columns(
        IMAGE_COLUMNS[name], image_column, label_columns, label_delimiter, label_names, minus_one, blank, image_root
    )

    def read_records() -> Records:
        wanted = {image_column} if image_column else set(columns.images)
        tables = {key: read(path, wanted) for key, path in used.items()}
        notes = tables[next(iter(tables))].notes
        if is_single:
            tables, way = part(
                tables['train'],
                columns.find_image(tables['train']),
                columns.labels or columns.names or (),
                image_root,
                is_file,
                name == 'folder',
            )
            if split not in tables and way is None and not is_file:
                raise no_split(name, split, base, files)
            if split not in tables and way is None:
                raise InputError(f'{base}: has no column split, so all its rows are of train and none of {split}.')
            if split not in tables:
                raise InputError(f'{base}: has no row with {split} {way} (there: {_some(tables) or "none"}).')
            notes = notes + ([f'splits: {way}'] if way else [])
        else:
            for key, table in tables.items():
                check_split(table, key)
        records = _records(tables, split, columns)
        return replace(records, notes=[*notes, *records.notes])

    return cached(
        read_records,
        used.values(),
        name=name,
        split=split,
        files=[str(path) for path in used.values()],
        is_single=is_single,
        image_column=image_column,
        label_columns=label_columns,
        label_names=label_names,
        image_root=image_root and os.path.abspath(image_root),
        label_delimiter=label_delimiter,
        minus_one=minus_one,
        blank=blank,
    )


def match_names(columns: Sequence[str], label_names: Sequence[str] | None, where: str) -> list[str]:
    """Orders the columns of labels as `label_names` has them.

    Raises:
        InputError: They are not the same names.
    """
    for column in columns:
        if label_names is not None and column not in label_names:
            raise InputError(f'{where}: {unknown("label column", column, label_names)}')
    for name in label_names or ():
        if name not in columns:
            raise InputError(f'{where}: has no column for the label {name!r} of data.label_names.')
    return list(label_names or columns)


@dataclass
class _Columns:
    """How the columns of a table are found and read.

    Attributes:
        images: Names that a column of images may have, the first that is there counts.
        image: The one that it has.
        labels: Those of the labels; None to find them.
        delimiter: Between labels in text; None to find it.
        names: Of the labels, where they are set.
        minus_one: Meaning of -1 in a column for one label.
        blank: Meaning of an empty cell there.
        image_root: Folder of the images; None for the table's own.
    """

    images: Sequence[str]
    image: str | None
    labels: Sequence[str] | None
    delimiter: str | None
    names: Sequence[str] | None
    minus_one: str
    blank: str
    image_root: str | None

    def find_image(self, table: Table) -> str:
        for name in [self.image] if self.image else self.images:
            if name in table.columns:
                return name
        wanted = repr(self.image) if self.image else ' or '.join(self.images)
        raise InputError(
            f'{table.path}: has no column {wanted} for the images; data.image_column names it (there:'
            f' {_some(table.columns)}).'
        )

    def find_labels(self, table: Table) -> tuple[list[str], bool]:
        """Finds the columns of labels, and whether each is one label's."""
        image = self.find_image(table)
        if self.labels:
            for name in self.labels:
                if name not in table.columns or name == image:
                    others = [column for column in table.columns if column != image]
                    raise InputError(f'{table.path}: {unknown("label column", name, others)}')
            return list(self.labels), len(self.labels) > 1 or self._is_one_label(table, self.labels[0])
        if 'labels' in table.columns:
            return ['labels'], False
        columns = [column for column in table.columns if column != image and is_label(column, self.names)]
        if not columns:
            raise InputError(f'{table.path}: has no column of labels (there: {_some(table.columns)}).')
        return columns, True

    def _is_one_label(self, table: Table, column: str) -> bool:
        """Tells a column of 1, 0 and -1 for one label from one that lists labels: by the names, or by all it holds."""
        if column == 'labels':
            return False
        if self.names is not None:
            return column in self.names
        values = [value for value in table.column(column) if not is_missing(value)]
        return bool(values) and all(not isinstance(value, list) and state_of(value) is not None for value in values)

    def note(self, table: Table) -> str:
        """Puts into a line which columns are labels."""
        found, is_binary = self.find_labels(table)
        if not is_binary:
            return f'labels: column {found[0]!r}'
        used = {self.find_image(table), *found, 'ignore', 'image_id'}
        others = [name for name in table.columns if name not in used]
        return labels_note(found, [''] * table.num_unnamed + others)


def _records(tables: dict[str, Table], split: str, columns: _Columns) -> Records:
    table = tables[split]
    if not len(table.numbers):
        raise InputError(f'{table.path}: holds no row.')
    found, is_binary = columns.find_labels(table)
    notes = [columns.note(table)]
    if is_binary:
        names = columns.names
        if names is None:
            names = _common_columns(tables, columns)
        labels, ignore = _read_binary(table, match_names(found, names, str(table.path)), columns)
    else:
        for other in tables.values():
            if columns.find_labels(other) != (found, False):
                raise _differ(table, found, other, columns)
        rows, more = _read_lists(tables, found[0], columns)
        notes[0] += more
        names = columns.names
        if names is None:
            names = sorted({label for entries in rows.values() for row in entries for part in row for label in part})
        if not names:
            raise InputError(f'{table.path}: holds no label: fill the column {found[0]!r}, or set data.label_names.')
        number_of = {name: number for number, name in enumerate(names)}
        encoded = [encode(*entries, number_of, table.where(row)) for row, entries in enumerate(rows[split])]
        labels, ignore = [row[0] for row in encoded], [row[1] for row in encoded]
    images, written = _images(table, columns.find_image(table), columns.image_root)
    image_ids = _image_ids(table) if 'image_id' in table.columns else written
    return Records(list(names), images, labels, ignore, [[] for _ in images], image_ids, notes=notes)


def _common_columns(tables: dict[str, Table], columns: _Columns) -> list[str]:
    """Returns the labels that all splits have a column for, in the order of the first split."""
    (first, *others) = tables.values()
    names, is_binary = columns.find_labels(first)
    for other in others:
        other_names, other_is_binary = columns.find_labels(other)
        if is_binary != other_is_binary or set(names) != set(other_names):
            raise _differ(first, names, other, columns)
    return names


def _differ(first: Table, names: list[str], other: Table, columns: _Columns) -> InputError:
    return InputError(
        f'{other.path}: its columns of labels ({_some(columns.find_labels(other)[0])}) are not those of {first.path}'
        f' ({_some(names)}): make them the same, or set data.label_columns.'
    )


def _read_binary(table: Table, names: list[str], columns: _Columns) -> tuple[pa.Array, pa.Array]:
    """Reads columns of one label each: the numbers of the labels that are present and unannotated in each row."""
    states = np.empty((len(names), len(table.numbers)), np.int8)
    for number, name in enumerate(names):
        where = partial(table.where, column=name)
        states[number] = read_states(table.column(name), where, columns.minus_one, columns.blank)
    if 'ignore' in table.columns and 'ignore' not in names:
        values = table.column('ignore')
        delimiter = columns.delimiter or find_delimiter(texts_of(values), names, f"{table.path}: 'ignore'")[0]
        number_of = {name: number for number, name in enumerate(names)}
        for row, value in enumerate(values):
            ignore = split_labels(value, delimiter, table.where(row, 'ignore'))
            if ignore:
                present = [names[number] for number in np.flatnonzero(states[:, row] == 1)]
                states[encode(present, ignore, number_of, table.where(row))[1], row] = -1
    return _lists(states.T == 1), _lists(states.T == -1)


def _lists(mask: np.ndarray) -> pa.Array:
    """Makes a list of the columns that are true for each row."""
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1, dtype=np.int64))])
    return pa.LargeListArray.from_arrays(offsets, np.nonzero(mask)[1])


def _read_lists(
    tables: dict[str, Table], column: str, columns: _Columns
) -> tuple[dict[str, list[tuple[list[str], list[str]]]], str]:
    """Reads of each split and row the labels that are present and unannotated; the text is what there is to show."""
    cells = {split: table.column(column) for split, table in tables.items()}
    ignored = {split: table.column('ignore') for split, table in tables.items() if 'ignore' in table.columns}
    first = next(iter(tables.values()))
    where = f'{first.path}: {column!r}'
    vectors = name_vector(list(chain.from_iterable(cells.values())), columns.names, where)
    if vectors is not None:
        rest = iter(vectors)
        cells = {split: [next(rest) for _ in values] for split, values in cells.items()}
    delimiter, note = columns.delimiter, ''
    everything = list(chain.from_iterable((*cells.values(), *ignored.values())))
    if delimiter is None:
        delimiter, note = find_delimiter(texts_of(everything), columns.names, where)
    note += cells_note(everything)
    labels_of = partial(split_labels, delimiter=delimiter, has_commas=has_comma_lists(everything))
    rows = {}
    for split, table in tables.items():
        unannotated = ignored.get(split, [None] * len(table.numbers))
        rows[split] = [
            (
                labels_of(value, where=table.where(row, column)),
                labels_of(ignore, where=table.where(row, 'ignore')),
            )
            for row, (value, ignore) in enumerate(zip(cells[split], unannotated, strict=True))
        ]
    return rows, note


def _images(table: Table, column: str, image_root: str | None) -> tuple[list[str], list[str]]:
    """Finds the paths of the images, and has them as they are written."""
    folder = Path(os.path.abspath(image_root or table.path.parent))
    names, first = [], {}
    for row, value in enumerate(table.column(column)):
        where = table.where(row)
        name = _text(value, f'{where}: {column!r}', 'path')
        if not name.strip():
            raise InputError(f'{where}: {column!r} is empty: name an image or leave the row out.')
        path = str(locate(folder, name, where))
        if path in first:
            number = table.numbers[first[path]]
            raise InputError(f'{where}: {shown(name)} is already in {table.unit} {number}: keep one of them.')
        if not os.path.isfile(path):
            raise InputError(f'{where}: names {shown(name)}, which is not in {folder}; data.image_root is the folder.')
        first[path] = row
        names.append(name)
    return list(first), names


def _image_ids(table: Table) -> list[str]:
    first = {}
    for row, value in enumerate(table.column('image_id')):
        where = table.where(row)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        image_id = _text(value, f"{where}: 'image_id'", 'name')
        if not image_id:
            raise InputError(f"{where}: 'image_id' is empty: fill it or leave the column out.")
        if image_id in first:
            number = table.numbers[first[image_id]]
            raise InputError(f"{where}: the 'image_id' {shown(image_id)} is already in {table.unit} {number}.")
        first[image_id] = row
    return list(first)


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where} has the {what} {shown(value)}, which is not text.')
    if not is_one_line(value):
        raise InputError(f'{where} has the {what} {shown(value)} with a line break or NUL in it.')
    return value


def _some(names: Collection[str]) -> str:
    return ', '.join(list(names)[:20]) + (f', ... ({len(names)} in all)' if len(names) > 20 else '')
