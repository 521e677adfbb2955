import io
import json
import pickle
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import default_collate

import msff_timm  # noqa: F401  registers the models
from msff_timm.data import transforms
from msff_timm.data.transforms import (
    Cutout,
    Normalize,
    describe_transforms,
    eval_transform,
    open_image,
    train_transform,
)
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


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'lanczos', 'nearest'])
@pytest.mark.parametrize('size', [(60, 40), (32, 32), (20, 90)])
def test_training_without_augmentation_is_evaluation_to_one_level(data_config, interpolation, size):
    config = {**data_config, 'interpolation': interpolation, 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25)}
    config |= {'crop_pct': 1.0, 'crop_mode': 'squash'}
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    ours, theirs = train_transform(config, None, 0.0)(photo), eval_transform(config)(photo)
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    ours = Normalize(config)(ours)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    levels = (ours - theirs).abs() * torch.tensor(config['std'])[:, None, None] * 255
    assert levels.max() < (1.001 if interpolation == 'bilinear' else 0.001)  # of 255, and what float32 adds


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_training_resizes_photos_as_evaluation_does(data_config, coco_root, interpolation):
    config = {**data_config, 'input_size': (3, 448, 448), 'interpolation': interpolation}
    ours, theirs = train_transform(config, None, 0.0), eval_transform(config)
    for path in sorted((coco_root / 'val2014').iterdir())[:8]:
        photo = open_image(path)
        levels = (Normalize(config)(ours(photo)) - theirs(photo)).abs() * 127.5
        assert levels.max() < 1.001 and levels.mean() < 0.25


def test_training_normalises_each_channel_by_hand(data_config):
    config = {**data_config, 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25)}
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = (pixels / 255 - config['mean']) / config['std']
    result = Normalize(config)(train_transform(config, None, 0.0)(Image.fromarray(pixels)))
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-5)


def test_the_training_transform_names_its_input_size_and_is_pickled(data_config, photo):
    config = {**data_config, 'input_size': (3, 16, 24)}
    transform = pickle.loads(pickle.dumps(train_transform(config, 'rand-m9-n2-mstd0.5', 0.5)))
    assert transform.input_size == (16, 24) and transform(photo).shape == (3, 16, 24)


def test_cutout_leaves_the_mean_colour(data_config):
    torch.manual_seed(0)
    result = Normalize(data_config)(train_transform(data_config, None, 0.5)(Image.new('RGB', (32, 32), 'white')))
    hole = (result * 127.5).abs() < 0.501  # the mean of 0.5 lies between two bytes
    assert 64 <= hole[0].sum() <= 256


def test_evaluation_as_bytes_is_evaluation(data_config, photo):
    pixels = default_collate([eval_transform(data_config, as_bytes=True)(photo)])
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(Normalize(data_config)(pixels)[0], eval_transform(data_config)(photo))


@pytest.mark.parametrize(
    'text', ['rand-m9-n2-mstd0.5', 'rand', 'rand-m9-n3-p1-inc1', 'rand-m15-mmax20-tweights', 'rand-n1-p0.25-t3a']
)
def test_rand_augment_strings_of_timm_are_taken(data_config, photo, text):
    transform = train_transform(data_config, text, 0.0)
    assert [op.hparams['interpolation'] for op in transform.augment.ops] == [0] * len(transform.augment.ops)  # nearest
    assert transform(photo).shape == (3, 32, 32)


@pytest.mark.parametrize(
    'text', ['rand-x9', 'm9-n2', 'rand-m', 'rand-m9_n2', 'augmix-m3', 'rand-m9-n0', 'rand-p1.5', 'rand-tother', 'rand-']
)
def test_rand_augment_strings_that_timm_would_misread_are_refused(data_config, text):
    with pytest.raises(InputError, match='data.rand_augment is .*rand-m9-n2-mstd0.5') as e:
        train_transform(data_config, text, 0.0)
    assert repr(text) in str(e.value) and '\n' not in str(e.value)


def test_the_record_of_training_is_json(data_config):
    record = describe_transforms(data_config, 'rand-m9-n2-mstd0.5', 0.5)
    assert json.loads(json.dumps(record)) == {
        'resize': 'squash',
        'interpolation': 'bilinear',
        'rand_augment': 'rand-m9-n2-mstd0.5',
        'rand_augment_interpolation': 'nearest',
        'cutout': 0.5,
    }
    assert describe_transforms(data_config, None, 0.0)['rand_augment_interpolation'] is None


def test_rand_augment_changes_the_picture(data_config, photo):
    random.seed(0)
    np.random.seed(0)
    transform = train_transform(data_config, 'rand-m9-n2-mstd0.5', 0.0)
    results = [transform(photo) for _ in range(10)]
    assert all(result.shape == (3, 32, 32) for result in results)
    assert len({result.numpy().tobytes() for result in results}) > 5


def test_cutout_is_one_square_of_half_the_side_anywhere():
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
    assert sides.max() == 16 and sides.min() == 8  # a hole centred on the edge loses half
    # From 8 before the centre to 7 behind it: 15 in the mean of centres 0 to 31, give or take 4 standard errors.
    assert np.abs(centres.mean(0) - 15).max() < 1.3 and centres.std(0).min() > 5


