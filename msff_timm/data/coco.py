"""Reader of COCO 2014 and 2017 in their official layout: `train2014/`, `annotations/instances_train2014.json` etc."""

import hashlib
import os
from pathlib import Path, PurePosixPath

from datasets import Dataset

from ..errors import InputError, NoSplitError, unknown
from .coco_files import CocoFile, areas_of, name_of
from .records import Records, cached, locate, make_warning
from .text import list_folder

__all__ = ['load']

FOLDERS = {'train': 'train', 'validation': 'val'}


def load(
    name: str, split: str, root: str | None, keep_unlabelled: bool | None = None, missing: str | None = None
) -> Dataset:
    """Loads one split of COCO.

    A label is present if at least one instance is annotated, crowds included, as in published results. Its area is that
    of its largest instance, taken from `area`, else from `bbox`, else unknown. Labels are in the order of the ids of
    their categories, numbers before other text; categories of the same name are one label. Images are in the order of
    their ids. Entries that name the same file are one image with the labels of all and the id of the first.

    Args:
        name: `coco2014` or `coco2017`.
        split: `train` or `validation`.
        root: Folder that contains the image folders and `annotations/`.
        keep_unlabelled: Treatment of images without labels, see `msff_timm.data.load`.
        missing: Treatment of missing images, see `msff_timm.data.load`.

    Raises:
        InputError: The root is not that of COCO, or the annotations are invalid.
    """
    year = name.removeprefix('coco')
    if split not in FOLDERS:
        raise unknown(f'split of {name}', split, FOLDERS)
    if not root:
        raise InputError(
            f'{name} needs data.root: set it to the folder that contains train{year}/, val{year}/ and annotations/.'
        )
    base = Path(os.path.abspath(root))
    image_folder = base / f'{FOLDERS[split]}{year}'
    annotation_file = base / 'annotations' / f'instances_{image_folder.name}.json'
    for path, kind, exists in (
        (annotation_file, 'file', annotation_file.is_file()),
        (image_folder, 'folder', image_folder.is_dir()),
    ):
        if not exists:
            problem = f'is not a {kind}' if path.exists() else 'is missing'
            raise (InputError if annotation_file.exists() or image_folder.exists() else NoSplitError)(
                f'{root}: {path.relative_to(base)} {problem} (found: {list_folder(root)}): set data.root to the root of'
                f' COCO {year}.'
            )
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: permission denied.')
    keep = split == 'train' if keep_unlabelled is None else keep_unlabelled
    on_disk = _files(image_folder)
    return cached(
        lambda: _read(annotation_file, image_folder, on_disk, keep, split, missing),
        [annotation_file],
        reader=name,
        split=split,
        root=str(base),
        keep_unlabelled=keep,
        missing=missing,
        # An image that is added later is no longer skipped.
        files=hashlib.sha256('\n'.join(sorted(on_disk)).encode(errors='surrogateescape')).hexdigest(),
    )


def _files(folder: Path) -> set[str]:
    """Returns the relative paths of all files below a folder."""
    found = set()
    for where, _, names in os.walk(folder):
        below = where[len(str(folder)) + 1 :].replace(os.sep, '/')
        found.update(f'{below}/{name}' for name in names) if below else found.update(names)
    return found


def _read(
    annotation_file: Path,
    image_folder: Path,
    on_disk: set[str],
    keep_unlabelled: bool,
    split: str,
    missing: str | None,
) -> Records:
    file = CocoFile(annotation_file)
    categories = file.categories()
    names = list(dict.fromkeys(categories.values()))
    images = file.images(image_folder, lambda row, where: _find(row, where, image_folder, on_disk))
    label_of = {category_id: names.index(name) for category_id, name in categories.items()}
    largest = file.largest_areas(images, label_of)
    warning = make_warning(annotation_file, file.lost, file.notes, split, missing)

    kept = [row for row in images.order() if keep_unlabelled or largest[row]]
    if not kept:
        wanted = 'images' if keep_unlabelled else 'images with labels'
        raise InputError(f'{annotation_file}: contains no {wanted}.')
    labels = [sorted(largest[row]) for row in kept]
    return Records(
        label_names=names,
        images=[images.paths[row] for row in kept],
        labels=labels,
        ignore=[[] for _ in kept],
        areas=[areas_of(largest[row], present) for row, present in zip(kept, labels, strict=True)],
        image_ids=[images.names[row] for row in kept],
        warning=warning,
    )


def _find(row: dict, where: str, image_folder: Path, on_disk: set[str]) -> tuple[str, str | None]:
    """Returns the name of an image file and its path, or None if it does not exist.

    The name is relative to the image folder, or begins with `train2017/` etc. Backslashes are read as slashes if no
    file has exactly this name.

    Raises:
        InputError: The name is invalid, or leads out of these folders.
    """
    name = name_of(row, where)
    if name in on_disk:
        return name, os.path.join(image_folder, name)
    year = image_folder.name[-4:]
    for candidate in dict.fromkeys((name, name.replace('\\', '/'))):
        path = locate(image_folder, candidate, where)
        first, *rest = PurePosixPath(candidate).parts
        if not path.is_file() and rest and first in (f'train{year}', f'val{year}'):
            path = locate(image_folder.with_name(first), '/'.join(rest), where)
        if path.is_file():
            return name, str(path)
    return name, None
