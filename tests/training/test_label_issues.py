import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from msff_timm.training import label_issues
from msff_timm.training.label_issues import FEW, find_label_issues, out_of_fold, unjudged

pytestmark = pytest.mark.usefixtures('one_thread')


def in_turn(targets, shares, units=None, seed=0):
    """Assigns units to folds in turn, whatever the targets are."""
    return (np.arange(len(targets)) if units is None else units) % len(shares)


@pytest.fixture
def folds(monkeypatch):
    monkeypatch.setattr(label_issues, 'stratify', in_turn)


def made_up(num_images, shares=(0.3, 0.3, 0.3), dim=8):
    """Returns features and targets that depend on them."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_images, dim)).astype(np.float32)
    evidence = features @ rng.normal(size=(dim, len(shares)))
    least = [np.quantile(column, 1 - share) for column, share in zip(evidence.T, shares, strict=True)]
    return features, (evidence > least).astype(np.int8)


def test_out_of_fold_is_a_logistic_regression_on_the_other_folds(folds):
    features, targets = made_up(100)
    targets[::7, 1] = -1
    found = out_of_fold(features, targets)
    inputs = features - features.mean(0)
    inputs /= np.sqrt((inputs**2).sum(1).mean())
    for fold in range(5):
        held_out = np.arange(100) % 5 == fold
        for k in range(3):
            used = ~held_out & (targets[:, k] >= 0)
            model = LogisticRegression(C=1 / 0.3, tol=1e-8).fit(inputs[used], targets[used, k])
            np.testing.assert_allclose(found[held_out, k], model.decision_function(inputs[held_out]), atol=0.02)


def test_out_of_fold_does_not_see_the_label_of_an_image_or_of_its_copies(folds):
    features, targets = made_up(60, dim=100)
    features[41] = features[40]
    groups = np.arange(60)
    groups[41] = 40

    def logits(first, second, groups):
        targets[[40, 41], 0] = first, second
        return out_of_fold(features, targets, groups)[[40, 41], 0]

    np.testing.assert_array_equal(logits(0, 0, groups), logits(1, 1, groups))
    assert np.all(logits(1, 1, None) > logits(0, 0, None) + 1)  # each copy sees the label of the other


def test_out_of_fold_of_a_label_with_no_present_entry_is_finite():
    features, targets = made_up(30)
    targets[:, 0] = 0
    targets[:, 1] = -1
    assert np.isfinite(out_of_fold(features, targets)).all()


def test_find_label_issues_compares_with_one_half_and_with_the_share_of_the_label():
    targets = np.zeros((100, 2), np.int8)
    targets[:10, 0] = targets[:50, 1] = 1
    targets[99] = -1
    logits = np.full((100, 2), -3.0, np.float32)
    logits[:50] = 3.0
    odds = 10 / 89
    logits[0, 0] = np.log(odds) + 0.1  # likelier than in an average image
    logits[1, 0] = np.log(odds) - 0.1
    logits[0, 1] = np.log(50 / 49) - 2.0
    logits[10:50, 0] = -3.0
    logits[60, 0], logits[61, 1], logits[62, 1] = 1.0, 0.05, -0.05
    logits[99] = 2.5, -1.0
    issues, found = find_label_issues(logits, targets, 10)
    assert found == {'wrong': 2, 'missing': 2, 'unannotated': 1}
    assert [(issue.image, issue.label, issue.kind, issue.given) for issue in issues] == [
        (0, 1, 'wrong', 'present'),
        (60, 0, 'missing', 'absent'),
        (1, 0, 'wrong', 'present'),
        (61, 1, 'missing', 'absent'),
        (99, 0, 'unannotated', 'unannotated'),
    ]
    assert [issue.score for issue in issues] == pytest.approx([2.0, 1.0, 0.1, 0.05, 2.5], abs=1e-5)
    assert issues[1].probability == pytest.approx(1 / (1 + np.exp(-1)))
    few, total = find_label_issues(logits, targets, 1)
    assert [issue.image for issue in few] == [0, 60, 99] and total == found


def test_find_label_issues_judges_no_label_of_few_entries():
    logits = np.full((20, 3), -9.0, np.float32)
    targets = np.zeros((20, 3), np.int8)
    targets[: FEW - 1, 0] = targets[:FEW, 1] = 1
    targets[FEW - 1 :, 2] = 1
    assert unjudged(targets).tolist() == [True, False, True]
    issues, _ = find_label_issues(logits, targets, 99)
    assert {issue.label for issue in issues} == {1} and len(issues) == FEW


def test_find_label_issues_ranks_planted_errors_above_the_probability_alone():
    features, targets = made_up(400, (0.02, 0.03, 0.05, 0.1, 0.3, 0.4), dim=20)
    rng = np.random.default_rng(1)
    planted = np.zeros(targets.shape, bool)
    for k in range(6):
        for value in (0, 1):
            rows = np.flatnonzero(targets[:, k] == value)
            planted[rng.choice(rows, max(1, round(0.06 * (targets[:, k] == 1).sum())), False), k] = True
    targets[planted] ^= 1
    logits = out_of_fold(features, targets)
    issues, _ = find_label_issues(logits, targets, 10_000)
    hits = [planted[issue.image, issue.label] for issue in issues]
    first = planted.sum() // 2
    assert np.mean(hits[:first]) > 0.8 and sum(hits) > 0.8 * planted.sum()
    scores = np.full(targets.shape, -1.0)
    for issue in issues:
        scores[issue.image, issue.label] = issue.score
    probability = 1 / (1 + np.exp(-logits))
    alone = np.where(targets == 1, 1 - probability, probability)
    ranked, simple = (average_precision_score(planted.ravel(), values.ravel()) for values in (scores, alone))
    assert ranked > simple + 0.05
