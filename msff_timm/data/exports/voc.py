"""VOC-style XML with labels of your own, as labelImg, CVAT, Roboflow and other tools write it."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from datasets import Dataset

from ...errors import InputError
from ..records import Records, cached
from ..table_splits import standard_split
from ..text import check_names, join_names
from ..voc import VocFiles, read_files
from ..voc_files import decode, read_lines
from .known import is_official_voc
from .splits import choose_split, rows_of_split
from .tree import Tree, nearest, read_tree

__all__ = ['load', 'recognise']

ANNOTATION = re.compile(r'<annotation[\s>]')
HEAD = 1 << 12  # bytes of a file that hold its first tag
MOST = 3  # XML files in one folder that are looked at to recognise the format


def recognise(root: Path) -> str | None:
    """Returns the first XML file of VOC; None in VOC's official layout."""
    tree = read_tree(root)
    if is_official_voc(tree):
        return None
    return next((path for path in islice(tree.find('.xml', most=MOST), 100) if _is_voc(tree.root / path)), None)


def load(
    split: str,
    root: Path,
    *,
    difficult: str,
    missing: str | None,
    image_root: str | None,
    label_names: Sequence[str] | None,
) -> Dataset:
    """Loads one split: that of the lists in `ImageSets/Main`, else of the folders of the images.

    The XML decides which labels are present. An image belongs to the XML of its name, without the suffix, in the
    nearest folder. An image without XML in a folder of such images is missing its annotation.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of the XML and the images.
        difficult: Treatment of difficult labels, see `msff_timm.data.load`.
        missing: Treatment of missing images and XML, see `msff_timm.data.load`.
        image_root: Folder of the images; None if it is in `root`.
        label_names: Label names in the order of the logits; None for those of the XML of all splits, sorted.

    Raises:
        InputError: There is no XML of VOC, or no image of the split.
    """
    check_names('data.label_names', label_names)
    tree = Tree(root)
    images, xml_files = _pair(tree, Tree(Path(image_root or tree.root)))
    image_base = Path(os.path.abspath(image_root or tree.root))
    ids, source, notes = _ids_of_split(split, tree, images, xml_files)
    if label_names is not None:
        xml_files = {image_id: xml_files[image_id] for image_id in ids if image_id in xml_files}
    files = VocFiles(
        split_file=source,
        lines=dict.fromkeys(ids, 0),
        image_folder=image_base,
        images=images,
        xml_files={image_id: tree.root / path for image_id, path in xml_files.items()},
        class_files=[],
        label_names=None if label_names is None else list(label_names),
        has_labels=True,
        notes=[],
        is_export=True,
    )

    def read() -> Records:
        records = read_files(files, difficult, split, missing)
        records.notes += notes
        return records

    return cached(
        read,
        files.xml_files.values(),
        reader='voc',
        split=split,
        root=str(tree.root),
        image_root=str(image_base),
        difficult=difficult,
        missing=missing,
        label_names=label_names,
        files=[ids, images, xml_files],
    )


def _is_voc(path: Path) -> bool:
    try:
        with open(path, 'rb') as file:
            return bool(ANNOTATION.search(decode(file.read(HEAD))))
    except (OSError, LookupError):
        return False


def _pair(tree: Tree, image_tree: Tree) -> tuple[dict[str, str], dict[str, str]]:
    """Returns image and XML of each id, which is the path of the image, or of the XML if there is no image."""
    images, xml_files = {}, {}
    folders = set()
    for path in tree.find('.xml'):
        stem = os.path.splitext(os.path.basename(path))[0]
        found = nearest(path, image_tree.by_stem.get(stem, []))
        if len(found) > 1:
            raise InputError(f'{tree.root / path}: may be of {found[0]} or {found[1]}: remove one of them.')
        if found and found[0] in xml_files:
            raise InputError(f'{tree.root}: {xml_files[found[0]]} and {path} may both be of {found[0]}: remove one.')
        if found:
            images[found[0]], xml_files[found[0]] = found[0], path
            folders.add(os.path.dirname(found[0]))
        elif _is_voc(tree.root / path):
            xml_files[path] = path
    if not xml_files:
        raise InputError(f'{tree.root}: contains no XML of VOC: check data.root.')
    for path in image_tree.images:
        if path not in images and os.path.dirname(path) in folders:
            images[path] = path
    return images, xml_files


def _ids_of_split(
    split: str, tree: Tree, images: dict[str, str], xml_files: dict[str, str]
) -> tuple[list[str], Path, list[str]]:
    """Returns the ids of a split, the file or folder that decides, and notes on it."""
    ids = sorted({*images, *xml_files})
    lists = _lists(tree)
    if lists:
        target = choose_split(split, lists, tree.root)
        by_stem = defaultdict(list)
        for image_id in ids:
            by_stem[os.path.splitext(os.path.basename(image_id))[0]].append(image_id)
        path = lists[target]
        names = [' '.join(words).strip('"').replace('\\', '/') for _, words in read_lines(tree.root / path)]
        found = [_find(name, path, by_stem) for name in dict.fromkeys(names)]
        return found, tree.root / path, [f'splits: by the lists in {os.path.dirname(path)}']
    rows, note = rows_of_split(ids, split, tree.root)
    return [ids[row] for row in rows], tree.root, [note]


def _find(name: str, source: str, by_stem: dict[str, list[str]]) -> str:
    """Returns the id that a line of a list means; the line itself if there is neither image nor XML."""
    candidates = by_stem.get(os.path.basename(name), []) or by_stem.get(os.path.splitext(os.path.basename(name))[0], [])
    ends = [each for each in candidates if f'/{os.path.splitext(each)[0]}'.endswith(f'/{name}')]
    found = nearest(source, ends or candidates)
    if len(found) > 1:
        raise InputError(f'{source}: {name!r} may be {found[0]} or {found[1]}: write its folder in the list.')
    return found[0] if found else name


def _lists(tree: Tree) -> dict[str | None, str]:
    """Returns the list in `ImageSets/Main` of each split; `trainval` is that of training if there is no `train`."""
    folders = [folder for folder in tree.files if f'/{folder}'.endswith('/ImageSets/Main')]
    if len(folders) > 1:
        raise InputError(f'{tree.root}: contains {join_names(folders)}: set data.root to the folder above one of them.')
    lists: dict[str | None, str] = {}
    for folder in folders:
        for name in sorted(tree.files[folder], key=lambda name: name.startswith('trainval')):
            stem, suffix = os.path.splitext(name)
            split = 'train' if stem.lower() == 'trainval' else standard_split(stem)
            if suffix == '.txt' and split:
                lists.setdefault(split, f'{folder}/{name}')
    return lists
