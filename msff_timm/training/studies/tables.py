"""Tabulates training runs: metrics over seeds with intervals, cost, and published figures of the same data."""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from scipy import stats

from ...errors import InputError
from ...hub.card import HUB_CARDS
from ...metrics import SIZES
from ...results import ANNOTATION_METRICS, METRICS, Results
from ..commands import command_line
from ..report import basis_of

__all__ = ['BY_SIZE', 'TOP', 'Variant', 'add_published', 'paired_interval', 'read_paper', 'tabulate']

TOP = ('CF1', 'OF1', *ANNOTATION_METRICS)  # metrics of the top k labels of each image
BY_SIZE = {size: f'mAP_{size}' for size in SIZES}


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: Name of the row.
        model: Registered name of the model.
        args: Further arguments of the model.
        paper: Figures of the paper for this row, where it has any: `mAP`, `million_parameters`.
        settings: Training settings that replace the shared ones, e.g. `{'optim.lr': 0.002}`.
    """

    name: str
    model: str
    args: dict = field(default_factory=dict)
    paper: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the folder of its runs: the same in every table, so that the tables share runs."""
        own = [*sorted(self.args.items()), *sorted(self.settings.items())]
        args = [f'{key}={json.dumps(value, separators=(",", ":"))}' for key, value in own]
        return re.sub(r'[^\w.,=-]', '', '-'.join([self.model, *args]))


def read_paper() -> dict:
    """Reads the paper's figures: `table1`, ..., `fig5`, each with its place in the paper (`where`) and its `rows`."""
    return yaml.safe_load((HUB_CARDS / 'paper.yaml').read_text(encoding='utf-8'))


def read_published() -> dict:
    """Reads figures published by others than the paper, by data set: `source`, `columns`, `rows` and so on."""
    return yaml.safe_load((HUB_CARDS / 'published.yaml').read_text(encoding='utf-8'))


def add_published(table: dict) -> None:
    """Adds published figures on the same data; where there are none, all of the paper's Tables 1 to 3."""
    name, paper = table['data']['name'], read_paper()
    table['published'] = {key: part for key, part in read_published().items() if part['measured_on'] == name}
    parts = {key: paper[key] for key in ('table1', 'table2', 'table3')}
    same = {key: part for key, part in parts.items() if part['measured_on'] == name}
    table['paper'] = same if same or table['published'] else parts


def paired_interval(values: Sequence[float], reference: Sequence[float]) -> dict:
    """Compares values of the same seeds: mean difference with its 95 % interval (Student's t, paired).

    Returns:
        `mean`, `low` and `high`; a single seed has no interval.
    """
    low = high = None
    if len(values) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # of equal differences, which are common for N+
            low, high = map(float, stats.ttest_rel(values, reference).confidence_interval(0.95))
    return {'mean': float(np.subtract(values, reference).mean()), 'low': low, 'high': high}


def tabulate(variants: Sequence[tuple[Variant, Sequence[Results]]], reference: str, speed: dict) -> dict:
    """Makes the table of finished runs.

    Args:
        variants: Rows, each with the results of its runs: the same seeds in the same order.
        reference: Name of the row that the others are compared with.
        speed: Result of `study.measure_speed` for these rows.

    Returns:
        `rows`, each with `values` (of each metric by seed), `mean`, `std` (sample standard deviation; None for one
        seed), `difference` (of each metric, from the reference), `AP` (of each label by seed), cost, speed and the
        paper's figures; and the data, definitions and settings of the runs.

    Raises:
        InputError: The runs were not evaluated on the same images in the same way.
    """
    every = [run for _, runs in variants for run in runs]
    _check_alike([(variant.name, run) for variant, runs in variants for run in runs])
    first, top_k = every[0], every[0].top['k']
    keys = (*METRICS, *(f'{key}_top{top_k}' for key in TOP), *BY_SIZE.values())
    values: dict[str, dict[str, list[Any]]] = {
        variant.name: {key: [_metric(run, key) for run in runs] for key in keys} for variant, runs in variants
    }
    rows = []
    for (variant, runs), cost in zip(variants, speed['rows'], strict=True):
        known = {key: found for key, found in values[variant.name].items() if None not in found}
        differences = {key: paired_interval(found, values[reference][key]) for key, found in known.items()}
        rows.append(
            {
                'name': variant.name,
                'model': variant.model,
                'args': variant.args,
                'settings': variant.settings,
                **cost,
                'train_peak_bytes': max(run.peak_bytes or 0 for run in runs),
                'train_seconds': [run.seconds for run in runs],
                'values': known,
                'mean': {key: float(np.mean(found)) for key, found in known.items()},
                'std': {key: float(np.std(found, ddof=1)) if len(found) > 1 else None for key, found in known.items()},
                'difference': None if variant.name == reference else differences,
                'AP': {label: [run.labels[label]['AP'] for run in runs] for label in runs[0].labels},
                'paper': variant.paper,
            }
        )
    return {
        'reference': reference,
        'seeds': [_config(run)['seed'] for run in variants[0][1]],
        'rows': rows,
        'speed': {key: value for key, value in speed.items() if key != 'rows'},
        'data': first.data,
        **{key: getattr(first, key) for key in ('num_images', 'num_classes', 'num_labels_counted', 'definitions')},
        'basis': basis_of(first),
        'top_k': top_k,
        'num_labels_with_a_positive': first.top['num_labels'],
        'num_positives': {label: found['num_positives'] for label, found in first.labels.items()},
        'num_positives_by_size': first.num_positives_by_size,
        'weights': first.weights,
        'start': start_of([_config(run)['model'] for run in every]),
        'recipe': {
            'data': {**_config(first)['data'], 'root': None, 'image_root': None},  # paths of one machine
            'optim': _config(first)['optim'],
        },
        'command': command_line(),
        'trained_with': {
            key: _distinct([getattr(run, key) for run in every])
            for key in ('git_commit', 'git_dirty', 'devices', 'num_processes', 'mixed_precision', 'versions')
        },
    }


def start_of(models: Sequence[dict]) -> str:
    """Describes the weights that training started from, by the model settings of all runs."""
    model, backbones = models[0], {model.get('backbone_from') for model in models}
    if model.get('backbone_from'):
        return 'the backbone of one trained model' if len(backbones) == 1 else 'a backbone trained with the same seed'
    if model.get('backbone_pretrained') or model.get('init_from'):
        return "timm's weights of the backbone"
    return 'random weights'


def _metric(run: Results, key: str) -> float | None:
    if '_top' in key:
        return run.top[key.partition('_')[0]]
    size = key.removeprefix('mAP_')
    return run.mAP_by_size[size] if size in SIZES else run.metrics[key]


def _config(run: Results) -> dict:
    """Returns the settings of a run, which all results of training hold."""
    return run.config or {}


def _distinct(values: Sequence[object]) -> list:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _check_alike(runs: Sequence[tuple[str, Results]]) -> None:
    def evaluation(run: Results) -> dict:
        counts = {name: (label['num_positives'], label['num_negatives']) for name, label in run.labels.items()}
        same = {key: getattr(run, key) for key in ('data', 'num_images', 'definitions', 'weights')}
        return {**same, 'counts': counts, 'top_k': run.top['k']}

    (_, first), *others = runs
    for name, run in others:
        if evaluation(run) != evaluation(first):
            raise InputError(
                f'{name}, seed {_config(run)["seed"]}: not evaluated on the same images in the same way as'
                f' {runs[0][0]}, seed {_config(first)["seed"]}; remove its folder to train it again.'
            )
