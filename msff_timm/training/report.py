"""What a run leaves behind: results with all that they were measured on, the training curves, and a report of both."""

import dataclasses
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from matplotlib.figure import Figure

import msff_timm

from ..data import figures as data_figures
from ..data.counts import left_out
from ..data.figures import DPI, GAP, MOST_LABELS, Tile, draw_sheet, ends, short, thumbnail
from ..data.images import undecoded
from ..hub.card import escape
from ..metrics import FEW, SIZES

__all__ = [
    'ANNOTATION',
    'basis_of',
    'command_line',
    'describe',
    'describe_top',
    'environment',
    'markdown_table',
    'mistakes',
    'plot_curves',
    'replace_file',
    'results',
    'save_figure',
    'summary',
    'top_of',
    'write_json',
    'write_report',
]

SUMMARY = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
ANNOTATION = ('P', 'R', 'F1', 'N+')
BANDS = {'small': 'under 1 %', 'medium': 'from 1 % to under 10 %', 'large': 'from 10 %'}  # of the image
PACKAGES = ('timm', 'torch', 'torchvision', 'accelerate', 'datasets', 'numpy', 'pillow')
MOST_MISTAKES = 12  # of each kind
PER_IMAGE = 2  # of them, so that one image does not fill the sheet


def results(measures: dict, label_names: list[str], threshold: float | list[float] = 0.5, **context) -> dict:
    """Makes the results of one model: metrics in percent with their definitions, per label, and what they stand on.

    Args:
        measures: What `msff_timm.metrics.evaluate` gives.
        label_names: Names in the order of the logits.
        threshold: That it was measured at.
        **context: What else was measured on or with: data, split, settings, history; `mistakes`; and what
            `environment` gives.
    """
    per_label = zip(label_names, measures['AP'], measures['num_positives'], measures['num_negatives'], strict=True)
    return {
        **context,
        'metrics': summary(measures),
        'top': top_of(measures),
        **optional(measures),
        'definitions': {
            'mAP': measures['ap'],
            'threshold': threshold,
            'unit': 'percent',
            'sizes': f'largest instance {", ".join(BANDS.values())} of the image',
        },
        'num_images': measures['num_images'],
        'num_classes': len(label_names),
        'num_labels_counted': measures['num_labels_counted'],
        'labels': {
            name: {
                'AP': None if np.isnan(ap) else float(ap),
                'num_positives': int(positives),
                'num_negatives': int(negatives),
            }
            for name, ap, positives, negatives in per_label
        },
        'versions': {
            'msff_timm': msff_timm.__version__,
            **{name: version(name) for name in PACKAGES},
            'python': platform.python_version(),
            'cuda': torch.version.cuda,
        },
    }


def optional(measures: dict) -> dict:
    """Picks mAP by size and its interval, where they were measured; what is not defined is null."""
    sizes = {size: measures.get(f'mAP_{size}', np.nan) for size in SIZES}
    found = {
        'mAP_by_size': {size: None if np.isnan(value) else value for size, value in sizes.items()},
        'num_positives_by_size': {size: measures.get(f'num_positives_{size}') for size in SIZES},
    }
    if not np.isnan(measures.get('mAP_interval', np.nan)).any():
        found['mAP_interval_95'] = measures['mAP_interval']
    return found


def summary(measures: dict) -> dict[str, float]:
    """Picks the seven measures that are one number each."""
    return {name: measures[name] for name in SUMMARY}


def describe(measures: dict, threshold: float | list[float] = 0.5) -> str:
    """Puts the metrics into one line, with the definition and the counts that they stand on.

    How many labels are left out of mAP is part of it, and why: `mAP all-points over 3 of 4 labels (1 without an absent
    entry, 0 without a positive), CP and CR over 4`.
    """
    values = '  '.join(f'{name} {value:.2f}' for name, value in summary(measures).items())
    if 'mAP_interval' in measures:
        low, high = measures['mAP_interval']
        values = f'{values}  mAP 95 % interval {low:.2f} to {high:.2f}'
    counts = measures['num_positives'], measures['num_negatives']
    return f'{values}  ({_basis(measures["num_images"], *counts, measures["ap"], threshold)})'


def top_of(measures: dict) -> dict:
    """Picks the metrics of the k labels of highest probability, with `k` and the number of labels with a positive."""
    k, num_labels = measures['top_k'], int((measures['num_positives'] > 0).sum())
    values = {name: measures[f'{name}_top{k}'] for name in (*SUMMARY[1:], *ANNOTATION)}
    return {'k': k, 'num_labels': num_labels, **values}


