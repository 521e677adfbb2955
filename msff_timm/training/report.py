"""The report of a training run, and the lines that describe its results."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..data.counts import left_out
from ..files import write_text
from ..hub.card import escape
from ..metrics import FEW
from ..results import METRICS, SIZE_BANDS, Results
from ..thresholds import parse_target, positives_needed
from .accumulator import Arrays
from .commands import command_line
from .figures import draw_ap, draw_mistakes, draw_reliability, plot_curves, save_figure
from .yaml12 import read_yaml, write_yaml

__all__ = [
    'basis_of',
    'describe',
    'describe_calibration',
    'describe_thresholds',
    'describe_top',
    'markdown_table',
    'read_settings',
    'worst_mistakes',
    'write_report',
    'write_settings',
]

MOST_MISTAKES = 12  # of each kind
PER_IMAGE = 2  # of each kind: one image must not fill the figure
MISTAKES = {
    'false_positives': 'Worst false positives: absent labels with the highest probability',
    'misses': 'Worst misses: present labels with the lowest probability',
}


def describe(results: Results) -> str:
    """Returns the metrics on one line, with their definition and the numbers of images and labels behind them.

    E.g. `mAP 92.80  CP ...  (1000 images, mAP all-points over 3 of 4 labels (1 without an absent entry, 0 without a
    positive), CP and CR over 4, threshold 0.5)`.
    """
    values = '  '.join(f'{name} {value:.2f}' for name, value in results.metrics.items())
    if results.mAP_interval_95:
        low, high = results.mAP_interval_95
        values = f'{values}  mAP 95 % interval {low:.2f} to {high:.2f}'
    return f'{values}  ({basis_of(results)})'


def describe_top(top: dict) -> str:
    """Returns the top-k metrics on one line."""
    values = '  '.join(f'{name} {top[name]:.2f}' for name in ('CF1', 'OF1', 'P', 'R', 'F1'))
    return f'top {top["k"]}: {values}  N+ {top["N+"]}  (P, R and N+ over {top["num_labels"]} labels with a positive)'


def describe_calibration(measured: dict) -> str:
    """Returns ECE and Brier score of `Results.calibration` on one line."""
    named = [
        f'{kind}: ECE {measured[kind]["ECE"]:.2f} %  Brier {measured[kind]["Brier"]:.4f}'
        for kind in ('uncalibrated', 'calibrated')
        if kind in measured
    ]
    by = f'  ({measured["calibrated_by"]})' if measured['calibrated_by'] else ''
    return f'probabilities {"; ".join(named)}{by}'


def describe_thresholds(fitted: dict, label_names: Sequence[str]) -> str:
    """Returns in one line how many thresholds were fitted, how many reach their target, and which do not.

    Args:
        fitted: Thresholds, as `evaluator.fit_thresholds` returns them.
        label_names: Names of all labels.
    """
    number, goal = fitted['num_fitted'], parse_target(fitted['target'])
    aim = 'the best F1' if goal is None else f'a {goal[0]} of {goal[1]:g}'
    text = f'thresholds for {aim}: fitted for {number} of {len(label_names)} labels'
    if number < len(label_names):
        text += ', 0.5 for the others'
    if fitted['num_met'] is not None:
        text += f'; out of fold {fitted["num_met"]} of {number} reach it'
    needed = positives_needed(fitted['target'])
    reasons = (('unmet', 'reached at no threshold'), ('too_rare', f'unreliable, with fewer than {needed} positives'))
    for key, reason in reasons:
        if fitted[key]:
            text += f'; {reason}: {", ".join(label_names[k] for k in fitted[key])}'
    return text


def basis_of(results: Results) -> str:
    """Describes what the metrics are computed over: images, definition of mAP, labels and threshold."""
    positives, negatives = (
        np.array([label[key] for label in results.labels.values()]) for key in ('num_positives', 'num_negatives')
    )
    threshold = results.definitions['threshold']
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
    return f'{results.num_images} images, mAP {results.definitions["mAP"]} over {labels}, {named}'


def worst_mistakes(scored: Arrays, dataset: datasets.Dataset, label_names: Sequence[str]) -> dict[str, list[dict]]:
    """Finds the worst false positives and the worst misses.

    Args:
        scored: Arrays of all rows, as `MetricAccumulator.arrays` returns them.
        dataset: Rows of the data set.
        label_names: Label names in the order of the logits.

    Returns:
        `false_positives`, the absent labels with the highest probability, and `misses`, the present labels with the
        lowest. Each is a list of at most 12 dictionaries of `row`, `image_id`, `label` and `probability`, the worst
        first, at most 2 of one image. Masked entries are neither.
    """
    scores, present = scored['scores'], scored['targets']
    counted = np.ones_like(present) if scored['ignore'] is None else ~scored['ignore']
    image_ids = dataset['image_id'][:]
    candidates = {
        'false_positives': (scores, ~present & counted),
        'misses': (1 - scores.astype(np.float64), present & counted),
    }
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
        for kind, (badness, eligible) in candidates.items()
    }


def _worst(badness: np.ndarray, eligible: np.ndarray) -> list[tuple[int, int]]:
    """Finds the entries (row, column) of the highest values; ties go to the earlier row and column."""
    rest, rows = np.where(eligible, badness, -1), np.arange(len(badness))
    found: list[tuple[float, int, int]] = []
    for _ in range(min(PER_IMAGE, rest.shape[1])):
        columns = rest.argmax(1)
        found += zip(-rest[rows, columns], rows.tolist(), columns.tolist(), strict=True)
        rest[rows, columns] = -1
    return [(row, k) for value, row, k in sorted(found)[:MOST_MISTAKES] if value <= 0]


def write_settings(output: Path, config: Any) -> None:
    """Writes `settings.yaml`: all settings of a run, which `--config` reads, with their full paths.

    The file stays in the run folder; the settings in `results.json`, which is published, hold no absolute path.
    """
    command = command_line().replace('\n', ' ')
    text = f'# {command}\n{write_yaml(asdict(config))}'
    write_text(output / 'settings.yaml', text)


def read_settings(output: Path) -> dict | None:
    """Reads `settings.yaml`; returns None if a run of an earlier version has not written it."""
    path = output / 'settings.yaml'
    return read_yaml(path.read_bytes()) if path.is_file() else None


def write_report(output: str | Path, results: Results, dataset: datasets.Dataset) -> Path:
    """Writes the report of a training run: `report.md` with its plots.

    These are `curves.png`, `ap.png`, `reliability.png` and `mistakes.png`.

    Args:
        output: Folder of the run.
        results: Results of the run.
        dataset: Rows that were evaluated.

    Returns:
        Path of `report.md`.
    """
    output, mistakes = Path(output), results.mistakes or {}
    plot_curves(results.history or [], output / 'curves.png')
    save_figure(draw_ap(results), output / 'ap.png')
    if results.calibration:
        save_figure(draw_reliability(results.calibration), output / 'reliability.png')
    tiles = {
        heading: [(entry, _probability(entry['probability'])) for entry in mistakes[kind]]
        for kind, heading in MISTAKES.items()
        if mistakes[kind]
    }
    if tiles:
        draw_mistakes(tiles, dataset, output / 'mistakes.png')
    text = '\n'.join(_lines(results)) + '\n'
    write_text(output / 'report.md', text)
    return output / 'report.md'


def _lines(results: Results) -> Iterator[str]:
    data, metrics, mistakes = results.data, results.metrics, results.mistakes or {}
    model, split = escape(results.model), escape(f'{data["name"]} {data["split"]}')
    weights = _weights('EMA weights', results.epoch)
    yield f'# {model} on {split}'
    yield ''
    yield (
        f'mAP {metrics["mAP"]:.2f}, CF1 {metrics["CF1"]:.2f}, OF1 {metrics["OF1"]:.2f} percent: {weights} on {split}'
        f' ({basis_of(results)}).'
    )
    optim = (results.config or {}).get('optim') or {}
    if optim.get('early_stop'):
        yield f'Early stopping chose epoch {results.epoch} by its mAP on these images; expect slightly less on others.'
    others = {key: value for key, value in data.items() if key not in ('name', 'split') and value is not None}
    if others:
        yield f'Data: {", ".join(f"{escape(key)} {escape(value)}" for key, value in others.items())}.'
    yield ''
    rows = [(weights, metrics)]
    if results.model_weights:
        rows.append((_weights('model weights', results.model_weights.get('epoch')), results.model_weights))
    rows.append((f'{weights}, top {results.top["k"]}', results.top))
    yield from markdown_table(
        ['percent', *METRICS], [[name, *(_number(values.get(key)) for key in METRICS)] for name, values in rows]
    )
    yield f'The {describe_top(results.top)}.'
    yield ''
    if results.mAP_interval_95:
        low, high = results.mAP_interval_95
        yield f'95 % interval of mAP, by resampling the images: {low:.2f} to {high:.2f}.'
        yield ''
    if any(value is not None for value in results.mAP_by_size.values()):
        yield from markdown_table(
            ['largest instance, share of the image', 'mAP', 'positives'],
            [
                [f'{size}: {SIZE_BANDS[size]}', _number(value), f'{results.num_positives_by_size[size]:,}']
                for size, value in results.mAP_by_size.items()
            ],
        )
    yield from ('## Training', '', '![Loss, mAP, CF1 and OF1 of each epoch.](curves.png)', '')
    yield from ('## Labels', '', '![Average precision and number of positives of each label.](ap.png)', '')
    yield from _calibration(results)
    yield from ('## Worst mistakes', '')
    if any(mistakes.values()):
        yield from ('![The images of the tables below.](mistakes.png)', '')
    for kind, heading in MISTAKES.items():
        entries = mistakes[kind]
        yield from (f'{heading}:' if entries else f'{heading}: none.', '')
        if entries:
            yield from markdown_table(
                ['image', 'label', 'probability'],
                [
                    [escape(entry['image_id']), escape(entry['label']), _probability(entry['probability'])]
                    for entry in entries
                ],
                texts=2,
            )
    yield from _provenance(results)


def _calibration(results: Results) -> Iterator[str]:
    if fitted := results.thresholds:
        line = describe_thresholds(fitted, [escape(name) for name in results.labels])
        yield from ('## Thresholds and probabilities', '', f'{line[0].upper()}{line[1:]}.', '')
    if measured := results.calibration:
        yield f'Calibrated by {measured["calibrated_by"]}.'
        yield ''
        yield from markdown_table(
            ['probabilities', 'ECE in percent', 'Brier score'],
            [
                [kind, f'{measured[kind]["ECE"]:.2f}', f'{measured[kind]["Brier"]:.4f}']
                for kind in ('uncalibrated', 'calibrated')
            ],
        )
        yield from ('![Share of positives at each probability.](reliability.png)', '')


def _provenance(results: Results) -> Iterator[str]:
    command = results.command or ''
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', command)), default=0))
    yield from ('## Made with', '', f'{fence}bash', command, fence, '')
    changes = ', with uncommitted changes' if results.git_dirty else ''
    facts = {
        'git commit': f'{results.git_commit or "none: not a checkout"}{changes}',
        'processes and their devices': ', '.join(
            f'{count} × {escape(name)}' for name, count in Counter(results.devices).items()
        ),
        **{name: escape(found or 'none') for name, found in results.versions.items()},
    }
    yield from markdown_table(['', ''], [[escape(name), value] for name, value in facts.items()], texts=2)


def markdown_table(head: list[str], rows: list[list[str]], texts: int = 1) -> Iterator[str]:
    """Returns the lines of a Markdown table whose first `texts` columns are aligned left."""
    yield f'| {" | ".join(head)} |'
    yield '|' + '---|' * texts + '--:|' * (len(head) - texts)
    yield from (f'| {" | ".join(row)} |' for row in rows)
    yield ''


def _weights(kind: str, epoch: int | None) -> str:
    return f'{kind} of epoch {epoch}' if epoch else kind


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.2f}'


def _probability(value: float) -> str:
    """Formats with three decimals, or more near 0 and 1, where they would all be 0 or 9."""
    return f'{value:.3f}' if 0.0005 <= value < 0.9995 else f'{value:.3g}' if value < 0.5 else f'{value:.6f}'
