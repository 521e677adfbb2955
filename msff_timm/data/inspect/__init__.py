"""A look at a data set before training: counts, files that are missing or the same, and images of all that.

`datasets` and matplotlib are extras, so they are imported where they are used.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from .. import label_names, load
from ..bit_depth import ValueRange
from ..counts import LabelCounts
from ..figures import COLUMNS, DPI, GAP, MOST_LABELS, Tile, draw_sheet, ends, save_figure, short, thumbnail, undecoded
from ..images import decode

if TYPE_CHECKING:
    import datasets
    from matplotlib.figure import Figure

__all__ = ['Report', 'SplitReport', 'draw', 'inspect', 'load_splits']

DEFAULT_SPLITS = ('train', 'validation')
FEW = 5  # positives: average precision on fewer says little
TAIL = 4096  # bytes at the end of a file that are compared before the whole of it
BLOCK = 8192  # rows whose labels are multiplied at once
CHUNK = 16  # images that a process reads at once
MOST_NAMES, MOST_GROUPS, MOST_FILES = 20, 10, 20  # that the text lists
MOST_SCALES = 8
ROWS = 4  # of the contact sheet
BY_VALUES = 'by their values'


@dataclass
class SplitReport:
    """What there is in one split.

    Attributes:
        num_images: Rows.
        num_unlabelled: Images without any label.
        labels_per_image: `min`, `mean`, `median` and `max`.
        positives: Of each label.
        ignored: Images in which each label is masked.
        missing: Paths at which there is no file.
        unreadable: A message for each image that cannot be read; without `check` only of files that are empty or may
            not be opened.
        num_read: Images that were decoded.
        modes: Number of decoded images of each of Pillow's modes.
        widths: Least, median and greatest of the decoded images, upright; None without any.
        heights: Likewise.
        values: Least and greatest value of the decoded images of more than 8 bits; None without any.
        scales: Number of those images by the values that become black and white, and what decides them.
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
    """What there is in a data set.

    Attributes:
        label_names: In the order of the logits.
        splits: By name.
        co_occurrence: Number of images of all splits with both labels (K, K).
        duplicates: Groups of images of the same content, as (split, image); those across splits come first.
        shared_ids: For each two splits the values of `image_id` that are in both.
        data: Name of the data set, which decides the settings that the text names; None if it is not known.
    """

    label_names: list[str]
    splits: dict[str, SplitReport]
    co_occurrence: np.ndarray
    duplicates: list[list[tuple[str, str]]]
    shared_ids: dict[tuple[str, str], list[str]]
    data: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether no file is missing or known to be unreadable."""
        return not any(split.missing or split.unreadable for split in self.splits.values())

    def lines(self) -> list[str]:
        """Puts the report into text."""
        return [*self._overview(), '', *self._table(), '', *self._labels(), *self._files()]

    def to_dict(self) -> dict:
        """Makes JSON values; of co-occurrences those that are not 0."""
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

    def _overview(self) -> Iterator[str]:
        width = max(map(len, ('split', *self.splits)))
        yield f'{"split":{width}}   images  unlabelled  labels per image: min   mean  median    max'
        for name, split in self.splits.items():
            least, mean, median, most = (split.labels_per_image[key] for key in ('min', 'mean', 'median', 'max'))
            yield (
                f'{name:{width}}  {split.num_images:7,}  {split.num_unlabelled:10,}'
                f'  {least:21g}  {mean:5.2f}  {median:6g}  {most:5g}'
            )

    def _table(self) -> Iterator[str]:
        width = max(map(len, ('label', *self.label_names)))
        columns = {name: any(split.ignored) for name, split in self.splits.items()}
        heads = [f'{name:>17}' + (f'  {"ignored":>8}' if has_ignored else '') for name, has_ignored in columns.items()]
        yield f'{"label":{width}}  {"  ".join(heads)}'
        ranked = _ranked(self)
        shown = ends(ranked)
        for place, k in enumerate(shown):
            if len(shown) < len(ranked) and place == len(shown) // 2:
                yield f'... ({len(ranked) - len(shown)} labels in between)'
            cells = []
            for name, split in self.splits.items():
                cell = f'{split.positives[k]:8,}  {split.positives[k] / split.num_images:7.2%}'
                cells.append(cell + (f'  {split.ignored[k]:8,}' if columns[name] else ''))
            yield f'{self.label_names[k]:{width}}  {"  ".join(cells)}'

    def _labels(self) -> Iterator[str]:
        total = np.sum([split.positives for split in self.splits.values()], 0)
        yield from self._named('without any example at all', np.flatnonzero(total == 0))
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
            names = ', '.join(self.label_names[k] for k in labels[:MOST_NAMES])
            yield f'{what}: {len(labels)} labels ({names}{", ..." if len(labels) > MOST_NAMES else ""})'

    def _files(self) -> Iterator[str]:
        for name, split in self.splits.items():
            for what, found in (('missing', split.missing), ('unreadable', split.unreadable)):
                if found:
                    yield f'{what} in {name}: {len(found)} images'
                    yield from _first(found, MOST_FILES)
            if split.num_read:
                modes = ', '.join(f'{mode} {count}' for mode, count in split.modes.items())
                sides = (f'{a:g} / {b:g} / {c:g}' for a, b, c in (split.widths, split.heights))
                yield f'read in {name}: {split.num_read} images ({modes}), width {next(sides)}, height {next(sides)}'
            if split.values:
                yield from _depth(name, split)
        across = sum(len({split for split, _ in group}) > 1 for group in self.duplicates)
        yield f'groups of images of the same content: {len(self.duplicates)}, {across} of them across splits'
        yield from _first([' = '.join(map(' '.join, group)) for group in self.duplicates], MOST_GROUPS)
        for (a, b), ids in self.shared_ids.items():
            some = ', '.join(ids[:5]) + (', ...' if len(ids) > 5 else '')
            yield f'image_id in both {a} and {b}: {len(ids)} ({some})'


def _depth(name: str, split: SplitReport) -> Iterator[str]:
    """Reports the images of more than 8 bits."""
    low, high = split.values
    count = sum(split.scales.values())
    yield f'more than 8 bits in {name}: {count} images, values from {low:,.7g} to {high:,.7g}; black and white are'
    yield from _first([f'{scale}: {number}' for scale, number in split.scales.items()], MOST_SCALES)
    if sum(scale.endswith(BY_VALUES) for scale in split.scales) > 1:
        yield '  To give them one scale, state it in the files (SMinSampleValue, SMaxSampleValue of TIFF; sBIT of PNG).'


def _first(found: Sequence[str], most: int) -> Iterator[str]:
    yield from (f'  {line}' for line in found[:most])
    if len(found) > most:
        yield f'  ... ({len(found) - most} more)'


def _ranked(report: Report) -> list[int]:
    """Orders labels by their positives in all splits, most first."""
    total = np.sum([split.positives for split in report.splits.values()], 0)
    return np.argsort(-total, kind='stable').tolist()


def load_splits(
    name: str, splits: Sequence[str] | None = None, **arguments: object
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Loads splits of a data set.

    Args:
        name: As for `msff_timm.data.load`.
        splits: Their names; None for those of training and validation that there are.
        **arguments: Of `msff_timm.data.load`.

    Returns:
        The splits, and why others did not load.

    Raises:
        InputError: No split loads, or one of those that are named does not, or an extra is missing.
    """
    loaded, errors = {}, []
    for split in splits or DEFAULT_SPLITS:
        try:
            loaded[split] = load(name, split, **arguments)
        except ModuleNotFoundError as e:
            raise InputError(f"data sets need {e.name}: pip install 'msff-timm[train]'") from None
        except InputError as e:
            if splits:
                raise
            errors.append(e)
    if not loaded:
        raise errors[0]
    return loaded, [str(e) for e in errors]


