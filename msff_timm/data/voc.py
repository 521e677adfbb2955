"""PASCAL VOC 2007 and 2012 in their official layout, and what VOC2012's evaluation server takes."""

import gzip
import io
import lzma
import math
import os
import re
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from datasets import Dataset

from ..errors import InputError, unknown
from ..labels import VOC_LABELS
from .records import Records, cached, found_in, shown

__all__ = ['LABEL_NAMES', 'check_submission', 'load', 'write_submission']

LABEL_NAMES = VOC_LABELS
NUMBER_OF = {name: label for label, name in enumerate(LABEL_NAMES)}
SPLITS = {'train': 'train', 'validation': 'val', 'trainval': 'trainval', 'test': 'test'}
STATES = {'1': 1, '-1': -1, '0': 0}  # present, absent, present in difficult objects only
MOST_PIXELS = 1_000_000  # of a coordinate: more is a slip
NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
MOST_LINE = 1024  # bytes of a submission's line, so that no archive unpacks to more than the memory holds


def load(name: str, split: str, root: str | None, difficult: str = 'ignore') -> Dataset:
    """Reads one split of VOC; `msff_timm.data.load` tells the columns.

    The class files decide which labels are present. The area of a label is that of its largest bounding box in the
    XML, relative to the picture, of objects that are not difficult if there are any. VOC counts pixels from 1 and
    counts both corners in, so a box is xmax - xmin + 1 wide; what juts out of the picture does not count. Rows are in
    the order of the split's file. A test split without class files (VOC2012's are not public) is for prediction only:
    all its labels are in `ignore`.

    Args:
        name: `voc2007` or `voc2012`.
        split: `train`, `validation`, `trainval` or `test`.
        root: The folder `VOC{year}`, `VOCdevkit` or the one that holds `VOCdevkit`.
        difficult: What a label counts as where all its objects are difficult: `ignore` (neither present nor absent, as
            VOC's own evaluation has it), `negative` or `positive`.

    Raises:
        InputError: The root is not VOC's, or a file is not as it should be; the message names it and the line.
    """
    year = name.removeprefix('voc')
    if split not in SPLITS:
        raise unknown(f'split of {name}', split, SPLITS)
    if not root:
        raise InputError(f'{name} needs data.root: the folder VOC{year}, or VOCdevkit.')
    base = _base(year, root)
    main = base / 'ImageSets' / 'Main'
    split_file = main / f'{SPLITS[split]}.txt'
    if not split_file.is_file():
        raise InputError(f'{split_file}: is missing; unpack VOC {year} {split} into {base} (found: {found_in(main)}).')
    class_files = [main / f'{label_name}_{SPLITS[split]}.txt' for label_name in LABEL_NAMES]
    missing = [path for path in class_files if not path.is_file()]
    has_labels = split != 'test' or len(missing) < len(class_files)
    if has_labels and missing:
        raise InputError(f'{missing[0]}: is missing, as {len(missing)} of the 20 class files; unpack them again.')
    lines = _ids(split_file)
    if has_labels:
        xml_files = [base / 'Annotations' / f'{image_id}.xml' for image_id in lines]
        _check_files(xml_files, split_file, lines)
    else:
        xml_files = class_files = []
    for path in (split_file, *class_files, *xml_files):
        if not os.access(path, os.R_OK):
            raise InputError(f'{path}: may not be read.')
    return cached(
        lambda: _read(base, split_file, lines, class_files, xml_files, difficult),
        [split_file, *class_files, *xml_files],
        reader=name,
        split=split,
        root=str(base),
        difficult=difficult,
    )


def _base(year: str, root: str) -> Path:
    """Finds the folder `VOC{year}`: the root itself, in it, or in `VOCdevkit` in it."""
    base = Path(os.path.abspath(root))
    another_year = re.fullmatch(r'VOC\d{4}', base.name) and base.name != f'VOC{year}'
    for folder in (base, base / f'VOC{year}', base / 'VOCdevkit' / f'VOC{year}'):
        if (folder / 'ImageSets' / 'Main').is_dir() and not (another_year and folder == base):
            return folder
    raise InputError(
        f'{root} is not the root of VOC {year}: ImageSets/Main is neither in it nor in VOC{year} or'
        f' VOCdevkit/VOC{year} in it (found: {found_in(root)}).'
    )


def _check_files(paths: list[Path], split_file: Path, lines: dict[str, int]) -> None:
    for (image_id, line), path in zip(lines.items(), paths, strict=True):
        if not os.path.isfile(path):
            raise InputError(f'{split_file}: line {line} names {shown(image_id)}, but {ascii(str(path))} is no file.')


