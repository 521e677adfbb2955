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
from PIL import Image

from msff_timm.data.records import features
from msff_timm.data.samples import Samples
from msff_timm.data.transforms import Normalize, train_transform
from msff_timm.training import loaders, train
from msff_timm.training.config import DataConfig
from msff_timm.training.loaders import Shares, measure_shares, share


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
def test_share_gives_pytorch_what_the_loader_leaves(cores, load, step, workers, threads):
    assert share(cores, load, step, is_gpu=False) == Shares(workers, threads, load, step)


@pytest.mark.parametrize(('load', 'step', 'workers'), [(10, 2, 6), (1, 5, 1), (1, 0.01, 8)])
def test_share_keeps_a_gpu_fed(load, step, workers):
    """10 ms to load beside 2 ms of the GPU: 5 workers keep up, 6 have some to spare; no more than there are cores."""
    assert share(8, load, step, is_gpu=True) == Shares(workers, None, load, step)


def make_samples(folder, transform) -> Samples:
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    columns = {'image': [str(folder / f'{number}.png') for number in range(5)], 'image_id': list('abcde')}
    columns |= {'labels': [[0]] * 5, 'ignore': [[]] * 5, 'area': [[]] * 5}
    dataset = datasets.Dataset.from_dict(columns, features=features(['cat', 'dog']))
    return Samples(dataset, transform, seed=0)


def test_measure_shares_times_the_processor(tmp_path, monkeypatch):
    """Loading takes 2 s of a clock that stands still but for it, a step 3 s for each image."""
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
        'Loading an image takes 2000.0 ms of a core, a step 3000.0 ms: data.workers 4, 6 threads compute on 10 cores.'
    )
    assert str(shares) == line


@pytest.mark.parametrize('resumed', [False, True])
def test_choose_workers_leaves_no_trace(tmp_path, monkeypatch, resumed):
    model = timm.create_model('test_resnet', num_classes=2, drop_rate=0.5).train()
    model.fc.bias.requires_grad_(False)
    data_config = timm.data.resolve_model_data_config(model, {'img_size': 32})
    samples = make_samples(tmp_path, train_transform(data_config, 'rand-m9', 0.5, hflip=0.5, color_jitter=0.4))
    learner = SimpleNamespace(channels_last=True, teacher=nn.Identity(), normalize=Normalize(data_config))
    data = DataConfig()
    run = SimpleNamespace(accelerator=Accelerator(cpu=True), learner=learner, config=SimpleNamespace(data=data))
    run.per_pass, run.checkpoints = 4, SimpleNamespace(threads=lambda path: 3)
    monkeypatch.setattr(loaders, 'num_cores', lambda: 4)
    monkeypatch.setattr(train, 'num_cores', lambda: 4)
    monkeypatch.setattr(loaders, 'share', lambda *args: Shares(2, 4, 1.0, 1.0))
    threads, before = torch.get_num_threads(), {key: value.clone() for key, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    try:
        train.Run.choose_workers(run, samples, model, tmp_path if resumed else None)
        assert torch.get_num_threads() == (3 if resumed else 4)  # those of the checkpoint, to the last bit
    finally:
        torch.set_num_threads(threads)
    assert data.workers == 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_choose_workers_measures_nothing_in_a_stream(monkeypatch):
    given, data = [], DataConfig()
    monkeypatch.setattr(train, 'share_cores', lambda accelerator, workers: given.append(workers))
    run = SimpleNamespace(accelerator=None, learner=None, config=SimpleNamespace(data=data))
    train.Run.choose_workers(run, None, None, None)
    assert data.workers == 4 and given == [4]


def test_threads_that_wait_sleep_unless_the_user_has_it_otherwise():
    script = 'import msff_timm_cli.startup, os, sys;'
    script += 'print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)'
    for environment, policy in (({}, 'passive'), ({'OMP_WAIT_POLICY': 'active'}, 'active')):
        ended = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
        assert ended.stdout == f'{policy} False\n'


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='sets how glibc keeps memory')
def test_freed_memory_is_used_again_unless_the_user_has_it_otherwise():
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
