"""From a photo to a batch: opening, the augmentation of section 4.3, and the checkpoint's own preprocessing."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import ExifTags, Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..errors import InputError

__all__ = [
    'MAX_PIXELS',
    'Cutout',
    'Normalize',
    'TrainTransform',
    'describe_transforms',
    'eval_transform',
    'open_image',
    'train_transform',
]

MAX_PIXELS = 2**28 // 3  # a quarter of a GiB in RGB: where Pillow begins to warn of decompression bombs
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

# Of RandAugment's rotations, shears and shifts: torchvision's default too, and three times as fast as timm's choice at
# random between bilinear and bicubic.
GEOMETRY = Image.Resampling.NEAREST

# Stricter than timm, which passes over sections that it does not know and stops at others without a word.
RAND_AUGMENT = re.compile(
    r'rand(-(m\d+|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*'
)


def open_image(
    source: str | Path | bytes, name: str | None = None, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Opens a photo upright, in 8-bit RGB; of several frames the first.

    What is transparent shows white, as on a page; Pillow's `convert('RGB')` shows the colour that was hidden. 16-bit
    grays become their 8-bit equals, where Pillow clips them at 255. Floats count as from 0 to 1, or from 0 to 255
    where one is above 1.

    Args:
        source: A path, or the content of a file.
        name: What messages call the picture; None for the path.
        at_least: Height and width that are enough: a JPEG is decoded at 1/2, 1/4 or 1/8 as long as it stays that
            large, which is faster. None decodes every pixel, as evaluation and inference need it to see exactly what
            timm's own preprocessing sees.

    Raises:
        InputError: The file is missing, is not a whole picture, or has more than `MAX_PIXELS` pixels.
    """
    name = name or ('picture' if isinstance(source, bytes) else str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # ours is the limit, and it is an error
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f'{image.width} x {image.height} pixels, over {MAX_PIXELS:,}')
                if at_least:
                    sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
                    image.draft(None, at_least if sideways else at_least[::-1])
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except FileNotFoundError:
        raise InputError(f'{name}: there is no such file.') from None
    except Exception as e:  # Pillow's decoders raise nearly every kind of error on bytes that are not as they should be
        if isinstance(e, Image.UnidentifiedImageError):
            reason = 'not a picture that Pillow can read'
        else:
            reason = getattr(e, 'strerror', None) or ' '.join(str(e).split()) or type(e).__name__
        raise InputError(f'{name}: cannot be read as a picture ({reason}).') from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts a loaded picture of any mode."""
    if image.mode == 'F' or image.mode.startswith('I'):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        white = 65535 if image.mode != 'F' else 1 if values.max() <= 1 else 255
        image = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


def eval_transform(data_config: dict, as_bytes: bool = False) -> transforms.Compose:
    """Builds a checkpoint's own preprocessing from what `timm.data.resolve_model_data_config` gives.

    Args:
        data_config: As timm gives it.
        as_bytes: Leave normalisation to `Normalize`, and give an array of bytes (C, H, W).
    """
    return create_transform(**data_config, is_training=False, use_prefetcher=as_bytes)


class Normalize(nn.Module):
    """Maps pictures of bytes to a model's input, on the device where they are: bytes take a quarter of the way there.

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
    """Resizes a picture to the model's input and augments it; `Normalize` does the rest.

    Args:
        data_config: As for `eval_transform`; its size and interpolation are used.
        augment: From a picture to a picture, or None.
        cutout: Applied to the bytes (C, H, W), or None.

    Attributes:
        input_size: Height and width of the result: what `open_image` needs to know as `at_least`.
    """

    def __init__(self, data_config: dict, augment: Callable | None, cutout: Callable | None):
        self.input_size = tuple(data_config['input_size'][-2:])
        self.interpolation = InterpolationMode(data_config['interpolation'])
        self.augment = augment
        self.cutout = cutout

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Maps a picture in RGB to bytes (C, H, W)."""
        if image.size != self.input_size[::-1]:
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


def train_transform(data_config: dict, rand_augment: str | None, cutout: float) -> TrainTransform:
    """Builds the training transform: the evaluation's resizing, then RandAugment and Cutout (section 4.3).

    Args:
        data_config: As for `eval_transform`; its size, interpolation, mean and std are used.
        rand_augment: timm's RandAugment string, or None for no augmentation of colour and shape.
        cutout: Side of Cutout's hole relative to the picture's, 0 for none.

    Raises:
        InputError: The RandAugment string is not as timm has it.
    """
    # What geometric operations uncover and Cutout covers has the mean colour, which is 0 after normalisation.
    fill = tuple(round(255 * m) for m in data_config['mean'])
    augment = None
    if rand_augment:
        if not RAND_AUGMENT.fullmatch(rand_augment):
            raise InputError(
                f"data.rand_augment is {rand_augment!r}: must be as timm has it, 'rand-m9-n2-mstd0.5' say."
            )
        augment = rand_augment_transform(rand_augment, {'img_mean': fill, 'interpolation': GEOMETRY})
    return TrainTransform(data_config, augment, Cutout(cutout, fill) if cutout else None)


def describe_transforms(data_config: dict, rand_augment: str | None, cutout: float) -> dict:
    """Records what `train_transform` does with the same arguments, as JSON values."""
    return {
        'resize': 'squash',
        'interpolation': data_config['interpolation'],
        'rand_augment': rand_augment,
        'rand_augment_interpolation': GEOMETRY.name.lower() if rand_augment else None,
        'cutout': cutout,
    }


class Cutout:
    """Fills one square, centred anywhere in the picture, with a colour (https://arxiv.org/abs/1708.04552).

    Args:
        relative_side: Of the square, as a share of the picture's.
        fill: Colour in bytes (C,).
    """

    def __init__(self, relative_side: float, fill: Sequence[int]):
        self.relative_side = relative_side
        self.fill = torch.tensor(fill, dtype=torch.uint8)[:, None, None]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Fills the square in a picture of bytes (C, H, W), in place."""
        height, width = image.shape[-2:]
        half_h, half_w = round(height * self.relative_side / 2), round(width * self.relative_side / 2)
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        image[:, max(y - half_h, 0) : y + half_h, max(x - half_w, 0) : x + half_w] = self.fill
        return image
