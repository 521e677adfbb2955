"""Pointing game: how often the attention peak of a label lies in one of its boxes.

`python train/benchmarks/pointing.py --model local-dir:MSFF [--pooled local-dir:PLAIN] --data.root VOCdevkit`

The game is defined by Zhang et al., "Top-down Neural Attention by Excitation Backprop"
(https://arxiv.org/abs/1608.00507), section 4.2; here it has no tolerance. Attention is compared with Grad-CAM of a
plain model that pools its last map (https://arxiv.org/abs/1610.02391), the centre of the image, and a random point.
"""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version

import numpy as np
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from scipy.stats import binomtest
from torch.utils.data import DataLoader
from tqdm import tqdm

import msff_timm.data
from msff_timm import hub
from msff_timm.data.samples import Samples
from msff_timm.data.transforms import eval_transform
from msff_timm.data.voc_files import Box, VocBoxes, find_base, read_boxes
from msff_timm.errors import InputError, unknown
from msff_timm.files import check_file
from msff_timm.inference.attention import LAYERS, attention_maps, smooth_map
from msff_timm.inference.grad_cam import grad_cam
from msff_timm.labels import get_label_names
from msff_timm.results import PACKAGES, write_json
from msff_timm.training.commands import environment, run_command
from msff_timm.training.data_config import EvalDataConfig
from msff_timm.training.evaluate import reporting_faults, share_labels, some
from msff_timm.training.loaders import make_loader, share_cores
from msff_timm.training.parsing import parse
from msff_timm.training.report import markdown_table

DATA = ('voc2007', 'voc2012')
SCALES = ('fine', 'middle', 'coarse')
ALL, GRAD_CAM, CENTRE, UNIFORM = 'all scales', 'Grad-CAM', 'centre', 'uniform'
LEVEL = 1e-5  # relative tolerance within which pixels share the greatest value
CHUNK = 500  # resamples of the bootstrap computed at a time
DEFINITIONS = {
    'pairs': 'each image with each label that has a box there that is not difficult',
    'hit': 'the peak lies in such a box of the label (tolerance 0 px)',
    'ignored': 'the peak lies in a difficult box of the label and in no other: neither hit nor miss',
    'miss': 'anything else, including a map of zeros, which has no peak',
    'peak': 'greatest value of the map, resized bilinearly to the original image; if several pixels share it, the one'
    ' nearest to their mean',
    CENTRE: 'the pixel in the middle of the image',
    UNIFORM: 'expected rate of a pixel drawn uniformly from those not ignored',
    'interval_95': 'Wilson for a label; percentile bootstrap over images for the mean over labels and differences',
    'unit': 'percent',
}


@dataclass
class BoxDataConfig(EvalDataConfig):
    """Images with boxes.

    Args:
        name: Data set: voc2007 or voc2012, or your own data in that layout.
    """

    name: str = 'voc2012'

    def validate(self) -> None:
        super().validate()
        if self.name not in DATA:
            raise InputError(f'data.name is {self.name}: must be {" or ".join(DATA)}, which have boxes.')


@dataclass
class PointingConfig:
    """Settings of a pointing game.

    Args:
        model: Name of an MSFF model: `local-dir:FOLDER`, `hf-hub:ORG/NAME` or a registered one with weights.
        pooled: Name of a plain model for Grad-CAM; null for none.
        output: JSON file of the results; null to print them only.
        batch_size: Batch size.
        layers: Decoder layers whose attention is used: all (their mean) or last.
        bootstrap: Number of resamples of the images.
    """

    model: str
    pooled: str | None = None
    output: str | None = None
    batch_size: int = 32
    layers: str = 'all'
    bootstrap: int = 10_000
    data: BoxDataConfig = field(default_factory=BoxDataConfig)

    def validate(self) -> None:
        self.data.validate()
        for key in ('batch_size', 'bootstrap'):
            if getattr(self, key) < 1:
                raise InputError(f'{key} is {getattr(self, key)}: must be at least 1.')
        if self.layers not in LAYERS:
            raise unknown('layers', self.layers, LAYERS)
        if self.output is not None:
            check_file(self.output, 'output')


