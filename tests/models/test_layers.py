import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from msff_timm.models.layers import (
    ClassWiseLinear,
    Dropout,
    GlobalFeatureEnhancement,
    HierarchicalScaleAttention,
    MultiHeadAttention,
    MultiScaleProjection,
    PositionEncoding,
    RegionSelection,
    TransformerLayer,
    resize,
    split_scales,
    stack_scales,
)


def tent(distance: float) -> float:
    """Returns the weight of a pixel in bilinear interpolation."""
    return max(1 - abs(distance), 0)


def cubic(distance: float, a: float = -0.75) -> float:
    """Returns the weight of a pixel in bicubic interpolation (Keys, 1981)."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0


def weights(mode: str, old: int, new: int) -> np.ndarray:
    """Returns 1D interpolation as a matrix (new, old): pixel i is at i + 1/2, and edges are repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        if mode == 'nearest':  # pixel that contains the left edge
            matrix[i, math.floor(i * old / new)] = 1
        elif mode == 'area':  # mean of all pixels that overlap
            touched = range(math.floor(i * old / new), math.ceil((i + 1) * old / new))
            matrix[i, touched] = 1 / len(touched)
        else:
            kernel, reach = (tent, 1) if mode == 'bilinear' else (cubic, 2)
            place = (i + 0.5) * old / new - 0.5
            place = max(place, 0) if mode == 'bilinear' else place
            for j in range(math.floor(place) - reach, math.floor(place) + reach + 1):
                matrix[i, min(max(j, 0), old - 1)] += kernel(place - j)
    return matrix


def interpolate(x: np.ndarray, height: int, width: int, mode: str = 'bilinear') -> np.ndarray:
    return weights(mode, x.shape[-2], height) @ x @ weights(mode, x.shape[-1], width).T


