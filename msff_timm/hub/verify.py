"""Checks of what comes from elsewhere, before any of it is used: content against its digest, a model against itself."""

import contextlib
import functools
import hashlib
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from safetensors import safe_open
from timm.models._hub import download_from_hf, load_model_config_from_path

__all__ = ['check_digest', 'check_model', 'download', 'fetch']

log = logging.getLogger(__name__)

MOST_BYTES = 50_000_000  # of a config.json: of 80 labels it has 5,000
MOST_TENSORS = 10_000  # safetensors looks for one in time that grows with their number
LARGEST = 16_384  # number of a configuration that no tensor has to account for, an image's side say
SMALLEST = 32  # side of the images of our models, as `layers.check_size` has it
REPEATED = re.compile('depth|layers|blocks|repeat')  # arguments that tell how often a part is there
BOUNDS = ('max_queries',)  # arguments that only bound what others ask for: no tensor accounts for them
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
CROP_MODES = ('center', 'squash', 'border')  # timm takes any other for the first
FOREIGN = re.compile('pretrained|checkpoint|cache_dir')  # arguments that would bring weights from elsewhere


TOLD: set[Path] = set()  # files that a line has told of already


def fetch(hub_id: str, names: Sequence[str], cache_dir: str | Path | None = None) -> Path:
    """Fetches files of one commit from the Hub, and checks their digests where the Hub states them.

    huggingface.co states a digest of each file. A mirror or proxy may state something else; then one line tells that
    nothing was compared.

    Args:
        hub_id: `ORG/NAME[@REVISION]`.
        names: Names of the files.
        cache_dir: Folder for what is downloaded, in place of huggingface_hub's.

    Returns:
        The folder of that commit in the cache, which is named by it.

    Raises:
        ValueError: The Hub states what leads out of the cache, or another digest than the content's.
    """
    repo_id, unchecked = hub_id.partition('@')[0], []
    for name in names:
        path = download(hub_id, name, cache_dir)
        if not check_digest(path) and path not in TOLD:
            TOLD.add(path)
            unchecked.append(name)
        folder = path.parents[name.count('/')]
        hub_id = f'{repo_id}@{folder.name}'
    if unchecked:
        log.warning(
            '%s: %s states no digest of %s: the content was compared with none.',
            repo_id,
            constants.ENDPOINT,
            ' and '.join(unchecked),
        )
    return folder


def download(hub_id: str, name: str, cache_dir: str | Path | None = None) -> Path:
    """Downloads one file of the Hub as timm does, after looking at what the Hub states of it.

    huggingface_hub makes names of files of the ETag and the commit, and looks at neither.
    """
    original = file_download.get_hf_file_metadata

    def checked(*args, **kwargs):
        try:
            metadata = original(*args, **kwargs)
        except HfHubHTTPError as e:  # of a file that is not there, too, the commit is kept
            _check_stated('commit', e.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))
            raise
        _check_stated('ETag', metadata.etag)
        _check_stated('commit', metadata.commit_hash)
        return metadata

    # In its place: of two requests, one before and one by huggingface_hub, the second could be answered otherwise.
    file_download.get_hf_file_metadata = checked
    try:
        return Path(download_from_hf(hub_id, name, cache_dir))
    finally:
        file_download.get_hf_file_metadata = original


def _check_stated(what: str, value: str | None) -> None:
    if value is not None and (not re.fullmatch(r'[\w.+=~@%-]{1,128}', value, re.ASCII) or set(value) == {'.'}):
        raise ValueError(
            f'the Hub at {constants.ENDPOINT} states an {what} that cannot be the name of a file: {value!r:.99}'
        )


