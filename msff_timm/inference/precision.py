"""Float16 and int8 ONNX files, by ONNX Runtime's own tools, and the check that they are worth having."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from .. import metrics
from ..errors import InputError, missing_package, unknown
from ..labels import display_names, match_labels
from .logits import Preprocessing

__all__ = ['MAX_DROP', 'MOST_IMAGES', 'PRECISIONS', 'Checked', 'check', 'load_check', 'reduce_precision']

MAX_DROP = 0.5  # of mAP, in percentage points
MOST_IMAGES = 256  # that ranges of activations are taken from
BATCH = 8
# Arguments of `msff_timm.data.load` that are no texts
CONVERTED: dict[str, Callable] = {
    'size': int,
    'image_size': int,
    'keep_unlabelled': {'true': True, 'false': False}.__getitem__,
    'label_names': lambda text: text.split(','),
    'label_columns': lambda text: text.split(','),
}


@dataclass(frozen=True)
class Checked:
    """mAP in percent of a float32 file and of its smaller version, on the same images.

    Attributes:
        data: Name and split of the data.
        num_images: Number of images.
        num_labels: Number of labels that count.
        before: mAP of the float32 file.
        after: mAP of the smaller file.
    """

    data: str
    num_images: int
    num_labels: int
    before: float
    after: float


def load_check(name: str, settings: Sequence[str], image_size: int):
    """Loads the labelled images of a check.

    Args:
        name: Data set, as `msff_timm.data.load` takes it.
        settings: Further arguments of it, as `KEY=VALUE`; the split is `validation` unless it is given.
        image_size: Side of drawn images in pixels.

    Raises:
        InputError: A setting is unknown or has no value, the data cannot be loaded, or a package is not installed.
    """
    try:
        from msff_timm import data
    except ModuleNotFoundError as e:
        raise missing_package(e.name, 'train') from None
    known = signature(data.load).parameters.keys() - {'name', 'streaming'}
    arguments = {'split': 'validation', 'image_size': image_size}
    for setting in settings:
        key, equals, value = setting.partition('=')
        if not equals or not value:
            raise InputError(f'--check {setting}: settings are KEY=VALUE, e.g. root=photos or split=test.')
        if key not in known:
            raise unknown('setting of --check', key, known)
        try:
            arguments[key] = CONVERTED.get(key, str)(value)
        except (KeyError, ValueError):
            raise InputError(f'--check {setting}: {value} is no value of {key}.') from None
    return data.load(name, **arguments), f'{name} {arguments["split"]}'


def check(model: nn.Module, dataset, data: str, runs: Sequence[Callable], preprocessing: Preprocessing) -> Checked:
    """Evaluates two versions of a model on the same images.

    Args:
        model: Model, which names the labels.
        dataset: Images of `msff_timm.data.load`; their labels are matched to the model's by name.
        data: Name and split of the data.
        runs: Two functions from images (B, C, H, W) to logits (B, K).
        preprocessing: Preprocessing of the model.

    Raises:
        InputError: The model has no label of the data, no label counts, or an image cannot be read.
    """
    from msff_timm.data import label_names
    from msff_timm.data.samples import Samples

    known, names = display_names(model), label_names(dataset)
    matched = match_labels(known, names)
    if not matched:
        raise InputError(f'--check: the model has none of the labels of {data}.')
    columns = [known.index(name) for name in matched.values()]
    samples = Samples(dataset, preprocessing.transform)
    targets = samples.targets[:, [names.index(name) for name in matched]]
    logits: tuple[list, list] = ([], [])
    for start in range(0, len(samples), BATCH):
        images = torch.stack([samples[k]['image'] for k in range(start, min(start + BATCH, len(samples)))])
        for found, run in zip(logits, runs, strict=True):
            found.append(run(images)[:, columns])
    scores = [torch.cat(found).double().sigmoid().numpy() for found in logits]
    present, absent = metrics.present_and_absent(targets == 1, targets == -1)
    counts = present.any(0) & absent.any(0)
    if not counts.any():
        raise InputError(f'--check: no label of {data} has both a positive and a negative.')
    before, after = (
        100 * float(np.nanmean(metrics.average_precision(each, targets == 1, targets == -1))) for each in scores
    )
    return Checked(data, len(samples), int(counts.sum()), before, after)


def reduce_precision(source: Path, target: Path, precision: str, images: Iterator[torch.Tensor]) -> None:
    """Writes a float32 ONNX file in a smaller precision. Input and output stay float32.

    Args:
        source: File of `export`.
        target: File to write.
        precision: A key of `PRECISIONS`.
        images: Preprocessed images (B, C, H, W) that int8 takes the ranges of activations from.
    """
    PRECISIONS[precision](source, target, images)


def _write_float16(source: Path, target: Path, images: Iterator[torch.Tensor]) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _write_int8(source: Path, target: Path, images: Iterator[torch.Tensor]) -> None:
    """Quantises weights per channel and activations per tensor, between pairs of quantising nodes (QDQ)."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict | None:
            batch = next(images, None)
            return batch if batch is None else {'image': batch.numpy()}

    prepared = target.with_suffix('.prepared')
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,  # the fast combination on x86; the accuracy is the same
    )
    prepared.unlink()
    # The preparation drops the labels and the preprocessing.
    quantised = onnx.load(target)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(onnx.load(source).metadata_props)
    onnx.save(quantised, target)


PRECISIONS = {'float16': _write_float16, 'int8': _write_int8}
