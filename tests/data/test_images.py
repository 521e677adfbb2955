import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msff_timm.data import images
from msff_timm.data.bit_depth import ValueRange
from msff_timm.data.formats import HAS_AVIF
from msff_timm.data.images import decode, open_image
from msff_timm.errors import InputError
from msff_timm_cli import commands as cli


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def encoded(image, kind, **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png(width, height, depth, colour, samples):
    """Encodes a PNG by hand, since Pillow does not write 16-bit colour."""
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)),
        (b'IDAT', zlib.compress(samples)),
        (b'IEND', b''),
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(values, order='<', planar=1, photometric=None, entries=(), data=None):
    """Encodes a TIFF by hand, since Pillow writes only some kinds.

    Args:
        values: Samples (H, W) or (H, W, C).
        order: Byte order as in `struct`.
        planar: Planar configuration, 2 to store the channels separately.
        photometric: Photometric interpretation: 0 min is white, 1 gray, 2 RGB, 5 CMYK, 6 YCbCr.
        entries: Further tags as (tag, type of `struct`, numbers).
        data: Encoded samples that replace the values.
    """
    values = np.atleast_3d(values)
    height, width, channels = values.shape
    kinds = {'B': 1, 's': 2, 'H': 3, 'L': 4, 'h': 8, 'l': 9, 'f': 11, 'd': 12}
    stored = (values if planar == 1 else values.transpose(2, 0, 1)).astype(values.dtype.newbyteorder(order)).tobytes()
    stored = stored if data is None else data
    parts = channels if planar == 2 else 1
    size = len(stored) // parts
    tags = {
        256: ('L', [width]),
        257: ('L', [height]),
        258: ('H', [8 * values.dtype.itemsize] * channels),
        259: ('H', [1]),
        262: ('H', [(2 if channels > 2 else 1) if photometric is None else photometric]),
        273: ('L', [size * part for part in range(parts)]),
        277: ('H', [channels]),
        278: ('L', [height]),
        279: ('L', [size] * parts),
        284: ('H', [planar]),
        339: ('H', ['uif'.index(values.dtype.kind) + 1] * channels),
    }
    tags |= {tag: (kind, numbers) for tag, kind, numbers in entries}
    start = 10 + 12 * len(tags)
    far, directory = b'', b''
    total = sum(n if (n := struct.calcsize(f'<{len(v)}{k}')) > 4 else 0 for k, v in tags.values())
    tags[273] = ('L', [start + 4 + total + offset for offset in tags[273][1]])
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = numbers if kind == 's' else struct.pack(f'{order}{len(numbers)}{kind}', *numbers)
        directory += struct.pack(f'{order}HHL', tag, kinds[kind], len(numbers))
        if len(packed) > 4:
            directory += struct.pack(f'{order}L', start + 4 + len(far))
            far += packed
        else:
            directory += packed.ljust(4, b'\0')
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}LH', 8, len(tags))
    return head + directory + bytes(4) + far + stored


def ramp(low, high, dtype):
    """Returns values (48, 64) from low to high."""
    return np.linspace(low, high, 48 * 64).astype(dtype).reshape(48, 64)


