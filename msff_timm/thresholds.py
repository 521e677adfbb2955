"""Thresholds for the best F1, or for a wanted precision or recall, evaluated on images that they were not fitted to."""

import math
from dataclasses import dataclass

import numpy as np

from .metrics import FEW, checked, columns, curve, precision_recall_f1, present_and_absent

__all__ = ['Thresholds', 'fit', 'parse_target', 'positives_needed', 'split']

DEFAULT = 0.5


@dataclass(frozen=True)
class Thresholds:
    """Probabilities above which a label is predicted.

    Attributes:
        per_class: Threshold of each label (K,), which is the best for the target; 0.5 for labels that do not count.
        overall: Threshold for all labels, which is the best for the target over all entries of those that count.
        out_of_fold: Metrics in percent for the thresholds `per_class`, `overall` and `default` (0.5): `CP`, `CR`, `CF1`
            and `OF1` of all labels as in `metrics.evaluate`, and `macro_F1`, the mean F1 of the labels that count. The
            thresholds of each image are fitted without its fold.
        num_fitted: Number of labels that count.
        target: Target as given.
        num_met: Number of labels that count whose precision or recall reaches the target out of fold; None for F1.
        unmet: Indices of labels that count and reach the target at no threshold. They have the nearest one.
        too_rare: Indices of labels that count and have fewer positives than `positives_needed`, or fewer than `FEW`
            negatives, so their thresholds are unreliable.
    """

    per_class: list[float]
    overall: float
    out_of_fold: dict[str, dict[str, float]]
    num_fitted: int
    target: str
    num_met: int | None
    unmet: list[int]
    too_rare: list[int]


def fit(
    scores: np.ndarray,
    targets: np.ndarray,
    ignore: np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
    target: str = 'f1',
) -> Thresholds:
    """Fits thresholds to all images, and again without each fold to evaluate them.

    A threshold is midway between two neighbouring scores, or between a score and 0. Of equally good thresholds, the one
    nearest to 0.5 is chosen. A label counts if it has at least one positive and one negative; others get 0.5, within
    the folds too.

    Args:
        scores: Probabilities (N, K).
        targets: Targets (N, K), 1 or 0.
        ignore: Mask (N, K), True for entries to leave out.
        folds: Number of random parts of equal size that the images are split into.
        seed: Seed of the fold assignment.
        target: Target of each label: `f1` for the largest F1, `precision:P` for the largest recall with a precision of
            at least P, or `recall:R` for the largest precision with a recall of at least R.

    Returns:
        The thresholds with their metrics.

    Raises:
        ValueError: There are fewer than two folds or fewer images than folds, no label counts, the target is unknown,
            or an argument is invalid, see `metrics.evaluate`.

    Examples:
        >>> scores = np.array([[0.9], [0.3], [0.2], [0.8], [0.35], [0.1]])
        >>> targets = np.array([[1], [1], [0], [1], [1], [0]])
        >>> fitted = fit(scores, targets, folds=3)
        >>> fitted.per_class, fitted.out_of_fold['default']['CF1'].__round__(1)
        ([0.25], 66.7)
    """
    goal = parse_target(target)
    scores, present, absent, parts = split(scores, targets, ignore, folds, seed)
    counts = _counts(present, absent)

    predicted = {name: np.empty(scores.shape, bool) for name in ('per_class', 'overall')}
    for fold, others in parts:
        per_class, overall, _ = _fit(scores[others], present[others], absent[others], goal)
        predicted['per_class'][fold] = scores[fold] > np.array(per_class)
        predicted['overall'][fold] = scores[fold] > np.float64(overall)
    predicted['default'] = scores > DEFAULT

    per_class, overall, unmet = _fit(scores, present, absent, goal)
    num_met = None
    if goal is not None:
        correct = (predicted['per_class'] & present).sum(0)
        among = (predicted['per_class'] & (present | absent)).sum(0) if goal[0] == 'precision' else present.sum(0)
        num_met = int((counts & (among > 0) & (correct / np.maximum(among, 1) >= goal[1])).sum())
    too_rare = counts & ((present.sum(0) < positives_needed(target)) | (absent.sum(0) < FEW))
    return Thresholds(
        per_class,
        overall,
        {name: _compute_metrics(each, present, absent) for name, each in predicted.items()},
        int(counts.sum()),
        target,
        num_met,
        unmet,
        np.flatnonzero(too_rare).tolist(),
    )


