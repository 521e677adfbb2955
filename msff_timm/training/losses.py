"""The losses of training. Each returns the loss of every entry (B, K), so that masked labels can be left out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    DistributionBalancedLoss,
    PolyBinaryCrossEntropy,
)

from ..data.counts import LabelCounts
from .config import OptimConfig

__all__ = ['LossFn', 'describe_pos_weight', 'known_sum', 'make_loss', 'pos_weights']

LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(optim: OptimConfig, counts: LabelCounts | None = None) -> nn.Module:
    """Creates the loss: a module from logits and targets (B, K) to the loss of each entry (B, K).

    All losses are timm's. Its `twoway` and `zlpr` compare the labels of an image with each other, so that a masked
    label cannot be left out.

    Args:
        optim: Settings of the optimization.
        counts: Label counts of the training split, for `db` and a balanced `pos_weight`.
    """
    # A smoothing s of timm moves the targets by s / 2.
    smoothing: dict[str, Any] = {'smoothing': 2 * optim.label_smoothing, 'reduction': 'none'}
    weights = pos_weights(optim, counts)
    if optim.loss == 'bce':
        return BinaryCrossEntropy(smooth_dense=True, pos_weight=weights, **smoothing)
    if optim.loss == 'focal':
        return PolyBinaryCrossEntropy(epsilon=0, gamma=optim.gamma_neg, **smoothing)
    if optim.loss == 'poly':
        return PolyBinaryCrossEntropy(epsilon=optim.poly_epsilon, **smoothing)
    if optim.loss == 'db':
        assert counts is not None
        annotated = counts.positives + counts.negatives
        # Scaled to fully annotated labels: timm takes one number of images for all labels.
        positives = counts.num_images * counts.positives / np.maximum(annotated, 1)
        return DistributionBalancedLoss(positives, counts.num_images, **smoothing)
    return AsymmetricLossMultiLabel(
        optim.gamma_neg, optim.gamma_pos, clip=optim.asl_clip, pos_weight=weights, **smoothing
    )


def pos_weights(optim: OptimConfig, counts: LabelCounts | None) -> torch.Tensor | None:
    """Returns the weights of present labels in the loss: one () or one for each label (K,); None without weights.

    A balanced weight is the ratio of absent to present entries of the label, at most `pos_weight_max`; 1 if either is
    missing.
    """
    if optim.pos_weight is None:
        return None
    if optim.pos_weight != 'balanced':
        return torch.tensor(optim.pos_weight)
    assert counts is not None
    ratio = np.where(counts.counted, counts.negatives / np.maximum(counts.positives, 1), 1)
    return torch.tensor(ratio, dtype=torch.float32).clamp(max=optim.pos_weight_max)


def describe_pos_weight(weights: torch.Tensor, counts: LabelCounts, most: float) -> str:
    """Describes balanced weights on one line: their range, and the number of labels at `pos_weight_max`."""
    low, high = int(weights.argmin()), int(weights.argmax())
    line = f'optim.pos_weight balanced: from {weights[low]:.3g} ({counts.names[low]}) to {weights[high]:.3g}'
    line += f' ({counts.names[high]})'
    clamped = int((weights == most).sum())
    return f'{line}; {clamped} of {len(weights)} labels at optim.pos_weight_max.' if clamped else f'{line}.'


def known_sum(loss_fn: LossFn, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the loss over the labels that are not masked.

    Args:
        loss_fn: Loss of `make_loss`.
        logits: Logits (B, K).
        target: Targets (B, K): 1 present, 0 absent, in between for mixed images, -1 masked.
    """
    return torch.where(target >= 0, loss_fn(logits, target.clamp(min=0)), 0).sum()
