"""Measures models by how long idle CPU threads spin before they sleep, on idle and on busy cores."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bench_common import check_at_least, check_model, in_own_process, with_interval
from msff_timm.errors import InputError
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
    """Measures every case in turns, each in a process of its own, as the number is read when PyTorch is loaded."""
    check_at_least(options, image_size=32, batch_size=1, spins=0, busy=0, turns=1)
    if len(set(options.spins)) < len(options.spins):
        raise InputError(f'--spins is {options.spins}: must be one or more, each once.')
    for name in options.models:
        check_model('--models', name)
    rows = []
    for name in options.models:
        for busy in options.busy:
            turns: dict[int, list[dict]] = {spins: [] for spins in options.spins}
            for turn in range(options.turns):
                for spins in order(options.spins, turn):
                    environment = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': str(spins)}
                    with busy_cores(busy):
                        measured = in_own_process(
                            infer_and_train, name, options.image_size, options.batch_size, **environment
                        )
                    turns[spins].append(measured)
            first = turns[options.spins[0]]
            for spins, found in turns.items():
                row = {'model': name, 'busy': busy, 'spins': spins, 'turns': found}
                for key in PASSES:
                    row[f'{key}_ms'] = 1000 * float(np.median([turn[key] for turn in found]))
                    ratios = [turn[key] / before[key] for turn, before in zip(found, first, strict=True)]
                    row[f'{key}_ratio'] = median_interval(ratios) if found is not first else None
                rows.append(row)
                figures = ', '.join(
                    f'{text} {row[f"{key}_ms"]:.1f} ms, {with_interval(row[f"{key}_ratio"])}'
                    for key, text in PASSES.items()
                )
                print(f'{name}, {busy} busy, GOMP_SPINCOUNT {spins}: {figures}', flush=True)
    settings = {key: getattr(options, key) for key in ('image_size', 'batch_size')}
    return {**settings, 'threads': rows[0]['turns'][0]['threads'], 'rows': rows}


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
