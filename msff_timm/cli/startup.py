"""Settings that must precede the imports of PyTorch. Scripts import this module first.

Ctrl-C during the imports, which take seconds, prints one line; waiting threads spin briefly, then sleep; freed memory
stays with the process.
"""

import ctypes
import os
import sys
from contextlib import suppress
from types import TracebackType

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # from malloc.h of glibc

SPINS = '1000'  # iterations of libgomp's waiting loop


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an exception that ends the process: one line for Ctrl-C, a traceback for others."""
    if issubclass(kind, KeyboardInterrupt):
        print(f'{os.path.basename(sys.argv[0])}: interrupted.', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def keep_memory() -> None:
    """Makes glibc keep freed memory for the next tensor.

    By default it returns each large tensor's memory to the system, which has to clear it for the next tensor. This can
    take much of a training step on a CPU. All threads share one arena, since the arenas of further threads cannot keep
    large tensors.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        values = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26, M_ARENA_MAX: 1}
        for parameter, value in values.items():
            mallopt(parameter, value)


sys.excepthook = report
# Read when PyTorch is loaded. By default, a thread that waits at the end of a parallel region spins for long, and may
# hold the core that another thread needs: on a shared machine a step then takes several times as long. But waking a
# thread that sleeps takes longer than many regions of a small model. So a thread spins briefly, then sleeps
# (`train/benchmarks/benchmark.py wait`).
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ['OMP_WAIT_POLICY'] = 'passive'
    os.environ.setdefault('GOMP_SPINCOUNT', SPINS)
if not any(name.startswith('MALLOC_') for name in os.environ):
    keep_memory()
