import re
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from PIL import Image

from msff_timm.data.transforms import eval_transform
from msff_timm.errors import InputError
from msff_timm.inference.attention import attention_maps
from msff_timm.inference.explain import Explanation, draw, explain, smooth_overlay
from msff_timm.inference.predict import predict
from seer import COLOURS, PLACES, colour_model, decoder_attention, small_model


@pytest.fixture
def patches(tmp_path):
    """Creates a dark image, wider than the model's input, with a coloured patch in each cell of `PLACES`."""
    photo = Image.new('RGB', (300, 100), (30, 30, 30))
    for name, (row, column) in PLACES.items():
        photo.paste(COLOURS[name], (100 * column, 50 * row, 100 * column + 100, 50 * row + 50))
    path = tmp_path / 'patches.png'
    photo.save(path)
    return path


@pytest.mark.parametrize('share_branches', [True, False])
def test_explain_maps_peak_at_the_objects_of_their_labels(patches, share_branches):
    explanation = explain(colour_model(share_branches), patches, labels=list(PLACES))
    assert [m.shape for m in explanation.maps] == [(3, 8, 12), (3, 4, 6), (3, 2, 3)]
    for m in explanation.maps:
        height, width = m.shape[-2] // 2, m.shape[-1] // 3
        for shares, (row, column) in zip(m, PLACES.values(), strict=True):
            y, x = divmod(int(shares.argmax()), m.shape[-1])
            assert (y // height, x // width) == (row, column)
            cell = shares[row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert cell.sum() > 0.9


def test_smooth_overlay_shows_the_image_where_there_is_no_attention():
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


def test_draw_shows_the_smooth_map_at_the_objects_of_the_labels(patches, tmp_path):
    explain(colour_model(), patches, labels=list(PLACES), output=tmp_path / 'out.png')
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
    """Finds the panels of a figure row by row, without their edges; no panel may contain white."""
    pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
    filled = (pixels < 250).any(-1)
    rows = [run for run in runs(filled.mean(1) > 0.55) if run[1] - run[0] > 5]
    columns = [run for run in runs(filled[rows[0][0] : rows[0][1]].mean(0) > 0.9) if run[1] - run[0] > 5]
    return [[pixels[top + 3 : bottom - 3, left + 3 : right - 3] for left, right in columns] for top, bottom in rows]


def test_draw_is_brightest_where_the_map_is_greatest(patches, tmp_path):
    explanation = explain(colour_model(), patches, labels=list(PLACES))
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


def test_draw_keeps_the_aspect_ratio_of_the_image(patches, tmp_path):
    explain(colour_model(), patches, labels=['red'], output=tmp_path / 'out.png')
    photo = panels(tmp_path / 'out.png')[0][0]
    assert photo.shape[1] / photo.shape[0] == pytest.approx(3, rel=0.1)
    for name, (row, column) in PLACES.items():
        y, x = round((row + 0.5) / 2 * photo.shape[0]), round((column + 0.5) / 3 * photo.shape[1])
        assert photo[y, x].tolist() == pytest.approx(COLOURS[name], abs=2)


def test_explain_shows_the_part_that_the_model_crops(patches, tmp_path):
    model = colour_model()
    model.pretrained_cfg.update(input_size=(3, 128, 128), crop_mode='center')
    explanation = explain(model, patches, labels=['red', 'blue'], output=tmp_path / 'out.png')
    # The middle 100 x 100 of 300 x 100 pixels, whose lower half is blue
    photo, *overlays = panels(tmp_path / 'out.png')[1]
    assert all(panel.shape[0] == panel.shape[1] for panel in (photo, *overlays))
    assert photo[-20:, :, 2].min() > 200 and photo[:20].max() < 60
    assert explanation.maps[-1].shape == (2, 2, 2) and explanation.maps[-1][1, 1].sum() > 0.9


def test_explain_turns_images_upright(tmp_path):
    model = small_model()
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 200, (40, 80), dtype=np.uint8))
    grey.save(tmp_path / 'upright.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees clockwise for display
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
    """Returns a function that explains an image with given probabilities of 12 labels."""
    model = small_model(num_classes=12)
    nn.init.zeros_(model.classifier.weight)
    model.pretrained_cfg['label_names'] = [f'label {k}' for k in range(12)]
    photo = tmp_path / 'photo.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(photo)

    def explained(probabilities: list[float], *args, **kwargs) -> Explanation:
        model.classifier.bias.data = torch.tensor(probabilities).logit()
        return explain(model, photo, *args, **kwargs)

    return explained


def test_explain_chooses_labels_above_the_threshold_or_the_top_three(scored):
    low = [0.1] * 9
    assert scored([0.6, 0.9, 0.45, *low]).labels == pytest.approx({'label 1': 0.9, 'label 0': 0.6})
    assert list(scored([0.6, 0.9, 0.45, *low], threshold=0.4).labels) == ['label 1', 'label 0', 'label 2']
    assert list(scored([0.3, 0.4, 0.2, *low]).labels) == ['label 1', 'label 0', 'label 2']
    many = [0.6 + 0.03 * k for k in range(12)]
    assert list(scored(many).labels) == [f'label {k}' for k in range(11, 3, -1)]
    assert scored(many).maps[0].shape[0] == 8


def test_explain_uses_the_thresholds_and_probabilities_of_predict(tmp_path):
    model, path = small_model(num_classes=6), tmp_path / 'photo.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    model.thresholds, model.calibration = [0.2, 0.9, 0.4, 0.6, 0.5, 0.3], ([0.5] * 6, [-0.5] * 6)
    nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.25, 0.8, 0.45, 0.5, 0.6, 0.1]).logit()
    predicted = next(predict(model, [str(path)])).labels
    assert explain(model, path).labels == predicted and set(predicted) == {'0', '2', '4'}
    assert explain(model, path, threshold=0.5).labels == next(predict(model, [str(path)], threshold=0.5)).labels


