import io
import math
import os
import resource
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch.utils.data import BatchSampler

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.training import engine, train
from msff_timm.training.checkpoint import Progress
from msff_timm.training.config import DistillConfig, OptimConfig
from msff_timm.training.engine import (
    EpochSampler,
    Learner,
    Teacher,
    Unreadable,
    divide_batch,
    grouped,
    make_optimizer,
    make_schedule,
    mix,
    train_one_epoch,
)
from msff_timm.training.freezing import freeze_norms
from msff_timm.training.losses import make_loss
from msff_timm.training.train import Run, make_ema

ROOT = Path(__file__).parents[2]


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
def test_runs_of_a_few_steps_have_a_schedule(steps, warmup):
    """PyTorch's own divides by zero where the rise is one step long."""
    found = rates(OptimConfig(lr=1.0, warmup=warmup), steps)
    rise = int(steps * warmup) if steps * warmup > 1 else 1
    assert found[:rise] == sorted(found[:rise]) and found[rise - 1 :] == sorted(found[rise - 1 :], reverse=True)
    assert 0 < min(found) and max(found) <= 1 and found[-1] < 1e-5


def test_a_cosine_after_a_linear_rise_by_hand():
    # 2 of 10 steps rise: 1/3, 2/3; then (1 + cos(pi s / 8)) / 2 for s = 0 to 7.
    found = rates(OptimConfig(lr=0.5, warmup=0.2, schedule='cosine'), 10)
    expected = [1 / 3, 2 / 3, *((1 + math.cos(math.pi * s / 8)) / 2 for s in range(8))]
    assert found == pytest.approx([0.5 * share for share in expected], rel=1e-12)


@pytest.mark.parametrize('schedule', ['one_cycle', 'cosine'])
def test_the_backbone_has_its_own_learning_rate(schedule):
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


