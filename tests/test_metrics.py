import doctest
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, precision_score, recall_score
from torchmetrics.classification import (
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
)

from msff_timm import calibration, metrics, thresholds
from msff_timm.metrics import DEFINITIONS, average_precision, evaluate
from msff_timm.training import accumulator

pytestmark = pytest.mark.filterwarnings('ignore:.*have fewer than 5')

NAMES = ('CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')


def example(seed=0, shape=(200, 20), decimals=2, dtype=np.float64):
    """Returns informative scores with ties, targets with an absent label, and a mask with an ignored one."""
    rng = np.random.default_rng(seed)
    targets = rng.random(shape) < rng.uniform(0.05, 0.6, shape[1])
    scores = np.clip(rng.normal(0.4 + 0.2 * targets, 0.2), 0, 1).round(decimals).astype(dtype)
    ignore = rng.random(shape) < 0.2
    targets[:, 0] = False
    ignore[:, 1] = True
    return scores, targets, ignore


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name, strict=isinstance(value, np.ndarray))


def ap_by_the_book(scores, targets, definition):
    """Computes recall and precision at each distinct score, in exact fractions."""
    points, previous, ap = [], Fraction(0), Fraction(0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        passing = [bool(t) for s, t in zip(scores.tolist(), targets.tolist(), strict=True) if s >= threshold]
        points.append((Fraction(sum(passing), int(targets.sum())), Fraction(sum(passing), len(passing))))
    if definition == 'voc11':
        return float(sum(max(p for r, p in points if r >= Fraction(k, 10)) for k in range(11)) / 11)
    for i, (recall, precision) in enumerate(points):
        if definition == 'interpolated':
            precision = max(p for _, p in points[i:])
        ap += (recall - previous) * precision
        previous = recall
    return float(ap)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('decimals', [8, 1], ids=['distinct', 'ties'])
def test_average_precision_equals_scikit_learn(decimals, dtype):
    rng = np.random.default_rng(decimals)
    scores = rng.random((500, 20)).round(decimals).astype(dtype)
    targets = rng.random((500, 20)) < rng.uniform(0.01, 0.9, 20)
    targets[0] = True
    expected = [average_precision_score(targets[:, k], scores[:, k]) for k in range(20)]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=0, atol=1e-12)


@pytest.fixture
def double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.mark.parametrize('threshold', [0.5, 0.3], ids=str)
def test_evaluate_equals_torchmetrics(threshold, double):
    """torchmetrics leaves out labels that are neither present nor predicted; there are none here."""
    rng = np.random.default_rng(0)
    targets = rng.random((300, 12)) < rng.uniform(0.1, 0.6, 12)
    scores = np.clip(rng.normal(0.4 + 0.2 * targets, 0.2), 0, 1).round(2)
    result = evaluate(scores, targets, threshold=threshold)
    tensors = torch.from_numpy(scores), torch.from_numpy(targets).long()

    ap = MultilabelAveragePrecision(12, average='none', thresholds=None)(*tensors)
    np.testing.assert_allclose(result['AP'] / 100, ap.numpy(), rtol=0, atol=1e-12)
    # torchmetrics divides these in single precision.
    for name, metric in (('P', MultilabelPrecision), ('R', MultilabelRecall)):
        for letter, average in (('C', 'macro'), ('O', 'micro')):
            value = metric(12, threshold=threshold, average=average)(*tensors).item()
            assert result[letter + name] / 100 == pytest.approx(value, abs=1e-7)
    of1 = MultilabelF1Score(12, threshold=threshold, average='micro')(*tensors).item()
    assert result['OF1'] / 100 == pytest.approx(of1, abs=1e-7)


