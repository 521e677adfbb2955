"""Measures `msff_timm.metrics.evaluate` on random scores, with three labels per image on average."""

import argparse

from bench_common import in_own_process
from msff_timm.errors import InputError
from own_process import evaluate_random_scores


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--shapes', nargs='+', default=['40137x80', '100000x1000'], help='images x labels')


def run(options: argparse.Namespace) -> dict:
    for shape in options.shapes:
        if [size.isdecimal() and int(size) > 0 for size in shape.split('x')] != [True, True]:
            raise InputError(f'--shapes has {shape!r}: must be images x labels, e.g. 40137x80.')
    results = {}
    for shape in options.shapes:
        results[shape] = found = in_own_process(evaluate_random_scores, *map(int, shape.split('x')))
        print(
            f'{shape:14} {found["seconds"]:8.3f} s, peak {found["peak_mib"]:.0f} MiB,'
            f' before evaluation {found["peak_mib_before"]:.0f} MiB'
        )
    return {'shapes': results}
