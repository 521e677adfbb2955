"""Thresholds that maximise F1, evaluated on images that they were not fitted to."""

from dataclasses import dataclass

import numpy as np

from .metrics import checked, columns, curve, precision_recall_f1, present_and_absent

__all__ = ['Thresholds', 'fit']

DEFAULT = 0.5


@dataclass(frozen=True)
class Thresholds:
    """Probabilities above which a label is predicted.

    Attributes:
        per_class: Threshold of each label (K,), which maximises the label's F1; 0.5 for labels that do not count.
        overall: Threshold for all labels, which maximises the OF1 of those that count.
        out_of_fold: Metrics in percent for the thresholds `per_class`, `overall` and `default` (0.5): `CF1` and `OF1`
            of all labels as in `metrics.evaluate`, and `macro_F1`, the mean F1 of the labels that count. The thresholds
            of each image are fitted without its fold.
        num_fitted: Number of labels that count.

    Examples:
        >>> fitted = fit(np.array([[0.9], [0.3], [0.2], [0.1]]), np.array([[1], [1], [0], [0]]), folds=2)
        >>> 0.2 < fitted.per_class[0] < 0.3
        True
    """

    per_class: list[float]
    overall: float
    out_of_fold: dict[str, dict[str, float]]
    num_fitted: int


def fit(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, folds: int = 5, seed: int = 0
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

    Returns:
        The thresholds with their metrics.

    Raises:
        ValueError: There are fewer than two folds or fewer images than folds, no label counts, or an argument is
            invalid, see `metrics.evaluate`.

    Examples:
        >>> scores = np.array([[0.9], [0.3], [0.2], [0.8], [0.35], [0.1]])
        >>> targets = np.array([[1], [1], [0], [1], [1], [0]])
        >>> fitted = fit(scores, targets, folds=3)
        >>> fitted.per_class, fitted.out_of_fold['default']['CF1'].__round__(1)
        ([0.25], 66.7)
    """
    scores, targets, ignore, _ = checked(scores, targets, ignore)
    if folds < 2:
        raise ValueError(f'folds is {folds}: must be at least 2, one to fit thresholds and one to evaluate them.')
    if len(scores) < folds:
        raise ValueError(f'{len(scores)} images cannot be split into {folds} folds: give more images or fewer folds.')
    present, absent = present_and_absent(targets, ignore)
    counts = _counts(present, absent)
    if not counts.any():
        raise ValueError('targets hold no label with both a positive and a negative, so no threshold can be fitted.')

    predicted = {name: np.empty(scores.shape, bool) for name in ('per_class', 'overall')}
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(scores)), folds):
        others = np.ones(len(scores), bool)
        others[fold] = False
        per_class, overall = _fit(scores[others], present[others], absent[others])
        predicted['per_class'][fold] = scores[fold] > np.array(per_class)
        predicted['overall'][fold] = scores[fold] > np.float64(overall)
    predicted['default'] = scores > DEFAULT

    per_class, overall = _fit(scores, present, absent)
    metrics = {name: _compute_metrics(each, present, absent) for name, each in predicted.items()}
    return Thresholds(per_class, overall, metrics, int(counts.sum()))


def _counts(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    return np.logical_and(present.any(0), absent.any(0))


def _fit(scores: np.ndarray, present: np.ndarray, absent: np.ndarray) -> tuple[list[float], float]:
    counts = _counts(present, absent)
    per_class = [
        _best(s[positive], s[negative]) if positive.any() and negative.any() else DEFAULT
        for s, positive, negative in columns(scores, present, absent)
    ]
    return per_class, _best(scores[present & counts], scores[absent & counts])


def _best(positive: np.ndarray, negative: np.ndarray) -> float:
    """Finds the threshold of the largest F1 = 2 TP / (predicted + positives).

    The best threshold is just below the score of a positive: any lower one lets more negatives pass for the same
    positives. A score of 0 exceeds no threshold.
    """
    negative = np.sort(negative)
    levels, correct, passing = curve(positive, negative)
    reachable = levels > 0
    if not reachable.any():
        return DEFAULT
    f1 = 2 * correct / (passing + len(positive))

    lower_positive = np.concatenate([[0], levels[:-1]]).astype(levels.dtype)
    below = np.concatenate([[0], negative]).astype(levels.dtype)[np.searchsorted(negative, levels)]
    lower = np.maximum(lower_positive, below)
    midway = lower + (levels - lower) / 2
    # In the precision of the scores, so that comparisons in it agree. Two adjacent numbers have no middle.
    midway = np.where(midway < levels, midway, lower)

    best = midway[reachable & (f1 == f1[reachable].max())]
    return float(best[np.abs(best - DEFAULT).argmin()])


def _compute_metrics(predicted: np.ndarray, present: np.ndarray, absent: np.ndarray) -> dict[str, float]:
    metrics = precision_recall_f1(predicted, present, ~(present | absent))
    counts = _counts(present, absent)
    predicted, present = predicted[:, counts] & (present | absent)[:, counts], present[:, counts]
    label_f1 = 2 * (predicted & present).sum(0) / (predicted.sum(0) + present.sum(0))
    return {'CF1': metrics['CF1'], 'OF1': metrics['OF1'], 'macro_F1': 100 * float(label_f1.mean())}
