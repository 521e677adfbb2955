"""Checks of a saved model from elsewhere: its configuration has to fit its weights before a model is created."""

import math
import re
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from timm.models._hub import load_model_config_from_path

__all__ = ['check_model']

MAX_BYTES = 50_000_000  # size of config.json; with 80 labels it has 5,000
MAX_TENSORS = 10_000  # the time that safetensors takes to find a tensor grows with their number
MAX_NUMBER = 16_384  # largest number that needs no tensor of that size, e.g. the side of an image
MIN_SIDE = 32  # smallest image side of our models, see `layers.check_size`
REPEATED = re.compile('depth|layers|blocks|repeat')  # arguments that multiply a part of the model
LIMITS = ('max_queries',)  # arguments that limit another number, so that no tensor has their size
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
CROP_MODES = ('center', 'squash', 'border')  # timm treats any other value as the first
FOREIGN = re.compile('pretrained|checkpoint|cache_dir')  # arguments that would load other weights


def check_model(folder: str | Path) -> None:
    """Checks that `config.json` and `model.safetensors` in a folder describe the same model.

    Only the header of the weights is read, and the model is created without memory: huge numbers do no harm.

    Raises:
        ValueError: The configuration describes no timm model, loads other weights, or holds values of a wrong type or
            an implausible size.
    """
    folder = Path(folder)
    if (folder / 'config.json').stat().st_size > MAX_BYTES:
        raise ValueError(f'config.json has more than {MAX_BYTES:,} bytes')
    try:
        pretrained_cfg, architecture, model_args = load_model_config_from_path(folder)
    except (AttributeError, TypeError, KeyError, IndexError) as e:
        raise ValueError(f'config.json is not in the format of timm: {type(e).__name__}: {e}') from e
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(f'Unknown model {architecture!r:.99}')
    if not isinstance(model_args, dict):
        raise ValueError('model_args is no JSON object')
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        names = list(file.keys())
        if len(names) > MAX_TENSORS:
            raise ValueError(f'model.safetensors holds {len(names):,} tensors, more than any model of timm')
        shapes = [tuple(file.get_slice(name).get_shape()) for name in names]
    _check_numbers(model_args, 'model_args', max(MAX_NUMBER, *map(max, filter(None, shapes)), 0), len(shapes))
    _check_preprocessing(pretrained_cfg)
    num_classes = model_args.get('num_classes', pretrained_cfg.get('num_classes'))
    if num_classes is not None and type(num_classes) is not int:
        raise ValueError(f'num_classes is {num_classes!r:.99}: must be a whole number')
    label_names = pretrained_cfg.get('label_names')
    if label_names is not None:
        if not isinstance(label_names, list) or not all(isinstance(name, str) for name in label_names):
            raise ValueError('label_names must be a list of texts')
        # Names may repeat, as ImageNet's do.
        if num_classes is not None and len(label_names) != num_classes:
            raise ValueError(f'{len(label_names)} label names for {num_classes} logits')
    with torch.device('meta'):
        model = timm.create_model(architecture, pretrained_cfg=pretrained_cfg, **model_args)
    described, stored = sum(p.numel() for p in model.parameters()), sum(map(math.prod, shapes))
    if described > 2 * stored:
        raise ValueError(f'config.json describes {described:,} parameters, model.safetensors holds {stored:,}')
    size = pretrained_cfg.get('input_size')
    if size is not None and hasattr(model, 'backbone_args') and min(size[1:]) < MIN_SIDE:  # one of our models
        raise ValueError(f'input_size is {size[1]} x {size[2]} pixels: must be at least {MIN_SIDE} x {MIN_SIDE}')


def _check_numbers(value: object, name: str, largest: int, most: int) -> None:
    """Checks that arguments describe no larger model than the weights hold, and load no other weights."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in LIMITS:
                continue
            if FOREIGN.search(key) and inner:
                raise ValueError(f'{name}.{key} loads other weights')
            _check_numbers(inner, f'{name}.{key}', most if REPEATED.search(key) else largest, most)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name, largest, most)
    elif isinstance(value, (int, float)) and not abs(value) <= largest:  # catches NaN too
        raise ValueError(f'{name} is {value:.3g}, but nothing in model.safetensors is that large')


def _check_preprocessing(config: dict) -> None:
    """Checks that images fit into memory, and that timm can make a transform."""
    channels = 3
    for key in ('input_size', 'test_input_size', 'min_input_size'):
        size = config.get(key)
        if size is not None:
            sides = size if isinstance(size, (list, tuple)) else []
            if len(sides) != 3 or not all(type(side) is int and 1 <= side <= MAX_NUMBER for side in sides):
                raise ValueError(f'{key} must be channels, height and width, each at most {MAX_NUMBER}')
            channels = size[0] if key == 'input_size' else channels
    for key in ('mean', 'std'):
        values = config.get(key)
        if values is None:
            continue
        is_list = isinstance(values, (list, tuple)) and len(values) in (1, channels)
        if not is_list or not all(_is_between(value, -1e6, 1e6) for value in values):
            raise ValueError(f'{key} must be a list of {channels} numbers, one for each channel')
        if key == 'std' and min(values) <= 0:
            raise ValueError('std must be positive: images are divided by it')
    for key in ('crop_pct', 'test_crop_pct'):
        # The size of the image is divided by it.
        if config.get(key) is not None and not _is_between(config[key], 0.1, 10):
            raise ValueError(f'{key} is {config[key]!r:.99}: must be from 0.1 to 10')
    for key, choices in (('interpolation', INTERPOLATIONS), ('crop_mode', CROP_MODES)):
        value = config.get(key)
        if value is not None and value not in choices:
            raise ValueError(f'{key} is {value!r:.99}: must be one of {", ".join(choices)}')


def _is_between(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high
