"""Trains variants of a model alike, with several seeds each, and lays their results side by side."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from checkpoint import about_run, differences
from config import TrainConfig, VariantsConfig, parse
from engine import Stopped, StopRequest
from msff_timm import card, hub
from msff_timm.card import escape
from msff_timm.data.sheet import ends, short
from msff_timm.errors import InputError
from msff_timm.metrics import FEW, SIZES
from report import BANDS, basis, command_line, markdown_table, replace_file, save_figure, write_json

__all__ = [
    'PAPER',
    'Run',
    'Timing',
    'Variant',
    'compare',
    'measure_speed',
    'paired_interval',
    'plan',
    'tabulate',
    'time_in_turns',
    'train_all',
    'write_table',
]

PAPER = Path(__file__).parents[1] / 'hub_cards' / 'paper.yaml'
TRAIN = Path(__file__).with_name('train.py')
MEASURES = ('mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1')
BY_SIZE = {size: f'mAP_{size}' for size in SIZES}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: That the row is called.
        model: Registered name.
        args: Further arguments of the model.
        paper: The paper's figures of the same row, where it has some: `mAP`, `million_parameters`.
    """

    name: str
    model: str
    args: dict = field(default_factory=dict)
    paper: dict = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Names the folder of its runs: the same for the same model, whichever table asks for it."""
        args = [f'{key}={json.dumps(value, separators=(",", ":"))}' for key, value in sorted(self.args.items())]
        return re.sub(r'[^\w.,=-]', '', '-'.join([self.model, *args]))


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        variant: That is trained.
        config: All its settings.
        argv: The same, as `train.py` takes them.
    """

    variant: Variant
    config: TrainConfig
    argv: list[str]

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    def results(self) -> dict | None:
        """Reads what the run has left; None where it is not at its end.

        Raises:
            InputError: The folder holds a run of other settings.
        """
        if not all((self.output / name).is_file() for name in ('results.json', 'report.md', 'model.safetensors')):
            return None
        try:
            found = json.loads((self.output / 'results.json').read_text(encoding='utf-8'))
            before = {'config': found['config']}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(f'{self.output}: results.json cannot be read ({e}); remove that folder.') from None
        different = list(differences(before, {'config': about_run(self.config, [], {})['config']}))
        if different:
            raise InputError(
                f'{self.output} holds a run of other settings: {"; ".join(different)}. Make these the same, choose'
                ' another output, or remove that folder.'
            )
        return found if 'raw_weights' in found else None  # which training measures last


class Interrupted(Stopped):
    """The comparison was asked to stop, and the run at hand is saved."""

    def __str__(self) -> str:
        return 'stopped, as it was asked to; the same command goes on from here.'


def compare(
    config: VariantsConfig,
    variants: Sequence[Variant],
    reference: str,
    name: str,
    title: str,
    more: Callable[[dict], None] | None = None,
) -> dict:
    """Trains all variants that are not trained yet, and writes the table and its pictures.

    Args:
        config: Settings.
        variants: Rows of the table.
        reference: Name of the row that the others are compared with.
        name: Of the files: `{name}.md`, `.csv`, `.json`, ...
        title: Of the table.
        more: Adds to the table before it is written.

    Returns:
        The table, as `tabulate` makes it.

    Raises:
        InputError: A setting is wrong, or a run did not end as it should.
        Interrupted: It was asked to stop.
    """
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise InputError('this is to be started once, with python: `launch` says how its runs are started.')
    stop = StopRequest()
    runs = plan(config, variants)
    train_all(runs, config.launch, stop)
    results = [(run, run.results()) for run in runs]
    size = results[0][0].config.data.image_size
    num_classes = results[0][1]['num_classes']
    speed = measure_speed(variants, num_classes, size, config.batch_size, config.turns, reference, stop)
    table = {'title': title, **tabulate(results, reference, speed)}
    if more is not None:
        more(table)
    write_table(table, Path(config.output), name)
    return table


