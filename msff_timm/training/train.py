"""Trains a multi-label model: `accelerate launch train/train.py [--config FILE] [--key value ...]`.

Without arguments it trains the demo of `train/configs/demo.yaml`.
"""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import copy
import gc
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path

import datasets
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
    is_tensorboard_available,
    set_seed,
)
from datasets.distributed import split_dataset_by_node
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.data import Mixup
from timm.models import get_model_traits
from timm.utils import ModelEmaV3
from tqdm import tqdm

import msff_timm.data

from .. import hub
from ..data.counts import LabelCounts
from ..data.records import file_digest
from ..data.samples import Samples, StreamedSamples
from ..data.transforms import Normalize, describe_transforms, eval_transform, train_transform
from ..errors import InputError, fault
from ..labels import describe_matches
from ..results import Results, pick_metrics, write_json
from .checkpoint import WEIGHTS, Checkpoints, Progress, about_run, fingerprint, sync
from .config import CONFIGS, DataConfig, ModelConfig, OptimConfig, TrainConfig, parse
from .engine import (
    EpochSampler,
    Learner,
    Stopped,
    StopRequest,
    Teacher,
    Unreadable,
    divide_batch,
    fit_thresholds,
    make_loader,
    make_optimizer,
    make_schedule,
    measure,
    num_cores,
    peak_memory,
    run_command,
    score,
    share_cores,
    synchronise_buffers,
    train_one_epoch,
)
from .features import FeatureCache, NotCached, OnMaps, obstacles
from .figures import plot_curves
from .freezing import Unfreezing, freeze_backbone, freeze_norms, train_unfrozen
from .guard import locked, stop_with_launcher
from .loaders import STREAM_WORKERS, measure_shares
from .losses import describe_pos_weight, make_loss, pos_weights
from .report import describe, environment, worst_mistakes, write_report, write_settings

SHUFFLE_BUFFER = 1000  # images of a stream, undecoded, of which the next is drawn


def main() -> None:
    config = parse(TrainConfig, sys.argv[1:], default_file=CONFIGS / 'demo.yaml')
    check_free(config)
    stop = StopRequest(waits=False)
    stop_with_launcher(stop)
    accelerator = make_accelerator(config)
    with locked(accelerator, Path(config.output)):
        check_free(config)  # until the folder was locked another run may have written to it
        accelerator.wait_for_everyone()
        if config.overwrite:
            for part in ('checkpoints', 'tensorboard', 'features'):
                shutil.rmtree(Path(config.output, part), ignore_errors=True)
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_settings(Path(config.output), config)
        accelerator.init_trackers('tensorboard')  # a folder of TensorBoard's, a project of others
        run = Run(config, accelerator, stop)
        try:
            run.train()
        except Exception as e:
            if (line := fault(e)) is None:
                raise
            raise InputError(f'{line} The run in {config.output} has stopped: {run.checkpoints.advice()}.') from e
        accelerator.end_training()
        if config.push_to and accelerator.is_main_process:
            publish(config)


def check_free(config: TrainConfig) -> None:
    """Makes sure that no run is overwritten that is not meant to be.

    Raises:
        InputError: The output folder holds one.
    """
    output = Path(config.output)
    holds_a_run = (output / 'config.json').exists() or any((output / 'checkpoints').glob('step-*'))
    if holds_a_run and not (config.overwrite or config.resume):
        raise InputError(
            f'{output} holds a run already: choose another --output, --resume auto to go on, or --overwrite true.'
        )


def publish(config: TrainConfig) -> None:
    """Publishes the run that is over.

    Raises:
        InputError: It cannot be published; the run itself is whole.
    """
    try:
        pushed = hub.push(config.output, config.push_to, private=config.push_private)
    except InputError as e:
        private = ' --private' if config.push_private else ''
        command = f'msff-timm push {shlex.quote(config.output)} {config.push_to}{private}'
        raise InputError(f'{e} The run in {config.output} is whole; `{command}` publishes it.') from e
    print(f'\nPublished at {pushed.url}; pulled into a clean cache it gives the same logits.')


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Makes the accelerator of this process, as the settings and the launcher's have it."""
    default_trackers = ['tensorboard'] if is_tensorboard_available() else []
    accelerator = Accelerator(
        step_scheduler_with_optimizer=False,
        log_with=(default_trackers if config.trackers is None else config.trackers) or None,
        project_dir=config.output,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        dynamo_backend='inductor' if config.model.compile else None,
    )
    if config.data.workers is not None:
        share_cores(accelerator, config.data.workers)
    return accelerator


