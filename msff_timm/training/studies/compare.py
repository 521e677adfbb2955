"""Trains models alike and compares them: `python train/compare.py [--config FILE] [--key value ...]`.

The default configuration is `train/configs/compare/demo.yaml`. Finished runs are not trained again, interrupted ones
are resumed.
"""

import sys

from ...errors import InputError
from ..commands import run_command
from ..parsing import CONFIGS, flatten, parse
from .config import CompareConfig
from .study import run_study
from .tables import Variant, add_published


def main() -> None:
    config = parse(CompareConfig, sys.argv[1:], CONFIGS / 'compare' / 'demo.yaml')
    run_study(config, make_rows(config), config.models[0], 'compare', 'Models trained alike', add_published)


def make_rows(config: CompareConfig) -> list[Variant]:
    """Makes the rows of the table: the models as registered, then those with their own arguments or settings."""
    rows = [Variant(name, name) for name in config.models]
    for name, row in config.rows.items():
        variant = Variant(name, row['model'], row.get('args', {}), settings=dict(flatten(row.get('settings', {}))))
        twin = next((other for other in rows if other.folder == variant.folder), None)
        if twin:
            raise InputError(f'rows.{name} is the same as {twin.name}: remove one of them.')
        rows.append(variant)
    return rows


if __name__ == '__main__':
    run_command(main)
