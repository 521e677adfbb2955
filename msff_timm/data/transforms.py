"""Transforms from images to pixels: the training augmentation of section 4.3, and the preprocessing of a model."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..errors import InputError
from .images import open_image

__all__ = [
    'Cutout',
    'Normalize',
    'TrainTransform',
    'describe_transforms',
    'eval_transform',
    'open_image',
    'train_transform',
]

# Interpolation of the rotations, shears and shifts of RandAugment: the default of torchvision, and three times as fast
# as the random choice of bilinear or bicubic in timm.
GEOMETRY = Image.Resampling.NEAREST

# Stricter than timm, which ignores unknown sections and fails on others without a message.
RAND_AUGMENT = re.compile(
    r'rand(-(m\d+|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*'
)


def eval_transform(data_config: dict, as_bytes: bool = False) -> transforms.Compose:
    """Returns the preprocessing of a model.

    Args:
        data_config: Configuration of `timm.data.resolve_model_data_config`. With one channel, images become gray.
        as_bytes: True to return an array of bytes (C, H, W) and leave the normalisation to `Normalize`.

    Raises:
        InputError: The model has neither 1 nor 3 input channels.
    """
    channels = data_config['input_size'][0]
    if channels not in (1, 3):
        raise InputError(
            f'the model takes {channels} channels, and images are read with 3 (or 1 for gray): call it with tensors.'
        )
    transform = create_transform(**data_config, is_training=False, use_prefetcher=as_bytes)
    return transform if channels == 3 else transforms.Compose([transforms.Grayscale(), *transform.transforms])


class Normalize(nn.Module):
    """Maps bytes to the input of a model, on their device: bytes are copied there four times as fast as floats.

    Args:
        data_config: Preprocessing, see `eval_transform`; only its mean and std are used.
    """

    def __init__(self, data_config: dict):
        super().__init__()
        mean, std = (torch.tensor(data_config[key])[:, None, None] for key in ('mean', 'std'))
        self.register_buffer('scale', 1 / (255 * std), persistent=False)
        self.register_buffer('shift', -mean / std, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps bytes (B, C, H, W) to floats of the same shape and memory format."""
        return pixels.to(torch.float32).mul_(self.scale).add_(self.shift)