def describe_top(top: dict) -> str:
    """Puts what `top_of` picks into one line."""
    values = '  '.join(f'{name} {top[name]:.2f}' for name in ('CF1', 'OF1', 'P', 'R', 'F1'))
    return f'top {top["k"]}: {values}  N+ {top["N+"]}  (P, R and N+ over {top["num_labels"]} labels with a positive)'


def _basis(
    images: int, positives: Sequence[int], negatives: Sequence[int], ap: str, threshold: float | list[float]
) -> str:
    """Names what metrics stand on: images, definition, labels (those that count, of all) and threshold."""
    positives, negatives = np.array(positives), np.array(negatives)
    counted = (positives > 0) & (negatives > 0)
    labels = f'{counted.sum()} label{"s" if counted.sum() > 1 else ""}'
    if not counted.all():
        labels = f'{counted.sum()} of {len(counted)} labels ({left_out(positives, negatives)})'
    for kind, numbers in (('positives', positives), ('absent entries', negatives)):
        if few := (counted & (numbers < FEW)).sum():
            labels += f', {few} of them with fewer than {FEW} {kind}'
    if not counted.all():
        labels += f', CP and CR over {(positives + negatives > 0).sum()}'
    named = f'threshold {threshold:g}' if isinstance(threshold, float) else "the model's own thresholds"
    return f'{images} images, mAP {ap} over {labels}, {named}'


def basis_of(run: dict) -> str:
    """Names what the results of a run stand on, as `describe` does."""
    counts = ([label[key] for label in run['labels'].values()] for key in ('num_positives', 'num_negatives'))
    return _basis(run['num_images'], *counts, run['definitions']['mAP'], run['definitions']['threshold'])


def mistakes(scored: dict, dataset: datasets.Dataset, label_names: Sequence[str]) -> dict[str, list[dict]]:
    """Finds the entries that a model is most wrong about.

    Args:
        scored: What `msff_timm.metrics.Measures.arrays` gives of all rows.
        dataset: The rows.
        label_names: Names in the order of the logits.

    Returns:
        `false_positives`, the absent labels of the highest probability, and `misses`, the present ones of the lowest,
        12 at most, the worst first, of one image 2 at most: `row`, `image_id`, `label` and `probability`. Entries that
        are ignored are neither.
    """
    scores, present = scored['scores'], scored['targets']
    counted = np.ones_like(present) if scored['ignore'] is None else ~scored['ignore']
    image_ids = dataset['image_id'][:]
    return {
        kind: [
            {
                'row': row,
                'image_id': image_ids[row],
                'label': label_names[k],
                'probability': float(scores[row, k]),
            }
            for row, k in _worst(badness, eligible)
        ]
        for kind, badness, eligible in (
            ('false_positives', scores, ~present & counted),
            ('misses', 1 - scores.astype(np.float64), present & counted),
        )
    }


def _worst(badness: np.ndarray, eligible: np.ndarray) -> list[tuple[int, int]]:
    """Finds the entries (row, column) of the highest values; of equal ones the earlier row and column go first."""
    rest, rows = np.where(eligible, badness, -1), np.arange(len(badness))
    found = []
    for _ in range(min(PER_IMAGE, rest.shape[1])):
        columns = rest.argmax(1)
        found += zip(-rest[rows, columns], rows.tolist(), columns.tolist(), strict=True)
        rest[rows, columns] = -1
    return [(row, k) for value, row, k in sorted(found)[:MOST_MISTAKES] if value <= 0]


def environment(accelerator: Accelerator) -> dict:
    """Records how and on what a run is made; all processes have to call it, at the start, for the tree may change.

    Returns:
        `command` as it was typed, to Accelerate if that started the process; `git_commit` of the checkout that this
        file lies in and `git_dirty`, whether tracked files differ from it (None outside of one, or without git); and
        `devices`, the name of each process's.
    """
    device = accelerator.device
    is_gpu = device.type == 'cuda'
    name = torch.cuda.get_device_name(device) if is_gpu else f'{device.type} ({platform.machine()})'
    return {'command': command_line(), **_git_state(Path(__file__)), 'devices': gather_object([name])}


def command_line() -> str:
    """Returns the command that started this process, as it was typed, to Accelerate if that did."""
    command = sys.orig_argv
    try:
        launcher = psutil.Process().parent().cmdline()
        # A launcher names the script and its arguments last, as they are.
        if launcher[-len(sys.argv) :] == sys.argv:
            command = launcher
    except (psutil.Error, AttributeError):  # it has ended, or is not to be looked at
        pass
    return shlex.join(command)


