"""Measures training with the settings of a recipe, `--config FILE` and `--key value` as for train.py."""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch

from bench_common import check_at_least
from msff_timm.flops import count_flops
from msff_timm.training.commands import StopRequest, peak_memory
from msff_timm.training.config import TrainConfig
from msff_timm.training.loaders import grouped
from msff_timm.training.parsing import CONFIGS, parse
from msff_timm.training.studies.speed import order, timed
from msff_timm.training.train import make_accelerator
from msff_timm.training.trainer import Trainer


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--steps', type=int, default=10, help='measured steps of each loop')


def run(options: argparse.Namespace) -> dict:
    """Measures three loops that take the same steps in turns, over all processes.

    - `run`: training as it is, with its loader.
    - `fed`: the same on a batch that is already on the device. `run` against `fed` is the cost of waiting for data.
    - `bare`: forward pass, mean loss, backward pass and optimizer step on that batch. `fed` against `bare` is the cost
      of everything else in a step: normalization, masked labels, clipping, EMA weights, reading values.
    """
    check_at_least(options, steps=1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*options.settings, f'--output={folder}', '--trackers=[]']
        config = parse(TrainConfig, arguments, CONFIGS / 'demo.yaml')
        accelerator = make_accelerator(config)
        trainer = Trainer(config, accelerator, StopRequest())
    accumulation_steps = trainer.data.accumulation_steps
    trainer.prepared.train()
    batches = endless(trainer)
    held = next(grouped(batches, accumulation_steps))
    inputs = [trainer.prepare_batch(batch)[0] for batch in held]
    waited = []

    def loop_run() -> None:
        began = time.perf_counter()
        group = next(grouped(batches, accumulation_steps))
        waited.append(time.perf_counter() - began)
        trainer.train_step(group)

    def loop_bare() -> None:
        for image, batch in zip(inputs, held, strict=True):
            loss = trainer.loss_fn(trainer.prepared(image), batch['target'].clamp(min=0)).mean() / accumulation_steps
            accelerator.backward(loss)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    loops = {'run': loop_run, 'fed': lambda: trainer.train_step(held), 'bare': loop_bare}
    for loop in loops.values():  # the first steps allocate memory, and compile if set
        loop()
    model, images = copy.deepcopy(trainer.model).to('meta'), torch.empty_like(inputs[0], device='meta')
    flops = accumulation_steps * count_flops(lambda: model(images).sum().backward())
    waited.clear()
    seconds = {name: [] for name in loops}
    for turn in range(options.steps):
        for name in order(loops, turn):
            seconds[name].append(timed(loops[name]))

    median = {name: float(np.median(values)) for name, values in seconds.items()}
    waiting_share = float(np.median(np.divide(waited, seconds['run'])))
    overhead = float(np.median(np.divide(seconds['fed'], seconds['bare']))) - 1
    size = config.optim.batch_size
    accelerator.print(
        f'{config.model.name}, {config.data.image_size} x {config.data.image_size}, batch size {size} over'
        f' {accelerator.num_processes} process(es) on {accelerator.device.type}, {accelerator.mixed_precision}:'
    )
    for name in loops:
        accelerator.print(f'{name:5} {size / median[name]:9.2f} images/s')
    accelerator.print(
        f'waiting for data {waiting_share:.1%} of a step, overhead over the bare loop {overhead:+.1%},'
        f' {flops / median["bare"] / 1e12:.3f} TFLOP/s per process, peak {peak_memory(accelerator) / 1e9:.1f} GB'
    )
    return {
        'model': config.model.name,
        'image_size': config.data.image_size,
        'batch_size': size,
        'accumulation_steps': accumulation_steps,
        'num_processes': accelerator.num_processes,
        'device': accelerator.device.type,
        'mixed_precision': accelerator.mixed_precision,
        'compile': config.model.compile,
        'images_per_second': {name: size / value for name, value in median.items()},
        'waiting_share': waiting_share,
        'overhead': overhead,
        'flops_per_step': flops,
        'flops_per_second': flops / median['bare'],
        'peak_bytes': peak_memory(accelerator),
        'turns': seconds,
    }


def endless(trainer: Trainer) -> Iterator[dict]:
    """Yields the batches of a run, epoch after epoch."""
    while True:
        yield from trainer.data.batches(trainer.progress.epoch, 0)
        trainer.progress.epoch += 1