def inspect(
    splits: dict[str, datasets.Dataset], check: bool = False, workers: int | None = None, data: str | None = None
) -> Report:
    """Counts labels and looks for files that are missing or the same.

    Args:
        splits: What `msff_timm.data.load` gave, by name.
        check: Decode every image.
        workers: Processes that do so, 0 for this one; None for one on each processor.
        data: Name of the data set, as for `msff_timm.data.load`.

    Raises:
        InputError: The splits have not the same labels, or `workers` is negative, or a process ended early.
    """
    if workers is not None and workers < 0:
        raise InputError(f'workers is {workers}: must be at least 0.')
    names = {split: label_names(dataset) for split, dataset in splits.items()}
    first = next(iter(names))
    for split in names:
        if names[split] != names[first]:
            raise InputError(f'the labels of {split} are not those of {first}: give both the same label names.')
    co_occurrence = np.zeros((len(names[first]),) * 2, np.int64)
    reports, ids, pictures = {}, {}, []
    for split, dataset in splits.items():
        reports[split], ids[split] = _count(dataset, co_occurrence)
        if _has_files(dataset):
            pictures += _find(split, dataset, ids[split], reports[split])
    duplicates = _duplicates(pictures, splits, reports)
    if check:
        _check(pictures, splits, reports, (os.cpu_count() or 1) if workers is None else workers)
    shared = {}
    for a, b in combinations(ids, 2):
        others = set(ids[b])
        if common := [image_id for image_id in ids[a] if image_id in others]:
            shared[a, b] = common
    return Report(names[first], reports, co_occurrence, duplicates, shared, data)


