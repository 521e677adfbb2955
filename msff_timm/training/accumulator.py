"""Collects the scores of an evaluation over batches and processes."""

from typing import Any, TypedDict

import numpy as np

from ..metrics import checked, evaluate

__all__ = ['Arrays', 'MetricAccumulator']


class Arrays(TypedDict):
    """Arrays (N, K) of all images, see `evaluate`."""

    scores: np.ndarray
    targets: np.ndarray
    ignore: np.ndarray | None
    areas: np.ndarray | None


class MetricAccumulator:
    """Collects the scores of batches from all processes, and evaluates each image once.

    Examples:
        >>> metric = MetricAccumulator()
        >>> metric.update(np.array([0, 1]), np.array([[0.9], [0.2]]), np.array([[1], [0]]))
        >>> metric.update(np.array([1, 2]), np.array([[0.2], [0.4]]), np.array([[0], [1]]))  # 1 fills up a batch
        >>> metric.arrays(num_images=3)['targets'].ravel().astype(int)
        array([1, 0, 1])
    """

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray | None, ...]] = []

    def update(
        self,
        indices: np.ndarray,
        scores: np.ndarray,
        targets: np.ndarray,
        ignore: np.ndarray | None = None,
        areas: np.ndarray | None = None,
    ) -> None:
        """Adds images in any order. Scores are stored in single precision.

        Args:
            indices: Row numbers in the data set (n,).
            scores: Probabilities (n, K).
            targets: Targets (n, K), 1 or 0.
            ignore: Mask (n, K), see `evaluate`; in all updates or in none.
            areas: Areas (n, K), see `evaluate`; in all updates or in none.

        Raises:
            ValueError: Indices are not one whole number for each row, or another argument is invalid, see `evaluate`.
        """
        scores, targets, ignore, areas = checked(scores, targets, ignore, areas)
        indices = np.array(indices)
        if indices.shape != scores.shape[:1] or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                f'indices {indices.shape} must be whole numbers, one for each row of scores {scores.shape}.'
            )
        if self._batches:
            for name, old, new in zip(('ignore', 'areas'), self._batches[0][3:], (ignore, areas), strict=True):
                if (old is None) != (new is None):
                    raise ValueError(f'{name} must be given in all updates or in none.')
        self._batches.append(
            (
                indices,
                np.array(scores, np.float32),  # copies, since callers may reuse a buffer
                np.array(targets),
                None if ignore is None else np.array(ignore),
                None if areas is None else np.array(areas),
            )
        )

    def arrays(self, num_images: int | None = None) -> Arrays:
        """Returns the images in the order of their indices, without those that samplers repeat.

        Args:
            num_images: Expected number of images; None to skip the check.

        Returns:
            `scores`, `targets`, `ignore` and `areas` (N, K); the last two may be None.

        Raises:
            RuntimeError: There is no image, or the number of images differs from the expected one.
        """
        if not self._batches:
            raise RuntimeError('there are no images to evaluate.')
        indices, *fields = zip(*self._batches, strict=True)
        unique, first = np.unique(np.concatenate(indices), return_index=True)
        if num_images is not None and len(unique) != num_images:
            raise RuntimeError(f'{len(unique)} of {num_images} images were evaluated.')
        arrays: list[Any] = [None if field[0] is None else np.concatenate(field)[first] for field in fields]
        scores, targets, ignore, areas = arrays
        return {'scores': scores, 'targets': targets, 'ignore': ignore, 'areas': areas}

    def compute(self, num_images: int | None = None, **options: Any) -> dict:
        """Evaluates the images; see `arrays` for `num_images` and `evaluate` for the options."""
        return evaluate(**self.arrays(num_images), **options)