def _ids(split_file: Path) -> dict[str, int]:
    """Reads the split's ids with their lines, in the file's order."""
    lines: dict[str, int] = {}
    for number, words in _lines(split_file):
        if len(words) != 1:
            raise InputError(f'{split_file}: line {number} is {shown(" ".join(words))}, not one id.')
        if os.path.basename(words[0]) != words[0]:
            raise InputError(f'{split_file}: line {number} has {shown(words[0])}, which leads to another folder.')
        if words[0] in lines:
            raise InputError(f'{split_file}: line {number} has {shown(words[0])} again, as in line {lines[words[0]]}.')
        lines[words[0]] = number
    if not lines:
        raise InputError(f'{split_file}: holds no id.')
    return lines


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Gives the number and the words of each line that is not blank."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as e:
        raise InputError(f'{path}: is not UTF-8 ({e}); unpack it again.') from None
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror}).') from None
    for number, line in enumerate(text.split('\n'), 1):
        if words := line.split():
            yield number, words


def _read(
    base: Path,
    split_file: Path,
    lines: dict[str, int],
    class_files: list[Path],
    xml_files: list[Path],
    difficult: str,
) -> Records:
    image_folder = base / 'JPEGImages'
    if not image_folder.is_dir():
        raise InputError(f'{image_folder}: is missing; unpack it again (found: {found_in(base)}).')
    images = [image_folder / f'{image_id}.jpg' for image_id in lines]
    _check_files(images, split_file, lines)

    labels, ignore, areas = [], [], []
    if class_files:
        states = np.stack([_states(path, split_file, lines) for path in class_files], axis=1)
        disagreements = []
        for row, xml_file in enumerate(xml_files):
            easy, hard = _boxes(xml_file)
            present, unsure = (np.flatnonzero(states[row] == state).tolist() for state in (1, 0))
            for label in (*present, *unsure):
                if label not in easy and label not in hard:
                    raise InputError(
                        f'{class_files[label]}: says that {list(lines)[row]} has {LABEL_NAMES[label]}, but {xml_file}'
                        ' holds no such object; unpack both again.'
                    )
            only_hard = set(hard) - set(easy)
            disagreements += [(row, label) for label in {*present} ^ {*easy} | {*unsure} ^ only_hard]
            labels.append(sorted(present + unsure) if difficult == 'positive' else present)
            ignore.append(unsure if difficult == 'ignore' else [])
            areas.append([easy.get(label, hard.get(label)) for label in labels[-1]])
        if disagreements:
            row, label = min(disagreements)
            warnings.warn(
                f'{class_files[label]} and {xml_files[row]} do not agree on {LABEL_NAMES[label]}, as'
                f' {len(disagreements)} labels in all; the class files decide.',
                stacklevel=2,
            )
    else:
        labels, areas = [[] for _ in images], [[] for _ in images]
        ignore = [list(range(len(LABEL_NAMES))) for _ in images]
    return Records(list(LABEL_NAMES), [str(path) for path in images], labels, ignore, areas, list(lines))


def _states(class_file: Path, split_file: Path, lines: dict[str, int]) -> np.ndarray:
    """Reads a class file: 1, 0 or -1 for each image of the split, in the split's order."""
    states: dict[str, int] = {}
    for number, words in _lines(class_file):
        if len(words) != 2:
            raise InputError(f'{class_file}: line {number} is {shown(" ".join(words))}, not an id and 1, 0 or -1.')
        image_id, state = words
        if state not in STATES:
            raise InputError(f'{class_file}: line {number} has {shown(state)}, not 1, 0 or -1.')
        if image_id not in lines:
            raise InputError(f'{class_file}: line {number} has {shown(image_id)}, which is not in {split_file}.')
        if image_id in states:
            raise InputError(f'{class_file}: line {number} has {shown(image_id)} again.')
        states[image_id] = STATES[state]
    for image_id, line in lines.items():
        if image_id not in states:
            raise InputError(f'{class_file}: lacks {shown(image_id)}, line {line} of {split_file}; unpack both again.')
    return np.array([states[image_id] for image_id in lines], np.int8)


