"""The data of a run: both splits, how their images are divided into batches, and the loaders."""

from collections.abc import Iterable
from itertools import islice

import datasets
from accelerate import Accelerator
from datasets.distributed import split_dataset_by_node
from timm.data import Mixup

import msff_timm.data

from ..data.counts import LabelCounts
from ..data.samples import Samples, StreamedSamples
from ..data.table_splits import standard_split
from ..data.transforms import eval_transform, train_transform
from ..errors import InputError, NoSplitError
from .config import DataConfig, TrainConfig
from .features import FeatureCache
from .identity import digest, fingerprint
from .loaders import EpochSampler, divide_batch, make_loader

__all__ = ['RunData', 'load_data', 'make_mixup']

SHUFFLE_BUFFER = 1000  # encoded images of a stream, from which the next one is drawn


class RunData:
    """The images of a run.

    Args:
        config: Settings of the run.
        accelerator: Accelerator of this process.

    Attributes:
        train_set: Training split; of a stream, this process's share.
        eval_set: Evaluation split.
        label_names: Label names in the order of the logits.
        held_out: Share of the validation images and digest of their names if they were held out; None for a split of
            the data.
        num_images: Number of training images in an epoch.
        steps_per_epoch: Number of optimizer steps in an epoch.
        micro_batch_size: Number of images that a process trains on at a time.
        accumulation_steps: Number of micro-batches of a process in a step.
        eval_loader: Loader of the evaluation split.

    Raises:
        InputError: The splits cannot be loaded, or the batch cannot be divided.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.seed, self.accelerator = config.data, config.seed, accelerator
        data, self.batch_size = config.data, config.optim.batch_size
        self.train_set, self.eval_set, self.label_names, self.held_out = load_data(data, accelerator)
        for line in dict.fromkeys(msff_timm.data.notes(self.train_set) + msff_timm.data.notes(self.eval_set)):
            accelerator.print(line)
        self.num_images = data.train_size if data.streaming and data.train_size else len(self.train_set)
        self.steps_per_epoch = self.num_images // self.batch_size
        self.micro_batch_size, self.accumulation_steps = divide_batch(
            config.optim, self.num_images, accelerator.num_processes
        )
        if (data.mixup or data.cutmix) and self.micro_batch_size % 2:
            raise InputError(f'data.mixup and data.cutmix mix pairs: a micro-batch has {self.micro_batch_size} images.')

    def label_counts(self) -> LabelCounts:
        """Counts the labels of the training split."""
        samples = Samples(self.train_set, None)  # type: ignore[arg-type] # loads no image
        return LabelCounts.of(samples.targets, self.label_names, self.config.masking)

    def make_samples(self, data_config: dict) -> None:
        """Creates the samples of both splits, and warns about labels that cannot be learnt or evaluated.

        Args:
            data_config: Preprocessing of the model.

        Raises:
            InputError: No label of the evaluation split can be evaluated.
        """
        data = self.config
        self.data_config = data_config
        self.eval_samples = Samples(self.eval_set, eval_transform(data_config, as_bytes=True))
        self.eval_samples.targets = data.without_ignored(self.eval_samples.targets, self.label_names)
        lines = [data.check_labels(self.eval_samples.targets, self.label_names, data.eval_split, 'data.eval_split')]
        self.fingerprints = {'eval': fingerprint(self.eval_samples.targets, self.eval_set['image_id'][:])}
        self.transform = train_transform(data_config, **data.augmentation)
        self.train_samples = None
        if not data.streaming:
            skip = data.unreadable == 'skip'
            self.train_samples = Samples(self.train_set, self.transform, skip, self.seed)
            lines.append(data.check_labels(self.train_samples.targets, self.label_names, data.train_split))
            trained = data.count_labels(self.train_samples.targets, self.label_names)
            evaluated = data.count_labels(self.eval_samples.targets, self.label_names)
            if line := evaluated.unseen(trained, data.eval_split, data.train_split):
                lines.append(f'warning: {line}')
            self.fingerprints['train'] = fingerprint(self.train_samples.targets, self.train_set['image_id'][:])
        for line in filter(None, lines):
            self.accelerator.print(line)

    def make_loaders(self) -> None:
        """Creates the loaders with `data.workers` workers."""
        workers = self.config.workers
        assert workers is not None  # `choose_workers` has replaced null
        if self.train_samples is not None:
            self.sampler = EpochSampler(self.num_images, self.batch_size, self.seed)
            loader = make_loader(self.train_samples, self.micro_batch_size, workers, self.sampler)
            self.train_loader = self.accelerator.prepare(loader)
        self.eval_loader = self.accelerator.prepare(make_loader(self.eval_samples, 2 * self.micro_batch_size, workers))

    def plain_samples(self) -> dict[str, Samples]:
        """Returns the samples of both splits without augmentation."""
        plain = train_transform(self.data_config, None, 0.0)
        training = Samples(self.train_set, plain, self.config.unreadable == 'skip')
        return {'training': training, 'evaluation': self.eval_samples}

    def use_cache(self, cache: FeatureCache) -> None:
        """Makes the loaders read feature maps from a cache of `plain_samples`."""
        samples = cache.samples('training', self.config.hflip, self.seed)
        self.train_loader = self.accelerator.prepare(make_loader(samples, self.micro_batch_size, 0, self.sampler))
        samples = cache.samples('evaluation')
        self.eval_loader = self.accelerator.prepare(make_loader(samples, 2 * self.micro_batch_size, 0))

    def batches(self, epoch: int, step: int) -> Iterable[dict]:
        """Returns the micro-batches of this process that are left of an epoch.

        Args:
            epoch: Number of the epoch, from 1.
            step: Number of steps of the epoch that are done.
        """
        data = self.config
        if not data.streaming:
            self.sampler.epoch, self.sampler.start = epoch - 1, step
            return self.train_loader
        workers = min(data.workers, self.train_set.num_shards)
        # Workers take turns: the batches since the first worker's last turn are read again.
        again = step * self.accumulation_steps % max(1, workers)
        start = step * self.accumulation_steps - again
        seed, skip = self.seed + self.accelerator.process_index, data.unreadable == 'skip'
        samples = StreamedSamples(self.train_set, self.transform, skip, seed, epoch - 1, self.micro_batch_size, start)
        loader = make_loader(samples, self.micro_batch_size, workers)
        return islice(loader, again, self.steps_per_epoch * self.accumulation_steps - start)


def load_data(
    data: DataConfig, accelerator: Accelerator
) -> tuple[datasets.Dataset | datasets.IterableDataset, datasets.Dataset, list[str], dict | None]:
    """Loads the training split (of a stream, this process's share) and the evaluation split.

    Returns:
        Both splits, their label names, and `RunData.held_out`. `data.validation` is null if no images were held out.

    Raises:
        InputError: The splits have different labels, or the shards of a stream do not divide over the processes.
    """
    held_out = None
    with accelerator.main_process_first():  # the other processes read its cache
        train_size = None if data.streaming else data.train_size
        train_set = data.load(data.train_split, train_size, data.image_size, data.streaming)
        try:
            eval_set = data.load(data.eval_split, data.eval_size, data.image_size)
            data.validation = None
        except NoSplitError as e:
            if (data.train_split, standard_split(data.eval_split)) != ('train', 'validation'):
                raise
            if data.streaming:
                raise InputError(f'{e} A stream cannot hold out images: set data.streaming to false.') from None
            if data.validation is None:
                raise data.explain_no_validation(e) from None
            train_set, eval_set = data.hold_out(data.image_size)
            held_out = {'share': data.validation, 'images': digest(eval_set['image_id'][:])}
            line = f'{data.describe_held_out(eval_set)}, which leaves {len(train_set):,}'
            if data.name != 'hub':
                line += f'; to write a split to a table: {data.split_command(data.validation)}'
            sized = ((train_set, data.train_size), (eval_set, data.eval_size))
            train_set, eval_set = (each.select(range(min(size or len(each), len(each)))) for each, size in sized)
    if held_out:
        accelerator.print(line)
    label_names = msff_timm.data.label_names(train_set)
    if msff_timm.data.label_names(eval_set) != label_names:
        raise InputError(
            f'{data.name}: {data.train_split} and {data.eval_split} have different labels; set data.label_names.'
        )
    if data.streaming:
        if train_set.num_shards % accelerator.num_processes:
            raise InputError(
                f'{data.root}: the {train_set.num_shards} shards of {data.train_split} do not divide over the'
                f' {accelerator.num_processes} processes; change the number of processes, or set data.streaming to'
                ' false.'
            )
        train_set = split_dataset_by_node(
            train_set.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER), accelerator.process_index, accelerator.num_processes
        )
    return train_set, eval_set, label_names, held_out


def make_mixup(data: DataConfig, num_classes: int) -> Mixup | None:
    """Creates timm's Mixup and CutMix; returns None if both are off."""
    if not data.mixup and not data.cutmix:
        return None
    return Mixup(data.mixup, data.cutmix, label_smoothing=0.0, num_classes=num_classes, multi_label=True)
