import re

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn

from msff_timm.errors import InputError
from msff_timm.inference.attention import attention_maps, has_attention, smooth_map
from msff_timm.inference.explain import explain
from msff_timm.models.query2label import sine_position
from seer import decoder_attention, small_model


@pytest.mark.parametrize('size', [(96, 96), (72, 100)], ids=str)
@pytest.mark.parametrize(
    'args',
    [
        {},
        dict(share_branches=False),
        dict(decoder_self_attn=True),
        dict(share_branches=False, decoder_self_attn=[False, True]),
        dict(decoder_depth=1, decoder_self_attn=True),
    ],
    ids=str,
)
@torch.no_grad()
def test_attention_maps_equal_the_decoders_attention(args, size):
    model, x = small_model(**args), torch.randn(2, 3, *size)
    expected = decoder_attention(model, x)
    logits, last = attention_maps(model, x, layers='last')
    assert torch.equal(logits, model(x))
    logits, every = attention_maps(model, x)
    assert torch.equal(logits, model(x))
    for got_last, got_all, want in zip(last, every, expected, strict=True):
        torch.testing.assert_close(got_last, want[-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got_all, torch.stack(want).mean(0), atol=1e-5, rtol=1e-4)
    # None of it could tell layers or labels apart if they all looked at the same places.
    assert torch.allclose(last[0], every[0], atol=1e-3) == (len(expected[0]) == 1)
    assert last[0].std(dim=1).max() > 1e-4


@pytest.mark.parametrize(
    ('size', 'grids'),
    [
        ((448, 448), [(28, 28), (14, 14), (7, 7)]),
        ((64, 160), [(4, 10), (2, 5), (1, 3)]),
        ((72, 100), [(5, 7), (3, 4), (2, 2)]),
    ],
)
def test_attention_maps_sum_to_one_over_the_grid(size, grids):
    _, maps = attention_maps(small_model(), torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, 6, *grid) for grid in grids]
    for m in maps:
        assert m.min() >= 0
        torch.testing.assert_close(m.sum((-1, -2)), torch.ones(2, 6))


@pytest.mark.parametrize('backbone', ['test_convnext', 'test_efficientnet', 'mobilenetv4_conv_small_035'])
def test_attention_maps_take_other_backbones(backbone):
    model, x = small_model(backbone=backbone), torch.randn(1, 3, 80, 112)
    logits, maps = attention_maps(model, x)
    grids = [scale.shape[-2:] for scale in model.projection(model.backbone(x))]
    assert [m.shape[-2:] for m in maps] == grids and torch.equal(logits, model(x))
    for m in maps:
        torch.testing.assert_close(m.sum((-1, -2)), torch.ones(1, 6))


@pytest.mark.parametrize('self_attn', [False, True])
def test_attention_maps_of_some_labels_equal_those_among_all(self_attn):
    model, x = small_model(decoder_self_attn=self_attn), torch.randn(2, 3, 64, 64)
    logits, everything = attention_maps(model, x)
    some_logits, some = attention_maps(model, x, labels=[4, 1])
    assert torch.equal(some_logits, logits)
    for m, want in zip(some, everything, strict=True):
        torch.testing.assert_close(m, want[:, [4, 1]])


