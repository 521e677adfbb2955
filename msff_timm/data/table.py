"""Tables of the user's own pictures: CSV, TSV, JSON Lines or Parquet, for each split or one for all."""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..errors import InputError, unknown
from .records import Records, cached, found_in, is_one_line, locate, shown

__all__ = ['check_names', 'encode', 'load', 'match_names', 'split_labels', 'state']

SPLITS = {'train': ('train',), 'validation': ('validation', 'val'), 'test': ('test',)}
SPLIT_OF = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
SUFFIXES = {'table': ('.csv', '.tsv', '.jsonl', '.parquet'), 'folder': ('.csv', '.jsonl', '.parquet')}
IMAGE_COLUMNS = {'table': ('image', 'file_name', 'path'), 'folder': ('file_name',)}
NOT_LABELS = ('split', 'ignore', 'image_id')
STATES = {'': -1, '-1': -1, '-1.0': -1, '0': 0, '0.0': 0, 'false': 0, '1': 1, '1.0': 1, 'true': 1}
BOM = b'\xef\xbb\xbf'
MOST_CHARACTERS = 80  # of a value in a message


def load(
    name: str,
    split: str,
    root: str | None,
    image_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    image_root: str | None = None,
    label_delimiter: str = '|',
) -> Dataset:
    """Reads one split of a `table` or `folder`; `msff_timm.data.load` tells the arguments and the columns.

    A column of labels holds lists, or text with a delimiter; empty or null is no label, and what the column `ignore`
    names is unknown. A column for each label holds 1 (or true), 0 (or false), and -1, empty or null for unknown; one
    column that `label_columns` names is such a column if it holds nothing else and is not called `labels`. Rows are
    named by `image_id` where there is such a column, else by the path of the picture as written.

    Raises:
        InputError: There is no such table, or it does not hold what it should; the message names file and row.
    """
    if split not in SPLITS:
        raise unknown(f'split of a {name}', split, SPLITS)
    if not root:
        what = 'the folder of train.csv and the like, or one file' if name == 'table' else 'the folder of metadata.csv'
        raise InputError(f'{name} needs data.root: {what}.')
    if not label_delimiter:
        raise InputError('data.label_delimiter is empty: give the text between two labels.')
    check_names('data.label_names', label_names)
    check_names('data.label_columns', label_columns)
    base = Path(os.path.abspath(root))
    files = {'train': base} if name == 'table' and base.is_file() else _files(name, base)
    one_file = files == {'train': base}
    if one_file and base.suffix.lower() not in SUFFIXES[name]:
        raise InputError(f'{base}: ends in none of {", ".join(SUFFIXES[name])}.')
    if split not in files and not one_file:
        there = ', '.join(str(path.relative_to(base)) for path in files.values())
        raise InputError(f'{base}: has no {name} of the split {split} (there: {there}).')
    # Names that the data fix are those of all splits, or training and validation would number them differently.
    used = {key: path for key, path in files.items() if one_file or label_names is None or key == split}
    for path in used.values():
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: may not be read.')
    columns = _Columns(IMAGE_COLUMNS[name], image_column, label_columns, label_delimiter, label_names)

    def read() -> Records:
        tables = {key: _read(path) for key, path in used.items()}
        if one_file:
            tables = _by_split(tables['train'], split)
        if split not in tables:
            raise InputError(f'{base}: has no row with {split} in its column split (there: {_some(tables) or "none"}).')
        return _records(tables, split, label_names, columns, image_root)

    return cached(
        read,
        used.values(),
        name=name,
        split=split,
        files=[str(path) for path in used.values()],
        image_column=image_column,
        label_columns=label_columns,
        label_names=label_names,
        image_root=image_root and os.path.abspath(image_root),
        label_delimiter=label_delimiter,
    )


def check_names(setting: str, names: Sequence[str] | None) -> None:
    """Raises InputError unless the names that a setting or a file lists differ, are not blank, and take one line."""
    seen = set()
    for name in names or ():
        if not name.strip():
            raise InputError(f'{setting}: a name is empty: name it or leave it out.')
        if not is_one_line(name):
            raise InputError(f'{setting}: the name {shown(name)} has a line break or NUL in it.')
        if name in seen:
            raise InputError(f'{setting}: {shown(name)} is there twice.')
        seen.add(name)


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


def state(value: object, where: str) -> int:
    """Reads an entry of a column for one label: 1 present, 0 absent, -1 unknown.

    Raises:
        InputError: It is none of these.
    """
    text = _state_text(value)
    if text not in STATES:
        raise InputError(f'{where} is {shown(value)}, not 1, 0, -1 or empty (data.label_columns picks the labels).')
    return STATES[text]


