"""Reader of tables of your own images: CSV, TSV, JSON Lines or Parquet, one file per split or one for all."""

import os
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..errors import InputError, NoSplitError, unknown
from .columns import ColumnSettings, find_label_columns, labels_note, match_names
from .label_reader import find_format, holds_states, read_labels
from .records import Records, cached
from .table_files import Table, read_table
from .table_images import IMAGE_COLUMNS, find_image_column, find_images, read_image_ids
from .table_splits import (
    SPLITS,
    SUFFIXES,
    check_split,
    find_files,
    find_only_table,
    no_split,
    split_by_fold,
    split_rows,
    suggest_fold,
)
from .text import join_names

__all__ = ['load']


def load(name: str, split: str, root: str | None, settings: ColumnSettings) -> Dataset:
    """Loads one split of a `table` or `folder`.

    A column that lists labels holds lists, lists that tools wrote as text, or delimited text. An empty cell means no
    label; the labels of the column `ignore` are unannotated. A column of one label holds 1 or true, 0 or false, -1, or
    nothing, which `minus_one` and `blank` interpret. A single label column is of this kind if it holds nothing else and
    is not called `labels`. Images are named by the column `image_id`, else by their path as written.

    Args:
        name: `table`, `folder` or `roboflow`.
        split: `train`, `validation` or `test`.
        root: Folder of the tables, or a single table.
        settings: Settings of the columns.

    Raises:
        InputError: The table is missing or invalid; the message names file and row.
    """
    if split not in SPLITS:
        raise unknown(f'split of a {name}', split, SPLITS)
    if not root:
        what = 'the folder of train.csv etc., or one file' if name == 'table' else 'the folder of metadata.csv'
        raise InputError(f'{name} needs data.root: set it to {what}.')
    base = Path(os.path.abspath(root))
    is_only = False
    if name == 'table' and base.is_dir() and (only := find_only_table(base)):
        base, is_only = only, True
    is_file = name == 'table' and base.is_file()
    if is_file and base.suffix.lower() not in SUFFIXES[name]:
        raise InputError(f'{base}: is not a table: its suffix must be one of {", ".join(SUFFIXES[name])}.')
    files = {'train': base} if is_file else find_files(name, base)
    # A single table above all splits may hold the rows of several splits.
    is_single = is_file or list(files) == ['train'] and files['train'].parent == base
    has_folds = settings.validation_fold is not None and not is_single
    if has_folds and 'validation' in files:
        raise InputError(f'{base}: data.validation_fold is set, but {files["validation"]} is the validation split.')
    source = 'train' if has_folds and split == 'validation' else split
    if source not in files and not is_single:
        raise no_split(name, split, base, files)
    # Without `label_names`, all splits determine the names: each label needs the same index in training and validation.
    used = {key: path for key, path in files.items() if is_single or settings.label_names is None or key == source}
    for path in used.values():
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: permission denied.')

    def read_records() -> Records:
        columns = (settings.image_column,) if settings.image_column else IMAGE_COLUMNS[name]
        tables = {key: read_table(path, set(columns)) for key, path in used.items()}
        notes = [*([f'table: {base.name}'] if is_only else []), *tables[next(iter(tables))].notes]
        labels = settings.label_columns or settings.label_names or ()
        if settings.validation_fold is not None and 'train' in tables:
            divided, rule = split_by_fold(tables.pop('train'), settings.validation_fold, labels)
            tables = {**divided, **tables}
            notes = [*notes, f'splits: {rule}']
        elif is_single:
            image = find_image_column(tables['train'], name, settings)
            tables, rule = split_rows(tables['train'], image, labels, settings.image_root, is_file, name == 'folder')
            notes = notes + ([f'splits: {rule}'] if rule else [])
        else:
            rule = None
            for key, table in tables.items():
                check_split(table, key)
        if split not in tables and rule is None and not is_file:
            raise no_split(name, split, base, files)
        if split not in tables and rule is None:
            raise NoSplitError(
                f'{base}: has no column split, so all its rows belong to train, none to {split}'
                f'{suggest_fold(tables["train"], split)}.'
            )
        if split not in tables:
            raise NoSplitError(f'{base}: has no row of {split} {rule} (found: {join_names(tables) or "none"}).')
        records = _Reader(name, settings).read(tables, split)
        return replace(records, notes=[*notes, *records.notes])

    image_root = settings.image_root and os.path.abspath(settings.image_root)
    return cached(
        read_records,
        used.values(),
        name=name,
        split=split,
        files=[str(path) for path in used.values()],
        is_single=is_single,
        **asdict(replace(settings, image_root=image_root)),
    )


