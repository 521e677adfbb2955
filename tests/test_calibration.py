import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from torchmetrics.classification import BinaryCalibrationError

from msff_timm.calibration import BINS, PRIOR, calibrate, fit, measure
from msff_timm.metrics import evaluate

pytestmark = pytest.mark.filterwarnings('ignore:.*have fewer than 5')


def example(seed, shape=(400, 4), ignored=0.2, slope=2.0, shift=1.0):
    """Draws targets whose probability is sigmoid(z), and scores sigmoid(slope * z + shift)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 2, shape)
    targets = rng.random(shape) < 1 / (1 + np.exp(-z))
    scores = 1 / (1 + np.exp(-(slope * z + shift)))
    return scores.astype(np.float32), targets, rng.random(shape) < ignored


@pytest.mark.parametrize('ignored', [0, 0.3])
def test_measure_agrees_with_torchmetrics_and_scikit_learn(ignored):
    scores, targets, ignore = example(0, ignored=ignored)
    targets[:, 3] = False  # does not count
    found = measure(scores, targets, ignore)
    errors, briers = [], []
    for k in range(3):
        kept = ~ignore[:, k]
        error = BinaryCalibrationError(n_bins=BINS, norm='l1')
        errors.append(float(error(torch.from_numpy(scores[kept, k]), torch.from_numpy(targets[kept, k].astype(int)))))
        briers.append(brier_score_loss(targets[kept, k], scores[kept, k]))
    assert found['ECE'] == pytest.approx(100 * np.mean(errors), abs=1e-4)
    assert found['Brier'] == pytest.approx(np.mean(briers))
    kept = ~ignore[:, :3]
    shares, probabilities = calibration_curve(targets[:, :3][kept], scores[:, :3][kept], n_bins=BINS)
    filled = [row for row in found['reliability'] if row[0]]
    np.testing.assert_allclose([row[1:] for row in filled], np.stack([probabilities, shares], 1), rtol=1e-6)
    assert sum(row[0] for row in found['reliability']) == kept.sum()
    assert measure(scores, targets ^ ignore, ignore) == found


def test_fit_agrees_with_logistic_regression_of_many_images():
    """With many images the prior has no effect, and scikit-learn finds the same slope and bias."""
    scores, targets, _ = example(1, shape=(20_000, 2))
    fitted = fit(scores, targets)
    for k in range(2):
        logits = torch.from_numpy(scores[:, k]).double().logit().numpy()[:, None]
        model = LogisticRegression(C=np.inf, tol=1e-8).fit(logits, targets[:, k])
        assert 1 / fitted.temperatures[k] == pytest.approx(model.coef_[0, 0], rel=5e-3)
        assert fitted.biases[k] == pytest.approx(model.intercept_[0], abs=5e-3)
    assert fitted.temperatures == pytest.approx([2, 2], rel=0.1) and fitted.biases == pytest.approx([-0.5] * 2, abs=0.1)


@pytest.mark.parametrize('seed', range(2))
def test_fit_improves_both_metrics_out_of_fold(seed):
    scores, targets, ignore = example(seed)
    before, after = fit(scores, targets, ignore).out_of_fold.values()
    assert after['ECE'] < 0.7 * before['ECE'] and after['Brier'] < before['Brier']


def test_fit_calibrates_each_fold_with_values_of_the_others():
    scores, targets, ignore = example(2, shape=(50, 3))
    fitted = fit(scores, targets, ignore, folds=5, seed=3)
    expected = np.empty(scores.shape)
    for fold in np.array_split(np.random.default_rng(3).permutation(50), 5):
        rest = np.setdiff1d(np.arange(50), fold)
        others = fit(scores[rest], targets[rest], ignore[rest], folds=2)
        expected[fold] = calibrate(scores[fold], others.temperatures, others.biases)
    assert fitted.out_of_fold['calibrated'] == measure(expected, targets, ignore)
    assert fitted.out_of_fold['uncalibrated'] == measure(scores, targets, ignore)
    assert fit(scores, targets ^ ignore, ignore, seed=3) == fitted


def test_fit_draws_rare_labels_to_the_values_of_all():
    """Labels that do not count have the common values; a label with one positive is near them, and finite."""
    scores, targets, _ = example(3, shape=(2000, 5), ignored=0)
    ignore = np.zeros(targets.shape, bool)
    targets[:, 2], targets[:, 3] = False, True
    ignore[10:, 4], targets[:10, 4], scores[:10, 4] = True, np.arange(10) == 0, 0.1
    scores[0, 4] = 0.9  # separable: without the prior its temperature would be 0
    fitted = fit(scores, targets, ignore)
    assert fitted.temperatures[2] == fitted.temperatures[3] and fitted.biases[2] == fitted.biases[3]
    assert abs(1 / fitted.temperatures[4] - 1 / fitted.temperatures[2]) < 0.5 and PRIOR == 3
    assert abs(fitted.biases[4] - fitted.biases[2]) < 0.5


def test_fit_keeps_the_order_of_a_label_that_ranks_its_negatives_first():
    scores, targets, _ = example(4, shape=(2000, 3), ignored=0)
    targets[:, 2] = scores[:, 2] < 0.5
    fitted = fit(scores, targets)
    assert min(fitted.temperatures) > 0


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_calibrate_changes_neither_map_nor_the_labels_above_thresholds(dtype):
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.random((300, 4)), 10.0 ** rng.uniform(-30, -1, (300, 4))]).astype(dtype)
    targets = rng.random(scores.shape) < scores
    temperatures, biases, thresholds = [0.5, 0.9, 1.5, 3], [-2, -0.5, 0, 1], [0.3, 0.5, 0.01, 0.9]
    calibrated = calibrate(scores, temperatures, biases)
    assert evaluate(calibrated, targets)['mAP'] == pytest.approx(evaluate(scores, targets)['mAP'], abs=1e-12)
    np.testing.assert_array_equal(
        calibrated > calibrate(np.array(thresholds), temperatures, biases), scores > np.array(thresholds)
    )
    logits = torch.from_numpy(scores).double().logit()
    expected = (logits / torch.tensor(temperatures) + torch.tensor(biases)).sigmoid()
    np.testing.assert_allclose(calibrated, expected.numpy(), rtol=1e-5)


def test_calibrate_accepts_scores_of_0_and_1():
    found = calibrate(np.array([[0.0], [1.0]], np.float32), [0.5], [0.0])
    assert found[0, 0] < 1e-30 and found[1, 0] == pytest.approx(1, abs=1e-12)


def test_fit_refuses_what_thresholds_refuse():
    for scores, message in ((np.full((4, 1), 0.5), '4 images cannot'), (np.full((9, 1), 0.5), 'no label with both')):
        with pytest.raises(ValueError, match=message):
            fit(scores, np.ones(scores.shape))