# From images (B, C, H, W) to the scales (B, n, H_i, W_i) of each map, by the name of the map
MapsOf = Callable[[torch.Tensor], dict[str, list[torch.Tensor]]]


def main() -> None:
    config = parse(PointingConfig, sys.argv[1:])
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise InputError(
            f'started in {accelerator.num_processes} processes: start it with python train/benchmarks/pointing.py.'
        )
    share_cores(accelerator, config.data.workers)
    made_with = environment(accelerator)

    # Models, images, boxes and shared labels
    names = [config.model] + ([config.pooled] if config.pooled else [])
    models = [load_model(name).to(accelerator.device) for name in names]
    data = config.data
    dataset = data.load(data.split, data.size, image_size=0)
    for line in msff_timm.data.notes(dataset):
        print(line)
    of_data = msff_timm.data.label_names(dataset)
    shared = [
        share_labels(name, model.num_classes, get_label_names(model), of_data)
        for name, model in zip(names, models, strict=True)
    ]
    labels = [label for label in of_data if all(label in of_model.names for of_model in shared)]
    if not labels:
        raise InputError(f'{config.model} and {config.pooled} have no label of the data in common ({some(of_data)}).')
    columns = [[of_model.columns[of_model.names.index(label)] for label in labels] for of_model in shared]
    folder = find_base(data.name.removeprefix('voc'), data.root) / 'Annotations'
    boxes = [read_boxes(folder / f'{image_id}.xml') for image_id in dataset['image_id'][:]]
    num_pairs = int(pairs(boxes, labels).sum())
    if not num_pairs:
        raise InputError(f'{data.root}: no image of {data.split} has a box of a label of the models.')

    # Outcomes
    makers = [partial(attention_by_scale, models[0], columns[0], config.layers)]
    if config.pooled:
        makers.append(lambda images: {GRAD_CAM: [grad_cam(models[1], images, columns[1])]})
    outcomes, without_peak = {}, {}
    for name, model, maps_of in zip(names, models, makers, strict=True):
        data_config = timm.data.resolve_input_data_config(model)
        loader = make_loader(Samples(dataset, eval_transform(data_config)), config.batch_size, data.workers)
        found, without = point(loader, maps_of, boxes, labels, accelerator.device, name)
        outcomes |= found
        without_peak |= without
    outcomes |= base_rates(boxes, labels)

    # Rates
    draws = np.random.default_rng(0).multinomial(len(boxes), np.full(len(boxes), 1 / len(boxes)), size=config.bootstrap)
    games = {name: summarize(outcome, labels, draws, name != UNIFORM) for name, outcome in outcomes.items()}
    for name, number in without_peak.items():
        games[name]['num_without_peak'] = number
    differences = {
        f'{ALL} - {name}': difference(outcomes[ALL], outcome, draws)
        for name, outcome in outcomes.items()
        if name != ALL
    }
    title = data.title or data.name
    print(f'{config.model} on {title} {data.split}: {len(boxes)} images, {num_pairs} image-label pairs.')
    print('\n'.join(table(games, labels)))
    if config.output:
        run = {
            **made_with,
            'model': config.model,
            'pooled': config.pooled,
            'data': data.definition(data.split),
            'input_sizes': {
                name: list(timm.data.resolve_input_data_config(model)['input_size'])
                for name, model in zip(names, models, strict=True)
            },
            'definitions': DEFINITIONS,
            'num_images': len(boxes),
            'num_pairs': num_pairs,
            'labels_left_out': [label for label in of_data if label not in labels],
            'pointing': games,
            'differences': differences,
            'versions': {
                'msff_timm': msff_timm.__version__,
                **{name: version(name) for name in PACKAGES},
                'python': platform.python_version(),
            },
            'config': asdict(config),
        }
        with reporting_faults(config.output):
            write_json(run, config.output)


