"""Single steps and epochs of a trainer, with models of one weight for each label."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator

import msff_timm  # noqa: F401  registers the models
from msff_timm.errors import InputError
from msff_timm.training.checkpoint import Progress
from msff_timm.training.commands import Stopped
from msff_timm.training.config import CheckpointConfig, OptimConfig, TrainConfig
from msff_timm.training.freezing import freeze_norms
from msff_timm.training.loaders import Unreadable
from msff_timm.training.losses import make_loss
from msff_timm.training.optim import make_ema
from msff_timm.training.trainer import Trainer


class Linear(nn.Module):
    """One weight for each label; an image of one pixel is its input."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_classes,), 0.5))

    def forward(self, image):
        return image.flatten(1).mean(1, keepdim=True) * self.weight


class Bar:
    """A progress bar that records how often values are shown."""

    def __init__(self):
        self.shown = 0

    def set_description(self, text):
        pass

    def update(self, images):
        pass

    def set_postfix_str(self, text, refresh):
        self.shown += 1


def make_trainer(model, lr=0.1, decay=0.9, clip_grad=1e9, batches=(), **changes) -> Trainer:
    """A trainer without data or folder, whose micro-batches are given."""
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    trainer = Trainer.__new__(Trainer)
    config = TrainConfig(
        'run', log_every=1, checkpoint=CheckpointConfig(every=1), optim=OptimConfig(clip_grad=clip_grad)
    )
    trainer.__dict__ |= {
        'config': config, 'accelerator': accelerator, 'model': model, 'prepared': model, 'ema': make_ema(model, decay),
        'normalize': nn.Identity(), 'loss_fn': make_loss(OptimConfig(loss='bce')),
        'optimizer': accelerator.prepare(optimizer),
        'schedule': torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        'channels_last': False, 'mixup': None, 'teacher': None, 'unfreezing': None,
        'stop': SimpleNamespace(received=None), 'stop_requested': False, 'progress': Progress(),
        'unreadable': Unreadable(9, []),
        'data': SimpleNamespace(batches=lambda epoch, step: batches, accumulation_steps=1, train_set=None),
        **changes,
    }  # fmt: skip
    return trainer


def batch_of(values, targets):
    images = torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    return {'image': images, 'target': torch.tensor(targets)}


def test_train_step_weighs_every_known_label_alike_over_micro_batches():
    """With 3 and 1 known labels, the gradient is of the mean over all 4, not of the mean of two means."""
    x, y = [1.0, 2.0, -1.0, 3.0], [[1.0, 0.0], [0.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]]
    known = [(0, 0), (0, 1), (1, 0), (3, 1)]
    sigmoid = [1 / (1 + math.exp(-0.5 * value)) for value in x]
    gradient = [sum((sigmoid[i] - y[i][k]) * x[i] for i, k in known if k == label) / 4 for label in (0, 1)]
    loss = -sum(math.log(sigmoid[i] if y[i][k] else 1 - sigmoid[i]) for i, k in known) / 4
    for batches in ([batch_of(x, y)], [batch_of(x[:2], y[:2]), batch_of(x[2:], y[2:])]):
        model = Linear(2)
        values = make_trainer(model).train_step(batches)
        assert model.weight.tolist() == pytest.approx([0.5 - 0.1 * g for g in gradient], rel=1e-5)
        assert values.tolist() == pytest.approx([loss, math.hypot(*gradient), 0.0], rel=1e-5)


def test_train_step_takes_the_mean_loss_of_two_classifiers():
    class Two(Linear):
        def forward(self, image):
            logits = super().forward(image)
            return logits, -2 * logits

    x, y = [1.0, -3.0], [[1.0], [0.0]]

    def losses(w):
        of_each = [
            math.log(1 + math.exp((-1) ** t * scale * w * v)) for v, (t,) in zip(x, y, strict=True) for scale in (1, -2)
        ]
        return sum(of_each) / 4

    model = Two(1)
    slope = (losses(0.5 + 1e-6) - losses(0.5 - 1e-6)) / 2e-6
    values = make_trainer(model).train_step([batch_of(x, y)])
    assert values[0].item() == pytest.approx(losses(0.5), rel=1e-5)
    assert model.weight.item() == pytest.approx(0.5 - 0.1 * slope, rel=1e-4)


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.9])
@pytest.mark.parametrize('resumed_after', [0, 3])
def test_train_step_warms_up_the_ema(decay, resumed_after):
    """Its decay in step n is 1 - n ** -0.75, up to the setting: 0, 0.41, 0.56, 0.65, 0.70, ..."""
    model = Linear(1)
    trainer = make_trainer(model, decay=decay)
    expected = 0.5
    for step in range(1, 13):
        if step == resumed_after:  # a new object with the saved state of the old one
            old, trainer.ema = trainer.ema, make_ema(model, decay)
            trainer.ema.module.load_state_dict(old.module.state_dict())
        trainer.train_step([batch_of([1.0, -2.0], [[1.0], [1.0]])])
        now = min(1 - step**-0.75, decay)
        expected = now * expected + (1 - now) * model.weight.item()
        assert trainer.ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert decay == 0 or abs(expected - model.weight.item()) > 1e-3


