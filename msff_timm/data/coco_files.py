"""Files of COCO's JSON, official or from other tools: a label needs only the category of an annotation."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import InputError
from .json_files import read_json
from .text import is_one_line, quote

__all__ = ['CocoFile', 'CocoImages', 'areas_of', 'id_of', 'name_of', 'order_of']

MAX_SIDE = 1_000_000  # pixels; a larger side is an error in the file
ROUNDING = 1.01  # tolerance of areas: they are rounded, and outlines run along the edge of the image
UNKNOWN = math.inf  # area of an instance; the largest of several is then unknown too
NUMBER_OF_TEXT = re.compile(r'-?[0-9]{1,18}', re.ASCII)


@dataclass
class CocoImages:
    """Images of an annotation file; each one whose file exists is a row.

    Attributes:
        paths: Path of each row.
        ids: Id of each row, for the order.
        names: Id of each row as written in the file.
        row_of: Row of each image id; None if the file is missing.
        sizes: Number of pixels of each image id; 0 if it is unknown.
    """

    paths: list[str] = field(default_factory=list)
    ids: list[int | str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    row_of: dict[int | str, int | None] = field(default_factory=dict)
    sizes: dict[int | str, float] = field(default_factory=dict)

    def order(self) -> list[int]:
        """Returns the rows in the order of their ids."""
        return sorted(range(len(self.ids)), key=lambda row: order_of(self.ids[row]))


class CocoFile:
    """An annotation file.

    Args:
        path: Path of the file.

    Attributes:
        lost: Descriptions of unusable content, with counts.
        notes: Other remarks.

    Raises:
        InputError: The file is not JSON, or lacks one of the three lists.
    """

    def __init__(self, path: Path):
        self.path = path
        self.content = _read(path)
        self.lost: list[str] = []
        self.notes: list[str] = []

    def categories(self) -> dict[int | str, str]:
        """Returns the name of each category id in the order of the ids: numbers before other text."""
        names: dict[int | str, str] = {}
        for where, category_id, row in self._rows('categories'):
            name = str(row['name']) if type(row.get('name')) is int else row.get('name')
            if not _is_name(name):
                raise InputError(f'{where} has name {quote(name)}: must be text on one line.')
            if names.get(category_id, name) != name:
                raise InputError(f'{where} has id {quote(row["id"])}, which an earlier category has too: change one.')
            if category_id not in names and name in names.values():
                place = where[len(str(self.path)) + 2 :]
                self.notes.append(f'{place} repeats the name {quote(name)} and counts as the same label')
            names[category_id] = name
        if not names:
            raise InputError(f'{self.path}: contains no categories.')
        return {key: names[key] for key in sorted(names, key=order_of)}

    def images(self, folder: Path, find: Callable[[dict, str], tuple[str, str | None]]) -> CocoImages:
        """Finds the images.

        Args:
            folder: Folder of the images, for messages.
            find: Function from an entry and its location to the name of its file, and its path or None.
        """
        images = CocoImages()
        rows: dict[str, int] = {}
        missing, repeated = [], []
        for where, image_id, row in self._rows('images'):
            if image_id in images.row_of:
                raise InputError(f'{where} has id {quote(row["id"])}, which an earlier image has too: change one.')
            width, height = _number(row.get('width')), _number(row.get('height'))
            has_size = 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE
            images.sizes[image_id] = width * height if has_size else 0
            name, path = find(row, where)
            place = f'{where[len(str(self.path)) + 2 :]} names {quote(name)}'
            if path is None:
                missing.append(place)
            elif path in rows:
                repeated.append(place)
            else:
                rows[path] = len(images.paths)
                images.paths.append(path)
                images.ids.append(image_id)
                images.names.append(row['id'] if type(row['id']) is str else str(image_id))
            images.row_of[image_id] = rows.get(path)
        if missing:
            total = len(self.content['images'])
            problem = f'images that are not in {folder}: {len(missing)} of {total} ({missing[0]})'
            if len(missing) == total:
                raise InputError(f'{self.path}: {problem}; move them there, or fix their file_name.')
            self.lost.append(problem)
        if repeated:
            self.notes.append(f'images that repeat the file of an earlier one: {len(repeated)} ({repeated[0]}); merged')
        return images

    def largest_areas(self, images: CocoImages, label_of: dict[int | str, int]) -> list[dict[int, float]]:
        """Returns the relative area of the largest instance of each label in each row of the images.

        Args:
            images: Images of the file.
            label_of: Index of the label of each category id.
        """
        largest: list[dict[int, float]] = [{} for _ in images.paths]
        strays, unknown_areas, empty = [], [], []  # positions in the list
        row_of, sizes = images.row_of, images.sizes
        for number, annotation in enumerate(self._annotations()):
            image_id, category_id, area = (annotation.get(key) for key in ('image_id', 'category_id', 'area'))
            image_id = image_id if type(image_id) is int else id_of(image_id)
            label = label_of.get(category_id if type(category_id) is int else id_of(category_id))
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

        total = len(self.content['annotations'])
        if strays:
            first = self.content['annotations'][strays[0]]
            ids = ' and '.join(f'{key} {quote(first.get(key))}' for key in ('image_id', 'category_id'))
            count, place = f'{len(strays)} of {total}', f'annotations[{strays[0]}]'
            problem = f'annotations of no image or category: {count} ({place} has {ids})'
            if len(strays) == total:
                raise InputError(f'{self.path}: {problem}; fix the ids of the images and categories.')
            self.lost.append(problem)
        if unknown_areas:
            place = f'annotations[{unknown_areas[0]}]'
            self.notes.append(f'the area of {len(unknown_areas)} of {total} annotations is unknown (e.g. {place})')
        if empty:
            count, place = f'{len(empty)} of {total}', f'annotations[{empty[0]}]'
            self.notes.append(f'the area of {count} annotations is 0 (e.g. {place}); their labels are present')
        return largest

    def used_categories(self) -> set[int | str | None]:
        """Returns the ids of the categories that annotations have."""
        return {id_of(annotation.get('category_id')) for annotation in self._annotations()}

    def _annotations(self) -> Iterator[dict]:
        for number, annotation in enumerate(self.content['annotations']):
            if type(annotation) is not dict:
                raise InputError(f'{self.path}: annotations[{number}] is {quote(annotation)}: must be an object.')
            yield annotation

    def _rows(self, key: str) -> Iterator[tuple[str, int | str, dict]]:
        """Yields location, id and content of each row of a list."""
        for number, row in enumerate(self.content[key]):
            where = f'{self.path}: {key}[{number}]'
            if type(row) is not dict:
                raise InputError(f'{where} is {quote(row)}: must be an object.')
            if 'id' not in row:
                raise InputError(f"{where}: 'id' is missing.")
            row_id = id_of(row['id'])
            if row_id is None:
                raise InputError(f'{where} has id {quote(row["id"])}: must be a whole number or text on one line.')
            yield where, row_id, row


def _read(path: Path) -> dict[str, list]:
    """Reads the file and checks that it contains the three lists."""
    content = read_json(path, _without_outline)
    if not isinstance(content, dict):
        raise InputError(f'{path}: contains {quote(content)}: must be an object.')
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content.get(key), list):
            problem = f'is {quote(content[key])}: must be a list' if key in content else 'is missing'
            raise InputError(f"{path}: '{key}' {problem}.")
    return content


def _without_outline(node: dict) -> dict:
    # Outlines are most of the file; dropped while parsing, they never fill the memory.
    node.pop('segmentation', None)
    return node


def id_of(value: object) -> int | str | None:
    """Returns one id for 7, 7.0 and '7', which different tools write for the same; None if it is invalid."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if _is_name(value):
        return int(value) if NUMBER_OF_TEXT.fullmatch(value) else value
    return None


def order_of(row_id: int | str) -> tuple[bool, int | str]:
    return type(row_id) is str, row_id


def name_of(row: dict, where: str) -> str:
    """Returns the name of an image's file; LVIS has a URL in its place.

    Raises:
        InputError: The name is invalid.
    """
    name = row.get('file_name')
    if not name and _is_name(row.get('coco_url')):
        name = '/'.join(unquote(urlsplit(row['coco_url']).path).split('/')[-2:])
    if not _is_name(name):
        raise InputError(f'{where} has file_name {quote(name)}: must be text on one line.')
    return name


def _relative_area(area: object, box: object, size: float) -> float:
    """Returns the relative area of an instance from its area, or else from its box."""
    area = _number(area)
    if not 0 <= area <= ROUNDING * size and type(box) is list and len(box) == 4:
        width, height = _number(box[2]), _number(box[3])
        area = width * height if width >= 0 and height >= 0 else math.nan
    return min(area / size, 1.0) if size and 0 <= area <= ROUNDING * size else UNKNOWN


def areas_of(largest: dict[int, float], labels: list[int]) -> list[float]:
    """Returns the areas of labels as `Records` has them: NaN if unknown, an empty list if all are."""
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
