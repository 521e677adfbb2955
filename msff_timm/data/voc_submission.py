"""Submissions to the VOC evaluation server (classification, comp2): a tar file with the scores of each label."""

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
MAX_LINE = 1024  # bytes; limits the size of what is unpacked


def write_submission(
    path: str | Path,
    image_ids: Sequence[str],
    scores: np.ndarray,
    label_names: Sequence[str],
    year: int = 2012,
) -> None:
    """Writes a submission: a tar file with `results/VOC{year}/Main/comp2_cls_test_{label}.txt` for each label.

    The competition comp2 allows training data beyond VOC, e.g. ImageNet for the weights of the backbone; comp1 is for
    the split trainval alone. The same scores give the same bytes. The file is checked, then moved into place.

    Args:
        path: Path of the file, which ends in `.tar`, `.tar.gz` or `.tgz`.
        image_ids: Ids of all images of the test split in its order.
        scores: Confidences (N, 20), written without loss of precision.
        label_names: The 20 labels of VOC in the order of the columns of `scores`.
        year: Year of the challenge.

    Raises:
        InputError: An argument is invalid, or the file cannot be written.
    """
    path = Path(os.path.abspath(path))
    if not path.name.endswith(('.tar', '.tar.gz', '.tgz')):
        raise InputError(f'{path}: must end in .tar or .tar.gz.')
    if path.is_dir():
        raise InputError(f'{path}: is a folder: choose a file name.')
    _check_ids(image_ids, f'{path}')
    for name in label_names:
        if name not in LABEL_NAMES:
            raise InputError(f'{path}: {unknown("label of VOC", str(name), LABEL_NAMES)}')
    columns = {name: column for column, name in enumerate(label_names)}
    if len(columns) < len(LABEL_NAMES) or len(label_names) != len(columns):
        lacking = [name for name in LABEL_NAMES if name not in columns]
        problem = f'lack {lacking[0]}' if lacking else 'repeat a label'
        raise InputError(f'{path}: the label names {problem}: list each of the 20 labels of VOC once.')
    scores = np.asarray(scores)
    if scores.shape != (len(image_ids), len(LABEL_NAMES)) or scores.dtype.kind not in 'fiu':
        raise InputError(
            f'{path}: scores has type {scores.dtype} and shape {scores.shape}: must be numbers of shape'
            f' ({len(image_ids)}, 20).'
        )
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f'{path}: the score of {image_ids[row]} for {label_names[column]} is not finite.')
    # NumPy writes integers without decimals.
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
    """Checks that the VOC evaluation server accepts a submission for comp2 in classification.

    Args:
        path: Path of the tar file, compressed or not.
        images: Root of VOC with the test split, or the image ids of the split in order.
        year: Year of the challenge.

    Raises:
        InputError: The submission is invalid; the message names the file inside of it and the line.
    """
    if isinstance(images, str | Path):
        split_file = find_base(str(year), str(images)) / 'ImageSets' / 'Main' / 'test.txt'
        if not split_file.is_file():
            raise InputError(f'{split_file}: is missing: unpack the test images of VOC {year}.')
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
                    raise InputError(f'{where} is not a file of comp2: remove it.')
                if entry.name in seen:
                    raise InputError(f'{where} occurs twice: remove one of them.')
                seen.add(entry.name)
                if not entry.isreg() or entry.size > MAX_LINE * (len(images) + 1):
                    raise InputError(f'{where} is not a text file of {len(images)} lines.')
                _check_lines(tar.extractfile(entry).read(), images, where)
    except FileNotFoundError:
        raise InputError(f'{path}: there is no such file.') from None
    except InputError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
        raise InputError(f'{path}: is not a valid tar file ({" ".join(str(e).split())}).') from None
    for name, member in members.items():
        if member not in seen:
            raise InputError(f'{path}: {member} is missing: add the scores of {name}.')


def _members(year: int) -> dict[str, str]:
    return {name: f'results/VOC{year}/Main/comp2_cls_test_{name}.txt' for name in LABEL_NAMES}


def _check_ids(image_ids: Sequence[str], where: str) -> None:
    seen = set()
    for number, image_id in enumerate(image_ids):
        if not isinstance(image_id, str) or image_id.split() != [image_id] or not image_id.isprintable():
            raise InputError(f'{where}: image_ids[{number}] is {quote(image_id)}: must be an image id of VOC.')
        if image_id in seen:
            raise InputError(f'{where}: image_ids[{number}] repeats {quote(image_id)}.')
        seen.add(image_id)
    if not seen:
        raise InputError(f'{where}: image_ids is empty.')


def _check_lines(content: bytes, image_ids: Sequence[str], where: str) -> None:
    expected = set(image_ids)
    seen = set()
    lines = content.decode('utf-8', 'backslashreplace').split('\n')
    if lines[-1] == '':
        lines.pop()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2:
            raise InputError(f'{where}, line {number} is {quote(line)}: must be an image id and a confidence.')
        image_id, confidence = words
        if image_id not in expected:
            raise InputError(f'{where}, line {number} has {quote(image_id)}, which is not in the test split.')
        if image_id in seen:
            raise InputError(f'{where}, line {number} repeats {quote(image_id)}.')
        if image_id != image_ids[number - 1]:
            raise InputError(f'{where}, line {number} has {quote(image_id)}: must be {quote(image_ids[number - 1])}.')
        if not NUMBER.fullmatch(confidence) or not math.isfinite(float(confidence)):
            raise InputError(f'{where}, line {number} has the confidence {quote(confidence)}: must be a finite number.')
        seen.add(image_id)
    if len(lines) < len(image_ids):
        raise InputError(f'{where} ends after line {len(lines)}: add {quote(image_ids[len(lines)])}.')