def encoded(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png(width, height, depth, colour, samples):
    """Encodes a PNG of one row after another by hand: Pillow writes no 16-bit colour."""
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)),
        (b'IDAT', zlib.compress(samples)),
        (b'IEND', b''),
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks
    )


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# How rows and columns of the stored picture make the upright one, from the standard's words, not Pillow's code.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_photos_are_opened_upright(photo, orientation):
    pixels = UPRIGHT[orientation](np.asarray(photo))
    np.testing.assert_array_equal(open_image(encoded(photo, 'png', exif=exif(orientation))), pixels)


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_reduced_decoding_keeps_the_wanted_size_upright(orientation):
    sideways = orientation >= 5
    content = encoded(Image.new('RGB', (640, 480)), 'jpeg', exif=exif(orientation))

    def size(height, width):
        return open_image(content, at_least=(width, height) if sideways else (height, width)).size[
            :: -1 if sideways else 1
        ]

    assert size(480, 640) == size(241, 10) == size(10, 321) == (640, 480)
    assert size(240, 320) == size(121, 10) == size(10, 161) == (320, 240)
    assert size(120, 160) == (160, 120) and size(60, 80) == size(1, 1) == (80, 60)


def test_reduced_decoding_is_never_smaller_than_wanted():
    generator = np.random.default_rng(0)
    for _ in range(50):
        stored, wanted = generator.integers(1, 700, 2), generator.integers(1, 300, 2)
        content = encoded(Image.new('RGB', tuple(stored.tolist())), 'jpeg')
        size = np.array(open_image(content, at_least=tuple(wanted[::-1].tolist())).size)
        assert (size >= np.minimum(stored, wanted)).all() and (size <= stored).all()


def test_reduced_decoding_differs_as_little_as_two_good_filters_do(coco_root):
    differences, biases, filters, skips = [], [], [], []
    for path in sorted((coco_root / 'val2014').iterdir())[:32]:
        full, reduced = open_image(path), open_image(path, at_least=(112, 112))
        assert full.width >= 2 * reduced.width - 1

        def small(image, kind=Image.Resampling.BILINEAR):
            return np.asarray(image.resize((112, 112), kind), dtype=float)

        differences.append(np.abs(small(full) - small(reduced)).mean())
        biases.append((small(reduced) - small(full)).mean())
        filters.append(np.abs(small(full) - small(full, Image.Resampling.BICUBIC)).mean())
        skips.append(np.abs(small(full) - small(full, Image.Resampling.NEAREST)).mean())
    # The measure is the choice between bilinear and bicubic, which timm's training leaves to chance; a resizing that
    # skips pixels, which is what a bug here would amount to, is several times further away.
    assert np.mean(differences) < 1.25 * np.mean(filters) and np.mean(skips) > 4 * np.mean(filters)
    assert (np.array(differences) < np.array(skips)).all()
    assert np.abs(np.mean(biases)) < 0.1


def test_reduced_decoding_leaves_other_formats_alone(photo):
    assert open_image(encoded(photo, 'png'), at_least=(5, 5)).size == photo.size