class _Builder(ElementTree.TreeBuilder):
    """Stops at a document type: VOC has none, and its entities could fill the memory or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InputError('it has a document type, which VOC has not')


def _boxes(xml_file: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Reads the largest relative area by label, of objects that are not difficult and of those that are."""
    try:
        root = ElementTree.fromstring(xml_file.read_bytes(), ElementTree.XMLParser(target=_Builder()))
    except OSError as e:
        raise InputError(f'{xml_file}: cannot be read ({e.strerror}).') from None
    except (ElementTree.ParseError, ValueError, LookupError) as e:
        raise InputError(f'{xml_file}: is not the XML of VOC ({" ".join(str(e).split())}); unpack it again.') from None
    if root.tag != 'annotation':
        raise InputError(f'{xml_file}: is not the XML of VOC (it holds {shown(root.tag)}, not annotation).')
    width, height = (_number(root.find('size'), side, f'{xml_file}: size') for side in ('width', 'height'))
    if width < 1 or height < 1:
        raise InputError(f'{xml_file}: size is {width:g} x {height:g}, not at least 1 x 1.')
    easy: dict[int, float] = {}
    hard: dict[int, float] = {}
    for number, node in enumerate(root.findall('object')):
        where = f'{xml_file}: object[{number}]'
        name = (node.findtext('name') or '').strip()
        if not name:
            raise InputError(f'{where} has no name.')
        if name not in NUMBER_OF:
            continue
        # Official files of 2011 leave it out here and there.
        flag = (node.findtext('difficult') or '0').strip()
        if flag not in ('0', '1'):
            raise InputError(f'{where} has difficult {shown(flag)}, not 0 or 1.')
        corners = ('xmin', 'ymin', 'xmax', 'ymax')
        left, top, right, bottom = (_number(node.find('bndbox'), corner, f'{where}: bndbox') for corner in corners)
        if right - left + 1 <= 0 or bottom - top + 1 <= 0:
            raise InputError(
                f'{where} has a bndbox without area: xmin {left:g}, ymin {top:g}, xmax {right:g}, ymax {bottom:g}.'
            )
        inside = [min(right, width) - max(left, 1) + 1, min(bottom, height) - max(top, 1) + 1]
        if min(inside) <= 0:
            raise InputError(
                f'{where} has a bndbox outside of the picture of {width:g} x {height:g}:'
                f' xmin {left:g}, ymin {top:g}, xmax {right:g}, ymax {bottom:g}.'
            )
        largest = hard if flag == '1' else easy
        area = inside[0] * inside[1] / (width * height)
        largest[NUMBER_OF[name]] = max(area, largest.get(NUMBER_OF[name], 0.0))
    return easy, hard


def _number(node: ElementTree.Element | None, tag: str, where: str) -> float:
    text = None if node is None else node.findtext(tag)
    if text is None:
        raise InputError(f'{where} has no {tag}.')
    if not NUMBER.fullmatch(text.strip()) or abs(float(text)) > MOST_PIXELS:
        raise InputError(f'{where} has {tag} {shown(text)}, not a number of pixels.')
    return float(text)


def write_submission(
    path: str | Path,
    image_ids: Sequence[str],
    scores: np.ndarray,
    label_names: Sequence[str],
    year: int = 2012,
) -> None:
    """Writes what VOC's evaluation server takes: `results/VOC{year}/Main/comp2_cls_test_{class}.txt` in a tar file.

    comp2 is the competition that allows training data other than VOC's, as ImageNet for the backbone's weights are;
    comp1 is for VOC's trainval alone. The same scores make the same bytes. The file is checked before it is moved into
    place, so nothing half written is ever left there.

    Args:
        path: Ends in `.tar`, `.tar.gz` or `.tgz`.
        image_ids: Of all images of the test split, in its order.
        scores: Confidences (N, 20), the larger the surer; written so that they read back exactly.
        label_names: VOC's 20 classes in the order of the columns of `scores`.
        year: Of the challenge.

    Raises:
        InputError: An argument is not as it should be, or the file cannot be written.
    """
    path = Path(os.path.abspath(path))
    if not path.name.endswith(('.tar', '.tar.gz', '.tgz')):
        raise InputError(f'{path}: a submission ends in .tar or .tar.gz.')
    if path.is_dir():
        raise InputError(f'{path}: is a folder; name a file.')
    _check_ids(image_ids, f'{path}')
    for name in label_names:
        if name not in NUMBER_OF:
            raise InputError(f'{path}: {unknown("class of VOC", str(name), LABEL_NAMES)}')
    columns = {name: column for column, name in enumerate(label_names)}
    if len(columns) < len(LABEL_NAMES) or len(label_names) != len(columns):
        lacking = [name for name in LABEL_NAMES if name not in columns]
        problem = f'lack {lacking[0]}' if lacking else 'hold a class twice'
        raise InputError(f"{path}: the label names {problem}; give each of VOC's 20 classes once.")
    scores = np.asarray(scores)
    if scores.shape != (len(image_ids), len(LABEL_NAMES)) or scores.dtype.kind not in 'fiu':
        raise InputError(
            f'{path}: the scores are {scores.dtype} of {scores.shape}, not numbers of ({len(image_ids)}, 20).'
        )
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f'{path}: the score of {image_ids[row]} for {label_names[column]} is not finite.')
    # Of integers numpy would write no decimals.
    scores = scores if scores.dtype.kind == 'f' else scores.astype(np.float64)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix='.writing-') as temporary:
            part = Path(temporary, path.name)
            with ExitStack() as stack:
                file = stack.enter_context(open(part, 'wb'))
                if path.name.endswith('gz'):
                    file = stack.enter_context(gzip.GzipFile('', 'wb', fileobj=file, mtime=0))
                tar = stack.enter_context(tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT))
                for name, member in _members(year).items():
                    column = scores[:, columns[name]]
                    written = (np.format_float_positional(score, trim='k', min_digits=6) for score in column)
                    lines = ''.join(f'{i} {score}\n' for i, score in zip(image_ids, written, strict=True)).encode()
                    entry = tarfile.TarInfo(member)
                    entry.size = len(lines)
                    tar.addfile(entry, io.BytesIO(lines))
            check_submission(part, image_ids, year)
            os.replace(part, path)
    except OSError as e:
        raise InputError(f'{path}: cannot be written ({e.strerror or e}).') from None