def test_layer_decay_lowers_the_rate_from_the_head_down():
    model = timm.create_model('msff_test_resnet', num_classes=3)
    optim = OptimConfig(lr=1e-3, layer_decay=0.5, schedule='cosine', warmup=0.0)
    optimizer = make_optimizer(model, optim)
    make_schedule(optimizer, optim, 4)
    lr = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    layer_of = model.group_matcher()
    layers = {name: layer_of(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert lr[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (max(layers.values()) - layers[name]), rel=1e-9), name


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
def test_the_batch_is_divided_over_processes_and_passes(batch_size, most, num_images, num_processes, outcome):
    optim = OptimConfig(batch_size=batch_size, max_per_process=most)
    if isinstance(outcome, tuple):
        assert divide_batch(optim, num_images, num_processes) == outcome
    else:
        with pytest.raises(InputError) as caught:
            divide_batch(optim, num_images, num_processes)
        assert str(caught.value) == outcome


def steps_of(sampler, num_processes, passes):
    """The keys of each step, over all processes, as Accelerate deals them out."""
    per_pass = sampler.batch_size // num_processes // passes
    shares = []
    for rank in range(num_processes):
        batches = BatchSampler(sampler, per_pass, drop_last=True)
        if num_processes > 1:
            batches = BatchSamplerShard(batches, num_processes, rank)
        shares.append(list(grouped(batches, passes)))
    return [{key for share in shares for batch in share[step] for key in batch} for step in range(len(shares[0]))]


def test_each_step_has_the_same_images_for_any_number_of_processes_and_passes():
    sampler = EpochSampler(50, 12, seed=3)
    expected = steps_of(sampler, 1, 1)
    assert len(expected) == 4 and all(len(keys) == 12 for keys in expected) and len(set.union(*expected)) == 48
    for num_processes, passes in ((2, 1), (1, 3), (2, 3), (4, 1), (3, 2)):
        assert steps_of(sampler, num_processes, passes) == expected


def test_a_sampler_that_goes_on_gives_what_is_left_of_the_epoch():
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


class Linear(nn.Module):
    """One weight for each label; an image of one pixel is its input."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_classes,), 0.5))

    def forward(self, image):
        return image.flatten(1).mean(1, keepdim=True) * self.weight


def make_learner(model, passes=1, lr=0.1, decay=0.9, **changes):
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    settings = {
        'accelerator': accelerator, 'module': model, 'model': model, 'ema': make_ema(model, decay),
        'normalize': nn.Identity(),
        'loss_fn': make_loss(OptimConfig(loss='bce')), 'optimizer': accelerator.prepare(optimizer),
        'schedule': torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), 'clip_grad': 1e9, 'passes': passes,
        'channels_last': False, 'mixup': None, 'teacher': None,
        'stop': SimpleNamespace(received=None),
    }  # fmt: skip
    return Learner(**{**settings, **changes})


def batch_of(values, targets):
    images = torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    return {'image': images, 'target': torch.tensor(targets)}


def test_accumulated_passes_weigh_every_known_label_alike():
    """Two passes with 3 and 1 known labels: the gradient is that of the mean over the 4, not of a mean of two means."""
    x, y = [1.0, 2.0, -1.0, 3.0], [[1.0, 0.0], [0.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]]
    known = [(0, 0), (0, 1), (1, 0), (3, 1)]
    sigmoid = [1 / (1 + math.exp(-0.5 * value)) for value in x]
    gradient = [sum((sigmoid[i] - y[i][k]) * x[i] for i, k in known if k == label) / 4 for label in (0, 1)]
    loss = -sum(math.log(sigmoid[i] if y[i][k] else 1 - sigmoid[i]) for i, k in known) / 4
    for batches in ([batch_of(x, y)], [batch_of(x[:2], y[:2]), batch_of(x[2:], y[2:])]):
        model = Linear(2)
        values = make_learner(model, passes=len(batches)).step(batches)
        assert model.weight.tolist() == pytest.approx([0.5 - 0.1 * g for g in gradient], rel=1e-5)
        assert values.tolist() == pytest.approx([loss, math.hypot(*gradient), 0.0], rel=1e-5)


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.9])
@pytest.mark.parametrize('resumed_after', [0, 3])
def test_the_ema_warms_up_by_hand(decay, resumed_after):
    """Its decay in step n is 1 - n ** -0.75, up to the setting: 0, 0.41, 0.56, 0.65, 0.70, ..."""
    model = Linear(1)
    learner = make_learner(model, ema=make_ema(model, decay))
    expected = 0.5
    for step in range(1, 13):
        if step == resumed_after:  # a new object with no more than what is saved of the old one
            old, learner.ema = learner.ema, make_ema(model, decay)
            learner.ema.module.load_state_dict(old.module.state_dict())
        learner.step([batch_of([1.0, -2.0], [[1.0], [1.0]])])
        now = min(1 - step**-0.75, decay)
        expected = now * expected + (1 - now) * model.weight.item()
        assert learner.ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert decay == 0 or abs(expected - model.weight.item()) > 1e-3


def test_a_short_run_has_nothing_of_the_start_in_its_ema():
    """1,000 images, batches of 128, 80 epochs, 0.9997: without a warm-up 85 % of the weights are those of the start."""
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
def test_decay_averages_over_ema_epochs(ema_epochs, steps):
    """The mean age of what an average with a decay holds is that many steps, whatever the number of steps is."""
    decay, ages = OptimConfig(ema_epochs=ema_epochs).decay(steps), np.arange(100_000)
    assert ((1 - decay) * decay**ages * (1 + ages)).sum() / steps == pytest.approx(ema_epochs, rel=1e-6)


def test_decay_without_ema_epochs_is_that_of_the_settings():
    assert OptimConfig().decay(10) == 0.9997 and OptimConfig(ema_decay=0.9).decay(10) == 0.9
    assert OptimConfig(ema_epochs=0.1).decay(5) == 0  # half a step: the weights as they are


class Scaler:
    """Skips the steps whose gradient is not finite, as fp16's does."""

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
def test_no_checkpoint_after_a_gradient_that_is_not_finite(monkeypatch, scaled, at):
    """Its loss is finite, and so is that of every step before; a scaler that skips the step is no fault."""
    model, saved, values = Linear(1), [], []
    learner = make_learner(model, lr=0.01, clip_grad=1.0)
    if scaled:
        scaler = Scaler(learner.optimizer)
        learner.optimizer = scaler
        monkeypatch.setattr(Accelerator, 'optimizer_step_was_skipped', property(lambda self: scaler.step_was_skipped))
    steps = iter(range(1, 5))
    model.weight.register_hook(lambda gradient: gradient * (math.inf if next(steps) == at else 1))
    batches = [{**batch_of([1.0, -2.0], [[1.0], [1.0]]), 'unreadable': []} for _ in range(3)]

    def not_finite(batches, loss, grad_norm):
        raise InputError(f'{loss} {grad_norm}')

    progress = Progress()
    arguments = learner, batches, Unreadable(9, []), progress, 1, lambda *read: values.append(read)
    with nullcontext() if scaled else pytest.raises(InputError, match='^0.* (inf|nan)$'):
        train_one_epoch(*arguments, lambda: saved.append(model.weight.item()), not_finite)
    assert len(saved) == (3 if scaled else at - 1) and all(map(math.isfinite, [*saved, *progress.losses]))
    assert len(values) == len(saved)


def test_gradients_are_clipped_to_their_norm():
    model = Linear(1)
    values = make_learner(model, clip_grad=0.01).step([batch_of([5.0], [[0.0]])])
    assert 0.5 - model.weight.item() == pytest.approx(0.1 * 0.01, rel=1e-3) and values[1] > 4


def test_a_step_says_that_the_run_was_asked_to_stop():
    assert make_learner(Linear(1), stop=SimpleNamespace(received=15)).step([batch_of([1.0], [[1.0]])])[2] == 1


def test_frozen_norms_of_the_backbone_stay_as_they_are():
    model = timm.create_model('msff_test_resnet', num_classes=2, drop_rate=0.0)
    freeze_norms(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = make_learner(model)
    learner.train()
    learner.step([{'image': torch.randn(2, 3, 64, 64), 'target': torch.tensor([[1.0, 0.0], [0.0, 1.0]])}])
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 3
    for name, value in model.state_dict().items():
        if name.rpartition('.')[0] in norms:
            assert torch.equal(value, before[name]) == name.startswith('backbone'), name
    assert not torch.equal(model.backbone.conv1[0].weight, before['backbone.conv1.0.weight'])


def test_what_either_image_does_not_know_their_mixture_does_not():
    np.random.seed(0)
    image, target = torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    image[0] = 1
    mixed, targets = mix(Mixup(1.0, label_smoothing=0.0, num_classes=3, multi_label=True), image, target)
    share = mixed[0, 0, 0, 0].item()
    assert 0 < share < 1
    expected = torch.tensor([[share, 0.0, -1.0], [1 - share, 0.0, -1.0]])
    torch.testing.assert_close(targets, expected)


@pytest.fixture(scope='module')
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=3)
    config = timm.data.resolve_model_data_config(model, {'img_size': 64})
    hub.save(model, folder, ['a', 'b', 'c'], {**config, 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7)})
    return folder


def test_a_teacher_sees_as_it_was_taught_and_answers_in_the_students_order(teacher_folder):
    teacher = Teacher(
        f'local-dir:{teacher_folder}', ['c', 'a', 'b'], DistillConfig(temperature=2.0, weight=0.3)
    ).train()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    with torch.no_grad():
        alone = hub.load(f'local-dir:{teacher_folder}')((pixels / 255 - mean) / std)
    torch.testing.assert_close(teacher(pixels), alone[:, [2, 0, 1]], atol=1e-4, rtol=1e-4)
    assert teacher(pixels[:, :, :32, :48]).shape == (2, 3)
    assert not any(module.training for module in teacher.model.modules())
    q, logits = torch.tensor([0.9, 0.4]), torch.tensor([1.0, -3.0])
    by_hand = [4 * -(a * math.log(s) + (1 - a) * math.log(1 - s)) for a, s in zip(
        (q.logit() / 2).sigmoid().tolist(), (logits / 2).sigmoid().tolist(), strict=True)]  # fmt: skip
    assert teacher.loss(logits, q.logit()).tolist() == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(InputError, match='its labels are not those of the data'):
        Teacher(f'local-dir:{teacher_folder}', ['a', 'b'], DistillConfig())


def test_the_loss_of_a_student_is_shared_with_its_teacher():
    teacher = SimpleNamespace(weight=0.3, loss=lambda logits, theirs: (logits - theirs).abs())
    learner = make_learner(Linear(2), teacher=teacher)
    # One of the two labels is not known: the labels' part is a mean over one, the teacher's over both; of two passes.
    logits, target = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    found = learner._loss(logits, target, torch.tensor([[3.0, 2.5]]), torch.tensor(1.0), passes=2).item()
    assert found == pytest.approx(0.7 * math.log(1 + math.exp(-1.0)) + 0.3 * (2.0 + 0.5) / 2 / 2, rel=1e-6)


@pytest.mark.parametrize(
    ('measured', 'patience', 'ends_after'),
    [([50, 60, 59, 58, 61, 60, 60], 2, 4), ([50, 60, 59, 61, 60, 60.9, 70], 2, 6), ([5, 4, 3, 2, 1, 0, 9], None, 7)],
)
def test_early_stop_by_hand(measured, patience, ends_after):
    progress = Progress()
    run = SimpleNamespace(progress=progress, config=SimpleNamespace(optim=OptimConfig(epochs=7, early_stop=patience)))
    for epoch, mAP in enumerate(measured, 1):
        progress.history.append({'epoch': epoch, 'mAP': mAP})
        if progress.best is None or mAP > progress.best['mAP']:
            progress.best = {'epoch': epoch, 'mAP': mAP}
        progress.epoch = epoch + 1
        if Run.is_over(run):
            break
    assert epoch == ends_after


@pytest.mark.parametrize('status', [None, 'Name:\tpython\nVmRSS:\t 10 kB\n'], ids=['no file', 'no VmHWM'])
def test_peak_memory_without_vmhwm(status, tmp_path, monkeypatch):
    """As of gVisor, of BSD and macOS, and of Windows."""

    def opened(path, *args, **kwargs):
        assert path == '/proc/self/status'
        if status is None:
            raise FileNotFoundError(2, 'No such file or directory', path)
        return io.StringIO(status)

    cpu, largest = SimpleNamespace(device=torch.device('cpu')), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(engine, 'open', opened, raising=False)
    assert engine.peak_memory(cpu) >= largest * 1024
    monkeypatch.setattr(engine.sys, 'platform', 'darwin')  # where it is in bytes
    assert largest <= engine.peak_memory(cpu) < largest * 1024
    monkeypatch.setattr(engine, 'resource', None)
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7))
    monkeypatch.setattr(engine.psutil, 'Process', lambda: windows)
    assert engine.peak_memory(cpu) == 7


