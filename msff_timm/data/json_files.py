"""JSON files that users write."""

import json
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError

__all__ = ['read_json']


def read_json(path: Path, object_hook: Callable[[dict], object] | None = None) -> object:
    """Reads a JSON file in any encoding of Unicode.

    Args:
        path: File to read.
        object_hook: Function that replaces each object, as in `json.load`.

    Raises:
        InputError: The file is not valid JSON.
    """
    try:
        with open(path, 'rb') as file:
            encoding = json.detect_encoding(file.read(4))
        with open(path, encoding=encoding) as file:
            return json.load(file, object_hook=object_hook)
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror}).') from None
    except UnicodeDecodeError as e:
        raise InputError(f'{path}: is not {encoding} ({e}): save it as UTF-8.') from None
    except RecursionError:
        raise InputError(f'{path}: is nested too deeply.') from None
    except ValueError as e:
        raise InputError(f'{path}: is not valid JSON ({e}).') from None
