"""Number of parameters and of floating-point operations (FLOPs) of a model."""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['count_flops', 'measure_share', 'measure_size']


def count_flops(call: Callable[[], object]) -> int:
    """Counts the FLOPs of the matrix products and convolutions in a call; a multiplication and an addition are two.

    Call a model on the meta device to count without computing; then attention counts whatever kernel would compute it.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measure_size(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, float]:
    """Counts the parameters of a model and the GFLOPs of one image.

    Args:
        model: Model on the meta device. Afterwards it is in evaluation mode, and its parameters need no gradients.
        input_size: Shape of the image, (C, H, W).

    Returns:
        `num_parameters` and `gflops`.
    """
    flops = _count(model, input_size).get_total_flops()
    return {'num_parameters': sum(p.numel() for p in model.parameters()), 'gflops': flops / 1e9}


def measure_share(model: nn.Module, parts: tuple[str, ...], image_size: int) -> float:
    """Returns the share of some parts of a model in the FLOPs of one image.

    Args:
        model: Model, of which a copy on the meta device is used.
        parts: Names of modules of the model.
        image_size: Side of the image in pixels.
    """
    counter = _count(copy.deepcopy(model).to('meta'), (3, image_size, image_size))
    counts = counter.get_flop_counts()
    of_parts = (sum(counts[f'{type(model).__name__}.{part}'].values()) for part in parts)
    return sum(of_parts) / counter.get_total_flops()


def _count(model: nn.Module, input_size: tuple[int, int, int]) -> FlopCounterMode:
    model.eval().requires_grad_(False)  # the counter would follow gradients even in inference mode
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_size, device='meta'))
    return counter
