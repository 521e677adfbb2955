"""Query2Label and ML-Decoder, the models that MSFF is compared with, on the same contract.

Papers:
    - Query2Label: A Simple Transformer Way to Multi-Label Classification, https://arxiv.org/abs/2107.10834
    - ML-Decoder: Scalable and Versatile Classification Head, https://arxiv.org/abs/2111.12933

In both, queries gather from the backbone's last map, by the attention of a Transformer decoder without
self-attention, what a classifier then scores. Query2Label enhances the map by an encoder first and has one learnt
query for each label; ML-Decoder has up to 100 fixed queries, each of which serves a group of labels.
"""

import math
from collections.abc import Callable

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, SelectAdaptivePool2d, get_device_dtype, register_notrace_module
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices

from ..labels import set_label_names
from .backbone import check_size, group_backbone
from .base import BackboneModel, create_on_backbone
from .layers import ClassWiseLinear, GroupLinear

__all__ = ['MLDecoder', 'Query2Label']


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


class AttentionLayer(nn.Module):
    """Attention and feed-forward network, each followed by residual connection and norm.

    Unlike `layers.TransformerLayer`, which has one memory for key and value, it lets the key alone know positions; and
    it starts from PyTorch's own values.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, drop_rate: float = 0.0, device=None, dtype=None):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dim={embed_dim}.')
        dd = {'device': device, 'dtype': dtype}
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, drop_rate, batch_first=True, **dd)
        self.norm1 = nn.LayerNorm(embed_dim, **dd)
        self.ffn = Mlp(embed_dim, ffn_dim, act_layer=nn.ReLU, drop=(drop_rate, 0.0), **dd)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)
        self.drop = nn.Dropout(drop_rate)

    def init_weights(self) -> None:
        # nn.MultiheadAttention has no public method for it.
        nn.init.xavier_uniform_(self.attn.in_proj_weight)
        nn.init.zeros_(self.attn.in_proj_bias)
        nn.init.zeros_(self.attn.out_proj.bias)

    def forward(self, x: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Maps tokens and their query (B, N, d), and key and value (B, L, d), to tokens (B, N, d)."""
        x = self.norm1(x + self.drop(self.attn(query, key, value, need_weights=False)[0]))
        return self.norm2(x + self.drop(self.ffn(x)))


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


