"""Imported by the scripts before all else, for what has to be set before the other imports.

Ctrl-C during these, which take seconds, is one line; threads that wait for one another sleep; and memory stays with the
process.
"""

import ctypes
import os
import sys
from contextlib import suppress
from types import TracebackType

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an exception that ends the process: a traceback, but for Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print(f'{os.path.basename(sys.argv[0])}: interrupted.', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def keep_memory() -> None:
    """Lets glibc keep what is freed for what is needed next.

    By default it returns each large tensor to the system, which clears the memory again for the next one. That can take
    much of a training step on a CPU.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, num_bytes in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(parameter, num_bytes)


sys.excepthook = report
# Read when PyTorch is loaded. A thread that waits at the end of each parallel region by spinning, as is the default,
# holds a core that the thread it waits for may need: beside other processes a step takes ten times as long.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
if not any(name.startswith('MALLOC_') for name in os.environ):
    keep_memory()
