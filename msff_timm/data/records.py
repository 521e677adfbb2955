"""What every reader makes: rows of one schema, kept as an Arrow file that is found again by what it was read from."""

import hashlib
import json
import os
import reprlib
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, List, Value
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
    'set_notes',
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
        images: Path of each image.
        labels: Labels present in each image; lists, or an Arrow array of them.
        ignore: Labels of which it is not known, or not to be counted, whether they are present.
        areas: The largest area of each of its `labels`, relative to the image: NaN where it is unknown, an empty list
            where all are.
        image_ids: The data set's own name of each image, no two the same.
        warning: Line on what was left out or is unknown, of which each load warns; empty for nothing.
        notes: Lines on how the files were read, where that is not plain from the settings.
    """

    label_names: list[str]
    images: list[str]
    labels: list[list[int]] | pa.Array
    ignore: list[list[int]] | pa.Array
    areas: list[list[float]]
    image_ids: list[str]
    warning: str = ''
    notes: list[str] = field(default_factory=list)


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

    The images stay where they are: the file holds their paths. Each load warns and has the notes, whether the file
    was there already or not.

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
            for kind, lines in (('.warning', [records.warning] if records.warning else []), ('.notes', records.notes)):
                if lines:
                    part.with_suffix(kind).write_text('\n'.join(lines), encoding='utf-8')
                    os.replace(part.with_suffix(kind), path.with_suffix(kind))
            os.replace(part, path)
    lines = {}
    for kind in ('.warning', '.notes'):
        file = path.with_suffix(kind)
        lines[kind] = file.read_text(encoding='utf-8') if file.exists() else ''
    if lines['.warning']:
        warnings.warn(lines['.warning'], stacklevel=4)
    return set_notes(Dataset.from_file(str(path)), lines['.notes'].splitlines())


def set_notes(dataset: Dataset | IterableDataset, notes: Iterable[str]) -> Dataset | IterableDataset:
    """Keeps lines on how a data set was read with it, where `datasets` has room for a description."""
    dataset.info.description = '\n'.join(notes)
    return dataset


def file_digest(path: Path) -> bytes:
    """Returns the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def locate(root: Path, name: str, where: str) -> Path:
    """Finds the path that a row names, absolute or relative to the folder of the images.

    Args:
        root: Folder of the images.
        name: As the annotations have it.
        where: File and row, for the message.

    Raises:
        InputError: The path leads out of the folder.
    """
    # Lexically: a link within the folder may lead to where the images really are.
    root = Path(os.path.abspath(root))
    path = Path(os.path.abspath(root / name))
    if path == root or not path.is_relative_to(root):
        raise InputError(f'{where}: {name!r} does not lie in {root}, the folder of the images.')
    return path


def make_note(where: object, lost: list[str], others: list[str], split: str, missing: str | None) -> str:
    """Puts what a reader noticed on one line, unless what is missing ends the reading.

    Args:
        where: The file that was read.
        lost: Names of what cannot be used, with counts.
        others: Whatever else the user should know.
        split: Split that is read.
        missing: Setting as for `msff_timm.data.load`.

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
