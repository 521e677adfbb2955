"""A page on which one drops a photo and sees its labels, and what each of them looked at.

`msff-timm space` shows it on this machine, `hub_cards/space/` on the Hub.
"""

import base64
import html
import io
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn as nn
from PIL import Image

from .. import hub
from ..data.transforms import eval_transform, open_image
from ..errors import InputError
from ..labels import display_names
from .explain import as_seen, attention_maps, caption, overlay, smooth_overlay
from .predict import check_finite
from .uploads import LARGEST, Guard, Uploads, hosts_of, own_folder

__all__ = ['Look', 'attention_html', 'build', 'labels_html', 'launch', 'look', 'serve']

SHORTEST = 336  # side of the images that are shown, in dots: where a model sees fewer, its cells would be tiny
LISTED = 12  # labels that are in sight at least, of those that there are; the rest is folded
KEPT = 3600  # seconds that uploads are kept
CLEANED = 600  # from one cleaning to the next
SESSIONS = 200  # whose last photo is kept in memory

TITLE = 'What is in this photo?'
INVITATION = 'Drop a photo into the frame, or paste one, to see its labels.'
NOWHERE = 'Once there is a photo, its attention is shown here.'
HOW_TO_READ = (
    'The first map joins all scales: the warmer the colour, the more of its attention the label gives to the place. The'
    ' others show the regions of each scale: black is none, yellow the most that any region of that map has.'
)

