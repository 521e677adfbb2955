"""YOLO's text files: those of Ultralytics with `data.yaml`, and those of darknet with `obj.names` or `classes.txt`."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from ...errors import InputError, unknown
from ..coco_files import UNKNOWN, areas_of
from ..records import Records, cached, make_warning
from ..text import check_names, quote
from .splits import choose_split, rows_of_split
from .tree import Tree, read_tree
from .yolo_files import YoloLayout, describes_data, find_layout, label_files, read_lines, resolve

__all__ = ['load', 'recognise']

SLACK = 0.01  # share of the image by which boxes may leave it: coordinates are rounded


def recognise(root: Path) -> str | None:
    """Returns the file that describes the data or names the classes."""
    return describes_data(read_tree(root))


def load(
    split: str,
    root: Path,
    *,
    missing: str | None,
    image_root: str | None,
    label_names: Sequence[str] | None,
) -> Dataset:
    """Loads one split: that of the file that describes the data, else of the folders of the images.

    The labels of an image are the classes of the lines in its text file, which lies in `labels/` where the image lies
    in `images/`, or beside the image. An image without a text file, or with an empty one, has no labels. The area of a
    label is that of its largest box, or of the box around its polygon.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of the data, or the file that describes them.
        missing: Treatment of missing images, see `msff_timm.data.load`.
        image_root: Folder that paths of images are relative to; None for that of the file.
        label_names: Label names in the order of the logits; None for the names of the classes in their order.

    Raises:
        InputError: A file is missing or invalid; the message names file and line.
    """
    check_names('data.label_names', label_names)
    layout = find_layout(Tree(root), image_root)
    images = _find_images(layout, split, image_root)
    return cached(
        lambda: _read(layout, images, split, missing, label_names),
        [layout.source, *(Path(path) for path in images.labels if path)],
        reader='yolo',
        split=split,
        names=sorted(layout.names.items()),
        has_keypoints=layout.has_keypoints,
        missing=missing,
        label_names=label_names,
        files=[images.paths, images.labels, images.lost, images.notes],
    )


@dataclass
class _Images:
    """Images of a split.

    Attributes:
        paths: Path of each image.
        labels: Path of its text file; None if there is none.
        lost: Descriptions of missing images, with counts.
        notes: Notes on how paths were read.
        known: The paths as a set.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set, repr=False)

    def add(self, path: str, *others: str) -> None:
        """Adds an image, whose text file lies by its path or by another one."""
        if path in self.known:
            return
        self.known.add(path)
        self.paths.append(path)
        candidates = (file for image in (path, *others) for file in label_files(image))
        self.labels.append(next(filter(os.path.isfile, candidates), None))


def _find_images(layout: YoloLayout, split: str, image_root: str | None) -> _Images:
    images = _Images()
    target = choose_split(split, layout.splits, layout.source)
    home = layout.bases[-1]
    if target is None:
        names = layout.splits[None]
        rows, note = rows_of_split(names, split, layout.source)
        images.notes.append(note)
        for row in rows:
            images.add(os.path.join(layout.bases[0], names[row]), os.path.join(home, names[row]))
    for entry in layout.splits[target] if target is not None else ():
        found = resolve(entry, layout.bases)
        if found is None:
            raise InputError(
                f'{layout.source}: {split} is {quote(entry)}, which is not in {layout.bases[-1]}: fix the path, or set'
                ' data.image_root to the folder that it is relative to.'
            )
        if not str(found).endswith(os.path.normpath(entry).lstrip('./')):
            images.notes.append(f'{layout.source.name}: {split} is {quote(entry)}, read as {found}')
        if found.is_dir():
            for name in Tree(found).images:
                path = str(found / name)
                others = [os.path.relpath(path, image_root)] if image_root else []
                images.add(path, *(os.path.join(home, other) for other in others))
        else:
            _add_listed(found, layout, images)
    if not images.paths:
        raise InputError(f'{layout.source}: contains no images of {split}.')
    if not any(images.labels):
        raise InputError(
            f'{layout.source}: none of the {len(images.paths)} images of {split} has a text file of labels (e.g.'
            f' {label_files(images.paths[0])[0]}): check their folder.'
        )
    if without := images.labels.count(None):
        images.notes.append(f'{without} of {len(images.paths)} images of {split} have no text file, and so no labels')
    return images