def test_evaluation_sees_every_pixel_as_timm_does(data_config, coco_root):
    for path in sorted((coco_root / 'val2014').iterdir())[:4]:
        transform = eval_transform(data_config)
        assert torch.equal(transform(open_image(path)), transform(Image.open(path).convert('RGB')))


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_sixteen_bits_are_scaled_to_eight(kind):
    values = np.array([[0, 128, 129, 257, 32896], [255, 256, 21845, 65279, 65535]], dtype=np.uint16)
    expected = [[0, 0, 1, 1, 128], [1, 1, 85, 254, 255]]
    pixels = np.asarray(open_image(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels, np.repeat(np.array(expected)[:, :, None], 3, axis=2))


def test_other_deep_pictures_are_scaled():
    graymap = b'P5 3 1 65535\n' + struct.pack('>3H', 0, 32896, 65535)
    assert [open_image(graymap).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    for white in (1, 255):
        floats = Image.fromarray(np.array([[0, 0.2, 1, -1, np.nan]], dtype=np.float32) * white)
        pixels = np.asarray(open_image(encoded(floats, 'tiff')))
        np.testing.assert_array_equal(pixels[0, :, 0], [0, 51, 255, 0, 0])
    rgb = png(2, 1, 16, 2, b'\0' + struct.pack('>6H', 0x8000, 0xFFFF, 0, 257, 0xFF00, 514))
    assert np.asarray(open_image(rgb)).tolist() == [[[128, 255, 0], [1, 255, 2]]]


def test_what_is_transparent_shows_white():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    for mode, channels in (('RGBA', [0, 1, 2, 3]), ('LA', [0, 3])):
        stored = np.ascontiguousarray(pixels[..., channels])
        expected = stored[..., :-1] * alpha + 255 * (1 - alpha)
        shown = np.asarray(open_image(encoded(Image.fromarray(stored, mode), 'png')), dtype=float)
        assert np.abs(shown - expected).max() <= 1
    assert np.asarray(open_image(encoded(Image.new('RGBA', (1, 1), (9, 9, 9, 0)), 'png'))).tolist() == [[[255] * 3]]


def test_palettes_with_and_without_transparency():
    picture = Image.new('P', (3, 1))
    picture.putpalette([250, 10, 20, 30, 240, 40, 50, 60, 230])
    picture.putdata([0, 1, 2])
    opaque = [[[250, 10, 20], [30, 240, 40], [50, 60, 230]]]
    assert np.asarray(open_image(encoded(picture, 'png'))).tolist() == opaque
    for transparency in (1, bytes([255, 0, 255])):  # one colour, and an alpha for each
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            shown = np.asarray(open_image(encoded(picture, 'png', transparency=transparency))).tolist()
        assert shown == [[opaque[0][0], [255, 255, 255], opaque[0][2]]]


def test_one_colour_of_a_picture_without_alpha_may_be_transparent():
    for mode, colour, other in (('RGB', (1, 2, 3), (4, 5, 6)), ('L', 7, 8)):
        picture = Image.new(mode, (2, 1), colour)
        picture.putpixel((1, 0), other)
        shown = open_image(encoded(picture, 'png', transparency=colour))
        assert shown.getpixel((0, 0)) == (255, 255, 255)
        assert shown.getpixel((1, 0)) == (other if mode == 'RGB' else (other,) * 3)


def test_cmyk_and_one_bit_are_not_inverted():
    picture = Image.new('CMYK', (16, 8), (0, 255, 255, 0))
    picture.paste((0, 0, 0, 255), (8, 0, 16, 8))
    for content in (encoded(picture, 'jpeg', quality=100), encoded(picture, 'tiff')):
        red, black = (np.array(open_image(content).getpixel((x, 4)), dtype=int) for x in (2, 13))
        assert np.abs(red - (255, 0, 0)).max() <= 3 and black.max() <= 3
    assert b'Adobe' in encoded(picture, 'jpeg')  # whose inks are stored inverted
    bits = Image.new('1', (2, 1))
    bits.putpixel((1, 0), 1)
    assert np.asarray(open_image(encoded(bits, 'png'))).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize('kind', ['gif', 'tiff', 'webp'])
def test_the_first_frame_counts(kind):
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = open_image(content).getpixel((4, 4))
    assert red > 245 and blue < 10


@pytest.mark.parametrize('pixels', [89_478_486, 100_000_000, 400_000_000])
def test_bombs_are_refused_without_being_decoded(pixels):
    bomb = png(pixels // 2, 2, 8, 0, b'')
    with warnings.catch_warnings(), pytest.raises(InputError, match='^bomb.png: cannot be read.* pixels') as e:
        warnings.simplefilter('error')
        open_image(bomb, 'bomb.png')
    assert '\n' not in str(e.value)


def test_the_limit_counts_pixels(monkeypatch, photo):
    monkeypatch.setattr(transforms, 'MAX_PIXELS', 60 * 40)
    assert open_image(encoded(photo, 'png')).size == (60, 40)
    monkeypatch.setattr(transforms, 'MAX_PIXELS', 60 * 40 - 1)
    for kind in ('png', 'jpeg'):
        with pytest.raises(InputError, match=r'60 x 40 pixels, over 2,399'):
            open_image(encoded(photo, kind), at_least=(5, 5))


def test_what_is_not_a_photo_is_named(tmp_path, photo):
    photo.save(tmp_path / 'whole.jpg')
    photo.save(tmp_path / 'whole.png')
    for kind in ('jpg', 'png'):
        (tmp_path / f'half.{kind}').write_bytes((tmp_path / f'whole.{kind}').read_bytes()[:900])
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'folder.jpg').mkdir()
    for name in ('half.jpg', 'half.png', 'text.jpg', 'empty.jpg', 'folder.jpg'):
        for at_least in (None, (8, 8)):
            with pytest.raises(InputError, match=f'{name}: cannot be read as a picture') as e:
                open_image(tmp_path / name, at_least=at_least)
            assert str(e.value).startswith(str(tmp_path)) and '\n' not in str(e.value)
    with pytest.raises(InputError, match='gone.jpg: there is no such file'):
        open_image(tmp_path / 'gone.jpg')
    with pytest.raises(InputError, match='^row 7: cannot be read as a picture'):
        open_image(b'no picture', 'row 7')


def test_damaged_bytes_end_in_the_one_error(photo):
    generator = np.random.default_rng(0)
    for kind in ('png', 'jpeg', 'gif', 'tiff', 'bmp', 'webp'):
        content = np.frombuffer(encoded(photo, kind), dtype=np.uint8)
        for _ in range(50):
            damaged = content.copy()
            damaged[generator.integers(0, min(len(content), 200), 8)] = generator.integers(0, 256, 8)
            try:
                assert open_image(damaged.tobytes()).mode == 'RGB'
            except InputError as e:
                assert '\n' not in str(e)
