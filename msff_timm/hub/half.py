"""Storing trained weights in half of their bytes."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from .. import hub
from ..errors import InputError
from ..inference.logits import Preprocessing, compute_logits

__all__ = ['Halved', 'halve']

# Small tensors (norms and their statistics, which float16 may not hold, biases, depthwise convolutions) are few of the
# bytes; rounding them as well adds to the error of the logits.
KEEP_BELOW = 32_768
TOLERANCE = 1e-2  # of logits
BATCH = 16
NOISE = 16  # images


@dataclass(frozen=True)
class Halved:
    """A model whose large tensors are stored in float16.

    Attributes:
        folder: Folder of it.
        num_bytes: Size of its weights.
        num_bytes_before: Size of those that it was made from.
        max_difference: Largest difference of a logit.
        num_images: Number of images that the logits were compared on.
    """

    folder: Path
    num_bytes: int
    num_bytes_before: int
    max_difference: float
    num_images: int


def halve(
    folder: str | Path, output: str | Path, photos: Sequence[str | Path] = (), keep_below: int = KEEP_BELOW
) -> Halved:
    """Stores a trained model's large tensors as float16; whoever loads it computes in float32 as before.

    Only `model.safetensors` and `config.json` are written, and only if the logits stay within 0.01.

    Args:
        folder: Folder of a training run, or one that `hub.save` wrote.
        output: Another folder; made when it is missing.
        photos: Paths of images to compare logits on; noise where there are none.
        keep_below: Number of elements below which a tensor stays as it is.

    Raises:
        InputError: The folder holds no model, the output is the same folder or cannot be written, an image cannot be
            read, a weight is too large for float16, or a logit changes by more.
    """
    folder, output = Path(folder), Path(output)
    if output.resolve() == folder.resolve():
        raise InputError(f'{output}: holds the weights to be read; name another folder.')
    model = hub.load(f'local-dir:{folder}')
    weights = folder / 'model.safetensors'
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and tensor.numel() >= keep_below:
            tensors[name] = tensor.half()
            if not tensors[name].isfinite().all():
                raise InputError(f'{folder}: {name} holds values that float16 has not; keep the weights as they are.')
    preprocessing = Preprocessing(model)
    images = torch.stack([preprocessing.load(photo) for photo in photos]) if photos else preprocessing.noise(NOISE)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix='.saving-') as temporary:
        stored = Path(temporary, 'model.safetensors')
        save_file(tensors, stored, metadata={'format': 'pt'})
        hub.align(stored)
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        # transformers would compute in what the first of the weights is stored in.
        text = json.dumps({**config, 'torch_dtype': 'float32'}, indent=2)
        Path(temporary, 'config.json').write_text(text, encoding='utf-8')
        # safetensors leaves its file to the owner alone, whatever the umask says.
        shutil.copymode(Path(temporary, 'config.json'), stored)
        before, after = (_logits(each, images) for each in (model, hub.load(f'local-dir:{temporary}')))
        difference = (before - after).abs().max().item()
        if difference > TOLERANCE:
            raise InputError(
                f'{output} is not written: a logit changes by {difference:.2g}, more than {TOLERANCE}; keep_below is'
                f' {keep_below}: a larger one keeps more tensors in float32.'
            )
        for name in ('model.safetensors', 'config.json'):
            os.replace(Path(temporary, name), output / name)
    sizes = (path.stat().st_size for path in (output / 'model.safetensors', weights))
    return Halved(output, *sizes, difference, len(images))


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([compute_logits(model, batch) for batch in images.split(BATCH)])
