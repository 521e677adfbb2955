"""Explanation of an image's labels: the attention or Grad-CAM of each over the image, as tensors and as a figure."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from PIL import Image, ImageOps
from timm.utils import unwrap_model

from ..data.figures import save_figure
from ..data.images import open_image
from ..errors import InputError, missing_package, one_line, unknown
from ..labels import compute_probabilities, decision_thresholds, display_names
from .attention import attention_maps, has_attention, smooth_map
from .grad_cam import grad_cam
from .logits import Preprocessing, compute_logits, resize_longer

__all__ = ['GRAD_CAM', 'Explanation', 'caption', 'draw', 'explain', 'overlay', 'smooth_overlay']

ATTENTION, GRAD_CAM = 'attention', 'Grad-CAM'
COLORMAP = 'inferno'  # perceptually uniform
MAX_OPACITY = 0.7  # of the smooth map: the image stays visible below its peak
MAX_COLOR = 0.9  # of the colormap: its pale end would look grey over an image
FADING = 0.5  # share of grey in the image below the smooth map, so that its colours stand out

MAX_LABELS = 8  # above their thresholds; a larger figure is hard to read
FALLBACK_LABELS = 3  # where no label is above its threshold

# Lengths in the figure, in dots
DPI = 120
PANEL = 288  # longer side
MIN_STEP = 228  # distance between columns that captions need
GAP = 12
TITLE_LINE = 24
CAPTION = 40
TITLE_CHARACTERS = 80


@dataclass(frozen=True)
class Explanation:
    """Attention of a model's labels over one image, or their Grad-CAM.

    Attributes:
        image: Path of the image.
        labels: Probability of each of the n explained labels.
        maps: Maps of the scales, (n, H_i, W_i). MSFF has three and Query2Label one: the share of a label's attention
            that each cell receives. Other models have one, their Grad-CAM from 0 to 1. `smooth_map` combines them.
        kind: `attention` or `Grad-CAM`.
    """

    image: str
    labels: dict[str, float]
    maps: list[torch.Tensor]
    kind: str = ATTENTION


def explain(
    model: nn.Module,
    image: str | Path,
    labels: Sequence[str] | None = None,
    output: str | Path | None = None,
    layers: str = 'all',
    threshold: float | None = None,
) -> Explanation:
    """Finds the regions of an image to which labels attend, or for models without such attention, Grad-CAM.

    Args:
        model: timm model in evaluation mode, on any device.
        image: Path of the image.
        labels: Names of labels; None for up to 8 labels that `predict` would return, or else for the 3 most probable.
        output: File for the figure that `draw` creates; None for no figure.
        layers: Decoder layers, as for `attention_maps`.
        threshold: Threshold, as for `predict`.

    Raises:
        InputError: The model cannot be explained, lacks a label or computes logits that are not finite, the image
            cannot be read, or the figure cannot be drawn.
    """
    model = unwrap_model(model)  # compiling takes longer than one image
    label_names = display_names(model)
    if not label_names:
        raise InputError('the model cannot be explained: it has no labels (num_classes=0).')
    for name in labels or ():
        if name not in label_names:
            raise unknown('label', name, label_names)
    preprocessing = Preprocessing(model)
    original = open_image(image)
    pixels = preprocessing.transform(original)
    images = pixels[None].to(next(model.parameters()))
    logits = compute_logits(model, images)[0]
    probabilities = dict(zip(label_names, compute_probabilities(model, logits).tolist(), strict=True))
    ranked = sorted(probabilities, key=probabilities.get, reverse=True)
    thresholds = dict(zip(label_names, decision_thresholds(model, threshold), strict=True))
    predicted = [name for name in ranked if probabilities[name] > thresholds[name]]
    chosen = {name: probabilities[name] for name in labels or predicted[:MAX_LABELS] or ranked[:FALLBACK_LABELS]}
    indices = [label_names.index(name) for name in chosen]
    if has_attention(model):
        kind, maps = ATTENTION, attention_maps(model, images, indices, layers)[1]
    else:
        kind, maps = GRAD_CAM, [grad_cam(model, images, indices)]
    chosen_maps = [maps_of_scale[0].cpu() for maps_of_scale in maps]
    if output is not None:
        draw(preprocessing.restore(original, pixels), chosen, chosen_maps, output, kind)
    return Explanation(str(image), chosen, chosen_maps, kind)


def smooth_overlay(image: Image.Image, maps: Sequence[torch.Tensor]) -> Image.Image:
    """Lays the `smooth_map` of one label over an image, in the colours of `overlay`.

    The map is the more opaque the stronger the attention: the image shows where there is little.

    Args:
        image: Image that the grids divide, in its original aspect ratio.
        maps: Map of each scale, (H_i, W_i).

    Returns:
        Image of the same size.

    Raises:
        InputError: matplotlib is not installed.
    """
    heat = smooth_map(maps, (image.height, image.width))
    opacity = Image.fromarray((255 * MAX_OPACITY * heat).round().byte().cpu().numpy())
    faded = Image.blend(image.convert('RGB'), ImageOps.grayscale(image).convert('RGB'), FADING)
    return Image.composite(_colorize(MAX_COLOR * heat), faded, opacity)


def _colorize(heat: torch.Tensor) -> Image.Image:
    """Applies the colormap to a map (H, W) of values from 0 to 1."""
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError:
        raise missing_package('matplotlib', 'explain') from None
    return Image.fromarray(colormaps[COLORMAP](heat.cpu().numpy(), bytes=True)[..., :3].copy())


def overlay(image: Image.Image, shares: torch.Tensor) -> Image.Image:
    """Lays one label's map at one scale over an image, which turns grey.

    Colours run from black at 0 to yellow at the map's maximum, which `caption` states. A common maximum would leave
    fine maps black: 784 cells share the attention that 49 cells share at the coarsest scale. Cells keep their edges,
    since the model does not resolve smaller places.

    Args:
        image: Image that the grid divides.
        shares: Map (H_i, W_i).

    Returns:
        Image of the same size.

    Raises:
        InputError: matplotlib is not installed.
    """
    colors = _colorize(shares / shares.max().clamp(min=torch.finfo(shares.dtype).tiny)).resize(
        image.size, Image.Resampling.NEAREST
    )
    return Image.blend(ImageOps.grayscale(image).convert('RGB'), colors, 0.5)


def caption(shares: torch.Tensor, kind: str = ATTENTION) -> str:
    """Describes the grid of a map (H_i, W_i) and the range of its colours."""
    if kind == GRAD_CAM:
        evidence = 'from 0 to its maximum' if shares.any() else '0 everywhere: no evidence'
        return f'{shares.shape[0]} × {shares.shape[1]} cells, {evidence}'
    return f'{shares.shape[0]} × {shares.shape[1]} cells, 0 to {shares.max():.2%} each'


def draw(
    image: Image.Image,
    labels: dict[str, float],
    maps: Sequence[torch.Tensor],
    output: str | Path,
    kind: str = ATTENTION,
) -> None:
    """Draws a figure of maps over an image: one row per label.

    The columns are the image, its `smooth_overlay`, and the `overlay` of each scale.

    Args:
        image: Image that the grids divide, in its original aspect ratio.
        labels: Names and probabilities of n labels.
        maps: Maps of each scale, (n, H_i, W_i).
        output: File to write; its suffix decides the format, PNG without one.
        kind: Kind of the maps, as in `Explanation`.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise missing_package('matplotlib', 'explain') from None
    image = image.resize(resize_longer(image.size, PANEL), Image.Resampling.BICUBIC)
    titles = [textwrap.wrap(f'{name}  {p:.3f}', TITLE_CHARACTERS) for name, p in labels.items()]
    step = max(image.width + GAP, MIN_STEP)
    total_width = (1 + len(maps)) * step + image.width
    total_height = sum(TITLE_LINE * len(title) + image.height + CAPTION for title in titles)
    figure = Figure((total_width / DPI, total_height / DPI))
    # One coordinate system for the whole figure, in dots from its upper left corner
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total_width), ylim=(total_height, 0), autoscale_on=False)
    axes.set_axis_off()

    top = 0
    for row, title in enumerate(titles):
        top += TITLE_LINE * len(title)
        bottom = top + image.height
        # A dollar sign in a name is no formula.
        axes.text(0, top - GAP / 2, '\n'.join(title), va='bottom', fontsize=11, parse_math=False)
        maps_of_label = [maps_of_scale[row] for maps_of_scale in maps]
        combined = 'all scales combined' if len(maps) > 1 else f'{kind}, smooth'
        panels = [(image, 'model input'), (smooth_overlay(image, maps_of_label), combined)]
        panels += [(overlay(image, shares), caption(shares, kind)) for shares in maps_of_label]
        for column, (panel, text) in enumerate(panels):
            left = column * step
            axes.imshow(panel, extent=(left, left + image.width, bottom, top), aspect='auto')
            axes.text(left, bottom + GAP / 2, text, va='top', fontsize=8)
        top = bottom + CAPTION
    output = Path(output)
    try:
        # The tight box includes titles that are wider than the panels.
        options = {'format': output.suffix[1:] or 'png', 'dpi': DPI}
        save_figure(figure, output, **options, bbox_inches='tight', pad_inches=GAP / DPI)
    except OSError as e:
        raise InputError(f'{output}: cannot be written ({one_line(e)}).') from None
    except ValueError as e:
        raise InputError(f'{output}: cannot be drawn ({one_line(e)}).') from None
