"""The schema of `results.json`: the metrics of a model, and everything that they depend on."""

import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .errors import InputError, one_line
from .files import read_small, write_text
from .metrics import SIZES

__all__ = [
    'ANNOTATION_METRICS',
    'METRICS',
    'SIZE_BANDS',
    'TOP_K_METRICS',
    'Results',
    'pick_metrics',
    'shorten_path',
    'write_json',
]

METRICS = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
ANNOTATION_METRICS = ('P', 'R', 'F1', 'N+')  # as the literature of image annotation defines them
TOP_K_METRICS = (*METRICS[1:], *ANNOTATION_METRICS)
SIZE_BANDS = {size: band.text for size, band in SIZES.items()}
PACKAGES = ('timm', 'torch', 'torchvision', 'accelerate', 'datasets', 'numpy', 'pillow')
MOST_BYTES = 50_000_000
RENAMED = {'measures': 'metrics', 'raw_weights': 'model_weights'}  # former keys, in files of version 0.1.0 and before
TEXTS = ('label_names', 'label_columns', 'label_delimiter', 'ignore_labels')  # settings that are never paths


@dataclass(kw_only=True)
class Results:
    """Results of one model on one split, in percent.

    Fields that do not apply are None: those of training in the results of an evaluation, and the other way round.

    Attributes:
        model: Name of the model.
        num_parameters: Number of parameters.
        data: Name, split and the choices that define which images were evaluated; after training also `trained_on`.
        init_from: Model that training started from, and the labels that were kept.
        weights: Kind of the weights, e.g. 'exponential moving average'.
        epoch: Number of the epoch that the weights are from.
        input_size: Shape of the model's input (C, H, W).
        flip: True if probabilities are averaged over each image and its mirror image.
        labels_left_out: Labels of the data that the model does not know.
        label_map: Label of the model for each label of the data that has another name there.
        thresholds: Thresholds that were fitted to these images, for probabilities that are not calibrated; also the
            temperatures and biases that calibrate them.
        calibration: ECE, Brier score and reliability of `uncalibrated` and `calibrated` probabilities, see
            `msff_timm.calibration.measure`, and what they are `calibrated_by`.
        pos_weights: Weights of present labels in the loss.
        num_processes: Number of processes.
        mixed_precision: Mixed precision of Accelerate: no, fp16 or bf16.
        config: All settings of the command.
        mistakes: Worst false positives and misses.
        command: Command line.
        git_commit: Commit of the checkout; None outside of one.
        git_dirty: True if tracked files differ from that commit.
        devices: Name of the device of each process.
        metrics: The seven `METRICS`.
        top: The `TOP_K_METRICS`, with `k` and the number of labels with a positive, `num_labels`.
        mAP_by_size: mAP by size of the largest instance.
        num_positives_by_size: Number of positives of each size.
        mAP_interval_95: Bounds of the 95 % interval of mAP.
        definitions: Definition of mAP, threshold, unit and sizes.
        num_images: Number of images.
        num_classes: Number of labels.
        num_labels_counted: Number of labels that count in mAP.
        labels: AP, number of positives and number of negatives of each label.
        versions: Versions of the packages that compute the results.
        history: Loss and metrics of each epoch.
        unreadable: Message for each training image that could not be read.
        seconds: Duration of training.
        peak_bytes: Peak memory in bytes.
        model_weights: Epoch and metrics of the model weights; `metrics` are those of the EMA weights.
    """

    model: str
    num_parameters: int | None = None
    data: dict
    init_from: dict | None = None
    weights: str | None = None
    epoch: int | None = None
    input_size: list[int] | None = None
    flip: bool | None = None
    labels_left_out: list[str] | None = None
    label_map: dict[str, str] | None = None
    thresholds: dict | None = None
    calibration: dict | None = None
    pos_weights: list[float] | float | None = None
    num_processes: int | None = None
    mixed_precision: str | None = None
    config: dict | None = None
    mistakes: dict[str, list[dict]] | None = None
    command: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    devices: list[str] | None = None
    metrics: dict[str, float]
    top: dict
    mAP_by_size: dict[str, float | None]
    num_positives_by_size: dict[str, int | None]
    mAP_interval_95: Sequence[float] | None = None
    definitions: dict
    num_images: int
    num_classes: int
    num_labels_counted: int
    labels: dict[str, dict]
    versions: dict[str, str | None]
    history: list[dict] | None = None
    unreadable: list[str] | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    model_weights: dict | None = None

    @classmethod
    def from_metrics(
        cls, metrics: dict, label_names: Sequence[str], threshold: float | list[float] = 0.5, **context: Any
    ) -> 'Results':
        """Makes results from metrics.

        Args:
            metrics: Return value of `msff_timm.metrics.evaluate`.
            label_names: Label names in the order of the logits.
            threshold: Threshold of the metrics, or one for each label.
            **context: Other fields, `model` and `data` at least.
        """
        per_label = zip(label_names, metrics['AP'], metrics['num_positives'], metrics['num_negatives'], strict=True)
        interval = metrics.get('mAP_interval')
        k = metrics['top_k']
        return cls(
            **context,
            metrics=pick_metrics(metrics),
            top={
                'k': k,
                'num_labels': int((metrics['num_positives'] > 0).sum()),
                **{name: metrics[f'{name}_top{k}'] for name in TOP_K_METRICS},
            },
            mAP_by_size={size: _or_none(metrics.get(f'mAP_{size}', np.nan)) for size in SIZES},
            num_positives_by_size={size: metrics.get(f'num_positives_{size}') for size in SIZES},
            mAP_interval_95=None if interval is None or np.isnan(interval).any() else list(interval),
            definitions={
                'mAP': metrics['ap'],
                'threshold': threshold,
                'unit': 'percent',
                'sizes': f'largest instance {", ".join(SIZE_BANDS.values())} of the image',
            },
            num_images=metrics['num_images'],
            num_classes=len(label_names),
            num_labels_counted=metrics['num_labels_counted'],
            labels={
                name: {'AP': _or_none(ap), 'num_positives': int(positives), 'num_negatives': int(negatives)}
                for name, ap, positives, negatives in per_label
            },
            versions={
                'msff_timm': __version__,
                **{name: version(name) for name in PACKAGES},
                'python': platform.python_version(),
                'cuda': torch.version.cuda,
            },
        )

    def to_json(self, path: str | Path) -> None:
        """Writes the results in one step. Absolute paths are reduced to their last part."""
        content = asdict(self)
        content['model'] = shorten_path(self.model)
        content['config'] = _shorten_paths(self.config)
        if self.init_from:
            content['init_from']['model'] = shorten_path(self.init_from['model'])
        if self.command:
            content['command'] = shlex.join(map(shorten_path, shlex.split(self.command)))
        if self.unreadable:  # 'PATH: reason'
            content['unreadable'] = [
                ':'.join((shorten_path(path), *reason)) for path, *reason in (m.split(':') for m in self.unreadable)
            ]
        write_json(content, path)

    @classmethod
    def from_json(cls, path: str | Path) -> 'Results':
        """Reads results.

        Raises:
            InputError: The file cannot be read, or its version lacks a field.
        """
        try:
            content = json.loads(read_small(path, MOST_BYTES, 'results'))
        except (ValueError, RecursionError) as e:
            if isinstance(e, InputError):
                raise
            raise InputError(f'{path}: cannot be read as results ({one_line(e)}).') from None
        if not isinstance(content, dict):
            raise InputError(f'{path}: holds no JSON object; give a results.json that training or evaluation wrote.')
        return cls.from_dict(content, path)

    @classmethod
    def from_dict(cls, content: dict, source: str | Path) -> 'Results':
        """Reads results from the content of a file.

        Args:
            content: Fields by name.
            source: File that holds them, for the message.

        Raises:
            InputError: The version that wrote them lacks a field.
        """
        content = {RENAMED.get(key, key): value for key, value in content.items()}
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in needed if name not in content]:
            versions = content.get('versions')
            writer = versions.get('msff_timm') if isinstance(versions, dict) else None
            wrote = f'msff-timm {writer}' if writer else 'an unknown version of msff-timm'
            raise InputError(
                f'{source}: was written by {wrote}, and msff-timm {__version__} also needs {", ".join(missing)};'
                ' evaluate the model again.'
            )
        return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})


def pick_metrics(metrics: dict) -> dict[str, float]:
    """Returns only the seven `METRICS`."""
    return {name: metrics[name] for name in METRICS}


def write_json(content: dict, path: str | Path) -> None:
    """Writes a JSON file in one step."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def shorten_path(text: str) -> str:
    """Reduces an absolute path to its last part; `local-dir:` and `--key=` before it stay."""
    before, colon, path = text.rpartition('local-dir:')
    if not colon and text.startswith('--'):
        before, colon, path = text.partition('=')
    return before + colon + (Path(path).name or path) if os.path.isabs(path) else text


def _shorten_paths(value: object) -> object:
    if isinstance(value, dict):
        return {key: item if key in TEXTS else _shorten_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten_paths(item) for item in value]
    return shorten_path(value) if isinstance(value, str) else value


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
