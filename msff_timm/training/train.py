"""Trains a multi-label model: `accelerate launch -m msff_timm.training.train [--config NAME] [--key value ...]`.

Without arguments it trains the demo of `train/configs/demo.yaml`; with `--data.root` only, your own data by the recipe
`train/configs/finetune.yaml`.
"""

import shlex
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, is_tensorboard_available

from .. import hub
from ..errors import InputError, fault
from .commands import StopRequest, run_command
from .config import TrainConfig
from .guard import locked, stop_with_launcher
from .loaders import share_cores
from .parsing import CONFIGS, parse
from .report import write_settings
from .trainer import Trainer


def main() -> None:
    recipe = default_recipe(sys.argv[1:])
    config = parse(TrainConfig, sys.argv[1:], default_file=recipe)
    output = Path(config.output)
    check_free(config)
    stop = StopRequest(waits=False)
    stop_with_launcher(stop)
    accelerator = make_accelerator(config)
    if recipe.stem == 'finetune':
        accelerator.print('data.root without --config and data.name: training by the recipe finetune')
    if line := config.data.recognise():
        accelerator.print(line)
    with locked(accelerator, output):
        check_free(config)  # another run may have written to the folder before it was locked
        accelerator.wait_for_everyone()
        if config.overwrite:
            for part in ('checkpoints', 'tensorboard', 'features'):
                shutil.rmtree(output / part, ignore_errors=True)
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_settings(output, config)
        accelerator.init_trackers('tensorboard')  # TensorBoard's folder; other trackers take it as the project
        trainer = Trainer(config, accelerator, stop)
        try:
            trainer.train()
        except Exception as e:
            if (line := fault(e)) is None:
                raise
            raise InputError(f'{line} The run in {output} has stopped: {trainer.checkpoints.advice()}.') from e
        accelerator.end_training()
        if config.push_to and accelerator.is_main_process:
            publish(config)


def default_recipe(argv: list[str]) -> Path:
    """Returns the recipe without `--config`: fine-tuning if the command line names only where the data are."""
    keys = {argument[2:].partition('=')[0].replace('-', '_') for argument in argv if argument.startswith('--')}
    is_own = 'data.root' in keys and keys.isdisjoint(['config', 'data.name'])
    return CONFIGS / f'{"finetune" if is_own else "demo"}.yaml'


def check_free(config: TrainConfig) -> None:
    """Checks that no run is overwritten by mistake.

    Raises:
        InputError: The output folder holds a run, and neither `overwrite` nor `resume` is set.
    """
    output = Path(config.output)
    holds_a_run = (output / 'config.json').exists() or any((output / 'checkpoints').glob('step-*'))
    if holds_a_run and not (config.overwrite or config.resume):
        raise InputError(
            f'{output} holds a run already: choose another --output, --resume auto to resume it, or --overwrite true.'
        )


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Creates the accelerator of this process from the settings and the launcher's environment."""
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


def publish(config: TrainConfig) -> None:
    """Publishes the finished run.

    Raises:
        InputError: It cannot be published; the run itself is complete.
    """
    assert config.push_to is not None
    try:
        pushed = hub.push(config.output, config.push_to, private=config.push_private)
    except InputError as e:
        private = ' --private' if config.push_private else ''
        command = f'msff-timm push {shlex.quote(config.output)} {config.push_to}{private}'
        raise InputError(f'{e} The run in {config.output} is complete; `{command}` publishes it.') from e
    print(f'\nPublished at {pushed.url}; a fresh download gives the same logits.')


if __name__ == '__main__':
    run_command(main)
