"""Imported by the scripts before all else: Ctrl-C during the other imports, which take seconds, is one line."""

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
