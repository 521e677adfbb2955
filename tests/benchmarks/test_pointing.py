"""Tests of the pointing game and Grad-CAM, on maps, boxes and models made by hand."""

import json
import sys

import datasets
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import pointing
from msff_timm.data.voc_files import VocBoxes
from msff_timm.errors import InputError
from msff_timm.inference.attention import smooth_map
from seer import COLOURS, PLACES, colour_model

pytestmark = pytest.mark.usefixtures('one_thread')
NAN = np.nan


@pytest.mark.parametrize(
    ('cell', 'place'), [((1, 2), (37, 63)), ((0, 0), (6, 6)), ((3, 3), (93, 93)), ((0, 2), (6, 63))]
)
def test_peak_is_centre_of_constant_area(cell, place):
    """Cells have 25 pixels; beyond the centres of the outer cells, a resized map is constant."""
    shares = torch.full((4, 4), 0.01)
    shares[cell] = 1
    row, column = pointing.peak(smooth_map([shares], (100, 100)))
    assert abs(row - place[0]) <= 1 and abs(column - place[1]) <= 1


def test_peak_is_a_pixel_with_greatest_value():
    heat = torch.zeros(5, 9)
    heat[[0, 4, 2], [0, 0, 8]] = 1
    assert pointing.peak(heat) == (0, 0)


def test_outcome_of_pixels_follows_boxes():
    boxes = VocBoxes(6, 4, {'cat': [(0, 0, 2, 1), (4.4, 2.6, 6, 4)], 'dog': [(0, 0, 6, 4)]}, {'cat': [(1, 0, 6, 2)]})
    expected = [
        [1, 1, NAN, NAN, NAN, NAN],
        [0, NAN, NAN, NAN, NAN, NAN],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(pointing.outcome_of_pixels(boxes, 'cat'), expected)
    rates = pointing.base_rates([boxes], ['cat', 'bird'])
    np.testing.assert_allclose(rates[pointing.UNIFORM], [[4 / 15, NAN]])
    np.testing.assert_allclose(rates[pointing.CENTRE], [[0, NAN]])  # row 2, column 3


def test_summarize_computes_intervals():
    rng = np.random.default_rng(0)
    outcomes = np.where(rng.random((400, 2)) < (0.8, 0.3), 1.0, 0.0)
    outcomes[300:, 1] = NAN
    draws = np.random.default_rng(1).multinomial(400, np.full(400, 1 / 400), size=1500)
    game = pointing.summarize(outcomes, ['cat', 'dog'], draws, counts=True)
    hits, number = int(np.nansum(outcomes[:, 1])), 300
    dog = game['labels']['dog']
    assert (dog['num_hits'], dog['num_counted']) == (hits, number) and dog['rate'] == pytest.approx(hits / 3)
    z, p = 1.959964, hits / number
    middle, half = p + z**2 / 2 / number, z * np.sqrt(p * (1 - p) / number + (z / 2 / number) ** 2)
    scale = 100 / (1 + z**2 / number)
    assert dog['interval_95'] == pytest.approx([scale * (middle - half), scale * (middle + half)], abs=1e-3)
    of_labels = [outcomes[:, 0].mean(), np.nanmean(outcomes[:, 1])]
    assert game['mean_over_labels'] == pytest.approx(100 * np.mean(of_labels))
    assert game['over_all_pairs'] == pytest.approx(100 * np.nanmean(outcomes)) and game['num_counted'] == 700
    error = np.sqrt(sum(p * (1 - p) / n for p, n in zip(of_labels, (400, 300), strict=True))) / 2
    low, high = game['interval_95']
    assert (low + high) / 2 == pytest.approx(game['mean_over_labels'], abs=0.5)
    assert high - low == pytest.approx(100 * 2 * 1.96 * error, rel=0.15)
    # A constant difference on the same images has no spread.
    other = outcomes - 0.25
    compared = pointing.difference(outcomes, other, draws)
    assert compared['mean_over_labels'] == pytest.approx(25) and compared['interval_95'] == pytest.approx([25, 25])


class PooledColours(nn.Module):
    """Plain model whose last map holds the colours, and whose logits are their means."""

    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.weight = nn.Parameter(torch.eye(3))
        self.pretrained_cfg = dict(
            input_size=(3, 64, 96),
            interpolation='bilinear',
            crop_pct=1.0,
            crop_mode='squash',
            mean=[0.5] * 3,
            std=[0.5] * 3,
            label_names=['blue', 'red', 'green'],
        )

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 16)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return (x.mean((2, 3)) @ self.weight)[:, [2, 0, 1]]


