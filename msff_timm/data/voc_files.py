"""The files of PASCAL VOC's layout, and of what other tools write in it: lists of images, class files and XML."""

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
    'find_base',
    'find_images',
    'read_boxes',
    'read_ids',
    'read_objects',
    'read_states',
]

STATES = {'1': 1, '-1': -1, '0': 0}  # present, absent, present in difficult objects only
MOST_PIXELS = 1_000_000  # of a coordinate: more is a slip
DECLARED = re.compile(r'<\?xml[^>]*?encoding\s*=\s*["\']([\w.:-]+)["\']', re.ASCII)
DIFFICULT = ('1', 'true', 'yes')
REPLACED = '\ufffd'  # in the place of bytes that are not of the encoding

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VocObject:
    """An object in an image.

    Attributes:
        name: Name of its label; None where the XML has none that can be read.
        is_difficult: True where it is marked so.
        area: Area of its box, relative to the image; NaN where it is unknown.
    """

    name: str | None
    is_difficult: bool
    area: float


@dataclass(frozen=True)
class VocBoxes:
    """The boxes of an image.

    Each is (left, top, right, bottom) in pixels counted from 0, within the image; right and bottom are not part of it.

    Attributes:
        width: Width of the image in pixels.
        height: Height of it.
        easy: Boxes of objects that are not difficult, by label name.
        difficult: Boxes of difficult objects, by label name.
    """

    width: int
    height: int
    easy: dict[str, list[Box]]
    difficult: dict[str, list[Box]]


def find_base(year: str, root: str) -> Path:
    """Finds the folder `VOC{year}`: the root itself, in it, or in `VOCdevkit` in it."""
    base = Path(os.path.abspath(root))
    another_year = re.fullmatch(r'VOC\d{4}', base.name) and base.name != f'VOC{year}'
    for folder in (base, base / f'VOC{year}', base / 'VOCdevkit' / f'VOC{year}'):
        if (folder / 'ImageSets' / 'Main').is_dir() and not (another_year and folder == base):
            return folder
    raise InputError(
        f'{root} is not the root of VOC {year}: ImageSets/Main is neither in it nor in VOC{year} or'
        f' VOCdevkit/VOC{year} in it (found: {list_folder(root)}).'
    )


def find_images(folder: Path) -> dict[str, list[str]]:
    """Lists the image files of a folder by their id, the name without suffix; VOC's own `.jpg` comes first."""
    if not folder.is_dir():
        raise InputError(f'{folder}: is missing; the images belong there (found: {list_folder(folder.parent)}).')
    suffixes = Image.registered_extensions()
    names = defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() in suffixes and entry.is_file():
                names[stem].append(entry.name)
    return {stem: sorted(found, key=lambda name: (not name.endswith('.jpg'), name)) for stem, found in names.items()}


def read_ids(split_file: Path) -> dict[str, int]:
    """Reads the split's ids with their lines, in the file's order."""
    lines: dict[str, int] = {}
    for number, words in _lines(split_file):
        if len(words) != 1:
            raise InputError(f'{split_file}: line {number} is {quote(" ".join(words))}, not one id.')
        if os.path.basename(words[0]) != words[0]:
            raise InputError(f'{split_file}: line {number} has {quote(words[0])}, which leads to another folder.')
        if words[0] in lines:
            raise InputError(f'{split_file}: line {number} has {quote(words[0])} again, as in line {lines[words[0]]}.')
        lines[words[0]] = number
    if not lines:
        raise InputError(f'{split_file}: holds no id.')
    return lines


