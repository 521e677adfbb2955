"""Checks of what comes from elsewhere, before any of it is used: content against its digest, a model against itself."""

import contextlib
import functools
import math
import re
from pathlib import Path

import timm
import torch
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import safe_open
from timm.models._hub import load_model_config_from_path

__all__ = ['check_digest', 'check_model']

MOST_BYTES = 50_000_000  # of a config.json: of 80 labels it has 5,000
MOST_TENSORS = 10_000  # safetensors looks for one in time that grows with their number
LARGEST = 16_384  # number of a configuration that no tensor has to account for, a picture's side say
REPEATED = re.compile('depth|layers|blocks|repeat')  # arguments that tell how often a part is there
FOREIGN = re.compile('pretrained|checkpoint|cache_dir')  # arguments that would bring weights from elsewhere


def check_digest(path: str | Path) -> None:
    """Compares a file in huggingface_hub's cache with the digest that the Hub stated, which is the name it is kept by.

    huggingface_hub itself compares the size when it downloads, and no digest. Where the cache has no links (Windows
    without its developer mode) there is nothing to compare with.

    Raises:
        ValueError: They differ, then the file is taken out of the cache, so that the next try fetches it anew; or the
            Hub stated no digest.
    """
    path = Path(path)
    if not path.is_symlink():
        return
    kept = path.resolve()
    if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', kept.name):
        raise ValueError(f'{path.name}: the Hub states no digest to check it with, but {kept.name!r:.99}')
    found = _digest(kept, kept.stat().st_mtime_ns)
    if found != kept.name:
        with contextlib.suppress(OSError):  # a cache that only others may write to
            path.unlink()
            kept.unlink()
        raise ValueError(f'{path.name} is damaged: its digest is {found}, not {kept.name} as the Hub states. Try again')


@functools.lru_cache  # loading a model looks at its weights more than once
def _digest(path: Path, changed: int) -> str:
    """Computes what git, or for a longer name the large file storage, digests a file to."""
    if len(path.name) == 40:
        return git_hash(path.read_bytes())
    with path.open('rb') as file:
        return sha_fileobj(file).hex()


def check_model(folder: str | Path) -> None:
    """Looks whether `config.json` and `model.safetensors` describe one model that is what the weights make it.

    Memory is taken for the weights' header only, so that a configuration of huge numbers costs nothing.

    Raises:
        ValueError: The configuration is no timm model, asks for weights from elsewhere, or has values of wrong types or
            out of all proportion.
    """
    folder = Path(folder)
    if (folder / 'config.json').stat().st_size > MOST_BYTES:
        raise ValueError(f'config.json has more than {MOST_BYTES:,} bytes')
    try:
        pretrained_cfg, architecture, model_args = load_model_config_from_path(folder)
    except (AttributeError, TypeError, KeyError, IndexError) as e:
        raise ValueError(f'config.json is not what timm writes: {type(e).__name__}: {e}') from e
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(f'Unknown model {architecture!r:.99}')
    if not isinstance(model_args, dict):
        raise ValueError('model_args is no object of JSON')
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        names = list(file.keys())
        if len(names) > MOST_TENSORS:
            raise ValueError(f'model.safetensors holds {len(names):,} tensors, more than any model of timm')
        shapes = [tuple(file.get_slice(name).get_shape()) for name in names]
    _check_numbers(model_args, 'model_args', max(LARGEST, *map(max, filter(None, shapes)), 0), len(shapes))
    _check_preprocessing(pretrained_cfg)
    _check_labels(pretrained_cfg, model_args)
    with torch.device('meta'):
        model = timm.create_model(architecture, pretrained_cfg=pretrained_cfg, **model_args)
    wanted, there = sum(p.numel() for p in model.parameters()), sum(map(math.prod, shapes))
    if wanted > 2 * there:
        raise ValueError(f'config.json describes {wanted:,} parameters, model.safetensors holds {there:,}')


def _check_numbers(value: object, name: str, largest: int, most: int) -> None:
    """Refuses arguments that would make the model large beyond what its weights hold, or fetch weights."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if FOREIGN.search(key) and inner:
                raise ValueError(f'{name}.{key} asks for weights from elsewhere')
            _check_numbers(inner, f'{name}.{key}', most if REPEATED.search(key) else largest, most)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name, largest, most)
    elif isinstance(value, (int, float)) and not abs(value) <= largest:  # NaN is not, either
        raise ValueError(f'{name} is {value:.3g}, and nothing in model.safetensors is as large as that')


def _check_preprocessing(config: dict) -> None:
    """Refuses pictures that no memory holds, and what is no number."""
    channels = 3
    for key in ('input_size', 'test_input_size', 'min_input_size'):
        size = config.get(key)
        if size is not None:
            if len(size) != 3 or not all(type(side) is int and 1 <= side <= LARGEST for side in size):
                raise ValueError(f'{key} is not channels, height and width, of {LARGEST} at most')
            channels = size[0] if key == 'input_size' else channels
    for key in ('mean', 'std'):
        values = config.get(key)
        if values is not None:
            values = values if isinstance(values, (list, tuple)) else [values]
            if len(values) not in (1, channels) or not all(_is_between(value, -1e6, 1e6) for value in values):
                raise ValueError(f'{key} is not a number for each channel')
    for key in ('crop_pct', 'test_crop_pct'):
        # The picture's side is divided by it.
        if config.get(key) is not None and not _is_between(config[key], 0.1, 10):
            raise ValueError(f'{key} is not a share of the picture')


def _check_labels(config: dict, model_args: dict) -> None:
    names = config.get('label_names')
    num_classes = model_args.get('num_classes', config.get('num_classes'))
    if num_classes is not None and type(num_classes) is not int:
        raise ValueError('num_classes is no whole number')
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError('label_names is no list of text')
        if num_classes is not None and len(names) != num_classes:
            raise ValueError(f'{len(names)} label names for {num_classes} logits')


def _is_between(value: object, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high
