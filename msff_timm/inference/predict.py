"""Labels with probabilities for photos."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn as nn
from PIL import Image
from timm.utils import unwrap_model

from ..data.formats import is_image
from ..data.images import open_image
from ..data.transforms import eval_transform
from ..errors import InputError
from ..labels import display_names, get_thresholds

__all__ = ['Prediction', 'check_finite', 'find_photos', 'predict']


@dataclass(frozen=True)
class Prediction:
    """What a model says of one photo.

    Attributes:
        photo: The photo's path.
        labels: Probability of each label above the threshold, the most probable first.
        error: Why the photo could not be read, or None.
    """

    photo: str
    labels: dict[str, float]
    error: str | None = None


def find_photos(patterns: Sequence[str]) -> list[str]:
    """Lists the images that files, folders (not their subfolders) and globs name, in the order given.

    Of a folder or a glob those files count that are an image or a camera's raw file by their name or content; hidden
    files, documents and videos do not. A file that is named stays in the list whatever it is, as does an image that
    cannot be read: `predict` reports it.

    Raises:
        InputError: A folder cannot be read or holds no image, or a glob matches none.
    """
    Image.init()
    photos = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            try:
                found = [str(path) for path in sorted(Path(pattern).iterdir()) if is_image(path)]
            except OSError as e:
                raise InputError(f'{pattern}: cannot be read ({e.strerror}).') from None
        elif glob.has_magic(pattern) and not os.path.lexists(pattern):
            found = [path for path in sorted(glob.glob(pattern, recursive=True)) if is_image(Path(path))]
        else:
            found = [pattern]
        if not found:
            raise InputError(f'{pattern}: no photo is there.')
        photos += found
    return photos


@torch.inference_mode()
def predict(
    model: nn.Module, photos: Sequence[str], threshold: float | None = None, batch_size: int = 8
) -> Iterator[Prediction]:
    """Predicts the labels of photos, preprocessed as the model's own configuration says.

    Args:
        model: What `msff_timm.hub.load` or `timm.create_model` gives, in evaluation mode, on any device.
        photos: Paths.
        threshold: Labels of a probability above it are given; None for each label's own, where `hub.load` found any,
            or else 0.5.
        batch_size: Photos in one pass.

    Yields:
        One prediction for each photo, in order; a photo that cannot be read has an `error` and no labels.

    Raises:
        InputError: The model takes no photos, or gives logits that are not finite.
    """
    transform = eval_transform(timm.data.resolve_input_data_config(unwrap_model(model)))
    label_names = display_names(model)
    stored = get_thresholds(model) if threshold is None else None
    default = 0.5 if threshold is None else threshold
    thresholds = dict(zip(label_names, stored or [default] * len(label_names), strict=True))
    parameter = next(model.parameters())
    for start in range(0, len(photos), batch_size):
        images, errors = {}, {}
        for photo in photos[start : start + batch_size]:
            try:
                images[photo] = transform(open_image(photo))
            except InputError as e:
                errors[photo] = str(e)
        scores = []
        if images:
            logits = model(torch.stack(list(images.values())).to(parameter))
            check_finite(model, logits)
            scores = logits.float().sigmoid().tolist()
        scores = dict(zip(images, scores, strict=True))
        for photo in photos[start : start + batch_size]:
            if photo in errors:
                yield Prediction(photo, {}, errors[photo])
            else:
                ranked = sorted(zip(label_names, scores[photo], strict=True), key=lambda pair: -pair[1])
                yield Prediction(photo, {name: p for name, p in ranked if p > thresholds[name]})


def check_finite(model: nn.Module, logits: torch.Tensor) -> None:
    """Checks logits before anything is made of them.

    Raises:
        InputError: They are not finite; the message names the weights that are not, if any.
    """
    if logits.isfinite().all():
        return
    weights = unwrap_model(model).state_dict().items()
    damaged = [name for name, tensor in weights if tensor.is_floating_point() and not tensor.isfinite().all()]
    why = f'{damaged[0]} holds NaN or infinity' if damaged else f'numbers are too large for {logits.dtype}'
    mend = 'load or train other weights' if damaged else 'compute in float32'
    raise InputError(f'the logits of the model are not finite ({why}): {mend}.')
