"""What MSFF and its peers share: a model on the maps of a timm backbone, on timm's contract."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.layers import get_device_dtype
from timm.models import PretrainedCfg, build_model_with_cfg, named_apply, resolve_pretrained_cfg

from ..labels import check_label_names, set_label_names
from .backbone import (
    copy_backbone,
    create_backbone,
    first_conv_of_backbone,
    no_weight_decay_of_backbone,
)

__all__ = ['BackboneModel', 'create_on_backbone']


class BackboneModel(nn.Module):
    """Makes and keeps the backbone; a model adds a head, whose last part is its `classifier`.

    Args:
        backbone: Any timm model with stages of the reductions.
        backbone_pretrained: Fetch timm's own weights for it.
        backbone_args: Further arguments of it.
        in_chans: Channels of the image.
        reductions: Strides of the maps wanted, the smallest first.

    Attributes:
        head_maps: Slice of the backbone's maps that the head needs.

    Raises:
        ValueError: The backbone lacks a stage.
    """

    head_maps = slice(None)

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
        args = self.backbone_args['backbone_args']
        of_backbone = no_weight_decay_of_backbone(self.backbone, self.backbone_name, args)
        return {f'backbone.{name}' for name in of_backbone}

    def forward_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps those of the backbone's maps (B, C_i, H_i, W_i) that `head_maps` selects to logits (B, K).

        `forward(x)` is `forward_maps(backbone(x)[head_maps])`, so that a frozen backbone needs to see an image once.
        """
        raise NotImplementedError

    def prune_backbone(self, num_maps: int) -> None:
        """Leaves out of the backbone what only its later maps need.

        Args:
            num_maps: Number of maps that are needed, the first ones.
        """
        reductions = self.backbone_args['reductions'][:num_maps]
        if len(reductions) < len(self.backbone_args['reductions']):
            self.backbone_args['reductions'] = reductions
            smaller = create_backbone(self.backbone_name, **self.backbone_args, **get_device_dtype(self))
            copy_backbone(self.backbone, smaller)
            self.backbone = smaller.train(self.training)

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

    Raises:
        InputError: The weights are on a Hub and cannot be fetched, or `label_names` of `pretrained_cfg_overlay` are not
            one for each logit.
        ValueError: The weights differ from the digest that the Hub states.
    """
    asked = kwargs.get('pretrained_cfg_overlay') or {}  # what the caller sets stays as it is
    cfg = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg'), asked)
    if pretrained:
        from ..hub.fetch import fetch_weights

        # The fused weights hold the backbone's: fetching timm's as well would download what is overwritten at once.
        kwargs['backbone_pretrained'] = False
        kwargs['pretrained_cfg_overlay'] = {**asked, **fetch_weights(cfg, kwargs.get('cache_dir'))}
    feature_cfg = {'feature_cls': 'getter', 'out_indices': num_maps}
    model = build_model_with_cfg(model_cls, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
    if not kwargs.get('features_only') and not isinstance(kwargs.get('pretrained_cfg'), (dict, PretrainedCfg)):
        # A registered configuration speaks of the registered backbone; `backbone` may have asked for another.
        of_backbone = model.backbone.pretrained_cfg
        ours = dict(mean=of_backbone['mean'], std=of_backbone['std'], first_conv=model._traits['first_conv'])
        if not pretrained:
            # Nor are its weights those of a tag, which its checkpoints would claim to come from.
            ours |= dict(tag=None, label_names=None)
        model.pretrained_cfg.update({key: value for key, value in ours.items() if key not in asked})
    num_classes = getattr(model, 'num_classes', 0)  # `features_only` has none
    if asked.get('label_names') and num_classes:
        check_label_names(asked['label_names'], num_classes)
    elif not num_classes or cfg.num_classes != num_classes:
        set_label_names(model, None)  # they are those of the logits that were loaded
    return model
