"""Simulates training on many devices: what the exchange of gradients, loading and the number of steps leave of it."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from msff_timm.errors import InputError
from msff_timm.training.report import markdown_table

__all__ = [
    'Bucket',
    'Cluster',
    'Gradient',
    'Step',
    'arrivals',
    'broadcast',
    'exposed',
    'hierarchical',
    'lines',
    'make_buckets',
    'predict',
    'read_step',
    'ring',
]

FIRST_BUCKET = 2**20  # bytes, of PyTorch's DistributedDataParallel
BUCKET = 25 * 2**20
SUMS = (4, 12)  # bytes of the two small sums over all processes in each step of `Trainer.train_step`
EFFICIENT = 0.95  # of one device's speed: what passes of accumulation are counted for
LIMITING = 0.9  # below that share of one device's speed, communication is called what limits
BOTH = ('ring', 'hierarchical')
FEWEST_STEPS = 100  # of an epoch: the 80 of the recipe are then under 8,000, a sixth of those at batch 128


@dataclass(frozen=True)
class Gradient:
    """Of one parameter.

    Attributes:
        name: The parameter's.
        num_bytes: In the parameter's own dtype, which is float32 under autocast too.
        ready: Share of the backward pass after which it is whole.
    """

    name: str
    num_bytes: int
    ready: float


@dataclass(frozen=True)
class Bucket:
    """Gradients that are exchanged together, once the last of them is whole."""

    num_bytes: int
    ready: float


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes, and what joins them; the rates are those of one direction.

    Attributes:
        devices: In all: up to a node's, or whole nodes.
        per_node: Devices in a node.
        within: Bytes/s that a device sends to others in its node.
        between: Bytes/s that a node sends to others, all its devices together.
        latency_within: Seconds of a message within a node.
        latency_between: Seconds of a message from node to node.
    """

    devices: int
    per_node: int
    within: float
    between: float
    latency_within: float
    latency_between: float

    @property
    def nodes(self) -> int:
        return math.ceil(self.devices / self.per_node)

    @property
    def slowest(self) -> tuple[float, float]:
        """The rate (bytes/s) of a ring through all devices, one for each device of a node, and its latency (s)."""
        if self.nodes == 1:
            return self.within, self.latency_within
        return min(self.within, self.between), max(self.latency_within, self.latency_between)


@dataclass(frozen=True)
class Step:
    """A training step of one device alone.

    Attributes:
        batch_size: Images in it.
        images_per_second: Of it.
        source: Where that is from.
    """

    batch_size: int
    images_per_second: float
    source: str

    @property
    def seconds(self) -> float:
        return self.batch_size / self.images_per_second


def arrivals(model: nn.Module, images: torch.Tensor) -> tuple[list[Gradient], float]:
    """Finds in which order the gradients become whole, and when, as if time passed with the FLOPs that are counted.

    Args:
        model: On the meta device, where nothing is computed.
        images: (B, C, H, W), there too.

    Returns:
        The gradients in that order, and the forward pass's share of the FLOPs of both passes.
    """
    arrived = []
    with FlopCounterMode(display=False) as counter:
        result = model(images)
        forward = counter.get_total_flops()
        hooks = [
            parameter.register_post_accumulate_grad_hook(
                lambda parameter, name=name: arrived.append((name, parameter, counter.get_total_flops() - forward))
            )
            for name, parameter in model.named_parameters()
        ]
        result.sum().backward()
        total = counter.get_total_flops()
    for hook in hooks:
        hook.remove()
    backward = total - forward
    gradients = [Gradient(name, p.numel() * p.element_size(), flops / backward) for name, p, flops in arrived]
    return gradients, forward / total


def make_buckets(gradients: Iterable[Gradient], first: int = FIRST_BUCKET, size: int = BUCKET) -> list[Bucket]:
    """Puts gradients into buckets as DistributedDataParallel does from its second step on.

    In the order in which they become whole; a bucket is closed by the gradient with which it holds its size or more.

    Args:
        gradients: In that order.
        first: Size of the first one in bytes.
        size: Of the others.
    """
    buckets, held = [], 0
    for gradient in gradients:
        held += gradient.num_bytes
        if held >= (size if buckets else first):
            buckets.append(Bucket(held, gradient.ready))
            held = 0
    return [*buckets, Bucket(held, gradient.ready)] if held else buckets


