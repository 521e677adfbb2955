"""Files of tables: CSV, TSV, JSON Lines and Parquet as columns."""

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
from .label_cells import check_names
from .records import shown

__all__ = ['Table', 'read']

BOM = b'\xef\xbb\xbf'
DELIMITERS = {',': 'a comma', ';': "';'", '\t': 'a tab', '|': "'|'"}


@dataclass
class Table:
    """A table as it was read.

    Attributes:
        path: Its file.
        columns: Names of its columns, without those that have none.
        unit: Unit that rows are counted in.
        numbers: Number of each row: its line, counted from 1, or row of a Parquet file, counted from 0.
        column: Gives the values of a column, one for each of `numbers`.
        notes: Lines on how it was read.
        num_unnamed: Number of columns without a name, which are left out.
    """

    path: Path
    columns: list[str]
    unit: str
    numbers: Sequence[int]
    column: Callable[[str], Sequence]
    notes: list[str] = field(default_factory=list)
    num_unnamed: int = 0

    def where(self, row: int, column: str | None = None) -> str:
        return f'{self.path}: {self.unit} {self.numbers[row]}' + (f': {column!r}' if column is not None else '')


def read(path: Path, image_columns: Collection[str]) -> Table:
    """Reads a table.

    Args:
        path: File, whose suffix names the format.
        image_columns: Names that the column of images may have, by which the delimiter of the fields is found.

    Raises:
        InputError: It is not whole; the message names file and line.
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
            end, problem = data.index(b'\0') + 1, 'holds a NUL byte'
    except UnicodeDecodeError as e:
        end, problem = e.start + 1, f'holds the byte 0x{data[e.start]:02x}, which is not UTF-8'
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
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    del rows
    named = _named(path, header, columns)
    notes = [] if delimiter == usual else [f'fields: delimited by {DELIMITERS.get(delimiter, repr(delimiter))}']
    by_name = {header[k]: columns[k] for k in named}
    table = Table(path, [header[k] for k in named], 'line', numbers, by_name.__getitem__, notes)
    table.num_unnamed = len(header) - len(named)
    return table


def _find_delimiter(text: str, usual: str, image_columns: Collection[str]) -> tuple[str, int]:
    """Finds what parts the fields: what Excel's line `sep=;` has, else by the column of images in the header.

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
        try:
            header = next(
                (fields for fields in csv.reader(islice(lines, first, None), delimiter=delimiter) if fields), []
            )
        except csv.Error:
            continue
        if not image_columns.isdisjoint(field.strip() for field in header):
            if delimiter == usual:
                return usual, 0
            others.append(delimiter)
    return others[0] if len(set(others)) == 1 else usual, 0


def _named(path: Path, header: list[str], columns: list[tuple]) -> list[int]:
    """Leaves out columns without a name: the index that pandas and R write first, and empty ones.

    Raises:
        InputError: Another column that holds something has no name.
    """
    named = [number for number, name in enumerate(header) if name]
    for number, name in enumerate(header):
        if not name and number > min(named, default=0) and any(value.strip() for value in columns[number]):
            raise InputError(f'{path}: columns: a name is empty: name it or leave it out.')
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
                json.dumps(row, ensure_ascii=False).encode()
        except InputError:
            raise
        except (ValueError, RecursionError) as e:
            raise InputError(f'{where} is not whole JSON ({shown(str(e))}).') from None
        if not isinstance(row, dict):
            raise InputError(f'{where} is not an object: a file of JSON Lines has one {{...}} in each line.')
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise InputError(f'{path}: is empty.')
    # A key that a row lacks is null there, as pandas and `datasets` read it.
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
                f'{path}: the column {name!r} is {shown(str(kind))}, not text, numbers or lists of them'
                ' (images within a file are read with data.name hub).'
            )
        return _try_parquet(path, lambda: file.read(columns=[name]).column(name).to_pylist())

    return Table(path, schema.names, 'row', range(file.metadata.num_rows), column)


def _try_parquet(path: Path, read: Callable[[], object]) -> object:
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as e:
        raise InputError(f'{path}: is not whole Parquet ({shown(str(e))}).') from None


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_readable(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(test(kind) for test in (*tests, types.is_string_view, types.is_null))
