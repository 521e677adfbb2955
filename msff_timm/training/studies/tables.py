"""Tables of what was trained alike: measures over seeds with intervals, cost, images, the paper's figures beside."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ...data.sheet import ends, short
from ...errors import InputError
from ...files import write_text
from ...hub.card import HUB_CARDS, escape
from ...metrics import SIZES
from ...results import ANNOTATION_METRICS, SIZE_BANDS, Results, write_json
from ..figures import save_figure
from ..report import basis_of, command_line, markdown_table

__all__ = ['Variant', 'paired_interval', 'read_paper', 'read_published', 'tabulate', 'write_table']

MEASURES = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
TOP = ('CF1', 'OF1', *ANNOTATION_METRICS)  # of the labels of highest probability in each image
BY_SIZE = {size: f'mAP_{size}' for size in SIZES}
PAPER_COLUMNS = {
    'mAP': ("the paper's mAP (COCO 2014)", '{:.2f}'),
    'million_parameters': ("the paper's parameters", '{:.1f} M'),
}
INTERVAL = ('mean', 'low', 'high')
COST = ('num_parameters', 'gflops', 'images_per_second', 'time_ratio', 'train_peak_bytes')
COST += ('scale_attention_ms', 'scale_attention_ratio')  # of Table 6
CONFIDENCE = 0.95
MARKERS = 'osD^vP*XhH<>'


def read_paper() -> dict:
    """Reads the paper's figures: `table1`, ..., `fig5`, each with `where` it stands and `rows`."""
    return yaml.safe_load((HUB_CARDS / 'paper.yaml').read_text(encoding='utf-8'))


def read_published() -> dict:
    """Reads figures that others than the paper have published, by data set: `source`, `columns`, `rows` and so on."""
    return yaml.safe_load((HUB_CARDS / 'published.yaml').read_text(encoding='utf-8'))


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: That the row is called.
        model: Registered name.
        args: Further arguments of the model.
        paper: The paper's figures of the same row, where it has some: `mAP`, `million_parameters`.
        settings: Settings of its training in place of those that all rows share, `{'optim.lr': 0.002}`.
    """

    name: str
    model: str
    args: dict = field(default_factory=dict)
    paper: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Names the folder of its runs: the same for the same model, whichever table asks for it."""
        own = [*sorted(self.args.items()), *sorted(self.settings.items())]
        args = [f'{key}={json.dumps(value, separators=(",", ":"))}' for key, value in own]
        return re.sub(r'[^\w.,=-]', '', '-'.join([self.model, *args]))


def paired_interval(values: Sequence[float], reference: Sequence[float]) -> dict:
    """Compares measures of the same seeds: the mean of their differences with its interval of 95 %.

    With d the n differences, that is mean(d) -+ t * s(d) / sqrt(n): s is the standard deviation (of n - 1), and t is
    what Student's distribution of n - 1 degrees of freedom passes in 2.5 % of the cases. It takes the seeds as drawn at
    random, and the differences as normally distributed. One seed has no interval.

    Returns:
        `mean`, `low` and `high`.
    """
    differences = np.subtract(values, reference)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return {'mean': mean, 'low': None, 'high': None}
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    return {'mean': mean, 'low': mean - half, 'high': mean + half}


