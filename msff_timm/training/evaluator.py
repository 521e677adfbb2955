"""Evaluation over all processes: scores, metrics and fitted thresholds."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch.utils.data import DataLoader

from .. import calibration, thresholds
from ..errors import InputError
from .accumulator import MetricAccumulator
from .commands import Stopped, StopRequest

__all__ = ['FOLDS', 'compute_metrics', 'fit_thresholds', 'measure_calibration', 'score']

FOLDS = 5  # for the metrics of fitted thresholds and calibrated probabilities
# What `calibrated_by` of `Results.calibration` says
OUT_OF_FOLD = 'temperatures and biases fitted without the fold of each image'
OWN = "the model's own temperatures and biases"


@torch.no_grad()  # inference_mode makes tensors that older versions of PyTorch do not gather
def score(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader, stop: StopRequest | None = None
) -> MetricAccumulator:
    """Computes the probabilities of all images. Every process returns all of them, with their targets.

    Args:
        accelerator: Accelerator of this process.
        model: Model from the loader's images to logits (B, K); it is set to evaluation mode.
        loader: Loader of `Samples`, prepared by the accelerator.
        stop: Request to stop the run.

    Raises:
        Stopped: A stop was requested in any process.
        InputError: A logit is not finite.
    """
    model.eval()
    scored = MetricAccumulator()
    samples: Any = loader.dataset  # with images, or with rows of a cache instead
    for batch in loader:
        with accelerator.autocast():
            logits = model(batch['image'])
        stopping = torch.tensor([stop is not None and stop.received is not None], device=accelerator.device)
        index, logits, stopping = accelerator.gather((batch['index'], logits.float(), stopping))
        if stopping.any():
            raise Stopped
        index, finite = index.cpu().numpy(), logits.isfinite().all(1).cpu().numpy()
        if not finite.all():
            image_id = samples.dataset[int(index[~finite][0])]['image_id']
            overflow = '' if accelerator.mixed_precision == 'no' else f', or {accelerator.mixed_precision} overflows'
            raise InputError(
                f"image {image_id}: the model's logits are not finite: its weights hold NaN or infinite"
                f' values{overflow}; use the weights of an earlier checkpoint.'
            )
        scores = logits.sigmoid().cpu().numpy()
        targets = samples.targets[index]
        areas = None if samples.areas is None else samples.areas[index]
        scored.update(index, scores, targets == 1, targets == -1, areas)
    return scored


def compute_metrics(scored: MetricAccumulator, num_images: int, **options: Any) -> dict:
    """Computes the metrics of scored images; see `msff_timm.metrics.evaluate` for the options.

    Raises:
        InputError: No label has both a positive and a negative, or an option is out of range.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.* fewer than')  # `report.describe` counts these labels
        try:
            return scored.compute(num_images, **options)
        except ValueError as e:
            raise InputError(f'the images cannot be evaluated: {e}') from None


def fit_thresholds(scored: MetricAccumulator, data: dict, target: str = 'f1') -> tuple[dict | None, dict | None]:
    """Fits the thresholds, temperatures and biases that `hub.save` stores.

    Args:
        scored: Scores of `score`; at least one label has both a positive and a negative.
        data: Description of the images, to be stored with the thresholds.
        target: Target of the thresholds, see `msff_timm.thresholds.fit`.

    Returns:
        The thresholds, and the calibration out of fold for `Results.calibration`; None for fewer images than folds.
    """
    arrays = scored.arrays()
    num_images = len(arrays['scores'])
    if num_images < FOLDS:
        return None, None
    entries = arrays['scores'], arrays['targets'], arrays['ignore']
    fitted, calibrated = thresholds.fit(*entries, FOLDS, target=target), calibration.fit(*entries, FOLDS)
    values = {'temperatures': calibrated.temperatures, 'biases': calibrated.biases}
    stored = {**asdict(fitted), **values, 'folds': FOLDS, 'data': data, 'num_images': num_images}
    return stored, {'calibrated_by': OUT_OF_FOLD, **calibrated.out_of_fold}


def measure_calibration(scored: MetricAccumulator, own: Sequence[list[float]] | None) -> dict:
    """Measures the calibration of the model's probabilities, for `Results.calibration`.

    Args:
        scored: Scores as for `fit_thresholds`.
        own: The model's own temperatures and biases of the scored labels; None for none.
    """
    arrays = scored.arrays()
    scores, entries = arrays['scores'], (arrays['targets'], arrays['ignore'])
    measured = {'uncalibrated': calibration.measure(scores, *entries)}
    if own is None:
        return {'calibrated_by': None, **measured}
    calibrated = calibration.measure(calibration.calibrate(scores, temperatures=own[0], biases=own[1]), *entries)
    return {'calibrated_by': OWN, **measured, 'calibrated': calibrated}
