"""The settings of training and evaluation: typed, validated here, read from YAML with overrides on the command line."""

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from accelerate.utils import LoggerType

import msff_timm.data

from .. import hub
from ..errors import InputError, unknown
from ..files import check_file, check_folder
from ..hub.push import check_access, check_target
from ..metrics import DEFINITIONS
from .parsing import CONFIGS, find_settings, parse

__all__ = [
    'CONFIGS',
    'AblateConfig',
    'CheckpointConfig',
    'CompareConfig',
    'DataConfig',
    'DistillConfig',
    'EvalDataConfig',
    'EvaluateConfig',
    'ModelConfig',
    'OptimConfig',
    'TrainConfig',
    'VariantsConfig',
    'flatten',
    'parse',
]

UNREADABLE = ('error', 'skip')
BATCH_NORMS = ('each', 'sync', 'frozen')
FREEZES = ('backbone', 'stages')
SCHEDULES = ('one_cycle', 'cosine')
LOSSES = ('asl', 'bce', 'focal', 'poly', 'db')
WEIGHTED = ('asl', 'bce')  # losses with a weight of present labels
EMA_DECAY = 0.9997
# Arguments of a model that are decided elsewhere, and where
DECIDED = {
    'num_classes': 'the labels of the data',
    'in_chans': 'the images, which are RGB',
    'drop_rate': 'model.drop_rate',
    'backbone_pretrained': 'model.backbone_pretrained',
    'device': 'Accelerate',
    'dtype': 'Accelerate',
}
# Settings of training that differ between variants, or that several runs cannot share
OF_A_VARIANT = ('output', 'overwrite', 'resume', 'force', 'seed', 'push_to', 'push_private', 'model.name', 'model.args')
# Settings that rows of a comparison share: others would be evaluated on other images, or start from other weights
OF_ALL_ROWS = ('data', 'top_k', 'model.backbone_pretrained', 'model.backbone_from', 'model.init_from')
LARGEST_SEED = 2**31 - 1  # NumPy's seeds have 32 bits, and each process adds its number
TABLES = ('4', '5', '6', '7', 'fig5')


