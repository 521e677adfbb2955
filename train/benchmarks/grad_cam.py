"""Grad-CAM (https://arxiv.org/abs/1610.02391) of models that pool their last feature map."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from msff_timm.errors import InputError
from msff_timm.inference.logits import check_finite

__all__ = ['grad_cam']


def grad_cam(model: nn.Module, images: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
    """Computes Grad-CAM of a timm model on the feature map that it pools.

    The weight of a channel is the gradient of the label's logit, averaged over the map.

    Args:
        model: timm model in evaluation mode whose `forward_head` pools the map of `forward_features`.
        images: Preprocessed images (B, C, H, W).
        columns: Indices of the n labels.

    Returns:
        Maps (B, n, h, w), 0 at places with evidence against the label.

    Raises:
        InputError: The model has no such map, or its logits are not finite.
    """
    with torch.no_grad():
        features = model.forward_features(images)
    if features.ndim != 4 or getattr(model, 'output_fmt', 'NCHW') != 'NCHW':
        raise InputError(f'{type(model).__name__} pools no feature map (B, C, H, W): give a CNN for Grad-CAM.')
    features.requires_grad_()
    logits = model.forward_head(features)
    check_finite(model, logits)
    maps = []
    for column in columns:
        (gradient,) = torch.autograd.grad(logits[:, column].sum(), features, retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)
        maps.append((weights * features.detach()).sum(1).relu())
    return torch.stack(maps, dim=1)