def parse_target(target: str) -> tuple[str, float] | None:
    """Reads a target of `fit`.

    Returns:
        The metric, `precision` or `recall`, and its wanted value; None for `f1`.

    Raises:
        ValueError: The text is no target.
    """
    if target == 'f1':
        return None
    metric, _, text = target.partition(':')
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if metric not in ('precision', 'recall') or not 0 < value < 1:
        raise ValueError(f'target {target!r} must be f1, or precision:P or recall:R with P or R between 0 and 1.')
    return metric, value


def positives_needed(target: str) -> int:
    """Returns the number of positives below which a label is too rare for a target.

    With fewer, a single mistake lowers a precision or recall of 1 to below the target.
    """
    goal = parse_target(target)
    return FEW if goal is None else max(FEW, math.ceil(1 / (1 - goal[1]) - 1e-9))


def split(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Checks the arguments of `fit`, and splits the images into folds.

    Returns:
        Scores, masks of positives and of negatives (N, K), and for each fold the indices of its images and a mask (N,)
        of all others.

    Raises:
        ValueError: See `fit`.
    """
    scores, targets, ignore, _ = checked(scores, targets, ignore)
    if folds < 2:
        raise ValueError(f'folds is {folds}: must be at least 2, one to fit thresholds and one to evaluate them.')
    if len(scores) < folds:
        raise ValueError(f'{len(scores)} images cannot be split into {folds} folds: give more images or fewer folds.')
    present, absent = present_and_absent(targets, ignore)
    if not _counts(present, absent).any():
        raise ValueError('targets hold no label with both a positive and a negative, so no threshold can be fitted.')
    parts = []
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(scores)), folds):
        others = np.ones(len(scores), bool)
        others[fold] = False
        parts.append((fold, others))
    return scores, present, absent, parts


def _counts(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    return np.logical_and(present.any(0), absent.any(0))


def _fit(
    scores: np.ndarray, present: np.ndarray, absent: np.ndarray, goal: tuple[str, float] | None
) -> tuple[list[float], float, list[int]]:
    """Fits the thresholds of the labels and of all; returns also the indices of the labels that miss the goal."""
    counts = _counts(present, absent)
    per_class, unmet = [DEFAULT] * len(counts), []
    for k, (s, positive, negative) in enumerate(columns(scores, present, absent)):
        if counts[k]:
            per_class[k], is_met = _best(s[positive], s[negative], goal)
            if not is_met:
                unmet.append(k)
    return per_class, _best(scores[present & counts], scores[absent & counts], goal)[0], unmet


def _best(positive: np.ndarray, negative: np.ndarray, goal: tuple[str, float] | None) -> tuple[float, bool]:
    """Finds the best threshold for a goal, and whether it reaches the goal.

    F1 is 2 TP / (predicted + positives). The best threshold is just below the score of a positive: any lower one lets
    more negatives pass for the same positives. A score of 0 exceeds no threshold.
    """
    negative = np.sort(negative)
    levels, correct, passing = curve(positive, negative)
    reachable = levels > 0
    if not reachable.any():
        return DEFAULT, goal is None
    value, is_met = 2 * correct / (passing + len(positive)), True
    if goal is not None:
        precision, recall = correct / passing, correct / len(positive)
        wanted, value = (precision, recall) if goal[0] == 'precision' else (recall, precision)
        highest = wanted[reachable].max()
        is_met = bool(highest >= goal[1])
        reachable &= wanted >= min(goal[1], highest)

    lower_positive = np.concatenate([[0], levels[:-1]]).astype(levels.dtype)
    below = np.concatenate([[0], negative]).astype(levels.dtype)[np.searchsorted(negative, levels)]
    lower = np.maximum(lower_positive, below)
    midway = lower + (levels - lower) / 2
    # In the precision of the scores, so that comparisons in it agree. Two adjacent numbers have no middle.
    midway = np.where(midway < levels, midway, lower)

    best = midway[reachable & (value == value[reachable].max())]
    return float(best[np.abs(best - DEFAULT).argmin()]), is_met


def _compute_metrics(predicted: np.ndarray, present: np.ndarray, absent: np.ndarray) -> dict[str, float]:
    metrics = precision_recall_f1(predicted, present, ~(present | absent))
    counts = _counts(present, absent)
    predicted, present = predicted[:, counts] & (present | absent)[:, counts], present[:, counts]
    label_f1 = 2 * (predicted & present).sum(0) / (predicted.sum(0) + present.sum(0))
    return {**{name: metrics[name] for name in ('CP', 'CR', 'CF1', 'OF1')}, 'macro_F1': 100 * float(label_f1.mean())}