def test_the_training_modules_need_nothing_of_unix():
    """What Windows has not is hidden before they are imported."""
    script = f"""
import os, signal, sys
import torch, datasets, accelerate, timm, jsonargparse, psutil, matplotlib.figure
for module in ('resource', 'fcntl', 'pwd', 'grp', 'termios'):
    sys.modules[module] = None
for name in ('sched_getaffinity', 'getloadavg', 'geteuid', 'getuid', 'killpg', 'fork', 'mkfifo', 'O_NONBLOCK'):
    delattr(os, name)
for name in ('SIGHUP', 'SIGALRM', 'SIGKILL', 'SIGUSR1'):
    delattr(signal, name)
sys.path.insert(0, {str(ROOT / 'train' / 'benchmarks')!r})
import benchmark
from msff_timm.training import evaluate, train
from msff_timm.training.config import CONFIGS, TrainConfig, parse
from msff_timm.training.studies import ablate, compare
parse(TrainConfig, [], default_file=CONFIGS / 'demo.yaml')
train.share_cores(train.Accelerator(cpu=True), 1)
"""
    ended = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def handlers():
    """Restores what handles the signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stop_request_ends_at_once_while_there_is_nothing_to_save(number, code, handlers, monkeypatch, capfd):
    monkeypatch.setattr(sys, 'argv', ['train/train.py'])
    engine.StopRequest(waits=False)

    def main():
        try:
            os.kill(os.getpid(), number)
        except Exception:  # of code that tries something
            pass
        print('goes on')

    with pytest.raises(SystemExit) as ended:
        engine.run_command(main)
    assert ended.value.code == code
    assert tuple(capfd.readouterr()) == ('', 'train.py: stopped before its first step.\n')


def test_stop_request_is_remembered_once_there_is_something_to_save(handlers):
    stop = engine.StopRequest()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_run_command_ends_where_nothing_reads_its_output():
    script = """
