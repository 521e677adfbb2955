"""Decoding: from a file of any kind to an upright image in 8-bit RGB."""

import io
import os
import re
import stat
import struct
import sys
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError
from .bit_depth import ValueRange, is_deep, make_tile, raw_mode_of, read_statement, scale_colour, scale_gray
from .formats import RAW_REASON, explain_unknown, is_raw

__all__ = ['MAX_PIXELS', 'Decoded', 'decode', 'open_image']

MAX_PIXELS = 2**28 // 3  # a quarter of a GiB in RGB: where Pillow begins to warn of decompression bombs

UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height

PNG, JPEG, TIFF = b'\x89PNG\r\n\x1a\n', b'\xff\xd8', (b'II*\0', b'MM\0*')
MOST_BYTES = 2**28  # of a file that is repaired
XMP_ORIENTATION = re.compile(rb'tiff:Orientation\s*(?:=\s*["\']|>)\s*([1-8])')
OTHER_ORDER = {'L': 'B', 'B': 'L', 'N': 'B' if sys.byteorder == 'little' else 'L'}  # of Pillow's raw modes
INTEGERS = {1: 'B', 3: 'H', 4: 'L', 6: 'b', 8: 'h', 9: 'l'}  # TIFF's types
START_OF_SCAN, END_OF_JPEG = 0xDA, b'\xff\xd9'
JPEG_METADATA = {0xE0, *range(0xE2, 0xEE), 0xEF, 0xFE}  # all but EXIF and Adobe's colours

# TIFF tags
BITS, PHOTOMETRIC, SAMPLES, PLANAR, DNG_VERSION = 258, 262, 277, 284, 50706
PARTS = (273, 279, 324, 325)  # offsets and sizes of strips and tiles
PIXEL_TAGS = {*range(256, 260), 262, 266, *range(273, 282), 284, 292, 293, 317, *range(320, 326)}
PIXEL_TAGS |= {*range(332, 334), *range(336, 348), *range(512, 522), *range(529, 533), 42113}


@dataclass(frozen=True)
class Decoded:
    """An image and what its file holds.

    Attributes:
        image: Upright, in 8-bit RGB.
        mode: Pillow's mode of the file.
        values: Range of values of an image of more than 8 bits, else None.
    """

    image: Image.Image
    mode: str
    values: ValueRange | None


