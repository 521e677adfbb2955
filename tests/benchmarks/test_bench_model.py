"""Tests of `benchmark.py model`: passes, FLOPs by hand, comparisons, and models that cannot be measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import bench_model
from bench_model import Case
from msff_timm.training.studies import speed

CASE = Case(32, 5, 2, 'float32', 'channels_last', 'eager', 'forward')
CPU = torch.device('cpu')


class Attention(nn.Module):
    """Attention of each pixel to all pixels, without other products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def test_count_case_matches_hand_computation(monkeypatch):
    made = {
        'convolution': lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1),
        'attention': Attention,
    }
    monkeypatch.setattr(bench_model.timm, 'create_model', lambda name, num_classes: made[name]())
    # Two images to 8 maps of 16 x 16, each value from 3 x 9 others; the gradient of the weights takes as many.
    forward = 2 * 2 * 8 * 16 * 16 * 27
    assert bench_model.count_case('convolution', CASE) == forward
    assert bench_model.count_case('convolution', replace(CASE, kind='train')) == 2 * forward
    # Two products of 1024 x 1024 x 3, with any kernel
    assert bench_model.count_case('attention', CASE) == 2 * 2 * 2 * 1024 * 1024 * 3


def test_make_pass_forward_uses_format_and_dtype(one_thread, monkeypatch):
    seen = []
    create = bench_model.hub.create

    def create_watched(name, **model_args):
        model = create(name, **model_args)
        model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0])))
        return model

    monkeypatch.setattr(bench_model.hub, 'create', create_watched)
    logits = bench_model.make_pass('test_resnet', CASE, CPU)()
    assert logits.shape == (2, 5) and logits.dtype == torch.float32 and logits.is_inference()
    half = bench_model.make_pass('test_resnet', replace(CASE, dtype='bfloat16', format='contiguous'), CPU)()
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), logits, atol=0.05)
    (training, images), (_, contiguous) = seen
    assert not training and images.shape == (2, 3, 32, 32) and contiguous.is_contiguous()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', bench_model.DTYPES)
def test_make_pass_train_changes_every_parameter(one_thread, monkeypatch, dtype):
    made, create = [], bench_model.hub.create
    monkeypatch.setattr(bench_model.hub, 'create', lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    step = bench_model.make_pass('msff_test_resnet', replace(CASE, image_size=64, dtype=dtype, kind='train'), CPU)
    before = {name: value.clone() for name, value in made[0].named_parameters()}
    step()
    step()  # in the first step, weights of 0 pass no gradient to the layers below
    after = dict(made[0].named_parameters())
    assert all(value.dtype == torch.float32 and value.grad is None for value in after.values())
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]


