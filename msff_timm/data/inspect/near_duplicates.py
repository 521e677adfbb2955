"""Near-duplicate images by their embeddings, beside exact duplicates by their content."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ['content_digest', 'group_similar']

BLOCK = 4096  # images; one block compared with another takes 64 MiB


def group_similar(embeddings: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Groups images by their cosine similarity; a chain of similar pairs makes one group.

    Memory grows with the number of images, not of pairs.

    Args:
        embeddings: Embeddings (N, D) of length 1.
        least: Least cosine similarity of a pair.

    Returns:
        Number of the first image of each image's group (N,), and each image's highest similarity to another (N,).
    """
    vectors = torch.from_numpy(embeddings)
    num_images = len(vectors)
    groups, nearest = np.arange(num_images), torch.full((num_images,), -1.0)
    for top in range(0, num_images, BLOCK):
        for left in range(top, num_images, BLOCK):
            rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
            similarity = vectors[rows] @ vectors[columns].T
            if top == left:
                similarity.fill_diagonal_(-1)
            nearest[rows] = torch.maximum(nearest[rows], similarity.amax(1))
            nearest[columns] = torch.maximum(nearest[columns], similarity.amax(0))
            pairs = (similarity >= least).nonzero().numpy()
            if len(pairs):
                groups = _merge(groups, pairs + (top, left))
    return groups, nearest.numpy()


def _merge(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Merges the groups of pairs of images (P, 2)."""
    each = np.arange(len(groups))
    start, end = np.concatenate([pairs, np.stack([each, groups], 1)]).T
    edges = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(len(groups),) * 2)
    numbers = connected_components(edges, directed=False)[1]
    return np.unique(numbers, return_index=True)[1][numbers]


def content_digest(row: dict) -> bytes:
    """Returns the SHA-256 of an image of an `undecoded` data set: of its file, or of the pixels of a drawing."""
    image = row['image']
    if isinstance(image, Image.Image):
        return hashlib.sha256(image.tobytes()).digest()
    content = Path(image['path']).read_bytes() if image['bytes'] is None else image['bytes']
    return hashlib.sha256(content).digest()
