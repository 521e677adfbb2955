import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import assert_same, example

from msff_timm.metrics import evaluate
from msff_timm.training.accumulator import MetricAccumulator


@pytest.mark.parametrize('processes', [1, 2, 3])
@given(images=st.integers(6, 40), batch=st.integers(1, 5), seed=st.integers(0, 1000), with_ignore=st.booleans())
@settings(max_examples=25, deadline=None)
def test_accumulator_evaluates_each_image_once(processes, images, batch, seed, with_ignore):
    """Images are split as by Accelerate, which repeats the first ones until all processes have as many full batches."""
    scores, targets, ignore = example(seed, shape=(images, 4), decimals=1, dtype=np.float32)
    targets[0, 2:] = True
    ignore[0, 2:] = False
    areas = (np.random.default_rng(seed).random((images, 4)) ** 4).astype(np.float32)
    optional = {'ignore': ignore, 'areas': areas} if with_ignore else {}
    order = np.random.default_rng(seed).permutation(images)
    together = processes * batch
    padded = np.resize(order, -(-images // together) * together)
    metric = MetricAccumulator()
    for step in padded.reshape(-1, together):
        buffer = scores[step]
        metric.update(step, buffer, targets[step], **{name: array[step] for name, array in optional.items()})
        buffer[:] = 0  # the accumulator keeps a copy
    options = {'ap': 'interpolated', 'bootstrap': 3, 'threshold': 0.4}
    assert_same(metric.compute(images, **options), evaluate(scores, targets, **optional, **options))
    arrays = metric.arrays()
    assert arrays.keys() == {'scores', 'targets', 'ignore', 'areas'}
    for name, array in {'scores': scores, 'targets': targets, 'ignore': None, 'areas': None, **optional}.items():
        np.testing.assert_array_equal(arrays[name], array, strict=array is not None)


def test_accumulator_keeps_the_first_of_repeated_images_in_single_precision():
    metric = MetricAccumulator()
    metric.update([5, 3], np.array([[0.1], [0.3]]), np.array([[1], [0]]))
    metric.update([3, 5], np.array([[0.9], [0.9]]), np.array([[1], [0]]))
    arrays = metric.arrays(2)
    np.testing.assert_array_equal(arrays['scores'], np.array([[0.3], [0.1]], np.float32), strict=True)
    np.testing.assert_array_equal(arrays['targets'], np.array([[False], [True]]), strict=True)


@pytest.mark.parametrize('expected', [1, 3])
def test_accumulator_checks_the_number_of_images(expected):
    metric = MetricAccumulator()
    metric.update([0, 1, 0], np.full((3, 2), 0.5), np.ones((3, 2)))
    with pytest.raises(RuntimeError, match=f'2 of {expected} images were evaluated'):
        metric.compute(expected)
    with pytest.raises(RuntimeError, match='there are no images'):
        MetricAccumulator().compute()


def test_accumulator_refuses_inconsistent_batches():
    metric, scores = MetricAccumulator(), np.full((2, 2), 0.5)
    for indices in ([0], [[0, 1]], [0.0, 1.0]):
        with pytest.raises(ValueError, match='whole numbers, one for each row'):
            metric.update(indices, scores, scores > 0)
    with pytest.raises(ValueError, match='apply sigmoid'):
        metric.update([0, 1], scores + 1, scores > 0)
    metric.update([0, 1], scores, scores > 0)
    with pytest.raises(ValueError, match='ignore must be given in all updates or in none'):
        metric.update([2, 3], scores, scores > 0, ignore=scores > 1)