class Run:
    """A training run, from its settings to what it leaves in `config.output`.

    Args:
        config: Its settings.
        accelerator: Of this process.
        stop: Whether the run has been asked to stop.

    Raises:
        InputError: The data, the model or the checkpoint is not as it should be.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, stop: StopRequest):
        self.started = time.time()
        self.config, self.accelerator, self.stop = config, accelerator, stop
        self.made_with = environment(accelerator)
        self.output, data, optim = Path(config.output), config.data, config.optim

        # Data
        self.train_set, self.eval_set, self.label_names = load_data(data, accelerator)
        for line in dict.fromkeys(msff_timm.data.notes(self.train_set) + msff_timm.data.notes(self.eval_set)):
            accelerator.print(line)
        self.num_images = data.train_size if data.streaming else len(self.train_set)
        self.per_pass, self.passes = divide_batch(optim, self.num_images, accelerator.num_processes)
        self.steps = self.num_images // optim.batch_size  # of an epoch
        if (data.mixup or data.cutmix) and self.per_pass % 2:
            raise InputError(f'data.mixup and data.cutmix mix pairs: {self.per_pass} images at once are not even.')
        if config.model.batch_norm == 'sync' and accelerator.device.type == 'cpu':
            raise InputError('model.batch_norm is sync: PyTorch has that on GPUs only; set it to each or frozen.')
        counts = None
        if optim.counts_labels:
            counts = LabelCounts.of(Samples(self.train_set, None).targets, self.label_names, data.masking)
        loss_fn = make_loss(optim, counts).to(accelerator.device)
        self.pos_weights = None
        if optim.pos_weight == 'balanced':
            weights = pos_weights(optim, counts)
            self.pos_weights = weights.tolist()
            accelerator.print(describe_pos_weight(weights, counts, optim.pos_weight_max))

        # Model
        self.checkpoints = Checkpoints(accelerator, self.output / 'checkpoints', config.checkpoint.keep)
        found = self.checkpoints.find(config.resume) if config.resume else None
        set_seed(config.seed)
        model, self.kept_labels = make_model(config.model, self.label_names, resumed=found is not None)
        if config.model.batch_norm == 'frozen':
            freeze_norms(model)
        if config.model.freeze == 'backbone':
            freeze_backbone(model)
        self.unfreezing = None
        if config.model.freeze == 'stages':
            self.unfreezing = Unfreezing(model, config.model.unfreeze_epochs)
        # Of how many images a BatchNorm sees at once
        together = self.per_pass * (accelerator.num_processes if config.model.batch_norm == 'sync' else 1)
        check_trainable(model, data.image_size, together)
        teacher = None
        if config.distill.teacher:
            teacher = Teacher(config.distill.teacher, self.label_names, config.distill).to(accelerator.device)
        self.data_config = timm.data.resolve_model_data_config(
            model, {'img_size': data.image_size, 'crop_pct': 1.0, 'crop_mode': 'squash'}
        )
        self.normalize = Normalize(self.data_config).to(accelerator.device)

        # The average is what is measured and saved; only the model that learns is changed for learning.
        ema = make_ema(model, optim.decay(self.steps)).to(accelerator.device)
        if config.model.batch_norm == 'sync':
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if config.model.channels_last:
            model = model.to(memory_format=torch.channels_last)

        # Optimiser; the schedule is not prepared, since Accelerate would step it once for each process.
        optimizer = make_optimizer(model, optim)
        if self.unfreezing:
            self.unfreezing.freeze()
        whole = OnMaps(model) if config.model.freeze == 'backbone' else model
        prepared, optimizer = accelerator.prepare(whole, optimizer)
        schedule = make_schedule(optimizer.optimizer, optim, optim.epochs * self.steps)
        set_seed(config.seed, device_specific=True)  # each process has its own dropout
        self.learner = Learner(
            accelerator,
            model,
            prepared,
            ema,
            self.normalize,
            loss_fn,
            optimizer,
            schedule,
            optim.clip_grad,
            self.passes,
            channels_last=config.model.channels_last,
            mixup=make_mixup(data, len(self.label_names)),
            teacher=teacher,
            stop=stop,
        )

        # Where the run is
        self.checkpoints.register(model, ema.module, optimizer, schedule)
        eval_samples = Samples(self.eval_set, eval_transform(self.data_config, as_bytes=True))
        eval_samples.targets = data.without_ignored(eval_samples.targets, self.label_names)
        self.check_labels(eval_samples, data.eval_split, trains=False)
        prints = {'eval': fingerprint(eval_samples.targets, self.eval_set['image_id'][:])}
        self.transform = train_transform(self.data_config, **data.augmentation)
        skip = data.unreadable == 'skip'
        if not data.streaming:
            train_samples = Samples(self.train_set, self.transform, skip, config.seed)
            self.check_labels(train_samples, data.train_split, trains=True)
            prints['train'] = fingerprint(train_samples.targets, self.train_set['image_id'][:])
        if data.workers is None:
            self.choose_workers(None if data.streaming else train_samples, model, found)
        self.about = about_run(config, self.label_names, prints)
        self.caches = config.model.freeze == 'backbone' and not obstacles(config)
        if self.caches:
            share_cores(accelerator, 0)  # no loader works beside the training, and little beside the caching
        self.progress = self.checkpoints.load(found, self.about, config.force) if found else Progress()
        self.seconds_before = self.progress.seconds

        # Loaders
        if not data.streaming:
            self.sampler = EpochSampler(self.num_images, optim.batch_size, config.seed)
            loader = make_loader(train_samples, self.per_pass, data.workers, self.sampler)
            self.train_loader = accelerator.prepare(loader)
        self.eval_loader = accelerator.prepare(make_loader(eval_samples, 2 * self.per_pass, data.workers))

        say = accelerator.print
        if found:
            say(f'Going on from {found}: epoch {self.progress.epoch}, step {self.progress.step} of {self.steps}.')
        elif config.model.init_from:
            say(f'Starting from {config.model.init_from}, which knows {len(self.kept_labels)} of the labels.')
            for line in describe_matches(self.kept_labels):
                say(line)
        stop.waits = True
        self.warn_of_freezing(is_resumed=found is not None)
        say(
            f'Training {config.model.name} on {self.num_images} images of {data.name} with'
            f' {accelerator.num_processes} process(es) on {accelerator.device.type}; a step of {optim.batch_size}'
            f' images is {accelerator.num_processes} x {self.passes} x {self.per_pass}.'
        )
        steps = optim.epochs * self.steps
        if (span := 1 / (1 - ema.get_decay(steps))) > max(1, steps / 4):
            shorter = f'an optim.ema_decay of at most {max(0, 1 - 4 / steps):.4g}'
            if optim.ema_epochs is not None:
                shorter = f'an optim.ema_epochs of at most {optim.epochs / 4:.4g}'
            say(
                f'The EMA weights at the end are an average over the last {span:.0f} or so of {steps} steps, more than'
                f' a quarter of the run: {shorter} follows the model more closely.'
            )
        if found:
            self.recover_best()

    def choose_workers(self, samples: Samples | None, model: nn.Module, found: Path | None) -> None:
        """Sets `data.workers`, and PyTorch's threads beside them, by what loading and training take.

        Args:
            samples: Training images; None in a stream.
            model: Model as it was before it was prepared.
            found: Checkpoint that the run is resumed from; its number of threads decides the last bits.
        """
        accelerator, learner, data = self.accelerator, self.learner, self.config.data
        if samples is None:
            data.workers = STREAM_WORKERS
            share_cores(accelerator, data.workers)
            return

        def step(pixels: torch.Tensor) -> None:
            if learner.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            with accelerator.autocast():
                if learner.teacher:
                    learner.teacher(pixels)
                logits = model(learner.normalize(pixels))
            # In evaluation mode and without backward(): statistics, random states and gradients stay as they are.
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(logits.float().sum(), trained, allow_unused=True)

        model.eval()
        shares = measure_shares(accelerator, samples, step, self.per_pass)
        data.workers = shares.workers
        accelerator.print(shares)
        if shares.threads is not None:
            torch.set_num_threads(min(found and self.checkpoints.threads(found) or shares.threads, num_cores()))

    def check_labels(self, samples: Samples, split: str, trains: bool) -> None:
        """Warns of the labels that do not count in a split.

        Raises:
            InputError: None counts in the split that is evaluated on.
        """
        data = self.config.data
        kept = data.kept_labels(self.label_names)
        counts = LabelCounts.of(samples.targets[:, kept], [self.label_names[k] for k in kept], data.masking)
        if not trains:
            counts.check(f'{data.root or data.name}: {split}', 'data.eval_split')
        if line := counts.warning(split, trains):
            self.accelerator.print(f'warning: {line}')

    def warn_of_freezing(self, is_resumed: bool) -> None:
        """Warns of what `model.freeze` keeps as it is although that may not be meant."""
        config, say = self.config, self.accelerator.print
        model, freeze = config.model, config.model.freeze
        if freeze and not is_resumed and not (model.backbone_pretrained or model.backbone_from or model.init_from):
            say(
                f'warning: model.freeze is {freeze}, and the frozen backbone has random weights: set'
                ' model.backbone_pretrained, model.backbone_from or model.init_from to start from weights that have'
                ' learnt.'
            )
        if freeze == 'backbone' and not self.caches:
            say(
                f"The frozen backbone's maps are not cached, for {' and '.join(obstacles(config))} is set: it computes"
                ' them in each step.'
            )
        if self.unfreezing:
            frozen = [name for name, _ in self.unfreezing.stages[self.unfreezing.free_in(config.optim.epochs) :]]
            if frozen:
                say(
                    f'warning: {", ".join(frozen)} of the backbone stay frozen to the end: {config.optim.epochs} epochs'
                    f' are too few for model.unfreeze_epochs {model.unfreeze_epochs}.'
                )

    def train(self) -> None:
        """Trains and measures, epoch after epoch, and leaves the weights for use with their results.

        Raises:
            InputError: An image cannot be read, or a loss or weights were not finite.
            Stopped: The run was asked to stop, and was saved if that was possible.
        """
        cache = None
        try:
            if self.caches:
                cache = self.cache_features()
            self.train_epochs()
            self.finish()
        except Stopped:
            raise Stopped(self.checkpoints.advice()) from None
        if cache:
            cache.remove()

    def cache_features(self) -> FeatureCache | None:
        """Computes the frozen backbone's maps of all images, and makes the epochs train and evaluate on them.

        Returns:
            The cache; None where there is no room for it, so that the backbone computes them in each step.

        Raises:
            InputError: An image cannot be read, or its maps are not finite.
            Stopped: The run was asked to stop.
        """
        config, accelerator, learner, data = self.config, self.accelerator, self.learner, self.config.data
        hflip = data.hflip
        fixed = train_transform(self.data_config, None, 0.0)
        cache = FeatureCache(
            accelerator,
            self.output / 'features',
            learner.module,
            learner.normalize,
            config.model.channels_last,
            self.data_config['input_size'],
            {
                'training': Samples(self.train_set, fixed, data.unreadable == 'skip'),
                'evaluation': self.eval_loader.dataset,
            },
            mirrored=('training',) if hflip else (),
        )
        about = {key: self.data_config[key] for key in ('input_size', 'interpolation', 'mean', 'std')}
        about |= {'model': config.model.name, 'args': config.model.args, 'data': self.about['data']}
        try:
            accelerator.print(cache.fill(2 * self.per_pass, data.workers, self.stop, about))
        except NotCached as e:
            cache.remove()
            accelerator.print(
                f"{cache.folder}: the frozen backbone's maps are not cached ({e}): it computes them in each step."
            )
            return None
        Unreadable(self.num_images, self.progress.unreadable).add(cache.unreadable)
        learner.normalize, learner.channels_last = cache.to_maps, False
        train_samples = cache.samples('training', hflip, config.seed)
        self.train_loader = accelerator.prepare(make_loader(train_samples, self.per_pass, 0, self.sampler))
        self.eval_loader = accelerator.prepare(make_loader(cache.samples('evaluation'), 2 * self.per_pass, 0))
        return cache

    def train_epochs(self) -> None:
        """Trains, saves and evaluates, epoch after epoch, to the end."""
        config, progress = self.config, self.progress
        unreadable = Unreadable(self.num_images, progress.unreadable)
        with progress_bar(config.optim, self.steps, progress.steps_done, self.accelerator) as bar:
            while not self.is_over():
                bar.set_description(f'epoch {progress.epoch}/{config.optim.epochs}')
                if self.unfreezing and self.unfreezing.begin_epoch(progress.epoch):
                    self.exchange_gradients()
                    if self.accelerator.is_main_process:
                        bar.write(f'epoch {progress.epoch}: {self.unfreezing}')
                asked = train_one_epoch(
                    self.learner,
                    self.batches(),
                    unreadable,
                    progress,
                    config.checkpoint.every,
                    read=partial(self.log, bar),
                    save=self.save,
                    not_finite=self.record_not_finite,
                )
                synchronise_buffers(self.learner.ema.module)
                self.save()  # before it is measured, which a resumed run does again
                if asked:
                    raise Stopped
                self.measure_epoch(bar)

    def exchange_gradients(self) -> None:
        """Lets the processes exchange the gradients of what trains now."""
        accelerator, learner = self.accelerator, self.learner
        if accelerator.num_processes == 1:
            return
        # DistributedDataParallel exchanges those of what trained when it was made, by hooks that go when it does.
        learner.model = accelerator.unwrap_model(learner.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        gc.collect()
        learner.model = accelerator.prepare(learner.model)

    def is_over(self) -> bool:
        """Tells whether all epochs are done, or the last ones have not got better."""
        progress, optim = self.progress, self.config.optim
        if progress.epoch > optim.epochs:
            return True
        return bool(optim.early_stop and progress.best) and (
            progress.history[-1]['epoch'] - progress.best['epoch'] >= optim.early_stop
        )

    def batches(self) -> Iterable[dict]:
        """Gives what is left of the epoch: in the sampler's order, or in that of this process's share of a stream."""
        data, epoch, step = self.config.data, self.progress.epoch - 1, self.progress.step
        if not data.streaming:
            self.sampler.epoch, self.sampler.start = epoch, step
            return self.train_loader
        workers = min(data.workers, self.train_set.num_shards)
        # The workers give batches in turns: what was taken since the first one's last turn is read once more.
        again = step * self.passes % max(1, workers)
        start = step * self.passes - again
        seed, skip = self.config.seed + self.accelerator.process_index, data.unreadable == 'skip'
        samples = StreamedSamples(self.train_set, self.transform, skip, seed, epoch, self.per_pass, start)
        return islice(make_loader(samples, self.per_pass, workers), again, self.steps * self.passes - start)

    def log(self, bar: tqdm, step: int, lr: float, loss: float, grad_norm: float) -> None:
        """Shows a step in the progress line, and now and then its values there and in the trackers."""
        bar.update(self.config.optim.batch_size)
        if step % self.config.log_every:
            return
        best = f', mAP {self.progress.best["mAP"]:.2f}' if self.progress.best else ''
        bar.set_postfix_str(f'loss {loss:.4f}{best}, {peak_memory(self.accelerator) / 1e9:.1f} GB', refresh=False)
        self.accelerator.log({'step/loss': loss, 'step/grad_norm': grad_norm, 'step/lr': lr}, step=step)

    def save(self) -> None:
        """Saves the run where it is."""
        self.progress.seconds = self.seconds()
        self.checkpoints.save(self.progress, self.about)

    def seconds(self) -> float:
        """Returns how long the run has taken, with what it took before it was resumed."""
        return round(self.seconds_before + time.time() - self.started, 1)

    def record_not_finite(self, batches: list[dict], loss: float, grad_norm: float) -> None:
        """Keeps what a step was made from whose loss or gradient is not finite.

        Raises:
            InputError: Always: the run cannot go on.
        """
        rank, path = self.accelerator.process_index, self.output / 'not_finite.json'
        tensors = {
            f'{key}_{i}': batch[key].contiguous() for i, batch in enumerate(batches) for key in ('image', 'target')
        }
        save_file(tensors, self.output / f'not_finite_{rank}.safetensors')
        rows = [int(row) for batch in batches for row in batch['index']]
        streaming = self.config.data.streaming
        ids = gather_object([] if streaming else self.train_set.select(rows)['image_id'][:])
        if self.accelerator.is_main_process:
            where = {'epoch': self.progress.epoch, 'step': self.progress.step, 'steps_done': self.progress.steps_done}
            write_json({**where, 'loss': f'{loss}', 'grad_norm': f'{grad_norm}', 'image_ids': ids}, path)
        what = f'the loss of a step is {loss}' if not isfinite(loss) else f'the gradient of a step is {grad_norm}'
        raise InputError(
            f'epoch {self.progress.epoch}: {what}; {path} names its images, and not_finite_*.safetensors beside it'
            f' holds them. A lower optim.lr may help; {self.checkpoints.advice()}.'
        )

    def measure_epoch(self, bar: tqdm) -> None:
        """Measures the averaged weights, and saves them for use unless an earlier epoch's are to be preferred."""
        config, accelerator, learner, progress = self.config, self.accelerator, self.learner, self.progress
        scored = score(
            accelerator, nn.Sequential(learner.normalize, OnMaps(learner.ema.module)), self.eval_loader, self.stop
        )
        measures = measure(scored, len(self.eval_set), top_k=config.top_k)
        loss, grad_norm = (total / self.steps for total in progress.losses)
        trained = {'epoch': progress.epoch, 'loss': loss, 'grad_norm': grad_norm}
        progress.history.append({**trained, 'lr': learner.schedule.get_last_lr()[-1], **pick_metrics(measures)})
        accelerator.log(progress.history[-1], step=progress.steps_done)
        if accelerator.is_main_process:
            results = self.results(measures)
            bar.write(f'epoch {progress.epoch}: loss {loss:.4f}  {describe(results)}')
        # Without early stopping the images that are measured on choose nothing: the last epoch counts.
        best = progress.best
        if config.optim.early_stop is None or best is None or measures['mAP'] > best['mAP']:
            best = {'epoch': progress.epoch, 'mAP': measures['mAP'], 'steps_done': progress.steps_done, 'files': {}}
            if accelerator.is_main_process:
                results.thresholds = fit_thresholds(scored, config.data.definition(config.data.eval_split))
                results.mistakes = worst_mistakes(scored.arrays(), self.eval_set, self.label_names)
                best |= {'line': describe(results), 'results': asdict(results)}
                written = self.attempt(partial(self.write_weights, learner.ema.module, best))
                if not written and not self.checkpoints.holds(progress.steps_done):
                    bar.write(f'The weights of epoch {progress.epoch} are lost.', file=sys.stderr)
            # The decision is the first process's, and every machine's checkpoint holds the results.
            best = broadcast_object_list([best])[0]
            if best['files'] or self.checkpoints.holds(progress.steps_done):
                progress.best = best
        progress.epoch, progress.step, progress.losses = progress.epoch + 1, 0, [0.0, 0.0]
        if accelerator.is_main_process:
            best = progress.best or best
            # Results never stand beside other weights than theirs.
            if self.has_weights(best) or not (self.output / WEIGHTS).exists():
                self.attempt(partial(self.write_results, self.run_so_far(best)))
            self.attempt(partial(plot_curves, progress.history, self.output / 'curves.png'))

    def write_weights(self, model: nn.Module, best: dict) -> None:
        """Saves weights for use, and notes in `best` what lies in the output folder then."""
        transforms = describe_transforms(self.data_config, **self.config.data.augmentation)
        thresholds = best['results']['thresholds']
        hub.save(model, self.output, self.label_names, self.data_config, {'transforms': transforms}, thresholds)
        for name in (WEIGHTS, 'config.json'):
            sync(self.output / name)
        sync(self.output)
        best['files'] = {name: file_digest(self.output / name).hex() for name in (WEIGHTS, 'config.json')}

    def has_weights(self, best: dict) -> bool:
        """Tells whether the output folder holds the weights of the best epoch, as they were saved."""
        try:
            digests = {name: file_digest(self.output / name).hex() for name in (WEIGHTS, 'config.json')}
        except OSError:
            return False
        return digests == best['files']

    def write_results(self, results: Results) -> None:
        """Writes the results to where the weights are."""
        results.to_json(self.output / 'results.json')
        sync(self.output / 'results.json')

    def restore_weights(self) -> bool:
        """Makes sure that the output folder holds the best epoch's weights, if need be by that epoch's checkpoint."""
        best = self.progress.best
        if self.has_weights(best):
            return True
        weights = self.checkpoints.ema_weights(best['steps_done'])
        if weights is None:
            return False
        model = deepcopy(self.learner.ema.module)
        model.load_state_dict(weights)
        if not (self.attempt(partial(self.write_weights, model, best)) and self.has_weights(best)):
            return False
        tqdm.write(
            f'{self.output}: {WEIGHTS} and config.json were not those of epoch {best["epoch"]}, which the results are'
            ' of; they were restored from its checkpoint, with the thresholds of that epoch.',
            file=sys.stderr,
        )
        return True

    def recover_best(self) -> None:
        """Restores what the output folder lacks of the best epoch when a run is resumed, or forgets that epoch."""
        progress = self.progress
        if progress.best is None:
            return
        best = progress.best
        if self.accelerator.is_main_process and not self.restore_weights():
            if self.checkpoints.ema_weights(best['steps_done']) is None:
                tqdm.write(
                    f'{self.output}: the weights of epoch {best["epoch"]}, the best so far, are gone; the best of the'
                    ' epochs that follow is kept.',
                    file=sys.stderr,
                )
                best = None
        progress.best = broadcast_object_list([best])[0]

    def attempt(self, write: partial) -> bool:
        """Writes a file that the next epoch writes again; a disk that is full is told, and does not end the run."""
        try:
            write()
            return True
        except (OSError, SafetensorError) as e:
            problem = ' '.join(f'{getattr(e, "strerror", None) or e}'.split())
            tqdm.write(f'{self.output}: cannot be written to ({problem}); the run goes on.', file=sys.stderr)
            return False

    def results(self, measures: dict) -> Results:
        """Makes the results of the EMA weights as they are now."""
        config, data = self.config, self.config.data
        init_from = config.model.init_from and {'model': config.model.init_from, 'kept_labels': self.kept_labels}
        return Results.from_metrics(
            measures,
            self.label_names,
            model=config.model.name,
            num_parameters=sum(p.numel() for p in self.learner.ema.module.parameters()),
            data={**data.definition(data.eval_split), 'trained_on': data.train_split},
            init_from=init_from,
            weights='exponential moving average',
            epoch=self.progress.epoch,
            pos_weights=self.pos_weights,
            num_processes=self.accelerator.num_processes,
            mixed_precision=self.accelerator.mixed_precision,
            config=asdict(config),
            **self.made_with,
        )

    def run_so_far(self, best: dict) -> Results:
        """Returns the results of the epoch whose weights are for use, with the history of all epochs."""
        progress = self.progress
        now = {'history': progress.history, 'unreadable': progress.unreadable, 'seconds': self.seconds()}
        return Results(**{**best['results'], **now, 'peak_bytes': peak_memory(self.accelerator)})

    def finish(self) -> None:
        """Measures the raw weights of the last epoch beside the averaged ones, and says how to go on."""
        accelerator, learner, data = self.accelerator, self.learner, self.config.data
        raw = score(accelerator, nn.Sequential(learner.normalize, learner.model), self.eval_loader, self.stop)
        raw = {'epoch': self.progress.history[-1]['epoch'], **pick_metrics(measure(raw, len(self.eval_set)))}
        best, history, name = self.progress.best, self.progress.history, f'local-dir:{self.output}'
        if not accelerator.is_main_process:
            return
        mend = 'make room, and --resume auto does the rest.'
        is_last = best is not None and best['epoch'] == history[-1]['epoch']
        if best is None or not (self.config.optim.early_stop or is_last) or not self.restore_weights():
            raise InputError(f'{self.output}: the weights could not be written; {mend}')
        run = replace(self.run_so_far(best), model_weights=raw)
        try:
            self.write_results(run)
            write_report(self.output, run, self.eval_set)
        except OSError as e:
            raise InputError(f'{self.output}: cannot be written to ({e.strerror or e}); {mend}') from None
        print(
            f'\n{self.output}: {best["line"]}\n'
            f'Measured on {data.title or data.name} {data.eval_split}, averaged weights of epoch {best["epoch"]};'
            f' {self.seconds():.0f} s in all. Load it and use it:\n\n'
            f"    import timm, msff_timm; model = timm.create_model('{name}', pretrained=True).eval()\n"
            f'    msff-timm predict PHOTO... --model {name}'
        )
        better = max(history, key=lambda entry: entry['mAP'])
        if self.config.optim.early_stop and better['mAP'] > best['mAP']:
            print(f'\nEpoch {better["epoch"]} had a better mAP, {better["mAP"]:.2f}, but its weights were lost.')


