"""Repairs image files that Pillow refuses: removes metadata that it cannot read, and completes JPEG files."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

__all__ = ['INTEGERS', 'PIXEL_TAGS', 'TIFF', 'read_directory', 'repair']

PNG, JPEG, TIFF = b'\x89PNG\r\n\x1a\n', b'\xff\xd8', (b'II*\0', b'MM\0*')
MAX_SIZE = 2**28  # bytes of a file that is repaired
START_OF_SCAN, END_OF_JPEG = 0xDA, b'\xff\xd9'
JPEG_METADATA = {0xE0, *range(0xE2, 0xEE), 0xEF, 0xFE}  # all but EXIF and the colours of Adobe

INTEGERS = {1: 'B', 3: 'H', 4: 'L', 6: 'b', 8: 'h', 9: 'l'}  # types of TIFF
# Tags of TIFF without which its pixels cannot be read
PIXEL_TAGS = {*range(256, 260), 262, 266, *range(273, 282), 284, 292, 293, 317, *range(320, 326)}
PIXEL_TAGS |= {*range(332, 334), *range(336, 348), *range(512, 522), *range(529, 533), 42113}


def repair(source: str | Path | bytes) -> bytes:
    """Removes metadata that Pillow cannot read, and adds the missing end marker of a JPEG.

    Raises:
        ValueError: The file has another format, or is too large.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
        head = file.read(12)
        kinds = {
            _strip_png: head.startswith(PNG),
            _strip_tiff: head[:4] in TIFF,
            _strip_avif: head[4:8] == b'ftyp',
            _strip_jpeg: head.startswith(JPEG),
        }
        for strip, fits in kinds.items():
            if fits and file.seek(0, io.SEEK_END) <= MAX_SIZE:
                file.seek(0)
                return strip(file.read())
    raise ValueError('there is nothing to repair')


def _strip_png(content: bytes) -> bytes:
    kept, place = [PNG], len(PNG)
    while place + 12 <= len(content):
        length, kind = struct.unpack_from('>L4s', content, place)
        chunk = content[place : place + 12 + length]
        is_valid = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], 'big')
        if kind[:1].isupper() or (kind in (b'tRNS', b'sBIT', b'eXIf') and is_valid):
            kept.append(chunk)
        place += len(chunk)
    return b''.join(kept)


def _strip_tiff(content: bytes) -> bytes:
    order, start, places = read_directory(content)
    entries = [content[place : place + 12] for place in places]
    kept = [entry for entry in entries if struct.unpack_from(order + 'H', entry)[0] in PIXEL_TAGS]
    directory = struct.pack(order + 'H', len(kept)) + b''.join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]


def _strip_avif(content: bytes) -> bytes:
    return content.replace(b'Exif', b'none')  # an item type that readers ignore


def _strip_jpeg(content: bytes) -> bytes:
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
    return b''.join(kept) if END_OF_JPEG in kept[-1] else _end_jpeg(b''.join(kept))


def _end_jpeg(content: bytes) -> bytes:
    """Adds the end marker to a JPEG that is otherwise complete.

    Bytes after the last coefficient have no effect: if different bytes at the end give the same pixels, all
    coefficients are there. This does not hold for progressive files, which may lack whole scans.
    """
    pixels = set()
    for filler in (b'\0', b'\x55', b'\xaa'):
        with Image.open(io.BytesIO(content + filler * 4096 + END_OF_JPEG)) as image:
            if 'progressive' in image.info:
                raise ValueError('scans may be missing')
            pixels.add(image.tobytes())
    if len(pixels) > 1:
        raise ValueError('pixels are missing')
    return content + END_OF_JPEG


def read_directory(content: bytes) -> tuple[str, int, range]:
    """Returns byte order, start and positions of the entries of the first directory of TIFF or EXIF."""
    if content[:4] not in TIFF:
        return '<', 0, range(0)
    order = '<' if content.startswith(b'I') else '>'
    (start,) = struct.unpack_from(order + 'L', content, 4)
    (count,) = struct.unpack_from(order + 'H', content, start)
    return order, start, range(start + 2, start + 2 + 12 * count, 12)
