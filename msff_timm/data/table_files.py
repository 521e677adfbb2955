"""Reads CSV, TSV, JSON Lines and Parquet files into tables of columns, with the line of each row for messages."""

import csv
import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .text import check_names, quote

__all__ = ['Table', 'read_table']

BOM = b'\xef\xbb\xbf'
DELIMITERS = {',': 'a comma', ';': "';'", '\t': 'a tab', '|': "'|'"}


@dataclass
class Table:
    """Columns of a file.

    Attributes:
        path: Path of the file.
        columns: Names of the columns that have one.
        unit: Unit of `numbers`: `line` or `row`.
        numbers: Line of each row, counted from 1, or its row in a Parquet file, counted from 0.
        column: Function that returns the values of a column, one for each of `numbers`.
        notes: Lines on how the file was read.
        num_unnamed: Number of columns without a name, which are skipped.
    """

    path: Path
    columns: list[str]
    unit: str
    numbers: Sequence[int]
    column: Callable[[str], Sequence]
    notes: list[str] = field(default_factory=list)
    num_unnamed: int = 0

    def where(self, row: int, column: str | None = None) -> str:
        """Returns file, line and column for a message."""
        return f'{self.path}: {self.unit} {self.numbers[row]}' + (f': {column!r}' if column is not None else '')


def read_table(path: Path, image_columns: Collection[str]) -> Table:
    """Reads a table.

    Args:
        path: File, whose suffix determines the format.
        image_columns: Possible names of the image column, which show what separates the fields.

    Raises:
        InputError: The file is damaged; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix == '.parquet':
        table = _read_parquet(path)
    elif suffix == '.jsonl':
        table = _read_json_lines(path, _decode(path))
    else:
        table = _read_delimited(path, _decode(path), '\t' if suffix == '.tsv' else ',', image_columns)
    check_names(f'{path}: columns', table.columns)
    return table


def _decode(path: Path) -> str:
    data = path.read_bytes().removeprefix(BOM)
    if not data.strip():
        raise InputError(f'{path}: is empty.')
    try:
        text, end = data.decode('utf-8'), None
        if '\0' in text:
            end, problem = data.index(b'\0') + 1, 'contains a NUL byte'
    except UnicodeDecodeError as e:
        end, problem = e.start + 1, f'contains the byte 0x{data[e.start]:02x}, which is not UTF-8'
    if end is not None:
        raise InputError(f'{path}: line {len(data[:end].splitlines())} {problem}: save the file as UTF-8.')
    return text


def _read_delimited(path: Path, text: str, usual: str, image_columns: Collection[str]) -> Table:
    delimiter, num_skipped = _find_delimiter(text, usual, image_columns)
    file = io.StringIO(text, newline='')
    for _ in range(num_skipped):
        next(file)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header, rows, numbers = None, [], []
    while True:
        number = num_skipped + reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as e:
            raise InputError(f'{path}: line {number} cannot be split into fields ({e}): check its quotes.') from None
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
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    del rows
    named = _named(path, header, columns)
    notes = [] if delimiter == usual else [f'fields: delimited by {DELIMITERS.get(delimiter, repr(delimiter))}']
    by_name = {header[k]: columns[k] for k in named}
    num_unnamed = len(header) - len(named)
    return Table(path, [header[k] for k in named], 'line', numbers, by_name.__getitem__, notes, num_unnamed)


def _find_delimiter(text: str, usual: str, image_columns: Collection[str]) -> tuple[str, int]:
    """Finds what separates the fields: from Excel's line `sep=;`, or from the image column in the header.

    Returns:
        The delimiter, and the number of lines before the header.
    """
    lines = list(io.StringIO(text[:1_000_000], newline=''))
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    setting = lines[first].strip('\r\n \t').strip('"')
    if setting[:4].lower() == 'sep=' and len(setting) <= 5:
        return setting[4:] or '\t', first + 1
    others = []
    for delimiter in (usual, *DELIMITERS):
        reader = csv.reader(islice(lines, first, None), delimiter=delimiter)
        try:
            header = next((fields for fields in reader if fields), [])
        except csv.Error:
            continue
        if not image_columns.isdisjoint(field.strip() for field in header):
            if delimiter == usual:
                return usual, 0
            others.append(delimiter)
    return others[0] if len(set(others)) == 1 else usual, 0


def _named(path: Path, header: list[str], columns: list[tuple]) -> list[int]:
    """Returns the numbers of the columns that have a name.

    The first column may have none (an index of pandas or R), and so may empty columns.

    Raises:
        InputError: Another column that is not empty has no name.
    """
    named = [number for number, name in enumerate(header) if name]
    for number, name in enumerate(header):
        if not name and number > min(named, default=0) and any(value.strip() for value in columns[number]):
            raise InputError(f'{path}: columns: a name is empty: give it a name, or remove it.')
    return named


def _read_json_lines(path: Path, text: str) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(text.split('\n'), 1):
        where = f'{path}: line {number}'
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, where))
            if '\\u' in line:
                json.dumps(row, ensure_ascii=False).encode()  # raises for unpaired surrogates
        except InputError:
            raise
        except (ValueError, RecursionError) as e:
            raise InputError(f'{where} is not valid JSON ({quote(str(e))}).') from None
        if not isinstance(row, dict):
            raise InputError(f'{where} is not an object: a JSON Lines file has one {{...}} on each line.')
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise InputError(f'{path}: is empty.')
    # A key that a row lacks is null there, as in pandas and `datasets`.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, names, 'line', numbers, lambda name: [row.get(name) for row in rows])


def _object(where: str, pairs: list[tuple[str, object]]) -> dict:
    check_names(f'{where}: keys', [key for key, _ in pairs])
    return dict(pairs)


def _read_parquet(path: Path) -> Table:
    file = _try_parquet(path, lambda: pq.ParquetFile(path))
    schema = file.schema_arrow

    def column(name: str) -> list:
        kind = schema.field(name).type
        if not _is_readable(kind):
            raise InputError(
                f'{path}: the column {name!r} is of type {quote(str(kind))}: must be text, numbers or lists of them;'
                ' set data.name to hub for images inside of Parquet files.'
            )
        return _try_parquet(path, lambda: file.read(columns=[name]).column(name).to_pylist())

    return Table(path, schema.names, 'row', range(file.metadata.num_rows), column)


def _try_parquet(path: Path, read: Callable[[], object]) -> object:
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as e:
        raise InputError(f'{path}: is not a valid Parquet file ({quote(str(e))}).') from None


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_readable(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(test(kind) for test in (*tests, types.is_string_view, types.is_null))
