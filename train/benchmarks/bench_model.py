"""Measures models side by side in turns: forward passes or training steps, their FLOPs, memory and profile."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import timm
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench_common import check_at_least, check_each_once, check_model, with_interval
from msff_timm import hub
from msff_timm.flops import count_flops
from msff_timm.training.config import OptimConfig
from msff_timm.training.losses import make_loss
from msff_timm.training.report import markdown_table
from msff_timm.training.studies.speed import time_in_turns, wait_for_device

MODELS = ['resnet101', 'msff_resnet101', 'q2l_resnet101', 'mldecoder_resnet101']
DTYPES = ('float32', 'bfloat16')
FORMATS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}
MODES = ('eager', 'compiled')
PASSES = ('forward', 'train')
MOST_OPERATIONS = 12  # of a profile
# Kinds of operations on a CPU and of kernels on a GPU, by the first pattern that their name contains
KINDS = {
    'attention': 'scaled_dot_product|sdpa|flash',
    'convolutions': 'conv|fprop|dgrad|wgrad|cutlass',
    'matrix products': r'::(addmm|mm|bmm|linear|matmul|baddbmm)$|nvjet|gemm|cublas',
    'norms': 'norm',
    'random numbers': 'random|bernoulli|philox',
    'optimizer': 'Optimizer|multi_tensor_apply|_foreach_',
    'copies': 'copy|clone|cat|contiguous|Memcpy|Memset|fill|zero',
    'others': '',
}
# FLOP/s of dense bfloat16 matrix products of the SXM cards, by the names that CUDA gives them. NVIDIA's data sheets
# print twice as much, with sparsity.
PEAKS = {'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA H200': 989e12}


@dataclass(frozen=True)
class Case:
    """What all models of a comparison do.

    Attributes:
        image_size: Side of the images in pixels.
        num_classes: Number of labels.
        batch_size: Number of images.
        dtype: float32, or bfloat16 by autocast as in training, where weights and loss stay in float32.
        format: Memory format of weights and images, channels_last or contiguous.
        mode: eager or compiled.
        kind: forward, in evaluation mode without gradients; or train, a whole training step with asymmetric loss on
            random targets, backward pass and AdamW.
    """

    image_size: int
    num_classes: int
    batch_size: int
    dtype: str
    format: str
    mode: str
    kind: str

    def __str__(self) -> str:
        return (
            f'{self.kind}, batch {self.batch_size}, {self.image_size} x {self.image_size}, {self.dtype}, {self.format},'
            f' {self.mode}, {self.num_classes} labels'
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--models', nargs='+', default=MODELS, help='registered names, the reference first')
    parser.add_argument('--image_size', type=int, default=448, help='side of the images in pixels')
    parser.add_argument('--num_classes', type=int, default=80, help='number of labels')
    parser.add_argument('--batch_sizes', type=int, nargs='+', default=[2], help='numbers of images')
    for name, choices in (('dtypes', DTYPES), ('formats', FORMATS), ('modes', MODES), ('passes', PASSES)):
        parser.add_argument(f'--{name}', nargs='+', choices=tuple(choices), default=[next(iter(choices))])
    parser.add_argument('--turns', type=int, default=15, help='measurements of each model in each case')
    parser.add_argument('--profile', action='store_true', help='report the operations that take most of the time')


def run(options: argparse.Namespace) -> dict:
    """Measures all models in every combination of batch sizes, dtypes, formats, modes and passes."""
    for name in options.models:
        check_model('--models', name)
    check_each_once(options, 'models')
    check_at_least(options, image_size=32, num_classes=1, batch_sizes=1, turns=1)
    is_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if is_gpu else 'cpu'
    results = {'device': device, 'threads': None if is_gpu else torch.get_num_threads(), 'cases': []}
    lists = (options.batch_sizes, options.dtypes, options.formats, options.modes, options.passes)
    for choice in product(*lists):
        case = Case(options.image_size, options.num_classes, *choice)
        print(f'{case}, on {device}, {options.turns} turns:\n', flush=True)
        results['cases'].append(measure_case(case, options.models, options.turns, options.profile))
        print('\n'.join(format_case(results['cases'][-1])), flush=True)
    return results


def measure_case(case: Case, models: Sequence[str], turns: int, profiled: bool) -> dict:
    """Measures models with random weights in turns in this process.

    The row of a model that cannot be measured, e.g. because memory or a compiler is missing, holds the reason.

    Args:
        case: What the models do.
        models: Registered names. The first is the reference; the first MSFF model is `ours`.
        turns: Number of timed passes of each model.
        profiled: True to profile one more pass of each model.

    Returns:
        The case, `reference`, `ours` (or None), `turns` (seconds of each model) and `rows`: for each model `model` and
        `error`, or `seconds` (median), `images_per_second`, `flops` of the pass, `flops_per_second`,
        `time_to_reference` and `time_of_ours` (relative to this model; see `speed.median_interval`),
        `flops_per_second_to_reference`, and on a GPU `peak_bytes` and `share_of_peak`.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch._dynamo.reset()  # otherwise the second batch size would be compiled for dynamic shapes
    rows, passes = [], {}
    for name in models:
        row = {'model': name}
        rows.append(row)
        held = torch.cuda.memory_allocated() if device.type == 'cuda' else 0  # by earlier models
        try:
            row['flops'] = count_case(name, case)
            passes[name] = make_pass(name, case, device)
            for _ in range(2):  # compiles, and allocates memory
                if device.type == 'cuda':
                    torch.cuda.reset_peak_memory_stats()
                passes[name]()
            wait_for_device()
            if device.type == 'cuda':
                row['peak_bytes'] = torch.cuda.max_memory_allocated() - held
        except Exception as e:  # models raise many kinds
            passes.pop(name, None)
            row['error'] = reason(e)
    measured = [row for row in rows if 'error' not in row]
    ours = next((name for name in models if name.startswith('msff_')), None)
    found = {**asdict(case), 'reference': models[0], 'ours': ours, 'turns': {}, 'rows': rows}
    if not measured:
        return found
    names = list(passes)
    try:
        timing = time_in_turns(list(passes.values()), turns, 0)
        if profiled:
            for row in measured:
                row['profile'] = profile_pass(passes[row['model']], device)
    except (RuntimeError, MemoryError) as e:
        for row in measured:
            row['error'] = reason(e)
        return found
    found['turns'] = dict(zip(names, timing.turns.T.tolist(), strict=True))
    peak = PEAKS.get(torch.cuda.get_device_name()) if device.type == 'cuda' and case.dtype == 'bfloat16' else None
    for number, (row, seconds) in enumerate(zip(measured, timing.seconds, strict=True)):
        rate = row['flops'] / seconds
        row |= {'seconds': seconds, 'images_per_second': case.batch_size / seconds, 'flops_per_second': rate}
        if models[0] in names:
            row['time_to_reference'] = timing.compare(number, 0)
            row['flops_per_second_to_reference'] = rate / measured[0]['flops_per_second']
        if ours in names:
            row['time_of_ours'] = timing.compare(names.index(ours), number)
        if peak is not None:
            row['share_of_peak'] = rate / peak
    return found


