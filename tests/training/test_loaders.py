import platform
import random
import subprocess
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from timm.data import Mixup
from torch.utils.data import BatchSampler

from msff_timm.data.records import features
from msff_timm.data.samples import Samples
from msff_timm.data.transforms import Normalize, train_transform
from msff_timm.errors import InputError
from msff_timm.training import loaders
from msff_timm.training.config import DataConfig, OptimConfig
from msff_timm.training.loaders import (
    EpochSampler,
    Shares,
    choose_workers,
    divide_batch,
    grouped,
    measure_shares,
    mix,
    share,
)
from msff_timm.training.trainer import Trainer


@pytest.mark.parametrize(
    ('cores', 'load', 'step', 'workers', 'threads'),
    [
        (2, 1, 20, 1, 2),  # 0.1 of a core loads
        (2, 1, 3.1, 1, 2),  # 0.49
        (2, 1, 2.9, 1, 1),  # 0.51
        (2, 1, 1, 1, 1),
        (2, 10, 1, 2, 1),  # 1.8 cores, and PyTorch has at least one
        (1, 1, 20, 1, 1),
        (16, 1, 1, 8, 8),
        (16, 1, 10, 2, 15),  # 1.45 cores
    ],
)
def test_share_gives_pytorch_the_cores_that_loading_leaves(cores, load, step, workers, threads):
    assert share(cores, load, step, is_gpu=False) == Shares(workers, threads, load, step)


@pytest.mark.parametrize(('load', 'step', 'workers'), [(10, 2, 6), (1, 5, 1), (1, 0.01, 8)])
def test_share_keeps_a_gpu_fed(load, step, workers):
    """With 10 ms to load and 2 ms to train, 5 workers keep up and 6 have a margin; never more than there are cores."""
    assert share(8, load, step, is_gpu=True) == Shares(workers, None, load, step)


def make_samples(folder, transform) -> Samples:
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    columns = {'image': [str(folder / f'{number}.png') for number in range(5)], 'image_id': list('abcde')}
    columns |= {'labels': [[0]] * 5, 'ignore': [[]] * 5, 'area': [[]] * 5}
    dataset = datasets.Dataset.from_dict(columns, features=features(['cat', 'dog']))
    return Samples(dataset, transform, seed=0)


def test_measure_shares_measures_processor_time(tmp_path, monkeypatch):
    """By a fake clock, loading takes 2 s and a step 3 s for each image."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(loaders.time, 'process_time', lambda: clock.now)
    monkeypatch.setattr(loaders, 'num_cores', lambda: 10)

    def transform(image):
        clock.now += 2
        return torch.zeros(3, 2, 2)

    def step(pixels):
        assert torch.get_num_threads() == 1
        clock.now += 3 * len(pixels)

    before = torch.get_num_threads()
    shares = measure_shares(Accelerator(cpu=True), make_samples(tmp_path, transform), step, 32)
    assert shares == Shares(4, 6, 2.0, 3.0) and torch.get_num_threads() == before
    line = (
        'Loading an image takes 2000.0 ms of a core, a step 3000.0 ms: data.workers 4, 6 compute threads on 10 cores.'
    )
    assert str(shares) == line


@pytest.mark.parametrize('resumed', [False, True])
def test_choose_workers_leaves_no_trace(tmp_path, monkeypatch, resumed):
    model = timm.create_model('test_resnet', num_classes=2, drop_rate=0.5).train()
    model.fc.bias.requires_grad_(False)
    data_config = timm.data.resolve_model_data_config(model, {'img_size': 32})
    samples = make_samples(tmp_path, train_transform(data_config, 'rand-m9', 0.5, hflip=0.5, color_jitter=0.4))
    data, trainer = DataConfig(), Trainer.__new__(Trainer)
    trainer.__dict__ |= {
        'accelerator': Accelerator(cpu=True), 'model': model, 'channels_last': True, 'teacher': nn.Identity(),
        'normalize': Normalize(data_config),
    }  # fmt: skip
    monkeypatch.setattr(loaders, 'num_cores', lambda: 4)
    monkeypatch.setattr(loaders, 'share', lambda *args: Shares(2, 4, 1.0, 1.0))
    threads, before = torch.get_num_threads(), {key: value.clone() for key, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    try:
        choose_workers(data, trainer.accelerator, samples, trainer.probe, 4, 3 if resumed else None)
        assert torch.get_num_threads() == (3 if resumed else 4)  # a resumed run keeps its threads, to the last bit
    finally:
        torch.set_num_threads(threads)
    assert data.workers == 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_choose_workers_measures_nothing_in_a_stream(monkeypatch):
    given, data = [], DataConfig()
    monkeypatch.setattr(loaders, 'share_cores', lambda accelerator, workers: given.append(workers))
    choose_workers(data, None, None, None, 8, None)
    assert data.workers == 4 and given == [4]


@pytest.mark.parametrize(
    ('environment', 'policy', 'spins'),
    [
        ({}, 'passive', '1000'),
        ({'GOMP_SPINCOUNT': '7'}, 'passive', '7'),
        ({'OMP_WAIT_POLICY': 'active'}, 'active', None),
        ({'OMP_WAIT_POLICY': 'passive'}, 'passive', None),
    ],
)
def test_startup_sets_how_threads_wait_unless_the_user_did(environment, policy, spins):
    script = 'import msff_timm_cli.startup, os, sys;'
    script += 'print(os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)'
    ended = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
    assert ended.stdout == f'{policy} {spins} False\n'


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='sets how glibc keeps memory')
def test_startup_keeps_freed_memory_unless_the_user_set_malloc():
    script = 'import msff_timm_cli.startup\n'
    script += """
