"""Guards: one run in a folder at a time, and no run that outlives its launcher."""

import os
import signal
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
from ..locks import lock, release
from .commands import StopRequest
from .storage import is_shared

__all__ = ['locked', 'stop_with_launcher']

LOCK = '.lock'
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
            descriptor = lock(folder / LOCK, folder)
    except InputError as e:
        problem = str(e)
    try:
        for found in gather_object([problem]):
            if found:
                raise InputError(found)
        yield
    finally:
        if descriptor is not None:
            release(folder / LOCK, descriptor)


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
