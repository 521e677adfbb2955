"""Reader of a folder per label (`train/cat/1.jpg`, `train/dog/1.jpg`), where an image may be in several folders.

Files of the same content are one image with the labels of all their folders. Labels of other folders are absent.
CVAT's export "ImageNet" has this layout, too.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from ...errors import InputError, unknown
from ..formats import is_image
from ..records import Records, cached, file_digest
from ..table_splits import standard_split
from ..text import check_names, is_one_line, join_names, quote
from .splits import choose_split
from .tree import Tree, parts_of, read_tree

__all__ = ['load', 'recognise']

NO_LABEL = 'no_label'  # folder of CVAT and Datumaro for images without a label
# Folders of other formats, in lower case; their names are no labels
STORES = frozenset(
    'annotation annotations data dataset image imagefiles images imagesets img imgs jpegimages label labels mask masks'
    ' photos pictures segmentationclass segmentationobject'.split()
)

Folders = dict[str, list[str]]  # images in the folder of each label, relative to the root


def recognise(root: Path) -> str | None:
    """Returns the first folders if images lie in a folder per label, two at least."""
    if root.is_file():
        return None
    try:
        splits, _ = _find(read_tree(root))
    except InputError:
        return None
    labels = sorted({label for folders in splits.values() for label in folders})
    if len(labels) < 2 or not STORES.isdisjoint(map(str.lower, labels)):
        return None
    return f'a folder of images per label ({join_names(labels, 5)})'


def load(split: str, root: Path, *, label_names: Sequence[str] | None = None) -> Dataset:
    """Loads one split of images in a folder per label.

    Without folders of splits, all images belong to `train`. The labels of all splits, sorted, are the label names.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of the folders of splits or labels.
        label_names: Label names in the order of the logits, or None.

    Raises:
        InputError: There are no folders of labels, or they hold folders that may be labels themselves.
    """
    tree = Tree(root)
    splits, notes = _find(tree)
    choose_split(split, splits, tree.root)
    files = sorted(name for files in splits[split].values() for name in files)
    states = [os.stat(tree.root / name) for name in files]
    stamps = [(name, state.st_size, state.st_mtime_ns) for name, state in zip(files, states, strict=True)]
    names = sorted({label for folders in splits.values() for label in folders} - {NO_LABEL})
    check_names(str(root), names)
    return cached(
        lambda: _read(tree.root, splits[split], names, label_names, notes),
        [],
        reader='class_folders',
        root=str(tree.root),
        split=split,
        names=names,
        label_names=label_names,
        notes=notes,
        files=hashlib.sha256(repr(stamps).encode()).hexdigest(),
    )


def _find(tree: Tree) -> tuple[dict[str, Folders], list[str]]:
    """Returns the images in the folder of each label, by split, and notes on how the folders were read."""
    images = {}
    for folder, names in tree.files.items():
        if found := [name for name in names if is_image(tree.root / folder / name)]:
            images[tuple(parts_of(folder))] = found
    tops: dict[str, str] = {}
    for parts in sorted(images):
        # A folder such as `train` without folders of images is a label, or has no labels.
        split = standard_split(parts[0]) if len(parts) > 1 else None
        if split is None:
            continue
        if tops.setdefault(split, parts[0]) != parts[0]:
            raise InputError(f'{tree.root}: both {tops[split]} and {parts[0]} are the split {split}: rename one.')
    below = {split: (top,) for split, top in tops.items()} or {'train': ()}
    inner = {
        split: {parts[len(start) :]: parts for parts in images if parts[: len(start)] == start}
        for split, start in below.items()
    }
    paths = [path for folders in inner.values() for path in folders if path]
    notes = []
    if all(standard_split(path[0]) for path in paths):
        found = f' (the only folders of images are {join_names(sorted({path[0] for path in paths}))})' if paths else ''
        raise InputError(f'{tree.root}: contains no folder of images per label, e.g. train/cat/1.jpg{found}.')
    if any(len(path) > 1 for path in paths):
        # The same folder in that of each label, e.g. `cat/images` and `dog/images`, is not another label.
        if {len(path) for path in paths} != {2} or len({path[1] for path in paths}) > 1 or len(paths) < 2:
            outer = next(path for path in sorted(paths) if len(path) > 1)
            others = sorted({path[1] for path in paths if path[0] == outer[0] and len(path) > 1})
            raise InputError(
                f'{tree.root}: the folder {outer[0]!r} contains folders of images ({join_names(others, 5)}), and the'
                ' names of both may be labels: make it one folder per label, or set data.root to the folder above the'
                ' labels.'
            )
        notes.append(f'labels: the folders above {paths[0][1]}')
    used = {parts for folders in inner.values() for path, parts in folders.items() if path}
    unused = [parts for parts in images if parts not in used]
    if unused:
        count = sum(len(images[parts]) for parts in unused)
        where = join_names(sorted('/'.join(parts) or '.' for parts in unused), 5)
        notes.append(f'not used: {count} images that are in no folder of a label ({where})')
    splits: dict[str, Folders] = {}
    for split, folders in inner.items():
        for path, parts in folders.items():
            if path:
                files = ['/'.join((*parts, name)) for name in images[parts]]
                splits.setdefault(split, {}).setdefault(path[0], []).extend(files)
    return splits, notes


def _read(
    root: Path, folders: Folders, names: list[str], label_names: Sequence[str] | None, notes: list[str]
) -> Records:
    if label_names is None:
        label_names = names
    for name in names:
        if name not in label_names:
            raise InputError(f'{root}: {unknown("label", name, label_names)}')
    labels_of = {name: label for label, files in folders.items() for name in files}
    for name in labels_of:
        if not is_one_line(name):
            raise InputError(f'{root}: the name {quote(name)} is not UTF-8, or contains a line break: rename the file.')
    groups = _same_content(root, sorted(labels_of))
    number_of = {name: number for number, name in enumerate(label_names)}
    labels = [sorted({number_of[labels_of[name]] for name in group if labels_of[name] != NO_LABEL}) for group in groups]
    united = sum(map(len, groups)) - len(groups)
    several = sum(len(row) > 1 for row in labels)
    note = f'labels: {len(names)} folders ({join_names(names, 5)})'
    note += f'; {united} files united with an earlier one of the same content'
    note += f', {several} of {len(groups)} images have several labels'
    if NO_LABEL in folders:
        note += f'; images of the folder {NO_LABEL} have none'
    return Records(
        label_names=list(label_names),
        images=[str(root / group[0]) for group in groups],
        labels=labels,
        ignore=[[] for _ in groups],
        areas=[[] for _ in groups],
        image_ids=[group[0] for group in groups],
        notes=[note, *notes],
    )


def _same_content(root: Path, names: list[str]) -> list[list[str]]:
    """Groups files by their content, in the order of their first names; only files of the same size are read."""
    sizes = {name: os.path.getsize(root / name) for name in names}
    counts = Counter(sizes.values())
    groups = defaultdict(list)
    for name in names:
        groups[sizes[name], file_digest(root / name) if counts[sizes[name]] > 1 else name].append(name)
    return list(groups.values())
