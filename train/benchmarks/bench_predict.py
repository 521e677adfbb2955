"""Measures how many photos per second `msff-timm predict -o` labels, relative to the function `predict`."""

import argparse
from pathlib import Path

import numpy as np

from bench_common import check_at_least, in_own_process, with_interval
from bench_data import find_photos
from msff_timm import hub
from msff_timm.training.studies.speed import median_interval, order
from own_process import predict_photos


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--root', type=Path, required=True, help='folder with photos, subfolders included')
    parser.add_argument('--model', default=hub.DEFAULT_MODEL, help='registered name, folder or ORG/NAME')
    parser.add_argument('--photos', type=int, default=2000, help='number of photos')
    parser.add_argument('--turns', type=int, default=3, help='number of turns')
    parser.add_argument('--batch_size', type=int, help='batch size of the files (default: as in the command)')
    parser.add_argument('--workers', type=int, help='workers of the files (default: as in the command)')


def run(options: argparse.Namespace) -> dict:
    """Measures three ways to label the same photos in turns, each time in a new process, without loading the model.

    - `function`: `predict`, which opens one image after another and computes 8 at a time.
    - `file`: `msff-timm predict -o`, from the list of images to the merged file.
    - `file_bf16`: the same with `--precision bf16`, whose labels are compared with those of `file`.
    """
    check_at_least(options, photos=1, turns=1)
    photos = [str(path) for path in find_photos(options.root, options.photos)]
    settings = {'batch_size': options.batch_size, 'workers': options.workers}
    ways = {'function': None, 'file': settings, 'file_bf16': {**settings, 'precision': 'bf16'}}
    measured = {name: [] for name in ways}
    for turn in range(options.turns):
        for name in order(ways, turn):
            measured[name].append(in_own_process(predict_photos, options.model, photos, ways[name]))
    labels = {name: [values.pop('labels') for values in turns][0] for name, turns in measured.items()}
    num_labels = sum(map(len, labels['file']))
    both = zip(labels['file'], labels['file_bf16'], strict=True)
    num_changed = sum(len(set(exact) ^ set(rounded)) for exact, rounded in both)
    rates = {name: [len(photos) / values['seconds'] for values in turns] for name, turns in measured.items()}
    ratios = {name: median_interval(np.divide(rates[name], rates['function'])) for name in ways if name != 'function'}
    about = {key: measured['file'][0][key] for key in ('device', 'threads')}
    print(
        f'{options.model}, {len(photos)} photos, {options.turns} turns, {about["device"]}, {about["threads"]} threads:'
    )
    for name in ways:
        compared = f', {with_interval(ratios[name])} times the function' if name in ratios else ''
        peak = max(values['peak_mib'] for values in measured[name])
        print(f'{name:9} {np.median(rates[name]):8.1f} images/s{compared}, peak {peak:.0f} MiB')
    print(f'bf16 adds or removes {num_changed} of {num_labels} labels')
    return {
        'model': options.model,
        'num_photos': len(photos),
        **about,
        'images_per_second': {name: float(np.median(values)) for name, values in rates.items()},
        'ratios': ratios,
        'num_labels': num_labels,
        'num_labels_changed_by_bf16': num_changed,
        'turns': measured,
    }