def gray_pixels(content):
    """Opens a gray image and returns one channel as integers."""
    pixels = np.asarray(open_image(content)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def scaled(values, black, white):
    """Scales values as defined."""
    return np.clip(np.round((values.astype(float) - black) * 255 / (white - black)), 0, 255)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# Maps of stored to upright pixels, from the text of the standard, not the code of Pillow.
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
def test_open_image_applies_orientation(photo, orientation):
    pixels = UPRIGHT[orientation](np.asarray(photo))
    np.testing.assert_array_equal(open_image(encoded(photo, 'png', exif=exif(orientation))), pixels)


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_at_least_applies_to_upright_size(orientation):
    sideways = orientation >= 5
    content = encoded(Image.new('RGB', (640, 480)), 'jpeg', exif=exif(orientation))

    def size(height, width):
        return open_image(content, at_least=(width, height) if sideways else (height, width)).size[
            :: -1 if sideways else 1
        ]

    assert size(480, 640) == size(241, 10) == size(10, 321) == (640, 480)
    assert size(240, 320) == size(121, 10) == size(10, 161) == (320, 240)
    assert size(120, 160) == (160, 120) and size(60, 80) == size(1, 1) == (80, 60)


def test_at_least_is_lower_bound():
    generator = np.random.default_rng(0)
    for _ in range(50):
        stored, wanted = generator.integers(1, 700, 2), generator.integers(1, 300, 2)
        content = encoded(Image.new('RGB', tuple(stored.tolist())), 'jpeg')
        size = np.array(open_image(content, at_least=tuple(wanted[::-1].tolist())).size)
        assert (size >= np.minimum(stored, wanted)).all() and (size <= stored).all()


def test_at_least_changes_pixels_as_little_as_filters_do(coco_root):
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
    # The yardstick is the difference between bilinear and bicubic, between which training in timm chooses at random. A
    # resizing that skips pixels, the effect of a bug here, differs several times as much.
    assert np.mean(differences) < 1.25 * np.mean(filters) and np.mean(skips) > 4 * np.mean(filters)
    assert (np.array(differences) < np.array(skips)).all()
    assert np.abs(np.mean(biases)) < 0.1


def test_at_least_is_ignored_for_png(photo):
    assert open_image(encoded(photo, 'png'), at_least=(5, 5)).size == photo.size


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_open_image_scales_sixteen_bits(kind):
    values = np.array([[0, 128, 129, 257, 32896], [255, 256, 21845, 65279, 65535]], dtype=np.uint16)
    expected = [[0, 0, 1, 1, 128], [1, 1, 85, 254, 255]]
    pixels = np.asarray(open_image(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels, np.repeat(np.array(expected)[:, :, None], 3, axis=2))


def test_open_image_scales_other_deep_images():
    graymap = b'P5 3 1 65535\n' + struct.pack('>3H', 0, 32896, 65535)
    assert [open_image(graymap).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    for white in (1, 255):
        floats = Image.fromarray(np.array([[0, 0.2, 1, -1, np.nan]], dtype=np.float32) * white)
        pixels = np.asarray(open_image(encoded(floats, 'tiff')))
        np.testing.assert_array_equal(pixels[0, :, 0], [0, 51, 255, 0, 0])
    rgb = png(2, 1, 16, 2, b'\0' + struct.pack('>6H', 0x8000, 0xFFFF, 0, 257, 0xFF00, 514))
    assert np.asarray(open_image(rgb)).tolist() == [[[128, 255, 0], [1, 255, 2]]]


def test_open_image_shows_transparent_pixels_white():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    for mode, channels in (('RGBA', [0, 1, 2, 3]), ('LA', [0, 3])):
        stored = np.ascontiguousarray(pixels[..., channels])
        expected = stored[..., :-1] * alpha + 255 * (1 - alpha)
        opened = np.asarray(open_image(encoded(Image.fromarray(stored, mode), 'png')), dtype=float)
        assert np.abs(opened - expected).max() <= 1
    assert np.asarray(open_image(encoded(Image.new('RGBA', (1, 1), (9, 9, 9, 0)), 'png'))).tolist() == [[[255] * 3]]


def test_open_image_reads_palettes():
    image = Image.new('P', (3, 1))
    image.putpalette([250, 10, 20, 30, 240, 40, 50, 60, 230])
    image.putdata([0, 1, 2])
    opaque = [[[250, 10, 20], [30, 240, 40], [50, 60, 230]]]
    assert np.asarray(open_image(encoded(image, 'png'))).tolist() == opaque
    for transparency in (1, bytes([255, 0, 255])):  # one colour, and one alpha per colour
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            opened = np.asarray(open_image(encoded(image, 'png', transparency=transparency))).tolist()
        assert opened == [[opaque[0][0], [255, 255, 255], opaque[0][2]]]


def test_open_image_reads_transparent_colour():
    for mode, colour, other in (('RGB', (1, 2, 3), (4, 5, 6)), ('L', 7, 8)):
        image = Image.new(mode, (2, 1), colour)
        image.putpixel((1, 0), other)
        opened = open_image(encoded(image, 'png', transparency=colour))
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((1, 0)) == (other if mode == 'RGB' else (other,) * 3)


def test_open_image_does_not_invert_cmyk_and_one_bit():
    image = Image.new('CMYK', (16, 8), (0, 255, 255, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 8))
    for content in (encoded(image, 'jpeg', quality=100), encoded(image, 'tiff')):
        red, black = (np.array(open_image(content).getpixel((x, 4)), dtype=int) for x in (2, 13))
        assert np.abs(red - (255, 0, 0)).max() <= 3 and black.max() <= 3
    assert b'Adobe' in encoded(image, 'jpeg')  # Adobe stores inverted inks
    bits = Image.new('1', (2, 1))
    bits.putpixel((1, 0), 1)
    assert np.asarray(open_image(encoded(bits, 'png'))).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize('kind', ['gif', 'tiff', 'webp'])
def test_open_image_returns_first_frame(kind):
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, _, blue = open_image(content).getpixel((4, 4))
    assert red > 245 and blue < 10


@pytest.mark.parametrize('pixels', [89_478_486, 100_000_000, 400_000_000])
def test_open_image_refuses_bombs(pixels):
    bomb = png(pixels // 2, 2, 8, 0, b'')
    with warnings.catch_warnings(), pytest.raises(InputError, match='^bomb.png: cannot be read.* pixels') as e:
        warnings.simplefilter('error')
        open_image(bomb, 'bomb.png')
    assert '\n' not in str(e.value)


def test_max_pixels_counts_pixels(monkeypatch, photo):
    monkeypatch.setattr(images, 'MAX_PIXELS', 60 * 40)
    assert open_image(encoded(photo, 'png')).size == (60, 40)
    monkeypatch.setattr(images, 'MAX_PIXELS', 60 * 40 - 1)
    for kind in ('png', 'jpeg'):
        with pytest.raises(InputError, match=r'60 x 40 pixels, over 2,399'):
            open_image(encoded(photo, kind), at_least=(5, 5))


def test_open_image_names_invalid_files(tmp_path, photo):
    photo.save(tmp_path / 'whole.jpg')
    photo.save(tmp_path / 'whole.png')
    for kind in ('jpg', 'png'):
        (tmp_path / f'half.{kind}').write_bytes((tmp_path / f'whole.{kind}').read_bytes()[:900])
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'folder.jpg').mkdir()
    for name in ('half.jpg', 'half.png', 'text.jpg', 'empty.jpg', 'folder.jpg'):
        for at_least in (None, (8, 8)):
            with pytest.raises(InputError, match=f'{name}: cannot be read as an image') as e:
                open_image(tmp_path / name, at_least=at_least)
            assert str(e.value).startswith(str(tmp_path)) and '\n' not in str(e.value)
    with pytest.raises(InputError, match='gone.jpg: there is no such file'):
        open_image(tmp_path / 'gone.jpg')
    with pytest.raises(InputError, match='^row 7: cannot be read as an image'):
        open_image(b'no image', 'row 7')


def test_open_image_raises_input_error_for_damaged_bytes(photo):
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


@pytest.mark.parametrize(
    ('dtype', 'low', 'high', 'black', 'white'),
    [
        ('u2', 0, 200, 0, 255),
        ('u2', 0, 255, 0, 255),
        ('u2', 0, 1023, 0, 1023),
        ('u2', 40, 2047, 0, 4095),
        ('u2', 0, 4095, 0, 4095),
        ('u2', 0, 16383, 0, 16383),
        ('u2', 0, 65535, 0, 65535),
        ('u2', 30000, 34000, 0, 65535),
        ('i2', -1024, 3071, -1024, 4095),
        ('i4', 0, 255, 0, 255),
        ('i4', 0, 100_000, 0, 2**17 - 1),
        ('i4', -1000, 1000, -1024, 1023),
        ('i4', -1000, -1, -1024, 0),
        ('i4', -(2**31), 2**31 - 1, -(2**31), 2**31 - 1),
        ('u4', 0, 65535, 0, 65535),
        ('u4', 0, 2**32 - 1, 0, 2**32 - 1),
        ('f4', 0, 1, 0, 1),
        ('f4', 0, 0.4, 0, 1),
        ('f4', 0, 1e-3, 0, 2**-9),
        ('f4', 0, 1.2, 0, 2),
        ('f4', 0, 100, 0, 128),
        ('f4', 0, 255, 0, 255),
        ('f4', 0, 4095, 0, 4095),
        ('f4', 0, 1e5, 0, 2**17 - 1),
        ('f4', -1, 1, -1, 1),
        ('f4', -1000, 2000, -1024, 2047),
    ],
)
@pytest.mark.parametrize('order', '<>')
def test_open_image_scales_gray_by_its_values(dtype, low, high, black, white, order):
    if (dtype, order) == ('u4', '>'):
        pytest.skip('Pillow reads no unsigned integers of 32 bits in this order')
    values = ramp(low, high, dtype)
    np.testing.assert_array_equal(gray_pixels(tiff(values, order)), scaled(values, black, white))


@settings(deadline=None, max_examples=150)
@given(
    high=st.floats(1e-6, 1e9),
    share=st.sampled_from([0, 0, 0.01, 0.3, 1]),
    dtype=st.sampled_from(['u2', 'i2', 'i4', 'f4']),
    hot=st.booleans(),
)
def test_open_image_keeps_gradients(high, share, dtype, hot):
    if dtype != 'f4':
        high = 64 + high % (np.iinfo(dtype).max - 64)
    values = ramp(0 if dtype == 'u2' else -share * high, high, dtype)
    if hot:
        values[5, 7] = 65535 if dtype == 'u2' else 32767
    pixels = gray_pixels(tiff(values))
    assert 30 < pixels.mean() < 225 and pixels.max() - pixels.min() > 60
    kept = np.delete(pixels.ravel(), 5 * 64 + 7)
    assert (np.diff(kept) >= 0).all()


STATED = {
    'SMax of unsigned integers': (ramp(0, 900, 'u2'), [(341, 'H', [1000])], 0, 1000),
    'SMin and SMax of signed integers': (ramp(-100, 900, 'i2'), [(340, 'h', [-1000]), (341, 'h', [1000])], -1000, 1000),
    'SMin and SMax of floats': (ramp(0, 7, 'f4'), [(340, 'f', [-5.0]), (341, 'f', [15.0])], -5, 15),
    'SMax above which values lie': (ramp(0, 4, 'f4'), [(340, 'f', [0.0]), (341, 'f', [1.0])], 0, 1),
    'SMax in doubles': (ramp(0, 7, 'f4'), [(340, 'd', [0.0]), (341, 'd', [10.0])], 0, 10),
    'SMax that is no range': (ramp(0, 4095, 'u2'), [(341, 'H', [0])], 0, 4095),
    'SMax of the type': (ramp(0, 7, 'f4'), [(340, 'f', [0.0]), (341, 'f', [3.4e38])], 0, 8),
    'SMax that is no number': (ramp(0, 7, 'f4'), [(340, 'f', [0.0]), (341, 'f', [float('nan')])], 0, 8),
    'SMax in words': (ramp(0, 7, 'f4'), [(341, 's', b'seven\0')], 0, 8),
    'MaxSampleValue of 0': (ramp(0, 900, 'u2'), [(281, 'H', [0])], 0, 1023),
    'MaxSampleValue': (ramp(0, 900, 'u2'), [(281, 'H', [4095])], 0, 4095),
    'MaxSampleValue of what occurs': (ramp(0, 900, 'u2'), [(281, 'H', [3700])], 0, 4095),
    'MaxSampleValue of a dark image': (ramp(0, 900, 'u2'), [(281, 'H', [65535])], 0, 65535),
    'MaxSampleValue that is wrong': (ramp(0, 9000, 'u2'), [(281, 'H', [255])], 0, 16383),
}


@pytest.mark.parametrize('kind', STATED)
def test_open_image_uses_range_of_tiff(kind):
    values, entries, black, white = STATED[kind]
    np.testing.assert_array_equal(gray_pixels(tiff(values, entries=entries)), scaled(values, black, white))


def test_open_image_reads_twelve_bits_of_tiff():
    values = ramp(0, 500, 'u2')
    bits = ''.join(f'{value:012b}' for value in values.ravel())
    packed = int(bits, 2).to_bytes(len(bits) // 8, 'big')
    content = tiff(values, entries=[(258, 'H', [12])], data=packed)
    np.testing.assert_array_equal(gray_pixels(content), scaled(values, 0, 4095))


@pytest.mark.parametrize(
    ('bits', 'high', 'white'), [(12, 900, 4095), (16, 900, 65535), (12, 9000, 65535), (8, 255, 255)]
)
def test_open_image_uses_significant_bits_of_png(bits, high, white):
    values = ramp(0, high, 'u2')
    content = deep_png(values, sbit=[bits])
    np.testing.assert_array_equal(gray_pixels(content), scaled(values, 0, white))


def test_open_image_uses_depth_of_graymap():
    values = ramp(0, 900, 'u2')
    content = b'P5 64 48 4095\n' + values.astype('>u2').tobytes()
    assert np.abs(gray_pixels(content) - scaled(values, 0, 4095)).max() <= 1


def deep_png(values, sbit=None, clear=None):
    """Encodes 16-bit samples (H, W) or (H, W, C) with a filter that Pillow does not use."""
    values = np.atleast_3d(values)
    height, width, channels = values.shape
    rows = values.astype('>u2').tobytes()
    stride = width * channels * 2
    up, last = b'', bytes(stride)
    for start in range(0, len(rows), stride):
        row = rows[start : start + stride]
        up += b'\2' + bytes((a - b) % 256 for a, b in zip(row, last, strict=True))
        last = row
    content = png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], up)
    more = [(b'sBIT', bytes(sbit or ())), (b'tRNS', struct.pack(f'>{len(clear or ())}H', *(clear or ())))]
    chunks = b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in more
        if data
    )
    return content[:33] + chunks + content[33:]


@pytest.mark.parametrize(('high', 'white'), [(255, 255), (1000, 1023), (4095, 4095), (16383, 16383), (60000, 65535)])
def test_open_image_scales_colours_of_sixteen_bits(high, white):
    colour = np.stack([ramp(0, high, 'u2'), ramp(high, 0, 'u2'), ramp(high // 3, high // 2, 'u2')], -1)
    gray, opaque = ramp(0, high, 'u2'), np.full((48, 64), white, 'u2')
    expected = scaled(colour, 0, white)
    contents = {
        'png': deep_png(colour),
        'png with alpha': deep_png(np.dstack([colour, np.full((48, 64), white, 'u2')])),
        'png with bits': deep_png(colour, sbit=[white.bit_length()] * 3),
        'tiff': tiff(colour),
        'tiff of the other order': tiff(colour, '>'),
        'tiff of channels apart': tiff(colour, planar=2),
        'tiff of channels apart of the other order': tiff(colour, '>', planar=2),
        'tiff with alpha': tiff(np.dstack([colour, np.full((48, 64), white, 'u2')]), entries=[(338, 'H', [2])]),
        'tiff, deflated': tiff(
            colour, entries=[(259, 'H', [8]), (279, 'L', [len(zlib.compress(colour.tobytes()))])],
            data=zlib.compress(colour.tobytes()),
        ),
    }  # fmt: skip
    for kind, content in contents.items():
        pixels = np.asarray(open_image(content)).astype(float)
        assert np.abs(pixels - expected).max() <= (1 if white == 65535 else 0), kind
    pixels = np.asarray(open_image(deep_png(np.dstack([gray, opaque])))).astype(float)
    assert np.abs(pixels - scaled(gray, 0, white)[..., None]).max() <= 1


@pytest.mark.parametrize(
    ('dtype', 'channels'), [('u1', 1), ('u2', 1), ('i2', 1), ('i4', 1), ('f4', 1), ('u1', 3), ('u2', 3)]
)
@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('planar', [1, 2])
@pytest.mark.parametrize('is_deflated', [False, True])
def test_open_image_reads_layouts_of_tiff(dtype, order, planar, channels, is_deflated):
    low, high, black, white = {
        'u1': (0, 255, 0, 255),
        'u2': (0, 1000, 0, 1023),
        'i2': (-1024, 3071, -1024, 4095),
        'i4': (-9, 100_000, -16, 2**17 - 1),
        'f4': (-1, 1, -1, 1),
    }[dtype]
    values = np.stack([ramp(low, high, dtype), ramp(high, low, dtype), ramp(low, high // 2, dtype)][:channels], -1)
    settings = {}
    if is_deflated:
        planes = values.transpose(2, 0, 1) if planar == 2 else values[None]
        parts = [zlib.compress(plane.astype(plane.dtype.newbyteorder(order)).tobytes()) for plane in planes]
        size = max(map(len, parts))
        data = b''.join(part.ljust(size, b'\0') for part in parts)
        settings = {'data': data, 'entries': [(259, 'H', [8])]}
    pixels = np.asarray(open_image(tiff(values, order, planar=planar, **settings))).astype(int)
    assert np.abs(pixels - scaled(values, black, white)).max() == 0


@pytest.mark.parametrize('high', [4095, 65535])
def test_open_image_ignores_depth_of_sixteen_bits(high):
    values = ramp(0, high, 'u2')
    jpeg2000 = encoded(Image.fromarray(values), 'jpeg2000', irreversible=False)
    graymap = b'P5 64 48 65535\n' + values.astype('>u2').tobytes()
    plain = b'P2 64 48 65535\n' + ' '.join(map(str, values.ravel())).encode()
    for content in (jpeg2000, graymap, plain, encoded(Image.fromarray(values), 'png')):
        np.testing.assert_array_equal(gray_pixels(content), scaled(values, 0, high))


def test_open_image_shows_transparent_sixteen_bits_white():
    gray = ramp(0, 4095, 'u2')
    expected = scaled(gray, 0, 4095)
    expected[gray == gray[20, 30]] = 255
    np.testing.assert_array_equal(gray_pixels(deep_png(gray, clear=[gray[20, 30]])), expected)
    colour = np.stack([gray, gray // 2, gray // 3], -1)
    pixels = np.asarray(open_image(deep_png(colour * 16, clear=(colour[20, 30] * 16).tolist())))
    assert pixels[20, 30].tolist() == [255] * 3 and pixels[20, 29].tolist() == scaled(colour[20, 29], 0, 4095).tolist()


def test_open_image_inverts_min_is_white():
    values = ramp(0, 4095, 'u2')
    np.testing.assert_array_equal(gray_pixels(tiff(values, photometric=0)), 255 - scaled(values, 0, 4095))


@pytest.mark.parametrize('fill', [np.nan, np.inf, -np.inf, np.finfo('f4').max, np.finfo('f4').min, -9999])
def test_open_image_ignores_fill_values(fill):
    values = ramp(0, 1, 'f4')
    expected = scaled(values, 0, 1)
    values[:20] = fill
    expected[:20] = 255 if fill > 1 else 0
    np.testing.assert_array_equal(gray_pixels(tiff(values)), expected)


def test_open_image_ignores_missing_value_of_gdal():
    values = ramp(0, 1, 'f4')
    expected = scaled(values, 0, 1)
    values[:20], expected[:20] = 32767, 0
    np.testing.assert_array_equal(gray_pixels(tiff(values, entries=[(42113, 's', b'32767\0')])), expected)


@pytest.mark.parametrize('value', [0, 1, 1000, -1000, 65535])
def test_open_image_reads_constant_images(value):
    for dtype in ('i4', 'f4'):
        assert len(np.unique(gray_pixels(tiff(np.full((4, 5), value, dtype))))) == 1
    assert gray_pixels(tiff(np.full((4, 5), np.nan, 'f4'))).max() == 0


def test_decode_returns_range_of_values():
    values = decode(tiff(ramp(-1000, 1000, 'i4'))).values
    assert values == ValueRange(-1000, 1000, -1024, 1023, False)
    assert decode(deep_png(ramp(0, 900, 'u2'), sbit=[12])).values == ValueRange(0, 900, 0, 4095, True)
    colour = np.stack([ramp(40, 3000, 'u2')] * 3, -1)
    assert decode(deep_png(colour)).values == ValueRange(40, 3000, 0, 4095, False)
    assert decode(encoded(Image.new('RGB', (2, 2)), 'png')).values is None


def test_open_image_reads_uncompressed_ycc(photo):
    pixels = np.asarray(photo.convert('YCbCr'))
    expected = np.asarray(Image.fromarray(pixels, 'YCbCr').convert('RGB')).astype(int)
    content = tiff(pixels, photometric=6, entries=[(530, 'H', [1, 1])])
    assert np.abs(np.asarray(open_image(content)) - expected).max() <= 3


def test_open_image_reads_deep_cases(cases):
    ramps = 'full16 twelve ten eight_in_16 float01 float255 float4095 floatneg int32_255 int32_65535 int32_ct rgb'
    for path in sorted((cases / 'deep_images').iterdir()):
        if path.name == 'README' or path.name.startswith('anim_'):
            continue
        pixels = np.asarray(open_image(path))
        assert 60 < pixels.mean() < 195 and pixels.max() - pixels.min() > 100, path.name
        if path.name.startswith(tuple(ramps.split())):
            assert pixels.min() <= 3 and pixels.max() >= 252 and 120 < pixels.mean() < 135, path.name


def test_open_image_reads_cases_of_odd_metadata(cases):
    paths = sorted(path for path in (cases / 'odd_exif').iterdir() if path.name != 'README')
    if not HAS_AVIF:
        paths = [path for path in paths if path.suffix != '.avif']
    assert len(paths) >= 40
    plain = np.asarray(open_image(cases / 'odd_exif' / '00_plain.jpg')).astype(int)
    turned = UPRIGHT[6](plain)
    sideways = {'07_exif_header_twice', '10_exif_cut', '13_orientation_two', '32_png_exif_with_header'}
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            if path.name == '50_truncated_last.jpg':
                with pytest.raises(InputError, match='truncated'):
                    open_image(path)
                continue
            pixels = np.asarray(open_image(path)).astype(int)
        expected = turned if 'orientation6' in path.name or path.stem in sideways else plain
        assert pixels.shape == expected.shape and np.abs(pixels - expected).mean() < 3, path.name


TYPES = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 99])
TAGS = st.sampled_from([270, 271, 282, 283, 296, 305, 700, 33432, 34377, 34665, 34853, 37500, 37510, 40965, 60000])
ODD = st.dictionaries(
    TAGS, st.tuples(TYPES, st.sampled_from([0, 1, 2, 100, 2**31, 2**32 - 1]), st.binary(min_size=4, max_size=4))
)


@settings(deadline=None, max_examples=150)
@given(odd=ODD, order=st.sampled_from('<>'), kind=st.sampled_from(['jpeg', 'png', 'webp']), rest=st.binary(max_size=60))
def test_open_image_applies_orientation_beside_invalid_exif(odd, order, kind, rest):
    tags = {tag: struct.pack(f'{order}HHL', tag, *value[:2]) + value[2] for tag, value in odd.items()}
    tags[0x112] = struct.pack(f'{order}HHLHH', 0x112, 3, 1, 6, 0)
    block = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}LH', 8, len(tags))
    block += b''.join(tags[tag] for tag in sorted(tags)) + bytes(4) + rest
    photo = Image.fromarray(np.repeat(np.repeat(np.array([[10, 90], [170, 250]], np.uint8), 16, 0), 24, 1))
    pixels = np.asarray(open_image(encoded(photo.convert('RGB'), kind, exif=b'Exif\0\0' + block))).astype(int)
    assert pixels.shape == (48, 32, 3) and np.abs(pixels[..., 0] - UPRIGHT[6](np.asarray(photo))).max() < 25


@settings(deadline=None, max_examples=150)
@given(odd=ODD, order=st.sampled_from('<>'))
def test_open_image_reads_tiff_with_invalid_tags(odd, order):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = tiff(values, order, entries=[(274, 'H', [6]), *((tag, 'L', [0]) for tag in odd)])
    for place in range(10, 10 + 12 * struct.unpack_from(f'{order}H', content, 8)[0], 12):
        tag = struct.unpack_from(f'{order}H', content, place)[0]
        if tag in odd:
            kind, count, value = odd[tag]
            entry = struct.pack(f'{order}HHL', tag, kind, count) + value
            content = content[:place] + entry + content[place + 12 :]
    np.testing.assert_array_equal(open_image(content), UPRIGHT[6](values))


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from([b'tEXt', b'zTXt', b'iTXt', b'iCCP', b'eXIf', b'gAMA', b'pHYs', b'tIME', b'acTL', b'fcTL']),
    data=st.binary(max_size=40)
    | st.sampled_from([b'k\0\0' + zlib.compress(bytes(2**21)), b'XML:com.adobe.xmp\0\0\0\0\0\xff']),
    is_first=st.booleans(),
    is_sound=st.booleans(),
)
def test_open_image_reads_png_with_invalid_chunks(kind, data, is_first, is_sound):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), 'png')
    chunk = (
        struct.pack('>I', len(data))
        + kind
        + data
        + struct.pack('>I', zlib.crc32(kind + data) + (not is_sound) & 0xFFFFFFFF)
    )
    place = 33 if is_first else len(content) - 12
    np.testing.assert_array_equal(open_image(content[:place] + chunk + content[place:]), pixels)


@settings(deadline=None, max_examples=100)
@given(
    marker=st.sampled_from([*range(0xE0, 0xEE), 0xEF, 0xFE]),
    head=st.sampled_from(
        [
            b'',
            b'JFIF\0',
            b'Exif\0\0',
            b'http://ns.adobe.com/xap/1.0/\0',
            b'ICC_PROFILE\0',
            b'MPF\0',
            b'Photoshop 3.0\08BIM',
        ]
    ),
    data=st.binary(max_size=40),
)
def test_open_image_reads_jpeg_with_invalid_segments(marker, head, data):
    content = encoded(Image.new('RGB', (7, 5), 'teal'), 'jpeg')
    segment = bytes([255, marker]) + struct.pack('>H', 2 + len(head + data)) + head + data
    assert open_image(content[:2] + segment + content[2:]).size == (7, 5)


def test_open_image_completes_only_complete_jpegs(coco_root):
    for path in sorted((coco_root / 'val2014').iterdir())[:3]:
        content, expected = path.read_bytes(), np.asarray(open_image(path))
        assert content.endswith(b'\xff\xd9')
        np.testing.assert_array_equal(open_image(content[:-2]), expected)
        for cut in (4, 10, 40, len(content) // 2):
            with pytest.raises(InputError, match='truncated'):
                open_image(content[:-cut])


@pytest.mark.parametrize('kind', ['ico', 'icns'])
def test_open_image_refuses_icons_before_decoding(kind):
    bomb = png(10_000, 9_000, 8, 2, b'')  # without pixels: decoding it would raise another error
    if kind == 'ico':
        content = struct.pack('<3H4B2H2L', 0, 1, 1, 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    else:
        content = b'icns' + struct.pack('>L4sL', 16 + len(bomb), b'ic09', 8 + len(bomb)) + bomb
    with pytest.raises(InputError, match='pixels'):
        open_image(content)


def test_open_image_refuses_devices_without_waiting(tmp_path):
    os.mkfifo(tmp_path / 'fifo.jpg')
    (tmp_path / 'link.jpg').symlink_to(tmp_path / 'fifo.jpg')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 'socket.jpg'))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it waits'))
    signal.alarm(20)
    try:
        for path in (*sorted(tmp_path.iterdir()), '/dev/zero', '/dev/null'):
            with pytest.raises(InputError, match=f'^{path}: cannot be read as an image .*not a file') as e:
                open_image(path)
            assert '\n' not in str(e.value)
    finally:
        signal.alarm(0)


def test_open_image_limits_memory_of_deep_images(tmp_path):
    side = 4096
    rows = zlib.compress((b'\0' + np.linspace(0, 4095, side).astype('>u2').tobytes()) * side)
    deep = png(side, side, 16, 0, b'').replace(b'x\x9c\x03\0\0\0\0\x01', rows)  # replaces the empty stream
    head, tail = deep[:33], deep[-12:]
    deep = head + struct.pack('>I', len(rows)) + b'IDAT' + rows + struct.pack('>I', zlib.crc32(b'IDAT' + rows)) + tail
    (tmp_path / 'deep.png').write_bytes(deep)
    code = (
        'import resource, sys; from msff_timm.data.images import open_image\n'
        'def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        'before = peak(); image = open_image(sys.argv[1]); print(image.size[0], peak() - before)'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'deep.png')]
    width, kilobytes = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    # Pillow needs 2 bytes per pixel as stored, 1 in gray and 4 in RGB.
    assert width == side and kilobytes * 1024 < 12 * side**2


def test_inspect_reports_values_of_deep_images(tmp_path, capsys):
    contents = {
        'a.tif': tiff(ramp(5, 4000, 'u2')),
        'b.tif': tiff(ramp(0, 3000, 'u2')),
        'c.tif': tiff(ramp(0, 900, 'u2')),
        'd.png': deep_png(ramp(0, 700, 'u2'), sbit=[16]),
        'e.png': encoded(Image.new('RGB', (9, 9)), 'png'),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / 'train.csv').write_text('image,x\n' + ''.join(f'{name},{n % 2}\n' for n, name in enumerate(contents)))
    arguments = ['--root', str(tmp_path), '--splits', 'train', '--workers', '0', '-o', str(tmp_path / 'out')]
    assert cli.main(['data', 'table', *arguments, '--check']) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index('more than 8 bits in train: 4 images, values from 0 to 4,000; black and white are')
    assert lines[start + 1 : start + 4] == [
        '  0 and 4,095, by their values: 2',
        '  0 and 1,023, by their values: 1',
        '  0 and 65,535, as the file states: 1',
    ]
    assert lines[start + 4].startswith('  For a common scale, store it in the files')
    split = json.loads((tmp_path / 'out' / 'inspect.json').read_text())['splits']['train']
    assert split['values'] == [0, 4000] and sum(split['scales'].values()) == 4
    assert split['modes'] == {'I;16': 4, 'RGB': 1}
