"""COCO 2014 and 2017 in their official layout: `train2014/`, `annotations/instances_train2014.json` and the like."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ..errors import InputError, unknown
from .records import Records, cached, found_in, is_one_line, locate, shown

__all__ = ['load']

FOLDERS = {'train': 'train', 'validation': 'val'}
MOST_PIXELS = 1_000_000  # of a side: more is a slip, and would overflow further on
ROUNDING = 1.01  # areas are rounded to hundredths of a pixel, outlines run along the picture's edge


def load(name: str, split: str, root: str | None, keep_unlabelled: bool | None = None) -> Dataset:
    """Reads one split of COCO; `msff_timm.data.load` tells the columns.

    A label is present when at least one instance of it is annotated, crowds included, as published results have it;
    its area is its largest instance's, relative to the picture. Classes come from the file, in the order of their
    ids, which have gaps. Rows are in the order of the pictures' ids.

    Args:
        name: `coco2014` or `coco2017`.
        split: `train` or `validation`.
        root: The folder that holds the pictures' folders and `annotations/`.
        keep_unlabelled: Keep pictures without any label; None keeps them in training and leaves them out of
            evaluation, as published results do.

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
            raise InputError(f'{root} is not the root of COCO {year}: {expected} is {what} (found: {found_in(root)}).')
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: may not be read.')
    keep = split == 'train' if keep_unlabelled is None else keep_unlabelled
    return cached(
        lambda: _read(annotation_file, image_folder, keep),
        [annotation_file],
        reader=name,
        split=split,
        root=str(base),
        keep_unlabelled=keep,
    )


def _read(annotation_file: Path, image_folder: Path, keep_unlabelled: bool) -> Records:
    content = _content(annotation_file)
    names = _categories(annotation_file, content)
    label_of = {category_id: label for label, category_id in enumerate(sorted(names))}
    paths, sizes = _images(annotation_file, content, image_folder)
    largest: dict[int, dict[int, float]] = {image_id: {} for image_id in paths}
    flat, first_flat = 0, ''
    fields = ('image_id', 'category_id', 'area', 'bbox')
    for where, (image_id, category_id, area, box) in _rows(annotation_file, content, 'annotations', fields):
        if type(category_id) is not int or category_id not in label_of:
            raise InputError(f'{where} has category_id {shown(category_id)}, not among the categories.')
        if type(image_id) is not int or image_id not in sizes:
            raise InputError(f'{where} has image_id {shown(image_id)}, not among the images.')
        size = sizes[image_id]
        if type(area) not in (int, float) or not 0 <= area <= ROUNDING * size:
            raise InputError(f'{where} has area {shown(area)}, not a number from 0 to {size}, the pixels of its image.')
        if not (
            type(box) is list
            and len(box) == 4
            and all(type(side) in (int, float) and abs(side) <= 2 * MOST_PIXELS for side in box)
            and box[2] >= 0
            and box[3] >= 0
        ):
            raise InputError(f'{where} has bbox {shown(box)}, not [x, y, width, height] in pixels.')
        if not box[2] or not box[3]:
            flat, first_flat = flat + 1, first_flat or where
        areas, label = largest[image_id], label_of[category_id]
        areas[label] = max(min(area / size, 1.0), areas.get(label, 0.0))
    if flat:
        warnings.warn(
            f'{first_flat} has a bbox without width or height, as {flat} in all; their labels count as present, as in'
            ' published results.',
            stacklevel=2,
        )

    kept = [image_id for image_id in sorted(paths) if keep_unlabelled or largest[image_id]]
    if not kept:
        raise InputError(f'{annotation_file}: holds no {"image" if keep_unlabelled else "labelled image"}.')
    labels = [sorted(largest[image_id]) for image_id in kept]
    return Records(
        label_names=[names[category_id] for category_id in sorted(names)],
        images=[paths[image_id] for image_id in kept],
        labels=labels,
        ignore=[[] for _ in kept],
        areas=[[largest[image_id][label] for label in row] for image_id, row in zip(kept, labels, strict=True)],
        image_ids=[str(image_id) for image_id in kept],
    )


