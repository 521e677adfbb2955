"""Measures a trained model: `accelerate launch train/evaluate.py --model local-dir:FOLDER [--key value ...]`."""

import sys
from pathlib import Path

import timm
import torch.nn as nn
from accelerate import Accelerator

import msff_timm.data
from config import EvaluateConfig, parse
from engine import fit_thresholds, make_loader, measure, run_command, score, share_cores
from msff_timm import hub
from msff_timm.data import voc
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
    known = model.pretrained_cfg.get('label_names')
    if data.name in ('table', 'folder', 'hub') and data.label_names is None and known:
        data.label_names = list(known)
    with accelerator.main_process_first():  # the others find what it has read
        dataset = data.load(data.split, data.size, data_config['input_size'][-1])
    label_names = msff_timm.data.label_names(dataset)
    if list(known or label_names) != label_names:
        raise InputError(f'{config.model}: its labels are not those of {data.name}.')
    threshold = chosen_threshold(config, model)

    samples = Samples(dataset, eval_transform(data_config))
    loader = accelerator.prepare(make_loader(samples, config.batch_size, data.workers))
    scored = score(accelerator, model.to(accelerator.device), loader)
    if config.submission:
        if accelerator.is_main_process:
            scores = scored.arrays(len(dataset))['scores']
            voc.write_submission(config.submission, dataset['image_id'][:], scores, label_names)
            voc.check_submission(config.submission, data.root)
        accelerator.print(f'{config.submission}: {len(dataset)} images of voc2012 test, 20 classes, comp2.')
    else:
        measures = measure(scored, len(dataset), ap=config.ap, threshold=threshold, bootstrap=config.bootstrap)
        fitted = fit_thresholds(scored, data.definition(data.split)) if config.fit_thresholds else None
        accelerator.print(f'{config.model} on {data.name} {data.split}: {describe(measures, threshold)}')
        if accelerator.is_main_process:
            if fitted:
                print(f'Thresholds of {len(label_names)} labels stored in {hub.set_thresholds(config.model, fitted)}.')
            if config.output:
                run = results(
                    measures,
                    label_names,
                    threshold,
                    model=config.model,
                    data=data.definition(data.split),
                    thresholds=fitted,
                    num_processes=accelerator.num_processes,
                    mixed_precision=accelerator.mixed_precision,
                )
                write_json(run, Path(config.output))
    accelerator.end_training()


def chosen_threshold(config: EvaluateConfig, model: nn.Module) -> float | list[float]:
    """Returns the threshold to measure at: one number, or the model's own for each label."""
    if config.threshold is not None:
        return config.threshold
    if model.thresholds is None:
        raise InputError(f'threshold is null: {config.model} has none of its own; see fit_thresholds.')
    return model.thresholds


if __name__ == '__main__':
    run_command(main)
