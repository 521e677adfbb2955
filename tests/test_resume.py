"""Runs that are killed at any moment and resumed, against the same run undisturbed."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SETTINGS = {
    'data.train_size': 96, 'data.eval_size': 16, 'data.image_size': 32, 'data.workers': 1,
    'data.rand_augment': 'rand-m9-n2-mstd0.5', 'data.cutout': 0.5, 'data.mixup': 0.2, 'model.drop_rate': 0.1,
    'optim.batch_size': 8, 'optim.epochs': 2, 'checkpoint.every': 3,
}  # fmt: skip


def start(output: Path, processes: int = 1, limit: int | None = None, **settings: object) -> subprocess.Popen:
    """Starts a run in a process group of its own; `limit` is the largest file that it may write, in bytes."""
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'accelerate.commands.launch', '--quiet', '--multi_gpu', f'--num_processes={processes}']
        command += ['--main_process_port=0', '--mixed_precision=no']
    settings = {**SETTINGS, 'output': output, 'resume': 'auto', **settings}
    command += [str(ROOT / 'train' / 'train.py'), *(f'--{key}={value}' for key, value in settings.items())]
    return subprocess.Popen(
        command,
        env={**os.environ, 'ACCELERATE_USE_CPU': '1'},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )


def kill(run: subprocess.Popen) -> None:
    """Kills all processes of a run: those that a launcher has started are in sessions of their own."""
    if run.poll() is None:
        for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    run.communicate()


def finish(run: subprocess.Popen) -> str:
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 0, printed
    return printed


def newest(output: Path) -> Path:
    return max((output / 'checkpoints').glob('step-*'))


def state_of(output: Path) -> dict:
    return json.loads((newest(output) / 'state.json').read_text())


def assert_same_run(one: Path, other: Path) -> None:
    """All that a run has learnt, bit by bit: weights, their average, the optimiser's state, the history."""
    assert newest(one).name == newest(other).name
    for name in ('model.safetensors', f'checkpoints/{newest(one).name}/model.safetensors'):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = (torch.load(newest(run) / 'optimizer.bin', weights_only=True)['state'] for run in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(a[k][name], b[k][name]) for k in a for name in a[k])
    a, b = (json.loads((run / 'results.json').read_text()) for run in (one, other))
    assert a['history'] == b['history'] and a['measures'] == b['measures'] and len(a['history']) == 2


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> dict[int, Path]:
    """A whole run in 1 and in 2 processes."""
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp('undisturbed') / f'run{processes}'
        finish(start(folders[processes], processes))
        assert json.loads((folders[processes] / 'results.json').read_text())['num_processes'] == processes
    return folders


def kill_and_resume(output: Path, processes: int, kills: int, seed: int) -> int:
    """Kills a run at random moments, every other one while a checkpoint is written; returns how many hit."""
    chance, hits = random.Random(seed), 0
    for number in range(kills):
        run = start(output, processes)
        checkpoints = output / 'checkpoints'
        before = set(checkpoints.glob('step-*'))
        deadline = time.time() + 120
        while run.poll() is None and time.time() < deadline:
            writing = any(checkpoints.glob('.saving-*'))
            moved_on = set(checkpoints.glob('step-*')) - before
            if number % 2 == 0 and writing and (moved_on or number == 0):
                break
            if number % 2 == 1 and moved_on:
                time.sleep(chance.random())
                break
            time.sleep(0.001)
        hits += run.poll() is None
        kill(run)
    finish(start(output, processes))
    return hits


@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_that_is_killed_and_resumed_ends_as_the_undisturbed_one(undisturbed, tmp_path, processes):
    assert kill_and_resume(tmp_path / 'run', processes, kills=2, seed=0) == 2
    assert_same_run(tmp_path / 'run', undisturbed[processes])


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_that_is_killed_ten_times(undisturbed, tmp_path, processes):
    hits, number = 0, 0
    while hits < 10:
        shutil.rmtree(tmp_path, ignore_errors=True)
        hits += kill_and_resume(tmp_path / 'run', processes, kills=6, seed=number)
        assert_same_run(tmp_path / 'run', undisturbed[processes])
        number += 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_says_so(undisturbed, tmp_path, number):
    run = start(tmp_path / 'run', **{'checkpoint.every': 'null'})
    for line in run.stdout:
        if line.startswith('Training '):
            break
    time.sleep(1)
    os.killpg(run.pid, number)
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 75 and '--resume auto' in printed.splitlines()[-1], printed
    assert 'Traceback' not in printed
    progress = state_of(tmp_path / 'run')['progress']
    assert 0 < progress['steps_done'] < 24
    finish(start(tmp_path / 'run'))
    assert_same_run(tmp_path / 'run', undisturbed[1])