@pytest.mark.parametrize('threshold', [0.5, np.linspace(0, 0.95, 20)], ids=['one', 'each'])
@pytest.mark.parametrize('seed', [0, 1])
def test_evaluate_leaves_out_ignored_entries(seed, threshold):
    """scikit-learn evaluates each label on the rows that are not ignored."""
    scores, targets, ignore = example(seed)
    result = evaluate(scores, targets, ignore, threshold)
    each = np.broadcast_to(threshold, 20)
    ap, precision, recall, labels, truth = [], [], [], [], []
    for k in range(20):
        kept = ~ignore[:, k]
        s, t = scores[kept, k], targets[kept, k]
        ap.append(average_precision_score(t, s) if t.any() else np.nan)
        if len(t):
            precision.append(precision_score(t, s > each[k], zero_division=0))
            recall.append(recall_score(t, s > each[k], zero_division=0))
        labels.append(s > each[k])
        truth.append(t)
    assert np.isnan(ap[0]) and np.isnan(ap[1]) and len(precision) == 19
    np.testing.assert_allclose(result['AP'] / 100, ap, rtol=0, atol=1e-12)
    labels, truth = np.concatenate(labels), np.concatenate(truth)
    cp, cr, op, or_ = np.mean(precision), np.mean(recall), precision_score(truth, labels), recall_score(truth, labels)
    expected = {'CP': cp, 'CR': cr, 'CF1': 2 * cp * cr / (cp + cr), 'OP': op, 'OR': or_, 'mAP': np.nanmean(ap)}
    expected['OF1'] = 2 * op * or_ / (op + or_)
    assert {name: result[name] / 100 for name in expected} == pytest.approx(expected, abs=1e-11)
    assert result['num_positives'].tolist() == (targets & ~ignore).sum(0).tolist()
    assert result['num_negatives'].tolist() == (~targets & ~ignore).sum(0).tolist()
    assert result['num_labels_counted'] == 18 and result['num_images'] == 200


# A label's entries: positive, negative or masked, in any mix, so that every kind of label occurs.
ENTRIES = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 1, 0, 0, None])), min_size=k, max_size=k),
        min_size=1,
        max_size=9,
    )
)


@pytest.mark.parametrize('ap', DEFINITIONS)
@given(ENTRIES, st.sampled_from([0.0, 0.4, 0.5]))
@settings(max_examples=100, deadline=None)
def test_evaluate_equals_scikit_learn_with_masked_entries(ap, rows, threshold):
    """Labels without a positive or without a negative do not count in mAP."""
    scores = np.array([[s / 5 for s, _ in row] for row in rows])
    targets = np.array([[t == 1 for _, t in row] for row in rows])
    ignore = np.array([[t is None for _, t in row] for row in rows])
    by_label = [(scores[~i, k], targets[~i, k]) for k, i in enumerate(ignore.T)]
    counted = [len(set(t.tolist())) == 2 for _, t in by_label]
    if not any(counted):
        with pytest.raises(ValueError, match='mAP is not defined'):
            evaluate(scores, targets, ignore)
        return

    result = evaluate(scores, targets, ignore, threshold, ap)
    expected = []
    for (s, t), counts in zip(by_label, counted, strict=True):
        expected.append(np.nan)
        if counts:
            expected[-1] = average_precision_score(t, s) if ap == 'all-points' else ap_by_the_book(s, t, ap)
    np.testing.assert_allclose(result['AP'] / 100, expected, rtol=0, atol=1e-12)
    assert result['mAP'] / 100 == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert result['num_labels_counted'] == sum(counted)

    each = [
        precision_recall_fscore_support(t, s > threshold, average='binary', zero_division=0)[:2]
        for s, t in by_label
        if len(t)
    ]
    cp, cr = np.mean(each, 0)
    flat = targets[~ignore], (scores > threshold)[~ignore]
    op, or_, of1, _ = precision_recall_fscore_support(*flat, average='binary', zero_division=0)
    cf1 = 2 * cp * cr / (cp + cr) if cp + cr else 0
    expected = {'CP': cp, 'CR': cr, 'CF1': cf1, 'OP': op, 'OR': or_, 'OF1': of1}
    assert {name: result[name] / 100 for name in NAMES} == pytest.approx(expected, abs=1e-12)


