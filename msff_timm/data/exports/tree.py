"""The names of all files below a folder, read once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ...errors import InputError

__all__ = ['Tree', 'read_tree']

# Folders that operating systems and tools leave; hidden ones are skipped, too
SKIPPED = ('__MACOSX', '@eaDir')


@dataclass(frozen=True)
class Tree:
    """Files below a folder; hidden ones, e.g. `._a.jpg` of macOS, are left out.

    Attributes:
        root: Path of the folder; if the tree is that of a single file, the folder of this file.
        files: Sorted names of the files in each folder, by its path relative to `root` with slashes (`` for `root`).
    """

    root: Path
    files: dict[str, list[str]]

    def find(self, *suffixes: str) -> Iterator[str]:
        """Yields the relative path of each file whose name ends in one of the suffixes, in lower case; top first."""
        for folder in sorted(self.files, key=lambda folder: (folder.count('/') + bool(folder), folder)):
            for name in self.files[folder]:
                if name.lower().endswith(suffixes):
                    yield str(PurePosixPath(folder, name))


@lru_cache(maxsize=1)  # the recognisers of all formats read the same folder; `recognise` clears it
def read_tree(root: Path) -> Tree:
    """Lists all files below a folder, or the file itself. Links to folders are followed.

    Raises:
        InputError: The root does not exist, or cannot be listed.
    """
    if root.is_file():
        return Tree(root.parent, {'': [root.name]})
    files: dict[str, list[str]] = {}
    seen = set()

    def refuse(error: OSError) -> None:
        raise InputError(f'{error.filename}: cannot be listed ({error.strerror}).')

    for where, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.') and name not in SKIPPED)
        kept = sorted(name for name in names if not name.startswith('.'))
        if kept:
            files[os.path.relpath(where, root).replace(os.sep, '/').removeprefix('.')] = kept
    return Tree(root, files)