def _state_text(value: object) -> str:
    return '' if value is None or value != value else str(value).strip().lower()


def split_labels(value: object, delimiter: str, where: str) -> list[str]:
    """Reads an entry of a column of labels: a list of names, or text with a delimiter between them.

    Raises:
        InputError: It is neither, or a label is there twice.
    """
    if value is None:
        return []
    parts = value.split(delimiter) if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise InputError(f'{where} is {shown(value)}, neither text nor a list of labels.')
    labels = []
    for part in parts:
        label = _text(part, where, 'label').strip()
        if label in labels:
            raise InputError(f'{where} has the label {shown(label)} twice.')
        if label:
            labels.append(label)
    return labels


def encode(
    labels: Collection[str], ignore: Collection[str], number_of: dict[str, int], where: str
) -> tuple[list[int], list[int]]:
    """Numbers the labels that are present in a row and those that are unknown.

    Raises:
        InputError: A label has no number, or is both.
    """
    for label in (*labels, *ignore):
        if label not in number_of:
            raise InputError(f'{where}: {unknown("label", label[:MOST_CHARACTERS], number_of)}')
        if label in labels and label in ignore:
            raise InputError(f'{where}: the label {shown(label)} is in both labels and ignore: keep one.')
    return sorted(number_of[label] for label in labels), sorted(number_of[label] for label in ignore)


@dataclass
class _Table:
    """A table as it was read.

    Attributes:
        path: Its file.
        columns: Names of its columns.
        unit: What rows are counted in.
        numbers: Of each row: its line, counted from 1, or row of a Parquet file, counted from 0.
        column: Gives the values of a column, one for each of `numbers`.
    """

    path: Path
    columns: list[str]
    unit: str
    numbers: Sequence[int]
    column: Callable[[str], list]

    def where(self, row: int) -> str:
        return f'{self.path}: {self.unit} {self.numbers[row]}'


@dataclass
class _Columns:
    """How the columns of a table are found.

    Attributes:
        images: Names that a column of pictures may have, the first that is there counts.
        image: The one that it has.
        labels: Those of the labels; None to find them.
        delimiter: Between labels in text.
        names: Of the labels, where they are set.
    """

    images: Sequence[str]
    image: str | None
    labels: Sequence[str] | None
    delimiter: str
    names: Sequence[str] | None

    def find_image(self, table: _Table) -> str:
        for name in [self.image] if self.image else self.images:
            if name in table.columns:
                return name
        wanted = repr(self.image) if self.image else ' or '.join(self.images)
        raise InputError(
            f'{table.path}: has no column {wanted} for the pictures; data.image_column names it (there:'
            f' {_some(table.columns)}).'
        )

    def find_labels(self, table: _Table) -> tuple[list[str], bool]:
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
        columns = [column for column in table.columns if column not in (image, *NOT_LABELS)]
        if not columns:
            raise InputError(f'{table.path}: has no column of labels (there: {_some(table.columns)}).')
        return columns, True

    def _is_one_label(self, table: _Table, column: str) -> bool:
        """Tells a column of 1, 0 and -1 for one label from one that lists labels: by the names, or by all it holds."""
        if column == 'labels':
            return False
        if self.names is not None:
            return column in self.names
        found = {_state_text(value) for value in table.column(column)}
        return found <= STATES.keys() and found != {''}


def _files(name: str, root: Path) -> dict[str, Path]:
    """Finds the table of each split in a folder."""
    if not root.is_dir():
        raise InputError(f'{root}: is no folder{" and no file" if name == "table" else ""}: check data.root.')
    stems = [(split, alias) for split, aliases in SPLITS.items() for alias in aliases]
    if name == 'folder':
        stems = [(split, f'{alias}/metadata') for split, alias in stems] + [('train', 'metadata')]
    files = {}
    for split, stem in stems:
        for suffix in SUFFIXES[name]:
            path = root / f'{stem}{suffix}'
            if not path.is_file():
                continue
            if split in files:
                raise InputError(f'{root}: both {files[split]} and {path} are tables of {split}: keep one.')
            files[split] = path
    if not files:
        wanted = 'train.csv (or .tsv, .jsonl, .parquet)' if name == 'table' else 'train/metadata.csv (or .jsonl, ...)'
        raise InputError(f'{root}: holds no {wanted} or one of another split (found: {found_in(root)}).')
    return files


