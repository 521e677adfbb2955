"""Splits of exports: by the names of annotation files, or by the folders of the images."""

import os
import re
from collections.abc import Collection, Sequence

from ...errors import InputError, NoSplitError
from ..table_splits import SPLIT_FOLDER, SPLITS, standard_split
from ..text import join_names, quote
from .tree import parts_of

__all__ = ['choose_split', 'folder_split', 'rows_of_split', 'word_split']


def folder_split(path: str) -> str | None:
    """Returns the split whose folder a file is in, e.g. `validation` for `images/val2017/a.jpg`, or None."""
    for part in parts_of(os.path.dirname(path)):
        if match := SPLIT_FOLDER.fullmatch(part):
            return standard_split(match[1])
    return None


def word_split(path: str) -> str | None:
    """Returns the split that the name of a file, or else its folder, means; None if it means none or several.

    Examples:
        >>> word_split('annotations/instances_val2017.json'), word_split('valid/_annotations.coco.json')
        ('validation', 'validation')
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    found = {split for word in re.split(r'[-._ 0-9]+', stem) if (split := standard_split(word))}
    return found.pop() if len(found) == 1 else None if found else folder_split(path)


def choose_split(split: str, found: Collection[str | None], source: object) -> str | None:
    """Returns the split if there are annotations of it, or None if those of no split are all there is.

    Raises:
        InputError: There are annotations of other splits only.
    """
    if split in found:
        return split
    if list(found) == [None]:
        return None
    raise NoSplitError(
        f'{source}: has no split {split} (found: {join_names([each for each in SPLITS if each in found])}).'
    )


def rows_of_split(paths: Sequence[str], split: str, source: object) -> tuple[list[int], str]:
    """Assigns images to splits by their folders, e.g. `train/` and `val/`; without such folders, all belong to `train`.

    Args:
        paths: Path of each image, relative to the root.
        split: Name of a split.
        source: File or folder of the annotations, for messages.

    Returns:
        Rows of the split, and a note on what decided.

    Raises:
        InputError: The split has no image, or an image is in none of the folders.
    """
    splits = [folder_split(path) for path in paths]
    others = set(splits) - {None}
    if not others or others == {'train'}:
        if split != 'train':
            raise NoSplitError(
                f'{source}: has no split {split}: no file or folder is named by one, so all images belong to train;'
                ' sort them into folders train, val and test.'
            )
        return list(range(len(paths))), 'splits: none is named, so all images belong to train'
    if None in splits:
        path = paths[splits.index(None)]
        raise InputError(
            f'{source}: {quote(path)} is not in the folder of a split, but other images are: move it there.'
        )
    if split not in others:
        raise NoSplitError(f'{source}: no image is in a folder of {split} (found: {join_names(sorted(others))}).')
    return [row for row, other in enumerate(splits) if other == split], 'splits: by the folders of the images'
