"""Tests of the prediction for many devices: cases by hand, the recorded figures, and two real processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn as nn

import bench_scale
import msff_timm  # noqa: F401  registers the models
from bench_scale import Cluster
from msff_timm.errors import InputError

RESULTS = Path(__file__).parents[2] / 'hub_cards' / 'results'
# Round numbers: 1 GB/s within a node, 8 GB/s between nodes, 1 and 3 ms per message
CLUSTER = Cluster(16, between=8e9, within=1e9, latency_within=1e-3, latency_between=3e-3)
TWO_PROCESSES = """
import json, sys, tempfile, torch, timm, msff_timm
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
model = timm.create_model('msff_test_resnet', num_classes=80)
model = DistributedDataParallel(model, bucket_cap_mb=json.loads(sys.argv[3]))
sizes = []
def hook(state, bucket):
    sizes.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
model.register_comm_hook(None, hook)
for step in range(3):
    sizes.clear()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
if rank == 0:
    print(json.dumps(sizes))
dist.destroy_process_group()
"""


def on_meta(name: str, num_classes: int = 80) -> nn.Module:
    with torch.device('meta'):
        return timm.create_model(name, num_classes=num_classes).train()


def test_find_gradients_matches_hand_computation():
    """The last layer takes 2 * 8 * 2 FLOPs for its weight and as many for its input; the first 2 * 4 * 8."""
    with torch.device('meta'):
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        gradients, forward_share = bench_scale.find_gradients(model, torch.empty(1, 4))
    assert gradients == [(4 * 16, 0.5), (4 * 32, 1.0)]
    assert forward_share == pytest.approx((2 * 4 * 8 + 2 * 8 * 2) / (2 * 4 * 8 + 2 * 8 * 2 + 128))


def test_find_gradients_finds_all_of_msff():
    model = on_meta('msff_test_resnet')
    gradients, forward_share = bench_scale.find_gradients(model, torch.empty(2, 3, 64, 64, device='meta'))
    assert sorted(size for size, _ in gradients) == sorted(4 * p.numel() for p in model.parameters())
    ready = [ready for _, ready in gradients]
    assert ready == sorted(ready) and ready[-1] == 1 and gradients[-1][0] < 10_000  # the backbone's stem
    assert 0.3 < forward_share < 0.4  # a backward pass takes about two forward passes


@pytest.mark.parametrize(('first', 'size'), [(2**20, 25 * 2**20), (1000, 5000), (1, 1)])
def test_make_buckets_matches_pytorch(first, size):
    model = timm.create_model('msff_test_resnet')
    parameters = list(model.parameters())[::-1]
    gradients = [(4 * p.numel(), i / len(parameters)) for i, p in enumerate(parameters)]
    indices, _ = dist._compute_bucket_assignment_by_size(parameters, [first, size])
    expected = [(sum(gradients[i][0] for i in bucket), gradients[bucket[-1]][1]) for bucket in indices]
    assert bench_scale.make_buckets(gradients, first, size) == expected


def test_all_reduce_matches_hand_computation():
    # 2 * 15 messages of 1/16 of 8 GB at 1 GB/s, with 3 ms each
    assert CLUSTER.ring(8e9) == pytest.approx(30 * (0.5 + 0.003))
    # in the node, twice 7 messages of 1 GB; between the two nodes, twice half of 8 GB at 8 GB/s
    assert CLUSTER.hierarchical(8e9) == pytest.approx(2 * 7 * (1 + 0.001) + 2 * (0.5 + 0.003))
    # within one node, both are the same ring
    node = replace(CLUSTER, devices=8)
    assert node.ring(8e9) == node.hierarchical(8e9) == pytest.approx(14 * (1 + 0.001))
    # a slow link between nodes slows all devices
    slow = replace(CLUSTER, between=1e8)
    assert slow.ring(8e9) == pytest.approx(30 * (5 + 0.003))
    alone = replace(CLUSTER, devices=1)
    assert [alone.ring(8e9), alone.hierarchical(8e9), alone.broadcast(8e9)] == [0, 0, 0]
    assert CLUSTER.broadcast(2e9) == pytest.approx(2 + 4 * 0.003)  # 4 levels of a tree of 16


@pytest.mark.parametrize(
    ('buckets', 'seconds', 'left'),
    [
        ([(1, 1.0)], 3.0, 3.0),  # complete at the end of the pass: no overlap
        ([(1, 0.5)], 0.5, 0.0),  # exchanged before the end, at 1.5 of 2 s
        ([(1, 0.5)], 3.0, 2.0),  # from 1 to 4 s
        ([(1, 0.5), (1, 1.0)], 3.0, 5.0),  # from 1 to 4 s, from 4 to 7 s
        ([(1, 0.25), (1, 1.0)], 1.0, 1.0),  # from 0.5 to 1.5 s, from 2 to 3 s
        ([(1, 0.25), (1, 1.0)], 0.0, 0.0),  # infinitely fast
    ],
)
def test_exposed_matches_hand_computation(buckets, seconds, left):
    assert bench_scale.exposed(buckets, backward=2.0, all_reduce=lambda num_bytes: seconds) == left


def test_predict_matches_hand_computation():
    cluster = Cluster(2, between=1e9, within=4e9, latency_within=0, latency_between=0)
    buckets = [(10**9, 0.5), (10**9, 1.0)]
    # 10 images at 10 images/s take 1 s, 0.75 s of it backward
    row = bench_scale.predict(cluster, 10, 10.0, buckets, 0.25, 4 * 10**8, core_rate=4.0)
    # Two buckets of 1 GB take 0.25 s each on 2 devices: the first is hidden, the second is not; the buffers take 0.1 s.
    assert row['all_reduce_seconds']['ring'] == pytest.approx(0.5)
    assert row['exposed_seconds']['ring'] == pytest.approx(0.25 + 0.1, abs=1e-6)
    assert row['efficiency'] == pytest.approx(1 / 1.35, abs=1e-6)
    assert row['images_per_second'] == pytest.approx(20 / 1.35, abs=1e-4)
    assert row['accumulation_steps'] == 7  # 7 / 7.35 is 0.952, 6 / 6.35 is 0.945
    assert (row['needed_images_per_second'], row['needed_cores'], row['workers']) == (20, 5, 3)
    assert (row['shards'], row['global_batch'], row['steps_per_epoch']) == (6, 20, 82783 // 20)
    assert row['node_bytes_per_second'] == pytest.approx(20 * 13e9 / 82783)


@pytest.mark.parametrize('name', ['scale', 'scale_batch16'])
def test_predict_reproduces_recorded_results(name):
    recorded = json.loads((RESULTS / f'{name}.json').read_text())
    _, rate, source = bench_scale.read_step(RESULTS / 'benchmark_model_train_gpu.json', 'msff_resnet101', 448)
    assert (rate, source) == (recorded['step']['images_per_second'], recorded['step']['source'])
    buckets = [(bucket['num_bytes'], bucket['ready']) for bucket in recorded['buckets']]
    for row in recorded['rows']:
        found = bench_scale.predict(
            Cluster(row['devices'], row['between']),
            recorded['step']['batch_size'],
            rate,
            buckets,
            recorded['forward_share'],
            recorded['buffer_bytes'],
            recorded['core_images_per_second'],
        )
        assert found['accumulation_steps'] == row['passes']  # its name when it was recorded
        for key in found.keys() & row.keys():
            assert found[key] == pytest.approx(row[key]), key


def test_read_step_finds_fastest_training_step(tmp_path):
    file = tmp_path / 'model.json'
    case = {'image_size': 64, 'batch_size': 2, 'dtype': 'float32', 'format': 'contiguous', 'mode': 'eager'}
    rows = [{'model': 'a', 'images_per_second': 3.0}, {'model': 'b', 'error': 'out of memory'}]
    cases = [
        {**case, 'kind': 'forward', 'rows': [{'model': 'a', 'images_per_second': 9.0}]},
        {**case, 'kind': 'train', 'rows': rows},
        {**case, 'kind': 'train', 'batch_size': 8, 'rows': [{'model': 'a', 'images_per_second': 5.0}]},
    ]
    file.write_text(json.dumps({'command': 'model', 'device': 'card', 'machine': {'cpu': 'chip'}, 'cases': cases}))
    expected = (8, 5, 'model.json, card (chip), float32, contiguous, eager')
    assert bench_scale.read_step(file, 'a', 64) == expected
    for name, size in (('b', 64), ('a', 32)):
        with pytest.raises(InputError, match=f'it holds no training step of {name} at {size} pixels'):
            bench_scale.read_step(file, name, size)
    file.write_text('{}')
    with pytest.raises(InputError, match='not written by benchmark.py model'):
        bench_scale.read_step(file, 'a', 64)


@pytest.mark.slow
@pytest.mark.parametrize('mib', [None, 1])
def test_make_buckets_matches_two_processes(tmp_path, mib):
    """With PyTorch's default bucket size, which Accelerate keeps, and with a smaller one that makes several buckets."""
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', TWO_PROCESSES, str(rank), str(tmp_path / 'store'), json.dumps(mib)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120) for process in processes]
    assert not any(process.returncode for process in processes), printed
    measured = json.loads(printed[0][0].splitlines()[-1])
    gradients, _ = bench_scale.find_gradients(on_meta('msff_test_resnet'), torch.empty(2, 3, 64, 64, device='meta'))
    buckets = bench_scale.make_buckets(gradients, **({} if mib is None else {'size': mib * 2**20}))
    assert len(measured) > 1 and measured == [num_bytes for num_bytes, _ in buckets]
