"""Labels of images with their probabilities."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn

from ..data.images import open_image
from ..errors import InputError
from ..labels import compute_probabilities, decision_thresholds, display_names
from .logits import Preprocessing, compute_logits
from .sources import find_images

__all__ = ['Prediction', 'choose_thresholds', 'find_images', 'predict', 'select_labels']


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


def choose_thresholds(model: nn.Module, threshold: float | None = None, top_k: int | None = None) -> list[float]:
    """Returns the threshold of each label, see `predict`."""
    return decision_thresholds(model, 0.0 if threshold is None and top_k is not None else threshold)


def select_labels(
    probabilities: Sequence[float], label_names: Sequence[str], thresholds: Sequence[float], top_k: int | None = None
) -> dict[str, float]:
    """Returns the probabilities (K,) above their thresholds by label, in descending order, at most `top_k` of them."""
    rows = zip(label_names, probabilities, thresholds, strict=True)
    present = {name: probability for name, probability, least in rows if probability > least}
    return dict(sorted(present.items(), key=lambda item: -item[1])[:top_k])


def predict(
    model: nn.Module,
    images: Sequence[str],
    threshold: float | None = None,
    batch_size: int = 8,
    top_k: int | None = None,
) -> Iterator[Prediction]:
    """Predicts the labels of images, preprocessed as the model's own configuration says.

    Args:
        model: Model from `msff_timm.load` or `timm.create_model`, in evaluation mode, on any device.
        images: Paths of the images.
        threshold: Probability above which a label is predicted; None for each label's own threshold, or 0.5 where the
            model has none.
        batch_size: Number of images computed at once.
        top_k: Largest number of labels for an image: the most probable ones, whatever the model's own thresholds are.
            None for no limit.

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
    thresholds = choose_thresholds(model, threshold, top_k)
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
            yield Prediction(image, select_labels(probabilities[image], label_names, thresholds, top_k))


if __name__ == '__main__':  # accelerate launch -m msff_timm.inference.predict ...
    from msff_timm_cli.commands import main

    sys.exit(main(['predict', *sys.argv[1:]]))
