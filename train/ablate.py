"""Repeats an ablation of the paper: `python train/ablate.py --table {4,5,6,7,fig5} [--key value ...]`."""

import msff_timm_cli.startup  # noqa: F401  isort: skip

from msff_timm.training.commands import run_command
from msff_timm.training.studies.ablate import main

if __name__ == '__main__':
    run_command(main)
