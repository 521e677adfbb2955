"""Reader of tables of your own images: CSV, TSV, JSON Lines or Parquet, one file per split or one for all."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..errors import InputError, NoSplitError, unknown
from .columns import ColumnSettings, find_label_columns, labels_note, match_names
from .label_cells import encode, is_missing, read_states, state_of
from .label_lists import LabelLists, find_delimiter, find_lists, texts_of
from .records import Records, cached, lists_of, locate
from .table_files import Table, read_table
from .table_splits import SPLITS, SUFFIXES, check_split, find_files, no_split, split_rows
from .text import is_one_line, join_names, quote

__all__ = ['load']

IMAGE_COLUMNS = {'table': ('image', 'file_name', 'path'), 'folder': ('file_name',)}


def load(name: str, split: str, root: str | None, settings: ColumnSettings) -> Dataset:
    """Loads one split of a `table` or `folder`.

    A column that lists labels holds lists, lists that tools wrote as text, or delimited text. An empty cell means no
    label; the labels of the column `ignore` are unannotated. A column of one label holds 1 or true, 0 or false, -1, or
    nothing, which `minus_one` and `blank` interpret. A single column of `label_columns` is of this kind if it holds
    nothing else and is not called `labels`. Images are named by the column `image_id`, else by their path as written.

    Args:
        name: `table` or `folder`.
        split: `train`, `validation` or `test`.
        root: Folder of the tables, or a single table.
        settings: Settings of the columns.

    Raises:
        InputError: The table is missing or invalid; the message names file and row.
    """
    if split not in SPLITS:
        raise unknown(f'split of a {name}', split, SPLITS)
    if not root:
        what = 'the folder of train.csv etc., or one file' if name == 'table' else 'the folder of metadata.csv'
        raise InputError(f'{name} needs data.root: set it to {what}.')
    base = Path(os.path.abspath(root))
    is_file = name == 'table' and base.is_file()
    if is_file and base.suffix.lower() not in SUFFIXES[name]:
        raise InputError(f'{base}: is not a table: its suffix must be one of {", ".join(SUFFIXES[name])}.')
    files = {'train': base} if is_file else find_files(name, base)
    # A single table above all splits may hold the rows of several splits.
    is_single = is_file or list(files) == ['train'] and files['train'].parent == base
    if split not in files and not is_single:
        raise no_split(name, split, base, files)
    # Without `label_names`, all splits determine the names: each label needs the same index in training and validation.
    used = {key: path for key, path in files.items() if is_single or settings.label_names is None or key == split}
    for path in used.values():
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: permission denied.')

    def read_records() -> Records:
        image_columns = (settings.image_column,) if settings.image_column else IMAGE_COLUMNS[name]
        tables = {key: read_table(path, set(image_columns)) for key, path in used.items()}
        notes = tables[next(iter(tables))].notes
        if is_single:
            image = _image_column(tables['train'], image_columns)
            labels = settings.label_columns or settings.label_names or ()
            tables, rule = split_rows(tables['train'], image, labels, settings.image_root, is_file, name == 'folder')
            if split not in tables and rule is None and not is_file:
                raise no_split(name, split, base, files)
            if split not in tables and rule is None:
                raise NoSplitError(f'{base}: has no column split, so all its rows belong to train, none to {split}.')
            if split not in tables:
                raise NoSplitError(f'{base}: has no row of {split} {rule} (found: {join_names(tables) or "none"}).')
            notes = notes + ([f'splits: {rule}'] if rule else [])
        else:
            for key, table in tables.items():
                check_split(table, key)
        records = _Reader(image_columns, settings).read(tables, split)
        return replace(records, notes=[*notes, *records.notes])

    image_root = settings.image_root and os.path.abspath(settings.image_root)
    return cached(
        read_records,
        used.values(),
        name=name,
        split=split,
        files=[str(path) for path in used.values()],
        is_single=is_single,
        **asdict(replace(settings, image_root=image_root)),
    )


def _image_column(table: Table, candidates: Sequence[str]) -> str:
    for name in candidates:
        if name in table.columns:
            return name
    wanted = repr(candidates[0]) if len(candidates) == 1 else ' or '.join(candidates)
    raise InputError(
        f'{table.path}: has no column {wanted} (found: {join_names(table.columns)}): set data.image_column to the'
        ' column of the images.'
    )


class _Reader:
    """Reads the rows of tables.

    Args:
        image_columns: Names that the image column may have; the first that exists counts.
        settings: Settings of the columns.
    """

    def __init__(self, image_columns: Sequence[str], settings: ColumnSettings):
        self.image_columns = image_columns
        self.settings = settings

    def read(self, tables: dict[str, Table], split: str) -> Records:
        """Reads the rows of one split; those of the others may determine the label names."""
        table, names = tables[split], self.settings.label_names
        if not table.numbers:
            raise InputError(f'{table.path}: contains no rows.')
        image, columns, is_binary = self._columns(table)
        if is_binary:
            used = {image, *columns, 'ignore', 'image_id'}
            others = [''] * table.num_unnamed + [name for name in table.columns if name not in used]
            note = labels_note(columns, others)
            names = match_names(columns, self._common_columns(tables) if names is None else names, table.path)
            labels, ignore = self._read_binary(table, names)
        else:
            for other in tables.values():
                self._check_same(table, other, columns, is_binary)
            rows, note = self._read_lists(tables, columns[0])
            note = f'labels: column {columns[0]!r}{note}'
            if names is None:
                names = sorted({label for parts in rows.values() for row in parts for part in row for label in part})
            if not names:
                raise InputError(
                    f'{table.path}: contains no labels: fill the column {columns[0]!r}, or set data.label_names.'
                )
            number_of = {name: number for number, name in enumerate(names)}
            encoded = [encode(*row, number_of, table.where(number)) for number, row in enumerate(rows[split])]
            labels, ignore = map(list, zip(*encoded, strict=True))
        images, written = self._read_images(table, image)
        image_ids = _read_image_ids(table) if 'image_id' in table.columns else written
        return Records(list(names), images, labels, ignore, [[] for _ in images], image_ids, notes=[note])

    def _columns(self, table: Table) -> tuple[str, list[str], bool]:
        """Returns the image column, the label columns, and whether each of these holds one label."""
        image = _image_column(table, self.image_columns)
        columns = find_label_columns(table.columns, image, self.settings, table.path)
        if columns == ['labels']:
            return image, columns, False
        if not self.settings.label_columns or len(columns) > 1:
            return image, columns, True
        if self.settings.label_names is not None:
            return image, columns, columns[0] in self.settings.label_names
        values = [value for value in table.column(columns[0]) if not is_missing(value)]
        are_states = all(not isinstance(value, list) and state_of(value) is not None for value in values)
        return image, columns, bool(values) and are_states

    def _check_same(self, first: Table, other: Table, columns: list[str], is_binary: bool) -> None:
        """Raises `InputError` if the tables of two splits have other label columns."""
        _, others, other_is_binary = self._columns(other)
        if is_binary != other_is_binary or (set(columns) != set(others) if is_binary else columns != others):
            raise InputError(
                f'{other.path}: its label columns ({join_names(others)}) differ from those of {first.path}'
                f' ({join_names(columns)}): make them the same, or set data.label_columns.'
            )

    def _common_columns(self, tables: dict[str, Table]) -> list[str]:
        """Returns the label columns that all splits have, in the order of the first split."""
        first, *others = tables.values()
        _, columns, is_binary = self._columns(first)
        for other in others:
            self._check_same(first, other, columns, is_binary)
        return columns

    def _read_binary(self, table: Table, names: list[str]) -> tuple[pa.Array, pa.Array]:
        """Reads one column per label; returns the indices of the present and of the unannotated labels of each row."""
        settings = self.settings
        states = np.empty((len(names), len(table.numbers)), np.int8)
        for number, name in enumerate(names):
            where = partial(table.where, column=name)
            states[number] = read_states(table.column(name), where, settings.minus_one, settings.blank)
        if 'ignore' in table.columns and 'ignore' not in names:
            values = table.column('ignore')
            delimiter = settings.label_delimiter
            lists = LabelLists(delimiter or find_delimiter(texts_of(values), names, f"{table.path}: 'ignore'")[0])
            number_of = {name: number for number, name in enumerate(names)}
            for row, value in enumerate(values):
                if ignore := lists.read_names(value, table.where(row, 'ignore')):
                    present = [names[number] for number in np.flatnonzero(states[:, row] == 1)]
                    states[encode(present, ignore, number_of, table.where(row))[1], row] = -1
        return lists_of(states.T == 1), lists_of(states.T == -1)

    def _read_lists(
        self, tables: dict[str, Table], column: str
    ) -> tuple[dict[str, list[tuple[list[str], list[str]]]], str]:
        """Reads a column that lists labels.

        Returns:
            Present and unannotated labels of each row of each split, and the end of a note on how they were read.
        """
        settings = self.settings
        cells = {split: table.column(column) for split, table in tables.items()}
        ignored = {split: table.column('ignore') for split, table in tables.items() if 'ignore' in table.columns}
        where = f'{next(iter(tables.values())).path}: {column!r}'
        everything = (list(chain.from_iterable(values.values())) for values in (cells, ignored))
        lists, note = find_lists(*everything, settings.label_delimiter, settings.label_names, where)
        rows = {}
        for split, table in tables.items():
            unannotated = ignored.get(split, [None] * len(table.numbers))
            rows[split] = [
                (
                    lists.read(value, table.where(row, column)),
                    lists.read_names(ignore, table.where(row, 'ignore')),
                )
                for row, (value, ignore) in enumerate(zip(cells[split], unannotated, strict=True))
            ]
        return rows, note

    def _read_images(self, table: Table, column: str) -> tuple[list[str], list[str]]:
        """Returns the paths of the images, and the same as they are written."""
        folder = Path(os.path.abspath(self.settings.image_root or table.path.parent))
        names, first = [], {}
        for row, where, name in _texts(table, column, 'path'):
            if not name.strip():
                raise InputError(f'{where}: {column!r} is empty: name an image, or remove the row.')
            path = str(locate(folder, name, where))
            if path in first:
                earlier = f'{table.unit} {table.numbers[first[path]]}'
                raise InputError(f'{where}: {quote(name)} is already in {earlier}: remove one of them.')
            if not os.path.isfile(path):
                raise InputError(
                    f'{where}: the image {quote(name)} is not in {folder}: set data.image_root to the folder of images.'
                )
            first[path] = row
            names.append(name)
        return list(first), names


def _read_image_ids(table: Table) -> list[str]:
    first = {}
    for row, where, image_id in _texts(table, 'image_id', 'name'):
        if not image_id:
            raise InputError(f"{where}: 'image_id' is empty: fill it, or remove the column.")
        if image_id in first:
            earlier = f'{table.unit} {table.numbers[first[image_id]]}'
            raise InputError(f"{where}: the 'image_id' {quote(image_id)} is already in {earlier}.")
        first[image_id] = row
    return list(first)


def _texts(table: Table, column: str, what: str) -> Iterator[tuple[int, str, str]]:
    """Yields row, location and text of each cell; integers are accepted as names."""
    for row, value in enumerate(table.column(column)):
        where = table.where(row)
        if what == 'name' and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise InputError(f'{where}: {column!r} has the {what} {quote(value)}, which is not text.')
        if not is_one_line(value):
            raise InputError(
                f'{where}: {column!r} has the {what} {quote(value)}, which contains a line break or a NUL character.'
            )
        yield row, where, value
