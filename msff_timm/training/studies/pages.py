"""Writes the table of a study as JSON, CSV and a Markdown page with plots."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...files import write_text
from ...hub.card import escape
from ...metrics import SIZES
from ...results import METRICS, SIZE_BANDS, write_json
from ..figures import save_figure
from ..report import markdown_table
from .figures import plot_cost, plot_labels
from .tables import BY_SIZE, TOP

__all__ = ['write_table']

PAPER_COLUMNS = {
    'mAP': ("the paper's mAP (COCO 2014)", '{:.2f}'),
    'million_parameters': ("the paper's parameters", '{:.1f} M'),
}
INTERVAL = ('mean', 'low', 'high')
COST: tuple[str, ...] = ('num_parameters', 'gflops', 'images_per_second', 'time_ratio', 'train_peak_bytes')
COST += ('scale_attention_ms', 'scale_attention_ratio')  # of Table 6


def write_table(table: dict, output: Path, name: str) -> None:
    """Writes a table as `{name}.json`, `.csv` and `.md`, with plots of mAP over cost and of each label's AP."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(table, output / f'{name}.json')
        save_figure(plot_cost(table), output / f'{name}_cost.png')
        save_figure(plot_labels(table), output / f'{name}_labels.png')
        write_text(output / f'{name}.csv', _csv(table))
        write_text(output / f'{name}.md', '\n'.join(_page(table, name)) + '\n')
    except OSError as e:
        raise InputError(
            f'{output}: cannot write the table there ({e.strerror or e}); choose another output.'
        ) from None
    print('\n'.join(['', *_main_table(table), f'Wrote {output / name}.md, .csv, .json and two plots.']))


