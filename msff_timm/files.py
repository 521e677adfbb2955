"""Reading small files that users name, checking where output can be written, and writing files in one step."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

__all__ = ['check_file', 'check_folder', 'read_small', 'replace_file', 'replace_files', 'write_text']

LONGEST_NAME = 255  # bytes
ROOM = 15  # of these, for what a file's name has beside it while it is written


def read_small(path: str | Path, most: int, what: str) -> bytes:
    """Reads a regular file of a limited size: a device or a pipe may have no end, or never begin.

    Args:
        path: File to read.
        most: Largest size in bytes.
        what: Kind of content, for the message.

    Raises:
        InputError: It cannot be read, is no regular file, or is too large.
    """
    try:
        with open(path, 'rb', opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f'{path}: cannot be read as {what} (a device or a pipe); give a regular file.')
            content = file.read(most + 1)
    except (OSError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        reason = getattr(e, 'strerror', None) or e
        raise InputError(f'{path!s}: cannot be read as {what} ({reason}).'.replace('\0', '\\0')) from None
    if len(content) > most:
        raise InputError(f'{path}: cannot be read as {what} (over {most:,} bytes).')
    return content


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))  # a pipe would wait for its writer


def check_folder(path: str | Path, what: str) -> None:
    """Makes sure that a folder can be made, or written to where it is there; nothing is left behind.

    Args:
        path: Folder to write to later.
        what: Name in the message, e.g. of a setting.

    Raises:
        InputError: Nothing can be written there.
    """
    whole = Path(os.path.abspath(path))
    _check(path, whole, (whole, *whole.parents), what)


def check_file(path: str | Path, what: str, makes_folder: bool = True) -> None:
    """Makes sure that a file can be written; nothing is left behind.

    Args:
        path: File to write later.
        what: Name in the message, e.g. of a setting.
        makes_folder: True to make its folder where it is missing.

    Raises:
        InputError: It cannot be written.
    """
    whole = Path(os.path.abspath(path))
    if os.path.isdir(whole):
        raise InputError(f'{what} is {path}: that is a folder; name a file.')
    if os.path.isfile(whole) or not os.path.exists(whole):  # no device, such as /dev/stdout
        _check(path, whole, whole.parents if makes_folder else whole.parents[:1], what, ROOM)


def _check(path: str | Path, whole: Path, places: Sequence[Path], what: str, room: int = 0) -> None:
    """Tries the first place that exists, and the lengths of the names below it."""
    place = next((place for place in places if os.path.lexists(place)), places[0])
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(whole)
        if any(len(os.fsencode(part)) > LONGEST_NAME - room for part in whole.relative_to(place).parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as e:
        reason = f'nothing can be written to {place} ({getattr(e, "strerror", None) or e})'
        raise InputError(f'{what} is {path}: {reason}; choose another place.'.replace('\0', '\\0')) from None


@contextmanager
def replace_files(folder: str | Path) -> Iterator[Path]:
    """Replaces files of a folder, each in one step, once all of them are written: a reader never sees half a file.

    After an error, the folder holds what it held before.

    Args:
        folder: Folder that the files belong to; created if it is missing.

    Yields:
        Temporary folder to write to. The files in it are moved in reverse order of their names: `model.onnx.data`
        is there before `model.onnx`, and `model.safetensors` before `config.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.saving-') as temporary:
        yield Path(temporary)
        for path in sorted(Path(temporary).iterdir(), reverse=True):
            os.replace(path, folder / path.name)


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Replaces a file in one step, as `replace_files` does.

    Args:
        path: File to replace; its folder is created if it is missing.

    Yields:
        Temporary file of the same name to write; for a device or a pipe, the path itself.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a rename would remove /dev/null
        yield path
        return
    with replace_files(path.parent) as temporary:
        yield temporary / path.name


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file in one step, as `replace_file` does."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