def plan(config: VariantsConfig, variants: Sequence[Variant]) -> list[Run]:
    """Makes the runs, the first seed's of all variants first, and checks all of them before any is trained.

    Raises:
        InputError: A setting is wrong, or a folder holds a run of other settings.
    """
    shared = ['--config', config.train, *_arguments(config.settings), '--push_to=null', '--push_private=false']
    recipe = parse(TrainConfig, [*shared, f'--output={config.output}'])
    runs = []
    for seed in config.seeds:
        for variant in variants:
            own = {
                'output': str(Path(config.output, variant.folder, f'seed-{seed}')),
                'seed': seed,
                'model': {'name': variant.model},
            }
            if recipe.model.backbone_pretrained and variant.model not in hub.list_models():
                # A plain model is all backbone: it starts from the weights that the others' backbones start from.
                own['model'] |= {'backbone_pretrained': False, 'init_from': variant.model}
            argv = [*shared, *_arguments(own)]
            args = {**recipe.model.args, **variant.args}
            argv.append(f'--model.args={json.dumps(args)}')
            runs.append(Run(variant, parse(TrainConfig, argv), argv))
            runs[-1].results()
    return runs


def _arguments(settings: dict, prefix: str = '') -> Iterator[str]:
    """Writes nested settings as a command line does."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _arguments(value, f'{prefix}{key}.')
        else:
            yield f'--{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}'


def train_all(runs: Sequence[Run], launch: Sequence[str] | None, stop: StopRequest) -> None:
    """Trains those runs that are not at their end, each from where it stopped.

    Args:
        runs: In their order.
        launch: Arguments of `accelerate launch`; None for a Python alone.
        stop: Whether the comparison has been asked to stop.

    Raises:
        InputError: A run did not end as it should.
        Interrupted: It was asked to stop.
    """
    left = [run for run in runs if run.results() is None]
    print(f'{len(runs) - len(left)} of {len(runs)} runs are at their end.', flush=True)
    for number, run in enumerate(left, 1):
        print(f'\nRun {number} of {len(left)}: {run.variant.name}, seed {run.config.seed}, {run.output}', flush=True)
        code = None if stop.received else _train(run, launch, stop)
        if stop.received or code == 75:
            raise Interrupted
        if code or run.results() is None:
            raise InputError(
                f'{run.output}: training ended with code {code}, and what it said stands above; the same command goes'
                ' on, once that is mended.'
            )


def _train(run: Run, launch: Sequence[str] | None, stop: StopRequest) -> int:
    """Runs `train.py`; a request to stop goes on to it, once. Returns its exit code."""
    launcher = [] if launch is None else ['-m', 'accelerate.commands.launch', '--quiet', *launch]
    command = [sys.executable, *launcher, str(TRAIN), *run.argv, '--resume=auto']
    # In a session of its own, Ctrl-C reaches it through here alone: a second one would end it at once.
    process = subprocess.Popen(command, start_new_session=True)
    family, asked = [psutil.Process(process.pid)], False
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            if stop.received and not asked:
                asked = True
                with suppress(psutil.NoSuchProcess):
                    family += family[0].children(recursive=True)
                os.killpg(process.pid, signal.SIGTERM)
        psutil.wait_procs(family[1:])  # a launcher may end before what it has started
        return process.returncode
    finally:  # a second Ctrl-C
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family += family[0].children(recursive=True)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


@dataclass(frozen=True)
class Timing:
    """How long several things take, measured in turns.

    Attributes:
        seconds: Median of each.
        ratio: Of its time to the reference's in the same turn: the median, and 10 and 90 % of the turns.
    """

    seconds: list[float]
    ratio: list[tuple[float, float, float]]


def time_in_turns(
    loops: Sequence[Callable[[], object]], turns: int, reference: int, stop: StopRequest | None = None
) -> Timing:
    """Times each in turns, each first as often as the others: what else the machine does meets all alike.

    Args:
        loops: What is timed; called once before.
        turns: How often.
        reference: Number of the one that the others are compared with.
        stop: Whether the comparison has been asked to stop.

    Raises:
        Interrupted: It has.
    """
    seconds = np.empty((turns, len(loops)))
    for turn in range(-1, turns):
        for i in range(len(loops)):
            number = (turn + i) % len(loops)
            if stop is not None and stop.received:
                raise Interrupted
            _wait_for_device()
            began = time.perf_counter()
            loops[number]()
            _wait_for_device()
            if turn >= 0:  # the first one sets up memory
                seconds[turn, number] = time.perf_counter() - began
    ratio = np.percentile(seconds / seconds[:, reference, None], (50, 10, 90), axis=0)
    return Timing(np.median(seconds, axis=0).tolist(), [tuple(values) for values in ratio.T.tolist()])


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_models(variants: Sequence[Variant], num_classes: int) -> list[nn.Module]:
    """Makes the variants without trained weights, for inference on the device that there is."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    return [
        hub.create(variant.model, num_classes=num_classes, **variant.args)
        .eval()
        .to(device, memory_format=torch.channels_last)
        for variant in variants
    ]


