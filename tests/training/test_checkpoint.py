import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import warnings
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn as nn
from accelerate import Accelerator

from msff_timm.errors import InputError
from msff_timm.training import guard
from msff_timm.training.checkpoint import Checkpoints, Progress
from msff_timm.training.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from msff_timm.training.identity import about_run, differences, fingerprint

HISTORY = [{'epoch': 1, 'loss': 0.5, 'mAP': 5.0, 'CF1': 4.0, 'OF1': 3.0}]


class Run:
    """A model, its EMA, optimizer and schedule, and their checkpoints."""

    def __init__(self, folder, keep=2, lr=0.1):
        self.accelerator = Accelerator(cpu=True)
        self.model = nn.Linear(3, 2)
        self.ema = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr)
        model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=100)
        self.checkpoints = Checkpoints(self.accelerator, folder, keep)
        self.checkpoints.register(self.model, self.ema, self.optimizer, self.schedule)

    def save(self, steps_done, about=None, **progress):
        with torch.no_grad():
            self.model.weight.fill_(steps_done)
            self.ema.weight.fill_(-steps_done)
        self.optimizer.zero_grad()
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()
        return self.checkpoints.save(Progress(steps_done=steps_done, **progress), about or {})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_load_restores_what_was_saved(tmp_path):
    run = Run(tmp_path)
    assert run.save(7, epoch=2, step=3, history=HISTORY, losses=[1.5, 2.5], unreadable=['a: broken'])
    saved = [parameter.clone() for parameter in (*run.model.parameters(), *run.ema.parameters())]
    moment = run.optimizer.state[run.model.weight]['exp_avg'].clone()
    drawn = [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)]  # drawn after the save

    other = Run(tmp_path)
    other.model.weight.grad = torch.zeros_like(other.model.weight)
    progress = other.checkpoints.load(other.checkpoints.find('auto'), {}, force=False)
    assert [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)] == drawn
    loaded = [*other.model.parameters(), *other.ema.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))
    assert torch.equal(other.optimizer.state[other.model.weight]['exp_avg'], moment)
    assert progress == Progress(
        epoch=2, step=3, steps_done=7, history=HISTORY, losses=[1.5, 2.5], unreadable=['a: broken']
    )


def test_save_keeps_the_newest_and_the_best(tmp_path):
    run = Run(tmp_path, keep=2)
    for steps_done in (3, 6, 9, 12, 15):
        run.save(steps_done, best={'steps_done': 6} if steps_done > 6 else None)
    assert names(tmp_path) == ['step-00000006', 'step-00000012', 'step-00000015']


def damage(path, how):
    weights = path / 'model.safetensors'
    if how == 'flip':
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == 'cut':
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == 'lose':
        (path / 'optimizer.safetensors').unlink()
    elif how == 'list':
        (path / 'whole.json').write_text('{"model')
    else:
        (path / 'whole.json').unlink()


@pytest.mark.parametrize(
    ('how', 'reason'),
    [
        ('flip', 'model.safetensors is damaged'),
        ('cut', 'model.safetensors is damaged'),
        ('lose', 'optimizer.safetensors is missing'),
        ('list', 'whole.json cannot be read'),
        ('unlist', 'whole.json cannot be read'),
    ],
)
def test_find_reports_a_damaged_checkpoint_and_passes_over_it(tmp_path, capsys, how, reason):
    run = Run(tmp_path)
    run.save(3)
    run.save(6)
    damage(tmp_path / 'step-00000006', how)
    assert run.checkpoints.find('auto') == tmp_path / 'step-00000003'
    printed = capsys.readouterr().err
    assert f'{tmp_path}/step-00000006: {reason}' in printed and printed.count('\n') == 1
    with pytest.raises(InputError, match=f'resume is .*step-00000006: {reason}'):
        run.checkpoints.find(str(tmp_path / 'step-00000006'))
    assert run.checkpoints.find(str(tmp_path / 'step-00000003')) == tmp_path / 'step-00000003'
    with pytest.raises(InputError, match='resume is .*nowhere: there is no such checkpoint'):
        run.checkpoints.find(str(tmp_path / 'nowhere'))
    again = Run(tmp_path)
    again.checkpoints.load(again.checkpoints.find('auto'), {}, force=False)
    assert names(tmp_path) == ['aside-step-00000006', 'step-00000003']
    assert again.save(6) and again.checkpoints.find('auto') == tmp_path / 'step-00000006'


def test_find_returns_none_without_a_checkpoint(tmp_path):
    assert Run(tmp_path / 'new').checkpoints.find('auto') is None
    (tmp_path / 'new' / '.saving-step-00000003').mkdir()
    assert Run(tmp_path / 'new').checkpoints.find('auto') is None