import numpy as np, resource
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**21)
before = faults()
for _ in range(50): np.ones(2**21)
print(faults() - before)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True).stdout)
        for environment in ({}, {'MALLOC_MMAP_THRESHOLD_': '131072'})
    )
    assert given_back >= 50 * 8 > 20 > kept  # pages of the system, of at most 2 MB, in each 16 MB


@pytest.mark.parametrize(
    ('batch_size', 'most', 'num_images', 'num_processes', 'outcome'),
    [
        (128, None, 128, 4, (32, 1)),
        (128, 8, 128, 4, (8, 4)),
        (128, 8, 128, 1, (8, 16)),
        (60, 8, 99, 2, (6, 5)),
        (128, None, 500, 3, 'optim.batch_size is 128: must be a multiple of the 3 processes.'),
        (128, None, 127, 1, 'optim.batch_size is 128: there are only 127 training images.'),
    ],
)
def test_divide_batch_divides_over_processes_and_accumulation_steps(
    batch_size, most, num_images, num_processes, outcome
):
    optim = OptimConfig(batch_size=batch_size, max_per_process=most)
    if isinstance(outcome, tuple):
        assert divide_batch(optim, num_images, num_processes) == outcome
    else:
        with pytest.raises(InputError) as caught:
            divide_batch(optim, num_images, num_processes)
        assert str(caught.value) == outcome


def steps_of(sampler, num_processes, accumulation_steps):
    """The keys of each step over all processes, as Accelerate distributes them."""
    micro_batch_size = sampler.batch_size // num_processes // accumulation_steps
    shares = []
    for rank in range(num_processes):
        batches = BatchSampler(sampler, micro_batch_size, drop_last=True)
        if num_processes > 1:
            batches = BatchSamplerShard(batches, num_processes, rank)
        shares.append(list(grouped(batches, accumulation_steps)))
    return [{key for share in shares for batch in share[step] for key in batch} for step in range(len(shares[0]))]


def test_epoch_sampler_gives_each_step_the_same_images_for_any_number_of_processes():
    sampler = EpochSampler(50, 12, seed=3)
    expected = steps_of(sampler, 1, 1)
    assert len(expected) == 4 and all(len(keys) == 12 for keys in expected) and len(set.union(*expected)) == 48
    for num_processes, accumulation_steps in ((2, 1), (1, 3), (2, 3), (4, 1), (3, 2)):
        assert steps_of(sampler, num_processes, accumulation_steps) == expected


def test_epoch_sampler_resumes_within_an_epoch():
    whole, resumed = EpochSampler(50, 12, seed=3), EpochSampler(50, 12, seed=3)
    for epoch in (0, 1):
        whole.epoch = resumed.epoch = epoch
        resumed.start = 1
        keys = list(whole)
        assert list(resumed) == keys[12:] and len(keys) == len(whole) == 48
        assert set(keys) < set(range(epoch * 50, epoch * 50 + 50))
        resumed.start = 0
    assert [key - 50 for key in whole] != list(EpochSampler(50, 12, seed=3))
    assert list(EpochSampler(50, 12, seed=4)) != list(EpochSampler(50, 12, seed=3))


def test_mix_masks_labels_that_either_image_masks():
    np.random.seed(0)
    image, target = torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    image[0] = 1
    mixed, targets = mix(Mixup(1.0, label_smoothing=0.0, num_classes=3, multi_label=True), image, target)
    share = mixed[0, 0, 0, 0].item()
    assert 0 < share < 1
    expected = torch.tensor([[share, 0.0, -1.0], [1 - share, 0.0, -1.0]])
    torch.testing.assert_close(targets, expected)


def test_make_loader_reports_missing_shared_memory(monkeypatch):
    def full():
        raise OSError(30, 'Read-only file system', '/dev/shm/x')

    scope = {'full': full}
    exec(compile('def lock():\n    full()', '/lib/multiprocessing/synchronize.py', 'exec'), scope)
    monkeypatch.setattr(loaders.torch.multiprocessing, 'get_context', lambda: SimpleNamespace(Lock=scope['lock']))
    loaders._ending.cache_clear()
    with pytest.raises(InputError, match='need more shared memory .Read-only.*set data.workers to 0'):
        loaders.make_loader([1], 1, workers=1)
    assert loaders.make_loader([1], 1, workers=0).num_workers == 0
