"""Text from files: which text may name a label or an image, and how messages quote it on one line."""

import os
import reprlib
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import InputError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def quote(value: object) -> str:
    """Returns the `repr` of a value for a message: one line, shortened to about 80 characters."""
    return _REPR.repr(value)


def join_names(names: Collection[str], most: int = 20) -> str:
    """Joins names with commas; from `most` on, `...` and their number replace the rest."""
    names = list(names)
    return ', '.join(names[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')


def list_folder(folder: str | Path) -> str:
    """Returns the first five entries of a folder for a message, or the reason why it cannot be listed."""
    try:
        return ', '.join(ascii(entry)[1:-1] for entry in sorted(os.listdir(folder))[:5]) or 'nothing'
    except OSError as e:
        return 'no such folder' if isinstance(e, FileNotFoundError) else f'{e.strerror}'


def is_one_line(text: str) -> bool:
    """Returns whether text fits on one line of a message and into an Arrow file.

    Line breaks, NUL characters and unpaired surrogates do not.
    """
    if '\0' in text or len(f'{text}.'.splitlines()) > 1:
        return False
    return text.isascii() or not any('\ud800' <= character <= '\udfff' for character in text)


def check_names(source: str, names: Iterable[str] | None) -> None:
    """Raises `InputError` if a name is not text, is blank, is repeated or does not fit on one line.

    Args:
        source: Setting or file that lists the names, for the message.
        names: Names of labels, columns or keys; None is accepted.
    """
    seen = set()
    for name in names or ():
        if not isinstance(name, str):
            raise InputError(f'{source}: {quote(name)} is not text: put it in quotes.')
        if not name.strip():
            raise InputError(f'{source}: a name is empty: give it a name, or remove it.')
        if not is_one_line(name):
            raise InputError(f'{source}: the name {quote(name)} contains a line break or a NUL character: remove it.')
        if name in seen:
            raise InputError(f'{source}: {quote(name)} is listed twice: remove one of them.')
        seen.add(name)