def tabulate(variants: Sequence[tuple[Variant, Sequence[dict]]], reference: str, speed: dict) -> dict:
    """Makes the table of runs that are at their end.

    Args:
        variants: Rows, each with what its runs have left: the same seeds of each, in the same order.
        reference: Name of the row that the others are compared with.
        speed: What `variants.measure_speed` gives of them.

    Returns:
        `rows`, each with `values` (each measure by seed), `mean`, `std` (of n - 1; None for one seed), `difference`
        (of each measure, from the reference), `AP` (of each label by seed), cost, speed and the paper's figures; and
        what was measured on and with.

    Raises:
        InputError: The runs were not measured on the same images in the same way.
    """
    every = [run for _, runs in variants for run in runs]
    _check_alike(every)
    top_k = every[0]['top']['k']
    keys = (*MEASURES, *(f'{key}_top{top_k}' for key in TOP), *BY_SIZE.values())
    values = {variant.name: {key: [_measure(run, key) for run in runs] for key in keys} for variant, runs in variants}
    rows = []
    for (variant, runs), cost in zip(variants, speed['rows'], strict=True):
        known = {key: found for key, found in values[variant.name].items() if None not in found}
        differences = {key: paired_interval(found, values[reference][key]) for key, found in known.items()}
        rows.append(
            {
                'name': variant.name,
                'model': variant.model,
                'args': variant.args,
                'settings': variant.settings,
                **cost,
                'train_peak_bytes': max(run['peak_bytes'] for run in runs),
                'train_seconds': [run['seconds'] for run in runs],
                'values': known,
                'mean': {key: float(np.mean(found)) for key, found in known.items()},
                'std': {key: float(np.std(found, ddof=1)) if len(found) > 1 else None for key, found in known.items()},
                'difference': None if variant.name == reference else differences,
                'AP': {label: [run['labels'][label]['AP'] for run in runs] for label in runs[0]['labels']},
                'paper': variant.paper,
            }
        )
    first = every[0]
    return {
        'reference': reference,
        'seeds': [run['config']['seed'] for run in variants[0][1]],
        'rows': rows,
        'speed': {key: value for key, value in speed.items() if key != 'rows'},
        'data': first['data'],
        **{key: first[key] for key in ('num_images', 'num_classes', 'num_labels_counted', 'definitions')},
        'basis': basis_of(Results(**first)),
        'top_k': top_k,
        'num_labels_with_a_positive': first['top']['num_labels'],
        'num_positives': {label: found['num_positives'] for label, found in first['labels'].items()},
        'num_positives_by_size': first['num_positives_by_size'],
        'weights': first['weights'],
        'start': start_of([run['config']['model'] for run in every]),
        'recipe': {
            'data': {**first['config']['data'], 'root': None, 'image_root': None},  # paths of one machine
            'optim': first['config']['optim'],
        },
        'command': command_line(),
        'trained_with': {
            key: _distinct([run[key] for run in every])
            for key in ('git_commit', 'git_dirty', 'devices', 'num_processes', 'mixed_precision', 'versions')
        },
    }


def start_of(models: Sequence[dict]) -> str:
    """Tells from the runs' settings of the model which weights they have started from."""
    model, backbones = models[0], {model.get('backbone_from') for model in models}
    if model.get('backbone_from'):
        return 'the backbone of one trained model' if len(backbones) == 1 else 'a backbone trained with the same seed'
    if model.get('backbone_pretrained') or model.get('init_from'):
        return "timm's weights of the backbone"
    return 'random weights'


def _measure(run: dict, key: str) -> float | None:
    if '_top' in key:
        return run['top'][key.partition('_')[0]]
    size = key.removeprefix('mAP_')
    return run['mAP_by_size'][size] if size in SIZES else run['metrics'][key]


def _distinct(values: Sequence[object]) -> list:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _check_alike(runs: Sequence[dict]) -> None:
    def basis_of(run: dict) -> dict:
        counts = {name: (label['num_positives'], label['num_negatives']) for name, label in run['labels'].items()}
        same = {key: run[key] for key in ('data', 'num_images', 'definitions', 'weights')}
        return {**same, 'counts': counts, 'top_k': run['top']['k']}

    for run in runs:
        if basis_of(run) != basis_of(runs[0]):
            one, other = (found['config']['output'] for found in (runs[0], run))
            raise InputError(f'{other}: was not measured on the same images, in the same way, as {one}.')


