import math

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from timm.utils import ModelEmaV3

import msff_timm  # noqa: F401  registers the models
from msff_timm.training.config import OptimConfig
from msff_timm.training.optim import describe_ema_span, make_ema, make_optimizer, make_schedule


def rates(optim: OptimConfig, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=optim.lr)
    schedule = make_schedule(optimizer, optim, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(('steps', 'warmup'), [(1, 0.2), (5, 0.2), (10, 0.1), (3, 0.0), (20, 0.1)])
def test_make_schedule_accepts_runs_of_a_few_steps(steps, warmup):
    """PyTorch's schedule divides by zero if the rise is one step long."""
    found = rates(OptimConfig(lr=1.0, warmup=warmup), steps)
    rise = int(steps * warmup) if steps * warmup > 1 else 1
    assert found[:rise] == sorted(found[:rise]) and found[rise - 1 :] == sorted(found[rise - 1 :], reverse=True)
    assert 0 < min(found) and max(found) <= 1 and found[-1] < 1e-5


def test_make_schedule_cosine_agrees_with_a_hand_made_case():
    # 2 of 10 steps rise: 1/3, 2/3; then (1 + cos(pi s / 8)) / 2 for s = 0 to 7.
    found = rates(OptimConfig(lr=0.5, warmup=0.2, schedule='cosine'), 10)
    expected = [1 / 3, 2 / 3, *((1 + math.cos(math.pi * s / 8)) / 2 for s in range(8))]
    assert found == pytest.approx([0.5 * share for share in expected], rel=1e-12)


@pytest.mark.parametrize('schedule', ['one_cycle', 'cosine'])
def test_make_optimizer_scales_the_learning_rate_of_the_backbone(schedule):
    model = timm.create_model('msff_test_resnet', num_classes=3)
    optim = OptimConfig(lr=1e-3, backbone_lr=0.1, weight_decay=0.05, schedule=schedule, warmup=0.5)
    optimizer = make_optimizer(model, optim)
    plan = make_schedule(optimizer, optim, 8)
    highest = dict.fromkeys(map(id, model.parameters()), 0.0)
    decay = {}
    for _ in range(8):
        for group in optimizer.param_groups:
            for parameter in group['params']:
                highest[id(parameter)] = max(highest[id(parameter)], group['lr'])
                decay[id(parameter)] = group['weight_decay']
        optimizer.step()
        plan.step()
    for name, parameter in model.named_parameters():
        assert highest[id(parameter)] == pytest.approx(1e-4 if name.startswith('backbone.') else 1e-3, rel=0.01), name
    assert decay[id(model.backbone.conv1[0].weight)] == 0.05 and decay[id(model.backbone.conv1[1].weight)] == 0
    plain = timm.create_model('test_resnet', num_classes=3)
    groups = make_optimizer(plain, optim).param_groups
    assert {id(p) for g in groups if g['lr'] == 1e-3 for p in g['params']} == set(map(id, plain.fc.parameters()))


def test_make_optimizer_layer_decay_lowers_the_rate_from_the_head_down():
    model = timm.create_model('msff_test_resnet', num_classes=3)
    optim = OptimConfig(lr=1e-3, layer_decay=0.5, schedule='cosine', warmup=0.0)
    optimizer = make_optimizer(model, optim)
    make_schedule(optimizer, optim, 4)
    lr = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    layer_of = model.group_matcher()
    layers = {name: layer_of(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert lr[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (max(layers.values()) - layers[name]), rel=1e-9), name


def test_make_ema_forgets_the_initial_weights_in_a_short_run():
    """1,000 images, batch size 128, 80 epochs, 0.9997: without a warm-up, the EMA is 85 % initial weights."""
    model, steps = nn.Linear(1, 1), 80 * (1000 // 128)
    nn.init.zeros_(model.weight)
    ema, plain = make_ema(model, 0.9997), ModelEmaV3(model, decay=0.9997)
    nn.init.ones_(model.weight)
    for step in range(1, steps + 1):
        ema.update(model, step)
        plain.update(model)
    assert plain.module.weight.item() == pytest.approx(1 - 0.9997**steps, rel=1e-3)
    assert 1 - 0.9997**steps < 0.16
    assert ema.module.weight.item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(('ema_epochs', 'steps'), [(1.0, 50), (2.5, 40), (0.2, 200)])
def test_optim_config_decay_averages_over_ema_epochs(ema_epochs, steps):
    """The mean age of the weights in the EMA is `ema_epochs` epochs, whatever their number of steps."""
    decay, ages = OptimConfig(ema_epochs=ema_epochs).decay(steps), np.arange(100_000)
    assert ((1 - decay) * decay**ages * (1 + ages)).sum() / steps == pytest.approx(ema_epochs, rel=1e-6)


def test_optim_config_decay_defaults_to_ema_decay():
    assert OptimConfig().decay(10) == 0.9997 and OptimConfig(ema_decay=0.9).decay(10) == 0.9
    assert OptimConfig(ema_epochs=0.1).decay(5) == 0  # half a step: the weights as they are


def test_describe_ema_span_allows_a_quarter():
    """Of any number of steps, although 1 / (1 - decay) is rounded."""
    optim = OptimConfig(epochs=10, ema_epochs=2.5)
    for steps in range(1, 26):  # of an epoch; in longer runs the warm-up keeps the EMA shorter
        assert describe_ema_span(make_ema(nn.Linear(1, 1), optim.decay(steps)), optim, 10 * steps) is None, steps


def test_describe_ema_span_reports_a_span_of_over_a_quarter():
    ema = make_ema(nn.Linear(1, 1), 0.9997)
    line = describe_ema_span(ema, OptimConfig(epochs=1), 100)
    assert line.startswith('The final EMA weights average the last 32 or so of 100 steps, more than a quarter')
    assert 'set optim.ema_decay to at most 0.96 to' in line
    assert 'optim.ema_epochs to at most 0.25 to' in describe_ema_span(ema, OptimConfig(epochs=1, ema_epochs=9), 100)
    assert describe_ema_span(make_ema(nn.Linear(1, 1), 0.95), OptimConfig(epochs=1), 100) is None