def test_evaluate_counts_no_label_without_negatives_in_map():
    """Such a label would raise the mAP of these four from 33.1 to 49.8."""
    table = [  # score and target of four labels, None for masked ones
        [(0.9, 1), (0.9, 0), (0.9, 0), (0.9, 0)],
        [(0.8, None), (0.8, 0), (0.8, 0), (0.8, 0)],
        [(0.7, 1), (0.7, 1), (0.7, 0), (0.7, None)],
        [(0.6, None), (0.6, 0), (0.6, 1), (0.6, 1)],
        [(0.5, 1), (0.5, None), (0.5, 1), (0.5, 0)],
    ]
    scores, states = (np.array([[entry[part] for entry in row] for row in table], float) for part in (0, 1))
    result = evaluate(scores, states == 1, np.isnan(states))
    # Ranks of the positives: third of four; fourth and fifth of five; third of four.
    expected = [1 / 3, (1 / 4 + 2 / 5) / 2, 1 / 3]
    assert result['mAP'] / 100 == pytest.approx(sum(expected) / 3, abs=1e-12)
    assert round(result['mAP'], 1) == 33.1 and np.isnan(result['AP'][0]) and result['num_labels_counted'] == 3
    assert result['num_positives'].tolist() == [3, 1, 2, 1] and result['num_negatives'].tolist() == [0, 3, 3, 3]
    assert result['few_positives'] == result['few_negatives'] == [1, 2, 3]  # without the label that does not count
    without = evaluate(scores[:, 1:], states[:, 1:] == 1, np.isnan(states[:, 1:]))
    assert result['mAP'] == without['mAP']


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_evaluate_leaves_out_labels_with_only_masked_entries(seed):
    scores, targets, ignore = example(seed, shape=(30, 5), decimals=1)
    areas = np.random.default_rng(seed).random((30, 5)) ** 4
    more = [np.insert(array, 2, value, 1) for array, value in ((scores, 0.9), (targets, 1), (ignore, 1), (areas, 0.5))]
    assume((targets & ~ignore).any())
    one, other = (
        evaluate(s, t, i, areas=a, bootstrap=5) for s, t, i, a in ((scores, targets, ignore, areas), tuple(more))
    )
    assert {k: v for k, v in one.items() if np.ndim(v) == 0} == pytest.approx(
        {k: v for k, v in other.items() if np.ndim(v) == 0}, nan_ok=True
    )
    assert one['mAP_interval'] == other['mAP_interval']


def test_evaluate_interval_is_nan_if_no_label_counts_in_a_resample(recwarn):
    targets = np.array([[1], [0]])
    drawn = [set(np.random.default_rng(seed).integers(2, size=2).tolist()) for seed in range(20)]
    seed = next(seed for seed in range(20) if len(drawn[seed]) == 1)
    assert np.isnan(evaluate(targets * 0.5, targets, bootstrap=1, seed=seed)['mAP_interval']).all()
    assert all('fewer than' in str(warned.message) for warned in recwarn)


@pytest.mark.parametrize('ap', DEFINITIONS)
def test_evaluate_does_not_read_ignored_entries(ap):
    scores, targets, ignore = example()
    areas = np.random.default_rng(1).random((200, 20)) ** 4
    options = {'ap': ap, 'areas': areas, 'bootstrap': 3}
    flipped = evaluate(np.where(ignore, 1 - scores, scores), targets ^ ignore, ignore, **options)
    assert_same(evaluate(scores, targets, ignore, **options), flipped)


