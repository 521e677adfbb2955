"""PASCAL VOC 2007 and 2012 in their official layout, and data of your own in the same layout."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..errors import InputError, unknown
from ..labels import VOC_LABELS
from .records import Records, cached, make_warning
from .text import is_one_line, list_folder, quote
from .voc_files import VocObject, find_base, find_images, read_ids, read_objects, read_states
from .voc_submission import check_submission, write_submission

__all__ = ['LABEL_NAMES', 'check_submission', 'load', 'write_submission']

LABEL_NAMES = VOC_LABELS
SPLITS = {'train': 'train', 'validation': 'val', 'trainval': 'trainval', 'test': 'test'}
UNKNOWN = np.inf  # area of an object: whatever the others have, the largest is unknown
MOST_NAMES = 20  # in a message


def load(
    name: str,
    split: str,
    root: str | None,
    difficult: str = 'ignore',
    label_names: Sequence[str] | None = None,
    missing: str | None = None,
) -> Dataset:
    """Reads one split of VOC; `msff_timm.data.load` tells the columns.

    The class files decide which labels are present. The area of a label is that of its largest bounding box in the
    XML, relative to the image, of objects that are not difficult if there are any; it is unknown where the XML is
    missing or odd. Rows are in the order of the split's file. A test split without class files (VOC2012's are not
    public), and without an XML file for each image, is for prediction only: all its labels are in `ignore`.

    Data of your own in this layout load too. An image may have any suffix that Pillow reads. Class files may have names
    of your own, `helmet_train.txt`; where there are none at all, the XML decides which labels are present. Labels are
    VOC's 20 unless the class files or the XML have others; then they are all of these, sorted, and the same in each
    split. A warning names them.

    Args:
        name: `voc2007` or `voc2012`.
        split: `train`, `validation`, `trainval` or `test`.
        root: The folder `VOC{year}`, `VOCdevkit` or the one that holds `VOCdevkit`.
        difficult: What a label counts as where all its objects are difficult: `ignore` (neither present nor absent, as
            VOC's own evaluation has it), `negative` or `positive`.
        label_names: Names in the order of the logits; None to find them.
        missing: Treatment of images without a file and, where there are no class files, of those without XML: `skip` or
            `error`; None for `skip` in `train` and `trainval`.

    Raises:
        InputError: The root is not VOC's, or a file is not as it should be; the message names it and the line.
    """
    year = name.removeprefix('voc')
    if split not in SPLITS:
        raise unknown(f'split of {name}', split, SPLITS)
    if not root:
        raise InputError(f'{name} needs data.root: the folder VOC{year}, or VOCdevkit.')
    base = find_base(year, root)
    files = _find_files(base, year, split, label_names)
    decisive = (files.split_file, *files.class_files, *files.xml_files.values())
    for path in decisive:
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: may not be read.')
    return cached(
        lambda: _read(files, difficult, split, missing),
        decisive,
        reader=name,
        split=split,
        root=str(base),
        difficult=difficult,
        label_names=files.label_names,
        missing=missing,
        files=[files.images, *(path.name for path in decisive)],
    )


@dataclass
class _Files:
    """The files of a split.

    Attributes:
        split_file: The list of images.
        lines: Line of each id in it.
        image_folder: Folder of the images.
        images: Name of the file of each id that has one.
        xml_files: By the name without suffix: of the split, or of all splits where they decide the labels' names.
        class_files: Class files in the order of `label_names`; empty where there are none.
        label_names: None where the XML decides.
        has_labels: True where something shows which labels are present.
        notes: Lines on what was found out about the labels.
    """

    split_file: Path
    lines: dict[str, int]
    image_folder: Path
    images: dict[str, str]
    xml_files: dict[str, Path]
    class_files: list[Path]
    label_names: list[str] | None
    has_labels: bool
    notes: list[str]


def _find_files(base: Path, year: str, split: str, label_names: Sequence[str] | None) -> _Files:
    main, part = base / 'ImageSets' / 'Main', SPLITS[split]
    split_file = main / f'{part}.txt'
    if not split_file.is_file():
        raise InputError(
            f'{split_file}: is missing; unpack VOC {year} {split} into {base} (found: {list_folder(main)}).'
        )
    names, class_files, notes = _find_class_files(main, part, label_names)
    lines = read_ids(split_file)
    image_folder, xml_folder = base / 'JPEGImages', base / 'Annotations'
    found = find_images(image_folder)
    images = {}
    for image_id in lines:
        candidates = found.get(image_id, [])
        if len(candidates) > 1 and candidates[0] != f'{image_id}.jpg':
            raise InputError(f'{image_folder}: holds {" and ".join(map(quote, candidates[:2]))}; remove one of them.')
        if candidates:
            images[image_id] = candidates[0]
    ids = sorted(path[:-4] for path in os.listdir(xml_folder) if path.endswith('.xml')) if xml_folder.is_dir() else []
    xml_files = {image_id: xml_folder / f'{image_id}.xml' for image_id in ids}
    has_labels = bool(class_files) or any(image_id in xml_files for image_id in lines)
    if split == 'test' and not class_files:
        # Of VOC2012's test images some have XML, of persons' parts.
        has_labels = all(image_id in xml_files for image_id in lines)
    elif not has_labels:
        raise InputError(f'{main}: holds no class file, *_{part}.txt, nor {xml_folder} any XML of the images.')
    if class_files or names is not None:
        xml_files = {image_id: xml_files[image_id] for image_id in lines if image_id in xml_files and has_labels}
    return _Files(split_file, lines, image_folder, images, xml_files, class_files, names, has_labels, notes)


def _find_class_files(
    main: Path, part: str, label_names: Sequence[str] | None
) -> tuple[list[str] | None, list[Path], list[str]]:
    """Finds the names of the labels and the class files of a split, and notes what is not VOC's."""
    if label_names is not None and (not label_names or len(set(label_names)) < len(label_names)):
        raise InputError(f'label_names are {quote(list(label_names))}: each label needs a name of its own.')
    entries = os.listdir(main)
    there = {
        each: {entry.removesuffix(f'_{each}.txt') for entry in entries if entry.endswith(f'_{each}.txt')}
        for each in SPLITS.values()
    }
    everywhere = {stem for stems in there.values() for stem in stems if stem and is_one_line(stem)}
    names = list(label_names or ())
    if not names and everywhere:
        names = list(LABEL_NAMES) if everywhere >= set(LABEL_NAMES) else sorted(everywhere)
        if everywhere < set(LABEL_NAMES):
            raise InputError(
                f"{main}: holds class files of {len(names)} of VOC's 20 labels ({', '.join(names)}); add the others, or"
                ' set label_names to these.'
            )
    if not everywhere.intersection(names):
        return names or None, [], []
    absent = [name for name in names if name not in there[part]]
    if absent and (part != 'test' or len(absent) < len(names)):
        path = main / f'{absent[0]}_{part}.txt'
        raise InputError(f'{path}: is missing, as {len(absent)} of the {len(names)} class files of this split.')
    notes = []
    if label_names is None:
        others = sorted(there[part].difference(names))
        notes += [f'the labels are those of the class files, {_listed(names)}'] if names != list(LABEL_NAMES) else []
        notes += [f"class files beside VOC's 20 are not used: {_listed(others)}; set label_names"] if others else []
    return names, [] if absent else [main / f'{name}_{part}.txt' for name in names], notes


def _read(files: _Files, difficult: str, split: str, missing: str | None) -> Records:
    lost, notes = [], list(files.notes)
    objects, faults = {}, []
    for image_id, xml_file in files.xml_files.items():
        try:
            objects[image_id] = read_objects(xml_file)
        except InputError as e:
            faults.append(str(e))
    if files.class_files or not files.has_labels:
        names = files.label_names or list(LABEL_NAMES)
    else:
        names = files.label_names or _names_of(objects)
        if not names:
            raise InputError(f'{files.split_file}: there are no class files, and the XML has no object with a name.')
        notes.append(f'there are no class files, the XML decides: the labels are {_listed(names)}')
    number_of = {name: label for label, name in enumerate(names)}

    rows = [image_id for image_id in files.lines if image_id in files.images]
    gone = [image_id for image_id in files.lines if image_id not in files.images]
    if gone:
        where = f'line {files.lines[gone[0]]}, {quote(gone[0])}'
        lost.append(f'images that are not in {files.image_folder}: {len(gone)} of {len(files.lines)} ({where})')
    if not files.has_labels:
        states = None
    elif files.class_files:
        order = {image_id: row for row, image_id in enumerate(files.lines)}
        columns = [read_states(path, files.split_file, files.lines) for path in files.class_files]
        states = np.stack(columns, axis=1)[[order[image_id] for image_id in rows]]
    else:
        bare = [image_id for image_id in rows if image_id not in objects]
        if bare:
            lost.append(f'images without XML that can be read: {len(bare)} of {len(files.lines)} ({quote(bare[0])})')
            rows = [image_id for image_id in rows if image_id in objects]
        nameless = [image_id for image_id in rows if any(each.name is None for each in objects[image_id])]
        if nameless:
            lost.append(f'objects without a name in {len(nameless)} images ({quote(nameless[0])})')
        states = np.array([_states_of(objects[image_id], number_of, files.xml_files[image_id]) for image_id in rows])
    if not rows:
        raise InputError(f'{files.split_file}: {"; ".join(lost)}.')

    labels, ignore, areas = [], [], []
    disagreements, unknown_areas = [], []
    for row, image_id in enumerate(rows if files.has_labels else ()):
        easy, hard = _largest(objects.get(image_id, ()), number_of)
        present, unsure = (np.flatnonzero(states[row] == state).tolist() for state in (1, 0))
        if image_id in objects:
            only_hard = set(hard) - set(easy)
            disagreements += [(image_id, label) for label in sorted({*present} ^ {*easy} | {*unsure} ^ only_hard)]
        labels.append(sorted(present + unsure) if difficult == 'positive' else present)
        ignore.append(unsure if difficult == 'ignore' else [])
        found = [easy.get(label, hard.get(label, UNKNOWN)) for label in labels[-1]]
        areas.append([np.nan if area == UNKNOWN else area for area in found])
        if UNKNOWN in found:
            unknown_areas.append(image_id)
        if found.count(UNKNOWN) == len(found):
            areas[-1] = []
    if not files.has_labels:
        labels, areas = [[] for _ in rows], [[] for _ in rows]
        ignore = [list(range(len(names))) for _ in rows]
    if disagreements:
        image_id, label = disagreements[0]
        notes.append(
            f'{files.class_files[label].name} and {files.xml_files[image_id]} do not agree on {names[label]}, as'
            f' {len(disagreements)} labels in all, and the class files decide'
        )
    if unknown_areas:
        first = quote(unknown_areas[0])
        notes.append(f'areas of labels are unknown in {len(unknown_areas)} of {len(rows)} images ({first}, e.g.)')
    if faults:
        notes.append(f'{len(faults)} XML files cannot be read ({faults[0].removesuffix(".")})')
    images = [str(files.image_folder / files.images[image_id]) for image_id in rows]
    note = make_warning(files.split_file, lost, notes, split, missing)
    return Records(names, images, labels, ignore, areas, rows, warning=note)


def _names_of(objects: dict[str, list[VocObject]]) -> list[str]:
    found = {each.name for image_objects in objects.values() for each in image_objects if each.name is not None}
    return list(LABEL_NAMES) if found and found <= set(LABEL_NAMES) else sorted(found)


def _listed(names: Sequence[str]) -> str:
    if list(names) == list(LABEL_NAMES):
        return "VOC's 20"
    return ', '.join(names[:MOST_NAMES]) + (f', ... ({len(names)} in all)' if len(names) > MOST_NAMES else '')


def _largest(objects: Sequence[VocObject], number_of: dict[str, int]) -> tuple[dict[int, float], dict[int, float]]:
    """Finds the largest area by label, of objects that are not difficult and of those that are."""
    easy: dict[int, float] = {}
    hard: dict[int, float] = {}
    for each in objects:
        if each.name in number_of:
            label, largest = number_of[each.name], hard if each.is_difficult else easy
            area = UNKNOWN if np.isnan(each.area) else each.area
            largest[label] = max(area, largest.get(label, 0.0))
    return easy, hard


def _states_of(objects: Sequence[VocObject], number_of: dict[str, int], xml_file: Path) -> np.ndarray:
    """Tells from the objects what class files would: 1, 0 or -1 for each label."""
    states = np.full(len(number_of), -1, np.int8)
    for each in objects:
        if each.name is not None and each.name not in number_of:
            raise InputError(f'{xml_file}: {unknown("label", each.name, number_of)}')
        if each.name is not None:
            label = number_of[each.name]
            states[label] = max(states[label], 0 if each.is_difficult else 1)
    return states
