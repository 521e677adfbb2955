"""Near-duplicate images by their embeddings and layout, beside exact duplicates by their content."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, normalize, pad

__all__ = ['content_digest', 'group_similar', 'layout']

# Measured with the default model on 150 VOC photos and 1,499 of Corel5k; see the README of `msff_timm/data`.
SIMILAR = 0.93  # cosine similarity of near-duplicates
RELIEF = 0.13  # what it may be lower if the layouts agree
SAME_LAYOUT = 0.85  # correlation of layouts that agree
SIDE, COARSE = 16, 5  # pixels of a layout, and of its coarse structure
BLOCK = 4096  # images; one block compared with another takes 64 MiB for each kind of similarity


def layout(images: torch.Tensor) -> torch.Tensor:
    """Returns the layout (B, 256) of images (B, C, H, W): small gray versions without their coarse light and shadow.

    The product of two is their correlation. Coarse structure would make all sunsets alike.
    """
    small = adaptive_avg_pool2d(images.float().mean(1, keepdim=True), SIDE)
    small = small - avg_pool2d(pad(small, [COARSE // 2] * 4, mode='replicate'), COARSE, 1)
    return normalize((small - small.mean((-2, -1), keepdim=True)).flatten(1), dim=1)


def group_similar(embeddings: np.ndarray, layouts: np.ndarray, least: float = SIMILAR) -> np.ndarray:
    """Groups near-duplicate images; a chain of similar pairs makes one group.

    Embeddings find crops; the layouts of an image and of another or its mirror image find strong compression, smaller
    and gray versions. Memory grows with the number of images, not of pairs.

    Args:
        embeddings: Embeddings (N, D) of length 1; 0 for an image that belongs to no group.
        layouts: Layouts (N, 256) of `layout`.
        least: Least cosine similarity of a pair, or `RELIEF` more than the least one if the layouts agree.

    Returns:
        Number of the first image of each image's group (N,).
    """
    vectors, straight = torch.from_numpy(embeddings), torch.from_numpy(layouts)
    mirrored = straight.unflatten(1, (SIDE, SIDE)).flip(-1).flatten(1)
    num_images = len(vectors)
    groups = np.arange(num_images)
    for top in range(0, num_images, BLOCK):
        rows = slice(top, top + BLOCK)
        for left in range(top, num_images, BLOCK):
            columns = slice(left, left + BLOCK)
            similarity = vectors[rows] @ vectors[columns].T
            correlation = torch.maximum(straight[rows] @ straight[columns].T, straight[rows] @ mirrored[columns].T)
            similarity[correlation >= SAME_LAYOUT] += RELIEF
            pairs = (similarity >= least).nonzero().numpy() + (top, left)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            if len(pairs):
                groups = _merge(groups, pairs)
    return groups


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
