"""What each label looked at: its attention over the regions of the three scales, as tensors and as a figure."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageOps
from timm.utils import unwrap_model
from torchvision.transforms.functional import to_pil_image

from ..data.figures import save_figure
from ..data.transforms import eval_transform, open_image
from ..errors import InputError, unknown
from ..labels import names_of
from ..models.layers import MultiHeadAttention
from ..models.msff import MSFF
from .predict import check_finite

__all__ = [
    'LAYERS',
    'Explanation',
    'as_seen',
    'attention_maps',
    'caption',
    'draw',
    'explain',
    'overlay',
    'smooth_map',
    'smooth_overlay',
]

# 'all' is the default: in scenes its peaks lie in the object more often than those of 'last'.
LAYERS = ('all', 'last')

COLORMAP = 'inferno'  # perceptually even
STRONGEST = 0.7  # opacity of the smooth map at its peak: the image stays visible below it
WARMEST = 0.9  # of the colours, at its peak: their pale end would look grey over an image
FAINTEST = 1e-6  # of a scale's peak, so that no scale rules out what others see
FADED = 0.5  # share of grey in the image below the smooth map, so that its colours stand out

NEEDS_MATPLOTLIB = "drawing needs matplotlib: pip install 'msff-timm[explain]'"
MAX_LABELS = 8  # of those above the threshold: more make a image that nobody reads
FALLBACK_LABELS = 3

# Lengths in the image, in dots.
DPI = 120
PANEL = 288  # the longer side
MIN_STEP = 228  # from one column to the next: captions need as much
GAP = 12
TITLE_LINE = 24
CAPTION = 40
TITLE_CHARACTERS = 80

Call = tuple[MultiHeadAttention, torch.Tensor, torch.Tensor]  # with its query and its memory


@dataclass(frozen=True)
class Explanation:
    """What a model looked at in one photo.

    Attributes:
        photo: The photo's path.
        labels: Probability of each label that is explained.
        maps: Maps of the three scales, (labels, H_i, W_i): what share of its attention each label gives to each cell.
            `smooth_map` makes one map of them.
    """

    photo: str
    labels: dict[str, float]
    maps: list[torch.Tensor]


@torch.inference_mode()
def explain(
    model: nn.Module,
    photo: str | Path,
    labels: Sequence[str] | None = None,
    output: str | Path | None = None,
    layers: str = 'all',
    threshold: float = 0.5,
) -> Explanation:
    """Finds out what labels looked at in a photo, preprocessed as the model's own configuration says.

    Args:
        model: An MSFF model in evaluation mode, on any device.
        photo: Path.
        labels: Names; without any, the most probable above the threshold, 8 at most, or else the three most probable.
        output: Image to draw, as `draw` does.
        layers: As for `attention_maps`.
        threshold: Of probability.

    Raises:
        InputError: The model cannot be explained, lacks a label or gives logits that are not finite, the photo cannot
            be read, or the image cannot be drawn.
    """
    model = _checked(model, layers)
    data_config = timm.data.resolve_input_data_config(model)
    label_names = names_of(model)
    for name in labels or ():
        if name not in label_names:
            raise unknown('label', name, label_names)
    image = open_image(photo)
    pixels = eval_transform(data_config)(image)
    logits, calls, grids = _watch(model, pixels[None].to(next(model.parameters())), layers)
    probabilities = dict(zip(label_names, logits[0].sigmoid().tolist(), strict=True))
    chosen = {name: probabilities[name] for name in labels or _most_probable(probabilities, threshold)}
    queries = _queries(model, [label_names.index(name) for name in chosen])
    maps = [_shares(of_scale, queries, grid)[0].cpu() for of_scale, grid in zip(calls, grids, strict=True)]
    if output is not None:
        draw(as_seen(image, pixels, data_config), chosen, maps, output)
    return Explanation(str(photo), chosen, maps)


def _most_probable(probabilities: dict[str, float], threshold: float) -> list[str]:
    ranked = sorted(probabilities, key=probabilities.get, reverse=True)
    return [name for name in ranked if probabilities[name] > threshold][:MAX_LABELS] or ranked[:FALLBACK_LABELS]


def as_seen(image: Image.Image, pixels: torch.Tensor, data_config: dict) -> Image.Image:
    """Turns a preprocessed photo (C, H, W) back into a image: as sharp and as much of it as the model saw.

    The grids divide this image, not the photo, of which some configurations crop a part.
    """
    mean, std = (torch.tensor(data_config[key])[:, None, None] for key in ('mean', 'std'))
    picture = to_pil_image((pixels * std + mean).clamp(0, 1))
    if data_config['crop_mode'] != 'squash':
        return picture
    return picture.resize(_fit(image.size, max(picture.size)), Image.Resampling.BICUBIC)


def _fit(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Scales a size so that its longer side has a given length."""
    width, height = (max(round(longer * side / max(size)), 1) for side in size)
    return width, height


