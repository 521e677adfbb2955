"""MSFF: multi-scale feature fusion for multi-label image classification

Paper: Multi-Scale Feature Fusion and Advanced Representation Learning for Multi Label Image Classification
    - https://doi.org/10.32604/cmc.2025.059102

A `features_only` backbone gives two maps, F1 (reduction 16) and F2 (reduction 32). They become three scales that
exchange what they share; a Transformer, shared by the three branches, then finds for each label the regions that
speak of it, and a class-wise linear layer scores each label. The files in `layers/` are the sections of the
paper.
"""

import timm
import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .layers import (
    ClassWiseLinear,
    GlobalFeatureEnhancement,
    HierarchicalScaleAttention,
    MultiScaleProjection,
    PositionEncoding,
    RegionSelection,
)

__all__ = ['MSFF']


class MSFF(nn.Module):
    """Three-branch multi-label classifier on a `features_only` backbone.

    Args:
        backbone: timm model whose `features_only` form has stages of reduction 16 and 32 as its last two.
        backbone_pretrained: Fetch timm's own weights for the backbone.
        num_classes: Number of labels K; 0 for an image embedding instead of logits.
        in_chans: Channels of the picture.
        embed_dim: Width d of the three branches.
        num_heads: Attention heads in every layer; divides `embed_dim`.
        ffn_dim: Width of the feed-forward networks.
        encoder_depth: Layers of the global feature enhancement (section 3.4).
        decoder_depth: Layers of the region selection (section 3.5).
        drop_rate: Dropout in the Transformer layers.

    Raises:
        ValueError: `num_heads` does not divide `embed_dim`.
    """

    def __init__(
        self,
        backbone: str = 'resnet101',
        backbone_pretrained: bool = False,
        num_classes: int = 80,
        in_chans: int = 3,
        embed_dim: int = 512,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        encoder_depth: int = 2,
        decoder_depth: int = 3,
        drop_rate: float = 0.1,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.num_features = self.head_hidden_size = 3 * embed_dim

        self.backbone = timm.create_model(
            backbone, pretrained=backbone_pretrained, features_only=True, out_indices=(3, 4), in_chans=in_chans, **dd
        )
        self.projection = MultiScaleProjection(self.backbone.feature_info.channels(), embed_dim, **dd)
        self.scale_attention = HierarchicalScaleAttention()
        self.position = PositionEncoding(embed_dim, **dd)
        layer_args = dict(embed_dim=embed_dim, num_heads=num_heads, ffn_dim=ffn_dim, drop_rate=drop_rate, **dd)
        self.enhancement = GlobalFeatureEnhancement(encoder_depth, **layer_args)
        self.selection = RegionSelection(decoder_depth, **layer_args)
        self.reset_classifier(num_classes)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'position.table', 'label_embed.weight'}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Makes new label embeddings and a new classifier for another set of labels; 0 removes both."""
        self.num_classes = num_classes
        dd = {'device': self.position.table.device, 'dtype': self.position.table.dtype}
        self.label_embed = nn.Embedding(num_classes, self.embed_dim, **dd) if num_classes else nn.Identity()
        self.classifier = ClassWiseLinear(num_classes, self.num_features, **dd) if num_classes else nn.Identity()
        if num_classes:
            # Small beside what attention brings, so that the features speak of the picture from the first step on.
            trunc_normal_(self.label_embed.weight, std=0.02)

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps pictures (B, C, H, W) to the tokens of three scales (B, L_i, d): 784, 196 and 49 at 448 pixels."""
        f1, f2 = self.backbone(x)
        scales = self.scale_attention(self.projection(f1, f2))
        return [self.enhancement(self.position(scale)) for scale in scales]

    def forward_head(self, tokens: list[torch.Tensor], pre_logits: bool = False) -> torch.Tensor:
        """Maps the tokens of three scales to logits (B, K), or with `pre_logits` to an image embedding (B, 3*d)."""
        if pre_logits or not self.num_classes:
            return torch.cat([scale.mean(1) for scale in tokens], dim=-1)
        query = self.label_embed.weight.expand(tokens[0].shape[0], -1, -1)
        z = torch.cat([self.selection(query, scale) for scale in tokens], dim=-1)  # Eq. 11
        return self.classifier(z)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps pictures (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def _cfg(url: str = '', **kwargs) -> dict:
    return {
        'url': url,
        'num_classes': 80,
        'input_size': (3, 448, 448),
        'pool_size': (14, 14),
        'crop_pct': 1.0,
        'crop_mode': 'squash',
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'backbone.conv1',
        'classifier': ('label_embed', 'classifier'),
        'license': 'apache-2.0',
        'paper_name': 'Multi-Scale Feature Fusion and Advanced Representation Learning'
        ' for Multi Label Image Classification',
        'origin_url': 'https://doi.org/10.32604/cmc.2025.059102',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'msff_resnet101.untrained': _cfg(),
        'msff_resnet50.untrained': _cfg(),
        'msff_resnet34.untrained': _cfg(),
        'msff_resnet18.untrained': _cfg(),
        'msff_test_resnet.untrained': _cfg(
            input_size=(3, 128, 128),
            pool_size=(4, 4),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            first_conv='backbone.conv1.0',
        ),
    }
)


def _create_msff(variant: str, pretrained: bool = False, **kwargs) -> MSFF:
    # The fused weights hold the backbone's: fetching timm's as well would download what is overwritten at once.
    if pretrained:
        kwargs['backbone_pretrained'] = False
    return build_model_with_cfg(MSFF, variant, pretrained, **kwargs)


@register_model
def msff_resnet101(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on ResNet-101, the paper's model."""
    model_args = dict(backbone='resnet101')
    return _create_msff('msff_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_resnet50(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on ResNet-50."""
    model_args = dict(backbone='resnet50')
    return _create_msff('msff_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_resnet34(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on ResNet-34."""
    model_args = dict(backbone='resnet34')
    return _create_msff('msff_resnet34', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_resnet18(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on ResNet-18."""
    model_args = dict(backbone='resnet18')
    return _create_msff('msff_resnet18', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_test_resnet(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on timm's tiny test ResNet, for tests and the demo."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_msff('msff_test_resnet', pretrained, **dict(model_args, **kwargs))