def write_table(table: dict, output: Path, name: str) -> None:
    """Writes a table as `{name}.json`, `.csv` and `.md`, with images of accuracy over cost and of each label's AP."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(table, output / f'{name}.json')
        write_text(output / f'{name}.csv', '\n'.join(_csv(table)) + '\n')
        save_figure(_draw_cost(table), output / f'{name}_cost.png')
        save_figure(_draw_labels(table), output / f'{name}_labels.png')
        write_text(output / f'{name}.md', '\n'.join(_lines(table, name)) + '\n')
    except OSError as e:
        raise InputError(f'{output}: cannot be written to ({e.strerror or e}).') from None
    print('\n'.join(['', *_main_table(table), f'Written to {output / name}.md, .csv, .json and two images.']))


def _csv(table: dict) -> Iterator[str]:
    """Gives a line for each row, those that others have published last."""
    keys = list(table['rows'][0]['values'])
    lines = []
    for row in table['rows']:
        line = {
            'figures_of': 'measured here',
            'name': row['name'],
            'model': row['model'],
            'args': json.dumps(row['args']),
            'settings': json.dumps(row['settings']),
        }
        line |= {'data': f'{table["data"]["name"]} {table["data"]["split"]}', 'num_images': table['num_images']}
        line['seeds'] = len(table['seeds'])
        for key in keys:
            line |= {key: row['mean'][key], f'{key}_std': row['std'][key]}
            line |= {f'{key}_difference_{end}': (row['difference'] or {}).get(key, {}).get(end) for end in INTERVAL}
        line |= {key: row[key] for key in COST if key in row}
        lines.append(line | {f'paper_{key}': value for key, value in row['paper'].items()})
    for part in (*table.get('paper', {}).values(), *table.get('published', {}).values()):
        origin = f'published, {part["source"]}' if 'source' in part else f'the paper, {part["where"]}'
        for name, *values in part['rows']:
            figures = dict(zip(part['columns'], values, strict=True))
            line = {'figures_of': origin, 'name': name, 'data': part['data']}
            lines.append(line | {key: figures[key] for key in (*MEASURES, *keys) if key in figures})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    yield from text.getvalue().splitlines()


def _lines(table: dict, name: str) -> Iterator[str]:
    data, seeds, made = table['data'], table['seeds'], table['trained_with']
    yield f'# {escape(table["title"])}'
    yield ''
    yield (
        f'Percent on {escape(data["name"])} {escape(data["split"])}'
        f' ({table["basis"]}), {table["weights"]} of the weights.'
    )
    if len(seeds) > 1:
        yield (
            f'Each row is trained alike from {table["start"]}, with seeds {", ".join(map(str, seeds))}: mean ± standard'
            ' deviation.'
        )
    else:
        yield f'Each row is trained alike from {table["start"]}, with seed {seeds[0]} alone: no spread is known.'
    yield (
        f'"Difference" is that of mAP from {escape(table["reference"])}, seed by seed: its mean'
        + (f", and its 95 % interval by Student's t with {len(seeds) - 1} degree(s) of freedom." if seeds[1:] else '.')
    )
    for row in table['rows']:
        if row['settings']:
            own = ', '.join(f'{key} {value}' for key, value in row['settings'].items())
            yield f'{escape(row["name"])} has settings of its own: {escape(own)}.'
    yield ''
    yield from _main_table(table)
    if 'paper_of' in table:
        yield (
            "The paper's figures are its authors', on COCO 2014 at 448 pixels"
            f' ({escape(table["paper_of"])}); none of them was measured here.'
        )
        yield ''
    if any(key in row['mean'] for row in table['rows'] for key in BY_SIZE.values()):
        yield from _size_table(table)
    yield from _top_table(table)
    yield from _cost_table(table)
    yield f'![mAP over cost.]({name}_cost.png)'
    yield ''
    yield f'![Average precision of each label.]({name}_labels.png)'
    yield ''
    yield from _paper_tables(table)
    yield '## Made with'
    yield ''
    yield from ('```bash', table['command'], '```', '')
    commits = ', '.join(str(commit or 'none: not a checkout') for commit in made['git_commit'])
    changed = ', some with changes that are not committed' if any(made['git_dirty']) else ''
    devices = '; '.join(', '.join(map(str, found)) for found in made['devices'])
    precision = ', '.join('full' if found == 'no' else found for found in made['mixed_precision'])
    yield f'Trained at git commit {commits}{changed}, on {escape(devices)}, {precision} precision.'
    yield ''


def spread(row: dict, key: str) -> str:
    """Shows a measure's mean and standard deviation over the seeds."""
    if key not in row['mean']:
        return '–'
    std = row['std'][key]
    return f'{row["mean"][key]:.2f}' + ('' if std is None else f' ± {std:.2f}')


