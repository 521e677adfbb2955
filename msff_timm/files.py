"""Reading small files that users name, checking where output can be written, and writing files in one step."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError, one_line

__all__ = ['check_file', 'check_folder', 'read_small', 'replace_file', 'replace_files', 'write_text']

MAX_NAME = 255  # bytes


def read_small(path: str | Path, max_bytes: int, kind: str) -> bytes:
    """Reads a regular file of limited size. Devices and pipes are refused: they may never end, or block.

    Args:
        path: File to read.
        max_bytes: Largest size of the file.
        kind: Kind of content, for error messages.

    Raises:
        InputError: The file cannot be read, is no regular file, or is too large.
    """
    try:
        with open(path, 'rb', opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f'{path}: cannot be read as {kind} (a device or a pipe); give a regular file.')
            content = file.read(max_bytes + 1)
    except InputError:
        raise
    except (OSError, ValueError) as e:
        raise InputError(f'{path}: cannot be read as {kind} ({one_line(e)}).'.replace('\0', '\\0')) from None
    if len(content) > max_bytes:
        raise InputError(f'{path}: cannot be read as {kind} (over {max_bytes:,} bytes).')
    return content


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))  # opening a pipe would wait for its writer


def check_folder(path: str | Path, option: str) -> None:
    """Checks that a folder can be created or written to, and leaves nothing behind.

    Args:
        path: Folder to write to later.
        option: Name of the option or setting, for error messages.

    Raises:
        InputError: Nothing can be written there.
    """
    whole = Path(os.path.abspath(path))
    _check(path, whole, (whole, *whole.parents), option)


def check_file(path: str | Path, option: str, parents: bool = True) -> None:
    """Checks that a file can be written, and leaves nothing behind.

    Args:
        path: File to write later.
        option: Name of the option or setting, for error messages.
        parents: True if missing parent folders will be created.

    Raises:
        InputError: The file cannot be written.
    """
    whole = Path(os.path.abspath(path))
    if os.path.isdir(whole):
        raise InputError(f'{option} is {path}: that is a folder; name a file.')
    if os.path.isfile(whole) or not os.path.exists(whole):  # no device, such as /dev/stdout
        _check(path, whole, whole.parents if parents else whole.parents[:1], option)


def _check(path: str | Path, whole: Path, places: Sequence[Path], option: str) -> None:
    """Tries to write to the first place that exists, and checks the lengths of the names below it."""
    place = next((place for place in places if os.path.lexists(place)), places[0])
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(whole)
        if any(len(os.fsencode(part)) > MAX_NAME for part in whole.relative_to(place).parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as e:
        reason = f'nothing can be written to {place} ({one_line(e)})'
        raise InputError(f'{option} is {path}: {reason}; choose another place.'.replace('\0', '\\0')) from None


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
