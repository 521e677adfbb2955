"""Web page that shows the labels of an image and the attention of each label.

`msff-timm space` serves it on this machine, `hub_cards/space/` on the Hub.
"""

import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from PIL import Image

from .. import hub
from ..data.images import open_image
from ..errors import InputError, missing_package, one_line
from ..labels import compute_probabilities, decision_thresholds, display_names, get_thresholds
from .attention import attention_maps, has_attention
from .explain import ATTENTION, GRAD_CAM
from .grad_cam import grad_cam
from .logits import Preprocessing, choose_device, compute_logits, resize_longer
from .markup import CSS, attention_html, heading_html, labels_html, note_html
from .uploads import MAX_UPLOAD, Guard, Uploads, allowed_hosts, temporary_folder

__all__ = ['Analysis', 'analyze', 'build', 'launch', 'serve']

MIN_SIDE = 336  # dots of the longer side of the images shown; the cells of a smaller input would be tiny
KEEP_SECONDS = 3600  # age at which Gradio deletes uploads
CLEAN_SECONDS = 600  # interval between these deletions
MAX_SESSIONS = 200  # sessions whose last image is kept in memory

TITLE = 'What is in this image?'
INVITATION = 'Drop an image into the frame, or paste one, to see its labels.'
NO_IMAGE = 'The map appears here once there is an image.'
HOW_TO_READ = {
    ATTENTION: (
        'The first map is smooth, and combines all scales: the warmer the colour, the more the label attends to the'
        ' place. The others show the cells of each scale, from black (no attention) to yellow (the maximum of that'
        ' map).'
    ),
    GRAD_CAM: (
        'Grad-CAM: the warmer the colour, the more the place raises the probability of the label. The second map shows'
        ' the cells of the model’s last feature map.'
    ),
}


@dataclass(frozen=True)
class Analysis:
    """Labels of one image and the attention of each.

    Attributes:
        image: The model's input as an image.
        probabilities: Probability of each of the K labels, as `predict` computes it.
        pixels: The model's input (1, C, H, W).
        maps: Maps of the scales, (K, H_i, W_i): the share of a label's attention that each cell receives; none where
            the model has no attention of labels, since Grad-CAM is computed for one label at a time.
    """

    image: Image.Image
    probabilities: list[float]
    pixels: torch.Tensor
    maps: list[torch.Tensor]


@torch.inference_mode()
def analyze(model: nn.Module, path: str | Path) -> Analysis:
    """Computes all labels of an image and their attention, preprocessed as the model's own configuration says.

    Args:
        model: Model from `msff_timm.load` or `timm.create_model`, in evaluation mode, on any device.
        path: Path of the image; messages show only its file name.

    Raises:
        InputError: The image cannot be read, or the logits are not finite.
    """
    preprocessing = Preprocessing(model)
    original = open_image(path, Path(path).name)
    pixels = preprocessing.transform(original)
    images = pixels[None].to(next(model.parameters()))
    logits, maps = attention_maps(model, images) if has_attention(model) else (compute_logits(model, images), [])
    image = preprocessing.restore(original, pixels)
    if max(image.size) < MIN_SIDE:
        image = image.resize(resize_longer(image.size, MIN_SIDE), Image.Resampling.BICUBIC)
    probabilities = compute_probabilities(model, logits[0].float()).tolist()
    return Analysis(image, probabilities, images, [of_scale[0].cpu() for of_scale in maps])


def _gradio():
    try:
        import gradio
        import matplotlib  # noqa: F401  draws the overlays; better missed now than at the first image
    except ModuleNotFoundError as e:
        raise missing_package(e.name, 'space') from None
    except ImportError as e:  # a version that does not fit another package, e.g. huggingface_hub
        raise InputError(f"gradio cannot be imported ({one_line(e)}): pip install -U 'msff-timm[space]'") from None
    return gradio


async def _keep_path(path: str) -> str:
    return path


