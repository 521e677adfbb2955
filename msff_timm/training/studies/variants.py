"""Trains variants of a model alike, with several seeds each, and times them in turns."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.nn as nn

from ... import hub
from ...errors import InputError
from ...flops import measure_size
from ...results import Results
from ..checkpoint import about_run, differences
from ..config import TrainConfig, VariantsConfig, parse
from ..engine import Stopped, StopRequest
from ..report import read_settings
from .speed import time_in_turns
from .tables import Variant, tabulate, write_table

__all__ = [
    'Run',
    'compare',
    'make_models',
    'make_images',
    'measure_speed',
    'plan',
    'train_all',
]

TRAIN = ('-m', 'msff_timm.training.train')
PUSH_NOTHING = ('--push_to=null', '--push_private=false')


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        variant: That is trained.
        config: All its settings.
        argv: The same, as a command line gives them.
    """

    variant: Variant
    config: TrainConfig
    argv: list[str]

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    def results(self) -> dict | None:
        """Reads what the run has left; None where it is not at its end.

        Raises:
            InputError: The folder holds a run of other settings.
        """
        if not all((self.output / name).is_file() for name in ('results.json', 'report.md', 'model.safetensors')):
            return None
        found = Results.from_json(self.output / 'results.json')
        before = {'config': read_settings(self.output) or found.config}
        different = list(differences(before, {'config': about_run(self.config, [], {})['config']}))
        if different:
            raise InputError(
                f'{self.output} holds a run of other settings: {"; ".join(different)}. Make these the same, choose'
                ' another output, or remove that folder.'
            )
        return asdict(found) if found.model_weights else None  # which training evaluates last


class Interrupted(Stopped):
    """The comparison was asked to stop, and the run at hand is saved."""

    def __str__(self) -> str:
        return 'stopped, as it was asked to; the same command goes on from here.'


def compare(
    config: VariantsConfig,
    variants: Sequence[Variant],
    reference: str,
    name: str,
    title: str,
    more: Callable[[dict], None] | None = None,
) -> dict:
    """Trains all variants that are not trained yet, and writes the table and its images.

    Args:
        config: Settings.
        variants: Rows of the table.
        reference: Name of the row that the others are compared with.
        name: Of the files: `{name}.md`, `.csv`, `.json`, ...
        title: Of the table.
        more: Adds to the table before it is written.

    Returns:
        The table, as `tabulate` makes it.

    Raises:
        InputError: A setting is wrong, or a run did not end as it should.
        Interrupted: It was asked to stop.
    """
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise InputError('this is to be started once, with python: `launch` says how its runs are started.')
    stop = StopRequest()
    runs = plan(config, variants)
    train_all(runs, config.launch, stop)
    found = [(variant, [run.results() for run in runs if run.variant is variant]) for variant in variants]
    size, num_classes = runs[-1].config.data.image_size, found[0][1][0]['num_classes']
    speed = measure_speed(variants, num_classes, size, config.batch_size, config.turns, reference, stop)
    table = {'title': title, **tabulate(found, reference, speed)}
    if 'title' in table['data']:
        table['data'] = {**table['data'], 'name': table['data']['title']}
    if more is not None:
        more(table)
    write_table(table, Path(config.output), name)
    return table


def plan(config: VariantsConfig, variants: Sequence[Variant]) -> list[Run]:
    """Makes the runs, and checks all of them before any is trained: of the first seed the backbone and all rows, ...

    Raises:
        InputError: A setting is wrong, or a folder holds a run of other settings.
    """
    shared = ['--config', config.train, *_arguments(config.settings), *PUSH_NOTHING]
    recipe = parse(TrainConfig, [*shared, f'--output={config.output}'])
    if recipe.model.args:
        raise InputError(f'{config.train} has model.args: leave it out, each row has its own.')
    runs = []
    for seed in config.seeds:
        start = []
        if config.backbone:
            # One for each seed: which backbone they start from moves all variants by more than their own seeds do.
            folder = Path(config.output, 'backbone', f'seed-{seed}')
            own = {'output': str(folder), 'seed': seed, 'model': {'name': config.backbone}}
            argv = ['--config', config.train, *PUSH_NOTHING, *_arguments(own)]
            runs.append(Run(Variant(config.backbone, config.backbone), parse(TrainConfig, argv), argv))
            runs[-1].results()
            start = [f'--model.backbone_from=local-dir:{folder}']
        for variant in variants:
            folder = Path(config.output, variant.folder, f'seed-{seed}')
            own = {'output': str(folder), 'seed': seed, 'model': {'name': variant.model}}
            if recipe.model.backbone_pretrained and variant.model not in hub.list_models():
                # A plain model is all backbone: it starts from the weights that the others' backbones start from.
                own['model'] |= {'backbone_pretrained': False, 'init_from': variant.model}
            argv = [*shared, *start, *_arguments(variant.settings), *_arguments(own)]
            argv.append(f'--model.args={json.dumps(variant.args)}')
            runs.append(Run(variant, parse(TrainConfig, argv), argv))
            runs[-1].results()
    return runs


