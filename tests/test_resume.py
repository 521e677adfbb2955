"""Runs that are killed at any moment and resumed, against the same run undisturbed."""

import json
import os
import random
import re
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
    checkpoint = f'checkpoints/{newest(one).name}'
    for name in ('model.safetensors', *(f'{checkpoint}/{file}.safetensors' for file in ('model', 'ema', 'optimizer'))):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = (json.loads((run / checkpoint / 'random_0.json').read_text()) for run in (one, other))
    assert a == b
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


@pytest.mark.parametrize(('processes', 'kills'), [(1, 2), (2, 1)])
def test_a_run_that_is_killed_and_resumed_ends_as_the_undisturbed_one(undisturbed, tmp_path, processes, kills):
    assert kill_and_resume(tmp_path / 'run', processes, kills, seed=0) == kills
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


def test_a_run_that_is_asked_to_stop_saves_and_says_so(undisturbed, tmp_path):
    """Twice: by SIGTERM and by Ctrl-C, each of which reaches the loader's workers too."""
    done = [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        run = start(tmp_path / 'run', **{'checkpoint.every': 'null'})
        for line in run.stdout:
            if line.startswith('Training '):
                break
        os.killpg(run.pid, number)
        printed, _ = run.communicate(timeout=120)
        assert run.returncode == 75 and '--resume auto' in printed.splitlines()[-1], printed
        assert 'Traceback' not in printed
        done.append(state_of(tmp_path / 'run')['progress']['steps_done'])
    assert 0 < done[1] < done[2] < 24
    finish(start(tmp_path / 'run'))
    assert_same_run(tmp_path / 'run', undisturbed[1])


def test_a_disk_that_is_full_costs_no_more_than_the_new_checkpoint(undisturbed, tmp_path):
    run = start(tmp_path / 'run')
    while not list((tmp_path / 'run' / 'checkpoints').glob('step-*')) and run.poll() is None:
        time.sleep(0.01)
    kill(run)
    good = newest(tmp_path / 'run')
    # The optimiser's state is larger than that; the weights for use are not.
    printed = finish(start(tmp_path / 'run', limit=6_000_000))
    assert f'Going on from {good}' in printed
    lines = [line for line in printed.splitlines() if 'cannot be saved' in line]
    assert len(lines) >= 2 and all('the run goes on' in line for line in lines) and 'Traceback' not in printed
    assert newest(tmp_path / 'run') == good
    a, b = (load_file(folder / 'model.safetensors') for folder in (tmp_path / 'run', undisturbed[1]))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_disk_without_room_for_the_weights_is_an_error_at_the_end_alone(tmp_path):
    run = start(tmp_path / 'run', limit=3_000_000, resume='null')
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 2 and 'the weights could not be written; make room' in printed.splitlines()[-1]
    assert len(re.findall('run: cannot be written to .*; the run goes on', printed)) == 2 and 'Traceback' not in printed
    assert len(json.loads((tmp_path / 'run' / 'results.json').read_text())['history']) == 2
    assert not (tmp_path / 'run' / 'model.safetensors').exists() and not list((tmp_path / 'run').rglob('step-*'))


def test_another_number_of_processes_goes_on(undisturbed, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(undisturbed[2], run)
    shutil.rmtree(newest(run))  # that of the end; what is left is the one before
    assert state_of(run)['progress']['steps_done'] < 24
    printed = finish(start(run, 1, **{'optim.max_per_process': 4}))
    assert 'a step of 8 pictures is 1 x 2 x 4' in printed
    results = json.loads((run / 'results.json').read_text())
    assert results['history'][0] == json.loads((undisturbed[2] / 'results.json').read_text())['history'][0]
    assert len(results['history']) == 2


def test_other_settings_are_refused(undisturbed, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(undisturbed[1], run)
    shutil.rmtree(newest(run))
    refused = start(run, **{'optim.lr': 0.001})
    printed, _ = refused.communicate(timeout=120)
    assert refused.returncode == 2 and 'optim.lr was 0.002 and is 0.001' in printed.splitlines()[-1]


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_pictures(tmp_path):
    run = start(tmp_path / 'run', **{'optim.lr': 1e20, 'optim.warmup': 0, 'resume': 'null'})
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 2 and 'Traceback' not in printed, printed
    assert re.search('the loss of a step is (nan|inf); .*not_finite.json names its pictures', printed.splitlines()[-1])
    found = json.loads((tmp_path / 'run' / 'not_finite.json').read_text())
    ids = found['image_ids']
    assert len(ids) == len(set(ids)) == 8 and all(name.startswith('train-') for name in ids)
    batch = load_file(tmp_path / 'run' / 'not_finite_0.safetensors')
    assert batch['image_0'].shape == (8, 3, 32, 32) and batch['target_0'].shape == (8, 12)
    for path in (tmp_path / 'run' / 'checkpoints').glob('step-*'):
        assert all(value.isfinite().all() for value in load_file(path / 'model.safetensors').values())
