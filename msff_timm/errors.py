"""Errors that commands report as one line instead of a traceback: bad input, and faults of the machine."""

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches

__all__ = [
    'InputError',
    'NoSplitError',
    'escape_output',
    'exit_code',
    'fault',
    'missing_package',
    'one_line',
    'unknown',
]

MOST_NAMES = 20  # known names listed in a message
MOST_CHARACTERS = 600  # of another library's message: PyTorch names every tensor that does not fit
PERMISSIONS = 'choose another place, or change its permissions'
FIXES = {
    errno.ENOSPC: 'make room there, or choose another place',
    getattr(errno, 'EDQUOT', errno.ENOSPC): 'make room within your quota, or choose another place',
    errno.EROFS: 'choose another place',
    errno.EACCES: PERMISSIONS,
    errno.EPERM: PERMISSIONS,
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.EMFILE: 'raise the limit of open files (ulimit -n), or use fewer workers',
    errno.ENFILE: 'raise the limit of open files, or use fewer workers',
    errno.EAGAIN: 'raise the limit of processes (ulimit -u), or use fewer workers',
    errno.EIO: 'check the disk',
    errno.ENOENT: 'check the path',
    errno.ENOTDIR: 'check the path',
    errno.EISDIR: 'check the path',
    errno.EEXIST: 'check the path',
    errno.ELOOP: 'check its links',
}
WORKER = 'a data loader worker was killed, most likely because memory ran out'
FEWER_WORKERS = 'lower data.workers, use smaller batches, or use a machine with more memory'
NO_SHARED_MEMORY = 'the data loader workers need more shared memory'
MORE_SHARED_MEMORY = 'enlarge /dev/shm (docker run --shm-size=8g), or set data.workers to 0'
LESS_MEMORY = 'use smaller batches or images, fewer workers, or a machine with more memory'
# Faults that libraries report through exceptions of many types: pattern, fault, fix
KNOWN = (
    (r'shared memory|\(shm\)|</torch_\w+>|Bus error', NO_SHARED_MEMORY, MORE_SHARED_MEMORY),
    (r'DataLoader worker \(pid.* (killed by signal|exited unexpectedly)', WORKER, FEWER_WORKERS),
    (r'(CUDA|HIP|MPS\w*|XPU).*out of memory', 'GPU memory ran out', 'use smaller batches or images'),
    (r"out of memory|can't allocate memory|not enough memory|[Uu]nable to allocate", 'memory ran out', LESS_MEMORY),
    (r"can't start new thread", 'no thread can be started', FIXES[errno.EAGAIN]),
)


class InputError(ValueError):
    """The user's input cannot be used; the message is one line that names the fault and the fix."""


class NoSplitError(InputError):
    """The data have no split of this name, as their files or the values of a column show."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Creates the error for an unknown name, with the nearest known name or a list of the known ones."""
    known = sorted(known)
    nearest = get_close_matches(name, known, n=1)
    some = ', '.join(known[:MOST_NAMES]) + (f', ... ({len(known)} in all)' if len(known) > MOST_NAMES else '')
    fix = f'did you mean {nearest[0]}?' if nearest else f'choose from {some}.'
    return InputError(f'unknown {kind} {name!r}: {fix}')


def missing_package(name: str, extra: str) -> InputError:
    """Creates the error for a package that is not installed, with the extra of msff-timm that brings it."""
    return InputError(f"{name} is not installed: pip install 'msff-timm[{extra}]'")


def one_line(error: BaseException) -> str:
    """Returns the reason for an error on one line: the system's message, the exception's own, or else its type.

    The message of an error in a data loader worker follows the worker's traceback, which is left out.
    """
    lines = [' '.join(line.split()) for line in str(getattr(error, 'strerror', None) or error).splitlines()]
    lines = [line for line in lines if line]
    if len(lines) > 1 and lines[0].startswith('Caught '):
        lines = [re.sub(r'^[\w.]*(Error|Exception)(: |$)', '', lines[-1])]
    text = ' '.join(lines) or type(error).__name__
    return text if isinstance(error, InputError) or len(text) <= MOST_CHARACTERS else f'{text[:MOST_CHARACTERS]} ...'


def escape_output() -> None:
    """Makes a command print characters that the terminal's encoding lacks as escapes, e.g. `\\u732b`.

    Otherwise they, and file names that are not UTF-8, end in a traceback. An error handler that the user chose stays.
    """
    for stream in (sys.stdout, sys.stderr):
        # In the C locale Python sets surrogateescape, which helps with file names only.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ('strict', 'surrogateescape'):
            stream.reconfigure(errors='backslashreplace')


def fault(error: BaseException) -> str | None:
    """Describes a fault of the machine on one line: what failed, where, and how to fix it.

    Returns:
        None for any other error: it may be a bug of this package, whose traceback is needed.
    """
    text = f'{error} {error.__cause__ or ""}' if 'DataLoader worker (' in str(error) else one_line(error)
    if isinstance(error, EOFError | OSError):
        trace = f'{error}{"".join(traceback.format_tb(error.__traceback__))}'
        if 'resource_sharer.py' in trace:  # a batch was fetched from a worker that was gone
            return f'{WORKER}; {FEWER_WORKERS}.'
        if re.search(r'multiprocessing.(synchronize|heap)\.py', trace):
            return f'{NO_SHARED_MEMORY} ({text}); {MORE_SHARED_MEMORY}.'
    if isinstance(error, OSError):
        found = re.search(r'\[Errno (\d+)\][^:]*(?:: (.+))?', text)  # a worker's error has no attributes
        number = error.errno or (found and int(found[1]))
        where = error.filename if error.filename is not None else found and found[2]
    else:
        found = re.search(r'\(os error (\d+)\)(?: at path "(.+)")?', text)  # raised by safetensors
        number, where = (int(found[1]), found[2]) if found else (None, None)
    if number in FIXES:
        where = os.fsdecode(where) if isinstance(where, bytes) else where and str(where).strip('\'"')
        return f'{f"{where}: " if where else ""}{os.strerror(number)}; {FIXES[number]}.'
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return f'memory ran out{"" if text == "MemoryError" else f" ({text})"}; {LESS_MEMORY}.'
    for pattern, what, fix in KNOWN if isinstance(error, RuntimeError) else ():
        if re.search(pattern, text):
            return f'{what} ({" ".join(text.split()).rstrip(". ")}); {fix}.'
    return None


def exit_code(command: Callable[[], int | None], name: str) -> int:
    """Runs a command and reports bad input or a fault of the machine as one line on standard error.

    Args:
        command: Function that returns an exit code, or None for 0.
        name: Start of the line.

    Returns:
        The exit code of the command; 2 after bad input or a fault, 130 after Ctrl-C, and 141 after the reader of its
        output has gone, as other commands do.
    """
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except Exception as e:
        line = one_line(e) if isinstance(e, InputError) else fault(e)
        if line is None:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        print(f'{name}: error: {line}', file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Sends standard output to the null device: Python would raise again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
