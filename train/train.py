"""Trains a multi-label model: `accelerate launch train/train.py [--config NAME] [--key value ...]`."""

import msff_timm_cli.startup  # noqa: F401  isort: skip

from msff_timm.training.commands import run_command
from msff_timm.training.train import main

if __name__ == '__main__':
    run_command(main)
