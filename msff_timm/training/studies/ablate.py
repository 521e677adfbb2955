"""Repeats an ablation of the paper: `python train/ablate.py --table {4,5,6,7,fig5} [--config FILE] [--key value ...]`.

The default configuration is `train/configs/ablate/demo.yaml`. Finished runs are not trained again, interrupted ones are
resumed; the tables share the run of the paper's own choice.
"""

import sys
from functools import partial
from typing import Any

import torch

from ..commands import run_command
from ..parsing import CONFIGS, parse
from .config import AblateConfig
from .speed import time_in_turns
from .study import make_inputs, run_study
from .tables import Variant, read_paper

INTERPOLATION = '6'  # the table that compares times, too


def main() -> None:
    config = parse(AblateConfig, sys.argv[1:], CONFIGS / 'ablate' / 'demo.yaml')
    variants, part = make_rows(config.table, config.model)
    reference = next(variant.name for variant in variants if not variant.args)

    def extend(table: dict) -> None:
        table['paper_of'] = f'{part["where"]}; {part["note"]}' if 'note' in part else part['where']
        if config.table == INTERPOLATION and config.turns:
            add_times(table, variants, reference, config)

    title = f'{part["where"].partition(",")[0]}, repeated: {part["about"]}'
    run_study(config, variants, reference, key_of(config.table), title, extend)


def key_of(table: str) -> str:
    """Converts the setting `table` to the key in `hub_cards/paper.yaml`: 4 to table4, fig5 to fig5."""
    return f'table{table}' if table.isdigit() else table


def make_rows(table: str, model: str) -> tuple[list[Variant], dict]:
    """Reads the variants of a table of the paper, with the paper's figures, and the table's description."""
    part = read_paper()[key_of(table)]
    figures = ('mAP', 'million_parameters')
    variants = [
        Variant(row['name'], model, row['args'], {key: row[key] for key in figures if key in row})
        for row in part['rows']
    ]
    return variants, part


def add_times(table: dict, variants: list[Variant], reference: str, config: AblateConfig) -> None:
    """Times the scale attention of each variant in turns, in float32, on feature maps of the training image size."""
    size = table['recipe']['data']['image_size']
    models, images = make_inputs(variants, table['num_classes'], size, config.batch_size)
    ours: list[Any] = [*models]  # of this package: they have a `scale_attention`
    with torch.inference_mode():
        scales = ours[0].projection(ours[0].backbone(images))
        functions = [partial(model.scale_attention, scales) for model in ours]
        number = [variant.name for variant in variants].index(reference)
        timing = time_in_turns(functions, config.turns, number)
    for row, seconds, (ratio, *spread) in zip(table['rows'], timing.seconds, timing.ratio, strict=True):
        row['scale_attention_ms'] = 1000 * seconds / config.batch_size
        row |= {'scale_attention_ratio': ratio, 'scale_attention_ratio_10_to_90_percent': spread}


if __name__ == '__main__':
    run_command(main)
