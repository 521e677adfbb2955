"""Measures the images per second that one core reads and transforms for training, relative to plain torchvision."""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from bench_common import check_above_0, check_at_least
from msff_timm.data.transforms import Normalize, open_image, train_transform
from msff_timm.errors import InputError
from msff_timm.training.data_config import DataConfig
from msff_timm.training.studies.speed import order

MOST_PHOTOS = 256
CHUNK = 16  # photos of one measurement
EVERY_OPERATION = 'rand-m9-n2-p1-mstd0.5'
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225), 'interpolation': 'bilinear'}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--root', type=Path, required=True, help='folder with photos, subfolders included')
    parser.add_argument('--image_size', type=int, default=448, help='side of the transformed images in pixels')
    parser.add_argument('--seconds', type=float, default=60, help='minimum duration of the measurement')


def run(options: argparse.Namespace) -> dict:
    """Measures three pipelines from file to tensor in turns.

    - `plain`: PIL's decoding, torchvision's `Resize`, `RandAugment()`, `ToTensor` and `Normalize`, and Cutout.
    - `default`: training's own transform. timm applies each of its 2 RandAugment operations with probability 0.5.
    - `every_operation`: the same with probability 1, as many operations as torchvision applies: the fair comparison.

    All move pixels by nearest neighbour. Remaining differences: torchvision's 14 operations include `Identity`, timm's
    15 have `Invert` and `SolarizeAdd` instead; magnitude 9 is of 30 in torchvision and of 10 in timm, and timm varies
    it.

    Part of `plain`'s time is glibc returning the memory of a large image to the system. To exclude it, set
    MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 in the environment.
    """
    size = options.image_size
    check_at_least(options, image_size=32)
    check_above_0(options, 'seconds')
    photos = find_photos(options.root)
    for photo in photos:  # fills the file cache of the system, and reports broken files before the measurement
        open_image(photo)

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    settings = DataConfig()
    pipelines = {
        'plain': plain_pipeline(size, settings.cutout),
        'default': our_pipeline(size, settings.rand_augment, settings.cutout),
        'every_operation': our_pipeline(size, EVERY_OPERATION, settings.cutout),
    }
    rates = {name: [] for name in pipelines}
    start, turn = time.perf_counter(), 0
    while turn < len(pipelines) or time.perf_counter() - start < options.seconds:
        chunk = [photos[(turn * CHUNK + i) % len(photos)] for i in range(CHUNK)]
        for name in order(pipelines, turn):
            began = time.perf_counter()
            for photo in chunk:
                pipelines[name](photo)
            rates[name].append(CHUNK / (time.perf_counter() - began))
        turn += 1

    ratios = {name: np.divide(rates[name], rates['plain']) for name in ('every_operation', 'default')}
    print(f'{len(photos)} photos at {size} x {size}, one core, {turn} turns:')
    for name in pipelines:
        print(f'{name:16} {np.median(rates[name]):8.1f} images/s')
    for name, ratio in ratios.items():
        low, median, high = np.percentile(ratio, (10, 50, 90))
        print(f'{name:16} {median:8.3f} times plain (middle 80 % of the turns: {low:.3f} to {high:.3f})')
    return {
        'num_photos': len(photos),
        'image_size': size,
        'images_per_second': {name: float(np.median(values)) for name, values in rates.items()},
        'ratio': {name: float(np.median(values)) for name, values in ratios.items()},
        'ratio_10_to_90_percent': {name: np.percentile(v, (10, 90)).tolist() for name, v in ratios.items()},
        'turns': rates,
    }


def find_photos(root: Path, most: int = MOST_PHOTOS) -> list[Path]:
    """Lists photos of a folder and its subfolders, the same ones each time."""
    if not root.is_dir():
        raise InputError(f'--root is {root}: there is no such folder.')
    Image.init()
    photos = sorted(p for p in root.rglob('*') if p.suffix.lower() in Image.EXTENSION and p.is_file())
    if not photos:
        raise InputError(f'--root is {root}: it holds no photo.')
    return random.Random(0).sample(photos, min(most, len(photos)))


def our_pipeline(size: int, rand_augment: str | None, cutout: float) -> Callable[[Path], torch.Tensor]:
    transform = train_transform({**IMAGENET, 'input_size': (3, size, size)}, rand_augment, cutout)
    normalize = Normalize(IMAGENET)  # in training, the device does this
    return lambda photo: normalize(transform(open_image(photo, at_least=transform.decode_size)))


def plain_pipeline(size: int, cutout: float) -> Callable[[Path], torch.Tensor]:
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandAugment(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET['mean'], IMAGENET['std']),
        ]
    )
    half = round(size * cutout / 2)

    def pipeline(photo: Path) -> torch.Tensor:
        pixels = transform(Image.open(photo).convert('RGB'))
        y, x = random.randrange(size), random.randrange(size)
        pixels[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return pixels

    return pipeline
