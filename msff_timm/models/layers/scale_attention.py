"""Multi-scale features and hierarchical scale attention (sections 3.1 and 3.2 of the paper)."""

import torch
import torch.nn as nn
from timm.layers import register_notrace_module

from .resize import resize

__all__ = ['FUSION_MODES', 'INTERPOLATIONS', 'HierarchicalScaleAttention', 'MultiScaleProjection']

# Table 5: reduction of the backbone's map and kernel size of the convolution, for x1, x2 and x3. Reductions 8, 16 and
# 32 are layers 2, 3 and 4 of a ResNet; convolutions of 3 x 3 have stride 2.
FUSION_MODES = {
    1: ((16, 1), (16, 3), (32, 3)),
    2: ((8, 3), (16, 3), (32, 3)),
    3: ((16, 1), (32, 1), (32, 3)),
}
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'area')  # Table 6


@register_notrace_module
class MultiScaleProjection(nn.Module):
    """Projects the backbone's maps to three maps of the same width, each on half the grid of the last (Eq. 1; Table 5).

    Args:
        in_chans: Number of channels of the backbone's map of each reduction.
        embed_dim: Number of channels d of the three maps.
        fusion_mode: Key of `FUSION_MODES`.
        norm: True if BatchNorm follows each convolution.
    """

    def __init__(
        self,
        in_chans: dict[int, int],
        embed_dim: int,
        fusion_mode: int = 3,
        norm: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        reductions = sorted(in_chans)
        self.sources = tuple(reductions.index(reduction) for reduction, _ in FUSION_MODES[fusion_mode])
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(in_chans[reduction], embed_dim, kernel_size, (kernel_size + 1) // 2, kernel_size // 2, **dd)
            for reduction, kernel_size in FUSION_MODES[fusion_mode]
        )
        self.norm1, self.norm2, self.norm3 = (
            nn.BatchNorm2d(embed_dim, **dd) if norm else nn.Identity() for _ in range(3)
        )

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps the backbone's maps (B, C_i, H_i, W_i), largest first, to x1, x2, x3 (B, d, H_i, W_i)."""
        x1 = self.norm1(self.conv1(maps[self.sources[0]]))
        x2 = _on_half_grid(self.norm2(self.conv2(maps[self.sources[1]])), x1)
        x3 = _on_half_grid(self.norm3(self.conv3(maps[self.sources[2]])), x2)
        return [x1, x2, x3]


def _on_half_grid(x: torch.Tensor, larger: torch.Tensor) -> torch.Tensor:
    """Resizes a map to half the grid of a larger one, rounded up as in a ResNet; some backbones round down."""
    height, width = (larger.shape[-2] + 1) // 2, (larger.shape[-1] + 1) // 2
    if x.shape[-2] == height and x.shape[-1] == width:
        return x
    return resize(x, height, width, 'bilinear')


@register_notrace_module
class HierarchicalScaleAttention(nn.Module):
    """Adds to each of three scales the product of all three (Eqs. 2 to 5).

    Args:
        embed_dim: Number of channels d of the three maps.
        interpolation: One of `INTERPOLATIONS`, for upsampling and downsampling.
        gate: True if the product in Eq. 4 has a learnable factor per channel, initially 0. Without it, a few huge
            values of the product slow down training.
    """

    def __init__(self, embed_dim: int, interpolation: str = 'bilinear', gate: bool = True, device=None, dtype=None):
        super().__init__()
        self.interpolation = interpolation
        self.gate = nn.Parameter(torch.empty(embed_dim, 1, 1, device=device, dtype=dtype)) if gate else None
        self.init_weights()

    def init_weights(self) -> None:
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def forward(self, scales: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps x1, x2, x3 (B, d, H_i, W_i), largest first, to maps of the same shapes."""
        x1, x2, x3 = scales[0], scales[1], scales[2]
        height, width = x1.shape[-2], x1.shape[-1]
        x2_up = resize(x2, height, width, self.interpolation)  # Eq. 2
        x3_up = resize(x3, height, width, self.interpolation)
        if x1.dtype == torch.float16:
            # Three factors of 41 exceed the range of float16, up to 65504; sums in later layers exceed it far earlier.
            m = (x1.float() * x2_up * x3_up).clamp(-4096, 4096).half()
        else:
            m = x1 * x2_up * x3_up  # Eq. 3
        if self.gate is not None:
            m = self.gate * m
        return [
            x1 + m,  # Eqs. 4 and 5; x1 keeps its grid
            resize(x2_up + m, x2.shape[-2], x2.shape[-1], self.interpolation),
            resize(x3_up + m, x3.shape[-2], x3.shape[-1], self.interpolation),
        ]
