"""Feature reshaping: learnable position encoding and flattening (section 3.3 of the paper)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import register_notrace_function, register_notrace_module, trunc_normal_

__all__ = ['PositionEncoding', 'split_scales', 'stack_scales']


@register_notrace_module
class PositionEncoding(nn.Module):
    """Adds a learnable position table, resampled to the map's grid, and flattens the map to tokens (Eqs. 6 and 7).

    The table has the grid of the middle scale at the paper's 448 pixels. Every scale and every input size resamples
    the same table, so weights trained at one size serve at another.

    Args:
        embed_dim: Channels of the maps.
        num_branches: 1 where the three scales share the table, 3 where each has its own.
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
        tokens: list[torch.Tensor] = []
        for i, x in enumerate(scales):
            branch = i % self.table.shape[0]
            position = self.table[branch : branch + 1]
            if position.shape[-2:] != x.shape[-2:]:
                position = F.interpolate(position, size=x.shape[-2:], mode='bilinear')
            tokens.append((x + position).flatten(2).transpose(1, 2))
        return tokens


@register_notrace_function
def stack_scales(tokens: list[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Lays three scales onto the grid of the first, side by side on the channels, as one map that timm can pool.

    Args:
        tokens: Of the three scales, (B, L_i, d).
        height: Of the first scale's grid.
        width: Of the first scale's grid.

    Returns:
        (B, 3*d, height, width); each cell of a coarse scale is repeated, so that `split_scales` finds it again.
    """
    maps: list[torch.Tensor] = []
    h, w = height, width
    for x in tokens:
        x = x.transpose(1, 2).unflatten(2, [h, w])
        # 'nearest' takes the wrong cell on the way back where one grid is no multiple of the other.
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
