import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from msff_timm.metrics import average_precision, evaluate


@pytest.mark.parametrize('decimals', [8, 1], ids=['distinct', 'ties'])
def test_average_precision_is_scikit_learns(decimals):
    rng = np.random.default_rng(decimals)
    scores = rng.random((500, 20)).round(decimals)
    targets = rng.random((500, 20)) < rng.uniform(0.01, 0.9, 20)
    targets[0] = True
    expected = [average_precision_score(targets[:, k], scores[:, k]) for k in range(20)]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=0, atol=1e-12)


def test_measures_of_an_example_worked_by_hand():
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


def test_cf1_is_the_harmonic_mean_of_cp_and_cr_not_the_mean_of_class_f1():
    # Class 0: precision 1, recall 1/2. Class 1: precision 1/2, recall 1. Each has F1 2/3; Eq. 16 gives 3/4.
    scores = np.array([[0.9, 0.9], [0.1, 0.9]])
    targets = np.array([[1, 1], [1, 0]])
    assert evaluate(scores, targets)['CF1'] == pytest.approx(75, abs=1e-10)


def test_a_class_never_predicted_counts_zero_and_one_without_positives_leaves_map():
    scores = np.array([[0.9, 0.1, 0.9], [0.2, 0.2, 0.1]])
    targets = np.array([[1, 1, 0], [0, 0, 0]])
    result = evaluate(scores, targets)
    assert result['CP'] == pytest.approx(100 / 3) and result['CR'] == pytest.approx(100 / 3)
    assert np.isnan(result['AP'][2]) and result['num_classes_with_positives'] == 2
    assert result['mAP'] == pytest.approx((100 + 50) / 2)


def test_nothing_predicted_gives_zero_without_a_warning(recwarn):
    result = evaluate(np.full((3, 2), 0.1), np.eye(3, 2))
    assert [result[name] for name in ('CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')] == [0] * 6
    assert len(recwarn) == 0


def test_a_threshold_for_each_class():
    scores, targets = np.array([[0.4, 0.4], [0.4, 0.4]]), np.array([[1, 0], [1, 1]])
    assert evaluate(scores, targets, threshold=np.array([0.3, 0.5]))['OR'] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ('scores', 'targets', 'message'),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), 'must both be'),
        (np.zeros((0, 2)), np.zeros((0, 2)), 'N > 0'),
        (np.zeros((3, 2)), np.zeros((3, 2)), 'no positive'),
    ],
)
def test_what_cannot_be_measured_is_refused(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        evaluate(scores, targets)
