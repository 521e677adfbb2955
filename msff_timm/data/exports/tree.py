"""The files below a folder, read once, and how annotations find their images among them."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

from ...errors import InputError
from ..formats import image_suffixes

__all__ = ['Tree', 'join', 'nearest', 'parts_of', 'read_tree']

# Folders that operating systems and tools leave; hidden ones are skipped, too
SKIPPED = ('__MACOSX', '@eaDir')


class Tree:
    """Files below a folder; hidden ones, e.g. `._a.jpg` of macOS, are left out. Paths are relative, with slashes.

    Args:
        root: Folder, or a single file.

    Attributes:
        root: Absolute path of the folder, or of the folder of the file.
        files: Sorted names of the files in each folder, by its path (an empty one for the root).

    Raises:
        InputError: The root does not exist, or a folder in it cannot be listed.
    """

    def __init__(self, root: Path):
        root = Path(os.path.abspath(root))
        if root.is_file():
            self.root, self.files = root.parent, {'': [root.name]}
            return
        self.root, self.files = root, {}
        seen = set()

        def refuse(error: OSError) -> None:
            raise InputError(f'{error.filename}: cannot be listed ({error.strerror}).')

        for where, inner, names in os.walk(root, onerror=refuse, followlinks=True):
            if (real := os.path.realpath(where)) in seen:  # a link to a folder above
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(name for name in inner if not name.startswith('.') and name not in SKIPPED)
            if kept := sorted(name for name in names if not name.startswith('.')):
                self.files[os.path.relpath(where, root).replace(os.sep, '/').removeprefix('.')] = kept

    def find(self, *suffixes: str, most: int | None = None) -> Iterator[str]:
        """Yields the files whose names end in one of the suffixes, the top folders first.

        Args:
            *suffixes: Ends of names, in lower case.
            most: Number of files of a folder to yield; None for all.
        """
        for folder in sorted(self.files, key=lambda folder: (len(parts_of(folder)), folder)):
            names = (name for name in self.files[folder] if name.lower().endswith(suffixes))
            yield from (join(folder, name) for name in islice(names, most))

    @cached_property
    def images(self) -> list[str]:
        """Images, by their suffixes."""
        known = image_suffixes()
        return [
            join(folder, name)
            for folder, names in self.files.items()
            for name in names
            if os.path.splitext(name)[1].lower() in known
        ]

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Images by the last part of their paths."""
        return _grouped((os.path.basename(path), path) for path in self.images)

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Images by the last part of their paths, without the suffix."""
        return _grouped((os.path.splitext(os.path.basename(path))[0], path) for path in self.images)

    def digest(self) -> str:
        """Returns a digest of the paths of the images: one that is added later is no longer missing."""
        return hashlib.sha256('\n'.join(self.images).encode(errors='surrogateescape')).hexdigest()


def _grouped(pairs: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return dict(groups)


@lru_cache(maxsize=1)
def read_tree(root: Path) -> Tree:
    """Returns the tree of a root; the same one to all formats while a folder is recognised."""
    return Tree(root)


def join(folder: str, name: str) -> str:
    return f'{folder}/{name}' if folder else name


def parts_of(folder: str) -> list[str]:
    return folder.split('/') if folder else []


def nearest(path: str, candidates: Sequence[str]) -> list[str]:
    """Returns the images whose folders have most in common with that of an annotation, from the top and the bottom.

    That of `labels/train/1.txt` is `images/train/1.jpg` rather than `images/val/1.jpg`.
    """
    if len(candidates) < 2:
        return list(candidates)
    folder = parts_of(os.path.dirname(path))

    def in_common(candidate: str) -> tuple[int, int]:
        other = parts_of(os.path.dirname(candidate))
        top = len(os.path.commonprefix([folder, other]))
        bottom = len(os.path.commonprefix([folder[top:][::-1], other[top:][::-1]]))
        return top + bottom, -len(other)

    scores = [in_common(candidate) for candidate in candidates]
    return [candidate for candidate, score in zip(candidates, scores, strict=True) if score == max(scores)]
