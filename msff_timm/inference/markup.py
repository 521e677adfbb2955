"""HTML of the page that `app` serves: labels as bars, attention as figures, notes."""

import base64
import html
import io
from collections.abc import Sequence

import torch
from PIL import Image

from .explain import ATTENTION, caption, overlay, smooth_overlay

__all__ = ['CSS', 'attention_html', 'heading_html', 'labels_html', 'note_html']

MIN_LISTED = 12  # labels that are always visible; less probable ones are folded

CSS = """
.gradio-container {width: 100%; max-width: 1280px !important; margin: 0 auto !important}
.gradio-container .html-container {padding: 0}
#image img {width: 100%; height: 100%; object-fit: contain}
.form:has(#label) {max-width: 28rem}
.msff-head h1 {font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .25rem; font-weight: 650}
.msff-head p, .msff-lead {color: var(--body-text-color-subdued); margin: 0; max-width: 75ch; line-height: 1.5}
.msff-head code {font-size: .9em; overflow-wrap: anywhere}
.msff-section {font-size: 1.15rem; font-weight: 650; margin: .75rem 0 .25rem}
.msff-note {color: var(--body-text-color-subdued); padding: 1.25rem; text-align: center; line-height: 1.5;
  border: 1px dashed var(--border-color-primary); border-radius: var(--radius-lg); overflow-wrap: anywhere}
.msff-error {color: var(--error-text-color); background: var(--error-background-fill);
  border-color: var(--error-border-color)}
.msff-labels ol {list-style: none; margin: 0; padding: 0}
.msff-labels li {display: grid; grid-template-columns: minmax(6rem, 11rem) 1fr 3.2rem; gap: .75rem; align-items: center;
  padding: .22rem 0; margin: 0; color: var(--body-text-color-subdued)}
.msff-labels li.above {color: var(--body-text-color)}
.msff-labels li.above .msff-name {font-weight: 600}
.msff-name {overflow-wrap: anywhere; line-height: 1.25}
.msff-bar {position: relative; height: .8rem; border-radius: .4rem; background: var(--border-color-primary)}
.msff-bar i {position: absolute; inset: 0 auto 0 0; border-radius: .4rem;
  background: var(--neutral-400); min-width: 2px}
.msff-labels li.above i {background: var(--primary-500)}
.msff-bar b {position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; margin-left: -1px; border-radius: 1px;
  background: var(--body-text-color)}
.msff-value {text-align: right; font-variant-numeric: tabular-nums}
.msff-labels .msff-count {margin: 0 0 .5rem; line-height: 1.5}
.msff-labels .msff-line {border-top: 1px solid var(--border-color-primary); margin-top: .3rem; padding-top: .5rem}
.msff-labels summary {cursor: pointer; padding: .5rem 0; color: var(--body-text-color-subdued)}
.msff-maps {display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .75rem; margin-top: .25rem}
.msff-maps figure {margin: 0; min-width: 0}
.msff-maps img {width: 100%; height: auto; max-height: 26rem; object-fit: contain; margin: 0; display: block;
  border-radius: var(--radius-md)}
.msff-maps figcaption {color: var(--body-text-color-subdued); font-size: .85rem; line-height: 1.35; padding: .4rem 0}
.msff-maps figcaption strong {color: var(--body-text-color); display: block}
@media (min-width: 761px) {
  #labels {max-height: 34rem; overflow: hidden auto !important; padding-right: .5rem}
}
@media (max-width: 760px) {
  .msff-maps {grid-template-columns: repeat(2, minmax(0, 1fr))}
  .msff-labels li {grid-template-columns: minmax(5rem, 7.5rem) 1fr 3rem; gap: .5rem}
}
"""


def heading_html(title: str, name: str, num_labels: int) -> str:
    """Formats the heading: the page's title, and the model's name (which is escaped) and number of labels."""
    return (
        f'<div class="msff-head"><h1>{title}</h1><p><code>{html.escape(name)}</code> has {num_labels:,} labels. Each'
        ' has its own probability: an image may have several labels, or none.</p></div>'
    )


