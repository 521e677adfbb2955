"""Which labels of a split count: those with at least one positive and one absent entry among what is not masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

__all__ = ['LabelCounts', 'left_out']

MOST_NAMES = 5  # of each kind in a line
MASKS = {
    **dict.fromkeys(
        ('folder', 'hub', 'table'),
        'if -1 or blank means absent in the data, set data.minus_one or data.blank to absent.',
    ),
    **dict.fromkeys(
        ('voc2007', 'voc2012'), 'labels whose objects are all difficult are masked; data.difficult decides.'
    ),
}


@dataclass
class LabelCounts:
    """The entries of each label in one split.

    Attributes:
        names: Label names.
        positives: (K,), number of images that hold the label.
        negatives: (K,), number of images that do not.
        num_images: Number of images; entries that are neither are masked.
        data: Name of the data set, which decides the setting that a message names; None where no setting helps.
    """

    names: Sequence[str]
    positives: np.ndarray
    negatives: np.ndarray
    num_images: int
    data: str | None = None

    @classmethod
    def of(cls, targets: np.ndarray, names: Sequence[str], data: str | None) -> LabelCounts:
        """Counts targets (N, K): 1 present, 0 absent, -1 masked."""
        return cls(names, (targets == 1).sum(0), (targets == 0).sum(0), len(targets), data)

    @property
    def counted(self) -> np.ndarray:
        """Whether each label counts, (K,)."""
        return (self.positives > 0) & (self.negatives > 0)

    def check(self, where: str, setting: str) -> None:
        """Refuses a split to evaluate on in which no label counts.

        Args:
            where: Its data and name.
            setting: Setting that chooses the split, e.g. `data.eval_split`; that of its size goes with it.

        Raises:
            InputError: No label counts.
        """
        if self.counted.any():
            return
        kinds = left_out(self.positives, self.negatives, self.names)
        size = setting.replace('split', 'size')
        fix = self._fix() or f'choose another {setting}, or more images by {size}.'
        raise InputError(
            f'{where}: there is nothing to evaluate on, as no label has both a positive and an absent entry among the'
            f' {self.num_images:,} images ({kinds}): {fix}'
        )

    def warning(self, where: str, trains: bool) -> str | None:
        """Makes the line that warns of the labels that do not count; None if all do.

        Args:
            where: Name of the split.
            trains: True where the split is trained on, false where it is evaluated on.
        """
        num_left_out = int((~self.counted).sum())
        if not num_left_out:
            return None
        kinds = left_out(self.positives, self.negatives, self.names)
        what = 'cannot be learnt' if trains else 'are left out of mAP and of fitted thresholds'
        if not trains and num_left_out == len(self.names):
            what += ', which leaves nothing to evaluate on'
        fix = self._fix()
        line = f'{where}: {num_left_out} of {len(self.names)} labels {what}: {kinds}'
        return f'{line}; {fix}' if fix else f'{line}.'

    def _fix(self) -> str | None:
        """Names the setting that masks entries, where unmasked ones could make a label count."""
        masked = self.num_images - self.positives - self.negatives
        lacks = self.negatives == 0 if self.data in ('folder', 'hub', 'table') else ~self.counted
        return MASKS.get(self.data) if (masked[lacks] > 0).any() else None


def left_out(positives: np.ndarray, negatives: np.ndarray, names: Sequence[str] | None = None) -> str:
    """Counts the labels that do not count by what they lack, and names the first of each kind.

    Args:
        positives: (K,), number of each label's positives.
        negatives: (K,), number of each label's absent entries.
        names: Label names, to be named.
    """
    positives, negatives = np.asarray(positives), np.asarray(negatives)
    kinds = {
        'without an absent entry': (positives > 0) & (negatives == 0),
        'masked throughout': (positives == 0) & (negatives == 0),
        'without a positive': (positives == 0) & (negatives > 0),
    }
    parts = []
    for kind, found in kinds.items():
        labels = np.flatnonzero(found)
        if not len(labels) and kind == 'masked throughout':
            continue
        part = f'{len(labels)} {kind}'
        if names is not None and len(labels):
            some = ', '.join(names[k] for k in labels[:MOST_NAMES]) + (', ...' if len(labels) > MOST_NAMES else '')
            part += f' [{some}]'
        parts.append(part)
    return ', '.join(parts)
