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

from .data.formats import is_image
from .data.images import open_image
from .data.transforms import eval_transform
from .errors import InputError
from .labels import names_of

__all__ = ['Prediction', 'find_photos', 'predict']


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
    """
    transform = eval_transform(timm.data.resolve_model_data_config(model))
    label_names = names_of(model)
    stored = getattr(model, 'thresholds', None) if threshold is None else None
    default = 0.5 if threshold is None else threshold
    thresholds = dict(zip(label_names, stored or [default] * len(label_names), strict=True))
    device = next(model.parameters()).device
    for start in range(0, len(photos), batch_size):
        images, errors = {}, {}
        for photo in photos[start : start + batch_size]:
            try:
                images[photo] = transform(open_image(photo))
            except InputError as e:
                errors[photo] = str(e)
        scores = model(torch.stack(list(images.values())).to(device)).sigmoid().tolist() if images else []
        scores = dict(zip(images, scores, strict=True))
        for photo in photos[start : start + batch_size]:
            if photo in errors:
                yield Prediction(photo, {}, errors[photo])
            else:
                ranked = sorted(zip(label_names, scores[photo], strict=True), key=lambda pair: -pair[1])
                yield Prediction(photo, {name: p for name, p in ranked if p > thresholds[name]})
