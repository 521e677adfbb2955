"""Counts of each label in a split; only labels with both positive and absent entries count in metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

__all__ = ['LabelCounts', 'left_out']

MAX_NAMES = 5  # labels listed of each kind
MASKS = {
    **dict.fromkeys(
        ('folder', 'hub', 'table'),
        'if -1 or blank means absent in the data, set data.minus_one or data.blank to absent.',
    ),
    **dict.fromkeys(
        ('voc', 'voc2007', 'voc2012'), 'labels whose objects are all difficult are masked; data.difficult decides.'
    ),
}


@dataclass
class LabelCounts:
    """Counts of the entries of each label in one split.

    Attributes:
        names: Label names.
        positives: Number of images with each label (K,).
        negatives: Number of images without each label (K,); the other entries are masked.
        num_images: Number of images.
        data: Name of the data set, which decides the setting that a message suggests; None if no setting helps.
    """

    names: Sequence[str]
    positives: np.ndarray
    negatives: np.ndarray
    num_images: int
    data: str | None = None

    @classmethod
    def of(cls, targets: np.ndarray, names: Sequence[str], data: str | None) -> LabelCounts:
        """Counts the entries of targets (N, K): 1 present, 0 absent, -1 masked."""
        return cls(names, (targets == 1).sum(0), (targets == 0).sum(0), len(targets), data)

    @property
    def counted(self) -> np.ndarray:
        """Whether each label counts in metrics (K,)."""
        return (self.positives > 0) & (self.negatives > 0)

    def check(self, where: str, setting: str) -> None:
        """Raises `InputError` if no label of an evaluation split counts.

        Args:
            where: Data set and split, for the message.
            setting: Setting of the split, e.g. `data.eval_split`; the message also names that of its size.
        """
        if self.counted.any():
            return
        kinds = left_out(self.positives, self.negatives, self.names)
        size = setting.replace('split', 'size')
        fix = self._fix() or f'choose another {setting}, or a larger {size}.'
        raise InputError(
            f'{where}: there is nothing to evaluate on, as no label has both a positive and an absent entry among the'
            f' {self.num_images:,} images ({kinds}): {fix}'
        )

    def warning(self, where: str, trains: bool) -> str | None:
        """Returns a line that warns of labels that do not count; None if all count.

        Args:
            where: Name of the split.
            trains: True if the split is for training, False if it is for evaluation.
        """
        num_left_out = int((~self.counted).sum())
        if not num_left_out:
            return None
        kinds = left_out(self.positives, self.negatives, self.names)
        effect = 'cannot be learnt' if trains else 'are left out of mAP and of fitted thresholds'
        if not trains and num_left_out == len(self.names):
            effect += ', which leaves nothing to evaluate on'
        fix = self._fix()
        line = f'{where}: {num_left_out} of {len(self.names)} labels {effect}: {kinds}'
        return f'{line}; {fix}' if fix else f'{line}.'

    def unseen(self, train: LabelCounts, where: str, train_split: str) -> str | None:
        """Returns a line that warns of labels that an evaluation split has, but the training split does not.

        Args:
            train: Counts of the training split.
            where: Name of the evaluation split.
            train_split: Name of the training split.
        """
        found = np.flatnonzero(self.counted & (train.positives == 0))
        if not len(found):
            return None
        labels = _some([f'{self.names[k]} ({self.positives[k]:,})' for k in found])
        return (
            f'{where}: {len(found)} of {len(self.names)} labels have positives here but none in {train_split}, and'
            f' count in mAP: {labels}; data.ignore_labels leaves them out.'
        )

    def _fix(self) -> str | None:
        """Returns a hint on the setting that masks entries, if unmasked entries could make a label count; else None."""
        masked = self.num_images - self.positives - self.negatives
        lacks = self.negatives == 0 if self.data in ('folder', 'hub', 'table') else ~self.counted
        return MASKS.get(self.data) if (masked[lacks] > 0).any() else None


def left_out(positives: np.ndarray, negatives: np.ndarray, names: Sequence[str] | None = None) -> str:
    """Returns text on the labels that do not count in metrics, grouped by what they lack.

    Args:
        positives: Number of positive entries of each label (K,).
        negatives: Number of absent entries of each label (K,).
        names: Label names, the first of which are listed; None for numbers only.

    Examples:
        >>> left_out([3, 0], [0, 2], ['cat', 'dog'])
        '1 without an absent entry [cat], 1 without a positive [dog]'
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
            part += f' [{_some([names[k] for k in labels])}]'
        parts.append(part)
    return ', '.join(parts)


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:MAX_NAMES]) + (f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else '')
