"""Decoding: opens image files of any format as upright images in 8-bit RGB."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError
from .bit_depth import ValueRange, is_deep, make_tile, raw_mode_of, read_statement, scale_colour, scale_gray
from .formats import RAW_REASON, explain_unknown, is_raw
from .image_repair import INTEGERS, PIXEL_TAGS, TIFF, read_directory, repair

if TYPE_CHECKING:
    import datasets

__all__ = ['MAX_PIXELS', 'Decoded', 'decode', 'open_image', 'open_row', 'undecoded']

MAX_PIXELS = 2**28 // 3  # 256 MiB in RGB; from there on, Pillow warns of decompression bombs

UPRIGHT = {  # by the orientation of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height

XMP_ORIENTATION = re.compile(rb'tiff:Orientation\s*(?:=\s*["\']|>)\s*([1-8])')
OTHER_ORDER = {'L': 'B', 'B': 'L', 'N': 'B' if sys.byteorder == 'little' else 'L'}  # in raw modes of Pillow

# TIFF tags
BITS, PHOTOMETRIC, SAMPLES, PLANAR, DNG_VERSION = 258, 262, 277, 284, 50706
PARTS = (273, 279, 324, 325)  # offsets and sizes of strips and tiles


@dataclass(frozen=True)
class Decoded:
    """An image with information on its file.

    Attributes:
        image: Upright image in 8-bit RGB.
        mode: Mode of Pillow for the file.
        values: Range of values of an image of more than 8 bits, else None.
    """

    image: Image.Image
    mode: str
    values: ValueRange | None


def open_image(
    source: str | Path | bytes, name: str | None = None, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Opens an image upright, in 8-bit RGB; only the first of several frames.

    Transparent pixels become white, where Pillow's `convert('RGB')` reveals hidden colours. The orientation of EXIF or
    XMP is applied unless it is invalid; other metadata is ignored.

    Images of more than 8 bits are scaled. A range or depth that the file states decides: SMinSampleValue and
    SMaxSampleValue, BitsPerSample of 12 or MaxSampleValue of TIFF, sBIT of PNG, or a depth of JPEG 2000 or PGM below
    16. Otherwise, the values of the image decide, since sensors of 10, 12 and 14 bits often write 16-bit files without
    stating their depth. This needs no setting, so training and inference (which sees one image at a time) agree:

    - Integers: white is the maximum of 8, 10, 12, 14, 16, 17, ... bits, the first that holds all values. The brightest
      pixel is thus never below a quarter of white, except in files that use less than 8 bits. A dark 16-bit image
      becomes brighter than it is, unless its file states the depth.
    - Floats: white is 1 if the largest value is above 0.25 and at most 1; else the power of two that holds all values,
      minus 1 from 256 on.
    - Negative values: black is the negative power of two that holds them. Without any, black is 0.

    Up to one in a thousand values, e.g. hot pixels, may lie outside this range and are clipped. NaN, the missing value
    of GDAL, and equal negative values at least as far from 0 as white (e.g. -9999) become black.

    Args:
        source: Path or content of the file.
        name: Name of the image in messages; None for the path.
        at_least: Height and width that are sufficient: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as it
            is at least this large, which is faster. None decodes every pixel, as evaluation and inference do to match
            the preprocessing of timm.

    Raises:
        InputError: The file is missing, is not a valid image, or has more than `MAX_PIXELS` pixels.
    """
    return decode(source, name, at_least).image