def test_evaluate_by_hand():
    scores = np.array([[0.9, 0.2, 0.6], [0.8, 0.7, 0.1], [0.3, 0.6, 0.2], [0.1, 0.5, 0.3]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    # Predicted above 0.5: class 0 in images 0, 1; class 1 in 1, 2 (0.5 itself is not above); class 2 in 0.
    # Right: 1, 2, 0. Predicted: 2, 2, 1. Present: 2, 2, 1.
    result = evaluate(scores, targets)
    cp, cr = (1 / 2 + 2 / 2 + 0) / 3, (1 / 2 + 2 / 2 + 0) / 3
    op, or_ = 3 / 5, 3 / 5
    # Ranks of the positives: class 0 first and third; class 1 first and second; class 2 third.
    ap = [(1 / 1 + 2 / 3) / 2, 1.0, 1 / 3]
    expected = {'CP': cp, 'CR': cr, 'CF1': cp, 'OP': op, 'OR': or_, 'OF1': op, 'mAP': sum(ap) / 3}
    assert {name: result[name] / 100 for name in expected} == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(result['AP'] / 100, ap, atol=1e-12)
    assert result['num_images'] == 4 and result['num_positives'].tolist() == [2, 2, 1] and result['ap'] == 'all-points'


@pytest.mark.parametrize(
    ('ap', 'expected'),
    [
        ('all-points', (1 + 2 / 4 + 4 / 6 + 4 / 6) / 4),
        ('interpolated', (1 + 2 / 3 * 3) / 4),
        # Recall 0, 0.1, 0.2 are reached with precision 1, the other eight at best with 4 of 6.
        ('voc11', (3 * 1 + 8 * 2 / 3) / 11),
    ],
)
def test_average_precision_by_hand(ap, expected):
    # From the top: a hit; then a hit among three of one score (2 of 4 pass); at the end two hits of one score (4 of 6).
    scores, targets = np.array([9, 7, 7, 7, 5, 5]) / 10, np.array([1, 0, 1, 0, 1, 1])
    result = evaluate(scores[:, None], targets[:, None], ap=ap)
    assert result['mAP'] / 100 == pytest.approx(expected, abs=1e-12) and result['ap'] == ap


@pytest.mark.parametrize('ap', DEFINITIONS)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans())).filter(lambda r: {t for _, t in r} == {True, False}))
@settings(max_examples=150, deadline=None)
def test_average_precision_equals_exact_fractions(ap, rows):
    scores, targets = np.array([s / 6 for s, _ in rows]), np.array([t for _, t in rows])
    result = average_precision(scores[:, None], targets[:, None], ap=ap)[0]
    assert result == pytest.approx(ap_by_the_book(scores, targets, ap), abs=1e-12)


@pytest.mark.parametrize('num_positives', [10, 20, 30, 70, 110])
def test_average_precision_voc11_includes_exact_tenths_of_recall(num_positives):
    """3 of 10 is a recall of 0.3 although 3 / 10 < 0.1 * 3; here, each tenth has another precision."""
    tenth = num_positives // 10
    targets = np.tile(np.r_[np.ones(tenth, bool), np.zeros(5, bool)], 10)
    scores = np.linspace(1, 0, len(targets))
    expected = [tenth * k / (tenth * k + 5 * (k - 1)) for k in (1, *range(1, 11))]
    assert average_precision(scores[:, None], targets[:, None], ap='voc11')[0] == pytest.approx(
        np.mean(expected), abs=1e-12
    )


@pytest.mark.parametrize('ap', DEFINITIONS)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_average_precision_depends_on_the_ranking_alone(ap, seed):
    scores, targets, ignore = example(seed, shape=(30, 5), decimals=1)
    order = np.random.default_rng(seed).permutation(30)
    options = {'ap': ap, 'areas': np.random.default_rng(seed).random((30, 5)) ** 4}
    result = evaluate(scores, targets, ignore, **options)
    options['areas'] = options['areas'][order]
    assert_same(result, evaluate(scores[order], targets[order], ignore[order], **options))
    logits = 7 * scores - 3
    np.testing.assert_array_equal(
        average_precision(logits, targets, ignore, ap), average_precision(scores, targets, ignore, ap)
    )


