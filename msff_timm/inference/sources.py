"""Images to predict: in files, folders, lists, tables, WebDatasets and data sets of the Hub."""

import glob
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ..data.formats import is_image
from ..data.images import open_image, open_row
from ..errors import InputError, one_line
from ..files import replace_file

if TYPE_CHECKING:
    import datasets

__all__ = ['Entry', 'ImageList', 'Sources', 'find_images', 'list_entries', 'open_entry', 'open_rows']

TABLES = ('.csv', '.jsonl', '.parquet', '.tsv')
IMAGE_COLUMNS = ('image', 'file_name', 'path')
COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.tar.zst')
HUB = 'hub:'

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """An image of a list.

    Attributes:
        name: Name of the image in the output.
        path: File that holds it; None for a row of a Hub data set.
        offset: Place in the file in bytes, or the row of the Hub data set.
        size: Number of bytes in an archive; None for a whole file.
    """

    name: str
    path: str | None
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Sources:
    """Where the images are.

    Attributes:
        paths: Image files, folders, globs, lists (`@FILE`, one path on each line), tables, `.tar` files of a
            WebDataset, or `hub:` and the id or folder of a data set.
        recursive: True to search folders with their subfolders.
        image_column: Column of a table or Hub data set that names or holds the images; None selects `image`,
            `file_name` or `path`.
        image_root: Folder of the images of a table; None for the folder of the table.
        split: Split of a Hub data set; None if it has only one.
    """

    paths: Sequence[str]
    recursive: bool = True
    image_column: str | None = None
    image_root: str | None = None
    split: str | None = None


def find_images(patterns: Sequence[str], recursive: bool = False) -> list[str]:
    """Lists the images that files, folders and globs name, in the given order.

    A folder or a glob contributes files that are an image or a camera's raw file by their name or content, but no
    hidden files, documents or videos. A file named directly is always listed, and so is an image that cannot be read:
    `predict` reports it.

    Args:
        patterns: Files, folders and globs.
        recursive: True to search folders with their subfolders. Hidden subfolders and links to folders are left out.

    Raises:
        InputError: A folder cannot be read or holds no image, or a glob matches none.

    Examples:
        >>> from PIL import Image
        >>> Image.new('RGB', (8, 8)).save('1.png')
        >>> Path('notes.txt').touch()
        >>> find_images(['.'])
        ['1.png']
    """
    return [image for pattern in patterns for image in _find(pattern, recursive)]


def _find(pattern: str, recursive: bool) -> Iterator[str]:
    Image.init()
    if os.path.isdir(pattern):
        found = _walk(pattern, recursive)
    elif glob.has_magic(pattern) and not os.path.lexists(pattern):
        found = (path for path in sorted(glob.iglob(pattern, recursive=True)) if is_image(Path(path)))
    else:
        found = iter([pattern])
    first = next(found, None)
    if first is None:
        raise InputError(f'{pattern}: no image found.')
    yield first
    yield from found


def _walk(top: str, recursive: bool) -> Iterator[str]:
    def report(error: OSError) -> None:
        if error.filename == top:
            raise InputError(f'{top}: cannot be read ({one_line(error)}).') from None
        log.warning('%s: left out, cannot be read (%s).', error.filename, one_line(error))

    for folder, subfolders, names in os.walk(top, onerror=report):
        subfolders[:] = sorted(name for name in subfolders if recursive and not name.startswith('.'))
        for name in sorted(names):
            if is_image(path := Path(folder, name)):
                yield str(path)


def list_entries(sources: Sources, rows: 'datasets.Dataset | None' = None) -> Iterator[Entry]:
    """Lists the images of sources, always in the same order: sorted in each folder, else as they are stored.

    Args:
        sources: Sources of the images.
        rows: Rows of the Hub data set, from `open_rows`.

    Raises:
        InputError: A source cannot be read or holds no image.
    """
    for path in sources.paths:
        suffix = os.path.splitext(path)[1].lower()
        if path.startswith('@') and not os.path.exists(path):
            yield from _nonempty(_read_list(path[1:]), path)
        elif _is_hub(path):
            names = rows['image_id'] if 'image_id' in rows.column_names else None
            for row in range(len(rows)):
                yield Entry(f'{path}#{row}' if names is None else str(names[row]), None, row)
        elif os.path.isfile(path) and suffix in TABLES:
            yield from _nonempty(_read_table(path, sources), path)
        elif os.path.isfile(path) and suffix == '.tar':
            yield from _nonempty(_read_archive(path), path)
        elif path.lower().endswith(COMPRESSED):
            raise InputError(f'{path}: is compressed, so its images cannot be read one by one: give a .tar file.')
        else:
            yield from (Entry(image, image) for image in _find(path, sources.recursive))


def _is_hub(path: str) -> bool:
    return path.startswith(HUB) and not os.path.exists(path)


def _nonempty(entries: Iterable[Entry], path: str) -> Iterator[Entry]:
    entries = iter(entries)
    first = next(entries, None)
    if first is None:
        raise InputError(f'{path}: names no image.')
    yield first
    yield from entries


def _read_list(path: str) -> Iterator[Entry]:
    try:
        with open(path, 'rb') as file:
            for line in file:
                if name := os.fsdecode(line.rstrip(b'\r\n')):
                    yield Entry(name, name)
    except OSError as e:
        raise InputError(f'{path}: cannot be read as a list of images ({one_line(e)}).') from None


