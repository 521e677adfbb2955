"""Metrics of multi-label classification (section 4.2 of the paper)."""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ['DEFINITIONS', 'FEW', 'SIZES', 'average_precision', 'evaluate', 'precision_recall_f1']


class SizeBand(NamedTuple):
    """A range of the share of the image's area that an instance covers, with its description."""

    low: float
    high: float  # excluded
    text: str


SIZES = {
    'small': SizeBand(0.0, 0.01, 'under 1 %'),
    'medium': SizeBand(0.01, 0.1, 'from 1 % to under 10 %'),
    'large': SizeBand(0.1, np.inf, 'from 10 %'),
}
FEW = 5  # with fewer positives or negatives than this, the AP of a label is unreliable


def evaluate(
    scores: np.ndarray,
    targets: np.ndarray,
    ignore: np.ndarray | None = None,
    threshold: float | np.ndarray = 0.5,
    ap: str = 'all-points',
    areas: np.ndarray | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    top_k: int = 3,
) -> dict:
    """Computes mAP, and precision, recall and F1 by Eqs. 13-19.

    mAP is the mean AP of the labels that count: those with at least one positive and one negative. A label without
    negatives would always add an AP of 100, and one without positives has no AP.

    CP and CR are means over all labels with an entry that is not ignored. A label that is never predicted counts as 0
    in CP, and one without positives as 0 in both (scikit-learn's `zero_division=0`). CF1 is the harmonic mean of CP and
    CR, OF1 that of OP and OR.

    Metrics with the suffix `_top3`, or another `top_k`, predict the labels with the highest scores in each image,
    whatever their probability; of equal scores, the first label wins. Query2Label uses 3, the literature of image
    annotation 5. That literature averages over labels with a positive: P and R are the mean precision and recall of
    these labels, F1 is their harmonic mean, and N+ is the number of labels with a recall above 0 (Makadia, Pavlovic and
    Kumar, A New Baseline for Image Annotation, ECCV 2008; Guillaumin, Mensink, Verbeek and Schmid, TagProp, ICCV 2009).

    mAP by size counts as positives of a label the images whose largest instance of it is small, medium or large (see
    `SIZES`). Images with the label at another or an unknown size are ignored for that label. Again only labels with a
    positive and a negative count.

    Args:
        scores: Probabilities (N, K).
        targets: Targets (N, K), 1 or 0.
        ignore: Mask (N, K), True for entries to leave out. They count neither as predicted nor as present, and take
            none of the `top_k` places.
        threshold: Threshold that a probability has to exceed, or one for each label (K,).
        ap: Definition of average precision, one of `DEFINITIONS`.
        areas: Share of the image's area (N, K) that the largest instance of a present label covers, NaN if unknown.
            Those of absent labels are not read.
        bootstrap: Number of resamples of the images for the interval of mAP.
        seed: Seed of the resamples. Each is one `integers(N, size=N)` of NumPy's default generator.
        top_k: Number of labels to predict in each image for the metrics with that suffix.

    Returns:
        Metrics in percent: `mAP`; `CP`, `CR`, `CF1`, `OP`, `OR`, `OF1`, each also with the suffix `_top3`; `P_top3`,
        `R_top3`, `F1_top3`; `AP` (K,), NaN for labels that do not count. With `areas` also `mAP_small`, `mAP_medium`
        and `mAP_large`, NaN if no label counts. With `bootstrap` also `mAP_interval`, the 2.5th and 97.5th percentile
        of the resamples in which a label counts, NaN if there are none.

        Counts: `N+_top3`, `num_images`, `num_labels_counted`, `num_positives` and `num_negatives` (K,), and with
        `areas` `num_positives_small` and so on. Besides these, `ap` and `top_k` as given, and `few_positives` and
        `few_negatives`, the indices of counted labels with fewer than `FEW` of these, which also cause a warning.

    Raises:
        ValueError: Scores are no probabilities, targets are neither 1 nor 0, shapes differ, there is no image, no label
            counts, the definition is unknown, or `top_k` is not a whole number from 1 on.

    Examples:
        >>> scores = np.array(5 * [[0.9, 0.2], [0.6, 0.7], [0.1, 0.4]])
        >>> targets = np.array(5 * [[1, 0], [0, 1], [0, 1]])
        >>> metrics = evaluate(scores, targets)
        >>> {name: round(metrics[name], 2) for name in ('mAP', 'CP', 'CR', 'CF1')}
        {'mAP': 100.0, 'CP': 75.0, 'CR': 75.0, 'CF1': 75.0}
        >>> metrics['num_labels_counted'], metrics['num_positives']
        (2, array([ 5, 10]))
    """
    if not isinstance(top_k, int | np.integer) or top_k < 1:
        raise ValueError(f'top_k is {top_k!r}: must be a whole number, 1 or more.')
    scores, present, ignore, areas = checked(scores, targets, ignore, areas)
    num_images, num_classes = scores.shape
    if not scores.size:
        raise ValueError(f'scores {scores.shape} and targets {present.shape} must both be (N, K) with N > 0 and K > 0.')
    threshold = np.asarray(threshold, np.float64)
    if threshold.shape not in ((), (num_classes,)) or not ((threshold >= 0) & (threshold <= 1)).all():
        raise ValueError(f'threshold must be one number from 0 to 1, or one for each of the {num_classes} labels.')
    present, absent = present_and_absent(present, ignore)
    num_positives, num_negatives = present.sum(0), absent.sum(0)
    counts = (num_positives > 0) & (num_negatives > 0)
    if not num_positives.any():
        raise ValueError('targets hold no positive: mAP is not defined.')
    if not counts.any():
        raise ValueError('targets hold no label with both a positive and a negative: mAP is not defined.')

    label_ap = 100 * average_precision(scores, present, ignore, ap)
    predicted = _top(scores, ignore, top_k)
    top = {**precision_recall_f1(predicted, present, ignore), **_annotation(predicted, present)}
    metrics = {
        'mAP': _mean(label_ap),
        **precision_recall_f1(scores > threshold, present, ignore),
        **{f'{name}_top{top_k}': value for name, value in top.items()},
        'AP': label_ap,
    }
    if areas is not None:
        for size, band in SIZES.items():
            in_band = present & (areas >= band.low) & (areas < band.high)
            left_out = present & ~in_band if ignore is None else present & ~in_band | ignore
            metrics[f'mAP_{size}'] = 100 * _mean(average_precision(scores, in_band, left_out, ap))
            metrics[f'num_positives_{size}'] = int(in_band.sum())
    if bootstrap > 0:
        means = _bootstrap(scores, present, ignore, ap, bootstrap, seed)
        means = means[~np.isnan(means)]
        bounds = 100 * np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
        metrics['mAP_interval'] = tuple(map(float, bounds))

    few = {}
    for kind, number in (('positives', num_positives), ('negatives', num_negatives)):
        few[kind] = np.flatnonzero(counts & (number < FEW)).tolist()
        if few[kind]:
            listed = ', '.join(map(str, few[kind][:10])) + (', ...' if len(few[kind]) > 10 else '')
            counted = f'{len(few[kind])} of {num_classes} labels have fewer than {FEW} {kind}'
            warnings.warn(f'{counted}, so their AP is unreliable: {listed}', stacklevel=2)
    return {
        **metrics,
        'ap': ap,
        'top_k': top_k,
        'num_images': num_images,
        'num_labels_counted': int(counts.sum()),
        'num_positives': num_positives,
        'num_negatives': num_negatives,
        'few_positives': few['positives'],
        'few_negatives': few['negatives'],
    }