def test_evaluate_cf1_is_the_harmonic_mean_of_cp_and_cr():
    # Label 0: precision 1, recall 1/2. Class 1: precision 1/2, recall 1. Each has F1 2/3; Eq. 16 gives 3/4.
    scores = np.array([[0.9, 0.9], [0.1, 0.9]])
    targets = np.array([[1, 1], [1, 0]])
    assert evaluate(scores, targets)['CF1'] == pytest.approx(75, abs=1e-10)


def test_evaluate_labels_without_predictions_or_positives():
    scores = np.array([[0.9, 0.1, 0.9], [0.2, 0.2, 0.1]])
    targets = np.array([[1, 1, 0], [0, 0, 0]])
    result = evaluate(scores, targets)
    assert (result['CP'], result['CR']) == pytest.approx((100 / 3, 100 / 3), abs=1e-9)
    assert np.isnan(result['AP'][2]) and result['num_labels_counted'] == 2
    assert result['mAP'] == pytest.approx((100 + 50) / 2, abs=1e-9)


def test_evaluate_without_predictions_gives_zero_and_no_warning(recwarn):
    result = evaluate(np.full((10, 2), 0.1), np.eye(2)[np.arange(10) % 2])
    assert [result[name] for name in NAMES] == [0] * 6
    assert len(recwarn) == 0 and result['few_positives'] == []


@pytest.mark.parametrize('kind', ['positives', 'negatives'])
def test_evaluate_warns_of_labels_with_few_positives_or_negatives(kind):
    targets = np.arange(20)[:, None] < np.array([5, 4, 0, *[1] * 12])
    with pytest.warns(UserWarning) as warned:
        result = evaluate(np.full((20, 15), 0.1), targets == (kind == 'positives'))
    other = {'positives': 'negatives', 'negatives': 'positives'}[kind]
    assert result[f'few_{kind}'] == [1, *range(3, 15)] and result[f'few_{other}'] == [] and len(warned) == 1
    message = str(warned[0].message)
    assert message.startswith(f'13 of 15 labels have fewer than 5 {kind}')
    assert message.endswith(': 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...') and warned[0].filename == __file__


def test_evaluate_takes_a_threshold_for_each_label():
    scores, targets = np.array([[0.4, 0.4], [0.4, 0.4]]), np.array([[1, 0], [1, 1]])
    assert evaluate(scores, targets, threshold=np.array([0.3, 0.5]))['OR'] == pytest.approx(200 / 3, abs=1e-9)


def test_evaluate_top3_by_hand():
    scores = np.array([[0.9, 0.1, 0.1, 0.1, 0.0], [0.2, 0.3, 0.4, 0.5, 0.6], [0.0, 0.7, 0.8, 0.9, 0.7]])
    targets = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 0, 0]])
    ignore = np.zeros((3, 5), bool)
    # Predicted: 0 and, of three equal ones, 1 and 2; 4, 3, 2; 3, 2 and, of two equal ones, 1.
    # Right: 1, 2, 1, 1, 0. Predicted: 1, 2, 3, 2, 1. Present: 2, 2, 1, 2, 0.
    result = evaluate(scores, targets)
    cp, cr = (1 + 2 / 2 + 1 / 3 + 1 / 2 + 0) / 5, (1 / 2 + 2 / 2 + 1 + 1 / 2 + 0) / 5
    op, or_ = 5 / 9, 5 / 7
    expected = {'CP': cp, 'CR': cr, 'CF1': 2 * cp * cr / (cp + cr), 'OP': op, 'OR': or_}
    expected['OF1'] = 2 * op * or_ / (op + or_)
    assert {name: result[f'{name}_top3'] / 100 for name in NAMES} == pytest.approx(expected, abs=1e-12)

    # Label 4 of image 1 takes no place, so label 1 is predicted; image 2 has two labels left, and both are.
    ignore[1, 4] = True
    ignore[2, :3] = True
    # Right: 1, 1, 1, 1, 0. Predicted: 1, 2, 2, 2, 1. Present: 1, 1, 1, 2, 0.
    result = evaluate(scores, targets, ignore)
    cp, cr = (1 + 1 / 2 + 1 / 2 + 1 / 2 + 0) / 5, (1 + 1 + 1 + 1 / 2 + 0) / 5
    expected = {'CP': cp, 'CR': cr, 'OP': 4 / 8, 'OR': 4 / 5}
    assert {name: result[f'{name}_top3'] / 100 for name in expected} == pytest.approx(expected, abs=1e-12)


