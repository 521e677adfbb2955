"""What is timed of a model: its passes, their FLOPs by hand, and what is told where one cannot be measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import model_speed
from model_speed import Case

CASE = Case(32, 5, 2, 'float32', 'channels_last', 'eager', 'forward')
CPU = torch.device('cpu')


class Attention(nn.Module):
    """Each pixel attends to all: no parameter, no other product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_flops_are_those_counted_by_hand(monkeypatch):
    made = {
        'convolution': lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1),
        'attention': Attention,
    }
    monkeypatch.setattr(model_speed.timm, 'create_model', lambda name, num_classes: made[name]())
    # Two images to 8 maps of 16 x 16, each value from 3 x 9 others; a gradient for the weights takes as many again.
    forward = 2 * 2 * 8 * 16 * 16 * 27
    assert model_speed.count_flops('convolution', CASE) == forward
    assert model_speed.count_flops('convolution', replace(CASE, kind='train')) == 2 * forward
    # Two products of 1024 x 1024 x 3, whatever kernel a CPU or a GPU has for them
    assert model_speed.count_flops('attention', CASE) == 2 * 2 * 2 * 1024 * 1024 * 3


def test_a_forward_pass_is_inference_in_the_formats_asked_for(one_thread, monkeypatch):
    seen = []
    create = model_speed.hub.create

    def create_watched(name, **model_args):
        model = create(name, **model_args)
        model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0])))
        return model

    monkeypatch.setattr(model_speed.hub, 'create', create_watched)
    logits = model_speed.make_pass('test_resnet', CASE, CPU)()
    assert logits.shape == (2, 5) and logits.dtype == torch.float32 and logits.is_inference()
    half = model_speed.make_pass('test_resnet', replace(CASE, dtype='bfloat16', format='contiguous'), CPU)()
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), logits, atol=0.05)
    (training, images), (_, contiguous) = seen
    assert not training and images.shape == (2, 3, 32, 32) and contiguous.is_contiguous()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', model_speed.DTYPES)
def test_a_training_step_changes_every_parameter(one_thread, monkeypatch, dtype):
    made, create = [], model_speed.hub.create
    monkeypatch.setattr(model_speed.hub, 'create', lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    step = model_speed.make_pass('msff_test_resnet', replace(CASE, image_size=64, dtype=dtype, kind='train'), CPU)
    before = {name: value.clone() for name, value in made[0].named_parameters()}
    step()
    step()  # what starts at 0 keeps the gradient from what lies behind it in the first one
    after = dict(made[0].named_parameters())
    assert all(value.dtype == torch.float32 and value.grad is None for value in after.values())
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]


def fake_passes(monkeypatch, seconds: dict[str, float], failing: dict[str, Exception]) -> None:
    """Has models take so long by the clock, and others fail when they are made."""
    now = [0.0]

    def make_pass(name, case, device):
        if name in failing:
            raise failing[name]
        return lambda: now.__setitem__(0, now[0] + seconds[name])

    monkeypatch.setattr('speed.time.perf_counter', lambda: now[0])
    monkeypatch.setattr(model_speed, 'make_pass', make_pass)
    monkeypatch.setattr(model_speed, 'count_flops', lambda name, case: {'plain': 10, 'msff_a': 30, 'peer': 20}[name])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def test_models_are_compared_with_the_reference_and_with_ours(monkeypatch):
    fake_passes(monkeypatch, {'plain': 1.0, 'msff_a': 1.5, 'peer': 2.0}, {})
    found = model_speed.measure_case(CASE, ['plain', 'msff_a', 'peer'], 4, profiled=False)
    plain, ours, peer = found['rows']
    assert found['turns'] == {'plain': [1.0] * 4, 'msff_a': [1.5] * 4, 'peer': [2.0] * 4}
    assert (found['reference'], found['ours'], found['kind']) == ('plain', 'msff_a', 'forward')
    assert [row['seconds'] for row in found['rows']] == [1, 1.5, 2] and plain['images_per_second'] == 2
    assert ours['time_to_reference'] == {'median': 1.5, 'bootstrap_interval_95': [1.5, 1.5]}
    assert peer['time_of_ours']['median'] == 0.75 and ours['time_of_ours']['median'] == 1
    # 30 FLOPs in 1.5 s are 20 a second, beside 10
    assert [row['flops_per_second_to_reference'] for row in found['rows']] == [1, 2, 1]
    text = '\n'.join(model_speed.lines(found))
    assert '| msff_a | 1500 | 1.333 | 1.500 (1.500 to 1.500) | 1.000' in text and '| 200.0% |' in text


def test_what_cannot_be_measured_says_so_and_the_rest_goes_on(monkeypatch):
    seconds = {'plain': 1.0, 'msff_a': 1.5, 'peer': 2.0}
    fake_passes(monkeypatch, seconds, {'plain': torch.OutOfMemoryError('\nout of  memory\nsee below')})
    found = model_speed.measure_case(CASE, list(seconds), 3, profiled=False)
    plain, ours, peer = found['rows']
    assert plain['error'] == 'out of memory' and 'seconds' not in plain
    assert peer['time_of_ours']['median'] == 0.75 and 'time_to_reference' not in peer
    text = model_speed.lines(found)
    assert 'plain: not measured: out of memory' in text and any(
        '| peer | 2000 | 1 | – | 0.750' in line for line in text
    )

    fake_passes(monkeypatch, seconds, dict.fromkeys(seconds, AssertionError('takes 224 pixels')))
    found = model_speed.measure_case(CASE, list(seconds), 3, profiled=False)
    assert [row['error'] for row in found['rows']] == ['takes 224 pixels'] * 3 and found['turns'] == {}


def test_memory_that_ends_in_the_turns_ends_the_case_alone(monkeypatch):
    fake_passes(monkeypatch, {'plain': 1.0, 'msff_a': 1.5}, {})

    def out_of_memory(*arguments):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(model_speed, 'time_in_turns', out_of_memory)
    found = model_speed.measure_case(CASE, ['plain', 'msff_a'], 3, profiled=False)
    assert [row['error'] for row in found['rows']] == ['CUDA out of memory.'] * 2


def test_a_profile_names_what_takes_most_of_the_time():
    large, small = torch.randn(2, 400, 400)
    found = model_speed.profile_pass(lambda: (large @ small, small[:2, :2].sigmoid()), CPU)
    first, *others = found['operations']
    assert first['name'] == 'aten::mm' and first['calls'] == 1 and 0.5 < first['share'] <= 1
    assert 'aten::sigmoid' in [operation['name'] for operation in others]
    shares = [operation['share'] for operation in found['operations']]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-9
    assert first['seconds'] == pytest.approx(first['share'] * found['self_seconds'])
    assert np.isfinite(found['self_seconds'])