def _by_split(table: _Table, split: str) -> dict[str, _Table]:
    """Parts a table by its column `split`; all rows are `train` where it has none, and another is an error."""
    if 'split' not in table.columns:
        if split != 'train':
            raise InputError(f'{table.path}: has no column split, so all its rows are of train and none of {split}.')
        return {'train': table}
    rows = defaultdict(list)
    for row, value in enumerate(table.column('split')):
        alias = value.strip() if isinstance(value, str) else value
        if alias not in list(SPLIT_OF):
            raise InputError(f'{table.where(row)}: the split is {shown(value)}, not {", ".join(SPLITS)}.')
        rows[SPLIT_OF[alias]].append(row)
    return {split: _take(table, rows[split]) for split in SPLITS if split in rows}


def _take(table: _Table, rows: list[int]) -> _Table:
    def column(name: str) -> list:
        values = table.column(name)
        return [values[row] for row in rows]

    return replace(table, numbers=[table.numbers[row] for row in rows], column=column)


def _records(
    tables: dict[str, _Table],
    split: str,
    label_names: Sequence[str] | None,
    columns: _Columns,
    image_root: str | None,
) -> Records:
    if not len(tables[split].numbers):
        raise InputError(f'{tables[split].path}: holds no row.')
    if label_names is None:
        label_names = _common_names(tables, columns)
    table = tables[split]
    found, is_binary = columns.find_labels(table)
    if is_binary:
        match_names(found, label_names, str(table.path))
    number_of = {name: number for number, name in enumerate(label_names)}
    labels, ignore = [], []
    for row, entries in enumerate(_labels(table, columns)):
        numbers = encode(*entries, number_of, table.where(row))
        labels.append(numbers[0])
        ignore.append(numbers[1])
    images, names = _images(table, columns.find_image(table), image_root)
    image_ids = _image_ids(table) if 'image_id' in table.columns else names
    return Records(list(label_names), images, labels, ignore, [[] for _ in images], image_ids)


def _common_names(tables: dict[str, _Table], columns: _Columns) -> list[str]:
    """Names the labels of all splits: sorted, or in the order of their columns in the first split that there is."""
    (first, *others) = tables.values()
    names, is_binary = columns.find_labels(first)
    for other in others:
        other_names, other_is_binary = columns.find_labels(other)
        if is_binary != other_is_binary or is_binary and set(names) != set(other_names):
            raise InputError(
                f'{other.path}: its columns of labels ({_some(other_names)}) are not those of {first.path}'
                f' ({_some(names)}): make them the same, or set data.label_columns.'
            )
    if is_binary:
        return names
    rows = chain.from_iterable(_labels(table, columns) for table in tables.values())
    found = {label for present, ignore in rows for label in (*present, *ignore)}
    if not found:
        raise InputError(f'{first.path}: holds no label: fill the column {names[0]!r}, or set data.label_names.')
    return sorted(found)


def _labels(table: _Table, columns: _Columns) -> Iterable[tuple[list[str], list[str]]]:
    """Reads of each row the labels that are present and those that are unknown."""
    found, is_binary = columns.find_labels(table)
    values = [table.column(name) for name in found]
    ignored = table.column('ignore') if 'ignore' in table.columns else None
    for row in range(len(table.numbers)):
        where = table.where(row)
        ignore = split_labels(ignored[row], columns.delimiter, f"{where}: 'ignore'") if ignored else []
        if not is_binary:
            yield split_labels(values[0][row], columns.delimiter, f'{where}: {found[0]!r}'), ignore
            continue
        states = [state(column[row], f'{where}: {name!r}') for name, column in zip(found, values, strict=True)]
        unknowns = [name for name, value in zip(found, states, strict=True) if value == -1 and name not in ignore]
        yield [name for name, value in zip(found, states, strict=True) if value == 1], ignore + unknowns


def _images(table: _Table, column: str, image_root: str | None) -> tuple[list[str], list[str]]:
    """Finds the paths of the pictures, and has them as they are written."""
    folder = Path(os.path.abspath(image_root or table.path.parent))
    names, first = [], {}
    for row, value in enumerate(table.column(column)):
        where = table.where(row)
        name = _text(value, f'{where}: {column!r}', 'path')
        if not name.strip():
            raise InputError(f'{where}: {column!r} is empty: name a picture or leave the row out.')
        path = str(locate(folder, name, where))
        if path in first:
            number = table.numbers[first[path]]
            raise InputError(f'{where}: {shown(name)} is already in {table.unit} {number}: keep one of them.')
        if not os.path.isfile(path):
            raise InputError(f'{where}: names {shown(name)}, which is not in {folder}; data.image_root is the folder.')
        first[path] = row
        names.append(name)
    return list(first), names


