"""Runs that are killed and resumed, compared with the same run undisturbed."""

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
from types import SimpleNamespace

import psutil
import pytest
import ready
import torch
from safetensors.torch import load_file, save_file

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.results import Results
from msff_timm.training import checkpoint, train, trainer
from msff_timm.training.config import TrainConfig, parse

ROOT = Path(__file__).parents[2]
SETTINGS = {
    'data.train_size': 96, 'data.eval_size': 16, 'data.image_size': 32, 'data.workers': 1,
    'data.rand_augment': 'rand-m9-n2-mstd0.5', 'data.cutout': 0.5, 'data.mixup': 0.2, 'model.drop_rate': 0.1,
    'optim.batch_size': 8, 'optim.epochs': 2, 'checkpoint.every': 3,
}  # fmt: skip


TRAIN = ROOT / 'train' / 'train.py'


def arguments_of(output: Path, **settings: object) -> list[str]:
    settings = {**SETTINGS, 'output': output, 'resume': 'auto', **settings}
    return [f'--{key}={value}' for key, value in settings.items()]


def run_ready(output: Path, processes: int = 1, code: int = 0, **settings: object) -> str:
    """Runs undisturbed in processes that are ready, and returns what it printed."""
    done = ready.run(TRAIN, arguments_of(output, **settings), processes, {**os.environ, 'ACCELERATE_USE_CPU': '1'})
    assert done.returncode == code, done
    return done.stdout + done.stderr


def start(
    output: Path, processes: int = 1, limit: int | None = None, launch: bool = False, **settings: object
) -> subprocess.Popen:
    """Starts a run in its own process group; `limit` is the largest file size in bytes that it may write."""
    command = [sys.executable]
    if processes > 1 or launch:
        command += ['-m', 'accelerate.commands.launch', '--quiet', f'--num_processes={processes}']
        command += ['--main_process_port=0', '--mixed_precision=no', *(['--multi_gpu'] if processes > 1 else [])]
    command += [str(TRAIN), *arguments_of(output, **settings)]
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
    """Kills all processes of a run. A launcher starts them in sessions of their own."""
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
    """Compares two runs bit by bit: weights, EMA weights, optimizer state and history."""
    assert newest(one).name == newest(other).name
    checkpoint = f'checkpoints/{newest(one).name}'
    for name in ('model.safetensors', *(f'{checkpoint}/{file}.safetensors' for file in ('model', 'ema', 'optimizer'))):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    a, b = (json.loads((run / checkpoint / 'random_0.json').read_text()) for run in (one, other))
    assert a == b
    a, b = (json.loads((run / 'results.json').read_text()) for run in (one, other))
    assert a['history'] == b['history'] and a['metrics'] == b['metrics'] and len(a['history']) == 2


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> dict[int, Path]:
    """Complete runs in 1 and in 2 processes."""
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp('undisturbed') / f'run{processes}'
        run_ready(folders[processes], processes)
        assert json.loads((folders[processes] / 'results.json').read_text())['num_processes'] == processes
    return folders


def kill_and_resume(output: Path, processes: int, kills: int, seed: int) -> int:
    """Kills a run at random moments, every second time during a save; returns the number of kills that hit."""
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
def test_resume_after_kills_ends_as_the_undisturbed_run(undisturbed, tmp_path, processes, kills):
    assert kill_and_resume(tmp_path / 'run', processes, kills, seed=0) == kills
    assert_same_run(tmp_path / 'run', undisturbed[processes])


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_resume_after_ten_kills_ends_as_the_undisturbed_run(undisturbed, tmp_path, processes):
    hits, number = 0, 0
    while hits < 10:
        shutil.rmtree(tmp_path, ignore_errors=True)
        hits += kill_and_resume(tmp_path / 'run', processes, kills=6, seed=number)
        assert_same_run(tmp_path / 'run', undisturbed[processes])
        number += 1


def test_stop_saves_the_run(undisturbed, tmp_path):
    """By SIGTERM and by Ctrl-C, which both reach the data loader workers, too."""
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


