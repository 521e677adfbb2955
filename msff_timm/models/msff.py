"""MSFF: multi-scale feature fusion for multi-label image classification

Paper: Multi-Scale Feature Fusion and Advanced Representation Learning for Multi Label Image Classification
    - https://doi.org/10.32604/cmc.2025.059102

A `features_only` backbone returns two maps, F1 (reduction 16) and F2 (reduction 32). They are projected to three
scales, which enrich each other by hierarchical scale attention. A Transformer, shared by the three branches, selects
the regions that are relevant to each label, and a class-wise linear layer scores each label. The files in `layers/`
follow the sections of the paper.
"""

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import get_device_dtype
from timm.models import generate_default_cfgs, register_model

from ..labels import COCO_LABELS, SCENES_LABELS, VOC_LABELS
from .backbone import check_size
from .base import BASE_CFG, LITE, TEST_RESNET, BackboneModel, create_on_backbone
from .layers import (
    FUSION_MODES,
    INTERPOLATIONS,
    ClassWiseLinear,
    GlobalFeatureEnhancement,
    GroupLinear,
    HierarchicalScaleAttention,
    MultiScaleProjection,
    PooledClassifier,
    PositionEncoding,
    RegionSelection,
    flatten_scales,
    split_scales,
    stack_scales,
)
from .older_weights import check_weights

__all__ = ['MSFF']

# Namespace on the Hub of the repositories that hold the weights of the tags below; a repository has the tag's name.
HUB_NAMESPACE = os.environ.get('MSFF_HUB_NAMESPACE') or 'msff-timm'
# Weights that the package contains, for use without network
WEIGHTS = Path(__file__).parents[1] / 'weights'


