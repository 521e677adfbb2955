"""What keeps two runs out of one folder, and a run from outliving its launcher."""

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

from ..errors import InputError
from .commands import StopRequest
from .storage import is_shared

with suppress(ModuleNotFoundError):  # on Windows
    import fcntl
with suppress(ModuleNotFoundError):  # elsewhere
    import msvcrt

__all__ = ['locked', 'stop_with_launcher']

LOCK = '.lock'
FAR = 1 << 30  # offset of the byte that is locked on Windows, where nobody else can read what is locked
LAUNCHERS = {'accelerate', 'accelerate-launch', 'torchrun', 'deepspeed'}
LAUNCHERS |= {'accelerate.commands.launch', 'torch.distributed.run', 'torch.distributed.launch'}
GRACE = 600.0  # seconds in which a run has to stop once its launcher has ended


@contextmanager
def locked(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made. Every process of the run calls it.

    The operating system releases the lock when the process dies. Machines with disks of their own each lock theirs.

    Args:
        accelerator: Its processes share the run.
        folder: Folder that the run writes to.

    Raises:
        InputError: Another run has locked the folder, or nothing can be written to it.
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
    """Locks a file, with the holder's name in it; returns its descriptor, or None where there are no locks.

    The locks are not `filelock`'s: a loader's workers inherit those, and keep them a while after the run was killed.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            raise InputError(f'output is {path.parent}: cannot be written to ({e.strerror or e}).') from None
        try:
            if os.name == 'nt':
                os.lseek(descriptor, FAR, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            holder = _read(descriptor)
            os.close(descriptor)
            if isinstance(e, (BlockingIOError, PermissionError)):
                raise InputError(
                    f'{path.parent} is in use by another run{holder and f" ({holder})"}: wait until that ends, or'
                    ' choose another --output.'
                ) from None
            print(f'{path}: cannot be locked ({e.strerror or e}); start no other run there.', file=sys.stderr)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # a run that ended has removed the file since it was opened

    host = socket.gethostname()
    if (holder := _read(descriptor)) and not holder.endswith(f' on {host}'):
        print(f'{path.parent}: an earlier run ({holder}) was killed; make sure that it has ended.', file=sys.stderr)
    with suppress(OSError):  # a disk that is full: the lock holds without a name
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({'pid': os.getpid(), 'host': host}).encode())
    return descriptor


def _read(descriptor: int) -> str:
    """Reads whose a lock is, '' where that is not written. To open the file anew would end this process's lock."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 1000))
        return f'process {int(holder["pid"])} on {holder["host"]}'
    return ''


def _release(path: Path, descriptor: int) -> None:
    if os.name == 'nt':  # which removes no file that is open
        os.close(descriptor)
    with suppress(OSError):
        path.unlink()
    if os.name != 'nt':
        os.close(descriptor)


def stop_with_launcher(stop: StopRequest) -> None:
    """Stops the run when the launcher that started this process dies; does nothing where none did.

    The run is saved as on SIGTERM. Where it does not get there, for another process has died, the process ends.

    Args:
        stop: Request that is made then.
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
    # Windows keeps the parent's number when it is gone; elsewhere that changes at once, even before it is waited for.
    while os.getppid() == launcher.pid and launcher.is_running():
        time.sleep(0.5)
    stop.received = signal.SIGTERM
    with suppress(OSError):  # standard error may have ended with it
        tqdm.write(f'the launcher (process {launcher.pid}) has ended: the run stops.', file=sys.stderr)
    time.sleep(GRACE)
    os._exit(1)
