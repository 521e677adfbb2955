"""Files of the PASCAL VOC layout, official or from other tools: lists of images, class files and XML."""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from ..errors import InputError
from .text import is_one_line, list_folder, quote

__all__ = [
    'VocBoxes',
    'VocObject',
    'decode',
    'find_base',
    'find_images',
    'read_boxes',
    'read_ids',
    'read_lines',
    'read_objects',
    'read_states',
]

STATES = {'1': 1, '-1': -1, '0': 0}  # present, absent, present in difficult objects only
MAX_SIDE = 1_000_000  # pixels; a larger number is an error in the file
DECLARED = re.compile(r'<\?xml[^>]*?encoding\s*=\s*["\']([\w.:-]+)["\']', re.ASCII)
DIFFICULT = ('1', 'true', 'yes')
REPLACED = '\ufffd'  # stands for bytes that are invalid in the encoding

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VocObject:
    """An object in an image.

    Attributes:
        name: Label name; None if it is missing or invalid.
        is_difficult: True if the object is marked as difficult.
        area: Area of its box relative to the image; NaN if it is unknown.
    """

    name: str | None
    is_difficult: bool
    area: float


@dataclass(frozen=True)
class VocBoxes:
    """The boxes of an image.

    A box is (left, top, right, bottom) in pixels, counted from 0 and clipped to the image; right and bottom are
    exclusive.

    Attributes:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        easy: Boxes of objects that are not difficult, by label name.
        difficult: Boxes of difficult objects, by label name.
    """

    width: int
    height: int
    easy: dict[str, list[Box]]
    difficult: dict[str, list[Box]]


def find_base(year: str, root: str) -> Path:
    """Returns the folder `VOC{year}`: the root itself, or the folder in it or in its `VOCdevkit`."""
    base = Path(os.path.abspath(root))
    another_year = re.fullmatch(r'VOC\d{4}', base.name) and base.name != f'VOC{year}'
    for folder in (base, base / f'VOC{year}', base / 'VOCdevkit' / f'VOC{year}'):
        if (folder / 'ImageSets' / 'Main').is_dir() and not (another_year and folder == base):
            return folder
    raise InputError(
        f'{root}: neither it nor its VOC{year} or VOCdevkit/VOC{year} contains ImageSets/Main (found:'
        f' {list_folder(root)}): set data.root to the root of VOC {year}.'
    )


def find_images(folder: Path) -> dict[str, list[str]]:
    """Returns the image files of a folder by id, which is the name without suffix; `.jpg` comes first."""
    if not folder.is_dir():
        raise InputError(f'{folder}: is missing (found: {list_folder(folder.parent)}): move the images to this folder.')
    suffixes = Image.registered_extensions()
    names = defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in suffixes and entry.is_file():
                names[stem].append(entry.name)
    return {stem: sorted(found, key=lambda name: (not name.endswith('.jpg'), name)) for stem, found in names.items()}


def read_ids(split_file: Path) -> dict[str, int]:
    """Returns the line of each image id of a split, in the order of the file."""
    lines: dict[str, int] = {}
    for number, words in read_lines(split_file):
        if len(words) != 1:
            raise InputError(f'{split_file}: line {number} is {quote(" ".join(words))}: must be one image id.')
        if os.path.basename(words[0]) != words[0]:
            raise InputError(f'{split_file}: line {number} has {quote(words[0])}: must not be a path.')
        if words[0] in lines:
            raise InputError(f'{split_file}: line {number} repeats {quote(words[0])} of line {lines[words[0]]}.')
        lines[words[0]] = number
    if not lines:
        raise InputError(f'{split_file}: contains no image ids.')
    return lines


