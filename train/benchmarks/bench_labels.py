"""Measures inference of one image in float32 for several numbers of labels."""

import argparse
import inspect

import numpy as np
import timm
import torch

from bench_common import check_at_least, check_model, in_own_process, with_interval
from msff_timm.errors import InputError
from msff_timm.flops import measure_size
from msff_timm.training.report import markdown_table
from msff_timm.training.studies.speed import Timing
from own_process import infer


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='msff_resnet101', help='registered name')
    parser.add_argument('--image_size', type=int, default=448, help='side of the image in pixels')
    parser.add_argument('--num_classes', type=int, nargs='+', default=[80, 1000, 9600], help='numbers of labels')
    parser.add_argument('--max_queries', type=int, default=100, help='largest number of queries of grouped labels')
    parser.add_argument('--turns', type=int, default=9, help='measurements of each variant')


def run(options: argparse.Namespace) -> dict:
    """Measures each number of labels with a query per label and, if the model takes it, with `max_queries`.

    Time and peak memory are measured in a process for each variant; ratios of times in one process, in turns.
    """
    check_model('--model', options.model)
    check_at_least(options, image_size=32, num_classes=1, max_queries=1, turns=1)
    with torch.device('meta'):
        accepted = inspect.signature(type(timm.create_model(options.model))).parameters
    variants: list[dict] = []
    for number in options.num_classes:
        limits = (number, options.max_queries) if 'max_queries' in accepted else ()
        variants += [{'num_classes': number, 'max_queries': limit} for limit in limits] or [{'num_classes': number}]

    def measure(variants: list[dict]) -> dict:
        try:
            return in_own_process(infer, options.model, options.image_size, options.turns, variants)
        except InputError as e:  # e.g. out of memory, which the other variants may not be
            return {'error': str(e)}

    rows = []
    for model_args in variants:
        with torch.device('meta'):
            size = measure_size(timm.create_model(options.model, **model_args), (3, *2 * [options.image_size]))
        rows.append({**model_args, **size, **measure([model_args])})
        if 'error' not in rows[-1]:
            rows[-1]['seconds'] = float(np.median(rows[-1]['turns']))
    together = measure(variants)
    if 'error' not in together:
        timing = Timing(np.array(together['turns']), reference=0)
        for number, row in enumerate(rows):
            row['time_to_first'] = timing.compare(number, 0)
            if (
                row.get('max_queries', row['num_classes']) != row['num_classes']
            ):  # the row before has as many labels, with a query for each
                row['time_to_all_queries'] = timing.compare(number, number - 1)

    print(f'{options.model}, one image of {options.image_size} x {options.image_size}, float32:\n')
    head = ['labels', 'queries', 'parameters', 'GFLOPs', 'seconds', 'peak', 'before inference', 'GPU peak']
    head += ["time / first row's", 'time / all queries']
    table = [
        [
            str(row['num_classes']),
            f'at most {row["max_queries"]}' if 'max_queries' in row else 'one each',
            f'{row["num_parameters"] / 1e6:.1f} M',
            f'{row["gflops"]:.1f}',
            f'{row["seconds"]:.3f}',
            f'{row["peak_mib"]:.0f} MiB',
            f'{row["peak_mib_before"]:.0f} MiB',
            '–' if row['gpu_peak_mib'] is None else f'{row["gpu_peak_mib"]:.0f} MiB',
            with_interval(row.get('time_to_first')),
            with_interval(row.get('time_to_all_queries')),
        ]
        for row in rows
        if 'error' not in row
    ]
    print('\n'.join(markdown_table(head, table, texts=2)))
    for failed in (*rows, together):
        if 'error' in failed:
            print(failed['error'])
    return {
        'model': options.model,
        'image_size': options.image_size,
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        'rows': rows,
        'in_one_process': together,
    }