@pytest.mark.parametrize('name', ['test_resnet', 'q2l_test_resnet'])
def test_explain_draws_a_single_map_of_other_models(name, patches, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    found = explain(model, patches, ['1', '2'], tmp_path / 'out.png')
    assert found.kind == ('Grad-CAM' if name == 'test_resnet' else 'attention')
    assert [m.shape[0] for m in found.maps] == [2] and (tmp_path / 'out.png').stat().st_size > 1000


def test_explain_keeps_the_order_of_named_labels(scored):
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
    model = small_model(num_classes=7, max_queries=3)
    model.pretrained_cfg.update(label_names=list('abcdefg'), input_size=(3, 96, 96))
    x = eval_transform(timm.data.resolve_model_data_config(model))(Image.open(tmp_path / 'x.png'))[None]
    expected = [torch.stack(layers).mean(0)[0] for layers in decoder_attention(model, x)]  # of the queries
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
    assert explain(model, tmp_path / 'x.png').labels  # chosen by probability


@pytest.mark.parametrize('in_chans', [1, 4])
def test_explain_takes_one_channel_and_refuses_four(in_chans, tmp_path):
    Image.new('RGB', (80, 60), 'teal').save(tmp_path / 'photo.png')
    model = small_model(in_chans=in_chans)
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
    model = small_model()
    model.position.table.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r'not finite \(position.table holds NaN or infinity\)'):
        explain(model, tmp_path / 'photo.png')


def test_explain_refuses_an_unknown_label(scored):
    with pytest.raises(InputError, match="unknown label 'lable 3': did you mean label 3?"):
        scored([0.5] * 12, ['label 1', 'lable 3'])


def test_explain_numbers_labels_without_names(tmp_path):
    Image.new('RGB', (64, 64), 'teal').save(tmp_path / 'photo.png')
    assert list(explain(small_model(), tmp_path / 'photo.png', ['5', '0']).labels) == ['5', '0']


def test_explain_refuses_an_unreadable_image():
    with pytest.raises(InputError, match=r'gone\.jpg: there is no such file'):
        explain(small_model(), 'gone.jpg')


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
def test_draw_cuts_nothing_off(size, names, least, greatest, tmp_path):
    maps = [torch.rand(len(names), *grid) for grid in ((28, 28), (14, 14), (7, 7))]
    draw(Image.new('RGB', size, 'teal'), dict.fromkeys(names, 0.5), maps, tmp_path / 'out.png')
    with Image.open(tmp_path / 'out.png') as figure:
        assert figure.format == 'PNG'
        assert least[0] <= figure.width <= greatest[0] and least[1] <= figure.height <= greatest[1]
        inside = np.asarray(figure.convert('L')) < 250
    assert not (inside[:4].any() or inside[-4:].any() or inside[:, :4].any() or inside[:, -4:].any())


def test_draw_shrinks_large_images(tmp_path):
    maps = [torch.rand(1, *grid) for grid in ((28, 28), (14, 14), (7, 7))]
    draw(Image.new('RGB', (6000, 4000), 'teal'), {'dog': 0.5}, maps, tmp_path / 'out.png')
    assert Image.open(tmp_path / 'out.png').width < 1600


def test_draw_takes_the_format_from_the_suffix(tmp_path):
    maps = [torch.rand(1, 2, 2)] * 3
    for name, kind in (('out', 'PNG'), ('out.PNG', 'PNG'), ('out.jpg', 'JPEG')):
        draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, maps, tmp_path / name)
        assert Image.open(tmp_path / name).format == kind
    with pytest.raises(InputError, match=r'out\.xyz: cannot be drawn') as caught:
        draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, maps, tmp_path / 'out.xyz')
    assert '\n' not in str(caught.value)


def test_draw_refuses_a_place_that_cannot_be_written(tmp_path):
    maps = [torch.rand(1, 2, 2)] * 3
    for place in (tmp_path / 'nowhere' / 'out.png', tmp_path):
        with pytest.raises(InputError, match=f'^{re.escape(str(place))}: cannot be written'):
            draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, maps, place)


def test_draw_names_the_extra_of_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(InputError, match=re.escape("pip install 'msff-timm[explain]'")):
        draw(Image.new('RGB', (64, 64)), {'dog': 0.5}, [torch.rand(1, 2, 2)] * 3, tmp_path / 'out.png')
