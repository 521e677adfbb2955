"""What MSFF and its peers share: a model on the maps of a timm backbone, on timm's contract."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, named_apply

from .layers import create_backbone, first_conv_of_backbone, no_weight_decay_of_backbone

__all__ = ['BackboneModel', 'create_on_backbone']


class BackboneModel(nn.Module):
    """Makes and keeps the backbone; a model adds a head, whose last part is its `classifier`.

    Args:
        backbone: Any timm model with stages of the reductions.
        backbone_pretrained: Fetch timm's own weights for it.
        backbone_args: Further arguments of it.
        in_chans: Channels of the picture.
        reductions: Strides of the maps wanted, the smallest first.

    Raises:
        ValueError: The backbone lacks a stage.
    """

    def __init__(
        self,
        backbone: str,
        backbone_pretrained: bool,
        backbone_args: dict | None,
        in_chans: int,
        reductions: Sequence[int],
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.backbone_name = backbone
        self.backbone_args = dict(reductions=reductions, in_chans=in_chans, backbone_args=backbone_args)
        self.backbone = create_backbone(
            backbone, pretrained=backbone_pretrained, **self.backbone_args, device=device, dtype=dtype
        )
        # What timm adapts to other channels, and writes into a checkpoint's configuration, depends on the backbone.
        self._traits = dict(first_conv=tuple(f'backbone.{name}' for name in first_conv_of_backbone(self.backbone)))

    def init_weights(self) -> None:
        """Draws all weights anew, those of the backbone as timm does, on whatever device they are."""
        fresh = create_backbone(self.backbone_name, **self.backbone_args, **get_device_dtype(self))
        # Buffers are copied by themselves: some are no part of a state dict.
        for new, old in ((fresh.parameters(), self.backbone.parameters()), (fresh.buffers(), self.backbone.buffers())):
            for source, target in zip(new, old, strict=True):
                target.data.copy_(source)
        for name, part in self.named_children():
            if name != 'backbone':
                named_apply(_init_weights, part, include_root=True)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        of_backbone = no_weight_decay_of_backbone(self.backbone, self.backbone_name)
        return {f'backbone.{name}' for name in of_backbone}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        getattr(self.backbone, 'model', self.backbone).set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.classifier


def _init_weights(module: nn.Module, name: str = '') -> None:
    """Draws the weights of one module, after those of its parts."""
    for method in ('reset_parameters', 'init_weights'):
        if hasattr(module, method):
            getattr(module, method)()


def create_on_backbone(
    model_cls: type[BackboneModel], variant: str, pretrained: bool, num_maps: int, **kwargs
) -> nn.Module:
    """Creates a model as timm's `build_model_with_cfg` does.

    Args:
        model_cls: The model.
        variant: Its registered name.
        pretrained: Load its weights.
        num_maps: How many maps, the last ones, its `features_only` form gives.
        **kwargs: As for `build_model_with_cfg`.
    """
    # The fused weights hold the backbone's: fetching timm's as well would download what is overwritten at once.
    if pretrained:
        kwargs['backbone_pretrained'] = False
    feature_cfg = {'feature_cls': 'getter', 'out_indices': num_maps}
    model = build_model_with_cfg(model_cls, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
    if not kwargs.get('features_only') and not isinstance(kwargs.get('pretrained_cfg'), dict):
        # A registered configuration speaks of the registered backbone; `backbone` may have asked for another.
        of_backbone = model.backbone.pretrained_cfg
        model.pretrained_cfg.update(
            mean=of_backbone['mean'], std=of_backbone['std'], first_conv=model._traits['first_conv']
        )
    return model
