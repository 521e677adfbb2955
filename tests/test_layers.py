import math

import numpy as np
import pytest
import torch
import torch.nn as nn

from msff_timm.layers import (
    ClassWiseLinear,
    GlobalFeatureEnhancement,
    HierarchicalScaleAttention,
    MultiScaleProjection,
    PositionEncoding,
    RegionSelection,
)
from msff_timm.layers.transformer import MultiHeadAttention, TransformerLayer


def bilinear(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation of (C, H, W) pixel by pixel: pixel i lies at i + 1/2, and edges are repeated."""
    _, old_height, old_width = x.shape
    out = np.empty((len(x), height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * old_height / height - 0.5, 0), old_height - 1)
            z = min(max((j + 0.5) * old_width / width - 0.5, 0), old_width - 1)
            y0, z0 = math.floor(y), math.floor(z)
            y1, z1 = min(y0 + 1, old_height - 1), min(z0 + 1, old_width - 1)
            top = (1 - (z - z0)) * x[:, y0, z0] + (z - z0) * x[:, y0, z1]
            bottom = (1 - (z - z0)) * x[:, y1, z0] + (z - z0) * x[:, y1, z1]
            out[:, i, j] = (1 - (y - y0)) * top + (y - y0) * bottom
    return out


@pytest.mark.parametrize('grids', [((28, 28), (14, 14), (7, 7)), ((9, 12), (5, 6), (3, 3))])
def test_scale_attention_is_equations_2_to_5(grids):
    x1, x2, x3 = (torch.randn(1, 4, *grid, dtype=torch.float64) for grid in grids)
    a1, a2, a3 = (x[0].numpy() for x in (x1, x2, x3))
    x2_up, x3_up = bilinear(a2, *grids[0]), bilinear(a3, *grids[0])  # Eq. 2
    m = a1 * x2_up * x3_up  # Eq. 3
    expected = [a1 + m, bilinear(x2_up + m, *grids[1]), bilinear(x3_up + m, *grids[2])]  # Eqs. 4, 5
    for got, want in zip(HierarchicalScaleAttention()([x1, x2, x3]), expected, strict=True):
        np.testing.assert_allclose(got[0].numpy(), want, rtol=0, atol=1e-12)


def test_projection_takes_x1_from_f1_and_x2_and_x3_from_f2():
    projection = MultiScaleProjection((6, 10), 4)
    f1, f2 = torch.randn(2, 6, 8, 8), torch.randn(2, 10, 4, 4)
    x1, x2, x3 = projection(f1, f2)
    assert (x1.shape, x2.shape, x3.shape) == ((2, 4, 8, 8), (2, 4, 4, 4), (2, 4, 2, 2))
    w, b = projection.conv1.weight[:, :, 0, 0], projection.conv1.bias
    torch.testing.assert_close(x1[1, :, 3, 5], w @ f1[1, :, 3, 5] + b)
    w, b = projection.conv2.weight[:, :, 0, 0], projection.conv2.bias
    torch.testing.assert_close(x2[1, :, 3, 1], w @ f2[1, :, 3, 1] + b)
    window = f2[1, :, 1:4, 1:4]  # output (1, 1) of a 3x3 window at stride 2 with a border of 1
    w, b = projection.conv3.weight, projection.conv3.bias
    torch.testing.assert_close(x3[1, :, 1, 1], (w * window).sum((1, 2, 3)) + b)


@pytest.mark.parametrize('grid', [(28, 28), (14, 14), (7, 7), (5, 9)])
def test_position_resamples_one_table_and_flattens_row_by_row(grid):
    position = PositionEncoding(3).double()
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    table = bilinear(position.table[0].detach().numpy(), *grid)
    expected = (x.numpy() + table).reshape(2, 3, -1).transpose(0, 2, 1)
    np.testing.assert_allclose(position(x).detach().numpy(), expected, rtol=0, atol=1e-12)


def randomise(module: nn.Module) -> nn.Module:
    """Gives every parameter a value that matters: a new layer's residual branches are 0."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def copy_attention(ours: MultiHeadAttention, torchs: nn.MultiheadAttention) -> None:
    torchs.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight]).detach()
    torchs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias]).detach()
    torchs.out_proj.load_state_dict(ours.proj.state_dict())


def test_attention_is_pytorchs():
    ours, torchs = randomise(MultiHeadAttention(12, 3)), nn.MultiheadAttention(12, 3, batch_first=True)
    copy_attention(ours, torchs)
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(query, memory), torchs(query, memory, memory)[0])


def test_layer_is_pytorchs_post_norm_encoder_layer():
    ours = randomise(TransformerLayer(12, 3, 20, drop_rate=0.1)).eval()
    torchs = nn.TransformerEncoderLayer(12, 3, 20, activation='relu', norm_first=False, batch_first=True).eval()
    copy_attention(ours.attn, torchs.self_attn)
    pairs = [(torchs.linear1, ours.ffn.fc1), (torchs.linear2, ours.ffn.fc2)]
    for theirs, own in [*pairs, (torchs.norm1, ours.norm1), (torchs.norm2, ours.norm2)]:
        theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, x), torchs(x))


def test_dropout_acts_in_training_only():
    layer = randomise(TransformerLayer(12, 3, 20, drop_rate=0.5))
    x = torch.randn(2, 7, 12)
    assert not torch.equal(layer(x, x), layer(x, x))
    layer.eval()
    assert torch.equal(layer(x, x), layer(x, x))


def test_a_new_layer_passes_its_input_on_and_a_new_decoder_passes_the_picture_on():
    x, memory = torch.randn(2, 7, 12), torch.randn(2, 5, 12)
    layer_args = dict(embed_dim=12, num_heads=3, ffn_dim=20)
    torch.testing.assert_close(GlobalFeatureEnhancement(2, **layer_args)(x), nn.LayerNorm(12)(x), atol=1e-4, rtol=1e-4)
    selection = RegionSelection(3, **layer_args)
    assert (selection(x, memory) - selection(x, 2 * memory)).abs().amax(-1).min() > 1e-3


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match='num_heads=5 does not divide embed_dim=12'):
        MultiHeadAttention(12, 5)


def test_classifier_scores_each_class_by_its_own_feature():
    classifier = randomise(ClassWiseLinear(3, 4))
    z = torch.randn(2, 3, 4)
    for b in range(2):
        for k in range(3):
            expected = classifier.weight[k] @ z[b, k] + classifier.bias[k]
            torch.testing.assert_close(classifier(z)[b, k], expected)
