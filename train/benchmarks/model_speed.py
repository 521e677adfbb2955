"""Times forward passes and training steps of models in turns, with the FLOPs that they take and where the time goes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import timm
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from msff_timm import hub
from msff_timm.errors import InputError, unknown
from msff_timm.training.config import OptimConfig
from msff_timm.training.losses import make_loss
from msff_timm.training.report import markdown_table
from msff_timm.training.studies.speed import time_in_turns, wait_for_device

__all__ = [
    'DTYPES',
    'FORMATS',
    'MODES',
    'PASSES',
    'Case',
    'check_models',
    'count_flops',
    'lines',
    'make_pass',
    'measure_case',
    'with_interval',
]

DTYPES = ('float32', 'bfloat16')
FORMATS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}
MODES = ('eager', 'compiled')
PASSES = ('forward', 'train')
MOST_OPERATIONS = 12  # of a profile
# Dense matrix products of bfloat16, FLOP/s, from NVIDIA's data sheets, which print twice as much: with sparsity. Of
# the SXM cards, by the names that CUDA gives them; another card has no share of a peak.
PEAKS = {'NVIDIA H100 80GB HBM3': 989e12, 'NVIDIA H200': 989e12}


@dataclass(frozen=True)
class Case:
    """What all models of a comparison do alike.

    Attributes:
        image_size: Side of the images in pixels.
        num_classes: Labels.
        batch_size: Images at once.
        dtype: float32, or bfloat16 by autocast, as training has it: weights and loss stay in float32.
        format: channels_last or contiguous, of weights and images.
        mode: eager or compiled.
        kind: forward, in evaluation mode without gradients; or train, a whole step: the model in training mode,
            asymmetric loss on random targets, backward, AdamW.
    """

    image_size: int
    num_classes: int
    batch_size: int
    dtype: str
    format: str
    mode: str
    kind: str

    def __str__(self) -> str:
        size = f'{self.image_size} x {self.image_size}'
        return (
            f'{self.kind}, batch {self.batch_size}, {size}, {self.dtype}, {self.format}, {self.mode},'
            f' {self.num_classes} labels'
        )


def check_models(models: Sequence[str]) -> None:
    """Checks that timm knows models, each of which is asked for once.

    Raises:
        InputError: It does not, or one is asked for twice.
    """
    for name in models:
        if not timm.is_model(name):
            raise unknown('--models', name, hub.list_models())
    if len(set(models)) < len(models):
        raise InputError(f'--models is {" ".join(models)}: must be one or more, each once.')


def measure_case(case: Case, models: Sequence[str], turns: int, profiled: bool) -> dict:
    """Measures models in turns in this process, each made anew with weights that are drawn.

    A model that cannot be measured, since memory or a compiler is missing say, has the reason in its row.

    Args:
        case: What they do.
        models: Registered names; the first is the reference, and the first of this package's MSFF is `ours`.
        turns: How often each is timed.
        profiled: Whether one more pass of each is profiled.

    Returns:
        The case, `reference`, `ours` (or None), `turns` (the seconds of each model) and `rows`; for each model `model`
        and `error`, or `seconds` (median), `images_per_second`, `flops` of the pass, `flops_per_second`,
        `time_to_reference` and `time_of_ours` (to its own; both as `speed.median_interval` gives them),
        `flops_per_second_to_reference`, and on a GPU `peak_bytes` and `share_of_peak`.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch._dynamo.reset()  # or what was compiled for another batch would make it compile for any
    rows, passes = [], {}
    for name in models:
        row = {'model': name}
        rows.append(row)
        held = torch.cuda.memory_allocated() if device.type == 'cuda' else 0  # by the models before
        try:
            row['flops'] = count_flops(name, case)
            passes[name] = make_pass(name, case, device)
            for _ in range(2):  # compiled, and its memory set up, before any is timed
                if device.type == 'cuda':
                    torch.cuda.reset_peak_memory_stats()
                passes[name]()
            wait_for_device()
            if device.type == 'cuda':
                row['peak_bytes'] = torch.cuda.max_memory_allocated() - held
        except Exception as e:  # each model has its own ways to say what it does not take
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
    """Gives the first line of an error that says something, for a row."""
    text = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return text[0] if text else type(error).__name__


def make_pass(name: str, case: Case, device: torch.device) -> Callable[[], object]:
    """Makes a model with weights that are drawn, and what is called to have it do the pass of a case."""
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


def count_flops(name: str, case: Case) -> int:
    """Counts the FLOPs of matrix products and convolutions in a pass, of which a multiplication and an addition are 2.

    The model is on the meta device: nothing is computed, and attention is counted whatever kernel would compute it.
    """
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=case.num_classes).train(case.kind == 'train')
        images = torch.empty(case.batch_size, 3, case.image_size, case.image_size)
    is_forward = case.kind == 'forward'
    model.requires_grad_(not is_forward)  # the counter would follow gradients even in inference mode
    with torch.inference_mode(is_forward), FlopCounterMode(display=False) as counter:
        logits = model(images)
        if not is_forward:
            logits.sum().backward()
    return counter.get_total_flops()


def profile_pass(run: Callable[[], object], device: torch.device) -> dict:
    """Finds where the time of a pass goes.

    Returns:
        `self_seconds` of all operations (on a GPU of its kernels: what is missing to the time of a pass, it was idle),
        and the `operations` that take most of them, each with `name`, `calls`, `seconds` and `share`.
    """
    is_gpu = device.type == 'cuda'
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as profiler:
        run()
        wait_for_device()
    found = [
        (event.self_device_time_total if is_gpu else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
        # A GPU's operations would be counted once more beside their kernels.
        if not is_gpu or event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    total = sum(microseconds for microseconds, _ in found)
    found.sort(key=lambda pair: -pair[0])
    return {
        'self_seconds': total / 1e6,
        'operations': [
            {'name': event.key, 'calls': event.count, 'seconds': microseconds / 1e6, 'share': microseconds / total}
            for microseconds, event in found[:MOST_OPERATIONS]
        ],
    }


def lines(found: dict) -> list[str]:
    """Shows what `measure_case` gives as a table in Markdown, with the reasons and the profiles below."""
    reference, ours = found['reference'], found['ours']
    is_gpu = any('peak_bytes' in row for row in found['rows'])
    head = ['model', 'ms', 'images/s', f"time / {reference}'s", f"{ours}'s time / its", 'GFLOP', 'GFLOP/s']
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
    return [*markdown_table(head, table), *below, *([''] if below else [])]


def with_interval(compared: dict | None) -> str:
    """Shows a median ratio with its interval of 95 %."""
    if compared is None:
        return '–'
    ends = compared['bootstrap_interval_95']
    return f'{compared["median"]:.3f}' + ('' if ends is None else f' ({ends[0]:.3f} to {ends[1]:.3f})')


def share(value: float | None) -> str:
    return '–' if value is None else f'{value:.1%}'
