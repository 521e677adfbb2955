"""Reader of COCO 2014 and 2017 in their official layout: `train2014/`, `annotations/instances_train2014.json` etc.

Files of the same layout from other tools are read too: a label needs only the category of an annotation.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from datasets import Dataset

from ..errors import InputError, NoSplitError, unknown
from .records import Records, cached, locate, make_warning
from .text import is_one_line, list_folder, quote

__all__ = ['load']

FOLDERS = {'train': 'train', 'validation': 'val'}
MAX_SIDE = 1_000_000  # pixels; a larger side is an error in the file
ROUNDING = 1.01  # tolerance of areas: they are rounded, and outlines run along the edge of the image
UNKNOWN = math.inf  # area of an instance; the largest of several is then unknown too
NUMBER_OF_TEXT = re.compile(r'-?[0-9]{1,18}', re.ASCII)


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
    content = _content(annotation_file)
    lost: list[str] = []
    notes: list[str] = []
    names, label_of = _categories(annotation_file, content, notes)
    images = _Images(annotation_file, content, image_folder, on_disk, lost, notes)
    largest: list[dict[int, float]] = [{} for _ in images.paths]
    strays, unknown_areas, empty = [], [], []  # positions in the list
    row_of, sizes = images.row_of, images.sizes
    for number, annotation in enumerate(content['annotations']):
        if type(annotation) is not dict:
            raise InputError(f'{annotation_file}: annotations[{number}] is {quote(annotation)}: must be an object.')
        image_id, category_id, area = (annotation.get(key) for key in ('image_id', 'category_id', 'area'))
        image_id = image_id if type(image_id) is int else _id(image_id)
        label = label_of.get(category_id if type(category_id) is int else _id(category_id))
        if label is None or image_id not in row_of:
            strays.append(number)
            continue
        row, size = row_of[image_id], sizes[image_id]
        if row is None:
            continue
        if size and type(area) in (int, float) and 0 <= area <= ROUNDING * size:
            share = min(area / size, 1.0)
        else:
            share = _relative_area(area, annotation.get('bbox'), size)
            if share == UNKNOWN:
                unknown_areas.append(number)
        if not share:
            empty.append(number)
        areas = largest[row]
        areas[label] = max(share, areas.get(label, 0.0))

    total = len(content['annotations'])
    if strays:
        first = content['annotations'][strays[0]]
        ids = ' and '.join(f'{key} {quote(first.get(key))}' for key in ('image_id', 'category_id'))
        problem = f'annotations of no image or category: {len(strays)} of {total} (annotations[{strays[0]}] has {ids})'
        if len(strays) == total:
            raise InputError(f'{annotation_file}: {problem}; fix the ids of the images and categories.')
        lost.append(problem)
    if unknown_areas:
        place = f'annotations[{unknown_areas[0]}]'
        notes.append(f'the area of {len(unknown_areas)} of {total} annotations is unknown (e.g. {place})')
    if empty:
        place = f'annotations[{empty[0]}]'
        notes.append(f'the area of {len(empty)} of {total} annotations is 0 (e.g. {place}); their labels are present')
    warning = make_warning(annotation_file, lost, notes, split, missing)

    ids = images.ids
    kept = [row for row in sorted(range(len(ids)), key=lambda row: _order(ids[row])) if keep_unlabelled or largest[row]]
    if not kept:
        wanted = 'images' if keep_unlabelled else 'images with labels'
        raise InputError(f'{annotation_file}: contains no {wanted}.')
    labels = [sorted(largest[row]) for row in kept]
    return Records(
        label_names=names,
        images=[images.paths[row] for row in kept],
        labels=labels,
        ignore=[[] for _ in kept],
        areas=[_areas(largest[row], present) for row, present in zip(kept, labels, strict=True)],
        image_ids=[images.names[row] for row in kept],
        warning=warning,
    )


def _content(annotation_file: Path) -> dict[str, list]:
    """Reads the file and checks that it contains the three lists."""
    with open(annotation_file, 'rb') as file:
        encoding = json.detect_encoding(file.read(4))
    try:
        with open(annotation_file, encoding=encoding) as file:
            content = json.load(file, object_hook=_without_outline)
    except UnicodeDecodeError as e:
        raise InputError(f'{annotation_file}: is not {encoding} ({e}): save it as UTF-8.') from None
    except RecursionError:
        raise InputError(f'{annotation_file}: is nested too deeply for the format of COCO.') from None
    except ValueError as e:
        raise InputError(f'{annotation_file}: is not valid JSON ({e}).') from None
    if not isinstance(content, dict):
        raise InputError(f'{annotation_file}: contains {quote(content)}: must be an object.')
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content.get(key), list):
            problem = f'is {quote(content[key])}: must be a list' if key in content else 'is missing'
            raise InputError(f"{annotation_file}: '{key}' {problem}.")
    return content


def _without_outline(node: dict) -> dict:
    # Outlines are most of the file; dropped while parsing, they never fill the memory.
    node.pop('segmentation', None)
    return node


def _rows(annotation_file: Path, content: dict[str, list], key: str) -> Iterator[tuple[str, int | str, dict]]:
    """Yields location, id and content of each row of a list."""
    for number, row in enumerate(content[key]):
        where = f'{annotation_file}: {key}[{number}]'
        if type(row) is not dict:
            raise InputError(f'{where} is {quote(row)}: must be an object.')
        if 'id' not in row:
            raise InputError(f"{where}: 'id' is missing.")
        row_id = _id(row['id'])
        if row_id is None:
            raise InputError(f'{where} has id {quote(row["id"])}: must be a whole number or text on one line.')
        yield where, row_id, row


def _id(value: object) -> int | str | None:
    """Returns one id for 7, 7.0 and '7', which different tools write for the same; None if it is invalid."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if _is_name(value):
        return int(value) if NUMBER_OF_TEXT.fullmatch(value) else value
    return None