def _count(dataset: datasets.Dataset, co_occurrence: np.ndarray) -> tuple[SplitReport, list[str]]:
    """Counts the labels of a split, and adds to the co-occurrences; returns the split's image ids too."""
    import pyarrow.compute as pc

    num_labels = len(co_occurrence)
    table = dataset.select_columns(['labels', 'ignore', 'image_id']).with_format('arrow')[:]
    per_image = pc.list_value_length(table['labels']).to_numpy()
    labels = pc.list_flatten(table['labels']).to_numpy()
    ignored = pc.list_flatten(table['ignore']).to_numpy()
    rows = np.repeat(np.arange(len(per_image)), per_image)
    for start in range(0, len(per_image), BLOCK):
        low, high = np.searchsorted(rows, [start, start + BLOCK])
        present = np.zeros((BLOCK, num_labels), np.float32)
        present[rows[low:high] - start, labels[low:high]] = 1
        co_occurrence += (present.T @ present).astype(np.int64)
    measures = {key: float(getattr(np, key)(per_image)) for key in ('min', 'mean', 'median', 'max')}
    report = SplitReport(
        num_images=len(per_image),
        num_unlabelled=int((per_image == 0).sum()),
        labels_per_image=measures,
        positives=np.bincount(labels, minlength=num_labels).tolist(),
        ignored=np.bincount(ignored, minlength=num_labels).tolist(),
    )
    return report, table['image_id'].to_pylist()


@dataclass(slots=True)
class _Picture:
    """A image that a file or a row holds; `path` is None for a row, `tail` for a file."""

    split: str
    row: int
    name: str
    path: str | None
    size: int
    tail: bytes | None = None


def _has_files(dataset: datasets.Dataset) -> bool:
    import datasets

    return isinstance(dataset.features['image'], datasets.Image)


def _find(split: str, dataset: datasets.Dataset, ids: list[str], report: SplitReport) -> Iterator[_Picture]:
    """Finds the images of a split that are there, and notes which are not."""
    row = 0
    for batch in dataset.select_columns(['image']).with_format('arrow').iter(batch_size=1000):
        images = batch['image'].combine_chunks()
        for content, path in zip(images.field('bytes'), images.field('path').to_pylist(), strict=True):
            name = path or f'image {ids[row]}'
            picture = None
            if content.is_valid:
                buffer = content.as_buffer()
                tail = hashlib.sha256(buffer[max(len(buffer) - TAIL, 0) :]).digest()
                picture = _Picture(split, row, name, None, len(buffer), tail)
            elif path is None:
                report.missing.append(name)
            else:
                try:
                    picture = _Picture(split, row, name, path, os.stat(path).st_size)
                except OSError:
                    report.missing.append(path)
            if picture and picture.size:
                yield picture
            elif picture:
                report.unreadable.append(
                    f'{name}: is {"empty" if path is None or os.path.isfile(path) else "no file"}.'
                )
            row += 1


def _duplicates(
    pictures: list[_Picture], splits: dict[str, datasets.Dataset], reports: dict[str, SplitReport]
) -> list[list[tuple[str, str]]]:
    """Groups images of the same content: of the same size, then of the same end, then of the same digest."""
    rows = {split: undecoded(dataset) for split, dataset in splits.items()}

    def end(picture: _Picture) -> bytes:
        if picture.tail is None:
            with open(picture.path, 'rb') as file:
                file.seek(max(picture.size - TAIL, 0))
                picture.tail = hashlib.sha256(file.read()).digest()
        return picture.tail

    def digest(picture: _Picture) -> bytes:
        if picture.path is None:
            return hashlib.sha256(rows[picture.split][picture.row]['image']['bytes']).digest()
        return hashlib.sha256(Path(picture.path).read_bytes()).digest()

    failed = set()
    groups = [pictures]
    for key in (lambda picture: picture.size, end, digest):
        finer = []
        for group in groups:
            by_key = defaultdict(list)
            for picture in group:
                try:
                    by_key[key(picture)].append(picture)
                except OSError as e:
                    failed.add((picture.split, picture.row))
                    message = f'{picture.name}: cannot be read as a image ({e.strerror}).'
                    reports[picture.split].unreadable.append(message)
            finer += [same for same in by_key.values() if len(same) > 1]
        groups = finer
    pictures[:] = [picture for picture in pictures if (picture.split, picture.row) not in failed]
    found = [[(picture.split, picture.name) for picture in group] for group in groups]
    return sorted(found, key=lambda group: len({split for split, _ in group}) == 1)


