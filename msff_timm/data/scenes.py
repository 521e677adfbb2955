"""Reader of scenes: multi-label images drawn by code, for the demo and for ablations on the size of objects.

A scene depends on (seed, split, index) only. Its layout and its background come from separate random streams, so the
same scene can be drawn at any image size. Objects of the same size have the same area whatever their label, which makes
metrics by size comparable, and colours are independent of the labels, so only the shape reveals the label.
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature
from PIL import Image, ImageDraw

from ..errors import InputError, unknown
from ..labels import SCENES_LABELS
from . import records

__all__ = ['LABEL_NAMES', 'Scene', 'SceneObject', 'draw', 'layout', 'load']

LABEL_NAMES = SCENES_LABELS
SPLITS = ('train', 'validation', 'test')
PAIRS = (('arrow', 'ring'), ('bolt', 'star'), ('crescent', 'heart'), ('cross', 'pill'))

DEFAULT_SIZE = 10_000  # scenes of a split
MAX_OBJECTS = 6
AREA_PER_SIZE = 0.45  # area of a shape of size 1; the extent of the shapes is then 0.9 to 1.25 of their size
SIZE_BANDS = ((0.20, 0.06, 0.14), (0.58, 0.14, 0.30), (1.0, 0.30, 0.60))  # (cumulative share, smallest, largest size)
MAX_ANGLE = 0.4  # radians in either direction

_PARTNER = {LABEL_NAMES.index(a): LABEL_NAMES.index(b) for pair in PAIRS for a, b in (pair, pair[::-1])}
_PARTNER_CHANCE = 0.5
_MAX_HIDDEN = 0.3  # largest share of an object's box that the boxes of later objects cover
_BOX = 0.85  # side of that box in sizes
_TRIES = 24
_SHRINK = 0.94
_MIN_SIZE = SIZE_BANDS[0][1]
_CONTRAST = 110  # smallest difference in luminance, of 255, between an object and the background
_DARK = 50  # largest luminance of an outline
_BORDER = 0.055  # width of an outline in sizes
_OVERSAMPLE = 4
_LAYOUT_STREAM, _BACKGROUND_STREAM = 1, 2


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene; lengths are relative to the side of the image, areas to its area.

    Attributes:
        label: Index into `LABEL_NAMES`.
        centre: (x, y) from the upper left corner.
        size: Side of a square; the shape fills `AREA_PER_SIZE` of it.
        angle: Clockwise rotation in radians.
        fill: RGB of the inside, 0 to 255.
        outline: RGB of the border, 0 to 255.
        area: Area of the whole shape, including hidden parts.
    """

    label: int
    centre: tuple[float, float]
    size: float
    angle: float
    fill: tuple[int, int, int]
    outline: tuple[int, int, int]
    area: float


def layout(seed: int, index: int, split: str = 'train') -> list[SceneObject]:
    """Returns the objects of a scene in the order in which they are drawn.

    Raises:
        InputError: `split` is not one of `SPLITS`.
    """
    return _compose(seed, index, split)[0]


def _compose(seed: int, index: int, split: str) -> tuple[list[SceneObject], int]:
    """Returns the objects of a scene and the luminance of its background."""
    rng = _stream(_LAYOUT_STREAM, seed, index, split)
    tone = 20 + int(rng.random() * 80)
    count = 1 + int(rng.random() * MAX_OBJECTS)
    labels = _choose_labels(rng.random((count, 2)).tolist())
    sizes = [_choose_size(band, within) for band, within in rng.random((count, 2)).tolist()]
    angles = ((rng.random(count) * 2 - 1) * MAX_ANGLE).tolist()
    fills = _colours(rng, count, tone + _CONTRAST, 255)
    outlines = _colours(rng, count, 0, _DARK)
    places = rng.random((count, _TRIES, 2)).tolist()

    objects: list[SceneObject] = []
    hidden: list[float] = []
    # Large objects first: later objects are drawn on top, and a small object must not vanish under a large one.
    for i in sorted(range(count), key=lambda i: (-sizes[i], i)):
        size = sizes[i]
        for u, v in places[i]:
            centre = (size * 0.5 + u * (1 - size), size * 0.5 + v * (1 - size))
            after = [h + _cover(centre, size, other) for h, other in zip(hidden, objects, strict=True)]
            if all(h <= _MAX_HIDDEN for h in after):
                hidden = [*after, 0.0]
                area = AREA_PER_SIZE * size * size
                objects.append(SceneObject(labels[i], centre, size, angles[i], fills[i], outlines[i], area))
                break
            size = max(size * _SHRINK, _MIN_SIZE)
    return objects, tone