def test_evaluate_top3_equals_a_stable_sort():
    """More images than one block, with ties."""
    scores, targets, ignore = example(shape=(5000, 7), decimals=1)
    labels = np.zeros((5000, 7), bool)
    for i in range(5000):
        kept = [k for k in range(7) if not ignore[i, k]]
        labels[i, sorted(kept, key=lambda k: -scores[i, k])[:3]] = True
    top, plain = evaluate(scores, targets, ignore), evaluate(labels.astype(float), targets, ignore)
    assert [top[f'{name}_top3'] for name in NAMES] == [plain[name] for name in NAMES]


def test_evaluate_annotation_metrics_by_hand():
    """Two labels in each image; one label is never present, and one is never predicted."""
    scores = np.array([[0.9, 0.8, 0.1, 0.0, 0.7], [0.9, 0.1, 0.8, 0.0, 0.7], [0.2, 0.9, 0.8, 0.0, 0.1]])
    targets = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 1, 0], [1, 0, 1, 0, 0]])
    # Predicted: 0 and 1, 0 and 2, 1 and 2. Of labels 0, 2 and 3, which are present, right: 2, 1, 0; predicted: 2, 2, 0;
    # present: 3, 1, 1. Label 0 is present in all images: it has no AP, and counts here.
    result = evaluate(scores, targets, top_k=2)
    p, r = (2 / 2 + 1 / 2 + 0) / 3, (2 / 3 + 1 / 1 + 0) / 3
    assert result['P_top2'] / 100 == pytest.approx(p, abs=1e-12)
    assert result['R_top2'] / 100 == pytest.approx(r, abs=1e-12)
    assert result['F1_top2'] / 100 == pytest.approx(2 * p * r / (p + r), abs=1e-12)
    assert (result['N+_top2'], result['top_k'], result['num_labels_counted']) == (2, 2, 2)
    assert not any(name.endswith('_top3') for name in result)
    # What is ignored is neither present nor predicted, and takes no place: predicted are 0 and 1, 0 and 4, 1 and 0. Of
    # labels 0 and 3, which are present, right: 3, 0.
    ignore = np.zeros_like(targets, bool)
    ignore[1, 2] = ignore[2, 2] = True
    result = evaluate(scores, targets, ignore, top_k=2)
    assert (result['P_top2'], result['R_top2'], result['N+_top2']) == (50, 50, 1)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_evaluate_annotation_metrics_equal_scikit_learn(top_k, seed):
    rng = np.random.default_rng(seed)
    scores, targets = rng.random((12, 7)), rng.random((12, 7)) < 0.15
    targets[0, :2] = [True, False]  # one counts
    targets[1, 0] = False
    result = evaluate(scores, targets, top_k=top_k)
    predicted = scores.argsort(1).argsort(1) >= 7 - top_k
    average = {'average': 'macro', 'labels': np.flatnonzero(targets.any(0)), 'zero_division': 0}
    p, r = precision_score(targets, predicted, **average), recall_score(targets, predicted, **average)
    assert (result[f'P_top{top_k}'] / 100, result[f'R_top{top_k}'] / 100) == pytest.approx((p, r), abs=1e-12)
    assert result[f'F1_top{top_k}'] / 100 == pytest.approx(2 * p * r / (p + r) if p + r else 0, abs=1e-12)
    assert result[f'N+_top{top_k}'] == (recall_score(targets, predicted, average=None, zero_division=0) > 0).sum()
    plain = evaluate(predicted.astype(float), targets)
    assert [result[f'{name}_top{top_k}'] for name in NAMES] == [plain[name] for name in NAMES]