def test_full_disk_costs_the_new_checkpoint_only(undisturbed, tmp_path):
    run = start(tmp_path / 'run')
    while not list((tmp_path / 'run' / 'checkpoints').glob('step-*')) and run.poll() is None:
        time.sleep(0.01)
    kill(run)
    good = newest(tmp_path / 'run')
    # The optimizer's file is larger than the limit; the weights for use are not.
    printed = finish(start(tmp_path / 'run', limit=6_000_000))
    assert f'Resuming from {good}' in printed
    lines = [line for line in printed.splitlines() if 'cannot be saved' in line]
    assert len(lines) >= 2 and all('the run continues' in line for line in lines) and 'Traceback' not in printed
    assert newest(tmp_path / 'run') == good
    a, b = (load_file(folder / 'model.safetensors') for folder in (tmp_path / 'run', undisturbed[1]))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_full_disk_is_an_error_at_the_end_only(tmp_path):
    run = start(tmp_path / 'run', limit=3_000_000, resume='null')
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 2 and 'the weights could not be written; make room' in printed.splitlines()[-1]
    assert (
        len(re.findall('run: cannot be written to .*; the run continues', printed)) == 2 and 'Traceback' not in printed
    )
    assert len(json.loads((tmp_path / 'run' / 'results.json').read_text())['history']) == 2
    assert not (tmp_path / 'run' / 'model.safetensors').exists() and not list((tmp_path / 'run').rglob('step-*'))