@dataclass
class ModelConfig:
    """The model.

    Args:
        name: Any model that timm knows, ours among them.
        args: Further arguments of it, `{fusion_mode: 1}` say.
        backbone_pretrained: Start from timm's ImageNet weights of the backbone, unless `init_from` brings others.
        backbone_from: Start the backbone from that of a trained model, ours or a plain one: `local-dir:FOLDER` or
            `hf-hub:ORG/NAME`; null for none.
        init_from: Start from a trained model of that name: `local-dir:FOLDER` or `hf-hub:ORG/NAME`; null for none.
        keep_labels: Where its labels are others, keep what it has learnt of those that both share.
        drop_rate: Dropout.
        batch_norm: Statistics of BatchNorm in training: of `each` process's own batch, in `sync` over all processes
            (GPUs only), or `frozen` in the backbone as they were at the start, its weights too; BatchNorm in the head
            of our models, which is new, learns from each process's batch then.
        freeze: Part that does not train: backbone, for the whole run; stages, the backbone at first, of which one stage
            after another is freed, the last one first; null for none.
        unfreeze_epochs: Number of epochs from one stage to the next with freeze stages.
        channels_last: Lay images out for fast convolutions.
        compile: Compile the model with torch.compile.
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
            raise InputError(f'model.backbone_from is {self.backbone_from}: set model.{other}, which brings others.')
        if self.keep_labels and not self.init_from:
            raise InputError('model.keep_labels is true: it needs model.init_from, the model to keep them from.')
        if not 0 <= self.drop_rate < 1:
            raise InputError(f'model.drop_rate is {self.drop_rate}: must be from 0 to below 1.')
        _one_of('model.batch_norm', self.batch_norm, BATCH_NORMS)
        if self.freeze is not None:
            _one_of('model.freeze', self.freeze, FREEZES)
        _at_least('model.unfreeze_epochs', self.unfreeze_epochs, 1)
        if self.unfreeze_epochs != 1 and self.freeze != 'stages':
            raise InputError(f'model.unfreeze_epochs is {self.unfreeze_epochs}: it needs model.freeze stages.')

    def _check_args(self) -> None:
        """Makes the model without memory, once as it is registered, whose class tells what it takes, once as asked."""
        with torch.device('meta'):
            accepted = inspect.signature(type(timm.create_model(self.name))).parameters
        for key in self.args:
            if key in DECIDED:
                raise InputError(f'model.args has {key}: leave it out, that is up to {DECIDED[key]}.')
            if key not in accepted:
                raise unknown(f'argument of {self.name} in model.args', key, accepted.keys() - DECIDED.keys())
        try:
            with torch.device('meta'):
                timm.create_model(self.name, **self.args)
        except Exception as e:
            # Each model has its own ways to say what it does not take.
            reason = ' '.join(str(e).split()) or type(e).__name__
            raise InputError(f'model.args: {self.name} cannot be made with {self.args} ({reason}).') from e


@dataclass
class SourceConfig:
    """Where images and labels come from: what `msff_timm.data.load` is given.

    Args:
        name: coco2014, coco2017, voc2007, voc2012, table, folder, hub or scenes.
        root: Folder of a data set that lies on disk, a table, or the id of a data set on the Hub.
        title: Name of the data in results, cards and tables where `name` is that of a larger set, or of none; null for
            `name`.
        keep_unlabelled: Keep COCO's images without a label; null keeps them in training only.
        difficult: VOC's labels that are difficult only: ignore, negative or positive.
        missing: Images of COCO and VOC that are not there, and annotations of none: skip, with a warning, or error;
            null skips them in training only.
        image_root: Folder of the images that a table names; null for the table's own.
        image_column: Column of the images in a table or a data set of the Hub; null to find it.
        label_columns: Column of the labels, or one of 1, 0 and -1 for each; null to find them.
        label_delimiter: Text between the labels of a column of text; none where each text is one label; null to find
            it.
        label_names: Names in the order of the logits, where the data do not fix them; null for those that occur, in
            evaluation for the model's own.
        minus_one: Meaning of -1 in a column for one label: unannotated (masked) or absent.
        blank: Meaning of an empty cell in a column for one label: unannotated (masked) or absent.
        ignore_labels: Labels that metrics leave out, e.g. those that no training image has; null for none.
    """

    name: str = 'scenes'
    root: str | None = None
    title: str | None = None
    keep_unlabelled: bool | None = None
    difficult: str = 'ignore'
    missing: str | None = None
    image_root: str | None = None
    image_column: str | None = None
    label_columns: list[str] | None = None
    label_delimiter: str | None = None
    label_names: list[str] | None = None
    minus_one: str = 'unannotated'
    blank: str = 'unannotated'
    ignore_labels: list[str] | None = None

    def validate(self, **splits: str) -> None:
        """Checks what can be checked without a look at the data.

        Args:
            **splits: By the names of their settings.
        """
        _one_of('data.name', self.name, msff_timm.data.NAMES)
        for name, split in splits.items():
            known = msff_timm.data.SPLITS.get(self.name)
            if known and split not in (*known, 'val'):
                raise unknown(f'data.{name} of {self.name}', split, known)
        _one_of('data.difficult', self.difficult, msff_timm.data.DIFFICULT)
        if self.missing is not None:
            _one_of('data.missing', self.missing, msff_timm.data.MISSING)
        if self.label_delimiter == '':
            raise InputError('data.label_delimiter is empty: must be the text between two labels.')
        _one_of('data.minus_one', self.minus_one, msff_timm.data.MEANINGS)
        _one_of('data.blank', self.blank, msff_timm.data.MEANINGS)

    def load(
        self, split: str, size: int | None, image_size: int, streaming: bool = False
    ) -> datasets.Dataset | datasets.IterableDataset:
        """Loads one split; images that are drawn have sides of `image_size` pixels."""
        return msff_timm.data.load(
            self.name,
            split,
            self.root,
            size,
            image_size=image_size,
            keep_unlabelled=self.keep_unlabelled,
            difficult=self.difficult,
            missing=self.missing,
            image_root=self.image_root,
            image_column=self.image_column,
            label_columns=self.label_columns,
            label_delimiter=self.label_delimiter,
            label_names=self.label_names,
            minus_one=self.minus_one,
            blank=self.blank,
            streaming=streaming,
        )

    def kept_labels(self, label_names: Sequence[str]) -> list[int]:
        """Returns the numbers of the labels that `ignore_labels` does not name.

        Raises:
            InputError: It names a label that the data do not have.
        """
        ignored = self.ignore_labels or ()
        for name in ignored:
            if name not in label_names:
                raise unknown('label in data.ignore_labels', name, label_names)
        return [number for number, name in enumerate(label_names) if name not in ignored]

    def without_ignored(self, targets: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
        """Masks in targets (N, K) the labels that `ignore_labels` names."""
        kept = self.kept_labels(label_names)
        masked = np.full_like(targets, -1)
        masked[:, kept] = targets[:, kept]
        return masked

    @property
    def masking(self) -> str | None:
        """Name of the data set, where a setting decides what is masked in it; None where that is absent already."""
        return None if self.minus_one == self.blank == 'absent' else self.name

    def definition(self, split: str) -> dict:
        """Records which data these are, with the choices that change what is measured."""
        choices = {'name': self.name, 'split': split}
        if self.name.startswith('coco'):
            choices['keep_unlabelled'] = self.keep_unlabelled
        if self.name.startswith('voc'):
            choices['difficult'] = self.difficult
        if self.missing is not None:
            choices['missing'] = self.missing
        if self.name == 'hub' and not os.path.isdir(self.root):
            choices['root'] = self.root
        elif self.name in ('table', 'folder', 'hub'):
            choices['root'] = Path(self.root).resolve().name  # no more of a path says anything on another machine
        if self.name in ('table', 'folder', 'hub'):
            readings = {'minus_one': self.minus_one, 'blank': self.blank}
            choices |= {key: value for key, value in readings.items() if value != 'unannotated'}
        if self.title is not None:
            choices['title'] = self.title
        if self.ignore_labels:
            choices['ignore_labels'] = self.ignore_labels
        return choices


@dataclass
class DataConfig(SourceConfig):
    """The images.

    Args:
        streaming: Read a training split of the Hub while training, without a copy on disk; needs `train_size`, the
            number of images that make an epoch.
        unreadable: What a training image that cannot be read does: skip (named; over 1 % of them end the run) or
            error.
        train_split: Split that is trained on.
        eval_split: Split that is measured on.
        train_size: Number of training images; null for all.
        eval_size: Number of images to measure on; null for all.
        image_size: Side of the model's input in pixels; images are resized to this square.
        hflip: Probability of the mirror image; 0 for none.
        crop_scale: Lowest and highest share of the image's area that a random crop has; null to resize the whole image.
            The labels stay those of the whole image, also where a crop leaves out an object: low shares are for labels
            that fill the image.
        crop_ratio: Lowest and highest ratio of such a crop's width to its height.
        rand_augment: timm's RandAugment string; null for none.
        color_jitter: Largest relative change of brightness, contrast and saturation; 0 for none.
        cutout: Side of Cutout's hole relative to the image's; 0 for none.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        workers: Number of processes that load images beside each training process. A number takes as many cores from
            PyTorch's threads on a CPU; null shares the cores by the time that loading and training take, measured at
            the start (4 in a stream). Results do not depend on it, but in a stream.
    """

    name: str = 'coco2014'
    streaming: bool = False
    unreadable: str = 'skip'
    train_split: str = 'train'
    eval_split: str = 'validation'
    train_size: int | None = None
    eval_size: int | None = None
    image_size: int = 448
    hflip: float = 0.0
    crop_scale: list[float] | None = None
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    rand_augment: str | None = 'rand-m9-n2-mstd0.5'
    color_jitter: float = 0.0
    cutout: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    workers: int | None = None

    def validate(self) -> None:
        super().validate(train_split=self.train_split, eval_split=self.eval_split)
        _at_least('data.image_size', self.image_size, 32)
        _at_least('data.train_size', self.train_size, 1)
        _at_least('data.eval_size', self.eval_size, 1)
        _at_least('data.workers', self.workers, 0)
        _at_least('data.mixup', self.mixup, 0)
        _at_least('data.cutmix', self.cutmix, 0)
        _one_of('data.unreadable', self.unreadable, UNREADABLE)
        if self.streaming and not self.train_size:
            raise InputError('data.streaming is true: set data.train_size, the number of images of an epoch.')
        for name in ('cutout', 'hflip'):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f'data.{name} is {getattr(self, name)}: must be from 0 to 1.')
        _at_least('data.color_jitter', self.color_jitter, 0)
        scale, ratio = self.crop_scale, self.crop_ratio
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise InputError(
                f'data.crop_scale is {scale}: must be null or two shares of the area, [lowest, highest], above 0 and at'
                ' most 1.'
            )
        if not (len(ratio) == 2 and 0 < ratio[0] <= ratio[1]):
            raise InputError(
                f'data.crop_ratio is {ratio}: must be two ratios of width to height, [lowest, highest], above 0.'
            )

    @property
    def augmentation(self) -> dict:
        """Settings of the training transform: the arguments of `train_transform` beside the model's own."""
        names = ('rand_augment', 'cutout', 'hflip', 'crop_scale', 'crop_ratio', 'color_jitter')
        return {name: getattr(self, name) for name in names}


