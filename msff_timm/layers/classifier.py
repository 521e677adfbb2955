"""Final classification (section 3.6 of the paper)."""

import torch
import torch.nn as nn

__all__ = ['ClassWiseLinear']


class ClassWiseLinear(nn.Module):
    """One linear classifier for each class on that class's own feature: logit_k = w_k . z_k + b_k."""

    def __init__(self, num_classes: int, in_features: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Maps class-specific features (B, K, C) to logits (B, K)."""
        return (z * self.weight).sum(-1) + self.bias