def test_resume_accepts_another_number_of_processes(undisturbed, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(undisturbed[2], run)
    shutil.rmtree(newest(run))  # the last one; the one before is left
    assert state_of(run)['progress']['steps_done'] < 24
    printed = run_ready(run, **{'optim.max_per_process': 4})
    assert 'batch size 8 = 1 process x 2 accumulation steps x 4 images.' in printed
    results = json.loads((run / 'results.json').read_text())
    assert results['history'][0] == json.loads((undisturbed[2] / 'results.json').read_text())['history'][0]
    assert len(results['history']) == 2


def test_resume_refuses_other_settings(undisturbed, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(undisturbed[1], run)
    shutil.rmtree(newest(run))
    printed = run_ready(run, code=2, **{'optim.lr': 0.001})
    assert 'optim.lr was 0.002 and is 0.001' in printed.splitlines()[-1]


def test_loss_that_is_not_finite_ends_the_run(tmp_path):
    printed = run_ready(tmp_path / 'run', code=2, **{'optim.lr': 1e20, 'optim.warmup': 0, 'resume': 'null'})
    assert 'Traceback' not in printed, printed
    assert re.search('the loss of a step is (nan|inf); .*not_finite.json lists its images', printed.splitlines()[-1])
    found = json.loads((tmp_path / 'run' / 'not_finite.json').read_text())
    ids = found['image_ids']
    assert len(ids) == len(set(ids)) == 8 and all(name.startswith('train-') for name in ids)
    batch = load_file(tmp_path / 'run' / 'not_finite_0.safetensors')
    assert batch['image_0'].shape == (8, 3, 32, 32) and batch['target_0'].shape == (8, 12)
    checkpoints = sorted((tmp_path / 'run' / 'checkpoints').glob('step-*'))
    advice = (
        f'--resume auto resumes from {checkpoints[-1]} ' if checkpoints else 'there is no checkpoint to resume from'
    )
    assert advice in printed.splitlines()[-1]
    for path in checkpoints:
        assert all(value.isfinite().all() for value in load_file(path / 'model.safetensors').values())


SMALL = {**SETTINGS, 'data.train_size': 16, 'data.workers': 0, 'optim.epochs': 4, 'optim.early_stop': 1}


def small_run(output, full=(), all_full=(), dies=None, values=(10.0, 30.0, 20.0, 5.0), **settings) -> None:
    """Trains in this process with early stopping; `values` are the mAP of each epoch, so that epoch 2 is the best.

    In the epochs of `full` the disk is full for the weights, in those of `all_full` for everything. The run dies before
    the evaluation of epoch `dies`.
    """
    settings = {**SMALL, 'output': output, **settings}
    arguments = [f'--{key}={value}' for key, value in settings.items()]
    config = parse(TrainConfig, arguments, default_file=ROOT / 'train' / 'configs' / 'demo.yaml')
    run = SimpleNamespace(progress=SimpleNamespace(epoch=0))  # until the trainer exists

    def compute_metrics(*args, compute_metrics=trainer.compute_metrics, **kwargs):
        epoch = run.progress.epoch
        if epoch == dies:
            raise KeyboardInterrupt
        return {**compute_metrics(*args, **kwargs), **({'mAP': values[epoch - 1]} if epoch <= len(values) else {})}

    def failing(function, when):
        def call(*args, **kwargs):
            if run.progress.epoch in when:
                raise OSError(28, 'No space left on device')
            return function(*args, **kwargs)

        return call

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ACCELERATE_USE_CPU', '1')
        for module in (train, trainer):
            patch.setattr(module, 'share_cores', lambda accelerator, workers: torch.set_num_threads(1))
        patch.setattr(trainer, 'compute_metrics', compute_metrics)
        patch.setattr(hub, 'save', failing(hub.save, {*full, *all_full}))
        patch.setattr(checkpoint, 'save_file', failing(checkpoint.save_file, all_full))
        patch.setattr(Results, 'to_json', failing(Results.to_json, all_full))
        run = trainer.Trainer(config, train.make_accelerator(config), SimpleNamespace(received=None))
        try:
            run.train()
        finally:
            torch.set_num_threads(threads)


def test_resume_within_an_epoch_of_unfrozen_stages(tmp_path, capsys):
    """From the first step of epoch 2, when the optimizer has a state for the last stage only."""
    settings = {'model.freeze': 'stages', 'optim.epochs': 2, 'optim.early_stop': 'null', 'checkpoint.every': 3}
    settings |= {'checkpoint.keep': 9}
    small_run(tmp_path / 'whole', values=(), **settings)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / 'run', dies=2, values=(), **settings)
    shutil.rmtree(newest(tmp_path / 'run'))
    capsys.readouterr()
    small_run(tmp_path / 'run', resume='auto', values=(), **settings)
    assert 'epoch 2: the head and layer4.0 train; ' in capsys.readouterr().out
    assert_same_run(tmp_path / 'run', tmp_path / 'whole')


@pytest.fixture(scope='module')
def undisturbed_best(tmp_path_factory):
    folder = tmp_path_factory.mktemp('best') / 'run'
    small_run(folder)
    return folder


@pytest.fixture
def best(undisturbed_best, tmp_path):
    """The folder of an undisturbed run whose best epoch is the second."""
    return Path(shutil.copytree(undisturbed_best, tmp_path / 'best'))


def assert_announces(output: Path, epoch: int, like: Path) -> None:
    """Checks that the folder holds the results and weights of an epoch; `like` has its checkpoint."""
    results, config = (json.loads((output / name).read_text()) for name in ('results.json', 'config.json'))
    assert results['epoch'] == epoch and results['metrics']['mAP'] == {1: 10.0, 2: 30.0}[epoch]
    assert config['thresholds'] == results['thresholds']
    a, b = load_file(output / 'model.safetensors'), load_file(like / f'checkpoints/step-{2 * epoch:08}/ema.safetensors')
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_resume_restores_the_best_weights_after_a_full_disk(best, tmp_path, capsys):
    """The run dies afterwards; the resumed run notices that the weights of the best epoch are missing."""
    assert_announces(best, 2, best)
    run = tmp_path / 'run'
    with pytest.raises(KeyboardInterrupt):
        small_run(run, full={2}, dies=3, **{'checkpoint.keep': 9})
    assert_announces(run, 1, run)
    small_run(run, resume='auto')
    assert_announces(run, 2, best)
    small_run(tmp_path / 'whole', full={2})  # a run that does not die ends with the same weights
    assert_announces(tmp_path / 'whole', 2, best)


@pytest.mark.parametrize('how', ['emptied', 'gone', 'other'])
@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_resume_restores_damaged_files_of_the_best_epoch(best, capsys, name, how):
    file = best / name
    if how == 'other' and name == 'model.safetensors':
        save_file({key: value + 1 for key, value in load_file(file).items()}, file)
    elif how == 'other':
        file.write_text(file.read_text().replace('0.', '0.1'))
    else:
        file.write_bytes(b'') if how == 'emptied' else file.unlink()
    small_run(best, resume='auto')
    assert_announces(best, 2, best)
    assert 'did not belong to epoch 2, the epoch of the results; they were restored' in capsys.readouterr().err


def test_lost_best_epoch_is_not_announced(tmp_path, capsys):
    small_run(tmp_path / 'run', all_full={2}, values=(10.0, 30.0, 5.0, 4.0), **{'checkpoint.keep': 9})
    assert_announces(tmp_path / 'run', 1, tmp_path / 'run')
    printed = capsys.readouterr()
    assert 'The weights of epoch 2 are lost.' in printed.err
    assert 'Epoch 2 had a better mAP, 30.00, but its weights were lost.' in printed.out
    assert 'EMA weights of epoch 1, chosen by early stopping on these images; ' in printed.out


def test_early_stopping_says_that_the_images_chose_the_epoch(best, capsys):
    small_run(best, resume='auto')
    assert 'EMA weights of epoch 2, chosen by early stopping on these images; ' in capsys.readouterr().out
    report = (best / 'report.md').read_text()
    assert 'Early stopping chose epoch 2 by its mAP on these images; expect slightly less on others.' in report


@pytest.mark.parametrize('settings', [{}, {'optim.early_stop': 'null', 'optim.epochs': 2}])
def test_full_disk_until_the_end_is_an_error(tmp_path, settings):
    """The results and weights of epoch 1 stay, and the run can be resumed to its end."""
    run, keep = tmp_path / 'run', {'checkpoint.keep': 9}
    with pytest.raises(
        InputError, match='the weights could not be written; make room, then --resume auto finishes the run'
    ):
        small_run(run, full={2, 3, 4}, **settings, **keep)
    assert_announces(run, 1, run)
    small_run(run, resume='auto', **settings, **keep)
    assert_announces(run, 2, run)


def test_resume_forgets_a_best_epoch_without_weights(best, capsys):
    (best / 'model.safetensors').unlink()
    shutil.rmtree(best / 'checkpoints' / 'step-00000004')
    small_run(best, resume='auto', values=(10.0, 30.0, 20.0, 10.0))
    results = json.loads((best / 'results.json').read_text())
    assert results['epoch'] == 3 and 'the weights of epoch 2, the best so far, are gone' in capsys.readouterr().err
    a, b = load_file(best / 'model.safetensors'), load_file(best / 'checkpoints/step-00000006/ema.safetensors')
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_ends_with_its_launcher(tmp_path, processes):
    """After SIGKILL, which the launcher cannot forward, its processes save the run and end, as on SIGTERM."""
    output, settings = tmp_path / 'run', {'optim.epochs': 500, 'checkpoint.every': 'null'}
    launcher = start(output, processes, launch=True, **settings)
    for line in launcher.stdout:
        if line.startswith('Training '):
            break
    workers = psutil.Process(launcher.pid).children(recursive=True)
    holder = json.loads((output / '.lock').read_text())
    assert holder['pid'] in {worker.pid for worker in workers}
    if processes > 1:
        other = start(output, **settings)
        printed, _ = other.communicate(timeout=120)
        assert other.returncode == 2 and 'Traceback' not in printed
        assert f'{output} is in use by another run (process {holder["pid"]} on ' in printed.splitlines()[-1]
    launcher.kill()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    printed, _ = launcher.communicate()
    assert not alive and f'the launcher (process {launcher.pid}) has ended' in printed
    assert f'--resume auto resumes from {newest(output)} ' in printed
    assert not (output / '.lock').exists() and 0 < state_of(output)['progress']['steps_done']


def test_run_without_a_launcher_outlives_its_shell(tmp_path):
    script = f'ACCELERATE_USE_CPU=1 "$0" {ROOT}/train/train.py "$@" > {tmp_path}/printed 2>&1 &'
    arguments = {**SMALL, 'optim.epochs': 1, 'output': tmp_path / 'run'}
    command = ['bash', '-c', script, sys.executable, *(f'--{key}={value}' for key, value in arguments.items())]
    subprocess.run(command, check=True, start_new_session=True)
    deadline = time.time() + 120
    while not (tmp_path / 'run' / 'report.md').exists() and time.time() < deadline:
        time.sleep(0.2)
    assert (tmp_path / 'run' / 'report.md').exists(), (tmp_path / 'printed').read_text()