@dataclass
class OptimConfig:
    """The optimisation: AdamW, a schedule, a loss, and an average of the weights.

    Args:
        epochs: Passes over the training images.
        batch_size: Images in one step, over all processes and with all that is accumulated.
        max_per_process: Most images that a process takes at once; gradients of what is more are accumulated. Null
            for no limit.
        lr: Highest learning rate.
        schedule: one_cycle (as Query2Label has it: AdamW's first beta goes from 0.95 to 0.85 and back), or cosine,
            after a linear rise.
        warmup: Share of the steps in which the learning rate rises.
        backbone_lr: Factor of the backbone's learning rate.
        layer_decay: Factor of the learning rate from each layer to the one before it; null for none.
        weight_decay: Of weights; biases, norms and embeddings have none.
        clip_grad: Largest norm of the gradient.
        loss: Loss: asl (asymmetric, Eq. 12), bce (binary cross-entropy), focal (of gamma_neg), poly (Poly-1,
            arXiv:2204.12511) or db (distribution-balanced, arXiv:2007.09654, by the counts of the training split).
        gamma_pos: Focusing parameter of present labels in asl (alpha+ in Eq. 12).
        gamma_neg: Focusing parameter of absent labels in asl (alpha- in Eq. 12), of all in focal.
        asl_clip: Margin of asl: absent labels of a probability below it have no loss; 0 for none.
        poly_epsilon: Weight that poly adds to the first term of the cross-entropy's expansion.
        label_smoothing: Distance e of the targets from 0 and 1: each present label's is 1 - e, each absent one's is e,
            for a label is a binary target of its own; masked labels stay masked.
        pos_weight: Factor of the loss of present labels in asl and bce: a number, or balanced, the number of absent
            entries of each label for a present one in the training split; null for none.
        pos_weight_max: Highest factor of a balanced pos_weight.
        ema_decay: Decay of the exponential moving average (EMA) of the weights at each step; it rises to that, as
            1 - steps ** -0.75, so that the weights of the start do not stay in it.
        ema_epochs: Number of epochs that the EMA averages over, in place of ema_decay, whatever the number of steps;
            null for ema_decay.
        early_stop: Epochs without a better mAP of the averaged weights after which training stops, with those of the
            best epoch for use; null to train to the end and use the last.
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
            _at_least(f'optim.{name}', getattr(self, name), 1)
        for name in ('lr', 'clip_grad', 'pos_weight_max', 'ema_epochs'):
            _above_0(f'optim.{name}', getattr(self, name))
        _one_of('optim.schedule', self.schedule, SCHEDULES)
        _one_of('optim.loss', self.loss, LOSSES)
        _at_least('optim.backbone_lr', self.backbone_lr, 0)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(f'optim.layer_decay is {self.layer_decay}: must be above 0 and at most 1.')
        if self.layer_decay is not None and self.backbone_lr != 1:
            raise InputError('optim.layer_decay and optim.backbone_lr both change the backbone: set one of them.')
        for name in ('weight_decay', 'gamma_pos', 'gamma_neg'):
            _at_least(f'optim.{name}', getattr(self, name), 0)
        for name in ('warmup', 'ema_decay', 'asl_clip'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'optim.{name} is {getattr(self, name)}: must be from 0 to below 1.')
        if self.ema_epochs is not None and self.ema_decay != EMA_DECAY:
            raise InputError(
                f'optim.ema_epochs is {self.ema_epochs:g} and optim.ema_decay is {self.ema_decay:g}: set'
                f' ema_epochs to null, or leave ema_decay at {EMA_DECAY}, which ema_epochs replaces.'
            )
        self._check_loss()

    def _check_loss(self) -> None:
        for name in ('gamma_pos', 'gamma_neg'):
            if 0 < getattr(self, name) < 1:
                raise InputError(
                    f'optim.{name} is {getattr(self, name)}: must be 0 or at least 1; in between, the gradient of a'
                    ' label that the model is sure of is not finite.'
                )
        if not self.poly_epsilon >= -1:
            raise InputError(
                f'optim.poly_epsilon is {self.poly_epsilon}: must be at least -1; below it a good logit has a greater'
                ' loss than a poor one.'
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f'optim.label_smoothing is {self.label_smoothing}: must be from 0 to below 0.5.')
        if self.pos_weight is None:
            return
        if isinstance(self.pos_weight, str) and self.pos_weight != 'balanced':
            raise InputError(f'optim.pos_weight is {self.pos_weight}: must be a number above 0, balanced or null.')
        if not isinstance(self.pos_weight, str):
            _above_0('optim.pos_weight', self.pos_weight)
        if self.loss not in WEIGHTED:
            raise InputError(
                f'optim.pos_weight is {self.pos_weight} and optim.loss is {self.loss}: {" and ".join(WEIGHTED)} alone'
                ' take it; set it to null.'
            )

    @property
    def counts_labels(self) -> str | None:
        """Setting that needs the counts of the labels in the training split, with its value; None where none does."""
        if self.loss == 'db':
            return 'optim.loss is db'
        return 'optim.pos_weight is balanced' if self.pos_weight == 'balanced' else None

    def decay(self, steps: int) -> float:
        """Returns the decay of the EMA at each step.

        Args:
            steps: Number of steps of an epoch.
        """
        return self.ema_decay if self.ema_epochs is None else max(0.0, 1 - 1 / (self.ema_epochs * steps))


@dataclass
class DistillConfig:
    """Learning from a teacher's probabilities besides the labels.

    Args:
        teacher: A trained model with the same labels: `local-dir:FOLDER`, `hf-hub:ORG/NAME` or a registered name with
            pretrained weights; null for none.
        weight: Share of the loss that is the teacher's.
        temperature: Divides the logits of both before they are compared.
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
    """What a run leaves to be resumed from; it is saved after each epoch's training in any case.

    Args:
        every: Steps after which it is saved within an epoch too; null for never.
        keep: Newest checkpoints that stay; that of the best epoch stays besides.
    """

    every: int | None = None
    keep: int = 2

    def validate(self) -> None:
        _at_least('checkpoint.every', self.every, 1)
        _at_least('checkpoint.keep', self.keep, 1)


