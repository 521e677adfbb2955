"""Times functions in turns, so that other load on the machine affects all of them alike."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

__all__ = ['Timing', 'median_interval', 'order', 'time_in_turns', 'timed', 'wait_for_device']

T = TypeVar('T')


@dataclass(frozen=True)
class Timing:
    """Times of N functions in T turns.

    Attributes:
        turns: Seconds of each call (T, N).
        reference: Index of the function that the others are compared with.
    """

    turns: np.ndarray
    reference: int

    @property
    def seconds(self) -> list[float]:
        """Median time of each function in seconds."""
        return np.median(self.turns, axis=0).tolist()

    @property
    def ratio(self) -> list[tuple[float, float, float]]:
        """Median, 10th and 90th percentile of each function's time relative to the reference in the same turn."""
        ratio = self.turns / self.turns[:, self.reference, None]
        return [tuple(values) for values in np.percentile(ratio, (50, 10, 90), axis=0).T.tolist()]

    def compare(self, one: int, other: int) -> dict:
        """Compares two functions by the ratio of their times in the same turn, see `median_interval`."""
        return median_interval(self.turns[:, one] / self.turns[:, other])


def median_interval(ratios: Sequence[float]) -> dict:
    """Computes the median of the turns' ratios and its 95 % interval (percentile bootstrap, turns as independent).

    Returns:
        `median`, and `bootstrap_interval_95`: both ends of the interval, None for a single turn.
    """
    interval = None
    if len(ratios) > 1:
        from scipy import stats  # only here, as training imports this module and starts without scipy

        found = stats.bootstrap((ratios,), np.median, n_resamples=10_000, method='percentile', random_state=0)
        interval = [float(end) for end in found.confidence_interval]
    return {'median': float(np.median(ratios)), 'bootstrap_interval_95': interval}


def order(things: Iterable[T], turn: int) -> list[T]:
    """Returns the order of a turn: over the turns, each thing comes first equally often."""
    things = list(things)
    first = turn % len(things)
    return things[first:] + things[:first]


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes, including the work that it queues on the GPU."""
    wait_for_device()
    start = time.perf_counter()
    function()
    wait_for_device()
    return time.perf_counter() - start


def wait_for_device() -> None:
    """Waits for the work queued on the GPU, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def time_in_turns(
    functions: Sequence[Callable[[], object]], turns: int, reference: int, check: Callable[[], None] | None = None
) -> Timing:
    """Times functions in turns; each comes first equally often.

    Args:
        functions: Functions to time. One call of each beforehand is not counted, as it allocates memory.
        turns: Number of timed calls of each function.
        reference: Index of the function that the others are compared with.
        check: Function called before each call; an exception that it raises ends the timing.
    """
    seconds = np.empty((turns, len(functions)))
    for turn in range(-1, turns):
        for number in order(range(len(functions)), turn):
            if check is not None:
                check()
            taken = timed(functions[number])
            if turn >= 0:
                seconds[turn, number] = taken
    return Timing(seconds, reference)