def _csv(table: dict) -> str:
    """Lists the rows of the study, then published ones."""
    keys = list(table['rows'][0]['values'])
    lines = []
    for row in table['rows']:
        line = {
            'figures_of': 'measured here',
            'name': row['name'],
            'model': row['model'],
            'args': json.dumps(row['args']),
            'settings': json.dumps(row['settings']),
            'data': f'{table["data"]["name"]} {table["data"]["split"]}',
            'num_images': table['num_images'],
            'seeds': len(table['seeds']),
        }
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
            lines.append(line | {key: figures[key] for key in (*METRICS, *keys) if key in figures})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _page(table: dict, name: str) -> Iterator[str]:
    data, seeds, origin = table['data'], table['seeds'], table['trained_with']
    yield f'# {escape(table["title"])}'
    yield ''
    yield (
        f'Percent on {escape(data["name"])} {escape(data["split"])}'
        f' ({table["basis"]}), {table["weights"]} of the weights.'
    )
    difference = f'"Difference" is the mean over the seeds of the difference in mAP from {escape(table["reference"])}'
    seed_names = ', '.join(map(str, seeds))
    if len(seeds) > 1:
        yield f'Every row is trained alike from {table["start"]}, with seeds {seed_names}: mean ± standard deviation.'
        yield f"{difference}, with its 95 % interval (Student's t, paired, degrees of freedom: {len(seeds) - 1})."
    else:
        yield f'Every row is trained alike from {table["start"]}, with seed {seed_names} only: the spread is unknown.'
        yield f'{difference}.'
    for row in table['rows']:
        if row['settings']:
            own = ', '.join(f'{key} {value}' for key, value in row['settings'].items())
            yield f'{escape(row["name"])} has its own settings: {escape(own)}.'
    yield ''
    yield from _main_table(table)
    if 'paper_of' in table:
        yield (
            "The paper's figures were measured by its authors on COCO 2014 at 448 pixels"
            f' ({escape(table["paper_of"])}), not here.'
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
    yield from _published_tables(table)
    yield '## Made with'
    yield ''
    yield from ('```bash', table['command'], '```', '')
    commits = ', '.join(str(commit or 'none (not a checkout)') for commit in origin['git_commit'])
    changed = ', partly with uncommitted changes' if any(origin['git_dirty']) else ''
    devices = '; '.join(', '.join(map(str, found)) for found in origin['devices'])
    precision = ', '.join('full' if found == 'no' else found for found in origin['mixed_precision'])
    yield f'Trained at git commit {commits}{changed}, on {escape(devices)}, {precision} precision.'
    yield ''


def spread(row: dict, key: str) -> str:
    """Formats the mean and the standard deviation of a metric over the seeds."""
    if key not in row['mean']:
        return '–'
    std = row['std'][key]
    return f'{row["mean"][key]:.2f}' + ('' if std is None else f' ± {std:.2f}')


def difference(row: dict, key: str) -> str:
    """Formats the difference from the reference with its interval."""
    if row['difference'] is None:
        return 'reference'
    if key not in row['difference']:
        return '–'
    found = row['difference'][key]
    interval = '' if found['low'] is None else f' ({found["low"]:+.2f} to {found["high"]:+.2f})'
    return f'{found["mean"]:+.2f}{interval}'


def _main_table(table: dict) -> Iterator[str]:
    rows = table['rows']
    paper_keys = [key for key in PAPER_COLUMNS if any(key in row['paper'] for row in rows)]
    timed = any('scale_attention_ms' in row for row in rows)
    head = ['', 'mAP', 'difference', 'CF1', 'OF1', 'parameters']
    head += ['scale attention per image (float32)'] * timed
    body = []
    for row in rows:
        cells = [spread(row, 'mAP'), difference(row, 'mAP'), spread(row, 'CF1'), spread(row, 'OF1')]
        cells.append(f'{row["num_parameters"] / 1e6:.2f} M')
        if timed:
            cells.append(f'{row["scale_attention_ms"]:.3f} ms, {row["scale_attention_ratio"]:.2f} times')
        cells += [PAPER_COLUMNS[key][1].format(row['paper'][key]) if key in row['paper'] else '–' for key in paper_keys]
        body.append([escape(row['name']), *cells])
    yield from markdown_table([*head, *(PAPER_COLUMNS[key][0] for key in paper_keys)], body)


def _size_table(table: dict) -> Iterator[str]:
    bands = ', '.join(f'{size} {SIZE_BANDS[size]}' for size in SIZES)
    yield f'mAP by the size of the largest instance ({bands} of the image), and its difference:'
    yield ''
    body = []
    for row in table['rows']:
        cells = [cell for key in BY_SIZE.values() for cell in (spread(row, key), difference(row, key))]
        body.append([escape(row['name']), *cells])
    yield from markdown_table(['', *(text for size in SIZES for text in (size, 'difference'))], body)


def _top_table(table: dict) -> Iterator[str]:
    k = table['top_k']
    yield (
        f'Metrics of the {k} labels with the highest probability in each image. P and R are mean precision and recall'
        f' over the {table["num_labels_with_a_positive"]} labels with a positive, F1 is their harmonic mean, and N+ is'
        ' the number of labels with a recall above 0:'
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
    text = 'GFLOPs are per image; a multiplication and an addition count as 2.'
    if speed:
        threads = f', {speed["threads"]} thread(s)' if speed['threads'] else ''
        text += (
            f' Inference: {speed["image_size"]} x {speed["image_size"]}, batch size {speed["batch_size"]},'
            f' {speed["dtype"]}, on {escape(speed["device"])}{threads}; medians of {speed["turns"]} turns in one'
            f' process. "Time" is relative to {escape(table["reference"])} in the same turn, with the range of the'
            ' middle 80 % of the turns.'
        )
    yield f'{text} Memory is the peak of a training process; on the CPU it includes Python and all libraries.'
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


def _published_tables(table: dict) -> Iterator[str]:
    """Lists published figures; those of the same data in one table with the rows of the study."""
    for part in table.get('paper', {}).values():
        is_same = part['measured_on'] == table['data']['name']
        columns = [c for c in part['columns'] if is_same or c in ('pixels', *METRICS)]
        yield f"## The paper's figures: {escape(part['data'])}"
        yield ''
        yield (
            f'From the paper, {escape(part["where"])}: measured or quoted by its authors, not here'
            f' ({escape(part["note"])}).'
        )
        if not is_same:
            yield f'The data is not {escape(table["data"]["name"])}: do not compare these figures with those above.'
        yield ''
        yield from _beside(table, part, columns, 'paper', is_same)
    for part in table.get('published', {}).values():
        yield f'## Published figures: {escape(part["data"])}'
        yield ''
        yield f'From {escape(part["source"])}: measured by others, not here ({escape(part["note"])}).'
        yield ''
        yield from _beside(table, part, part['columns'], 'published', True)


def _beside(table: dict, part: dict, columns: Sequence[str], origin: str, is_same: bool) -> Iterator[str]:
    """Yields a table of published figures, below those of the study if the data is the same."""
    body = []
    if is_same:
        for row in table['rows']:
            body.append([f'**{escape(row["name"])}, measured here**', *_in_columns(table, row, columns)])
    for name, *values in part['rows']:
        figures = dict(zip(part['columns'], values, strict=True))
        body.append([f'{escape(name)} ({origin})', *('–' if figures[c] is None else f'{figures[c]}' for c in columns)])
    yield from markdown_table(['', *(escape(column.replace('_top', ', top ')) for column in columns)], body)


def _in_columns(table: dict, row: dict, columns: Sequence[str]) -> Iterator[str]:
    """Formats a row of the study in the columns of a published table."""
    for column in columns:
        if column == 'pixels':
            yield str(table['recipe']['data']['image_size'])
        elif column in row['AP']:
            found = [value for value in row['AP'][column] if value is not None]
            yield f'{np.mean(found):.1f}' if found else '–'
        else:
            yield spread(row, column)