def _check(
    pictures: list[_Picture], splits: dict[str, datasets.Dataset], reports: dict[str, SplitReport], workers: int
) -> None:
    """Decodes every image and notes what came of it."""
    from tqdm import tqdm

    rows = {split: undecoded(dataset) for split, dataset in splits.items()}
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    tasks = ([(_source(picture, rows), picture.name) for picture in chunk] for chunk in chunks)
    results: dict[int, list] = {}
    with tqdm(total=len(pictures), unit='image', leave=False, file=sys.stderr) as progress:
        for number, result in _spread(tasks, workers):
            results[number] = result
            progress.update(len(result))
    read = defaultdict(list)
    for number, chunk in enumerate(chunks):
        for picture, result in zip(chunk, results[number], strict=True):
            if isinstance(result, str):
                reports[picture.split].unreadable.append(result)
            else:
                read[picture.split].append(result)
    for split, found in read.items():
        modes = [result.mode for result in found]
        widths, heights = zip(*(result.size for result in found), strict=True)
        deep = [result.values for result in found if result.values]
        if deep:
            reports[split].values = [min(values.lowest for values in deep), max(values.highest for values in deep)]
            scales = Counter(
                f'{v.black:,.10g} and {v.white:,.10g}, {"as the file states" if v.is_stated else BY_VALUES}'
                for v in deep
            )
            reports[split].scales = dict(scales.most_common())
        reports[split].num_read = len(found)
        reports[split].modes = dict(Counter(modes).most_common())
        reports[split].widths, reports[split].heights = (
            [float(value) for value in (min(sides), np.median(sides), max(sides))] for sides in (widths, heights)
        )


def _source(picture: _Picture, rows: dict[str, datasets.Dataset]) -> str | bytes:
    return picture.path or rows[picture.split][picture.row]['image']['bytes']


def _spread(tasks: Iterator[list], workers: int) -> Iterator[tuple[int, list]]:
    """Runs `_read` on tasks in several processes, a few ahead, as images of Parquet files fill the memory."""
    if not workers:
        yield from enumerate(map(_read, tasks))
        return
    # A forked process has all modules at once, where a fresh one takes seconds for PyTorch; it only runs Pillow.
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else 'spawn')
    pool = ProcessPoolExecutor(workers, context, _quiet)
    running, numbered = {}, enumerate(tasks)
    try:
        while True:
            for number, task in islice(numbered, 3 * workers - len(running)):
                running[pool.submit(_read, task)] = number
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as e:
        raise InputError(f'a process that read images ended early ({e}).') from None
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    # Ctrl-C reaches all processes of the terminal: these end at once and without a traceback, unless their parent
    # ignores it, as what runs in a shell's background does.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(slots=True)
class _Found:
    """What is kept of a decoded image: its mode, its upright size, and the values of one of more than 8 bits."""

    mode: str
    size: tuple[int, int]
    values: ValueRange | None


def _read(task: list[tuple[str | bytes, str]]) -> list[_Found | str]:
    """Decodes images: what is kept of each, or why it cannot be read."""
    results = []
    for source, name in task:
        try:
            decoded = decode(source, name)
            results.append(_Found(decoded.mode, decoded.image.size, decoded.values))
        except InputError as e:
            results.append(str(e))
    return results


