"""Feature reshaping: learnable position encoding and flattening (section 3.3 of the paper)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import trunc_normal_

__all__ = ['PositionEncoding']


class PositionEncoding(nn.Module):
    """Adds one learnable position table, resampled to the map's grid, and flattens the map to tokens (Eqs. 6 and 7).

    The table has the grid of the middle scale at the paper's 448 pixels. Every scale and every input size resamples
    the same table, so weights trained at one size serve at another.
    """

    def __init__(self, embed_dim: int, grid_size: tuple[int, int] = (14, 14), device=None, dtype=None):
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, embed_dim, *grid_size, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        trunc_normal_(self.table, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, d, H, W) to tokens (B, H*W, d)."""
        position = self.table
        if position.shape[-2:] != x.shape[-2:]:
            position = F.interpolate(position, size=x.shape[-2:], mode='bilinear')
        return (x + position).flatten(2).transpose(1, 2)
