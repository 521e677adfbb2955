"""Measures a trained model: `accelerate launch train/evaluate.py --model local-dir:FOLDER [--key value ...]`."""

import sys
from pathlib import Path

import timm
from accelerate import Accelerator

import msff_timm.data
from config import EvaluateConfig, parse
from engine import make_loader, measure, run_command, share_cores
from msff_timm import hub
from msff_timm.data.samples import Samples
from msff_timm.data.transforms import eval_transform
from msff_timm.errors import InputError
from report import describe, results, write_json


def main() -> None:
    config = parse(EvaluateConfig, sys.argv[1:])
    accelerator = Accelerator()
    share_cores(accelerator, config.data.workers)

    model = hub.load(config.model)
    data_config = timm.data.resolve_model_data_config(model)
    data = config.data
    dataset = msff_timm.data.load(data.name, data.split, data.root, data.size, data_config['input_size'][-1])
    label_names = msff_timm.data.label_names(dataset)
    if list(model.pretrained_cfg.get('label_names', label_names)) != label_names:
        raise InputError(f'{config.model}: its labels are not those of {data.name}.')

    samples = Samples(dataset, eval_transform(data_config))
    loader = accelerator.prepare(make_loader(samples, config.batch_size, data.workers, training=False))
    measures = measure(accelerator, model.to(accelerator.device), loader)
    accelerator.print(f'{config.model} on {data.name} {data.split}: {describe(measures)}')
    if config.output and accelerator.is_main_process:
        run = results(
            measures,
            label_names,
            model=config.model,
            data={'name': data.name, 'split': data.split},
            num_processes=accelerator.num_processes,
            mixed_precision=accelerator.mixed_precision,
        )
        write_json(run, Path(config.output))
    accelerator.end_training()


if __name__ == '__main__':
    run_command(main)