def open_image(
    source: str | Path | bytes, name: str | None = None, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Opens an image upright, in 8-bit RGB; of several frames the first.

    What is transparent shows white, as on a page; Pillow's `convert('RGB')` shows the colour that was hidden. Of EXIF
    and XMP only the orientation counts; one that cannot be read is the normal one.

    Images of more than 8 bits are scaled. A range or depth that the file states decides: TIFF's SMinSampleValue and
    SMaxSampleValue, a BitsPerSample of 12, MaxSampleValue, PNG's sBIT, a depth of JPEG 2000 or PGM below 16. Where it
    states none, the image's own values decide, as sensors of 10, 12 and 14 bits write files of 16 without a word. That
    needs no setting, so training and inference, which sees one image at a time, agree:

    - Integers: white is the greatest value of 8, 10, 12, 14, 16, 17, ... bits, whichever is the first to hold the
      values. So the brightest pixel is never below a quarter of white, except in files that use less than 8 bits; a
      dark image of 16 bits comes out brighter than it is, unless its file states the depth.
    - Floats: white is 1 where the greatest value is above 0.25 and at most 1; else the power of two that holds the
      values, minus 1 from 256 on.
    - Negative values: black is the power of two that holds them, below 0. Without any, black is 0.

    One in a thousand of the values may lie above white or below black, hot pixels e.g., and is clipped. NaN, GDAL's
    value for missing data and negatives that are all the same and as far from 0 as white (-9999 e.g.) show black.

    Args:
        source: A path, or the content of a file.
        name: Name of the image in messages; None for the path.
        at_least: Height and width that are enough: a JPEG is decoded at 1/2, 1/4 or 1/8 as long as it stays that
            large, which is faster. None decodes every pixel, as evaluation and inference need it to see exactly what
            timm's own preprocessing sees.

    Raises:
        InputError: The file is missing, is not a whole image, or has more than `MAX_PIXELS` pixels.
    """
    return decode(source, name, at_least).image


def decode(source: str | Path | bytes, name: str | None = None, at_least: tuple[int, int] | None = None) -> Decoded:
    """Opens an image as `open_image` does, with what its file holds."""
    name = name or ('image' if isinstance(source, bytes) else str(source))
    suffix = os.path.splitext(name if isinstance(source, bytes) else source)[1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # metadata that Pillow finds odd
            warnings.simplefilter('error', Image.DecompressionBombWarning)  # before ICO and ICNS decode what they hold
            if not isinstance(source, bytes):
                _refuse_devices(source)
            try:
                return _decode(source, suffix, at_least)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning, InputError):
                raise
            except Exception as e:
                try:
                    return _decode(_repair(source), suffix, at_least)
                except Exception:
                    raise e from None
    except FileNotFoundError:
        raise InputError(f'{name}: there is no such file.') from None
    except Exception as e:  # Pillow's decoders raise nearly every kind of error on bytes that are not as they should be
        if isinstance(e, Image.UnidentifiedImageError):
            reason = explain_unknown(suffix, _head(source))
        else:
            reason = getattr(e, 'strerror', None) or ' '.join(str(e).split()) or type(e).__name__
        raise InputError(f'{name}: cannot be read as an image ({reason}).') from None


def _refuse_devices(path: str | Path) -> None:
    """Refuses what is no regular file: opening a FIFO waits for a writer, and a device may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError('is a folder' if stat.S_ISDIR(mode) else 'is a FIFO, a socket or a device, not a file')


def _head(source: str | Path | bytes) -> bytes:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
        return file.read(64)


def _decode(source: str | Path | bytes, suffix: str, at_least: tuple[int, int] | None) -> Decoded:
    with _open(source) as image:
        if image.format == 'TIFF' and (is_raw(suffix) or DNG_VERSION in image.tag_v2):
            raise InputError(RAW_REASON)  # Pillow would take the thumbnail for the image
        mode, deep, raw_mode = image.mode, is_deep(image), raw_mode_of(image)
        orientation = _orientation(image)
        if at_least:
            image.draft(None, at_least if orientation in SIDEWAYS else at_least[::-1])
        statement = read_statement(image) if deep else None
        is_apart = deep and image.tile[0][0] == 'libtiff' and image.tag_v2.get(PLANAR) == 2
        image.load()
        pixels, values = image, None
        if deep and image.getbands() in (('I',), ('F',)):
            pixels, values = scale_gray(image, statement)
        elif deep:
            values = scale_colour(image, lambda: _lower_bytes(image, source, raw_mode, is_apart), statement)
        pixels = _to_rgb(pixels)
        if image.format == 'PNG':
            orientation = _orientation(image)  # its EXIF may follow the pixels
        # `ImageOps.exif_transpose` would write all EXIF anew, which raises where that is odd.
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
    """Gives the tiles of a TIFF the layout that they have, where Pillow mistakes it."""
    tags = image.tag_v2
    if tags.get(PLANAR) == 2 and tags.get(SAMPLES, 1) == 1:
        tags[PLANAR] = 1  # of one channel it means nothing
        image._setup()
    if image.tile[0][0] == 'libtiff':  # which gives the machine's order of bytes
        *place, arguments = image.tile[0]
        raw_mode = re.sub(r'B([SF])$', r'N\1', arguments[0])
        image.tile = [make_tile(*place, (raw_mode, *arguments[1:]))]
    elif tags.get(PHOTOMETRIC) == 6:  # YCbCr, of which libtiff knows the subsampling
        size = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        image.use_load_libtiff = True
        image.tile = [make_tile('libtiff', (0, 0, *size), 0, ('RGBX', 'raw', False, tags.offset))]
    elif tags.get(PLANAR) == 2 and set(tags.get(BITS, ())) == {16}:
        order = 'L' if tags.prefix == b'II' else 'B'
        image.tile = [make_tile(*tile[:3], (f'{tile[3][0]};16{order}', *tile[3][1:])) for tile in image.tile]


def _lower_bytes(image: Image.Image, source: str | Path | bytes, raw_mode: str, is_apart: bool) -> Image.Image:
    """Reads the lower bytes of samples of 16 bits.

    Args:
        image: The upper bytes, as Pillow reads them.
        source: The file.
        raw_mode: Pillow's raw mode of the file.
        is_apart: True where libtiff reads the channels one after another, for which Pillow knows only the upper bytes.
    """
    if is_apart:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if content[:4] not in TIFF:
            return image  # a BigTIFF: each byte twice is close, and what there is
        planes = [_open(_channel(content, number, len(image.getbands()))) for number in range(len(image.getbands()))]
        return Image.merge(image.mode, [Image.fromarray(np.asarray(plane).astype(np.uint8)) for plane in planes])
    with _open(source) as other:
        other.tile = [_of_lower_bytes(tile) for tile in other.tile]
        other.load()
        return Image.merge('RGBA', [other.getchannel(k) for k in (1, 1, 1, 3)]) if raw_mode.startswith('LA') else other


def _of_lower_bytes(tile: tuple) -> tuple:
    """Changes a tile's raw mode to that of the other order of bytes: it takes the lower ones for the upper ones."""
    *place, arguments = tile
    raw_mode, rest = (arguments, None) if isinstance(arguments, str) else (arguments[0], arguments[1:])
    # Pillow has no other order for gray with alpha: as RGBA it gives both bytes of both.
    raw_mode = 'RGBA' if raw_mode.startswith('LA') else raw_mode[:-1] + OTHER_ORDER[raw_mode[-1]]
    return make_tile(*place, raw_mode if rest is None else (raw_mode, *rest))


def _channel(content: bytes, number: int, channels: int) -> bytes:
    """Makes a TIFF of one of the channels of a TIFF that stores them apart."""
    order, start, places = _directory(content)
    alone = {BITS: 16, PHOTOMETRIC: 1, SAMPLES: 1, PLANAR: 1}
    kept = []
    for place in places:
        tag, kind, count, value = struct.unpack_from(order + 'HHLL', content, place)
        if tag in alone:
            kept.append(struct.pack(order + 'HHLHH', tag, 3, 1, alone[tag], 0))
        elif tag in PARTS:  # a list for each channel
            stored = struct.calcsize(order + INTEGERS[kind]) * count // channels
            value += stored * number
            entry = struct.pack(order + 'L', value) if stored > 4 else content[value : value + stored].ljust(4, b'\0')
            kept.append(struct.pack(order + 'HHL', tag, kind, count // channels) + entry)
        elif tag in PIXEL_TAGS and not 338 <= tag <= 341:  # of all channels
            kept.append(content[place : place + 12])
    directory = struct.pack(order + 'H', len(kept)) + b''.join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]


def _orientation(image: Image.Image) -> int:
    """Reads the orientation from EXIF, or else from XMP; 1 where neither has one that can be read."""
    if image.format == 'TIFF':
        return 1  # Pillow turns a TIFF itself as it loads it
    orientation = _exif_orientation(_exif(image))
    if orientation is None and (found := XMP_ORIENTATION.search(_xmp(image))):
        orientation = int(found[1])
    return orientation if orientation in UPRIGHT else 1


def _exif(image: Image.Image) -> bytes:
    exif = image.info.get('exif', b'')
    for key in ('Raw profile type exif', 'Raw profile type APP1'):  # hexadecimal, as ImageMagick writes it into PNG
        if not exif and key in image.info:
            with suppress(ValueError):
                exif = bytes.fromhex(''.join(image.info[key].split('\n')[3:]))
    while exif.startswith(b'Exif\0\0'):  # some cameras write it twice
        exif = exif[6:]
    return exif


def _exif_orientation(exif: bytes) -> int | None:
    """Finds the orientation among tags that Pillow reads only as far as they are in order."""
    try:
        order, _, places = _directory(exif)
        for place in places:
            tag, kind, count = struct.unpack_from(order + 'HHL', exif, place)
            if tag == ExifTags.Base.Orientation and kind in INTEGERS:
                is_far = count * struct.calcsize(INTEGERS[kind]) > 4
                value = struct.unpack_from(order + 'L', exif, place + 8)[0] if is_far else place + 8
                return struct.unpack_from(order + INTEGERS[kind], exif, value)[0]
    except struct.error:  # it ends early
        pass
    return None


def _directory(content: bytes) -> tuple[str, int, range]:
    """Returns the order of bytes, the start and the places of the entries of the first directory of TIFF or EXIF."""
    if content[:4] not in TIFF:
        return '<', 0, range(0)
    order = '<' if content.startswith(b'I') else '>'
    (start,) = struct.unpack_from(order + 'L', content, 4)
    (count,) = struct.unpack_from(order + 'H', content, start)
    return order, start, range(start + 2, start + 2 + 12 * count, 12)


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get('xmp') or image.info.get('XML:com.adobe.xmp') or b''
    if not xmp:  # Pillow 10 leaves a JPEG's among its segments
        xmp = b''.join(
            data for _, data in getattr(image, 'applist', ()) if data.startswith(b'http://ns.adobe.com/xap/')
        )
    return xmp.encode() if isinstance(xmp, str) else xmp


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts a loaded image of 8 bits."""
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


def _repair(source: str | Path | bytes) -> bytes:
    """Leaves out metadata at which Pillow stops, where the pixels may be whole, and adds a JPEG's missing end.

    Raises:
        ValueError: The file is of another kind, or too large to be read at once.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
        head = file.read(12)
        kinds = {
            _bare_png: head.startswith(PNG),
            _bare_tiff: head[:4] in TIFF,
            _bare_avif: head[4:8] == b'ftyp',
            _bare_jpeg: head.startswith(JPEG),
        }
        for repair, fits in kinds.items():
            if fits and file.seek(0, io.SEEK_END) <= MOST_BYTES:
                file.seek(0)
                return repair(file.read())
    raise ValueError('there is nothing to repair')


def _bare_png(content: bytes) -> bytes:
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(content):
        length, kind = struct.unpack_from('>L4s', content, place)
        chunk = content[place : place + 12 + length]
        is_whole = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], 'big')
        if kind[:1].isupper() or (kind in (b'tRNS', b'sBIT', b'eXIf') and is_whole):
            kept.append(chunk)
        place += len(chunk)
    return b''.join(kept)