def reason(error: Exception) -> str:
    """Returns the first line of an error's message."""
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def make_pass(name: str, case: Case, device: torch.device) -> Callable[[], object]:
    """Makes a model with random weights; returns a function that performs the pass of a case."""
    torch.manual_seed(0)
    model = hub.create(name, num_classes=case.num_classes).to(device, memory_format=FORMATS[case.format])
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)
    images = images.to(memory_format=FORMATS[case.format])
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=case.dtype == 'bfloat16')
    model.train(case.kind == 'train')
    called = torch.compile(model) if case.mode == 'compiled' else model
    if case.kind == 'forward':

        def forward() -> torch.Tensor:
            with torch.inference_mode(), autocast():
                return called(images)

        return forward

    optim = OptimConfig()
    targets = (torch.rand(case.batch_size, case.num_classes, device=device) < 0.04).float()  # 3 of COCO's 80
    optimizer = torch.optim.AdamW(
        model.parameters(), optim.lr, weight_decay=optim.weight_decay, fused=device.type == 'cuda'
    )
    loss_fn = make_loss(optim)

    def train() -> None:
        with autocast():
            logits = called(images)
        loss_fn(logits.float(), targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def count_case(name: str, case: Case) -> int:
    """Counts the FLOPs of the pass of a case."""
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=case.num_classes).train(case.kind == 'train')
        images = torch.empty(case.batch_size, 3, case.image_size, case.image_size)
    return count_flops(lambda: model(images) if case.kind == 'forward' else model(images).sum().backward())


