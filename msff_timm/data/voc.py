"""Reader of PASCAL VOC 2007 and 2012 in their official layout, and of your own data in the same layout."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..errors import InputError, NoSplitError, unknown
from ..labels import VOC_LABELS
from .records import Records, cached, make_warning
from .text import is_one_line, join_names, list_folder, quote
from .voc_files import VocObject, find_base, find_images, read_ids, read_objects, read_states
from .voc_submission import check_submission, write_submission

__all__ = ['LABEL_NAMES', 'VocFiles', 'check_submission', 'load', 'read_files', 'write_submission']

LABEL_NAMES = VOC_LABELS
SPLITS = {'train': 'train', 'validation': 'val', 'trainval': 'trainval', 'test': 'test'}
UNKNOWN = np.inf  # area of an object; the largest of several is then unknown too


def load(
    name: str,
    split: str,
    root: str | None,
    difficult: str = 'ignore',
    label_names: Sequence[str] | None = None,
    missing: str | None = None,
) -> Dataset:
    """Loads one split of VOC.

    The class files decide which labels are present. The area of a label is that of its largest box in the XML,
    preferably of an object that is not difficult; it is unknown without valid XML. Images are in the order of the split
    file. A test split without class files (those of VOC 2012 are not public) and without XML for each image is for
    prediction only: all its labels are masked.

    Your own data may have images with any suffix that Pillow reads, and class files of your own labels, e.g.
    `helmet_train.txt`. Without any class files, the XML decides which labels are present. The labels are those of VOC,
    unless all class files or the XML name others: then they are all of these, sorted, the same in each split, and a
    warning lists them.

    Args:
        name: `voc2007` or `voc2012`.
        split: `train`, `validation`, `trainval` or `test`.
        root: Folder `VOC{year}`, `VOCdevkit`, or the one that contains `VOCdevkit`.
        difficult: Treatment of difficult labels, see `msff_timm.data.load`.
        label_names: Label names, see `msff_timm.data.load`.
        missing: Treatment of missing images, see `msff_timm.data.load`. Without class files, images without XML count
            as missing too.

    Raises:
        InputError: The root is not that of VOC, or a file is invalid; the message names file and line.
    """
    year = name.removeprefix('voc')
    if split not in SPLITS:
        raise unknown(f'split of {name}', split, SPLITS)
    if not root:
        raise InputError(f'{name} needs data.root: set it to the folder VOC{year}, or VOCdevkit.')
    base = find_base(year, root)
    files = _find_files(base, year, split, label_names)
    decisive = (files.split_file, *files.class_files, *files.xml_files.values())
    for path in decisive:
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: permission denied.')
    return cached(
        lambda: read_files(files, difficult, split, missing),
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
class VocFiles:
    """Files of a split.

    Attributes:
        split_file: List of the images.
        lines: Line of each image id in it.
        image_folder: Folder of the images.
        images: File name of each image id that has a file.
        xml_files: XML file of each image id; of all splits if they determine the label names.
        class_files: Class files in the order of `label_names`; empty if there are none.
        label_names: Label names; None if the XML determines them.
        has_labels: True if class files or XML show which labels are present.
        notes: Remarks on the labels.
        is_export: True for `data.name: voc`, whose labels are its own, without class files.
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
    is_export: bool = False


