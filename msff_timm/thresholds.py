"""Thresholds that maximise F1, with figures that do not judge them on the images that chose them."""

from dataclasses import dataclass

import numpy as np

from .metrics import checked, columns, curve, precision_recall_f1, present_and_absent

__all__ = ['Thresholds', 'fit']

DEFAULT = 0.5


@dataclass(frozen=True)
class Thresholds:
    """Probabilities that a label has to exceed to be predicted.

    Attributes:
        per_class: One for each label, which maximises the label's F1; 0.5 for labels that do not count.
        overall: One for all labels, which maximises the OF1 of those that count.
        out_of_fold: `CF1` and `OF1` of all labels, as `metrics.evaluate` defines them, and `macro_F1` (the mean of each
            label's F1 over those that count) in percent, under `per_class`, `overall` and `default` (0.5). Each image
            is judged by thresholds fitted without its fold.
        num_fitted: Number of labels that count.
    """

    per_class: list[float]
    overall: float
    out_of_fold: dict[str, dict[str, float]]
    num_fitted: int


def fit(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, folds: int = 5, seed: int = 0
) -> Thresholds:
    """Fits thresholds to all images, and anew to the images outside of each fold for the figures.

    A threshold lies midway between two neighbouring scores (or 0 or 1), so that it has room on both sides; of
    thresholds that are equally good, the one nearest 0.5 is taken. A label counts if it has at least one positive and
    one negative; any other tells nothing of where to part them, and gets 0.5, also within the folds.

    Args:
        scores: (N, K), probabilities.
        targets: (N, K), 1 or 0.
        ignore: (N, K), true where an entry does not count.
        folds: Parts of as near as can be the same size, into which the images are dealt at random.
        seed: Of that.

    Raises:
        ValueError: As `metrics.evaluate`; or there are fewer than two folds, or fewer images than folds.
    """
    scores, targets, ignore, _ = checked(scores, targets, ignore)
    if folds < 2:
        raise ValueError(f'folds must be at least 2, not {folds}: no threshold is judged on the images that chose it.')
    if len(scores) < folds:
        raise ValueError(f'{len(scores)} images cannot be dealt into {folds} folds: give more images or fewer folds.')
    present, absent = present_and_absent(targets, ignore)
    counts = _counts(present, absent)
    if not counts.any():
        raise ValueError('targets hold no label with both a positive and a negative: there is nothing to fit to.')

    predicted = {name: np.empty(scores.shape, bool) for name in ('per_class', 'overall')}
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(scores)), folds):
        others = np.ones(len(scores), bool)
        others[fold] = False
        per_class, overall = _fit(scores[others], present[others], absent[others])
        predicted['per_class'][fold] = scores[fold] > np.array(per_class)
        predicted['overall'][fold] = scores[fold] > np.float64(overall)
    predicted['default'] = scores > DEFAULT

    per_class, overall = _fit(scores, present, absent)
    figures = {name: _figures(found, present, absent) for name, found in predicted.items()}
    return Thresholds(per_class, overall, figures, int(counts.sum()))


def _counts(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    return present.any(0) & absent.any(0)


def _fit(scores: np.ndarray, present: np.ndarray, absent: np.ndarray) -> tuple[list[float], float]:
    counts = _counts(present, absent)
    per_class = [
        _best(s[positive], s[negative]) if positive.any() and negative.any() else DEFAULT
        for s, positive, negative in columns(scores, present, absent)
    ]
    return per_class, _best(scores[present & counts], scores[absent & counts])


def _best(positive: np.ndarray, negative: np.ndarray) -> float:
    """Finds the threshold of the largest F1 = 2 TP / (predicted + positives).

    Only thresholds just below a positive's score can be best: any other lets more negatives pass for the same
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
    # Of the scores' own precision, so that the comparison comes out the same in it; two neighbours have no middle.
    midway = np.where(midway < levels, midway, lower)

    best = midway[reachable & (f1 == f1[reachable].max())]
    return float(best[np.abs(best - DEFAULT).argmin()])


def _figures(predicted: np.ndarray, present: np.ndarray, absent: np.ndarray) -> dict[str, float]:
    measures = precision_recall_f1(predicted, present, ~(present | absent))
    counts = _counts(present, absent)
    predicted, present = predicted[:, counts] & (present | absent)[:, counts], present[:, counts]
    label_f1 = 2 * (predicted & present).sum(0) / (predicted.sum(0) + present.sum(0))
    return {'CF1': measures['CF1'], 'OF1': measures['OF1'], 'macro_F1': 100 * float(label_f1.mean())}