def load_data(
    data: DataConfig, accelerator: Accelerator
) -> tuple[datasets.Dataset | datasets.IterableDataset, datasets.Dataset, list[str]]:
    """Loads the training split (of a stream this process's share), the one to measure on, and their labels' names."""
    with accelerator.main_process_first():  # the others find what it has read
        train_size = None if data.streaming else data.train_size
        train_set = data.load(data.train_split, train_size, data.image_size, data.streaming)
        eval_set = data.load(data.eval_split, data.eval_size, data.image_size)
    label_names = msff_timm.data.label_names(train_set)
    if msff_timm.data.label_names(eval_set) != label_names:
        raise InputError(
            f'{data.name}: the labels of {data.train_split} are not those of {data.eval_split}; set data.label_names.'
        )
    if data.streaming:
        if train_set.num_shards % accelerator.num_processes:
            raise InputError(
                f'{data.root}: the {train_set.num_shards} shards of {data.train_split} do not divide over the'
                f' {accelerator.num_processes} processes; use another number of them, or data.streaming false.'
            )
        train_set = split_dataset_by_node(
            train_set.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER), accelerator.process_index, accelerator.num_processes
        )
    return train_set, eval_set, label_names


def make_model(config: ModelConfig, label_names: list[str], resumed: bool) -> tuple[nn.Module, dict[str, str]]:
    """Makes the model to train, and tells which labels it knows already, by the names that it learnt them under."""
    if config.init_from is None:
        # The weights of a run that is resumed hold the backbone's.
        model_args = {'backbone_pretrained': True} if config.backbone_pretrained and not resumed else {}
        model_args |= {'num_classes': len(label_names), 'drop_rate': config.drop_rate, **config.args}
        model = hub.create(config.name, **model_args)
        if config.backbone_from and not resumed:
            hub.load_backbone(model, config.backbone_from)
            if not hasattr(model, 'backbone'):
                # timm draws EfficientNet's classifier for training from scratch, for 20 labels eight times as wide as
                # PyTorch would: a short fine-tuning spends its epochs on undoing that.
                model.reset_classifier(len(label_names))
        return model, {}
    model, kept_labels = hub.load_for(
        config.init_from, label_names, config.keep_labels, drop_rate=config.drop_rate, **config.args
    )
    architecture = model.pretrained_cfg['architecture']
    if architecture != config.name:
        raise InputError(f'model.name is {config.name}: {config.init_from} is {architecture}; set model.name to that.')
    return model, kept_labels


