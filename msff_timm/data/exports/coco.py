"""COCO-style JSON of any name and layout, as Roboflow, CVAT, Label Studio, LVIS and other tools write it."""

import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ...errors import InputError, unknown
from ..coco_files import CocoFile, CocoImages, areas_of, id_of, name_of
from ..records import Records, cached, lists_of, make_warning
from ..table_splits import SPLITS
from ..text import check_names, join_names, quote
from .known import is_official_coco
from .splits import choose_split, folder_split, rows_of_split, word_split
from .tree import Tree, nearest, read_tree

__all__ = ['load', 'recognise']

KEYS = (b'"images"', b'"annotations"', b'"categories"')
MOST = 100  # JSON files in one folder that are looked at; more of them belong to one image each


def recognise(root: Path) -> str | None:
    """Returns the first file that holds images, annotations and categories; None in COCO's official layout."""
    tree = read_tree(root)
    if is_official_coco(tree):
        return None
    return next(_find_files(tree), None)


def load(
    split: str,
    root: Path,
    *,
    keep_unlabelled: bool | None,
    missing: str | None,
    image_root: str | None,
    label_names: Sequence[str] | None,
) -> Dataset:
    """Loads one split; the name of the file, else its folder, else the folders of the images say which rows it has.

    An image is found by its `file_name` or the end of it. Labels are in the order of the ids of their categories. An
    image whose verified absent labels are listed (`neg_category_ids` of LVIS) is unannotated for all other labels that
    it does not have.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of the files, or one of them.
        keep_unlabelled: False to leave out images without labels.
        missing: Treatment of missing images, see `msff_timm.data.load`.
        image_root: Folder of the images; None if it is in `root`.
        label_names: Label names in the order of the logits; None for all categories but Roboflow's placeholder.

    Raises:
        InputError: There is no file of the split, several may be meant, or a file is invalid.
    """
    check_names('data.label_names', label_names)
    tree = Tree(root)
    files, notes = _files_of_splits(tree)
    target = choose_split(split, files, tree.root)
    image_tree = Tree(Path(image_root or tree.root))
    used = files if label_names is None else {target: files[target]}
    return cached(
        lambda: _Reader(tree, image_tree, used, label_names, notes).read(split, target, keep_unlabelled, missing),
        [tree.root / path for path in used.values()],
        reader='coco',
        split=split,
        root=str(tree.root),
        image_root=str(image_tree.root),
        files=used,
        keep_unlabelled=keep_unlabelled,
        missing=missing,
        label_names=label_names,
        images=image_tree.digest(),
    )


def _find_files(tree: Tree) -> Iterator[str]:
    return (path for path in tree.find('.json', most=MOST) if _is_coco(tree.root / path))


def _is_coco(path: Path) -> bool:
    """Returns whether a file is JSON with the three lists of COCO."""
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content[:64].removeprefix(b'\xef\xbb\xbf').lstrip()
            return start.startswith(b'{') and all(content.find(key) >= 0 for key in KEYS)
    except (OSError, ValueError):  # it cannot be read, or is empty
        return False


def _files_of_splits(tree: Tree) -> tuple[dict[str | None, str], list[str]]:
    """Returns the file of each split, or a single one that no split is named by, and notes on the choice."""
    found = defaultdict(list)
    for path in _find_files(tree):
        found[word_split(path)].append(path)
    if not found:
        raise InputError(f'{tree.root}: no JSON in it has images, annotations and categories: check data.root.')
    notes = []
    if len(found) > 1 and (others := found.pop(None, [])):
        notes.append(f'not read: {join_names(others)} (no split in the name)')
    files = {}
    for split in [key for key in (*SPLITS, None) if key in found]:
        # COCO has its boxes in instances_train2017.json, and other annotations of the same images beside it.
        instances = [path for path in found[split] if os.path.basename(path).startswith('instances')]
        first, *more = instances or found[split]
        if more:
            what = f'of the split {split}' if split else 'without a split in the name'
            raise InputError(
                f'{tree.root}: both {first} and {more[0]} are COCO-style JSON {what}: set data.root to one of them, or'
                ' name them by their splits.'
            )
        files[split] = first
    if None not in files:
        notes.append(f'splits: by the names of the files ({join_names(files.values())})')
    return files, notes