@pytest.mark.parametrize('what', ['weights', 'state', 'folder'])
def test_save_reports_a_failure_and_keeps_the_old_checkpoint(tmp_path, capsys, monkeypatch, what):
    run = Run(tmp_path / 'runs', keep=1)
    run.save(3)

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    target = {
        'weights': 'msff_timm.training.checkpoint.save_file',
        'state': 'msff_timm.training.checkpoint.file_digest',
        'folder': 'pathlib.Path.mkdir',
    }[what]
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        assert not run.save(6)
    assert 'step-00000006: cannot be saved (No space left on device); the run continues' in capsys.readouterr().err
    assert names(tmp_path / 'runs') == ['step-00000003'] and run.checkpoints.find('auto').name == 'step-00000003'
    assert run.save(9) and names(tmp_path / 'runs') == ['step-00000009']


def about(label_names=('a', 'b'), data='x', **changes):
    config = TrainConfig(output='here', model=ModelConfig(drop_rate=changes.pop('drop_rate', 0.1)))
    config.optim = OptimConfig(**{key: changes.pop(key) for key in list(changes) if hasattr(OptimConfig, key)})
    config.data = DataConfig(**{key: changes.pop(key) for key in list(changes) if hasattr(DataConfig, key)})
    for key, value in changes.items():
        setattr(config, key, value)
    return about_run(config, list(label_names), {'train': data, 'eval': 'y'})


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'lr': 0.5}, ['optim.lr was 0.0001 and is 0.5']),
        (
            {'drop_rate': 0.2, 'image_size': 64},
            ['model.drop_rate was 0.1 and is 0.2', 'data.image_size was 448 and is 64'],
        ),
        ({'label_names': ('a', 'c')}, ['label_names was ["a", "b"] and is ["a", "c"]']),
        ({'data': 'z'}, ['data.train was x and is z']),
        ({'model': ModelConfig(args={'fusion_mode': 1})}, ['model.args.fusion_mode was null and is 1']),
        ({'output': 'there', 'workers': 9, 'root': '/x', 'early_stop': 3, 'max_per_process': 4, 'resume': 'auto'}, []),
    ],
)
def test_load_refuses_another_run_with_the_difference(tmp_path, changes, expected):
    assert sorted(differences(about(), about(**changes))) == sorted(expected)
    run = Run(tmp_path)
    run.save(3, about())
    path = run.checkpoints.find('auto')
    if expected:
        with pytest.raises(InputError) as caught:
            run.checkpoints.load(path, about(**changes), force=False)
        assert all(text in str(caught.value) for text in expected) and '\n' not in str(caught.value)
    assert run.checkpoints.load(path, about(**changes), force=bool(expected)).steps_done == 3


def test_fingerprint_depends_on_targets_and_names():
    targets = torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8).numpy()
    same = fingerprint(targets, ['a', 'b'])
    assert same == fingerprint(targets.copy(), ['a', 'b'])
    others = [fingerprint(targets, ['a', 'c']), fingerprint(targets[::-1].copy(), ['a', 'b'])]
    others += [fingerprint(targets.reshape(1, 4), ['a', 'b']), fingerprint(targets, ['a\nb'])]
    assert len({same, *others}) == 5


def test_find_accepts_a_moved_checkpoint(tmp_path):
    run = Run(tmp_path / 'one')
    run.save(3)
    shutil.move(tmp_path / 'one', tmp_path / 'two')
    state = json.loads((tmp_path / 'two' / 'step-00000003' / 'state.json').read_text())
    assert state['progress']['steps_done'] == 3
    assert Run(tmp_path / 'two').checkpoints.find('auto') == tmp_path / 'two' / 'step-00000003'


def test_load_sets_later_checkpoints_aside(tmp_path):
    """Otherwise `auto` would resume from the abandoned branch."""
    run = Run(tmp_path, keep=5)
    for steps_done in (3, 6, 9):
        run.save(steps_done)
    again = Run(tmp_path, keep=5)
    again.checkpoints.load(again.checkpoints.find(str(tmp_path / 'step-00000003')), {}, force=False)
    assert names(tmp_path) == ['aside-step-00000006', 'aside-step-00000009', 'step-00000003']
    again.save(6)
    assert again.checkpoints.find('auto') == tmp_path / 'step-00000006'


def test_save_writes_the_same_step_once(tmp_path):
    """A save within an epoch may coincide with its end: the files are not written again."""
    run = Run(tmp_path)
    run.save(3)
    before = (tmp_path / 'step-00000003' / 'whole.json').stat().st_mtime_ns
    assert run.checkpoints.save(Progress(steps_done=3), {})
    assert (tmp_path / 'step-00000003' / 'whole.json').stat().st_mtime_ns == before


