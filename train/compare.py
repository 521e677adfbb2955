"""Trains models alike and compares them: `python train/compare.py [--config FILE] [--key value ...]`."""

import msff_timm_cli.startup  # noqa: F401  isort: skip

from msff_timm.training.commands import run_command
from msff_timm.training.studies.compare import main

if __name__ == '__main__':
    run_command(main)