def _find_files(base: Path, year: str, split: str, label_names: Sequence[str] | None) -> VocFiles:
    main, part = base / 'ImageSets' / 'Main', SPLITS[split]
    split_file = main / f'{part}.txt'
    if not split_file.is_file():
        raise NoSplitError(
            f'{split_file}: is missing (found: {list_folder(main)}): unpack VOC {year} {split} into {base}.'
        )
    names, class_files, notes = _find_class_files(main, part, label_names)
    lines = read_ids(split_file)
    image_folder, xml_folder = base / 'JPEGImages', base / 'Annotations'
    found = find_images(image_folder)
    images = {}
    for image_id in lines:
        candidates = found.get(image_id, [])
        if len(candidates) > 1 and candidates[0] != f'{image_id}.jpg':
            both = ' and '.join(map(quote, candidates[:2]))
            raise InputError(f'{image_folder}: contains {both}: remove one of them.')
        if candidates:
            images[image_id] = candidates[0]
    ids = sorted(path[:-4] for path in os.listdir(xml_folder) if path.endswith('.xml')) if xml_folder.is_dir() else []
    xml_files = {image_id: xml_folder / f'{image_id}.xml' for image_id in ids}
    has_labels = bool(class_files) or any(image_id in xml_files for image_id in lines)
    if split == 'test' and not class_files:
        # Some test images of VOC 2012 have XML, of body parts.
        has_labels = all(image_id in xml_files for image_id in lines)
    elif not has_labels:
        raise InputError(
            f'{main}: contains no class files (*_{part}.txt), and {xml_folder} contains no XML of the images.'
        )
    if class_files or names is not None:
        xml_files = {image_id: xml_files[image_id] for image_id in lines if image_id in xml_files and has_labels}
    return VocFiles(split_file, lines, image_folder, images, xml_files, class_files, names, has_labels, notes)


def _find_class_files(
    main: Path, part: str, label_names: Sequence[str] | None
) -> tuple[list[str] | None, list[Path], list[str]]:
    """Returns the label names and the class files of a split, and remarks on labels that are not those of VOC."""
    if label_names is not None and (not label_names or len(set(label_names)) < len(label_names)):
        raise InputError(f'label_names is {quote(list(label_names))}: each label needs a name of its own.')
    entries = os.listdir(main)
    stems = {
        each: {entry.removesuffix(f'_{each}.txt') for entry in entries if entry.endswith(f'_{each}.txt')}
        for each in SPLITS.values()
    }
    everywhere = {stem for found in stems.values() for stem in found if stem and is_one_line(stem)}
    names = list(label_names or ())
    if not names and everywhere:
        names = list(LABEL_NAMES) if everywhere >= set(LABEL_NAMES) else sorted(everywhere)
        if everywhere < set(LABEL_NAMES):
            raise InputError(
                f'{main}: contains class files of only {len(names)} of the 20 labels of VOC ({", ".join(names)}): add'
                ' the others, or set label_names to these.'
            )
    if not everywhere.intersection(names):
        return names or None, [], []
    absent = [name for name in names if name not in stems[part]]
    if absent and (part != 'test' or len(absent) < len(names)):
        path = main / f'{absent[0]}_{part}.txt'
        raise InputError(f'{path}: is missing, as are {len(absent)} of the {len(names)} class files of this split.')
    notes = []
    if label_names is None:
        others = sorted(stems[part].difference(names))
        if names != list(LABEL_NAMES):
            notes.append(f'the labels are those of the class files: {_join(names)}')
        if others:
            notes.append(f'class files of other labels are not used: {_join(others)}; set label_names to use them')
    return names, [] if absent else [main / f'{name}_{part}.txt' for name in names], notes