@pytest.mark.parametrize('top_k', [0, -1, 2.5, None])
def test_evaluate_refuses_an_invalid_top_k(top_k):
    with pytest.raises(ValueError, match=f'top_k is {top_k}: must be a whole number'):
        evaluate(np.array([[0.1], [0.2]]), np.array([[1], [0]]), top_k=top_k)


def test_evaluate_top3_of_two_labels_predicts_both():
    result = evaluate(np.array([[0.1, 0.0], [0.1, 0.0]]), np.array([[1, 0], [0, 0]]))
    assert (result['OP_top3'], result['OR_top3']) == (25, 100)


def test_evaluate_map_by_size_by_hand():
    scores = np.array([[0.9, 0.9], [0.8, 0.8], [0.7, 0.7], [0.6, 0.6], [0.5, 0.5], [0.4, 0.4]])
    targets = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [1, 0], [1, 0]])
    areas = np.array([[0.1, 0.5], [0.001, 0.099], [0.01, np.nan], [0.0099, 0.01], [np.nan, 0.2], [0.0, np.nan]])
    # Label 0: negative is image 1, small 3 and 5, medium 2, large 0; 4 is of unknown size.
    # Label 1: medium are 1 and 3; negatives 0, 2, 4, 5, whatever their areas.
    result = evaluate(scores, targets, areas=areas)
    assert result['mAP_small'] / 100 == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-12)
    assert result['mAP_medium'] / 100 == pytest.approx((1 / 2 + (1 / 2 + 2 / 4) / 2) / 2, abs=1e-12)
    assert result['mAP_large'] == pytest.approx(100, abs=1e-10)
    assert not {'mAP_small', 'mAP_medium', 'mAP_large'} & evaluate(scores, targets).keys()


@pytest.mark.parametrize('ap', DEFINITIONS)
def test_evaluate_map_by_size_ignores_images_of_other_sizes(ap):
    scores, targets, ignore = example()
    areas = np.random.default_rng(1).random((200, 20)) ** 4
    areas[np.random.default_rng(2).random((200, 20)) < 0.1] = np.nan
    result = evaluate(scores, targets, ignore, ap=ap, areas=areas)
    for size, low, high in (('small', 0, 0.01), ('medium', 0.01, 0.1), ('large', 0.1, 2)):
        by_class = []
        for k in range(20):
            of_size = [low <= area < high for area in areas[:, k]]
            kept = ~ignore[:, k] & (~targets[:, k] | of_size)
            if targets[kept, k].any() and not targets[kept, k].all():
                by_class.append(ap_by_the_book(scores[kept, k], targets[kept, k], ap))
        assert len(by_class) in (17, 18)  # 18 have positives; one may have none of a size
        assert result[f'mAP_{size}'] / 100 == pytest.approx(np.mean(by_class), abs=1e-12)


def test_evaluate_map_of_an_absent_size_is_nan(recwarn):
    targets = np.eye(2)[np.arange(10) % 2]
    result = evaluate(targets, targets, areas=np.full((10, 2), 0.5))
    assert np.isnan(result['mAP_small']) and np.isnan(result['mAP_medium']) and result['mAP_large'] == 100
    assert len(recwarn) == 0


@pytest.mark.parametrize('ap', DEFINITIONS)
def test_evaluate_interval_equals_resamples_with_repeated_rows(ap):
    # With so few positives or negatives, some labels do not count in some resamples.
    scores, targets, ignore = example(shape=(30, 6), decimals=1)
    targets[:, 2], targets[:, 3] = np.arange(30) < 1, np.arange(30) > 0
    ignore[0, 2:4] = False
    rng, means, missed = np.random.default_rng(5), [], 0
    for _ in range(40):
        drawn = rng.integers(30, size=30)
        by_class = average_precision(scores[drawn], targets[drawn], ignore[drawn], ap)
        means.append(np.nanmean(by_class))
        missed += np.isnan(by_class[2:4])
    assert ((0 < missed) & (missed < 40)).all()
    low, high = evaluate(scores, targets, ignore, ap=ap, bootstrap=40, seed=5)['mAP_interval']
    assert (low / 100, high / 100) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)
    assert evaluate(scores, targets, ignore, ap=ap, bootstrap=40, seed=6)['mAP_interval'] != (low, high)