def _git_state(file: Path) -> dict:
    def git(*arguments: str) -> str:
        command = ['git', '--no-optional-locks', '-C', str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git('ls-files', '--error-unmatch', file.name)  # or the checkout is another project's
        changes = git('status', '--porcelain', '--untracked-files=no')
        return {'git_commit': git('rev-parse', 'HEAD'), 'git_dirty': bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {'git_commit': None, 'git_dirty': None}


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file beside the one that it replaces in one step, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.saving')
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: dict, path: str | Path) -> None:
    """Writes a JSON file in one step."""
    text = json.dumps(content, indent=2, default=_plain) + '\n'
    replace_file(path, partial(Path.write_text, data=text, encoding='utf-8'))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    raise TypeError(f'{type(value).__name__} does not go into JSON')


def plot_curves(history: list[dict], path: str | Path) -> None:
    """Draws the loss and the averaged weights' measures over the epochs."""
    epochs = [entry['epoch'] for entry in history]
    figure = Figure(figsize=(10, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [entry['loss'] for entry in history], 'o-')
    left.set(xlabel='epoch', ylabel='training loss (mean over labels)')
    for name in ('mAP', 'CF1', 'OF1'):
        right.plot(epochs, [entry[name] for entry in history], 'o-', label=name)
    right.set(xlabel='epoch', ylabel='percent (averaged weights)')
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path, **options: object) -> None:
    """Writes a drawing as PNG, in one step."""
    replace_file(path, partial(data_figures.save_figure, figure, format='png', dpi=DPI, **options))


def write_report(output: str | Path, run: dict, dataset: datasets.Dataset) -> Path:
    """Writes the report of a training run: `report.md` with `curves.png`, `ap.png` and `mistakes.png`.

    All that it says is in `run`, so that it can be written of results that were measured long before.

    Args:
        output: Folder of the run.
        run: What `results` made, with `model`, `data`, `history`, `mistakes` and what `environment` gives.
        dataset: The rows that were measured on.

    Returns:
        The file.
    """
    output = Path(output)
    plot_curves(run['history'], output / 'curves.png')
    save_figure(_draw_ap(run), output / 'ap.png')
    if any(run['mistakes'].values()):
        save_figure(
            _draw_mistakes(run['mistakes'], dataset), output / 'mistakes.png', bbox_inches='tight', pad_inches=GAP / DPI
        )
    text = '\n'.join(_lines(run)) + '\n'
    replace_file(output / 'report.md', partial(Path.write_text, data=text, encoding='utf-8'))
    return output / 'report.md'


def _lines(run: dict) -> Iterator[str]:
    data = run['data']
    model, split = escape(run['model']), escape(f'{data["name"]} {data["split"]}')
    weights = 'averaged weights' + (f' of epoch {run["epoch"]}' if 'epoch' in run else '')
    yield f'# {model} on {split}'
    yield ''
    yield (
        f'mAP {run["metrics"]["mAP"]:.2f}, CF1 {run["metrics"]["CF1"]:.2f}, OF1 {run["metrics"]["OF1"]:.2f} percent:'
        f' {weights} on {split} ({basis_of(run)}).'
    )
    others = {key: value for key, value in data.items() if key not in ('name', 'split') and value is not None}
    if others:
        yield f'Data: {", ".join(f"{escape(key)} {escape(value)}" for key, value in others.items())}.'
    yield ''
    rows = [(weights, run['metrics'])]
    if run.get('model_weights'):
        epoch = run['model_weights'].get('epoch')
        rows.append(('raw weights' + (f' of epoch {epoch}' if epoch else ''), run['model_weights']))
    rows.append((f'{weights}, top {run["top"]["k"]}', run['top']))
    yield from markdown_table(
        ['percent', *SUMMARY], [[name, *(_figure(values.get(key)) for key in SUMMARY)] for name, values in rows]
    )
    yield f'The {describe_top(run["top"])}.'
    yield ''
    if 'mAP_interval_95' in run:
        low, high = run['mAP_interval_95']
        yield f'95 % interval of mAP, by resampling the images: {low:.2f} to {high:.2f}.'
        yield ''
    if any(value is not None for value in run['mAP_by_size'].values()):
        yield from markdown_table(
            ['largest instance, share of the image', 'mAP', 'positives'],
            [
                [f'{size}: {BANDS[size]}', _figure(value), f'{run["num_positives_by_size"][size]:,}']
                for size, value in run['mAP_by_size'].items()
            ],
        )
    yield '## Training'
    yield ''
    yield '![Loss, mAP, CF1 and OF1 over the epochs.](curves.png)'
    yield ''
    yield '## Labels'
    yield ''
    yield '![Average precision and number of positives of each label.](ap.png)'
    yield ''
    yield '## Worst mistakes'
    yield ''
    if any(run['mistakes'].values()):
        yield '![The images of the tables below.](mistakes.png)'
        yield ''
    for kind, heading in MISTAKES.items():
        yield f'{heading}:' if run['mistakes'][kind] else f'{heading}: none.'
        yield ''
        if run['mistakes'][kind]:
            yield from markdown_table(
                ['image', 'label', 'probability'],
                [
                    [escape(entry['image_id']), escape(entry['label']), _probability(entry['probability'])]
                    for entry in run['mistakes'][kind]
                ],
                texts=2,
            )
    yield from _made_with(run)


def _made_with(run: dict) -> Iterator[str]:
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', run['command'])), default=0))
    yield '## Made with'
    yield ''
    yield from (f'{fence}bash', run['command'], fence, '')
    state = {None: '', False: '', True: ', with changes that are not committed'}[run['git_dirty']]
    devices = ', '.join(f'{count} × {escape(name)}' for name, count in Counter(run['devices']).items())
    facts = {
        'git commit': f'{run["git_commit"] or "none: not a checkout"}{state}',
        'processes and their devices': devices,
        **{name: escape(found or 'none') for name, found in run['versions'].items()},
    }
    yield from markdown_table(['', ''], [[escape(name), value] for name, value in facts.items()], texts=2)


def markdown_table(head: list[str], rows: list[list[str]], texts: int = 1) -> Iterator[str]:
    """Gives the lines of a table in Markdown, of which the first `texts` columns stand to the left."""
    yield f'| {" | ".join(head)} |'
    yield '|' + '---|' * texts + '--:|' * (len(head) - texts)
    yield from (f'| {" | ".join(row)} |' for row in rows)
    yield ''


def _figure(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}'


def _probability(value: float) -> str:
    """Shows three digits, and more near 0 and 1, where they would all be 0 or 9."""
    return f'{value:.3f}' if 0.0005 <= value < 0.9995 else f'{value:.3g}' if value < 0.5 else f'{value:.6f}'


MISTAKES = {
    'false_positives': 'Worst false positives: absent labels of the highest probability',
    'misses': 'Worst misses: present labels of the lowest probability',
}


def _draw_mistakes(found: dict[str, list[dict]], dataset: datasets.Dataset) -> Figure:
    """Draws the images with their mistakes on a sheet."""
    rows = undecoded(dataset)
    return draw_sheet(
        {
            heading: [Tile(thumbnail(rows[entry['row']]), _caption(entry)) for entry in found[kind]]
            for kind, heading in MISTAKES.items()
            if found[kind]
        }
    )


def _caption(entry: dict) -> list[tuple[str, str]]:
    probability = _probability(entry['probability'])
    return [(f'{short(entry["label"])}  {probability}', 'black'), *((line, '0.4') for line in _wrap(entry['image_id']))]


def _wrap(text: str, width: int = 34) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), width)]


