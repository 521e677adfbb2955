"""Timing in turns, by a clock of the test's own, and the interval of a comparison."""

import numpy as np
import pytest

from msff_timm.training.studies import speed


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(speed.time, 'perf_counter', lambda: self.now)


def test_things_are_timed_in_turns(monkeypatch):
    called, clock = [], Clock(monkeypatch)

    def loop(name, seconds):
        def run():
            called.append(name)
            clock.now += seconds * len(called)  # the machine slows down, for both alike

        return run

    timing = speed.time_in_turns([loop('a', 1), loop('b', 3)], 4, reference=0)
    assert ''.join(called[2:]) == 'abbaabba' and sorted(called[:2]) == ['a', 'b']
    # By hand: a takes 3, 6, 7, 10; b 3 times 4, 5, 8, 9.
    assert timing.turns.tolist() == [[3, 12], [6, 15], [7, 24], [10, 27]]
    assert timing.seconds == [6.5, 19.5]
    of_a, (ratio, low, high) = timing.ratio
    assert of_a == (1, 1, 1) and ratio == pytest.approx(np.median([12 / 3, 15 / 6, 24 / 7, 27 / 10]))
    assert min(15 / 6, 27 / 10) <= low < ratio < high <= 12 / 3
    assert timing.compare(0, 1)['median'] == pytest.approx(np.median([3 / 12, 6 / 15, 7 / 24, 10 / 27]))


def test_a_check_ends_the_timing_before_anything_more_is_called():
    called = []

    def check():
        if len(called) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speed.time_in_turns([lambda: called.append('a'), lambda: called.append('b')], 4, 0, check)
    assert len(called) == 3


def test_each_is_first_as_often_as_the_others():
    orders = [speed.order({'a': 1, 'b': 2, 'c': 3}, turn) for turn in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ['a', 'a', 'b', 'b', 'c', 'c']


def test_time_counts_until_the_device_is_done(monkeypatch):
    clock = Clock(monkeypatch)
    waits = iter([5.0, 2.0])  # what it was still doing before, and what it was given

    def synchronize():
        clock.now += next(waits)

    monkeypatch.setattr(speed.torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(speed.torch.cuda, 'synchronize', synchronize)
    assert speed.timed(lambda: setattr(clock, 'now', clock.now + 1)) == 3


def test_the_interval_of_a_median_is_that_of_order_statistics():
    """For 25 turns the exact 95 % interval of a median lies from the 8th to the 18th value (binomial, 95.7 %)."""
    ratios = np.random.default_rng(1).permutation(np.arange(1.0, 26))
    found = speed.median_interval(ratios)
    low, high = found['bootstrap_interval_95']
    assert found['median'] == 13 and low == pytest.approx(8, abs=1) and high == pytest.approx(18, abs=1)
    assert speed.median_interval(ratios) == found  # the generator is fixed
    assert speed.median_interval([2.0, 2.0, 2.0])['bootstrap_interval_95'] == [2, 2]
    assert speed.median_interval([2.0]) == {'median': 2, 'bootstrap_interval_95': None}