ELSEWHERE = (101, 1, 190, 40)
# Objects of each image: label, difficult, and corners of the box, counted from 1 and inclusive
OBJECTS = {
    'one': [
        ('red', 0, (201, 1, 300, 50)),
        ('green', 0, ELSEWHERE),
        ('blue', 0, ELSEWHERE),
        ('blue', 1, (101, 51, 200, 100)),
    ],
    'two': [('red', 0, (1, 1, 5, 5)), ('red', 0, (31, 1, 60, 46)), ('green', 1, (1, 46, 20, 90))],
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Data in VOC's layout, with labels of its own: two images with a patch of each colour, at `PLACES`."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    base = tmp_path / 'VOCdevkit' / 'VOC2012'
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (base / folder).mkdir(parents=True)
    for image_id, (width, height) in dict(one=(300, 100), two=(60, 90)).items():
        image = Image.new('RGB', (width, height), (30, 30, 30))
        for name, (row, column) in PLACES.items():
            image.paste(
                COLOURS[name],
                [
                    side // part * at
                    for side, part, at in (
                        (width, 3, column),
                        (height, 2, row),
                        (width, 3, column + 1),
                        (height, 2, row + 1),
                    )
                ],
            )
        image.save(base / 'JPEGImages' / f'{image_id}.png')
        objects = ''.join(
            f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>'
            + ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True))
            + '</bndbox></object>'
            for name, difficult, corners in OBJECTS[image_id]
        )
        size = f'<size><width>{width}</width><height>{height}</height></size>'
        (base / 'Annotations' / f'{image_id}.xml').write_text(f'<annotation>{size}{objects}</annotation>')
    main = base / 'ImageSets' / 'Main'
    (main / 'val.txt').write_text('one\ntwo\n')
    states = {'red': (1, 1), 'green': (1, 0), 'blue': (1, -1)}
    for name, (one, two) in states.items():
        (main / f'{name}_val.txt').write_text(f'one {one}\ntwo {two}\n')
    return base


def run(monkeypatch, models: dict[str, nn.Module], *arguments: str) -> None:
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    monkeypatch.setattr(pointing.hub, 'load', models.__getitem__)
    monkeypatch.setattr(sys, 'argv', ['pointing.py', '--data.workers=0', '--bootstrap=50', *arguments])
    pointing.main()


def test_main_counts_hits_in_original_pixels(root, tmp_path, monkeypatch, capsys):
    models = {'a': colour_model(), 'b': PooledColours()}
    output = tmp_path / 'results.json'
    run(monkeypatch, models, '--model=a', '--pooled=b', f'--data.root={root}', f'--output={output}')
    results = json.loads(output.read_text())
    assert (results['num_images'], results['num_pairs'], results['labels_left_out']) == (2, 4, [])
    assert results['data']['name'] == 'voc2012' and results['config']['bootstrap'] == 50
    for name in ('all scales', 'Grad-CAM'):
        game = results['pointing'][name]
        found = {label: (of['num_hits'], of['num_counted']) for label, of in game['labels'].items()}
        assert found == {'blue': (0, 0), 'green': (0, 1), 'red': (2, 2)}  # blue's peak is in its difficult box
        assert game['mean_over_labels'] == 50 and game['num_counted'] == 3 and game['num_without_peak'] == 0
    centre, uniform = (results['pointing'][name]['labels'] for name in ('centre', 'uniform'))
    assert [centre[label]['rate'] for label in ('blue', 'green', 'red')] == [None, 0, 50]  # row 50 of one, 45 of two
    elsewhere = 90 * 40
    assert uniform['green']['rate'] == pytest.approx(100 * elsewhere / 30000)
    assert uniform['blue']['rate'] == pytest.approx(100 * elsewhere / 25000)
    assert uniform['red']['rate'] == pytest.approx(100 * (5000 / 30000 + (25 + 30 * 46) / 5400) / 2)
    printed = capsys.readouterr().out
    assert 'a on voc2012 validation: 2 images, 4 image-label pairs.' in printed
    assert '| mean over labels | 50.0 |' in printed


def test_main_counts_map_of_zeros_as_miss(root, tmp_path, monkeypatch):
    model = PooledColours()
    nn.init.zeros_(model.weight)
    output = tmp_path / 'results.json'
    run(
        monkeypatch,
        {'a': colour_model(), 'b': model},
        '--model=a',
        '--pooled=b',
        f'--data.root={root}',
        f'--output={output}',
    )
    game = json.loads(output.read_text())['pointing']['Grad-CAM']
    assert game['mean_over_labels'] == 0 and game['num_counted'] == game['num_without_peak'] == 4


def test_main_rejects_unusable_models_and_data(root, monkeypatch):
    cropping = PooledColours()
    cropping.pretrained_cfg.update(crop_pct=0.875, crop_mode='center')
    models = {'a': colour_model(), 'b': cropping, 'c': PooledColours()}
    at = f'--data.root={root}'
    for arguments, message in (
        (['--model=a', '--pooled=b', at], r'b: crops images \(crop_mode center, crop_pct 0.875\)'),
        (['--model=c', at], 'PooledColours has no attention of labels'),
        (['--model=a', '--data.name=scenes'], 'data.name is scenes: must be voc2007 or voc2012'),
        (['--model=a', '--layers=first', at], "unknown layers 'first'"),
        (['--model=a', '--bootstrap=0', at], 'bootstrap is 0: must be at least 1'),
    ):
        with pytest.raises(InputError, match=message):
            run(monkeypatch, models, *arguments)
    (root / 'Annotations' / 'two.xml').write_text('<annotation></annotation>')
    with pytest.raises(InputError, match=r'two\.xml: lacks the size of the image'):
        run(monkeypatch, models, '--model=a', at)