def _stream(stream: int, seed: int, index: int, split: str) -> np.random.Generator:
    """Returns the generator of one scene. The seed is last: only it may take more than one 32-bit word."""
    if split not in SPLITS:
        raise unknown('split of scenes', split, SPLITS)
    return np.random.default_rng([stream, SPLITS.index(split), index, seed])


def _choose_labels(numbers: list[list[float]]) -> list[int]:
    """Maps two uniform numbers per object to labels: every second one may be the partner of the one before."""
    labels: list[int] = []
    for i, (pick, together) in enumerate(numbers):
        label = int(pick * len(LABEL_NAMES))
        if i % 2 and together < _PARTNER_CHANCE:
            label = _PARTNER.get(labels[-1], label)
        labels.append(label)
    return labels


def _choose_size(band: float, within: float) -> float:
    """Maps two uniform numbers to a size: a band by its share, then uniformly by area within the band."""
    low, high = next((low, high) for below, low, high in SIZE_BANDS if band < below)
    return math.sqrt(low * low + within * (high * high - low * low))


def _cover(centre: tuple[float, float], size: float, earlier: SceneObject) -> float:
    """Returns the share of an earlier object's box that the box of a new object covers."""
    reach = _BOX * (size + earlier.size) / 2
    largest = _BOX * min(size, earlier.size)
    width = min(reach - abs(centre[0] - earlier.centre[0]), largest)
    height = min(reach - abs(centre[1] - earlier.centre[1]), largest)
    return max(width, 0.0) * max(height, 0.0) / (_BOX * earlier.size) ** 2


def _colours(rng: np.random.Generator, count: int, low: int, high: int) -> list[tuple[int, int, int]]:
    """Draws RGB colours with a luminance between two bounds, or the closest of 16 trials."""
    candidates = (rng.random((count, 16, 3)) * 256).astype(np.int64)
    luminance = (candidates[..., 0] * 299 + candidates[..., 1] * 587 + candidates[..., 2] * 114) // 1000
    beyond = np.maximum(low - luminance, luminance - high)
    chosen = np.maximum(beyond, 0).argmin(1)  # the first within the bounds, if any
    return [tuple(colour) for colour in candidates[np.arange(count), chosen].tolist()]


def _background(rng: np.random.Generator, tone: int, image_size: int) -> Image.Image:
    """Draws glows, patches, lines, specks and stripes behind the objects.

    Their colours have the distribution of fills and outlines, and their number varies more than that of the objects:
    colour statistics do not reveal the objects.
    """
    image = _enlarge(rng.random((3, 3, 3)) * 90 - 45 + tone, image_size)
    glows, patches, lines, specks = (rng.random(4) * (4, 3, 9, 41)).astype(int).tolist()
    washes = [(3, 60, 2, 255)] * glows + [(8, 150, 12, 90)] * patches  # cells, threshold, steepness, opacity
    colours = _colours(rng, len(washes), tone + _CONTRAST, 255)
    for (cells, threshold, steepness, opacity), colour in zip(washes, colours, strict=True):
        more_cells, more = rng.random(2).tolist()
        cells, threshold = cells + int(more_cells * cells), threshold + int(more * 50)
        ramp = np.clip((np.arange(256) - threshold) * steepness, 0, opacity).tolist()
        image.paste(colour, mask=_enlarge(rng.random((cells, cells)) * 256, image_size).point(ramp))

    painter = ImageDraw.Draw(image)
    colours = _colours(rng, lines + specks, tone + _CONTRAST, 255)
    colours[::2] = _colours(rng, len(colours[::2]), 0, _DARK)
    for *ends, width in rng.random((lines, 5)).tolist():
        width = max(round((0.004 + 0.012 * width) * image_size), 1)
        painter.line([int(v * image_size) for v in ends], colours.pop(), width)
    for x, y, extent in rng.random((specks, 3)).tolist():
        x, y, extent = int(x * image_size), int(y * image_size), int((0.004 + 0.012 * extent) * image_size)
        painter.rectangle((x, y, x + extent, y + extent), colours.pop())

    (across, down), depth = rng.random(2) * 24 - 12, rng.random() * 20
    line = np.arange(image_size) / image_size
    phase = (line * across + line[:, None] * down) % 1
    stripes = (np.abs(phase - 0.5) * 4 - 1) * depth
    return _add(image, stripes)


