"""Compares how long waiting CPU threads spin before they sleep, on idle and on busy cores."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np

from bench_common import check_at_least, check_each_once, check_model, in_own_process, with_interval
from msff_timm.training.studies.speed import median_interval, order
from own_process import infer_and_train

PASSES = {'infer': 'inference of 1 image', 'train': 'training step'}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--models', nargs='+', default=['msff_efficientnet_lite0', 'msff_test_resnet'])
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--batch_size', type=int, default=8, help='batch size of the training step')
    parser.add_argument('--spins', type=int, nargs='+', default=[0, 1000, 3000], help='values of GOMP_SPINCOUNT')
    parser.add_argument('--busy', type=int, nargs='+', default=[0, 1], help='numbers of cores that other programs use')
    parser.add_argument('--turns', type=int, default=5, help='processes of each case')


def run(options: argparse.Namespace) -> dict:
    """Times every model with every number of busy cores and every value of GOMP_SPINCOUNT."""
    check_at_least(options, image_size=32, batch_size=1, spins=0, busy=0, turns=1)
    check_each_once(options, 'models', 'spins', 'busy')
    for name in options.models:
        check_model('--models', name)
    rows = []
    for name, busy in product(options.models, options.busy):
        turns = time_spins(name, busy, options)
        for spins, found in turns.items():
            row = {'model': name, 'busy': busy, 'spins': spins, 'turns': found}
            for key in PASSES:
                row[f'{key}_ms'] = 1000 * float(np.median([turn[key] for turn in found]))
                ratios = [turn[key] / first[key] for turn, first in zip(found, turns[options.spins[0]], strict=True)]
                row[f'{key}_ratio'] = None if spins == options.spins[0] else median_interval(ratios)
            rows.append(row)
            figures = (
                f'{text} {row[f"{key}_ms"]:.1f} ms, {with_interval(row[f"{key}_ratio"])}'
                for key, text in PASSES.items()
            )
            print(f'{name}, {busy} busy, GOMP_SPINCOUNT {spins}: {", ".join(figures)}', flush=True)
    settings = {key: getattr(options, key) for key in ('image_size', 'batch_size')}
    return {**settings, 'threads': rows[0]['turns'][0]['threads'], 'rows': rows}


def time_spins(name: str, busy: int, options: argparse.Namespace) -> dict[int, list[dict]]:
    """Times a model in turns, each time in a new process: libgomp reads GOMP_SPINCOUNT when PyTorch is loaded.

    Returns:
        For each value of GOMP_SPINCOUNT the results of `infer_and_train` in each turn.
    """
    turns: dict[int, list[dict]] = {spins: [] for spins in options.spins}
    for turn in range(options.turns):
        for spins in order(options.spins, turn):
            environment = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': str(spins)}
            with busy_cores(busy):
                found = in_own_process(infer_and_train, name, options.image_size, options.batch_size, **environment)
            turns[spins].append(found)
    return turns


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """Keeps a number of cores busy with other processes."""
    processes = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