def open_row(row: dict, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Opens the image of a row of an `undecoded` data set, as inference opens files.

    Args:
        row: Row with the columns `image` and `image_id`.
        at_least: Smallest size to decode to, see `open_image`.
    """
    image = row['image']
    if not isinstance(image, dict):
        return image
    source = image['path'] if image['bytes'] is None else image['bytes']
    return open_image(source, image['path'] or f'image {row["image_id"]}', at_least)


def undecoded(dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.Dataset | datasets.IterableDataset:
    """Returns a data set whose rows hold the path or bytes of images that are files, for `open_row`."""
    import datasets  # an extra

    is_file = isinstance(dataset.features['image'], datasets.Image)
    return dataset.cast_column('image', datasets.Image(decode=False)) if is_file else dataset


def decode(source: str | Path | bytes, name: str | None = None, at_least: tuple[int, int] | None = None) -> Decoded:
    """Opens an image as `open_image` does, with information on its file."""
    name = name or ('image' if isinstance(source, bytes) else str(source))
    suffix = os.path.splitext(name if isinstance(source, bytes) else source)[1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about unusual metadata
            warnings.simplefilter('error', Image.DecompressionBombWarning)  # before ICO and ICNS decode their content
            if not isinstance(source, bytes):
                _refuse_devices(source)
            try:
                return _decode(source, suffix, at_least)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning, InputError):
                raise
            except Exception as e:
                try:
                    return _decode(repair(source), suffix, at_least)
                except Exception:
                    raise e from None
    except FileNotFoundError:
        raise InputError(f'{name}: there is no such file.') from None
    except Exception as e:  # the decoders of Pillow raise nearly every type of error on damaged files
        if isinstance(e, Image.UnidentifiedImageError):
            reason = explain_unknown(suffix, _head(source))
        else:
            reason = getattr(e, 'strerror', None) or ' '.join(str(e).split()) or type(e).__name__
        raise InputError(f'{name}: cannot be read as an image ({reason}).') from None


def _refuse_devices(path: str | Path) -> None:
    """Refuses files that are not regular: opening a FIFO waits for a writer, and a device may have no end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError('is a folder' if stat.S_ISDIR(mode) else 'is a FIFO, a socket or a device, not a file')


def _head(source: str | Path | bytes) -> bytes:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
        return file.read(64)


def _decode(source: str | Path | bytes, suffix: str, at_least: tuple[int, int] | None) -> Decoded:
    with _open(source) as image:
        if image.format == 'TIFF' and (is_raw(suffix) or DNG_VERSION in image.tag_v2):
            raise InputError(RAW_REASON)  # Pillow would read the thumbnail as the image
        mode, deep, raw_mode = image.mode, is_deep(image), raw_mode_of(image)
        orientation = _orientation(image)
        if at_least:
            image.draft(None, at_least if orientation in SIDEWAYS else at_least[::-1])
        statement = read_statement(image) if deep else None
        is_planar = deep and image.tile[0][0] == 'libtiff' and image.tag_v2.get(PLANAR) == 2
        image.load()
        pixels, values = image, None
        if deep and image.getbands() in (('I',), ('F',)):
            pixels, values = scale_gray(image, statement)
        elif deep:
            values = scale_colour(image, lambda: _lower_bytes(image, source, raw_mode, is_planar), statement)
        pixels = _to_rgb(pixels)
        if image.format == 'PNG':
            orientation = _orientation(image)  # EXIF may follow the pixels
        # `ImageOps.exif_transpose` rewrites all EXIF, which raises if some of it is invalid.
        return Decoded(pixels.transpose(UPRIGHT[orientation]) if orientation > 1 else pixels, mode, values)


def _open(source: str | Path | bytes) -> Image.Image:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError(f'{image.width} x {image.height} pixels, over {MAX_PIXELS:,}')
    if image.format == 'TIFF':
        _fix_tiff(image)
    return image


def _fix_tiff(image: Image.Image) -> None:
    """Corrects the layout of the tiles of a TIFF where Pillow gets it wrong."""
    tags = image.tag_v2
    if tags.get(PLANAR) == 2 and tags.get(SAMPLES, 1) == 1:
        tags[PLANAR] = 1  # meaningless for one channel
        image._setup()
    if image.tile[0][0] == 'libtiff':  # decodes to the byte order of the machine
        *place, arguments = image.tile[0]
        raw_mode = re.sub(r'B([SF])$', r'N\1', arguments[0])
        image.tile = [make_tile(*place, (raw_mode, *arguments[1:]))]
    elif tags.get(PHOTOMETRIC) == 6:  # YCbCr, whose subsampling libtiff handles
        size = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        image.use_load_libtiff = True
        image.tile = [make_tile('libtiff', (0, 0, *size), 0, ('RGBX', 'raw', False, tags.offset))]
    elif tags.get(PLANAR) == 2 and set(tags.get(BITS, ())) == {16}:
        order = 'L' if tags.prefix == b'II' else 'B'
        image.tile = [make_tile(*tile[:3], (f'{tile[3][0]};16{order}', *tile[3][1:])) for tile in image.tile]


def _lower_bytes(image: Image.Image, source: str | Path | bytes, raw_mode: str, is_planar: bool) -> Image.Image:
    """Reads the lower bytes of 16-bit samples.

    Args:
        image: Upper bytes, as Pillow reads them.
        source: Path or content of the file.
        raw_mode: Raw mode of Pillow for the file.
        is_planar: True if libtiff reads one channel after another; Pillow then reads only the upper bytes.
    """
    if is_planar:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if content[:4] not in TIFF:
            return image  # a BigTIFF: the upper bytes twice are close enough
        planes = [_open(_channel(content, number, len(image.getbands()))) for number in range(len(image.getbands()))]
        return Image.merge(image.mode, [Image.fromarray(np.asarray(plane).astype(np.uint8)) for plane in planes])
    with _open(source) as other:
        other.tile = [_swap_bytes(tile) for tile in other.tile]
        other.load()
        return Image.merge('RGBA', [other.getchannel(k) for k in (1, 1, 1, 3)]) if raw_mode.startswith('LA') else other


def _swap_bytes(tile: tuple) -> tuple:
    """Changes the raw mode of a tile to the other byte order, which exchanges the lower and the upper bytes."""
    *place, arguments = tile
    raw_mode, rest = (arguments, None) if isinstance(arguments, str) else (arguments[0], arguments[1:])
    # Pillow has no other byte order for gray with alpha; read as RGBA, it yields both bytes of both channels.
    raw_mode = 'RGBA' if raw_mode.startswith('LA') else raw_mode[:-1] + OTHER_ORDER[raw_mode[-1]]
    return make_tile(*place, raw_mode if rest is None else (raw_mode, *rest))


def _channel(content: bytes, number: int, channels: int) -> bytes:
    """Returns a TIFF of a single channel of a TIFF that stores them separately."""
    order, start, places = read_directory(content)
    alone = {BITS: 16, PHOTOMETRIC: 1, SAMPLES: 1, PLANAR: 1}
    kept = []
    for place in places:
        tag, kind, count, value = struct.unpack_from(order + 'HHLL', content, place)
        if tag in alone:
            kept.append(struct.pack(order + 'HHLHH', tag, 3, 1, alone[tag], 0))
        elif tag in PARTS:  # lists of one part per channel
            stored = struct.calcsize(order + INTEGERS[kind]) * count // channels
            value += stored * number
            entry = struct.pack(order + 'L', value) if stored > 4 else content[value : value + stored].ljust(4, b'\0')
            kept.append(struct.pack(order + 'HHL', tag, kind, count // channels) + entry)
        elif tag in PIXEL_TAGS and not 338 <= tag <= 341:  # same for all channels
            kept.append(content[place : place + 12])
    directory = struct.pack(order + 'H', len(kept)) + b''.join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]


def _orientation(image: Image.Image) -> int:
    """Returns the orientation of EXIF, or else of XMP, or 1 if neither has a valid one."""
    if image.format == 'TIFF':
        return 1  # Pillow rotates a TIFF itself when it loads it
    orientation = _exif_orientation(_exif(image))
    if orientation is None and (found := XMP_ORIENTATION.search(_xmp(image))):
        orientation = int(found[1])
    return orientation if orientation in UPRIGHT else 1


def _exif(image: Image.Image) -> bytes:
    exif = image.info.get('exif', b'')
    for key in ('Raw profile type exif', 'Raw profile type APP1'):  # hexadecimal, written into PNG by ImageMagick
        if not exif and key in image.info:
            with suppress(ValueError):
                exif = bytes.fromhex(''.join(image.info[key].split('\n')[3:]))
    while exif.startswith(b'Exif\0\0'):  # some cameras repeat it
        exif = exif[6:]
    return exif


def _exif_orientation(exif: bytes) -> int | None:
    """Returns the orientation of EXIF; Pillow stops at the first invalid tag, which may precede it."""
    try:
        order, _, places = read_directory(exif)
        for place in places:
            tag, kind, count = struct.unpack_from(order + 'HHL', exif, place)
            if tag == ExifTags.Base.Orientation and kind in INTEGERS:
                is_far = count * struct.calcsize(INTEGERS[kind]) > 4
                value = struct.unpack_from(order + 'L', exif, place + 8)[0] if is_far else place + 8
                return struct.unpack_from(order + INTEGERS[kind], exif, value)[0]
    except struct.error:  # truncated
        pass
    return None


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get('xmp') or image.info.get('XML:com.adobe.xmp') or b''
    if not xmp:  # Pillow 10 leaves it among the segments of a JPEG
        xmp = b''.join(
            data for _, data in getattr(image, 'applist', ()) if data.startswith(b'http://ns.adobe.com/xap/')
        )
    return xmp.encode() if isinstance(xmp, str) else xmp


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts a loaded 8-bit image to RGB, on white."""
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
