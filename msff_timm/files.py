"""Small files that users name, and places to write to: looked at before any work is done."""

import os
import stat
import tempfile
from pathlib import Path

from .errors import InputError

__all__ = ['check_file', 'check_folder', 'read_small']


def read_small(path: str | Path, most: int, what: str) -> bytes:
    """Reads a regular file of a limited size: a device or a pipe may have no end, or never begin.

    Args:
        path: File to read.
        most: Largest size in bytes.
        what: What the file is read as, for the message.

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
    """Makes a folder, and makes sure that files can be written to it.

    Args:
        path: Folder to make.
        what: What the message calls it, a setting say.

    Raises:
        InputError: Nothing can be written there.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as e:
        raise _refused(path, what, e) from None


def check_file(path: str | Path, what: str) -> None:
    """Makes the folder of a file, and makes sure that the file can be written there.

    Args:
        path: File to write later.
        what: What the message calls it, a setting say.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(path)
    try:
        os.makedirs(path.parent, exist_ok=True)
        if path.is_dir():
            raise InputError(f'{what} is {path}: that is a folder; name a file.')
        # Written beside and moved: what counts is the folder, and a name that has room for an ending.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.'):
            pass
    except (OSError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise _refused(path, what, e) from None


def _refused(path: str | Path, what: str, error: Exception) -> InputError:
    reason = getattr(error, 'strerror', None) or error
    if isinstance(error, FileExistsError):
        reason = 'something else has that name'
    shown = str(path).replace('\0', '\\0')
    return InputError(f'{what} is {shown}: nothing can be written there ({reason}); choose another place.')
