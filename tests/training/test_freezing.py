"""Freezing the backbone, as a whole or by stages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn

from msff_timm.errors import InputError
from msff_timm.training.config import ModelConfig, OptimConfig, TrainConfig, parse
from msff_timm.training.freezing import Unfreezing, freeze_backbone, freeze_norms, train_unfrozen
from msff_timm.training.optim import make_optimizer

ROOT = Path(__file__).parents[2]
STAGES = ['layer4', 'layer3', 'layer2', 'layer1', 'conv1+bn1']


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Takes a training step towards large logits."""
    train_unfrozen(model)
    model(torch.randn(4, 3, 64, 64)).sum().neg().backward()
    optimizer.step()
    optimizer.zero_grad()


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    'name', ['msff_test_resnet', 'q2l_test_resnet', 'mldecoder_test_resnet', 'test_resnet', 'test_efficientnet']
)
@pytest.mark.parametrize('lr', [{}, {'backbone_lr': 0.1}, {'layer_decay': 0.5}])
def test_freeze_backbone_trains_the_head_alone(one_thread, name, lr):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    freeze_backbone(model)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.1, **lr))
    before = copy_of(model)
    for _ in range(2):
        step(model, optimizer)
    parameters = dict(model.named_parameters())
    head = {key for key in parameters if not key.startswith('backbone.')}
    if name.startswith('test'):
        head = {key for key in parameters if parameters[key].shape[0] == 3 and key.startswith(('fc.', 'classifier.'))}
    learnt = changed(before, model) & parameters.keys()
    # The bias of the keys in attention has no effect: its gradient is a rounding error.
    assert learnt <= head and len(learnt) > len(head) / 2 and 'backbone' not in str(changed(before, model))
    assert changed(before, model) - head == {n for n in changed(before, model) if 'running' in n or 'num_batches' in n}
    if name.startswith('test'):
        assert changed(before, model) == head
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {id(parameters[n]) for n in head}


def test_train_unfrozen_leaves_dropout_of_the_head_active():
    model = timm.create_model('test_vit', num_classes=3, drop_rate=0.5, proj_drop_rate=0.5)
    freeze_backbone(model)
    train_unfrozen(model)
    active = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.training}
    assert 'head_drop' in active and not any(name.startswith('blocks') for name in active)
    assert model.training and model.head.training and not model.blocks.training


