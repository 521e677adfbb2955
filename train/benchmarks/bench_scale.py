"""Predicts training on many devices from one: gradient exchange, data loading and steps per epoch (README.md here)."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench_common import check_above_0, check_at_least, check_model
from msff_timm.errors import InputError
from msff_timm.training.report import markdown_table

RESULTS = Path(__file__).parents[2] / 'hub_cards' / 'results'
NUM_IMAGES, IMAGE_BYTES = 82783, 13e9 / 82783  # COCO train2014: "83K/13GB", https://cocodataset.org/#download
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, defaults of DistributedDataParallel
SUMS = (4, 12)  # bytes of the two small all-reduces in each step of the trainer
EFFICIENT = 0.95  # efficiency that `accumulation_steps` aims at

Pieces = Sequence[tuple[int, float]]  # bytes, and the share of the backward pass after which they are complete


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes: at most one node, or whole nodes."""

    devices: int
    between: float  # bytes/s that a node sends to other nodes
    per_node: int = 8
    within: float = 450e9  # bytes/s that a device sends within its node: NVLink of an H100
    latency_within: float = 3e-6  # seconds per message
    latency_between: float = 10e-6

    @property
    def nodes(self) -> int:
        return math.ceil(self.devices / self.per_node)

    @property
    def slowest(self) -> tuple[float, float]:
        """Rate and latency of rings through all devices, one ring per device of a node."""
        if self.nodes == 1:
            return self.within, self.latency_within
        return min(self.within, self.between), max(self.latency_within, self.latency_between)

    def ring(self, num_bytes: int) -> float:
        """Returns the seconds of an all-reduce by rings over all N devices: 2(N-1) messages of 1/N of the bytes."""
        rate, latency = self.slowest
        return 2 * (self.devices - 1) * (num_bytes / self.devices / rate + latency)

    def hierarchical(self, num_bytes: int) -> float:
        """Returns the seconds of a reduce-scatter in each node, an all-reduce between nodes, and an all-gather."""
        local, nodes = min(self.devices, self.per_node), self.nodes
        in_node = (local - 1) * (num_bytes / local / self.within + self.latency_within)
        between = 2 * (nodes - 1) * (num_bytes / nodes / self.between + self.latency_between) if nodes > 1 else 0.0
        return 2 * in_node + between

    def broadcast(self, num_bytes: int) -> float:
        """Returns the seconds of a pipelined broadcast down a binary tree."""
        rate, latency = self.slowest
        return num_bytes / rate + math.ceil(math.log2(self.devices)) * latency if self.devices > 1 else 0.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='msff_resnet101', help='registered name')
    parser.add_argument('--image_size', type=int, default=448, help='side of the images in pixels')
    parser.add_argument('--num_classes', type=int, default=80, help='number of labels')
    parser.add_argument('--step', type=Path, required=True, help='JSON file of `model`, with training steps')
    parser.add_argument('--batch_size', type=int, help='images on each device; default: those of the file')
    parser.add_argument('--devices', type=int, nargs='+', default=[8, 64, 512], help='numbers of devices, 8 in a node')
    rates = 'Gb/s from node to node; default: 400 for each of 8 GPUs, and 25 for all of them'
    parser.add_argument('--between', type=float, nargs='+', default=[3200, 25], help=rates)
    parser.add_argument('--data', type=Path, default=RESULTS / 'benchmark_data.json', help='JSON file of `data`')