def _add_listed(source: Path, layout: YoloLayout, images: _Images) -> None:
    """Adds the images that a text file lists."""
    bases = [*layout.bases, source.parent]
    lines = list(dict.fromkeys(read_lines(source)))
    missing = []
    for line in lines:
        found = resolve(line, bases)
        if found is None:
            missing.append(line)
        else:
            # The text file of labels may be where the list says, and the image in `data.image_root`.
            listed = [path for file in label_files(line) if (path := resolve(file, bases))]
            images.add(str(found), *map(str, listed))
    if missing:
        problem = f'images that are not in {bases[0]}: {len(missing)} of {len(lines)} ({quote(missing[0])})'
        if not images.paths:
            raise InputError(f'{source}: {problem}: set data.image_root to the folder of the images.')
        images.lost.append(problem)


def _read(
    layout: YoloLayout, images: _Images, split: str, missing: str | None, label_names: Sequence[str] | None
) -> Records:
    names = list(label_names or dict.fromkeys(layout.names[number] for number in sorted(layout.names)))
    number_of = {name: number for number, name in enumerate(names)}
    largest: list[dict[int, float]] = []
    unknown_areas = []
    for path in images.labels:
        areas: dict[int, float] = {}
        for where, name, area in _read_labels(path, layout) if path else ():
            if name not in number_of:
                raise InputError(f'{where}: {unknown("label", name, names)}')
            if area == UNKNOWN:
                unknown_areas.append(where)
            areas[number_of[name]] = max(area, areas.get(number_of[name], 0.0))
        largest.append(areas)
    remarks = []
    if unknown_areas:
        remarks.append(f'the area of {len(unknown_areas)} objects is unknown (e.g. {unknown_areas[0]})')
    labels = [sorted(areas) for areas in largest]
    return Records(
        label_names=names,
        images=images.paths,
        labels=labels,
        ignore=[[] for _ in labels],
        areas=[areas_of(areas, present) for areas, present in zip(largest, labels, strict=True)],
        image_ids=[os.path.relpath(path, layout.bases[-1]) for path in images.paths],
        warning=make_warning(layout.source, images.lost, remarks, split, missing),
        notes=images.notes,
    )


def _read_labels(path: str, layout: YoloLayout) -> list[tuple[str, str, float]]:
    """Returns location, label and relative area of each object."""
    objects = []
    for number, line in enumerate(read_lines(Path(path), keep_blank=True), 1):
        if not line:
            continue
        where, words = f'{path}: line {number}', line.split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if len(values) < 5 or not values[0].is_integer():
            raise InputError(f'{where} is {quote(line)}: must be a class number and a box or a polygon.')
        if (name := layout.names.get(int(values[0]))) is None:
            known = f'{len(layout.names)} classes, from {min(layout.names)} to {max(layout.names)}'
            raise InputError(f'{where} has class {int(values[0])}: {layout.source} names {known}.')
        objects.append((where, name, _area(values[1:], layout.has_keypoints)))
    return objects


def _area(values: list[float], has_keypoints: bool) -> float:
    """Returns the relative area of a box (center, size), or of the box around a polygon, clipped to the image."""
    if len(values) < 6 or has_keypoints:
        x, y, width, height = values[:4]
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        xs, ys = values[: len(values) // 2 * 2 : 2], values[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    # Coordinates in pixels, or not finite, show the label but no area.
    if not all(map(math.isfinite, values)) or min(left, top) < -SLACK or max(right, bottom) > 1 + SLACK:
        return UNKNOWN
    width, height = min(right, 1.0) - max(left, 0.0), min(bottom, 1.0) - max(top, 0.0)
    return width * height if width >= 0 and height >= 0 else UNKNOWN
