"""Calibration: probabilities that agree with how often a label is present, and metrics of that agreement."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .metrics import columns, present_and_absent
from .thresholds import split

__all__ = ['BINS', 'Calibration', 'calibrate', 'fit', 'measure']

BINS = 15  # of equal width, as in Guo et al. (https://arxiv.org/abs/1706.04599)
# Weight of the values that all labels share, in the log-likelihood of one label. Of 0.03 to 10, on other images of the
# VOC 2012 subset, 3 and 10 had the lowest Brier scores after fits to 100, 200 and 400 images; after 1,600, 3 was within
# 0.2 % of the lowest, and 10 was not.
PRIOR = 3.0
MOST_STEPS = 100
EPSILON = 2.0**-24  # half the distance from 1 to the next lower 32-bit float: a score of 1 is at least this far from it


@dataclass(frozen=True)
class Calibration:
    """Temperatures and biases: the calibrated probability is sigmoid(logit / temperature + bias).

    Attributes:
        temperatures: Temperature of each label (K,), above 0: the order of the images stays.
        biases: Bias of each label (K,), which undoes the shift of losses that weight positives and negatives unequally.
        out_of_fold: Metrics of `measure` for `uncalibrated` and `calibrated` probabilities. The temperatures and biases
            of each image are fitted without its fold.
    """

    temperatures: list[float]
    biases: list[float]
    out_of_fold: dict[str, dict]


def fit(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, folds: int = 5, seed: int = 0
) -> Calibration:
    """Fits a temperature and a bias for each label by maximum likelihood (Platt scaling).

    A common temperature and bias of all entries are fitted first. Those of each label are drawn towards them, the more
    the fewer images there are. A label without a positive or without a negative gets the common ones.

    Args:
        scores: Probabilities (N, K), the sigmoid of the logits.
        targets: Targets (N, K), 1 or 0.
        ignore: Mask (N, K), True for entries to leave out.
        folds: Number of random parts of equal size that the images are split into, the same as in `thresholds.fit`.
        seed: Seed of the fold assignment.

    Returns:
        The temperatures and biases with their metrics.

    Raises:
        ValueError: See `thresholds.fit`.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> probabilities = rng.random((4000, 2))
        >>> targets = rng.random((4000, 2)) < probabilities
        >>> overconfident = calibrate(probabilities, [0.5, 0.5], [0, 0])
        >>> fitted = fit(overconfident, targets)
        >>> [round(temperature, 1) for temperature in fitted.temperatures]
        [2.0, 2.0]
        >>> {kind: round(metrics['ECE'], 1) for kind, metrics in fitted.out_of_fold.items()}
        {'uncalibrated': 9.3, 'calibrated': 1.8}
    """
    scores, present, absent, parts = split(scores, targets, ignore, folds, seed)
    logits = _logit(scores)
    calibrated = np.empty(scores.shape)
    for fold, others in parts:
        calibrated[fold] = calibrate(scores[fold], *_fit(logits[others], present[others], absent[others]))
    temperatures, biases = _fit(logits, present, absent)
    out_of_fold = {
        kind: measure(each, present, ~(present | absent))
        for kind, each in (('uncalibrated', scores), ('calibrated', calibrated))
    }
    return Calibration(temperatures.tolist(), biases.tolist(), out_of_fold)


def calibrate(scores: np.ndarray, temperatures: ArrayLike, biases: ArrayLike) -> np.ndarray:
    """Converts probabilities, or thresholds of them, to calibrated ones. The order of a label's values stays.

    Args:
        scores: Probabilities (..., K), the sigmoid of the logits.
        temperatures: Temperature of each label (K,).
        biases: Bias of each label (K,).
    """
    return _sigmoid(_logit(np.asarray(scores)) / np.asarray(temperatures) + np.asarray(biases))


def measure(scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None) -> dict:
    """Computes how well probabilities agree with how often a label is present.

    Args:
        scores: Probabilities (N, K).
        targets: Targets (N, K), 1 or 0.
        ignore: Mask (N, K), True for entries to leave out.

    Returns:
        `ECE`, the expected calibration error in percent: over `BINS` bins of equal width, the mean distance between a
        bin's share of positives and its mean probability, weighted by its number of images; `Brier`, the mean of
        (probability - target)², from 0 to 1. Both are means over the labels with a positive and a negative. And
        `reliability`, for each bin of all entries of these labels: their number, mean probability and share of
        positives, [number, probability, share], None for an empty bin.
    """
    present, absent = present_and_absent(targets, ignore)
    errors, briers, totals = [], [], np.zeros((3, BINS))
    for score, positive, negative in columns(np.asarray(scores), present, absent):
        if positive.any() and negative.any():
            annotated = positive | negative
            probability, is_present = score[annotated].astype(np.float64), positive[annotated]
            bins = np.minimum((probability * BINS).astype(int), BINS - 1)
            sums = np.array([np.bincount(bins, weight, BINS) for weight in (None, probability, is_present)])
            errors.append(np.abs(sums[1] - sums[2]).sum() / len(probability))
            briers.append(np.square(probability - is_present).mean())
            totals += sums
    reliability = [[int(n), p / n, share / n] if n else [0, None, None] for n, p, share in totals.T.tolist()]
    return {'ECE': 100 * float(np.mean(errors)), 'Brier': float(np.mean(briers)), 'reliability': reliability}


def _fit(logits: np.ndarray, present: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits the temperatures and biases (K,)."""
    counts = present.any(0) & absent.any(0)
    annotated = (present | absent) & counts
    common = np.array([1.0, 0.0])
    if counts.any():  # a fold may leave no label that counts
        common = _maximise(logits[annotated], present[annotated], common)
    values = np.tile(common, (len(counts), 1))
    for k, (column, positive, negative) in enumerate(columns(logits, present, absent)):
        if counts[k]:
            entries = positive | negative
            values[k] = _maximise(column[entries], positive[entries], common)
    return 1 / values[:, 0], values[:, 1]


def _maximise(logits: np.ndarray, present: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Finds the slope and the bias of the logits that maximise the likelihood, by Newton's method.

    Both are drawn towards their prior, which makes the solution unique and finite. Returns the prior where the slope
    would not be positive, i.e. where the label is the less frequent the higher its logit.
    """
    features = np.stack([logits, np.ones_like(logits)])

    def loss(values: np.ndarray) -> float:
        z = values @ features
        return (np.logaddexp(0, z) - present * z).sum() + PRIOR / 2 * np.square(values - prior).sum()

    values = prior
    for _ in range(MOST_STEPS):
        probability = _sigmoid(values @ features)
        gradient = features @ (probability - present) + PRIOR * (values - prior)
        hessian = (features * (probability * (1 - probability))) @ features.T + PRIOR * np.eye(2)
        step, before = np.linalg.solve(hessian, gradient), loss(values)
        while loss(values - step) > before and np.abs(step).max() > 1e-9:
            step /= 2
        values = values - step
        if np.abs(step).max() < 1e-6:
            break
    return values if values[0] > 0 else prior


def _logit(scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores.astype(np.float64), np.finfo(np.float32).tiny, 1 - EPSILON)
    return np.log(scores) - np.log1p(-scores)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
