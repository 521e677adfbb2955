"""Similar images and near-duplicates among the embeddings of a file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn as nn

from ..errors import InputError, one_line
from .embeddings import embed
from .logits import Preprocessing
from .sinks import read_header
from .tasks import EmbedTask

__all__ = ['NEAR_DUPLICATE', 'Embeddings']

NEAR_DUPLICATE = 0.95  # cosine similarity; of 3,985 photos of VOC 2012, two pairs reach it, both of one burst
BLOCK = 512  # rows that are compared with all others at once


class Embeddings:
    """The embeddings in a file of `msff-timm embed`. Images that could not be read are left out.

    Args:
        path: Parquet file.

    Attributes:
        header: Values on its origin.
        images: Names of the images (N,).
        vectors: Embeddings (N, D) in float32, of length 1.

    Raises:
        InputError: It is no such file.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        try:
            table = pq.read_table(path, columns=['image', 'embedding'])
            header = read_header(path)
        except (OSError, pa.ArrowException) as e:
            raise InputError(f'{path}: cannot be read as a file of msff-timm embed ({one_line(e)}).') from None
        if header is None:
            raise InputError(f'{path}: was not written by msff-timm embed.')
        table = table.drop_null()
        self.path, self.header = path, header
        self.images = table['image'].to_pylist()
        self.vectors = np.zeros((0, 1), np.float32)
        if self.images:
            values = table['embedding'].combine_chunks().flatten().to_numpy()
            self.vectors = np.array(values).reshape(len(self.images), -1)  # a copy, which PyTorch may share

    def find(self, image: str) -> np.ndarray | None:
        """Returns the embedding (D,) of an image of the file, or None."""
        return self.vectors[self.images.index(image)] if image in self.images else None

    def embed(self, model: nn.Module, image: str) -> np.ndarray:
        """Computes the embedding (D,) of another image.

        Args:
            model: Model of the file.
            image: Path of the image.

        Raises:
            InputError: The image cannot be read, or the file is of another model.
        """
        weights = EmbedTask(model).header['weights']
        if weights != self.header['weights']:
            raise InputError(
                f'{self.path}: its embeddings are of other weights ({self.header["weights"]}) than this model'
                f' ({weights}): name the model by --model.'
            )
        return embed(model, Preprocessing(model).load(image)[None])[0].cpu().numpy()

    def nearest(self, vector: np.ndarray, k: int = 10) -> list[tuple[str, float]]:
        """Returns the `k` images most similar to an embedding (D,), each with its cosine similarity."""
        similarity = self.vectors @ vector
        best = np.argsort(-similarity, kind='stable')[:k]
        return [(self.images[number], float(similarity[number])) for number in best]

    def near_duplicates(
        self, least: float = NEAR_DUPLICATE, device: torch.device | str = 'cpu'
    ) -> Iterator[tuple[str, str, float]]:
        """Finds images that are near-duplicates of an earlier one.

        Args:
            least: Smallest cosine similarity.
            device: Device to compute on.

        Yields:
            Image, the earlier image that is most similar, and the similarity of both.
        """
        vectors = torch.from_numpy(self.vectors).to(device)
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            similarity = block @ vectors[: start + len(block)].T
            later = torch.ones_like(similarity, dtype=torch.bool).triu(start)
            values, indices = similarity.masked_fill_(later, -1).max(1)
            for number in (values >= least).nonzero().flatten().tolist():
                yield self.images[start + number], self.images[int(indices[number])], float(values[number])