def average_precision(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, ap: str = 'all-points'
) -> np.ndarray:
    """Computes the average precision of each label. Images with equal scores pass a threshold together.

    With P_n and R_n as precision and recall at the n-th threshold from the top, the definitions are:

    - `all-points`: sum of (R_n - R_{n-1}) P_n, scikit-learn's `average_precision_score`.
    - `interpolated`: the same, with the largest precision at this or any later threshold instead of P_n, as
      Query2Label and SSGRL report it.
    - `voc11`: mean over r = 0, 0.1, ..., 1 of the largest precision at a recall of at least r (VOC2007).

    Args:
        scores: Scores (N, K), any increasing function of the probability.
        targets: Targets (N, K), 1 or 0.
        ignore: Mask (N, K), True for entries to leave out.
        ap: Definition, one of these three.

    Returns:
        AP (K,) from 0 to 1, NaN for a label without a positive or without a negative.

    Raises:
        ValueError: The definition is unknown.

    Examples:
        >>> scores, targets = np.array([[0.9], [0.8], [0.3], [0.1]]), np.array([[1], [0], [1], [0]])
        >>> [average_precision(scores, targets, ap=ap).round(3).item() for ap in DEFINITIONS]
        [0.833, 0.833, 0.848]
    """
    average = _definition(ap)
    present, absent = present_and_absent(targets, ignore)
    result = np.full(scores.shape[1], np.nan)
    for k, (column, positive, negative) in enumerate(columns(scores, present, absent)):
        if positive.any() and negative.any():
            _, correct, passing = curve(column[positive], np.sort(column[negative]))
            result[k] = average(correct, correct / passing)
    return result