def _read_table(path: str, sources: Sources) -> Iterator[Entry]:
    from ..data.records import locate  # needs the `bulk` extra
    from ..data.table_files import read_table

    wanted = (sources.image_column,) if sources.image_column else IMAGE_COLUMNS
    table = read_table(Path(path), set(wanted))
    column = next((name for name in wanted if name in table.columns), None)
    if column is None:
        raise InputError(
            f'{path}: has no column {" or ".join(wanted)} (found: {", ".join(table.columns)}): name it by'
            ' --image-column.'
        )
    root = Path(sources.image_root or os.path.dirname(path))
    for row, name in enumerate(table.column(column)):
        where = table.where(row, column)
        if not isinstance(name, str) or not name:
            raise InputError(f'{where}: must be the path of an image; give hub:FOLDER for images inside of the file.')
        yield Entry(name, str(locate(root, name, where)))


def _read_archive(path: str) -> Iterator[Entry]:
    known = Image.registered_extensions()
    try:
        with tarfile.open(path, 'r:') as archive:
            for member in archive:
                name, suffix = os.path.basename(member.name), os.path.splitext(member.name)[1].lower()
                if member.isfile() and suffix in known and not name.startswith('.'):
                    yield Entry(f'{path}/{member.name}', path, member.offset_data, member.size)
                archive.members.clear()  # it would hold all of them
    except (tarfile.TarError, OSError) as e:
        raise InputError(f'{path}: cannot be read as a .tar file ({one_line(e)}).') from None


def open_rows(sources: Sources) -> 'datasets.Dataset | None':
    """Opens the Hub data set among sources; None if there is none.

    Returns:
        Rows with the columns `image`, whose images are not decoded, and, if the data set has ids, `image_id`.

    Raises:
        InputError: The data set cannot be loaded, or it is not clear which split or column is meant.
    """
    roots = [path.removeprefix(HUB) for path in sources.paths if _is_hub(path)]
    if not roots:
        return None
    from datasets import Image as ImageFeature  # needs the `bulk` extra

    from ..data.hub import ID_COLUMNS, find_image_column
    from ..data.hub_source import Source, find_split

    if len(roots) > 1:
        raise InputError(f'{len(roots)} data sets of the Hub: give one for each output.')
    source = Source(roots[0])
    if sources.split is None and len(source.splits) > 1:
        raise InputError(f'{roots[0]}: has the splits {", ".join(source.splits)}: choose one with --split.')
    split = find_split(sources.split or source.splits[0], source.splits, roots[0])
    dataset = source.read(split, streaming=False)
    image = find_image_column(dataset.features, sources.image_column, f'{roots[0]}, split {split}')
    ids = [name for name in ID_COLUMNS if name in dataset.features and name != image][:1]
    names = {image: 'image', **dict.fromkeys(ids, 'image_id')}
    dataset = dataset.select_columns(list(names)).rename_columns({k: v for k, v in names.items() if k != v})
    return dataset.cast_column('image', ImageFeature(decode=False))


def open_entry(
    entry: Entry, rows: 'datasets.Dataset | None' = None, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Opens an image of a list as `open_image` does.

    Args:
        entry: Image of the list.
        rows: Rows of the Hub data set, from `open_rows`.
        at_least: Height and width that are sufficient, see `open_image`.

    Raises:
        InputError: The image cannot be read.
    """
    if entry.path is None:
        return open_row({'image': rows[entry.offset]['image'], 'image_id': entry.name}, at_least)
    if entry.size is None:
        return open_image(entry.path, at_least=at_least)
    try:
        with open(entry.path, 'rb') as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
    except OSError as e:
        raise InputError(f'{entry.name}: cannot be read ({one_line(e)}).') from None
    return open_image(content, entry.name, at_least)


class ImageList:
    """The images of a run, in a file of JSON lines. Only the places of its parts are held in memory.

    Args:
        path: File that `write` has written.
        part_size: Number of images in a part.
    """

    def __init__(self, path: Path, part_size: int):
        self.path, self.part_size = path, part_size
        self._places, self._size = [], 0
        place = 0
        with open(path, 'rb') as file:
            for line in file:
                if self._size % part_size == 0:
                    self._places.append(place)
                self._size += 1
                place += len(line)

    def __len__(self) -> int:
        return self._size

    @property
    def num_parts(self) -> int:
        """Number of parts; the last one may be smaller."""
        return len(self._places)

    def num_images(self, part: int) -> int:
        """Returns the number of images in a part."""
        return min(self.part_size, self._size - part * self.part_size)

    def read(self, part: int) -> list[Entry]:
        """Reads the images of a part."""
        with open(self.path, 'rb') as file:
            file.seek(self._places[part])
            return [Entry(*json.loads(line)) for line in islice(file, self.part_size)]

    @staticmethod
    def write(path: Path, entries: Iterable[Entry]) -> None:
        """Writes a list in one step. Names that are not UTF-8 are kept as they are."""
        with replace_file(path) as temporary, open(temporary, 'w', encoding='ascii') as file:
            file.writelines(f'{json.dumps(entry)}\n' for entry in entries)
