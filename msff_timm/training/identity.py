"""What makes two runs the same: their settings, labels and data."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from .config import TrainConfig
from .parsing import flatten
from .yaml12 import format_value

__all__ = ['about_run', 'change', 'differences', 'digest', 'fingerprint']

# Settings that a resumed run may change: they change neither training nor evaluation.
FREE: tuple[str, ...] = ('output', 'overwrite', 'resume', 'force', 'trackers', 'log_every', 'push_to', 'push_private')
FREE += ('checkpoint', 'data.root', 'data.image_root', 'data.workers', 'optim.max_per_process', 'optim.early_stop')
FREE += ('model.compile', 'model.channels_last')


def about_run(config: TrainConfig, label_names: list[str], data: dict[str, str]) -> dict:
    """Describes a run: all settings, the label names, and the fingerprints of the data."""
    return json.loads(json.dumps({'config': asdict(config), 'label_names': label_names, 'data': data}))


def differences(before: dict, now: dict) -> Iterator[str]:
    """Returns how two descriptions of a run differ, apart from settings that a resumed run may change."""
    before, now = dict(flatten(before)), dict(flatten(now))
    for key in {**before, **now}:
        setting = key.removeprefix('config.')
        if any(setting == free or setting.startswith(f'{free}.') for free in FREE):
            continue
        if before.get(key) != now.get(key):
            yield change(setting, before.get(key), now.get(key))


def digest(image_ids: list[str]) -> str:
    """Returns a digest of the names of images."""
    return hashlib.sha256(json.dumps(image_ids).encode()).hexdigest()[:16]


def fingerprint(targets: np.ndarray, image_ids: list[str]) -> str:
    """Returns a digest of the targets (N, K) and the names of the images."""
    digest = hashlib.sha256(repr(targets.shape).encode() + targets.tobytes())
    digest.update(json.dumps(image_ids).encode())
    return digest.hexdigest()[:16]


def change(key: str, before: object, now: object) -> str:
    """Describes the change of a value on one line."""
    return f'{key} was {format_value(before)} and is {format_value(now)}'
