"""Reader of Roboflow's export of multi-label classification: `train/_classes.csv` with one column per label.

The file lies beside the images of each split. All its columns but `filename` are labels, whatever their names.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from .. import table
from ..columns import ColumnSettings
from .files import read_head
from .tree import Tree, read_tree

__all__ = ['load', 'recognise']


def recognise(root: Path) -> str | None:
    """Returns the first `_classes.csv` that names images; that of a segmentation lists pixel values instead."""
    return next((name for name in read_tree(root).find('_classes.csv') if _labels(root / name)), None)


def load(
    split: str,
    root: Path,
    *,
    label_columns: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    minus_one: str = 'unannotated',
    blank: str = 'unannotated',
) -> Dataset:
    """Loads one split of an export of Roboflow, see `table.load`.

    Args:
        split: `train`, `validation` or `test`.
        root: Folder of `train/`, `valid/` etc.
        label_columns: Columns of the labels; None for all but `filename`.
        label_names: Label names in the order of the logits; None for those of the columns.
        minus_one: Meaning of -1, see `msff_timm.data.load`.
        blank: Meaning of an empty cell, see `msff_timm.data.load`.

    Raises:
        InputError: The export is invalid; the message names file and row.
    """
    # Of all splits: a column that another split lacks is an error.
    found = dict.fromkeys(label for name in Tree(root).find('_classes.csv') for label in _labels(root / name))
    settings = ColumnSettings(
        label_columns=label_columns or list(found) or None,
        label_names=label_names,
        minus_one=minus_one,
        blank=blank,
    )
    settings.check()
    return table.load('roboflow', split, str(root), settings)


def _labels(path: Path) -> list[str]:
    """Returns the columns of the labels, which is empty for a file without `filename`."""
    header = [name.strip() for name in next(csv.reader(io.StringIO(read_head(path))), [])]
    return header[1:] if header[:1] == ['filename'] else []