def seal(path):
    """Writes the manifest of a changed checkpoint, as anyone can."""
    files = [file for file in path.iterdir() if file.name != 'whole.json']
    listed = {file.name: [file.stat().st_size, sha256(file.read_bytes()).hexdigest()] for file in files}
    (path / 'whole.json').write_text(json.dumps(listed))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


FILES = ['model.safetensors', 'ema.safetensors', 'optimizer.safetensors', 'random_0.json', 'state.json']


@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('name', FILES)
def test_load_runs_no_code_of_a_checkpoint(tmp_path, name, zipped):
    run, path = Run(tmp_path / 'run'), tmp_path / 'run' / 'step-00000003'
    run.save(3)
    write = torch.save if zipped else lambda content, file: file.write_bytes(pickle.dumps(content))
    for file in (name, 'custom_checkpoint_0.pkl', 'random_states_0.pkl', 'optimizer.bin', 'scheduler.bin', 'scaler.pt'):
        write(Touch(tmp_path / 'ran'), path / file)
    seal(path)
    assert run.checkpoints.find('auto') == path
    with pytest.raises(InputError, match=f'^{path}.*: cannot be (loaded|read) ') as caught:
        run.checkpoints.load(path, {}, force=True)
    assert '\n' not in str(caught.value) and not (tmp_path / 'ran').exists()
    with path.joinpath(name).open('rb') as file:
        torch.load(file, weights_only=False) if zipped else pickle.load(file)
    assert (tmp_path / 'ran').exists()  # otherwise it would have run


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('how', ['lose', 'empty', 'other'])
def test_load_refuses_a_checkpoint_that_lacks_a_file(tmp_path, name, how):
    """A missing random state would silently change dropout."""
    run, path = Run(tmp_path / 'run'), tmp_path / 'run' / 'step-00000003'
    run.save(3)
    if how == 'lose':
        (path / name).unlink()
    else:
        other = b'{"a": [1, 2]}' if name.endswith('json') else safetensors.torch.save({'a': torch.zeros(2)})
        (path / name).write_bytes(b'' if how == 'empty' else other)
    seal(path)
    with pytest.raises(InputError, match=f'^{path}') as caught:
        run.checkpoints.load(path, {}, force=True)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('change', [{'0.exp_avg': None}, {'0.exp_avg': torch.ones(2, 2)}, {'7.exp_avg': torch.ones(2)}])
def test_load_refuses_moments_of_other_parameters(tmp_path, change):
    run, file = Run(tmp_path), tmp_path / 'step-00000003' / 'optimizer.safetensors'
    run.save(3)
    moments = {**safetensors.torch.load_file(file), **change}
    safetensors.torch.save_file({key: value for key, value in moments.items() if value is not None}, file)
    with pytest.raises(InputError, match='step-00000003: cannot be loaded '):
        run.checkpoints.load(file.parent, {}, force=False)


def test_load_names_the_version_of_another_format(tmp_path):
    run, path = Run(tmp_path), tmp_path / 'step-00000003'
    run.save(3)
    (path / 'state.json').write_text(json.dumps({'progress': {'epoch': 1}, 'about': {}}))
    with pytest.raises(InputError, match='was written by an earlier version of msff-timm in format 1, and msff-timm'):
        run.checkpoints.load(path, {}, force=False)
    (path / 'state.json').write_text(json.dumps({'version': 3, 'msff_timm': '9.9'}))
    with pytest.raises(InputError, match='was written by msff-timm 9.9 in format 3, and .* reads format 2'):
        run.checkpoints.load(path, {}, force=False)


@pytest.mark.parametrize('lr', [0.1, 0.02])
def test_load_continues_the_schedule_of_the_settings(tmp_path, lr):
    """With the same settings the learning rate is the same to the last bit; forced other settings have their own."""
    run, whole = Run(tmp_path), Run(tmp_path / 'other', lr=lr)
    with warnings.catch_warnings(action='ignore', category=UserWarning):
        for _ in range(37):
            whole.schedule.step()
    run.save(37)
    again = Run(tmp_path, lr=lr)
    again.checkpoints.load(again.checkpoints.find('auto'), {}, force=True)
    for _ in range(5):
        groups = [of.optimizer.param_groups[0] for of in (whole, again)]
        assert [groups[1][key] for key in ('lr', 'betas')] == [groups[0][key] for key in ('lr', 'betas')]
        whole.schedule.step(), again.schedule.step()


