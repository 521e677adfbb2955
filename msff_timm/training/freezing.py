"""What of a model trains: all of it, its head alone, or its head and one stage of the backbone after another."""

import torch.nn as nn
from timm.models import group_parameters

from ..errors import InputError
from ..models.backbone import group_backbone

__all__ = ['Unfreezing', 'freeze_backbone', 'freeze_norms', 'heads', 'train_unfrozen']


def heads(model: nn.Module) -> list[nn.Module]:
    """Lists what is not the backbone: of one of our models all but `backbone`, of another its classifier."""
    if hasattr(model, 'backbone'):
        return [module for name, module in model.named_children() if name != 'backbone']
    classifier = model.get_classifier()
    return list(classifier) if isinstance(classifier, tuple) else [classifier]


def backbone_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Lists the parameters that belong to none of the `heads`, by name."""
    head = {id(parameter) for module in heads(model) for parameter in module.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in head}


def freeze_norms(model: nn.Module) -> None:
    """Freezes the BatchNorm layers of the backbone; `train_unfrozen` keeps their statistics.

    A plain model has them in its backbone only. Those of our heads are new, with statistics of nothing yet.
    """
    for module in getattr(model, 'backbone', model).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)


def freeze_backbone(model: nn.Module) -> None:
    """Freezes all parameters of the backbone; `train_unfrozen` keeps its statistics."""
    for parameter in backbone_parameters(model).values():
        parameter.requires_grad = False


def train_unfrozen(module: nn.Module) -> None:
    """Sets a model to training, but what is frozen of it to evaluation: each module with no parameter that trains.

    So BatchNorm's statistics and dropout of frozen stages are those of inference.
    """
    module.train()
    parameters = list(module.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        for child in module.children():
            train_unfrozen(child)
    elif parameters:
        module.eval()


class Unfreezing:
    """Frees the stages of a backbone one after another, the last stage first.

    The optimizer is made before, of all parameters: AdamW neither changes nor decays a parameter without a gradient,
    and makes its state at the first one.

    Args:
        model: Model; what is frozen of it by then stays so.
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
        """Returns how many stages train in an epoch, counted from 1."""
        return min(len(self.stages), (epoch - 1) // self.epochs)

    def begin_epoch(self, epoch: int) -> bool:
        """Frees the stages that train in an epoch, and freezes the others; returns whether that is a change.

        It is one at the first call in any case.
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


def _stages(model: nn.Module) -> dict[str, int]:
    """Numbers the stage of each parameter of the backbone from the stem, 0."""
    if hasattr(model, 'backbone'):
        args = model.backbone_args['backbone_args']
        stages = group_backbone(model.backbone, model.backbone_name, coarse=True, backbone_args=args)
        return {f'backbone.{name}': stage for name, stage in stages.items()}
    if not hasattr(model, 'group_matcher'):
        raise InputError('model.freeze is stages: timm knows no stages of this model; set it to backbone or null.')
    return group_parameters(model, model.group_matcher(coarse=True), reverse=True)


def _name(parameters: dict[str, nn.Parameter]) -> str:
    """Names a stage by what the names of its parameters share, `layer4`, or else by its parts, `conv1+bn1`."""
    parts = [name.removeprefix('backbone.').removeprefix('model.').split('.') for name in parameters]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return '.'.join(shared) or '+'.join(dict.fromkeys(part[0] for part in parts))
