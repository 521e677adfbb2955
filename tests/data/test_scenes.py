import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from msff_timm.data import scenes

LAYOUTS = 4000
PUBLISHED_LAYOUTS = '9fa090407ee14a47'  # results are comparable only with the same value


@pytest.fixture(scope='module')
def layouts():
    return [scenes.layout(0, index) for index in range(LAYOUTS)]


DIGEST = """
import hashlib
from msff_timm.data import scenes
content = b''.join(scenes.draw(3, i, 64).tobytes() + repr(scenes.layout(3, i)).encode() for i in range({}, 40))
print(hashlib.sha256(content).hexdigest())
"""


def present(layouts):
    """Returns which labels (layouts, K) are in each layout."""
    return np.array([[k in {o.label for o in objects} for k in range(len(scenes.LABEL_NAMES))] for objects in layouts])


def test_draw_is_same_in_other_process(capsys):
    root = Path(scenes.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, '-c', DIGEST.format(0)], cwd=root, capture_output=True, text=True, check=True
    )
    exec(DIGEST.format(0), {})
    assert capsys.readouterr().out == result.stdout
    exec(DIGEST.format(1), {})
    assert capsys.readouterr().out != result.stdout


def test_layout_matches_published_results():
    content = repr([scenes.layout(0, index, split) for split in scenes.SPLITS for index in range(100)])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == PUBLISHED_LAYOUTS


def test_draw_depends_on_index_split_and_seed():
    keys = [(s, i, split) for s in (0, 1, 2**32) for i in range(20) for split in scenes.SPLITS]
    assert len({repr(scenes.layout(*key)) for key in keys}) == len(keys)
    assert len({scenes.draw(s, i, 32, split).tobytes() for s, i, split in keys}) == len(keys)


def test_draw_is_same_at_every_image_size():
    for index in range(20):
        small, large = (scenes.draw(0, index, size).resize((32, 32), Image.Resampling.BOX) for size in (64, 192))
        assert np.abs(np.asarray(small).astype(int) - np.asarray(large)).mean() < 12


def test_layout_has_expected_counts_sizes_and_angles(layouts):
    assert len(scenes.LABEL_NAMES) >= 12 and len(set(scenes.LABEL_NAMES)) == len(scenes.LABEL_NAMES)
    counts = Counter(len(objects) for objects in layouts)
    assert sorted(counts) == [1, 2, 3, 4, 5, 6] and min(counts.values()) > 0.12 * LAYOUTS
    objects = [o for objects in layouts for o in objects]
    sizes = np.array([o.size for o in objects])
    assert 0.06 <= sizes.min() < 0.07 and 0.58 < sizes.max() <= 0.6
    for low, high in ((0.06, 0.14), (0.14, 0.3), (0.3, 0.6)):
        assert ((sizes >= low) & (sizes < high)).mean() > 0.18
    turns = np.array([o.angle for o in objects]) / scenes.MAX_ANGLE
    assert np.abs(turns).max() <= 1 and np.histogram(turns, bins=8, range=(-1, 1))[0].min() > 0.1 * len(objects)
    assert all(0 <= value <= 255 for o in objects for value in (*o.fill, *o.outline))


def test_layout_balances_labels_and_areas(layouts):
    shares = present(layouts).mean(0)
    assert shares.min() > 0.2 and shares.max() < 0.3
    for k in range(len(scenes.LABEL_NAMES)):
        largest = [max(areas) for objects in layouts if (areas := [o.area for o in objects if o.label == k])]
        bands = np.histogram(largest, bins=(0, 0.01, 0.1, 1))[0] / len(largest)
        assert bands.min() > 0.15, (scenes.LABEL_NAMES[k], bands)


def test_layout_pairs_labels(layouts):
    there = present(layouts).astype(float)
    lift = (there.T @ there / LAYOUTS) / np.outer(there.mean(0), there.mean(0))
    pairs = [tuple(map(scenes.LABEL_NAMES.index, pair)) for pair in scenes.PAIRS]
    others = [lift[i, j] for i in range(len(lift)) for j in range(i) if (i, j) not in pairs and (j, i) not in pairs]
    assert min(lift[pair] for pair in pairs) > 1.7
    assert max(others) < 1.2


@pytest.mark.parametrize('label', range(len(scenes.LABEL_NAMES)), ids=scenes.LABEL_NAMES)
def test_area_matches_pixels(monkeypatch, label):
    for size, image_size in ((0.5, 256), (0.1, 1024)):
        images = []
        for colour in ((0, 0, 0), (255, 255, 255)):
            area = scenes.AREA_PER_SIZE * size**2
            one = scenes.SceneObject(label, (0.5, 0.47), size, 0.3, colour, colour, area)
            monkeypatch.setattr(scenes, '_compose', lambda *_, one=one: ([one], 80))
            images.append(np.asarray(scenes.draw(0, 0, image_size)).astype(int).mean(2))
        assert (images[1] - images[0] > 127).mean() == pytest.approx(one.area, rel=0.03)


def test_area_follows_size(layouts):
    areas, sizes = np.array([(o.area, o.size) for objects in layouts for o in objects]).T
    assert np.allclose(areas, scenes.AREA_PER_SIZE * sizes**2, rtol=1e-12, atol=0)


def test_layout_keeps_objects_visible_and_inside():
    image_size, seen, inside = 128, [], []
    for index in range(400):
        owner = np.full((image_size, image_size), -1)
        masks = []
        for i, one in enumerate(scenes.layout(0, index)):
            corner, shape, _ = scenes._stamp(one, image_size)
            canvas = Image.new('L', (image_size, image_size))
            canvas.paste(shape, corner)
            masks.append(np.asarray(canvas) > 127)
            owner[masks[-1]] = i
            inside.append(masks[-1].sum() / (np.asarray(shape) > 127).sum())
        seen += [(owner[mask] == i).mean() for i, mask in enumerate(masks)]
    assert min(inside) > 0.85
    assert np.mean(np.array(seen) < 1) > 0.15  # some overlap
    assert min(seen) > 0.4 and np.quantile(seen, 0.01) > 0.55