def ring(num_bytes: int, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce by rings through all devices: 2(N-1) messages of an N-th each.

    With a ring for each device of a node, they share what joins the nodes, and each leaves by another device.
    """
    rate, latency = cluster.slowest
    messages = 2 * (cluster.devices - 1)
    return messages * (num_bytes / cluster.devices / rate + latency)


def hierarchical(num_bytes: int, cluster: Cluster) -> float:
    """Returns the seconds of an all-reduce in three parts, one after the other.

    Each node sums up, so that each of its devices holds a part; rings of the devices that hold the same part sum up
    over the nodes, all at once; and each node collects the parts.
    """
    local, nodes = min(cluster.devices, cluster.per_node), cluster.nodes
    in_node = (local - 1) * (num_bytes / local / cluster.within + cluster.latency_within)
    over_nodes = 2 * (nodes - 1) * (num_bytes / nodes / cluster.between + cluster.latency_between) if nodes > 1 else 0.0
    return 2 * in_node + over_nodes


def broadcast(num_bytes: int, cluster: Cluster) -> float:
    """Returns the seconds in which one device's bytes reach all others, passed on piece by piece down a tree."""
    rate, latency = cluster.slowest
    return num_bytes / rate + math.ceil(math.log2(cluster.devices)) * latency if cluster.devices > 1 else 0.0


def exposed(buckets: Iterable[Bucket], backward_seconds: float, all_reduce: Callable[[int], float]) -> float:
    """Returns how many seconds the exchange goes on when the backward pass is over.

    A bucket's all-reduce begins when the bucket is whole and the one before is done. It is taken to slow down nothing
    that is computed meanwhile.

    Args:
        buckets: In their order.
        backward_seconds: Of the whole backward pass.
        all_reduce: Seconds for so many bytes.
    """
    done = 0.0
    for bucket in buckets:
        done = max(done, bucket.ready * backward_seconds) + all_reduce(bucket.num_bytes)
    return max(0.0, done - backward_seconds)


def read_step(path: Path, model: str, image_size: int) -> Step:
    """Reads a training step from what `benchmark.py model` or `train` wrote: the fastest of that model.

    Raises:
        InputError: There is none.
    """
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        of = f'{path.name}, {found["device"]} ({found["machine"]["cpu"]})'
        if found['command'] == 'train':
            processes = found['num_processes']
            rate = found['images_per_second']['fed'] / processes
            step = Step(found['batch_size'] // processes, rate, f'{of}, mixed precision: {found["mixed_precision"]}')
            steps = [step] if (found['model'], found['image_size']) == (model, image_size) else []
        else:
            steps = [
                Step(
                    case['batch_size'],
                    row['images_per_second'],
                    f'{of}, {case["dtype"]}, {case["format"]}, {case["mode"]}',
                )
                for case in found['cases']
                for row in case['rows']
                if (row['model'], case['image_size'], case['kind']) == (model, image_size, 'train')
                and 'error' not in row
            ]
    except FileNotFoundError:
        raise InputError(f'--step is {path}: there is no such file.') from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f'--step is {path}: was not written by benchmark.py model or train ({e!r}).') from None
    if not steps:
        raise InputError(f'--step is {path}: holds no training step of {model} at {image_size} pixels.')
    return max(steps, key=lambda step: step.images_per_second)


def predict(
    gradients: Sequence[Gradient],
    forward_share: float,
    buffer_bytes: int,
    step: Step,
    clusters: Sequence[Cluster],
    core_rate: float,
    cores_per_node: int,
    image_bytes: float,
    num_images: int,
) -> list[dict]:
    """Predicts training on clusters, each device with the images of one step alone.

    Args:
        gradients: What `arrivals` gives.
        forward_share: The same.
        buffer_bytes: BatchNorm's statistics, which the first process gives to all before each step.
        step: Of one device; its time is the two passes', in proportion to their FLOPs.
        clusters: What to predict for.
        core_rate: Images/s that one CPU core loads and transforms.
        cores_per_node: CPU cores of a node.
        image_bytes: Mean size of an image's file.
        num_images: Of an epoch.

    Returns:
        For each cluster its own values and: `all_reduce_seconds` and `exposed_seconds`, by `ring` and `hierarchical`
        (exposed: with the broadcast and the small sums, what a step takes longer than alone), `efficiency` with the
        better one, `images_per_second` in all; `passes`, how many have to be accumulated for 0.95; of loading
        `needed_images_per_second` for each node, `needed_cores` for each node, `workers` of each process,
        `node_bytes_per_second`, `shards`, the least number that gives each worker one; `global_batch`,
        `steps_per_epoch`; and `limits`, of: loading, communication, steps, or else computing.
    """
    buckets = make_buckets(gradients)
    num_bytes = sum(bucket.num_bytes for bucket in buckets)
    rows = []
    for cluster in clusters:
        seconds, lost_by = {}, {}
        for name, all_reduce in (('ring', ring), ('hierarchical', hierarchical)):
            seconds[name] = sum(all_reduce(bucket.num_bytes, cluster) for bucket in buckets)
            lost_by[name] = (
                exposed(buckets, (1 - forward_share) * step.seconds, partial(all_reduce, cluster=cluster))
                + broadcast(buffer_bytes, cluster)
                + sum(all_reduce(size, cluster) for size in SUMS)
            )
        lost = min(lost_by.values())
        efficiency = step.seconds / (step.seconds + lost)
        per_node = min(cluster.devices, cluster.per_node)
        needed = per_node * step.images_per_second
        workers = math.ceil(step.images_per_second / core_rate)
        steps = num_images // (cluster.devices * step.batch_size)
        limits = [
            *(['loading'] if cores_per_node * core_rate < needed * efficiency else []),
            *(['communication'] if efficiency < LIMITING else []),
            *(['steps'] if steps < FEWEST_STEPS else []),
        ]
        rows.append(
            {
                **asdict(cluster),
                'nodes': cluster.nodes,
                'gradient_bytes': num_bytes,
                'all_reduce_seconds': seconds,
                'exposed_seconds': lost_by,
                'efficiency': efficiency,
                'images_per_second': cluster.devices * step.images_per_second * efficiency,
                'passes': max(1, math.ceil(lost / step.seconds * EFFICIENT / (1 - EFFICIENT))),
                'needed_images_per_second': needed,
                'needed_cores': needed / core_rate,
                'workers': workers,
                'node_bytes_per_second': needed * image_bytes,
                'shards': cluster.devices * workers,
                'global_batch': cluster.devices * step.batch_size,
                'steps_per_epoch': steps,
                'limits': limits or ['computing'],
            }
        )
    return rows


def lines(rows: Sequence[dict], num_images: int) -> list[str]:
    """Shows what `predict` gives as two tables in Markdown: of communication, and of loading and steps."""
    head = ['devices', 'node to node', 'all-reduce: ring', 'hierarchical', 'exposed: ring', 'hierarchical']
    head += ['efficiency', 'images/s', 'passes for 95 %', 'limits']
    communication = [
        [
            str(row['devices']),
            f'{8 * row["between"] / 1e9:g} Gb/s' if row['nodes'] > 1 else 'one node',
            *(f'{1000 * row[key][name]:.1f} ms' for key in ('all_reduce_seconds', 'exposed_seconds') for name in BOTH),
            f'{row["efficiency"]:.1%}',
            large(row['images_per_second']),
            str(row['passes']),
            ', '.join(row['limits']),
        ]
        for row in rows
    ]
    loading_head = ['devices', 'images/s a node', 'cores a node', 'workers a process', 'MB/s a node', 'MB/s in all']
    loading_head += ['shards', 'images a shard', 'images a step', 'steps an epoch']
    loading = {
        row['devices']: [
            str(row['devices']),
            large(row['needed_images_per_second']),
            f'{row["needed_cores"]:.1f}',
            str(row['workers']),
            large(row['node_bytes_per_second'] / 1e6),
            large(row['nodes'] * row['node_bytes_per_second'] / 1e6),
            f'{row["shards"]:,}',
            f'{num_images / row["shards"]:,.0f}',
            f'{row["global_batch"]:,}',
            f'{row["steps_per_epoch"]:,}',
        ]
        for row in rows  # the same for each network
    }
    return [*markdown_table(head, communication, texts=2), *markdown_table(loading_head, list(loading.values()))]


def large(value: float) -> str:
    """Shows whole numbers where these are precise enough."""
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
