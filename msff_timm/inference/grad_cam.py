"""Grad-CAM (https://arxiv.org/abs/1610.02391), by the grad-cam package, of timm models without attention of labels."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from ..errors import InputError, missing_package
from .logits import check_finite

__all__ = ['grad_cam']


class _Head(nn.Module):
    """The part of a model above its last feature map (B, C, H, W), which `features` passes on."""

    def __init__(self, model: nn.Module, is_channels_last: bool):
        super().__init__()
        self.model = model
        self.features = nn.Identity()
        self.is_channels_last = is_channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.model.forward_head(x.permute(0, 2, 3, 1) if self.is_channels_last else x)


def grad_cam(model: nn.Module, images: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """Computes Grad-CAM of labels: where the last feature map raises their logits.

    The weight of a channel is the gradient of the label's logit, averaged over the map. A model of tokens, such as a
    ViT, has the map of its tokens before the attention of the last block, since its head may read the class token only.

    Args:
        model: timm model in evaluation mode.
        images: Preprocessed images (B, C, H, W) on the model's device.
        labels: Indices of n labels.

    Returns:
        Maps (B, n, h, w) from 0 to 1; all 0 where no place is evidence for the label.

    Raises:
        InputError: The grad-cam package is not installed, the model has no such map, or its logits are not finite.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ModuleNotFoundError as e:
        raise missing_package('grad-cam' if e.name == 'pytorch_grad_cam' else e.name, 'explain') from None
    model = unwrap_model(model)
    with torch.inference_mode(False), torch.enable_grad():
        images = images.clone()  # those of inference mode have no gradients
        with torch.no_grad():
            features = model.forward_features(images)
            check_finite(model, model.forward_head(features))
        grid, prefix, inputs = None, 0, features
        if features.ndim == 4:
            is_channels_last = getattr(model, 'output_fmt', 'NCHW') == 'NHWC'
            inputs = (features.permute(0, 3, 1, 2) if is_channels_last else features).requires_grad_()
            part = _Head(model, is_channels_last)
            layer = part.features
        else:
            part, inputs = model, images
            layer, grid, prefix = _last_tokens(model, features, images)

        def to_map(tokens: torch.Tensor) -> torch.Tensor:
            return tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)

        with GradCAM(part, [layer], to_map if grid else None) as cam:
            if grid:
                cam.get_target_width_height = lambda _: grid[::-1]  # the package would enlarge the map to the image
            maps = [torch.from_numpy(cam(inputs, len(images) * [ClassifierOutputTarget(label)])) for label in labels]
        model.zero_grad()  # the package computes gradients of the weights, too
        return torch.stack(maps, dim=1).to(images.device)


def _last_tokens(
    model: nn.Module, features: torch.Tensor, images: torch.Tensor
) -> tuple[nn.Module, tuple[int, int], int]:
    """Returns the layer of a model's last tokens of places, their grid, and the number of tokens before them."""
    blocks, patches = getattr(model, 'blocks', None), getattr(model, 'patch_embed', None)
    prefix = getattr(model, 'num_prefix_tokens', 0)
    size = getattr(patches, 'dynamic_feat_size', None)
    grid = tuple(size(images.shape[-2:])) if size else getattr(getattr(model, 'stem', None), 'grid_size', None)
    is_grid = features.ndim == 3 and grid and grid[0] * grid[1] == features.shape[1] - prefix
    if not is_grid or not blocks or not hasattr(blocks[-1], 'norm1'):
        raise InputError(f'{type(model).__name__} cannot be explained: Grad-CAM finds no feature map in it.')
    return blocks[-1].norm1, grid, prefix
