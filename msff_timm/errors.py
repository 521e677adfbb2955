"""The one exception that the commands turn into a line instead of a traceback."""

import io
import sys
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ['InputError', 'escape_output', 'unknown']

MOST_NAMES = 20  # of the known ones in a message


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