def read_files(files: VocFiles, difficult: str, split: str, missing: str | None) -> Records:
    """Reads the labels of a split."""
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
        names = files.label_names or _names_of(objects, files.is_export)
        if not names:
            raise InputError(f'{files.split_file}: there are no class files, and the XML names no objects.')
        if not files.is_export:
            notes.append(f'there are no class files, so the XML decides: the labels are {_join(names)}')
    number_of = {name: label for label, name in enumerate(names)}

    image_ids = [image_id for image_id in files.lines if image_id in files.images]
    absent = [image_id for image_id in files.lines if image_id not in files.images]
    if absent:
        where = quote(absent[0]) if files.is_export else f'line {files.lines[absent[0]]}, {quote(absent[0])}'
        lost.append(f'images that are not in {files.image_folder}: {len(absent)} of {len(files.lines)} ({where})')
    if not files.has_labels:
        states = None
    elif files.class_files:
        row_of = {image_id: row for row, image_id in enumerate(files.lines)}
        columns = [read_states(path, files.split_file, files.lines) for path in files.class_files]
        states = np.stack(columns, axis=1)[[row_of[image_id] for image_id in image_ids]]
    else:
        bare = [image_id for image_id in image_ids if image_id not in objects]
        if bare:
            lost.append(f'images without valid XML: {len(bare)} of {len(files.lines)} ({quote(bare[0])})')
            image_ids = [image_id for image_id in image_ids if image_id in objects]
        nameless = [image_id for image_id in image_ids if any(each.name is None for each in objects[image_id])]
        if nameless:
            lost.append(f'objects without a name in {len(nameless)} images ({quote(nameless[0])})')
        states = np.array(
            [_states_of(objects[image_id], number_of, files.xml_files[image_id]) for image_id in image_ids]
        )
    if not image_ids:
        raise InputError(f'{files.split_file}: {"; ".join(lost)}.')

    labels, ignore, areas = [], [], []
    disagreements, unknown_areas = [], []
    for row, image_id in enumerate(image_ids if files.has_labels else ()):
        easy, hard = _largest(objects.get(image_id, ()), number_of)
        present, unsure = (np.flatnonzero(states[row] == state).tolist() for state in (1, 0))
        if image_id in objects:
            only_hard = set(hard) - set(easy)
            disagreements += [(image_id, label) for label in sorted({*present} ^ {*easy} | {*unsure} ^ only_hard)]
        labels.append(sorted(present + unsure) if difficult == 'positive' else present)
        ignore.append(unsure if difficult == 'ignore' else [])
        found = [easy.get(label, hard.get(label, UNKNOWN)) for label in labels[-1]]
        if UNKNOWN in found:
            unknown_areas.append(image_id)
        is_unknown = found.count(UNKNOWN) == len(found)
        areas.append([] if is_unknown else [np.nan if area == UNKNOWN else area for area in found])
    if not files.has_labels:
        labels, areas = [[] for _ in image_ids], [[] for _ in image_ids]
        ignore = [list(range(len(names))) for _ in image_ids]
    if disagreements:
        image_id, label = disagreements[0]
        notes.append(
            f'{len(disagreements)} labels of class files and XML disagree, e.g. {names[label]} in'
            f' {files.class_files[label].name} and {files.xml_files[image_id]}; the class files decide'
        )
    if unknown_areas:
        count = f'{len(unknown_areas)} of {len(image_ids)} images'
        notes.append(f'areas of labels are unknown in {count} (e.g. {quote(unknown_areas[0])})')
    if faults:
        notes.append(f'{len(faults)} XML files cannot be read ({faults[0].removesuffix(".")})')
    images = [str(files.image_folder / files.images[image_id]) for image_id in image_ids]
    warning = make_warning(files.split_file, lost, notes, split, missing)
    return Records(names, images, labels, ignore, areas, image_ids, warning)


def _names_of(objects: dict[str, list[VocObject]], is_export: bool) -> list[str]:
    found = {each.name for image_objects in objects.values() for each in image_objects if each.name is not None}
    return list(LABEL_NAMES) if found and found <= set(LABEL_NAMES) and not is_export else sorted(found)


def _join(names: Sequence[str]) -> str:
    return 'the 20 of VOC' if list(names) == list(LABEL_NAMES) else join_names(names)


def _largest(objects: Sequence[VocObject], number_of: dict[str, int]) -> tuple[dict[int, float], dict[int, float]]:
    """Returns the largest area of each label, once of objects that are not difficult and once of those that are."""
    easy: dict[int, float] = {}
    hard: dict[int, float] = {}
    for each in objects:
        if each.name in number_of:
            label, largest = number_of[each.name], hard if each.is_difficult else easy
            area = UNKNOWN if np.isnan(each.area) else each.area
            largest[label] = max(area, largest.get(label, 0.0))
    return easy, hard


def _states_of(objects: Sequence[VocObject], number_of: dict[str, int], xml_file: Path) -> np.ndarray:
    """Returns the state of each label as class files have it: 1 present, -1 absent, 0 in difficult objects only."""
    states = np.full(len(number_of), -1, np.int8)
    for each in objects:
        if each.name is not None and each.name not in number_of:
            raise InputError(f'{xml_file}: {unknown("label", each.name, number_of)}')
        if each.name is not None:
            label = number_of[each.name]
            states[label] = max(states[label], 0 if each.is_difficult else 1)
    return states
