import re
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from PIL import Image
from seer import COLOURS, PLACES, seer_of_colours

from msff_timm.data.transforms import eval_transform
from msff_timm.errors import InputError
from msff_timm.inference.explain import Explanation, attention_maps, draw, explain, smooth_map, smooth_overlay

SMALL = dict(num_classes=6, embed_dim=24, num_heads=4, ffn_dim=32, encoder_depth=1, decoder_depth=2)


@torch.no_grad()
def small(**args) -> nn.Module:
    """Makes a model whose labels and places differ: those of a new one hardly do, its residual branches are 0."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', **{**SMALL, **args})
    for part in (model.position, model.enhancement, model.selection, model.label_embed):
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model.eval()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def pytorchs(ours: nn.Module) -> nn.MultiheadAttention:
    """Copies an attention layer into PyTorch's own."""
    theirs = nn.MultiheadAttention(ours.q.in_features, ours.num_heads, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight])
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias])
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    return theirs.eval()


def by_hand(model: nn.Module, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Runs the decoder layer by layer: for each scale, the attention of each layer (B, K, H_i, W_i)."""
    scales = model.projection(model.backbone(x))
    tokens = model.enhancement(model.position(model.scale_attention(scales)))
    maps = []
    for i, (scale, memory) in enumerate(zip(scales, tokens, strict=True)):
        branch = i if len(model.selection.branches) == 3 else 0
        z = model.label_embed.weight[:, branch * 24 : (branch + 1) * 24].expand(len(x), -1, -1)
        maps.append([])
        for layer in model.selection.branches[branch]:
            if layer.self_attn is not None:
                z = layer.norm0(z + pytorchs(layer.self_attn)(z, z, z)[0])
            found, weights = pytorchs(layer.attn)(z, memory, memory, need_weights=True, average_attn_weights=True)
            z = layer.norm1(z + found)
            z = layer.norm2(z + layer.ffn(z))
            maps[-1].append(weights.reshape(*weights.shape[:2], *scale.shape[-2:]))
    return maps


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
def test_maps_are_the_attention_of_the_decoder(args, size):
    model, x = small(**args), torch.randn(2, 3, *size)
    expected = by_hand(model, x)
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
def test_each_map_is_a_distribution_over_the_grid(size, grids):
    _, maps = attention_maps(small(), torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, 6, *grid) for grid in grids]
    for m in maps:
        assert m.min() >= 0
        torch.testing.assert_close(m.sum((-1, -2)), torch.ones(2, 6))


@pytest.mark.parametrize('backbone', ['test_convnext', 'test_efficientnet', 'mobilenetv4_conv_small_035'])
def test_maps_of_other_backbones(backbone):
    model, x = small(backbone=backbone), torch.randn(1, 3, 80, 112)
    logits, maps = attention_maps(model, x)
    grids = [scale.shape[-2:] for scale in model.projection(model.backbone(x))]
    assert [m.shape[-2:] for m in maps] == grids and torch.equal(logits, model(x))
    for m in maps:
        torch.testing.assert_close(m.sum((-1, -2)), torch.ones(1, 6))


@pytest.mark.parametrize('self_attn', [False, True])
def test_labels_asked_for_have_the_maps_that_they_have_among_all(self_attn):
    model, x = small(decoder_self_attn=self_attn), torch.randn(2, 3, 64, 64)
    logits, everything = attention_maps(model, x)
    some_logits, some = attention_maps(model, x, labels=[4, 1])
    assert torch.equal(some_logits, logits)
    for m, want in zip(some, everything, strict=True):
        torch.testing.assert_close(m, want[:, [4, 1]])


def test_labels_of_one_query_have_its_maps():
    model, x = small(num_classes=5, max_queries=3), torch.randn(2, 3, 128, 128)
    _, maps = attention_maps(model, x)
    _, some = attention_maps(model, x, labels=[4, 1])
    for m, few in zip(maps, some, strict=True):
        assert m.shape[:2] == (2, 5)
        torch.testing.assert_close(few, m[:, [4, 1]])
        same = [[torch.allclose(m[:, i], m[:, j]) for j in range(5)] for i in range(5)]
        assert same == [[i // 2 == j // 2 for j in range(5)] for i in range(5)]


def test_half_precision_still_gives_distributions():
    model = small().to(torch.bfloat16)
    _, maps = attention_maps(model, torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))
    for m in maps:
        torch.testing.assert_close(m.sum((-1, -2)), torch.ones(1, 6))


def test_checkpointed_and_compiled_models_give_the_same_maps():
    model, x = small(), torch.randn(1, 3, 64, 64)
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


def test_no_hook_stays_behind(monkeypatch):
    model = small()
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


@pytest.fixture
def patches(tmp_path):
    """A photo of another shape than the model's input, dark but for three patches in the cells of `PLACES`."""
    photo = Image.new('RGB', (300, 100), (30, 30, 30))
    for name, (row, column) in PLACES.items():
        photo.paste(COLOURS[name], (100 * column, 50 * row, 100 * column + 100, 50 * row + 50))
    path = tmp_path / 'patches.png'
    photo.save(path)
    return path


@pytest.mark.parametrize('share_branches', [True, False])
def test_maps_are_greatest_where_a_label_must_look(patches, share_branches):
    explanation = explain(seer_of_colours(share_branches), patches, labels=list(PLACES))
    assert [m.shape for m in explanation.maps] == [(3, 8, 12), (3, 4, 6), (3, 2, 3)]
    for m in explanation.maps:
        height, width = m.shape[-2] // 2, m.shape[-1] // 3
        for shares, (row, column) in zip(m, PLACES.values(), strict=True):
            y, x = divmod(int(shares.argmax()), m.shape[-1])
            assert (y // height, x // width) == (row, column)
            cell = shares[row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert cell.sum() > 0.9


def smooth_by_hand(shares: np.ndarray, y: float, x: float, size: tuple[int, int]) -> float:
    """Interpolates one map between the centres of its cells, at the centre of a pixel of an image."""
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


def test_smooth_map_shows_where_all_scales_look():
    """A single bright cell of the finest scale is not the peak, nor do scales that exclude each other give none."""
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


def test_smooth_overlay_leaves_the_image_where_there_is_no_attention():
    shares = torch.zeros(4, 4)
    shares[1, 2] = 1
    image = Image.new('RGB', (120, 80), (200, 100, 40))
    drawn = np.asarray(smooth_overlay(image, [shares] * 3)).astype(int)
    assert drawn.shape == (80, 120, 3)
    grey = image.convert('L').getpixel((0, 0))
    assert np.abs(drawn[60:] - [(c + grey) / 2 for c in (200, 100, 40)]).max() <= 1
    y, x = np.unravel_index((drawn[..., 0] + drawn[..., 1] - drawn[..., 2]).argmax(), (80, 120))
    assert (y // 20, x // 30) == (1, 2) and drawn[y, x, 1] - drawn[y, x, 2] > 60  # yellow
    # No edge of a cell shows: neighbours differ by little.
    assert max(np.abs(np.diff(drawn, axis=axis)).max() for axis in (0, 1)) < 60


def test_the_figure_shows_all_scales_where_a_label_must_look(patches, tmp_path):
    explain(seer_of_colours(), patches, labels=list(PLACES), output=tmp_path / 'out.png')
    for (photo, smooth, *_), (row, column) in zip(panels(tmp_path / 'out.png'), PLACES.values(), strict=True):
        warmth = smooth[..., 0] + smooth[..., 1] - 2 * smooth[..., 2]
        warmth = warmth - (photo[..., 0] + photo[..., 1] - 2 * photo[..., 2]) / 2
        y, x = np.unravel_index(warmth.argmax(), warmth.shape)
        assert (y * 2 // smooth.shape[0], x * 3 // smooth.shape[1]) == (row, column)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Lists where a line of booleans is True, as (start, stop)."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(int), 1)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def panels(path) -> list[list[np.ndarray]]:
    """Finds the panels of a image that has no white within them, row by row, without their edges."""
    pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
    filled = (pixels < 250).any(-1)
    rows = [run for run in runs(filled.mean(1) > 0.55) if run[1] - run[0] > 5]
    columns = [run for run in runs(filled[rows[0][0] : rows[0][1]].mean(0) > 0.9) if run[1] - run[0] > 5]
    return [[pixels[top + 3 : bottom - 3, left + 3 : right - 3] for left, right in columns] for top, bottom in rows]


def test_the_picture_is_warmest_where_the_map_is_greatest(patches, tmp_path):
    explanation = explain(seer_of_colours(), patches, labels=list(PLACES))
    draw(Image.new('RGB', (300, 100), 'gray'), explanation.labels, explanation.maps, tmp_path / 'out.png')
    found = panels(tmp_path / 'out.png')
    assert [len(row) for row in found] == [5, 5, 5]
    for (photo, _, *overlays), (row, column) in zip(found, PLACES.values(), strict=True):
        assert photo.shape[1] / photo.shape[0] == pytest.approx(3, rel=0.1) and np.ptp(photo) == 0
        for overlay in overlays:
            assert overlay.shape[1] / overlay.shape[0] == pytest.approx(3, rel=0.1)
            brightness = overlay.sum(-1)
            brightest = brightness == brightness.max()
            y, x = (int(np.median(places)) for places in np.nonzero(brightest))
            assert (y * 2 // overlay.shape[0], x * 3 // overlay.shape[1]) == (row, column)
            assert overlay[y, x, 0] - overlay[y, x, 2] > 40 and brightness.max() > 2 * np.median(brightness)
            assert brightest.mean() > 0.8 / (4 * 6)  # cells have edges, within which there is one colour


def test_the_picture_shows_the_photo_in_its_own_shape(patches, tmp_path):
    explain(seer_of_colours(), patches, labels=['red'], output=tmp_path / 'out.png')
    photo = panels(tmp_path / 'out.png')[0][0]
    assert photo.shape[1] / photo.shape[0] == pytest.approx(3, rel=0.1)
    for name, (row, column) in PLACES.items():
        y, x = round((row + 0.5) / 2 * photo.shape[0]), round((column + 0.5) / 3 * photo.shape[1])
        assert photo[y, x].tolist() == pytest.approx(COLOURS[name], abs=2)


def test_a_photo_that_the_model_sees_a_part_of_is_shown_in_part(patches, tmp_path):
    model = seer_of_colours()
    model.pretrained_cfg.update(input_size=(3, 128, 128), crop_mode='center')
    explanation = explain(model, patches, labels=['red', 'blue'], output=tmp_path / 'out.png')
    # Of 300 x 100 pixels that is the middle 100 x 100, of which the lower half is blue.
    photo, *overlays = panels(tmp_path / 'out.png')[1]
    assert all(panel.shape[0] == panel.shape[1] for panel in (photo, *overlays))
    assert photo[-20:, :, 2].min() > 200 and photo[:20].max() < 60
    assert explanation.maps[-1].shape == (2, 2, 2) and explanation.maps[-1][1, 1].sum() > 0.9


def test_grey_and_turned_photos_are_explained_upright(tmp_path):
    model = small()
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 200, (40, 80), dtype=np.uint8))
    grey.save(tmp_path / 'upright.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    grey.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    upright, turned = (
        explain(model, tmp_path / n, ['3'], tmp_path / f'out-{n}') for n in ('upright.png', 'turned.png')
    )
    assert upright.labels == turned.labels
    torch.testing.assert_close(upright.maps, turned.maps)
    assert (tmp_path / 'out-upright.png').read_bytes() == (tmp_path / 'out-turned.png').read_bytes()
    photo = panels(tmp_path / 'out-turned.png')[0][0]
    assert photo.shape[1] / photo.shape[0] == pytest.approx(2, rel=0.1)


@pytest.fixture
def scored(tmp_path):
    """A model of 12 labels with known probabilities, and a photo."""
    model = small(num_classes=12)
    nn.init.zeros_(model.classifier.weight)
    model.pretrained_cfg['label_names'] = [f'label {k}' for k in range(12)]
    photo = tmp_path / 'photo.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(photo)

    def explained(probabilities: list[float], *args, **kwargs) -> Explanation:
        model.classifier.bias.data = torch.tensor(probabilities).logit()
        return explain(model, photo, *args, **kwargs)

    return explained


def test_labels_are_those_above_the_threshold_or_else_the_three_most_probable(scored):
    low = [0.1] * 9
    assert scored([0.6, 0.9, 0.45, *low]).labels == pytest.approx({'label 1': 0.9, 'label 0': 0.6})
    assert list(scored([0.6, 0.9, 0.45, *low], threshold=0.4).labels) == ['label 1', 'label 0', 'label 2']
    assert list(scored([0.3, 0.4, 0.2, *low]).labels) == ['label 1', 'label 0', 'label 2']
    many = [0.6 + 0.03 * k for k in range(12)]
    assert list(scored(many).labels) == [f'label {k}' for k in range(11, 3, -1)]
    assert scored(many).maps[0].shape[0] == 8


def test_labels_that_are_named_come_as_named(scored):
    explanation = scored([0.05 * (k + 1) for k in range(12)], ['label 7', 'label 2', 'label 7'])
    assert explanation.labels == pytest.approx({'label 7': 0.4, 'label 2': 0.15})
    assert list(explanation.labels) == ['label 7', 'label 2'] and [len(m) for m in explanation.maps] == [2, 2, 2]
    everything = scored([0.5] * 12, [f'label {k}' for k in range(12)])
    for some, m in zip(explanation.maps, everything.maps, strict=True):
        torch.testing.assert_close(some, m[[7, 2]])


@torch.no_grad()
def test_explain_gives_each_label_the_map_of_its_own_group(tmp_path):
    """7 labels on 3 queries: 0 to 2, 3 to 5, and 6."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / 'x.png')
    model = small(num_classes=7, max_queries=3)
    model.pretrained_cfg.update(label_names=list('abcdefg'), input_size=(3, 96, 96))
    x = eval_transform(timm.data.resolve_model_data_config(model))(Image.open(tmp_path / 'x.png'))[None]
    expected = [torch.stack(layers).mean(0)[0] for layers in by_hand(model, x)]  # of the queries
    assert len(expected[0]) == 3 and (expected[0][0] - expected[0][1]).abs().max() > 1e-4
    names = list('gdabcfe')
    for k, name in enumerate(names):
        alone = explain(model, tmp_path / 'x.png', [name]).maps
        together = explain(model, tmp_path / 'x.png', names).maps
        _, every = attention_maps(model, x, [-7 + 'abcdefg'.index(name)])  # counted from the end
        for one, several, of_index, want in zip(alone, together, every, expected, strict=True):
            query = want[dict(a=0, b=0, c=0, d=1, e=1, f=1, g=2)[name]]
            torch.testing.assert_close(one[0], query, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(several[k], query, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(of_index[0, 0], query, atol=1e-5, rtol=1e-4)
    assert explain(model, tmp_path / 'x.png').labels  # those that are chosen by themselves


@pytest.mark.parametrize('in_chans', [1, 4])
def test_explain_turns_photos_gray_for_one_channel_and_refuses_four(in_chans, tmp_path):
    Image.new('RGB', (80, 60), 'teal').save(tmp_path / 'photo.png')
    model = small(in_chans=in_chans)
    if in_chans == 4:
        with pytest.raises(InputError, match='the model takes 4 channels, and images are read with 3'):
            explain(model, tmp_path / 'photo.png')
        return
    explanation = explain(torch.compile(model), tmp_path / 'photo.png', ['2'], tmp_path / 'out.png')
    size = timm.data.resolve_input_data_config(model)['input_size']
    assert size[0] == 1
    gray = torch.full((1, *size), (Image.new('RGB', (1, 1), 'teal').convert('L').getpixel((0, 0)) / 255 - 0.5) / 0.5)
    assert explanation.labels['2'] == pytest.approx(model(gray)[0, 2].sigmoid().item(), abs=1e-5)


def test_explain_names_weights_that_are_not_finite(tmp_path):
    Image.new('RGB', (64, 64), 'teal').save(tmp_path / 'photo.png')
    model = small()
    model.position.table.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r'not finite \(position.table holds NaN or infinity\)'):
        explain(model, tmp_path / 'photo.png')


def test_a_label_that_the_model_lacks_is_refused(scored):
    with pytest.raises(InputError, match="unknown label 'lable 3': did you mean label 3?"):
        scored([0.5] * 12, ['label 1', 'lable 3'])


def test_a_model_without_label_names_has_numbers(tmp_path):
    Image.new('RGB', (64, 64), 'teal').save(tmp_path / 'photo.png')
    assert list(explain(small(), tmp_path / 'photo.png', ['5', '0']).labels) == ['5', '0']


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    [
        ('test_resnet', {}, 'ResNet cannot be explained: only an MSFF model (msff_*)'),
        ('msff_test_resnet', dict(features_only=True), 'cannot be explained: only an MSFF model (msff_*)'),
        ('msff_test_resnet', dict(decoder_depth=0), 'needs region selection (decoder_depth of 1 or more)'),
        ('msff_test_resnet', dict(num_classes=0), 'has no labels (num_classes=0)'),
    ],
)
def test_models_that_cannot_be_explained_are_refused(name, args, message):
    model = timm.create_model(name, **args).eval()
    for call in (lambda: attention_maps(model, torch.randn(1, 3, 64, 64)), lambda: explain(model, 'gone.png')):
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            call()
        assert '\n' not in str(caught.value)


def test_layers_that_are_unknown_are_refused():
    with pytest.raises(InputError, match="unknown layers 'first'"):
        attention_maps(small(), torch.randn(1, 3, 64, 64), layers='first')


def test_an_unreadable_photo_is_refused():
    with pytest.raises(InputError, match=r'gone\.jpg: there is no such file'):
        explain(small(), 'gone.jpg')


LONG = 'a name of which many words, as in some taxonomies, say what it is ' + 8 * 'and what it is not '


@pytest.mark.parametrize(
    ('size', 'names', 'least', 'greatest'),
    [
        ((640, 480), ['dog'], (1400, 200), (1600, 400)),
        ((480, 640), [f'label {k}' for k in range(8)], (1000, 2400), (1600, 3200)),
        ((640, 480), [LONG, '$x_{1$', 'W' * 200], (1400, 700), (1800, 1200)),
        ((2000, 10), ['wide'], (1400, 50), (1600, 200)),
        ((10, 2000), ['high'], (900, 250), (1600, 450)),
    ],
)
def test_pictures_have_sane_sizes_and_nothing_of_them_is_cut(size, names, least, greatest, tmp_path):
    maps = [torch.rand(len(names), *grid) for grid in ((28, 28), (14, 14), (7, 7))]
    draw(Image.new('RGB', size, 'teal'), dict.fromkeys(names, 0.5), maps, tmp_path / 'out.png')
    with Image.open(tmp_path / 'out.png') as picture:
        assert picture.format == 'PNG'
        assert least[0] <= picture.width <= greatest[0] and least[1] <= picture.height <= greatest[1]
        inside = np.asarray(picture.convert('L')) < 250
    assert not (inside[:4].any() or inside[-4:].any() or inside[:, :4].any() or inside[:, -4:].any())


def test_a_large_photo_is_not_drawn_dot_by_dot(tmp_path):
    maps = [torch.rand(1, *grid) for grid in ((28, 28), (14, 14), (7, 7))]
    draw(Image.new('RGB', (6000, 4000), 'teal'), {'dog': 0.5}, maps, tmp_path / 'out.png')
    assert Image.open(tmp_path / 'out.png').width < 1600


def test_the_suffix_names_the_format(tmp_path):
    maps = [torch.rand(1, 2, 2)] * 3
    for name, kind in (('out', 'PNG'), ('out.PNG', 'PNG'), ('out.jpg', 'JPEG')):
        draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, maps, tmp_path / name)
        assert Image.open(tmp_path / name).format == kind
    with pytest.raises(InputError, match=r'out\.xyz: cannot be drawn') as caught:
        draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, maps, tmp_path / 'out.xyz')
    assert '\n' not in str(caught.value)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    maps = [torch.rand(1, 2, 2)] * 3
    for place in (tmp_path / 'nowhere' / 'out.png', tmp_path):
        with pytest.raises(InputError, match=f'^{re.escape(str(place))}: cannot be written'):
            draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, maps, place)


def test_drawing_without_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(InputError, match=re.escape("pip install 'msff-timm[explain]'")):
        draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, [torch.rand(1, 2, 2)] * 3, tmp_path / 'out.png')
