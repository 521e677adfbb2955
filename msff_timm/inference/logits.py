"""The path from image files to logits, which prediction, explanation, export and the comparisons of models share."""

from functools import cached_property
from pathlib import Path

import timm
import torch
import torch.nn as nn
from PIL import Image
from timm.utils import unwrap_model
from torchvision.transforms.functional import to_pil_image

from ..data.images import open_image
from ..data.transforms import eval_transform
from ..errors import InputError

__all__ = ['Preprocessing', 'check_finite', 'choose_device', 'compute_logits', 'resize_longer']


class Preprocessing:
    """A model's own preprocessing, as its pretrained configuration describes it.

    Args:
        model: Model, which may be compiled or wrapped.
        image_size: Side of square input images; None for the model's own size.

    Attributes:
        data_config: Configuration as `timm.data.resolve_input_data_config` returns it.
        input_size: Channels, height and width of the input.
    """

    def __init__(self, model: nn.Module, image_size: int | None = None):
        self.data_config = timm.data.resolve_input_data_config(unwrap_model(model))
        if image_size is not None:
            self.data_config['input_size'] = (self.data_config['input_size'][0], image_size, image_size)
        self.input_size = tuple(self.data_config['input_size'])

    @cached_property
    def transform(self):
        """Transform from a Pillow image to a tensor (C, H, W)."""
        return eval_transform(self.data_config)

    def load(self, path: str | Path) -> torch.Tensor:
        """Reads an image file as a tensor (C, H, W).

        Raises:
            InputError: The image cannot be read, or the model takes neither 1 nor 3 channels.
        """
        return self.transform(open_image(path))

    def noise(self, count: int) -> torch.Tensor:
        """Returns images of noise (count, C, H, W), the same in each call."""
        return torch.randn(count, *self.input_size, generator=torch.Generator().manual_seed(0))

    def restore(self, image: Image.Image, pixels: torch.Tensor) -> Image.Image:
        """Turns a preprocessed image back into a Pillow image: at the model's resolution, cropped as the model does.

        Args:
            image: Original image; a squashed image gets its aspect ratio back.
            pixels: Preprocessed image (C, H, W).
        """
        mean, std = (torch.tensor(self.data_config[key])[:, None, None] for key in ('mean', 'std'))
        restored = to_pil_image((pixels * std + mean).clamp(0, 1))
        if self.data_config['crop_mode'] != 'squash':
            return restored
        return restored.resize(resize_longer(image.size, max(restored.size)), Image.Resampling.BICUBIC)


def resize_longer(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Scales a width and height to a given length of the longer side."""
    width, height = (max(round(longer * side / max(size)), 1) for side in size)
    return width, height


@torch.inference_mode()
def compute_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Computes logits (B, K) in float32 of preprocessed images (B, C, H, W) on any device.

    Raises:
        InputError: Logits are not finite.
    """
    logits = model(images.to(next(model.parameters())))
    check_finite(model, logits)
    return logits.float()


def check_finite(model: nn.Module, logits: torch.Tensor) -> None:
    """Checks the logits of a model.

    Raises:
        InputError: Logits are not finite; the message names the weights that are not, if there are any.
    """
    if logits.isfinite().all():
        return
    weights = unwrap_model(model).state_dict().items()
    damaged = [name for name, tensor in weights if tensor.is_floating_point() and not tensor.isfinite().all()]
    reason = f'{damaged[0]} holds NaN or infinity' if damaged else f'numbers are too large for {logits.dtype}'
    fix = 'load or train other weights' if damaged else 'compute in float32'
    raise InputError(f'the logits of the model are not finite ({reason}): {fix}.')


def choose_device(name: str | None = None) -> torch.device:
    """Returns the device to compute on.

    Args:
        name: Type of the device (`cuda`, `mps`, `xpu`, `cpu`); None for the accelerator that PyTorch finds, or else
            the CPU.

    Raises:
        InputError: PyTorch does not find this device.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return found or torch.device('cpu')
    available = ['cpu'] if found is None else [found.type, 'cpu']
    if name not in available:
        raise InputError(f'device is {name}: PyTorch does not find one; available: {", ".join(available)}.')
    return torch.device(name)