def make_pictures(models: Sequence[nn.Module], image_size: int, batch_size: int) -> torch.Tensor:
    """Makes noise (B, 3, H, W) where the models are."""
    like = next(models[0].parameters())
    pictures = torch.randn(batch_size, 3, image_size, image_size, device=like.device)
    return pictures.to(memory_format=torch.channels_last)


def measure_speed(
    variants: Sequence[Variant],
    num_classes: int,
    image_size: int,
    batch_size: int,
    turns: int,
    reference: str,
    stop: StopRequest | None = None,
) -> dict:
    """Counts parameters and FLOPs, and times inference of all variants in turns in this process.

    On a GPU it computes in bfloat16, as training does there.

    Returns:
        `rows`, for each variant `num_parameters`, `gflops` of one picture (a multiplication and an addition are 2) and,
        unless `turns` is 0, `pictures_per_second` and `time_ratio`, that of its time to the reference's with 10 and
        90 % of the turns; and what it was measured with.
    """
    rows = []
    for variant in variants:
        with torch.device('meta'):
            model = hub.create(variant.model, num_classes=num_classes, **variant.args)
        rows.append(card.count(model, (3, image_size, image_size)))
    if not turns:
        return {'rows': rows}
    models = make_models(variants, num_classes)
    pictures = make_pictures(models, image_size, batch_size)
    is_gpu = pictures.device.type == 'cuda'
    print(f'\nTiming inference of {len(models)} models in {turns} turns.', flush=True)
    with torch.inference_mode(), torch.autocast('cuda', torch.bfloat16, enabled=is_gpu):
        number = [variant.name for variant in variants].index(reference)
        timing = time_in_turns([partial(model, pictures) for model in models], turns, number, stop)
    for row, seconds, (ratio, *spread) in zip(rows, timing.seconds, timing.ratio, strict=True):
        row |= {'pictures_per_second': batch_size / seconds, 'time_ratio': ratio, 'time_ratio_10_to_90_percent': spread}
    return {
        'rows': rows,
        'device': torch.cuda.get_device_name() if is_gpu else 'cpu',
        'threads': None if is_gpu else torch.get_num_threads(),
        'dtype': 'bfloat16' if is_gpu else 'float32',
        'batch_size': batch_size,
        'image_size': image_size,
        'turns': turns,
    }


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


