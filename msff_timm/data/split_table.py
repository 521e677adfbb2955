"""Divides a data set into splits or folds, and writes them as a table that gives the same labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from datasets import Dataset, Image, concatenate_datasets

from ..errors import InputError, NoSplitError, unknown
from ..files import check_file, replace_file
from . import SPLITS, label_names, load
from .columns import is_label
from .images import undecoded
from .label_cells import is_missing
from .label_lists import find_lists
from .samples import Samples
from .splitting import divide
from .table import IMAGE_COLUMNS
from .table_files import read_table
from .table_splits import SUFFIXES, find_files
from .text import join_names, quote

__all__ = ['Division', 'split']

DELIMITER = '|'
GROUP_COLUMN = 'group_id'


@dataclass
class Division:
    """A data set that was divided.

    Attributes:
        path: Table that was written.
        image_root: Folder that its image paths are relative to; None for the folder of the table.
        parts: Images of each split or fold.
        notes: Lines on how it was divided.
    """

    path: Path
    image_root: str | None
    parts: dict[str, Dataset]
    notes: list[str]


def split(
    name: str,
    root: str | None,
    *,
    validation: float | None = None,
    test: float | None = None,
    folds: int | None = None,
    splits: Sequence[str] | None = None,
    group: str | None = None,
    seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
    **arguments: object,
) -> Division:
    """Divides a data set into splits or folds, and writes a table of them.

    Each part gets about the same share of each label. Images of the same content or group stay together.

    Args:
        name: Name of the data set, as for `msff_timm.data.load`.
        root: Folder or table, as for `load`.
        validation: Share of the validation images.
        test: Share of the test images; None keeps the test split of the data, if there is one.
        folds: Number of folds, in place of splits.
        splits: Splits of the data to divide; None for `train`.
        group: Column of the table; images with the same value in it stay together.
        seed: Seed, see `msff_timm.data.splitting.stratify`.
        output: Table to write (.csv); None for `split.csv` beside the table or in the folder.
        overwrite: True to replace an existing file.
        **arguments: Further arguments of `load`.

    Raises:
        InputError: An argument is invalid, or the data cannot be loaded, divided or written.
    """
    shares = _shares(validation, test, folds, seed)
    divided = {key: load(name, key, root, **arguments) for key in splits or ('train',)}
    images = _image_paths(divided, name)
    kept = {} if splits else _other_splits(name, root, arguments)
    if folds:
        notes, kept = [f'not in the table: {join_names(kept)}'] if kept else [], {}
    else:
        notes = [f'not divided: {join_names(kept)}'] if kept else []
    for key in kept:
        if key in shares:
            raise InputError(
                f'{root or name}: has a split {key} already: choose the splits to divide, e.g. --splits train {key} for'
                ' both.'
            )
    names, *others = map(label_names, (*divided.values(), *kept.values()))
    if any(other != names for other in others):
        raise InputError(f'{root}: its splits have different labels: choose them with --label-names.')
    rows = concatenate_datasets([*divided.values(), *kept.values()])
    images += _image_paths(kept, name)
    path = _check_output(Path(str(root)), output, overwrite)
    groups = None if group is None else _read_groups(Path(str(root)), group, rows, arguments)

    to_divide = range(sum(map(len, divided.values())))
    numbers, units = divide(rows.select(to_divide), [*shares.values()], groups and groups[: len(to_divide)], seed)
    sizes = np.bincount(units)
    if together := sizes[sizes > 1].tolist():
        of = 'the same content' + (f' or {group}' if group else '')
        notes.append(f'kept together: {sum(together):,} images of {of}, in {len(together):,} units')
    parts = [[*shares][number] for number in numbers] + [key for key in kept for _ in range(len(kept[key]))]

    base = _image_root(images, path.parent, arguments.get('image_root'))
    columns = {'image': [os.path.relpath(image, base).replace(os.sep, '/') for image in images]}
    columns |= _label_columns(rows, names, '-1' if arguments.get('blank') == 'absent' else '')
    if groups is not None:
        columns[GROUP_COLUMN] = groups
    columns['fold' if folds else 'split'] = parts
    with replace_file(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    part_of = np.array(parts)
    found = {f'fold {key}' if folds else key: rows.select(np.flatnonzero(part_of == key)) for key in (*shares, *kept)}
    return Division(path, None if base == str(path.parent) else base, found, notes)


def _shares(validation: float | None, test: float | None, folds: int | None, seed: int) -> dict[str | int, float]:
    """Returns the share of each split or fold."""
    if (validation is None) == (folds is None) or (folds is not None and test is not None):
        raise InputError('choose either --validation, with or without --test, or --folds.')
    if seed < 0:
        raise InputError(f'--seed is {seed}: must be at least 0.')
    if folds is not None:
        if folds < 2:
            raise InputError(f'--folds is {folds}: must be at least 2.')
        return dict.fromkeys(range(folds), 1 / folds)
    shares = {'validation': validation, 'test': test or 0.0}
    for option, share in (('validation', validation), ('test', test)):
        if share is not None and not 0 < share < 1:
            raise InputError(f'--{option} is {share:g}: must be a share of the images, between 0 and 1.')
    train = 1 - sum(shares.values())
    if train <= 1e-9:
        raise InputError(f'--validation {validation:g} and --test {test:g} leave no images for training.')
    return {'train': train, **{key: share for key, share in shares.items() if share}}


def _other_splits(name: str, root: str | None, arguments: dict) -> dict[str, Dataset]:
    """Loads the splits other than `train` that the data have."""
    found = {}
    for key in ('validation', 'test'):
        if key in SPLITS.get(name, (key,)):
            try:
                found[key] = load(name, key, root, **arguments)
            except NoSplitError:
                pass
    return found


def _check_output(root: Path, output: str | None, overwrite: bool) -> Path:
    path = Path(os.path.abspath(output or (root if root.is_dir() else root.parent) / 'split.csv'))
    if path.suffix != '.csv':
        raise InputError(f'--output is {output}: must end in .csv.')
    if path.exists() and not overwrite:
        raise InputError(f'{path}: exists already: choose another file with -o FILE, or add --overwrite.')
    check_file(path, '--output', parents=False)
    return path


def _image_paths(parts: dict[str, Dataset], name: str) -> list[str]:
    """Returns the absolute path of each image.

    Raises:
        InputError: Images are drawn, or within Parquet files.
    """
    paths = []
    for rows in parts.values():
        images = undecoded(rows)['image'][:] if isinstance(rows.features['image'], Image) else None
        if images is None or any(image['bytes'] is not None for image in images):
            raise InputError(
                f'{name}: its images are not files, so no table can name them: set data.validation, to hold out images'
                ' when you train.'
            )
        paths += [os.path.abspath(image['path']) for image in images]
    return paths


def _image_root(images: Sequence[str], folder: Path, image_root: object) -> str:
    """Returns the folder that image paths start from: that of the table if possible, else one above all images."""
    for base in (str(folder), *([os.path.abspath(str(image_root))] if image_root else [])):
        if all(Path(image).is_relative_to(base) for image in images):
            return base
    return os.path.commonpath([os.path.dirname(image) for image in images])


def _read_groups(root: Path, column: str, rows: Dataset, arguments: dict) -> list[str | None]:
    """Returns the value of a column of the table for each image; None for an empty cell."""
    wanted = arguments.get('image_column')
    image_columns = (wanted,) if wanted else IMAGE_COLUMNS['table']
    groups: dict[str, str | None] = {}
    for path in _find_tables(root):
        table = read_table(path, set(image_columns))
        if column not in table.columns:
            raise InputError(f'{path}: {unknown("column of --group", column, table.columns)}')
        key = next(name for name in ('image_id', *image_columns) if name in table.columns)
        for row, (image_id, value) in enumerate(zip(table.column(key), table.column(column), strict=True)):
            group = None if is_missing(value) else str(value).strip()
            if groups.setdefault(str(image_id), group) != group:
                raise InputError(
                    f'{table.where(row, column)} is {quote(value)}, but the image is in another group too.'
                )
    for image_id in rows['image_id'][:]:
        if image_id not in groups:
            raise InputError(f'--group is {column}: no table in {root} names the image {quote(image_id)}.')
    return [groups[image_id] for image_id in rows['image_id'][:]]


def _find_tables(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() in SUFFIXES['table'] else []
    for kind in ('table', 'folder'):
        with suppress(InputError):
            return list(find_files(kind, root).values())
    return []


def _label_columns(rows: Dataset, names: list[str], unannotated: str) -> dict[str, list[str]]:
    """Returns the column `labels` if it gives the same labels, else one column for each label.

    Args:
        rows: Data set.
        names: Label names in the order of the logits.
        unannotated: Cell of an unannotated label.

    Raises:
        InputError: A label name cannot be that of a column.
    """
    labels = [[names[k] for k in row] for row in rows['labels'][:]]
    cells = [DELIMITER.join(row) for row in labels]
    if not any(rows['ignore'][:]) and names == sorted(set(chain.from_iterable(labels))):
        try:
            lists, _ = find_lists(cells, None, None, '')
            if all(lists.read(cell, '') == row for cell, row in zip(cells, labels, strict=True)):
                return {'labels': cells}
        except InputError:  # cells that can be read in two ways
            pass
    for name in names:
        if name == 'labels' or name != name.strip() or not is_label(name, None):
            raise InputError(f'the label {quote(name)} cannot be the name of a column of labels: rename it.')
    cells = np.array(['0', '1', unannotated])[Samples(rows, None).targets]  # type: ignore[arg-type] # loads no image
    return dict(zip(names, cells.T.tolist(), strict=True))
