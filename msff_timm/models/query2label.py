"""Query2Label, one of the models that MSFF is compared with.

Paper: Query2Label: A Simple Transformer Way to Multi-Label Classification
    - https://arxiv.org/abs/2107.10834

A Transformer encoder enhances the backbone's last map. In the decoder, which has no self-attention, one learnable query
per label gathers features from that map, and a class-wise linear layer scores each label.
"""

import math

import torch
import torch.nn as nn
from timm.layers import register_notrace_module
from timm.models import checkpoint, generate_default_cfgs, register_model

from .base import BASE_CFG, LITE, TEST_RESNET, BackboneModel, create_on_backbone
from .layers import AttentionLayer, ClassWiseLinear

__all__ = ['Query2Label']

# The head uses the last map; `forward_intermediates` also returns the others, which the backbone computes anyway.
REDUCTIONS = (8, 16, 32)


def sine_position(x: torch.Tensor) -> torch.Tensor:
    """Tells each cell of a map where it lies, by sines and cosines of its row and of its column.

    Args:
        x: Map (B, d, H, W), of which the grid, the device and the type count; 4 divides d.

    Returns:
        (H*W, d): the first half of the channels is for the row, the second for the column.
    """
    height, width, num_waves = x.shape[-2], x.shape[-1], x.shape[1] // 4
    # The phases need float32: in half precision, neighbouring cells of a fine grid would fall together.
    rows = _waves(height, num_waves, x.device)[:, None].expand(-1, width, -1)
    columns = _waves(width, num_waves, x.device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(x.dtype)


def _waves(length: int, num_waves: int, device: torch.device) -> torch.Tensor:
    """Returns sine and cosine in turn of waves that are 1 to 10000 sides of the map long: (length, 2*num_waves)."""
    place = torch.arange(1, length + 1, device=device, dtype=torch.float32) * (2 * math.pi / length)
    wave = torch.arange(num_waves, device=device, dtype=torch.float32) / num_waves
    phase = place[:, None] / torch.pow(10000.0, wave)
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)


@register_notrace_module
class LabelEncoder(nn.Module):
    """Encoder of Query2Label: relates the regions of a map to each other.

    Args:
        in_chans: Channels of the map; a 1 x 1 convolution brings them to `embed_dim` where they differ.
        embed_dim: Width of the layers.
        depth: Number of layers.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.grad_checkpointing = False
        self.proj = nn.Identity() if in_chans == embed_dim else nn.Conv2d(in_chans, embed_dim, 1, **dd)
        self.layers = nn.ModuleList(
            AttentionLayer(embed_dim, num_heads, ffn_dim, drop_rate, **dd) for _ in range(depth)
        )
        self.init_weights()

    def init_weights(self) -> None:
        _xavier(self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps a map (B, C, H, W) to (B, d, H, W)."""
        x = self.proj(x)
        position = sine_position(x)
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            query = tokens + position
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpoint(layer, tokens, query, query, tokens)
            else:
                tokens = layer(tokens, query, query, tokens)
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


@register_notrace_module
class LabelDecoder(nn.Module):
    """Decoder of Query2Label: each label gathers the regions that speak of it.

    Args:
        depth: Number of layers.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.grad_checkpointing = False
        self.layers = nn.ModuleList(
            AttentionLayer(embed_dim, num_heads, ffn_dim, drop_rate, **dd) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        _xavier(self.layers)

    def forward(self, label_embed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Maps label embeddings (K, d) and an enhanced map (B, d, H, W) to a feature for each label (B, K, d)."""
        memory = x.flatten(2).transpose(1, 2)
        key = memory + sine_position(x)
        z = torch.zeros_like(label_embed).expand(x.shape[0], -1, -1)
        for layer in self.layers:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                z = checkpoint(layer, z, z + label_embed, key, memory)
            else:
                z = layer(z, z + label_embed, key, memory)
        return self.norm(z)


def _xavier(layers: nn.ModuleList) -> None:
    """Draws every matrix of the layers as DETR does, from which Query2Label has its Transformer."""
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