def read_states(class_file: Path, split_file: Path, lines: dict[str, int]) -> np.ndarray:
    """Reads a class file: the state of each image in the order of the split (1 present, 0 difficult, -1 absent)."""
    states: dict[str, int] = {}
    for number, words in read_lines(class_file):
        if len(words) != 2:
            raise InputError(
                f'{class_file}: line {number} is {quote(" ".join(words))}: must be an image id and 1, 0 or -1.'
            )
        image_id, state = words
        if state not in STATES:
            raise InputError(f'{class_file}: line {number} has {quote(state)}: must be 1, 0 or -1.')
        if image_id not in lines:
            raise InputError(f'{class_file}: line {number} has {quote(image_id)}, which is not in {split_file}.')
        if image_id in states:
            raise InputError(f'{class_file}: line {number} repeats {quote(image_id)}.')
        states[image_id] = STATES[state]
    for image_id, line in lines.items():
        if image_id not in states:
            raise InputError(
                f'{class_file}: lacks {quote(image_id)} of line {line} of {split_file}: add it with 1, 0 or -1.'
            )
    return np.array([states[image_id] for image_id in lines], np.int8)


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields number and words of each line that is not blank."""
    try:
        content = path.read_bytes()
        text = content.decode('utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except UnicodeDecodeError as e:
        raise InputError(f'{path}: is not UTF-8 ({e}): save it as UTF-8.') from None
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror}).') from None
    for number, line in enumerate(text.split('\n'), 1):
        if words := line.split():
            yield number, words


def read_objects(xml_file: Path) -> list[VocObject]:
    """Reads the objects of an image.

    VOC counts pixels from 1 and includes both corners, so a box is xmax - xmin + 1 wide. Boxes are clipped to the
    image.

    Raises:
        InputError: The file is missing, or is not XML of VOC.
    """
    width, height, found = _read_annotation(xml_file)
    objects = []
    for name, is_difficult, box in found:
        area = math.nan
        if box is not None:
            left, top, right, bottom = box
            area = (right - left) * (bottom - top) / (width * height)
        objects.append(VocObject(name, is_difficult, area))
    return objects


def read_boxes(xml_file: Path) -> VocBoxes:
    """Reads the boxes of an image by label; skips objects without a valid name or box.

    Raises:
        InputError: The file is missing, is not XML of VOC, or lacks the size of the image.
    """
    width, height, found = _read_annotation(xml_file)
    if not (width >= 1 and height >= 1):
        raise InputError(f'{xml_file}: lacks the size of the image: add its width and height in pixels.')
    easy: dict[str, list[Box]] = {}
    difficult: dict[str, list[Box]] = {}
    for name, is_difficult, box in found:
        if name is not None and box is not None:
            (difficult if is_difficult else easy).setdefault(name, []).append(box)
    return VocBoxes(int(width), int(height), easy, difficult)


def _read_annotation(xml_file: Path) -> tuple[float, float, list[tuple[str | None, bool, Box | None]]]:
    """Returns width and height of an image, and name, difficulty and box of each object."""
    try:
        root = _parse(decode(xml_file.read_bytes()))
    except OSError as e:
        raise InputError(f'{xml_file}: cannot be read ({e.strerror}).') from None
    except (expat.ExpatError, ValueError, LookupError) as e:
        raise InputError(f'{xml_file}: is not XML of VOC ({" ".join(str(e).split())}).') from None
    if root.tag != 'annotation':
        raise InputError(f'{xml_file}: is not XML of VOC (its root is {quote(root.tag)}, not annotation).')
    width, height = (_number(root.find('size'), side) for side in ('width', 'height'))
    objects = []
    for node in root.findall('object'):
        name = (node.findtext('name') or '').strip()
        is_name = name and REPLACED not in name and is_one_line(name)
        # Missing in some official files of 2011; other tools write words.
        is_difficult = (node.findtext('difficult') or '').strip().lower() in DIFFICULT
        objects.append((name if is_name else None, is_difficult, _box(node.find('bndbox'), width, height)))
    return width, height, objects


def decode(content: bytes) -> str:
    """Decodes XML by its byte order mark, its declaration, or as UTF-8; Python has more encodings than expat."""
    encoding = json.detect_encoding(content)
    if encoding == 'utf-8':
        declared = DECLARED.match(content[:200].decode('latin-1'))
        # UTF-16 would have been detected: the declaration is outdated since the file was converted.
        if declared and not re.match(r'utf.?(16|32)', declared[1], re.IGNORECASE):
            encoding = declared[1]
    return content.decode(encoding, 'replace').removeprefix('\ufeff')


def _parse(text: str) -> ElementTree.Element:
    """Parses XML; refuses entities, which could fill the memory or refer to other files."""

    def refuse(*_: object) -> None:
        raise ValueError('it declares an entity, which files of VOC never do')

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.Parse(text, True)
    return builder.close()


def _box(node: ElementTree.Element | None, width: float, height: float) -> Box | None:
    """Returns a box clipped to the image; None if it is empty or invalid."""
    left, top, right, bottom = (_number(node, corner) for corner in ('xmin', 'ymin', 'xmax', 'ymax'))
    box = max(left, 1) - 1, max(top, 1) - 1, min(right, width), min(bottom, height)
    return box if width >= 1 and height >= 1 and box[2] > box[0] and box[3] > box[1] else None


def _number(node: ElementTree.Element | None, tag: str) -> float:
    """Returns a number of pixels, or NaN."""
    try:
        value = float(node.findtext(tag))
    except (AttributeError, TypeError, ValueError):  # no node, no text, no number
        return math.nan
    return value if abs(value) <= MAX_SIDE else math.nan
