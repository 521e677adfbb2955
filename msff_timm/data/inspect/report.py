"""The report of an inspection: counts of images and labels, files with problems, and duplicates, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..counts import LabelCounts
from ..figures import ends

__all__ = ['BY_VALUES', 'Report', 'SplitReport']

FEW = 5  # positives; average precision on fewer is hardly meaningful
MAX_NAMES, MAX_GROUPS, MAX_FILES, MAX_SCALES = 20, 10, 20, 8  # listed in the text
BY_VALUES = 'by their values'


@dataclass
class SplitReport:
    """Report on one split.

    Attributes:
        num_images: Number of images.
        num_unlabelled: Number of images without labels.
        labels_per_image: Statistics with the keys `min`, `mean`, `median` and `max`.
        positives: Number of positives of each label.
        ignored: Number of images in which each label is masked.
        missing: Paths of missing files.
        unreadable: Message for each image that cannot be read; unless images are decoded, only for files that are empty
            or cannot be opened.
        num_read: Number of decoded images.
        modes: Number of decoded images of each mode of Pillow.
        widths: Minimum, median and maximum of the decoded images after rotation by EXIF; None without any.
        heights: Minimum, median and maximum of the decoded images after rotation by EXIF; None without any.
        values: Minimum and maximum of the decoded images of more than 8 bits; None without any.
        scales: Number of images of more than 8 bits for each pair of black and white values, and the origin of these.

    Examples:
        >>> from msff_timm.data.inspect import inspect, load_splits
        >>> splits, _ = load_splits('scenes', size=3)
        >>> inspect(splits).splits['train'].labels_per_image['mean']
        4.0
    """

    num_images: int
    num_unlabelled: int
    labels_per_image: dict[str, float]
    positives: list[int]
    ignored: list[int]
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    num_read: int = 0
    modes: dict[str, int] = field(default_factory=dict)
    widths: list[float] | None = None
    heights: list[float] | None = None
    values: list[float] | None = None
    scales: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """Report on a data set.

    Attributes:
        label_names: Label names in the order of the logits.
        splits: Report on each split.
        co_occurrence: Number of images of all splits that hold both labels (K, K).
        duplicates: Groups of images with the same content, as (split, image); groups across splits come first.
        shared_ids: Values of `image_id` that occur in both of two splits.
        data: Name of the data set, which decides what fixes the text suggests; None if it is unknown.

    Examples:
        >>> from msff_timm.data.inspect import inspect, load_splits
        >>> splits, _ = load_splits('scenes', size=3)
        >>> inspect(splits).co_occurrence.shape
        (12, 12)
    """

    label_names: list[str]
    splits: dict[str, SplitReport]
    co_occurrence: np.ndarray
    duplicates: list[list[tuple[str, str]]]
    shared_ids: dict[tuple[str, str], list[str]]
    data: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether no file is missing or known to be unreadable."""
        return not any(split.missing or split.unreadable for split in self.splits.values())

    def ranked_labels(self) -> list[int]:
        """Returns the labels in the order of their positives in all splits, most frequent first."""
        return np.argsort(-self._totals(), kind='stable').tolist()

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        return [*self._overview(), '', *self._table(), '', *self._labels(), *self._files()]

    def to_dict(self) -> dict:
        """Returns the report as JSON values; co-occurrences of 0 are omitted."""
        names = self.label_names
        return {
            'label_names': names,
            'splits': {name: vars(split) for name, split in self.splits.items()},
            'co_occurrence': {
                name: {names[k]: int(row[k]) for k in np.flatnonzero(row)}
                for name, row in zip(names, self.co_occurrence, strict=True)
            },
            'duplicates': [[list(member) for member in group] for group in self.duplicates],
            'shared_ids': [{'splits': list(pair), 'image_ids': ids} for pair, ids in self.shared_ids.items()],
        }

    def _totals(self) -> np.ndarray:
        return np.sum([split.positives for split in self.splits.values()], 0)

    def _overview(self) -> Iterator[str]:
        width = max(map(len, ('split', *self.splits)))
        yield f'{"split":{width}}   images  unlabelled  labels per image: min   mean  median    max'
        for name, split in self.splits.items():
            low, mean, median, high = (split.labels_per_image[key] for key in ('min', 'mean', 'median', 'max'))
            yield (
                f'{name:{width}}  {split.num_images:7,}  {split.num_unlabelled:10,}'
                f'  {low:21g}  {mean:5.2f}  {median:6g}  {high:5g}'
            )

    def _table(self) -> Iterator[str]:
        width = max(map(len, ('label', *self.label_names)))
        columns = {name: any(split.ignored) for name, split in self.splits.items()}
        heads = [f'{name:>17}' + (f'  {"ignored":>8}' if has_ignored else '') for name, has_ignored in columns.items()]
        yield f'{"label":{width}}  {"  ".join(heads)}'
        ranked = self.ranked_labels()
        listed = ends(ranked)
        for place, k in enumerate(listed):
            if len(listed) < len(ranked) and place == len(listed) // 2:
                yield f'... ({len(ranked) - len(listed)} labels in between)'
            cells = []
            for name, split in self.splits.items():
                cell = f'{split.positives[k]:8,}  {split.positives[k] / split.num_images:7.2%}'
                cells.append(cell + (f'  {split.ignored[k]:8,}' if columns[name] else ''))
            yield f'{self.label_names[k]:{width}}  {"  ".join(cells)}'

    def _labels(self) -> Iterator[str]:
        yield from self._named('no positives in any split', np.flatnonzero(self._totals() == 0))
        for name, split in self.splits.items():
            positives = np.array(split.positives)
            negatives = split.num_images - positives - split.ignored
            counts = LabelCounts(self.label_names, positives, negatives, split.num_images, self.data)
            if line := counts.warning(name, trains=name.startswith('train')):
                yield line
            for kind, numbers in (('positives', positives), ('absent entries', negatives)):
                few = np.flatnonzero((numbers > 0) & (numbers < FEW))
                yield from self._named(f'1 to {FEW - 1} {kind} in {name}', few)

    def _named(self, what: str, labels: np.ndarray) -> Iterator[str]:
        if len(labels):
            names = ', '.join(self.label_names[k] for k in labels[:MAX_NAMES])
            yield f'{what}: {len(labels)} labels ({names}{", ..." if len(labels) > MAX_NAMES else ""})'

    def _files(self) -> Iterator[str]:
        for name, split in self.splits.items():
            for problem, found in (('missing', split.missing), ('unreadable', split.unreadable)):
                if found:
                    yield f'{problem} in {name}: {len(found)} images'
                    yield from _first(found, MAX_FILES)
            if split.num_read:
                modes = ', '.join(f'{mode} {count}' for mode, count in split.modes.items())
                width, height = (' / '.join(f'{side:g}' for side in sides) for sides in (split.widths, split.heights))
                yield f'read in {name}: {split.num_read} images ({modes}), width {width}, height {height}'
            if split.values:
                yield from _deep_images(name, split)
        across = sum(len({split for split, _ in group}) > 1 for group in self.duplicates)
        yield f'groups of duplicate images: {len(self.duplicates)}, {across} of them across splits'
        yield from _first([' = '.join(map(' '.join, group)) for group in self.duplicates], MAX_GROUPS)
        for (a, b), ids in self.shared_ids.items():
            some = ', '.join(ids[:5]) + (', ...' if len(ids) > 5 else '')
            yield f'image_id in both {a} and {b}: {len(ids)} ({some})'


def _deep_images(name: str, split: SplitReport) -> Iterator[str]:
    low, high = split.values
    count = sum(split.scales.values())
    yield f'more than 8 bits in {name}: {count} images, values from {low:,.7g} to {high:,.7g}; black and white are'
    yield from _first([f'{scale}: {number}' for scale, number in split.scales.items()], MAX_SCALES)
    if sum(scale.endswith(BY_VALUES) for scale in split.scales) > 1:
        yield '  For a common scale, store it in the files (SMinSampleValue, SMaxSampleValue of TIFF; sBIT of PNG).'


def _first(found: Sequence[str], most: int) -> Iterator[str]:
    yield from (f'  {line}' for line in found[:most])
    if len(found) > most:
        yield f'  ... ({len(found) - most} more)'
