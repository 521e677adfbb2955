"""Times things in turns, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

__all__ = ['Timing', 'median_interval', 'order', 'time_in_turns', 'timed', 'wait_for_device']

T = TypeVar('T')
CONFIDENCE = 0.95
RESAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Timing:
    """How long several things take, measured in turns.

    Attributes:
        turns: Seconds of each of N things in each of T turns (T, N).
        reference: Number of the one that the others are compared with.
    """

    turns: np.ndarray
    reference: int

    @property
    def seconds(self) -> list[float]:
        """Median of each."""
        return np.median(self.turns, axis=0).tolist()

    @property
    def ratio(self) -> list[tuple[float, float, float]]:
        """Of its time to the reference's in the same turn: the median, and 10 and 90 % of the turns."""
        ratio = self.turns / self.turns[:, self.reference, None]
        return [tuple(values) for values in np.percentile(ratio, (50, 10, 90), axis=0).T.tolist()]

    def compare(self, one: int, other: int) -> dict:
        """Compares the time of one with that of another in the same turn, as `median_interval` does."""
        return median_interval(self.turns[:, one] / self.turns[:, other])


def median_interval(ratios: Sequence[float]) -> dict:
    """Gives the median of the turns' ratios with its interval of 95 %, by the percentile bootstrap.

    As many turns are drawn with replacement, 10,000 times by a fixed generator; the interval holds the middle 95 % of
    the medians of these. It takes the turns as independent; a single one has no interval.

    Returns:
        `median`, and `bootstrap_interval_95`: its two ends, or None.
    """
    values = np.asarray(ratios, dtype=float)
    if len(values) < 2:
        return {'median': float(np.median(values)), 'bootstrap_interval_95': None}
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    tails = 50 * (1 - CONFIDENCE)
    ends = np.percentile(np.median(values[drawn], axis=1), (tails, 100 - tails))
    return {'median': float(np.median(values)), 'bootstrap_interval_95': ends.tolist()}


def order(things: Iterable[T], turn: int) -> list[T]:
    """Gives the order of a turn: over the turns each thing is first as often as the others."""
    things = list(things)
    first = turn % len(things)
    return things[first:] + things[:first]


def timed(loop: Callable[[], object]) -> float:
    """Returns the seconds that a call takes, until the device has done all that it was given."""
    wait_for_device()
    began = time.perf_counter()
    loop()
    wait_for_device()
    return time.perf_counter() - began


def wait_for_device() -> None:
    """Waits until the GPU, if this process uses one, has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def time_in_turns(
    loops: Sequence[Callable[[], object]], turns: int, reference: int, check: Callable[[], None] | None = None
) -> Timing:
    """Times each in turns, each first as often as the others.

    Args:
        loops: What is timed; called once before.
        turns: How often.
        reference: Number of the one that the others are compared with.
        check: Called before each; ends the timing by what it raises.
    """
    seconds = np.empty((turns, len(loops)))
    for turn in range(-1, turns):
        for number in order(range(len(loops)), turn):
            if check is not None:
                check()
            taken = timed(loops[number])
            if turn >= 0:  # the first one sets up memory
                seconds[turn, number] = taken
    return Timing(seconds, reference)