def draw(report: Report, splits: dict[str, datasets.Dataset], folder: str | Path, seed: int = 0) -> list[Path]:
    """Draws `classes.png`, `co_occurrence.png` and `samples.png`, and writes all figures to `inspect.json`.

    Args:
        report: Of the splits.
        splits: What `inspect` was given.
        folder: Made where there is none.
        seed: Decides which images are shown.

    Returns:
        The four files.

    Raises:
        InputError: matplotlib is missing, or the folder cannot be written.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("drawing needs matplotlib: pip install 'msff-timm[explain]'") from None
    folder = Path(folder)
    figures = {
        'classes.png': lambda: _draw_classes(report),
        'co_occurrence.png': lambda: _draw_co_occurrence(report),
        'samples.png': lambda: _draw_samples(report, splits, seed),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in figures.items():
            save_figure(make(), folder / name, dpi=DPI, bbox_inches='tight', pad_inches=GAP / DPI)
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
        (folder / 'inspect.json').write_text(text + '\n', encoding='utf-8')
    except OSError as e:
        raise InputError(f'{folder}: cannot be written ({e.strerror}).') from None
    return [folder / name for name in (*figures, 'inspect.json')]


def _draw_classes(report: Report) -> Figure:
    """Draws a histogram for each split, all in the order of the counts in all splits."""
    from matplotlib.figure import Figure

    ranked = _ranked(report)
    shown = ends(ranked)
    places = np.arange(len(shown))
    figure = Figure((2 + 4.5 * len(report.splits), max(1.2 + 0.19 * len(shown), 2.5)), layout='constrained')
    panels = figure.subplots(1, len(report.splits), sharey=True, squeeze=False)[0]
    for axes, (name, split) in zip(panels, report.splits.items(), strict=True):
        positives, ignored = (np.array(counts)[shown] for counts in (split.positives, split.ignored))
        axes.barh(places, positives, 0.8, color='C0', label='positives')
        if ignored.any():
            axes.barh(places, ignored, 0.8, left=positives, color='0.75', label='ignored')
            axes.legend(loc='lower right')
        reach = positives + ignored
        for place, end, count in zip(places, reach, positives, strict=True):
            axes.text(end + reach.max() * 0.01, place, f'{count:,}', va='center', fontsize=7)
        axes.set(xlabel='images', xlim=(0, max(reach.max() * 1.12, 1)), ylim=(len(shown) - 0.4, -0.6))
        axes.set_title(f'{name}: {split.num_images:,} images', fontsize=10, parse_math=False)
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(places, [short(report.label_names[k]) for k in shown], fontsize=8, parse_math=False)
    if len(shown) < len(ranked):
        half = MOST_LABELS // 2
        panels[0].axhline(half - 0.5, color='0.3', linestyle=':')
        figure.suptitle(f'the {half} most and the {half} least frequent of {len(ranked)} labels', fontsize=11)
    return figure


def _draw_co_occurrence(report: Report) -> Figure:
    """Draws how often each label comes with each other one, in the data set's own order, which groups like labels."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    shown = sorted(_ranked(report)[:MOST_LABELS])
    counts = report.co_occurrence[np.ix_(shown, shown)]
    totals = np.diag(counts)
    shares = np.where(totals[:, None] > 0, 100 * counts / np.maximum(totals, 1)[:, None], np.nan)
    np.fill_diagonal(shares, np.nan)
    side = max(5.0, 0.17 * len(shown) + 1.5)
    figure = Figure((side + 1.5, side), layout='constrained')
    axes = figure.subplots()
    axes.set_facecolor('0.85')
    # The root shows what is rare, as most shares are.
    image = axes.imshow(shares, cmap='viridis', norm=PowerNorm(0.5, 0, 100))
    names = [short(report.label_names[k]) for k in shown]
    rows = [f'{name} ({total:,})' for name, total in zip(names, totals, strict=True)]
    size = 7 if len(shown) > 20 else 9
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(shown)), rows, fontsize=size, parse_math=False)
    if len(shown) <= 20:
        for i, j in np.argwhere(~np.isnan(shares)):
            colour = 'black' if shares[i, j] > 40 else 'white'
            axes.text(j, i, f'{shares[i, j]:.0f}', ha='center', va='center', fontsize=8, color=colour)
    title = "P(column | row): of the images with the row's label, percent that have the column's"
    if len(shown) < len(report.label_names):
        title += f'\nthe {len(shown)} most frequent of {len(report.label_names)} labels'
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6, label='percent', ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    return figure


def _draw_samples(report: Report, splits: dict[str, datasets.Dataset], seed: int) -> Figure:
    """Draws images chosen at random, with their labels; what is ignored is grey and has a question mark."""
    parts = np.array_split(np.arange(max(ROWS, len(splits))), len(splits))
    rng = np.random.default_rng(seed)
    sheet = {}
    for part, (name, dataset) in zip(parts, splits.items(), strict=True):
        chosen = np.sort(rng.choice(len(dataset), min(len(part) * COLUMNS, len(dataset)), replace=False)).tolist()
        rows = undecoded(dataset)
        sheet[f'{name}: {len(chosen)} of {len(dataset):,} images'] = [
            Tile(thumbnail(row), _caption(row, report.label_names)) for row in map(rows.__getitem__, chosen)
        ]
    return draw_sheet(sheet)


def _caption(row: dict, names: list[str]) -> list[tuple[str, str]]:
    present = textwrap.wrap(', '.join(short(names[k]) for k in row['labels']) or '(no label)', 32)
    ignored = textwrap.wrap(', '.join(f'{short(names[k])}?' for k in row['ignore']), 32)
    return [(line, 'black') for line in present] + [(line, '0.55') for line in ignored]
