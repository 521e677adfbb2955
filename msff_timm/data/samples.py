"""From rows of a data set to what a batch is made of."""

from collections.abc import Callable

import datasets
import torch
from torch.utils.data import Dataset

from .transforms import open_image

__all__ = ['Samples']


class Samples(Dataset):
    """Pictures as tensors with their targets, in the order of a data set that `msff_timm.data.load` made.

    Args:
        dataset: Rows of `image` and `labels`.
        transform: From a PIL picture to a tensor (C, H, W).
    """

    def __init__(self, dataset: datasets.Dataset, transform: Callable):
        self.is_file = isinstance(dataset.features['image'], datasets.Image)
        # Files are opened by `open_image`, as `predict` opens them, so that training sees what inference will see.
        self.dataset = dataset.cast_column('image', datasets.Image(decode=False)) if self.is_file else dataset
        self.transform = transform
        self.num_classes = dataset.features['labels'].feature.num_classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        """Returns `image` (C, H, W), `target` (K,) of 0 and 1, and `index`, the row's number."""
        row = self.dataset[index]
        image = open_image(row['image']['path']) if self.is_file else row['image']
        target = torch.zeros(self.num_classes)
        target[row['labels']] = 1
        return {'image': self.transform(image), 'target': target, 'index': index}
