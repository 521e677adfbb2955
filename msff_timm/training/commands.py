"""How a training command starts, stops and ends, and what it records about itself."""

import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..errors import escape_output, exit_code
from .loaders import release_workers

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None  # type: ignore[assignment]

__all__ = ['StopRequest', 'Stopped', 'command_line', 'environment', 'peak_memory', 'run_command']

CAN_RESUME = 75  # exit code of a run that was stopped and can be resumed: EX_TEMPFAIL of sysexits.h


class Stopped(Exception):
    """The run was stopped by a signal.

    Args:
        advice: How to resume it.
    """

    def __str__(self) -> str:
        return f'stopped; {self.args[0] if self.args else "finished work is saved"}.'


class StopRequest:
    """Records SIGTERM and Ctrl-C, so that a run can finish its step and save before it stops.

    A second Ctrl-C ends the process at once, and so does either signal while `waits` is False.

    Attributes:
        received: Number of the signal; None before it arrives.
        waits: True once there is something to save.
    """

    def __init__(self, waits: bool = True):
        self.received: int | None = None
        self.waits = waits
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.waits:
            # SystemExit passes every `except Exception`; print may be running already.
            os.write(2, f'{os.path.basename(sys.argv[0])}: stopped before its first step.\n'.encode())
            sys.exit(130 if number == signal.SIGINT else CAN_RESUME)
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs the main function of a command, and ends the process with its exit code.

    See `msff_timm.errors.exit_code`; a run that was stopped and can be resumed ends with code 75.
    """
    escape_output()
    name = os.path.basename(sys.argv[0])

    def command() -> int | None:
        try:
            return main()
        except Stopped as e:
            print(f'{name}: {e}', file=sys.stderr)
            return CAN_RESUME
        except KeyboardInterrupt:
            print(f'{name}: interrupted; files that were written are kept.', file=sys.stderr)
            return 130
        except BrokenPipeError:
            print(f'{name}: the reader of its output has gone; files that were written are kept.', file=sys.stderr)
            raise

    try:
        code = exit_code(command, name)
    finally:
        release_workers()
    if code:
        sys.exit(code)


def environment(accelerator: Accelerator) -> dict:
    """Records how and on which devices a run is started. Every process calls it, at the start: the tree may change.

    Returns:
        `command`; `git_commit` of the checkout that holds this file, and `git_dirty`, True if tracked files differ from
        it (both None outside of a checkout, or without git); and `devices`, the name of each process's device.
    """
    device = accelerator.device
    is_gpu = device.type == 'cuda'
    name = torch.cuda.get_device_name(device) if is_gpu else f'{device.type} ({platform.machine()})'
    return {'command': command_line(), **_git_state(Path(__file__)), 'devices': gather_object([name])}


def command_line() -> str:
    """Returns the command line that was typed: the launcher's, if one started this process."""
    command = sys.orig_argv
    with suppress(psutil.Error, AttributeError):  # the launcher has ended, or cannot be read
        launcher = psutil.Process().parent().cmdline()
        # A launcher's command line ends with the script, or with the module of `-m`, and its arguments.
        module = getattr(sys.modules['__main__'], '__spec__', None)
        for script in (sys.argv[0], module and module.name):
            if launcher[-len(sys.argv) :] == [script, *sys.argv[1:]]:
                command = launcher
    return shlex.join(command)


def _git_state(file: Path) -> dict:
    def git(*arguments: str) -> str:
        command = ['git', '--no-optional-locks', '-C', str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git('ls-files', '--error-unmatch', file.name)  # fails if the checkout is another project's
        changes = git('status', '--porcelain', '--untracked-files=no')
        return {'git_commit': git('rev-parse', 'HEAD'), 'git_dirty': bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {'git_commit': None, 'git_dirty': None}


def peak_memory(accelerator: Accelerator) -> int:
    """Returns the peak memory in bytes: of the GPU if there is one, else of this process."""
    if accelerator.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(accelerator.device)
    # Linux only, and not in every sandbox. ru_maxrss would be inherited from the parent process.
    with suppress(OSError), open('/proc/self/status', encoding='utf-8') as file:
        for line in file:
            if line.startswith('VmHWM'):
                return int(line.split()[1]) * 1024
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