def fake_passes(monkeypatch, seconds: dict[str, float], failing: dict[str, Exception]) -> None:
    """Gives passes a duration on a fake clock; others raise an error when they are made."""
    now = [0.0]

    def make_pass(name, case, device):
        if name in failing:
            raise failing[name]
        return lambda: now.__setitem__(0, now[0] + seconds[name])

    monkeypatch.setattr(speed.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(bench_model, 'make_pass', make_pass)
    monkeypatch.setattr(bench_model, 'count_case', lambda name, case: {'plain': 10, 'msff_a': 30, 'peer': 20}[name])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def test_measure_case_compares_with_reference_and_ours(monkeypatch):
    fake_passes(monkeypatch, {'plain': 1.0, 'msff_a': 1.5, 'peer': 2.0}, {})
    found = bench_model.measure_case(CASE, ['plain', 'msff_a', 'peer'], 4, profiled=False)
    plain, ours, peer = found['rows']
    assert found['turns'] == {'plain': [1.0] * 4, 'msff_a': [1.5] * 4, 'peer': [2.0] * 4}
    assert (found['reference'], found['ours'], found['kind']) == ('plain', 'msff_a', 'forward')
    assert [row['seconds'] for row in found['rows']] == [1, 1.5, 2] and plain['images_per_second'] == 2
    assert ours['time_to_reference'] == {'median': 1.5, 'bootstrap_interval_95': [1.5, 1.5]}
    assert peer['time_of_ours']['median'] == 0.75 and ours['time_of_ours']['median'] == 1
    # 30 FLOPs in 1.5 s are 20 per second, twice the reference's 10
    assert [row['flops_per_second_to_reference'] for row in found['rows']] == [1, 2, 1]
    text = '\n'.join(bench_model.format_case(found))
    assert '| msff_a | 1500 | 1.333 | 1.500 (1.500 to 1.500) | 1.000' in text and '| 200.0% |' in text


def test_measure_case_reports_models_that_fail(monkeypatch):
    seconds = {'plain': 1.0, 'msff_a': 1.5, 'peer': 2.0}
    fake_passes(monkeypatch, seconds, {'plain': torch.OutOfMemoryError('\nout of  memory\nsee below')})
    found = bench_model.measure_case(CASE, list(seconds), 3, profiled=False)
    plain, ours, peer = found['rows']
    assert plain['error'] == 'out of memory' and 'seconds' not in plain
    assert peer['time_of_ours']['median'] == 0.75 and 'time_to_reference' not in peer
    text = bench_model.format_case(found)
    assert 'plain: not measured: out of memory' in text and any(
        '| peer | 2000 | 1 | – | 0.750' in line for line in text
    )

    fake_passes(monkeypatch, seconds, dict.fromkeys(seconds, AssertionError('takes 224 pixels')))
    found = bench_model.measure_case(CASE, list(seconds), 3, profiled=False)
    assert [row['error'] for row in found['rows']] == ['takes 224 pixels'] * 3 and found['turns'] == {}


def test_measure_case_reports_failure_in_turns(monkeypatch):
    fake_passes(monkeypatch, {'plain': 1.0, 'msff_a': 1.5}, {})

    def out_of_memory(*arguments):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(bench_model, 'time_in_turns', out_of_memory)
    found = bench_model.measure_case(CASE, ['plain', 'msff_a'], 3, profiled=False)
    assert [row['error'] for row in found['rows']] == ['CUDA out of memory.'] * 2


@pytest.mark.parametrize(
    ('operation', 'kind'),
    [
        ('aten::mkldnn_convolution', 'convolutions'),
        ('aten::convolution_backward', 'convolutions'),
        ('sm90_xmma_wgrad_indexed_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc', 'convolutions'),
        ('nvjet_sm90_tst_128x128_64x6_1x2_h_bz_splitK_NTT', 'matrix products'),
        ('aten::addmm', 'matrix products'),
        ('aten::_scaled_dot_product_flash_attention_for_cpu_backward', 'attention'),
        ('cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16', 'attention'),
        ('aten::native_batch_norm_backward', 'norms'),
        ('aten::random_', 'random numbers'),
        ('Optimizer.step#AdamW.step', 'optimizer'),
        ('aten::copy_', 'copies'),
        ('aten::add_', 'others'),
        ('aten::threshold_backward', 'others'),
    ],
)
def test_kind_of_names_the_kind_of_an_operation(operation, kind):
    assert bench_model.kind_of(operation) == kind


def test_profile_pass_ranks_operations():
    large, small = torch.randn(2, 400, 400)
    found = bench_model.profile_pass(lambda: (large @ small, small[:2, :2].sigmoid()), CPU)
    first, *others = found['operations']
    assert first['name'] == 'aten::mm' and first['calls'] == 1 and 0.5 < first['share'] <= 1
    assert 'aten::sigmoid' in [operation['name'] for operation in others]
    shares = [operation['share'] for operation in found['operations']]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-9
    assert first['seconds'] == pytest.approx(first['share'] * found['self_seconds'])
    assert np.isfinite(found['self_seconds'])
    assert first['share'] <= found['kinds']['matrix products'] <= 1
    assert sum(found['kinds'].values()) == pytest.approx(1)
