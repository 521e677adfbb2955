"""Saving models in timm's Hub format: a folder with `model.safetensors` and `config.json`."""

import json
import math
import os
from pathlib import Path

import timm
import torch.nn as nn
from timm.models import get_model_args, get_model_traits, save_for_hf
from timm.utils import unwrap_model

from ..errors import InputError
from ..files import replace_files, write_text
from ..labels import check_label_names

__all__ = ['METADATA', 'align', 'check_thresholds', 'save', 'set_thresholds']

METADATA = {'format': 'pt'}  # metadata of our safetensors files


def save(
    model: nn.Module,
    folder: str | Path,
    label_names: list[str],
    data_config: dict,
    training: dict | None = None,
    thresholds: dict | None = None,
) -> None:
    """Saves a model for `timm.create_model(f'local-dir:{folder}', pretrained=True)`.

    Each file is replaced in one step, so a reader never sees half of it.

    Args:
        model: Model from `timm.create_model`. It may be wrapped: compiled, parallel or with EMA weights.
        folder: Folder for the files; created if it is missing.
        label_names: Label names in the order of the logits.
        data_config: Preprocessing, see `timm.data.resolve_model_data_config`.
        training: JSON values that describe the training, e.g. its transforms.
        thresholds: Thresholds, see `set_thresholds`.

    Raises:
        InputError: The label names repeat, or the names or thresholds differ from the logits in number.
    """
    model = unwrap_model(model)
    check_label_names(label_names, model.num_classes)
    if thresholds:
        check_thresholds(thresholds, model.num_classes)
    channels = get_model_traits(model).get('in_chans', 3)
    if data_config.get('input_size') and data_config['input_size'][0] != channels:
        # timm resolves the preprocessing for RGB; its data loaders adapt it to the model's channels as here.
        source = {**model.pretrained_cfg, **data_config}
        data_config = {**data_config, **timm.data.resolve_input_data_config(model, pretrained_cfg=source)}
    with replace_files(folder) as temporary:
        save_for_hf(
            model,
            temporary,
            model_config={
                'label_names': list(label_names),
                'problem_type': 'multi_label_classification',
                **({'training': training} if training else {}),
                **({'thresholds': thresholds} if thresholds else {}),
            },
            # The saved weights include the backbone's, so nothing else is to be fetched.
            model_args={'backbone_pretrained': False} if 'backbone_pretrained' in get_model_args(model) else None,
            safe_serialization=True,
            data_config=data_config,
        )
        path = temporary / 'config.json'
        config = json.loads(path.read_text(encoding='utf-8'))
        # transformers passes the top-level number to timm, and fails if the arguments hold it too.
        config['model_args'].pop('num_classes')
        path.write_text(json.dumps(config, indent=2), encoding='utf-8')
        align(temporary / 'model.safetensors')


def align(path: Path, target: Path | None = None) -> None:
    """Rewrites a safetensors file so that matrices begin at multiples of 64 bytes.

    transformers computes on the memory-mapped file. On a CPU, the last bit of a product depends on the alignment of its
    matrix, so without it the logits would differ from timm's. The names that `torch.compile` gives to tensors lose
    their prefix, and metadata other than the format is dropped.

    Args:
        path: File to read.
        target: File to write; None replaces `path`.
    """
    other = path.with_suffix('.aligned') if target is None else target
    with path.open('rb') as source, other.open('wb') as file:
        tensors = json.loads(source.read(int.from_bytes(source.read(8), 'little')))
        tensors.pop('__metadata__', None)
        start, end, header = source.tell(), 0, {'__metadata__': METADATA}
        spans = {name: tensor['data_offsets'] for name, tensor in tensors.items()}

        def alignment(name: str) -> int:
            """Returns the largest power of two, at most 64, that divides the size of a tensor in bytes."""
            size = spans[name][1] - spans[name][0]
            return min(64, size & -size)

        # In this order, each tensor begins at a multiple of its alignment: those before it have the same or a larger.
        order = sorted(tensors, key=alignment, reverse=True)
        for name in order:
            begin, end = end, end + spans[name][1] - spans[name][0]
            fields = {key: tensors[name][key] for key in ('dtype', 'shape')}
            header[name.replace('_orig_mod.', '')] = {**fields, 'data_offsets': [begin, end]}
        text = json.dumps(header, separators=(',', ':')).encode()
        text += b' ' * (-(8 + len(text)) % 64)
        file.write(len(text).to_bytes(8, 'little') + text)
        for name in order:
            source.seek(start + spans[name][0])
            file.write(source.read(spans[name][1] - spans[name][0]))
    if target is None:
        os.replace(other, path)


def set_thresholds(name: str, thresholds: dict) -> Path:
    """Stores thresholds, and temperatures with biases, with a saved model, for `load` and `predict`.

    Args:
        name: Saved model, `local-dir:FOLDER`.
        thresholds: `per_class`, a list in the order of the logits, of thresholds for the sigmoid of the logits; further
            JSON values that describe how it was found; and, for calibrated probabilities, `temperatures` and `biases`,
            see `msff_timm.calibration.Calibration`.

    Returns:
        The file that holds them.

    Raises:
        InputError: The folder holds no model, or the thresholds are not one probability for each logit.
    """
    path = Path(name.removeprefix('local-dir:'), 'config.json')
    if not path.is_file():
        raise InputError(f'{name}: holds no config.json; give a folder that training or timm saved.')
    config = json.loads(path.read_text(encoding='utf-8'))
    check_thresholds(thresholds, config['num_classes'])
    config['thresholds'] = thresholds
    write_text(path, json.dumps(config, indent=2))
    return path


def check_thresholds(thresholds: dict, num_classes: int) -> None:
    """Checks that thresholds are one probability for each logit, and temperatures and biases, if any, one number.

    Raises:
        InputError: They are not.
    """
    per_class = thresholds.get('per_class') if isinstance(thresholds, dict) else None
    if not isinstance(per_class, (list, tuple)) or len(per_class) != num_classes:
        raise InputError(f'thresholds must hold per_class, a list of {num_classes} numbers.')
    if not all(isinstance(threshold, (int, float)) and 0 <= threshold < 1 for threshold in per_class):
        raise InputError('thresholds must be from 0 to below 1.')
    if 'temperatures' not in thresholds and 'biases' not in thresholds:
        return
    for key, least in (('temperatures', 0), ('biases', -math.inf)):
        values = thresholds.get(key)
        if not isinstance(values, (list, tuple)) or len(values) != num_classes:
            raise InputError(f'thresholds must hold {key}, a list of {num_classes} numbers.')
        if not all(isinstance(value, (int, float)) and least < value < math.inf for value in values):
            raise InputError(f'{key} of thresholds must be finite numbers{" above 0" if least == 0 else ""}.')