def tabulate(results: Sequence[tuple[Run, dict]], reference: str, speed: dict) -> dict:
    """Makes the table of runs that are at their end.

    Args:
        results: The runs with what they have left.
        reference: Name of the row that the others are compared with.
        speed: What `measure_speed` gives of the variants, in their order.

    Returns:
        `rows`, each with `values` (each measure by seed), `mean`, `std` (of n - 1; None for one seed), `difference`
        (of each measure, from the reference), `AP` (of each label by seed), cost, speed and the paper's figures; and
        what was measured on and with.

    Raises:
        InputError: The runs were not measured on the same pictures in the same way.
    """
    _check_alike(results)
    by_variant: dict[str, list[tuple[Run, dict]]] = {}
    for run, found in results:
        by_variant.setdefault(run.variant.name, []).append((run, found))
    values = {
        name: {key: [_measure(found, key) for _, found in runs] for key in (*MEASURES, *BY_SIZE.values())}
        for name, runs in by_variant.items()
    }
    rows = []
    for (name, runs), cost in zip(by_variant.items(), speed['rows'], strict=True):
        variant = runs[0][0].variant
        known = {key: found for key, found in values[name].items() if None not in found}
        rows.append(
            {
                'name': name,
                'model': variant.model,
                'args': variant.args,
                **cost,
                'train_peak_bytes': max(found['peak_bytes'] for _, found in runs),
                'train_seconds': [found['seconds'] for _, found in runs],
                'values': known,
                'mean': {key: float(np.mean(found)) for key, found in known.items()},
                'std': {key: float(np.std(found, ddof=1)) if len(found) > 1 else None for key, found in known.items()},
                'difference': None
                if name == reference
                else {key: paired_interval(found, values[reference][key]) for key, found in known.items()},
                'AP': {label: [found['labels'][label]['AP'] for _, found in runs] for label in runs[0][1]['labels']},
                'paper': variant.paper,
                'runs': [str(run.output) for run, _ in runs],
            }
        )
    first = results[0][1]
    shared = {'optim': first['config']['optim'], 'data': {**first['config']['data'], 'root': None, 'image_root': None}}
    return {
        'reference': reference,
        'seeds': list(dict.fromkeys(run.config.seed for run, _ in results)),
        'rows': rows,
        'speed': {key: value for key, value in speed.items() if key != 'rows'},
        'data': first['data'],
        **{key: first[key] for key in ('num_images', 'num_classes', 'num_classes_with_positives', 'definitions')},
        'num_positives': {label: found['num_positives'] for label, found in first['labels'].items()},
        'num_positives_by_size': first['num_positives_by_size'],
        'weights': first['weights'],
        'recipe': shared,
        'command': command_line(),
        'trained_with': {
            key: _distinct([found[key] for _, found in results])
            for key in ('git_commit', 'git_dirty', 'devices', 'num_processes', 'mixed_precision', 'versions')
        },
    }


def _measure(found: dict, key: str) -> float | None:
    size = next((size for size, name in BY_SIZE.items() if name == key), None)
    return found['measures'][key] if size is None else found['mAP_by_size'][size]


def _distinct(values: Sequence[object]) -> list:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _check_alike(results: Sequence[tuple[Run, dict]]) -> None:
    def basis_of(found: dict) -> dict:
        counts = {name: label['num_positives'] for name, label in found['labels'].items()}
        shared = {key: found[key] for key in ('data', 'num_images', 'definitions', 'weights')}
        return {**shared, 'num_positives': counts}

    (first, expected), *others = results
    for run, found in others:
        if basis_of(found) != basis_of(expected):
            raise InputError(
                f'{run.output}: was not measured on the same pictures, in the same way, as {first.output}.'
            )


