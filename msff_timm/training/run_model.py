"""The model of a run, and whether it can be trained."""

import copy
from typing import Any

import torch
import torch.nn as nn
from timm.models import get_model_traits

from .. import hub
from ..errors import InputError
from ..flops import measure_share
from .config import ModelConfig
from .freezing import train_unfrozen

__all__ = ['check_trainable', 'describe_queries', 'make_model']

MANY_QUERIES = 100


def make_model(config: ModelConfig, label_names: list[str], resumed: bool) -> tuple[nn.Module, dict[str, str]]:
    """Creates the model to train. In training mode, a model of two classifiers returns the logits of each.

    Args:
        config: Settings of the model.
        label_names: Label names in the order of the logits.
        resumed: True if a checkpoint brings all weights.

    Returns:
        The model, and for each label that it has learnt already, the name that it had.

    Raises:
        InputError: `init_from` is of another architecture.
    """
    if config.init_from is None:
        model_args: dict[str, Any] = {}
        if config.backbone_pretrained and not resumed:
            model_args['backbone_pretrained'] = True
        model_args |= {'num_classes': len(label_names), 'drop_rate': config.drop_rate, **config.args}
        model: Any = hub.create(config.name, **model_args)
        if config.backbone_from and not resumed:
            hub.load_backbone(model, config.backbone_from)
            if not hasattr(model, 'backbone'):
                # timm initializes the classifier of EfficientNet for training from scratch, for 20 labels eight times
                # as wide as PyTorch: a short fine-tuning would spend its epochs on undoing that.
                model.reset_classifier(len(label_names))
        return _separately(model), {}
    model, kept_labels = hub.load_for(
        config.init_from, label_names, config.keep_labels, drop_rate=config.drop_rate, **config.args
    )
    cfg: Any = model.pretrained_cfg
    architecture = cfg['architecture']
    if architecture != config.name:
        raise InputError(f'model.name is {config.name}: {config.init_from} is {architecture}; set model.name to that.')
    return _separately(model), kept_labels


def _separately(model: Any) -> nn.Module:
    if hasattr(model, 'set_separate_training'):
        model.set_separate_training()
    return model


def check_trainable(model: nn.Module, image_size: int, batch_size: int) -> None:
    """Checks that a model accepts the batches of a run.

    Args:
        model: Model, with its frozen parameters.
        image_size: Side of an image in pixels.
        batch_size: Number of images that a BatchNorm normalizes together.

    Raises:
        InputError: The model takes other channels, or a BatchNorm gets one value per channel, which PyTorch refuses.
    """
    channels = get_model_traits(model).get('in_chans', 3)
    if channels != 3:
        raise InputError(f'model.args: the model takes {channels} channels; images for training have 3.')
    if batch_size > 1:
        return
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model = copy.deepcopy(model)
            train_unfrozen(model)
            model(torch.zeros(1, 3, image_size, image_size))
    except ValueError as e:
        if 'more than 1 value per channel' not in str(e):
            raise
        raise InputError(
            f'optim.batch_size gives each process one image of {image_size} x {image_size} pixels at a time, and a'
            ' BatchNorm of the model gets a single value per channel: increase optim.batch_size, optim.max_per_process'
            ' or data.image_size, or, if it is in the backbone, set model.batch_norm to frozen.'
        ) from None


def describe_queries(model: Any, image_size: int) -> str | None:
    """Returns a line if most of the computing is done for the queries, and labels could share them; else None.

    Args:
        model: Model to train.
        image_size: Side of an image in pixels.
    """
    label_embed = getattr(model, 'label_embed', None)
    if not hasattr(model, 'max_queries') or label_embed is None or label_embed.num_embeddings <= MANY_QUERIES:
        return None
    share = measure_share(model, model.decoder_parts, image_size)
    if share < 0.5:
        return None
    return (
        f'{label_embed.num_embeddings} label embeddings take {100 * share:.0f} % of the computing; with model.args'
        f' "{{max_queries: {MANY_QUERIES}}}" groups of labels share them, which is faster.'
    )
