"""Reader of CVAT's exports "CVAT for images 1.1" (XML) and "Datumaro 1.0" (JSON).

Tags, boxes, outlines, points and masks give labels to their image; attributes do not. CVAT's export "ImageNet" is read
as `folders`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from datasets import Dataset

from ...errors import InputError, unknown
from ..json_files import read_json
from ..records import Records, cached, make_warning
from ..text import check_names, is_one_line, join_names, quote
from .files import read_head, select_rows
from .tree import Tree, join, parts_of, read_tree

__all__ = ['load', 'recognise']

MOST_FILES = 50  # of a folder, whose beginning is read to find an export


@dataclass
class Export:
    """Images and labels of a file.

    Attributes:
        path: Path relative to the root.
        labels: Labels in the order of the file.
        images: Name, subset and labels of each image.
    """

    path: str
    labels: list[str] = field(default_factory=list)
    images: list[tuple[str, str | None, set[str]]] = field(default_factory=list)


def recognise(root: Path) -> str | None:
    """Returns the first export in a folder."""
    return next(_find_exports(read_tree(root)), None)


def load(
    split: str,
    root: Path,
    *,
    keep_unlabelled: bool | None = None,
    image_root: str | None = None,
    label_names: Sequence[str] | None = None,
    missing: str | None = None,
) -> Dataset:
    """Loads one split; several exports in folders of their own, e.g. one per task, are read together.

    The splits are the subsets of the images, else the folders of the images; else all images belong to `train`. Labels
    are in the order of the export. Images are in `images/`, in the folder of their subset there, or beside the export.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of the export, or its XML or JSON file.
        keep_unlabelled: False to leave out images without labels.
        image_root: Folder of the images; None for the one of the export.
        label_names: Label names in the order of the logits; None for those of the export.
        missing: Treatment of missing images, see `msff_timm.data.load`.

    Raises:
        InputError: The export is missing or invalid.
    """
    tree = Tree(root)
    paths = list(_find_exports(tree))
    if not paths:
        raise InputError(f'{root}: contains no export of CVAT, e.g. annotations.xml.')
    image_tree = Tree(Path(image_root or tree.root))
    return cached(
        lambda: _read(tree, image_tree, paths, split, keep_unlabelled, label_names, missing),
        [tree.root / path for path in paths],
        reader='cvat',
        paths=[str(tree.root / path) for path in paths],
        split=split,
        keep_unlabelled=keep_unlabelled,
        image_root=image_root,
        label_names=label_names,
        missing=missing,
        files=image_tree.digest(),
    )


def _find_exports(tree: Tree) -> Iterator[str]:
    for path in tree.find('.xml', '.json', most=MOST_FILES):
        head = read_head(tree.root / path)
        if path.lower().endswith('.xml'):
            found = re.search(r'<annotations>.*?<(meta|image)[\s>]', head, re.DOTALL)
        else:
            found = re.search(r'"categories"\s*:\s*\{\s*("label"|"mask"|"points"|\})', head)
        if found:
            yield path


def _read(
    tree: Tree,
    image_tree: Tree,
    paths: list[str],
    split: str,
    keep_unlabelled: bool | None,
    label_names: Sequence[str] | None,
    missing: str | None,
) -> Records:
    exports = [_read_xml(tree, path) if path.lower().endswith('.xml') else _read_json(tree, path) for path in paths]
    names = list(label_names or dict.fromkeys(label for export in exports for label in export.labels))
    where = tree.root / paths[0]
    check_names(f'{where}: labels', names)
    for export in exports:
        for name, _, labels in export.images:
            for label in sorted(labels - set(names)):
                raise InputError(f'{tree.root / export.path}: {name}: {unknown("label", label, names)}')
    labels_of, subset_of, lost = _find_images(exports, image_tree, tree)
    total = sum(len(export.images) for export in exports)
    problem = f'images that are not in {image_tree.root}: {len(lost)} of {total}'
    problem += f' (e.g. {quote(lost[0])})' if lost else ''
    if not labels_of:
        raise InputError(f'{where}: {problem}: set data.image_root to the folder of the images.')
    images = sorted(labels_of)
    rows, rule = select_rows(where, split, [subset_of[image] for image in images], images)
    images = [images[row] for row in rows]
    notes = [f'labels: of tags and objects in {join_names(paths, 3)}', rule]
    if unlabelled := sum(not labels_of[image] for image in images):
        is_kept = keep_unlabelled is not False
        how = 'have no labels' if is_kept else 'are left out: they have no labels'
        notes.append(f'{unlabelled} of {len(images)} images {how} (data.keep_unlabelled)')
        images = [image for image in images if is_kept or labels_of[image]]
    if not images:
        raise InputError(f'{where}: has no images with labels in the split {split}.')
    number_of = {name: number for number, name in enumerate(names)}
    return Records(
        label_names=names,
        images=[str(image_tree.root / image) for image in images],
        labels=[sorted(map(number_of.__getitem__, labels_of[image])) for image in images],
        ignore=[[] for _ in images],
        areas=[[] for _ in images],
        image_ids=images,
        warning=make_warning(where, [problem] if lost else [], [], split, missing),
        notes=notes,
    )


def _find_images(
    exports: list[Export], image_tree: Tree, tree: Tree
) -> tuple[dict[str, set[str]], dict[str, str | None], list[str]]:
    """Returns the labels and the subset of each image by its path, and the names of missing images."""
    file_of = _by_stem(image_tree.images) | {image: image for image in image_tree.images}
    labels_of: dict[str, set[str]] = defaultdict(set)
    subset_of: dict[str, str | None] = {}
    lost = []
    for export in exports:
        folder = parts_of(export.path)[:-1] if image_tree.root == tree.root else []
        if folder[-1:] == ['annotations']:  # of Datumaro, beside `images`
            folder = folder[:-1]
        for name, subset, labels in export.images:
            image = next(filter(None, map(file_of.get, _candidates('/'.join(folder), subset, name))), None)
            if image is None:
                lost.append(name)
                continue
            labels_of[image] |= labels
            subset_of[image] = subset
    return labels_of, subset_of, lost


def _by_stem(images: list[str]) -> dict[str, str]:
    """Returns images by their path without suffix: CVAT writes frames of a video as `frame_000000`."""
    found: dict[str, list[str]] = defaultdict(list)
    for image in images:
        found[image.rpartition('.')[0]].append(image)
    return {stem: same[0] for stem, same in found.items() if len(same) == 1}


def _candidates(folder: str, subset: str | None, name: str) -> list[str]:
    """Returns the paths that an image may have in the folder of its export."""
    name = '/'.join(part for part in name.replace('\\', '/').split('/') if part not in ('', '.'))
    inner = [join(subset, name), name] if subset else [name]
    return [join(folder, path) for path in (*(f'images/{path}' for path in inner), *inner)]


def _read_xml(tree: Tree, path: str) -> Export:
    export, file = Export(path), tree.root / path
    default = None
    try:
        for _, node in ElementTree.iterparse(file):
            if node.tag == 'track':
                raise InputError(f'{file}: contains tracks of a video: export it as "CVAT for images 1.1".')
            if node.tag == 'meta':
                # A label with a parent is a point of a skeleton.
                found = [label.findtext('name', '') for label in node.iter('label') if label.find('parent') is None]
                export.labels += dict.fromkeys(name.strip() for name in found)
                subsets = {subset.text for subset in node.iter('subset')}
                default = subsets.pop() if len(subsets) == 1 else None
            if node.tag == 'image':
                name = node.get('name', '')
                if not name.strip() or not is_one_line(name):
                    raise InputError(f'{file}: the image {node.get("id")} has the name {quote(name)}: must be a path.')
                labels = {shape.get('label', '').strip() for shape in node} - {''}
                export.images.append((name, node.get('subset') or default, labels))
                node.clear()
    except ElementTree.ParseError as e:
        raise InputError(f'{file}: is not valid XML ({e}).') from None
    except (LookupError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f'{file}: cannot be decoded ({e}): save it as UTF-8.') from None
    export.labels += sorted({label for _, _, labels in export.images for label in labels} - set(export.labels))
    return export


def _read_json(tree: Tree, path: str) -> Export:
    export, file = Export(path), tree.root / path
    content = read_json(file)
    try:
        named = content['categories'].get('label', {'labels': []})['labels']
        all_names = [label['name'] for label in named]
        items = [(item, item['annotations']) for item in content['items']]
        used = [[shape['label_id'] for shape in shapes if shape.get('label_id') is not None] for _, shapes in items]
        media = [(item.get('image') or {}).get('path') or item['id'] for item, _ in items]
        labels = [{all_names[number] for number in numbers if number >= 0} for numbers in used]
        # A label with a parent is a point of a skeleton, unless it is used by itself.
        export.labels = [
            label['name'] for label in named if not label.get('parent') or label['name'] in set().union(*labels)
        ]
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise InputError(
            f'{file}: is not a data set of Datumaro ({type(e).__name__}: {e}): export it from CVAT again.'
        ) from None
    if not all(isinstance(name, str) and is_one_line(name) for name in (*media, *all_names)):
        raise InputError(f'{file}: a name of an image or a label is not text on one line.')
    subset = parts_of(path)[-1].rpartition('.')[0]
    export.images = [(name, subset, names) for name, names in zip(media, labels, strict=True)]
    return export
