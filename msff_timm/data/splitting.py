"""Divides images into parts that have the same share of each label, e.g. into training and validation images."""

from collections.abc import Sequence

import datasets
import numpy as np
from datasets import Image

from ..errors import InputError
from .inspect.files import find_images, group_same
from .inspect.report import SplitReport
from .samples import Samples

__all__ = ['divide', 'hold_out', 'stratify']


def stratify(
    targets: np.ndarray, shares: Sequence[float], units: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Assigns images to parts by iterative stratification.

    The label with the fewest unassigned images comes first. Each of its images goes to the part that lacks most images
    of this label; in a tie, to the one that lacks most images of any kind. Unannotated entries do not count. Of labels
    with unannotated entries, the absent ones are stratified, too.

    Source: K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD 2011,
    algorithm 1.

    Args:
        targets: Targets (N, K): 1 present, 0 absent, -1 unannotated.
        shares: Share of the images of each part; their sum is 1.
        units: Number of the unit of each image (N,), from 0 on; the images of a unit stay together. None if each image
            is a unit.
        seed: Seed of the order of the images and of the choice between equals.

    Returns:
        Number of the part of each image (N,).

    Examples:
        >>> parts = stratify(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]), [0.5, 0.5])
        >>> sorted(parts[:2].tolist()), sorted(parts[2:].tolist())
        ([0, 1], [0, 1])
    """
    from scipy.sparse import csr_array  # only here: every run of training imports this module

    random = np.random.default_rng(seed)
    num_images = len(targets)
    units = np.arange(num_images) if units is None else units
    partly = (targets == -1).any(0)
    # The last column, all images, assigns the units without labels.
    entries = np.concatenate([targets == 1, (targets == 0)[:, partly], np.ones((num_images, 1), bool)], 1)
    members = csr_array((np.ones(num_images), (units, np.arange(num_images))))
    counts = (members @ csr_array(entries, dtype=float)).tocsr()  # images of each unit (rows) that have each entry
    by_entry = counts.tocsc()
    left = counts.sum(0)
    lacks = np.outer(shares, left)  # images that each part (rows) lacks of each entry
    part_of = np.full(counts.shape[0], -1)
    while left.any():
        rarest = random.choice(np.flatnonzero(left == left[left > 0].min()))
        column = slice(*by_entry.indptr[rarest : rarest + 2])
        found, sizes = by_entry.indices[column], by_entry.data[column]
        is_left = part_of[found] < 0
        found, sizes = found[is_left], sizes[is_left]
        # Large units first: small ones even out what they leave.
        for unit in found[np.lexsort((random.random(len(found)), -sizes))]:
            wishes = np.round(lacks[:, [rarest, -1]], 6).tolist()  # rounded, as equals decide
            part = max(range(len(shares)), key=lambda part: (*wishes[part], random.random()))
            row = slice(*counts.indptr[unit : unit + 2])
            lacks[part, counts.indices[row]] -= counts.data[row]
            left[counts.indices[row]] -= counts.data[row]
            part_of[unit] = part
    return part_of[units]


def divide(
    dataset: datasets.Dataset, shares: Sequence[float], groups: Sequence[object] | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns the images of a data set to parts, see `stratify`; those of the same content or group stay together.

    The order of the labels makes no difference.

    Args:
        dataset: Data set of `msff_timm.data.load`.
        shares: Share of the images of each part; their sum is 1.
        groups: Group of each image, or None for an image of no group; None for no groups.
        seed: Seed, see `stratify`.

    Returns:
        Numbers of the part and of the unit of each image, (N,) each. Images that stay together are a unit.

    Raises:
        InputError: There are too few images or units for as many parts.
    """
    targets = Samples(dataset, None).targets  # type: ignore[arg-type] # loads no image
    units = _find_units(dataset, groups)
    parts = stratify(targets[:, np.argsort(dataset.features['labels'].feature.names)], shares, units, seed)
    if len(np.unique(parts)) < len(shares):
        kinds = '' if units.max() + 1 == len(units) else f' in {units.max() + 1:,} units that stay together'
        parts_text = ', '.join(f'{share:.3g}' for share in shares)
        raise InputError(
            f'{len(units):,} images{kinds} are too few to divide into parts of {parts_text}: use other shares, or more'
            ' images.'
        )
    return parts, units


def hold_out(dataset: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divides a data set into training and validation images, always in the same way.

    Args:
        dataset: Data set of `msff_timm.data.load`.
        share: Share of the validation images.

    Returns:
        Training and validation images, in the order of the data set.
    """
    parts, _ = divide(dataset, [1 - share, share])
    return dataset.select(np.flatnonzero(parts == 0)), dataset.select(np.flatnonzero(parts == 1))


def _find_units(dataset: datasets.Dataset, groups: Sequence[object] | None) -> np.ndarray:
    """Numbers the units of images of the same content or group (N,); units that share an image are one."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    num_images = len(dataset)
    pairs = []
    if isinstance(dataset.features['image'], Image):  # scenes are drawn
        report = SplitReport(num_images, 0, {}, [], [])
        images = list(find_images('', dataset, dataset['image_id'][:], report))
        pairs += [(image.row, same[0].row) for same in group_same(images, {'': dataset})[0] for image in same]
    first: dict[object, int] = {}
    pairs += [(row, first.setdefault(group, row)) for row, group in enumerate(groups or ()) if group is not None]
    rows, others = np.array(pairs, int).reshape(-1, 2).T
    graph = csr_array((np.ones(len(rows)), (rows, others)), shape=(num_images, num_images))
    return connected_components(graph, directed=False)[1]