def test_evaluate_interval_skips_resamples_in_which_no_label_counts(recwarn):
    targets = np.zeros((5, 1))
    targets[0] = 1
    result = evaluate(np.full((5, 1), 0.5), targets, bootstrap=30)
    rng = np.random.default_rng(0)
    times = [(rng.integers(5, size=5) == 0).sum() for _ in range(30)]  # with equal scores, AP is the share of positives
    assert 0 in times
    expected = np.percentile([100 * n / 5 for n in times if 0 < n < 5], [2.5, 97.5])
    assert result['mAP_interval'] == pytest.approx(tuple(expected), abs=1e-10)
    assert [w for w in recwarn if 'fewer than' not in str(w.message)] == []


@pytest.mark.parametrize(
    ('scores', 'targets', 'options', 'message'),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), {}, 'must both be'),
        (np.zeros(3), np.zeros(3), {}, 'must both be'),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, 'N > 0'),
        (np.zeros((2, 0)), np.zeros((2, 0)), {}, 'K > 0'),
        (np.zeros((3, 2)), np.zeros((3, 2)), {}, 'no positive'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'ignore': np.ones((3, 2), bool)}, 'no positive'),
        (np.zeros((3, 2)), np.ones((3, 2)), {}, 'no label with both a positive and a negative'),
        (np.zeros((3, 2)), np.eye(3, 2), {'ignore': np.eye(3, 2) == 0}, 'no label with both'),
        (np.zeros((3, 2)), np.array([[1, 0]] * 3), {}, 'no label with both'),
        (np.zeros((1, 2)), np.array([[1, 0]]), {}, 'no label with both'),
        (np.full((3, 2), np.nan), np.ones((3, 2)), {}, 'not NaN: apply sigmoid'),
        (np.full((3, 2), 1.01), np.ones((3, 2)), {}, 'apply sigmoid'),
        (np.full((3, 2), -0.01), np.ones((3, 2)), {}, 'apply sigmoid'),
        (np.zeros((3, 2)), np.full((3, 2), -1), {}, 'targets must be 1 or 0'),
        (np.zeros((3, 2)), np.full((3, 2), 0.5), {}, 'targets must be 1 or 0'),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), {}, 'targets must be 1 or 0'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'ignore': np.zeros(2)}, r'ignore \(2,\) must have the shape of scores'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'areas': np.zeros(2)}, r'areas \(2,\) must have the shape of scores'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'areas': np.full((3, 2), 25.0)}, 'divide by width'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'areas': np.array([[np.nan, -1]] * 3)}, 'divide by width'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'threshold': np.zeros(3)}, 'one for each of the 2 labels'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'threshold': 50}, 'from 0 to 1'),
        (np.zeros((3, 2)), np.ones((3, 2)), {'threshold': np.nan}, 'from 0 to 1'),
        (np.zeros((3, 2)), np.eye(3, 2), {'ap': 'coco'}, "'coco': choose from all-points, interpolated, voc11"),
    ],
)
def test_evaluate_refuses_invalid_arguments(scores, targets, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        evaluate(scores, targets, **options)
    assert '\n' not in str(refused.value)


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.float32, bool])
def test_evaluate_accepts_any_type_of_targets_and_half_precision(dtype):
    scores, targets, ignore = example(dtype=np.float16)
    assert_same(
        evaluate(scores, targets.astype(dtype), ignore.astype(np.uint8)),
        evaluate(scores.astype(np.float64), targets, ignore),
    )


@pytest.mark.parametrize('module', [calibration, metrics, thresholds, accumulator], ids=lambda module: module.__name__)
def test_examples_of_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
