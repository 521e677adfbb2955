"""Files that describe YOLO's data: `data.yaml` of Ultralytics, `obj.data` of darknet, or a list of the classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...errors import InputError
from ...files import read_small
from ..table_splits import standard_split
from ..text import check_names, quote
from .tree import Tree

__all__ = ['YoloLayout', 'describes_data', 'find_layout', 'label_files', 'read_lines', 'resolve']

LARGEST = 1 << 20  # bytes of a file that describes the data
LARGEST_LIST = 1 << 28  # bytes of a list of images
NAMES = ('.names', 'classes.txt', '_darknet.labels')  # ends of the files that name the classes, one per line
MOST = 20  # files of a folder that are looked at to recognise the format
MOST_IMAGES = 200  # images whose text files are looked at


@dataclass
class YoloLayout:
    """Description of the data.

    Attributes:
        source: File that names the classes.
        names: Name of each class number.
        splits: Folders of images, images, or files that list images, of each split; None for the whole root.
        bases: Folders that paths are relative to, the first one that fits.
        has_keypoints: True if lines have keypoints after the box.
    """

    source: Path
    names: dict[int, str]
    splits: dict[str | None, list[str]]
    bases: list[Path]
    has_keypoints: bool = False


def describes_data(tree: Tree) -> str | None:
    """Returns the file that describes the data or names the classes, or None if there is none."""
    for find in (_find_yaml, _find_darknet):
        if path := next(find(tree), None):
            return path
    names = next(tree.find(*NAMES, most=MOST), None)
    files = (file for image in (tree.images[:MOST_IMAGES] if names else ()) for file in label_files(image))
    return names if any(_has_boxes(tree.root / file) for file in files) else None


def _has_boxes(path: Path) -> bool:
    """Returns whether the first line of a text file holds a class number and a box."""
    try:
        first = next(iter(read_lines(path)), '')
        return len([float(word) for word in first.split()]) >= 5
    except ValueError:  # an InputError is one, too
        return False


def _find_yaml(tree: Tree) -> Iterator[str]:
    return (path for path in tree.find('.yaml', '.yml', most=MOST) if _content(tree.root / path))


def _find_darknet(tree: Tree) -> Iterator[str]:
    return (path for path in tree.find('.data', most=MOST) if {'names', 'train'} <= _settings(tree.root / path).keys())


def find_layout(tree: Tree, image_root: str | None) -> YoloLayout:
    """Finds and reads the description of the data.

    Raises:
        InputError: There is none, there are several, or it is invalid.
    """
    bases = [Path(image_root)] if image_root else []
    for find, read in ((_find_yaml, _read_yaml), (_find_darknet, _read_darknet)):
        found = list(find(tree))
        if len(found) > 1:
            raise InputError(f'{tree.root}: both {found[0]} and {found[1]} describe data: set data.root to one.')
        if found:
            return read(tree.root / found[0], bases)
    found = list(tree.find(*NAMES, most=MOST))
    if not found:
        raise InputError(f'{tree.root}: contains no data.yaml with names and train, and no obj.names or classes.txt.')
    contents = {path: read_lines(tree.root / path) for path in found}
    for path, names in contents.items():
        if names != contents[found[0]]:
            raise InputError(f'{tree.root}: {found[0]} and {path} name other classes: remove one of them.')
    image_tree, source = Tree(Path(image_root or tree.root)), tree.root / found[0]
    names = dict(enumerate(contents[found[0]]))
    _check_classes(source, names)
    return YoloLayout(source, names, {None: image_tree.images}, [image_tree.root, tree.root])


def _content(path: Path) -> dict | None:
    """Returns the content of a YAML file that names classes and splits; None for other files."""
    try:
        # All scalars are text: names such as yes, no and 1 stay as they are written.
        content = yaml.load(read_small(path, LARGEST, 'YAML'), Loader=yaml.BaseLoader)
    except (InputError, yaml.YAMLError, ValueError, RecursionError):
        return None
    is_yolo = isinstance(content, dict) and 'names' in content and any(map(standard_split, filter(_is_text, content)))
    return content if is_yolo else None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _read_yaml(path: Path, bases: list[Path]) -> YoloLayout:
    content = _content(path)
    names = content['names']
    if isinstance(names, list):
        names = dict(enumerate(names))
    elif isinstance(names, dict) and all(key.isdecimal() for key in names if isinstance(key, str)):
        names = {int(key): name for key, name in names.items()}
    else:
        raise InputError(f'{path}: names is {quote(names)}: must be a list, or a mapping from class numbers to names.')
    count = content.get('nc', '')
    if _is_text(count) and count.isdecimal() and int(count) != len(names):
        raise InputError(f'{path}: nc is {count}, but there are {len(names)} names: make them agree.')
    _check_classes(path, names)
    splits = {}
    for key, value in content.items():
        split = standard_split(key)
        entries = [each for each in (value if isinstance(value, list) else [value]) if each]
        if split is None or not entries:
            continue
        if not all(map(_is_text, entries)):
            raise InputError(f'{path}: {key} is {quote(value)}: must be a folder, a list of folders, or a text file.')
        if split in splits:
            raise InputError(f'{path}: {key} means the split {split}, which another key means, too: remove one.')
        splits[split] = entries
    top = content.get('path')
    bases += [path.parent / top] if top and _is_text(top) else []
    return YoloLayout(path, names, splits, [*bases, path.parent], 'kpt_shape' in content)


def _check_classes(path: Path, names: dict[int, object]) -> None:
    for number, name in names.items():
        if not _is_text(name):
            raise InputError(f'{path}: the name of class {number} is {quote(name)}: must be text.')
    check_names(f'{path}: names', dict.fromkeys(names.values()))
    if not names:
        raise InputError(f'{path}: names no classes.')


def _settings(path: Path) -> dict[str, str]:
    """Returns the settings of darknet's `obj.data`: lines of `key = value`."""
    try:
        lines = read_lines(path)
    except InputError:
        return {}
    pairs = (line.partition('=') for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _read_darknet(path: Path, bases: list[Path]) -> YoloLayout:
    settings = _settings(path)
    bases = [*bases, path.parent]
    source = resolve(settings['names'], bases)
    if source is None:
        raise InputError(f'{path}: names is {settings["names"]}: there is no such file in {path.parent}.')
    names = dict(enumerate(read_lines(source)))
    _check_classes(source, names)
    splits = {split: [value] for key, value in settings.items() if value and (split := standard_split(key))}
    return YoloLayout(source, names, splits, bases)


def read_lines(path: Path, keep_blank: bool = False) -> list[str]:
    """Returns the lines of a text file without the space around them, and without blank ones unless they are kept."""
    try:
        lines = read_small(path, LARGEST_LIST, 'text').decode('utf-8-sig').splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f'{path}: is not UTF-8 ({e}): save it as UTF-8.') from None
    return [line.strip() for line in lines if keep_blank or line.strip()]


