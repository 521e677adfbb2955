"""What the scripts share: loaders, the learning of one epoch, measures over all processes, and how a command ends."""

import ctypes
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from types import FrameType

import numpy as np
import psutil
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, send_to_device
from timm.data import Mixup
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None

from .. import hub, thresholds
from ..data.samples import Samples, StreamedSamples, collate
from ..data.transforms import Normalize
from ..errors import InputError, escape_output, exit_code, fault
from ..labels import display_names
from .accumulator import MetricAccumulator
from .checkpoint import Progress
from .config import DistillConfig, OptimConfig
from .freezing import heads, train_unfrozen
from .losses import LossFn, known_sum

__all__ = [
    'MOST_UNREADABLE',
    'EpochSampler',
    'Learner',
    'StopRequest',
    'Stopped',
    'Teacher',
    'Unreadable',
    'divide_batch',
    'fit_thresholds',
    'make_loader',
    'make_optimizer',
    'make_schedule',
    'measure',
    'mix',
    'num_cores',
    'peak_memory',
    'run_command',
    'score',
    'share_cores',
    'synchronise_buffers',
    'train_one_epoch',
]

FOLDS = 5  # of the images that thresholds are fitted to
MOST_UNREADABLE = 0.01  # of the training images: more is a fault of the data set, not of an image


def share_cores(accelerator: Accelerator, workers: int) -> None:
    """Gives PyTorch the CPU cores that the loader's workers leave, when it computes on the CPU.

    `accelerate launch` would leave it one core, and PyTorch would take all of them: with the workers that is more
    threads than cores, and each of the many parallel regions of a step then waits for a thread that is not running.
    """
    if accelerator.device.type == 'cpu':
        torch.set_num_threads(max(1, num_cores() - workers))


def num_cores() -> int:
    """Returns the number of CPU cores that this process has for itself and its workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


class EpochSampler(Sampler[int]):
    """Shuffles the images anew in each epoch and gives whole batches: the same for any number of processes.

    A key is the image's number plus that of all images for each epoch before, as `Samples` takes it.

    Args:
        num_images: Of the training set.
        batch_size: Over all processes, with all that is accumulated.
        seed: Of the order.

    Attributes:
        epoch: From 0.
        start: Batches of this epoch that are left out, since they were taken before the run was resumed.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.num_images // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        yield from (self.epoch * self.num_images + order[self.start * self.batch_size : len(self)]).tolist()


def make_loader(
    samples: Samples | StreamedSamples, batch_size: int, workers: int, sampler: EpochSampler | None = None
) -> DataLoader:
    """Makes a loader of batches: whole ones in a sampler's order, or in the data's order, complete where that ends.

    Raises:
        InputError: There is no shared memory for workers.
    """
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=isinstance(samples, StreamedSamples) or sampler is not None,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(outlive_signals, ending()) if workers else None,
        # Of its own: the worker's seeds would be drawn from the random state that decides dropout.
        generator=torch.Generator(),
    )


@cache
def ending() -> ctypes.c_bool:
    """Gives what tells the workers of all loaders whether this process is about to end.

    Raises:
        InputError: There is no shared memory for workers.
    """
    context = torch.multiprocessing.get_context()
    try:
        context.Lock()  # which each worker has several of
        return context.RawValue(ctypes.c_bool, False)
    except OSError as e:
        raise InputError(fault(e)) from e


