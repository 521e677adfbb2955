"""Imported by the scripts before all else, for what has to be set before the other imports.

Ctrl-C during these, which take seconds, is one line; and threads that wait for one another sleep.
"""

import os
import sys
from types import TracebackType


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows an exception that ends the process: a traceback, but for Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print(f'{os.path.basename(sys.argv[0])}: interrupted.', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = report
# Read when PyTorch is loaded. A thread that waits at the end of each parallel region by spinning, as is the default,
# holds a core that the thread it waits for may need: beside other processes a step takes ten times as long.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
