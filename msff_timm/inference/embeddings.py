"""Embeddings of images: one vector for each, for tasks that compare images."""

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from ..errors import InputError

__all__ = ['embed']


@torch.inference_mode()
def embed(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Computes embeddings (B, D) of preprocessed images (B, C, H, W): pooled features of the backbone, of length 1.

    Args:
        model: Model of this package, or a plain timm model, in evaluation mode, on any device.
        images: Images (B, C, H, W), on any device.

    Returns:
        Embeddings in float32; the dot product of two of them is their cosine similarity.

    Raises:
        InputError: Features are not finite.
    """
    model, images = unwrap_model(model), images.to(next(model.parameters()))
    if hasattr(model, 'backbone'):
        features = model.backbone(images)[-1].mean((-2, -1))
    else:
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    if not features.isfinite().all():
        raise InputError('the features of the backbone are not finite: load other weights, or compute in float32.')
    return nn.functional.normalize(features.float(), dim=1)