@pytest.mark.parametrize('what', ['model', 'ema', 'moments'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_save_refuses_weights_that_are_not_finite(tmp_path, what, value):
    run = Run(tmp_path)

    def spoil(steps_done):
        run.save(steps_done) if steps_done == 3 else None
        tensor = run.optimizer.state[run.model.bias]['exp_avg'] if what == 'moments' else getattr(run, what).bias
        with torch.no_grad():
            before = tensor[1].item()
            tensor[1] = value
        with pytest.raises(InputError) as caught:
            run.checkpoints.save(Progress(steps_done=steps_done + 1), {})
        with torch.no_grad():
            tensor[1] = before
        return str(caught.value)

    if what != 'moments':
        assert 'there is no checkpoint to resume from' in spoil(0)
        assert run.checkpoints.find('auto') is None
    message = spoil(3)
    where = {
        'model': 'bias in model.safetensors',
        'ema': 'bias in ema.safetensors',
        'moments': '1.exp_avg in optimizer',
    }
    assert f'--resume auto resumes from {tmp_path}/step-00000003 ' in message and where[what] in message
    assert run.checkpoints.find('auto') == tmp_path / 'step-00000003' and names(tmp_path) == ['step-00000003']


def test_load_reports_what_may_change_the_last_bits(tmp_path, capsys, one_thread):
    run = Run(tmp_path)
    run.save(3, about(workers=4))
    assert run.checkpoints.threads(tmp_path / 'step-00000003') == 1
    torch.set_num_threads(2)
    again = Run(tmp_path)
    again.checkpoints.load(again.checkpoints.find('auto'), about(workers=1), force=False)
    torch.set_num_threads(1)
    path = tmp_path / 'step-00000003'
    assert capsys.readouterr().err == (
        f'{path}: threads was 1 and is 2, data.workers was 4 and is 1; the results may differ in the last bits from an'
        ' unbroken run.\n'
    )
    Run(tmp_path).checkpoints.load(path, about(workers=4), force=False)
    assert capsys.readouterr().err == ''
    state = json.loads((path / 'state.json').read_text())
    state['computed_with'] |= {'processes': 2, 'device': 'cuda'}
    (path / 'state.json').write_text(json.dumps(state))
    Run(tmp_path).checkpoints.load(path, about(workers=4), force=False)
    assert (
        'processes was 2 and is 1, device was cuda and is cpu; the results may differ from' in capsys.readouterr().err
    )


HOLD = """
import fcntl, json, sys, time
file = open(sys.argv[1], 'a+')
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(json.dumps({'pid': 4711, 'host': sys.argv[2]}))
file.flush()
print('locked', flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == 'nt', reason='the other process locks as POSIX has it')
@pytest.mark.parametrize('host', ['elsewhere', socket.gethostname()])
def test_locked_keeps_others_out_until_the_process_ends(tmp_path, capsys, host):
    accelerator, folder = Accelerator(cpu=True), tmp_path / 'new' / 'run'
    with guard.locked(accelerator, folder):
        assert json.loads((folder / '.lock').read_text()) == {'pid': os.getpid(), 'host': socket.gethostname()}
    assert names(folder) == []
    other = subprocess.Popen([sys.executable, '-c', HOLD, folder / '.lock', host], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        for _ in range(2):
            with pytest.raises(InputError) as caught, guard.locked(accelerator, folder):
                raise AssertionError
            assert str(caught.value) == (
                f'{folder} is in use by another run (process 4711 on {host}): wait until it ends, or choose another'
                ' --output.'
            )
    finally:
        other.kill()
        other.wait()
    with guard.locked(accelerator, folder):
        printed = capsys.readouterr().err
        assert ('process 4711 on elsewhere' in printed) == (host == 'elsewhere')
    assert names(folder) == []


def test_locked_reports_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='file/run: cannot be written to .*; choose another --output'):
        with guard.locked(Accelerator(cpu=True), tmp_path / 'file' / 'run'):
            raise AssertionError


@pytest.mark.parametrize(
    ('command', 'environment', 'launched'),
    [
        (['python', '/usr/bin/accelerate', 'launch', 'train.py'], 'ACCELERATE_MIXED_PRECISION', True),
        (['python', '-m', 'torch.distributed.run', 'train.py'], 'LOCAL_RANK', True),
        (['python', '/usr/bin/torchrun', 'train.py'], 'LOCAL_RANK', True),
        (['python', '/usr/bin/torchrun', 'train.py'], 'HOME', False),
        (['bash', '-c', 'accelerate config; python train.py'], 'ACCELERATE_USE_CPU', False),
        (['-bash'], 'LOCAL_RANK', False),
    ],
)
def test_launcher_is_distinguished_from_a_shell(monkeypatch, command, environment, launched):
    monkeypatch.setattr(os, 'environ', {environment: '1'})
    monkeypatch.setattr(guard.psutil, 'Process', lambda pid: SimpleNamespace(cmdline=lambda: command))
    assert (guard._launcher() is not None) == launched