@torch.inference_mode()
def attention_maps(
    model: nn.Module, images: torch.Tensor, labels: Sequence[int] | None = None, layers: str = 'all'
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Computes what share of its attention each label gives to each region, the mean over the heads.

    Args:
        model: An MSFF model in evaluation mode.
        images: Preprocessed images (B, C, H, W) on the model's device.
        labels: Indices of the n labels to be explained; None for all.
        layers: `all` decoder layers, of which the mean is taken, or the `last` alone.

    Returns:
        The model's logits (B, K), and for each scale maps (B, n, H_i, W_i) that add up to 1: 28 x 28, 14 x 14 and
        7 x 7 cells at 448 pixels.

    Raises:
        InputError: The model has no region selection or no labels, is no MSFF model or gives logits that are not
            finite; `layers` is unknown.
    """
    model = _checked(model, layers)
    logits, calls, grids = _watch(model, images, layers)
    queries = _queries(model, range(model.num_classes) if labels is None else labels)
    return logits, [_shares(of_scale, queries, grid) for of_scale, grid in zip(calls, grids, strict=True)]


def _checked(model: nn.Module, layers: str) -> MSFF:
    """Returns the model itself, of one that `torch.compile` or a parallel wrapper has, if it can be explained."""
    model = unwrap_model(model)
    if layers not in LAYERS:
        raise unknown('layers', layers, LAYERS)
    if not isinstance(model, MSFF):
        raise InputError(f'{type(model).__name__} cannot be explained: only an MSFF model (msff_*) tells its regions.')
    if not model.num_classes:
        raise InputError('the model cannot be explained: it has no labels (num_classes=0).')
    if model.selection is None:
        raise InputError('the model cannot be explained: it needs region selection (decoder_depth of 1 or more).')
    return model


def _queries(model: MSFF, labels: Sequence[int]) -> list[int]:
    """Returns the query of each label, given by its index: one may serve several, which then have the same maps."""
    return [range(model.num_classes)[k] // model.labels_per_query for k in labels]


def _watch(
    model: MSFF, images: torch.Tensor, layers: str
) -> tuple[torch.Tensor, list[list[Call]], list[tuple[int, int]]]:
    """Runs a model and notes what the attention of its decoder layers is given.

    Returns:
        The logits (B, K), and for each scale the calls and the grid.
    """
    grids: list[tuple[int, int]] = []
    calls: list[list[Call]] = [[], [], []]

    def note_grids(module: nn.Module, args: tuple, scales: list[torch.Tensor]) -> None:
        grids.extend(scale.shape[-2:] for scale in scales)

    def note_calls(of_scales: list[list[Call]], attn: nn.Module, args: tuple) -> None:
        query, memory, query_lengths, memory_lengths = args
        queries = query.expand(len(memory), -1, -1).split(query_lengths, dim=1)
        if len(queries) == 1:  # all scales have it in common
            queries *= len(of_scales)
        for own, *call in zip(of_scales, queries, memory.split(memory_lengths, dim=1), strict=True):
            own.append((attn, *call))

    hooks = [model.projection.register_forward_hook(note_grids)]
    for i, branch in enumerate(model.selection.branches):
        note = partial(note_calls, calls[i :: len(model.selection.branches)])
        for layer in branch if layers == 'all' else branch[-1:]:
            hooks.append(layer.attn.register_forward_pre_hook(note))
    try:
        logits = model.forward(images)  # what compiles the call of a model passes hooks over
    finally:
        for hook in hooks:
            hook.remove()
    check_finite(model, logits)
    return logits, calls, grids


def _shares(calls: list[Call], queries: list[int], grid: tuple[int, int]) -> torch.Tensor:
    """Computes the mean attention over heads and layers (B, n, H_i, W_i) of some queries."""
    per_layer = [attn.attention(query[:, queries], memory).float().mean(1) for attn, query, memory in calls]
    shares = torch.stack(per_layer).mean(0)
    # What half precision rounds must not keep a map from being a distribution.
    return (shares / shares.sum(-1, keepdim=True)).unflatten(-1, grid)


def smooth_map(maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Lays the maps of all scales over an image as one smooth map: where all scales look.

    Each scale is resized bilinearly, so that its cells run into one another, and the geometric mean is taken. The
    finest scale has single cells of much attention all over an image, which a sum would show as its peaks.

    Args:
        maps: Map of each scale, (..., H_i, W_i), as `explain` and `attention_maps` give them.
        size: Height and width of the result; those of the image that the grids divide, in its own aspect ratio.

    Returns:
        Map (..., height, width) on the device of the maps, from 0 to 1, its maximum.
    """
    mean = 1
    for shares in maps:
        rows = shares.reshape(1, -1, *shares.shape[-2:])
        resized = F.interpolate(rows, size, mode='bilinear', antialias=True)
        resized = (resized / resized.amax((-1, -2), keepdim=True)).clamp(min=FAINTEST)
        mean = mean * resized ** (1 / len(maps))
    return (mean / mean.amax((-1, -2), keepdim=True)).reshape(*maps[0].shape[:-2], *size)


def smooth_overlay(photo: Image.Image, maps: Sequence[torch.Tensor]) -> Image.Image:
    """Lays one label's attention at all scales over an image, as `smooth_map` joins them.

    The colours are those of `overlay`, from dark to yellow, and the more opaque the more attention there is: where
    there is little, the image shows.

    Args:
        photo: Image that the grids divide, in its own aspect ratio.
        maps: Map of each scale, (H_i, W_i).

    Returns:
        Image of the same size.

    Raises:
        InputError: matplotlib is missing.
    """
    heat = smooth_map(maps, (photo.height, photo.width))
    opacity = Image.fromarray((255 * STRONGEST * heat).round().byte().cpu().numpy())
    faded = Image.blend(photo.convert('RGB'), ImageOps.grayscale(photo).convert('RGB'), FADED)
    return Image.composite(_colours(WARMEST * heat), faded, opacity)


def _colours(heat: torch.Tensor) -> Image.Image:
    """Colours a map (H, W) of values from 0 to 1."""
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError:
        raise InputError(NEEDS_MATPLOTLIB) from None
    return Image.fromarray(colormaps[COLORMAP](heat.cpu().numpy(), bytes=True)[..., :3].copy())


def overlay(photo: Image.Image, shares: torch.Tensor) -> Image.Image:
    """Lays one label's map at one scale over a photo, which turns grey.

    Colours run from black at 0 to yellow at the map's own greatest share, which `caption` tells: 784 cells share what
    49 share elsewhere, so one range for all would leave most maps black. Cells keep their edges, since smooth ones
    would show places that the model does not tell apart.

    Args:
        photo: The image that the grid divides.
        shares: (H_i, W_i).

    Returns:
        A image of the photo's size.

    Raises:
        InputError: matplotlib is missing.
    """
    colours = _colours(shares / shares.max()).resize(photo.size, Image.Resampling.NEAREST)
    return Image.blend(ImageOps.grayscale(photo).convert('RGB'), colours, 0.5)


def caption(shares: torch.Tensor) -> str:
    """Tells the size of a map (H_i, W_i) and the range that its colours stand for."""
    return f'{shares.shape[0]} × {shares.shape[1]} cells, 0 to {shares.max():.2%} each'


def draw(photo: Image.Image, labels: dict[str, float], maps: Sequence[torch.Tensor], output: str | Path) -> None:
    """Draws maps over an image: a row for each label.

    The columns are the image, all scales together as `smooth_overlay` draws them, and each scale as `overlay` does.

    Args:
        photo: The image that the grids divide, in its own aspect ratio.
        labels: Names and probabilities of the n labels.
        maps: Of each scale, (n, H_i, W_i).
        output: File to write; its suffix names the format, PNG where it has none.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError(NEEDS_MATPLOTLIB) from None
    photo = photo.resize(_fit(photo.size, PANEL), Image.Resampling.BICUBIC)
    titles = [textwrap.wrap(f'{name}  {p:.3f}', TITLE_CHARACTERS) for name, p in labels.items()]
    step = max(photo.width + GAP, MIN_STEP)
    total_width = (1 + len(maps)) * step + photo.width
    total_height = sum(TITLE_LINE * len(title) + photo.height + CAPTION for title in titles)
    figure = Figure((total_width / DPI, total_height / DPI))
    # One system of coordinates for the whole image, in dots from its upper left corner.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total_width), ylim=(total_height, 0), autoscale_on=False)
    axes.set_axis_off()

    top = 0
    for row, title in enumerate(titles):
        top += TITLE_LINE * len(title)
        bottom = top + photo.height
        # A dollar sign in a name starts no formula.
        axes.text(0, top - GAP / 2, '\n'.join(title), va='bottom', fontsize=11, parse_math=False)
        axes.imshow(photo, extent=(0, photo.width, bottom, top), aspect='auto')
        axes.text(0, bottom + GAP / 2, 'as the model saw it', va='top', fontsize=8)
        of_label = [shares[row] for shares in maps]
        drawn = [(smooth_overlay(photo, of_label), 'all scales together')]
        drawn += [(overlay(photo, shares), caption(shares)) for shares in of_label]
        for column, (image, text) in enumerate(drawn, start=1):
            left = column * step
            axes.imshow(image, extent=(left, left + photo.width, bottom, top), aspect='auto')
            axes.text(left, bottom + GAP / 2, text, va='top', fontsize=8)
        top = bottom + CAPTION
    output = Path(output)
    try:
        # The tight box holds whatever is longer than the panels are wide.
        options = {'format': output.suffix[1:] or 'png', 'dpi': DPI}
        save_figure(figure, output, **options, bbox_inches='tight', pad_inches=GAP / DPI)
    except OSError as e:
        raise InputError(f'{output}: cannot be written ({e.strerror}).') from None
    except ValueError as e:
        raise InputError(f'{output}: cannot be drawn ({" ".join(str(e).split())}).') from None
