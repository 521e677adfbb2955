"""What is computed for many images: the labels of each, or its embedding."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn as nn
from timm.utils import unwrap_model

from ..errors import InputError
from ..labels import compute_probabilities, display_names, get_calibration
from .embeddings import embed
from .logits import Preprocessing, compute_logits
from .predict import choose_thresholds, select_labels
from .sinks import LABEL_DELIMITER

__all__ = ['EmbedTask', 'PredictTask', 'Task']


class Task:
    """A result for each image.

    Args:
        model: Model in evaluation mode, on any device.

    Attributes:
        suffixes: Suffixes of the files that can hold the results.
        header: JSON values that determine the results; a file of other ones is not continued.
    """

    suffixes = ('.parquet', '.jsonl', '.csv')

    def __init__(self, model: nn.Module):
        self.model = model
        config = {key: value for key, value in Preprocessing(model).data_config.items() if value is not None}
        self.header = {'weights': _digest(model), 'preprocessing': config}

    def check(self, suffix: str) -> None:
        """Checks that a kind of file can hold the results.

        Raises:
            InputError: It cannot.
        """
        if suffix not in self.suffixes:
            raise InputError(f'--output must end in {" or ".join(self.suffixes)}, not in {suffix or "nothing"!r}.')

    def compute(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Computes values (B, D) of preprocessed images (B, C, H, W) by a faster copy of the model."""
        raise NotImplementedError

    def columns(self, values: np.ndarray, is_read: Sequence[bool]) -> dict[str, Sequence | np.ndarray]:
        """Returns the columns of a file for values (N, D); images that could not be read have None there."""
        raise NotImplementedError

    def labels(self, columns: dict) -> Sequence[list[str] | None]:
        """Returns the labels of each image among columns, for sidecars."""
        raise InputError('--sidecar needs labels, which embeddings lack.')


class PredictTask(Task):
    """The labels of each image with their probabilities.

    Args:
        model: Model in evaluation mode, on any device.
        threshold: Probability threshold, see `predict`.
        top_k: Largest number of labels, see `predict`.
        scores: True to add a column with the probability of each label, `score_{label}`.
        flip: True to average the logits of each image and its mirror image.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float | None = None,
        top_k: int | None = None,
        scores: bool = False,
        flip: bool = False,
    ):
        super().__init__(model)
        self.label_names = display_names(model)
        self.thresholds = choose_thresholds(model, threshold, top_k)
        self.top_k, self.scores, self.flip = top_k, scores, flip
        self.header = {
            'command': 'predict',
            'labels': self.label_names,
            'thresholds': self.thresholds,
            'calibration': get_calibration(model),
            'top_k': top_k,
            'scores': scores,
            'flip': flip,
            **self.header,
        }

    def check(self, suffix: str) -> None:
        super().check(suffix)
        for name in self.label_names:
            if suffix == '.csv' and LABEL_DELIMITER in name:
                raise InputError(f'the label {name!r} contains {LABEL_DELIMITER!r}: choose a .jsonl or .parquet file.')

    def compute(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        logits = compute_logits(model, images)
        if self.flip:
            logits = (logits + compute_logits(model, images.flip(-1))) / 2
        return compute_probabilities(self.model, logits)

    def columns(self, values: np.ndarray, is_read: Sequence[bool]) -> dict[str, Sequence | np.ndarray]:
        rows = [
            select_labels(row.tolist(), self.label_names, self.thresholds, self.top_k) if good else None
            for row, good in zip(values, is_read, strict=True)
        ]
        result = {
            'labels': [None if row is None else list(row) for row in rows],
            'probabilities': [None if row is None else list(row.values()) for row in rows],
        }
        if self.scores:
            for name, scores in zip(self.label_names, values.T, strict=True):
                result[f'score_{name}'] = [score if good else None for score, good in zip(scores, is_read, strict=True)]
        return result

    def labels(self, columns: dict) -> Sequence[list[str] | None]:
        return columns['labels']


class EmbedTask(Task):
    """The embedding of each image, see `embed`.

    Args:
        model: Model in evaluation mode, on any device.
    """

    suffixes = ('.parquet',)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.header = {'command': 'embed', **self.header}

    def compute(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return embed(model, images)

    def columns(self, values: np.ndarray, is_read: Sequence[bool]) -> dict[str, Sequence | np.ndarray]:
        return {'embedding': values}


def _digest(model: nn.Module) -> str:
    """Returns a digest of a model's weights, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in unwrap_model(model).state_dict().items():
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f'sha256:{digest.hexdigest()[:32]}'
