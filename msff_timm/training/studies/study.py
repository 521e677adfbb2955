"""Trains variants alike with several seeds, times their inference in turns, and tabulates the results."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn as nn

from ... import hub
from ...errors import InputError
from ...flops import measure_size
from ...results import Results
from ..commands import Stopped, StopRequest
from ..config import TrainConfig, parse
from ..identity import about_run, differences
from ..report import read_settings
from .config import VariantsConfig
from .pages import write_table
from .speed import time_in_turns
from .tables import Variant, tabulate

__all__ = ['Run', 'make_inputs', 'measure_speed', 'plan', 'run_study', 'train_all']

TRAIN = ('-m', 'msff_timm.training.train')
NO_PUSH = ('--push_to=null', '--push_private=false')
STOPPED = 75  # exit code of a run that was stopped and can be resumed
FINISHED = ('results.json', 'report.md', 'model.safetensors')  # files of a finished run


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        variant: Row of the table that it belongs to.
        config: All its settings.
        argv: Command-line arguments that give these settings.
    """

    variant: Variant
    config: TrainConfig
    argv: list[str]

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    def results(self) -> Results | None:
        """Reads the results of a finished run; returns None for an unfinished one.

        Raises:
            InputError: The folder holds a run with other settings.
        """
        if not all((self.output / name).is_file() for name in FINISHED):
            return None
        found = Results.from_json(self.output / 'results.json')
        before = {'config': read_settings(self.output) or found.config}
        different = list(differences(before, {'config': about_run(self.config, [], {})['config']}))
        if different:
            raise InputError(
                f'{self.output} holds a run with other settings: {"; ".join(different)}. Use the same settings, choose'
                ' another output, or remove that folder.'
            )
        return found if found.model_weights else None  # evaluated last in training


def run_study(
    config: VariantsConfig,
    variants: Sequence[Variant],
    reference: str,
    name: str,
    title: str,
    extend: Callable[[dict], None],
) -> dict:
    """Trains all variants that are not trained yet, and writes their table.

    Args:
        config: Settings of the study.
        variants: Rows of the table.
        reference: Name of the row that the others are compared with.
        name: Name of the files: `{name}.md`, `.csv`, `.json`, ...
        title: Title of the table.
        extend: Function that completes the table before it is written.

    Returns:
        The table, see `tabulate`.

    Raises:
        InputError: A setting is wrong, or a run failed.
        Stopped: SIGTERM or Ctrl-C was received.
    """
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise InputError('a study starts its own processes: start it with python, and set launch for several GPUs.')
    stop = StopRequest()
    runs = plan(config, variants)
    train_all(runs, config.launch, stop)
    # After `train_all`, every run has results.
    found: list[tuple[Variant, list[Any]]] = [
        (variant, [run.results() for run in runs if run.variant is variant]) for variant in variants
    ]
    size, num_classes = runs[-1].config.data.image_size, found[0][1][0].num_classes
    speed = measure_speed(variants, num_classes, size, config.batch_size, config.turns, reference, stop)
    table = {'title': title, **tabulate(found, reference, speed)}
    if 'title' in table['data']:
        table['data'] = {**table['data'], 'name': table['data']['title']}
    extend(table)
    write_table(table, Path(config.output), name)
    return table


def plan(config: VariantsConfig, variants: Sequence[Variant]) -> list[Run]:
    """Makes all runs and checks them before any is trained: for each seed the backbone, if any, then every variant.

    Raises:
        InputError: A setting is wrong, or a folder holds a run with other settings.
    """
    shared = ['--config', config.train, *_arguments(config.settings), *NO_PUSH]
    recipe = parse(TrainConfig, [*shared, f'--output={config.output}'])
    if recipe.model.args:
        raise InputError(f'{config.train} sets model.args: remove it, as each row has its own.')
    runs = []

    def add(variant: Variant, folder: Path, seed: int, argv: list[str], **model: object) -> None:
        own = {'output': str(folder), 'seed': seed, 'model': {'name': variant.model, **model}}
        argv = [*argv, *_arguments(own)]
        if variant.args:
            argv.append(f'--model.args={json.dumps(variant.args)}')
        runs.append(Run(variant, parse(TrainConfig, argv), argv))
        runs[-1].results()

    for seed in config.seeds:
        start = []
        if config.backbone:
            # One for each seed, because results vary more with the backbone than with the seed of the run itself
            folder = Path(config.output, 'backbone', f'seed-{seed}')
            add(Variant(config.backbone, config.backbone), folder, seed, ['--config', config.train, *NO_PUSH])
            start = [f'--model.backbone_from=local-dir:{folder}']
        for variant in variants:
            model = {}
            if recipe.model.backbone_pretrained and variant.model not in hub.list_models():
                # A plain model is a backbone: it starts from the weights that the other models' backbones start from.
                model = {'backbone_pretrained': False, 'init_from': variant.model}
            argv = [*shared, *start, *_arguments(variant.settings)]
            add(variant, Path(config.output, variant.folder, f'seed-{seed}'), seed, argv, **model)
    return runs


