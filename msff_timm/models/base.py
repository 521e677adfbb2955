"""The contract that MSFF and its peers share: a model on the feature maps of a timm backbone."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import PretrainedCfg, build_model_with_cfg, named_apply, resolve_pretrained_cfg
from timm.models._features import feature_take_indices

from ..labels import check_label_names, set_label_names
from .backbone import (
    check_size,
    copy_backbone,
    create_backbone,
    first_conv_of_backbone,
    group_backbone,
    no_weight_decay_of_backbone,
)

__all__ = ['BASE_CFG', 'LITE', 'TEST_RESNET', 'BackboneModel', 'create_on_backbone']

ModelT = TypeVar('ModelT', bound='BackboneModel')


class BackboneModel(nn.Module):
    """Base class of the models: a backbone, and a head of an encoder, a decoder with queries, and a classifier.

    A subclass creates its modules, calls `reset_classifier` at the end of its constructor, and implements `encode`,
    `forward_head`, `make_classifier` and `group_of_head`.

    Args:
        backbone: Name of a timm model that has stages of all `reductions`.
        backbone_pretrained: True to download timm's weights for the backbone.
        backbone_args: Further arguments of the backbone.
        in_chans: Number of image channels.
        reductions: Strides of the backbone's maps, in ascending order.
        last_conv: True to keep the backbone's last convolution, see `create_backbone`.

    Attributes:
        head_maps: Slice of the backbone's maps that the head uses.
        encoder_parts: Names of the modules that `encode` uses.
        decoder_parts: Names of the modules between the features and the classifier.
        query_part: Name of the module that holds the queries.
        feature_info: Channels, reduction and module of each map that `forward_intermediates` returns.

    Raises:
        ValueError: The backbone lacks a stage.
    """

    head_maps = slice(None)
    encoder_parts: tuple[str, ...] = ()
    decoder_parts: tuple[str, ...] = ()
    query_part = 'query_embed'

    def __init__(
        self,
        backbone: str,
        backbone_pretrained: bool,
        backbone_args: dict | None,
        in_chans: int,
        reductions: Sequence[int],
        last_conv: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.backbone_name = backbone
        self.backbone_args: dict[str, Any] = dict(
            reductions=reductions, in_chans=in_chans, backbone_args=backbone_args, last_conv=last_conv
        )
        self.backbone = create_backbone(
            backbone, pretrained=backbone_pretrained, **self.backbone_args, device=device, dtype=dtype
        )
        self.feature_info = [
            dict(num_chs=num_chs, reduction=reduction, module='backbone')
            for num_chs, reduction in zip(self.backbone.feature_info.channels(), reductions, strict=True)
        ]
        # timm adapts this convolution to `in_chans` and writes its name into checkpoints; it depends on the backbone.
        self._traits = dict(first_conv=tuple(f'backbone.{name}' for name in first_conv_of_backbone(self.backbone)))

    def init_weights(self) -> None:
        """Initializes all weights anew on their device, those of the backbone as timm does."""
        fresh = create_backbone(self.backbone_name, **self.backbone_args, **get_device_dtype(self))
        # Not by way of the state dict: some buffers are missing from it.
        for new, old in ((fresh.parameters(), self.backbone.parameters()), (fresh.buffers(), self.backbone.buffers())):
            for source, target in zip(new, old, strict=True):
                target.data.copy_(source)
        for name, part in self.named_children():
            if name != 'backbone':
                named_apply(_init_weights, part, include_root=True)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        args = self.backbone_args['backbone_args']
        names = no_weight_decay_of_backbone(self.backbone, self.backbone_name, args)
        return {f'backbone.{name}' for name in names}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Returns the number of a parameter's layer, for layer-wise learning rates: the head follows the backbone."""
        args = self.backbone_args['backbone_args']
        layers = group_backbone(self.backbone, self.backbone_name, coarse, args)
        first = max(layers.values()) + 1

        def layer_of(name: str) -> int:
            part, _, rest = name.partition('.')
            return layers[rest] if part == 'backbone' else first + self.group_of_head(name, coarse)

        return layer_of

    def group_of_head(self, name: str, coarse: bool) -> int:
        """Returns the layer of a parameter of the head; 0 is the head's first layer."""
        raise NotImplementedError

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        getattr(self.backbone, 'model', self.backbone).set_grad_checkpointing(enable)
        for name, part in self.named_children():
            if name != 'backbone' and hasattr(part, 'grad_checkpointing'):
                part.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the queries and the classifier, for another set of labels.

        Args:
            num_classes: Number of labels; 0 removes queries and classifier, and the model returns image embeddings.
            global_pool: Pooling of the embedding, by timm's name; None keeps the present one.
        """
        dd = get_device_dtype(self)
        set_label_names(self, None)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        # None rather than Identity: TorchScript then skips the code that needs queries.
        queries: nn.Module | None = None
        self.classifier: nn.Module = nn.Identity()
        if num_classes:
            queries, self.classifier = self.make_classifier(num_classes, **dd)
        setattr(self, self.query_part, queries)
        for part in (self.global_pool, self.classifier, queries):
            if part is not None:
                part.train(self.training)

    def make_classifier(self, num_classes: int, device=None, dtype=None) -> tuple[nn.Module | None, nn.Module]:
        """Returns new queries, None where the model has no decoder, and a new classifier."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the maps in `feature_info`: those of the backbone and those of the encoder.

        Args:
            x: Images (B, C, H, W).
            indices: Indices of the maps, or the number of last maps; None for all.
            norm: Unused: the encoder's maps are always normalized, the backbone's never.
            stop_early: Unused: the encoder runs only when one of its maps or the final features are needed.
            output_fmt: `NCHW`.
            intermediates_only: True to leave out the final features.

        Returns:
            The final features, as `forward_features` returns them, and the maps; or only the maps.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt={output_fmt!r} must be NCHW.')
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        check_size(x)
        maps = self.backbone(x)
        features: Any = None  # left so only where it is not returned
        encoded: list[torch.Tensor] = []
        if not intermediates_only or not self._is_of_backbone(take_indices):
            features = self.encode(maps)
            encoded = self.split_features(features)
        from_backbone, from_encoder = iter(maps), iter(encoded)
        every: list[Any] = [  # None for maps that are not asked for
            next(from_backbone if info['module'] == 'backbone' else from_encoder, None) for info in self.feature_info
        ]
        intermediates = [every[i] for i in take_indices]
        return intermediates if intermediates_only else (features, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the modules that the given maps do not need.

        Decoder and classifier are always removed; the encoder is, too, if all of the maps are the backbone's.

        Args:
            indices: Indices of the maps, or the number of last maps.
            prune_norm: Unused: the norms are part of the layers.
            prune_head: True to remove anything.

        Returns:
            The indices of the maps.
        """
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self._remove(self.decoder_parts)
            self.reset_classifier(0, '')
            if self._is_of_backbone(take_indices):
                self._remove(self.encoder_parts)
                self._prune_backbone(max(self.feature_info[i]['reduction'] for i in take_indices))
        return take_indices

    def _is_of_backbone(self, indices: list[int]) -> bool:
        return all(self.feature_info[i]['module'] == 'backbone' for i in indices)

    def _remove(self, parts: Sequence[str]) -> None:
        for part in parts:
            setattr(self, part, None)

    def _prune_backbone(self, reduction: int) -> None:
        """Removes the layers after the backbone's map of a reduction."""
        reductions = [r for r in self.backbone_args['reductions'] if r <= reduction]
        if len(reductions) < len(self.backbone_args['reductions']):
            self.backbone_args |= {'reductions': reductions, 'last_conv': False}
            smaller = create_backbone(self.backbone_name, **self.backbone_args, **get_device_dtype(self))
            copy_backbone(self.backbone, smaller)
            self.backbone = smaller.train(self.training)

    def encode(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps the backbone's maps (B, C_i, H_i, W_i), at least those in `head_maps`, to features (B, C, H, W)."""
        raise NotImplementedError

    def split_features(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Returns the encoder's maps, which the features consist of."""
        return [features]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to features (B, num_features, H', W')."""
        check_size(x)
        return self.encode(self.backbone(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Maps features to logits (B, K), or with `pre_logits` to an embedding (B, num_features)."""
        raise NotImplementedError

    def forward_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps the backbone's maps in `head_maps` to logits (B, K), e.g. maps that were cached."""
        return self.forward_head(self.encode(maps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(x))


# Entries that the configurations of all models have in common
BASE_CFG: dict[str, Any] = {
    'num_classes': 80,
    'input_size': (3, 448, 448),
    'crop_pct': 1.0,
    'crop_mode': 'squash',
    'interpolation': 'bilinear',
    'mean': IMAGENET_DEFAULT_MEAN,
    'std': IMAGENET_DEFAULT_STD,
    'first_conv': 'backbone.conv1',
    'license': 'apache-2.0',
}
# Entries of models on an EfficientNet-Lite
LITE: dict[str, Any] = dict(
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic', first_conv='backbone.conv_stem'
)
# Entries of models on timm's tiny `test_resnet`
TEST_RESNET: dict[str, Any] = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), first_conv='backbone.conv1.0')


def _init_weights(module: nn.Module, name: str = '') -> None:
    """Initializes a module; `named_apply` has initialized its submodules before."""
    for method in ('reset_parameters', 'init_weights'):
        if hasattr(module, method):
            getattr(module, method)()


def create_on_backbone(model_cls: type[ModelT], variant: str, pretrained: bool, num_maps: int, **kwargs) -> ModelT:
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
