"""Columns of tables and Hub data sets: the settings that choose them, and which columns hold labels."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..errors import InputError, unknown
from .text import check_names, join_names

__all__ = ['MEANINGS', 'NOT_LABELS', 'ColumnSettings', 'find_label_columns', 'labels_note', 'match_names']

MEANINGS = ('unannotated', 'absent')  # of -1 and of blank
# Columns that tools and public data sets write beside one column per label, in lower case. Columns without a name, and
# those that pandas names `Unnamed: 0` or `__index_level_0__`, are not labels either.
NOT_LABELS = tuple(
    # names, locations and sizes of the image
    'area coco_url date_captured file file_name file_path filename filepath flickr_url fname guid height id image'
    ' image_file image_height image_id image_name image_path image_url image_width imageid imagename imagepath img'
    ' img_id img_name img_path license md5 path sha1 sha256 uri url uuid width'
    # the split, and other partitions of the rows
    ' cv_fold data_split fold folds is_test is_train is_training is_val is_valid is_validation kfold partition phase'
    ' split subset usage'
    # row numbers
    ' index level_0 level_1 row_id rowid'
    # other columns of annotation tools and of this package
    ' annotator annotator_id created_at crowd group_id ignore is_crowd iscrowd timestamp updated_at worker_id'.split()
)
PANDAS_INDEX = re.compile(r'(unnamed: \d+(\.\d+)?(_level_\d+)?|__index_level_\d+__)?')


@dataclass(frozen=True)
class ColumnSettings:
    """Settings of columns and cells; the attributes are the arguments of the same names of `msff_timm.data.load`."""

    image_column: str | None = None
    label_columns: Sequence[str] | None = None
    label_names: Sequence[str] | None = None
    label_delimiter: str | None = None
    minus_one: str = 'unannotated'
    blank: str = 'unannotated'
    image_root: str | None = None

    def check(self) -> None:
        """Raises `InputError` for a setting that is not allowed."""
        if self.label_delimiter == '':
            raise InputError(
                'data.label_delimiter is empty: set it to the text between two labels, or to none if each text is one'
                ' label.'
            )
        for setting, meaning in (('minus_one', self.minus_one), ('blank', self.blank)):
            if meaning not in MEANINGS:
                raise unknown(f'data.{setting}', str(meaning), MEANINGS)
        check_names('data.label_names', self.label_names)
        check_names('data.label_columns', self.label_columns)


def find_label_columns(columns: Collection[str], image: str, settings: ColumnSettings, where: object) -> list[str]:
    """Returns the label columns: those of the settings, else `labels`, else all that are not in `NOT_LABELS`.

    Args:
        columns: Names of all columns.
        image: Name of the image column.
        settings: Settings of the columns.
        where: File or split, for the message.

    Raises:
        InputError: There is no label column, or one of the settings does not exist.
    """
    others = [name for name in columns if name != image]
    for name in settings.label_columns or ():
        if name not in others:
            raise InputError(f'{where}: {unknown("label column", name, others)}')
    if settings.label_columns:
        return list(settings.label_columns)
    if 'labels' in columns:
        return ['labels']
    found = [name for name in others if is_label(name, settings.label_names)]
    if not found:
        raise InputError(
            f'{where}: has no label column (found: {join_names(columns)}): set data.label_columns to the label columns.'
        )
    return found


def is_label(column: str, label_names: Collection[str] | None) -> bool:
    """Returns whether a column of a table with one column per label holds a label, judged by its name."""
    if label_names is not None and column in label_names:
        return True
    name = column.strip().lower()
    return not (name.replace(' ', '_') in NOT_LABELS or PANDAS_INDEX.fullmatch(name))


def match_names(columns: Sequence[str], label_names: Sequence[str] | None, where: object) -> list[str]:
    """Returns the names of the label columns in the order of `label_names`.

    Raises:
        InputError: The columns and the names are not the same set.
    """
    for column in columns:
        if label_names is not None and column not in label_names:
            raise InputError(f'{where}: {unknown("label column", column, label_names)}')
    for name in label_names or ():
        if name not in columns:
            raise InputError(f'{where}: has no column for the label {name!r} of data.label_names.')
    return list(label_names or columns)


def labels_note(labels: Sequence[str], others: Sequence[str]) -> str:
    """Returns a line that lists the label columns and the other ones."""
    line = f'labels: {len(labels)} column{"s" if len(labels) > 1 else ""} ({join_names(labels)})'
    return line + (f'; not labels: {join_names([name or "(no name)" for name in others])}' if others else '')