def check_digest(path: str | Path) -> bool:
    """Compares a file in huggingface_hub's cache with the digest that the Hub stated, which is the name it is kept by.

    huggingface_hub itself compares the size when it downloads, and no digest. Where the cache has no links (Windows
    without its developer mode) there is nothing to compare with.

    Returns:
        Whether the Hub, or a mirror of it, has stated a digest; some state other tags.

    Raises:
        ValueError: They differ, then the file is taken out of the cache, so that the next try fetches it anew; or
            huggingface.co itself stated no digest.
    """
    path = Path(path)
    if not path.is_symlink():
        return True
    kept = path.resolve()
    stated = kept.name.lower()
    if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', stated):
        if urlsplit(constants.ENDPOINT).hostname == 'huggingface.co':
            raise ValueError(f'{path.name}: the Hub states no digest to check it with, but {kept.name!r:.99}')
        return False
    found = _digests(kept, kept.stat().st_mtime_ns)
    if stated not in found:
        with contextlib.suppress(OSError):  # a cache that only others may write to
            path.unlink()
            kept.unlink()
        raise ValueError(f'{path.name} is damaged: its digest is {found[0]}, not {stated} as the Hub states. Try again')
    return True


@functools.lru_cache  # loading a model looks at its weights more than once
def _digests(path: Path, changed: int) -> tuple[str, ...]:
    """Computes what git, for a longer name the large file storage, and proxies that keep files digest a file to."""
    if len(path.name) == 40:
        content = path.read_bytes()
        return git_hash(content), hashlib.sha1(content, usedforsecurity=False).hexdigest()
    with path.open('rb') as file:
        return (sha_fileobj(file).hex(),)


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
    size = pretrained_cfg.get('input_size')
    if size is not None and hasattr(model, 'backbone_args') and min(size[1:]) < SMALLEST:  # one of ours
        raise ValueError(f'input_size is {size[1]} x {size[2]} pixels: {SMALLEST} x {SMALLEST} is the least')


def _check_numbers(value: object, name: str, largest: int, most: int) -> None:
    """Refuses arguments that would make the model large beyond what its weights hold, or fetch weights."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in BOUNDS:
                continue
            if FOREIGN.search(key) and inner:
                raise ValueError(f'{name}.{key} asks for weights from elsewhere')
            _check_numbers(inner, f'{name}.{key}', most if REPEATED.search(key) else largest, most)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name, largest, most)
    elif isinstance(value, (int, float)) and not abs(value) <= largest:  # NaN is not, either
        raise ValueError(f'{name} is {value:.3g}, and nothing in model.safetensors is as large as that')


def _check_preprocessing(config: dict) -> None:
    """Refuses images that no memory holds, and what timm cannot make a transform of."""
    channels = 3
    for key in ('input_size', 'test_input_size', 'min_input_size'):
        size = config.get(key)
        if size is not None:
            sides = size if isinstance(size, (list, tuple)) else []
            if len(sides) != 3 or not all(type(side) is int and 1 <= side <= LARGEST for side in sides):
                raise ValueError(f'{key} is not channels, height and width, of {LARGEST} at most')
            channels = size[0] if key == 'input_size' else channels
    for key in ('mean', 'std'):
        values = config.get(key)
        if values is None:
            continue
        is_list = isinstance(values, (list, tuple)) and len(values) in (1, channels)
        if not is_list or not all(_is_between(value, -1e6, 1e6) for value in values):
            raise ValueError(f'{key} is not a number for each channel: give a list of {channels}')
        if key == 'std' and min(values) <= 0:
            raise ValueError('std holds a number that is not above 0: images are divided by it')
    for key in ('crop_pct', 'test_crop_pct'):
        # The image's side is divided by it.
        if config.get(key) is not None and not _is_between(config[key], 0.1, 10):
            raise ValueError(f'{key} is not a share of the image')
    for key, choices in (('interpolation', INTERPOLATIONS), ('crop_mode', CROP_MODES)):
        value = config.get(key)
        if value is not None and value not in choices:
            raise ValueError(f'{key} is {value!r:.99}: must be one of {", ".join(choices)}')


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
