"""Freezing: parts of a model that do not train, or train later."""

from typing import Any

import torch.nn as nn
from timm.models import group_parameters

from ..errors import InputError
from ..models.backbone import group_backbone
from .config import TrainConfig

__all__ = ['Unfreezing', 'describe_frozen', 'freeze_backbone', 'freeze_norms', 'heads', 'train_unfrozen']


def heads(model: nn.Module) -> list[nn.Module]:
    """Returns the modules outside the backbone: all but `backbone` in one of our models, the classifier in others."""
    if hasattr(model, 'backbone'):
        return [module for name, module in model.named_children() if name != 'backbone']
    classifier = model.get_classifier()
    return list(classifier) if isinstance(classifier, tuple) else [classifier]


def backbone_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters outside the `heads`, by name."""
    head = {id(parameter) for module in heads(model) for parameter in module.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in head}


def freeze_norms(model: nn.Module) -> None:
    """Freezes the BatchNorm layers of the backbone; `train_unfrozen` keeps their statistics.

    Those of the head are new, and their statistics are not those of any data yet. timm's `freeze_batch_norm_2d` would
    replace the layers: their statistics would have other names in checkpoints.
    """
    for module in getattr(model, 'backbone', model).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)


def freeze_backbone(model: nn.Module) -> None:
    """Freezes all parameters of the backbone; `train_unfrozen` keeps its statistics."""
    for parameter in backbone_parameters(model).values():
        parameter.requires_grad = False


def train_unfrozen(module: nn.Module) -> None:
    """Sets a model to training mode, and modules whose parameters are all frozen to evaluation mode.

    BatchNorm and dropout of frozen modules then behave as in inference.
    """
    module.train()
    parameters = list(module.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in module.children():
            train_unfrozen(child)
    elif parameters:
        module.eval()


class Unfreezing:
    """Unfreezes the stages of a backbone one after another, the last stage first.

    The optimizer is created before, for all parameters: AdamW neither changes nor decays a parameter without a
    gradient, and creates its state at the first gradient.

    Args:
        model: Model; parameters that are frozen already stay frozen.
        epochs: Number of epochs from one stage to the next.

    Attributes:
        stages: Name and parameters of each stage, the last stage first.
        num_free: Number of stages that train; None before the first epoch.

    Raises:
        InputError: The model has no stages.
    """

    def __init__(self, model: nn.Module, epochs: int):
        self.epochs = epochs
        self.num_free: int | None = None
        by_stage: dict[int, dict[str, nn.Parameter]] = {}
        parameters, stage_of = backbone_parameters(model), _stages(model)
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                by_stage.setdefault(stage_of[name], {})[name] = parameter
        self.stages = [(_name(by_stage[stage]), [*by_stage[stage].values()]) for stage in sorted(by_stage)[::-1]]

    def free_in(self, epoch: int) -> int:
        """Returns the number of stages that train in an epoch, counted from 1."""
        return min(len(self.stages), (epoch - 1) // self.epochs)

    def begin_epoch(self, epoch: int) -> bool:
        """Unfreezes the stages that train in an epoch, and freezes the others.

        Returns:
            True if the number of stages that train has changed, and at the first call.
        """
        before, self.num_free = self.num_free, self.free_in(epoch)
        self._free(self.num_free)
        return self.num_free != before

    def freeze(self) -> None:
        """Freezes all stages."""
        self._free(0)

    def _free(self, num: int) -> None:
        for number, (_, parameters) in enumerate(self.stages):
            for parameter in parameters:
                parameter.requires_grad = number < num

    def __str__(self) -> str:
        names = [name for name, _ in self.stages]
        free, frozen = names[: self.num_free], names[self.num_free :]
        train = f'the head and {", ".join(free)} train' if free else 'the head trains'
        return f'{train}; frozen: {", ".join(frozen) or "nothing"}'


def describe_frozen(config: TrainConfig, unfreezing: Unfreezing | None, is_resumed: bool) -> list[str]:
    """Returns warnings about frozen parts that may not be meant: of random weights, or until the end."""
    model, epochs, lines = config.model, config.optim.epochs, []
    if model.freeze and not is_resumed and not (model.backbone_pretrained or model.backbone_from or model.init_from):
        lines.append(
            f'warning: model.freeze is {model.freeze}, and the frozen backbone has random weights: set'
            ' model.backbone_pretrained, model.backbone_from or model.init_from to start from trained weights.'
        )
    if unfreezing and (frozen := [name for name, _ in unfreezing.stages[unfreezing.free_in(epochs) :]]):
        lines.append(
            f'warning: {", ".join(frozen)} of the backbone stay frozen to the end: {epochs} epochs are too few for'
            f' model.unfreeze_epochs {model.unfreeze_epochs}.'
        )
    return lines


def _stages(model: nn.Module) -> dict[str, int]:
    """Returns the number of the stage, from 0 for the stem, of each parameter of the backbone."""
    if hasattr(model, 'backbone'):
        ours: Any = model
        args = ours.backbone_args['backbone_args']
        stages = group_backbone(ours.backbone, ours.backbone_name, coarse=True, backbone_args=args)
        return {f'backbone.{name}': stage for name, stage in stages.items()}
    if not hasattr(model, 'group_matcher'):
        raise InputError('model.freeze is stages: timm defines no stages for this model; set it to backbone or null.')
    return group_parameters(model, model.group_matcher(coarse=True), reverse=True)


def _name(parameters: dict[str, nn.Parameter]) -> str:
    """Returns the common part of the parameters' names, e.g. `layer4`, or else their first parts, e.g. `conv1+bn1`."""
    parts = [name.removeprefix('backbone.').removeprefix('model.').split('.') for name in parameters]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return '.'.join(shared) or '+'.join(dict.fromkeys(part[0] for part in parts))
