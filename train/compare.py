"""Compares models that are trained alike: `python train/compare.py [--config FILE] [--key value ...]`.

Without arguments it compares those of `train/configs/compare/demo.yaml`. Runs that are at their end are not trained
again; one that was broken off goes on from where it stopped.
"""

import interruption  # noqa: F401  isort: skip

import sys
from pathlib import Path

from config import CompareConfig, parse
from engine import run_command
from tables import Variant, read_paper
from variants import compare


def main() -> None:
    default = Path(__file__).parent / 'configs' / 'compare' / 'demo.yaml'
    config = parse(CompareConfig, sys.argv[1:], default)
    variants = [Variant(name, name) for name in config.models]
    compare(config, variants, config.models[0], 'compare', 'Models that are trained alike', more=lay_beside)


def lay_beside(table: dict) -> None:
    """Adds the paper's Tables 1 to 3: those of the same data, or all of them where none is."""
    paper = read_paper()
    parts = {name: paper[name] for name in ('table1', 'table2', 'table3')}
    same = {name: part for name, part in parts.items() if part['measured_on'] == table['data']['name']}
    table['paper'] = same or parts


if __name__ == '__main__':
    run_command(main)
