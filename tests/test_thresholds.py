import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from msff_timm.metrics import evaluate
from msff_timm.thresholds import Thresholds, fit, parse_target, positives_needed

pytestmark = pytest.mark.filterwarnings('ignore:.*have fewer than 5')


def example(seed, shape=(60, 4), decimals=1, dtype=np.float64, ignored=0.2):
    rng = np.random.default_rng(seed)
    targets = rng.random(shape) < rng.uniform(0.1, 0.6, shape[1])
    scores = np.clip(rng.normal(0.35 + 0.2 * targets, 0.2), 0, 1).round(decimals).astype(dtype)
    targets[0], ignore = True, rng.random(shape) < ignored
    return scores, targets, ignore


def best_by_trying_all(scores, targets):
    """Tries the middle of all pairs of neighbouring scores, with 0 and 1; compares F1 in integers."""
    bounds = sorted({0.0, 1.0, *scores.tolist()})
    tried = []
    for low, high in zip(bounds, bounds[1:], strict=False):
        threshold = (low + high) / 2
        correct = sum(s > threshold and t for s, t in zip(scores.tolist(), targets.tolist(), strict=True))
        passing = sum(s > threshold for s in scores.tolist())
        f1 = 2 * correct / (passing + int(targets.sum()))
        tried.append((-f1, abs(threshold - 0.5), threshold))
    return min(tried)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=12).filter(
        lambda r: {t for _, t in r} == {True, False}
    )
)
@settings(max_examples=200, deadline=None)
def test_fit_finds_the_best_threshold_nearest_to_a_half(rows):
    scores, targets = np.array([s / 8 for s, _ in rows]), np.array([t for _, t in rows])
    fitted = fit(np.tile(scores, 2)[:, None], np.tile(targets, 2)[:, None], folds=2)
    loss, _, threshold = best_by_trying_all(np.tile(scores, 2), np.tile(targets, 2))
    expected = threshold if loss < 0 else 0.5  # the scores of all positives are 0
    assert fitted.per_class == [expected] and fitted.overall == expected


@pytest.mark.parametrize('seed', range(3))
def test_fit_leaves_out_ignored_entries(seed):
    scores, targets, ignore = example(seed, decimals=2)
    fitted = fit(scores, targets, ignore)
    for k in range(4):
        kept = ~ignore[:, k]
        assert fitted.per_class[k] == pytest.approx(best_by_trying_all(scores[kept, k], targets[kept, k])[2], abs=1e-12)
    assert fitted.overall == pytest.approx(best_by_trying_all(scores[~ignore], targets[~ignore])[2], abs=1e-12)
    assert fit(scores, targets ^ ignore, ignore) == fitted


def test_fit_by_hand():
    # Label 0: the middle of 0.4 and 0.6. Label 1: F1 is 2/3 above 0.7 and 4/5 above 0.2 (all but one).
    scores = np.array([[0.9, 0.8], [0.6, 0.7], [0.4, 0.3], [0.1, 0.1]])
    targets = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
    fitted = fit(scores, targets, folds=2)
    assert fitted.per_class == pytest.approx([0.5, 0.2], abs=1e-12)
    # All eight: above 0.5, 3 of 4 are right, F1 6/8; above 0.2, 4 of 6, F1 8/10.
    assert fitted.overall == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize(
    ('targets', 'ignore'),
    [([0, 0, 0], [0, 0, 0]), ([1, 1, 1], [0, 0, 0]), ([1, 1, 0], [0, 0, 1]), ([1, 1, 0], [1, 1, 1])],
    ids=['no positive', 'no negative', 'its negative ignored', 'all ignored'],
)
def test_fit_gives_labels_that_do_not_count_a_half(targets, ignore):
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    targets = np.stack([np.array([1, 1, 0]), np.array(targets)], axis=1)
    ignore = np.stack([np.zeros(3, bool), np.array(ignore, bool)], axis=1)
    fitted = fit(scores, targets, ignore, folds=3)
    assert fitted.per_class == [pytest.approx(0.45, abs=1e-9), 0.5] and fitted.num_fitted == 1
    assert fitted.overall == pytest.approx(0.45, abs=1e-9)