def _image_ids(table: _Table) -> list[str]:
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


def _read(path: Path) -> _Table:
    suffix = path.suffix.lower()
    if suffix == '.parquet':
        table = _read_parquet(path)
    else:
        text = _decode(path)
        table = _read_json_lines(path, text) if suffix == '.jsonl' else _read_delimited(path, text, suffix == '.tsv')
    check_names(f'{path}: columns', table.columns)
    return table


def _decode(path: Path) -> str:
    data = path.read_bytes().removeprefix(BOM)
    if not data.strip():
        raise InputError(f'{path}: is empty.')
    try:
        text, end = data.decode('utf-8'), None
        if '\0' in text:
            end, problem = data.index(b'\0') + 1, 'holds a NUL byte'
    except UnicodeDecodeError as e:
        end, problem = e.start + 1, f'holds the byte 0x{data[e.start]:02x}, which is not UTF-8'
    if end is not None:
        raise InputError(f'{path}: line {len(data[:end].splitlines())} {problem}: save the file as UTF-8.')
    return text


def _read_delimited(path: Path, text: str, has_tabs: bool) -> _Table:
    reader = csv.reader(io.StringIO(text, newline=''), delimiter='\t' if has_tabs else ',', strict=True)
    header, rows, numbers = None, [], []
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as e:
            raise InputError(f'{path}: line {number} cannot be parted into fields ({e}): check its quotes.') from None
        if fields is None:
            break
        if not fields:
            continue
        if header is None:
            header = [field.strip() for field in fields]
        elif len(fields) != len(header):
            raise InputError(f'{path}: line {number} has {len(fields)} fields, but the header has {len(header)}.')
        else:
            rows.append(fields)
            numbers.append(number)
    if header is None:
        raise InputError(f'{path}: is empty.')
    return _Table(path, header, 'line', numbers, lambda name: [fields[header.index(name)] for fields in rows])


def _read_json_lines(path: Path, text: str) -> _Table:
    rows, numbers = [], []
    for number, line in enumerate(text.split('\n'), 1):
        where = f'{path}: line {number}'
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, where))
            if '\\u' in line:
                json.dumps(row, ensure_ascii=False).encode()
        except InputError:
            raise
        except (ValueError, RecursionError) as e:
            raise InputError(f'{where} is not whole JSON ({shown(str(e))}).') from None
        if not isinstance(row, dict):
            raise InputError(f'{where} is not an object: a file of JSON Lines has one {{...}} in each line.')
        if rows and row.keys() != rows[0].keys():
            key = min(row.keys() ^ rows[0].keys())
            other, without = (numbers[0], number) if key in rows[0] else (number, numbers[0])
            raise InputError(f'{path}: line {without} has no {shown(key)}, but line {other} has: write null there.')
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise InputError(f'{path}: is empty.')
    return _Table(path, list(rows[0]), 'line', numbers, lambda name: [row[name] for row in rows])


def _object(where: str, pairs: list[tuple[str, object]]) -> dict:
    check_names(f'{where}: keys', [key for key, _ in pairs])
    return dict(pairs)


def _read_parquet(path: Path) -> _Table:
    schema, rows = _try_parquet(path, lambda file: (file.schema_arrow, file.metadata.num_rows))

    def column(name: str) -> list:
        kind = schema.field(name).type
        if not _is_readable(kind):
            raise InputError(
                f'{path}: the column {name!r} is {shown(str(kind))}, not text, numbers or lists of them'
                ' (pictures within a file are read with data.name hub).'
            )
        return _try_parquet(path, lambda file: file.read(columns=[name]).column(name).to_pylist())

    return _Table(path, schema.names, 'row', range(rows), column)


def _try_parquet(path: Path, read: Callable[[pq.ParquetFile], object]) -> object:
    try:
        with pq.ParquetFile(path) as file:
            return read(file)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as e:
        raise InputError(f'{path}: is not whole Parquet ({shown(str(e))}).') from None


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _is_readable(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(test(kind) for test in (*tests, types.is_null))


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f'{where} has the {what} {shown(value)}, which is not text.')
    if not is_one_line(value):
        raise InputError(f'{where} has the {what} {shown(value)} with a line break or NUL in it.')
    return value


def _some(names: Collection[str]) -> str:
    return ', '.join(list(names)[:20]) + (f', ... ({len(names)} in all)' if len(names) > 20 else '')
