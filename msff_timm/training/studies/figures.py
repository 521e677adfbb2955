"""Plots of a study: mAP over cost, and each label's average precision."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...data.figures import ends, short

__all__ = ['plot_cost', 'plot_labels']

MARKERS = 'osD^vP*XhH<>'


def plot_cost(table: dict) -> Figure:
    """Plots mAP over cost, with the standard deviation over the seeds."""
    rows = table['rows']
    panels = {'GFLOPs per image': [row['gflops'] for row in rows]}
    panels['parameters in millions'] = [row['num_parameters'] / 1e6 for row in rows]
    if table['speed']:
        title = f'ms per image ({table["speed"]["device"]}, batch size {table["speed"]["batch_size"]})'
        panels[title] = [1000 / row['images_per_second'] for row in rows]
    figure = Figure((4.5 * len(panels), 4.2), layout='constrained')
    plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, costs) in zip(plots, panels.items(), strict=True):
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True)):
            style = {'fmt': MARKERS[number % len(MARKERS)], 'color': f'C{number % 10}', 'capsize': 3}
            axes.errorbar(cost, row['mean']['mAP'], row['std']['mAP'], label=short(row['name']), **style)
        axes.set_xlim(left=0)
        axes.margins(x=0.1)
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    plots[0].set_ylabel(f'mAP in percent, {table["data"]["name"]} {table["data"]["split"]}')
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(3, len(rows)), fontsize=9)
    return figure


def plot_labels(table: dict) -> Figure:
    """Plots each label's average precision in every row, one dot per seed, sorted by the reference."""
    means = {
        row['name']: {label: np.mean(values) for label, values in row['AP'].items() if None not in values}
        for row in table['rows']
    }
    ranked = sorted(means[table['reference']], key=lambda label: -means[table['reference']][label])
    shown, count = ends(ranked), len(table['rows'])
    figure = Figure((8, max(1.5 + 0.09 * len(shown) * max(count, 3), 3)), layout='constrained')
    axes = figure.subplots()
    for number, row in enumerate(table['rows']):
        places = np.arange(len(shown)) + 0.8 * ((number + 0.5) / count - 0.5)
        style: dict[str, Any] = {'color': f'C{number % 10}', 'markersize': 4}
        for seed in range(len(table['seeds'])):
            axes.plot([row['AP'][label][seed] for label in shown], places, '.', alpha=0.4, **style)
        values = [means[row['name']][label] for label in shown]
        axes.plot(values, places, MARKERS[number % len(MARKERS)], label=short(row['name']), **style)
    for place in range(1, len(shown)):
        axes.axhline(place - 0.5, color='0.9', linewidth=0.8)
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel=f'average precision in percent ({table["definitions"]["mAP"]})')
    axes.set_yticks(range(len(shown)), [short(name) for name in shown], fontsize=8, parse_math=False)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc='outside upper center', ncols=min(3, count), fontsize=9)
    return figure