def difference(row: dict, key: str) -> str:
    """Shows the difference from the reference with its interval."""
    if row['difference'] is None:
        return 'reference'
    if key not in row['difference']:
        return '–'
    found = row['difference'][key]
    interval = '' if found['low'] is None else f' ({found["low"]:+.2f} to {found["high"]:+.2f})'
    return f'{found["mean"]:+.2f}{interval}'


def _main_table(table: dict) -> Iterator[str]:
    rows = table['rows']
    head = ['', 'mAP', 'difference', 'CF1', 'OF1', 'parameters']
    of_paper = [key for key in PAPER_COLUMNS if any(key in row['paper'] for row in rows)]
    timed = any('scale_attention_ms' in row for row in rows)
    head += ['scale attention of an image (float32)'] * timed
    body = []
    for row in rows:
        figures = [spread(row, 'mAP'), difference(row, 'mAP'), spread(row, 'CF1'), spread(row, 'OF1')]
        figures.append(f'{row["num_parameters"] / 1e6:.2f} M')
        if timed:
            figures.append(f'{row["scale_attention_ms"]:.3f} ms, {row["scale_attention_ratio"]:.2f} times')
        figures += [PAPER_COLUMNS[key][1].format(row['paper'][key]) if key in row['paper'] else '–' for key in of_paper]
        body.append([escape(row['name']), *figures])
    yield from markdown_table([*head, *(PAPER_COLUMNS[key][0] for key in of_paper)], body)


def _size_table(table: dict) -> Iterator[str]:
    yield (
        f'mAP by the size of the largest instance ({", ".join(f"{size} {SIZE_BANDS[size]}" for size in SIZES)} of the'
        ' image), and its difference:'
    )
    yield ''
    body = []
    for row in table['rows']:
        body.append([escape(row['name'])])
        for key in BY_SIZE.values():
            body[-1] += [spread(row, key), difference(row, key)]
    yield from markdown_table(['', *(text for size in SIZES for text in (size, 'difference'))], body)


def _top_table(table: dict) -> Iterator[str]:
    k = table['top_k']
    yield (
        f'With the {k} labels of highest probability in each image; P and R are means of precision and recall over the'
        f' {table["num_labels_with_a_positive"]} labels with a positive, F1 is their harmonic mean, and N+ is the'
        ' number of labels with a recall above 0:'
    )
    yield ''
    body = [
        [escape(row['name']), *(spread(row, f'{key}_top{k}') for key in TOP), difference(row, f'F1_top{k}')]
        for row in table['rows']
    ]
    yield from markdown_table(['', *TOP, 'difference of F1'], body)


def _cost_table(table: dict) -> Iterator[str]:
    speed = table['speed']
    yield '## Cost'
    yield ''
    told = 'GFLOPs are those of one image; a multiplication and an addition are 2.'
    if speed:
        threads = f', {speed["threads"]} thread(s)' if speed['threads'] else ''
        told += (
            f' Inference: {speed["image_size"]} x {speed["image_size"]}, {speed["batch_size"]} images at once,'
            f' {speed["dtype"]}, on {escape(speed["device"])}{threads}; medians of {speed["turns"]} turns in one'
            f' process, "time" relative to {escape(table["reference"])} in the same turn, with the range of 80 % of the'
            ' turns.'
        )
    yield f'{told} Memory is the peak of a training process, on the CPU with all that Python holds.'
    yield ''
    body = []
    for row in table['rows']:
        timed = ['–', '–']
        if speed:
            low, high = row['time_ratio_10_to_90_percent']
            timed = [f'{row["images_per_second"]:.1f}', f'{row["time_ratio"]:.2f} ({low:.2f} to {high:.2f})']
        body.append([escape(row['name']), f'{row["num_parameters"]:,}', f'{row["gflops"]:.3g}', *timed])
        body[-1].append(f'{row["train_peak_bytes"] / 2**20:,.0f} MiB')
    yield from markdown_table(['', 'parameters', 'GFLOPs', 'images/s', 'time', 'training memory'], body)