def check_submission(path: str | Path, images: str | Path | Sequence[str], year: int = 2012) -> None:
    """Makes sure that a tar file is what VOC's evaluation server takes, for comp2 in classification.

    Args:
        path: The tar file, compressed or not.
        images: The root of VOC, whose test split it should hold, or the ids of its images in order.
        year: Of the challenge.

    Raises:
        InputError: It is not; the message names the file in it and the line.
    """
    if isinstance(images, str | Path):
        split_file = _base(str(year), str(images)) / 'ImageSets' / 'Main' / 'test.txt'
        if not split_file.is_file():
            raise InputError(f'{split_file}: is missing; unpack the test images of VOC {year}.')
        images = list(_ids(split_file))
    else:
        _check_ids(images, f'{path}')
    members = _members(year)
    seen = set()
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                if entry.isdir():
                    continue
                where = f'{path}: {ascii(entry.name)[1:-1]}'
                if entry.name not in members.values():
                    raise InputError(f'{where} is none of the files of comp2; leave it out.')
                if entry.name in seen:
                    raise InputError(f'{where} is there twice.')
                seen.add(entry.name)
                if not entry.isreg() or entry.size > MOST_LINE * (len(images) + 1):
                    raise InputError(f'{where} is no text file of {len(images)} lines.')
                _check_lines(tar.extractfile(entry).read(), images, where)
    except FileNotFoundError:
        raise InputError(f'{path}: there is no such file.') from None
    except InputError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
        raise InputError(f'{path}: is not a whole tar file ({" ".join(str(e).split())}).') from None
    for name, member in members.items():
        if member not in seen:
            raise InputError(f'{path}: {member} is missing; the server wants a file for each class, {name} too.')


def _members(year: int) -> dict[str, str]:
    return {name: f'results/VOC{year}/Main/comp2_cls_test_{name}.txt' for name in LABEL_NAMES}


def _check_ids(image_ids: Sequence[str], where: str) -> None:
    seen = set()
    for number, image_id in enumerate(image_ids):
        if not isinstance(image_id, str) or image_id.split() != [image_id] or not image_id.isprintable():
            raise InputError(f'{where}: image_ids[{number}] is {shown(image_id)}, not an id of VOC.')
        if image_id in seen:
            raise InputError(f'{where}: image_ids[{number}] is {shown(image_id)} again.')
        seen.add(image_id)
    if not seen:
        raise InputError(f'{where}: there is no image.')


def _check_lines(content: bytes, image_ids: Sequence[str], where: str) -> None:
    known = set(image_ids)
    seen = set()
    lines = content.decode('utf-8', 'backslashreplace').split('\n')
    if lines[-1] == '':
        lines.pop()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2:
            raise InputError(f'{where}, line {number} is {shown(line)}, not an id and a confidence.')
        image_id, confidence = words
        if image_id not in known:
            raise InputError(f'{where}, line {number} has {shown(image_id)}, which is not in the test split.')
        if image_id in seen:
            raise InputError(f'{where}, line {number} has {shown(image_id)} again.')
        if image_id != image_ids[number - 1]:
            expected = image_ids[number - 1]
            problem = f'where {shown(expected)} should be: it is missing, or out of order'
            raise InputError(f'{where}, line {number} has {shown(image_id)} {problem}.')
        if not NUMBER.fullmatch(confidence) or not math.isfinite(float(confidence)):
            raise InputError(f'{where}, line {number} has the confidence {shown(confidence)}, not a finite number.')
        seen.add(image_id)
    if len(lines) < len(image_ids):
        raise InputError(f'{where} ends after line {len(lines)}: {shown(image_ids[len(lines)])} is missing.')
