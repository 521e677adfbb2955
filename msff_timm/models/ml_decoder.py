"""ML-Decoder, one of the models that MSFF is compared with.

Paper: ML-Decoder: Scalable and Versatile Classification Head
    - https://arxiv.org/abs/2111.12933

In a Transformer decoder without self-attention, up to 100 fixed queries gather features from the backbone's last map.
Each query serves a group of labels, which a linear layer per group scores.
"""

import torch
import torch.nn as nn
from timm.layers import register_notrace_module
from timm.models import generate_default_cfgs, register_model

from .base import BASE_CFG, LITE, TEST_RESNET, BackboneModel, create_on_backbone
from .layers import AttentionLayer, GroupLinear

__all__ = ['MLDecoder']

# The head uses the last map; `forward_intermediates` also returns the others, which the backbone computes anyway.
REDUCTIONS = (8, 16, 32)


@register_notrace_module
class GroupDecoder(nn.Module):
    """Decoder of ML-Decoder, in which each query attends to the regions of a map.

    Args:
        in_chans: Number of channels C of the map.
        embed_dim: Width d of the layer.
        num_heads: Number of attention heads.
        ffn_dim: Width of the feed-forward network.
        drop_rate: Dropout rate.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.proj = nn.Linear(in_chans, embed_dim, **dd)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(drop_rate)
        self.norm = nn.LayerNorm(embed_dim, **dd)
        self.layer = AttentionLayer(embed_dim, num_heads, ffn_dim, drop_rate, **dd)

    def forward(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Maps queries (N, d) and a map (B, C, H, W) to features of the queries (B, N, d)."""
        memory = self.act(self.proj(x.flatten(2).transpose(1, 2)))
        query = query.expand(x.shape[0], -1, -1)
        z = self.norm(query + self.drop(query))  # the remains of a self-attention
        return self.layer(z, z, memory, memory)


class FixedQueries(nn.Module):
    """Random queries that are never trained; they are saved with the weights that were trained for them."""

    weight: torch.Tensor

    def __init__(self, num_queries: int, embed_dim: int, device=None, dtype=None):
        super().__init__()
        self.register_buffer('weight', torch.empty(num_queries, embed_dim, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.normal_(self.weight)


class MLDecoder(BackboneModel):
    """Multi-label classifier with fixed queries, each for a group of labels. The defaults are its authors'.

    Args:
        backbone: Name of a timm model with stages of reduction 8, 16 and 32.
        backbone_pretrained: True to download timm's weights for the backbone.
        backbone_args: Further arguments of the backbone, e.g. `{'drop_path_rate': 0.1}`.
        num_classes: Number of labels K; 0 for image embeddings instead of logits.
        in_chans: Number of image channels.
        global_pool: Pooling of the embedding, by timm's name: `avg`, `max`, ... or '' for none.
        embed_dim: Width d of the decoder.
        num_heads: Number of attention heads; divides `embed_dim`.
        ffn_dim: Width of the feed-forward network.
        max_queries: Largest number of queries; with more labels, a group of labels shares one.
        drop_rate: Dropout rate of the decoder.

    Raises:
        ValueError: An argument is not allowed, or the backbone lacks a stage.

    Examples:
        >>> model = MLDecoder('test_resnet', num_classes=3, embed_dim=64, num_heads=2, ffn_dim=64).eval()
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 3])
    """

    head_maps = slice(-1, None)
    decoder_parts = ('decoder',)

    def __init__(
        self,
        backbone: str = 'resnet101',
        backbone_pretrained: bool = False,
        backbone_args: dict | None = None,
        num_classes: int = 80,
        in_chans: int = 3,
        global_pool: str = 'avg',
        embed_dim: int = 768,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        max_queries: int = 100,
        drop_rate: float = 0.1,
        device=None,
        dtype=None,
    ):
        if max_queries < 1:
            raise ValueError(f'max_queries={max_queries} must be at least 1.')
        dd = {'device': device, 'dtype': dtype}
        super().__init__(backbone, backbone_pretrained, backbone_args, in_chans, REDUCTIONS, **dd)
        self.embed_dim = embed_dim
        self.max_queries = max_queries
        self.num_features = self.feature_info[-1]['num_chs']
        self.decoder = GroupDecoder(self.num_features, embed_dim, num_heads, ffn_dim, drop_rate, **dd)
        self.reset_classifier(num_classes, global_pool)

    def group_of_head(self, name: str, coarse: bool) -> int:
        return 0 if name.startswith('decoder.') else 1

    @torch.jit.ignore
    def shares_queries(self, num_classes: int) -> bool:
        """Returns whether labels would share a query if the model had that many labels."""
        return num_classes > self.max_queries

    def make_classifier(self, num_classes: int, device=None, dtype=None) -> tuple[nn.Module | None, nn.Module]:
        dd = {'device': device, 'dtype': dtype}
        num_queries = min(self.max_queries, num_classes)
        queries = FixedQueries(num_queries, self.embed_dim, **dd)
        return queries, GroupLinear(num_classes, num_queries, self.embed_dim, **dd)

    def encode(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Returns the backbone's last map (B, C, H/32, W/32): this model has no encoder."""
        return maps[-1]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Maps features to logits (B, K), or with `pre_logits` to an embedding (B, num_features)."""
        if pre_logits or self.query_embed is None:
            return self.global_pool(x)
        return self.classifier(self.decoder(self.query_embed.weight, x))


def _cfg(url: str = '', **kwargs) -> dict:
    return {
        **BASE_CFG,
        'url': url,
        'pool_size': (14, 14),
        'classifier': ('query_embed', 'classifier'),
        'paper_name': 'ML-Decoder: Scalable and Versatile Classification Head',
        'paper_ids': 'arXiv:2111.12933',
        'origin_url': 'https://github.com/Alibaba-MIIL/ML_Decoder',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'mldecoder_resnet101.untrained': _cfg(),
        'mldecoder_efficientnet_lite0.untrained': _cfg(input_size=(3, 224, 224), pool_size=(7, 7), **LITE),
        'mldecoder_test_resnet.untrained': _cfg(input_size=(3, 128, 128), pool_size=(4, 4), **TEST_RESNET),
    }
)


def _create_mldecoder(variant: str, pretrained: bool = False, **kwargs) -> MLDecoder:
    return create_on_backbone(MLDecoder, variant, pretrained, num_maps=3, **kwargs)


@register_model
def mldecoder_resnet101(pretrained: bool = False, **kwargs) -> MLDecoder:
    """ML-Decoder on ResNet-101."""
    model_args = dict(backbone='resnet101')
    return _create_mldecoder('mldecoder_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def mldecoder_efficientnet_lite0(pretrained: bool = False, **kwargs) -> MLDecoder:
    """ML-Decoder on EfficientNet-Lite0, with a head as wide as that of `msff_efficientnet_lite0`."""
    model_args = dict(backbone='tf_efficientnet_lite0', embed_dim=128, num_heads=4, ffn_dim=512)
    return _create_mldecoder('mldecoder_efficientnet_lite0', pretrained, **dict(model_args, **kwargs))


@register_model
def mldecoder_test_resnet(pretrained: bool = False, **kwargs) -> MLDecoder:
    """ML-Decoder on timm's tiny test ResNet, for tests."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_mldecoder('mldecoder_test_resnet', pretrained, **dict(model_args, **kwargs))
