import numpy as np
import pytest
import timm
import torch
from PIL import Image

import msff_timm  # noqa: F401  registers the models
from msff_timm.data.transforms import Cutout, eval_transform, open_image, train_transform
from msff_timm.errors import InputError


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


def test_evaluation_resizes_the_whole_picture_to_a_square(data_config, photo):
    torch.testing.assert_close(eval_transform(data_config)(photo), by_hand(photo))


def test_training_without_augmentation_is_evaluation(data_config, photo):
    torch.testing.assert_close(train_transform(data_config, None, 0.0)(photo), by_hand(photo))


def test_rand_augment_changes_the_picture(data_config, photo):
    transform = train_transform(data_config, 'rand-m9-n2-mstd0.5', 0.0)
    results = [transform(photo) for _ in range(10)]
    assert all(result.shape == (3, 32, 32) for result in results)
    assert len({result.numpy().tobytes() for result in results}) > 5


def test_cutout_is_one_square_of_half_the_side_anywhere():
    torch.manual_seed(0)
    sides, centres = [], []
    for _ in range(500):
        hole = Cutout(0.5)(torch.ones(3, 32, 32)) == 0
        assert torch.equal(hole[0], hole[1]) and torch.equal(hole[0], hole[2])
        rows, columns = hole[0].any(1).nonzero().flatten(), hole[0].any(0).nonzero().flatten()
        assert hole[0].sum() == len(rows) * len(columns)
        sides.append((len(rows), len(columns)))
        centres.append((rows.float().mean(), columns.float().mean()))
    sides, centres = np.array(sides), np.array(centres)
    assert sides.max() == 16 and sides.min() == 8  # a hole centred on the edge loses half
    # From 8 before the centre to 7 behind it: 15 in the mean of centres 0 to 31, give or take 4 standard errors.
    assert np.abs(centres.mean(0) - 15).max() < 1.3 and centres.std(0).min() > 5


def test_photos_are_opened_upright_and_in_rgb(tmp_path):
    left = Image.new('RGB', (6, 4), 'red')
    left.paste('blue', (0, 0, 3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    left.save(tmp_path / 'turned.png', exif=exif)
    upright = open_image(tmp_path / 'turned.png')
    assert upright.size == (4, 6)
    assert upright.getpixel((0, 0)) == (0, 0, 255) and upright.getpixel((0, 5)) == (255, 0, 0)
    for mode in ('L', 'P', 'RGBA', 'CMYK', '1'):
        path = tmp_path / ('picture.tif' if mode == 'CMYK' else 'picture.png')
        Image.new(mode, (5, 5)).save(path)
        assert open_image(path).mode == 'RGB'


def test_what_is_not_a_photo_is_named(tmp_path, photo):
    photo.save(tmp_path / 'whole.jpg')
    (tmp_path / 'half.jpg').write_bytes((tmp_path / 'whole.jpg').read_bytes()[:900])
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'empty.jpg').touch()
    for name in ('half.jpg', 'text.jpg', 'empty.jpg'):
        with pytest.raises(InputError, match=f'{name}: cannot be read as a picture'):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match='gone.jpg: there is no such file'):
        open_image(tmp_path / 'gone.jpg')