def test_fit_gives_labels_that_do_not_count_in_a_fold_a_half_there():
    """Each fold holds the only negative of one of two labels."""
    targets = np.array([[0, 1], [1, 0]])
    scores = np.array([[0.1, 0.6], [0.4, 0.2]])
    fitted = fit(scores, targets, folds=2)
    assert fitted.per_class == pytest.approx([0.25, 0.4]) and fitted.num_fitted == 2
    # Without one of the images no label counts: with 0.5, only 0.6 is predicted, correctly.
    figures = pytest.approx({'CP': 50, 'CR': 50, 'CF1': 50, 'OF1': 200 / 3, 'macro_F1': 50})
    assert [fitted.out_of_fold[name] for name in ('per_class', 'overall', 'default')] == [figures] * 3


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_fit_separates_adjacent_numbers_in_their_precision(dtype):
    high = dtype(0.3)
    scores = np.array([[high], [np.nextafter(high, dtype(0))]] * 5)
    targets = np.array([[1], [0]] * 5)
    fitted = fit(scores, targets, folds=2)
    assert dtype(fitted.per_class[0]) == fitted.per_class[0]
    np.testing.assert_array_equal(scores > dtype(fitted.per_class[0]), targets)
    assert evaluate(scores, targets, threshold=fitted.per_class)['OF1'] == 100


@pytest.mark.parametrize('ignored', [0, 0.2])
@pytest.mark.parametrize(('folds', 'seed'), [(5, 0), (3, 7)])
def test_fit_evaluates_out_of_fold(ignored, folds, seed):
    """Predicts each fold with thresholds fitted to the others; scikit-learn computes the metrics."""
    scores, targets, ignore = example(seed, shape=(47, 5), ignored=ignored)
    targets[:, 4] = False  # does not count
    fitted = fit(scores, targets, ignore, folds=folds, seed=seed)

    order = np.random.default_rng(seed).permutation(47)
    predicted = {'per_class': np.zeros((47, 5)), 'overall': np.zeros((47, 5)), 'default': scores > 0.5}
    start = 0
    for i in range(folds):
        size = 47 // folds + (i < 47 % folds)
        fold, rest = order[start : start + size], np.concatenate([order[:start], order[start + size :]])
        start += size
        refitted = fit(scores[rest], targets[rest], ignore[rest], folds=2)
        for image in fold:
            predicted['per_class'][image] = [s > t for s, t in zip(scores[image], refitted.per_class, strict=True)]
            predicted['overall'][image] = [s > refitted.overall for s in scores[image]]
    assert start == 47 and set(fitted.out_of_fold) == set(predicted)
    for name, labels in predicted.items():
        labels, truth = labels.astype(bool) & ~ignore, targets & ~ignore
        found = evaluate(labels.astype(float), truth)
        expected = {
            **{name: found[name] for name in ('CP', 'CR', 'CF1')},
            'OF1': 100 * f1_score(truth, labels, average='micro'),
            'macro_F1': 100 * f1_score(truth[:, :4], labels[:, :4], average='macro', zero_division=0),
        }
        assert fitted.out_of_fold[name] == pytest.approx(expected, abs=1e-9)


def test_fit_reports_no_gain_on_noise():
    """Thresholds fitted to noise look good on the same images only."""
    rng = np.random.default_rng(0)
    scores, targets = rng.random((60, 20)), rng.random((60, 20)) < 0.2
    fitted = fit(scores, targets)
    on_its_own = evaluate(scores, targets, threshold=fitted.per_class)
    assert fitted.out_of_fold['per_class']['OF1'] < on_its_own['OF1']
    assert fitted.out_of_fold['per_class']['CF1'] < on_its_own['CF1']


