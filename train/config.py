"""The settings of training and evaluation: typed, validated here, read from YAML with overrides on the command line."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TypeVar

import datasets
import timm
import yaml
from jsonargparse import ArgumentError, ArgumentParser

import msff_timm.data
from msff_timm import hub
from msff_timm.errors import InputError, unknown
from msff_timm.metrics import DEFINITIONS

__all__ = ['DataConfig', 'EvalDataConfig', 'EvaluateConfig', 'ModelConfig', 'OptimConfig', 'TrainConfig', 'parse']

ConfigT = TypeVar('ConfigT')
UNREADABLE = ('error', 'skip')


@dataclass
class ModelConfig:
    """The model.

    Args:
        name: Any model that timm knows, ours among them.
        backbone_pretrained: Start from timm's ImageNet weights of the backbone, unless `init_from` brings others.
        init_from: Start from a trained model of that name: `local-dir:FOLDER` or `hf-hub:ORG/NAME`; null for none.
        keep_labels: Where its labels are others, keep what it has learnt of those that both share.
        drop_rate: Dropout.
    """

    name: str = 'msff_resnet101'
    backbone_pretrained: bool = True
    init_from: str | None = None
    keep_labels: bool = False
    drop_rate: float = 0.1

    def validate(self) -> None:
        if not timm.is_model(self.name):
            raise unknown('model.name', self.name, hub.list_models())
        if self.backbone_pretrained and self.name.partition('.')[0] not in hub.list_models():
            raise InputError(
                f'model.backbone_pretrained is true: {self.name} has no backbone of its own; set it to false.'
            )
        if self.keep_labels and not self.init_from:
            raise InputError('model.keep_labels is true: it needs model.init_from, the model to keep them from.')
        if not 0 <= self.drop_rate < 1:
            raise InputError(f'model.drop_rate is {self.drop_rate}: must be from 0 to below 1.')


@dataclass
class SourceConfig:
    """Where pictures and labels come from: what `msff_timm.data.load` is given.

    Args:
        name: coco2014, coco2017, voc2007, voc2012, table, folder, hub or scenes.
        root: Folder of a data set that lies on disk, a table, or the id of a data set on the Hub.
        keep_unlabelled: Keep COCO's pictures without a label; null keeps them in training only.
        difficult: VOC's labels that are difficult only: ignore, negative or positive.
        image_root: Folder of the pictures that a table names; null for the table's own.
        image_column: Column of the pictures in a table or a data set of the Hub; null to find it.
        label_columns: Column of the labels, or one of 1, 0 and -1 for each; null to find them.
        label_delimiter: Between the labels of a column of text.
        label_names: Names in the order of the logits, where the data do not fix them; null for those that occur, in
            evaluation for the model's own.
    """

    name: str = 'scenes'
    root: str | None = None
    keep_unlabelled: bool | None = None
    difficult: str = 'ignore'
    image_root: str | None = None
    image_column: str | None = None
    label_columns: list[str] | None = None
    label_delimiter: str = '|'
    label_names: list[str] | None = None

    def load(
        self, split: str, size: int | None, image_size: int, streaming: bool = False
    ) -> datasets.Dataset | datasets.IterableDataset:
        """Loads one split; pictures that are drawn have sides of `image_size` pixels."""
        return msff_timm.data.load(
            self.name,
            split,
            self.root,
            size,
            image_size=image_size,
            keep_unlabelled=self.keep_unlabelled,
            difficult=self.difficult,
            image_root=self.image_root,
            image_column=self.image_column,
            label_columns=self.label_columns,
            label_delimiter=self.label_delimiter,
            label_names=self.label_names,
            streaming=streaming,
        )

    def definition(self, split: str) -> dict:
        """Records which data these are, with the choices that change what is measured."""
        choices = {'name': self.name, 'split': split}
        if self.name.startswith('coco'):
            choices['keep_unlabelled'] = self.keep_unlabelled
        if self.name.startswith('voc'):
            choices['difficult'] = self.difficult
        if self.name == 'hub' and not os.path.isdir(self.root):
            choices['root'] = self.root
        elif self.name in ('table', 'folder', 'hub'):
            choices['root'] = Path(self.root).resolve().name  # no more of a path says anything on another machine
        return choices


@dataclass
class DataConfig(SourceConfig):
    """The pictures.

    Args:
        streaming: Read a training split of the Hub while training, without a copy on disk; needs `train_size`, the
            number of pictures that make an epoch.
        unreadable: What a training picture that cannot be read does: skip (named; over 1 % of them end the run) or
            error.
        train_split: Split that is trained on.
        eval_split: Split that is measured on.
        train_size: Number of training pictures; null for all.
        eval_size: Number of pictures to measure on; null for all.
        image_size: Side of the model's input in pixels; pictures are resized to this square.
        rand_augment: timm's RandAugment string; null for none.
        cutout: Side of Cutout's hole relative to the picture's; 0 for none.
        workers: Processes that load pictures, for each training process.
    """

    name: str = 'coco2014'
    streaming: bool = False
    unreadable: str = 'skip'
    train_split: str = 'train'
    eval_split: str = 'validation'
    train_size: int | None = None
    eval_size: int | None = None
    image_size: int = 448
    rand_augment: str | None = 'rand-m9-n2-mstd0.5'
    cutout: float = 0.5
    workers: int = 4

    def validate(self) -> None:
        _at_least('data.image_size', self.image_size, 32)
        _at_least('data.train_size', self.train_size, 1)
        _at_least('data.eval_size', self.eval_size, 1)
        _at_least('data.workers', self.workers, 0)
        if self.unreadable not in UNREADABLE:
            raise unknown('data.unreadable', self.unreadable, UNREADABLE)
        if self.streaming and not self.train_size:
            raise InputError('data.streaming is true: set data.train_size, the number of pictures of an epoch.')
        if not 0 <= self.cutout <= 1:
            raise InputError(f'data.cutout is {self.cutout}: must be from 0 to 1.')


@dataclass
class OptimConfig:
    """The optimisation: AdamW, one-cycle schedule, asymmetric loss, and an average of the weights.

    Args:
        epochs: Passes over the training pictures.
        batch_size: Pictures in one step, over all processes.
        lr: Highest learning rate of the cycle.
        weight_decay: Of weights; biases, norms and embeddings have none.
        warmup: Share of the steps in which the learning rate rises.
        clip_grad: Largest norm of the gradient.
        gamma_pos: Focusing parameter of present labels (alpha+ in Eq. 12).
        gamma_neg: Focusing parameter of absent labels (alpha- in Eq. 12).
        ema_decay: Decay of the exponential moving average of the weights, at each step.
    """

    epochs: int = 80
    batch_size: int = 128
    lr: float = 1e-4
    weight_decay: float = 1e-2
    warmup: float = 0.2
    clip_grad: float = 1.0
    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    ema_decay: float = 0.9997

    def validate(self) -> None:
        _at_least('optim.epochs', self.epochs, 1)
        _at_least('optim.batch_size', self.batch_size, 1)
        for name in ('lr', 'clip_grad'):
            if not getattr(self, name) > 0:
                raise InputError(f'optim.{name} is {getattr(self, name)}: must be above 0.')
        for name in ('weight_decay', 'gamma_pos', 'gamma_neg'):
            _at_least(f'optim.{name}', getattr(self, name), 0)
        for name in ('warmup', 'ema_decay'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'optim.{name} is {getattr(self, name)}: must be from 0 to below 1.')


@dataclass
class TrainConfig:
    """A training run.

    Args:
        output: Folder that the run is written to.
        overwrite: Replace a run that the folder already holds.
        seed: Of weights, order and augmentation.
    """

    output: str
    overwrite: bool = False
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def validate(self) -> None:
        for part in (self.model, self.data, self.optim):
            part.validate()
        _at_least('seed', self.seed, 0)


@dataclass
class EvalDataConfig(SourceConfig):
    """The pictures to measure on.

    Args:
        split: Split that is measured on.
        size: Number of pictures; null for all.
        workers: Processes that load pictures, for each evaluating process.
    """

    split: str = 'validation'
    size: int | None = None
    workers: int = 2


@dataclass
class EvaluateConfig:
    """An evaluation.

    Args:
        model: `local-dir:FOLDER`, `hf-hub:ORG/NAME`, or a registered model with pretrained weights.
        output: File that the results are written to; null to print them only.
        batch_size: Pictures in one pass, in each process.
        ap: Definition of average precision: all-points, interpolated (Query2Label, SSGRL) or voc11.
        threshold: A label is predicted above this probability; null for the model's own thresholds.
        bootstrap: Resamples of the pictures for a 95 % interval of mAP; 0 for none.
        fit_thresholds: Fit a threshold for each label to these pictures and store them in the model's folder.
        submission: Tar file for VOC2012's evaluation server to write instead of measuring; null to measure.
    """

    model: str
    output: str | None = None
    batch_size: int = 64
    ap: str = 'all-points'
    threshold: float | None = 0.5
    bootstrap: int = 0
    fit_thresholds: bool = False
    submission: str | None = None
    data: EvalDataConfig = field(default_factory=EvalDataConfig)

    def validate(self) -> None:
        _at_least('batch_size', self.batch_size, 1)
        _at_least('bootstrap', self.bootstrap, 0)
        if self.ap not in DEFINITIONS:
            raise unknown('ap', self.ap, DEFINITIONS)
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f'threshold is {self.threshold}: must be a probability, from 0 to below 1.')
        if self.fit_thresholds and not self.model.startswith('local-dir:'):
            raise InputError(f'fit_thresholds stores them in a folder: {self.model} is not local-dir:FOLDER.')
        if self.submission and (self.data.name, self.data.split, self.data.size) != ('voc2012', 'test', None):
            raise InputError(
                'submission is for the whole test split of voc2012: set data.name and data.split to these.'
            )
        _at_least('data.size', self.data.size, 1)
        _at_least('data.workers', self.data.workers, 0)


def parse(config_class: type[ConfigT], argv: list[str], default_file: Path | None = None) -> ConfigT:
    """Reads settings from `--config FILE` (or the default file) with overrides `--key value`.

    Raises:
        InputError: A key is unknown, a value is not of its type or outside of its range, or a file cannot be read.
    """
    file_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file_parser.add_argument('--config', type=Path, default=default_file)
    found, overrides = file_parser.parse_known_args(argv)
    known = list(_keys(config_class))
    for override in overrides:
        key = override.partition('=')[0]
        if key.startswith('--') and key[2:] not in [*known, 'help', 'print_config']:
            raise unknown('setting', key, [f'--{key}' for key in known])

    parser = ArgumentParser(prog=Path(sys.argv[0]).name, exit_on_error=False, allow_abbrev=False)
    parser.add_argument('--config', action='config', help='YAML file of settings')
    parser.add_class_arguments(config_class)
    from_file = []
    if found.config:
        try:
            content = yaml.safe_load(found.config.read_text(encoding='utf-8')) or {}
        except (OSError, ValueError, yaml.YAMLError) as e:
            raise InputError(f'{found.config}: cannot be read as settings ({" ".join(str(e).split())}).') from None
        for key in _flatten(content):
            if key not in known:
                raise unknown(f'setting in {found.config}', key, known)
        from_file = ['--config', str(found.config)]
    try:
        settings = parser.parse_args([*from_file, *overrides])
    except ArgumentError as e:
        raise InputError(' '.join(str(e).split())) from None
    values = vars(parser.instantiate(settings))
    config = config_class(**{f.name: values[f.name] for f in fields(config_class)})
    config.validate()
    return config


def _keys(config_class: type) -> Iterator[str]:
    """Names every setting of a class, `data.root` and the like."""
    for f in fields(config_class):
        if is_dataclass(f.type):
            yield from (f'{f.name}.{key}' for key in _keys(f.type))
        else:
            yield f.name


def _flatten(content: dict) -> Iterator[str]:
    """Names every setting of a YAML file, `data.root` and the like."""
    if not isinstance(content, dict):
        raise InputError(f'settings must be "key: value" lines, not {content!r}.')
    for key, value in content.items():
        if isinstance(value, dict):
            yield from (f'{key}.{inner}' for inner in _flatten(value))
        else:
            yield str(key)


def _at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and value < least:
        raise InputError(f'{key} is {value}: must be at least {least}.')
