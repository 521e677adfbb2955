"""Loading models from a folder, from the Hub or by a registered name."""

import json
from pathlib import Path

import timm
import torch.nn as nn
from huggingface_hub import constants
from timm.models import parse_model_name

from ..errors import InputError, one_line
from ..labels import check_label_names, relabel
from ..models.backbone import copy_backbone
from .check import check_model
from .errors import describe_error, is_hub_error
from .fetch import FILES, fetch
from .names import resolve
from .save import check_thresholds

__all__ = ['DEFAULT_MODEL', 'create', 'describe_failure', 'load', 'load_backbone', 'load_for']

DEFAULT_MODEL = 'msff_efficientnet_lite0'  # its weights are part of the package


def create(name: str, **model_args) -> nn.Module:
    """Creates a registered model as `timm.create_model` does.

    Raises:
        InputError: Weights that `model_args` ask for, e.g. those of the backbone, cannot be fetched.
    """
    try:
        return timm.create_model(name, **model_args)
    except OSError as e:
        arguments = ', '.join(f'{key}={value}' for key, value in model_args.items())
        raise InputError(
            f'{name} ({arguments}): weights cannot be fetched from {constants.ENDPOINT} ({describe_failure(e)}).'
            ' Fix the network, or start without pretrained weights.'
        ) from e


def load(name: str = DEFAULT_MODEL, cache_dir: str | Path | None = None, **model_args) -> nn.Module:
    """Loads a trained model for inference.

    Files from a folder or the Hub are checked before use. Weights are read from safetensors only: nothing is unpickled.

    Args:
        name: Registered model with pretrained weights, folder, or `ORG/NAME[@REVISION]` on the Hub, told apart as in
            `resolve`; `local-dir:FOLDER` and `hf-hub:ORG/NAME[@REVISION]` name the source. The default,
            `DEFAULT_MODEL`, needs no network.
        cache_dir: Folder for downloads, instead of huggingface_hub's cache.
        **model_args: Arguments of `timm.create_model`, which override those that the model was saved with. For other
            label names, pass `pretrained_cfg_overlay={'label_names': [...]}`.

    Returns:
        The model in evaluation mode. Its `pretrained_cfg` holds the `label_names`, the preprocessing and, for a model
        of the Hub, the commit (`hf_hub_id`). `model.thresholds` is a list of one probability for each label, or None
        if no thresholds are stored. `model.held_out` describes the validation images that its training held out, or is
        None.

    Raises:
        InputError: There is no such model, or its files cannot be read.
    """
    given, name = name, resolve(name)
    source, where = parse_model_name(name)
    if source == 'local-dir':
        for file_name in FILES:
            if not Path(where, file_name).is_file():
                raise InputError(f'{where}: holds no {file_name}; give a folder that training or timm saved.')
    overlay = dict(model_args.pop('pretrained_cfg_overlay', None) or {})
    try:
        path = name
        if source == 'hf-hub':
            repo_id = where.partition('@')[0]
            where = fetch(where, cache_dir=cache_dir)
            # timm reads the checked files, and sends no request of its own.
            path, overlay['hf_hub_id'] = f'local-dir:{where}', f'{repo_id}@{where.name}'
        if source:
            check_model(where)
        model = timm.create_model(
            path, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache_dir, **model_args
        ).eval()
        if overlay.get('label_names'):
            check_label_names(overlay['label_names'], model.num_classes)
        file = where if source else model.pretrained_cfg.get('file')
        config = _read_config(Path(file)) if file else {}
        model.thresholds = _read_thresholds(config, model.num_classes)
        model.held_out = (config.get('training') or {}).get('held_out')
        return model
    except Exception as e:  # a damaged file or an unreachable Hub: exceptions of many types
        if isinstance(e, InputError) and not source:
            raise
        origin = f' from {constants.ENDPOINT}' if source == 'hf-hub' else ''
        no_folder = 'is no existing folder, and ' if source == 'hf-hub' and given != name else ''
        raise InputError(f'{given}: {no_folder}cannot be loaded{origin} ({describe_failure(e)}).') from e


def load_for(
    name: str, label_names: list[str], keep_labels: bool = False, **model_args
) -> tuple[nn.Module, dict[str, str]]:
    """Loads a trained model as the start of training for a set of labels.

    Args:
        name: Name of the model, see `load`.
        label_names: Label names in the order of the logits.
        keep_labels: Keep what the model has learnt of the labels that its set and the new set share. If False, labels
            are kept only if both sets are equal.
        **model_args: Further arguments of `load`.

    Returns:
        The model, and the old name of each kept label by new name.

    Raises:
        InputError: See `load` and `msff_timm.labels.relabel`.
    """
    model = load(name, **model_args)
    return model, relabel(model, label_names, keep_shared=keep_labels)


def load_backbone(model: nn.Module, name: str) -> None:
    """Copies the weights of a trained model's backbone to the backbone of a new model.

    Args:
        model: New model: one of this package, or a plain timm model, of which all but the classifier is copied.
        name: Name of the trained model, see `load`; it may be a plain timm model too.

    Raises:
        InputError: The trained model cannot be loaded, or has another backbone.
    """
    trained = load(name)
    classifier = () if hasattr(model, 'backbone') else model.pretrained_cfg['classifier']
    leave_out = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    try:
        copy_backbone(*(getattr(each, 'backbone', each) for each in (trained, model)), leave_out)
    except ValueError as e:
        raise InputError(f'{name}: has another backbone than this model: {e}.') from None


def _read_config(path: Path) -> dict:
    """Reads config.json beside the weights. timm keeps only those keys of it that it knows."""
    path = (path if path.is_dir() else path.parent) / 'config.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def _read_thresholds(config: dict, num_classes: int) -> list[float] | None:
    thresholds = config.get('thresholds')
    if thresholds is None:
        return None
    check_thresholds(thresholds, config.get('num_classes', num_classes))
    per_class = list(map(float, thresholds['per_class']))
    # A model that is loaded with another number of labels has no thresholds.
    return per_class if len(per_class) == num_classes else None


def describe_failure(error: Exception) -> str:
    """Describes in one line, without the final period, an exception that may come from the Hub."""
    return (describe_error(error) if is_hub_error(error) else one_line(error)).removesuffix('.')
