"""Saving to and loading from timm's Hub format: `model.safetensors` and `config.json` in one folder."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import timm
import torch.nn as nn
from huggingface_hub import constants
from timm.models import get_model_args, parse_model_name, save_for_hf
from timm.models._hub import download_from_hf

from .errors import InputError, unknown
from .labels import relabel

__all__ = ['create', 'list_models', 'load', 'load_for', 'save', 'set_thresholds']


def list_models() -> list[str]:
    """Lists the models of this package."""
    return timm.list_models(module=['msff', 'peers'])


def save(
    model: nn.Module,
    folder: str | Path,
    label_names: list[str],
    data_config: dict,
    training: dict | None = None,
    thresholds: dict | None = None,
) -> None:
    """Saves a model so that `timm.create_model(f'local-dir:{folder}', pretrained=True)` gives it back.

    Each file is replaced in one step, so a reader never sees half of one.

    Args:
        model: A timm model, as `timm.create_model` made it.
        folder: Made when it is missing.
        label_names: Names in the order of the logits.
        data_config: Preprocessing, as `timm.data.resolve_model_data_config` gives it.
        training: What the model was trained with, its transforms say: JSON values.
        thresholds: As for `set_thresholds`.

    Raises:
        ValueError: Label names repeat, or their number is not the number of logits.
    """
    if len(set(label_names)) != len(label_names) or len(label_names) != model.num_classes:
        raise ValueError(
            f'{len(label_names)} label names, {len(set(label_names))} of them distinct, for {model.num_classes} logits.'
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.saving-') as temporary:
        save_for_hf(
            model,
            temporary,
            model_config={
                'label_names': list(label_names),
                'problem_type': 'multi_label_classification',
                **({'training': training} if training else {}),
                **({'thresholds': thresholds} if thresholds else {}),
            },
            # The saved weights hold the backbone's: whoever creates the model from this file fetches nothing else.
            model_args={'backbone_pretrained': False} if 'backbone_pretrained' in get_model_args(model) else None,
            safe_serialization=True,
            data_config=data_config,
        )
        # safetensors leaves its file to the owner alone, whatever the umask says.
        shutil.copymode(Path(temporary, 'config.json'), Path(temporary, 'model.safetensors'))
        for name in ('model.safetensors', 'config.json'):
            os.replace(Path(temporary, name), folder / name)


def set_thresholds(name: str, thresholds: dict) -> Path:
    """Stores thresholds with a saved model; `load` gives them to the model, and `predict` uses them.

    Args:
        name: `local-dir:FOLDER`.
        thresholds: `per_class`, a list in the order of the logits, and whatever tells how it was found.

    Returns:
        The file.
    """
    path = Path(name.removeprefix('local-dir:'), 'config.json')
    config = {**json.loads(path.read_text(encoding='utf-8')), 'thresholds': thresholds}
    temporary = path.with_name('.config.json.saving')
    temporary.write_text(json.dumps(config, indent=2), encoding='utf-8')
    os.replace(temporary, path)
    return path


def create(name: str, **model_args) -> nn.Module:
    """Creates a registered model as timm does.

    Raises:
        InputError: Weights that `model_args` ask for, the backbone's say, cannot be fetched.
    """
    try:
        return timm.create_model(name, **model_args)
    except OSError as e:
        asked = ', '.join(f'{key}={value}' for key, value in model_args.items())
        raise InputError(
            f'{name} ({asked}): weights cannot be fetched from {constants.ENDPOINT} ({_reason(e)})'
            ' Mend the network, or start without them.'
        ) from e


def load(name: str, **model_args) -> nn.Module:
    """Loads a trained model for inference.

    Args:
        name: `local-dir:FOLDER`, `hf-hub:ORG/NAME[@REVISION]`, or a registered model with pretrained weights.
        **model_args: As for `timm.create_model`, in place of those that the model was saved with.

    Returns:
        The model in evaluation mode; `model.pretrained_cfg` holds its `label_names` and preprocessing, and
        `model.thresholds` a probability for each label, where some were stored, or None.

    Raises:
        InputError: There is no such model, or it has no weights that can be read.
    """
    try:
        source, where = parse_model_name(name)
    except ValueError as e:
        raise InputError(str(e)) from None
    overlay = None
    if source == 'local-dir':
        for file_name in ('config.json', 'model.safetensors'):
            if not Path(where, file_name).is_file():
                raise InputError(f'{where}: holds no {file_name}; give a folder that training or timm saved.')
    elif source == 'hf-hub':
        # Only safetensors are asked for: timm would fall back to a pickle.
        overlay = {'hf_hub_filename': 'model.safetensors'}
    elif not timm.is_model(name.partition('.')[0]):
        raise unknown('model', name, list_models())
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **model_args).eval()
        model.thresholds = _stored_thresholds(source, where, model.num_classes)
        return model
    except InputError:
        raise
    except Exception as e:
        # A damaged config.json or weights file and an unreachable Hub show themselves in many types of exception.
        origin = f' from {constants.ENDPOINT}' if source == 'hf-hub' else ''
        raise InputError(f'{name}: cannot be loaded{origin} ({_reason(e)})') from e


def load_for(
    name: str, label_names: list[str], keep_labels: bool = False, **model_args
) -> tuple[nn.Module, dict[str, str]]:
    """Loads a trained model to be trained on: with the labels that are wanted now.

    Args:
        name: As for `load`.
        label_names: In the order of the logits.
        keep_labels: Where the model has other labels, keep what it has learnt of those that both sets share.
        **model_args: As for `load`.

    Returns:
        The model, and the old name of each label whose embedding and classifier it keeps.

    Raises:
        InputError: As `load` and `msff_timm.labels.relabel` do.
    """
    model = load(name, **model_args)
    if keep_labels or model.pretrained_cfg.get('label_names') == label_names:
        return model, relabel(model, label_names)
    model.reset_classifier(len(label_names))
    return model, {}


def _stored_thresholds(source: str, where: str, num_classes: int) -> list[float] | None:
    """Reads what `set_thresholds` stored: timm keeps of a config.json only the keys that it knows."""
    if source == 'local-dir':
        path = Path(where, 'config.json')
    elif source == 'hf-hub':
        path = Path(download_from_hf(where, 'config.json'))
    else:
        return None
    thresholds = json.loads(path.read_text(encoding='utf-8')).get('thresholds')
    if thresholds is None:
        return None
    per_class = [float(threshold) for threshold in thresholds['per_class']]
    if not all(0 <= threshold < 1 for threshold in per_class):
        raise ValueError('thresholds in config.json must be from 0 to below 1')
    # A model that was loaded with another number of labels has none of its own.
    return per_class if len(per_class) == num_classes else None


def _reason(error: Exception) -> str:
    """Puts an exception's message into one line."""
    return ' '.join(str(error).split()) or type(error).__name__
