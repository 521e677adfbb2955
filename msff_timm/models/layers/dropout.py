"""Dropout that needs little time on a CPU."""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ['Dropout']


class Dropout(nn.Dropout):
    """Dropout that draws one random byte per element on a CPU, an eighth of PyTorch's random numbers.

    On a CPU, in eager mode, the rate is rounded to a multiple of 1/256.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting() or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        threshold = round(256 * self.p)
        if not self.training or x.device.type != 'cpu' or not 0 < threshold < 256:
            return F.dropout(x, self.p, self.training)
        numbers = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return x * (keep.to(x.dtype) * (256 / (256 - threshold)))
