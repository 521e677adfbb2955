"""What VOC's evaluation server takes for classification, comp2: a tar file with the scores of each label."""

import gzip
import io
import lzma
import math
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..errors import InputError, unknown
from ..labels import VOC_LABELS
from .text import quote
from .voc_files import find_base, read_ids

__all__ = ['check_submission', 'write_submission']

LABEL_NAMES = VOC_LABELS
NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
MOST_LINE = 1024  # bytes of a submission's line, so that no archive unpacks to more than the memory holds


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
        image_ids: Ids of all images of the test split, in its order.
        scores: Confidences (N, 20), the larger the surer; written so that they read back exactly.
        label_names: VOC's 20 classes in the order of the columns of `scores`.
        year: Year of the challenge.

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
        if name not in LABEL_NAMES:
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
        year: Year of the challenge.

    Raises:
        InputError: It is not; the message names the file in it and the line.
    """
    if isinstance(images, str | Path):
        split_file = find_base(str(year), str(images)) / 'ImageSets' / 'Main' / 'test.txt'
        if not split_file.is_file():
            raise InputError(f'{split_file}: is missing; unpack the test images of VOC {year}.')
        images = list(read_ids(split_file))
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
            raise InputError(f'{where}: image_ids[{number}] is {quote(image_id)}, not an id of VOC.')
        if image_id in seen:
            raise InputError(f'{where}: image_ids[{number}] is {quote(image_id)} again.')
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
            raise InputError(f'{where}, line {number} is {quote(line)}, not an id and a confidence.')
        image_id, confidence = words
        if image_id not in known:
            raise InputError(f'{where}, line {number} has {quote(image_id)}, which is not in the test split.')
        if image_id in seen:
            raise InputError(f'{where}, line {number} has {quote(image_id)} again.')
        if image_id != image_ids[number - 1]:
            expected = image_ids[number - 1]
            problem = f'where {quote(expected)} should be: it is missing, or out of order'
            raise InputError(f'{where}, line {number} has {quote(image_id)} {problem}.')
        if not NUMBER.fullmatch(confidence) or not math.isfinite(float(confidence)):
            raise InputError(f'{where}, line {number} has the confidence {quote(confidence)}, not a finite number.')
        seen.add(image_id)
    if len(lines) < len(image_ids):
        raise InputError(f'{where} ends after line {len(lines)}: {quote(image_ids[len(lines)])} is missing.')
