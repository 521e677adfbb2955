"""Reads the label columns of tables and Hub data sets: a column per label, vectors, or lists of names, in one way."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa

from ..errors import InputError, unknown
from .columns import ColumnSettings
from .label_cells import is_missing, read_states, read_vectors, state_of
from .label_lists import LabelLists, find_delimiter, find_lists, texts_of
from .table_files import Table
from .text import quote

__all__ = ['Format', 'Labels', 'find_format', 'holds_states', 'read_labels']

SWITCHES = ('false', 'n', 'no', 'off', 'on', 'true', 'y', 'yes')  # a state of one label, not names
BLOCK = 4096  # rows of a matrix that are converted to lists at once
# Names of a label that may mean that there is none, in lower case
NONE_NAMES = frozenset(
    'background empty healthy negative no-finding no_finding nofinding none normal nothing unlabelled unlabeled'.split()
    + ['no finding', 'no findings', 'no label', 'no labels', 'none of the above']
)


@dataclass
class Format:
    """Format of the labels of all splits.

    Attributes:
        columns: Label columns.
        kind: `columns` that hold one label each, a column of `vectors` with the state of each label, or of `lists`.
        lists: Format of `lists`, and of the column `ignore`.
        label_names: Label names in the order of the logits; with `data.none_label`, if it is a column or the item of a
            vector. None to find those of lists.
        note: Line on the label columns.
        ending: End of that line, on how their cells are read.
    """

    columns: list[str]
    kind: str
    lists: LabelLists
    label_names: list[str] | None
    note: str = ''
    ending: str = ''


@dataclass
class Labels:
    """Labels of the images of a split.

    Attributes:
        names: Label names in the order of the logits.
        present: Sorted numbers of the labels that each image has.
        ignore: Sorted numbers of the labels that are unannotated.
        notes: Lines on how they were read.
    """

    names: list[str]
    present: pa.LargeListArray
    ignore: pa.LargeListArray
    notes: list[str] = field(default_factory=list)


def holds_states(column: str, values: Sequence[object], settings: ColumnSettings) -> bool | None:
    """Returns whether the only label column holds the state of one label rather than names.

    Args:
        column: Name of the column.
        values: Its distinct values.
        settings: Settings of the columns.

    Returns:
        None if the column is empty.
    """
    values = [value for value in values if not is_missing(value)]
    if not values:
        return None
    are_states = all(not isinstance(value, list) and state_of(value) is not None for value in values)
    if settings.label_names is not None:
        are_names = all(str(value) in settings.label_names for value in values)
        return column in settings.label_names or are_states and not are_names
    return are_states or not settings.label_columns and not any(map(_is_text, values))


def _is_text(value: object) -> bool:
    """Returns whether a cell is a list, or a name that is neither a number nor a word such as yes."""
    if not isinstance(value, str):
        return isinstance(value, list)
    try:
        float(value.replace(',', '.'))
    except ValueError:
        return value.strip().lower() not in SWITCHES
    return False


def find_format(
    tables: Sequence[Table], columns: list[str], is_binary: bool, settings: ColumnSettings, names: list[str] | None
) -> Format:
    """Finds how the label columns of all splits hold labels.

    Args:
        tables: Table of each split.
        columns: Label columns.
        is_binary: True if each of them holds the state of one label.
        settings: Settings of the columns.
        names: Label names in the order of the logits; None for those that occur.

    Raises:
        InputError: The cells can be read in two ways, or vectors have other labels than `names`.
    """
    first, column, delimiter = tables[0], columns[0], settings.label_delimiter
    ignored = [table.distinct('ignore')[0] for table in tables if 'ignore' in table.columns]
    if is_binary:
        if delimiter is None and ignored and 'ignore' not in columns:
            ignored = texts_of(chain.from_iterable(ignored))
            delimiter = find_delimiter(ignored, columns, f"{first.path}: 'ignore'")[0]
        return Format(columns, 'columns', LabelLists(delimiter), names)
    cells = [table.distinct(column)[0] for table in tables]
    where = f'{first.path}: {column!r}'
    if _are_vectors(list(chain.from_iterable(cells)), names, where):
        lists, _ = find_lists(chain.from_iterable(ignored), delimiter, names, where)
        return Format(columns, 'vectors', lists, names, ending=', vectors of 0 and 1')
    lists, note = find_lists(chain.from_iterable([*cells, *ignored]), delimiter, names, where)
    return Format(columns, 'lists', lists, names, ending=note)


def _are_vectors(cells: list, names: Sequence[str] | None, where: str) -> bool:
    states = read_vectors(cells)
    if states is None:
        return False
    length = states.shape[1]
    if names is not None and len(names) != length and not {'0', '1'}.isdisjoint(names):
        return False  # lists of numbers
    if names is None or len(names) != length:
        example = next(cell for cell in cells if not is_missing(cell))
        raise InputError(
            f'{where} holds vectors of {length} numbers 0 and 1, e.g. {quote(example)}: set data.label_names to the'
            f' {length} label names in their order.'
        )
    return True


def read_labels(
    format: Format,
    table: Table,
    settings: ColumnSettings,
    others: Sequence[Table] = (),
    images: np.ndarray | None = None,
) -> Labels:
    """Reads the labels of a table.

    Args:
        format: Format of the labels.
        table: Rows to read.
        settings: Settings of the columns.
        others: Tables of the other splits, whose labels are found, too.
        images: Number of the image of each row (N,), counted from 0 in the order of first rows; None for one image per
            row. The rows of an image are united.

    Raises:
        InputError: A cell is invalid; the message names file and row.
    """
    read = _read_lists if format.kind == 'lists' else _read_states
    return read(format, table, settings, others, images)


# --- lists of names


class _Numbers(dict):
    """Numbers of label names; an unknown name gets the next number."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


