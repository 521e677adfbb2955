"""Results of runs that were never trained, and settings of the smallest real runs."""

from pathlib import Path

import numpy as np

from msff_timm import metrics
from msff_timm.labels import VOC_LABELS
from msff_timm.results import Results
from msff_timm.training.config import TrainConfig, parse
from msff_timm.training.identity import about_run

RECIPE = Path(__file__).parents[1] / 'train' / 'configs' / 'demo.yaml'
TINY = {
    'data.train_size': 32, 'data.eval_size': 24, 'data.image_size': 32, 'data.workers': 0, 'optim.batch_size': 16,
    'optim.epochs': 1,
}  # fmt: skip
TINY = [f'--settings.{key}={value}' for key, value in TINY.items()]


def made_up(mAP: float, seed: int = 0, data: str = 'voc2007', num_images: int = 40, top_k: int = 3) -> Results:
    """Returns results as a run writes them, with random scores, except for mAP."""
    rng = np.random.default_rng(seed)
    targets = rng.random((num_images, 20)) < 0.3
    evaluated = metrics.evaluate(rng.random((num_images, 20)), targets, areas=targets * 0.05, top_k=top_k)
    evaluated['mAP'] = mAP
    definition = {'name': data, 'split': 'test', 'trained_on': 'trainval'}
    config = parse(TrainConfig, [f'--output=runs/made-up-{mAP}', f'--seed={seed}'], RECIPE)
    return Results.from_metrics(
        evaluated,
        list(VOC_LABELS),
        model='msff_test_resnet',
        data=definition,
        weights='exponential moving average',
        config=about_run(config, [], {})['config'],
        git_commit='c0ffee',
        git_dirty=False,
        devices=['cpu'],
        num_processes=1,
        mixed_precision='no',
        peak_bytes=2**30,
        seconds=60.0,
    )