def _arguments(settings: dict, prefix: str = '') -> Iterator[str]:
    """Converts nested settings to command-line arguments."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _arguments(value, f'{prefix}{key}.')
        else:
            yield f'--{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}'


def train_all(runs: Sequence[Run], launch: Sequence[str] | None, stop: StopRequest) -> None:
    """Trains the unfinished runs in order, resuming those that were interrupted.

    Args:
        runs: All runs of the study.
        launch: Arguments of `accelerate launch`; None to start plain Python.
        stop: Signal received so far, if any.

    Raises:
        InputError: A run failed.
        Stopped: SIGTERM or Ctrl-C was received.
    """
    left = [run for run in runs if run.results() is None]
    print(f'{len(runs) - len(left)} of {len(runs)} runs are finished.', flush=True)
    for number, run in enumerate(left, 1):
        print(f'\nRun {number} of {len(left)}: {run.variant.name}, seed {run.config.seed}, {run.output}', flush=True)
        _check(stop)
        code = _train(run, launch, stop)
        _check(stop, code)
        if code or run.results() is None:
            raise InputError(
                f'{run.output}: training failed with exit code {code}, see its message above; fix the cause and run the'
                ' same command again to resume.'
            )


def _check(stop: StopRequest, code: int | None = None) -> None:
    """Raises `Stopped` if a signal was received, by this process or by a run that ended with that exit code."""
    if stop.received or code == STOPPED:
        raise Stopped('run the same command again to resume')


def _train(run: Run, launch: Sequence[str] | None, stop: StopRequest) -> int:
    """Runs the training, and passes a request to stop on to it, once; returns its exit code."""
    launcher = [] if launch is None else ['-m', 'accelerate.commands.launch', '--quiet', *launch]
    command = [sys.executable, *launcher, *TRAIN, *run.argv, '--resume=auto']
    # In a session of its own it does not receive Ctrl-C from the terminal as well, which would end it at once.
    process = subprocess.Popen(command, start_new_session=True)
    family, passed_on = [psutil.Process(process.pid)], False
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            if stop.received and not passed_on:
                passed_on = True
                with suppress(psutil.NoSuchProcess):
                    family += family[0].children(recursive=True)
                with suppress(ProcessLookupError):
                    if hasattr(os, 'killpg'):
                        os.killpg(process.pid, signal.SIGTERM)
                    else:  # Windows has no SIGTERM to send
                        process.terminate()
        psutil.wait_procs(family[1:])  # a launcher may end before the processes that it started
        return process.returncode
    finally:  # a second Ctrl-C
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family += family[0].children(recursive=True)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def make_inputs(
    variants: Sequence[Variant], num_classes: int, image_size: int, batch_size: int
) -> tuple[list[nn.Module], torch.Tensor]:
    """Makes untrained models for inference, and noise (B, 3, H, W) as their input, on the GPU if there is one."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    models = [
        hub.create(variant.model, num_classes=num_classes, **variant.args)
        .eval()
        .to(device)
        .to(memory_format=torch.channels_last)
        for variant in variants
    ]
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    return models, images.to(memory_format=torch.channels_last)


def measure_speed(
    variants: Sequence[Variant],
    num_classes: int,
    image_size: int,
    batch_size: int,
    turns: int,
    reference: str,
    stop: StopRequest,
) -> dict:
    """Counts parameters and FLOPs, and times inference of all variants in turns, on a GPU in bfloat16.

    Returns:
        `rows`, for each variant `num_parameters`, `gflops` per image (a multiplication and an addition count as 2) and,
        unless `turns` is 0, `images_per_second` and `time_ratio`, its time relative to the reference, with the 10th and
        90th percentile of the turns; and the conditions of the measurement.
    """
    rows: list[dict[str, Any]] = []
    for variant in variants:
        with torch.device('meta'):
            model = hub.create(variant.model, num_classes=num_classes, **variant.args)
        rows.append(measure_size(model, (3, image_size, image_size)))
    if not turns:
        return {'rows': rows}
    models, images = make_inputs(variants, num_classes, image_size, batch_size)
    is_gpu = images.device.type == 'cuda'
    print(f'\nTiming inference of {len(models)} models in {turns} turns.', flush=True)
    with torch.inference_mode(), torch.autocast('cuda', torch.bfloat16, enabled=is_gpu):
        number = [variant.name for variant in variants].index(reference)
        timing = time_in_turns([partial(model, images) for model in models], turns, number, partial(_check, stop))
    for row, seconds, (ratio, *spread) in zip(rows, timing.seconds, timing.ratio, strict=True):
        row |= {'images_per_second': batch_size / seconds, 'time_ratio': ratio, 'time_ratio_10_to_90_percent': spread}
    return {
        'rows': rows,
        'device': torch.cuda.get_device_name() if is_gpu else 'cpu',
        'threads': None if is_gpu else torch.get_num_threads(),
        'dtype': 'bfloat16' if is_gpu else 'float32',
        'batch_size': batch_size,
        'image_size': image_size,
        'turns': turns,
    }
