"""What a run prints: how it starts, its progress, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from timm.utils import unwrap_model
from tqdm import tqdm

from ..labels import describe_matches
from .config import TrainConfig
from .features import cache_obstacles
from .freezing import describe_frozen
from .optim import describe_ema_span
from .run_model import describe_queries

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ['describe_end', 'describe_start', 'progress_bar']


def describe_start(trainer: Trainer) -> Iterator[str]:
    """Returns the lines that a run prints before its first step."""
    config, data, progress, accelerator = trainer.config, trainer.data, trainer.progress, trainer.accelerator
    if trainer.resumed_from:
        step = f'step {progress.step} of {data.steps_per_epoch}'
        yield f'Resuming from {trainer.resumed_from}: epoch {progress.epoch}, {step}.'
    elif config.model.init_from:
        yield f'Starting from {config.model.init_from}, which has {len(trainer.kept_labels)} of the labels.'
        yield from describe_matches(trainer.kept_labels)
    yield from describe_frozen(config, trainer.unfreezing, trainer.resumed_from is not None)
    if config.model.freeze == 'backbone' and not trainer.caches:
        yield (
            'The feature maps of the frozen backbone are not cached: each step computes them, because of'
            f' {" and ".join(cache_obstacles(config))}.'
        )
    if line := describe_queries(unwrap_model(trainer.model), config.data.image_size):
        yield line
    processes = _count(accelerator.num_processes, 'process', 'processes')
    yield (
        f'Training {config.model.name} on {data.num_images} images of {config.data.name} with {processes} on'
        f' {accelerator.device.type}; batch size {config.optim.batch_size} = {processes} x'
        f' {_count(data.accumulation_steps, "accumulation step", "accumulation steps")} x'
        f' {_count(data.micro_batch_size, "image", "images")}.'
    )
    if line := describe_ema_span(trainer.ema, config.optim, config.optim.epochs * data.steps_per_epoch):
        yield line


def describe_end(config: TrainConfig, best: dict, history: list[dict], seconds: float) -> str:
    """Returns the lines that a run prints at its end: its metrics, and how to use the model.

    Args:
        config: Settings of the run.
        best: Best epoch.
        history: Metrics of each epoch.
        seconds: Duration of the run.
    """
    data, name = config.data, f'local-dir:{config.output}'
    chosen = ', chosen by early stopping on these images' if config.optim.early_stop else ''
    text = (
        f'\n{config.output}: {best["line"]}\n'
        f'Evaluated on {data.title or data.name} {data.eval_split}, EMA weights of epoch {best["epoch"]}{chosen};'
        f' {seconds:.0f} s in total. Load and use the model:\n\n'
        f"    import timm, msff_timm; model = timm.create_model('{name}', pretrained=True).eval()\n"
        f'    msff-timm predict IMAGE... --model {config.output}'
    )
    better = max(history, key=lambda entry: entry['mAP'])
    if config.optim.early_stop and better['mAP'] > best['mAP']:
        text += f'\n\nEpoch {better["epoch"]} had a better mAP, {better["mAP"]:.2f}, but its weights were lost.'
    return text


def progress_bar(trainer: Trainer) -> tqdm:
    """Creates the progress bar of a run, on the main process only; in a file it is updated rarely."""
    optim = trainer.config.optim
    return tqdm(
        total=optim.epochs * trainer.data.steps_per_epoch * optim.batch_size,
        initial=trainer.progress.steps_done * optim.batch_size,
        unit='img',
        disable=not trainer.accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )


def _count(number: int, singular: str, plural: str) -> str:
    return f'{number} {singular if number == 1 else plural}'
