"""Backbones (section 3.1 of the paper): feature maps of timm models, and what timm knows about their parameters."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.layers import register_notrace_function
from timm.models import group_parameters
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features

__all__ = [
    'check_size',
    'copy_backbone',
    'create_backbone',
    'first_conv_of_backbone',
    'group_backbone',
    'no_weight_decay_of_backbone',
]


def create_backbone(
    name: str,
    reductions: Sequence[int] = (16, 32),
    pretrained: bool = False,
    in_chans: int = 3,
    backbone_args: dict | None = None,
    last_conv: bool = False,
    device=None,
    dtype=None,
) -> nn.Module:
    """Creates the `features_only` form of a timm model, which returns one NCHW map per reduction.

    Args:
        name: Name of a timm model, with or without a pretrained tag.
        reductions: Strides of the maps, in ascending order.
        pretrained: True to download timm's weights.
        in_chans: Number of image channels.
        backbone_args: Further arguments of the timm model.
        last_conv: True to keep the convolution that an EfficientNet has after its last map, as `conv_head` and `bn2`.

    Returns:
        Module that maps images (B, C, H, W) to a list of maps; its `feature_info` holds their numbers of channels.

    Raises:
        ValueError: There is no such model, it has no feature maps, or none of a given reduction.
    """
    args = {**_any_size(name), **(backbone_args or {}), 'features_only': True, 'in_chans': in_chans}
    try:
        stages = timm.create_model(name, **args, device='meta')
    except (TypeError, RuntimeError, AssertionError) as e:
        raise ValueError(f'backbone {name!r} has no feature maps ({" ".join(str(e).split())}).') from e
    found = [level.get('reduction') for level in stages.feature_info.info]
    missing = [reduction for reduction in reductions if reduction not in found]
    if missing:
        raise ValueError(f'backbone {name!r} has no stage of reduction {missing[0]}, only of {found}.')
    # Of several stages with the same reduction, take the last.
    out_indices = tuple(len(found) - 1 - found[::-1].index(reduction) for reduction in reductions)
    if getattr(stages, 'output_fmt', None) == 'NHWC':
        args['feature_cls'] = 'getter'  # returns NCHW from NHWC models
    args |= {'pretrained': pretrained, 'out_indices': out_indices}
    backbone = timm.create_model(name, **args, device=device, dtype=dtype)
    if isinstance(backbone, (EfficientNetFeatures, MobileNetV3Features)) and backbone.feature_hooks is None:
        # timm keeps the blocks after the last map; their weights would get no gradient.
        backbone.blocks = backbone.blocks[: max(backbone._stage_out_idx)]
    if last_conv and isinstance(backbone, EfficientNetFeatures):
        args = {**(backbone_args or {}), 'in_chans': in_chans, 'pretrained': pretrained}
        whole: Any = timm.create_model(name, **args, device=device, dtype=dtype)
        backbone.conv_head, backbone.bn2 = whole.conv_head, whole.bn2
    return backbone


@torch.no_grad()
def copy_backbone(trained: nn.Module, backbone: nn.Module, leave_out: tuple[str, ...] = ()) -> None:
    """Copies the weights and buffers of a trained model to a backbone.

    Args:
        trained: The same timm model, whole or in its `features_only` form.
        backbone: Backbone that is changed in place.
        leave_out: Names of modules of the backbone that stay as they are, e.g. the classifier.

    Raises:
        ValueError: The trained model lacks a tensor of the backbone, or its shape differs.
    """
    found = {ours: tensor for theirs, tensor in trained.state_dict().items() for ours in _our_names(theirs)}
    for name, tensor in backbone.state_dict().items():
        if name.rpartition('.')[0] in leave_out:
            continue
        if name not in found or found[name].shape != tensor.shape:
            raise ValueError(f'it has no {name} of {" x ".join(map(str, tensor.shape))}')
        tensor.copy_(found[name])


def _any_size(name: str) -> dict[str, Any]:
    """Returns the argument, if there is one, that lets a model of one fixed image size take images of any size."""
    architecture = name.partition('.')[0]
    if not timm.is_model(architecture):
        nearest = get_close_matches(architecture, timm.list_models(), n=1)
        raise ValueError(f'backbone {name!r} is no timm model' + (f': did you mean {nearest[0]}?' if nearest else '.'))
    if not timm.get_pretrained_cfg_value(architecture, 'fixed_input_size'):
        return {}
    any_size: dict[str, Any] = {'dynamic_img_size': True}
    try:
        timm.create_model(architecture, **any_size, device='meta')
    except TypeError:
        return {}
    return any_size


@register_notrace_function
def check_size(x: torch.Tensor) -> None:
    """Checks that images (B, C, H, W) cover at least one cell of the map of reduction 32.

    Raises:
        ValueError: A side of the images is shorter than 32 pixels.
    """
    if x.shape[-2] < 32 or x.shape[-1] < 32:
        raise ValueError(f'images of {x.shape[-2]} x {x.shape[-1]} pixels are too small: use at least 32 x 32.')


def group_backbone(backbone: nn.Module, name: str, coarse: bool, backbone_args: dict | None = None) -> dict[str, int]:
    """Numbers the layers of a backbone from 0, its stem, by the `group_matcher` of the whole timm model.

    Args:
        backbone: Backbone from `create_backbone`.
        name: Name that `create_backbone` was called with.
        coarse: True to number stages instead of layers.
        backbone_args: Arguments that `create_backbone` was called with.

    Returns:
        Number of the layer of each parameter, by the parameter's name.
    """
    whole = _whole(name, backbone_args)
    layers = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
    return {ours: layers[theirs] for ours, theirs in _same_parameters(backbone, whole)}


def no_weight_decay_of_backbone(backbone: nn.Module, name: str, backbone_args: dict | None = None) -> set[str]:
    """Returns the names of the backbone's parameters that the whole timm model exempts from weight decay."""
    whole = _whole(name, backbone_args)
    patterns = whole.no_weight_decay() if hasattr(whole, 'no_weight_decay') else ()
    return {ours for ours, theirs in _same_parameters(backbone, whole) if any(fnmatch(theirs, p) for p in patterns)}


def first_conv_of_backbone(backbone: nn.Module) -> tuple[str, ...]:
    """Returns the names of the backbone's first convolutions, which timm adapts to the number of image channels."""
    first_conv = backbone.pretrained_cfg.get('first_conv') or ()
    parameters = dict(backbone.named_parameters())
    theirs = (first_conv,) if isinstance(first_conv, str) else first_conv
    return tuple(ours for conv in theirs for ours in _our_names(conv) if f'{ours}.weight' in parameters)


def _whole(name: str, backbone_args: dict | None) -> nn.Module:
    """Creates the whole timm model of a backbone on the meta device."""
    args = {**_any_size(name), **(backbone_args or {})}
    args.pop('feature_cls', None)  # an argument of the `features_only` form only
    return timm.create_model(name, **args, device='meta')


def _same_parameters(backbone: nn.Module, whole: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the names of each parameter in a `features_only` form and in the whole model."""
    ours = {name for name, _ in backbone.named_parameters()}
    for theirs, _ in whole.named_parameters():
        yield from ((name, theirs) for name in _our_names(theirs) if name in ours)


def _our_names(theirs: str) -> tuple[str, ...]:
    """Returns the possible names of a module or parameter in the `features_only` form of its timm model.

    timm keeps the name, or joins its first two parts (`stages_0`), or puts `model.` in front of it.
    """
    return tuple(dict.fromkeys((theirs, theirs.replace('.', '_', 1), f'model.{theirs}')))
