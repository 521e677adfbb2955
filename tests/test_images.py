import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from msff_timm.data import images
from msff_timm.data.images import open_image
from msff_timm.errors import InputError


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


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
    monkeypatch.setattr(images, 'MAX_PIXELS', 60 * 40)
    assert open_image(encoded(photo, 'png')).size == (60, 40)
    monkeypatch.setattr(images, 'MAX_PIXELS', 60 * 40 - 1)
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
