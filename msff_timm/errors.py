"""What the commands turn into one line instead of a traceback: bad input, and faults of the machine."""

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches

__all__ = ['InputError', 'escape_output', 'exit_code', 'fault', 'unknown']

MOST_NAMES = 20  # of the known ones in a message
ELSEWHERE = 'choose another place, or change its permissions'
FIXES = {
    errno.ENOSPC: 'make room there, or choose another place',
    getattr(errno, 'EDQUOT', errno.ENOSPC): 'make room within your quota, or choose another place',
    errno.EROFS: 'choose another place',
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.EMFILE: 'raise the limit of open files (ulimit -n), or use fewer workers',
    errno.ENFILE: 'raise the limit of open files, or use fewer workers',
    errno.EAGAIN: 'raise the limit of processes (ulimit -u), or use fewer workers',
    errno.EIO: 'check the disk',
    errno.ENOENT: 'check that it is there',
    errno.ENOTDIR: 'check the path',
    errno.EISDIR: 'check the path',
    errno.EEXIST: 'check the path',
    errno.ELOOP: 'check its links',
}
WORKER = 'a worker of the loader was killed, most likely because memory ran out'
FEWER_WORKERS = 'set data.workers lower, use smaller batches, or a machine with more memory'
NO_SHARED_MEMORY = 'the workers of the loader need more shared memory'
MORE_SHARED_MEMORY = 'make /dev/shm larger (docker run --shm-size=8g), or set data.workers to 0'
LESS_MEMORY = 'use smaller batches or images, fewer workers, or a machine with more memory'
# Faults that libraries put into exceptions of many types
KNOWN = (
    (r'shared memory|\(shm\)|</torch_\w+>|Bus error', NO_SHARED_MEMORY, MORE_SHARED_MEMORY),
    (r'DataLoader worker \(pid.* (killed by signal|exited unexpectedly)', WORKER, FEWER_WORKERS),
    (r'(CUDA|HIP|MPS\w*|XPU).*out of memory', 'the memory of the GPU is too small', 'use smaller batches or images'),
    (r"out of memory|can't allocate memory|not enough memory|[Uu]nable to allocate", 'memory ran out', LESS_MEMORY),
    (r"can't start new thread", 'no thread can be started', FIXES[errno.EAGAIN]),
)


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line that names it and the mend."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Makes the error for a name that is not among the known ones: it names the nearest, or a few of them."""
    known = sorted(known)
    nearest = get_close_matches(name, known, n=1)
    some = ', '.join(known[:MOST_NAMES]) + (f', ... ({len(known)} in all)' if len(known) > MOST_NAMES else '')
    mend = f'did you mean {nearest[0]}?' if nearest else f'choose from {some}.'
    return InputError(f'unknown {what} {name!r}: {mend}')


def escape_output() -> None:
    """Lets a command print what the terminal's encoding lacks, and file names that are not UTF-8, as `\\u732b`.

    Otherwise they end in a traceback. Ways that the user chose to replace such characters stay.
    """
    for stream in (sys.stdout, sys.stderr):
        # In the C locale Python sets surrogateescape, which helps with such file names alone.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ('strict', 'surrogateescape'):
            stream.reconfigure(errors='backslashreplace')


def fault(error: BaseException) -> str | None:
    """Puts a fault of the machine into one line: what failed, where, and how to fix it.

    Returns:
        None for any other error, which may be one of this package: its traceback is of use.
    """
    text = f'{error} {error.__cause__ or ""}' if 'DataLoader worker (' in str(error) else _said(error)
    if isinstance(error, EOFError | OSError):
        passed = f'{error}{"".join(traceback.format_tb(error.__traceback__))}'
        if 'resource_sharer.py' in passed:  # a batch was fetched from a worker that was gone
            return f'{WORKER}; {FEWER_WORKERS}.'
        if re.search(r'multiprocessing.(synchronize|heap)\.py', passed):
            return f'{NO_SHARED_MEMORY} ({error.strerror or text}); {MORE_SHARED_MEMORY}.'
    if isinstance(error, OSError):
        found = re.search(r'\[Errno (\d+)\][^:]*(?:: (.+))?', text)  # a worker's has no attributes
        number = error.errno or (found and int(found[1]))
        where = error.filename if error.filename is not None else found and found[2]
    else:
        found = re.search(r'\(os error (\d+)\)(?: at path "(.+)")?', text)  # of safetensors
        number, where = (int(found[1]), found[2]) if found else (None, None)
    if number in FIXES:
        where = os.fsdecode(where) if isinstance(where, bytes) else where and str(where).strip('\'"')
        return f'{f"{where}: " if where else ""}{os.strerror(number)}; {FIXES[number]}.'
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return f'memory ran out{f" ({text})" if text else ""}; {LESS_MEMORY}.'
    for pattern, what, fix in KNOWN if isinstance(error, RuntimeError) else ():
        if re.search(pattern, text):
            return f'{what} ({" ".join(text.split()).rstrip(". ")}); {fix}.'
    return None


def exit_code(command: Callable[[], int | None], name: str) -> int:
    """Runs a command; bad input or a fault of the machine ends it with one line on standard error.

    Args:
        command: Returns an exit code, None for 0.
        name: Beginning of the line.

    Returns:
        What the command returns; 2 for bad input and faults, 130 for Ctrl-C, and 141 where nothing reads its output any
        more, as of other commands that end so.
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
        line = _said(e) if isinstance(e, InputError) else fault(e)
        if line is None:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        print(f'{name}: error: {line}', file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Sends standard output nowhere: Python would complain once more when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: BaseException) -> str:
    """Gives an error's message on one line; that of a loader's worker comes after the worker's traceback."""
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith('Caught '):
        return re.sub(r'^[\w.]*(Error|Exception)(: |$)', '', lines[-1])
    return ' '.join(lines)
