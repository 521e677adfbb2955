import pytest
import timm
import torch

import msff_timm  # noqa: F401  registers the models
from msff_timm.errors import InputError
from msff_timm.inference.embeddings import embed

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_embed_pools_the_last_map_of_the_backbone():
    model = timm.create_model('msff_test_resnet', num_classes=5).eval()
    last = model.backbone(IMAGES)[-1]
    expected = last.flatten(2).sum(2)
    expected /= expected.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(embed(model, IMAGES), expected)


@torch.no_grad()
def test_embed_is_what_a_plain_model_returns_without_a_classifier():
    model = timm.create_model('test_efficientnet', num_classes=7).eval()
    found = embed(model, IMAGES)
    model.reset_classifier(0)
    expected = model(IMAGES)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def test_embed_does_not_depend_on_the_head():
    model = timm.create_model('msff_test_resnet', num_classes=5).eval()
    before = embed(model, IMAGES)
    model.reset_classifier(9)
    assert torch.equal(embed(model.eval(), IMAGES), before)


def test_embed_refuses_features_that_are_not_finite():
    model = timm.create_model('test_efficientnet', num_classes=7).eval()
    with torch.no_grad():
        model.conv_head.weight.fill_(float('nan'))
    with pytest.raises(InputError, match='features of the backbone are not finite'):
        embed(model, IMAGES)
