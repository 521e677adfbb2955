"""What every reader makes: rows of one schema, kept as an Arrow file that is found again by what it was read from."""

import hashlib
import json
import os
import reprlib
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from datasets.arrow_writer import ArrowWriter

from ..errors import InputError

__all__ = [
    'Records',
    'cached',
    'features',
    'file_digest',
    'found_in',
    'is_one_line',
    'locate',
    'make_note',
    'shown',
]

VERSION = 2  # of what readers make of the same files: a new one leaves old Arrow files alone

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


@dataclass
class Records:
    """Rows of a data set on disk, as columns; labels are numbers into `label_names`, sorted in each row.

    Attributes:
        label_names: In the order of the logits.
        images: Path of each picture.
        labels: Labels present in each picture.
        ignore: Labels of which it is not known, or not to be counted, whether they are present.
        areas: The largest area of each of its `labels`, relative to the image: NaN where it is unknown, an empty list
            where all are.
        image_ids: The data set's own name of each picture, no two the same.
        note: What the user should know about this reading, on one line, e.g. what was left out; empty for nothing.
    """

    label_names: list[str]
    images: list[str]
    labels: list[list[int]]
    ignore: list[list[int]]
    areas: list[list[float]]
    image_ids: list[str]
    note: str = ''


def features(label_names: list[str], image: object | None = None) -> Features:
    """Returns the schema of every data set: `image`, `labels`, `ignore`, `area`, `image_id`."""
    return Features(
        image=image or Image(),
        labels=List(ClassLabel(names=label_names)),
        ignore=List(ClassLabel(names=label_names)),
        area=List(Value('float64')),
        image_id=Value('string'),
    )


def cached(read: Callable[[], Records], sources: Iterable[Path], **settings: object) -> Dataset:
    """Reads a data set, or takes it from the Arrow file that an earlier reading of the same content has left.

    The pictures stay where they are: the file holds their paths. The note of a reading is a warning each time, whether
    the file was there already or not.

    Args:
        read: Reads the annotations.
        sources: Files whose content decides what `read` returns.
        **settings: What else decides it: JSON values.

    Raises:
        InputError: What `read` raises, or there is no row.
    """
    key = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True, default=str).encode())
    for source in sources:
        key.update(file_digest(source))
    path = Path(datasets.config.HF_DATASETS_CACHE, 'msff_timm', f'{key.hexdigest()[:32]}.arrow')
    note = path.with_suffix('.txt')
    if not path.exists():
        records = read()
        schema = features(records.label_names)
        table = pa.table(
            {
                'image': pa.array([{'bytes': None, 'path': image} for image in records.images]),
                'labels': records.labels,
                'ignore': records.ignore,
                'area': records.areas,
                'image_id': records.image_ids,
            },
            schema=schema.arrow_schema,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and moved: a second process that reads the same data set never finds half a file.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix='.writing-') as temporary:
            part = Path(temporary, path.name)
            with ArrowWriter(features=schema, path=str(part)) as writer:
                writer.write_table(table)
                writer.finalize()
            if records.note:
                Path(temporary, note.name).write_text(records.note, encoding='utf-8')
                os.replace(Path(temporary, note.name), note)
            os.replace(part, path)
    if note.exists():
        warnings.warn(note.read_text(encoding='utf-8'), stacklevel=4)
    return Dataset.from_file(str(path))


def file_digest(path: Path) -> bytes:
    """Returns the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def locate(root: Path, name: str, where: str) -> Path:
    """Finds the path that a row names, absolute or relative to the folder of the pictures.

    Args:
        root: Folder of the pictures.
        name: As the annotations have it.
        where: File and row, for the message.

    Raises:
        InputError: The path leads out of the folder.
    """
    # Lexically: a link within the folder may lead to where the pictures really are.
    root = Path(os.path.abspath(root))
    path = Path(os.path.abspath(root / name))
    if path == root or not path.is_relative_to(root):
        raise InputError(f'{where}: {name!r} does not lie in {root}, the folder of the pictures.')
    return path


def make_note(where: object, lost: list[str], others: list[str], split: str, missing: str | None) -> str:
    """Puts what a reader noticed on one line, unless what is missing ends the reading.

    Args:
        where: The file that was read.
        lost: What is named but cannot be used, with counts.
        others: Whatever else the user should know.
        split: That is read.
        missing: As for `msff_timm.data.load`.

    Raises:
        InputError: Something is lost and may not be left out.
    """
    if lost and (missing == 'error' or (missing is None and split not in ('train', 'trainval'))):
        raise InputError(f'{where}: {"; ".join(lost)}. Correct the files, or set missing to skip to leave these out.')
    parts = [f'left out {part}' for part in lost] + others
    return f'{where}: {"; ".join(parts)}.' if parts else ''


def found_in(root: str | Path) -> str:
    """Lists a folder for a message: its first few entries, or that there is none."""
    try:
        return ', '.join(ascii(entry)[1:-1] for entry in sorted(os.listdir(root))[:5]) or 'nothing'
    except OSError as e:
        return 'no such folder' if isinstance(e, FileNotFoundError) else f'{e.strerror}'


def shown(value: object) -> str:
    """Shows what a file holds in a message: on one line, and not much of it."""
    return _SHORT.repr(value)


def is_one_line(text: str) -> bool:
    """Tells text that can be in a message and in an Arrow file: without a line break, NUL or half a surrogate pair."""
    if '\0' in text or len(f'{text}.'.splitlines()) > 1:
        return False
    return text.isascii() or not any('\ud800' <= character <= '\udfff' for character in text)
