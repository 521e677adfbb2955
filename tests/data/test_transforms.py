import json
import pickle
import random

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torch.utils.data import default_collate

import msff_timm  # noqa: F401  registers the models
from msff_timm.data.images import open_image
from msff_timm.data.transforms import Cutout, Normalize, describe_transforms, eval_transform, train_transform
from msff_timm.errors import InputError
from msff_timm.training.config import DataConfig


@pytest.fixture
def data_config():
    model = timm.create_model('msff_test_resnet')
    return timm.data.resolve_model_data_config(model, {'img_size': 32})


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def by_hand(photo):
    pixels = np.asarray(photo.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)


def test_eval_transform_resizes_whole_image_to_square(data_config, photo):
    torch.testing.assert_close(eval_transform(data_config)(photo), by_hand(photo))


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'lanczos', 'nearest'])
@pytest.mark.parametrize('size', [(60, 40), (32, 32), (20, 90)])
def test_train_transform_without_augmentation_matches_evaluation(data_config, interpolation, size):
    config = {**data_config, 'interpolation': interpolation, 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25)}
    config |= {'crop_pct': 1.0, 'crop_mode': 'squash'}
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    ours, theirs = train_transform(config, None, 0.0)(photo), eval_transform(config)(photo)
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    ours = Normalize(config)(ours)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    levels = (ours - theirs).abs() * torch.tensor(config['std'])[:, None, None] * 255
    assert levels.max() < (1.001 if interpolation == 'bilinear' else 0.001)  # of 255, plus rounding of float32


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_train_transform_resizes_photos_as_evaluation(data_config, coco_root, interpolation):
    config = {**data_config, 'input_size': (3, 448, 448), 'interpolation': interpolation}
    ours, theirs = train_transform(config, None, 0.0), eval_transform(config)
    for path in sorted((coco_root / 'val2014').iterdir())[:8]:
        photo = open_image(path)
        levels = (Normalize(config)(ours(photo)) - theirs(photo)).abs() * 127.5
        assert levels.max() < 1.001 and levels.mean() < 0.25


def test_normalize_matches_calculation_by_hand(data_config):
    config = {**data_config, 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25)}
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = (pixels / 255 - config['mean']) / config['std']
    result = Normalize(config)(train_transform(config, None, 0.0)(Image.fromarray(pixels)))
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-5)


def test_train_transform_has_input_size_and_pickles(data_config, photo):
    config = {**data_config, 'input_size': (3, 16, 24)}
    transform = pickle.loads(pickle.dumps(train_transform(config, 'rand-m9-n2-mstd0.5', 0.5)))
    assert transform.input_size == (16, 24) and transform(photo).shape == (3, 16, 24)


def test_cutout_fills_with_mean_colour(data_config):
    torch.manual_seed(0)
    result = Normalize(data_config)(train_transform(data_config, None, 0.5)(Image.new('RGB', (32, 32), 'white')))
    hole = (result * 127.5).abs() < 0.501  # the mean of 0.5 is between two bytes
    assert 64 <= hole[0].sum() <= 256


def test_eval_transform_as_bytes_matches_floats(data_config, photo):
    pixels = default_collate([eval_transform(data_config, as_bytes=True)(photo)])
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(Normalize(data_config)(pixels)[0], eval_transform(data_config)(photo))


@pytest.mark.parametrize(
    'text', ['rand-m9-n2-mstd0.5', 'rand', 'rand-m9-n3-p1-inc1', 'rand-m15-mmax20-tweights', 'rand-n1-p0.25-t3a']
)
def test_rand_augment_accepts_strings_of_timm(data_config, photo, text):
    transform = train_transform(data_config, text, 0.0)
    (augment,) = transform.augment.transforms
    assert [op.hparams['interpolation'] for op in augment.ops] == [0] * len(augment.ops)  # nearest
    assert transform(photo).shape == (3, 32, 32)


@pytest.mark.parametrize(
    'text', ['rand-x9', 'm9-n2', 'rand-m', 'rand-m9_n2', 'augmix-m3', 'rand-m9-n0', 'rand-p1.5', 'rand-tother', 'rand-']
)
def test_rand_augment_refuses_invalid_strings(data_config, text):
    with pytest.raises(InputError, match='data.rand_augment is .*rand-m9-n2-mstd0.5') as e:
        train_transform(data_config, text, 0.0)
    assert repr(text) in str(e.value) and '\n' not in str(e.value)


def test_describe_transforms_returns_json(data_config):
    record = describe_transforms(data_config, 'rand-m9-n2-mstd0.5', 0.5)
    assert json.loads(json.dumps(record)) == {
        'resize': 'squash',
        'crop_scale': None,
        'crop_ratio': None,
        'interpolation': 'bilinear',
        'hflip': 0.0,
        'rand_augment': 'rand-m9-n2-mstd0.5',
        'rand_augment_interpolation': 'nearest',
        'color_jitter': 0.0,
        'cutout': 0.5,
    }
    augmentation = DataConfig(hflip=0.5, crop_scale=[0.3, 1.0], color_jitter=0.2).augmentation
    record = describe_transforms(data_config, **augmentation)
    assert json.loads(json.dumps(record)).items() >= {**augmentation, 'resize': 'random_resized_crop'}.items()
    assert describe_transforms(data_config, None, 0.0)['rand_augment_interpolation'] is None


