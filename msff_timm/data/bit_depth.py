"""Images of more than 8 bits: finds the values that become black and white, by the rules of `images.open_image`."""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

__all__ = ['ValueRange', 'is_deep', 'make_tile', 'raw_mode_of', 'read_statement', 'scale_colour', 'scale_gray']

BLOCK = 2**20  # pixels scaled at once
OUTLIERS = 1e-3  # largest share of values above white, e.g. hot pixels, which would darken all others
FILL = 1e30  # floats beyond it are fill values, e.g. the largest float
SMALLEST = -1100  # less than the exponent of any float
PNG_HEADER = 8  # bytes before the first chunk

# TIFF tags
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
MAX_VALUE, S_MIN, S_MAX, GDAL_NODATA = 281, 340, 341, 42113


@dataclass(frozen=True)
class ValueRange:
    """The values of an image of more than 8 bits.

    Attributes:
        lowest: Smallest finite value.
        highest: Largest finite value.
        black: Value that becomes 0.
        white: Value that becomes 255.
        is_stated: True if the file states black and white; else the values decide.
    """

    lowest: float
    highest: float
    black: float
    white: float
    is_stated: bool


def make_tile(*entries: object) -> tuple:
    """Returns a tile of Pillow, which is a plain tuple in Pillow 10."""
    return getattr(ImageFile, '_Tile', lambda *entries: entries)(*entries)


def is_deep(image: Image.Image) -> bool:
    """Returns whether an opened, not yet loaded file has more than 8 bits that need scaling."""
    raw_mode = raw_mode_of(image)
    is_colour = raw_mode.partition(';')[2] in ('16L', '16B', '16N') and not raw_mode.startswith('RGBa')
    return image.mode == 'F' or image.mode.startswith('I') or (is_colour and image.mode in ('RGB', 'RGBA', 'CMYK'))


def raw_mode_of(image: Image.Image) -> str:
    """Returns the raw mode of Pillow (the layout of samples) of a PNG or TIFF, else an empty string."""
    if image.format not in ('PNG', 'TIFF') or not image.tile:
        return ''
    arguments = image.tile[0][3]
    return arguments if isinstance(arguments, str) else arguments[0]


@dataclass(frozen=True)
class _Statement:
    """Range that a file states.

    Attributes:
        black: Value that becomes 0.
        white: Value that becomes 255.
        beyond: White if values exceed it; None if the values decide then.
    """

    black: float
    white: float
    beyond: float | None


def read_statement(image: Image.Image) -> _Statement | None:
    """Returns the depth or range that an opened, not yet loaded file states."""
    if image.format in ('PPM', 'JPEG2000'):
        # Pillow scales to 16 bits by the depth in the header; a depth of 16 may be the default of the writer.
        bits = _jpeg2000_bits(image) if image.format == 'JPEG2000' else _graymap_bits(image)
        return None if image.mode == 'F' or bits == 16 else _Statement(0, 65535, 65535)
    if image.format == 'PNG':
        bits = _significant_bits(image)
        # The specification requires samples scaled to 16 bits; some writers do not scale them.
        return _Statement(0, 2**bits - 1, 65535) if bits else None
    if image.format != 'TIFF':
        return None
    tags = image.tag_v2
    black, white = min(_numbers(tags, S_MIN), default=0), max(_numbers(tags, S_MAX), default=0)
    if black < white:
        return _Statement(black, white, white)
    if max(_numbers(tags, BITS), default=1) == 12:
        return _Statement(0, 4095, 4095)
    highest = int(max(_numbers(tags, MAX_VALUE), default=0))
    is_float = 3 in _numbers(tags, SAMPLE_FORMAT)
    return None if highest <= 0 or is_float else _Statement(0, 2 ** highest.bit_length() - 1, None)


def _numbers(tags: dict, tag: int) -> list[float]:
    """Returns the numbers of a tag; none if it is missing, is text or holds fill values."""
    value = tags.get(tag, ())
    try:
        numbers = [float(number) for number in (value if isinstance(value, tuple) else (value,))]
    except ValueError:  # text
        return []
    return numbers if all(abs(number) < FILL for number in numbers) else []