def _paper_tables(table: dict) -> Iterator[str]:
    """Lays the paper's tables beside ours, where these are of the same data in the same columns."""
    for part in table.get('paper', {}).values():
        is_same = part['measured_on'] == table['data']['name']
        columns = [c for c in part['columns'] if is_same or c in ('pixels', *MEASURES)]
        yield f"## The paper's figures: {escape(part['data'])}"
        yield ''
        yield (
            f'From the paper, {escape(part["where"])}: figures of its authors, or that they quote; none was measured'
            f' here ({escape(part["note"])}).'
        )
        if not is_same:
            yield f'They are of other data than {escape(table["data"]["name"])}: not to be compared with those above.'
        yield ''
        yield from _beside(table, part, columns, 'paper', is_same)
    for part in table.get('published', {}).values():
        yield f'## Published figures: {escape(part["data"])}'
        yield ''
        yield f'From {escape(part["source"])}: figures of others; none was measured here ({escape(part["note"])}).'
        yield ''
        yield from _beside(table, part, part['columns'], 'published', True)


def _beside(table: dict, part: dict, columns: Sequence[str], origin: str, is_same: bool) -> Iterator[str]:
    """Gives rows of ours, where they are of the same data, and those of others, which are marked."""
    body = []
    if is_same:
        for row in table['rows']:
            body.append([f'**{escape(row["name"])}, measured here**', *_in_columns(table, row, columns)])
    for name, *values in part['rows']:
        figures = dict(zip(part['columns'], values, strict=True))
        body.append([f'{escape(name)} ({origin})', *('–' if figures[c] is None else f'{figures[c]}' for c in columns)])
    yield from markdown_table(['', *(escape(column.replace('_top', ', top ')) for column in columns)], body)


def _in_columns(table: dict, row: dict, columns: Sequence[str]) -> Iterator[str]:
    """Gives a row of ours in the columns of a table of others."""
    for column in columns:
        if column == 'pixels':
            yield str(table['recipe']['data']['image_size'])
        elif column in row['AP']:
            found = [value for value in row['AP'][column] if value is not None]
            yield f'{np.mean(found):.1f}' if found else '–'
        else:
            yield spread(row, column)


def _draw_cost(table: dict) -> Figure:
    """Draws mAP over what it costs, with the standard deviation over the seeds."""
    rows = table['rows']
    panels = {'GFLOPs of an image': [row['gflops'] for row in rows]}
    panels['parameters in millions'] = [row['num_parameters'] / 1e6 for row in rows]
    if table['speed']:
        title = f'ms for an image ({table["speed"]["device"]}, {table["speed"]["batch_size"]} at once)'
        panels[title] = [1000 / row['images_per_second'] for row in rows]
    figure = Figure((4.5 * len(panels), 4.2), layout='constrained')
    for number, (axes, (title, costs)) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True)
    ):
        for i, (row, cost) in enumerate(zip(rows, costs, strict=True)):
            _draw_point(axes, cost, row, i)
        axes.set_xlim(left=0)
        axes.margins(x=0.1)
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
        if not number:
            axes.set_ylabel(f'mAP in percent, {table["data"]["name"]} {table["data"]["split"]}')
            handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(3, len(rows)), fontsize=9)
    return figure


def _draw_point(axes: Axes, x: float, row: dict, number: int) -> None:
    axes.errorbar(
        x,
        row['mean']['mAP'],
        row['std']['mAP'],
        fmt=MARKERS[number % len(MARKERS)],
        color=f'C{number % 10}',
        capsize=3,
        label=short(row['name']),
    )


def _draw_labels(table: dict) -> Figure:
    """Draws each label's average precision in every row, each seed a point; the reference's highest first."""
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
        color = f'C{number % 10}'
        for seed in range(len(table['seeds'])):
            axes.plot([row['AP'][label][seed] for label in shown], places, '.', color=color, alpha=0.4, markersize=4)
        marker = MARKERS[number % len(MARKERS)]
        heights = [means[row['name']][label] for label in shown]
        axes.plot(heights, places, marker, color=color, markersize=4, label=short(row['name']))
    for place in range(1, len(shown)):
        axes.axhline(place - 0.5, color='0.9', linewidth=0.8)
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel=f'average precision in percent ({table["definitions"]["mAP"]})')
    axes.set_yticks(range(len(shown)), [short(name) for name in shown], fontsize=8, parse_math=False)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc='outside upper center', ncols=min(3, count), fontsize=9)
    return figure