def run(options: argparse.Namespace) -> dict:
    check_model('--model', options.model)
    check_at_least(options, image_size=32, num_classes=1, batch_size=1, devices=1)
    check_above_0(options, 'between')
    for devices in options.devices:
        if devices > Cluster.per_node and devices % Cluster.per_node:
            raise InputError(f'--devices is {devices}: must be a multiple of {Cluster.per_node}, or below that.')
    measured_size, rate, source = read_step(options.step, options.model, options.image_size)
    batch_size = options.batch_size or measured_size
    data = read_results('--data', options.data, 'data')
    if data['image_size'] != options.image_size:
        raise InputError(f'--data is {options.data}: measured at {data["image_size"]} pixels, see benchmark.py data.')
    core_rate = data['images_per_second']['default']

    with torch.device('meta'):
        model = timm.create_model(options.model, num_classes=options.num_classes).train()
        images = torch.empty(batch_size, 3, options.image_size, options.image_size)
    gradients, forward_share = find_gradients(model, images)
    buckets = make_buckets(gradients)
    buffer_bytes = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    rows = [
        predict(Cluster(devices, 1e9 / 8 * between), batch_size, rate, buckets, forward_share, buffer_bytes, core_rate)
        for between in options.between
        for devices in options.devices
        if devices > Cluster.per_node or between == options.between[0]  # a single node has no network
    ]
    gradient_bytes = sum(num_bytes for num_bytes, _ in gradients)
    print(
        f'{options.model}: {gradient_bytes / 1e6:.1f} MB of gradients in {len(buckets)} buckets,'
        f' {buffer_bytes / 1e6:.2f} MB of buffers, {forward_share:.0%} of the FLOPs in the forward pass.\n'
        f'One device: batch size {batch_size}, {rate:.4g} images/s ({source}).\n'
        f'One CPU core: {core_rate:.1f} images/s ({options.data.name}).\n'
    )
    print('\n'.join(format_rows(rows)))
    return {
        **{key: getattr(options, key) for key in ('model', 'image_size', 'num_classes')},
        'step': {'batch_size': batch_size, 'images_per_second': rate, 'source': source, 'seconds': batch_size / rate},
        'forward_share': forward_share,
        'gradient_bytes': gradient_bytes,
        'buffer_bytes': buffer_bytes,
        'buckets': [{'num_bytes': num_bytes, 'ready': ready} for num_bytes, ready in buckets],
        'core_images_per_second': core_rate,
        'rows': rows,
    }


def read_results(option: str, path: Path, command: str) -> dict:
    """Reads the results of a command of benchmark.py."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        raise InputError(f'{option} is {path}: cannot be read ({getattr(e, "strerror", None) or e}).') from None
    if not isinstance(found, dict) or found.get('command') != command:
        raise InputError(f'{option} is {path}: not written by benchmark.py {command}.')
    return found


def read_step(path: Path, model: str, image_size: int) -> tuple[int, float, str]:
    """Returns the batch size, the images per second and a description of the fastest training step of a model."""
    found = read_results('--step', path, 'model')
    steps = [
        (row['images_per_second'], case['batch_size'], f'{case["dtype"]}, {case["format"]}, {case["mode"]}')
        for case in found['cases']
        for row in case['rows']
        if (row['model'], case['image_size'], case['kind']) == (model, image_size, 'train') and 'error' not in row
    ]
    if not steps:
        raise InputError(f'--step is {path}: it holds no training step of {model} at {image_size} pixels.')
    rate, batch_size, case = max(steps)
    return batch_size, rate, f'{path.name}, {found["device"]} ({found["machine"]["cpu"]}), {case}'


def find_gradients(model: torch.nn.Module, images: torch.Tensor) -> tuple[Pieces, float]:
    """Returns the gradients in the order of the backward pass, by FLOPs, and the forward pass's share of all FLOPs."""
    found = []
    with FlopCounterMode(display=False) as counter:  # not flops.count_flops: each gradient reads the counter
        logits = model(images)
        forward = counter.get_total_flops()
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda p: found.append((p.numel() * p.element_size(), counter.get_total_flops() - forward))
            )
        logits.sum().backward()
        total = counter.get_total_flops()
    return [(num_bytes, flops / (total - forward)) for num_bytes, flops in found], forward / total