def _graymap_bits(image: Image.Image) -> int:
    decoder, _, _, arguments = image.tile[0]
    return 16 if decoder == 'raw' else int(arguments[-1]).bit_length()


def _jpeg2000_bits(image: Image.Image) -> int:
    """Returns the depth of the first channel of a JPEG 2000, which Pillow does not provide; 16 if it is not found."""
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(2**16)
    image.fp.seek(place)
    start = head.find(b'\xff\x4f\xff\x51')
    return (head[start + 42] & 127) + 1 if 0 <= start < len(head) - 42 else 16


def _significant_bits(image: Image.Image) -> int | None:
    """Returns the original depth of the channels of a PNG (sBIT), which Pillow ignores."""
    place = image.fp.tell()
    image.fp.seek(PNG_HEADER)
    try:
        while True:
            length, kind = struct.unpack('>L4s', image.fp.read(8))
            if kind == b'sBIT':
                bits = image.fp.read(length)[: 1 if image.mode.startswith('I') or length < 3 else 3]
                return max(bits) if bits and max(bits) in range(1, 17) else None
            if kind == b'IDAT':
                return None
            image.fp.seek(length + 4, io.SEEK_CUR)
    except struct.error:
        return None
    finally:
        image.fp.seek(place)


class _Scaling:
    """Maps values of more than 8 bits to bytes.

    Args:
        blocks: Blocks of all values.
        statement: Range that the file states, or None.
        missing: Value that marks missing data, or None.
        is_inverted: True if the smallest value is the brightest.
    """

    def __init__(
        self,
        blocks: Iterator[np.ndarray],
        statement: _Statement | None = None,
        missing: float | None = None,
        is_inverted: bool = False,
    ):
        self.missing = missing
        self.is_inverted = is_inverted
        self.is_float = False
        self.lowest, self.highest, self.least_negative = np.inf, -np.inf, -np.inf
        self.above, self.below = (np.zeros(2 * -SMALLEST, np.int64) for _ in range(2))  # counts by binary exponent
        counts = np.zeros(2**16, np.int64)
        for block in blocks:
            if block.dtype == np.uint16:
                counts += np.bincount(block.ravel(), minlength=len(counts))
            else:
                self.is_float = block.dtype.kind == 'f'
                self._add(block.ravel().astype(np.float64))
        present = np.flatnonzero(counts)
        self._add(present.astype(np.float64), counts[present])
        self.values = self._range(statement)
        self.table = self._to_bytes(np.arange(len(counts)))

    def __call__(self, block: np.ndarray) -> np.ndarray:
        return self.table[block] if block.dtype == np.uint16 else self._to_bytes(block)

    def _add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        counted = np.abs(values) < FILL  # false for NaN
        if self.missing is not None:
            counted &= values != self.missing
        values, counts = values[counted], None if counts is None else counts[counted]
        if not len(values):
            return
        self.lowest, self.highest = min(self.lowest, values.min()), max(self.highest, values.max())
        for sign, found in ((1, self.above), (-1, self.below)):
            chosen = values * sign > 0
            sizes = values[chosen] * sign
            if sign < 0 and len(sizes):
                self.least_negative = max(self.least_negative, -sizes.min())
            # The range of floats and of negative values includes 2**n; integers of n bits end at 2**n - 1.
            exponents = np.frexp(np.nextafter(sizes, 0) if self.is_float or sign < 0 else sizes)[1]
            weights = None if counts is None else counts[chosen]
            found += np.bincount(exponents - SMALLEST, weights, len(found)).astype(np.int64)

    def _range(self, statement: _Statement | None) -> ValueRange:
        up, down = _held(self.above), _held(self.below)
        lowest, highest = (0.0, 0.0) if self.lowest > self.highest else (float(self.lowest), float(self.highest))
        if statement:
            is_beyond = up is not None and 2.0**up > statement.white + 1
            white = statement.beyond if is_beyond else statement.white
            if white is not None:
                return ValueRange(lowest, highest, statement.black, white, True)
        if self.is_float:
            n = 0 if up is None or -2 < up <= 0 else up
            white = 2.0**n - (n >= 8)
        elif down is None:
            n = up or 0
            white = 2.0 ** max(8, n + n % 2 if n < 16 else n) - 1
        else:
            white = 2.0 ** (up or 0) - 1
        if up is None and down is not None:
            white = 0.0
        black = 0.0 if down is None else -(2.0**down)
        if self.least_negative == self.lowest and -self.lowest >= white > 0:
            black = 0.0
        return ValueRange(lowest, highest, black, white, False)

    def _to_bytes(self, values: np.ndarray) -> np.ndarray:
        black, white = self.values.black, self.values.white
        if self.is_inverted:
            black, white = white, black
        scaled = (values.astype(np.float64) - black) * (255 / (white - black))
        scaled = np.nan_to_num(scaled, posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)
        if self.missing is not None:
            scaled[values == self.missing] = 0
        return scaled