def curve(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the images that pass each threshold at which recall changes, i.e. each distinct score of a positive.

    Args:
        positive: Scores of a label's positives (P,).
        negative: Sorted scores of its negatives (M,).

    Returns:
        Three arrays (T,): the thresholds in increasing order, and the number of positives and of all images at or above
        each.

    Examples:
        >>> curve(np.array([0.9, 0.3]), np.array([0.1, 0.8]))
        (array([0.3, 0.9]), array([2, 1]), array([3, 1]))
    """
    levels, gained = np.unique(positive, return_counts=True)
    correct = _from_the_top(gained)
    return levels, correct, correct + len(negative) - np.searchsorted(negative, levels)


def precision_recall_f1(
    predicted: np.ndarray, present: np.ndarray, ignore: np.ndarray | None = None
) -> dict[str, float]:
    """Computes CP, CR, CF1, OP, OR and OF1 in percent by Eqs. 14-19.

    Args:
        predicted: Predictions (N, K), bool.
        present: Targets (N, K), bool.
        ignore: Mask (N, K), bool, True for entries to leave out. A label without other entries is left out of CP and
            CR.

    Returns:
        The metrics by name.

    Examples:
        >>> predicted = np.array([[True, False], [True, True]])
        >>> present = np.array([[True, False], [False, True]])
        >>> {name: round(value, 1) for name, value in precision_recall_f1(predicted, present).items()}
        {'CP': 75.0, 'CR': 100.0, 'CF1': 85.7, 'OP': 66.7, 'OR': 100.0, 'OF1': 80.0}
    """
    if ignore is not None:
        has_entry = ~ignore.all(0)
        kept = ~ignore[:, has_entry]
        predicted, present = predicted[:, has_entry] & kept, present[:, has_entry] & kept
    num_correct, num_predicted, num_present = (predicted & present).sum(0), predicted.sum(0), present.sum(0)
    cp = _mean(_ratio(num_correct, num_predicted))
    cr = _mean(_ratio(num_correct, num_present))
    op = float(_ratio(num_correct.sum(), num_predicted.sum()))
    or_ = float(_ratio(num_correct.sum(), num_present.sum()))
    cf1, of1 = float(_ratio(2 * cp * cr, cp + cr)), float(_ratio(2 * op * or_, op + or_))
    named = zip(('CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'), (cp, cr, cf1, op, or_, of1), strict=True)
    return {name: 100 * value for name, value in named}


def _annotation(predicted: np.ndarray, present: np.ndarray) -> dict[str, float]:
    """Computes P, R and F1 in percent, and N+, over the labels with a positive. No entry is an ignored one."""
    num_correct, num_predicted, num_present = (predicted & present).sum(0), predicted.sum(0), present.sum(0)
    has_positive = num_present > 0
    precision = _mean(_ratio(num_correct, num_predicted)[has_positive])
    recall = _mean(_ratio(num_correct, num_present)[has_positive])
    f1 = float(_ratio(2 * precision * recall, precision + recall))
    return {'P': 100 * precision, 'R': 100 * recall, 'F1': 100 * f1, 'N+': int((num_correct > 0).sum())}


def checked(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, areas: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Converts arguments of `evaluate` to arrays (N, K): scores of 32 or 64 bits, targets and ignore as bool.

    Raises:
        ValueError: Shapes differ, or values are out of range.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(f'scores {scores.shape} and targets {targets.shape} must both be (N, K) with N > 0.')
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # a NaN is neither
        raise ValueError('scores must be probabilities, from 0 to 1 and not NaN: apply sigmoid to logits.')
    if targets.dtype != bool:
        present = targets == 1
        if not (present | (targets == 0)).all():
            raise ValueError('targets must be 1 or 0: mark entries to leave out in ignore.')
        targets = present
    if ignore is not None:
        ignore = np.asarray(ignore, bool)
    if areas is not None:
        areas = np.asarray(areas)
        # An outline may cross the image's border a little; larger values are percentages or numbers of pixels.
        if areas.size and (np.fmin.reduce(areas, axis=None) < 0 or np.fmax.reduce(areas, axis=None) > 1.01):
            raise ValueError("areas must be shares of the image's area, from 0 to 1, or NaN: divide by width * height.")
    for name, array in (('ignore', ignore), ('areas', areas)):
        if array is not None and array.shape != scores.shape:
            raise ValueError(f'{name} {array.shape} must have the shape of scores {scores.shape}.')
    return scores, targets, ignore, areas


def _all_points(correct: np.ndarray, precision: np.ndarray) -> float:
    gained = -np.diff(correct, append=0)
    return (gained * precision).sum() / correct[0]


def _interpolated(correct: np.ndarray, precision: np.ndarray) -> float:
    return _all_points(correct, np.maximum.accumulate(precision))


def _voc11(correct: np.ndarray, precision: np.ndarray) -> float:
    # Integers, since 0.1 * 3 > 3 / 10.
    return np.mean([precision[10 * correct >= tenths * correct[0]].max() for tenths in range(11)])


# Functions of the number of positives that pass each threshold, and of the precision there, in increasing order.
DEFINITIONS = {'all-points': _all_points, 'interpolated': _interpolated, 'voc11': _voc11}


def _definition(ap: str) -> Callable[[np.ndarray, np.ndarray], float]:
    if ap not in DEFINITIONS:
        raise ValueError(f'unknown definition of average precision {ap!r}: choose from {", ".join(DEFINITIONS)}.')
    return DEFINITIONS[ap]


def present_and_absent(targets: np.ndarray, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns masks (N, K) of the positives and of the negatives; ignored entries are neither."""
    present = np.asarray(targets, bool)
    if ignore is None:
        return present, ~present
    ignore = np.asarray(ignore, bool)
    return present & ~ignore, ~(present | ignore)


def columns(*arrays: np.ndarray, block: int = 16) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields the columns of each label from arrays (N, K), copied in blocks, since single columns are slow to read."""
    for start in range(0, arrays[0].shape[1], block):
        yield from zip(*(np.ascontiguousarray(array[:, start : start + block].T) for array in arrays), strict=True)


def _from_the_top(counts: np.ndarray) -> np.ndarray:
    return counts[::-1].cumsum()[::-1]


def _top(scores: np.ndarray, ignore: np.ndarray | None, k: int, rows: int = 4096) -> np.ndarray:
    """Returns a mask (N, K) of the k labels with the highest scores in each image that are not ignored."""
    predicted = np.zeros(scores.shape, bool)
    for start in range(0, len(scores), rows):
        block = slice(start, start + rows)
        rest = scores[block].copy()
        if ignore is not None:
            rest[ignore[block]] = -1
        images = np.arange(len(rest))
        for _ in range(min(k, scores.shape[1])):
            best = rest.argmax(1)
            predicted[start + images, best] |= rest[images, best] >= 0
            rest[images, best] = -1
    return predicted


def _bootstrap(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None, ap: str, resamples: int, seed: int
) -> np.ndarray:
    """Computes the mAP (resamples,) of resamples of the images, from 0 to 1; NaN for those in which no label counts.

    An image that is drawn n times has the weight n, so the scores of a label are sorted only once.
    """
    average = _definition(ap)
    present, absent = present_and_absent(targets, ignore)
    rng, num_images = np.random.default_rng(seed), len(scores)
    times = np.empty((resamples, num_images), np.int32)
    for row in times:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)

    label_aps = np.full((scores.shape[1], resamples), np.nan)
    for k, (column, positive, negative) in enumerate(columns(scores, present, absent)):
        levels = np.unique(column[positive])
        passed = np.searchsorted(levels, column, 'right')  # number of thresholds that each image passes
        passed[~(positive | negative)] = 0
        positive = np.flatnonzero(positive)
        passed_by_positives = passed[positive]
        has_negative = times @ negative > 0
        for b, weights in enumerate(times):
            correct = _from_the_top(np.bincount(passed_by_positives, weights[positive], len(levels) + 1)[1:])
            passing = _from_the_top(np.bincount(passed, weights, len(levels) + 1)[1:])
            if correct.any() and has_negative[b]:
                label_aps[k, b] = average(correct, _ratio(correct, passing))
    return np.array([_mean(column) for column in label_aps.T])


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN, or NaN if there are none, without NumPy's warning."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Divides element-wise; division by 0 gives 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