def test_fit_seed_affects_the_folds_alone():
    scores, targets, _ = example(1, decimals=8)
    first, again, other = (fit(scores, targets, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.out_of_fold != other.out_of_fold
    assert (first.per_class, first.overall) == (other.per_class, other.overall)
    assert first.out_of_fold['default'] == other.out_of_fold['default']


def test_fit_returns_plain_numbers():
    fitted = fit(*example(0, dtype=np.float32))
    assert isinstance(fitted, Thresholds) and type(fitted.overall) is float
    assert {type(threshold) for threshold in fitted.per_class} == {float}
    assert {type(v) for figures in fitted.out_of_fold.values() for v in figures.values()} == {float}


@pytest.mark.parametrize(
    ('images', 'folds', 'message'),
    [(4, 5, '4 images cannot be split into 5 folds'), (4, 1, 'folds is 1: must be at least 2')],
)
def test_fit_refuses_invalid_folds(images, folds, message):
    with pytest.raises(ValueError, match=message):
        fit(np.full((images, 2), 0.5), np.ones((images, 2)), folds=folds)


def test_fit_refuses_targets_without_a_label_that_counts():
    with pytest.raises(ValueError, match='apply sigmoid'):
        fit(np.full((5, 2), 1.5), np.ones((5, 2)))
    for ignore in (True, False):
        with pytest.raises(ValueError, match='no label with both a positive and a negative'):
            fit(np.full((5, 2), 0.5), np.ones((5, 2)), np.full((5, 2), ignore))


@pytest.mark.parametrize('wanted', ['precision', 'recall'])
@pytest.mark.parametrize('seed', range(3))
def test_fit_reaches_a_wanted_precision_or_recall_with_the_best_of_the_other(wanted, seed):
    """Compared with all thresholds, whose precision and recall scikit-learn computes."""
    scores, targets, ignore = example(seed, shape=(120, 3), decimals=2)
    fitted = fit(scores, targets, ignore, target=f'{wanted}:0.8')
    for k in range(3):
        kept = ~ignore[:, k]
        truth, score = targets[kept, k], scores[kept, k]
        tried = []
        for threshold in [0.0, *np.unique(score)]:
            found = precision_score(truth, score > threshold, zero_division=0), recall_score(truth, score > threshold)
            tried.append(found if wanted == 'precision' else found[::-1])
        predicted = score > fitted.per_class[k]
        reached = precision_score(truth, predicted), recall_score(truth, predicted)
        reached = reached if wanted == 'precision' else reached[::-1]
        if k in fitted.unmet:
            assert reached[0] == max(first for first, _ in tried) < 0.8
        else:
            assert reached[0] >= 0.8 and reached[1] == max(second for first, second in tried if first >= 0.8)


def test_fit_counts_labels_that_meet_the_target_out_of_fold():
    """One label is separable, the scores of one are noise, one always ranks its negatives first, one is rare."""
    rng = np.random.default_rng(0)
    targets = rng.random((200, 4)) < 0.4
    targets[:, 3] = np.arange(200) < 4
    scores = 0.1 + 0.6 * targets + 0.2 * rng.random(targets.shape)
    scores[:, 1] = rng.random(200)
    scores[:, 2] = 0.9 - 0.6 * targets[:, 2]
    fitted = fit(scores, targets, target='precision:0.9')
    assert fitted.unmet == [2] and fitted.too_rare == [3] and fitted.num_fitted == 4
    assert fitted.num_met == 2 and fitted.target == 'precision:0.9'  # the separable one and the rare one
    everything = fit(scores, targets, target='recall:0.9')
    assert everything.unmet == [] and everything.out_of_fold['per_class']['CR'] > 88
    assert fit(scores, targets).num_met is None


@pytest.mark.parametrize('text', ['F1', 'precision', 'precision:1', 'recall:0', 'recall:nan', 'accuracy:0.9'])
def test_parse_target_refuses_other_texts(text):
    with pytest.raises(ValueError, match='must be f1, or precision:P or recall:R with P or R between 0 and 1'):
        parse_target(text)


def test_positives_needed_grows_with_the_target():
    targets = ('f1', 'precision:0.5', 'precision:0.9', 'recall:0.95')
    assert [positives_needed(target) for target in targets] == [5, 5, 10, 20]