@dataclass
class _Cells:
    """Labels in the cells of a column.

    Attributes:
        rows: Row of each label (M,).
        labels: Number of each label (M,).
        repeating: Rows that list a label more than once.
    """

    rows: np.ndarray
    labels: np.ndarray
    repeating: list[int]

    @classmethod
    def read(cls, table: Table, column: str, lists: LabelLists, number_of: _Numbers) -> _Cells:
        counts, labels, repeating = [], array('i'), []
        for row, value in enumerate(table.column(column)):
            names = lists.read(value, table.where(row, column))
            distinct = dict.fromkeys(names)
            if len(distinct) < len(names):
                repeating.append(row)
            counts.append(len(distinct))
            labels.extend(map(number_of.__getitem__, distinct))
        rows = np.repeat(np.arange(len(counts)), counts)
        return cls(rows, np.frombuffer(labels, np.int32) if labels else np.zeros(0, np.int32), repeating)

    def check(self, table: Table, names: Sequence[str], number_of: _Numbers) -> None:
        """Raises `InputError` if a label is not one of `names`, the first numbers."""
        wrong = np.flatnonzero(self.labels >= len(names))
        if len(wrong):
            name = list(number_of)[self.labels[wrong[0]]]
            raise InputError(f'{table.where(int(self.rows[wrong[0]]))}: {unknown("label", name[:80], names)}')


def _read_ignore(format: Format, table: Table, number_of: _Numbers) -> _Cells:
    if 'ignore' not in table.columns or 'ignore' in format.columns:
        return _Cells(np.zeros(0, np.int64), np.zeros(0, np.int32), [])
    return _Cells.read(table, 'ignore', format.lists, number_of)


