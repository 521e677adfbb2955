import pytest
import timm
import torch
import torch.nn as nn

import msff_timm  # noqa: F401  registers the models
from msff_timm.inference.folding import folded

pytestmark = pytest.mark.usefixtures('one_thread')


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


POOLED = {'backbone': 'test_efficientnet', 'pooled_classifier': True}


@pytest.mark.parametrize(
    ('name', 'args'),
    [
        *((name, {}) for name in ('msff_test_resnet', 'mldecoder_test_resnet', 'q2l_test_resnet')),
        *((name, {}) for name in ('test_efficientnet', 'test_resnet')),
        ('msff_test_resnet', POOLED),
    ],
)
@torch.no_grad()
def test_folded_computes_the_same_without_batch_norms(name, args):
    model, images = randomise(timm.create_model(name, num_classes=5, **args)), torch.randn(2, 3, 64, 64)
    before, expected = {key: value.clone() for key, value in model.state_dict().items()}, model(images)
    result = folded(model, torch.randn(1, 3, 64, 64))
    assert count_norms(model) > 0 and count_norms(result) == 0
    assert result(images) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Shared(nn.Module):
    """A convolution whose output a batch norm takes, and the result too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return (x + self.norm(x)).mean((2, 3))


@torch.no_grad()
def test_folded_leaves_a_convolution_with_other_uses():
    model, images = randomise(Shared()), torch.randn(2, 3, 16, 16)
    result = folded(model, images)
    assert count_norms(result) == 1 and torch.allclose(result(images), model(images), atol=1e-6)
