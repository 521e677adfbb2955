"""Number of parameters and of floating-point operations (FLOPs) of a model."""

from collections.abc import Callable

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['count_flops', 'measure_size']


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
    # The counter would follow gradients even in inference mode.
    model.eval().requires_grad_(False)
    with torch.inference_mode():
        flops = count_flops(lambda: model(torch.empty(1, *input_size, device='meta')))
    return {'num_parameters': sum(p.numel() for p in model.parameters()), 'gflops': flops / 1e9}