def _held(found: np.ndarray) -> int | None:
    """Returns the exponent of the smallest power of two that holds all values but outliers; None without values."""
    total = found.sum()
    return int(np.argmax(total - found.cumsum() <= OUTLIERS * total)) + SMALLEST if total else None


def _rows(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields blocks of rows of an image, each with its first row."""
    rows = max(BLOCK // image.width, 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def scale_gray(image: Image.Image, statement: _Statement | None) -> tuple[Image.Image, ValueRange]:
    """Scales an image of one channel to 8 bits."""
    tags = image.tag_v2 if image.format == 'TIFF' else {}
    is_unsigned = image.mode == 'I' and tags.get(SAMPLE_FORMAT, (1,)) == (1,) and tags.get(BITS) == (32,)

    def values(part: Image.Image) -> np.ndarray:
        block = np.asarray(part)
        if image.mode.startswith('I;16'):
            return block.astype(np.uint16, copy=False)  # from either byte order
        return block.view(np.uint32) if is_unsigned else block

    try:
        missing = float(tags[GDAL_NODATA].strip(' \0'))
    except (KeyError, ValueError):
        missing = None
    scaling = _Scaling((values(part) for _, part in _rows(image)), statement, missing, tags.get(PHOTOMETRIC) == 0)
    clear = image.info.get('transparency')
    result = Image.new('L', image.size)
    for top, part in _rows(image):
        block = values(part)
        scaled = scaling(block)
        if clear is not None:
            scaled[block == clear] = 255
        result.paste(Image.fromarray(scaled), (0, top))
    return result, scaling.values


def scale_colour(
    image: Image.Image, lower_bytes: Callable[[], Image.Image], statement: _Statement | None
) -> ValueRange:
    """Scales an image of several 16-bit channels in place.

    Args:
        image: Upper byte of each sample, as Pillow reads it; sufficient if all 16 bits are used.
        lower_bytes: Function that reads the lower bytes.
        statement: Range that the file states, or None.
    """
    colours = 4 if image.mode == 'CMYK' else 3
    clear = image.info.pop('transparency', None)
    counts = np.reshape(image.histogram(), (-1, 256))[:colours].sum(0)
    present = np.flatnonzero(counts) * 257
    if clear is None and counts[64:].sum() > OUTLIERS * counts.sum() and (not statement or statement.white > 2**15):
        return ValueRange(float(present.min()), float(present.max()), 0.0, 65535.0, statement is not None)
    lower = lower_bytes()

    def values(upper: Image.Image, lower: Image.Image) -> np.ndarray:
        return np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)

    def blocks(channels: slice) -> Iterator[np.ndarray]:
        for (_, upper), (_, part) in zip(_rows(image), _rows(lower), strict=True):
            yield values(upper, part)[..., channels]

    colour, alpha = slice(None, colours), slice(colours, None)
    scaling = _Scaling(blocks(colour), statement)
    opacity = _Scaling(blocks(alpha)) if image.mode == 'RGBA' else None
    for (top, upper), (_, part) in zip(_rows(image), _rows(lower), strict=True):
        block = values(upper, part)
        scaled = scaling(block)
        if opacity:
            scaled[..., alpha] = opacity(block[..., alpha])
        if clear is not None:
            scaled[(block == clear).all(-1)] = 255
        image.paste(Image.frombytes(image.mode, upper.size, scaled.tobytes()), (0, top))
    return scaling.values