def _arguments(settings: dict, prefix: str = '') -> Iterator[str]:
    """Writes nested settings as a command line does."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _arguments(value, f'{prefix}{key}.')
        else:
            yield f'--{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}'


def train_all(runs: Sequence[Run], launch: Sequence[str] | None, stop: StopRequest) -> None:
    """Trains those runs that are not at their end, each from where it stopped.

    Args:
        runs: In their order.
        launch: Arguments of `accelerate launch`; None for a Python alone.
        stop: Whether the comparison has been asked to stop.

    Raises:
        InputError: A run did not end as it should.
        Interrupted: It was asked to stop.
    """
    left = [run for run in runs if run.results() is None]
    print(f'{len(runs) - len(left)} of {len(runs)} runs are at their end.', flush=True)
    for number, run in enumerate(left, 1):
        print(f'\nRun {number} of {len(left)}: {run.variant.name}, seed {run.config.seed}, {run.output}', flush=True)
        code = None if stop.received else _train(run, launch, stop)
        if stop.received or code == 75:
            raise Interrupted
        if code or run.results() is None:
            raise InputError(
                f'{run.output}: training ended with code {code}, and what it said stands above; the same command goes'
                ' on, once that is mended.'
            )


def _train(run: Run, launch: Sequence[str] | None, stop: StopRequest) -> int:
    """Runs the training; a request to stop goes on to it, once. Returns its exit code."""
    launcher = [] if launch is None else ['-m', 'accelerate.commands.launch', '--quiet', *launch]
    command = [sys.executable, *launcher, *TRAIN, *run.argv, '--resume=auto']
    # In a session of its own, Ctrl-C reaches it through here alone: a second one would end it at once.
    process = subprocess.Popen(command, start_new_session=True)
    family, asked = [psutil.Process(process.pid)], False
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            if stop.received and not asked:
                asked = True
                with suppress(psutil.NoSuchProcess):
                    family += family[0].children(recursive=True)
                with suppress(ProcessLookupError):
                    if hasattr(os, 'killpg'):
                        os.killpg(process.pid, signal.SIGTERM)
                    else:  # on Windows, which cannot ask
                        process.terminate()
        psutil.wait_procs(family[1:])  # a launcher may end before what it has started
        return process.returncode
    finally:  # a second Ctrl-C
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family += family[0].children(recursive=True)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def _check(stop: StopRequest) -> None:
    if stop.received:
        raise Interrupted


def make_models(variants: Sequence[Variant], num_classes: int) -> list[nn.Module]:
    """Makes the variants without trained weights, for inference on the device that there is."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    return [
        hub.create(variant.model, num_classes=num_classes, **variant.args)
        .eval()
        .to(device, memory_format=torch.channels_last)
        for variant in variants
    ]


def make_images(models: Sequence[nn.Module], image_size: int, batch_size: int) -> torch.Tensor:
    """Makes noise (B, 3, H, W) where the models are."""
    like = next(models[0].parameters())
    images = torch.randn(batch_size, 3, image_size, image_size, device=like.device)
    return images.to(memory_format=torch.channels_last)


def measure_speed(
    variants: Sequence[Variant],
    num_classes: int,
    image_size: int,
    batch_size: int,
    turns: int,
    reference: str,
    stop: StopRequest | None = None,
) -> dict:
    """Counts parameters and FLOPs, and times inference of all variants in turns in this process.

    On a GPU it computes in bfloat16, as training does there.

    Returns:
        `rows`, for each variant `num_parameters`, `gflops` of one image (a multiplication and an addition are 2) and,
        unless `turns` is 0, `images_per_second` and `time_ratio`, that of its time to the reference's with 10 and
        90 % of the turns; and what it was measured with.
    """
    rows = []
    for variant in variants:
        with torch.device('meta'):
            model = hub.create(variant.model, num_classes=num_classes, **variant.args)
        rows.append(measure_size(model, (3, image_size, image_size)))
    if not turns:
        return {'rows': rows}
    models = make_models(variants, num_classes)
    images = make_images(models, image_size, batch_size)
    is_gpu = images.device.type == 'cuda'
    print(f'\nTiming inference of {len(models)} models in {turns} turns.', flush=True)
    with torch.inference_mode(), torch.autocast('cuda', torch.bfloat16, enabled=is_gpu):
        number = [variant.name for variant in variants].index(reference)
        loops = [partial(model, images) for model in models]
        timing = time_in_turns(loops, turns, number, None if stop is None else partial(_check, stop))
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