@dataclass
class TrainConfig:
    """A training run.

    Args:
        output: Folder that the run is written to.
        overwrite: Replace a run that the folder already holds.
        resume: auto to go on from the newest whole checkpoint in the output folder, if there is any, or the folder of
            one checkpoint; null to start anew.
        force: Resume although settings, labels or data are not those of the checkpoint.
        seed: Of weights, order and augmentation.
        trackers: Of Accelerate: tensorboard, wandb, ...; null for tensorboard where it is installed.
        log_every: Steps between two entries of loss and learning rate.
        top_k: Number of labels that the top-k metrics predict in each image: 3 as for COCO, 5 as for Corel5k.
        push_to: Where on the Hub the run is published when it is over, ORG/NAME; null for nowhere.
        push_private: Whether a repository that is made for it is private.
    """

    output: str
    overwrite: bool = False
    resume: str | None = None
    force: bool = False
    seed: int = 0
    trackers: list[str] | None = None
    log_every: int = 10
    top_k: int = 3
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
        _seed('seed', self.seed)
        _at_least('log_every', self.log_every, 1)
        _at_least('top_k', self.top_k, 1)
        for tracker in self.trackers or ():
            _one_of('trackers', tracker, [kind.value for kind in LoggerType if kind != LoggerType.ALL])
        if self.distill.teacher and (self.data.mixup or self.data.cutmix):
            raise InputError('distill.teacher sees images that are not mixed: set data.mixup and data.cutmix to 0.')
        if self.model.freeze and not self.optim.backbone_lr:
            raise InputError(
                f'optim.backbone_lr is 0 and model.freeze is {self.model.freeze}, which decides when the backbone'
                ' trains: leave optim.backbone_lr at 1, or at what a freed stage is to have.'
            )
        if self.data.streaming and (needs := self.optim.counts_labels):
            raise InputError(
                f'data.streaming is true and {needs}, which counts the labels of the whole training split: set'
                ' data.streaming to false, or choose another loss or a number.'
            )
        if self.overwrite and self.resume:
            raise InputError(f'resume is {self.resume} and overwrite is true: set one of them.')
        if self.push_to is not None:
            check_target(self.push_to)
            check_access(self.push_to)
        elif self.push_private:
            raise InputError('push_private is true: it needs push_to, the repository on the Hub.')