def load_model(name: str) -> nn.Module:
    """Loads a model that sees the whole image, so that its maps cover the image.

    Raises:
        InputError: The model cannot be loaded, or it crops images.
    """
    model = hub.load(name)
    data_config = timm.data.resolve_input_data_config(model)
    if data_config['crop_mode'] != 'squash' or data_config['crop_pct'] != 1:
        crop = f'crop_mode {data_config["crop_mode"]}, crop_pct {data_config["crop_pct"]:g}'
        raise InputError(
            f'{name}: crops images ({crop}); give a model trained by train.py, which resizes the whole image.'
        )
    return model


def attention_by_scale(
    model: nn.Module, columns: Sequence[int], layers: str, images: torch.Tensor
) -> dict[str, list[torch.Tensor]]:
    """Computes the attention of labels, over all scales and for each of MSFF's."""
    _, maps = attention_maps(model, images, columns, layers)
    names = SCALES if len(maps) > 1 else ()  # Query2Label has one scale
    return {ALL: maps} | {name: [of_scale] for name, of_scale in zip(names, maps, strict=False)}


def point(
    loader: DataLoader,
    maps_of: MapsOf,
    boxes: Sequence[VocBoxes],
    labels: Sequence[str],
    device: torch.device,
    name: str,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Plays the game with a model.

    Args:
        loader: Loader of all images in order.
        maps_of: Function that computes the maps of a batch.
        boxes: Boxes of each of the N images.
        labels: Names of the K labels of the maps.
        device: Device of the model.
        name: Name of the model, which the progress bar shows.

    Returns:
        Outcomes (N, K) by the name of the map: 1 for a hit, 0 for a miss, NaN for neither; and the number of maps
        without a peak, by name.
    """
    outcomes: dict[str, np.ndarray] = {}
    without_peak: dict[str, int] = {}
    for batch in tqdm(loader, name, disable=None):
        maps = maps_of(batch['image'].to(device))
        for row, index in enumerate(batch['index'].tolist()):
            for label, label_name in enumerate(labels):
                if label_name not in boxes[index].easy:
                    continue
                grid = outcome_of_pixels(boxes[index], label_name)
                for of, scales in maps.items():
                    outcome = outcomes.setdefault(of, np.full((len(boxes), len(labels)), np.nan))
                    without_peak.setdefault(of, 0)
                    of_label = [scale[row, label].cpu() for scale in scales]
                    if all(scale.any() for scale in of_label):
                        outcome[index, label] = grid[peak(smooth_map(of_label, grid.shape))]
                    else:
                        outcome[index, label] = 0
                        without_peak[of] += 1
    return outcomes, without_peak


def peak(heat: torch.Tensor) -> tuple[int, int]:
    """Returns the row and column of the greatest value of a map (H, W).

    A resized map is constant beyond the centres of its outer cells. If several pixels share the greatest value, the one
    nearest to their mean is the peak; the first one would lie at the edge of the image.
    """
    places = (heat >= heat.max() * (1 - LEVEL)).nonzero()
    distances = (places - places.double().mean(0)).square().sum(1)
    row, column = places[distances.argmin()].tolist()
    return row, column


def outcome_of_pixels(boxes: VocBoxes, label_name: str) -> np.ndarray:
    """Returns the outcome of a peak at each pixel (H, W): 1 for a hit, 0 for a miss, NaN for neither."""
    outcome = np.zeros((boxes.height, boxes.width), np.float32)
    for box in boxes.difficult.get(label_name, ()):
        outcome[_inside(box)] = np.nan
    for box in boxes.easy.get(label_name, ()):
        outcome[_inside(box)] = 1
    return outcome


def _inside(box: Box) -> tuple[slice, slice]:
    """Returns the slices of rows and columns whose pixel centres lie in a box."""
    left, top, right, bottom = (math.ceil(side - 0.5) for side in box)
    return slice(top, bottom), slice(left, right)


def base_rates(boxes: Sequence[VocBoxes], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the outcomes (N, K) of the centre, and the expected outcomes of a uniformly drawn pixel."""
    outcomes = {name: np.full((len(boxes), len(labels)), np.nan) for name in (CENTRE, UNIFORM)}
    for index, label in np.argwhere(pairs(boxes, labels)):
        grid = outcome_of_pixels(boxes[index], labels[label])
        outcomes[CENTRE][index, label] = grid[grid.shape[0] // 2, grid.shape[1] // 2]
        outcomes[UNIFORM][index, label] = np.nanmean(grid)
    return outcomes


def pairs(boxes: Sequence[VocBoxes], labels: Sequence[str]) -> np.ndarray:
    """Returns a mask (N, K) of the image-label pairs in the game."""
    return np.array([[label in of_image.easy for label in labels] for of_image in boxes])


def summarize(outcomes: np.ndarray, labels: Sequence[str], draws: np.ndarray, counts: bool) -> dict:
    """Computes hit rates in percent, for each label and over labels.

    Args:
        outcomes: Outcomes (N, K).
        labels: Names of the K labels.
        draws: Count of each image in each resample (R, N).
        counts: True if outcomes are hits and misses, not expected values.
    """
    number, hits = np.isfinite(outcomes).sum(0), np.nansum(outcomes, 0)
    per_label = {}
    for label, name in enumerate(labels):
        rate = interval = None
        if number[label]:
            rate = 100 * float(hits[label] / number[label])
        if number[label] and counts:
            ends = binomtest(int(hits[label]), int(number[label])).proportion_ci(method='wilson')
            interval = [100 * ends.low, 100 * ends.high]
        per_label[name] = {'rate': rate, 'interval_95': interval, 'num_counted': int(number[label])}
        if counts:
            per_label[name]['num_hits'] = int(hits[label])
    return {
        'mean_over_labels': 100 * float(means(outcomes)[0]),
        'interval_95': _interval(means(outcomes, draws)),
        'over_all_pairs': 100 * float(hits.sum() / number.sum()),
        'num_counted': int(number.sum()),
        'labels': per_label,
    }


def difference(one: np.ndarray, other: np.ndarray, draws: np.ndarray) -> dict:
    """Computes the difference of two methods in the mean over labels, on the same images, in percentage points."""
    return {
        'mean_over_labels': 100 * float(means(one)[0] - means(other)[0]),
        'interval_95': _interval(means(one, draws) - means(other, draws)),
    }


def means(outcomes: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
    """Computes the mean rate over labels of each resample (R,), or of all images (1,) if there are no draws.

    The mean leaves out labels without an image in the resample.
    """
    draws = np.ones((1, len(outcomes))) if draws is None else draws
    hits, counted = np.nan_to_num(outcomes), np.isfinite(outcomes).astype(float)
    found = []
    for start in range(0, len(draws), CHUNK):
        some_draws = draws[start : start + CHUNK].astype(float)
        number = some_draws @ counted
        rates = np.divide(some_draws @ hits, number, out=np.full_like(number, np.nan), where=number > 0)
        found.append(np.nanmean(rates, axis=1))
    return np.concatenate(found)


def _interval(values: np.ndarray) -> list[float]:
    return (100 * np.nanpercentile(values, (2.5, 97.5))).tolist()


def table(games: dict[str, dict], labels: Sequence[str]) -> list[str]:
    """Formats the rates in percent as a Markdown table, with the interval of the mean over labels."""

    def cell(rate: float | None) -> str:
        return '–' if rate is None else f'{rate:.1f}'

    rows = [[name, *(cell(game['labels'][name]['rate']) for game in games.values())] for name in labels]
    rows.append(['mean over labels', *(cell(game['mean_over_labels']) for game in games.values())])
    ends = (game['interval_95'] for game in games.values())
    rows.append(['95 % interval', *(f'{low:.1f} to {high:.1f}' for low, high in ends)])
    return list(markdown_table(['label', *games], rows))


if __name__ == '__main__':
    run_command(main)
