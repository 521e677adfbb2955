"""Measures how many labels change when large JPEG files are decoded at reduced size, and the time that it saves."""

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench_common import check_above_0, check_at_least
from bench_data import find_photos
from msff_timm import hub
from msff_timm.data.images import open_image
from msff_timm.inference.decoding import REDUCED
from msff_timm.inference.logits import Preprocessing, compute_logits
from msff_timm.inference.predict import choose_thresholds
from msff_timm.labels import compute_probabilities


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--root', type=Path, required=True, help='folder with photos, subfolders included')
    parser.add_argument('--model', default=hub.DEFAULT_MODEL, help='registered name, folder or ORG/NAME')
    parser.add_argument('--photos', type=int, default=500, help='number of photos')
    parser.add_argument('--longer', type=int, default=4096, help='longer side of the JPEG files in pixels')
    parser.add_argument('--noise', type=float, default=4, help='standard deviation of their noise, of 255 levels')
    parser.add_argument('--factors', type=float, nargs='+', default=[1, 2, REDUCED], help='see REDUCED in decoding.py')


def run(options: argparse.Namespace) -> dict:
    """Compares full and reduced decoding on photos that are enlarged, made noisy and saved as JPEG of quality 90.

    The noise, which enlarging a photo does not add, is what decoding at full and at reduced size average differently.
    """
    check_at_least(options, photos=1, longer=64, factors=1)
    check_above_0(options, 'noise')
    model = hub.load(options.model)
    preprocessing = Preprocessing(model)
    height, width = preprocessing.input_size[1:]
    thresholds = torch.tensor(choose_thresholds(model))
    generator = np.random.default_rng(0)
    factors = [None, *options.factors]
    probabilities, seconds, sizes = {f: [] for f in factors}, {f: [] for f in factors}, {f: [] for f in factors}
    photos = find_photos(options.root, options.photos)
    for number, photo in enumerate(photos):
        content = enlarge(open_image(photo), options.longer, options.noise, generator)
        for factor in factors[number % len(factors) :] + factors[: number % len(factors)]:
            start = time.process_time()
            image = open_image(content, photo.name, factor and (round(factor * height), round(factor * width)))
            pixels = preprocessing.transform(image)
            seconds[factor].append(time.process_time() - start)
            sizes[factor].append(max(image.size))
            probabilities[factor].append(compute_probabilities(model, compute_logits(model, pixels[None]))[0])
    full = torch.stack(probabilities[None])
    results = {}
    for factor in options.factors:
        reduced = torch.stack(probabilities[factor])
        changed = (reduced > thresholds) != (full > thresholds)
        distance = (full - thresholds).abs()
        results[str(factor)] = {
            'labels_changed': int(changed.sum()),
            'images_changed': int(changed.any(1).sum()),
            'largest_difference': float((reduced - full).abs().max()),
            'mean_difference': float((reduced - full).abs().mean()),
            'largest_distance_of_a_changed_label': float(distance[changed].max()) if changed.any() else None,
            'share_of_time': float(np.median(np.divide(seconds[factor], seconds[None]))),
            'median_longer_side': float(np.median(sizes[factor])),
        }
    print(f'{options.model}, {len(photos)} photos of {options.longer} pixels, {full.numel()} decisions on labels:')
    for factor, values in results.items():
        print(
            f'decoded to at least {factor} x the input ({values["median_longer_side"]:.0f} pixels):'
            f' {values["labels_changed"]} labels of {values["images_changed"]} images change, probabilities by at most'
            f' {values["largest_difference"]:.3f}; {values["share_of_time"]:.0%} of the time'
        )
    return {
        'model': options.model,
        'num_photos': len(photos),
        'num_decisions': full.numel(),
        'longer': options.longer,
        'noise': options.noise,
        'milliseconds': 1000 * float(np.median(seconds[None])),
        'factors': results,
    }


def enlarge(image: Image.Image, longer: int, noise: float, generator: np.random.Generator) -> bytes:
    """Returns an enlarged and noisy photo as JPEG."""
    scale = longer / max(image.size)
    image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32)
    pixels = pixels + noise * generator.standard_normal(pixels.shape, np.float32)
    file = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
    return file.getvalue()
