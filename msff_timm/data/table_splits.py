"""Which file, and which rows of one file, belong to a split."""

import os
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from datasets.data_files import SPLIT_KEYWORDS

from ..errors import InputError
from .label_cells import state_of
from .records import found_in, shown
from .table_files import Table

__all__ = ['SPLITS', 'SUFFIXES', 'check_split', 'find_files', 'no_split', 'of_split', 'part']

# The names that `datasets` has for the splits, in small letters
SPLIT_OF = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
SPLITS = ('train', 'validation', 'test')
SUFFIXES = {'table': ('.csv', '.tsv', '.jsonl', '.parquet'), 'folder': ('.csv', '.jsonl', '.parquet')}
SPLIT_COLUMNS = ('data_split', 'partition', 'phase', 'split', 'subset', 'usage')  # in small letters
SPLIT_FOLDER = re.compile(rf'({"|".join(SPLIT_OF)})[-._ 0-9]*', re.IGNORECASE)


def of_split(value: object) -> str | None:
    """Returns the split that a name stands for, in any case; None where it stands for none."""
    return SPLIT_OF.get(value.strip().lower()) if isinstance(value, str) else None


def find_files(name: str, root: Path) -> dict[str, Path]:
    """Finds the table of each split in a folder."""
    if not root.is_dir():
        raise InputError(f'{root}: is no folder{" and no file" if name == "table" else ""}: check data.root.')
    found = []
    for path in _entries(root):
        if name == 'table':
            found.append((of_split(path.stem), path))
        elif of_split(path.name) and path.is_dir():
            found += [(of_split(path.name), inner) for inner in _entries(path) if inner.stem == 'metadata']
        elif path.stem == 'metadata':
            found.append(('train', path))
    files = {}
    for split, path in found:
        if split is None or path.suffix.lower() not in SUFFIXES[name] or not path.is_file():
            continue
        if split in files:
            raise InputError(f'{root}: both {files[split]} and {path} are tables of {split}: keep one.')
        files[split] = path
    if not files:
        wanted = 'train.csv (or .tsv, .jsonl, .parquet)' if name == 'table' else 'train/metadata.csv (or .jsonl, ...)'
        raise InputError(f'{root}: holds no {wanted} or one of another split (found: {found_in(root)}).')
    return {split: files[split] for split in SPLITS if split in files}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as e:
        raise InputError(f'{folder}: cannot be listed ({e.strerror}).') from None


def no_split(name: str, split: str, root: Path, files: dict[str, Path]) -> InputError:
    there = ', '.join(str(path.relative_to(root)) for path in files.values())
    return InputError(f'{root}: has no {name} of the split {split} (there: {there}).')


def part(
    table: Table, image: str, label_columns: Collection[str], image_root: str | None, is_file: bool, is_folder: bool
) -> tuple[dict[str, Table], str | None]:
    """Parts the rows of a single table over the splits.

    The column `split`, or another of that kind, decides; else fastai's `is_valid`; else, of a table for all splits,
    the folders of its images.

    Args:
        table: The rows.
        image: Its column of images.
        label_columns: Those that are labels by a setting.
        image_root: Folder of the images; None for the table's own.
        is_file: True where the table is named by itself, not as that of a split in a folder.
        is_folder: True for a metadata file above the images.

    Returns:
        The rows of each split, and how they were parted; None where nothing parts them and all are of train.

    Raises:
        InputError: A row has no split, or one that there is not.
    """
    way, found = None, _split_column([name for name in table.columns if name not in (image, *label_columns)], table)
    if found is not None:
        column, splits = found
        if is_file or any(splits):
            way = f'by the column {column}'
        if way and None in splits:
            row = splits.index(None)
            value = table.column(column)[row]
            raise InputError(
                f'{table.where(row)}: the split is {shown(value)}, not {", ".join(SPLITS)} (column {column}).'
            )
        if way and not is_file and column.lower() == 'is_valid' and len(set(splits)) == 1:
            way = None  # of one split, which the name of the file tells
    if way is None and (is_file or is_folder):
        folder = os.path.abspath(image_root or table.path.parent)
        splits = [_folder_split(value, folder) for value in table.column(image)]
        others = set(splits) - {None}
        # The folders part nothing where there is only one; but rows of no split are not to be mixed with those of test.
        if is_folder and others or len(others) > 1 or None in splits and others - {'train'}:
            way = 'by the folders of the images'
            if None in splits:
                row = splits.index(None)
                raise InputError(
                    f'{table.where(row)}: {shown(table.column(image)[row])} lies in no folder of a split, but others'
                    ' do: move it, or add a column split.'
                )
    if way is None:
        return {'train': table}, None
    rows = defaultdict(list)
    for row, split in enumerate(splits):
        rows[split].append(row)
    return {split: _take(table, rows[split]) for split in SPLITS if split in rows}, way


def _folder_split(name: object, folder: str) -> str | None:
    """Returns the split whose folder a path leads through, `train` of `train/a.jpg` or `images/train2017/a.jpg`."""
    path = Path(folder, name) if isinstance(name, str) else None
    for part in path.relative_to(folder).parts[:-1] if path and path.is_relative_to(folder) else ():
        if match := SPLIT_FOLDER.fullmatch(part):
            return of_split(match[1])
    return None


def _split_column(columns: Collection[str], table: Table) -> tuple[str, list[str | None]] | None:
    """Finds the column of the splits: `split`, another of that kind that holds nothing else, or fastai's `is_valid`.

    Returns:
        Its name, and the split of each row, None where that is none; None where there is no such column.
    """
    names = {name.lower(): name for name in columns if name.lower() in (*SPLIT_COLUMNS, 'is_valid')}
    for name in sorted(names, key=lambda name: (name == 'is_valid', name != 'split')):
        values = table.column(names[name])
        if name == 'is_valid':
            states = [None if isinstance(value, list) else state_of(value) for value in values]
            return names[name], [{0: 'train', 1: 'validation'}.get(state) for state in states]
        splits = [of_split(value) for value in values]
        if name == 'split' or None not in splits:
            return names[name], splits
    return None


def check_split(table: Table, split: str) -> None:
    """Raises InputError where a column of a split's own table has rows of another split."""
    found = _split_column(table.columns, table)
    if found is None or None in found[1] or found[0].lower() == 'is_valid' and len(set(found[1])) == 1:
        return
    column, found = found
    for row, other in enumerate(found):
        if other != split:
            raise InputError(
                f'{table.where(row)}: is of {other} by its column {column!r}, but stands in the table of {split}:'
                ' leave the row or the column out.'
            )


def _take(table: Table, rows: list[int]) -> Table:
    def column(name: str) -> list:
        values = table.column(name)
        return [values[row] for row in rows]

    return replace(table, numbers=[table.numbers[row] for row in rows], column=column)
