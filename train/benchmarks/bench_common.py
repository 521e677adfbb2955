"""What the benchmarks share: checks of options, processes of their own, the machine, and formats."""

import argparse
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy
import PIL
import timm
import torch
import torchvision

from msff_timm import hub
from msff_timm.errors import InputError, unknown
from own_process import set_environment

__all__ = [
    'Parser',
    'check_above_0',
    'check_at_least',
    'check_each_once',
    'check_model',
    'in_own_process',
    'machine',
    'with_interval',
]


class Parser(argparse.ArgumentParser):
    """Parser whose errors take one line."""

    def error(self, message: str) -> None:
        raise InputError(message)


def check_at_least(options: argparse.Namespace, **least: float) -> None:
    """Checks the lower bounds of options, each a number, a list of numbers or None.

    Raises:
        InputError: A value is below its bound.
    """
    for name, bound in least.items():
        for value in _values(options, name):
            if value < bound:
                raise InputError(f'--{name} is {value}: must be at least {bound}.')


def check_above_0(options: argparse.Namespace, *names: str) -> None:
    """Checks that options, each a number, a list of numbers or None, are above 0.

    Raises:
        InputError: A value is not.
    """
    for name in names:
        for value in _values(options, name):
            if not value > 0:
                raise InputError(f'--{name} is {value}: must be above 0.')


def _values(options: argparse.Namespace, name: str) -> list:
    value = getattr(options, name)
    return value if isinstance(value, list) else [] if value is None else [value]


def check_each_once(options: argparse.Namespace, *names: str) -> None:
    """Checks that no value is repeated in options, each a list.

    Raises:
        InputError: A value is.
    """
    for name in names:
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise InputError(f'--{name} is {" ".join(map(str, values))}: must be one or more, each once.')


def check_model(option: str, name: str) -> None:
    """Checks that timm knows a model.

    Raises:
        InputError: It does not.
    """
    if not timm.is_model(name):
        raise unknown(option, name, hub.list_models())


def in_own_process(function: Callable[..., dict], *arguments: object, **environment: str) -> dict:
    """Calls a function in a new Python process, so that its imports and its peak memory are its own.

    Args:
        function: Function of a module that imports little, so that the process starts nearly empty.
        *arguments: Its arguments.
        **environment: Environment variables of the process.

    Raises:
        InputError: The function failed, or the process was killed.
    """
    context = get_context('spawn')
    with ProcessPoolExecutor(1, context, initializer=set_environment, initargs=(environment,)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except Exception as e:
            reason = ' '.join(str(e).split()) or type(e).__name__
            raise InputError(f'{function.__name__}{arguments}: the measurement failed ({reason}).') from e


def machine() -> dict:
    """Returns the name of the processor and the versions of the packages."""
    cpu_info = Path('/proc/cpuinfo')
    models = [line for line in cpu_info.read_text().splitlines() if 'model name' in line] if cpu_info.exists() else []
    return {
        'cpu': models[0].partition(':')[2].strip() if models else platform.processor() or platform.machine(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'timm': timm.__version__,
        'pillow': PIL.__version__,
        'numpy': numpy.__version__,
    }


def with_interval(compared: dict | None) -> str:
    """Formats a median ratio with its 95 % interval."""
    if compared is None:
        return '–'
    ends = compared['bootstrap_interval_95']
    return f'{compared["median"]:.3f}' + ('' if ends is None else f' ({ends[0]:.3f} to {ends[1]:.3f})')
