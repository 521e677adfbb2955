"""The settings of the data, of training and of evaluation."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

import msff_timm.data

from ..data.counts import LabelCounts
from ..data.splitting import hold_out
from ..errors import InputError, NoSplitError, unknown
from .checks import check_at_least, check_one_of

__all__ = ['DataConfig', 'EvalDataConfig', 'SourceConfig']

UNREADABLE = ('error', 'skip')


@dataclass
class SourceConfig:
    """Settings of where images and labels come from: the arguments of `msff_timm.data.load`.

    Args:
        name: Format of the data: auto to recognise it, coco2014, voc2007, table, folder, hub, coco, voc, yolo, ...
            (msff_timm/data/README.md).
        root: Folder of a data set on disk, a table, or the id of a data set on the Hub.
        config_name: Configuration of a data set on the Hub, or of a folder of Parquet files, that has several; null for
            its default.
        title: Name of the data in results, cards and tables, e.g. of a subset of `name`; null for `name`.
        keep_unlabelled: True to keep COCO's images without a label; null keeps those of coco2014 and coco2017 in
            training only.
        difficult: Reading of VOC's labels whose objects are all difficult: ignore, negative or positive.
        missing: Handling of missing image files of COCO, VOC and exports, and of images without annotations: skip, with
            a warning, or error; null skips them in training only.
        image_root: Folder of the images that a table or an export names; null for the folder of the table or export.
        image_column: Column of the images in a table or a data set on the Hub; null to detect it.
        label_columns: Column of the labels, or one column of 1, 0 and -1 for each label; null to detect them.
        label_delimiter: Delimiter of the labels in a column of text; none if each text is one label; null to detect it.
        label_names: Label names in the order of the logits, if the data do not define it; null for the labels that
            occur, or, in evaluation, for the labels of the model.
        minus_one: Meaning of -1 in a column for one label: unannotated (masked) or absent.
        blank: Meaning of an empty cell in a column for one label: unannotated (masked) or absent.
        none_label: Label of a table or a data set on the Hub that means no label, e.g. No Finding; null for none.
        repeated_images: Handling of rows of a table that name the same image: error, unite (a label is present if a row
            says so) or repeat (the same, and the image trains once for each row).
        image_suffix: Suffix of images that a table names without, e.g. .jpg; null to find it.
        validation_fold: Number in the column fold (or kfold) that makes a row part of the validation split, all others
            of the training split; null to ignore folds.
        ignore_labels: Labels that metrics leave out, e.g. labels without a training image; null for none.
        validation: Share of the split train that is held out as validation split if the data have none, always the same
            images; null for none, or, in evaluation, for the images that the model's run has held out.
    """

    name: str = 'scenes'
    root: str | None = None
    config_name: str | None = None
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
    none_label: str | None = None
    repeated_images: str = 'error'
    image_suffix: str | None = None
    validation_fold: int | None = None
    ignore_labels: list[str] | None = None
    validation: float | None = None

    def check_source(self, **splits: str) -> None:
        """Checks the settings without reading the data.

        Args:
            **splits: Splits by the names of their settings.
        """
        check_one_of('data.name', self.name, msff_timm.data.NAMES)
        for name, split in splits.items():
            known = msff_timm.data.SPLITS.get(self.name)
            if known and split not in (*known, 'val'):
                raise unknown(f'data.{name} of {self.name}', split, known)
        check_one_of('data.difficult', self.difficult, msff_timm.data.DIFFICULT)
        if self.missing is not None:
            check_one_of('data.missing', self.missing, msff_timm.data.MISSING)
        if self.label_delimiter == '':
            raise InputError('data.label_delimiter is empty: must be the text between two labels.')
        check_one_of('data.minus_one', self.minus_one, msff_timm.data.MEANINGS)
        check_one_of('data.blank', self.blank, msff_timm.data.MEANINGS)
        check_one_of('data.repeated_images', self.repeated_images, msff_timm.data.REPEATED)
        if self.validation is not None and not 0 < self.validation < 1:
            raise InputError(f'data.validation is {self.validation}: must be a share of the images, between 0 and 1.')

    def recognise(self) -> str | None:
        """Replaces the name `auto` by the format that is recognised, and the root by what is to be read.

        Returns:
            Line on what was recognised; None if the name is not `auto`.
        """
        if self.name != 'auto':
            return None
        found = msff_timm.data.exports.recognise(self.root)
        self.name, self.root = found.name, found.root
        self.validate()
        return found.note

    def validate(self) -> None:
        self.check_source()

    def load(
        self, split: str, size: int | None, image_size: int, streaming: bool = False
    ) -> datasets.Dataset | datasets.IterableDataset:
        """Loads one split; `scenes` draws images with sides of `image_size` pixels."""
        return msff_timm.data.load(
            self.name,
            split,
            self.root,
            size,
            config_name=self.config_name,
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
            none_label=self.none_label,
            repeated_images=self.repeated_images,
            image_suffix=self.image_suffix,
            validation_fold=self.validation_fold,
            streaming=streaming,
        )

    def hold_out(self, image_size: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Holds out `validation` of the split `train`; `scenes` draws images with sides of `image_size` pixels.

        Returns:
            The training images that are left, and the validation images.
        """
        assert self.validation is not None
        train_set, eval_set = hold_out(self.load('train', None, image_size), self.validation)
        if self.name in ('coco2014', 'coco2017') and self.keep_unlabelled is None:  # as in their validation split
            eval_set = eval_set.select([row for row, labels in enumerate(eval_set['labels'][:]) if labels])
        return train_set, eval_set

    def explain_no_validation(self, error: NoSplitError) -> InputError:
        """Returns the error for data without a validation split, of which nothing is to be held out."""
        command = '' if self.name == 'hub' else f', or write a split to a table: {self.split_command(0.2)}'
        fix = f'Set data.validation to the share of train to hold out, e.g. 0.2{command}'
        return InputError(f'{error} {fix}')

    def describe_held_out(self, eval_set: datasets.Dataset) -> str:
        """Returns text on the images of `hold_out`."""
        return (
            f'validation: {len(eval_set):,} images held out of train (data.validation {self.validation:g}, stratified,'
            ' seed 0)'
        )

    def split_command(self, share: float) -> str:
        """Returns the command that writes a split to a table."""
        return f'msff-timm data split {self.name} --root {shlex.quote(str(self.root))} --validation {share:g}'

    def kept_labels(self, label_names: Sequence[str]) -> list[int]:
        """Returns the indices of the labels that are not in `ignore_labels`.

        Raises:
            InputError: `ignore_labels` holds an unknown label.
        """
        ignored = self.ignore_labels or ()
        for name in ignored:
            if name not in label_names:
                raise unknown('label in data.ignore_labels', name, label_names)
        return [number for number, name in enumerate(label_names) if name not in ignored]

    def without_ignored(self, targets: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
        """Returns targets (N, K) in which the labels of `ignore_labels` are masked."""
        kept = self.kept_labels(label_names)
        masked = np.full_like(targets, -1)
        masked[:, kept] = targets[:, kept]
        return masked

    def check_labels(
        self, targets: np.ndarray, label_names: Sequence[str], split: str, key: str | None = None
    ) -> str | None:
        """Returns a warning about labels that cannot be learnt, or are left out of mAP; None if there are none.

        Args:
            targets: Targets (N, K) of the split.
            label_names: Label names in the order of the logits.
            split: Name of the split.
            key: Name of the setting of a split to evaluate; None for a training split.

        Raises:
            InputError: The split is to be evaluated, and no label can be.
        """
        counts = self.count_labels(targets, label_names)
        if key is not None:
            counts.check(f'{self.root or self.name}: {split}', key)
        line = counts.warning(split, trains=key is None)
        return line and f'warning: {line}'

    def count_labels(self, targets: np.ndarray, label_names: Sequence[str]) -> LabelCounts:
        """Counts the entries of targets (N, K) of the labels that are not in `ignore_labels`."""
        kept = self.kept_labels(label_names)
        return LabelCounts.of(targets[:, kept], [label_names[k] for k in kept], self.masking)

    @property
    def masking(self) -> str | None:
        """Name of the data set if its -1 or blank cells are masked; None if both mean absent."""
        return None if self.minus_one == self.blank == 'absent' else self.name

    def definition(self, split: str) -> dict:
        """Describes the data, with the settings that change the metrics."""
        choices: dict[str, Any] = {'name': self.name, 'split': split}
        if self.name.startswith('coco'):
            choices['keep_unlabelled'] = self.keep_unlabelled
        if self.name.startswith('voc'):
            choices['difficult'] = self.difficult
        if self.missing is not None:
            choices['missing'] = self.missing
        if self.name in ('table', 'folder', 'hub', *msff_timm.data.exports.FORMATS):
            if self.root is not None:
                is_id = self.name == 'hub' and not os.path.isdir(self.root)
                # The rest of a path means nothing on another machine.
                choices['root'] = self.root if is_id else Path(self.root).resolve().name
            readings = {'minus_one': self.minus_one, 'blank': self.blank}
            choices |= {key: value for key, value in readings.items() if value != 'unannotated'}
            choices |= {} if self.repeated_images == 'error' else {'repeated_images': self.repeated_images}
            others = {'none_label': self.none_label, 'validation_fold': self.validation_fold}
            choices |= {key: value for key, value in others.items() if value is not None}
        if self.config_name is not None:
            choices['config_name'] = self.config_name
        if self.title is not None:
            choices['title'] = self.title
        if self.validation is not None:
            choices['validation'] = f'{self.validation:g} of train, stratified, seed 0'
        if self.ignore_labels:
            choices['ignore_labels'] = self.ignore_labels
        return choices


@dataclass
class DataConfig(SourceConfig):
    """Settings of the data of a training run.

    Args:
        streaming: True to stream a training split from the Hub or from WebDataset shards, without a copy on disk; needs
            `train_size`, the number of images in an epoch.
        unreadable: Handling of a training image that cannot be read: skip, with a warning (over 1 % of them end the
            run), or error.
        train_split: Training split.
        eval_split: Evaluation split.
        train_size: Number of training images; null for all.
        eval_size: Number of images to evaluate; null for all.
        image_size: Side of the model's input in pixels; images are resized to this square.
        hflip: Probability of a horizontal flip; 0 for none.
        crop_scale: Range of the area of a random crop, [lowest, highest] share of the image; null to resize the whole
            image. The labels stay those of the whole image, even if the crop leaves an object out: low shares are for
            labels that describe the whole image.
        crop_ratio: Range of the aspect ratio of a random crop, [lowest, highest] ratio of width to height.
        rand_augment: RandAugment string of timm; null for none.
        color_jitter: Largest relative change of brightness, contrast and saturation; 0 for none.
        cutout: Side of Cutout's hole as a share of the image's side; 0 for none.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        workers: Number of data loader workers for each process; on a CPU, PyTorch computes on the remaining cores. Null
            divides the cores by the time of loading and training, measured at the start (4 workers for a stream). It
            changes the results of a stream only.

    Examples:
        >>> DataConfig('table', 'photos', blank='absent', crop_scale=[0.7, 1.0], workers=2).augmentation['crop_scale']
        [0.7, 1.0]
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
        self.check_source(train_split=self.train_split, eval_split=self.eval_split)
        check_at_least('data.image_size', self.image_size, 32)
        check_at_least('data.train_size', self.train_size, 1)
        check_at_least('data.eval_size', self.eval_size, 1)
        check_at_least('data.workers', self.workers, 0)
        check_at_least('data.mixup', self.mixup, 0)
        check_at_least('data.cutmix', self.cutmix, 0)
        check_one_of('data.unreadable', self.unreadable, UNREADABLE)
        if self.streaming and not self.train_size:
            raise InputError('data.streaming is true: set data.train_size, the number of images in an epoch.')
        for name in ('cutout', 'hflip'):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f'data.{name} is {getattr(self, name)}: must be from 0 to 1.')
        check_at_least('data.color_jitter', self.color_jitter, 0)
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
        """Arguments of `train_transform`, apart from the preprocessing of the model."""
        names = ('rand_augment', 'cutout', 'hflip', 'crop_scale', 'crop_ratio', 'color_jitter')
        return {name: getattr(self, name) for name in names}


@dataclass
class EvalDataConfig(SourceConfig):
    """Settings of the data of an evaluation.

    Args:
        split: Split to evaluate.
        size: Number of images; null for all.
        workers: Number of data loader workers for each process.

    Examples:
        >>> EvalDataConfig('voc2007', 'VOCdevkit', split='test', difficult='negative').split
        'test'
    """

    split: str = 'validation'
    size: int | None = None
    workers: int = 2

    def validate(self) -> None:
        self.check_source(split=self.split)
        check_at_least('data.size', self.size, 1)
        check_at_least('data.workers', self.workers, 0)
        if self.name != 'scenes' and not self.root:
            raise InputError(f'data.root is null: {self.name} needs a folder, a file or an id on the Hub.')
        if self.name == 'scenes' and self.root:
            raise InputError(
                f'data.root is {self.root}, but data.name is scenes, which are drawn: set data.name to auto.'
            )
        if self.name not in ('auto', 'scenes', 'hub', 'webdataset') and self.root and not os.path.exists(self.root):
            raise InputError(f'data.root is {self.root}: there is no such folder or file.')
