"""COCO 2014 and 2017 in their official layout: `train2014/`, `annotations/instances_train2014.json` and the like.

Files of the same layout that other tools write are read too: a label needs only the category of an annotation.
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

from ..errors import InputError, unknown
from .records import Records, cached, locate, make_warning
from .text import is_one_line, list_folder, quote

__all__ = ['load']

FOLDERS = {'train': 'train', 'validation': 'val'}
MOST_PIXELS = 1_000_000  # of a side: more is a slip
ROUNDING = 1.01  # areas are rounded to hundredths of a pixel, outlines run along the image's edge
UNKNOWN = math.inf  # area of an instance: whatever the others have, the largest is unknown
NUMBER_OF_TEXT = re.compile(r'-?[0-9]{1,18}', re.ASCII)


def load(
    name: str, split: str, root: str | None, keep_unlabelled: bool | None = None, missing: str | None = None
) -> Dataset:
    """Reads one split of COCO; `msff_timm.data.load` tells the columns.

    A label is present when at least one instance of it is annotated, crowds included, as published results have it;
    its area is its largest instance's, relative to the image: of `area`, else of `bbox`, else unknown. Labels come from
    the file, in the order of their categories' ids: numbers, which may have gaps and may be text, before other text.
    Categories of the same name are one label. Rows are in the order of the images' ids. Entries that name the same file
    are one row with the labels of all, under the id of the first.

    Args:
        name: `coco2014` or `coco2017`.
        split: `train` or `validation`.
        root: The folder that holds the images' folders and `annotations/`.
        keep_unlabelled: Keep images without any label; None keeps them in training and leaves them out of
            evaluation, as published results do.
        missing: Treatment of images without a file and annotations of no image or category: `skip` or `error`; None for
            `skip` in training.

    Raises:
        InputError: The root is not COCO's, or the annotations are not as they should be.
    """
    year = name.removeprefix('coco')
    if split not in FOLDERS:
        raise unknown(f'split of {name}', split, FOLDERS)
    if not root:
        raise InputError(f'{name} needs data.root: the folder that holds train{year}/, val{year}/ and annotations/.')
    base = Path(os.path.abspath(root))
    image_folder = base / f'{FOLDERS[split]}{year}'
    annotation_file = base / 'annotations' / f'instances_{image_folder.name}.json'
    for path, is_there in ((annotation_file, annotation_file.is_file()), (image_folder, image_folder.is_dir())):
        if not is_there:
            what = 'not what it should be' if path.exists() else 'missing'
            expected = path.relative_to(base)
            raise InputError(
                f'{root} is not the root of COCO {year}: {expected} is {what} (found: {list_folder(root)}).'
            )
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: may not be read.')
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
        # An image that comes later is not left out any more.
        files=hashlib.sha256('\n'.join(sorted(on_disk)).encode(errors='surrogateescape')).hexdigest(),
    )


def _files(folder: Path) -> set[str]:
    """Lists the files in a folder and its subfolders, by their path from it."""
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
    strays, unknown_areas, empty = [], [], []  # places in the list
    row_of, sizes = images.row_of, images.sizes
    for number, annotation in enumerate(content['annotations']):
        if type(annotation) is not dict:
            raise InputError(
                f"{annotation_file}: annotations[{number}] is not as COCO's format has it (it is {quote(annotation)},"
                ' not an object).'
            )
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
            share = _share(area, annotation.get('bbox'), size)
            if share == UNKNOWN:
                unknown_areas.append(number)
        if not share:
            empty.append(number)
        areas = largest[row]
        areas[label] = max(share, areas.get(label, 0.0))

    total = len(content['annotations'])
    if strays:
        first = content['annotations'][strays[0]]
        what = ' and '.join(f'{key} {quote(first.get(key))}' for key in ('image_id', 'category_id'))
        problem = f'annotations of no image or category: {len(strays)} of {total} (annotations[{strays[0]}] has {what})'
        if len(strays) == total:
            raise InputError(f'{annotation_file}: {problem}; give the images and categories the ids that these name.')
        lost.append(problem)
    if unknown_areas:
        first = f'annotations[{unknown_areas[0]}]'
        notes.append(f'the area is unknown of {len(unknown_areas)} of {total} annotations ({first}, e.g.)')
    if empty:
        first = f'annotations[{empty[0]}]'
        notes.append(f'{len(empty)} of {total} annotations have no area ({first}, e.g.); their labels count as present')
    note = make_warning(annotation_file, lost, notes, split, missing)

    ids = images.ids
    kept = [row for row in sorted(range(len(ids)), key=lambda row: _order(ids[row])) if keep_unlabelled or largest[row]]
    if not kept:
        raise InputError(f'{annotation_file}: holds no {"image" if keep_unlabelled else "labelled image"}.')
    labels = [sorted(largest[row]) for row in kept]
    return Records(
        label_names=names,
        images=[images.paths[row] for row in kept],
        labels=labels,
        ignore=[[] for _ in kept],
        areas=[_areas(largest[row], present) for row, present in zip(kept, labels, strict=True)],
        image_ids=[images.names[row] for row in kept],
        warning=note,
    )


def _content(annotation_file: Path) -> dict[str, list]:
    """Reads the file and makes sure that it holds the three lists."""
    with open(annotation_file, 'rb') as file:
        encoding = json.detect_encoding(file.read(4))
    try:
        with open(annotation_file, encoding=encoding) as file:
            content = json.load(file, object_hook=_without_outline)
    except UnicodeDecodeError as e:
        raise InputError(f'{annotation_file}: is not {encoding} ({e}); save it as UTF-8.') from None
    except RecursionError:
        raise InputError(f"{annotation_file}: is nested too deeply for COCO's format.") from None
    except ValueError as e:
        raise InputError(f'{annotation_file}: is not valid JSON ({e}).') from None
    if not isinstance(content, dict):
        raise InputError(
            f"{annotation_file}: the file is not as COCO's format has it (it holds {quote(content)}, not an object)."
        )
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content.get(key), list):
            problem = f'is {quote(content[key])}, not a list' if key in content else 'is missing'
            raise InputError(f"{annotation_file}: the file is not as COCO's format has it ('{key}' {problem}).")
    return content


def _without_outline(node: dict) -> dict:
    # Outlines are most of the file: dropped as they are parsed, they never fill the memory together.
    node.pop('segmentation', None)
    return node


def _rows(annotation_file: Path, content: dict[str, list], key: str) -> Iterator[tuple[str, int | str, dict]]:
    """Gives, for each row of a list, where it stands, its id and the row."""
    for number, row in enumerate(content[key]):
        where = f'{annotation_file}: {key}[{number}]'
        if type(row) is not dict:
            raise InputError(f"{where} is not as COCO's format has it (it is {quote(row)}, not an object).")
        if 'id' not in row:
            raise InputError(f"{where} is not as COCO's format has it ('id' is missing).")
        row_id = _id(row['id'])
        if row_id is None:
            raise InputError(f'{where} has id {quote(row["id"])}, neither a whole number nor text on one line.')
        yield where, row_id, row


def _id(value: object) -> int | str | None:
    """Makes one id of what tools write for it (7, 7.0, '7'); other text stays, None is no id."""
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
    """Reads the labels' names in their order, and the label of each category id."""
    names: dict[int | str, str] = {}
    for where, category_id, row in _rows(annotation_file, content, 'categories'):
        name = str(row['name']) if type(row.get('name')) is int else row.get('name')
        if not _is_name(name):
            raise InputError(f'{where} has name {quote(name)}, not text on one line.')
        if names.get(category_id, name) != name:
            raise InputError(f'{where} has id {quote(row["id"])}, which an earlier category has too.')
        if category_id not in names and name in names.values():
            notes.append(f'{where[len(str(annotation_file)) + 2 :]} has the name {quote(name)} again and is one label')
        names[category_id] = name
    if not names:
        raise InputError(f'{annotation_file}: holds no category.')
    ordered = sorted(names, key=_order)
    number_of = {name: label for label, name in enumerate(dict.fromkeys(names[key] for key in ordered))}
    return list(number_of), {key: number_of[name] for key, name in names.items()}


