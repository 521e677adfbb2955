"""The images that the rows of a table name: their column, their files, and rows that name the same image."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from .columns import ColumnSettings
from .formats import is_image
from .records import locate
from .table_files import Table
from .table_splits import folder_split
from .text import is_one_line, join_names, quote

__all__ = ['IMAGE_COLUMNS', 'Images', 'find_image_column', 'find_images', 'read_image_ids']

IMAGE_COLUMNS = {'table': ('image', 'file_name', 'path'), 'folder': ('file_name',), 'roboflow': ('filename',)}
# Further names of the image column of a `table`, in lower case, if its first cell names an image that exists
OTHER_COLUMNS = tuple(
    'file filename filepath file_path fname guid id image_file image_id image_name image_path imageid imagename'
    ' imagepath img img_id img_name img_path name photo picture'.split()
)


@dataclass
class Images:
    """Images of a table.

    Attributes:
        paths: Path of each image.
        names: Name of each image as written in its first row.
        of_rows: Number of the image of each row (N,).
        notes: Lines on how they were found.
    """

    paths: list[str]
    names: list[str]
    of_rows: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def first_rows(self) -> np.ndarray:
        """First row of each image."""
        return np.unique(self.of_rows, return_index=True)[1]


def find_image_column(table: Table, name: str, settings: ColumnSettings) -> str:
    """Returns the column that names the images.

    Args:
        table: Table of one or all splits.
        name: `table`, `folder` or `roboflow`.
        settings: Settings of the columns.

    Raises:
        InputError: There is no such column, or several.
    """
    usual = (settings.image_column,) if settings.image_column else IMAGE_COLUMNS[name]
    for column in usual:
        if column in table.columns:
            return column
    found = {}
    if name == 'table' and not settings.image_column and len(table.numbers):
        first = table.select(np.arange(1))
        for column in table.columns:
            if column.strip().lower().replace(' ', '_') in OTHER_COLUMNS:
                image = str(first.column(column)[0])
                root, suffix = _place(table, settings)
                files = [_Files(folder, suffix).find(image) for folder in _find_folders(root, suffix, image)]
                if files:
                    found.setdefault(tuple(files), column)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        both = ' and '.join(map(repr, found.values()))
        raise InputError(f'{table.path}: the columns {both} name images: set data.image_column to one of them.')
    wanted = repr(usual[0]) if len(usual) == 1 else ' or '.join(usual)
    raise InputError(
        f'{table.path}: has no column {wanted} (found: {join_names(table.columns)}): set data.image_column to the'
        ' column of the images.'
    )


def find_images(table: Table, column: str, name: str, settings: ColumnSettings, split: str) -> Images:
    """Finds the images of a table.

    Args:
        table: Rows of one split.
        column: Column that names the images.
        name: `table`, `folder` or `roboflow`.
        settings: Settings of the columns.
        split: Split of the rows.

    Raises:
        InputError: An image does not exist, or two rows name the same one and `repeated_images` does not unite them.
    """
    files, number_of, names, of_rows = None, {}, [], []
    for _, where, written in _texts(table, column, 'path'):
        if not written.strip():
            raise InputError(f'{where}: {column!r} is empty: name an image, or remove the row.')
        if files is None:
            files = _open(table, written, settings, split if name == 'table' else None, where)
        path = files.find(written, where)
        if path is None:
            raise InputError(
                f'{where}: the image {quote(written)} is not in {files.root}: set data.image_root to the folder of'
                ' images.'
            )
        if path not in number_of:
            number_of[path] = len(number_of)
            names.append(written)
        elif settings.repeated_images == 'error':
            earlier = table.numbers[of_rows.index(number_of[path])]
            raise InputError(
                f'{where}: {quote(written)} is already in {table.unit} {earlier}: remove one of them, or set'
                ' data.repeated_images to unite.'
            )
        of_rows.append(number_of[path])
    if files is None:  # a damaged file whose rows are lost
        raise InputError(f'{table.path}: has no rows.')
    notes = files.notes(None if column in (settings.image_column, *IMAGE_COLUMNS[name]) else column)
    if len(names) < len(of_rows):
        notes.append(
            f'repeated images: the labels of {len(of_rows)} rows are united to {len(names)} images'
            ' (data.repeated_images)'
        )
    return Images(list(number_of), names, np.array(of_rows), notes)


def read_image_ids(table: Table, images: Images) -> list[str]:
    """Returns the `image_id` in the first row of each image.

    Raises:
        InputError: Two images have the same one.
    """
    rows_of: dict[str, int] = {}
    is_first = np.zeros(len(images.of_rows), bool)
    is_first[images.first_rows] = True
    for row, where, image_id in _texts(table, 'image_id', 'name'):
        if not image_id:
            raise InputError(f"{where}: 'image_id' is empty: fill it, or remove the column.")
        if is_first[row]:
            if image_id in rows_of:
                earlier = f'{table.unit} {table.numbers[rows_of[image_id]]}'
                raise InputError(f"{where}: the 'image_id' {quote(image_id)} is already in {earlier}.")
            rows_of[image_id] = row
    return list(rows_of)


def _texts(table: Table, column: str, what: str) -> Iterator[tuple[int, str, str]]:
    """Yields row, location and text of each cell; integers are accepted as names."""
    for row, value in enumerate(table.column(column)):
        where = table.where(row)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise InputError(f'{where}: {column!r} has the {what} {quote(value)}, which is not text.')
        if not is_one_line(value):
            raise InputError(
                f'{where}: {column!r} has the {what} {quote(value)}, which contains a line break or a NUL character.'
            )
        yield row, where, value


class _Files:
    """Finds images by their names in a table.

    Args:
        root: Folder of the images.
        suffix: Suffix that names lack, or None to find it.
        folder: Name of the folder for the notes, if it was found.
    """

    def __init__(self, root: Path, suffix: str | None, folder: str | None = None):
        self.root, self._suffix, self._folder = root, suffix, folder
        self._suffixes: set[str] = set()
        self._has_backslashes = False
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, where: str | None = None) -> str | None:
        """Returns the path of an image; None if it does not exist.

        Args:
            name: Name as written, perhaps without suffix, or with backslashes.
            where: File and row, for messages; None to return None for a name outside of the folder.

        Raises:
            InputError: The name is that of several images, or is outside of the folder.
        """
        try:
            path = str(locate(self.root, name, where))
        except InputError:
            if where is None:
                return None
            raise
        if os.path.isfile(path):
            return path
        found = [path + self._suffix] if self._suffix else self._same_stem(path)
        if len(found) > 1:
            files = ' or '.join(map(os.path.basename, sorted(found)))
            raise InputError(
                f'{where or self.root}: {quote(name)} may be {files}: set data.image_suffix to the suffix of the'
                ' images.'
            )
        if found and os.path.isfile(found[0]):
            self._suffixes.add(found[0][len(path) :])
            return found[0]
        if '\\' in name and (other := self.find(name.replace('\\', '/'), where)):
            self._has_backslashes = True
            return other
        return None

    def notes(self, column: str | None) -> list[str]:
        """Returns a line on what differs from the table as written; `column` names an unusual image column."""
        parts = [f'column {column!r} (data.image_column)'] if column else []
        parts += [f'in the folder {self._folder} (data.image_root)'] if self._folder else []
        if self._suffixes:
            parts.append(f'names without suffix, found with {", ".join(sorted(self._suffixes))} (data.image_suffix)')
        parts += ['backslashes in paths are read as slashes'] if self._has_backslashes else []
        return [f'images: {"; ".join(parts)}'] if parts else []

    def _same_stem(self, path: str) -> list[str]:
        """Returns the image files whose path without suffix is the given one."""
        folder, stem = os.path.split(path)
        if folder not in self._listed:
            self._listed[folder] = defaultdict(list)
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                self._listed[folder][os.path.splitext(name)[0]].append(name)
        files = [Path(folder, name) for name in self._listed[folder].get(stem, ())]
        return [str(file) for file in files if is_image(file)]


def _place(table: Table, settings: ColumnSettings) -> tuple[Path, str | None]:
    """Returns the folder of the images by the settings, and the suffix that names lack."""
    suffix = settings.image_suffix and f'.{settings.image_suffix.removeprefix(".")}'
    return Path(os.path.abspath(settings.image_root or Path(table.path).parent)), suffix


def _find_folders(root: Path, suffix: str | None, image: str) -> list[Path]:
    """Returns the folder if it holds an image, else its subfolders that do."""
    if not image.strip() or not is_one_line(image):
        return []
    if _Files(root, suffix).find(image):
        return [root]
    found = []
    for folder, subfolders, _ in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.'))
        if folder != str(root) and _Files(Path(folder), suffix).find(image):
            found.append(Path(folder))
    return found


def _open(table: Table, first: str, settings: ColumnSettings, split: str | None, where: str) -> _Files:
    """Opens the folder of the images: `image_root`, else that of the table, else its only subfolder with the first one.

    Args:
        table: Table that names the images.
        first: Name of the first image.
        settings: Settings of the columns.
        split: Split whose folder counts if several hold the first image; None to search no subfolders.
        where: File and row, for messages.
    """
    root, suffix = _place(table, settings)
    files = _Files(root, suffix)
    if settings.image_root is not None or split is None or files.find(first, where):
        return _Files(root, suffix)
    found = _find_folders(root, suffix, first)
    of_split = [folder for folder in found if folder_split(f'{folder}/x', str(root)) == split]
    chosen = of_split if len(found) > 1 and len(of_split) == 1 else found
    if len(chosen) > 1:
        names = ' and '.join(os.path.relpath(folder, root) for folder in chosen[:2])
        raise InputError(
            f'{where}: the image {quote(first)} is in several folders ({names}): set data.image_root to the folder of'
            ' images.'
        )
    return _Files(chosen[0], suffix, os.path.relpath(chosen[0], root)) if chosen else files