def _order(row_id: int | str) -> tuple[bool, int | str]:
    return type(row_id) is str, row_id


def _categories(annotation_file: Path, content: dict[str, list], notes: list[str]) -> tuple[list[str], dict]:
    """Returns the label names in their order, and the label of each category id."""
    names: dict[int | str, str] = {}
    for where, category_id, row in _rows(annotation_file, content, 'categories'):
        name = str(row['name']) if type(row.get('name')) is int else row.get('name')
        if not _is_name(name):
            raise InputError(f'{where} has name {quote(name)}: must be text on one line.')
        if names.get(category_id, name) != name:
            raise InputError(f'{where} has id {quote(row["id"])}, which an earlier category has too: change one.')
        if category_id not in names and name in names.values():
            place = where[len(str(annotation_file)) + 2 :]
            notes.append(f'{place} repeats the name {quote(name)} and counts as the same label')
        names[category_id] = name
    if not names:
        raise InputError(f'{annotation_file}: contains no categories.')
    ordered = sorted(names, key=_order)
    number_of = {name: label for label, name in enumerate(dict.fromkeys(names[key] for key in ordered))}
    return list(number_of), {key: number_of[name] for key, name in names.items()}


class _Images:
    """Images of the annotation file; each one whose file exists is a row.

    Attributes:
        paths: Path of each row.
        ids: Id of each row, for the order.
        names: Id of each row as written in the file.
        row_of: Row of each image id; None if the file is missing.
        sizes: Number of pixels of each image id; 0 if it is unknown.
    """

    def __init__(
        self,
        annotation_file: Path,
        content: dict[str, list],
        image_folder: Path,
        on_disk: set[str],
        lost: list[str],
        notes: list[str],
    ):
        self.paths: list[str] = []
        self.ids: list[int | str] = []
        self.names: list[str] = []
        self.row_of: dict[int | str, int | None] = {}
        self.sizes: dict[int | str, float] = {}
        rows: dict[str, int] = {}
        missing, repeated = [], []
        for where, image_id, row in _rows(annotation_file, content, 'images'):
            if image_id in self.row_of:
                raise InputError(f'{where} has id {quote(row["id"])}, which an earlier image has too: change one.')
            width, height = _number(row.get('width')), _number(row.get('height'))
            has_size = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE
            self.sizes[image_id] = width * height if has_size else 0
            name, path = _find(row, where, image_folder, on_disk)
            place = f'{where[len(str(annotation_file)) + 2 :]} names {quote(name)}'
            if path is None:
                missing.append(place)
            elif path in rows:
                repeated.append(place)
            else:
                rows[path] = len(self.paths)
                self.paths.append(path)
                self.ids.append(image_id)
                self.names.append(row['id'] if type(row['id']) is str else str(image_id))
            self.row_of[image_id] = rows.get(path)
        if missing:
            total = len(content['images'])
            problem = f'images that are not in {image_folder}: {len(missing)} of {total} ({missing[0]})'
            if len(missing) == total:
                raise InputError(f'{annotation_file}: {problem}; move them there, or fix their file_name.')
            lost.append(problem)
        if repeated:
            notes.append(f'images that repeat the file of an earlier one: {len(repeated)} ({repeated[0]}); merged')


def _find(row: dict, where: str, image_folder: Path, on_disk: set[str]) -> tuple[str, str | None]:
    """Returns the name of an image file and its path, or None if it does not exist.

    The name is relative to the image folder, or begins with `train2017/` etc. Backslashes are read as slashes if no
    file has exactly this name. LVIS has a URL in place of the name.

    Raises:
        InputError: The name is invalid, or leads out of these folders.
    """
    name = row.get('file_name')
    if not name and _is_name(row.get('coco_url')):
        name = '/'.join(unquote(urlsplit(row['coco_url']).path).split('/')[-2:])
    if not _is_name(name):
        raise InputError(f'{where} has file_name {quote(name)}: must be text on one line.')
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


def _relative_area(area: object, box: object, size: float) -> float:
    """Returns the relative area of an instance from its area, or else from its box."""
    area = _number(area)
    if not 0 <= area <= ROUNDING * size and type(box) is list and len(box) == 4:
        width, height = _number(box[2]), _number(box[3])
        area = width * height if width >= 0 and height >= 0 else math.nan
    return min(area / size, 1.0) if size and 0 <= area <= ROUNDING * size else UNKNOWN


def _areas(largest: dict[int, float], labels: list[int]) -> list[float]:
    areas = [math.nan if largest[label] == UNKNOWN else largest[label] for label in labels]
    return [] if all(map(math.isnan, areas)) else areas


def _number(value: object) -> float:
    """Returns a number, which some tools write as text, or NaN."""
    if type(value) not in (int, float, str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _is_name(value: object) -> bool:
    return type(value) is str and bool(value.strip()) and is_one_line(value)
