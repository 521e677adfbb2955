"""Checks of single settings, with messages that name the setting."""

from collections.abc import Iterable

from ..errors import InputError, unknown
from ..files import check_file
from ..thresholds import parse_target

__all__ = [
    'check_at_least',
    'check_new_file',
    'check_one_of',
    'check_positive',
    'check_seed',
    'check_threshold_target',
    'is_among',
]

LARGEST_SEED = 2**31 - 1  # NumPy's seeds have 32 bits, and each process adds its number


def check_at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise InputError(f'{key} is {value}: must be at least {least}.')


def check_positive(key: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise InputError(f'{key} is {value}: must be above 0.')


def check_seed(key: str, value: int) -> None:
    check_at_least(key, value, 0)
    if value > LARGEST_SEED:
        raise InputError(f'{key} is {value}: must be at most {LARGEST_SEED}.')


def check_one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise unknown(key, value, known)


def check_new_file(key: str, value: str | None, *suffixes: str) -> None:
    """Checks that a file can be written at the end of a job, which may be long."""
    if value is None:
        return
    if suffixes and not value.endswith(suffixes):
        raise InputError(f'{key} is {value}: must end in {" or ".join(suffixes)}.')
    check_file(value, key)


def check_threshold_target(key: str, value: str) -> None:
    try:
        parse_target(value)
    except ValueError as e:
        raise InputError(f'{key}: {e}') from None


def is_among(key: str, settings: Iterable[str]) -> bool:
    """Returns True if a setting is one of `settings`, or in one of these sections."""
    return any(key == own or key.startswith(f'{own}.') for own in settings)