class MSFF(BackboneModel):
    """Multi-label classifier with three branches on a `features_only` backbone.

    The defaults are the paper's choices; its ablations (Tables 4 to 7, Figure 5) are arguments.

    Args:
        backbone: Name of a timm model with stages of reduction 16 and 32.
        backbone_pretrained: True to download timm's weights for the backbone.
        backbone_args: Further arguments of the backbone, e.g. `{'drop_path_rate': 0.1}`.
        num_classes: Number of labels K; 0 for image embeddings instead of logits.
        in_chans: Number of image channels.
        global_pool: Pooling of the embedding, by timm's name: `avg`, `max`, ... or '' for none.
        embed_dim: Width d of the three branches.
        num_heads: Number of attention heads in every layer; divides `embed_dim`.
        ffn_dim: Width of the feed-forward networks.
        fusion_mode: Source of the three scales: 1, 2 or 3 (Table 5).
        scale_attention: True to use the hierarchical scale attention (Table 4).
        interpolation: Interpolation of the scale attention: `nearest`, `bilinear`, `bicubic` or `area` (Table 6).
        fusion_norm: True if BatchNorm follows the convolutions of Eq. 1. The paper does not mention it.
        fusion_gate: True if the product in Eq. 4 has a learnable factor, initially 0. The paper does not mention it.
            Without norm and gate the equations are literal, but training on few images is far slower.
        encoder_depth: Number of layers of the global feature enhancement (Figure 5); 0 removes it (Table 4).
        decoder_depth: Number of layers of the region selection (Figure 5); 0 pools the branches instead (Table 4).
        decoder_self_attn: True if the labels attend to each other, in all decoder layers or for each one (Table 7).
        share_branches: True if the three branches share position table, layers and label embeddings (section 3).
        drop_rate: Dropout rate of the Transformer layers.
        attn_drop_rate: Dropout rate of their attention weights. On a CPU, attention has a fused kernel only without it.
        max_queries: Largest number of label embeddings; with more labels, a group of labels shares one, as in
            ML-Decoder. 0 for one embedding per label, as in the paper, which is slow for hundreds of labels.
        pooled_classifier: True to average the logits with those of a linear classifier on the pooled last map of the
            backbone, see `set_separate_training`. The paper has none.

    Raises:
        ValueError: An argument is not allowed, or the backbone lacks a stage.

    Examples:
        >>> model = MSFF('test_resnet', num_classes=3, embed_dim=64, num_heads=2, ffn_dim=64).eval()
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 3])
    """

    encoder_parts = ('projection', 'scale_attention', 'position', 'enhancement')
    decoder_parts = ('selection',)
    query_part = 'label_embed'
    has_last_conv: torch.jit.Final[bool]

    def __init__(
        self,
        backbone: str = 'resnet101',
        backbone_pretrained: bool = False,
        backbone_args: dict | None = None,
        num_classes: int = 80,
        in_chans: int = 3,
        global_pool: str = 'avg',
        embed_dim: int = 512,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        fusion_mode: int = 3,
        scale_attention: bool = True,
        interpolation: str = 'bilinear',
        fusion_norm: bool = True,
        fusion_gate: bool = True,
        encoder_depth: int = 2,
        decoder_depth: int = 3,
        decoder_self_attn: bool | Sequence[bool] = False,
        share_branches: bool = True,
        drop_rate: float = 0.1,
        attn_drop_rate: float = 0.0,
        max_queries: int = 100,
        pooled_classifier: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        _check_choice('fusion_mode', fusion_mode, FUSION_MODES)
        _check_choice('interpolation', interpolation, INTERPOLATIONS)
        _check_depth('encoder_depth', encoder_depth)
        _check_depth('decoder_depth', decoder_depth)
        if not isinstance(max_queries, int) or max_queries < 0:
            raise ValueError(f'max_queries={max_queries!r} must be an integer of at least 0.')
        if isinstance(decoder_self_attn, bool):
            decoder_self_attn = [decoder_self_attn] * decoder_depth
        if len(decoder_self_attn) != decoder_depth:
            raise ValueError(f'decoder_self_attn={decoder_self_attn} must be one bool, or one per decoder layer.')

        # Section 3.1
        reductions = sorted({reduction for reduction, _ in FUSION_MODES[fusion_mode]})
        pools = pooled_classifier and decoder_depth > 0
        super().__init__(backbone, backbone_pretrained, backbone_args, in_chans, reductions, pools, **dd)
        self.embed_dim = embed_dim
        self.num_branches = 1 if share_branches else 3  # number of sets of weights
        self.has_last_conv = hasattr(self.backbone, 'conv_head')
        self.num_pooled: int = self.feature_info[-1]['num_chs'] if pools else 0  # channels for the pooled classifier
        if self.has_last_conv:
            last_conv: Any = self.backbone.conv_head
            self.num_pooled = last_conv.out_channels
        self.num_features = 3 * embed_dim + self.num_pooled
        in_chans_of = {info['reduction']: info['num_chs'] for info in self.feature_info}
        self.projection = MultiScaleProjection(in_chans_of, embed_dim, fusion_mode, fusion_norm, **dd)
        # Section 3.2
        self.scale_attention = None
        if scale_attention:
            self.scale_attention = HierarchicalScaleAttention(embed_dim, interpolation, fusion_gate, **dd)
        # Section 3.3
        self.position = PositionEncoding(embed_dim, self.num_branches, **dd)
        # Sections 3.4 and 3.5
        rates = dict(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate)
        layer_args = dict(embed_dim=embed_dim, num_heads=num_heads, ffn_dim=ffn_dim, **rates, **dd)
        self.enhancement = GlobalFeatureEnhancement(encoder_depth, self.num_branches, **layer_args)
        self.selection = None
        if decoder_depth:
            self.selection = RegionSelection(decoder_depth, self.num_branches, decoder_self_attn, **layer_args)
        # Section 3.6
        self.max_queries = max_queries
        self.separate_training = False
        self.reset_classifier(num_classes, global_pool)

        self.feature_info += [dict(num_chs=embed_dim, reduction=r, module='enhancement') for r in (16, 32, 64)]
        self.feature_info.sort(key=lambda info: info['reduction'])

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'scale_attention.gate', 'position.table', 'label_embed.weight', *super().no_weight_decay()}

    def group_of_head(self, name: str, coarse: bool) -> int:
        part, *rest = name.split('.')
        if part in ('projection', 'scale_attention', 'position'):
            return 0
        encoder_depth = 1 if coarse else len(list(self.enhancement.branches[0].children()))
        if part == 'enhancement':
            return 1 if coarse else 1 + int(rest[2])  # after `branches` and the number of the branch
        if part == 'selection':
            return 2 if coarse else 1 + encoder_depth + int(rest[2])
        decoder_depth = 0 if self.selection is None else len(list(self.selection.branches[0].children()))
        return 3 if coarse else 1 + encoder_depth + decoder_depth

    @torch.jit.ignore
    def set_separate_training(self, enable: bool = True) -> None:
        """Sets whether the model in training mode returns the logits of its two classifiers, (B, K) each.

        Each should have a loss of its own: trained on the mean, the one that learns first leaves the other little to
        learn. timm's `set_distilled_training` does the same for the two classifiers of DeiT.
        """
        self.separate_training = enable

    @torch.jit.ignore
    def shares_queries(self, num_classes: int) -> bool:
        """Returns whether labels would share a label embedding if the model had that many labels."""
        return self.selection is not None and num_classes > (self.max_queries or num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.pooled_classifier: nn.Module | None = None
        if self.num_pooled and num_classes:
            classifier = PooledClassifier(num_classes, self.num_pooled, **get_device_dtype(self))
            self.pooled_classifier = classifier.train(self.training)

    def make_classifier(self, num_classes: int, device=None, dtype=None) -> tuple[nn.Module | None, nn.Module]:
        dd = {'device': device, 'dtype': dtype}
        if self.selection is None:
            return None, nn.Linear(self.head_hidden_size, num_classes, **dd)
        self.labels_per_query = math.ceil(num_classes / (self.max_queries or num_classes))
        num_queries = math.ceil(num_classes / self.labels_per_query)
        label_embed = nn.Embedding(num_queries, self.num_branches * self.embed_dim, **dd)
        classifier: nn.Module
        if num_queries == num_classes:
            classifier = ClassWiseLinear(num_classes, 3 * self.embed_dim, **dd)
        else:
            classifier = GroupLinear(num_classes, num_queries, 3 * self.embed_dim, **dd)
        # As in Query2Label. With small embeddings all labels would attend to the same regions, and learn slowly.
        nn.init.normal_(label_embed.weight)
        return label_embed, classifier

    def encode(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps the backbone's maps (B, C_i, H_i, W_i) to features (B, 3*d + P, H/16, W/16).

        The features are the enhanced scales on the grid of the finest one and, with a pooled classifier, the backbone's
        last map of P channels.
        """
        scales = self.projection(maps)
        height, width = scales[0].shape[-2], scales[0].shape[-1]
        if self.scale_attention is not None:
            scales = self.scale_attention(scales)
        tokens = self.enhancement(self.position(scales))  # 784, 196 and 49 at 448 pixels
        features = stack_scales(tokens, height, width)
        if not self.num_pooled:
            return features
        last = maps[-1]
        if self.has_last_conv:
            last = self.backbone.bn2(self.backbone.conv_head(last))
        return torch.cat([features, F.interpolate(last, size=[height, width], mode='nearest-exact')], dim=1)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head and self.num_pooled:
            self.num_features -= self.num_pooled
            self.num_pooled = 0
            if self.has_last_conv:
                self.backbone.conv_head = self.backbone.bn2 = None  # type: ignore[assignment]
        return take_indices

    def split_features(self, features: torch.Tensor) -> list[torch.Tensor]:
        return split_scales(features[:, : 3 * self.embed_dim])

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Maps features from `encode` to logits (B, K), or with `pre_logits` to an embedding (B, 3*d + P)."""
        if pre_logits or self.label_embed is None:
            x = self.global_pool(x)
            return x if pre_logits else self.classifier(x)
        assert self.selection is not None
        query = self.label_embed.weight.unflatten(1, (self.num_branches, self.embed_dim)).transpose(0, 1)
        tokens = flatten_scales(self.split_features(x))
        z = torch.cat(self.selection(query, tokens), dim=-1)  # Eq. 11
        logits = self.classifier(z)
        if self.pooled_classifier is None:
            return logits
        pooled = self.pooled_classifier(x[:, 3 * self.embed_dim :])
        if not torch.jit.is_scripting():  # scripts return tensors only
            if self.separate_training and self.training:
                return logits, pooled  # type: ignore[return-value]
        return (logits + pooled) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, K)."""
        # The base class has the same method, but torch.fx leaves out of a graph only functions of this method's file.
        check_size(x)
        return self.forward_maps(self.backbone(x))


def _check_choice(argument: str, value: object, choices: Collection) -> None:
    if value not in choices:
        raise ValueError(f'{argument}={value!r} must be one of {", ".join(map(str, choices))}.')


def _check_depth(argument: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f'{argument}={value!r} must be an integer of at least 0.')


def _cfg(url: str = '', **kwargs) -> dict:
    return {
        **BASE_CFG,
        'url': url,
        'pool_size': (28, 28),
        'classifier': ('label_embed', 'classifier'),
        'paper_name': 'Multi-Scale Feature Fusion and Advanced Representation Learning'
        ' for Multi Label Image Classification',
        'paper_ids': 'doi:10.32604/cmc.2025.059102',
        'origin_url': 'https://doi.org/10.32604/cmc.2025.059102',
        **kwargs,
    }


def _published(name: str, label_names: Sequence[str], **kwargs) -> dict:
    """Returns the configuration of a tag whose weights are on the Hub, in the repository of that name."""
    return _cfg(
        hf_hub_id=f'{HUB_NAMESPACE}/{name}', num_classes=len(label_names), label_names=tuple(label_names), **kwargs
    )


# `pretrained=True` loads the first tag of an architecture that has weights.
default_cfgs = generate_default_cfgs(
    {
        'msff_resnet101.coco2014_448': _published('msff_resnet101.coco2014_448', COCO_LABELS),
        'msff_resnet101.coco2014_576': _published(
            'msff_resnet101.coco2014_576', COCO_LABELS, input_size=(3, 576, 576), pool_size=(36, 36)
        ),
        'msff_resnet101.voc2007_448': _published('msff_resnet101.voc2007_448', VOC_LABELS),
        'msff_resnet101.voc2012_448': _published('msff_resnet101.voc2012_448', VOC_LABELS),
        'msff_resnet50.untrained': _cfg(),
        'msff_resnet34.untrained': _cfg(),
        'msff_resnet18.untrained': _cfg(),
        'msff_convnext_tiny.untrained': _cfg(first_conv='backbone.stem_0'),
        'msff_davit_tiny.untrained': _cfg(first_conv='backbone.stem.conv'),
        'msff_efficientnet_b0.untrained': _cfg(first_conv='backbone.conv_stem'),
        'msff_efficientnet_lite2.untrained': _cfg(input_size=(3, 320, 320), pool_size=(20, 20), **LITE),
        'msff_efficientnet_lite0.voc2012_subset': _published(
            'msff_efficientnet_lite0.voc2012_subset',
            VOC_LABELS,
            file=str(WEIGHTS / 'msff_efficientnet_lite0.voc2012_subset' / 'model.safetensors'),
            input_size=(3, 320, 320),
            pool_size=(20, 20),
            **LITE,
        ),
        'msff_mobilenetv4_small.untrained': _cfg(
            input_size=(3, 224, 224), pool_size=(14, 14), first_conv='backbone.conv_stem'
        ),
        'msff_test_resnet.scenes': _published(
            'msff_test_resnet.scenes',
            SCENES_LABELS,
            file=str(WEIGHTS / 'msff_test_resnet.scenes' / 'model.safetensors'),
            input_size=(3, 96, 96),
            pool_size=(6, 6),
            **TEST_RESNET,
        ),
    }
)


# Head of the small variants
SMALL_HEAD: dict[str, Any] = dict(embed_dim=128, num_heads=4, ffn_dim=512)


def _create_msff(variant: str, pretrained: bool = False, **kwargs) -> MSFF:
    kwargs = dict(num_maps=5, pretrained_filter_fn=check_weights, **kwargs)
    model: Any = create_on_backbone(MSFF, variant, pretrained, **kwargs)
    if getattr(model, 'pooled_classifier', None) is not None:  # `features_only` has no classifier
        model.pretrained_cfg['classifier'] = ('label_embed', 'classifier', 'pooled_classifier.linear')
    return model


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
def msff_convnext_tiny(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on ConvNeXt-T."""
    model_args = dict(backbone='convnext_tiny')
    return _create_msff('msff_convnext_tiny', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_davit_tiny(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on DaViT-T, a hierarchical Transformer with window attention, as Swin."""
    model_args = dict(backbone='davit_tiny')
    return _create_msff('msff_davit_tiny', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_efficientnet_b0(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on EfficientNet-B0, with half of the head's width."""
    model_args = dict(backbone='efficientnet_b0', embed_dim=256, ffn_dim=1024)
    return _create_msff('msff_efficientnet_b0', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_efficientnet_lite2(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on EfficientNet-Lite2, for CPUs and phones, with a quarter of the head's width."""
    model_args = dict(backbone='tf_efficientnet_lite2', **SMALL_HEAD, pooled_classifier=True)
    return _create_msff('msff_efficientnet_lite2', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_efficientnet_lite0(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on EfficientNet-Lite0, for CPUs and phones, with a quarter of the head's width."""
    model_args = dict(backbone='tf_efficientnet_lite0', **SMALL_HEAD, pooled_classifier=True)
    return _create_msff('msff_efficientnet_lite0', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_mobilenetv4_small(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on MobileNetV4-Conv-S, with a quarter of the head's width."""
    model_args = dict(backbone='mobilenetv4_conv_small', **SMALL_HEAD)
    return _create_msff('msff_mobilenetv4_small', pretrained, **dict(model_args, **kwargs))


@register_model
def msff_test_resnet(pretrained: bool = False, **kwargs) -> MSFF:
    """MSFF on timm's tiny test ResNet, for tests and the demo."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_msff('msff_test_resnet', pretrained, **dict(model_args, **kwargs))