def read_states(class_file: Path, split_file: Path, lines: dict[str, int]) -> np.ndarray:
    """Reads a class file: 1, 0 or -1 for each image of the split, in the split's order."""
    states: dict[str, int] = {}
    for number, words in _lines(class_file):
        if len(words) != 2:
            raise InputError(f'{class_file}: line {number} is {quote(" ".join(words))}, not an id and 1, 0 or -1.')
        image_id, state = words
        if state not in STATES:
            raise InputError(f'{class_file}: line {number} has {quote(state)}, not 1, 0 or -1.')
        if image_id not in lines:
            raise InputError(f'{class_file}: line {number} has {quote(image_id)}, which is not in {split_file}.')
        if image_id in states:
            raise InputError(f'{class_file}: line {number} has {quote(image_id)} again.')
        states[image_id] = STATES[state]
    for image_id, line in lines.items():
        if image_id not in states:
            raise InputError(
                f'{class_file}: lacks {quote(image_id)}, line {line} of {split_file}; add a line with 1, 0 or -1.'
            )
    return np.array([states[image_id] for image_id in lines], np.int8)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Gives the number and the words of each line that is not blank."""
    try:
        content = path.read_bytes()
        text = content.decode('utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except UnicodeDecodeError as e:
        raise InputError(f'{path}: is not UTF-8 ({e}); save it as UTF-8.') from None
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror}).') from None
    for number, line in enumerate(text.split('\n'), 1):
        if words := line.split():
            yield number, words


def read_objects(xml_file: Path) -> list[VocObject]:
    """Reads the objects of an image.

    VOC counts pixels from 1 and counts both corners in, so a box is xmax - xmin + 1 wide; what juts out of the image
    does not count.

    Raises:
        InputError: There is no such file, or it is not the XML of VOC.
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
    """Reads the boxes of an image by label; objects whose name or box cannot be read are left out.

    Raises:
        InputError: There is no such file, it is not the XML of VOC, or it lacks the size of the image.
    """
    width, height, found = _read_annotation(xml_file)
    if not (width >= 1 and height >= 1):
        raise InputError(f'{xml_file}: lacks the size of the image; give its width and height in pixels.')
    easy: dict[str, list[Box]] = {}
    difficult: dict[str, list[Box]] = {}
    for name, is_difficult, box in found:
        if name is not None and box is not None:
            (difficult if is_difficult else easy).setdefault(name, []).append(box)
    return VocBoxes(int(width), int(height), easy, difficult)


def _read_annotation(xml_file: Path) -> tuple[float, float, list[tuple[str | None, bool, Box | None]]]:
    """Reads width and height of an image, and the name, the difficulty and the box of each object."""
    try:
        root = _parse(_decode(xml_file.read_bytes()))
    except OSError as e:
        raise InputError(f'{xml_file}: cannot be read ({e.strerror}).') from None
    except (expat.ExpatError, ValueError, LookupError) as e:
        raise InputError(f'{xml_file}: is not the XML of VOC ({" ".join(str(e).split())}).') from None
    if root.tag != 'annotation':
        raise InputError(f'{xml_file}: is not the XML of VOC (it holds {quote(root.tag)}, not annotation).')
    width, height = (_number(root.find('size'), side) for side in ('width', 'height'))
    objects = []
    for node in root.findall('object'):
        name = (node.findtext('name') or '').strip()
        is_name = name and REPLACED not in name and is_one_line(name)
        # Official files of 2011 leave it out here and there; other tools write words.
        is_difficult = (node.findtext('difficult') or '').strip().lower() in DIFFICULT
        objects.append((name if is_name else None, is_difficult, _box(node.find('bndbox'), width, height)))
    return width, height, objects


def _decode(content: bytes) -> str:
    """Decodes XML by its byte order mark, its declaration or as UTF-8; Python knows more encodings than expat."""
    encoding = json.detect_encoding(content)
    if encoding == 'utf-8':
        declared = DECLARED.match(content[:200].decode('latin-1'))
        # UTF-16 would have been found: such a declaration is left over from before the file was converted.
        if declared and not re.match(r'utf.?(16|32)', declared[1], re.IGNORECASE):
            encoding = declared[1]
    return content.decode(encoding, 'replace').removeprefix('\ufeff')


def _parse(text: str) -> ElementTree.Element:
    """Parses XML; a document type may be there, but no entities, which could fill the memory or name other files."""

    def refuse(*_: object) -> None:
        raise ValueError('it declares an entity, which VOC has not')

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.Parse(text, True)
    return builder.close()


def _box(node: ElementTree.Element | None, width: float, height: float) -> Box | None:
    """Reads a box, without what juts out of the image; None where nothing is left or a number is missing."""
    left, top, right, bottom = (_number(node, corner) for corner in ('xmin', 'ymin', 'xmax', 'ymax'))
    box = max(left, 1) - 1, max(top, 1) - 1, min(right, width), min(bottom, height)
    is_known = width >= 1 and height >= 1 and box[2] > box[0] and box[3] > box[1]
    return box if is_known else None


def _number(node: ElementTree.Element | None, tag: str) -> float:
    """Reads a number of pixels; NaN for what is none."""
    try:
        value = float(node.findtext(tag))
    except (AttributeError, TypeError, ValueError):  # no node, no text, no number
        return math.nan
    return value if abs(value) <= MOST_PIXELS else math.nan
