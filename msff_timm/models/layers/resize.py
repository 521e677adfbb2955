"""Resizing of feature maps (sections 3.2 and 3.3 of the paper)."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function

__all__ = ['resize']


@register_notrace_function
def resize(x: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Resizes maps (B, C, H, W) to (B, C, height, width), as `F.interpolate` does, by two matrix products.

    Interpolation is linear and separable. The gradient of a matrix product is another one, while that of
    `F.interpolate` adds up single values, which is slow on a GPU, and slow everywhere for `bicubic`.

    Args:
        x: Maps to resize.
        height: Height of the result.
        width: Width of the result.
        mode: One of `INTERPOLATIONS`.
    """
    x = x.permute(0, 2, 3, 1)  # without a copy in the memory format channels_last
    rows = (_weights(height, x.shape[1], mode, x) @ x.flatten(2)).view(-1, x.shape[2], x.shape[3])
    resized = _weights(width, x.shape[2], mode, x) @ rows
    return resized.view(x.shape[0], height, width, x.shape[3]).permute(0, 3, 1, 2)


def _weights(length: int, input_length: int, mode: str, x: torch.Tensor) -> torch.Tensor:
    """Returns the weights (length, input_length) that resize one axis, in the type and on the device of `x`."""
    identity = torch.eye(input_length, dtype=x.dtype, device=x.device)[None, :, :, None]
    return F.interpolate(identity, size=[length, 1], mode=mode)[0, :, :, 0].T