def make_buckets(gradients: Pieces, first: int = FIRST_BUCKET, size: int = BUCKET) -> Pieces:
    """Groups gradients into buckets of at least these sizes, as DistributedDataParallel does from its second step."""
    buckets, held = [], 0
    for num_bytes, ready in gradients:
        held += num_bytes
        if held >= (size if buckets else first):
            buckets.append((held, ready))
            held = 0
    return [*buckets, (held, ready)] if held else buckets


def exposed(buckets: Pieces, backward: float, all_reduce: Callable[[int], float]) -> float:
    """Returns the seconds that the exchange takes beyond the backward pass, whose seconds are given.

    The all-reduce of a bucket begins once the bucket is complete and the previous one has been exchanged.
    """
    done = 0.0
    for num_bytes, ready in buckets:
        done = max(done, ready * backward) + all_reduce(num_bytes)
    return max(0.0, done - backward)


def predict(
    cluster: Cluster,
    batch_size: int,
    rate: float,
    buckets: Pieces,
    forward_share: float,
    buffer_bytes: int,
    core_rate: float,
) -> dict:
    """Predicts training on a cluster; returns a row of the table.

    Args:
        cluster: Devices.
        batch_size: Number of images on each device.
        rate: Images per second of one device alone.
        buckets: Buckets of gradients.
        forward_share: Share of the forward pass in a step.
        buffer_bytes: Bytes of BatchNorm's statistics, which the first process sends to all before each step.
        core_rate: Images per second that one CPU core loads and transforms.
    """
    seconds = batch_size / rate
    methods = {'ring': cluster.ring, 'hierarchical': cluster.hierarchical}
    lost = {
        name: exposed(buckets, (1 - forward_share) * seconds, all_reduce)
        + cluster.broadcast(buffer_bytes)
        + sum(map(all_reduce, SUMS))
        for name, all_reduce in methods.items()
    }
    least = min(lost.values())
    efficiency = seconds / (seconds + least)
    needed = min(cluster.devices, cluster.per_node) * rate
    workers = math.ceil(rate / core_rate)
    return {
        **asdict(cluster),
        'nodes': cluster.nodes,
        'all_reduce_seconds': {name: sum(f(size) for size, _ in buckets) for name, f in methods.items()},
        'exposed_seconds': lost,
        'efficiency': efficiency,
        'images_per_second': cluster.devices * rate * efficiency,
        'accumulation_steps': max(1, math.ceil(least / seconds * EFFICIENT / (1 - EFFICIENT))),
        'needed_images_per_second': needed,
        'needed_cores': needed / core_rate,
        'workers': workers,
        'node_bytes_per_second': needed * IMAGE_BYTES,
        'shards': cluster.devices * workers,
        'global_batch': cluster.devices * batch_size,
        'steps_per_epoch': NUM_IMAGES // (cluster.devices * batch_size),
    }


def format_rows(rows: Sequence[dict]) -> list[str]:
    """Formats predictions as a Markdown table."""
    head = ['devices', 'between nodes', 'ring all-reduce', 'hierarchical', 'ring, exposed', 'hierarchical, exposed']
    head += ['efficiency', 'images/s', 'accumulation for 95 %', 'cores per node', 'shards', 'global batch']
    head += ['steps per epoch']
    body = [
        [
            str(row['devices']),
            f'{8 * row["between"] / 1e9:g} Gb/s' if row['nodes'] > 1 else 'one node',
            *(f'{1000 * s:.1f} ms' for key in ('all_reduce', 'exposed') for s in row[f'{key}_seconds'].values()),
            f'{row["efficiency"]:.1%}',
            f'{row["images_per_second"]:,.0f}',
            str(row['accumulation_steps']),
            f'{row["needed_cores"]:.1f}',
            *(f'{row[key]:,}' for key in ('shards', 'global_batch', 'steps_per_epoch')),
        ]
        for row in rows
    ]
    return list(markdown_table(head, body, texts=2))