def test_attention_maps_are_equal_for_labels_of_one_query():
    model, x = small_model(num_classes=5, max_queries=3), torch.randn(2, 3, 128, 128)
    _, maps = attention_maps(model, x)
    _, some = attention_maps(model, x, labels=[4, 1])
    for m, few in zip(maps, some, strict=True):
        assert m.shape[:2] == (2, 5)
        torch.testing.assert_close(few, m[:, [4, 1]])
        same = [[torch.allclose(m[:, i], m[:, j]) for j in range(5)] for i in range(5)]
        assert same == [[i // 2 == j // 2 for j in range(5)] for i in range(5)]


def test_attention_maps_sum_to_one_in_half_precision():
    model = small_model().to(torch.bfloat16)
    _, maps = attention_maps(model, torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))
    for m in maps:
        torch.testing.assert_close(m.sum((-1, -2)), torch.ones(1, 6))


def test_attention_maps_take_checkpointed_and_compiled_models():
    model, x = small_model(), torch.randn(1, 3, 64, 64)
    _, expected = attention_maps(model, x)
    model.set_grad_checkpointing()
    _, checkpointed = attention_maps(model, x)
    model.set_grad_checkpointing(False)
    model.compile(backend='eager')
    with torch.inference_mode():
        model(x)
    _, compiled = attention_maps(model, x)
    for maps in (checkpointed, compiled):
        torch.testing.assert_close(maps, expected)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_attention_maps_remove_their_hooks(monkeypatch):
    model = small_model()
    before = hooks(model)
    attention_maps(model, torch.randn(1, 3, 64, 64))
    assert hooks(model) == before
    with pytest.raises(ValueError, match='too small'):
        attention_maps(model, torch.randn(1, 3, 16, 16))
    assert hooks(model) == before

    def fail(z):
        assert hooks(model) > before
        raise RuntimeError('after the decoder')

    monkeypatch.setattr(model.classifier, 'forward', fail)
    with pytest.raises(RuntimeError, match='after the decoder'):
        attention_maps(model, torch.randn(1, 3, 64, 64))
    assert hooks(model) == before


def smooth_by_hand(shares: np.ndarray, y: float, x: float, size: tuple[int, int]) -> float:
    """Interpolates a map between the centres of its cells, at the centre of a pixel."""
    places = []
    for pixel, side, cells in zip((y, x), size, shares.shape, strict=True):
        at = min(max((pixel + 0.5) / side * cells - 0.5, 0), cells - 1)
        low = min(int(at), cells - 2)
        places.append((low, at - low))
    (row, down), (column, right) = places
    top, bottom = shares[row : row + 2, column : column + 2] @ [1 - right, right]
    return (1 - down) * top + down * bottom


def test_smooth_map_is_the_geometric_mean_of_the_interpolated_scales():
    rng, size = np.random.default_rng(0), (30, 40)
    maps = [rng.random((2, *grid)) for grid in ((6, 8), (3, 4), (2, 2))]
    smooth = smooth_map([torch.from_numpy(m / m.sum((1, 2), keepdims=True)) for m in maps], size)
    assert smooth.shape == (2, 30, 40)
    for k in range(2):
        by_scale = np.array([[[smooth_by_hand(m[k], y, x, size) for x in range(40)] for y in range(30)] for m in maps])
        expected = np.cbrt(by_scale.prod(0))
        np.testing.assert_allclose(smooth[k], expected / expected.max(), atol=1e-6)


def test_smooth_map_peaks_where_all_scales_attend():
    """A single bright cell of the finest scale is not the peak, and scales that exclude each other still have one."""
    fine, coarse = torch.ones(8, 8), torch.ones(2, 2)
    fine[0, 0], fine[6, 6], coarse[1, 1] = 40, 20, 4
    smooth = smooth_map([fine, coarse], (80, 80))
    y, x = divmod(smooth.argmax().item(), 80)
    assert (y // 10, x // 10) == (6, 6)
    apart = smooth_map([torch.eye(2)[0].repeat(2, 1), torch.eye(2)[1].repeat(2, 1)], (8, 8))
    assert apart.isfinite().all() and apart.max() == 1


@pytest.mark.parametrize('shape', [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize('size', [(1, 1), (10, 2000), (2000, 10), (300, 400)], ids=str)
def test_smooth_map_takes_any_size_and_number_of_maps(shape, size):
    torch.manual_seed(0)
    smooth = smooth_map([torch.rand(*shape, *grid) for grid in ((28, 28), (14, 14), (7, 7))], size)
    assert smooth.shape == (*shape, *size) and smooth.min() >= 0
    torch.testing.assert_close(smooth.amax((-1, -2)), torch.ones(shape))


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    [
        ('test_resnet', {}, 'ResNet has no attention of labels: only msff_* and q2l_* models'),
        ('msff_test_resnet', dict(features_only=True), 'has no attention of labels: only msff_*'),
        ('msff_test_resnet', dict(decoder_depth=0), 'needs region selection (decoder_depth of 1 or more)'),
        ('msff_test_resnet', dict(num_classes=0), 'has no labels (num_classes=0)'),
    ],
)
def test_attention_maps_refuse_other_models(name, args, message):
    model = timm.create_model(name, **args).eval()
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        attention_maps(model, torch.randn(1, 3, 64, 64))
    assert '\n' not in str(caught.value)


def test_explain_refuses_a_model_without_labels():
    with pytest.raises(InputError, match=re.escape('it has no labels (num_classes=0)')):
        explain(timm.create_model('msff_test_resnet', num_classes=0).eval(), 'gone.png')


def test_attention_maps_refuse_unknown_layers():
    with pytest.raises(InputError, match="unknown layers 'first'"):
        attention_maps(small_model(), torch.randn(1, 3, 64, 64), layers='first')


@torch.no_grad()
def test_attention_maps_equal_those_of_query2label():
    """The decoder of Query2Label, run layer by layer with PyTorch's own attention weights."""
    torch.manual_seed(0)
    model = timm.create_model('q2l_test_resnet', num_classes=5, decoder_depth=2).eval()
    x = torch.randn(2, 3, 96, 128)
    features = model.forward_features(x)
    memory = features.flatten(2).transpose(1, 2)
    key, queries = memory + sine_position(features), model.query_embed.weight
    z, expected = torch.zeros_like(queries).expand(2, -1, -1), []
    for layer in model.decoder.layers:
        expected.append(layer.attn(z + queries, key, memory, need_weights=True)[1].unflatten(-1, (3, 4)))
        z = layer(z, z + queries, key, memory)
    for layers, want in (('all', torch.stack(expected).mean(0)), ('last', expected[-1])):
        logits, (found,) = attention_maps(model, x, layers=layers)
        assert found.shape == (2, 5, 3, 4)
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(attention_maps(model, x, [4, 1])[1][0], torch.stack(expected).mean(0)[:, [4, 1]])
    assert not torch.allclose(expected[0], expected[1], atol=1e-3) and not any(
        m._forward_pre_hooks for m in model.modules()
    )
    assert has_attention(model) and not has_attention(timm.create_model('mldecoder_test_resnet'))


def test_smooth_map_is_0_where_a_map_is():
    maps = torch.zeros(2, 4, 4)
    maps[1, 2, 3] = 0.5
    found = smooth_map([maps], (16, 16))
    assert not found[0].any() and found[1].max() == 1
