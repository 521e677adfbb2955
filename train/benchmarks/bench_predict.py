"""Measures how many photos per second `msff-timm predict -o` labels, relative to the function `predict`."""

import argparse
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch

from bench_common import check_at_least, with_interval
from bench_data import find_photos
from msff_timm import hub
from msff_timm.inference.bulk import Settings
from msff_timm.inference.bulk import run as run_bulk
from msff_timm.inference.logits import choose_device
from msff_timm.inference.predict import predict
from msff_timm.inference.sources import Sources
from msff_timm.inference.tasks import PredictTask
from msff_timm.training.studies.speed import median_interval, order


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--root', type=Path, required=True, help='folder with photos, subfolders included')
    parser.add_argument('--model', default=hub.DEFAULT_MODEL, help='registered name, folder or ORG/NAME')
    parser.add_argument('--photos', type=int, default=2000, help='number of photos')
    parser.add_argument('--turns', type=int, default=3, help='number of turns')
    parser.add_argument('--batch_size', type=int, help='batch size of the file (default: as in the command)')
    parser.add_argument('--workers', type=int, help='decoding processes (default: as in the command)')
    parser.add_argument('--precision', default='fp32', help='precision of the file')


def run(options: argparse.Namespace) -> dict:
    """Measures both ways on the same photos in turns.

    - `function`: `predict`, which opens one image after another and computes 8 at a time.
    - `file`: `msff-timm predict -o tags.parquet`, from the list of images to the merged file, without loading the
      model.
    """
    check_at_least(options, photos=1, turns=1)
    photos = [str(path) for path in find_photos(options.root, options.photos)]
    model = hub.load(options.model).to(choose_device())
    settings = Settings(options.batch_size, options.workers, options.precision)

    def to_file(images: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_bulk(PredictTask(model), Sources(images), Path(folder, 'tags.parquet'), settings)

    ways = {'function': lambda images: deque(predict(model, images), maxlen=0), 'file': to_file}
    for way in ways.values():  # allocates memory and imports decoders
        way(photos[:64])
    rates = {name: [] for name in ways}
    for turn in range(options.turns):
        for name in order(ways, turn):
            start = time.perf_counter()
            ways[name](photos)
            rates[name].append(len(photos) / (time.perf_counter() - start))
    ratio = median_interval(np.divide(rates['file'], rates['function']))
    print(f'{options.model}, {len(photos)} photos, {options.turns} turns, {torch.get_num_threads()} threads:')
    for name in ways:
        print(f'{name:9} {np.median(rates[name]):8.1f} images/s')
    print(f'file / function: {with_interval(ratio)}')
    return {
        'model': options.model,
        'num_photos': len(photos),
        'device': next(model.parameters()).device.type,
        'threads': torch.get_num_threads(),
        'images_per_second': {name: float(np.median(values)) for name, values in rates.items()},
        'ratio': ratio,
        'turns': rates,
    }
