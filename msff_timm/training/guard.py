"""Guards: one run in a folder at a time, and no run that outlives its launcher."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from ..errors import InputError, one_line
from .commands import StopRequest
from .storage import is_shared

with suppress(ModuleNotFoundError):  # on Windows
    import fcntl
with suppress(ModuleNotFoundError):  # elsewhere
    import msvcrt

__all__ = ['locked', 'stop_with_launcher']

LOCK = '.lock'
FAR = 1 << 30  # offset of the locked byte on Windows, where locked bytes cannot be read
LAUNCHERS = {'accelerate', 'accelerate-launch', 'torchrun', 'deepspeed'}
LAUNCHERS |= {'accelerate.commands.launch', 'torch.distributed.run', 'torch.distributed.launch'}
GRACE = 600.0  # seconds for a run to stop after its launcher has ended


@contextmanager
def locked(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is created. Every process of the run calls it.

    The operating system releases the lock when the process dies. Machines with disks of their own each lock theirs.

    Args:
        accelerator: Accelerator of this process.
        folder: Folder of the run.

    Raises:
        InputError: Another run has locked the folder, or it cannot be written to.
    """
    descriptor = problem = None
    try:
        shared = is_shared(accelerator, folder)
        if accelerator.is_main_process if shared else accelerator.is_local_main_process:
            descriptor = _lock(folder / LOCK)
    except InputError as e:
        problem = str(e)
    try:
        for found in gather_object([problem]):
            if found:
                raise InputError(found)
        yield
    finally:
        if descriptor is not None:
            _release(folder / LOCK, descriptor)


def _lock(path: Path) -> int | None:
    """Locks a file and writes the holder's name to it; returns its descriptor, or None if locks are not supported.

    `filelock` uses locks that data loader workers inherit, and hold for a while after the run was killed.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            raise InputError(f'output is {path.parent}: cannot be written to ({one_line(e)}).') from None
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
                    f'{path.parent} is in use by another run{holder and f" ({holder})"}: wait until it ends, or'
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
        print(f'{path.parent}: an earlier run ({holder}) was killed; make sure that it has ended.', file=sys.stderr)
    with suppress(OSError):  # on a full disk, the lock holds without a name
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({'pid': os.getpid(), 'host': host}).encode())
    return descriptor


def _read(descriptor: int) -> str:
    """Returns the holder of a lock, or ''. It reads the descriptor: opening the file again would release the lock."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 1000))
        return f'process {int(holder["pid"])} on {holder["host"]}'
    return ''


def _release(path: Path, descriptor: int) -> None:
    if os.name == 'nt':  # Windows removes no open file
        os.close(descriptor)
    with suppress(OSError):
        path.unlink()
    if os.name != 'nt':
        os.close(descriptor)


def stop_with_launcher(stop: StopRequest) -> None:
    """Stops the run when the launcher that started this process dies; does nothing without a launcher.

    The run is saved as on SIGTERM. If it cannot be, because another process has died, this process ends.

    Args:
        stop: Request to stop the run.
    """
    launcher = _launcher()
    if launcher is not None:
        threading.Thread(target=_watch, args=(launcher, stop), daemon=True).start()


def _launcher() -> psutil.Process | None:
    if 'LOCAL_RANK' not in os.environ and not any(name.startswith('ACCELERATE_') for name in os.environ):
        return None
    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if LAUNCHERS & {Path(argument).name.removesuffix('.exe') for argument in parent.cmdline()}:
            return parent
    return None


def _watch(launcher: psutil.Process, stop: StopRequest) -> None:
    # On Windows the parent's number stays when it has ended; elsewhere it changes at once.
    while os.getppid() == launcher.pid and launcher.is_running():
        time.sleep(0.5)
    stop.received = signal.SIGTERM
    with suppress(OSError):  # standard error may have been the launcher's
        tqdm.write(f'the launcher (process {launcher.pid}) has ended; the run stops.', file=sys.stderr)
    time.sleep(GRACE)
    os._exit(1)
