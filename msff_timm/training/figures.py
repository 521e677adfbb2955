"""The figures of a training run: curves, average precision of each label, reliability, and the worst mistakes.

A run starts without matplotlib, so it is imported where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np

from ..data import figures
from ..data.figures import DPI, GAP, MOST_LABELS, Tile, draw_sheet, ends, short, thumbnail
from ..data.images import undecoded
from ..files import replace_file
from ..results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['draw_ap', 'draw_mistakes', 'draw_reliability', 'plot_curves', 'save_figure']

LINE = 34  # characters of a caption


def save_figure(figure: Figure, path: str | Path, **options: object) -> None:
    """Writes a figure as PNG, in one step."""
    with replace_file(path) as temporary:
        figures.save_figure(figure, temporary, format='png', dpi=DPI, **options)


def plot_curves(history: list[dict], path: str | Path) -> None:
    """Plots the loss, and the metrics of the EMA weights, over the epochs."""
    from matplotlib.figure import Figure

    epochs = [entry['epoch'] for entry in history]
    figure = Figure(figsize=(10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry['loss'] for entry in history], 'o-')
    left.set(xlabel='epoch', ylabel='training loss (mean over labels)')
    for name in ('mAP', 'CF1', 'OF1'):
        right.plot(epochs, [entry[name] for entry in history], 'o-', label=name)
    right.set(xlabel='epoch', ylabel='percent (EMA weights)')
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_mistakes(entries: dict[str, list[tuple[dict, str]]], dataset: datasets.Dataset, path: str | Path) -> None:
    """Draws the images of the worst mistakes.

    Args:
        entries: Mistakes, each with its probability as text, for each heading.
        dataset: Rows of the data set.
        path: PNG file to write.
    """
    rows = undecoded(dataset)
    figure = draw_sheet(
        {
            heading: [Tile(thumbnail(rows[entry['row']]), _caption(entry, probability)) for entry, probability in found]
            for heading, found in entries.items()
        }
    )
    save_figure(figure, path, bbox_inches='tight', pad_inches=GAP / DPI)


def _caption(entry: dict, probability: str) -> list[tuple[str, str]]:
    image_id = entry['image_id']
    lines = [image_id[start : start + LINE] for start in range(0, len(image_id), LINE)]
    return [(f'{short(entry["label"])}  {probability}', 'black'), *((line, '0.4') for line in lines)]


def draw_ap(results: Results) -> Figure:
    """Draws the average precision of each label, from the highest to the lowest, beside its number of positives."""
    from matplotlib.figure import Figure

    labels = {name: label for name, label in results.labels.items() if label['AP'] is not None}
    ranked = sorted(labels, key=lambda name: -labels[name]['AP'])
    shown = ends(ranked)
    places = np.arange(len(shown))
    figure = Figure((10, max(1.3 + 0.19 * len(shown), 2.5)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    columns = (
        (left, 'AP', '{:.1f}', f'average precision in percent ({results.definitions["mAP"]})'),
        (right, 'num_positives', '{:,}', 'positives'),
    )
    for axes, key, form, title in columns:
        values = np.array([labels[name][key] for name in shown])
        axes.barh(places, values, 0.8, color='C0' if axes is left else '0.6')
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                form.format(value),
                (value, place),
                (3, 0),
                textcoords='offset points',
                va='center',
                fontsize=7,
                bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},  # hides the line of mAP
            )
        axes.set_xlabel(title)
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
        if len(shown) < len(ranked):
            axes.axhline(MOST_LABELS // 2 - 0.5, color='0.3', linestyle=':')
    left.set(xlim=(0, 106), ylim=(len(shown) - 0.4, -0.6))
    left.axvline(results.metrics['mAP'], color='C3', linewidth=1, label=f'mAP {results.metrics["mAP"]:.2f}')
    left.set_yticks(places, [short(name) for name in shown], fontsize=8, parse_math=False)
    right.margins(x=0.2)
    right.tick_params(left=False)
    right.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc='outside upper right', fontsize=9)
    figure.suptitle(_ap_title(len(shown), len(ranked), results.num_classes), fontsize=11)
    return figure


def draw_reliability(measured: dict) -> Figure:
    """Draws the share of positives over the probability, above the number of entries of each bin.

    Args:
        measured: `Results.calibration`.
    """
    from matplotlib.figure import Figure

    figure = Figure((6, 6.5), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color='0.6', linestyle=':', label='perfect')
    for kind, style in (('uncalibrated', 's--'), ('calibrated', 'o-')):
        if kind in measured:
            numbers, probabilities, shares = zip(*(row for row in measured[kind]['reliability'] if row[0]), strict=True)
            text = f'{kind}: ECE {measured[kind]["ECE"]:.2f} %, Brier {measured[kind]["Brier"]:.4f}'
            (line,) = upper.plot(probabilities, shares, style, label=text)
            lower.plot(probabilities, numbers, style, color=line.get_color())
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel='share of positives')
    upper.legend(loc='upper left', fontsize=9)
    lower.set(xlabel='mean probability of the bin (all labels)', ylabel='entries', yscale='log')
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


def _ap_title(num_shown: int, num_ranked: int, num_classes: int) -> str:
    title = f'{num_ranked} labels'
    if num_shown < num_ranked:
        title = f'the {MOST_LABELS // 2} highest and the {MOST_LABELS // 2} lowest of {title}'
    num_left_out = num_classes - num_ranked
    return f'{title}; {num_left_out} more have no positive or no absent entry' if num_left_out else title