def outlive_signals(ending: ctypes.c_bool, worker: int) -> None:
    """Lets a loader's worker serve its process until that ends, where a signal was sent to all processes of a run.

    PyTorch's own handler ends the worker, and with it the process, at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: ending.value and os._exit(0))


def divide_batch(optim: OptimConfig, num_images: int, num_processes: int) -> tuple[int, int]:
    """Divides the batch over the processes, and over as few passes of each as its limit allows.

    Returns:
        Images that a process takes at once, and how many times it does so for one step.

    Raises:
        InputError: It cannot be divided, or there are too few images for one batch.
    """
    size = optim.batch_size
    if size % num_processes:
        raise InputError(
            f'optim.batch_size is {optim.batch_size}: must be a multiple of the {num_processes} processes.'
        )
    if num_images < optim.batch_size:
        raise InputError(f'optim.batch_size is {optim.batch_size}: there are only {num_images} training images.')
    share = optim.batch_size // num_processes
    most = optim.max_per_process or share
    passes = next(passes for passes in range(1, share + 1) if share % passes == 0 and share // passes <= most)
    return share // passes, passes


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Makes AdamW with the learning rate of each group of parameters."""
    settings = {'opt': 'adamw', 'lr': optim.lr, 'weight_decay': optim.weight_decay, 'layer_decay': optim.layer_decay}
    if optim.backbone_lr == 1:
        return create_optimizer_v2(model, **settings)
    head = {id(parameter) for module in heads(model) for parameter in module.parameters()}
    decay = partial(param_groups_weight_decay, weight_decay=optim.weight_decay, no_weight_decay_list=_undecayed(model))
    groups = [
        {**group, 'params': params, 'lr': optim.lr * scale, 'lr_scale': scale}
        for group in decay(model)
        for scale, is_head in ((optim.backbone_lr, False), (1.0, True))
        if (params := [p for p in group['params'] if (id(p) in head) == is_head])
    ]
    return create_optimizer_v2(groups, opt='adamw', lr=optim.lr, weight_decay=optim.weight_decay)


def _undecayed(model: nn.Module) -> set[str]:
    return model.no_weight_decay() if hasattr(model, 'no_weight_decay') else set()