def _bare_tiff(content: bytes) -> bytes:
    order, start, places = _directory(content)
    entries = [content[place : place + 12] for place in places]
    kept = [entry for entry in entries if struct.unpack_from(order + 'H', entry)[0] in PIXEL_TAGS]
    directory = struct.pack(order + 'H', len(kept)) + b''.join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]


def _bare_avif(content: bytes) -> bytes:
    return content.replace(b'Exif', b'none')  # a kind of item that readers pass over


def _bare_jpeg(content: bytes) -> bytes:
    kept, place = [JPEG], len(JPEG)
    while content[place + 1] != START_OF_SCAN:
        if content[place + 1] == 0xFF:  # padding before a marker
            place += 1
            continue
        (length,) = struct.unpack_from('>H', content, place + 2)
        if content[place + 1] not in JPEG_METADATA:
            kept.append(content[place : place + 2 + length])
        place += 2 + length
    kept.append(content[place:])
    return b''.join(kept) if END_OF_JPEG in kept[-1] else _ended_jpeg(b''.join(kept))


def _ended_jpeg(content: bytes) -> bytes:
    """Adds the end marker to a JPEG that lacks nothing else.

    What follows the last coefficient changes nothing, so it has to be all there if different bytes after the end of the
    file give the same pixels. A progressive file could lack whole scans, which this does not show.
    """
    pixels = set()
    for filler in (b'\0', b'\x55', b'\xaa'):
        with _open(content + filler * 4096 + END_OF_JPEG) as image:
            if 'progressive' in image.info:
                raise ValueError('scans may be missing')
            pixels.add(image.tobytes())
    if len(pixels) > 1:
        raise ValueError('pixels are missing')
    return content + END_OF_JPEG
