import sys

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

from msff_timm.errors import InputError
from msff_timm.inference.grad_cam import grad_cam

pytestmark = pytest.mark.usefixtures('one_thread')


def scaled(maps: torch.Tensor) -> torch.Tensor:
    """Scales maps (..., h, w) to 0 to 1, as the package does."""
    maps = maps - maps.amin((-1, -2), keepdim=True)
    return maps / (maps.amax((-1, -2), keepdim=True) + 1e-7)


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_grad_cam_equals_cam_after_average_pooling(name):
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=5).eval(), torch.randn(2, 3, 96, 128)
    nn.init.normal_(model.get_classifier().weight)
    with torch.no_grad():
        features = model.forward_features(images)
        cam = torch.einsum('kc,bchw->bkhw', model.get_classifier().weight, features).relu()
    with torch.inference_mode():  # as on the page
        found = grad_cam(model, images, [3, 0])
    torch.testing.assert_close(found, scaled(cam[:, [3, 0]]), atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grad_cam_of_tokens_equals_the_gradients_by_hand():
    """A ViT whose head reads the class token only, on images that are not square."""
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=4, img_size=(96, 128), global_pool='token').eval()
    nn.init.normal_(model.head.weight)
    images, stored = torch.randn(1, 3, 96, 128), {}
    hook = model.blocks[-1].norm1.register_forward_hook(lambda m, a, out: stored.update(tokens=out))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, 2], stored['tokens'])
    tokens, gradient = stored['tokens'][0, 1:], gradient[0, 1:]
    expected = (tokens * gradient.mean(0)).sum(1).relu().view(6, 8).detach()
    found = grad_cam(model, images, [2])[0, 0]
    assert found.shape == (6, 8) and expected.any()
    torch.testing.assert_close(found, scaled(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('name', 'size', 'grid'),
    [
        ('test_convnext', 96, (3, 3)),
        ('mldecoder_test_resnet', 128, (4, 4)),
        ('swin_tiny_patch4_window7_224', 224, (7, 7)),
        ('mixer_s32_224', 224, (7, 7)),
    ],
)
def test_grad_cam_takes_models_of_many_families(name, size, grid):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    for parameter in model.parameters():  # heads of zeros have no gradient
        parameter.data += 0.02 * torch.randn_like(parameter)
    found = grad_cam(model, torch.randn(1, 3, size, size), [2, 0])
    assert found.shape == (1, 2, *grid) and found.isfinite().all() and 0 <= found.min() and 0.5 < found.max() <= 1


def test_grad_cam_is_0_without_evidence():
    model = timm.create_model('test_resnet', num_classes=2).eval()
    nn.init.constant_(model.fc.weight, -1.0)
    model.forward_features = lambda x: F.avg_pool2d(x[:, :1], 32).abs().expand(-1, model.num_features, -1, -1)
    assert not grad_cam(model, torch.randn(1, 3, 64, 64), [0, 1]).any()


def test_grad_cam_names_a_model_without_a_map():
    model = timm.create_model('test_vit', num_classes=2).eval()
    model.blocks = nn.Sequential(nn.Identity())
    with pytest.raises(InputError, match='VisionTransformer cannot be explained: Grad-CAM finds no feature map in it'):
        grad_cam(model, torch.zeros(1, 3, 160, 160), [0])


def test_grad_cam_names_the_extra_of_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(InputError, match=r"grad-cam is not installed: pip install 'msff-timm\[explain\]'"):
        grad_cam(timm.create_model('test_resnet'), torch.zeros(1, 3, 64, 64), [0])
