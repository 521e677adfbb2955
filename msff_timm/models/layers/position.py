"""Feature reshaping: learnable position encoding and flattening (section 3.3 of the paper)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import register_notrace_function, register_notrace_module, trunc_normal_

from .resize import resize

__all__ = ['PositionEncoding', 'flatten_scales', 'split_scales', 'stack_scales']


@register_notrace_module
class PositionEncoding(nn.Module):
    """Adds a learnable position table, resampled to the grid of the map, and flattens the map to tokens (Eqs. 6, 7).

    The table has the grid of the middle scale at the paper's 448 pixels. All scales and image sizes resample the same
    table, so weights that were trained at one size work at another.

    Args:
        embed_dim: Number of channels d of the maps.
        num_branches: 1 if the three scales share the table, 3 if each scale has its own.
        grid_size: Height and width of the table.
    """

    def __init__(
        self, embed_dim: int, num_branches: int = 1, grid_size: tuple[int, int] = (14, 14), device=None, dtype=None
    ):
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_branches, embed_dim, *grid_size, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        trunc_normal_(self.table, std=0.02)

    def forward(self, scales: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps three maps (B, d, H_i, W_i) to tokens (B, H_i*W_i, d)."""
        encoded: list[torch.Tensor] = []
        for i, x in enumerate(scales):
            branch = i % self.table.shape[0]
            position = self.table[branch : branch + 1]
            if position.shape[-2:] != x.shape[-2:]:
                position = resize(position, x.shape[-2], x.shape[-1], 'bilinear')
            encoded.append(x + position)
        return flatten_scales(encoded)


@register_notrace_function
def flatten_scales(scales: list[torch.Tensor]) -> list[torch.Tensor]:
    """Flattens maps (B, d, H_i, W_i) to tokens (B, H_i*W_i, d)."""
    tokens: list[torch.Tensor] = []
    for x in scales:
        tokens.append(x.flatten(2).transpose(1, 2))
    return tokens


@register_notrace_function
def stack_scales(tokens: list[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Stacks the tokens of three scales into one map, as timm's pooling expects it.

    Args:
        tokens: Tokens of the three scales, (B, L_i, d).
        height: Height of the first scale's grid.
        width: Width of the first scale's grid.

    Returns:
        Map (B, 3*d, height, width), in which the cells of a coarse scale are repeated.
    """
    maps: list[torch.Tensor] = []
    h, w = height, width
    for x in tokens:
        x = x.transpose(1, 2).unflatten(2, [h, w])
        # 'nearest' would not be undone by `split_scales` where the side of a grid is odd.
        maps.append(F.interpolate(x, size=[height, width], mode='nearest-exact'))
        h, w = (h + 1) // 2, (w + 1) // 2
    return torch.cat(maps, dim=1)


@register_notrace_function
def split_scales(x: torch.Tensor) -> list[torch.Tensor]:
    """Undoes `stack_scales`: maps (B, 3*d, H, W) to the maps of three scales (B, d, H_i, W_i)."""
    maps: list[torch.Tensor] = []
    h, w = x.shape[-2], x.shape[-1]
    for scale in x.chunk(3, dim=1):
        maps.append(F.interpolate(scale, size=[h, w], mode='nearest-exact'))
        h, w = (h + 1) // 2, (w + 1) // 2
    return maps