@dataclass
class EvalDataConfig(SourceConfig):
    """The images to measure on.

    Args:
        split: Split that is measured on.
        size: Number of images; null for all.
        workers: Processes that load images, for each evaluating process.
    """

    split: str = 'validation'
    size: int | None = None
    workers: int = 2

    def validate(self) -> None:
        super().validate(split=self.split)
        _at_least('data.size', self.size, 1)
        _at_least('data.workers', self.workers, 0)
        if self.name != 'scenes' and not self.root:
            raise InputError(f'data.root is null: {self.name} needs its folder, its file or its id on the Hub.')
        if self.name not in ('scenes', 'hub') and not os.path.exists(self.root):
            raise InputError(f'data.root is {self.root}: there is no such folder or file.')


@dataclass
class EvaluateConfig:
    """An evaluation.

    Args:
        model: `local-dir:FOLDER`, `hf-hub:ORG/NAME`, or a registered model with pretrained weights.
        output: File that the results are written to; null to print them only.
        scores: Parquet file to write with every image's probabilities: `image_id` and a column for each label; null
            for none.
        batch_size: Images in one pass, in each process.
        image_size: Side of the model's input in pixels; null for the model's own.
        flip: Take the mean of the probabilities of each image and of its mirror image.
        ap: Definition of average precision: all-points, interpolated (Query2Label, SSGRL) or voc11.
        threshold: A label is predicted above this probability; null for the model's own thresholds.
        top_k: Number of labels that the top-k metrics predict in each image: 3 as for COCO, 5 as for Corel5k.
        bootstrap: Resamples of the images for a 95 % interval of mAP; 0 for none.
        fit_thresholds: Fit a threshold for each label to these images and store them in the model's folder.
        submission: Tar file for VOC2012's evaluation server to write instead of measuring; null to measure.
    """

    model: str
    output: str | None = None
    scores: str | None = None
    batch_size: int = 64
    image_size: int | None = None
    flip: bool = False
    ap: str = 'all-points'
    threshold: float | None = 0.5
    top_k: int = 3
    bootstrap: int = 0
    fit_thresholds: bool = False
    submission: str | None = None
    data: EvalDataConfig = field(default_factory=EvalDataConfig)

    def validate(self) -> None:
        self.data.validate()
        _at_least('batch_size', self.batch_size, 1)
        _at_least('image_size', self.image_size, 32)
        _at_least('top_k', self.top_k, 1)
        _at_least('bootstrap', self.bootstrap, 0)
        _one_of('ap', self.ap, DEFINITIONS)
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f'threshold is {self.threshold}: must be a probability, from 0 to below 1.')
        if self.fit_thresholds and not self.model.startswith('local-dir:'):
            raise InputError(f'fit_thresholds stores them in a folder: {self.model} is not local-dir:FOLDER.')
        if self.fit_thresholds and (self.flip or self.image_size):
            raise InputError(
                "fit_thresholds is true: they are for the model's own input; leave out flip and image_size."
            )
        if self.submission:
            self._check_submission()
        _new_file('output', self.output)
        _new_file('scores', self.scores, '.parquet')
        _new_file('submission', self.submission, '.tar', '.tar.gz', '.tgz')

    def _check_submission(self) -> None:
        if (self.data.name, self.data.split, self.data.size) != ('voc2012', 'test', None):
            raise InputError(
                'submission is for the whole test split of voc2012: set data.name and data.split to these.'
            )
        for name, unset in (('output', None), ('bootstrap', 0), ('fit_thresholds', False)):
            if getattr(self, name) != unset:
                raise InputError(
                    f'{name} is {getattr(self, name)}: with a submission nothing is measured; leave it out.'
                )