def resolve(name: str, bases: list[Path]) -> Path | None:
    """Returns the file or folder that a path means.

    Paths of another machine (`/content/set/valid/images`), or of another folder (`../valid/images`, `data/obj.names`),
    are read without their first parts; at least two parts are left if one of them names a folder.
    """
    parts = [part for part in name.replace('\\', '/').split('/') if part not in ('', '.')]
    num_up = next((number for number, part in enumerate(parts) if part != '..'), len(parts))
    within = [Path(*parts[num_up:])] if num_up else []
    # Roboflow writes `../train/images` for the folder beside `data.yaml`.
    for path in (*within, Path(name.strip())):
        for base in bases:
            if (found := Path(os.path.abspath(base / path))).exists():
                return found
    for start in range(num_up + 1, len(parts)):
        if len(parts) - start < 2 and not {*parts[:start]} <= {'..', 'data'}:
            break
        for base in bases:
            if '..' not in parts[start:] and (path := base.joinpath(*parts[start:])).exists():
                return Path(os.path.abspath(path))
    return None


def label_files(image: str) -> tuple[str, str]:
    """Returns the two paths that the text file of an image may have: with `labels` for `images`, or beside it."""
    stem = os.path.splitext(image)[0]
    *folders, name = stem.replace('\\', '/').split('/')
    if 'images' in folders:
        last = len(folders) - 1 - folders[::-1].index('images')
        folders[last] = 'labels'
    return f'{"/".join([*folders, name])}.txt', f'{stem}.txt'