def build(model: nn.Module, name: str):
    """Builds the page of a model.

    Args:
        model: Model as for `analyze`.
        name: Name of the model on the page.

    Returns:
        A `gradio.Blocks` for `launch`. Its attribute `uploads` records the uploads, which lie in the folder that
        `GRADIO_TEMP_DIR` names; the oldest are deleted when it is full.

    Raises:
        InputError: Gradio is not installed, or the model has no labels.
    """
    gr = _gradio()
    label_names = display_names(model)
    if not label_names:
        raise InputError(f'{name}: the model has no labels.')
    own = decision_thresholds(model) if get_thresholds(model) else None
    kind = ATTENTION if has_attention(model) else GRAD_CAM
    uploads = Uploads(gr.utils.get_upload_folder())

    def list_labels(analysis: Analysis | None, use_own: bool, threshold: float) -> str:
        if analysis is None:
            return note_html(INVITATION)
        thresholds = own if use_own else [threshold] * len(label_names)
        return labels_html(label_names, analysis.probabilities, thresholds)

    def show_attention(analysis: Analysis | None, index: int | None) -> str:
        if analysis is None or index is None:
            return note_html(NO_IMAGE)
        maps = [of_scale[index] for of_scale in analysis.maps]
        try:
            maps = maps or [grad_cam(model, analysis.pixels, [index])[0, 0].cpu()]
        except InputError as e:
            return note_html(f'No map to show: {e}')
        return attention_html(analysis.image, maps, label_names[index], kind)

    def analyze_upload(path: str | None, use_own: bool, threshold: float, request: gr.Request):
        analysis, error = None, None
        try:
            analysis = analyze(model, uploads.open(path, request.session_hash)) if path else None
        except InputError as e:
            error = note_html(f'This image cannot be used. {e}', is_error=True)
        if analysis is None:
            no_labels = gr.Dropdown(choices=[], value=None, interactive=False)
            return None, error or note_html(INVITATION), no_labels, note_html(NO_IMAGE)
        ranked = sorted(range(len(label_names)), key=lambda index: -analysis.probabilities[index])
        choices = [(f'{label_names[index]}  {analysis.probabilities[index]:.3f}', index) for index in ranked]
        dropdown = gr.Dropdown(choices=choices, value=ranked[0], interactive=True)
        return analysis, list_labels(analysis, use_own, threshold), dropdown, show_attention(analysis, ranked[0])

    def apply_threshold(analysis: Analysis | None, use_own: bool, threshold: float):
        # An unchecked box is left alone: it may have been checked in the meantime.
        return False if use_own else gr.skip(), list_labels(analysis, False, threshold)

    with gr.Blocks(
        title=f'{TITLE} {name}',
        analytics_enabled=False,
        delete_cache=(CLEAN_SECONDS, KEEP_SECONDS),
        fill_width=True,
    ) as page:
        analysis = gr.State()
        gr.HTML(heading_html(TITLE, name, len(label_names)))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                image = gr.Image(
                    label='Image',
                    type='filepath',
                    sources=['upload', 'clipboard'],
                    height=420,
                    buttons=['fullscreen'],
                    elem_id='image',
                )
                # Gradio's own reading would end in a traceback for an image that Pillow refuses, and would fetch the
                # address or server file that a request names. Here, only recorded uploads are opened.
                image.preprocess = lambda payload: payload and payload.path
                image.async_move_resource_to_block_cache = _keep_path
            with gr.Column(scale=6, min_width=320):
                with gr.Group():
                    use_own = gr.Checkbox(
                        label='Each label’s own threshold',
                        info='Stored with the model and shown as a tick on each bar. Moving the slider turns this off.',
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
                        info='A label is present if its probability is above the threshold.',
                        elem_id='threshold',
                    )
                labels = gr.HTML(note_html(INVITATION), elem_id='labels', elem_classes='msff-labels')
        heading = f'{kind[0].upper()}{kind[1:]} of a label'
        gr.HTML(f'<h2 class="msff-section">{heading}</h2><p class="msff-lead">{HOW_TO_READ[kind]}</p>')
        label = gr.Dropdown(
            choices=[], value=None, label='Label', filterable=True, interactive=False, elem_id='label', container=True
        )
        attention = gr.HTML(note_html(NO_IMAGE), elem_id='attention')

        quiet = dict(show_progress='hidden', api_visibility='private')
        image.change(
            analyze_upload,
            [image, use_own, threshold],
            [analysis, labels, label, attention],
            api_visibility='private',
            show_progress_on=[labels],
            concurrency_limit=1,  # maps hook the model: calls for two images at once would mix
            concurrency_id='model',
        )
        latest = dict(trigger_mode='always_last', **quiet)
        threshold.input(apply_threshold, [analysis, use_own, threshold], [use_own, labels], **latest)
        use_own.input(list_labels, [analysis, use_own, threshold], labels, **latest)
        label.input(show_attention, [analysis, label], attention, concurrency_id='model', **latest)
    page.uploads = uploads
    return page


