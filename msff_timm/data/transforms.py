"""From an image to a batch: the augmentation of section 4.3, and the checkpoint's own preprocessing."""

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

# Of RandAugment's rotations, shears and shifts: torchvision's default too, and three times as fast as timm's choice at
# random between bilinear and bicubic.
GEOMETRY = Image.Resampling.NEAREST

# Stricter than timm, which passes over sections that it does not know and stops at others without a word.
RAND_AUGMENT = re.compile(
    r'rand(-(m\d+|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*'
)


def eval_transform(data_config: dict, as_bytes: bool = False) -> transforms.Compose:
    """Builds a checkpoint's own preprocessing from what `timm.data.resolve_model_data_config` gives.

    Args:
        data_config: Configuration as timm gives it; for one channel, images turn gray.
        as_bytes: Leave normalisation to `Normalize`, and give an array of bytes (C, H, W).

    Raises:
        InputError: It is for another number of channels than 1 or 3.
    """
    channels = data_config['input_size'][0]
    if channels not in (1, 3):
        raise InputError(
            f'the model takes {channels} channels, and images are read with 3, or 1 of gray: give it tensors in Python.'
        )
    transform = create_transform(**data_config, is_training=False, use_prefetcher=as_bytes)
    return transform if channels == 3 else transforms.Compose([transforms.Grayscale(), *transform.transforms])


class Normalize(nn.Module):
    """Maps images of bytes to a model's input, on the device where they are: bytes take a quarter of the way there.

    Args:
        data_config: As for `eval_transform`; its mean and std are used.
    """

    def __init__(self, data_config: dict):
        super().__init__()
        mean, std = (torch.tensor(data_config[key])[:, None, None] for key in ('mean', 'std'))
        self.register_buffer('scale', 1 / (255 * std), persistent=False)
        self.register_buffer('shift', -mean / std, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps bytes (B, C, H, W) to floats of the same shape and layout."""
        return pixels.to(torch.float32).mul_(self.scale).add_(self.shift)


class TrainTransform:
    """Resizes an image to the model's input, or a crop of it, and augments it; `Normalize` does the rest.

    Args:
        data_config: As for `eval_transform`; its size and interpolation are used.
        augment: From an image to an image, or None.
        cutout: Applied to the bytes (C, H, W), or None.
        crop: From an image of any size to one of the model's input, in place of the resizing, or None.

    Attributes:
        input_size: Height and width of the result.
        decode_size: Height and width that the image needs to have for it: what `open_image` takes as `at_least`.
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
            # So large that the shorter side of the smallest crop is not enlarged.
            share = math.sqrt(crop.scale[0] * min(crop.ratio[0], 1 / crop.ratio[1], 1))
            self.decode_size = tuple(math.ceil(side / share) for side in self.input_size)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Maps an image in RGB to bytes (C, H, W)."""
        if self.crop:
            image = self.crop(image)
        elif image.size != self.input_size[::-1]:
            image = self._resize(image)
        if self.augment:
            image = self.augment(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return self.cutout(pixels) if self.cutout else pixels

    def _resize(self, image: Image.Image) -> Image.Image:
        # PyTorch's resizing of bytes is Pillow's, to one level of rounding, in a third of the time; not so its bicubic,
        # which is up to 11 levels away at sharp edges.
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
    """Builds the training transform: the evaluation's resizing, then RandAugment and Cutout (section 4.3).

    What the paper has not is off by default, and in the order of timm's `transforms_imagenet_train`: crop, flip,
    RandAugment, colour, Cutout.

    Args:
        data_config: As for `eval_transform`; its size, interpolation, mean and std are used.
        rand_augment: timm's RandAugment string, or None for no augmentation of colour and shape.
        cutout: Side of Cutout's hole relative to the image's, 0 for none.
        hflip: Probability of the mirror image.
        crop_scale: Lowest and highest share of the image's area that a crop has, which is resized to the model's input;
            None to resize the whole image. The labels stay those of the whole image.
        crop_ratio: Lowest and highest ratio of a crop's width to its height.
        color_jitter: Largest relative change of brightness, contrast and saturation, 0 for none.

    Raises:
        InputError: The RandAugment string is not as timm has it.
    """
    # What geometric operations uncover and Cutout covers has the mean colour, which is 0 after normalisation.
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
                f"data.rand_augment is {rand_augment!r}: must be as timm has it, 'rand-m9-n2-mstd0.5' say."
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
    """Records what `train_transform` does with the same arguments, as JSON values."""
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
        relative_side: Of the square, as a share of the image's.
        fill: Colour in bytes (C,).
    """

    def __init__(self, relative_side: float, fill: Sequence[int]):
        self.relative_side = relative_side
        self.fill = torch.tensor(fill, dtype=torch.uint8)[:, None, None]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Fills the square in an image of bytes (C, H, W), in place."""
        height, width = image.shape[-2:]
        half_h, half_w = round(height * self.relative_side / 2), round(width * self.relative_side / 2)
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        image[:, max(y - half_h, 0) : y + half_h, max(x - half_w, 0) : x + half_w] = self.fill
        return image
