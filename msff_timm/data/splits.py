"""Which file, and which rows of one file, belong to a split."""

import os
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets.data_files import SPLIT_KEYWORDS

from ..errors import InputError
from .cells import read_states, state_of
from .files import Table
from .records import found_in, shown

__all__ = ['SPLITS', 'SUFFIXES', 'check_split', 'find_files', 'no_split', 'of_split', 'part']

# The names that `datasets` has for the splits, in small letters
SPLIT_OF = {keyword: str(split) for split, keywords in SPLIT_KEYWORDS.items() for keyword in keywords}
SPLITS = ('train', 'validation', 'test')
SUFFIXES = {'table': ('.csv', '.tsv', '.jsonl', '.parquet'), 'folder': ('.csv', '.jsonl', '.parquet')}
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

    The column `split` decides; else fastai's `is_valid`; else, of a table for all splits, the folders of its images.

    Args:
        table: The rows.
        image: Its column of images.
        label_columns: Those that are labels by a setting.
        image_root: Folder of the images; None for the table's own.
        is_file: Whether the table is named by itself, not as that of a split in a folder.
        is_folder: Whether it is a metadata file above the images.

    Returns:
        The rows of each split, and how they were parted; None where nothing parts them and all are of train.

    Raises:
        InputError: A row has no split, or one that there is not.
    """
    way = None
    if 'split' in table.columns and image != 'split':
        splits, way = [of_split(value) for value in table.column('split')], 'by the column split'
        if not is_file and not any(splits):
            way = None
        elif None in splits:
            row = splits.index(None)
            value = table.column('split')[row]
            raise InputError(f'{table.where(row)}: the split is {shown(value)}, not {", ".join(SPLITS)}.')
    elif 'is_valid' in table.columns and 'is_valid' not in label_columns:
        states = read_states(
            table.column('is_valid'), partial(table.where, column='is_valid'), 'unannotated', 'unannotated'
        )
        if -1 in states:
            raise InputError(f'{table.where(states.index(-1), "is_valid")} is neither true nor false.')
        if is_file or len(set(states)) > 1:
            splits, way = [('train', 'validation')[state] for state in states], 'by the column is_valid'
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


def check_split(table: Table, split: str) -> None:
    """Raises InputError where a column of a split's own table has rows of another split."""
    if 'split' in table.columns:
        found = [of_split(value) for value in table.column('split')]
        if None in found:
            return  # a column of something else
        what = "the column 'split'"
    elif 'is_valid' in table.columns:
        states = [state_of(value) for value in table.column('is_valid')]
        if set(states) != {0, 1}:
            return
        found, what = [('train', 'validation')[state] for state in states], "the column 'is_valid'"
    else:
        return
    for row, other in enumerate(found):
        if other != split:
            raise InputError(
                f'{table.where(row)}: is of {other} by {what}, but stands in the table of {split}: leave the row or the'
                ' column out.'
            )


def _take(table: Table, rows: list[int]) -> Table:
    def column(name: str) -> list:
        values = table.column(name)
        return [values[row] for row in rows]

    return replace(table, numbers=[table.numbers[row] for row in rows], column=column)
