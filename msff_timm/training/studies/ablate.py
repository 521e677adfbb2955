"""Repeats an ablation of the paper: `python train/ablate.py --table {4,5,6,7,fig5} [--config FILE] [--key value ...]`.

Without `--config` it does so at the demo's scale, as `train/configs/ablate/demo.yaml` has it. Runs that are at their
end are not trained again, the paper's own choice once for all tables.
"""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import sys
from functools import partial

import torch

from ..commands import run_command
from ..config import CONFIGS, AblateConfig, parse
from .speed import time_in_turns
from .tables import Variant, read_paper
from .variants import compare, make_images, make_models

INTERPOLATION = '6'  # the table that also tells how long each takes


def main() -> None:
    default = CONFIGS / 'ablate' / 'demo.yaml'
    config = parse(AblateConfig, sys.argv[1:], default)
    variants, part = rows_of(config.table, config.model)
    reference = next(variant.name for variant in variants if not variant.args)

    def more(table: dict) -> None:
        table['paper_of'] = f'{part["where"]}; {part["note"]}' if 'note' in part else part['where']
        if config.table == INTERPOLATION and config.turns:
            add_times(table, variants, reference, config)

    name = f'table{config.table}' if config.table.isdigit() else config.table
    title = f'{part["where"].partition(",")[0]}, repeated: {part["about"]}'
    compare(config, variants, reference, name, title, more)


def rows_of(table: str, model: str) -> tuple[list[Variant], dict]:
    """Reads which variants a table of the paper compares, with the paper's figures, and what is told of the table."""
    paper = read_paper()
    part = paper[f'table{table}' if table.isdigit() else table]
    figures = ('mAP', 'million_parameters')
    variants = [
        Variant(row['name'], model, row['args'], {key: row[key] for key in figures if key in row})
        for row in part['rows']
    ]
    return variants, part


def add_times(table: dict, variants: list[Variant], reference: str, config: AblateConfig) -> None:
    """Measures how long the scale attention takes with each interpolation, in turns, on maps of training's size."""
    models = make_models(variants, table['num_classes'])
    images = make_images(models, table['recipe']['data']['image_size'], config.batch_size)
    with torch.inference_mode():  # in float32
        scales = models[0].projection(models[0].backbone(images))
        loops = [partial(model.scale_attention, scales) for model in models]
        number = [variant.name for variant in variants].index(reference)
        timing = time_in_turns(loops, config.turns, number)
    for row, seconds, (ratio, *spread) in zip(table['rows'], timing.seconds, timing.ratio, strict=True):
        row['scale_attention_ms'] = 1000 * seconds / config.batch_size
        row |= {'scale_attention_ratio': ratio, 'scale_attention_ratio_10_to_90_percent': spread}


if __name__ == '__main__':
    run_command(main)