@dataclass(kw_only=True)
class VariantsConfig:
    """Several models, or variants of one, that are trained alike.

    Args:
        output: Folder that their runs, the tables and the images are written to.
        train: File of the training settings that all of them share.
        settings: Settings of training in place of that file's, `{optim: {epochs: 3}}` say.
        backbone: Plain model that is trained first with each seed, by the settings of that file alone: all backbones of
            that seed's runs start from its weights. Null for none.
        seeds: Of the runs of each.
        launch: Arguments of `accelerate launch`, to train in several processes; null to train in one, without it.
        batch_size: Images at once where the time of inference is measured.
        turns: How often it is measured; 0 for not at all.
    """

    output: str
    train: str
    settings: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    launch: list[str] | None = None
    batch_size: int = 8
    turns: int = 20

    def validate(self) -> None:
        check_folder(self.output, 'output')
        if not os.path.isfile(find_settings(self.train)):
            raise InputError(f'train is {self.train}: there is no such file.')
        for key, _ in flatten(self.settings):
            if _is_one_of(key, OF_A_VARIANT):
                raise InputError(f'settings has {key}: leave it out, each run has its own.')
        if self.backbone is not None and not timm.is_model(self.backbone):
            raise unknown('backbone', self.backbone, timm.list_models())
        if self.backbone and 'model.backbone_from' in dict(flatten(self.settings)):
            raise InputError('settings has model.backbone_from: leave it out, or set backbone to null.')
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f'seeds is {self.seeds}: must be one or more, each once.')
        for seed in self.seeds:
            _seed('seeds', seed)
        _at_least('batch_size', self.batch_size, 1)
        _at_least('turns', self.turns, 0)


