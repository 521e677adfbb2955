"""Tests of timing in turns, with a fake clock, and of the interval of the median ratio."""

import numpy as np
import pytest

from msff_timm.training.studies import speed


class Clock:
    """Fake clock that tests advance."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(speed.time, 'perf_counter', lambda: self.now)


def test_time_in_turns_alternates_order(monkeypatch):
    called, clock = [], Clock(monkeypatch)

    def function(name, seconds):
        def run():
            called.append(name)
            clock.now += seconds * len(called)  # the machine becomes slower, for both alike

        return run

    timing = speed.time_in_turns([function('a', 1), function('b', 3)], 4, reference=0)
    assert ''.join(called[2:]) == 'abbaabba' and sorted(called[:2]) == ['a', 'b']
    # By hand: a takes 3, 6, 7, 10; b 3 times 4, 5, 8, 9.
    assert timing.turns.tolist() == [[3, 12], [6, 15], [7, 24], [10, 27]]
    assert timing.seconds == [6.5, 19.5]
    of_a, (ratio, low, high) = timing.ratio
    assert of_a == (1, 1, 1) and ratio == pytest.approx(np.median([12 / 3, 15 / 6, 24 / 7, 27 / 10]))
    assert min(15 / 6, 27 / 10) <= low < ratio < high <= 12 / 3
    assert timing.compare(0, 1)['median'] == pytest.approx(np.median([3 / 12, 6 / 15, 7 / 24, 10 / 27]))


def test_time_in_turns_stops_when_check_raises():
    called = []

    def check():
        if len(called) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speed.time_in_turns([lambda: called.append('a'), lambda: called.append('b')], 4, 0, check)
    assert len(called) == 3


def test_order_puts_each_first_equally_often():
    orders = [speed.order({'a': 1, 'b': 2, 'c': 3}, turn) for turn in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == ['a', 'a', 'b', 'b', 'c', 'c']


def test_timed_waits_for_device(monkeypatch):
    clock = Clock(monkeypatch)
    waits = iter([5.0, 2.0])  # earlier work, then the work of the call

    def synchronize():
        clock.now += next(waits)

    monkeypatch.setattr(speed.torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(speed.torch.cuda, 'synchronize', synchronize)
    assert speed.timed(lambda: setattr(clock, 'now', clock.now + 1)) == 3


def test_median_interval_matches_order_statistics():
    """The exact interval of the median of 25 values reaches from the 8th to the 18th (binomial, 95.7 %)."""
    ratios = np.random.default_rng(1).permutation(np.arange(1.0, 26))
    found = speed.median_interval(ratios)
    low, high = found['bootstrap_interval_95']
    assert found['median'] == 13 and low == pytest.approx(8, abs=1) and high == pytest.approx(18, abs=1)
    assert speed.median_interval(ratios) == found  # fixed seed
    assert speed.median_interval([2.0, 2.0, 2.0])['bootstrap_interval_95'] == [2, 2]
    assert speed.median_interval([2.0]) == {'median': 2, 'bootstrap_interval_95': None}