@register_notrace_module
class GroupDecoder(nn.Module):
    """Decoder of ML-Decoder: each query gathers the regions that speak of its group of labels.

    Args:
        in_chans: Channels of the map.
        embed_dim: Width of the layer.
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
        """Maps queries (N, d) and a map (B, C, H, W) to a feature for each query (B, N, d)."""
        memory = self.act(self.proj(x.flatten(2).transpose(1, 2)))
        query = query.expand(x.shape[0], -1, -1)
        z = self.norm(query + self.drop(query))  # what is left of a decoder layer's self-attention
        return self.layer(z, z, memory, memory)


class FixedQueries(nn.Module):
    """Queries that are drawn once, never trained, and saved with the weights that were trained for them."""

    def __init__(self, num_queries: int, embed_dim: int, device=None, dtype=None):
        super().__init__()
        self.register_buffer('weight', torch.empty(num_queries, embed_dim, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.normal_(self.weight)


class QueryModel(BackboneModel):
    """What both models share: encoder, queries, decoder and classifier on the last map of a backbone.

    A model adds `num_features`, `encoder` (map to map), `decoder` (queries and map to features), `_make_classifier`
    (queries and classifier for a number of labels), and at last calls `reset_classifier`.
    """

    head_maps = slice(-1, None)

    def __init__(
        self, backbone: str, backbone_pretrained: bool, backbone_args: dict | None, in_chans: int, device, dtype
    ):
        # The two larger maps are computed anyway; they are for `forward_intermediates`.
        super().__init__(backbone, backbone_pretrained, backbone_args, in_chans, (8, 16, 32), device, dtype)
        levels = zip(self.backbone.feature_info.channels(), self.backbone.feature_info.reduction(), strict=True)
        self.feature_info = [dict(num_chs=c, reduction=r, module='backbone') for c, r in levels]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Orders the parameters for layer-wise learning rates: the backbone's layers, encoder, decoder, classifier."""
        of_backbone = group_backbone(self.backbone, self.backbone_name, coarse, self.backbone_args['backbone_args'])
        first = max(of_backbone.values()) + 1
        head = {'encoder': first, 'decoder': first + 1, 'query_embed': first + 2, 'classifier': first + 2}

        def layer_of(name: str) -> int:
            part, _, rest = name.partition('.')
            return of_backbone[rest] if part == 'backbone' else head[part]

        return layer_of

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes new queries and a new classifier for another set of labels.

        Args:
            num_classes: 0 removes both, so that the model gives an image embedding.
            global_pool: How the embedding is pooled; None for as before.
        """
        dd = get_device_dtype(self)
        set_label_names(self, None)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        # None and not Identity: TorchScript then leaves out what needs queries.
        self.query_embed, self.classifier = None, nn.Identity()
        if num_classes:
            self.query_embed, self.classifier = self._make_classifier(num_classes, **dd)
            self.query_embed.train(self.training)
        for part in (self.global_pool, self.classifier):
            part.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the maps that `feature_info` lists: those of the backbone, then the encoder's where there is one.

        Args:
            x: Images (B, C, H, W).
            indices: Which of them: the last n, or those listed; None for all.
            norm: Of no effect: the encoder's map is normalised, the backbone's are not.
            stop_early: Of no effect: the encoder is left out whenever nothing of it is asked for.
            output_fmt: `NCHW`.
            intermediates_only: Leave out the final features.

        Returns:
            The maps, after the final features (B, num_features, H/32, W/32) unless `intermediates_only`.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt={output_fmt!r} must be NCHW.')
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        check_size(x)
        maps = list(self.backbone(x))
        features = None
        if not intermediates_only or max(take_indices) >= len(maps):
            features = self.encoder(maps[-1])
            maps.append(features)
        intermediates = [maps[i] for i in take_indices]
        return intermediates if intermediates_only else (features, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what `forward_intermediates` does not need: queries, decoder and classifier, and where only maps of
        the backbone are needed all that comes after them.

        Args:
            indices: Which maps are needed: the last n, or those listed.
            prune_norm: Of no effect: the norms belong to the layers.
            prune_head: Remove them.

        Returns:
            The indices of the maps that are needed.
        """
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.decoder = nn.Identity()
            self.reset_classifier(0, '')
            if max(take_indices) < len(self.backbone_args['reductions']):
                self.encoder = nn.Identity()
                self.prune_backbone(max(take_indices) + 1)
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to features (B, num_features, H/32, W/32)."""
        check_size(x)
        return self.encoder(self.backbone(x)[-1])

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Maps features to logits (B, K), or with `pre_logits` to an embedding (B, num_features)."""
        if self.query_embed is None or pre_logits:
            return self.global_pool(x)
        return self.classifier(self.decoder(self.query_embed.weight, x))

    def forward_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps the backbone's last map (B, C, H/32, W/32), the last of the list, to logits (B, K)."""
        return self.forward_head(self.encoder(maps[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, K)."""
        check_size(x)
        return self.forward_maps(self.backbone(x))


class Query2Label(QueryModel):
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
        super().__init__(backbone, backbone_pretrained, backbone_args, in_chans, **dd)
        self.embed_dim = self.num_features = embed_dim
        layer_args = dict(num_heads=num_heads, ffn_dim=ffn_dim, drop_rate=drop_rate, **dd)
        self.encoder = LabelEncoder(self.feature_info[-1]['num_chs'], embed_dim, encoder_depth, **layer_args)
        self.decoder = LabelDecoder(embed_dim, decoder_depth, **layer_args)
        self.feature_info.append(dict(num_chs=embed_dim, reduction=32, module='encoder'))
        self.reset_classifier(num_classes, global_pool)

    def _make_classifier(self, num_classes: int, device, dtype) -> tuple[nn.Module, nn.Module]:
        return (
            nn.Embedding(num_classes, self.embed_dim, device=device, dtype=dtype),
            ClassWiseLinear(num_classes, self.embed_dim, device=device, dtype=dtype),
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'query_embed.weight', *super().no_weight_decay()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.encoder.grad_checkpointing = self.decoder.grad_checkpointing = enable


class MLDecoder(QueryModel):
    """Multi-label classifier with fixed queries, each for a group of labels. The defaults are those of its authors.

    Args:
        backbone: Any timm model with stages of reduction 8, 16 and 32.
        backbone_pretrained: Fetch timm's own weights for the backbone.
        backbone_args: Further arguments of the backbone, `{'drop_path_rate': 0.1}` say.
        num_classes: Number of labels K; 0 for an image embedding instead of logits.
        in_chans: Channels of the image.
        global_pool: How the embedding is pooled, as timm names it: `avg`, `max`, ... or '' for none.
        embed_dim: Width of the decoder.
        num_heads: Its attention heads; divides `embed_dim`.
        ffn_dim: Width of its feed-forward network.
        max_queries: Number of queries; with fewer labels, each has its own.
        drop_rate: Dropout in the decoder.

    Raises:
        ValueError: An argument is none of what is allowed, or the backbone lacks a stage.
    """

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
            raise ValueError(f'max_queries={max_queries} must be 1 or more.')
        dd = {'device': device, 'dtype': dtype}
        super().__init__(backbone, backbone_pretrained, backbone_args, in_chans, **dd)
        self.embed_dim = embed_dim
        self.max_queries = max_queries
        self.num_features = self.feature_info[-1]['num_chs']
        self.encoder = nn.Identity()  # it has none: the queries look at the backbone's own map
        self.decoder = GroupDecoder(self.num_features, embed_dim, num_heads, ffn_dim, drop_rate, **dd)
        self.reset_classifier(num_classes, global_pool)

    def _make_classifier(self, num_classes: int, device, dtype) -> tuple[nn.Module, nn.Module]:
        num_queries = min(self.max_queries, num_classes)
        return (
            FixedQueries(num_queries, self.embed_dim, device=device, dtype=dtype),
            GroupLinear(num_classes, num_queries, self.embed_dim, device=device, dtype=dtype),
        )

    @torch.jit.ignore
    def shares_queries(self, num_classes: int) -> bool:
        """Returns whether some of so many labels would share a query."""
        return num_classes > self.max_queries


Q2L_PAPER = dict(
    paper_name='Query2Label: A Simple Transformer Way to Multi-Label Classification',
    paper_ids='arXiv:2107.10834',
    origin_url='https://github.com/SlongLiu/query2labels',
)
MLDECODER_PAPER = dict(
    paper_name='ML-Decoder: Scalable and Versatile Classification Head',
    paper_ids='arXiv:2111.12933',
    origin_url='https://github.com/Alibaba-MIIL/ML_Decoder',
)
LITE0 = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    interpolation='bicubic',
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    first_conv='backbone.conv_stem',
)
TEST_RESNET = dict(
    input_size=(3, 128, 128),
    pool_size=(4, 4),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    first_conv='backbone.conv1.0',
)


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
        'classifier': ('query_embed', 'classifier'),
        'license': 'apache-2.0',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'q2l_resnet101.untrained': _cfg(**Q2L_PAPER),
        'q2l_efficientnet_lite0.untrained': _cfg(**Q2L_PAPER, **LITE0),
        'q2l_test_resnet.untrained': _cfg(**Q2L_PAPER, **TEST_RESNET),
        'mldecoder_resnet101.untrained': _cfg(**MLDECODER_PAPER),
        'mldecoder_efficientnet_lite0.untrained': _cfg(**MLDECODER_PAPER, **LITE0),
        'mldecoder_test_resnet.untrained': _cfg(**MLDECODER_PAPER, **TEST_RESNET),
    }
)


def _create_peer(model_cls: type[QueryModel], variant: str, pretrained: bool = False, **kwargs) -> QueryModel:
    return create_on_backbone(model_cls, variant, pretrained, num_maps=3, **kwargs)


@register_model
def q2l_resnet101(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on ResNet-101, as its authors train it."""
    model_args = dict(backbone='resnet101')
    return _create_peer(Query2Label, 'q2l_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def q2l_efficientnet_lite0(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on EfficientNet-Lite0, with a head of the width of `msff_efficientnet_lite0`'s."""
    model_args = dict(backbone='tf_efficientnet_lite0', embed_dim=128, num_heads=4, ffn_dim=512)
    return _create_peer(Query2Label, 'q2l_efficientnet_lite0', pretrained, **dict(model_args, **kwargs))


@register_model
def q2l_test_resnet(pretrained: bool = False, **kwargs) -> Query2Label:
    """Query2Label on timm's tiny test ResNet, for tests."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_peer(Query2Label, 'q2l_test_resnet', pretrained, **dict(model_args, **kwargs))


@register_model
def mldecoder_resnet101(pretrained: bool = False, **kwargs) -> MLDecoder:
    """ML-Decoder on ResNet-101."""
    model_args = dict(backbone='resnet101')
    return _create_peer(MLDecoder, 'mldecoder_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def mldecoder_efficientnet_lite0(pretrained: bool = False, **kwargs) -> MLDecoder:
    """ML-Decoder on EfficientNet-Lite0, with a head of the width of `msff_efficientnet_lite0`'s."""
    model_args = dict(backbone='tf_efficientnet_lite0', embed_dim=128, num_heads=4, ffn_dim=512)
    return _create_peer(MLDecoder, 'mldecoder_efficientnet_lite0', pretrained, **dict(model_args, **kwargs))


@register_model
def mldecoder_test_resnet(pretrained: bool = False, **kwargs) -> MLDecoder:
    """ML-Decoder on timm's tiny test ResNet, for tests."""
    model_args = dict(backbone='test_resnet', embed_dim=96, num_heads=4, ffn_dim=384)
    return _create_peer(MLDecoder, 'mldecoder_test_resnet', pretrained, **dict(model_args, **kwargs))
