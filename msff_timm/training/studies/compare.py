"""Compares models that are trained alike: `python train/compare.py [--config FILE] [--key value ...]`.

Without arguments it compares those of `train/configs/compare/demo.yaml`. Runs that are at their end are not trained
again; one that was broken off goes on from where it stopped.
"""

import msff_timm_cli.startup  # noqa: F401  isort: skip

import sys

from ...errors import InputError
from ..commands import run_command
from ..config import CONFIGS, CompareConfig, flatten, parse
from .tables import Variant, read_paper, read_published
from .variants import compare


def main() -> None:
    default = CONFIGS / 'compare' / 'demo.yaml'
    config = parse(CompareConfig, sys.argv[1:], default)
    compare(config, rows_of(config), config.models[0], 'compare', 'Models that are trained alike', more=lay_beside)


def rows_of(config: CompareConfig) -> list[Variant]:
    """Makes the rows of the table: models as they are registered, then those with arguments or settings."""
    rows = [Variant(name, name) for name in config.models]
    for name, row in config.rows.items():
        own = dict(flatten(row.get('settings', {})))
        rows.append(Variant(name, row['model'], row.get('args', {}), settings=own))
        twin = next((other for other in rows[:-1] if other.folder == rows[-1].folder), None)
        if twin:
            raise InputError(f'rows.{name} is the same as {twin.name}: leave one of them out.')
    return rows


def lay_beside(table: dict) -> None:
    """Adds published figures: those of the same data, or all of the paper's Tables 1 to 3 where none are."""
    others = read_published()
    table['published'] = {name: part for name, part in others.items() if part['measured_on'] == table['data']['name']}
    paper = read_paper()
    parts = {name: paper[name] for name in ('table1', 'table2', 'table3')}
    same = {name: part for name, part in parts.items() if part['measured_on'] == table['data']['name']}
    table['paper'] = same if same or table['published'] else parts


if __name__ == '__main__':
    run_command(main)