CSS = """
.gradio-container {width: 100%; max-width: 1280px !important; margin: 0 auto !important}
.gradio-container .html-container {padding: 0}
#photo img {width: 100%; height: 100%; object-fit: contain}
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


@dataclass(frozen=True)
class Look:
    """What a model says of one photo.

    Attributes:
        image: The photo, or the part of it, that the model saw.
        probabilities: Of the K labels.
        maps: Of the three scales, (K, H_i, W_i): what share of its attention each label gives to each cell; none where
            the model does not tell.
        why_no_maps: In one line, or None.
    """

    picture: Image.Image
    probabilities: list[float]
    maps: list[torch.Tensor]
    why_no_maps: str | None = None


@torch.inference_mode()
def look(model: nn.Module, photo: str | Path) -> Look:
    """Asks a model for all its labels in a photo, preprocessed as the model's own configuration says.

    Args:
        model: What `msff_timm.hub.load` or `timm.create_model` gives, in evaluation mode, on any device.
        photo: Path; messages call it by its last part.

    Raises:
        InputError: The photo cannot be read.
    """
    data_config = timm.data.resolve_input_data_config(model)
    image = open_image(photo, Path(photo).name)
    pixels = eval_transform(data_config)(image)
    images, maps, why = pixels[None].to(next(model.parameters())), [], None
    try:
        logits, maps = attention_maps(model, images)
    except InputError as e:
        logits, why = model(images), str(e)
        check_finite(model, logits)
    picture = as_seen(image, pixels, data_config)
    if max(picture.size) < SHORTEST:
        scale = SHORTEST / max(picture.size)
        picture = picture.resize([max(round(side * scale), 1) for side in picture.size], Image.Resampling.BICUBIC)
    return Look(picture, logits[0].float().sigmoid().tolist(), [of_scale[0].cpu() for of_scale in maps], why)


def labels_html(label_names: Sequence[str], probabilities: Sequence[float], thresholds: Sequence[float]) -> str:
    """Lists labels with bars: those above their thresholds first, each part from the most probable on.

    Args:
        label_names: In the order of the logits; they are escaped.
        probabilities: Of each.
        thresholds: Of each; a tick on the bar shows it.
    """
    rows = sorted(zip(label_names, probabilities, thresholds, strict=True), key=lambda row: (row[1] <= row[2], -row[1]))
    above = sum(p > threshold for _, p, threshold in rows)
    shown = max(above, LISTED)
    items = []
    for index, (name, p, threshold) in enumerate(rows):
        kind = 'above' if index < above else 'below msff-line' if index == above > 0 else 'below'
        items.append(
            f'<li class="{kind}"><span class="msff-name">{html.escape(name)}</span>'
            f'<span class="msff-bar" title="{p:.4f}, threshold {threshold:.3f}"><i style="width:{100 * p:.2f}%"></i>'
            f'<b style="left:{100 * threshold:.2f}%"></b></span><span class="msff-value">{p:.3f}</span></li>'
        )
    count = f'<strong>{above} of {len(rows)}</strong> {"label is" if above == 1 else "labels are"} above the threshold'
    count += '.' if len(set(thresholds)) == 1 else ' of its own.' if above == 1 else 's of their own.'
    folded = ''.join(items[shown:])
    if folded:
        folded = f'<details><summary>{len(rows) - shown} more, less probable</summary><ol>{folded}</ol></details>'
    return f'<p class="msff-count">{count}</p><ol>{"".join(items[:shown])}</ol>{folded}'


def attention_html(seen: Look, index: int, label_name: str) -> str:
    """Shows what the model saw, and over it one label's attention: of all scales, and of each; or why there is none.

    Args:
        seen: What `look` gave.
        index: Of the label.
        label_name: Its name, which is escaped.

    Raises:
        InputError: matplotlib is missing.
    """
    if not seen.maps:
        return _note(f'No attention to show: {seen.why_no_maps}')
    figures = [_figure(seen.picture, 'What the model saw', 'as sharp, and as much of it', 'The photo')]
    of_label = [of_scale[index] for of_scale in seen.maps]
    joined = smooth_overlay(seen.picture, of_label)
    figures.append(_figure(joined, 'All scales', 'as one smooth map', f'Where {label_name} looked, all scales'))
    for scale, shares in zip(('Fine', 'Middle', 'Coarse'), of_label, strict=True):
        alt = f'Where {label_name} looked, {scale.lower()} scale'
        figures.append(_figure(overlay(seen.picture, shares), f'{scale} scale', caption(shares), alt))
    return f'<div class="msff-maps">{"".join(figures)}</div>'


def _figure(picture: Image.Image, title: str, text: str, alt: str) -> str:
    with io.BytesIO() as buffer:
        picture.save(buffer, 'WEBP', quality=90)
        data = base64.b64encode(buffer.getvalue()).decode()
    title, text, alt = map(html.escape, (title, text, alt))
    return (
        f'<figure><img src="data:image/webp;base64,{data}" width="{picture.width}" height="{picture.height}"'
        f' alt="{alt}"><figcaption><strong>{title}</strong>{text}</figcaption></figure>'
    )


def _note(text: str, is_error: bool = False) -> str:
    return f'<div class="msff-note{" msff-error" if is_error else ""}">{html.escape(text)}</div>'


def _gradio():
    try:
        import gradio
        import matplotlib  # noqa: F401 - what the overlays are drawn with; better missed now than at the first photo
    except ModuleNotFoundError as e:
        raise InputError(f"the page needs {e.name}: pip install 'msff-timm[space]'") from None
    except ImportError as e:  # of a version that does not fit the rest, of huggingface_hub say
        reason = ' '.join(str(e).split())
        raise InputError(f"gradio cannot be imported ({reason}): pip install -U 'msff-timm[space]'") from None
    return gradio


async def _leave(path: str) -> str:
    return path


def build(model: nn.Module, name: str):
    """Builds the page of a model.

    Args:
        model: As for `look`.
        name: What the page calls it.

    Returns:
        A `gradio.Blocks`, which `launch` starts; `uploads` records what was uploaded to it, below the folder that
        `GRADIO_TEMP_DIR` names, whose oldest files are deleted when it is full.

    Raises:
        InputError: Gradio is missing, or the model has no labels.
    """
    gr = _gradio()
    label_names = display_names(model)
    if not label_names:
        raise InputError(f'{name}: has no labels to show.')
    own = getattr(model, 'thresholds', None)
    uploads = Uploads(gr.utils.get_upload_folder())

    def thresholds(is_own: bool, threshold: float) -> list[float]:
        return own if is_own else [threshold] * len(label_names)

    def list_labels(seen: Look | None, is_own: bool, threshold: float) -> str:
        if seen is None:
            return _note(INVITATION)
        return labels_html(label_names, seen.probabilities, thresholds(is_own, threshold))

    def show_attention(seen: Look | None, index: int | None) -> str:
        if seen is None or index is None:
            return _note(NOWHERE)
        return attention_html(seen, index, label_names[index])

    def see(photo: str | None, is_own: bool, threshold: float, request: gr.Request):
        seen, problem = None, None
        try:
            seen = look(model, uploads.open(photo, request.session_hash)) if photo else None
        except InputError as e:
            problem = _note(f'This photo cannot be used. {e}', is_error=True)
        if seen is None:
            nothing = gr.Dropdown(choices=[], value=None, interactive=False)
            return None, problem or _note(INVITATION), nothing, _note(NOWHERE)
        ranked = sorted(range(len(label_names)), key=lambda index: -seen.probabilities[index])
        choices = [(f'{label_names[index]}  {seen.probabilities[index]:.3f}', index) for index in ranked]
        chosen = gr.Dropdown(choices=choices, value=ranked[0], interactive=bool(seen.maps))
        return seen, list_labels(seen, is_own, threshold), chosen, show_attention(seen, ranked[0])

    def one_for_all(seen: Look | None, is_own: bool, threshold: float):
        # Where it is off already it stays as it is: it may have been turned on since.
        return False if is_own else gr.skip(), list_labels(seen, False, threshold)

    with gr.Blocks(
        title=f'{TITLE} {name}', analytics_enabled=False, delete_cache=(CLEANED, KEPT), fill_width=True
    ) as page:
        seen = gr.State()
        gr.HTML(
            f'<div class="msff-head"><h1>{TITLE}</h1><p><code>{html.escape(name)}</code> knows {len(label_names):,}'
            ' labels. Each has a probability of its own: a photo may have several, or none.</p></div>'
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                photo = gr.Image(
                    label='Photo',
                    type='filepath',
                    sources=['upload', 'clipboard'],
                    height=420,
                    buttons=['fullscreen'],
                    elem_id='photo',
                )
                # Gradio's own reading would end in a traceback for what Pillow refuses; `look` says why in a line.
                # It would also fetch a file that a request names by its address; `see` opens uploads alone.
                photo.preprocess = lambda payload: payload and payload.path
                photo.async_move_resource_to_block_cache = _leave
            with gr.Column(scale=6, min_width=320):
                with gr.Group():
                    is_own = gr.Checkbox(
                        label='Each label’s own threshold',
                        info='Stored with the model; the tick on a bar shows it. Moving the slider turns this off.',
                        value=own is not None,
                        visible=own is not None,
                        elem_id='own',
                    )
                    threshold = gr.Slider(
                        0,
                        1,
                        value=0.5,
                        step=0.01,
                        label='One threshold for all labels',
                        info='Above it, a label counts as present.',
                        elem_id='threshold',
                    )
                listed = gr.HTML(_note(INVITATION), elem_id='labels', elem_classes='msff-labels')
        gr.HTML(f'<h2 class="msff-section">What a label looked at</h2><p class="msff-lead">{HOW_TO_READ}</p>')
        label = gr.Dropdown(
            choices=[], value=None, label='Label', filterable=True, interactive=False, elem_id='label', container=True
        )
        attention = gr.HTML(_note(NOWHERE), elem_id='attention')

        quiet = dict(show_progress='hidden', api_visibility='private')
        photo.change(
            see,
            [photo, is_own, threshold],
            [seen, listed, label, attention],
            api_visibility='private',
            show_progress_on=[listed],
            concurrency_limit=1,  # `attention_maps` watches the model's calls: those for two photos at once would mix
        )
        threshold.input(one_for_all, [seen, is_own, threshold], [is_own, listed], trigger_mode='always_last', **quiet)
        is_own.input(list_labels, [seen, is_own, threshold], listed, trigger_mode='always_last', **quiet)
        label.input(show_attention, [seen, label], attention, trigger_mode='always_last', **quiet)
    page.uploads = uploads
    return page


def launch(page, host: str | None = None, port: int | None = None) -> str:
    """Starts a page, without a public link and without anything that is fetched from elsewhere.

    Args:
        page: What `build` gave.
        host: Address to listen at; None for `GRADIO_SERVER_NAME`, or this machine alone. The page answers under this
            name and as localhost; at 0.0.0.0 or :: under all addresses and the name of the machine; on the Hub under
            that of the Space. A proxy in front of it has to pass one of these as `Host`.
        port: None for `GRADIO_SERVER_PORT`, or the first that is free from 7860 on.

    Returns:
        Its address.

    Raises:
        InputError: It cannot listen there.
    """
    gr = _gradio()
    from starlette.middleware import Middleware  # which comes with Gradio

    host = host or os.environ.get('GRADIO_SERVER_NAME') or '127.0.0.1'
    _check_address(host, port or 0)
    fonts = dict(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])  # no need to be fetched
    theme = gr.themes.Default(primary_hue='indigo', neutral_hue='slate', radius_size='lg', **fonts)
    greys = dict(body_text_color_subdued='*neutral_500', block_info_text_color='*neutral_500')
    theme.set(**greys, **{f'{name}_dark': '*neutral_400' for name in greys})
    try:
        _, address, _ = page.launch(
            server_name=f'[{host}]' if ':' in host else host,  # as in an address
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST,
            app_kwargs={'middleware': [Middleware(Guard, uploads=page.uploads, hosts=hosts_of(host))]},
            state_session_capacity=SESSIONS,
            footer_links=[],
            run_history=False,  # keeps no photos in the browser
            ssr_mode=False,
            theme=theme,
            css=CSS,
        )
    except Exception as e:
        # uvicorn, httpx behind a proxy and Gradio itself have exceptions of their own.
        reason = ' '.join(str(e).split()) or type(e).__name__
        raise InputError(f'the page cannot be started ({reason})') from e
    return address


def _check_address(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as e:
        mend = 'choose others with --port and --host.'
        raise InputError(f'cannot listen at {host}, port {port or "any"} ({e.strerror}): {mend}') from None


def serve(name: str = hub.DEFAULT_MODEL, host: str | None = None, port: int | None = None) -> None:
    """Loads a model and shows its page until Ctrl-C, SIGTERM or SIGHUP; then no photo is left behind.

    What a server that was killed has left behind is deleted at the start.

    Args:
        name: Model, as for `msff_timm.hub.load`.
        host: As for `launch`.
        port: As for `launch`.

    Raises:
        InputError: As `msff_timm.hub.load`, `build` and `launch` do.
    """
    _gradio()
    _check_address(host or os.environ.get('GRADIO_SERVER_NAME') or '127.0.0.1', port or 0)
    model = hub.load(name).to('cuda' if torch.cuda.is_available() else 'cpu')
    for name_of_signal in ('SIGTERM', 'SIGHUP'):
        number = getattr(signal, name_of_signal, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        # Gradio itself leaves uploads where they are when a page is still open at the end.
        with own_folder() as uploads:
            os.environ['GRADIO_TEMP_DIR'] = str(uploads)
            page = build(model, name)
            print(f'{launch(page, host, port)} shows it; Ctrl-C ends it.', flush=True)
            try:
                threading.Event().wait()
            finally:
                page.server.force_exit = True  # waits for no page that is open, and would tell of it in a traceback
                logging.getLogger('uvicorn.error').disabled = True
                page.close(verbose=False)
    except KeyboardInterrupt:
        pass  # the one way to end it
