"""What a run leaves for use in its folder: weights, results, curves and the report."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import isfinite
from pathlib import Path

import datasets
import torch.nn as nn
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from .. import hub
from ..data.records import file_digest
from ..errors import InputError, one_line
from ..results import Results, write_json
from .checkpoint import WEIGHTS, Checkpoints, Progress
from .figures import plot_curves
from .report import write_report
from .storage import sync

__all__ = ['FREE_DISK', 'RunFolder']

FREE_DISK = 'make room, then --resume auto finishes the run.'


class RunFolder:
    """The weights of the best epoch and their results. Only the main process calls these methods, but `refuse_step`.

    Results never stand beside the weights of another epoch: `best['files']` holds the digests of the files that were
    written, and results are written only if the files in the folder have them.

    Args:
        path: Folder of the run.
        label_names: Label names in the order of the logits.
        data_config: Preprocessing of the model.
        training: Description of the training: its transforms, and the images that it held out.
        checkpoints: Checkpoints of the run, which restore lost weights.
    """

    def __init__(self, path: Path, label_names: list[str], data_config: dict, training: dict, checkpoints: Checkpoints):
        self.path = path
        self.label_names = label_names
        self.data_config = data_config
        self.training = training
        self.checkpoints = checkpoints

    @contextmanager
    def reporting_faults(self) -> Iterator[None]:
        """Reports a full disk instead of ending the run: the next epoch writes the files again."""
        try:
            yield
        except (OSError, SafetensorError) as e:
            tqdm.write(f'{self.path}: cannot be written to ({one_line(e)}); the run continues.', file=sys.stderr)

    def save_weights(self, model: nn.Module, best: dict) -> None:
        """Saves weights with their configuration and thresholds, and records the digests of the files in `best`."""
        thresholds = best['results']['thresholds']
        hub.save(model, self.path, self.label_names, self.data_config, self.training, thresholds)
        for name in (WEIGHTS, 'config.json'):
            sync(self.path / name)
        sync(self.path)
        best['files'] = self._digests()

    def has_weights(self, best: dict) -> bool:
        """Returns True if the folder holds the weights of the best epoch as they were saved."""
        try:
            return self._digests() == best['files']
        except OSError:
            return False

    def _digests(self) -> dict[str, str]:
        return {name: file_digest(self.path / name).hex() for name in (WEIGHTS, 'config.json')}

    def restore_weights(self, model: nn.Module, best: dict) -> bool:
        """Makes sure that the folder holds the weights of the best epoch; returns False if it cannot.

        Args:
            model: Model with the architecture of the run.
            best: Best epoch.
        """
        if self.has_weights(best):
            return True
        weights = self.checkpoints.ema_weights(best['steps_done'])
        if weights is None:
            return False
        model = deepcopy(model)
        model.load_state_dict(weights)
        with self.reporting_faults():
            self.save_weights(model, best)
        if not self.has_weights(best):
            return False
        tqdm.write(
            f'{self.path}: {WEIGHTS} and config.json did not belong to epoch {best["epoch"]}, the epoch of the results;'
            ' they were restored from its checkpoint, with the thresholds of that epoch.',
            file=sys.stderr,
        )
        return True

    def recover(self, model: nn.Module, best: dict) -> bool:
        """Restores the weights of the best epoch when a run is resumed; returns False if they are gone."""
        if self.restore_weights(model, best) or self.checkpoints.ema_weights(best['steps_done']) is not None:
            return True
        tqdm.write(
            f'{self.path}: the weights of epoch {best["epoch"]}, the best so far, are gone; the best of the following'
            ' epochs is kept.',
            file=sys.stderr,
        )
        return False

    def write_epoch(self, best: dict, results: Results) -> None:
        """Writes results and curves after an epoch."""
        with self.reporting_faults():
            if self.has_weights(best) or not (self.path / WEIGHTS).exists():
                self.write_results(results)
        with self.reporting_faults():
            plot_curves(results.history or [], self.path / 'curves.png')

    def write_results(self, results: Results) -> None:
        """Writes `results.json`."""
        results.to_json(self.path / 'results.json')
        sync(self.path / 'results.json')

    def write_report(self, results: Results, eval_set: datasets.Dataset) -> None:
        """Writes `results.json` and `report.md` at the end of the run.

        Raises:
            InputError: The disk is full.
        """
        try:
            self.write_results(results)
            write_report(self.path, results, eval_set)
        except OSError as e:
            raise InputError(f'{self.path}: cannot be written to ({one_line(e)}); {FREE_DISK}') from None

    def refuse_step(
        self, progress: Progress, batches: list[dict], train_set: datasets.Dataset, loss: float, grad_norm: float
    ) -> None:
        """Saves the micro-batches of a step whose loss or gradient is not finite. Every process calls it.

        Raises:
            InputError: Always: the run cannot continue.
        """
        accelerator, path = self.checkpoints.accelerator, self.path / 'not_finite.json'
        tensors = {
            f'{key}_{i}': batch[key].contiguous() for i, batch in enumerate(batches) for key in ('image', 'target')
        }
        save_file(tensors, self.path / f'not_finite_{accelerator.process_index}.safetensors')
        rows = [int(row) for batch in batches for row in batch['index']]
        is_stream = isinstance(train_set, datasets.IterableDataset)
        ids = gather_object([] if is_stream else train_set.select(rows)['image_id'][:])
        if accelerator.is_main_process:
            where = {'epoch': progress.epoch, 'step': progress.step, 'steps_done': progress.steps_done}
            write_json({**where, 'loss': f'{loss}', 'grad_norm': f'{grad_norm}', 'image_ids': ids}, path)
        fault = f'the loss of a step is {loss}' if not isfinite(loss) else f'the gradient of a step is {grad_norm}'
        raise InputError(
            f'epoch {progress.epoch}: {fault}; {path} lists its images, and not_finite_*.safetensors beside it hold'
            f' them. A lower optim.lr may help; {self.checkpoints.advice()}.'
        )
