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
    """Returns the position encoding of DETR: sines and cosines of the row and of the column of each cell.

    Args:
        x: Map (B, d, H, W), which determines grid, width, device and dtype; d is a multiple of 4.

    Returns:
        Encoding (H*W, d): the first half of the channels encodes the row, the second half the column.
    """
    height, width, num_waves = x.shape[-2], x.shape[-1], x.shape[1] // 4
    # In half precision, neighbouring cells of a fine grid would have the same phase.
    rows = _waves(height, num_waves, x.device)[:, None].expand(-1, width, -1)
    columns = _waves(width, num_waves, x.device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(x.dtype)


def _waves(length: int, num_waves: int, device: torch.device) -> torch.Tensor:
    """Returns alternating sines and cosines, of wavelengths from 1 to 10000 map sides: (length, 2*num_waves)."""
    position = torch.arange(1, length + 1, device=device, dtype=torch.float32) * (2 * math.pi / length)
    exponent = torch.arange(num_waves, device=device, dtype=torch.float32) / num_waves
    phase = position[:, None] / torch.pow(10000.0, exponent)
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)


@register_notrace_module
class LabelEncoder(nn.Module):
    """Encoder of Query2Label, in which the regions of a map attend to each other.

    Args:
        in_chans: Number of channels of the map; if it differs from `embed_dim`, a 1 x 1 convolution projects them.
        embed_dim: Width d of the layers.
        depth: Number of layers.
        num_heads: Number of attention heads.
        ffn_dim: Width of the feed-forward networks.
        drop_rate: Dropout rate.
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
        """Maps a map (B, C, H, W) to an enhanced map (B, d, H, W)."""
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
    """Decoder of Query2Label, in which each label attends to the regions of a map.

    Args:
        embed_dim: Width d of the layers.
        depth: Number of layers.
        num_heads: Number of attention heads.
        ffn_dim: Width of the feed-forward networks.
        drop_rate: Dropout rate.
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
        """Maps label embeddings (K, d) and an enhanced map (B, d, H, W) to features of the labels (B, K, d)."""
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
    """Initializes every matrix of the layers as in DETR, whose Transformer Query2Label uses."""
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


class Query2Label(BackboneModel):
    """Multi-label classifier with one learnable query per label. The defaults are its authors' at 448 pixels.

    Args:
        backbone: Name of a timm model with stages of reduction 8, 16 and 32.
        backbone_pretrained: True to download timm's weights for the backbone.
        backbone_args: Further arguments of the backbone, e.g. `{'drop_path_rate': 0.1}`.
        num_classes: Number of labels K; 0 for image embeddings instead of logits.
        in_chans: Number of image channels.
        global_pool: Pooling of the embedding, by timm's name: `avg`, `max`, ... or '' for none.
        embed_dim: Width d of the Transformer; a multiple of 4.
        num_heads: Number of attention heads in every layer; divides `embed_dim`.
        ffn_dim: Width of the feed-forward networks.
        encoder_depth: Number of encoder layers.
        decoder_depth: Number of decoder layers, at least 1.
        drop_rate: Dropout rate of the Transformer layers.

    Raises:
        ValueError: An argument is not allowed, or the backbone lacks a stage.

    Examples:
        >>> model = Query2Label('test_resnet', num_classes=3, embed_dim=64, num_heads=2, ffn_dim=64).eval()
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 3])
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
            raise ValueError(f'embed_dim={embed_dim} must be a multiple of 4 for the position encoding.')
        if encoder_depth < 0 or decoder_depth < 1:
            raise ValueError(
                f'encoder_depth={encoder_depth} must be at least 0, and decoder_depth={decoder_depth} at least 1.'
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
    """Query2Label on ResNet-101, as trained by its authors."""
    model_args = dict(backbone='resnet101')
    return _create_q2l('q2l_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def q2l_efficientnet_lite0(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on EfficientNet-Lite0, with a head as wide as that of `msff_efficientnet_lite0`."""
    model_args = dict(backbone='tf_efficientnet_lite0', embed_dim=128, num_heads=4, ffn_dim=512)
    return _create_q2l('q2l_efficientnet_lite0', pretrained, **dict(model_args, **kwargs))


@register_model
def q2l_test_resnet(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on timm's tiny test ResNet, for tests."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_q2l('q2l_test_resnet', pretrained, **dict(model_args, **kwargs))