class Query2Label(BackboneModel):
    """Multi-label classifier with one learnt query for each label. The defaults are those of its authors at 448 pixels.

    Args:
        backbone: Any timm model with stages of reduction 8, 16 and 32.
        backbone_pretrained: Fetch timm's own weights for the backbone.
        backbone_args: Further arguments of the backbone, `{'drop_path_rate': 0.1}` say.
        num_classes: Number of labels K; 0 for an image embedding instead of logits.
        in_chans: Channels of the image.
        global_pool: How the embedding is pooled, as timm names it: `avg`, `max`, ... or '' for none.
        embed_dim: Width of the Transformer; a multiple of 4.
        num_heads: Attention heads in every layer; divides `embed_dim`.
        ffn_dim: Width of the feed-forward networks.
        encoder_depth: Layers that relate regions to each other.
        decoder_depth: Layers in which labels gather regions.
        drop_rate: Dropout in the Transformer layers.

    Raises:
        ValueError: An argument is none of what is allowed, or the backbone lacks a stage.
    """

    head_maps = slice(-1, None)
    encoder_parts = ('encoder',)
    decoder_parts = ('decoder',)

    def __init__(
        self,
        backbone: str = 'resnet101',
        backbone_pretrained: bool = False,
        backbone_args: dict | None = None,
        num_classes: int = 80,
        in_chans: int = 3,
        global_pool: str = 'avg',
        embed_dim: int = 2048,
        num_heads: int = 4,
        ffn_dim: int = 8192,
        encoder_depth: int = 1,
        decoder_depth: int = 2,
        drop_rate: float = 0.1,
        device=None,
        dtype=None,
    ):
        if embed_dim % 4:
            raise ValueError(f'embed_dim={embed_dim} must be a multiple of 4: the positions are pairs of waves.')
        if encoder_depth < 0 or decoder_depth < 1:
            raise ValueError(
                f'encoder_depth={encoder_depth} must be 0 or more, decoder_depth={decoder_depth} 1 or more.'
            )
        dd = {'device': device, 'dtype': dtype}
        super().__init__(backbone, backbone_pretrained, backbone_args, in_chans, REDUCTIONS, **dd)
        self.embed_dim = self.num_features = embed_dim
        layer_args = dict(num_heads=num_heads, ffn_dim=ffn_dim, drop_rate=drop_rate, **dd)
        self.encoder = LabelEncoder(self.feature_info[-1]['num_chs'], embed_dim, encoder_depth, **layer_args)
        self.decoder = LabelDecoder(embed_dim, decoder_depth, **layer_args)
        self.feature_info.append(dict(num_chs=embed_dim, reduction=32, module='encoder'))
        self.reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'query_embed.weight', *super().no_weight_decay()}

    def group_of_head(self, name: str, coarse: bool) -> int:
        return {'encoder': 0, 'decoder': 1}.get(name.partition('.')[0], 2)

    def make_classifier(self, num_classes: int, device=None, dtype=None) -> tuple[nn.Module | None, nn.Module]:
        dd = {'device': device, 'dtype': dtype}
        return nn.Embedding(num_classes, self.embed_dim, **dd), ClassWiseLinear(num_classes, self.embed_dim, **dd)

    def encode(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps the backbone's maps to features (B, d, H/32, W/32): its last map, enhanced."""
        return self.encoder(maps[-1])

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
        'paper_name': 'Query2Label: A Simple Transformer Way to Multi-Label Classification',
        'paper_ids': 'arXiv:2107.10834',
        'origin_url': 'https://github.com/SlongLiu/query2labels',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'q2l_resnet101.untrained': _cfg(),
        'q2l_efficientnet_lite0.untrained': _cfg(input_size=(3, 224, 224), pool_size=(7, 7), **LITE),
        'q2l_test_resnet.untrained': _cfg(input_size=(3, 128, 128), pool_size=(4, 4), **TEST_RESNET),
    }
)


def _create_q2l(variant: str, pretrained: bool = False, **kwargs) -> Query2Label:
    return create_on_backbone(Query2Label, variant, pretrained, num_maps=3, **kwargs)


@register_model
def q2l_resnet101(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on ResNet-101, as its authors train it."""
    model_args = dict(backbone='resnet101')
    return _create_q2l('q2l_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def q2l_efficientnet_lite0(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on EfficientNet-Lite0, with a head of the width of `msff_efficientnet_lite0`'s."""
    model_args = dict(backbone='tf_efficientnet_lite0', embed_dim=128, num_heads=4, ffn_dim=512)
    return _create_q2l('q2l_efficientnet_lite0', pretrained, **dict(model_args, **kwargs))


@register_model
def q2l_test_resnet(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on timm's tiny test ResNet, for tests."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_q2l('q2l_test_resnet', pretrained, **dict(model_args, **kwargs))