def _enlarge(grid: np.ndarray, side: int) -> Image.Image:
    """Enlarges a small grid of values, clipped to 0 to 255, to a smooth image (side, side)."""
    small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def _add(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Adds one value per pixel (height, width) to all channels of an image, clipped to 0 to 255."""
    return Image.fromarray(np.clip(np.asarray(image) + values.astype(np.int16)[..., None], 0, 255).astype(np.uint8))


def _circle(radius: float, x: float = 0.0, start: float = 0.0, stop: float = math.tau) -> list[tuple[float, float]]:
    """Returns the points of an arc around (x, 0)."""
    angles = [start + (stop - start) * i / 36 for i in range(37)]
    return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _heart() -> list[tuple[float, float]]:
    angles = [math.tau * i / 36 for i in range(36)]
    curve = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(16 * math.sin(a) ** 3, -y - 2) for a, y in zip(angles, curve, strict=True)]


def _star() -> list[tuple[float, float]]:
    radii = [1.0, 0.48] * 5
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _shapes() -> list[list[np.ndarray]]:
    """Returns the contours (points, 2) of each label, an outline and perhaps a hole, with the area `AREA_PER_SIZE`."""
    arm = [(-0.33, -1), (0.33, -1), (0.33, -0.33)]
    shapes = {
        'arrow': [[(-1, -0.3), (0, -0.3), (0, -0.85), (1, 0), (0, 0.85), (0, 0.3), (-1, 0.3)]],
        'bolt': [[(-0.3, -1), (0.55, -1), (0.25, -0.3), (0.75, -0.3), (-0.45, 1), (-0.15, 0.15), (-0.75, 0.15)]],
        'crescent': [_circle(1, 0.15, 0.8128, math.tau - 0.8128) + _circle(0.75, 0.65, -1.3181, 1.3181 - math.tau)],
        'cross': [[(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in arm]],
        'dumbbell': [_circle(0.43, 0.6, 0.36 - math.pi, math.pi - 0.36) + _circle(0.43, -0.6, 0.36, math.tau - 0.36)],
        'heart': [_heart()],
        'hourglass': [[(-0.85, -1), (0.85, -1), (0.16, 0), (0.85, 1), (-0.85, 1), (-0.16, 0)]],
        'pill': [_circle(0.42, 0.6, -math.pi / 2, math.pi / 2) + _circle(0.42, -0.6, math.pi / 2, 1.5 * math.pi)],
        'ring': [_circle(1), _circle(0.5)],
        'square': [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
        'star': [_star()],
        'triangle': [[(0, -1), (3**0.5 / 2, 0.5), (-(3**0.5) / 2, 0.5)]],
    }
    contours = [[np.array(c, dtype=np.float64) for c in shapes[name]] for name in LABEL_NAMES]
    areas = [_area(outside) - sum(map(_area, holes)) for outside, *holes in contours]
    return [[c * math.sqrt(AREA_PER_SIZE / area) for c in shape] for shape, area in zip(contours, areas, strict=True)]


def _area(contour: np.ndarray) -> float:
    """Returns the area within a contour (points, 2)."""
    following = np.roll(contour, -1, axis=0)
    return abs(float(np.sum(contour[:, 0] * following[:, 1] - contour[:, 1] * following[:, 0]))) / 2


_SHAPES = _shapes()
_RADII = [float(np.hypot(*shape[0].T).max()) for shape in _SHAPES]


def draw(seed: int, index: int, image_size: int, split: str = 'train') -> Image.Image:
    """Draws a scene as an RGB image (image_size, image_size); except for its grain, it is the same at every size.

    Raises:
        InputError: `split` is not one of `SPLITS`.
    """
    objects, tone = _compose(seed, index, split)
    rng = _stream(_BACKGROUND_STREAM, seed, index, split)
    image = _background(rng, tone, image_size)
    for scene_object in objects:
        corner, shape, inside = _stamp(scene_object, image_size)
        image.paste(scene_object.outline, corner, shape)
        image.paste(scene_object.fill, corner, inside)
    grain = rng.random() * 24
    return _add(image, (rng.random((image_size, image_size)) - 0.5) * grain)


def _stamp(scene_object: SceneObject, image_size: int) -> tuple[tuple[int, int], Image.Image, Image.Image]:
    """Draws one object: upper left corner, and antialiased masks of the whole shape and of its inside."""
    size, angle = scene_object.size * image_size, scene_object.angle
    reach = math.ceil(size * _RADII[scene_object.label]) + 1
    x, y = (math.floor(c * image_size) for c in scene_object.centre)
    shift = [(c * image_size % 1 + reach) * _OVERSAMPLE for c in scene_object.centre]
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    # Rounded to subpixels, since the last bits of a cosine differ between machines.
    contours = [
        [tuple(point) for point in np.rint(c @ turn * (size * _OVERSAMPLE) + shift).astype(int).tolist()]
        for c in _SHAPES[scene_object.label]
    ]
    shape = Image.new('L', (2 * reach * _OVERSAMPLE,) * 2)
    painter = ImageDraw.Draw(shape)
    for contour in contours:
        painter.polygon(contour, 0 if contour is not contours[0] else 255)
    inside, border = shape.copy(), round(_BORDER * size * _OVERSAMPLE)
    painter = ImageDraw.Draw(inside)
    for contour in contours:
        painter.line([*contour, contour[0]], 0, width=2 * border)
        for point in contour:  # a thick line has gaps at its corners
            painter.ellipse([v + d for d in (-border, border) for v in point], 0)
    return (x - reach, y - reach), shape.reduce(_OVERSAMPLE), inside.reduce(_OVERSAMPLE)


@dataclass
class Scene:
    """A `datasets` feature that stores the index of a scene and decodes to its image.

    Attributes:
        split: Split, one of `SPLITS`.
        seed: Seed of the data set.
        image_size: Side of the images in pixels.
    """

    split: str
    seed: int
    image_size: int
    dtype: ClassVar[str] = 'PIL.Image.Image'
    pa_type: ClassVar[pa.DataType] = pa.int64()
    _type: str = field(default='Scene', init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """Returns the Arrow type of the storage."""
        return self.pa_type

    def encode_example(self, value: int) -> int:
        """Returns the index unchanged."""
        return value

    def decode_example(self, value: int, token_per_repo_id: dict[str, Any] | None = None) -> Image.Image:
        """Draws the image of an index; the tokens, which `datasets` passes to all features, are ignored."""
        return draw(self.seed, int(value), self.image_size, self.split)


with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # each call warns that it is experimental
    register_feature(Scene, 'Scene')


def load(split: str, size: int = DEFAULT_SIZE, image_size: int = 128, seed: int = 0) -> datasets.Dataset:
    """Returns a data set of the scenes 0 to `size` - 1 of a split; the splits of a seed share no scene.

    Images are drawn when read. Areas are those of whole shapes, including hidden parts; `image_id` is e.g. `train-7`.

    Args:
        split: Split, one of `SPLITS`.
        size: Number of scenes.
        image_size: Side of the images in pixels.
        seed: Seed of the data set.

    Raises:
        InputError: The split is unknown, or the size is less than 1.

    Examples:
        >>> row = load('train', size=1)[0]
        >>> [LABEL_NAMES[label] for label in row['labels']]
        ['bolt', 'cross', 'hourglass', 'square', 'star']
    """
    if size < 1:
        raise InputError(f'size is {size}: must be at least 1.')
    largest: list[dict[int, float]] = []
    for index in range(size):
        areas: dict[int, float] = {}
        for scene_object in layout(seed, index, split):
            areas[scene_object.label] = max(areas.get(scene_object.label, 0.0), scene_object.area)
        largest.append(dict(sorted(areas.items())))
    columns = {
        'image': range(size),
        'labels': [list(areas) for areas in largest],
        'ignore': [[]] * size,
        'area': [list(areas.values()) for areas in largest],
        'image_id': [f'{split}-{index}' for index in range(size)],
    }
    features = records.features(list(LABEL_NAMES), Scene(split, seed, image_size))
    return datasets.Dataset.from_dict(columns, features=features)
