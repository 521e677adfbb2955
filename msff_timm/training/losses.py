"""The losses of training: each gives the loss of every entry (B, K), so that masked labels can be left out."""

from collections.abc import Callable

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
    """Makes the loss: from logits and targets (B, K) to the loss of each entry (B, K).

    All are timm's. Its `twoway` and `zlpr` are not offered: they compare the labels of an image with one another, so
    that a masked one cannot be left out.

    Args:
        optim: Settings of the optimisation.
        counts: Entries of each label in the training split, for `db` and a balanced `pos_weight`.
    """
    # timm's smoothing is the way to 0.5, of which label_smoothing is the half that is gone.
    smoothing = {'smoothing': 2 * optim.label_smoothing, 'reduction': 'none'}
    weights = pos_weights(optim, counts)
    if optim.loss == 'bce':
        return BinaryCrossEntropy(smooth_dense=True, pos_weight=weights, **smoothing)
    if optim.loss == 'focal':
        return PolyBinaryCrossEntropy(epsilon=0, gamma=optim.gamma_neg, **smoothing)
    if optim.loss == 'poly':
        return PolyBinaryCrossEntropy(epsilon=optim.poly_epsilon, **smoothing)
    if optim.loss == 'db':
        annotated = counts.positives + counts.negatives
        # As many as there would be if all entries were annotated: timm takes one number of images for all labels.
        positives = counts.num_images * counts.positives / np.maximum(annotated, 1)
        return DistributionBalancedLoss(positives, counts.num_images, **smoothing)
    return AsymmetricLossMultiLabel(
        optim.gamma_neg, optim.gamma_pos, clip=optim.asl_clip, pos_weight=weights, **smoothing
    )


def pos_weights(optim: OptimConfig, counts: LabelCounts | None) -> torch.Tensor | None:
    """Makes the weights of the loss of present labels: of all (), of each label (K,), or None.

    Balanced, a label's is the number of its absent entries for each present one, at most `pos_weight_max`; 1 where it
    lacks either.
    """
    if optim.pos_weight is None:
        return None
    if optim.pos_weight != 'balanced':
        return torch.tensor(optim.pos_weight)
    ratio = np.where(counts.counted, counts.negatives / np.maximum(counts.positives, 1), 1)
    return torch.tensor(ratio, dtype=torch.float32).clamp(max=optim.pos_weight_max)


def describe_pos_weight(weights: torch.Tensor, counts: LabelCounts, most: float) -> str:
    """Puts balanced weights into one line: their range, and how many of them are at their most."""
    low, high = int(weights.argmin()), int(weights.argmax())
    line = f'optim.pos_weight balanced: from {weights[low]:.3g} ({counts.names[low]}) to {weights[high]:.3g}'
    line += f' ({counts.names[high]})'
    clamped = int((weights == most).sum())
    return f'{line}; {clamped} of {len(weights)} labels at optim.pos_weight_max.' if clamped else f'{line}.'


def known_sum(loss_fn: LossFn, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sums a loss over the labels that are annotated.

    Args:
        loss_fn: Loss as `make_loss` gives it.
        logits: Logits (B, K).
        target: Targets (B, K): 1 present, 0 absent, in between where images are mixed, -1 masked.
    """
    return torch.where(target >= 0, loss_fn(logits, target.clamp(min=0)), 0).sum()
