import json
import shutil

import pytest
import torch
import torch.nn as nn
from accelerate import Accelerator

from checkpoint import Checkpoints, Progress, about_run, differences, fingerprint
from config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from msff_timm.errors import InputError


class Run:
    """A model, an optimiser, another state, and the checkpoints of them."""

    def __init__(self, folder, keep=2):
        self.accelerator = Accelerator(cpu=True)
        self.model = nn.Linear(3, 2)
        self.other = nn.Linear(1, 1)
        model, self.optimizer = self.accelerator.prepare(self.model, torch.optim.AdamW(self.model.parameters(), 0.1))
        self.checkpoints = Checkpoints(self.accelerator, folder, keep)
        self.checkpoints.register(self.model, self.other)

    def save(self, steps_done, about=None, **progress):
        with torch.no_grad():
            self.model.weight.fill_(steps_done)
            self.other.weight.fill_(-steps_done)
        self.optimizer.zero_grad()
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()
        return self.checkpoints.save(Progress(steps_done=steps_done, **progress), about or {})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_loaded_is_what_was_saved(tmp_path):
    run = Run(tmp_path)
    assert run.save(7, epoch=2, step=3, history=[{'epoch': 1, 'mAP': 5.0}], losses=[1.5, 2.5], unreadable=['a: broken'])
    saved = [parameter.clone() for parameter in (*run.model.parameters(), *run.other.parameters())]
    moment = run.optimizer.state[run.model.weight]['exp_avg'].clone()
    expected = torch.rand(3)  # what comes next of the random state that was saved

    other = Run(tmp_path)
    other.model.weight.grad = torch.zeros_like(other.model.weight)
    progress = other.checkpoints.load(other.checkpoints.find('auto'), {}, force=False)
    assert torch.equal(torch.rand(3), expected)
    loaded = [*other.model.parameters(), *other.other.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))
    assert torch.equal(other.optimizer.state[other.model.weight]['exp_avg'], moment)
    assert progress == Progress(
        epoch=2, step=3, steps_done=7, history=[{'epoch': 1, 'mAP': 5.0}], losses=[1.5, 2.5], unreadable=['a: broken']
    )


def test_the_newest_and_the_best_stay(tmp_path):
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
        (path / 'optimizer.bin').unlink()
    elif how == 'list':
        (path / 'whole.json').write_text('{"model')
    else:
        (path / 'whole.json').unlink()


@pytest.mark.parametrize(
    ('how', 'reason'),
    [
        ('flip', 'model.safetensors is damaged'),
        ('cut', 'model.safetensors is damaged'),
        ('lose', 'optimizer.bin is missing'),
        ('list', 'whole.json cannot be read'),
        ('unlist', 'whole.json cannot be read'),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, capsys, how, reason):
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


def test_there_may_be_none(tmp_path):
    assert Run(tmp_path / 'new').checkpoints.find('auto') is None
    (tmp_path / 'new' / '.saving-step-00000003').mkdir()
    assert Run(tmp_path / 'new').checkpoints.find('auto') is None


@pytest.mark.parametrize('what', ['weights', 'state', 'folder'])
def test_a_save_that_fails_is_told_and_leaves_what_there_was(tmp_path, capsys, monkeypatch, what):
    run = Run(tmp_path / 'runs', keep=1)
    run.save(3)

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    target = {'weights': 'checkpoint.save_file', 'state': 'checkpoint._seal', 'folder': 'pathlib.Path.mkdir'}[what]
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        assert not run.save(6)
    assert 'step-00000006: cannot be saved (No space left on device); the run goes on' in capsys.readouterr().err
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
    ('changes', 'told'),
    [
        ({'lr': 0.5}, ['optim.lr was 0.0001 and is 0.5']),
        (
            {'drop_rate': 0.2, 'image_size': 64},
            ['model.drop_rate was 0.1 and is 0.2', 'data.image_size was 448 and is 64'],
        ),
        ({'label_names': ('a', 'c')}, ["label_names was ['a', 'b'] and is ['a', 'c']"]),
        ({'data': 'z'}, ["data.train was 'x' and is 'z'"]),
        ({'model': ModelConfig(args={'fusion_mode': 1})}, ['model.args.fusion_mode was None and is 1']),
        ({'output': 'there', 'workers': 9, 'root': '/x', 'early_stop': 3, 'max_per_process': 4, 'resume': 'auto'}, []),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, changes, told):
    assert sorted(differences(about(), about(**changes))) == sorted(told)
    run = Run(tmp_path)
    run.save(3, about())
    path = run.checkpoints.find('auto')
    if told:
        with pytest.raises(InputError) as caught:
            run.checkpoints.load(path, about(**changes), force=False)
        assert all(text in str(caught.value) for text in told) and '\n' not in str(caught.value)
    assert run.checkpoints.load(path, about(**changes), force=bool(told)).steps_done == 3


def test_data_are_told_apart_by_targets_and_names():
    targets = torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8).numpy()
    same = fingerprint(targets, ['a', 'b'])
    assert same == fingerprint(targets.copy(), ['a', 'b'])
    others = [fingerprint(targets, ['a', 'c']), fingerprint(targets[::-1].copy(), ['a', 'b'])]
    others += [fingerprint(targets.reshape(1, 4), ['a', 'b']), fingerprint(targets, ['a\nb'])]
    assert len({same, *others}) == 5


def test_a_checkpoint_can_be_moved(tmp_path):
    run = Run(tmp_path / 'one')
    run.save(3)
    shutil.move(tmp_path / 'one', tmp_path / 'two')
    state = json.loads((tmp_path / 'two' / 'step-00000003' / 'state.json').read_text())
    assert state['progress']['steps_done'] == 3
    assert Run(tmp_path / 'two').checkpoints.find('auto') == tmp_path / 'two' / 'step-00000003'


def test_who_goes_back_leaves_the_later_ones_behind(tmp_path):
    """Or `auto` would go on from the branch that was left."""
    run = Run(tmp_path, keep=5)
    for steps_done in (3, 6, 9):
        run.save(steps_done)
    again = Run(tmp_path, keep=5)
    again.checkpoints.load(again.checkpoints.find(str(tmp_path / 'step-00000003')), {}, force=False)
    assert names(tmp_path) == ['aside-step-00000006', 'aside-step-00000009', 'step-00000003']
    again.save(6)
    assert again.checkpoints.find('auto') == tmp_path / 'step-00000006'


def test_what_is_saved_as_it_is_stays_untouched(tmp_path):
    """Steps after which it is saved within an epoch may end with the epoch: the file is not written again."""
    run = Run(tmp_path)
    run.save(3)
    before = (tmp_path / 'step-00000003' / 'whole.json').stat().st_mtime_ns
    assert run.checkpoints.save(Progress(steps_done=3), {})
    assert (tmp_path / 'step-00000003' / 'whole.json').stat().st_mtime_ns == before
