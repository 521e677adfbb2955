"""What the scripts share: loaders, one epoch of training, measures over all processes, and how a command ends."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, send_to_device
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm import tqdm

from msff_timm import thresholds
from msff_timm.data.samples import Samples, StreamedSamples, collate
from msff_timm.errors import InputError
from msff_timm.metrics import Measures

__all__ = [
    'MOST_UNREADABLE',
    'Unreadable',
    'fit_thresholds',
    'known_mean',
    'make_loader',
    'measure',
    'one_cycle',
    'run_command',
    'score',
    'share_cores',
    'synchronise_buffers',
    'train_one_epoch',
]

FOLDS = 5  # of the pictures that thresholds are fitted to
MOST_UNREADABLE = 0.01  # of the training pictures: more is a fault of the data set, not of a picture


def share_cores(accelerator: Accelerator, workers: int) -> None:
    """Gives PyTorch the CPU cores that the loader's workers leave, when it computes on the CPU.

    `accelerate launch` would leave it one core, and PyTorch would take all of them: with the workers that is more
    threads than cores, and each of the many parallel regions of a step then waits for a thread that is not running.
    """
    if accelerator.device.type == 'cpu':
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)) - workers))


def make_loader(samples: Samples | StreamedSamples, batch_size: int, workers: int, training: bool) -> DataLoader:
    """Makes a loader of batches: shuffled and whole for training, in order and complete for evaluation."""
    return DataLoader(
        samples,
        batch_size=batch_size,
        shuffle=training and not isinstance(samples, StreamedSamples),
        drop_last=training,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def one_cycle(
    optimizer: torch.optim.Optimizer, lr: float, steps: int, warmup: float
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Makes the schedule: up to `lr` within the share `warmup` of the steps, then a cosine down to nearly nothing."""
    # PyTorch counts the rise from step 0 to warmup * steps - 1 and divides by that: a shorter rise is none.
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=warmup if warmup * steps > 1 else 0.0
    )


def known_mean(loss_fn: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Averages a loss over the labels that are known to be present or absent.

    Args:
        loss_fn: From logits and targets (B, K) to the loss of each (B, K).
        logits: (B, K).
        target: (B, K), 1 present, 0 absent, -1 unknown or not to be counted.
    """
    known = target >= 0
    losses = loss_fn(logits, target.clamp(min=0))
    return torch.where(known, losses, 0).sum() / known.sum().clamp(min=1)


class Unreadable:
    """The training pictures that were passed over; each is named once, and too many of them end the run.

    Args:
        num_pictures: Of the training set.
    """

    def __init__(self, num_pictures: int):
        self.most = int(MOST_UNREADABLE * num_pictures)
        self.messages: list[str] = []

    def add(self, messages: list[str]) -> None:
        """Names pictures that are new.

        Raises:
            InputError: There are too many.
        """
        for message in messages:
            if message not in self.messages:
                self.messages.append(message)
                tqdm.write(f'skipped {message}', file=sys.stderr)
        if len(self.messages) > self.most:
            raise InputError(
                f'{len(self.messages)} training pictures cannot be read, over {MOST_UNREADABLE:.0%} of them'
                f' ({self.most}); the last: {self.messages[-1]} See `msff-timm data NAME --check`.'
            )

    def gather(self) -> None:
        """Adds what the other processes have met."""
        self.add([message for message in gather_object(self.messages) if message not in self.messages])


def train_one_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    ema: ModelEmaV3,
    loader: Iterable[dict],
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    clip_grad: float,
    unreadable: Unreadable,
    progress: tqdm,
) -> dict[str, float]:
    """Trains for one epoch and returns the means of `loss` and `grad_norm` (before clipping) over its steps."""
    model.train()
    losses, grad_norms = [], []
    for step, batch in enumerate(loader):
        unreadable.add(batch['unreadable'])
        batch = send_to_device(batch, accelerator.device)  # a stream's loader is not Accelerate's
        # Accelerate returns float32 logits and keeps autocast to the model: the loss is in float32 outside of it.
        loss = known_mean(loss_fn, model(batch['image']), batch['target'])
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            ema.update(accelerator.unwrap_model(model))
        scheduler.step()

        losses.append(loss.detach())
        grad_norms.append(grad_norm.detach())
        if step % 10 == 0:  # reading a value waits for the device
            progress.set_postfix(loss=f'{float(losses[-1]):.4f}', refresh=False)
        progress.update(len(batch['index']) * accelerator.num_processes)
    unreadable.gather()
    means = torch.stack([torch.stack(losses).mean(), torch.stack(grad_norms).mean()])
    loss, grad_norm = accelerator.reduce(means, 'mean').tolist()
    return {'loss': loss, 'grad_norm': grad_norm}


def synchronise_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers: BatchNorm's running statistics differ after each own batch."""
    for buffer in model.buffers():
        broadcast(buffer)


@torch.no_grad()  # not inference_mode, whose tensors older versions of PyTorch do not gather
def score(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> Measures:
    """Scores all pictures, in all processes; every process returns the scores of all of them, with their targets.

    Args:
        accelerator: Its processes share the pictures.
        model: In any mode; it scores in evaluation mode.
        loader: Of `Samples`, prepared by the accelerator, so that each process has its share of the pictures.
    """
    model.eval()
    measures, samples = Measures(), loader.dataset
    for batch in loader:
        with accelerator.autocast():
            logits = model(batch['image'])
        index, scores = accelerator.gather((batch['index'], logits.float().sigmoid()))
        index, scores = index.cpu().numpy(), scores.cpu().numpy()
        targets = samples.targets[index]
        areas = None if samples.areas is None else samples.areas[index]
        measures.update(index, scores, targets == 1, targets == -1, areas)
    return measures


def measure(measures: Measures, num_images: int, **options: object) -> dict:
    """Evaluates scored pictures, each once; see `msff_timm.metrics.evaluate` for the options.

    Raises:
        InputError: No label is present in any of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.* fewer than')  # `report.describe` counts these classes
        try:
            return measures.compute(num_images, **options)
        except ValueError as e:
            raise InputError(f'the pictures cannot be measured on: {e}') from None


def fit_thresholds(scored: Measures, data: dict) -> dict | None:
    """Fits the thresholds that `hub.save` stores to scored pictures; None where these are too few.

    Args:
        scored: What `score` gives.
        data: Which pictures they are, to be stored with the thresholds.
    """
    arrays = scored.arrays()
    num_images = len(arrays['scores'])
    if num_images < FOLDS:
        return None
    fitted = thresholds.fit(arrays['scores'], arrays['targets'], arrays['ignore'], FOLDS)
    return {**asdict(fitted), 'folds': FOLDS, 'data': data, 'num_images': num_images}


def run_command(main: Callable[[], None]) -> None:
    """Runs a script's main function; bad input ends it with one line and code 2, Ctrl-C with code 130."""
    try:
        main()
    except InputError as e:
        # The error of a loader's worker arrives with the worker's traceback before its message.
        line = str(e).splitlines()[-1].removeprefix(f'{InputError.__module__}.{InputError.__name__}: ')
        print(f'{os.path.basename(sys.argv[0])}: error: {line}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'{os.path.basename(sys.argv[0])}: interrupted; what was written stays.', file=sys.stderr)
        sys.exit(130)