def write_table(table: dict, output: Path, name: str) -> None:
    """Writes a table as `{name}.json`, `.csv` and `.md`, with pictures of accuracy over cost and of each label's AP."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(table, output / f'{name}.json')
        replace_file(output / f'{name}.csv', partial(_write_text, '\n'.join(_csv(table)) + '\n'))
        save_figure(_draw_cost(table), output / f'{name}_cost.png')
        save_figure(_draw_labels(table), output / f'{name}_labels.png')
        replace_file(output / f'{name}.md', partial(_write_text, '\n'.join(_lines(table, name)) + '\n'))
    except OSError as e:
        raise InputError(f'{output}: cannot be written to ({e.strerror or e}).') from None
    print('\n'.join(['', *_main_table(table), f'Written to {output / name}.md, .csv, .json and two pictures.']))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding='utf-8')


def _csv(table: dict) -> Iterator[str]:
    """Gives a line for each row, those of the paper last."""
    keys = [key for key in (*MEASURES, *BY_SIZE.values()) if key in table['rows'][0]['values']]
    lines = []
    for row in table['rows']:
        line = {
            'figures_of': 'measured here',
            'name': row['name'],
            'model': row['model'],
            'args': json.dumps(row['args']),
        }
        line |= {'data': f'{table["data"]["name"]} {table["data"]["split"]}', 'num_images': table['num_images']}
        line['seeds'] = len(table['seeds'])
        for key in keys:
            line |= {key: row['mean'][key], f'{key}_std': row['std'][key]}
            line |= {f'{key}_difference_{end}': (row['difference'] or {}).get(key, {}).get(end) for end in ENDS}
        for key in COST:
            line[key] = row.get(key)
        lines.append(line | {f'paper_{key}': value for key, value in row['paper'].items()})
    for part in table.get('paper', {}).values():
        for name, *values in part['rows']:
            figures = dict(zip(part['columns'], values, strict=True))
            line = {'figures_of': f'the paper, {part["where"]}', 'name': name, 'data': part['data']}
            lines.append(line | {key: figures[key] for key in MEASURES if key in figures})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    yield from text.getvalue().splitlines()


ENDS = ('mean', 'low', 'high')
COST = ('num_parameters', 'gflops', 'pictures_per_second', 'time_ratio', 'train_peak_bytes')


def _lines(table: dict, name: str) -> Iterator[str]:
    data, named, seeds = table['data'], table['definitions'], table['seeds']
    few = sum(0 < count < FEW for count in table['num_positives'].values())
    counts = table['num_images'], table['num_classes_with_positives'], table['num_classes'], few
    yield f'# {escape(table["title"])}'
    yield ''
    yield (
        f'Percent on {escape(data["name"])} {escape(data["split"])} ({basis(*counts, named["mAP"], named["threshold"])}),'
        f' {table["weights"]} of the weights.'
    )
    yield (
        f'Each row is trained alike with {_some(seeds)}: their mean ± their standard deviation.'
        if len(seeds) > 1
        else f'Each row is trained alike, with {_some(seeds)} alone: no spread is known.'
    )
    yield (
        f'"Difference" is that of mAP from {escape(table["reference"])}, seed by seed: its mean, and the 95 % interval of'
        f" Student's t over {len(seeds)} differences."
    )
    yield ''
    yield from _main_table(table)
    if any(row['paper'] for row in table['rows']):
        yield (
            "The paper's figures are its authors', on COCO 2014 at 448 pixels"
            f' ({escape(table["paper_of"])}); none of them was measured here.'
        )
        yield ''
    if 'mAP_small' in table['rows'][0]['mean'] or any(key in table['rows'][0]['mean'] for key in BY_SIZE.values()):
        yield from _size_table(table)
    yield from _cost_table(table)
    yield f'![mAP over cost.]({name}_cost.png)'
    yield ''
    yield f'![Average precision of each label.]({name}_labels.png)'
    yield ''
    yield from _paper_tables(table)
    yield '## Made with'
    yield ''
    yield from ('```bash', table['command'], '```', '')
    made = table['trained_with']
    commits = ', '.join(str(commit or 'none: not a checkout') for commit in made['git_commit'])
    changed = ', some with changes that are not committed' if any(made['git_dirty']) else ''
    devices = '; '.join(', '.join(map(str, found)) for found in made['devices'])
    yield f'Trained at git commit {commits}{changed}, on {escape(devices)}, {_some(made["mixed_precision"])} precision.'
    yield ''


def _some(values: Sequence[object]) -> str:
    """Names seeds, precisions."""
    if all(isinstance(value, int) for value in values):
        return f'seed{"s" * (len(values) > 1)} {", ".join(map(str, values))}'
    return ', '.join('full' if value == 'no' else str(value) for value in values)


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
    extra = table.get('columns', {})
    body = []
    for row in rows:
        figures = [spread(row, 'mAP'), difference(row, 'mAP'), spread(row, 'CF1'), spread(row, 'OF1')]
        figures.append(f'{row["num_parameters"] / 1e6:.2f} M')
        figures += [extra[title][row['name']] for title in extra]
        figures += [PAPER_COLUMNS[key][1].format(row['paper'][key]) if key in row['paper'] else '–' for key in of_paper]
        body.append([escape(row['name']), *figures])
    yield from markdown_table([*head, *extra, *(PAPER_COLUMNS[key][0] for key in of_paper)], body)


PAPER_COLUMNS = {
    'mAP': ("the paper's mAP (COCO 2014)", '{:.2f}'),
    'million_parameters': ("the paper's parameters", '{:.1f} M'),
}


def _size_table(table: dict) -> Iterator[str]:
    yield (
        f'mAP by the size of the largest instance ({", ".join(f"{size} {BANDS[size]}" for size in SIZES)} of the image),'
        ' and its difference:'
    )
    yield ''
    body = []
    for row in table['rows']:
        body.append([escape(row['name'])])
        for key in BY_SIZE.values():
            body[-1] += [spread(row, key), difference(row, key)]
    yield from markdown_table(['', *(text for size in SIZES for text in (size, 'difference'))], body)


def _cost_table(table: dict) -> Iterator[str]:
    speed = table['speed']
    yield '## Cost'
    yield ''
    told = 'GFLOPs are those of one picture; a multiplication and an addition are 2.'
    if speed:
        threads = f', {speed["threads"]} thread(s)' if speed['threads'] else ''
        told += (
            f' Inference: {speed["image_size"]} x {speed["image_size"]}, {speed["batch_size"]} pictures at once,'
            f' {speed["dtype"]}, on {escape(speed["device"])}{threads}; medians of {speed["turns"]} turns in one process,'
            f' "time" relative to {escape(table["reference"])} in the same turn, with that of 80 % of the turns.'
        )
    yield f'{told} Memory is the peak of a training process, on the CPU with all that Python holds.'
    yield ''
    body = []
    for row in table['rows']:
        timed = ['–', '–']
        if speed:
            low, high = row['time_ratio_10_to_90_percent']
            timed = [f'{row["pictures_per_second"]:.1f}', f'{row["time_ratio"]:.2f} ({low:.2f} to {high:.2f})']
        body.append([escape(row['name']), f'{row["num_parameters"]:,}', f'{row["gflops"]:.3g}', *timed])
        body[-1].append(f'{row["train_peak_bytes"] / 2**20:,.0f} MiB')
    yield from markdown_table(['', 'parameters', 'GFLOPs', 'pictures/s', 'time', 'training memory'], body)


def _paper_tables(table: dict) -> Iterator[str]:
    """Lays the paper's tables beside ours, where these are of the same data in the same columns."""
    for part in table.get('paper', {}).values():
        is_same = part['measured_on'] == table['data']['name']
        columns = [c for c in part['columns'] if is_same or c in ('pixels', *MEASURES)]
        yield f"## The paper's figures: {escape(part['data'])}"
        yield ''
        yield (
            f'From the paper, {escape(part["where"])}: figures of its authors, or that they quote; none was measured here'
            f' ({escape(part["note"])}).'
        )
        if not is_same:
            yield f'They are of other data than {escape(table["data"]["name"])}: not to be compared with those above.'
        yield ''
        body = []
        if is_same:
            body = [
                [f'**{escape(row["name"])}, measured here**', *_as_the_paper(table, row, columns)]
                for row in table['rows']
            ]
        for name, *values in part['rows']:
            figures = dict(zip(part['columns'], values, strict=True))
            body.append([f'{escape(name)} (paper)', *('–' if figures[c] is None else f'{figures[c]}' for c in columns)])
        yield from markdown_table(['', *map(escape, columns)], body)


def _as_the_paper(table: dict, row: dict, columns: Sequence[str]) -> Iterator[str]:
    """Gives a row of ours in the columns of a table of the paper."""
    for column in columns:
        if column == 'pixels':
            yield str(table['recipe']['data']['image_size'])
        elif column in MEASURES:
            yield spread(row, column)
        else:
            found = [value for value in row['AP'].get(column, []) if value is not None]
            yield f'{np.mean(found):.1f}' if found else '–'


def _draw_cost(table: dict) -> Figure:
    """Draws mAP over what it costs, with the standard deviation over the seeds."""
    rows = table['rows']
    panels = {'GFLOPs of a picture': [row['gflops'] for row in rows]}
    panels['parameters in millions'] = [row['num_parameters'] / 1e6 for row in rows]
    if table['speed']:
        title = f'ms for a picture ({table["speed"]["device"]}, {table["speed"]["batch_size"]} at once)'
        panels[title] = [1000 / row['pictures_per_second'] for row in rows]
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


MARKERS = 'osD^vP*XhH<>'


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
