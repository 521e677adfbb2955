"""What the scripts share: loaders, one epoch of training, measures over all processes, and how a command ends."""

import os
import sys
from collections.abc import Callable

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader
from tqdm import tqdm

from msff_timm.data.samples import Samples
from msff_timm.errors import InputError
from msff_timm.metrics import Measures

__all__ = [
    'make_loader',
    'measure',
    'one_cycle',
    'run_command',
    'share_cores',
    'synchronise_buffers',
    'train_one_epoch',
]


def share_cores(accelerator: Accelerator, workers: int) -> None:
    """Gives PyTorch the CPU cores that the loader's workers leave, when it computes on the CPU.

    `accelerate launch` would leave it one core, and PyTorch would take all of them: with the workers that is more
    threads than cores, and each of the many parallel regions of a step then waits for a thread that is not running.
    """
    if accelerator.device.type == 'cpu':
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)) - workers))


def make_loader(samples: Samples, batch_size: int, workers: int, training: bool) -> DataLoader:
    """Makes a loader of batches: shuffled and whole for training, in order and complete for evaluation."""
    return DataLoader(
        samples,
        batch_size=batch_size,
        shuffle=training,
        drop_last=training,
        num_workers=workers,
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


def train_one_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    ema: ModelEmaV3,
    loader: DataLoader,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    clip_grad: float,
    progress: tqdm,
) -> dict[str, float]:
    """Trains for one epoch and returns the means of `loss` and `grad_norm` (before clipping) over its steps."""
    model.train()
    losses, grad_norms = [], []
    for step, batch in enumerate(loader):
        # Accelerate returns float32 logits and keeps autocast to the model: the loss is in float32 outside of it.
        loss = loss_fn(model(batch['image']), batch['target'])
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
    means = torch.stack([torch.stack(losses).mean(), torch.stack(grad_norms).mean()])
    loss, grad_norm = accelerator.reduce(means, 'mean').tolist()
    return {'loss': loss, 'grad_norm': grad_norm}


def synchronise_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers: BatchNorm's running statistics differ after each own batch."""
    for buffer in model.buffers():
        broadcast(buffer)


@torch.no_grad()  # not inference_mode, whose tensors older versions of PyTorch do not gather
def measure(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> dict:
    """Measures a model over all processes, each picture once; every process returns what `metrics.evaluate` gives.

    Args:
        accelerator: Its processes share the pictures.
        model: In any mode; it is measured in evaluation mode.
        loader: Prepared by the accelerator, so that each process has its share of the pictures.
    """
    model.eval()
    measures = Measures()
    for batch in loader:
        with accelerator.autocast():
            logits = model(batch['image'])
        part = (batch['index'], logits.float().sigmoid(), batch['target'])
        # Accelerate repeats pictures to give each process equal batches; `Measures` counts each index once.
        measures.update(*(tensor.cpu().numpy() for tensor in accelerator.gather(part)))
    return measures.compute(len(loader.dataset))


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
