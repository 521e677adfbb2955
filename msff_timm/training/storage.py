"""Disks: writes that survive a crash, and folders that several machines may share."""

import os
import uuid
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..errors import InputError, one_line

__all__ = ['is_shared', 'sync']


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    if os.name == 'nt' and path.is_dir():  # not supported by Windows
        return
    descriptor = os.open(path, os.O_RDWR if os.name == 'nt' else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_shared(accelerator: Accelerator, folder: Path) -> bool:
    """Returns True if all machines see the same folder, which is created. Every process calls it.

    Raises:
        InputError: The folder cannot be written to.
    """
    sign, problem = folder / f'.{broadcast_object_list([uuid.uuid4().hex])[0]}', None
    try:
        if accelerator.is_local_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            sign.touch()
    except OSError as e:
        problem = one_line(e)
    for found in gather_object([problem]):
        if found:
            raise InputError(f'{folder}: cannot be written to ({found}); choose another --output.')
    seen = gather_object([sign.exists()])
    if accelerator.is_main_process:
        sign.unlink()
    return all(seen)
