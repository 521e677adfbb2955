"""The settings of training: typed, with their defaults, and validated here."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from accelerate.utils import LoggerType

from .. import hub
from ..errors import InputError, one_line, unknown
from ..files import check_folder
from ..hub.push import check_access, check_target
from .checks import (
    check_at_least,
    check_one_of,
    check_positive,
    check_seed,
    check_threshold_target,
)
from .data_config import DataConfig, SourceConfig
from .parsing import CONFIGS, parse

__all__ = [
    'CONFIGS',
    'CheckpointConfig',
    'DataConfig',
    'DistillConfig',
    'ModelConfig',
    'OptimConfig',
    'SourceConfig',
    'TrainConfig',
    'parse',
]

BATCH_NORMS = ('each', 'sync', 'frozen')
FREEZES = ('backbone', 'stages')
SCHEDULES = ('one_cycle', 'cosine')
LOSSES = ('asl', 'bce', 'focal', 'poly', 'db')
WEIGHTED = ('asl', 'bce')  # losses that support pos_weight
EMA_DECAY = 0.9997
# Arguments of a model that are set elsewhere, and where
DECIDED = {
    'num_classes': 'the labels of the data',
    'in_chans': 'the images, which are RGB',
    'drop_rate': 'model.drop_rate',
    'backbone_pretrained': 'model.backbone_pretrained',
    'device': 'Accelerate',
    'dtype': 'Accelerate',
}


@dataclass
class ModelConfig:
    """Settings of the model.

    Args:
        name: Name of a timm model, msff_* or any other.
        args: Further arguments of the model, e.g. `{fusion_mode: 1}`.
        backbone_pretrained: True to start from timm's ImageNet weights of the backbone; `init_from` overrides them.
        backbone_from: Trained model whose backbone to start from, msff_* or plain: `local-dir:FOLDER` or
            `hf-hub:ORG/NAME`; null for none.
        init_from: Trained model of the same name to start from: `local-dir:FOLDER` or `hf-hub:ORG/NAME`; null for none.
        keep_labels: True to keep the weights of the labels that the data and `init_from` share, if their labels differ.
        drop_rate: Dropout rate.
        batch_norm: Statistics of BatchNorm in training: each (of each process's micro-batch), sync (over all processes;
            GPUs only) or frozen (the backbone keeps its initial statistics and weights; BatchNorm in the head, which is
            new, learns from each process's micro-batch).
        freeze: Part of the model that does not train: backbone (the whole run) or stages (the backbone at first; its
            stages train one after another, the last one first); null for none.
        unfreeze_epochs: Number of epochs from one stage to the next with freeze stages.
        channels_last: True to use the channels-last memory format, for fast convolutions.
        compile: True to compile the model with torch.compile.

    Examples:
        >>> ModelConfig('msff_resnet18', args={'fusion_mode': 1}, freeze='stages').validate()
    """

    name: str = 'msff_resnet101'
    args: dict[str, Any] = field(default_factory=dict)
    backbone_pretrained: bool = True
    backbone_from: str | None = None
    init_from: str | None = None
    keep_labels: bool = False
    drop_rate: float = 0.1
    batch_norm: str = 'each'
    freeze: str | None = None
    unfreeze_epochs: int = 1
    channels_last: bool = True
    compile: bool = False

    def validate(self) -> None:
        if not timm.is_model(self.name):
            raise unknown('model.name', self.name, hub.list_models())
        if self.args:
            self._check_args()
        if self.backbone_pretrained and self.name.partition('.')[0] not in hub.list_models():
            raise InputError(
                f'model.backbone_pretrained is true: {self.name} has no backbone of its own; set it to false.'
            )
        if self.backbone_from and (self.backbone_pretrained or self.init_from):
            other = 'backbone_pretrained false' if self.backbone_pretrained else 'init_from null'
            raise InputError(f'model.backbone_from is {self.backbone_from}: also set model.{other}.')
        if self.keep_labels and not self.init_from:
            raise InputError('model.keep_labels is true: it needs model.init_from, the model whose labels to keep.')
        if not 0 <= self.drop_rate < 1:
            raise InputError(f'model.drop_rate is {self.drop_rate}: must be from 0 to below 1.')
        check_one_of('model.batch_norm', self.batch_norm, BATCH_NORMS)
        if self.freeze is not None:
            check_one_of('model.freeze', self.freeze, FREEZES)
        check_at_least('model.unfreeze_epochs', self.unfreeze_epochs, 1)
        if self.unfreeze_epochs != 1 and self.freeze != 'stages':
            raise InputError(f'model.unfreeze_epochs is {self.unfreeze_epochs}: it needs model.freeze stages.')

    def _check_args(self) -> None:
        """Creates the model on the meta device: with its defaults, for the signature of its class, and with `args`."""
        with torch.device('meta'):
            accepted = inspect.signature(type(timm.create_model(self.name))).parameters
        for key, value in self.args.items():
            if key in DECIDED:
                raise InputError(f'model.args has {key}: leave it out; it is set by {DECIDED[key]}.')
            if key not in accepted:
                raise unknown(f'argument of {self.name} in model.args', key, accepted.keys() - DECIDED.keys())
            default = accepted[key].default
            if value is None and default is not None:  # timm drops it without a word
                raise InputError(f'model.args has {key} null, which timm ignores: leave it out for {default}.')
        try:
            with torch.device('meta'):
                timm.create_model(self.name, **self.args)
        except Exception as e:
            # Models refuse arguments by exceptions of many types.
            raise InputError(f'model.args: {self.name} cannot be created with {self.args} ({one_line(e)}).') from e


@dataclass
class OptimConfig:
    """Settings of the optimization: AdamW, schedule, loss and EMA.

    Args:
        epochs: Number of epochs.
        batch_size: Number of images in a step, over all processes and accumulation steps.
        max_per_process: Largest micro-batch of a process; gradients are accumulated over several. Null for no limit.
        lr: Highest learning rate.
        schedule: Schedule of the learning rate after a rise: one_cycle (as in Query2Label: AdamW's first beta goes from
            0.95 to 0.85 and back) or cosine (after a linear rise).
        warmup: Share of the steps in which the learning rate rises.
        backbone_lr: Factor of the learning rate of the backbone.
        layer_decay: Factor of the learning rate from each layer to the one before it; null for none.
        weight_decay: Weight decay; biases, norms and embeddings have none.
        clip_grad: Largest norm of the gradient.
        loss: Loss: asl (asymmetric, Eq. 12), bce (binary cross-entropy), focal (with gamma_neg), poly (Poly-1,
            arXiv:2204.12511) or db (distribution-balanced, arXiv:2007.09654, with the label counts of the training
            split).
        gamma_pos: Focusing parameter of present labels in asl (alpha+ in Eq. 12).
        gamma_neg: Focusing parameter of absent labels in asl (alpha- in Eq. 12), and of all labels in focal.
        asl_clip: Probability margin of asl: absent labels below it have no loss; 0 for none.
        poly_epsilon: Weight that poly adds to the first term of the expansion of the cross-entropy.
        label_smoothing: Distance e of the targets from 0 and 1: the target of a present label is 1 - e, of an absent
            label e (each label is a binary target of its own); masked labels stay masked.
        pos_weight: Weight of present labels in the loss of asl and bce: a number, or balanced, the ratio of absent to
            present entries of each label in the training split; null for none.
        pos_weight_max: Highest weight with pos_weight balanced.
        ema_decay: Decay of the exponential moving average (EMA) of the weights. In step n it is at most 1 - n ** -0.75,
            so that the EMA forgets the initial weights.
        ema_epochs: Number of epochs that the EMA averages, whatever the number of steps; replaces ema_decay. Null to
            use ema_decay.
        early_stop: Number of epochs without a better mAP of the EMA weights after which training stops and the best
            epoch is used; null to train to the end and use the last epoch.

    Examples:
        >>> OptimConfig(loss='bce', lr=1e-3, ema_epochs=1.0).validate()
    """

    epochs: int = 80
    batch_size: int = 128
    max_per_process: int | None = None
    lr: float = 1e-4
    schedule: str = 'one_cycle'
    warmup: float = 0.2
    backbone_lr: float = 1.0
    layer_decay: float | None = None
    weight_decay: float = 1e-2
    clip_grad: float = 1.0
    loss: str = 'asl'
    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    asl_clip: float = 0.0
    poly_epsilon: float = 2.0
    label_smoothing: float = 0.0
    pos_weight: float | str | None = None
    pos_weight_max: float = 10.0
    ema_decay: float = EMA_DECAY
    ema_epochs: float | None = None
    early_stop: int | None = None

    def validate(self) -> None:
        for name in ('epochs', 'batch_size', 'max_per_process', 'early_stop'):
            check_at_least(f'optim.{name}', getattr(self, name), 1)
        for name in ('lr', 'clip_grad', 'pos_weight_max', 'ema_epochs'):
            check_positive(f'optim.{name}', getattr(self, name))
        check_one_of('optim.schedule', self.schedule, SCHEDULES)
        check_one_of('optim.loss', self.loss, LOSSES)
        check_at_least('optim.backbone_lr', self.backbone_lr, 0)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(f'optim.layer_decay is {self.layer_decay}: must be above 0 and at most 1.')
        if self.layer_decay is not None and self.backbone_lr != 1:
            raise InputError(
                'optim.layer_decay and optim.backbone_lr both scale the learning rate of the backbone: set one of them.'
            )
        for name in ('weight_decay', 'gamma_pos', 'gamma_neg'):
            check_at_least(f'optim.{name}', getattr(self, name), 0)
        for name in ('warmup', 'ema_decay', 'asl_clip'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'optim.{name} is {getattr(self, name)}: must be from 0 to below 1.')
        if self.ema_epochs is not None and self.ema_decay != EMA_DECAY:
            raise InputError(
                f'optim.ema_epochs is {self.ema_epochs:g} and optim.ema_decay is {self.ema_decay:g}: set'
                f' ema_epochs to null, or leave ema_decay at {EMA_DECAY}: ema_epochs replaces it.'
            )
        self._check_loss()

    def _check_loss(self) -> None:
        for name in ('gamma_pos', 'gamma_neg'):
            if 0 < getattr(self, name) < 1:
                raise InputError(
                    f'optim.{name} is {getattr(self, name)}: must be 0 or at least 1; in between, the gradient is'
                    ' not finite where the model is certain.'
                )
        if not self.poly_epsilon >= -1:
            raise InputError(
                f'optim.poly_epsilon is {self.poly_epsilon}: must be at least -1; below it, a better logit has a'
                ' higher loss.'
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f'optim.label_smoothing is {self.label_smoothing}: must be from 0 to below 0.5.')
        if self.pos_weight is None:
            return
        if isinstance(self.pos_weight, str) and self.pos_weight != 'balanced':
            raise InputError(f'optim.pos_weight is {self.pos_weight}: must be a number above 0, balanced or null.')
        if not isinstance(self.pos_weight, str):
            check_positive('optim.pos_weight', self.pos_weight)
        if self.loss not in WEIGHTED:
            raise InputError(
                f'optim.pos_weight is {self.pos_weight} and optim.loss is {self.loss}: only'
                f' {" and ".join(WEIGHTED)} support it; set it to null.'
            )

    @property
    def counts_labels(self) -> str | None:
        """Setting that needs the label counts of the training split, with its value; None if there is none."""
        if self.loss == 'db':
            return 'optim.loss is db'
        return 'optim.pos_weight is balanced' if self.pos_weight == 'balanced' else None

    def decay(self, steps: int) -> float:
        """Returns the decay of the EMA.

        Args:
            steps: Number of steps in an epoch.
        """
        return self.ema_decay if self.ema_epochs is None else max(0.0, 1 - 1 / (self.ema_epochs * steps))


@dataclass
class DistillConfig:
    """Settings of learning from a teacher's probabilities in addition to the labels.

    Args:
        teacher: Trained model with the same labels: `local-dir:FOLDER`, `hf-hub:ORG/NAME` or a registered name with
            pretrained weights; null for none.
        weight: Weight of the teacher's loss, from 0 to 1.
        temperature: Temperature that divides the logits of both models.

    Examples:
        >>> DistillConfig('local-dir:runs/teacher', weight=0.7).validate()
    """

    teacher: str | None = None
    weight: float = 0.5
    temperature: float = 1.0

    def validate(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f'distill.weight is {self.weight}: must be from 0 to 1.')
        if not self.temperature > 0:
            raise InputError(f'distill.temperature is {self.temperature}: must be above 0.')


@dataclass
class CheckpointConfig:
    """Settings of the checkpoints. A run is saved after each epoch in any case.

    Args:
        every: Number of steps after which a run is saved within an epoch too; null for never.
        keep: Number of newest checkpoints to keep; the best epoch's is kept too.

    Examples:
        >>> CheckpointConfig(every=500).validate()
    """

    every: int | None = None
    keep: int = 2

    def validate(self) -> None:
        check_at_least('checkpoint.every', self.every, 1)
        check_at_least('checkpoint.keep', self.keep, 1)


@dataclass
class TrainConfig:
    """Settings of a training run.

    Args:
        output: Folder of the run.
        overwrite: True to replace a run that the folder holds.
        resume: auto to resume from the newest whole checkpoint in the output folder, if there is one, or the folder of
            a checkpoint; null to start a new run.
        force: True to resume although settings, labels or data differ from the checkpoint's.
        seed: Seed of weights, order and augmentation.
        trackers: Trackers of Accelerate: tensorboard, wandb, ...; null for tensorboard if it is installed.
        log_every: Number of steps between two log entries of loss and learning rate.
        top_k: Number of labels per image that the top-k metrics predict: 3 as for COCO, 5 as for Corel5k.
        fit_thresholds: Target of the thresholds that are stored with the model: f1 for the largest F1 of each label,
            precision:0.9 for the largest recall with that precision, or recall:0.9 for the largest precision with that
            recall.
        push_to: Repository on the Hub that the finished run is published to, ORG/NAME; null for none.
        push_private: True to create that repository as a private one.

    Examples:
        >>> config = TrainConfig('runs/pets', model=ModelConfig('msff_resnet18'), data=DataConfig('table', 'photos'))
        >>> config.optim.epochs
        80
    """

    output: str
    overwrite: bool = False
    resume: str | None = None
    force: bool = False
    seed: int = 0
    trackers: list[str] | None = None
    log_every: int = 10
    top_k: int = 3
    fit_thresholds: str = 'f1'
    push_to: str | None = None
    push_private: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def validate(self) -> None:
        check_folder(self.output, 'output')
        for part in (self.model, self.data, self.optim, self.distill, self.checkpoint):
            part.validate()
        check_seed('seed', self.seed)
        check_at_least('log_every', self.log_every, 1)
        check_at_least('top_k', self.top_k, 1)
        check_threshold_target('fit_thresholds', self.fit_thresholds)
        for tracker in self.trackers or ():
            check_one_of('trackers', tracker, [kind.value for kind in LoggerType if kind != LoggerType.ALL])
        if self.distill.teacher and (self.data.mixup or self.data.cutmix):
            raise InputError(
                'distill.teacher is set: the teacher needs unmixed images; set data.mixup and data.cutmix to 0.'
            )
        if self.model.freeze and not self.optim.backbone_lr:
            raise InputError(
                f'optim.backbone_lr is 0 and model.freeze is {self.model.freeze}, which sets when the backbone'
                ' trains: set optim.backbone_lr to 1, or to the factor for unfrozen stages.'
            )
        if self.data.streaming and (needs := self.optim.counts_labels):
            raise InputError(
                f'data.streaming is true and {needs}, which needs the label counts of the training split: set'
                ' data.streaming to false, or choose another loss or a number.'
            )
        if self.overwrite and self.resume:
            raise InputError(f'resume is {self.resume} and overwrite is true: set one of them.')
        if self.push_to is not None:
            check_target(self.push_to)
            check_access(self.push_to)
        elif self.push_private:
            raise InputError('push_private is true: it needs push_to, the repository on the Hub.')