def _draw_ap(run: dict) -> Figure:
    """Draws each label's average precision, from the highest to the lowest, beside its number of positives."""
    measured = {name: label for name, label in run['labels'].items() if label['AP'] is not None}
    ranked = sorted(measured, key=lambda name: -measured[name]['AP'])
    shown = ends(ranked)
    places = np.arange(len(shown))
    figure = Figure((10, max(1.3 + 0.19 * len(shown), 2.5)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    columns = (
        (left, 'AP', '{:.1f}', f'average precision in percent ({run["definitions"]["mAP"]})'),
        (right, 'num_positives', '{:,}', 'positives'),
    )
    for axes, key, form, title in columns:
        values = np.array([measured[name][key] for name in shown])
        axes.barh(places, values, 0.8, color='C0' if axes is left else '0.6')
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                form.format(value),
                (value, place),
                (3, 0),
                textcoords='offset points',
                va='center',
                fontsize=7,
                bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},  # over the line of mAP
            )
        axes.set_xlabel(title)
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
        if len(shown) < len(ranked):
            axes.axhline(MOST_LABELS // 2 - 0.5, color='0.3', linestyle=':')
    left.set(xlim=(0, 106), ylim=(len(shown) - 0.4, -0.6))
    left.axvline(run['metrics']['mAP'], color='C3', linewidth=1, label=f'mAP {run["metrics"]["mAP"]:.2f}')
    left.set_yticks(places, [short(name) for name in shown], fontsize=8, parse_math=False)
    right.margins(x=0.2)
    right.tick_params(left=False)
    right.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc='outside upper right', fontsize=9)
    figure.suptitle(_ap_title(len(shown), len(ranked), run['num_classes']), fontsize=11)
    return figure


def _ap_title(shown: int, ranked: int, num_classes: int) -> str:
    title = f'{ranked} labels'
    if shown < ranked:
        title = f'the {MOST_LABELS // 2} highest and the {MOST_LABELS // 2} lowest of {title}'
    num_left_out = num_classes - ranked
    return f'{title}; {num_left_out} more have no positive or no absent entry' if num_left_out else title
