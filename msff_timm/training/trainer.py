"""The training loop: `setup`, then `train_epoch`, `save` and `evaluate` for each epoch, then `finish`."""

import gc
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device, set_seed
from timm.utils import distribute_bn
from tqdm import tqdm

from ..data.transforms import Normalize, describe_transforms
from ..errors import InputError
from ..results import Results, pick_metrics
from .checkpoint import Checkpoints, Progress
from .commands import Stopped, StopRequest, environment, peak_memory
from .config import TrainConfig
from .console import describe_end, describe_start, progress_bar
from .distill import Teacher
from .evaluator import compute_metrics, fit_thresholds, score
from .features import FeatureCache, NotCached, OnMaps, cache_obstacles
from .freezing import Unfreezing, freeze_backbone, freeze_norms, train_unfrozen
from .identity import about_run
from .loaders import Unreadable, choose_workers, grouped, mix, share_cores
from .losses import describe_pos_weight, known_sum, make_loss, pos_weights
from .optim import make_ema, make_optimizer, make_schedule
from .report import describe, worst_mistakes
from .run_data import RunData, make_mixup
from .run_folder import FREE_DISK, RunFolder
from .run_model import check_trainable, make_model

__all__ = ['Trainer']


class Trainer:
    """A training run. Every process calls every method.

    Args:
        config: Settings of the run.
        accelerator: Accelerator of this process.
        stop: Request to stop the run.

    Raises:
        InputError: The data, the model or the checkpoint does not fit the settings.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, stop: StopRequest):
        self.started = time.time()
        self.config, self.accelerator, self.stop = config, accelerator, stop
        self.output, self.stop_requested = Path(config.output), False
        self.setup()

    def train(self) -> None:
        """Trains and evaluates, epoch after epoch, and leaves the weights for use with their results.

        Raises:
            InputError: An image cannot be read, or a loss or a weight is not finite.
            Stopped: A stop was requested; the run is saved if there was something to save.
        """
        optim = self.config.optim
        try:
            cache = self.cache_features() if self.caches else None
            with progress_bar(self) as bar:
                while not self.progress.is_over(optim.epochs, optim.early_stop):
                    self.train_epoch(bar)
                    self.save()  # before the evaluation, which a resumed run repeats
                    if self.stop_requested:
                        raise Stopped
                    self.evaluate(bar)
            self.finish()
        except Stopped:
            raise Stopped(self.checkpoints.advice()) from None
        if cache:
            cache.remove()

    # Setup

    def setup(self) -> None:
        """Prepares data, loss, model, optimizer and loaders, and loads the checkpoint to resume from."""
        config, accelerator = self.config, self.accelerator
        self.environment = environment(accelerator)
        self.data = RunData(config, accelerator)
        if config.model.batch_norm == 'sync' and accelerator.device.type == 'cpu':
            raise InputError('model.batch_norm is sync: PyTorch supports it on GPUs only; set it to each or frozen.')
        self.setup_loss()
        self.checkpoints = Checkpoints(accelerator, self.output / 'checkpoints', config.checkpoint.keep)
        self.resumed_from = self.checkpoints.find(config.resume) if config.resume else None
        self.setup_model()
        self.setup_optimizer()
        self.data.make_samples(self.data_config)
        if config.data.workers is None:
            threads = self.checkpoints.threads(self.resumed_from) if self.resumed_from else None
            samples, batch_size = self.data.train_samples, self.data.micro_batch_size
            choose_workers(config.data, accelerator, samples, self.probe, batch_size, threads)
        self.caches = config.model.freeze == 'backbone' and not cache_obstacles(config)
        if self.caches:
            share_cores(accelerator, 0)  # training reads the cache without workers
        self.setup_progress()
        self.data.make_loaders()
        self.stop.waits = True
        for line in describe_start(self):
            accelerator.print(line)
        if self.resumed_from:
            self.recover_best()

    def setup_loss(self) -> None:
        """Creates the loss, which may depend on the label counts, and Mixup."""
        optim = self.config.optim
        counts = self.data.label_counts() if optim.counts_labels else None
        self.loss_fn = make_loss(optim, counts).to(self.accelerator.device)
        self.mixup = make_mixup(self.config.data, len(self.data.label_names))
        self.pos_weights = None
        weights = pos_weights(optim, counts) if optim.pos_weight == 'balanced' else None
        if counts is not None and weights is not None:
            self.pos_weights = weights.tolist()
            self.accelerator.print(describe_pos_weight(weights, counts, optim.pos_weight_max))

    def setup_model(self) -> None:
        """Creates the model, freezes parts of it, and creates its EMA and the teacher."""
        config, device, label_names = self.config, self.accelerator.device, self.data.label_names
        set_seed(config.seed)
        model, self.kept_labels = make_model(config.model, label_names, self.resumed_from is not None)
        if config.model.batch_norm == 'frozen':
            freeze_norms(model)
        if config.model.freeze == 'backbone':
            freeze_backbone(model)
        self.unfreezing = None
        if config.model.freeze == 'stages':
            self.unfreezing = Unfreezing(model, config.model.unfreeze_epochs)
        synced = self.accelerator.num_processes if config.model.batch_norm == 'sync' else 1
        check_trainable(model, config.data.image_size, self.data.micro_batch_size * synced)
        self.teacher = None
        if config.distill.teacher:
            self.teacher = Teacher(config.distill.teacher, label_names, config.distill).to(device)
        self.data_config = timm.data.resolve_model_data_config(
            model, {'img_size': config.data.image_size, 'crop_pct': 1.0, 'crop_mode': 'squash'}
        )
        self.normalize: nn.Module = Normalize(self.data_config).to(device)
        # The EMA is evaluated and saved, so it keeps the plain layers; only the model that learns is converted.
        self.ema = make_ema(model, config.optim.decay(self.data.steps_per_epoch)).to(device)
        if config.model.batch_norm == 'sync':
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.channels_last = config.model.channels_last
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model

    def setup_optimizer(self) -> None:
        """Creates the optimizer and the schedule, and prepares the model for the processes."""
        config, optim = self.config, self.config.optim
        optimizer = make_optimizer(self.model, optim)
        if self.unfreezing:
            self.unfreezing.freeze()
        model = OnMaps(self.model) if config.model.freeze == 'backbone' else self.model
        self.prepared, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Not prepared: Accelerate would step the schedule once for each process.
        self.schedule = make_schedule(self.optimizer.optimizer, optim, optim.epochs * self.data.steps_per_epoch)
        set_seed(config.seed, device_specific=True)  # dropout differs between processes

    def setup_progress(self) -> None:
        """Loads the checkpoint to resume from, or starts at the first step."""
        config, data = self.config, self.data
        self.about = about_run(config, data.label_names, data.fingerprints)
        self.checkpoints.register(self.model, self.ema.module, self.optimizer, self.schedule)
        self.progress = Progress()
        if self.resumed_from:
            self.progress = self.checkpoints.load(self.resumed_from, self.about, config.force)
        self.seconds_before = self.progress.seconds
        self.unreadable = Unreadable(data.num_images, self.progress.unreadable)
        transforms = describe_transforms(self.data_config, **config.data.augmentation)
        training = {'transforms': transforms, 'held_out': data.held_out}
        self.folder = RunFolder(self.output, data.label_names, self.data_config, training, self.checkpoints)

    def probe(self, pixels: torch.Tensor) -> None:
        """Computes the gradients of images (B, C, H, W), to be timed. It leaves no trace.

        In evaluation mode and without `backward`, statistics, random states and gradients do not change.
        """
        self.model.eval()
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            if self.teacher:
                self.teacher(pixels)
            logits = self.model(self.normalize(pixels))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        torch.autograd.grad(logits.float().sum(), trained, allow_unused=True)

    def cache_features(self) -> FeatureCache | None:
        """Caches the feature maps of the frozen backbone, to train and evaluate on them.

        Returns:
            The cache; None if the disk has no room for it.
        """
        config = self.config
        about = {key: self.data_config[key] for key in ('input_size', 'interpolation', 'mean', 'std')}
        about |= {'model': config.model.name, 'args': config.model.args, 'data': self.about['data']}
        cache = FeatureCache(
            self.accelerator,
            self.output / 'features',
            self.model,
            self.normalize,
            self.channels_last,
            self.data_config['input_size'],
            self.data.plain_samples(),
            mirrored=('training',) if config.data.hflip else (),
        )
        try:
            line = cache.fill(2 * self.data.micro_batch_size, config.data.workers or 0, self.stop, about)
        except NotCached as e:
            cache.remove()
            self.accelerator.print(f'{cache.folder}: {e}; each step computes the feature maps of the frozen backbone.')
            return None
        self.accelerator.print(line)
        self.unreadable.add(cache.unreadable)
        self.normalize, self.channels_last = cache.to_maps, False
        self.data.use_cache(cache)
        return cache

    # Training

    def train_epoch(self, bar: tqdm) -> None:
        """Trains on the rest of an epoch, and saves the run every `checkpoint.every` steps.

        Raises:
            InputError: A loss or a gradient is not finite, or too many images cannot be read.
            Stopped: A stop was requested; the run is saved.
        """
        config, progress, every = self.config, self.progress, self.config.checkpoint.every
        bar.set_description(f'epoch {progress.epoch}/{config.optim.epochs}')
        if self.unfreezing and self.unfreezing.begin_epoch(progress.epoch):
            self.prepare_again()
            if self.accelerator.is_main_process:
                bar.write(f'epoch {progress.epoch}: {self.unfreezing}')
        self.prepared.train()
        train_unfrozen(self.model)
        pending = None
        for batches in grouped(self.data.batches(progress.epoch, progress.step), self.data.accumulation_steps):
            for batch in batches:
                self.unreadable.add(batch['unreadable'])
            batches = [send_to_device(batch, self.accelerator.device) for batch in batches]  # a stream is not prepared
            lr = self.optimizer.param_groups[-1]['lr']
            values = self.train_step(batches)
            progress.step += 1
            progress.steps_done += 1
            # The values of a step are read once the next step is queued: the device never waits for Python.
            self.log_step(bar, pending)
            pending = (progress.steps_done, lr, values, batches, self.accelerator.optimizer_step_was_skipped)
            if self.stop_requested or every and progress.steps_done % every == 0:
                self.log_step(bar, pending)
                pending = None
                self.save()
            if self.stop_requested:
                raise Stopped
        self.log_step(bar, pending)
        self.unreadable.gather()
        if self.accelerator.num_processes > 1:
            distribute_bn(self.ema.module, self.accelerator.num_processes)  # each process has statistics of its own

    def train_step(self, batches: list[dict]) -> torch.Tensor:
        """Takes one optimizer step on this process's micro-batches.

        Returns:
            Loss (the mean over the known labels of all processes), norm of the gradient, and share of the processes
            in which a stop was requested, on the device (3,).
        """
        accelerator = self.accelerator
        prepared = [self.prepare_batch(batch) for batch in batches]
        # Micro-batches have different numbers of known labels: the sum of the losses is divided by all of them, as in
        # Accelerate's guide to gradient accumulation.
        known: Any = sum((target >= 0).sum() for _, target, _ in prepared)
        known = accelerator.reduce(known.float(), 'mean').clamp(min=1 / accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for number, (image, target, teacher_logits) in enumerate(prepared, 1):
            with nullcontext() if number == len(prepared) else accelerator.no_sync(self.prepared):
                # Accelerate keeps autocast to the model and returns float32 logits: the loss is in float32.
                output = self.prepared(image)
                losses = []
                for logits in output if isinstance(output, tuple) else (output,):
                    loss = known_sum(self.loss_fn, logits, target) / known
                    if self.teacher and teacher_logits is not None:
                        loss = self.teacher.blend(loss, logits, teacher_logits, len(prepared))
                    losses.append(loss)
                loss = torch.stack(losses).mean()
                accelerator.backward(loss)
            total += loss.detach()
        grad_norm = accelerator.clip_grad_norm_(self.prepared.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.ema.update(self.model, step=self.schedule.last_epoch + 1)
        self.schedule.step()
        stopping = torch.tensor(float(self.stop.received is not None), device=accelerator.device)
        return accelerator.reduce(torch.stack([total, grad_norm.detach().float(), stopping]), 'mean')

    def prepare_batch(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Returns the model's input (B, C, H, W), the targets (B, K) and the teacher's logits (B, K) of a batch."""
        pixels, target = batch['image'], batch['target']
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        image = self.normalize(pixels)
        if self.mixup:
            image, target = mix(self.mixup, image, target)
        if self.teacher is None:
            return image, target, None
        with self.accelerator.autocast():
            return image, target, self.teacher(pixels)

    def prepare_again(self) -> None:
        """Makes the processes exchange the gradients of the parameters that train now."""
        if self.accelerator.num_processes == 1:
            return
        # DistributedDataParallel exchanges those that trained when it was created, by hooks that go with it.
        self.prepared = self.accelerator.unwrap_model(self.prepared, keep_fp32_wrapper=False, keep_torch_compile=False)
        gc.collect()
        self.prepared = self.accelerator.prepare(self.prepared)

    def log_step(self, bar: tqdm, pending: tuple | None) -> None:
        """Reads the values of a step, and logs them.

        Raises:
            InputError: The loss or the gradient is not finite. A gradient that fp16's scaler skipped may be.
        """
        if pending is None:
            return
        step, lr, values, batches, skipped = pending
        loss, grad_norm, stopping = values.tolist()
        if not isfinite(loss) or not (isfinite(grad_norm) or skipped):
            self.folder.refuse_step(self.progress, batches, self.data.train_set, loss, grad_norm)
        self.stop_requested = self.stop_requested or stopping > 0
        self.progress.losses[0] += loss
        self.progress.losses[1] += 0.0 if skipped else grad_norm
        bar.update(self.config.optim.batch_size)
        if step % self.config.log_every == 0:
            best = f', mAP {self.progress.best["mAP"]:.2f}' if self.progress.best else ''
            memory = peak_memory(self.accelerator) / 1e9
            bar.set_postfix_str(f'loss {loss:.4f}{best}, {memory:.1f} GB', refresh=False)
            self.accelerator.log({'step/loss': loss, 'step/grad_norm': grad_norm, 'step/lr': lr}, step=step)

    # Evaluation

    def evaluate(self, bar: tqdm) -> None:
        """Evaluates the EMA weights, and saves them for use unless an earlier epoch is better."""
        config, accelerator, progress, data = self.config, self.accelerator, self.progress, self.data
        ema = nn.Sequential(self.normalize, OnMaps(self.ema.module))
        scored = score(accelerator, ema, data.eval_loader, self.stop)
        metrics = compute_metrics(scored, len(data.eval_set), top_k=config.top_k)
        loss, grad_norm = (total / data.steps_per_epoch for total in progress.losses)
        trained = {'epoch': progress.epoch, 'loss': loss, 'grad_norm': grad_norm}
        progress.history.append({**trained, 'lr': self.schedule.get_last_lr()[-1], **pick_metrics(metrics)})
        accelerator.log(progress.history[-1], step=progress.steps_done)
        results = self.results(metrics)
        if accelerator.is_main_process:
            bar.write(f'epoch {progress.epoch}: loss {loss:.4f}  {describe(results)}')
        # Without early stopping, the evaluated images choose nothing: the last epoch is the best.
        best = progress.best
        if config.optim.early_stop is None or best is None or metrics['mAP'] > best['mAP']:
            best = {'epoch': progress.epoch, 'mAP': metrics['mAP'], 'steps_done': progress.steps_done, 'files': {}}
            if accelerator.is_main_process:
                definition = config.data.definition(config.data.eval_split)
                results.thresholds, results.calibration = fit_thresholds(scored, definition, config.fit_thresholds)
                results.mistakes = worst_mistakes(scored.arrays(), data.eval_set, data.label_names)
                best |= {'line': describe(results), 'results': asdict(results)}
                with self.folder.reporting_faults():
                    self.folder.save_weights(self.ema.module, best)
                if not best['files'] and not self.checkpoints.holds(progress.steps_done):
                    bar.write(f'The weights of epoch {progress.epoch} are lost.', file=sys.stderr)
            # The main process decides, and the checkpoint of every machine holds the results.
            best = broadcast_object_list([best])[0]
            if best['files'] or self.checkpoints.holds(progress.steps_done):
                progress.best = best
        progress.epoch, progress.step, progress.losses = progress.epoch + 1, 0, [0.0, 0.0]
        if accelerator.is_main_process:
            best = progress.best or best
            self.folder.write_epoch(best, self.results_of(best))

    def results(self, metrics: dict) -> Results:
        """Returns the results of the EMA weights of this epoch."""
        config, data = self.config, self.config.data
        init_from = config.model.init_from and {'model': config.model.init_from, 'kept_labels': self.kept_labels}
        return Results.from_metrics(
            metrics,
            self.data.label_names,
            model=config.model.name,
            num_parameters=sum(p.numel() for p in self.ema.module.parameters()),
            data={**data.definition(data.eval_split), 'trained_on': data.train_split},
            init_from=init_from,
            weights='exponential moving average',
            epoch=self.progress.epoch,
            pos_weights=self.pos_weights,
            num_processes=self.accelerator.num_processes,
            mixed_precision=self.accelerator.mixed_precision,
            config=asdict(config),
            **self.environment,
        )

    def results_of(self, best: dict) -> Results:
        """Returns the results of the best epoch, with the history so far."""
        return replace(
            Results.from_dict(best['results'], self.checkpoints.folder),
            history=self.progress.history,
            unreadable=self.progress.unreadable,
            seconds=self.seconds(),
            peak_bytes=peak_memory(self.accelerator),
        )

    def finish(self) -> None:
        """Evaluates the model weights of the last epoch, in addition to the EMA weights, and writes the report."""
        model, data, progress = nn.Sequential(self.normalize, self.prepared), self.data, self.progress
        scored = score(self.accelerator, model, data.eval_loader, self.stop)
        model_weights = pick_metrics(compute_metrics(scored, len(data.eval_set)))
        if not self.accelerator.is_main_process:
            return
        best, last = progress.best, progress.history[-1]['epoch']
        stays = best is not None and (self.config.optim.early_stop or best['epoch'] == last)
        if best is None or not stays or not self.folder.restore_weights(self.ema.module, best):
            raise InputError(f'{self.output}: the weights could not be written; {FREE_DISK}')
        results = replace(self.results_of(best), model_weights={'epoch': last, **model_weights})
        self.folder.write_report(results, data.eval_set)
        print(describe_end(self.config, best, progress.history, self.seconds()))

    # Saving

    def save(self) -> None:
        """Saves a checkpoint."""
        self.progress.seconds = self.seconds()
        self.checkpoints.save(self.progress, self.about)

    def recover_best(self) -> None:
        """Restores the weights of the best epoch when a run is resumed, or forgets that epoch."""
        best = self.progress.best
        if best and self.accelerator.is_main_process and not self.folder.recover(self.ema.module, best):
            best = None
        self.progress.best = broadcast_object_list([best])[0]

    def seconds(self) -> float:
        """Returns the duration of the run, including the time before it was resumed."""
        return round(self.seconds_before + time.time() - self.started, 1)