class TrainTransform:
    """Resizes an image or a crop of it to the input size of a model and augments it; `Normalize` does the rest.

    Args:
        data_config: Preprocessing, see `eval_transform`; only its size and interpolation are used.
        augment: Map from an image to an image, or None.
        cutout: Map of the bytes (C, H, W), or None.
        crop: Map from an image of any size to one of the input size, which replaces the resizing, or None.

    Attributes:
        input_size: Height and width of the result.
        decode_size: Height and width that the image needs, `at_least` of `open_image`.
    """

    def __init__(
        self,
        data_config: dict,
        augment: Callable | None,
        cutout: Callable | None,
        crop: RandomResizedCropAndInterpolation | None = None,
    ):
        self.input_size = self.decode_size = tuple(data_config['input_size'][-2:])
        self.interpolation = InterpolationMode(data_config['interpolation'])
        self.augment = augment
        self.cutout = cutout
        self.crop = crop
        if crop:
            # Large enough that the shorter side of the smallest crop is not enlarged.
            share = math.sqrt(crop.scale[0] * min(crop.ratio[0], 1 / crop.ratio[1], 1))
            self.decode_size = tuple(math.ceil(side / share) for side in self.input_size)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Maps an RGB image to bytes (C, H, W)."""
        if self.crop:
            image = self.crop(image)
        elif image.size != self.input_size[::-1]:
            image = self._resize(image)
        if self.augment:
            image = self.augment(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return self.cutout(pixels) if self.cutout else pixels

    def _resize(self, image: Image.Image) -> Image.Image:
        # PyTorch resizes bytes in a third of the time and agrees with Pillow up to one level of rounding. Its bicubic
        # resizing does not: it differs by up to 11 levels at sharp edges.
        if self.interpolation != InterpolationMode.BILINEAR:
            return transforms.functional.resize(image, self.input_size, self.interpolation)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        pixels = F.resize(pixels, self.input_size, self.interpolation, antialias=True)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def train_transform(
    data_config: dict,
    rand_augment: str | None,
    cutout: float,
    hflip: float = 0.0,
    crop_scale: Sequence[float] | None = None,
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    color_jitter: float = 0.0,
) -> TrainTransform:
    """Returns the training transform: resizing as in evaluation, then RandAugment and Cutout (section 4.3).

    Augmentations beyond the paper are off by default. The order is that of `transforms_imagenet_train` of timm: crop,
    flip, RandAugment, colour, Cutout.

    Args:
        data_config: Preprocessing, see `eval_transform`; its size, interpolation, mean and std are used.
        rand_augment: RandAugment string of timm, or None.
        cutout: Side of the hole of Cutout relative to that of the image; 0 for none.
        hflip: Probability of a horizontal flip.
        crop_scale: Smallest and largest relative area of a random crop, which is resized to the input size; None to
            resize the whole image. A crop keeps the labels of the whole image.
        crop_ratio: Smallest and largest aspect ratio (width to height) of a crop.
        color_jitter: Largest relative change of brightness, contrast and saturation; 0 for none.

    Raises:
        InputError: The RandAugment string is invalid.
    """
    # The mean colour, which is 0 after normalisation, fills what geometric operations uncover and Cutout covers.
    fill = tuple(round(255 * m) for m in data_config['mean'])
    crop, steps = None, []
    if crop_scale:
        size, interpolation = data_config['input_size'][-2:], data_config['interpolation']
        crop = RandomResizedCropAndInterpolation(size, tuple(crop_scale), tuple(crop_ratio), interpolation)
    if hflip:
        steps.append(transforms.RandomHorizontalFlip(hflip))
    if rand_augment:
        if not RAND_AUGMENT.fullmatch(rand_augment):
            raise InputError(
                f"data.rand_augment is {rand_augment!r}: must be a string of timm, e.g. 'rand-m9-n2-mstd0.5'."
            )
        steps.append(rand_augment_transform(rand_augment, {'img_mean': fill, 'interpolation': GEOMETRY}))
    if color_jitter:
        steps.append(transforms.ColorJitter(color_jitter, color_jitter, color_jitter))
    augment = transforms.Compose(steps) if steps else None
    return TrainTransform(data_config, augment, Cutout(cutout, fill) if cutout else None, crop)


def describe_transforms(
    data_config: dict,
    rand_augment: str | None,
    cutout: float,
    hflip: float = 0.0,
    crop_scale: Sequence[float] | None = None,
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    color_jitter: float = 0.0,
) -> dict:
    """Returns a description of `train_transform` with the same arguments, as JSON values."""
    return {
        'resize': 'random_resized_crop' if crop_scale else 'squash',
        'crop_scale': crop_scale and list(crop_scale),
        'crop_ratio': list(crop_ratio) if crop_scale else None,
        'interpolation': data_config['interpolation'],
        'hflip': hflip,
        'rand_augment': rand_augment,
        'rand_augment_interpolation': GEOMETRY.name.lower() if rand_augment else None,
        'color_jitter': color_jitter,
        'cutout': cutout,
    }


class Cutout:
    """Fills one square, centred anywhere in the image, with a colour (https://arxiv.org/abs/1708.04552).

    Args:
        relative_side: Side of the square relative to that of the image.
        fill: Colour in bytes (C,).
    """

    def __init__(self, relative_side: float, fill: Sequence[int]):
        self.relative_side = relative_side
        self.fill = torch.tensor(fill, dtype=torch.uint8)[:, None, None]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Fills the square in bytes (C, H, W), in place."""
        height, width = pixels.shape[-2:]
        half_h, half_w = round(height * self.relative_side / 2), round(width * self.relative_side / 2)
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        pixels[:, max(y - half_h, 0) : y + half_h, max(x - half_w, 0) : x + half_w] = self.fill
        return pixels
