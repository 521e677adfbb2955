"""Multi-scale features and hierarchical scale attention (sections 3.1 and 3.2 of the paper)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ['MultiScaleProjection', 'HierarchicalScaleAttention']


class MultiScaleProjection(nn.Module):
    """Turns two backbone maps into three maps of one width (Eq. 1; Table 5, mode 3).

    Args:
        in_chans: Channels of F1 (reduction 16) and F2 (reduction 32).
        embed_dim: Channels of the three maps.
    """

    def __init__(self, in_chans: tuple[int, int], embed_dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        f1_chans, f2_chans = in_chans
        self.conv1 = nn.Conv2d(f1_chans, embed_dim, kernel_size=1, **dd)
        self.conv2 = nn.Conv2d(f2_chans, embed_dim, kernel_size=1, **dd)
        self.conv3 = nn.Conv2d(f2_chans, embed_dim, kernel_size=3, stride=2, padding=1, **dd)

    def forward(self, f1: torch.Tensor, f2: torch.Tensor) -> list[torch.Tensor]:
        """Maps F1 (B, C1, H, W) and F2 (B, C2, H/2, W/2) to x1, x2, x3 (B, d, H_i, W_i) of sides H, H/2 and H/4."""
        return [self.conv1(f1), self.conv2(f2), self.conv3(f2)]


class HierarchicalScaleAttention(nn.Module):
    """Lets three scales enrich each other through what all of them respond to (Eqs. 2-5); it has no parameters."""

    def forward(self, scales: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps x1, x2, x3 (B, d, H_i, W_i), the largest first, to maps of the same shapes."""
        x1, x2, x3 = scales
        x2_up = self.interpolate(x2, x1.shape[-2:])  # Eq. 2
        x3_up = self.interpolate(x3, x1.shape[-2:])
        m = x1 * x2_up * x3_up  # Eq. 3
        return [
            x1 + m,  # Eqs. 4 and 5; x1 keeps its grid
            self.interpolate(x2_up + m, x2.shape[-2:]),
            self.interpolate(x3_up + m, x3.shape[-2:]),
        ]

    @staticmethod
    def interpolate(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(x, size=size, mode='bilinear')