def launch(page, host: str | None = None, port: int | None = None) -> str:
    """Starts a page, without a public link and without fetching anything from elsewhere.

    Args:
        page: Page from `build`.
        host: Address to listen at; None for `GRADIO_SERVER_NAME`, or else this machine only. The page answers under
            this name and as localhost; at 0.0.0.0 or :: under all addresses and the machine's name; on the Hub under
            the name of the Space. A proxy in front of it has to pass one of these as `Host`.
        port: Port to listen at; None for `GRADIO_SERVER_PORT`, or else the first free port from 7860 on.

    Returns:
        Address of the page.

    Raises:
        InputError: The page cannot be started there.
    """
    gr = _gradio()
    from starlette.middleware import Middleware  # a dependency of Gradio

    host = host or os.environ.get('GRADIO_SERVER_NAME') or '127.0.0.1'
    _check_address(host, port or 0)
    fonts = dict(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])  # installed everywhere
    theme = gr.themes.Default(primary_hue='indigo', neutral_hue='slate', radius_size='lg', **fonts)
    greys = dict(body_text_color_subdued='*neutral_500', block_info_text_color='*neutral_500')
    theme.set(**greys, **{f'{name}_dark': '*neutral_400' for name in greys})
    try:
        _, address, _ = page.launch(
            server_name=f'[{host}]' if ':' in host else host,  # an IPv6 address, as in a URL
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            app_kwargs={'middleware': [Middleware(Guard, uploads=page.uploads, hosts=allowed_hosts(host))]},
            state_session_capacity=MAX_SESSIONS,
            footer_links=[],
            run_history=False,  # keep no images in the browser
            ssr_mode=False,
            theme=theme,
            css=CSS,
        )
    except Exception as e:  # uvicorn, httpx behind a proxy and Gradio have exceptions of their own
        raise InputError(f'the page cannot be started ({one_line(e)})') from e
    return address


def _check_address(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as e:
        place = f'{host}, port {port or "any"}'
        raise InputError(f'cannot listen at {place} ({one_line(e)}): choose others with --host and --port.') from None


def serve(
    name: str = hub.DEFAULT_MODEL, host: str | None = None, port: int | None = None, device: str | None = None
) -> None:
    """Loads a model and serves its page until Ctrl-C, SIGTERM or SIGHUP, then deletes all uploads.

    Uploads left behind by a killed server are deleted at the start.

    Args:
        name: Name of the model, as for `msff_timm.load`.
        host: Address to listen at, as for `launch`.
        port: Port to listen at, as for `launch`.
        device: Type of device, as for `choose_device`.

    Raises:
        InputError: The model cannot be loaded or put on the device, or the page cannot be started.
    """
    _gradio()
    _check_address(host or os.environ.get('GRADIO_SERVER_NAME') or '127.0.0.1', port or 0)
    torch_device = choose_device(device)
    model = hub.load(name).to(torch_device)
    for name_of_signal in ('SIGTERM', 'SIGHUP'):
        number = getattr(signal, name_of_signal, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, signal.default_int_handler)
    try:
        # Gradio leaves uploads behind if a page is still open at the end.
        with temporary_folder() as folder:
            os.environ['GRADIO_TEMP_DIR'] = str(folder)
            page = build(model, name)
            print(f'Serving {name} at {launch(page, host, port)}; press Ctrl-C to stop.', flush=True)
            try:
                threading.Event().wait()
            finally:
                page.server.force_exit = True  # do not wait for open pages, nor report them in a traceback
                logging.getLogger('uvicorn.error').disabled = True
                page.close(verbose=False)
    except KeyboardInterrupt:
        pass  # the normal way to stop
