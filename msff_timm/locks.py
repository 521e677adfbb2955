"""Locks of outputs: one process at a time writes to a file or folder."""

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from .errors import InputError, one_line

with suppress(ModuleNotFoundError):  # on Windows
    import fcntl
with suppress(ModuleNotFoundError):  # elsewhere
    import msvcrt

__all__ = ['lock', 'release']

FAR = 1 << 30  # offset of the locked byte on Windows, where locked bytes cannot be read


def lock(path: Path, output: Path) -> int | None:
    """Locks a file and writes the holder's name to it; returns its descriptor, or None if locks are not supported.

    The operating system releases the lock when the process dies.

    `filelock` uses locks that data loader workers inherit, and hold for a while after the run was killed.

    Args:
        path: File to lock; its folder exists.
        output: Output that the lock protects, for messages.

    Raises:
        InputError: Another process holds the lock, or the file cannot be written.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            raise InputError(f'output is {output}: cannot be written to ({one_line(e)}).') from None
        try:
            if os.name == 'nt':
                os.lseek(descriptor, FAR, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            else:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            holder = _read(descriptor)
            os.close(descriptor)
            if isinstance(e, (BlockingIOError, PermissionError)):
                raise InputError(
                    f'{output} is in use by another run{holder and f" ({holder})"}: wait until it ends, or'
                    ' choose another --output.'
                ) from None
            print(f'{path}: cannot be locked ({one_line(e)}); start no other run there.', file=sys.stderr)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # a run that ended removed the file after it was opened

    host = socket.gethostname()
    if (holder := _read(descriptor)) and not holder.endswith(f' on {host}'):
        print(f'{output}: an earlier run ({holder}) was killed; make sure that it has ended.', file=sys.stderr)
    with suppress(OSError):  # on a full disk, the lock holds without a name
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({'pid': os.getpid(), 'host': host}).encode())
    return descriptor


def release(path: Path, descriptor: int) -> None:
    """Removes a locked file and releases its lock."""
    if os.name == 'nt':  # Windows removes no open file
        os.close(descriptor)
    with suppress(OSError):
        path.unlink()
    if os.name != 'nt':
        os.close(descriptor)


def _read(descriptor: int) -> str:
    """Returns the holder of a lock, or ''. It reads the descriptor: opening the file again would release the lock."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 1000))
        return f'process {int(holder["pid"])} on {holder["host"]}'
    return ''