@pytest.mark.parametrize('mode', ['nearest', 'bilinear', 'bicubic', 'area'])
@pytest.mark.parametrize('grids', [((28, 28), (14, 14), (7, 7)), ((9, 12), (5, 6), (3, 3))])
def test_scale_attention_is_eqs_2_to_5(grids, mode):
    x1, x2, x3 = (torch.randn(1, 4, *grid, dtype=torch.float64) for grid in grids)
    a1, a2, a3 = (x[0].numpy() for x in (x1, x2, x3))
    x2_up, x3_up = interpolate(a2, *grids[0], mode), interpolate(a3, *grids[0], mode)  # Eq. 2
    gate = np.array([0.5, -2.0, 0.0, 1.0])
    gated = HierarchicalScaleAttention(4, mode).double()
    gated.gate.data[:] = torch.from_numpy(gate)[:, None, None]
    for attention, factor in ((HierarchicalScaleAttention(4, mode, gate=False), 1), (gated, gate[:, None, None])):
        m = factor * a1 * x2_up * x3_up  # Eq. 3
        expected = [a1 + m, interpolate(x2_up + m, *grids[1], mode), interpolate(x3_up + m, *grids[2], mode)]  # 4, 5
        for got, want in zip(attention([x1, x2, x3]), expected, strict=True):
            np.testing.assert_allclose(got[0].detach().numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('mode', ['nearest', 'bilinear', 'bicubic', 'area'])
@pytest.mark.parametrize('grids', [((14, 14), (28, 28)), ((28, 28), (7, 7)), ((5, 9), (11, 4)), ((1, 3), (2, 3))])
def test_resize_is_interpolate_with_its_gradient(grids, mode, memory_format):
    before, after = grids
    x = torch.randn(2, 6, *before).to(memory_format=memory_format).requires_grad_()
    gradient = torch.randn(2, 6, *after)
    results = []
    for resized in (resize(x, *after, mode), F.interpolate(x, after, mode=mode)):
        results.append((resized, *torch.autograd.grad(resized, x, gradient)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_scale_attention_with_a_gate_adds_no_product_at_first():
    scales = [torch.randn(1, 4, side, side) for side in (8, 4, 2)]
    x1, x2, x3 = HierarchicalScaleAttention(4)(scales)
    assert torch.equal(x1, scales[0])
    for got, x, side in ((x2, scales[1], 4), (x3, scales[2], 2)):  # up and down again
        expected = interpolate(interpolate(x[0].numpy(), 8, 8), side, side)
        np.testing.assert_allclose(got[0].detach().numpy(), expected, rtol=0, atol=1e-6)


# Table 5: layer of the ResNet (layer n has reduction 2^(n+1)) and kernel size, for x1, x2 and x3
TABLE_5 = {1: ((3, 1), (3, 3), (4, 3)), 2: ((2, 3), (3, 3), (4, 3)), 3: ((3, 1), (4, 1), (4, 3))}


@pytest.mark.parametrize('mode', TABLE_5)
def test_projection_is_table_5(mode):
    layers = sorted({layer for layer, _ in TABLE_5[mode]})
    maps = {layer: torch.randn(2, 6 + layer, 64 >> layer, 64 >> layer, dtype=torch.float64) for layer in layers}
    projection = MultiScaleProjection({2 ** (layer + 1): 6 + layer for layer in layers}, 4, mode, norm=False).double()
    scales = projection([maps[layer] for layer in layers])
    convs = (projection.conv1, projection.conv2, projection.conv3)
    assert [scale.shape for scale in scales] == [(2, 4, 8, 8), (2, 4, 4, 4), (2, 4, 2, 2)]
    for (layer, side), conv, scale in zip(TABLE_5[mode], convs, scales, strict=True):
        # Cell (1, 1), from one cell, or from a window of 3 x 3 at stride 2 with padding 1
        x = maps[layer]
        window = x[1, :, 1:2, 1:2] if side == 1 else x[1, :, 1:4, 1:4]
        assert conv.weight.shape == (4, x.shape[1], side, side)
        torch.testing.assert_close(scale[1, :, 1, 1], (conv.weight * window).sum((1, 2, 3)) + conv.bias)


def test_projection_normalizes_each_channel():
    maps = [3 + 5 * torch.randn(4, 6, 8, 8), -2 + 0.1 * torch.randn(4, 7, 4, 4)]
    projection = MultiScaleProjection({16: 6, 32: 7}, 5)
    for x in projection(maps):  # in training mode: zero mean, unit variance in each channel
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.var((0, 2, 3), correction=0), torch.ones(5), rtol=0.02, atol=0)


def test_projection_resizes_maps_of_backbones_that_round_down():
    projection = MultiScaleProjection({16: 3, 32: 3}, 4, norm=False)
    maps = [torch.randn(1, 3, 7, 9), torch.randn(1, 3, 3, 4)]  # a ResNet's second map would be 4 x 5
    x1, x2, x3 = projection(maps)
    assert (x1.shape[2:], x2.shape[2:], x3.shape[2:]) == ((7, 9), (4, 5), (2, 3))
    expected = interpolate(projection.conv2(maps[1])[0].detach().numpy(), 4, 5)
    np.testing.assert_allclose(x2[0].detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('grid', [(28, 28), (14, 14), (7, 7), (5, 9)])
@pytest.mark.parametrize('num_branches', [1, 3])
def test_position_resamples_its_table_and_flattens_by_rows(grid, num_branches):
    position = PositionEncoding(3, num_branches).double()
    scales = [torch.randn(2, 3, *grid, dtype=torch.float64) for _ in range(3)]
    for i, (x, tokens) in enumerate(zip(scales, position(scales), strict=True)):
        table = interpolate(position.table[i % num_branches].detach().numpy(), *grid)
        expected = (x.numpy() + table).reshape(2, 3, -1).transpose(0, 2, 1)
        np.testing.assert_allclose(tokens.detach().numpy(), expected, rtol=0, atol=1e-12)


def test_split_scales_undoes_stack_scales():
    for height, width in ((28, 28), (7, 9), (5, 4), (1, 3), (33, 2)):
        grids = [(height, width)]
        grids += [((height + 1) // 2, (width + 1) // 2)]
        grids += [((grids[1][0] + 1) // 2, (grids[1][1] + 1) // 2)]
        tokens = [torch.randn(2, h * w, 3) for h, w in grids]
        stacked = stack_scales(tokens, height, width)
        assert stacked.shape == (2, 9, height, width)
        for x, own, grid in zip(split_scales(stacked), tokens, grids, strict=True):
            assert x.shape[-2:] == grid and torch.equal(x.flatten(2).transpose(1, 2), own)
        # Coarse cell that contains the centre of a fine cell, in the first channel of the first image
        for i, (h, w) in enumerate(grids):
            row, column = int((height - 0.5) * h / height), int(0.5 * w / width)
            assert stacked[0, 3 * i, height - 1, 0] == tokens[i][0, row * w + column, 0]


def randomise(module: nn.Module) -> nn.Module:
    """Randomizes every parameter, since the residual branches of a new layer are 0."""
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
    torch.testing.assert_close(ours(query, memory, [5], [7]), torchs(query, memory, memory)[0])


def test_transformer_layer_is_pytorchs_post_norm_encoder_layer():
    ours = randomise(TransformerLayer(12, 3, 20, drop_rate=0.1)).eval()
    torchs = nn.TransformerEncoderLayer(12, 3, 20, activation='relu', norm_first=False, batch_first=True).eval()
    copy_attention(ours.attn, torchs.self_attn)
    pairs = [(torchs.linear1, ours.ffn.fc1), (torchs.linear2, ours.ffn.fc2)]
    for theirs, own in [*pairs, (torchs.norm1, ours.norm1), (torchs.norm2, ours.norm2)]:
        theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, x, [7], [7]), torchs(x))


def test_transformer_layer_is_pytorchs_post_norm_decoder_layer():
    ours = randomise(TransformerLayer(12, 3, 20, self_attn=True)).eval()
    torchs = nn.TransformerDecoderLayer(12, 3, 20, activation='relu', norm_first=False, batch_first=True).eval()
    copy_attention(ours.self_attn, torchs.self_attn)
    copy_attention(ours.attn, torchs.multihead_attn)
    pairs = [(torchs.linear1, ours.ffn.fc1), (torchs.linear2, ours.ffn.fc2), (torchs.norm1, ours.norm0)]
    for theirs, own in [*pairs, (torchs.norm2, ours.norm1), (torchs.norm3, ours.norm2)]:
        theirs.load_state_dict(own.state_dict())
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(query, memory, [5], [7]), torchs(query, memory))


def test_attention_weights_are_pytorchs():
    ours, torchs = randomise(MultiHeadAttention(12, 3)), nn.MultiheadAttention(12, 3, batch_first=True)
    copy_attention(ours, torchs)
    query, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    expected = torchs(query, memory, memory, average_attn_weights=False)[1]
    torch.testing.assert_close(ours.attention(query, memory), expected)


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate'])
def test_transformer_layer_drops_only_in_training(rate):
    layer = randomise(TransformerLayer(12, 3, 20, **{rate: 0.5}))
    x = torch.randn(2, 7, 12)
    outputs = [layer(x, x, [7], [7]) for _ in range(2)]
    assert not torch.equal(*outputs)
    layer.eval()
    outputs = [layer(x, x, [7], [7]) for _ in range(2)]
    assert torch.equal(*outputs)


LAYER_ARGS = dict(embed_dim=12, num_heads=3, ffn_dim=20)


def test_init_weights_pass_tokens_and_image_on():
    tokens, query = [torch.randn(2, length, 12) for length in (9, 4, 1)], torch.randn(1, 7, 12)
    for got, x in zip(GlobalFeatureEnhancement(2, **LAYER_ARGS)(tokens), tokens, strict=True):
        torch.testing.assert_close(got, nn.LayerNorm(12)(x), atol=1e-4, rtol=1e-4)
    selection = RegionSelection(3, **LAYER_ARGS)
    for one, other in zip(selection(query, tokens), selection(query, [2 * x for x in tokens]), strict=True):
        assert (one - other).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize('num_branches', [1, 3])
def test_branches_share_layers_or_own_them(num_branches):
    """A change of the last branch's layers changes that branch, or all three if they share the layers."""
    tokens, query = [torch.randn(2, length, 12) for length in (9, 4, 1)], torch.randn(num_branches, 7, 12)
    enhancement = randomise(GlobalFeatureEnhancement(2, num_branches, **LAYER_ARGS))
    selection = randomise(RegionSelection(2, num_branches, **LAYER_ARGS))
    for part, outputs in ((enhancement, lambda: enhancement(tokens)), (selection, lambda: selection(query, tokens))):
        before = outputs()
        randomise(part.branches[-1])
        changed = [not torch.allclose(a, b) for a, b in zip(before, outputs(), strict=True)]
        assert changed == ([True] * 3 if num_branches == 1 else [False, False, True])
    for i, z in enumerate(selection(query, tokens)):  # each branch has its own queries and its own tokens
        layers = selection.branches[i % num_branches]
        expected = query[i % num_branches].expand(2, -1, -1)
        for layer in layers:
            expected = layer(expected, tokens[i], [7], [tokens[i].shape[1]])
        torch.testing.assert_close(z, expected)


def test_selection_drops_self_attention_per_image_and_scale():
    """Tokens are equal and other dropout is off, so that only dropout of the self-attention makes a difference."""
    tokens, query = [torch.randn(1, 4, 12).repeat(2, 1, 1)] * 3, torch.randn(1, 7, 12)
    selection = randomise(RegionSelection(1, self_attn=[True], **LAYER_ARGS))
    for drop_rate, same in ((0.0, True), (0.5, False)):
        selection.branches[0][0].self_attn.attn_drop_rate = drop_rate
        z = torch.cat(selection(query, tokens))
        assert [torch.allclose(z[0], other) for other in z[1:]] == 5 * [same]


def test_attention_rejects_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match='num_heads=5 does not divide embed_dim=12'):
        MultiHeadAttention(12, 5)


def test_class_wise_linear_scores_each_label_by_its_feature():
    classifier = randomise(ClassWiseLinear(3, 4))
    z = torch.randn(2, 3, 4)
    for b in range(2):
        for k in range(3):
            expected = classifier.weight[k] @ z[b, k] + classifier.bias[k]
            torch.testing.assert_close(classifier(z)[b, k], expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_and_scales_the_rest(dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 101, dtype=dtype, requires_grad=True)
    dropped = Dropout(0.1)(x)
    rate = 26 / 256
    share = (dropped == 0).double().mean().item()
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / x.numel())
    for axis in (0, 1):  # no row or column differs from the others by more than chance
        shares = (dropped == 0).double().mean(axis)
        assert ((shares - rate).abs() < 5 * math.sqrt(rate * (1 - rate) / x.shape[axis])).all()
    kept = dropped[dropped != 0]
    assert (kept == torch.tensor(1 / (1 - rate), dtype=dtype)).all()
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


def test_dropout_depends_on_the_seed_alone():
    x = torch.randn(7, 5)
    torch.manual_seed(1)
    first, second = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(x), first)
    assert not torch.equal(first, second)


def test_dropout_of_rate_0_or_in_inference_is_the_identity():
    x = torch.randn(7, 5)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.5).eval()(x), x)
