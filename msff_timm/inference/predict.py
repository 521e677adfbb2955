"""Labels of images with their probabilities."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from PIL import Image

from ..data.formats import is_image
from ..data.images import open_image
from ..errors import InputError, one_line
from ..labels import compute_probabilities, decision_thresholds, display_names
from .logits import Preprocessing, compute_logits

__all__ = ['Prediction', 'find_images', 'predict']


@dataclass(frozen=True)
class Prediction:
    """Labels that a model predicts for one image.

    Attributes:
        image: Path of the image.
        labels: Probability of each label above its threshold, in descending order.
        error: Reason why the image could not be read, or None.

    Examples:
        >>> Prediction('dog.jpg', {'dog': 0.9, 'sofa': 0.8}).labels['dog']
        0.9
    """

    image: str
    labels: dict[str, float]
    error: str | None = None


def find_images(patterns: Sequence[str]) -> list[str]:
    """Lists the images that files, folders and globs name, in the given order.

    A folder (without its subfolders) or a glob contributes files that are an image or a camera's raw file by their name
    or content, but no hidden files, documents or videos. A file named directly is always listed, and so is an image
    that cannot be read: `predict` reports it.

    Raises:
        InputError: A folder cannot be read or holds no image, or a glob matches none.

    Examples:
        >>> Image.new('RGB', (8, 8)).save('1.png')
        >>> Path('notes.txt').touch()
        >>> find_images(['.'])
        ['1.png']
    """
    Image.init()
    images = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            try:
                found = [str(path) for path in sorted(Path(pattern).iterdir()) if is_image(path)]
            except OSError as e:
                raise InputError(f'{pattern}: cannot be read ({one_line(e)}).') from None
        elif glob.has_magic(pattern) and not os.path.lexists(pattern):
            found = [path for path in sorted(glob.glob(pattern, recursive=True)) if is_image(Path(path))]
        else:
            found = [pattern]
        if not found:
            raise InputError(f'{pattern}: no image found.')
        images += found
    return images


def predict(
    model: nn.Module, images: Sequence[str], threshold: float | None = None, batch_size: int = 8
) -> Iterator[Prediction]:
    """Predicts the labels of images, preprocessed as the model's own configuration says.

    Args:
        model: Model from `msff_timm.load` or `timm.create_model`, in evaluation mode, on any device.
        images: Paths of the images.
        threshold: Probability above which a label is predicted; None for each label's own threshold, or 0.5 where the
            model has none.
        batch_size: Number of images computed at once.

    Yields:
        One prediction per image, in order; for an image that cannot be read, with an `error` and without labels.

    Raises:
        InputError: The model takes neither 1 nor 3 channels, or its logits are not finite.

    Examples:
        >>> from msff_timm import data, hub
        >>> data.load('scenes', 'train', size=1)[0]['image'].save('scene.png')
        >>> for prediction in predict(hub.load('msff_test_resnet'), ['scene.png']):
        ...     print(prediction.image, {name: round(p, 1) for name, p in prediction.labels.items()})
        scene.png {'cross': 1.0, 'square': 1.0, 'hourglass': 1.0, 'bolt': 0.7}
    """
    transform = Preprocessing(model).transform
    label_names = display_names(model)
    thresholds = decision_thresholds(model, threshold)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels, errors = {}, {}
        for image in batch:
            try:
                pixels[image] = transform(open_image(image))
            except InputError as e:
                errors[image] = str(e)
        probabilities = {}
        if pixels:
            logits = compute_logits(model, torch.stack(list(pixels.values())))
            probabilities = dict(zip(pixels, compute_probabilities(model, logits).tolist(), strict=True))
        for image in batch:
            if image in errors:
                yield Prediction(image, {}, errors[image])
                continue
            rows = zip(label_names, probabilities[image], thresholds, strict=True)
            present = {name: probability for name, probability, least in rows if probability > least}
            yield Prediction(image, dict(sorted(present.items(), key=lambda item: -item[1])))