@dataclass(kw_only=True)
class CompareConfig(VariantsConfig):
    """A comparison of models.

    Args:
        models: Any that timm knows, ours among them; the others are compared with the first.
        rows: Further rows by their names, each a model with arguments, with settings of training in place of those that
            all share, or both: `{fast: {model: resnet101, args: {}, settings: {optim: {lr: 1e-3}}}}`.
    """

    models: list[str]
    rows: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        super().validate()
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f'models is {self.models}: must be one or more, each once.')
        for name in self.models:
            if not timm.is_model(name):
                raise unknown('model', name, timm.list_models())
        for name, row in self.rows.items():
            self._check_row(f'rows.{name}', name, row)

    def _check_row(self, key: str, name: str, row: object) -> None:
        if name in self.models:
            raise InputError(f'{key}: {name} is one of models, too; give the row another name.')
        is_row = isinstance(row, dict) and {'model'} <= row.keys() <= {'model', 'args', 'settings'}
        kinds = {'model': str, 'args': dict, 'settings': dict}
        if not is_row or not all(isinstance(value, kinds[part]) for part, value in row.items()):
            raise InputError(
                f'{key} is {row}: must be {{model: NAME}}, with args: {{...}} or settings: {{...}} or both.'
            )
        if not timm.is_model(row['model']):
            raise unknown(f'model in {key}', row['model'], timm.list_models())
        for setting, _ in flatten(row.get('settings', {})):
            if _is_one_of(setting, OF_A_VARIANT):
                raise InputError(f'{key}.settings has {setting}: leave it out, each run has its own.')
            if _is_one_of(setting, OF_ALL_ROWS):
                raise InputError(f'{key}.settings has {setting}: leave it out, all rows have the same.')


@dataclass(kw_only=True)
class AblateConfig(VariantsConfig):
    """An ablation of the paper.

    Args:
        table: 4, 5, 6, 7 or fig5.
        model: An msff_* model.
    """

    table: str
    model: str = 'msff_resnet101'

    def validate(self) -> None:
        super().validate()
        _one_of('table', self.table, TABLES)
        if not timm.is_model(self.model) or not self.model.startswith('msff_'):
            raise unknown('msff_* model', self.model, timm.list_models(module='msff'))


def flatten(content: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Gives every setting of nested ones with its value, `('data.root', '/data')` and the like."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _is_one_of(key: str, settings: Iterable[str]) -> bool:
    """Returns whether a setting is one of these, or in a section of these."""
    return any(key == own or key.startswith(f'{own}.') for own in settings)


def _at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise InputError(f'{key} is {value}: must be at least {least}.')


def _above_0(key: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise InputError(f'{key} is {value}: must be above 0.')


def _seed(key: str, value: int) -> None:
    _at_least(key, value, 0)
    if value > LARGEST_SEED:
        raise InputError(f'{key} is {value}: must be at most {LARGEST_SEED}.')


def _new_file(key: str, value: str | None, *suffixes: str) -> None:
    """Makes sure that a file can be written at the end of a job that may be long."""
    if value is None:
        return
    if suffixes and not value.endswith(suffixes):
        raise InputError(f'{key} is {value}: must end in {" or ".join(suffixes)}.')
    check_file(value, key)


def _one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise unknown(key, value, known)
