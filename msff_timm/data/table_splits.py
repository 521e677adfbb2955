"""Splits of tables: which file, and which rows of one file, belong to a split."""

import os
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from datasets.data_files import SPLIT_KEYWORDS

from ..errors import InputError, NoSplitError
from .label_cells import state_of
from .table_files import Table
from .text import list_folder, quote

__all__ = ['SPLITS', 'SUFFIXES', 'check_split', 'find_files', 'no_split', 'split_rows', 'standard_split']

# Names of the splits in `datasets`, in lower case
SPLIT_OF = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
SPLITS = ('train', 'validation', 'test')
SUFFIXES = {'table': ('.csv', '.tsv', '.jsonl', '.parquet'), 'folder': ('.csv', '.jsonl', '.parquet')}
SPLIT_COLUMNS = ('data_split', 'partition', 'phase', 'split', 'subset', 'usage')  # in lower case
SPLIT_FOLDER = re.compile(rf'({"|".join(SPLIT_OF)})[-._ 0-9]*', re.IGNORECASE)


def standard_split(value: object) -> str | None:
    """Returns the split that a name means, e.g. `validation` for `Val`, or None if it means no split."""
    return SPLIT_OF.get(value.strip().lower()) if isinstance(value, str) else None


def find_files(name: str, root: Path) -> dict[str, Path]:
    """Finds the table of each split in a folder."""
    if not root.is_dir():
        raise InputError(f'{root}: is not a folder{" or a file" if name == "table" else ""}: check data.root.')
    found = []
    for path in _entries(root):
        if name == 'table':
            found.append((standard_split(path.stem), path))
        elif standard_split(path.name) and path.is_dir():
            found += [(standard_split(path.name), inner) for inner in _entries(path) if inner.stem == 'metadata']
        elif path.stem == 'metadata':
            found.append(('train', path))
    files = {}
    for split, path in found:
        if split is None or path.suffix.lower() not in SUFFIXES[name] or not path.is_file():
            continue
        if split in files:
            raise InputError(f'{root}: both {files[split]} and {path} are tables of the split {split}: remove one.')
        files[split] = path
    if not files:
        wanted = 'train.csv (or .tsv, .jsonl, .parquet)' if name == 'table' else 'train/metadata.csv (or .jsonl, ...)'
        raise InputError(f'{root}: contains no {wanted} or table of another split (found: {list_folder(root)}).')
    return {split: files[split] for split in SPLITS if split in files}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as e:
        raise InputError(f'{folder}: cannot be listed ({e.strerror}).') from None


def no_split(name: str, split: str, root: Path, files: dict[str, Path]) -> NoSplitError:
    """Returns the error for a split that has no table."""
    found = ', '.join(str(path.relative_to(root)) for path in files.values())
    return NoSplitError(f'{root}: has no {name} of the split {split} (found: {found}).')


def split_rows(
    table: Table, image: str, label_columns: Collection[str], image_root: str | None, is_file: bool, is_folder: bool
) -> tuple[dict[str, Table], str | None]:
    """Assigns the rows of a single table to splits.

    The column `split`, or a similar one, decides; else fastai's `is_valid`; else, in a table for all splits, the
    folders of the images.

    Args:
        table: Table of all rows.
        image: Name of the image column.
        label_columns: Columns that the settings name as labels.
        image_root: Folder of the images; None for that of the table.
        is_file: True if `data.root` is the table itself rather than a folder with one table per split.
        is_folder: True for a metadata file above the folders of the splits.

    Returns:
        Rows of each split, and what decided; None if nothing did, so that all rows belong to `train`.

    Raises:
        InputError: A row has no split, or an unknown one.
    """
    rule, found = None, _split_column([name for name in table.columns if name not in (image, *label_columns)], table)
    if found is not None:
        column, splits = found
        if is_file or any(splits):
            rule = f'by the column {column}'
        if rule and None in splits:
            row = splits.index(None)
            value = table.column(column)[row]
            raise InputError(
                f'{table.where(row)}: the column {column} holds {quote(value)}: must be {", ".join(SPLITS)}.'
            )
        if rule and not is_file and column.lower() == 'is_valid' and len(set(splits)) == 1:
            rule = None  # the table of a single split, which the name of the file gives
    if rule is None and (is_file or is_folder):
        folder = os.path.abspath(image_root or table.path.parent)
        splits = [_folder_split(value, folder) for value in table.column(image)]
        others = set(splits) - {None}
        # A single folder does not separate splits, but rows without a split must not be mixed with those of test.
        if is_folder and others or len(others) > 1 or None in splits and others - {'train'}:
            rule = 'by the folders of the images'
            if None in splits:
                row = splits.index(None)
                raise InputError(
                    f'{table.where(row)}: {quote(table.column(image)[row])} is not in the folder of a split, but other'
                    ' images are: move it there, or add a column split.'
                )
    if rule is None:
        return {'train': table}, None
    rows = defaultdict(list)
    for row, split in enumerate(splits):
        rows[split].append(row)
    return {split: _select(table, rows[split]) for split in SPLITS if split in rows}, rule


def _folder_split(name: object, folder: str) -> str | None:
    """Returns the split whose folder a path contains: `train` for `train/a.jpg` or `images/train2017/a.jpg`."""
    path = Path(folder, name) if isinstance(name, str) else None
    for part in path.relative_to(folder).parts[:-1] if path and path.is_relative_to(folder) else ():
        if match := SPLIT_FOLDER.fullmatch(part):
            return standard_split(match[1])
    return None


def _split_column(columns: Collection[str], table: Table) -> tuple[str, list[str | None]] | None:
    """Finds the column of the splits: `split`, a similar one that holds nothing else, or fastai's `is_valid`.

    Returns:
        Name of the column, and the split of each row or None if it is none; None if there is no such column.
    """
    names = {name.lower(): name for name in columns if name.lower() in (*SPLIT_COLUMNS, 'is_valid')}
    for name in sorted(names, key=lambda name: (name == 'is_valid', name != 'split')):
        values = table.column(names[name])
        if name == 'is_valid':
            states = [None if isinstance(value, list) else state_of(value) for value in values]
            return names[name], [{0: 'train', 1: 'validation'}.get(state) for state in states]
        splits = [standard_split(value) for value in values]
        if name == 'split' or None not in splits:
            return names[name], splits
    return None


def check_split(table: Table, split: str) -> None:
    """Raises `InputError` if the table of one split has rows that a column assigns to another split."""
    found = _split_column(table.columns, table)
    if found is None or None in found[1] or found[0].lower() == 'is_valid' and len(set(found[1])) == 1:
        return
    column, splits = found
    for row, other in enumerate(splits):
        if other != split:
            raise InputError(
                f'{table.where(row)}: the column {column!r} assigns the row to {other}, but it is in the table of'
                f' {split}: remove the row or the column.'
            )


def _select(table: Table, rows: list[int]) -> Table:
    def column(name: str) -> list:
        values = table.column(name)
        return [values[row] for row in rows]

    return replace(table, numbers=[table.numbers[row] for row in rows], column=column)