def check_trainable(model: nn.Module, image_size: int, batch_size: int) -> None:
    """Checks that a model takes the batches of a run.

    Args:
        model: Model, of which what does not train is frozen.
        image_size: Side of an image in pixels.
        batch_size: Number of images that a BatchNorm sees at once.

    Raises:
        InputError: It takes other channels, or a BatchNorm of it would see one value for each, which PyTorch refuses.
    """
    channels = get_model_traits(model).get('in_chans', 3)
    if channels != 3:
        raise InputError(f'model.args: the model takes {channels} channels, and images are read with 3 for training.')
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
            f'optim.batch_size gives each process one image of {image_size} x {image_size} pixels at a time, of which a'
            ' BatchNorm of the model sees a single value: use a larger optim.batch_size, optim.max_per_process or'
            ' data.image_size, or, where it is one of the backbone, set model.batch_norm to frozen.'
        ) from None


def make_ema(model: nn.Module, decay: float) -> ModelEmaV3:
    """Makes the EMA of a model's weights, whose decay rises to its value as `1 - steps ** -0.75`.

    So no weights of the start are left in it, however short the run is. It is timm's warm-up, with the power that timm
    advises for runs of less than a million steps.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=3 / 4)


def make_mixup(data: DataConfig, num_classes: int) -> Mixup | None:
    """Makes timm's Mixup and CutMix, if either is asked for."""
    if not data.mixup and not data.cutmix:
        return None
    return Mixup(data.mixup, data.cutmix, label_smoothing=0.0, num_classes=num_classes, multi_label=True)


def progress_bar(optim: OptimConfig, steps: int, steps_done: int, accelerator: Accelerator) -> tqdm:
    """Makes the bar of the whole run, on the first process only; into a file it writes seldom."""
    return tqdm(
        total=optim.epochs * steps * optim.batch_size,
        initial=steps_done * optim.batch_size,
        unit='img',
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )


if __name__ == '__main__':
    run_command(main)
