"""Attention of the labels of MSFF and Query2Label over the regions of an image, as tensors."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.utils import unwrap_model

from ..errors import InputError, unknown
from ..models.layers import MultiHeadAttention
from ..models.msff import MSFF
from ..models.query2label import Query2Label
from .logits import check_finite

__all__ = ['LAYERS', 'attention_maps', 'check_model', 'has_attention', 'smooth_map']

# 'all' is the default: on the demo's scenes its peaks lie in the object more often than those of 'last'.
LAYERS = ('all', 'last')
FLOOR = 1e-6  # of each scale's peak, so that no scale alone rules out a place

Call = tuple[MultiHeadAttention, torch.Tensor, torch.Tensor]  # attention layer, its query, its memory


@torch.inference_mode()
def attention_maps(
    model: nn.Module, images: torch.Tensor, labels: Sequence[int] | None = None, layers: str = 'all'
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Computes the share of each label's attention that each region receives, averaged over the heads.

    Args:
        model: MSFF or Query2Label model in evaluation mode.
        images: Preprocessed images (B, C, H, W) on the model's device.
        labels: Indices of n labels; None for all.
        layers: Decoder layers to average over: `all`, or only the `last`.

    Returns:
        Logits (B, K) of the model, and for each scale maps (B, n, H_i, W_i) that sum to 1. At 448 pixels, the scales
        of MSFF have 28 x 28, 14 x 14 and 7 x 7 cells; Query2Label has one of 14 x 14.

    Raises:
        InputError: The model is neither MSFF nor Query2Label, has no region selection or no labels, or its logits are
            not finite; or `layers` is unknown.
    """
    if layers not in LAYERS:
        raise unknown('layers', layers, LAYERS)
    model = check_model(model)
    if isinstance(model, Query2Label):
        logits, shares = _run_query2label(model, images, layers)
        return logits, [shares if labels is None else shares[:, list(labels)]]
    logits, calls, grids = _record_calls(model, images, layers)
    indices = range(model.num_classes) if labels is None else [range(model.num_classes)[k] for k in labels]
    queries = [k // model.labels_per_query for k in indices]  # labels that share a query have the same maps
    return logits, [_average(*inputs)[:, queries] for inputs in zip(calls, grids, strict=True)]


def has_attention(model: nn.Module) -> bool:
    """Returns True if the labels of a model, which may be compiled or wrapped, attend to regions of the image."""
    model = unwrap_model(model)
    return isinstance(model, Query2Label) or (isinstance(model, MSFF) and model.selection is not None)


def check_model(model: nn.Module) -> MSFF | Query2Label:
    """Returns the model inside a compiled or wrapped one.

    Raises:
        InputError: The model has no attention maps.
    """
    model = unwrap_model(model)
    if not isinstance(model, MSFF | Query2Label):
        raise InputError(f'{type(model).__name__} has no attention of labels: only msff_* and q2l_* models have it.')
    if not model.num_classes:
        raise InputError('the model cannot be explained: it has no labels (num_classes=0).')
    if isinstance(model, MSFF) and model.selection is None:
        raise InputError('the model cannot be explained: it needs region selection (decoder_depth of 1 or more).')
    return model


def _record_calls(
    model: MSFF, images: torch.Tensor, layers: str
) -> tuple[torch.Tensor, list[list[Call]], list[tuple[int, int]]]:
    """Runs a model and records the inputs of its decoder's cross-attention.

    Returns:
        Logits (B, K), and for each scale the calls and the grid.
    """
    grids: list[tuple[int, int]] = []
    calls: list[list[Call]] = [[], [], []]

    def record_grids(module: nn.Module, args: tuple, scales: list[torch.Tensor]) -> None:
        grids.extend(scale.shape[-2:] for scale in scales)

    def record_call(calls_of_branch: list[list[Call]], attn: nn.Module, args: tuple) -> None:
        query, memory, query_lengths, memory_lengths = args
        queries = query.expand(len(memory), -1, -1).split(query_lengths, dim=1)
        if len(queries) == 1:  # shared by all scales
            queries *= len(calls_of_branch)
        memories = memory.split(memory_lengths, dim=1)
        for calls_of_scale, *inputs in zip(calls_of_branch, queries, memories, strict=True):
            calls_of_scale.append((attn, *inputs))

    hooks = [model.projection.register_forward_hook(record_grids)]
    for i, branch in enumerate(model.selection.branches):
        record = partial(record_call, calls[i :: len(model.selection.branches)])
        for layer in branch if layers == 'all' else branch[-1:]:
            hooks.append(layer.attn.register_forward_pre_hook(record))
    try:
        logits = model.forward(images)  # a compiled `__call__` would skip the hooks
    finally:
        for hook in hooks:
            hook.remove()
    check_finite(model, logits)
    return logits, calls, grids


def _run_query2label(model: Query2Label, images: torch.Tensor, layers: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a model, and returns logits (B, K) and the attention of the labels (B, K, H, W), averaged over the heads."""
    weights: list[torch.Tensor] = []
    grids: list[tuple[int, int]] = []

    def record(layer: nn.Module, args: tuple) -> None:
        _, query, key, value = args
        weights.append(layer.attn(query, key, value, need_weights=True)[1].float())

    hooks = [model.decoder.register_forward_pre_hook(lambda _, args: grids.append(args[1].shape[-2:]))]
    for layer in model.decoder.layers if layers == 'all' else model.decoder.layers[-1:]:
        hooks.append(layer.register_forward_pre_hook(record))
    try:
        logits = model.forward(images)  # a compiled `__call__` would skip the hooks
    finally:
        for hook in hooks:
            hook.remove()
    check_finite(model, logits)
    shares = torch.stack(weights).mean(0)
    return logits, (shares / shares.sum(-1, keepdim=True)).unflatten(-1, grids[0])


def _average(calls: list[Call], grid: tuple[int, int]) -> torch.Tensor:
    """Averages the attention of all queries over heads and layers, (B, queries, H_i, W_i)."""
    per_layer = [attn.attention(query, memory).float().mean(1) for attn, query, memory in calls]
    shares = torch.stack(per_layer).mean(0)
    # In half precision, rounded shares do not sum to 1.
    return (shares / shares.sum(-1, keepdim=True)).unflatten(-1, grid)


def smooth_map(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Combines the maps of all scales into one smooth map of the places to which all scales attend.

    Each scale is resized bilinearly, and the geometric mean is taken. The finest scale has isolated cells of strong
    attention all over an image, which would be the peaks of an arithmetic mean.

    Args:
        maps: Map of each scale, (..., H_i, W_i), from `explain` or `attention_maps`.
        size: Height and width of the result, usually those of the image that the grids divide.

    Returns:
        Map (..., height, width) on the device of the maps, from 0 to 1, scaled to a maximum of 1; 0 where a map is 0
        everywhere, as Grad-CAM may be.
    """
    mean, has_peak = 1, True
    for shares in maps:
        rows = shares.reshape(1, -1, *shares.shape[-2:])
        resized = F.interpolate(rows, size, mode='bilinear', antialias=True)
        highest = resized.amax((-1, -2), keepdim=True)
        has_peak = has_peak & (highest > 0)
        resized = (resized / highest).clamp(min=FLOOR)
        mean = mean * resized ** (1 / len(maps))
    heat = torch.where(has_peak, mean / mean.amax((-1, -2), keepdim=True), 0)
    return heat.reshape(*maps[0].shape[:-2], *size)