class _Reader:
    """Reads the files of an export.

    Args:
        tree: Files of the export.
        image_tree: Files among which the images are.
        files: File of each split; None is the key of one without a split.
        label_names: Label names; None for the categories of all files.
        notes: Notes on the choice of the files.
    """

    def __init__(
        self,
        tree: Tree,
        image_tree: Tree,
        files: dict[str | None, str],
        label_names: Sequence[str] | None,
        notes: list[str],
    ):
        self.tree, self.image_tree, self.files = tree, image_tree, files
        self.label_names, self.notes = label_names, list(notes)

    def read(self, split: str, target: str | None, keep_unlabelled: bool | None, missing: str | None) -> Records:
        """Reads the images of a split, which are in the file of the split `target`."""
        names, file, label_of = self._read_categories(target)
        images = file.images(self.image_tree.root, self._finder(file, target))
        largest = file.largest_areas(images, label_of)
        paths = [os.path.relpath(path, self.image_tree.root).replace(os.sep, '/') for path in images.paths]
        rows = images.order()
        if target is None:
            of_split, note = rows_of_split(paths, split, file.path)
            chosen = set(of_split)
            rows = [row for row in rows if row in chosen]
            self.notes.append(note)
        if keep_unlabelled is False:
            rows = [row for row in rows if largest[row]]
        if not rows:
            raise InputError(f'{file.path}: contains no images{" with labels" if keep_unlabelled is False else ""}.')
        labels = [sorted(largest[row]) for row in rows]
        return Records(
            label_names=names,
            images=[images.paths[row] for row in rows],
            labels=labels,
            ignore=self._unannotated(file, images, rows, labels, label_of, len(names)),
            areas=[areas_of(largest[row], present) for row, present in zip(rows, labels, strict=True)],
            image_ids=[paths[row] for row in rows],
            warning=make_warning(file.path, file.lost, file.notes, split, missing),
            notes=self.notes,
        )

    def _read_categories(self, target: str | None) -> tuple[list[str], CocoFile, dict[int | str, int]]:
        """Returns the label names, the file of the split, and the label of each of its category ids."""
        parts, groups = {}, {}
        for key, path in self.files.items():
            file = CocoFile(self.tree.root / path)
            parts[key], group, used = file.categories(), _group(file), file.used_categories()
            groups[key] = None if group in used else group
            if key == target:
                kept, kept_used = file, used
        if self.label_names is None and None not in groups.values():
            group = parts[target][groups[target]]
            self.notes.append(f'not a label: {quote(group)}, the group of all categories, which no annotation has')
            for key in parts:
                del parts[key][groups[key]]
        categories = parts[target]
        names = list(self.label_names or dict.fromkeys(name for part in parts.values() for name in part.values()))
        number_of = {name: number for number, name in enumerate(names)}
        for category_id, name in categories.items():
            if name not in number_of and category_id in kept_used:
                raise InputError(f'{kept.path}: {unknown("label", name, names)}')
        return names, kept, {key: number_of[name] for key, name in categories.items() if name in number_of}

    def _finder(self, file: CocoFile, target: str | None) -> Callable[[dict, str], tuple[str, str | None]]:
        """Returns a function that finds the file of an image by its name, or by the longest end of it."""
        image_tree, source = self.image_tree, self.files[target]
        rows = [row for row in file.content['images'] if type(row) is dict]
        count = Counter(_parts(str(row.get('file_name') or row.get('coco_url')))[-1] for row in rows)

        def find(row: dict, where: str) -> tuple[str, str | None]:
            name = name_of(row, where)
            parts = _parts(name)
            found = image_tree.by_name.get(parts[-1], [])
            if target is not None and folder_split('/'.join(parts)) is None:
                found = [path for path in found if folder_split(path) in (None, target)]
            ends = [len(os.path.commonprefix([parts[::-1], path.split('/')[::-1]])) for path in found]
            best = max(ends, default=0)
            # Paths of the server or of another machine end in a name that is unique, or they mean nothing here.
            if best < len(parts) and count[parts[-1]] > 1:
                return name, None
            found = [path for path, end in zip(found, ends, strict=True) if end == best]
            if len(found) > 1 and target is not None:
                found = [path for path in found if folder_split(path) == target] or found
            found = nearest(source, found)
            if len(found) > 1:
                raise InputError(
                    f'{where} has file_name {quote(name)}, which may be {found[0]} or {found[1]}: set data.image_root'
                    ' to the folder of the images.'
                )
            return name, str(image_tree.root / found[0]) if found else None

        return find

    def _unannotated(
        self,
        file: CocoFile,
        images: CocoImages,
        rows: list[int],
        labels: list[list[int]],
        label_of: dict[int | str, int],
        num_classes: int,
    ) -> pa.Array | list[list[int]]:
        """Returns the labels of each row that are neither annotated nor listed as absent, if any image lists some."""
        absent = [set() for _ in images.paths]
        is_listed = False
        for row in file.content['images']:
            listed = row.get('neg_category_ids')
            if type(listed) is list:
                is_listed = True
                if (number := images.row_of[id_of(row['id'])]) is not None:
                    absent[number].update(label_of.get(id_of(category_id)) for category_id in listed)
        if not is_listed:
            return [[] for _ in rows]
        self.notes.append('neg_category_ids: labels that are neither annotated nor listed as absent are unannotated')
        unannotated = np.ones((len(rows), num_classes), bool)
        for masked, row, present in zip(unannotated, rows, labels, strict=True):
            masked[[*present, *(absent[row] - {None})]] = False
        return lists_of(unannotated)


def _group(file: CocoFile) -> int | str | None:
    """Returns the id of the category that all others belong to, and that belongs to none, as Roboflow writes it."""
    rows = file.content['categories']
    for row in rows:
        others = [other for other in rows if other is not row]
        if row.get('supercategory') in ('none', '', None) and others:
            if all(other.get('supercategory') == row['name'] for other in others):
                return id_of(row['id'])
    return None


def _parts(name: str) -> list[str]:
    """Returns the parts of a path or of a URL, without those that lead up; backslashes are read as slashes."""
    path = unquote(urlsplit(name).path) if '://' in name else name.replace('\\', '/')
    return [part for part in path.split('/') if part not in ('', '.', '..')] or ['']
