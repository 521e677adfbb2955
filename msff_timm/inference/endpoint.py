"""Endpoint of the page, for programs: HTTP, `gradio_client`, and MCP."""

from typing import TypedDict
from uuid import uuid4

import torch
import torch.nn as nn

from ..data.images import open_image
from ..errors import InputError
from ..labels import compute_probabilities, decision_thresholds, display_names
from .logits import Preprocessing, compute_logits
from .predict import select_labels
from .uploads import Uploads

__all__ = ['Answer', 'add_endpoint', 'keep_path']

MAX_BATCH = 16  # images that wait at the same time and are computed at once


class Answer(TypedDict):
    """Answer to a request.

    Attributes:
        labels: Probability of each label above its threshold, in descending order.
        error: Reason why the image could not be read, or None.
    """

    labels: dict[str, float]
    error: str | None


def add_endpoint(page, model: nn.Module, uploads: Uploads, concurrency_id: str) -> None:
    """Adds the endpoint `/predict` to a page that is being built.

    Images that arrive while the model is busy are computed together, up to `MAX_BATCH` of them. A request needs an
    upload of its own: the same upload is not opened for another request.

    Args:
        page: The `gradio.Blocks`, whose context is open.
        model: Model as for `msff_timm.inference.app.analyze`.
        uploads: Record of the uploads, which a request names.
        concurrency_id: Name of the group of events of which one runs at a time.
    """
    import gradio as gr

    transform, label_names = Preprocessing(model).transform, display_names(model)

    # Gradio passes a list for each argument, while the types are those of one image, which it publishes.
    def predict(image: gr.FileData, threshold: float | None = None) -> Answer:
        """Predicts the labels of an image.

        Args:
            image: Image file.
            threshold: Probability above which a label is predicted. Without it, each label has its own threshold.
        """
        answers: list[Answer] = [{'labels': {}, 'error': None} for _ in image]
        pixels, limits = {}, {}
        for number, (file, value) in enumerate(zip(image, threshold, strict=True)):
            try:
                # Gradio does not tell the sessions of a batch apart: each request is a session of its own.
                path = uploads.open(_path_of(file), uuid4().hex)
                limits[number] = _thresholds(model, value)
                pixels[number] = transform(open_image(path, path.name))
            except InputError as e:
                answers[number]['error'] = str(e)
        if pixels:
            logits = compute_logits(model, torch.stack(list(pixels.values())))
            for number, row in zip(pixels, compute_probabilities(model, logits).tolist(), strict=True):
                answers[number]['labels'] = select_labels(row, label_names, limits[number])
        return (answers,)

    endpoint = gr.api(
        predict,
        api_name='predict',
        batch=True,
        max_batch_size=MAX_BATCH,
        concurrency_limit=1,
        concurrency_id=concurrency_id,
    )
    for block in page.fns[endpoint['id']].inputs:
        block.async_move_resource_to_block_cache = keep_path


async def keep_path(path: str) -> str:
    """Replaces the method by which Gradio fetches the address or the server's file that a request names."""
    return path


def _path_of(file: object) -> str:
    path = file.get('path') if isinstance(file, dict) else None
    if not isinstance(path, str):
        raise InputError('image must be a file that was uploaded, {"path": ...}.')
    return path


def _thresholds(model: nn.Module, threshold: object) -> list[float]:
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold < 1):
        raise InputError(f'threshold is {threshold!r}: must be a probability from 0 to below 1.')
    return decision_thresholds(model, threshold)
