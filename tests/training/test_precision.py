"""Compiled, channels-last and autocast models agree with eager float32, within their precision."""

import subprocess
import sys

import pytest
import timm
import torch

import msff_timm  # noqa: F401  registers the models

X = torch.rand(4, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 4 - 2


@pytest.fixture
def model():
    """A model whose parameters all matter, with statistics in its BatchNorm layers."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else parameter.data.add_(0.1)
    with torch.no_grad():
        for _ in range(60):
            model(X)
    return model.eval()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_compile_needs_one_graph(model):
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.slow
def test_compile_keeps_the_gradients(model):
    """In float64, where only the order of additions differs."""
    model.train().double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in [*model.enhancement.branches[0], *model.selection.branches[0]]:
        layer.attn.drop_rate = 0.0
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True, backend='aot_eager')):
        model.zero_grad()
        run(X.double()).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize('name', ['msff_test_resnet', 'msff_resnet18', 'msff_convnext_tiny'])
def test_compile_by_inductor_needs_one_graph(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(X), model(X), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_channels_last_keeps_the_logits(model):
    expected = model(X)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(X.to(memory_format=torch.channels_last)), expected)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_within_rounding_errors(model, dtype):
    expected = model(X)
    with torch.autocast('cpu', dtype):
        got = model(X)
    # Rounding errors of the 30 operations in a row add up as a random walk: sqrt(30) times half of the type's epsilon.
    assert 0 < relative_error(got, expected) < 5.5 * torch.finfo(dtype).eps


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', ['msff_test_resnet', 'msff_efficientnet_b0'])
def test_models_give_finite_logits_for_extreme_images(name, dtype):
    """Images without normalization: in a new EfficientNet, Eq. 3 overflows float16."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for value in (0.0, 255.0):
        x = torch.full((1, 3, 224, 224), value)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            assert model(x).isfinite().all()


PEAK = """
import resource, sys, timm, torch, msff_timm
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
model = timm.create_model('msff_resnet101').train()
model.set_grad_checkpointing(sys.argv[1] == 'True')
for _ in range(2):
    model(torch.randn(4, 3, 448, 448)).mean().backward()
print(peak() - before)
"""


@pytest.mark.slow
def test_gradient_checkpointing_saves_a_third_of_the_memory():
    peaks = {
        enable: int(subprocess.run([sys.executable, '-c', PEAK, str(enable)], capture_output=True, check=True).stdout)
        for enable in (False, True)
    }
    assert peaks[True] < (1 - 0.35) * peaks[False], peaks