import os, sys
from msff_timm.training.engine import run_command
def main():
    for _ in range(100_000):
        print('a line')
run_command(main)
"""
    pipe = f'\'{sys.executable}\' -c "$SCRIPT" | head -1; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, 'SCRIPT': script}
    ended = subprocess.run(['bash', '-c', pipe], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (141, 'a line\n')
    assert ended.stderr == '-c: nothing reads its output any more; what was written stays.\n'


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    """A module of the same name, found first, is where it comes."""
    (tmp_path / 'timm.py').write_text('import os, signal; os.kill(os.getpid(), signal.SIGINT)')
    restore = 'import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler);'
    for script in ('train', 'evaluate', 'compare', 'ablate', 'benchmarks/benchmark'):
        path = ROOT / 'train' / f'{script}.py'
        run = f'{restore} sys.argv = [{str(path)!r}]; sys.path.insert(0, {str(path.parent)!r});'
        run += f'sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(path)!r}, run_name="__main__")'
        ended = subprocess.run([sys.executable, '-c', run], capture_output=True, text=True)
        assert ended.returncode and ended.stderr == f'{path.name}: interrupted.\n'


def test_make_loader_says_where_there_is_no_shared_memory(monkeypatch):
    def full():
        raise OSError(30, 'Read-only file system', '/dev/shm/x')

    scope = {'full': full}
    exec(compile('def lock():\n    full()', '/lib/multiprocessing/synchronize.py', 'exec'), scope)
    monkeypatch.setattr(engine.torch.multiprocessing, 'get_context', lambda: SimpleNamespace(Lock=scope['lock']))
    engine.ending.cache_clear()
    with pytest.raises(InputError, match='need more shared memory .Read-only.*set data.workers to 0'):
        engine.make_loader([1], 1, workers=1)
    assert engine.make_loader([1], 1, workers=0).num_workers == 0


def test_a_fault_in_training_says_what_was_saved(tmp_path, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')

    checkpoints = SimpleNamespace(advice=lambda: '--resume auto resumes from step-00000001')
    run = SimpleNamespace(train=lambda: broken(None), checkpoints=checkpoints)
    monkeypatch.setattr(train, 'Run', lambda *args: run)
    monkeypatch.setattr(train, 'StopRequest', lambda waits: SimpleNamespace())
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    monkeypatch.setattr(sys, 'argv', ['train.py', f'--output={tmp_path / "run"}', '--trackers=[]', '--resume=auto'])
    with pytest.raises(SystemExit) as ended:
        engine.run_command(train.main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.count('\n') == 1
    assert printed.endswith(f'The run in {tmp_path / "run"} has stopped: --resume auto resumes from step-00000001.\n')
    assert printed.startswith('train.py: error: a data loader worker was killed')


def test_the_peak_of_memory_is_not_that_of_the_process_that_started_this_one():
    child = """
import torch
from types import SimpleNamespace
from msff_timm.training.engine import peak_memory
kept = torch.ones(100_000_000)
print(peak_memory(SimpleNamespace(device=torch.device('cpu'))))
"""
    parent = f'import subprocess, sys; large = b"x" * 3 * 10**9; subprocess.run([sys.executable, "-c", {child!r}])'
    printed = subprocess.run([sys.executable, '-c', parent], capture_output=True, text=True, check=True).stdout
    assert 4e8 < int(printed) < 2.5e9