def test_layout_draws_colours_independent_of_labels(layouts):
    objects = [o for objects in layouts for o in objects]
    labels = np.array([o.label for o in objects])
    colours = np.array([(*o.fill, *o.outline) for o in objects], dtype=float)
    error = colours.std(0)
    for k in range(len(scenes.LABEL_NAMES)):
        of_label = colours[labels == k]
        assert np.abs((of_label.mean(0) - colours.mean(0)) / error * len(of_label) ** 0.5).max() < 4
        assert np.abs(of_label.std(0) / error - 1).max() < 0.1


def colour_statistics(image):
    """Returns mean, standard deviation and a histogram of 64 colours, the colour information for a linear model."""
    pixels = np.asarray(image).reshape(-1, 3)
    histogram = np.bincount((pixels >> 6) @ (16, 4, 1), minlength=64) / len(pixels)
    return np.concatenate([pixels.mean(0), pixels.std(0), histogram])


def linear_gain():
    """Returns average precision minus prevalence of a linear model on colour statistics, averaged over labels."""
    data = []
    for split, size in (('train', 1500), ('validation', 700)):
        images = np.array([colour_statistics(scenes.draw(0, i, 48, split)) for i in range(size)])
        data.append((images, present([scenes.layout(0, i, split) for i in range(size)])))
    (train_x, train_y), (test_x, test_y) = data
    gains = []
    for k in range(len(scenes.LABEL_NAMES)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(train_x, train_y[:, k])
        precision = average_precision_score(test_y[:, k], model.decision_function(test_x))
        gains.append(precision - test_y[:, k].mean())
    return np.mean(gains)


def test_colour_statistics_do_not_reveal_labels(monkeypatch):
    assert linear_gain() < 0.04

    compose = scenes._compose
    palette = np.random.default_rng(0).permutation(64)[: len(scenes.LABEL_NAMES)]
    colours = [tuple(int(v) for v in (c // 16 * 64 + 32, c // 4 % 4 * 64 + 32, c % 4 * 64 + 32)) for c in palette]

    def tied(*key):
        objects, tone = compose(*key)
        return [replace(o, fill=colours[o.label]) for o in objects], tone

    monkeypatch.setattr(scenes, '_compose', tied)
    assert linear_gain() > 0.2


def test_load_returns_layouts():
    data = scenes.load('validation', 50, image_size=48, seed=5)
    assert data.column_names == ['image', 'labels', 'ignore', 'area', 'image_id'] and len(data) == 50
    assert data.features['labels'].feature.names == list(scenes.LABEL_NAMES)
    assert data.features['area'].feature.dtype == 'float64' and data.features['image_id'].dtype == 'string'
    assert str(data.data.schema.field('image').type) == 'int64'
    for index, row in enumerate(data):
        objects = scenes.layout(5, index, 'validation')
        assert row['image'].mode == 'RGB' and row['image'] == scenes.draw(5, index, 48, 'validation')
        assert row['image_id'] == f'validation-{index}'
        assert row['labels'] == sorted({o.label for o in objects})
        largest = [max(o.area for o in objects if o.label == label) for label in row['labels']]
        assert row['area'] == pytest.approx(largest, rel=1e-12)


def test_load_returns_images_after_operations_of_datasets(tmp_path):
    data = scenes.load('train', 12, image_size=32)
    images = [scenes.draw(0, index, 32) for index in range(12)]
    assert data[2:5]['image'] == images[2:5] and data[-1]['image'] == images[-1]
    assert data['image'][3] == images[3]
    assert data.select([7, 1])[:]['image'] == [images[7], images[1]]
    shuffled = data.shuffle(seed=0)
    assert shuffled['image_id'][:] != data['image_id'][:]
    assert all(row['image'] == images[int(row['image_id'].removeprefix('train-'))] for row in shuffled)
    assert data.with_transform(lambda rows: {'size': [i.size for i in rows['image']]})[4]['size'] == (32, 32)
    assert data.with_format('torch')[4]['image'].shape == (3, 32, 32)
    assert pickle.loads(pickle.dumps(data))[4]['image'] == images[4]
    data.save_to_disk(tmp_path / 'scenes')
    again = datasets.load_from_disk(tmp_path / 'scenes')
    assert again.features == data.features and again[4]['image'] == images[4]


def to_arrays(rows):
    return {'pixels': [np.asarray(image) for image in rows['image']], 'image_id': rows['image_id']}


@pytest.mark.parametrize(('method', 'workers'), [('fork', 2), ('spawn', 1)])
def test_load_draws_same_images_in_workers(method, workers):
    data = scenes.load('test', 6, image_size=32).with_transform(to_arrays)
    loader = DataLoader(data, batch_size=3, num_workers=workers, multiprocessing_context=method)
    batches = list(loader)
    assert [i for batch in batches for i in batch['image_id']] == [f'test-{index}' for index in range(6)]
    for index in range(6):
        expected = np.asarray(scenes.draw(0, index, 32, 'test'))
        assert np.array_equal(batches[index // 3]['pixels'][index % 3].numpy(), expected)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('training', 5), "unknown split of scenes 'training': did you mean train?"),
        (('train', 0), 'size is 0: must be at least 1.'),
    ],
)
def test_load_refuses_invalid_arguments(arguments, message):
    with pytest.raises(ValueError) as caught:
        scenes.load(*arguments)
    assert str(caught.value) == message
