"""Figures of an inspection: label counts, co-occurrence of labels, and sample images. matplotlib is an extra."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InputError
from ..figures import COLUMNS, DPI, GAP, MOST_LABELS, Tile, draw_sheet, ends, save_figure, short, thumbnail
from ..images import undecoded
from .report import Report

if TYPE_CHECKING:
    import datasets
    from matplotlib.figure import Figure

__all__ = ['draw']

ROWS = 4  # of the sheet of sample images


def draw(report: Report, splits: dict[str, datasets.Dataset], folder: str | Path, seed: int = 0) -> list[Path]:
    """Draws `classes.png`, `co_occurrence.png` and `samples.png`, and writes all numbers to `inspect.json`.

    Args:
        report: Report on the splits.
        splits: Splits as for `inspect`.
        folder: Folder to write to; it is created if necessary.
        seed: Seed of the choice of sample images.

    Returns:
        Paths of the four files.

    Raises:
        InputError: matplotlib is not installed, or the folder cannot be written.

    Examples:
        >>> from msff_timm.data.inspect import inspect, load_splits
        >>> splits, _ = load_splits('scenes', size=3)
        >>> [path.name for path in draw(inspect(splits), splits, 'inspected')]
        ['classes.png', 'co_occurrence.png', 'samples.png', 'inspect.json']
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("figures need matplotlib: pip install 'msff-timm[explain]'") from None
    folder = Path(folder)
    figures = {
        'classes.png': lambda: _draw_counts(report),
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


def _draw_counts(report: Report) -> Figure:
    """Draws the label counts of each split, in the order of the counts in all splits."""
    from matplotlib.figure import Figure

    ranked = report.ranked_labels()
    drawn = ends(ranked)
    places = np.arange(len(drawn))
    figure = Figure((2 + 4.5 * len(report.splits), max(1.2 + 0.19 * len(drawn), 2.5)), layout='constrained')
    panels = figure.subplots(1, len(report.splits), sharey=True, squeeze=False)[0]
    for axes, (name, split) in zip(panels, report.splits.items(), strict=True):
        positives, ignored = (np.array(counts)[drawn] for counts in (split.positives, split.ignored))
        axes.barh(places, positives, 0.8, color='C0', label='positives')
        if ignored.any():
            axes.barh(places, ignored, 0.8, left=positives, color='0.75', label='ignored')
            axes.legend(loc='lower right')
        reach = positives + ignored
        for place, end, count in zip(places, reach, positives, strict=True):
            axes.text(end + reach.max() * 0.01, place, f'{count:,}', va='center', fontsize=7)
        axes.set(xlabel='images', xlim=(0, max(reach.max() * 1.12, 1)), ylim=(len(drawn) - 0.4, -0.6))
        axes.set_title(f'{name}: {split.num_images:,} images', fontsize=10, parse_math=False)
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_yticks(places, [short(report.label_names[k]) for k in drawn], fontsize=8, parse_math=False)
    if len(drawn) < len(ranked):
        half = MOST_LABELS // 2
        panels[0].axhline(half - 0.5, color='0.3', linestyle=':')
        figure.suptitle(f'the {half} most and the {half} least frequent of {len(ranked)} labels', fontsize=11)
    return figure


def _draw_co_occurrence(report: Report) -> Figure:
    """Draws how often labels occur together, in the order of the data set, which often groups similar labels."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    drawn = sorted(report.ranked_labels()[:MOST_LABELS])
    counts = report.co_occurrence[np.ix_(drawn, drawn)]
    totals = np.diag(counts)
    shares = np.where(totals[:, None] > 0, 100 * counts / np.maximum(totals, 1)[:, None], np.nan)
    np.fill_diagonal(shares, np.nan)
    side = max(5.0, 0.17 * len(drawn) + 1.5)
    figure = Figure((side + 1.5, side), layout='constrained')
    axes = figure.subplots()
    axes.set_facecolor('0.85')
    # The square root makes small shares visible, which most are.
    image = axes.imshow(shares, cmap='viridis', norm=PowerNorm(0.5, 0, 100))
    names = [short(report.label_names[k]) for k in drawn]
    rows = [f'{name} ({total:,})' for name, total in zip(names, totals, strict=True)]
    size = 7 if len(drawn) > 20 else 9
    axes.set_xticks(range(len(drawn)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(drawn)), rows, fontsize=size, parse_math=False)
    if len(drawn) <= 20:
        for i, j in np.argwhere(~np.isnan(shares)):
            colour = 'black' if shares[i, j] > 40 else 'white'
            axes.text(j, i, f'{shares[i, j]:.0f}', ha='center', va='center', fontsize=8, color=colour)
    title = 'P(column | row): percentage of the images of the row label that also have the column label'
    if len(drawn) < len(report.label_names):
        title += f'\nthe {len(drawn)} most frequent of {len(report.label_names)} labels'
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6, label='percent', ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    return figure


def _draw_samples(report: Report, splits: dict[str, datasets.Dataset], seed: int) -> Figure:
    """Draws random images with their labels; masked labels are grey, with a question mark."""
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
