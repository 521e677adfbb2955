"""Learning from the probabilities of a trained model."""

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

from .. import hub
from ..data.transforms import Normalize
from ..errors import InputError
from ..labels import display_names
from .config import DistillConfig

__all__ = ['Teacher']


class Teacher(nn.Module):
    """A trained model whose probabilities a student learns (https://arxiv.org/abs/1503.02531, for each label).

    Args:
        name: Name of the model, as `msff_timm.hub.load` takes it.
        label_names: Label names of the student; the teacher has the same, in any order.
        settings: Weight and temperature.

    Raises:
        InputError: The model cannot be loaded, or its labels differ.
    """

    def __init__(self, name: str, label_names: list[str], settings: DistillConfig):
        super().__init__()
        self.model = hub.load(name).requires_grad_(False)
        known = display_names(self.model)
        if sorted(known) != sorted(label_names):
            raise InputError(f'distill.teacher is {name}: its labels differ from the labels of the data.')
        data_config = timm.data.resolve_model_data_config(self.model)
        self.input_size = tuple(data_config['input_size'][-2:])
        self.normalize = Normalize(data_config)
        self.register_buffer('order', torch.tensor([known.index(name) for name in label_names]), persistent=False)
        self.weight, self.temperature = settings.weight, settings.temperature

    def train(self, mode: bool = True) -> 'Teacher':
        """Does nothing: a teacher stays in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Maps the student's images (B, C, H, W) of bytes to logits (B, K) in the student's order."""
        image = self.normalize(pixels)
        if image.shape[-2:] != self.input_size:
            image = F.interpolate(image, self.input_size, mode='bilinear', antialias=True)
        return self.model(image)[:, self.order]

    def loss(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy with the teacher's probabilities at temperature T, times T^2 (B, K)."""
        probabilities = (teacher_logits.float() / self.temperature).sigmoid()
        losses = F.binary_cross_entropy_with_logits(logits / self.temperature, probabilities, reduction='none')
        return losses * self.temperature**2

    def blend(
        self, loss: torch.Tensor, logits: torch.Tensor, teacher_logits: torch.Tensor, accumulation_steps: int
    ) -> torch.Tensor:
        """Returns the weighted sum of the loss of the targets and the mean loss of the teacher.

        The teacher has a probability for every label, masked ones too.

        Args:
            loss: Loss of the targets.
            logits: Logits of the student (B, K).
            teacher_logits: Logits of the teacher (B, K).
            accumulation_steps: Number of micro-batches in a step.
        """
        weight = self.weight
        return (1 - weight) * loss + weight * self.loss(logits, teacher_logits).mean() / accumulation_steps
