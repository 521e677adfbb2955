"""Files of exports: JSON, images that an export names by URLs or paths of another machine, and rows of a split."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from ..table_splits import standard_split
from ..text import is_one_line, quote
from .splits import choose_split, rows_of_split
from .tree import Tree, parts_of

__all__ = ['ImageFinder', 'read_head', 'select_rows']


def read_head(path: Path, size: int = 1 << 16) -> str:
    """Returns the beginning of a text file, or an empty text if it cannot be read."""
    try:
        with open(path, 'rb') as file:
            return file.read(size).decode('utf-8-sig', errors='ignore')
    except OSError:
        return ''


class ImageFinder:
    """Finds images by the end of their path, with the names that Label Studio gives to uploaded files.

    Args:
        tree: Files to choose from.
    """

    def __init__(self, tree: Tree):
        self.paths: dict[str, list[list[str]]] = defaultdict(list)
        uploaded = []
        for image in filter(is_one_line, tree.images):
            path = parts_of(image)
            self.paths[path[-1]].append(path)
            uploaded.append((re.sub(r'[^-\w.]', '', path[-1].replace(' ', '_')), path))
        for name, path in uploaded:
            if path not in self.paths[name]:
                self.paths[name].append(path)

    def find(self, path: str) -> list[str]:
        """Returns the images of this name whose folders agree with the path in most of its end."""
        wanted = [part for part in path.replace('\\', '/').split('/') if part not in ('', '.')]
        found = self.paths.get(wanted[-1], []) if wanted else []
        lengths = [len(os.path.commonprefix([parts[-2::-1], wanted[-2::-1]])) for parts in found]
        return ['/'.join(parts) for parts, length in zip(found, lengths, strict=True) if length == max(lengths)]


def select_rows(source: object, split: str, subsets: Sequence[object], images: Sequence[str]) -> tuple[list[int], str]:
    """Returns the rows of one split of an export that may hold several, and a note on what decided.

    Args:
        source: File, for messages.
        split: Name of the split.
        subsets: Subset of each row as the export states it; if none means a split, the folders of the images decide.
        images: Path of each image, relative to the root.

    Raises:
        InputError: The split has no rows, or only some of the subsets mean a split.
    """
    splits = list(map(standard_split, subsets))
    if not any(splits):
        return rows_of_split(images, split, source)
    if None in splits:
        row = splits.index(None)
        raise InputError(
            f'{source}: the image {images[row]} is in the subset {quote(subsets[row])}, which is no split, but others'
            f' are in {next(filter(None, splits))}: name it train, validation or test.'
        )
    choose_split(split, splits, source)
    return [row for row, other in enumerate(splits) if other == split], 'splits: by the subsets of the export'