class _Images:
    """The images that the file names, a row for each that is on disk.

    Attributes:
        paths: Path of each row.
        ids: Key of each row, for the order.
        names: Name of each row, the id as the file has it.
        row_of: By image id; None for an image that is not on disk.
        sizes: Number of pixels by image id; 0 where it is unknown.
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
        gone, again = [], []
        for where, image_id, row in _rows(annotation_file, content, 'images'):
            if image_id in self.row_of:
                raise InputError(f'{where} has id {quote(row["id"])}, which an earlier image has too.')
            width, height = _number(row.get('width')), _number(row.get('height'))
            is_known = 0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS
            self.sizes[image_id] = width * height if is_known else 0
            name, path = _find(row, where, image_folder, on_disk)
            if path is None:
                gone.append(f'{where[len(str(annotation_file)) + 2 :]} names {quote(name)}')
            elif path in rows:
                again.append(f'{where[len(str(annotation_file)) + 2 :]} names {quote(name)}')
            else:
                rows[path] = len(self.paths)
                self.paths.append(path)
                self.ids.append(image_id)
                self.names.append(row['id'] if type(row['id']) is str else str(image_id))
            self.row_of[image_id] = rows.get(path)
        if gone:
            total = len(content['images'])
            problem = f'images that are not in {image_folder}: {len(gone)} of {total} ({gone[0]})'
            if len(gone) == total:
                raise InputError(f'{annotation_file}: {problem}; put them there, or correct their file_name.')
            lost.append(problem)
        if again:
            notes.append(f'images whose file an earlier one names: {len(again)} ({again[0]}); their labels are united')


def _find(row: dict, where: str, image_folder: Path, on_disk: set[str]) -> tuple[str, str | None]:
    """Finds the file of an image; returns its name and its path, None where there is none.

    The name is relative to the folder of the images, or begins with `train2017/` or the like; backslashes are taken for
    slashes where there is no file of the very name. LVIS has a URL instead, which ends so.

    Raises:
        InputError: The name is none, or leads out of these folders.
    """
    name = row.get('file_name')
    if not name and _is_name(row.get('coco_url')):
        name = '/'.join(unquote(urlsplit(row['coco_url']).path).split('/')[-2:])
    if not _is_name(name):
        raise InputError(f'{where} has file_name {quote(name)}, not text on one line.')
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


def _share(area: object, box: object, size: float) -> float:
    """Computes the relative area of an instance from its area, or else its box."""
    area = _number(area)
    if not 0 <= area <= ROUNDING * size and type(box) is list and len(box) == 4:
        width, height = _number(box[2]), _number(box[3])
        area = width * height if width >= 0 and height >= 0 else math.nan
    return min(area / size, 1.0) if size and 0 <= area <= ROUNDING * size else UNKNOWN


def _areas(largest: dict[int, float], labels: list[int]) -> list[float]:
    areas = [math.nan if largest[label] == UNKNOWN else largest[label] for label in labels]
    return [] if all(map(math.isnan, areas)) else areas


def _number(value: object) -> float:
    """Reads a number, which some tools write as text; NaN for what is none."""
    if type(value) not in (int, float, str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _is_name(value: object) -> bool:
    return type(value) is str and bool(value.strip()) and is_one_line(value)
