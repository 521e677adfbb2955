"""What a run leaves behind: results with all that they were measured on, and the training curve."""

import dataclasses
import json
import os
import platform
from pathlib import Path

import accelerate
import numpy as np
import timm
import torch
from matplotlib.figure import Figure

import msff_timm
from msff_timm.metrics import SIZES

__all__ = ['describe', 'plot_curves', 'results', 'summary', 'write_json']

SUMMARY = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')


def results(measures: dict, label_names: list[str], threshold: float | list[float] = 0.5, **context) -> dict:
    """Makes the results of one model: measures in percent with their definitions, per label, and what they stand on.

    Args:
        measures: What `msff_timm.metrics.evaluate` gives.
        label_names: Names in the order of the logits.
        threshold: That it was measured at.
        **context: What else was measured on or with: data, split, settings, history.
    """
    per_label = zip(label_names, measures['AP'], measures['num_positives'], strict=True)
    return {
        **context,
        'measures': summary(measures),
        'top3': {name: measures[f'{name}_top3'] for name in SUMMARY[1:]},
        **optional(measures),
        'definitions': {
            'mAP': measures['ap'],
            'threshold': threshold,
            'unit': 'percent',
            'sizes': 'largest instance under 1 %, from 1 % to under 10 %, from 10 % of the image',
        },
        'num_images': measures['num_images'],
        'num_classes': len(label_names),
        'num_classes_with_positives': measures['num_classes_with_positives'],
        'labels': {
            name: {'AP': None if np.isnan(ap) else float(ap), 'num_positives': int(positives)}
            for name, ap, positives in per_label
        },
        'versions': {
            'msff_timm': msff_timm.__version__,
            'timm': timm.__version__,
            'torch': torch.__version__,
            'accelerate': accelerate.__version__,
            'python': platform.python_version(),
        },
    }


def optional(measures: dict) -> dict:
    """Picks mAP by size and its interval, where they were measured; what is not defined is null."""
    sizes = {size: measures.get(f'mAP_{size}', np.nan) for size in SIZES}
    found = {'mAP_by_size': {size: None if np.isnan(value) else value for size, value in sizes.items()}}
    if 'mAP_interval' in measures:
        found['mAP_interval_95'] = measures['mAP_interval']
    return found


def summary(measures: dict) -> dict[str, float]:
    """Picks the seven measures that are one number each."""
    return {name: measures[name] for name in SUMMARY}


def describe(measures: dict, threshold: float | list[float] = 0.5) -> str:
    """Puts the measures into one line, with the definition and the counts that they stand on."""
    values = '  '.join(f'{name} {value:.2f}' for name, value in summary(measures).items())
    counted, of = measures['num_classes_with_positives'], len(measures['AP'])
    classes = f'{counted} classes' if counted == of else f'{counted} of {of} classes'
    if measures['few_positives']:
        classes += f', {len(measures["few_positives"])} of them with fewer than 5 positives'
    if 'mAP_interval' in measures:
        low, high = measures['mAP_interval']
        values = f'{values}  mAP 95 % interval {low:.2f} to {high:.2f}'
    named = f'threshold {threshold:g}' if isinstance(threshold, float) else "the model's own thresholds"
    return f'{values}  ({measures["num_images"]} images, {classes}, mAP {measures["ap"]}, {named})'


def write_json(content: dict, path: str | Path) -> None:
    """Writes a JSON file in one step, so that a reader never sees half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.saving')
    temporary.write_text(json.dumps(content, indent=2, default=_plain) + '\n', encoding='utf-8')
    os.replace(temporary, path)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    raise TypeError(f'{type(value).__name__} does not go into JSON')


def plot_curves(history: list[dict], path: str | Path) -> None:
    """Draws the loss and the averaged weights' measures over the epochs."""
    epochs = [entry['epoch'] for entry in history]
    figure = Figure(figsize=(10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry['loss'] for entry in history], 'o-')
    left.set(xlabel='epoch', ylabel='training loss (mean over labels)')
    for name in ('mAP', 'CF1', 'OF1'):
        right.plot(epochs, [entry[name] for entry in history], 'o-', label=name)
    right.set(xlabel='epoch', ylabel='percent (averaged weights)')
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
