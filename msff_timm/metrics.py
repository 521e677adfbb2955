"""Measures of multi-label classification (section 4.2 of the paper)."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np

__all__ = ['DEFINITIONS', 'Measures', 'average_precision', 'evaluate', 'precision_recall_f1']

SIZES = {'small': (0.0, 0.01), 'medium': (0.01, 0.1), 'large': (0.1, np.inf)}  # shares of the image's area: from, below
FEW = 5  # positives or negatives, below which a label's AP says little


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
    """Computes mAP and the precision, recall and F1 measures of Eqs. 13-19.

    An entry that `ignore` marks is as if it was not there. mAP is the mean over the labels that count: those with at
    least one positive and one negative. Any ranking of a label without a negative is perfect, so that it would add an
    AP of 100; one without a positive has no AP. CP and CR are means over all labels that have an entry; a label never
    predicted counts 0 in CP, one without a positive counts 0 in both (scikit-learn's `zero_division=0`). CF1 and OF1
    are the harmonic means of CP and CR and of OP and OR.

    Metrics whose names end in `_top3`, or in another `top_k`, predict that many labels of highest score in each image,
    whatever their probability: 3 as Query2Label does, 5 as the literature of image annotation does; of equal scores
    the earlier label goes first. That literature averages over the labels with a positive, whether or not they have a
    negative: P and R are these means of a label's precision, 0 for one never predicted, and recall; F1 is their
    harmonic mean; N+ is the number of labels with a recall above 0. So do Makadia, Pavlovic and Kumar (A New Baseline
    for Image Annotation, ECCV 2008) and Guillaumin, Mensink, Verbeek and Schmid (TagProp, ICCV 2009).

    A label's mAP by size counts as positives the images whose largest instance of it is small (under 1 % of the
    image's area), medium (1 % to under 10 %) or large; images that hold the label at another or an unknown size are
    left out of that label, those that do not hold it stay. Each mean by size, and that of each resample, is again over
    the labels with at least one positive and one negative there.

    Args:
        scores: (N, K), probabilities.
        targets: (N, K), 1 or 0.
        ignore: (N, K), true where an entry is left out: of its label's AP, and of the other metrics, which count it
            neither as predicted nor as present. It takes none of the `top_k` places.
        threshold: A label is predicted when its probability exceeds this, one number or one for each label (K,).
        ap: Definition of average precision, one of `DEFINITIONS`.
        areas: (N, K), share of the image's area that the largest instance of a present label takes; NaN where that is
            unknown. Those of absent labels are not read.
        bootstrap: Number of resamples of the images for the interval of mAP.
        seed: Of the resamples; each is one `integers(N, size=N)` of NumPy's default generator.
        top_k: Number of labels that the metrics named by it predict in each image; all where there are fewer.

    Returns:
        In percent: `mAP`, `CP`, `CR`, `CF1`, `OP`, `OR`, `OF1`, the last six as `CP_top3` and so on, `P_top3`,
        `R_top3`, `F1_top3`, `AP` (K,), NaN for labels that do not count; with areas `mAP_small`, `mAP_medium` and
        `mAP_large`, NaN where no label counts, and the numbers of positives of each size, `num_positives_small` and so
        on; with bootstrap `mAP_interval`, the 2.5th and 97.5th percentile of the resamples in which a label counts, NaN
        without any.
        Besides: `N+_top3`, `ap` (the definition's name), `top_k`, `num_images`, `num_labels_counted`, `num_positives`
        and `num_negatives` (K,), and `few_positives` and `few_negatives`, the labels (their numbers) that count with 1
        to 4 of these, which are warned of.

    Raises:
        ValueError: Scores are no probabilities, targets neither 1 nor 0, shapes differ, there is no image, no label
            counts, the definition is unknown, or `top_k` is no whole number from 1 on.
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
    measures = {
        'mAP': _mean(label_ap),
        **precision_recall_f1(scores > threshold, present, ignore),
        **{f'{name}_top{top_k}': value for name, value in top.items()},
        'AP': label_ap,
    }
    if areas is not None:
        for size, (low, high) in SIZES.items():
            in_band = present & (areas >= low) & (areas < high)
            left_out = present & ~in_band if ignore is None else present & ~in_band | ignore
            measures[f'mAP_{size}'] = 100 * _mean(average_precision(scores, in_band, left_out, ap))
            measures[f'num_positives_{size}'] = int(in_band.sum())
    if bootstrap > 0:
        means = _bootstrap(scores, present, ignore, ap, bootstrap, seed)
        means = means[~np.isnan(means)]
        bounds = 100 * np.percentile(means, (2.5, 97.5)) if len(means) else (np.nan, np.nan)
        measures['mAP_interval'] = tuple(map(float, bounds))

    few = {}
    for kind, number in (('positives', num_positives), ('negatives', num_negatives)):
        few[kind] = np.flatnonzero(counts & (number < FEW)).tolist()
        if few[kind]:
            named = ', '.join(map(str, few[kind][:10])) + (', ...' if len(few[kind]) > 10 else '')
            counted = f'{len(few[kind])} of {num_classes} labels have fewer than {FEW} {kind}'
            warnings.warn(f'{counted}, so that their AP says little: {named}', stacklevel=2)
    return {
        **measures,
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
    """Computes each label's average precision; images of equal score pass a threshold together.

    With P_n and R_n the precision and the recall at the n-th threshold from the top:

    - `all-points`: the sum of (R_n - R_{n-1}) P_n, scikit-learn's `average_precision_score`.
    - `interpolated`: the same with the largest precision at this or any later threshold in place of P_n, as
      Query2Label and SSGRL report.
    - `voc11`: the mean, over r = 0, 0.1, ..., 1, of the largest precision at a recall of at least r (VOC2007).

    Args:
        scores: (N, K), any increasing function of the probability.
        targets: (N, K), 1 or 0.
        ignore: (N, K), true where an image is left out of a label.
        ap: One of these three.

    Returns:
        (K,), from 0 to 1; NaN for a label that does not have at least one positive and one negative.

    Raises:
        ValueError: The definition is unknown.
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
    """Counts what passes each threshold at which recall changes: the distinct scores of a class's positives.

    Args:
        positive: (P,), scores of the images that hold the class.
        negative: (M,), sorted scores of those that do not.

    Returns:
        (T,) each: the thresholds from low to high, the positives at or above each, and all images at or above it.
    """
    levels, gained = np.unique(positive, return_counts=True)
    correct = _from_the_top(gained)
    return levels, correct, correct + len(negative) - np.searchsorted(negative, levels)


def precision_recall_f1(
    predicted: np.ndarray, present: np.ndarray, ignore: np.ndarray | None = None
) -> dict[str, float]:
    """Computes the metrics of Eqs. 14-19 in percent: CP, CR, CF1, OP, OR, OF1.

    Args:
        predicted: (N, K), bool.
        present: (N, K), bool.
        ignore: (N, K), bool, true where an entry is left out; a label of which all are is left out of CP and CR.
    """
    if ignore is not None:
        has_entry = ~ignore.all(0)
        kept = ~ignore[:, has_entry]
        predicted, present = predicted[:, has_entry] & kept, present[:, has_entry] & kept
    num_correct, num_predicted, num_present = (predicted & present).sum(0), predicted.sum(0), present.sum(0)
    cp = _mean(_ratio(num_correct, num_predicted))
    cr = _mean(_ratio(num_correct, num_present))
    op = _ratio(num_correct.sum(), num_predicted.sum())
    or_ = _ratio(num_correct.sum(), num_present.sum())
    cf1, of1 = _ratio(2 * cp * cr, cp + cr), _ratio(2 * op * or_, op + or_)
    named = zip(('CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'), (cp, cr, cf1, op, or_, of1), strict=True)
    return {name: 100 * float(value) for name, value in named}


def _annotation(predicted: np.ndarray, present: np.ndarray) -> dict[str, float]:
    """Computes P, R and F1 in percent, and N+, of the labels with a positive; ignored entries are in neither array."""
    num_correct, num_predicted, num_present = (predicted & present).sum(0), predicted.sum(0), present.sum(0)
    has_positive = num_present > 0
    precision = _mean(_ratio(num_correct, num_predicted)[has_positive])
    recall = _mean(_ratio(num_correct, num_present)[has_positive])
    f1 = float(_ratio(2 * precision * recall, precision + recall))
    return {'P': 100 * precision, 'R': 100 * recall, 'F1': 100 * f1, 'N+': int((num_correct > 0).sum())}


class Measures:
    """Gathers what the processes of a run measure, batch by batch, and evaluates every image once."""

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray | None, ...]] = []

    def update(
        self,
        indices: np.ndarray,
        scores: np.ndarray,
        targets: np.ndarray,
        ignore: np.ndarray | None = None,
        areas: np.ndarray | None = None,
    ) -> None:
        """Adds images, in any order; their scores are kept in single precision.

        Args:
            indices: (n,), row numbers in the data set.
            scores: (n, K), as the rest: see `evaluate`.
            targets: (n, K).
            ignore: (n, K), in every update or in none.
            areas: (n, K), in every update or in none.

        Raises:
            ValueError: As `evaluate`; or indices are not one whole number for each row.
        """
        scores, targets, ignore, areas = checked(scores, targets, ignore, areas)
        indices = np.array(indices)
        if indices.shape != scores.shape[:1] or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                f'indices {indices.shape} must be whole numbers, one for each row of scores {scores.shape}.'
            )
        if self._batches:
            for name, old, new in zip(('ignore', 'areas'), self._batches[0][3:], (ignore, areas), strict=True):
                if (old is None) != (new is None):
                    raise ValueError(f'{name} must be given in every update or in none.')
        self._batches.append(
            (
                indices,
                np.array(scores, np.float32),  # copies, since a caller may fill one buffer again and again
                np.array(targets),
                None if ignore is None else np.array(ignore),
                None if areas is None else np.array(areas),
            )
        )

    def arrays(self, num_images: int | None = None) -> dict[str, np.ndarray | None]:
        """Puts the images into the order of their indices, each once: the first of those that samplers repeat.

        Args:
            num_images: How many there have to be.

        Returns:
            `scores`, `targets`, `ignore` and `areas`, (N, K) or, of the last two, None.

        Raises:
            RuntimeError: There is no image, or there are more or fewer than there have to be.
        """
        if not self._batches:
            raise RuntimeError('no image was measured.')
        indices, *fields = zip(*self._batches, strict=True)
        unique, first = np.unique(np.concatenate(indices), return_index=True)
        if num_images is not None and len(unique) != num_images:
            raise RuntimeError(f'measured {len(unique)} images of {num_images}.')
        arrays = [None if field[0] is None else np.concatenate(field)[first] for field in fields]
        return dict(zip(('scores', 'targets', 'ignore', 'areas'), arrays, strict=True))

    def compute(self, num_images: int | None = None, **options: object) -> dict:
        """Evaluates the images; see `arrays` and, for the options, `evaluate`."""
        return evaluate(**self.arrays(num_images), **options)


def checked(
    scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None, areas: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Returns all four as arrays (N, K): scores of 32 or 64 bits, targets and ignore as bool; copies what it must.

    Raises:
        ValueError: A shape differs, or a value is not what `evaluate` takes.
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
            raise ValueError('targets must be 1 or 0: mark entries that do not count in ignore.')
        targets = present
    if ignore is not None:
        ignore = np.asarray(ignore, bool)
    if areas is not None:
        areas = np.asarray(areas)
        # An outline may go past the image's border by a little, but not to a percentage or a number of pixels.
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
    # Whole numbers, since 0.1 * 3 > 3 / 10.
    return np.mean([precision[10 * correct >= tenths * correct[0]].max() for tenths in range(11)])


# Of the positives that pass each threshold and the precision there, from the lowest threshold to the highest.
DEFINITIONS = {'all-points': _all_points, 'interpolated': _interpolated, 'voc11': _voc11}


def _definition(ap: str) -> Callable[[np.ndarray, np.ndarray], float]:
    if ap not in DEFINITIONS:
        raise ValueError(f'unknown definition of average precision {ap!r}: choose from {", ".join(DEFINITIONS)}.')
    return DEFINITIONS[ap]


def present_and_absent(targets: np.ndarray, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Marks the entries that count as positives and as negatives, (N, K) each; ignored ones are neither."""
    present = np.asarray(targets, bool)
    if ignore is None:
        return present, ~present
    ignore = np.asarray(ignore, bool)
    return present & ~ignore, ~(present | ignore)


def columns(*arrays: np.ndarray, block: int = 16) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields each class's columns of arrays (N, K), copied by blocks: lone columns of row-major arrays read slowly."""
    for start in range(0, arrays[0].shape[1], block):
        yield from zip(*(np.ascontiguousarray(array[:, start : start + block].T) for array in arrays), strict=True)


def _from_the_top(counts: np.ndarray) -> np.ndarray:
    return counts[::-1].cumsum()[::-1]


def _top(scores: np.ndarray, ignore: np.ndarray | None, k: int, rows: int = 4096) -> np.ndarray:
    """Marks each image's k labels of highest score, fewer where fewer count."""
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
    """Computes the mAP of each resample of the images (resamples,), from 0 to 1; NaN for one in which no label counts.

    An image drawn n times weighs n: the scores of a class are ranked once.
    """
    average = _definition(ap)
    present, absent = present_and_absent(targets, ignore)
    rng, num_images = np.random.default_rng(seed), len(scores)
    times = np.empty((resamples, num_images), np.int32)
    for row in times:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)

    class_ap = np.full((scores.shape[1], resamples), np.nan)
    for k, (column, positive, negative) in enumerate(columns(scores, present, absent)):
        levels = np.unique(column[positive])
        passed = np.searchsorted(levels, column, 'right')  # how many of the thresholds each image passes
        passed[~(positive | negative)] = 0
        positive = np.flatnonzero(positive)
        passed_by_positives = passed[positive]
        has_negative = times @ negative > 0
        for b, weights in enumerate(times):
            correct = _from_the_top(np.bincount(passed_by_positives, weights[positive], len(levels) + 1)[1:])
            passing = _from_the_top(np.bincount(passed, weights, len(levels) + 1)[1:])
            if correct.any() and has_negative[b]:
                class_ap[k, b] = average(correct, _ratio(correct, passing))
    return np.array([_mean(column) for column in class_ap.T])


def _mean(values: np.ndarray) -> float:
    """Averages what is not NaN; NaN where nothing is left, without NumPy's warning."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides element-wise; 0 where there is nothing to divide by."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
