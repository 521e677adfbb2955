"""Measures of multi-label classification (section 4.2 of the paper)."""

import numpy as np

__all__ = ['average_precision', 'evaluate']


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes each class's average precision, all-points definition: the sum of (R_n - R_{n-1}) P_n over thresholds.

    It is the mean over a class's positives of the precision at the positive's own score; images of equal score pass
    the threshold together. This is scikit-learn's `average_precision_score`.

    Args:
        scores: (N, K), any increasing function of the probability.
        targets: (N, K), 1 or 0.

    Returns:
        (K,), from 0 to 1; NaN for a class without a positive.
    """
    order = np.argsort(-scores, axis=0, kind='stable')
    ranked_scores = np.take_along_axis(scores, order, axis=0)
    ranked_targets = np.take_along_axis(targets, order, axis=0).astype(bool)

    num_images, num_classes = scores.shape
    ranks = np.broadcast_to(np.arange(num_images)[:, None], scores.shape)
    ends_tie = np.vstack([ranked_scores[1:] != ranked_scores[:-1], np.ones((1, num_classes), bool)])
    tie_end = np.minimum.accumulate(np.where(ends_tie, ranks, num_images)[::-1], axis=0)[::-1]

    precision = np.cumsum(ranked_targets, axis=0) / (ranks + 1)
    precision = np.take_along_axis(precision, tie_end, axis=0)
    num_positives = ranked_targets.sum(0)
    return np.divide(
        np.where(ranked_targets, precision, 0).sum(0),
        num_positives,
        out=np.full(num_classes, np.nan),
        where=num_positives > 0,
    )


def evaluate(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray = 0.5) -> dict:
    """Computes mAP and the precision, recall and F1 measures of Eqs. 13-19.

    mAP is the mean over the classes that have a positive. CP and CR are means over all classes; a class never
    predicted counts 0 for precision, a class without a positive counts 0 for recall. CF1 and OF1 are the harmonic
    means of CP and CR and of OP and OR.

    Args:
        scores: (N, K), probabilities.
        targets: (N, K), 1 or 0.
        threshold: A label is predicted when its probability exceeds this, one number or one for each class (K,).

    Returns:
        `mAP`, `CP`, `CR`, `CF1`, `OP`, `OR`, `OF1` and `AP` (K,) in percent, `ap` (the definition's name),
        `num_images`, `num_classes_with_positives`, and `num_positives` (K,).

    Raises:
        ValueError: The shapes differ, there is no image, or no label is present in any.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape or not len(scores):
        raise ValueError(f'scores {scores.shape} and targets {targets.shape} must both be (N, K) with N > 0.')
    present = targets.astype(bool)
    num_positives = present.sum(0)
    if not num_positives.any():
        raise ValueError('targets hold no positive: mAP is not defined.')

    ap = average_precision(scores, present)
    predicted = scores > threshold
    correct = predicted & present
    cp = _ratio(correct.sum(0), predicted.sum(0)).mean()
    cr = _ratio(correct.sum(0), num_positives).mean()
    op = _ratio(correct.sum(), predicted.sum())
    or_ = _ratio(correct.sum(), num_positives.sum())
    percent = {
        'mAP': np.nanmean(ap),
        'CP': cp,
        'CR': cr,
        'CF1': _ratio(2 * cp * cr, cp + cr),
        'OP': op,
        'OR': or_,
        'OF1': _ratio(2 * op * or_, op + or_),
    }
    return {
        **{name: 100 * float(value) for name, value in percent.items()},
        'AP': 100 * ap,
        'ap': 'all-points',
        'num_images': len(scores),
        'num_classes_with_positives': int((num_positives > 0).sum()),
        'num_positives': num_positives,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides element-wise; 0 where there is nothing to divide by."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