def _read_lists(
    format: Format, table: Table, settings: ColumnSettings, others: Sequence[Table], images: np.ndarray | None
) -> Labels:
    (column,), none = format.columns, settings.none_label
    names = None if format.label_names is None else [name for name in format.label_names if name != none]
    known = None if names is None else [*names, *([] if none is None else [none])]
    number_of = _Numbers({name: number for number, name in enumerate(known or ())})

    def read(part: Table) -> tuple[_Cells, _Cells]:
        found = _Cells.read(part, column, format.lists, number_of), _read_ignore(format, part, number_of)
        for cells in found if known is not None else ():
            cells.check(part, known, number_of)
        return found

    present, ignore = read(table)
    for other in others:
        read(other)
    if names is None:
        if none is not None and none not in number_of:
            raise InputError(f'{table.path}: {unknown("data.none_label", none, number_of)}')
        names = sorted(name for name in number_of if name != none)
    if not names:
        raise InputError(f'{table.path}: contains no labels: fill the column {column!r}, or set data.label_names.')
    notes = [format.note, *_repeating_note(table, column, present.repeating)]
    counts = np.bincount(present.rows, minlength=len(table.numbers))
    notes += _none_notes(lambda number: present.rows[present.labels == number], counts, list(number_of), none)
    order = {name: number for number, name in enumerate(names)}
    new = np.array([order.get(name, -1) for name in number_of], np.int64)  # -1 for `none_label`
    keys = []  # row * number of labels + label
    for cells in (present, ignore):
        numbers = new[cells.labels]
        keys.append((cells.rows * len(names) + numbers)[numbers >= 0])
    both = np.intersect1d(*keys) if len(keys[1]) else keys[1]
    if len(both):
        row, label = divmod(int(both[0]), len(names))
        raise _in_both(table, row, names[label])
    num_images = len(table.numbers)
    if images is not None:
        num_images = int(images.max()) + 1
        keys = [images[key // len(names)] * len(names) + key % len(names) for key in keys]
        keys[1] = np.setdiff1d(keys[1], keys[0])
    return Labels(names, *(_of_keys(key, num_images, len(names)) for key in keys), notes)


def _in_both(table: Table, row: int, label: str) -> InputError:
    return InputError(f'{table.where(row)}: the label {quote(label)} is in both labels and ignore: remove one of them.')


def _of_keys(keys: np.ndarray, num_images: int, num_classes: int) -> pa.LargeListArray:
    keys = np.sort(keys, kind='stable')  # fast, as the rows are in order
    keys = keys[np.diff(keys, prepend=-1) > 0]
    offsets = np.searchsorted(keys, np.arange(num_images + 1) * num_classes)
    return pa.LargeListArray.from_arrays(offsets, (keys % num_classes).astype(np.int32))


def _repeating_note(table: Table, column: str, rows: Sequence[int]) -> list[str]:
    if not rows:
        return []
    what = f'{len(rows)} rows list' if len(rows) > 1 else '1 row lists'
    return [f'repeated labels: {what} a label more than once, e.g. {table.where(rows[0], column)}; it counts once']


def _none_notes(
    rows_of: Callable[[int], np.ndarray], counts: np.ndarray, names: list[str], none: str | None
) -> list[str]:
    """Returns notes on `data.none_label`, or on a label that may mean that there is none.

    Args:
        rows_of: Function that returns the rows with a label.
        counts: Number of labels of each row (N,).
        names: Label names.
        none: The setting, or None.
    """
    notes = []
    for number, name in enumerate(names):
        if name.lower() not in NONE_NAMES and name != none:
            continue
        rows = rows_of(number)
        num_others = int((counts[rows] > 1).sum())
        if name == none:
            notes.append(f'no label: {name!r} ({len(rows)} rows, {num_others} of them with other labels, which count)')
        elif none is None and len(rows) and not num_others and counts.max() > 1:
            notes.append(
                f'{name!r} is never together with another label ({len(rows)} rows): if it means no label, set'
                f' data.none_label to {name!r}'
            )
    return notes


# --- states: a column for each label, or vectors


def _read_states(
    format: Format, table: Table, settings: ColumnSettings, others: Sequence[Table], images: np.ndarray | None
) -> Labels:
    names, none = format.label_names, settings.none_label
    meanings = settings.minus_one, settings.blank
    if format.kind == 'vectors':
        states = np.ascontiguousarray(_read_vectors(format, table, meanings).T)
    else:
        states = np.empty((len(names), len(table.numbers)), np.int8)
        for number, name in enumerate(names):
            states[number] = read_states(*table.distinct(name), partial(table.where, column=name), *meanings)
    number_of = _Numbers({name: number for number, name in enumerate(names)})
    ignore = _read_ignore(format, table, number_of)
    ignore.check(table, names, number_of)
    both = states[ignore.labels, ignore.rows] == 1
    if both.any():
        row, label = (int(part[both][0]) for part in (ignore.rows, ignore.labels))
        raise _in_both(table, row, names[label])
    counts = (states == 1).sum(0)
    notes = [format.note, *_none_notes(lambda number: np.flatnonzero(states[number] == 1), counts, names, none)]
    if none is not None:
        if none not in names:
            raise InputError(f'{table.path}: {unknown("data.none_label", none, names)}')
        number = names.index(none)
        empty = states[number] == 1
        states[:, empty] = np.maximum(states[:, empty], 0)  # unannotated labels are absent
        states = np.delete(states, number, 0)
        names = names[:number] + names[number + 1 :]
        keep = ignore.labels != number
        ignore.rows, ignore.labels = ignore.rows[keep], ignore.labels[keep] - (ignore.labels[keep] > number)
    states[ignore.labels, ignore.rows] = -1
    if images is not None:
        states, num_conflicts = _unite(states, images)
        if num_conflicts:
            what = f'{num_conflicts} labels are' if num_conflicts > 1 else '1 label is'
            notes.append(f'repeated images: {what} present in one row and absent in another, and read as present')
    return Labels(names, _of_states(states, 1), _of_states(states, -1), notes)


def _read_vectors(format: Format, table: Table, meanings: tuple[str, str]) -> np.ndarray:
    """Returns the states (N, K) of a column of vectors."""
    (column,), length = format.columns, len(format.label_names)
    values, numbers = table.distinct(column)
    states = read_vectors(values, *meanings)
    if states is None and all(map(is_missing, values)):
        states = np.full((len(values), length), -1 if meanings[1] == 'unannotated' else 0, np.int8)
    if states is None or states.shape[1] != length:  # of a stream, whose cells are not known in advance
        for number, value in enumerate(values):
            vector = None if is_missing(value) else read_vectors([value])
            if not is_missing(value) and (vector is None or vector.shape[1] != length):
                row = int(np.argmax(numbers == number))
                raise InputError(f'{table.where(row, column)} is {quote(value)}: must be {length} numbers 0 and 1.')
    return states[numbers]


def _unite(states: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, int]:
    """Unites the rows of each image: present where a row says so, else absent where a row says so.

    Args:
        states: States (K, N).
        images: Number of the image of each row (N,).

    Returns:
        States (K, number of images), and the number of labels of images that are present in one row and absent in
        another.
    """
    order = np.argsort(images, kind='stable')
    starts = np.searchsorted(images[order], np.arange(images.max() + 1))
    united, num_conflicts = np.empty((len(states), len(starts)), np.int8), 0
    for number, row in enumerate(states):
        united[number] = np.maximum.reduceat(row[order], starts)
        has_absent = np.logical_or.reduceat(row[order] == 0, starts)
        num_conflicts += int((has_absent & (united[number] == 1)).sum())
    return united, num_conflicts


def _of_states(states: np.ndarray, state: int) -> pa.LargeListArray:
    """Returns the sorted labels of each image (K, N) that are in a state."""
    offsets = np.concatenate([[0], np.cumsum((states == state).sum(0, dtype=np.int64))])
    labels = np.empty(offsets[-1], np.int32)
    for start in range(0, states.shape[1], BLOCK):
        found = np.nonzero(states[:, start : start + BLOCK].T == state)[1]
        labels[offsets[start] : offsets[start] + len(found)] = found
    return pa.LargeListArray.from_arrays(offsets, labels)
