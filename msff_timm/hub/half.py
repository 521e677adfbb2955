"""Storing the weights of a trained model in half the bytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from ..errors import InputError
from ..files import replace_files
from ..inference.logits import Preprocessing, compute_logits
from .load import load
from .save import METADATA, align

__all__ = ['Halved', 'halve']

# Small tensors (norms and their statistics, which may exceed float16, biases, depthwise convolutions) take up little
# space; rounding them too would add to the error of the logits.
KEEP_BELOW = 32_768
TOLERANCE = 1e-2  # largest change of a logit
BATCH = 16
NOISE = 16  # number of noise images


@dataclass(frozen=True)
class Halved:
    """A model whose large tensors are stored in float16.

    Attributes:
        folder: Folder of the model.
        num_bytes: Size of its weights.
        num_bytes_before: Size of the original weights.
        max_difference: Largest change of a logit.
        num_images: Number of images that the logits were compared on.
    """

    folder: Path
    num_bytes: int
    num_bytes_before: int
    max_difference: float
    num_images: int


def halve(
    folder: str | Path, output: str | Path, images: Sequence[str | Path] = (), keep_below: int = KEEP_BELOW
) -> Halved:
    """Stores the large tensors of a trained model as float16. After loading, the model computes in float32 as before.

    Only `model.safetensors` and `config.json` are written, and only if no logit changes by more than 0.01.

    Args:
        folder: Folder of a training run, or one that `hub.save` wrote.
        output: Another folder; created if it is missing.
        images: Paths of images to compare the logits on. Without any, noise is used.
        keep_below: Number of elements below which a tensor is left unchanged.

    Raises:
        InputError: The folder holds no model, the output is the same folder or cannot be written, an image cannot be
            read, a weight is too large for float16, or a logit changes too much.
    """
    folder, output = Path(folder), Path(output)
    if output.resolve() == folder.resolve():
        raise InputError(f'{output}: holds the original weights; name another folder.')
    model = load(f'local-dir:{folder}')
    weights = folder / 'model.safetensors'
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and tensor.numel() >= keep_below:
            tensors[name] = tensor.half()
            if not tensors[name].isfinite().all():
                raise InputError(f'{folder}: {name} holds values that exceed float16; keep the weights as they are.')
    preprocessing = Preprocessing(model)
    pixels = torch.stack([preprocessing.load(image) for image in images]) if images else preprocessing.noise(NOISE)
    with replace_files(output) as temporary:
        save_file(tensors, temporary / 'model.safetensors', METADATA)
        align(temporary / 'model.safetensors')
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        # Otherwise transformers would compute in the type of the first weight.
        text = json.dumps({**config, 'torch_dtype': 'float32'}, indent=2)
        (temporary / 'config.json').write_text(text, encoding='utf-8')
        before, after = (_compute_logits(each, pixels) for each in (model, load(f'local-dir:{temporary}')))
        difference = (before - after).abs().max().item()
        if difference > TOLERANCE:
            raise InputError(
                f'{output} is not written: a logit changes by {difference:.2g}, more than {TOLERANCE}; raise keep_below'
                f' above {keep_below} to leave more tensors in float32.'
            )
    sizes = (path.stat().st_size for path in (output / 'model.safetensors', weights))
    return Halved(output, *sizes, difference, len(pixels))


def _compute_logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([compute_logits(model, batch) for batch in pixels.split(BATCH)])