def profile_pass(function: Callable[[], object], device: torch.device) -> dict:
    """Profiles one call.

    Returns:
        `self_seconds` of all operations (on a GPU of its kernels; the rest of the pass it is idle), the share of each
        of the `kinds`, and the `operations` that take most, each with `name`, `calls`, `seconds` and `share`.
    """
    is_gpu = device.type == 'cuda'
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as profiler:
        function()
        wait_for_device()
    found = [
        (event.self_device_time_total if is_gpu else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
        # Operations repeat the time of the kernels that they start.
        if not is_gpu or event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    total = sum(microseconds for microseconds, _ in found)
    found.sort(key=lambda pair: -pair[0])
    kinds = dict.fromkeys(KINDS, 0.0)
    for microseconds, event in found:
        kinds[kind_of(event.key)] += microseconds / total
    return {
        'self_seconds': total / 1e6,
        'kinds': kinds,
        'operations': [
            {'name': event.key, 'calls': event.count, 'seconds': microseconds / 1e6, 'share': microseconds / total}
            for microseconds, event in found[:MOST_OPERATIONS]
        ],
    }


def kind_of(operation: str) -> str:
    """Returns the kind of an operation or kernel, one of `KINDS`."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation))


def format_case(found: dict) -> list[str]:
    """Formats the result of `measure_case` as a Markdown table, with errors and profiles below."""
    reference, ours = found['reference'], found['ours']
    is_gpu = any('peak_bytes' in row for row in found['rows'])
    head = ['model', 'ms', 'images/s', f"time / {reference}'s", f"{ours}'s time / model's", 'GFLOP', 'GFLOP/s']
    head.append(f"of {reference}'s FLOP/s")
    head += ['of the peak', 'peak memory'] if is_gpu else []
    table, below = [], []
    for row in found['rows']:
        if 'error' in row:
            below.append(f'{row["model"]}: not measured: {row["error"]}')
            continue
        cells = [
            row['model'],
            f'{1000 * row["seconds"]:.4g}',
            f'{row["images_per_second"]:.4g}',
            with_interval(row.get('time_to_reference')),
            with_interval(row.get('time_of_ours')),
            f'{row["flops"] / 1e9:.4g}',
            f'{row["flops_per_second"] / 1e9:.4g}',
            share(row.get('flops_per_second_to_reference')),
        ]
        if is_gpu:
            cells += [share(row.get('share_of_peak')), f'{row["peak_bytes"] / 2**30:.2f} GiB']
        table.append(cells)
        if 'profile' in row:
            most = row['profile']['operations'][:5]
            below.append(f'{row["model"]}: ' + ', '.join(f'{o["name"][:60]} {o["share"]:.1%}' for o in most))
            kinds = sorted(row['profile']['kinds'].items(), key=lambda item: -item[1])
            below.append(f'{row["model"]}: ' + ', '.join(f'{kind} {part:.0%}' for kind, part in kinds if part >= 0.005))
    return [*markdown_table(head, table), *below, *([''] if below else [])]


def share(value: float | None) -> str:
    return '–' if value is None else f'{value:.1%}'