def labels_html(label_names: Sequence[str], probabilities: Sequence[float], thresholds: Sequence[float]) -> str:
    """Formats labels as a list of bars: those above their threshold first, in descending order of probability.

    Args:
        label_names: Names in the order of the logits; they are escaped.
        probabilities: Probability of each label.
        thresholds: Threshold of each label, shown as a tick on its bar.
    """
    rows = sorted(zip(label_names, probabilities, thresholds, strict=True), key=lambda row: (row[1] <= row[2], -row[1]))
    above = sum(p > threshold for _, p, threshold in rows)
    shown = max(above, MIN_LISTED)
    items = []
    for index, (name, p, threshold) in enumerate(rows):
        kind = 'above' if index < above else 'below msff-line' if index == above > 0 else 'below'
        items.append(
            f'<li class="{kind}"><span class="msff-name">{html.escape(name)}</span>'
            f'<span class="msff-bar" title="{p:.4f}, threshold {threshold:.3f}"><i style="width:{100 * p:.2f}%"></i>'
            f'<b style="left:{100 * threshold:.2f}%"></b></span><span class="msff-value">{p:.3f}</span></li>'
        )
    count = f'<strong>{above} of {len(rows)}</strong> {"label is" if above == 1 else "labels are"} above '
    count += 'the threshold.' if len(set(thresholds)) == 1 else 'its threshold.' if above == 1 else 'their thresholds.'
    folded = ''.join(items[shown:])
    if folded:
        folded = f'<details><summary>{len(rows) - shown} less probable labels</summary><ol>{folded}</ol></details>'
    return f'<p class="msff-count">{count}</p><ol>{"".join(items[:shown])}</ol>{folded}'


def attention_html(image: Image.Image, maps: Sequence[torch.Tensor], label_name: str, kind: str = ATTENTION) -> str:
    """Formats a row of figures: the model's input, then one label's map at all scales combined and at each.

    Args:
        image: Image that the grids divide.
        maps: Maps of the label at three scales or at one, (H_i, W_i).
        label_name: Name of the label; it is escaped.
        kind: Kind of the maps, as in `explain.Explanation`.

    Raises:
        InputError: matplotlib is not installed.
    """
    subject = f'{kind[0].upper()}{kind[1:]} of {label_name}'
    titles = ('Fine scale', 'Middle scale', 'Coarse scale') if len(maps) > 1 else ('Cells',)
    combined = ('All scales', 'combined into one smooth map') if len(maps) > 1 else ('Smooth map', 'of the cells')
    figures = [
        _figure(image, 'Model input', 'resized and cropped for the model', 'Model input'),
        _figure(smooth_overlay(image, maps), *combined, f'{subject}, {combined[0].lower()}'),
    ]
    for title, shares in zip(titles, maps, strict=True):
        figures.append(_figure(overlay(image, shares), title, caption(shares, kind), f'{subject}, {title.lower()}'))
    return f'<div class="msff-maps">{"".join(figures)}</div>'


def _figure(image: Image.Image, title: str, text: str, alt: str) -> str:
    with io.BytesIO() as buffer:
        image.save(buffer, 'WEBP', quality=90)
        data = base64.b64encode(buffer.getvalue()).decode()
    title, text, alt = map(html.escape, (title, text, alt))
    return (
        f'<figure><img src="data:image/webp;base64,{data}" width="{image.width}" height="{image.height}"'
        f' alt="{alt}"><figcaption><strong>{title}</strong>{text}</figcaption></figure>'
    )


def note_html(text: str, is_error: bool = False) -> str:
    """Formats a note that stands in for labels or maps; the text is escaped."""
    return f'<div class="msff-note{" msff-error" if is_error else ""}">{html.escape(text)}</div>'
