"""Reads CSV, TSV, JSON Lines and Parquet files into tables of columns, with the line of each row for messages."""

import csv
import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .text import check_names, quote

__all__ = ['Table', 'read_table']

BOM = b'\xef\xbb\xbf'
CHUNK = 2**20  # cells of a delimited file that are Python objects at a time
DELIMITERS = {',': 'a comma', ';': "';'", '\t': 'a tab', '|': "'|'"}


@dataclass
class Table:
    """Columns of a file.

    Attributes:
        path: Path of the file.
        columns: Names of the columns that have one.
        unit: Unit of `numbers`: `line` or `row`.
        numbers: Line of each row, counted from 1, or its row in a Parquet file, counted from 0.
        read: Function that returns the cells of a column, one for each of `numbers`.
        notes: Lines on how the file was read.
        num_unnamed: Number of columns without a name, which are skipped.
    """

    path: Path | str
    columns: list[str]
    unit: str
    numbers: Sequence[int]
    read: Callable[[str], pa.ChunkedArray | list]
    notes: list[str] = field(default_factory=list)
    num_unnamed: int = 0

    def column(self, name: str) -> list:
        """Returns the values of a column."""
        cells = self.read(name)
        return cells if isinstance(cells, list) else cells.to_pylist()

    def distinct(self, name: str) -> tuple[list, np.ndarray]:
        """Returns the distinct values of a column in the order of their first rows, and the number of each row's."""
        cells = self.read(name)
        if isinstance(cells, pa.ChunkedArray) and not pa.types.is_nested(cells.type):
            if not pa.types.is_dictionary(cells.type):
                cells = cells.dictionary_encode(null_encoding='encode')
            merged = cells.unify_dictionaries().combine_chunks()
            if not merged.indices.null_count:
                return merged.dictionary.to_pylist(), merged.indices.to_numpy()
        values, number_of = self.column(name), {}
        try:
            numbers = [number_of.setdefault((type(value), value), len(number_of)) for value in values]
        except TypeError:  # lists
            return values, np.arange(len(values))
        return [value for _, value in number_of], np.array(numbers, np.int64)

    def select(self, rows: np.ndarray) -> 'Table':
        """Returns some of the rows."""

        def read(name: str) -> pa.ChunkedArray | list:
            cells = self.read(name)
            return [cells[row] for row in rows] if isinstance(cells, list) else cells.take(rows)

        return replace(self, numbers=[self.numbers[row] for row in rows], read=read)

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
        table = _read_json_lines(path, _read_bytes(path))
    else:
        table = _read_delimited(path, _read_bytes(path), '\t' if suffix == '.tsv' else ',', image_columns)
    check_names(f'{path}: columns', table.columns)
    return table


def _read_bytes(path: Path) -> bytes:
    """Reads a file of UTF-8 without its byte order mark."""
    data = path.read_bytes().removeprefix(BOM)
    if not data.strip():
        raise InputError(f'{path}: is empty.')
    end = None
    try:
        data.decode('utf-8')
        if b'\0' in data:
            end, problem = data.index(b'\0') + 1, 'contains a NUL byte'
    except UnicodeDecodeError as e:
        end, problem = e.start + 1, f'contains the byte 0x{data[e.start]:02x}, which is not UTF-8'
    if end is not None:
        raise InputError(f'{path}: line {len(data[:end].splitlines())} {problem}: save the file as UTF-8.')
    return data


def _read_delimited(path: Path, data: bytes, usual: str, image_columns: Collection[str]) -> Table:
    delimiter, num_skipped = _find_delimiter(data[:1_000_000].decode('utf-8', 'ignore'), usual, image_columns)
    file = io.TextIOWrapper(io.BytesIO(data), 'utf-8', newline='')
    for _ in range(num_skipped):
        next(file)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header, rows, numbers, chunks = None, [], [], []
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
            if len(rows) * len(header) >= CHUNK:
                chunks.append(_columns_of(rows))
                rows.clear()
    if header is None:
        raise InputError(f'{path}: is empty.')
    chunks.append(_columns_of(rows) if rows else [pa.array([], pa.string())] * len(header))
    columns = list(map(pa.chunked_array, zip(*chunks, strict=True)))
    named = _named(path, header, columns)
    notes = [] if delimiter == usual else [f'fields: delimited by {DELIMITERS.get(delimiter, repr(delimiter))}']
    by_name = {header[k]: columns[k] for k in named}
    num_unnamed = len(header) - len(named)
    return Table(path, [header[k] for k in named], 'line', numbers, by_name.__getitem__, notes, num_unnamed)


def _columns_of(rows: list[list[str]]) -> list[pa.Array]:
    return [pa.array(cells, pa.string()) for cells in zip(*rows, strict=True)]


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


def _named(path: Path, header: list[str], columns: list[pa.ChunkedArray]) -> list[int]:
    """Returns the numbers of the columns that have a name.

    The first column may have none (an index of pandas or R), and so may empty columns.

    Raises:
        InputError: Another column that is not empty has no name.
    """
    named = [number for number, name in enumerate(header) if name]
    for number, name in enumerate(header):
        if not name and number > min(named, default=0) and any(map(str.strip, columns[number].to_pylist())):
            raise InputError(f'{path}: columns: a name is empty: give it a name, or remove it.')
    return named


def _read_json_lines(path: Path, data: bytes) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(data.decode().split('\n'), 1):
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

    def read(name: str) -> pa.ChunkedArray:
        kind = schema.field(name).type
        if not _is_readable(kind):
            raise InputError(
                f'{path}: the column {name!r} is of type {quote(str(kind))}: must be text, numbers or lists of them;'
                ' set data.name to hub for images inside of Parquet files.'
            )
        return _try_parquet(path, lambda: file.read(columns=[name]).column(name))

    return Table(path, schema.names, 'row', range(file.metadata.num_rows), read)


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