def make_schedule(optimizer: torch.optim.Optimizer, optim: OptimConfig, steps: int) -> LRScheduler:
    """Makes the schedule of all steps: up within the share `warmup` of them, then a cosine down to nearly nothing."""
    if optim.schedule == 'one_cycle':
        # PyTorch counts the rise from step 0 to warmup * steps - 1 and divides by that: a shorter rise is none.
        rise = optim.warmup if optim.warmup * steps > 1 else 0.0
        highest = [optim.lr * group.get('lr_scale', 1.0) for group in optimizer.param_groups]
        return OneCycleLR(optimizer, highest, total_steps=steps, pct_start=rise)
    for group in optimizer.param_groups:
        group['lr'] = optim.lr * group.get('lr_scale', 1.0)
    rise = round(optim.warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2

    return LambdaLR(optimizer, factor)


def mix(mixup: Mixup, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes images and targets with those of the reversed batch; what either does not know the mixture does not."""
    known = (target >= 0) & (target >= 0).flip(0)
    image, mixed = mixup(image, target.clamp(min=0))
    return image, torch.where(known, mixed, -1.0)


class Teacher(nn.Module):
    """A trained model whose probabilities a student learns from (https://arxiv.org/abs/1503.02531, for each label).

    Args:
        name: As for `msff_timm.hub.load`.
        label_names: Of the student, which the teacher has to have too, in any order.
        settings: Its weight and temperature.

    Raises:
        InputError: It cannot be loaded, or its labels are not the student's.
    """

    def __init__(self, name: str, label_names: list[str], settings: DistillConfig):
        super().__init__()
        self.model = hub.load(name).requires_grad_(False)
        known = display_names(self.model)
        if sorted(known) != sorted(label_names):
            raise InputError(f'distill.teacher is {name}: its labels are not those of the data.')
        data_config = timm.data.resolve_model_data_config(self.model)
        self.input_size = tuple(data_config['input_size'][-2:])
        self.normalize = Normalize(data_config)
        self.register_buffer('order', torch.tensor([known.index(name) for name in label_names]), persistent=False)
        self.weight, self.temperature = settings.weight, settings.temperature

    def train(self, mode: bool = True) -> 'Teacher':
        """Does nothing: a teacher is always in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps the student's images of bytes (B, C, H, W) to logits (B, K) in the student's order."""
        image = self.normalize(pixels)
        if image.shape[-2:] != self.input_size:
            image = F.interpolate(image, self.input_size, mode='bilinear', antialias=True)
        return self.model(image)[:, self.order]

    def loss(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        """Gives the cross-entropy with the teacher's probabilities at the temperature T, times T^2, of each (B, K)."""
        probabilities = (teacher_logits.float() / self.temperature).sigmoid()
        losses = F.binary_cross_entropy_with_logits(logits / self.temperature, probabilities, reduction='none')
        return losses * self.temperature**2


class Unreadable:
    """The training images that were passed over; each is named once, and too many of them end the run.

    Args:
        num_images: Of the training set.
        messages: Of those that were met before; kept up to date.
    """

    def __init__(self, num_images: int, messages: list[str]):
        self.most = int(MOST_UNREADABLE * num_images)
        self.messages = messages

    def add(self, messages: list[str]) -> None:
        """Names images that are new.

        Raises:
            InputError: There are too many.
        """
        for message in messages:
            if message not in self.messages:
                self.messages.append(message)
                tqdm.write(f'skipped {message}', file=sys.stderr)
        if len(self.messages) > self.most:
            raise InputError(
                f'{len(self.messages)} training images cannot be read, over {MOST_UNREADABLE:.0%} of them'
                f' ({self.most}); the last: {self.messages[-1]} See `msff-timm data NAME --check`.'
            )

    def gather(self) -> None:
        """Adds what the other processes have met."""
        self.add([message for message in gather_object(self.messages) if message not in self.messages])


class Stopped(Exception):
    """The run was asked to stop.

    Args:
        advice: From where it can be resumed.
    """

    def __str__(self) -> str:
        return f'stopped, as it was asked to; {self.args[0] if self.args else "what was done is saved"}.'


class StopRequest:
    """Remembers that SIGTERM or Ctrl-C has come, so that the step at hand can be finished and saved.

    A second Ctrl-C ends the process at once, and so does either while there is nothing to save.

    Attributes:
        received: Number of the signal.
        waits: True while there is something to save.
    """

    def __init__(self, waits: bool = True):
        self.received: int | None = None
        self.waits = waits
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.waits:
            # Past any `except Exception`, and without print, which may be at work already.
            os.write(2, f'{os.path.basename(sys.argv[0])}: stopped before its first step.\n'.encode())
            sys.exit(130 if number == signal.SIGINT else 75)
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Learner:
    """All that a training step needs.

    Attributes:
        accelerator: That has prepared the model and the optimizer.
        module: Model as it was before it was prepared.
        model: Prepared model; it may do more than `module`, which it holds.
        ema: Exponential moving average of its weights, whose warm-up goes by the schedule's steps.
        normalize: Map from bytes, or from cached maps, to the model's input.
        loss_fn: As `make_loss` gives it.
        optimizer: Prepared.
        schedule: Of the learning rate, stepped here.
        clip_grad: Largest norm of the gradient.
        passes: Batches that make one step.
        channels_last: Lay images out for fast convolutions.
        mixup: Mixes the images of a batch, or None.
        teacher: To learn from besides the labels, or None.
        stop: Whether the run has been asked to stop.
    """

    accelerator: Accelerator
    module: nn.Module
    model: nn.Module
    ema: ModelEmaV3
    normalize: Normalize
    loss_fn: LossFn
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    clip_grad: float
    passes: int
    channels_last: bool
    mixup: Mixup | None
    teacher: Teacher | None
    stop: StopRequest

    def train(self) -> None:
        """Sets the model to training, and what is frozen of it to evaluation."""
        self.model.train()
        train_unfrozen(self.module)

    def step(self, batches: list[dict]) -> torch.Tensor:
        """Takes one step on this process's batches; the loss is the mean over the known labels of all processes.

        Returns:
            Loss, norm of the gradient, and the share of the processes that were asked to stop, on the device (3,).
        """
        accelerator = self.accelerator
        prepared = [self.prepare(batch) for batch in batches]
        # As in Accelerate's guide to accumulation with samples of different size: divided by what all of them know.
        known = sum((target >= 0).sum() for _, target, _ in prepared)
        known = accelerator.reduce(known.float(), 'mean').clamp(min=1 / accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for number, (image, target, teacher_logits) in enumerate(prepared):
            last = number == len(prepared) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                # Accelerate returns float32 logits and keeps autocast to the model: the loss is in float32 outside it.
                loss = self._loss(self.model(image), target, teacher_logits, known, len(prepared))
                accelerator.backward(loss)
            total += loss.detach()
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.ema.update(self.module, step=self.schedule.last_epoch + 1)
        self.schedule.step()
        stop = torch.tensor(float(self.stop.received is not None), device=accelerator.device)
        return accelerator.reduce(torch.stack([total, grad_norm.detach().float(), stop]), 'mean')

    def prepare(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Makes of a batch the model's input (B, C, H, W), its targets and the teacher's logits (B, K)."""
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

    def _loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        teacher_logits: torch.Tensor | None,
        known: torch.Tensor,
        passes: int,
    ) -> torch.Tensor:
        loss = known_sum(self.loss_fn, logits, target) / known
        if self.teacher is None:
            return loss
        weight = self.teacher.weight
        # The teacher has an answer for every label.
        return (1 - weight) * loss + weight * self.teacher.loss(logits, teacher_logits).mean() / passes


def train_one_epoch(
    learner: Learner,
    batches: Iterable[dict],
    unreadable: Unreadable,
    progress: Progress,
    every: int | None,
    read: Callable[[int, float, float, float], None],
    save: Callable[[], None],
    not_finite: Callable[[list[dict], float, float], None],
) -> bool:
    """Trains on the batches that are left of one epoch; returns whether the run has been asked to stop.

    The values of a step are read when the next one has been handed to the device, which so never waits for that; before
    the run is saved, all are read.

    Args:
        learner: Takes the steps.
        batches: Of this process.
        unreadable: Is told of images that were passed over.
        progress: Is kept up to date.
        every: Steps between two calls of `save`, or None.
        read: Called with the number, the learning rate, the loss and the gradient's norm of each step.
        save: Saves the run.
        not_finite: Called with the batches, the loss and the gradient's norm of a step where one of these is not
            finite; raises. A gradient that fp16's scaler has skipped may be that.

    Raises:
        Stopped: The run was asked to stop, and was saved if that was possible.
    """
    accelerator, stop = learner.accelerator, False
    waiting: list[tuple[int, float, torch.Tensor, list[dict], bool]] = []

    def read_waiting() -> bool:
        asked = False
        while waiting:
            number, lr, values, of, skipped = waiting.pop(0)
            loss, grad_norm, stopping = values.tolist()
            if not math.isfinite(loss) or not (math.isfinite(grad_norm) or skipped):
                not_finite(of, loss, grad_norm)
            progress.losses[0] += loss
            progress.losses[1] += 0.0 if skipped else grad_norm
            read(number, lr, loss, grad_norm)
            asked = asked or stopping > 0
        return asked

    learner.train()
    for group in grouped(batches, learner.passes):
        for batch in group:
            unreadable.add(batch['unreadable'])
        group = [send_to_device(batch, accelerator.device) for batch in group]  # a stream's loader is not Accelerate's
        lr = learner.optimizer.param_groups[-1]['lr']
        values = learner.step(group)
        progress.step += 1
        progress.steps_done += 1
        stop = read_waiting()
        waiting.append((progress.steps_done, lr, values, group, accelerator.optimizer_step_was_skipped))
        if stop or every and progress.steps_done % every == 0:
            stop = read_waiting() or stop
            save()
        if stop:
            raise Stopped
    stop = read_waiting()
    unreadable.gather()
    return stop


def grouped(batches: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Gives `size` batches at a time, and nothing of what is left over."""
    batches = iter(batches)
    while len(group := list(islice(batches, size))) == size:
        yield group


def peak_memory(accelerator: Accelerator) -> int:
    """Returns the most bytes that were in use at once: the GPU's where there is one, else this process's."""
    if accelerator.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(accelerator.device)
    with suppress(OSError):  # Linux alone has it, and not everywhere; it hands ru_maxrss down from the starting process
        with open('/proc/self/status', encoding='utf-8') as file:
            for line in file:
                if line.startswith('VmHWM'):
                    return int(line.split()[1]) * 1024
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def synchronise_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers: BatchNorm's running statistics differ after each own batch."""
    for buffer in model.buffers():
        broadcast(buffer)


@torch.no_grad()  # not inference_mode, whose tensors older versions of PyTorch do not gather
def score(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader, stop: StopRequest | None = None
) -> MetricAccumulator:
    """Scores all images, in all processes; every process returns the scores of all of them, with their targets.

    Args:
        accelerator: Its processes share the images.
        model: From the loader's images to logits, in any mode; it scores in evaluation mode.
        loader: Of `Samples`, prepared by the accelerator, so that each process has its share of the images.
        stop: Whether the run has been asked to stop.

    Raises:
        Stopped: It has.
        InputError: A logit is not finite.
    """
    model.eval()
    measures, samples = MetricAccumulator(), loader.dataset
    for batch in loader:
        with accelerator.autocast():
            logits = model(batch['image'])
        asked = torch.tensor([stop is not None and stop.received is not None], device=accelerator.device)
        index, logits, asked = accelerator.gather((batch['index'], logits.float(), asked))
        if asked.any():
            raise Stopped
        index, finite = index.cpu().numpy(), logits.isfinite().all(1).cpu().numpy()
        if not finite.all():
            image_id = samples.dataset[int(index[~finite][0])]['image_id']
            overflow = '' if accelerator.mixed_precision == 'no' else f', or {accelerator.mixed_precision} overflows'
            raise InputError(
                f"image {image_id}: the model's logits are not finite: its weights hold NaN or infinite"
                f' values{overflow}; use the weights of an earlier checkpoint.'
            )
        scores = logits.sigmoid().cpu().numpy()
        targets = samples.targets[index]
        areas = None if samples.areas is None else samples.areas[index]
        measures.update(index, scores, targets == 1, targets == -1, areas)
    return measures


def measure(measures: MetricAccumulator, num_images: int, **options: object) -> dict:
    """Evaluates scored images, each once; see `msff_timm.metrics.evaluate` for the options.

    Raises:
        InputError: No label has both a positive and a negative, or an option is not what it should be.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.* fewer than')  # `report.describe` counts these labels
        try:
            return measures.compute(num_images, **options)
        except ValueError as e:
            raise InputError(f'the images cannot be evaluated: {e}') from None


def fit_thresholds(scored: MetricAccumulator, data: dict) -> dict | None:
    """Fits the thresholds that `hub.save` stores to scored images; None where these are too few.

    Args:
        scored: Scores as `score` gives them; at least one label has both a positive and a negative.
        data: Which images they are, to be stored with the thresholds.
    """
    arrays = scored.arrays()
    num_images = len(arrays['scores'])
    if num_images < FOLDS:
        return None
    fitted = thresholds.fit(arrays['scores'], arrays['targets'], arrays['ignore'], FOLDS)
    return {**asdict(fitted), 'folds': FOLDS, 'data': data, 'num_images': num_images}


def run_command(main: Callable[[], None]) -> None:
    """Runs a script's main function; what ends it early is one line and a code: see `msff_timm.errors.exit_code`.

    A run that was stopped and can be resumed ends with code 75, that of sysexits.h for "try again".
    """
    escape_output()
    name = os.path.basename(sys.argv[0])

    def command() -> int | None:
        try:
            return main()
        except Stopped as e:
            print(f'{name}: {e}', file=sys.stderr)
            return 75
        except KeyboardInterrupt:
            print(f'{name}: interrupted; what was written stays.', file=sys.stderr)
            return 130
        except BrokenPipeError:
            print(f'{name}: nothing reads its output any more; what was written stays.', file=sys.stderr)
            raise

    try:
        code = exit_code(command, name)
    finally:
        if ending.cache_info().currsize:
            ending().value = True
    if code:
        sys.exit(code)