class Scaler:
    """A scaler that skips steps whose gradient is not finite, as fp16's does."""

    def __init__(self, optimizer):
        self.optimizer, self.step_was_skipped = optimizer, False

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def step(self):
        norms = [p.grad.norm() for group in self.optimizer.param_groups for p in group['params']]
        self.step_was_skipped = not all(norm.isfinite() for norm in norms)
        if not self.step_was_skipped:
            self.optimizer.step()


@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('at', [1, 2, 3])
def test_train_epoch_saves_nothing_after_a_gradient_that_is_not_finite(monkeypatch, scaled, at):
    """The loss is finite, as in every step before; a step that a scaler skips is no fault."""
    model, saved, bar = Linear(1), [], Bar()
    batches = [{**batch_of([1.0, -2.0], [[1.0], [1.0]]), 'unreadable': []} for _ in range(3)]

    def refuse_step(progress, batches, train_set, loss, grad_norm):
        raise InputError(f'{loss} {grad_norm}')

    changes = {'save': lambda: saved.append(model.weight.item()), 'folder': SimpleNamespace(refuse_step=refuse_step)}
    trainer = make_trainer(model, lr=0.01, clip_grad=1.0, batches=batches, **changes)
    if scaled:
        scaler = Scaler(trainer.optimizer)
        trainer.optimizer = scaler
        monkeypatch.setattr(Accelerator, 'optimizer_step_was_skipped', property(lambda self: scaler.step_was_skipped))
    steps = iter(range(1, 5))
    model.weight.register_hook(lambda gradient: gradient * (math.inf if next(steps) == at else 1))
    with nullcontext() if scaled else pytest.raises(InputError, match='^0.* (inf|nan)$'):
        trainer.train_epoch(bar)
    assert len(saved) == (3 if scaled else at - 1)
    assert all(map(math.isfinite, [*saved, *trainer.progress.losses])) and bar.shown == len(saved)


def test_train_step_clips_the_gradient():
    model = Linear(1)
    values = make_trainer(model, clip_grad=0.01).train_step([batch_of([5.0], [[0.0]])])
    assert 0.5 - model.weight.item() == pytest.approx(0.1 * 0.01, rel=1e-3) and values[1] > 4


def test_train_step_returns_that_a_stop_was_requested():
    assert make_trainer(Linear(1), stop=SimpleNamespace(received=15)).train_step([batch_of([1.0], [[1.0]])])[2] == 1


def test_train_epoch_saves_and_stops_when_a_stop_is_requested():
    batches = [{**batch_of([1.0], [[1.0]]), 'unreadable': []} for _ in range(9)]
    saved, stop = [], SimpleNamespace(received=15)
    trainer = make_trainer(Linear(1), batches=batches, save=lambda: saved.append(trainer.progress.step), stop=stop)
    trainer.config.checkpoint.every = None
    with pytest.raises(Stopped):
        trainer.train_epoch(Bar())
    assert saved == [2]  # the values of the first step are read after the second has begun


def test_train_epoch_keeps_frozen_norms():
    model = timm.create_model('msff_test_resnet', num_classes=2, drop_rate=0.0)
    freeze_norms(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = {'image': torch.randn(2, 3, 64, 64), 'target': torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 'unreadable': []}
    make_trainer(model, batches=[batch], save=lambda: None).train_epoch(Bar())
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 3
    for name, value in model.state_dict().items():
        if name.rpartition('.')[0] in norms:
            assert torch.equal(value, before[name]) == name.startswith('backbone'), name
    assert not torch.equal(model.backbone.conv1[0].weight, before['backbone.conv1.0.weight'])


@pytest.mark.parametrize(
    ('measured', 'patience', 'ends_after'),
    [([50, 60, 59, 58, 61, 60, 60], 2, 4), ([50, 60, 59, 61, 60, 60.9, 70], 2, 6), ([5, 4, 3, 2, 1, 0, 9], None, 7)],
)
def test_is_over_stops_early(measured, patience, ends_after):
    progress = Progress()
    for epoch, mAP in enumerate(measured, 1):
        progress.history.append({'epoch': epoch, 'mAP': mAP})
        if progress.best is None or mAP > progress.best['mAP']:
            progress.best = {'epoch': epoch, 'mAP': mAP}
        progress.epoch = epoch + 1
        if progress.is_over(7, patience):
            break
    assert epoch == ends_after