class _Reader:
    """Reads the rows of tables.

    Args:
        name: `table` or `folder`.
        settings: Settings of the columns.
    """

    def __init__(self, name: str, settings: ColumnSettings):
        self.name, self.settings = name, settings

    def read(self, tables: dict[str, Table], split: str) -> Records:
        """Reads the rows of one split; those of the others may determine the label names."""
        table, settings, names = tables[split], self.settings, self.settings.label_names
        if not len(table.numbers):
            raise InputError(f'{table.path}: contains no rows.')
        image = find_image_column(table, self.name, settings)
        columns, is_binary = self._columns(table, image)
        others = [other for key, other in tables.items() if key != split]
        if not is_binary or names is None:
            found = {key: self._columns(other, image) for key, other in tables.items()}
            kinds = [kind for _, kind in found.values() if kind is not None]
            is_binary = kinds[0] if is_binary is None and kinds else is_binary
            for key, (columns_of_other, kind) in found.items():
                is_same = set(columns) == set(columns_of_other) if is_binary else columns == columns_of_other
                if not is_same or kind is not None and kind != is_binary:
                    raise InputError(
                        f'{tables[key].path}: its label columns ({join_names(columns_of_other)}) differ from those of'
                        f' {table.path} ({join_names(columns)}): make them the same, or set data.label_columns.'
                    )
            columns_of_first = found[next(iter(tables))][0]
        is_binary = not settings.label_columns if is_binary is None else is_binary
        if is_binary:
            names = match_names(columns, columns_of_first if names is None else names, settings.none_label, table.path)
        format = find_format([table, *others], names if is_binary else columns, is_binary, settings, names)
        note = f'labels: column {columns[0]!r}'
        if is_binary:
            used = {image, *columns, 'ignore', 'image_id'}
            unused = [''] * table.num_unnamed + [name for name in table.columns if name not in used]
            note = labels_note(columns, unused)
        format = replace(format, note=note + format.ending)
        images = find_images(table, image, self.name, settings, split)
        is_repeated = len(images.paths) < len(images.of_rows)
        labels = read_labels(format, table, settings, others, images.of_rows if is_repeated else None)
        ids = read_image_ids(table, images) if 'image_id' in table.columns else images.names
        records = Records(
            labels.names,
            images.paths,
            labels.present,
            labels.ignore,
            [[] for _ in ids],
            ids,
            notes=[*images.notes, *labels.notes],
        )
        is_to_repeat = is_repeated and settings.repeated_images == 'repeat' and split == 'train'
        return _repeat(records, images.of_rows) if is_to_repeat else records

    def _columns(self, table: Table, image: str) -> tuple[list[str], bool | None]:
        """Returns the label columns, and whether each of them holds the state of one label; None if it is empty."""
        settings = self.settings
        if image not in table.columns:
            image = find_image_column(table, self.name, settings)
        columns = find_label_columns(table.columns, image, settings, table.path)
        if len(columns) > 1 or columns == ['labels']:
            return columns, len(columns) > 1
        return columns, holds_states(columns[0], table.distinct(columns[0])[0], settings)


def _repeat(records: Records, of_rows: np.ndarray) -> Records:
    """Returns each image once for each row of the table; all but the first get a number in `image_id`."""
    counts, ids = Counter(), []
    for number in of_rows.tolist():
        counts[number] += 1
        ids.append(records.image_ids[number] + (f' ({counts[number]})' if counts[number] > 1 else ''))
    return replace(
        records,
        images=[records.images[number] for number in of_rows],
        labels=records.labels.take(of_rows),
        ignore=records.ignore.take(of_rows),
        areas=[[] for _ in ids],
        image_ids=ids,
    )
