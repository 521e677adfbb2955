"""Files of results in Parquet, JSON Lines or CSV: written in parts and merged, with a header on their origin."""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, one_line
from ..files import replace_file, write_text

__all__ = ['LABEL_DELIMITER', 'merge', 'read_header', 'write_part']

DIGITS = 6  # of numbers in text
LABEL_DELIMITER = '|'  # between the labels of an image in CSV
HEADER = b'msff_timm'  # key in the metadata of Parquet files
GROUP_BYTES = 2**25  # of a row group of Parquet, before compression

Columns = dict[str, Sequence | np.ndarray]


def write_part(path: Path, columns: Columns) -> None:
    """Writes rows to a file in one step.

    Args:
        path: File, whose suffix determines the format.
        columns: Values by column: text, numbers, lists of them, or an array (N, D), whose rows are
            null where the column `error` is not.
    """
    with replace_file(path) as temporary:
        if path.suffix == '.parquet':
            import pyarrow.parquet as pq  # needs the `bulk` extra

            pq.write_table(_table(columns), temporary)
            return
        with open(temporary, 'w', encoding='utf-8', newline='') as file:
            rows = zip(*columns.values(), strict=True)
            if path.suffix == '.csv':
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([_cell(value) for value in row] for row in rows)
            else:
                for row in rows:
                    values = dict(zip(columns, map(_plain, row), strict=True))
                    file.write(json.dumps(values, ensure_ascii=False) + '\n')


def merge(parts: Sequence[Path], path: Path, header: dict) -> None:
    """Merges parts into one file, which appears in one step.

    Args:
        parts: Files of `write_part`, in order, on the disk of the merged file.
        path: File to write. A text file gets a second file beside it for the header, `{name}.json`.
        header: JSON values on the origin of the file, see `read_header`.
    """
    temporary = parts[0].with_name(f'merged{path.suffix}')  # among the parts: a kill leaves nothing elsewhere
    if path.suffix == '.parquet':
        _merge_parquet(parts, temporary, header)
    else:
        write_text(_header_path(path), json.dumps(header, indent=2) + '\n')
        with open(temporary, 'wb') as file:
            for part in parts:
                with open(part, 'rb') as source:
                    if path.suffix == '.csv' and part != parts[0]:
                        source.readline()  # the names of the columns
                    shutil.copyfileobj(source, file)
    os.replace(temporary, path)


def _merge_parquet(parts: Sequence[Path], path: Path, header: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(parts[0]).with_metadata({HEADER: json.dumps(header)})
    with pq.ParquetWriter(path, schema) as writer:
        tables = []
        for part in parts:
            tables.append(pq.ParquetFile(part).read().replace_schema_metadata(schema.metadata))
            if part == parts[-1] or sum(table.nbytes for table in tables) > GROUP_BYTES:
                writer.write_table(pa.concat_tables(tables))
                tables = []


def read_header(path: Path) -> dict | None:
    """Reads the header of a file that `merge` has written; None for another file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        if path.suffix == '.parquet':
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                text = (pq.read_schema(path).metadata or {}).get(HEADER, b'null')
            except pa.ArrowInvalid:
                return None
        else:
            text = _header_path(path).read_bytes() if _header_path(path).exists() else b'null'
        return json.loads(text)
    except (OSError, ValueError) as e:
        raise InputError(f'{path}: cannot be read ({one_line(e)}).') from None


def _header_path(path: Path) -> Path:
    return path.with_name(f'{path.name}.json')


def _table(columns: Columns):
    import pyarrow as pa

    types = {'labels': pa.list_(pa.string()), 'probabilities': pa.list_(pa.float32()), 'error': pa.string()}
    arrays = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim == 2:
            is_null = pa.array([error is not None for error in columns['error']])
            arrays[name] = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1], mask=is_null)
        else:
            kind = pa.float32() if name.startswith('score_') else types.get(name)
            arrays[name] = pa.array(values, kind)  # a type for parts without any value
    return pa.table(arrays)


def _plain(value: object) -> object:
    """Returns a value as JSON holds it."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return round(float(value), DIGITS) if isinstance(value, float | np.floating) else value


def _cell(value: object) -> object:
    value = _plain(value)
    return LABEL_DELIMITER.join(map(str, value)) if isinstance(value, list) else value
