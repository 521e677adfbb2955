"""Helpers of all figures: sheets of images with captions, fonts for label names, and shortened names.

matplotlib is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from ..errors import InputError
from .images import open_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    'COLUMNS',
    'DPI',
    'GAP',
    'MOST_LABELS',
    'Tile',
    'draw_sheet',
    'ends',
    'save_figure',
    'short',
    'thumbnail',
]

T = TypeVar('T')

MOST_LABELS = 100  # in a figure or a table
DPI = 120
COLUMNS = 6  # images in a row of a sheet
TILE, TALL, LINE, GAP, HEADING = 240, 180, 15, 12, 34  # in dots
MOST_LINES = 5  # in a caption
MOST_CHARACTERS = 10  # in a warning

_reported: set[str] = set()  # characters without a font that this process has warned of


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        image: Image of `thumbnail`; None if it cannot be read.
        caption: Lines of text with their colours.
    """

    image: Image.Image | None
    caption: Sequence[tuple[str, str]]


def draw_sheet(parts: dict[str, Sequence[Tile]]) -> Figure:
    """Draws a sheet of images: parts one below the other, by heading."""
    from matplotlib.figure import Figure

    rows = {heading: -(-len(tiles) // COLUMNS) for heading, tiles in parts.items()}
    most_lines = max(min(len(tile.caption), MOST_LINES) for tiles in parts.values() for tile in tiles)
    step = TALL + LINE * most_lines + 9 + GAP
    width = COLUMNS * (TILE + GAP) - GAP
    height = len(parts) * HEADING + sum(rows.values()) * step
    figure = Figure((width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    top = 0
    for heading, tiles in parts.items():
        axes.text(0, top + HEADING / 2, heading, va='center', fontsize=11, weight='bold', parse_math=False)
        top += HEADING
        for place, tile in enumerate(tiles):
            left, upper = place % COLUMNS * (TILE + GAP), top + place // COLUMNS * step
            if tile.image is None:
                axes.text(left + TILE / 2, upper + TALL / 2, 'cannot be read', ha='center', color='C3', fontsize=9)
            else:
                x, y = left + (TILE - tile.image.width) / 2, upper + TALL - tile.image.height
                extent = (x, x + tile.image.width, y + tile.image.height, y)
                axes.imshow(tile.image, extent=extent, aspect='auto')
            lines = tile.caption
            if len(lines) > MOST_LINES:
                lines = [*lines[: MOST_LINES - 1], ('…', 'black')]
            for number, (line, colour) in enumerate(lines):
                y = upper + TALL + 5 + LINE * number
                axes.text(left, y, line, va='top', fontsize=7.5, color=colour, parse_math=False)
        top += rows[heading] * step
    return figure


def save_figure(figure: Figure, file: object, **options: object) -> None:
    """Writes a figure; other installed fonts provide the characters that the default font of matplotlib lacks.

    A warning lists characters that no installed font has.

    Args:
        figure: Figure of matplotlib.
        file: Path or binary file.
        **options: Further arguments of `savefig`.
    """
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    has = {families: _characters_of(families) for families in {tuple(text.get_fontfamily()) for text in texts}}
    lacking = [set(text.get_text()) - has[tuple(text.get_fontfamily())] for text in texts]
    wanted = {character for found in lacking for character in found if _is_drawn(character)}
    families, without = _families_with(wanted) if wanted else ([], set())
    for text, found in zip(texts, lacking, strict=True):
        if found & wanted:
            text.set_fontfamily([*text.get_fontfamily(), *families])
    if new := sorted(without - _reported):
        _reported.update(new)
        some = ' '.join(new[:MOST_CHARACTERS]) + (f' ... ({len(new)} in all)' if len(new) > MOST_CHARACTERS else '')
        warnings.warn(
            f'figures show boxes for {some}: no installed font has these characters; install one, e.g. Noto Sans CJK'
            ' (package fonts-noto-cjk) for Chinese, Japanese and Korean.',
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from')  # reported above
        figure.savefig(file, **options)


def _is_drawn(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) not in ('Cc', 'Cf')


def _characters_of(families: Sequence[str]) -> set[str]:
    """Returns the characters of the fonts that matplotlib uses for font families."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = {findfont(FontProperties(family=[family])) for family in families}
    return {chr(code) for font in fonts for code in get_font(font).get_charmap()}


def _families_with(wanted: set[str]) -> tuple[list[str], set[str]]:
    """Returns few families of installed fonts that have the characters, and the characters that none of them has."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    listed = {entry.fname for entry in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in listed:  # installed after matplotlib cached its list
            try:
                manager.addfont(path)
            except Exception:  # each format has errors of its own; matplotlib skips such fonts too
                continue
    has: dict[str, set[str]] = {}  # the first face of a family counts: regular sans-serif faces are first
    for entry in sorted(manager.ttflist, key=_rank):
        if entry.name not in has and not entry.name.startswith('Last Resort'):  # draws boxes
            try:
                codes = font_manager.get_font(entry.fname).get_charmap()
            except (OSError, RuntimeError):  # uninstalled meanwhile, or damaged
                continue
            has[entry.name] = {character for character in wanted if ord(character) in codes}
    families, left = [], set(wanted)
    while left:
        best = max(has, key=lambda name: len(has[name] & left))
        if not has[best] & left:
            break
        families.append(best)
        left -= has[best]
    return families, left


def _rank(entry: object) -> tuple:
    from matplotlib.font_manager import weight_dict

    weight = weight_dict.get(entry.weight, entry.weight)
    return entry.style != 'normal', abs(weight - 400), 'Serif' in entry.name, 'Mono' in entry.name


def thumbnail(row: dict) -> Image.Image | None:
    """Returns the image of a row of an `undecoded` data set in the size of a tile; None if it cannot be read."""
    image = row['image']
    if image is None or isinstance(image, dict) and image['bytes'] is image['path'] is None:
        return None
    try:
        image = open_row(row)
    except InputError:
        return None
    scale = min(TILE / image.width, TALL / image.height)
    return image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.BICUBIC)


def ends(ranked: list[T]) -> list[T]:
    """Returns the first and last entries of a list of more than `MOST_LABELS`, and all of a shorter one."""
    if len(ranked) <= MOST_LABELS:
        return ranked
    return ranked[: MOST_LABELS // 2] + ranked[-MOST_LABELS // 2 :]


def short(name: str) -> str:
    """Shortens a name to 30 characters."""
    return name if len(name) <= 30 else f'{name[:29]}…'
