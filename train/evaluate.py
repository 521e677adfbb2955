"""Evaluates a trained model: `accelerate launch train/evaluate.py --model local-dir:FOLDER [--key value ...]`."""

import msff_timm_cli.startup  # noqa: F401  isort: skip

from msff_timm.training.commands import run_command
from msff_timm.training.evaluate import main

if __name__ == '__main__':
    run_command(main)
