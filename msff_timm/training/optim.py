"""The optimizer, its learning rate schedule, and the EMA of the weights."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from .config import OptimConfig
from .freezing import heads

__all__ = ['describe_ema_span', 'make_ema', 'make_optimizer', 'make_schedule']


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Creates AdamW with a learning rate for each group of parameters."""
    settings: dict[str, Any] = {
        'opt': 'adamw',
        'lr': optim.lr,
        'weight_decay': optim.weight_decay,
        'layer_decay': optim.layer_decay,
    }
    if optim.backbone_lr == 1:
        return create_optimizer_v2(model, **settings)
    head = {id(parameter) for module in heads(model) for parameter in module.parameters()}
    without_decay = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else set()
    decay = partial(param_groups_weight_decay, weight_decay=optim.weight_decay, no_weight_decay_list=without_decay)
    groups = [
        {**group, 'params': params, 'lr': optim.lr * scale, 'lr_scale': scale}
        for group in decay(model)
        for scale, is_head in ((optim.backbone_lr, False), (1.0, True))
        if (params := [p for p in group['params'] if (id(p) in head) == is_head])
    ]
    return create_optimizer_v2(groups, opt='adamw', lr=optim.lr, weight_decay=optim.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, optim: OptimConfig, steps: int) -> LRScheduler:
    """Creates the schedule of a run: a rise over the share `warmup` of its steps, then a cosine to nearly 0.

    It is PyTorch's and not timm's: timm has no one-cycle, and its cosine sets the rate after the first step only.

    Args:
        optimizer: Optimizer of `make_optimizer`.
        optim: Settings of the optimization.
        steps: Number of steps of the run.
    """
    if optim.schedule == 'one_cycle':
        # PyTorch divides by the length of the rise, warmup * steps - 1: a shorter rise is none.
        rise = optim.warmup if optim.warmup * steps > 1 else 0.0
        highest = [optim.lr * group.get('lr_scale', 1.0) for group in optimizer.param_groups]
        return OneCycleLR(optimizer, highest, total_steps=steps, pct_start=rise)
    for group in optimizer.param_groups:
        group['lr'] = optim.lr * group.get('lr_scale', 1.0)
    rise = round(optim.warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2

    return LambdaLR(optimizer, factor)


def make_ema(model: nn.Module, decay: float) -> ModelEmaV3:
    """Creates the EMA of a model's weights. Its decay in step n is `1 - n ** -0.75`, up to `decay`.

    Without this warm-up the EMA of a short run would keep the initial weights. The power is timm's advice for runs of
    less than a million steps.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=3 / 4)


def describe_ema_span(ema: ModelEmaV3, optim: OptimConfig, steps: int) -> str | None:
    """Describes an EMA that spans more than a quarter of the run, and how to shorten it; returns None otherwise.

    Args:
        ema: EMA of the weights.
        optim: Settings of the optimization.
        steps: Number of steps of the run.
    """
    span = 1 / (1 - ema.get_decay(steps))
    if span <= max(1, steps / 4) * (1 + 1e-9):  # for rounding
        return None
    shorter = f'optim.ema_decay to at most {max(0, 1 - 4 / steps):.4g}'
    if optim.ema_epochs is not None:
        shorter = f'optim.ema_epochs to at most {optim.epochs / 4:.4g}'
    return (
        f'The final EMA weights average the last {span:.0f} or so of {steps} steps, more than a quarter of the run: set'
        f' {shorter} to follow the model more closely.'
    )
