"""From a photo to a batch: opening, the augmentation of section 4.3, and the checkpoint's own preprocessing."""

from pathlib import Path

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ..errors import InputError

__all__ = ['Cutout', 'eval_transform', 'open_image', 'train_transform']


def open_image(path: str | Path) -> Image.Image:
    """Opens a photo upright, in RGB.

    Raises:
        InputError: The file is missing or is not a whole picture.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert('RGB')
    except FileNotFoundError:
        raise InputError(f'{path}: there is no such file.') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        reason = 'not a picture that Pillow can read' if isinstance(e, Image.UnidentifiedImageError) else e
        raise InputError(f'{path}: cannot be read as a picture ({reason}).') from None


def eval_transform(data_config: dict) -> transforms.Compose:
    """Builds a checkpoint's own preprocessing from what `timm.data.resolve_model_data_config` gives."""
    return create_transform(**data_config, is_training=False)


def train_transform(data_config: dict, rand_augment: str | None, cutout: float) -> transforms.Compose:
    """Builds the training transform: the evaluation's resizing, then RandAugment and Cutout (section 4.3).

    Args:
        data_config: As for `eval_transform`; its size, interpolation, mean and std are used.
        rand_augment: timm's RandAugment string, or None for no augmentation of colour and shape.
        cutout: Side of Cutout's hole relative to the picture's, 0 for none.
    """
    size = data_config['input_size'][-2:]
    interpolation = InterpolationMode(data_config['interpolation'])
    mean, std = data_config['mean'], data_config['std']
    steps = [transforms.Resize(size, interpolation)]
    if rand_augment:
        # Geometric operations fill what they uncover with the mean colour, which is 0 after normalisation.
        fill = tuple(round(255 * m) for m in mean)
        steps.append(rand_augment_transform(rand_augment, {'img_mean': fill}))
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    if cutout:
        steps.append(Cutout(cutout))
    return transforms.Compose(steps)


class Cutout:
    """Sets one square, centred anywhere in the picture, to 0 (https://arxiv.org/abs/1708.04552)."""

    def __init__(self, relative_side: float):
        self.relative_side = relative_side

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Maps a normalised picture (C, H, W) to one with the hole."""
        height, width = image.shape[-2:]
        half_h, half_w = round(height * self.relative_side / 2), round(width * self.relative_side / 2)
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        image[:, max(y - half_h, 0) : y + half_h, max(x - half_w, 0) : x + half_w] = 0
        return image