def _content(annotation_file: Path) -> dict[str, list]:
    """Reads the file and makes sure that it holds the three lists."""
    try:
        with open(annotation_file, encoding='utf-8') as file:
            content = json.load(file, object_hook=_without_outline)
    except UnicodeDecodeError as e:
        raise InputError(f'{annotation_file}: is not UTF-8 ({e}); unpack it again.') from None
    except RecursionError:
        raise InputError(f"{annotation_file}: is nested too deeply for COCO's format; unpack it again.") from None
    except ValueError as e:
        raise InputError(f'{annotation_file}: is not whole JSON ({e}); unpack it again.') from None
    if not isinstance(content, dict):
        raise InputError(
            f"{annotation_file}: the file is not as COCO's format has it (it holds {shown(content)}, not an object)."
        )
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content.get(key), list):
            problem = f'is {shown(content[key])}, not a list' if key in content else 'is missing'
            raise InputError(f"{annotation_file}: the file is not as COCO's format has it ('{key}' {problem}).")
    return content


def _without_outline(node: dict) -> dict:
    # Outlines are most of the file: dropped as they are parsed, they never fill the memory together.
    node.pop('segmentation', None)
    return node


def _rows(annotation_file: Path, content: dict[str, list], key: str, fields: tuple[str, ...]) -> Iterator[tuple]:
    """Gives, for each row of a list, where it stands and the values of its fields."""
    for number, row in enumerate(content[key]):
        where = f'{annotation_file}: {key}[{number}]'
        try:
            yield where, [row[field] for field in fields]
        except KeyError as e:
            raise InputError(f"{where} is not as COCO's format has it ({e} is missing).") from None
        except TypeError:
            raise InputError(f"{where} is not as COCO's format has it (it is {shown(row)}, not an object).") from None


def _categories(annotation_file: Path, content: dict[str, list]) -> dict[int, str]:
    """Reads names by category id."""
    names: dict[int, str] = {}
    for where, (category_id, name) in _rows(annotation_file, content, 'categories', ('id', 'name')):
        if type(category_id) is not int:
            raise InputError(f'{where} has id {shown(category_id)}, not a whole number.')
        if not _is_name(name):
            raise InputError(f'{where} has name {shown(name)}, not text on one line.')
        if category_id in names:
            raise InputError(f'{where} has id {category_id}, which an earlier category has too.')
        if name in names.values():
            raise InputError(f'{where} has name {shown(name)}, which an earlier category has too.')
        names[category_id] = name
    if not names:
        raise InputError(f'{annotation_file}: holds no category.')
    return names


def _images(
    annotation_file: Path, content: dict[str, list], image_folder: Path
) -> tuple[dict[int, str], dict[int, int]]:
    """Reads paths and numbers of pixels by image id."""
    with os.scandir(image_folder) as entries:
        on_disk = {entry.name for entry in entries if entry.is_file()}
    paths: dict[int, str] = {}
    sizes: dict[int, int] = {}
    seen: set[str] = set()
    fields = ('id', 'file_name', 'width', 'height')
    for where, (image_id, file_name, width, height) in _rows(annotation_file, content, 'images', fields):
        if type(image_id) is not int:
            raise InputError(f'{where} has id {shown(image_id)}, not a whole number.')
        if image_id in paths:
            raise InputError(f'{where} has id {image_id}, which an earlier image has too.')
        for field, side in (('width', width), ('height', height)):
            if type(side) is not int or not 0 < side <= MOST_PIXELS:
                raise InputError(f'{where} has {field} {shown(side)}, not a whole number from 1 to {MOST_PIXELS:,}.')
        if not _is_name(file_name):
            raise InputError(f'{where} has file_name {shown(file_name)}, not text on one line.')
        if file_name in on_disk:
            path = os.path.join(image_folder, file_name)
        else:
            path = str(locate(image_folder, file_name, where))
            if not os.path.isfile(path):
                raise InputError(f'{where} names {shown(file_name)}, which is not in {image_folder}; unpack it again.')
        if path in seen:
            raise InputError(f'{where} names {shown(file_name)}, which an earlier image names too.')
        seen.add(path)
        paths[image_id], sizes[image_id] = path, width * height
    return paths, sizes


def _is_name(value: object) -> bool:
    return type(value) is str and bool(value.strip()) and is_one_line(value)