def test_rand_augment_changes_the_image(data_config, photo):
    random.seed(0)
    np.random.seed(0)
    transform = train_transform(data_config, 'rand-m9-n2-mstd0.5', 0.0)
    results = [transform(photo) for _ in range(10)]
    assert all(result.shape == (3, 32, 32) for result in results)
    assert len({result.numpy().tobytes() for result in results}) > 5


SEEDS = st.integers(0, 2**31 - 1)


def drawn(transform, image, seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(image)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=SEEDS,
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    color_jitter=st.sampled_from([0.0, 0.4]),
    scale=st.sampled_from([[0.08, 1.0], [0.5, 0.6], [1.0, 1.0]]),
    ratio=st.sampled_from([[3 / 4, 4 / 3], [1.0, 1.0]]),
    interpolation=st.sampled_from(['bilinear', 'bicubic', 'lanczos']),
)
def test_train_transform_crops_flips_and_colours_as_timm(
    data_config, photo, seed, hflip, color_jitter, scale, ratio, interpolation
):
    config = {**data_config, 'input_size': (3, 24, 36), 'interpolation': interpolation}
    ours = train_transform(config, None, 0.0, hflip, scale, ratio, color_jitter)
    theirs = timm.data.create_transform(
        (3, 24, 36), is_training=True, use_prefetcher=True, scale=scale, ratio=ratio, hflip=hflip,
        color_jitter=color_jitter or None, interpolation=interpolation,
    )  # fmt: skip
    assert torch.equal(drawn(ours, photo, seed), drawn(theirs, photo, seed))


def test_train_transform_orders_colours_as_timm(data_config):
    transform = train_transform(data_config, 'rand-m9', 0.0, hflip=0.5, color_jitter=0.4)
    config = {'auto_augment': 'rand-m9', 'force_color_jitter': True, 'color_jitter': 0.4, 'hflip': 0.5}
    theirs = transforms_imagenet_train(32, **config).transforms
    assert [type(step) for step in transform.augment.transforms] == [type(step) for step in theirs[1:4]]
    assert repr(transform.augment.transforms[-1]) == repr(theirs[3])


def test_train_transform_flips_with_probability(data_config):
    image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    transform, plain = train_transform(data_config, None, 0.0, hflip=0.3), np.asarray(image).transpose(2, 0, 1)
    mirrored = 0
    for seed in range(1000):
        result = drawn(transform, image, seed).numpy()
        mirrored += np.array_equal(result, plain[..., ::-1])
        assert np.array_equal(result, plain) or np.array_equal(result, plain[..., ::-1])
    assert 300 - 4 * 14.5 < mirrored < 300 + 4 * 14.5


def test_train_transform_is_deterministic_by_default(data_config, photo):
    drawn(train_transform(data_config, None, 0.0), photo, 0)
    after = random.random(), np.random.rand(), torch.rand(1).item()
    assert after == drawn(lambda image: (random.random(), np.random.rand(), torch.rand(1).item()), photo, 0)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS, low=st.floats(0.05, 1), wide=st.floats(1, 3), width=st.floats(0.3, 3))
def test_decode_size_avoids_enlarged_crops(data_config, seed, low, wide, width):
    transform = train_transform(data_config, None, 0.0, crop_scale=[low, 1.0], crop_ratio=[1 / wide, wide])
    side = transform.decode_size[0]
    image = Image.new('RGB', (max(side, round(side * width)), max(side, round(side / width))))
    random.seed(seed)
    _, _, height, width = transform.crop.get_params(image, transform.crop.scale, transform.crop.ratio)
    assert min(height, width) >= 31  # up to rounding


def test_decode_size_suffices_for_crops(data_config, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / 'a.jpg')
    sizes = {}
    for scale in (None, [0.1, 1.0]):
        transform = train_transform(data_config, None, 0.0, crop_scale=scale)
        sizes[bool(scale)] = open_image(tmp_path / 'a.jpg', at_least=transform.decode_size).size
    assert sizes == {False: (32, 32), True: (128, 128)}  # a multiple of 1/8: 32 / sqrt(0.1 * 3 / 4) is 117


def test_cutout_fills_one_square_anywhere():
    torch.manual_seed(0)
    sides, centres = [], []
    for _ in range(500):
        image = Cutout(0.5, (7, 8, 9))(torch.zeros(3, 32, 32, dtype=torch.uint8))
        hole = image != 0
        assert image.flatten(1).max(1).values.tolist() == [7, 8, 9]
        assert torch.equal(hole[0], hole[1]) and torch.equal(hole[0], hole[2])
        rows, columns = hole[0].any(1).nonzero().flatten(), hole[0].any(0).nonzero().flatten()
        assert hole[0].sum() == len(rows) * len(columns)
        sides.append((len(rows), len(columns)))
        centres.append((rows.float().mean(), columns.float().mean()))
    sides, centres = np.array(sides), np.array(centres)
    assert sides.max() == 16 and sides.min() == 8  # half of a hole centred on the edge is outside
    # Holes extend from 8 before the centre to 7 after it: their mean is 15, within 4 standard errors.
    assert np.abs(centres.mean(0) - 15).max() < 1.3 and centres.std(0).min() > 5


def test_eval_transform_matches_timm_on_photos(data_config, coco_root):
    for path in sorted((coco_root / 'val2014').iterdir())[:4]:
        transform = eval_transform(data_config)
        assert torch.equal(transform(open_image(path)), transform(Image.open(path).convert('RGB')))