def test_freeze_norms_excludes_the_head():
    model = timm.create_model('msff_test_resnet', num_classes=2)
    model.extra = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    freeze_norms(model)
    train_unfrozen(model)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) > 3
    for name, norm in norms.items():
        assert norm.training == norm.weight.requires_grad == (not name.startswith('backbone.')), name
    assert all(m.weight.requires_grad for m in model.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize('name', ['msff_test_resnet', 'q2l_test_resnet', 'test_resnet'])
def test_unfreezing_starts_with_the_last_stage(one_thread, name):
    """With two epochs per stage and one step per epoch, frozen stages keep every bit and have no optimizer state."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    unfreezing = Unfreezing(model, epochs=2)
    assert [stage.removesuffix('.0') for stage, _ in unfreezing.stages] == STAGES
    optimizer = make_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.1, backbone_lr=0.5))
    unfreezing.freeze()
    for epoch in range(1, 14):
        assert unfreezing.begin_epoch(epoch) == (epoch % 2 == 1 and epoch <= 11)
        free = STAGES[: (epoch - 1) // 2]
        before = copy_of(model)
        step(model, optimizer)
        touched = {n.removeprefix('backbone.').split('.')[0] for n in changed(before, model)} & set(
            ' '.join(STAGES).replace('+', ' ').split()
        )
        assert touched == set(' '.join(free).replace('+', ' ').split()), epoch
        for number, (_, parameters) in enumerate(unfreezing.stages):
            steps = {int(optimizer.state[p]['step']) if p in optimizer.state else 0 for p in parameters}
            assert steps == {max(0, epoch - 2 * (number + 1))}
    assert str(unfreezing).endswith('frozen: nothing')


def test_unfreezing_describes_what_trains():
    unfreezing = Unfreezing(timm.create_model('msff_resnet18', num_classes=3), epochs=1)
    unfreezing.begin_epoch(1)
    assert str(unfreezing) == 'the head trains; frozen: layer4, layer3, layer2, layer1, conv1+bn1'
    unfreezing.begin_epoch(3)
    assert str(unfreezing) == 'the head and layer4, layer3 train; frozen: layer2, layer1, conv1+bn1'


def test_unfreezing_stops_the_backward_pass_at_the_last_frozen_stage():
    model = timm.create_model('msff_test_resnet', num_classes=3)
    unfreezing = Unfreezing(model, epochs=1)
    unfreezing.begin_epoch(2)
    train_unfrozen(model)
    needs = {}
    for name in ('layer2', 'layer3', 'layer4'):
        stage = getattr(model.backbone, name)
        stage.register_forward_hook(
            lambda module, inputs, output, name=name: needs.update({name: output.requires_grad})
        )
    model(torch.randn(2, 3, 64, 64))
    assert needs == {'layer2': False, 'layer3': False, 'layer4': True}


def test_unfreezing_keeps_frozen_norms():
    model = timm.create_model('msff_test_resnet', num_classes=3)
    freeze_norms(model)
    unfreezing = Unfreezing(model, epochs=1)
    unfreezing.begin_epoch(9)
    train_unfrozen(model)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad for m in norms)
    assert all(m.weight.requires_grad for m in model.backbone.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model.freeze=head'], "model.freeze is 'head'|unknown model.freeze"),
        (['--model.freeze=stages', '--model.unfreeze_epochs=0'], 'model.unfreeze_epochs is 0: must be at least 1'),
        (['--model.freeze=backbone', '--model.unfreeze_epochs=2'], 'model.unfreeze_epochs is 2: it needs model.freeze'),
        (['--model.freeze=stages', '--optim.backbone_lr=0'], 'optim.backbone_lr is 0 and model.freeze is stages'),
        (['--model.freeze=backbone', '--optim.backbone_lr=0'], 'optim.backbone_lr is 0 and model.freeze is backbone'),
    ],
)
def test_parse_names_wrong_settings_of_freezing(tmp_path, arguments, message):
    demo = ROOT / 'train' / 'configs' / 'demo.yaml'
    with pytest.raises(InputError, match=message) as caught:
        parse(TrainConfig, [*arguments, f'--output={tmp_path}'], default_file=demo)
    assert '\n' not in str(caught.value)
    assert ModelConfig().freeze is None


TWO_PROCESSES = """
import json, sys
from accelerate.utils import gather_object
from msff_timm.training import train
from msff_timm.training.config import TrainConfig, parse
from msff_timm.training.commands import StopRequest
config = parse(TrainConfig, sys.argv[1:], default_file=None)
accelerator = train.make_accelerator(config)
trainer = train.Trainer(config, accelerator, StopRequest())
trainer.train()
sums = [{name: value.double().sum().item() for name, value in trainer.model.named_parameters()}]
sums = gather_object(sums)
if accelerator.is_main_process:
    assert sums[0] == sums[1], 'the weights differ'
    print(json.dumps({'equal': len(sums[0])}))
"""


@pytest.mark.slow
def test_trainer_exchanges_gradients_of_unfrozen_stages(tmp_path):
    """Two processes end with equal weights, and with the losses of one process."""
    (tmp_path / 'run.py').write_text(
        TWO_PROCESSES.replace('default_file=None', f'default_file={str(ROOT / "train" / "configs" / "demo.yaml")!r}')
    )
    settings = {
        'data.train_size': 16, 'data.eval_size': 8, 'data.image_size': 32, 'data.workers': 0, 'model.freeze': 'stages',
        'model.batch_norm': 'frozen', 'optim.batch_size': 8, 'optim.epochs': 4, 'optim.lr': 1e-3, 'log_every': 1,
    }  # fmt: skip
    environment = {**os.environ, 'ACCELERATE_USE_CPU': '1', 'PYTHONPATH': str(ROOT / 'train'), 'OMP_NUM_THREADS': '1'}
    losses = {}
    for processes in (2, 1):
        command = [sys.executable]
        if processes == 2:
            command += ['-m', 'accelerate.commands.launch', '--quiet', '--multi_gpu', '--num_processes=2']
            command += ['--main_process_port=0', '--mixed_precision=no']
            script = tmp_path / 'run.py'
        else:
            script = ROOT / 'train' / 'train.py'
        output = tmp_path / str(processes)
        arguments = [f'--{key}={value}' for key, value in {**settings, 'output': output}.items()]
        done = subprocess.run([*command, str(script), *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 'epoch 2: the head and layer4.0 train; frozen: layer3.0, ' in done.stdout
        assert processes == 1 or '"equal": ' in done.stdout
        losses[processes] = [e['loss'] for e in json.loads((output / 'results.json').read_text())['history']]
    assert losses[2] == pytest.approx(losses[1], rel=1e-3) and len(losses[2]) == 4
