"""The rows that all readers produce: one schema, cached as an Arrow file keyed by the content of the source files."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, List, Value
from datasets.arrow_writer import ArrowWriter

from ..errors import InputError

__all__ = ['Records', 'cached', 'features', 'file_digest', 'lists_of', 'locate', 'make_warning', 'set_notes']

VERSION = 3  # increased when readers produce other rows from the same files; older Arrow files are then not used


@dataclass
class Records:
    """Rows of a data set on disk, stored as columns; labels are sorted indices into `label_names`.

    Attributes:
        label_names: Label names in the order of the logits.
        images: Path of each image.
        labels: Labels present in each image, as lists or as an Arrow array of lists.
        ignore: Masked labels of each image: unannotated, or only in difficult objects.
        areas: Relative area of the largest instance of each label in `labels`. NaN marks an unknown area; an empty list
            means that all areas of the image are unknown.
        image_ids: Unique name of each image in the data set.
        warning: One line on skipped or unknown content, shown at each load; empty for none.
        notes: Lines on how the files were read, where the settings leave it open.
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
    """Reads a data set, or opens the Arrow file that an earlier call with the same content and settings has written.

    The Arrow file holds the paths of the images, not their content.

    Args:
        read: Function that reads the annotations.
        sources: Files whose content determines the result of `read`.
        **settings: JSON values that determine it as well.

    Raises:
        InputError: Raised by `read`.
    """
    key = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True, default=str).encode())
    for source in sources:
        key.update(file_digest(source))
    path = Path(datasets.config.HF_DATASETS_CACHE, 'msff_timm', f'{key.hexdigest()[:32]}.arrow')
    texts = path.with_suffix('.json')
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
        # Written to a temporary folder and moved: another process that loads the same data set never sees half a file.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix='.writing-') as temporary:
            part = Path(temporary, path.name)
            with ArrowWriter(features=schema, path=str(part)) as writer:
                writer.write_table(table)
                writer.finalize()
            if records.warning or records.notes:
                part.with_suffix('.json').write_text(json.dumps([records.warning, records.notes]))
                os.replace(part.with_suffix('.json'), texts)
            os.replace(part, path)
    warning, notes = json.loads(texts.read_text()) if texts.exists() else ('', [])
    if warning:
        warnings.warn(warning, stacklevel=4)
    return set_notes(Dataset.from_file(str(path)), notes)


def set_notes(dataset: Dataset | IterableDataset, notes: Iterable[str]) -> Dataset | IterableDataset:
    """Stores notes on how a data set was read in its description; returns the data set."""
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
    """Returns the path of an image that a row names by an absolute path or relative to the image folder.

    Args:
        root: Folder of the images.
        name: Path as written in the annotations.
        where: File and row, for the message.

    Raises:
        InputError: The path leads out of the folder.
    """
    # Compares the paths as text: a symbolic link within the folder may lead elsewhere.
    root = Path(os.path.abspath(root))
    path = Path(os.path.abspath(root / name))
    if path == root or not path.is_relative_to(root):
        raise InputError(f'{where}: {name!r} is not inside {root}, the folder of the images.')
    return path


def lists_of(mask: np.ndarray) -> pa.Array:
    """Returns for each row of a mask (N, K) the list of the columns that are true."""
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1, dtype=np.int64))])
    return pa.LargeListArray.from_arrays(offsets, np.nonzero(mask)[1])


def make_warning(source: object, lost: list[str], others: list[str], split: str, missing: str | None) -> str:
    """Returns one line on what a reader noticed, or raises if images or annotations are missing in evaluation.

    Args:
        source: File that was read.
        lost: Descriptions of unusable content, with counts.
        others: Other remarks.
        split: Name of the split.
        missing: Setting as for `msff_timm.data.load`.

    Raises:
        InputError: Something is lost, and `missing` does not allow to skip it.
    """
    if lost and (missing == 'error' or (missing is None and split not in ('train', 'trainval'))):
        raise InputError(f'{source}: {"; ".join(lost)}. Fix the files, or set missing to skip to leave these out.')
    parts = [f'skipped {part}' for part in lost] + others
    return f'{source}: {"; ".join(parts)}.' if parts else ''
