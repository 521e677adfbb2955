"""The simulation of training at many devices, against cases worked by hand and two real processes."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn as nn

import msff_timm  # noqa: F401  registers the models
import scale
from msff_timm.errors import InputError
from scale import Bucket, Cluster, Gradient, Step

# Round figures: within a node 1 GB/s, between nodes 8 GB/s, messages of 1 and 3 ms
CLUSTER = Cluster(16, 8, within=1e9, between=8e9, latency_within=1e-3, latency_between=3e-3)
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


def test_gradients_arrive_as_the_backward_pass_makes_them():
    """By hand: of the last layer 2 * 8 * 2 for its weight and as much for its input; of the first 2 * 4 * 8."""
    with torch.device('meta'):
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        gradients, forward_share = scale.arrivals(model, torch.empty(1, 4))
    assert gradients == [Gradient('2.weight', 4 * 16, 0.5), Gradient('0.weight', 4 * 32, 1.0)]
    assert forward_share == pytest.approx((2 * 4 * 8 + 2 * 8 * 2) / (2 * 4 * 8 + 2 * 8 * 2 + 128))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_all_gradients_of_our_model_arrive_once_the_backbones_last():
    model = on_meta('msff_test_resnet')
    gradients, forward_share = scale.arrivals(model, torch.empty(2, 3, 64, 64, device='meta'))
    assert sorted(gradient.name for gradient in gradients) == sorted(name for name, _ in model.named_parameters())
    assert sum(gradient.num_bytes for gradient in gradients) == 4 * sum(p.numel() for p in model.parameters())
    ready = [gradient.ready for gradient in gradients]
    assert ready == sorted(ready) and ready[-1] == 1 and gradients[-1].name.startswith('backbone.')
    assert 0.3 < forward_share < 0.4  # a backward pass is about two forward passes


@pytest.mark.parametrize(('first', 'size'), [(2**20, 25 * 2**20), (1000, 5000), (1, 1)])
def test_buckets_are_those_of_pytorch(first, size):
    """Which sorts the tensors that it is given, here in the order of the gradients."""
    model = timm.create_model('msff_test_resnet')
    parameters = list(model.parameters())[::-1]
    gradients = [Gradient(str(i), 4 * p.numel(), i / len(parameters)) for i, p in enumerate(parameters)]
    indices, _ = dist._compute_bucket_assignment_by_size(parameters, [first, size])
    buckets = scale.make_buckets(gradients, first, size)
    assert [b.num_bytes for b in buckets] == [sum(gradients[i].num_bytes for i in bucket) for bucket in indices]
    assert [b.ready for b in buckets] == [gradients[bucket[-1]].ready for bucket in indices]


def test_a_ring_and_three_parts_take_what_they_take_by_hand():
    # 2 * 15 messages of a 16th of 8 GB at 1 GB/s, and of 3 ms
    assert scale.ring(8e9, CLUSTER) == pytest.approx(30 * (0.5 + 0.003))
    # in the node twice 7 messages of 1 GB; over the two nodes twice a half of 8 GB at 8 GB/s
    assert scale.hierarchical(8e9, CLUSTER) == pytest.approx(2 * 7 * (1 + 0.001) + 2 * (0.5 + 0.003))
    # within one node there is nothing between, and both are the same ring
    node = replace(CLUSTER, devices=8)
    assert scale.ring(8e9, node) == scale.hierarchical(8e9, node) == pytest.approx(14 * (1 + 0.001))
    # where a node sends less than one of its devices, all wait for that
    slow = replace(CLUSTER, between=1e8)
    assert scale.ring(8e9, slow) == pytest.approx(30 * (5 + 0.003))
    alone = replace(CLUSTER, devices=1)
    assert [f(8e9, alone) for f in (scale.ring, scale.hierarchical, scale.broadcast)] == [0, 0, 0]
    assert scale.broadcast(2e9, CLUSTER) == pytest.approx(2 + 4 * 0.003)  # 4 levels of a tree of 16


@pytest.mark.parametrize(
    ('buckets', 'seconds', 'left'),
    [
        ([Bucket(1, 1.0)], 3.0, 3.0),  # whole with the end of the pass: nothing overlaps
        ([Bucket(1, 0.5)], 0.5, 0.0),  # done before the end, at 1.5 of 2 s
        ([Bucket(1, 0.5)], 3.0, 2.0),  # from 1 to 4
        ([Bucket(1, 0.5), Bucket(1, 1.0)], 3.0, 5.0),  # from 1 to 4, from 4 to 7
        ([Bucket(1, 0.25), Bucket(1, 1.0)], 1.0, 1.0),  # from 0.5 to 1.5, from 2 to 3
        ([Bucket(1, 0.25), Bucket(1, 1.0)], 0.0, 0.0),  # infinitely fast
    ],
)
def test_what_of_the_exchange_is_exposed(buckets, seconds, left):
    assert scale.exposed(buckets, backward_seconds=2.0, all_reduce=lambda num_bytes: seconds) == left


def predict(step: Step, clusters: list[Cluster], **changes) -> list[dict]:
    gradients = [Gradient('last', 10**9, 0.5), Gradient('first', 10**9, 1.0)]
    settings = {
        'buffer_bytes': 0,
        'core_rate': 100.0,
        'cores_per_node': 10,
        'image_bytes': 1e5,
        'num_images': 10**6,
    }
    return scale.predict(gradients, 0.25, step=step, clusters=clusters, **{**settings, **changes})


def test_a_prediction_is_worked_out_by_hand():
    step = Step(10, 10.0, 'by hand')  # 1 s, of which backward 0.75
    fast = Cluster(2, 8, within=4e9, between=1e9, latency_within=0, latency_between=0)
    (row,) = predict(step, [fast], buffer_bytes=4 * 10**8)
    # Two buckets of 1 GB, 0.25 s each at 2 devices: the first is hidden, the second is not; the buffers take 0.1 s.
    assert row['all_reduce_seconds']['ring'] == pytest.approx(0.5)
    assert row['exposed_seconds']['ring'] == pytest.approx(0.25 + 0.1, abs=1e-6)
    assert row['efficiency'] == pytest.approx(1 / 1.35, abs=1e-6) and row['limits'] == ['communication']
    assert row['images_per_second'] == pytest.approx(20 / 1.35, abs=1e-4)
    assert row['passes'] == 7  # 7 / 7.35 is 0.952, 6 / 6.35 is 0.945
    assert (row['needed_images_per_second'], row['needed_cores'], row['workers']) == (20, 0.2, 1)
    assert (row['shards'], row['global_batch'], row['steps_per_epoch']) == (2, 20, 50_000)
    assert row['node_bytes_per_second'] == 2e6


def test_what_limits_is_named():
    free = Cluster(16, 8, within=math.inf, between=math.inf, latency_within=0, latency_between=0)
    step = Step(10, 125.0, 'by hand')  # 8 devices take 1,000 images/s: what 10 cores load
    assert predict(step, [free])[0]['limits'] == ['computing']
    assert predict(step, [free], cores_per_node=9)[0]['limits'] == ['loading']
    assert predict(step, [free], num_images=15_999)[0]['limits'] == ['steps']  # 99 steps of 160
    row = predict(step, [free])[0]
    assert row['workers'] == 2 and row['shards'] == 32 and row['efficiency'] == 1 and row['passes'] == 1
    # Loading limits only where communication has not slowed the devices down to what the cores load.
    slow = replace(free, between=1e9)
    assert predict(step, [slow], cores_per_node=9)[0]['limits'] == ['communication']


def test_the_step_is_read_from_what_was_measured(tmp_path):
    file = tmp_path / 'model.json'
    case = {'image_size': 64, 'batch_size': 2, 'dtype': 'float32', 'format': 'contiguous', 'mode': 'eager'}
    rows = [{'model': 'a', 'images_per_second': 3.0}, {'model': 'b', 'error': 'out of memory'}]
    cases = [
        {**case, 'kind': 'forward', 'rows': [{'model': 'a', 'images_per_second': 9.0}]},
        {**case, 'kind': 'train', 'rows': rows},
        {**case, 'kind': 'train', 'batch_size': 8, 'rows': [{'model': 'a', 'images_per_second': 5.0}]},
    ]
    file.write_text(json.dumps({'command': 'model', 'device': 'card', 'machine': {'cpu': 'chip'}, 'cases': cases}))
    step = scale.read_step(file, 'a', 64)
    assert (step.batch_size, step.images_per_second, step.seconds) == (8, 5, 1.6)
    assert step.source == 'model.json, card (chip), float32, contiguous, eager'
    for name, size in (('b', 64), ('a', 32)):
        with pytest.raises(InputError, match=f'holds no training step of {name} at {size} pixels'):
            scale.read_step(file, name, size)
    train = {'command': 'train', 'device': 'cuda', 'machine': {'cpu': 'chip'}, 'model': 'a', 'image_size': 64}
    train |= {'batch_size': 64, 'num_processes': 4, 'images_per_second': {'fed': 80.0}, 'mixed_precision': 'bf16'}
    file.write_text(json.dumps(train))
    step = scale.read_step(file, 'a', 64)
    assert (step.batch_size, step.images_per_second) == (16, 20)  # of each process
    file.write_text('{}')
    with pytest.raises(InputError, match='was not written by benchmark.py model or train'):
        scale.read_step(file, 'a', 64)


@pytest.mark.slow
@pytest.mark.parametrize('mib', [None, 1])
def test_two_processes_exchange_the_buckets_that_are_simulated(tmp_path, mib):
    """With PyTorch's own size of buckets, which Accelerate leaves alone, and with one of which there are several."""
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
    gradients, _ = scale.arrivals(on_meta('msff_test_resnet'), torch.empty(2, 3, 64, 64, device='meta'))
    buckets = scale.make_buckets(gradients, **({} if mib is None else {'size': mib * 2**20}))
    assert len(measured) > 1 and measured == [bucket.num_bytes for bucket in buckets]
