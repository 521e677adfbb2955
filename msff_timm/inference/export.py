"""Export of a model to a file that runs without this package: ONNX, torch.export or TorchScript."""

import copy
import importlib
import io
import json
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
import torch.nn as nn
from timm.utils import unwrap_model

from .. import __version__
from ..errors import InputError, missing_package, unknown
from ..files import replace_files
from ..labels import display_names, get_calibration, get_thresholds
from .logits import Preprocessing, check_finite
from .precision import MAX_DROP, MOST_IMAGES, PRECISIONS, Checked, check, load_check, reduce_precision

__all__ = ['FORMATS', 'Exported', 'export', 'read_metadata']

log = logging.getLogger(__name__)

# The opset of PyTorch's exporter; later ones are converted from it. ONNX Runtime reads it since version 1.14.
OPSET = 18
# protobuf holds up to 2 GiB, part of which the graph needs.
MAX_BYTES_IN_ONNX = 2**31 - 2**27
# Largest difference of logits, relative to the largest logit above 1; the rounding of runtimes stays far below.
TOLERANCE = 1e-4
LARGER_BATCH = 3
METADATA_FILE = 'metadata.json'  # among the extra files of a `.pt2` or TorchScript archive


@dataclass(frozen=True)
class Exported:
    """Exported file, which has been run and computes the logits of the model.

    Attributes:
        path: Path of the file.
        format: Format of the file.
        input_size: Channels, height and width of the input.
        num_bytes: Size of the file with its external data.
        max_difference: Largest difference of a logit of the float32 file from the model's.
        checked: mAP of a float16 or int8 file beside that of the float32 file; None for float32.
        num_bytes_before: Size of the float32 file.

    Examples:
        >>> Exported(Path('model.onnx'), 'onnx', (3, 96, 96), 4_900_000, 1e-6, 4_900_000).path.name
        'model.onnx'
    """

    path: Path
    format: str
    input_size: tuple[int, int, int]
    num_bytes: int
    max_difference: float
    num_bytes_before: int
    checked: Checked | None = None


def export(
    model: nn.Module,
    path: str | Path,
    format: str,
    image_size: int | None = None,
    images: Sequence[str | Path] = (),
    precision: str = 'float32',
    calibration_images: Sequence[str | Path] = (),
    check_data: tuple[str, Sequence[str]] | None = None,
    max_drop: float = MAX_DROP,
) -> Exported:
    """Exports a model for batches of any number of images of one size.

    The input is named `image`, the output `logits`. An existing file is replaced only after the new one has been run on
    one image and on several, and has computed the model's logits. A file in a smaller precision computes other logits:
    it is made from a float32 file that has been run like this, and kept only if its mAP holds and it is smaller.

    Args:
        model: Model from `msff_timm.load` or `timm.create_model`, on any device; it is not changed.
        path: File to write; its folder is created if it is missing.
        format: Format, a key of `FORMATS`.
        image_size: Side of square input images; None for the model's own size.
        images: Paths of images to compare logits on; noise is used where they are too few.
        precision: `float32`, or for ONNX `float16` or `int8`.
        calibration_images: Paths of images that int8 takes the ranges of activations from; a hundred are enough.
        check_data: Labelled images that mAP is computed on: their name and settings, see `precision.load_check`.
        max_drop: Largest loss of mAP in percentage points.

    Raises:
        InputError: The format is unknown, a package is not installed, the file belongs to a saved model, the model
            cannot be exported at that size, an image cannot be read, the file does not compute the model's logits, or
            a smaller precision loses too much mAP or is not smaller.

    Examples:
        >>> from msff_timm import hub
        >>> exported = export(hub.load('msff_test_resnet'), 'model.pt', 'torchscript')
        >>> exported.format, exported.input_size, exported.max_difference < 1e-4
        ('torchscript', (3, 96, 96), True)
    """
    if format not in FORMATS:
        raise unknown('export format', format, FORMATS)
    path = Path(path)
    if format == 'torch-export' and path.suffix != '.pt2':
        raise InputError(f'{path}: the name of a {format} file must end in .pt2.')
    dataset = None
    if precision != 'float32':
        _check_precision(format, precision, calibration_images, check_data)
        dataset, data = load_check(*check_data, Preprocessing(unwrap_model(model), image_size).input_size[-1])
    if format == 'torchscript':
        log.warning('TorchScript is deprecated in PyTorch, and will be removed here: use torch-export or onnx.')
    if format == 'onnx':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            _import_extra(package)
    model = unwrap_model(model)
    preprocessing = Preprocessing(model, image_size)
    metadata = _metadata(model, preprocessing)
    write, open_file = FORMATS[format]
    _check_target(path, model)

    checked = None
    model = _Exportable(copy.deepcopy(model).cpu().float().eval(), preprocessing.input_size)
    try:
        # External data is moved first: the file itself is never without it.
        with torch.no_grad(), replace_files(path.parent) as folder:
            # Two images: the exporters would take a batch size of 1 for a constant.
            example = torch.zeros(2, *preprocessing.input_size)
            # The model reports an unsuitable size more clearly than any exporter does.
            check_finite(model.model, model(example))
            file = folder / path.name
            with _quiet():
                write(model, example, file, metadata)
                run = open_file(file)
            max_difference = _compare(model, run, _batches(images, preprocessing))
            num_bytes = num_bytes_before = sum(part.stat().st_size for part in folder.iterdir())
            if dataset is not None:
                checked = _reduce(file, precision, calibration_images, preprocessing, run, model.model, dataset, data)
                num_bytes = file.stat().st_size
                _check_reduced(checked, max_drop, precision, num_bytes, num_bytes_before)
    except InputError as e:
        raise InputError(f'{path} is not written: {e}') from e
    except Exception as e:
        # Exporters and models raise exceptions of many types, some with pages of text.
        reason = str(e).strip().partition('\n')[0] or type(e).__name__
        raise InputError(f'{path} is not written: the model cannot be exported as {format} ({reason})') from e
    return Exported(path, format, preprocessing.input_size, num_bytes, max_difference, num_bytes_before, checked)


def _check_precision(format: str, precision: str, calibration_images: Sequence, check_data: tuple | None) -> None:
    if precision not in PRECISIONS:
        raise unknown('precision', precision, ('float32', *PRECISIONS))
    if format != 'onnx':
        raise InputError(f'precision is {precision}: only onnx files have it; choose the format onnx.')
    if check_data is None:
        raise InputError(
            f'precision is {precision}: give labelled images with --check, e.g. --check table root=photos: the file is'
            ' kept only if their mAP holds.'
        )
    if precision == 'int8' and not calibration_images:
        raise InputError('precision is int8: give images like those to come with --calibrate; a hundred are enough.')


def _reduce(
    file: Path,
    precision: str,
    calibration_images: Sequence[str | Path],
    preprocessing: Preprocessing,
    run: Callable,
    model: nn.Module,
    dataset,
    data: str,
) -> Checked:
    """Replaces a float32 file by one in a smaller precision, and compares their mAP."""
    if len(list(file.parent.iterdir())) > 1:
        raise InputError(f'precision is {precision}: the model is too large for one ONNX file; use float32.')
    reduced = file.with_suffix('.reduced')
    step = max(len(calibration_images) / MOST_IMAGES, 1)
    chosen = [calibration_images[int(k * step)] for k in range(min(len(calibration_images), MOST_IMAGES))]
    if len(chosen) < len(calibration_images):
        log.info('%s: ranges from %d of %d images.', precision, len(chosen), len(calibration_images))
    batches = (preprocessing.load(image)[None] for image in chosen)
    with _quiet():
        reduce_precision(file, reduced, precision, batches)
    os.replace(reduced, file)
    return check(model, dataset, data, (run, _open_onnx(file)), preprocessing)


def _check_reduced(checked: Checked, max_drop: float, precision: str, num_bytes: int, num_bytes_before: int) -> None:
    """Raises an InputError if a smaller precision is not worth having."""
    figures = (
        f'mAP {checked.after:.2f} instead of {checked.before:.2f} on {checked.num_images} images of {checked.data},'
        f' {num_bytes / 1e6:.1f} MB instead of {num_bytes_before / 1e6:.1f} MB'
    )
    if not checked.before - checked.after <= max_drop:
        raise InputError(f'{precision} loses more than {max_drop:g} percentage points: {figures}.')
    if num_bytes >= num_bytes_before:
        raise InputError(f'{precision} saves nothing: {figures}.')


def _check_target(path: Path, model: nn.Module) -> None:
    """Refuses to replace a file of a saved model, this one or another, unless it is an earlier export.

    Links are followed. Names are compared without case, as some file systems do.

    Raises:
        InputError: The file, or its external data, exists and is no export.
    """
    own = Path(model.pretrained_cfg.get('file') or os.devnull).resolve()  # the model's folder, or the weights in it
    own = own.parent if own.is_file() else own

    def belongs_to_a_model(file: Path) -> bool:
        is_weights = file.suffix.lower() in ('.safetensors', '.json')
        return is_weights or (file.parent / 'config.json').is_file() or file.is_relative_to(own)

    names = {path.name.casefold(), f'{path.name}.data'.casefold()}
    found = [file for file in path.parent.iterdir() if file.name.casefold() in names] if path.parent.is_dir() else []
    files = [file for file in found if file.is_file() and any(map(belongs_to_a_model, (file, file.resolve())))]
    if files and not _is_export(path):
        raise InputError(f'{path} is not written: {files[0]} is a file of a saved model: choose another name.')


def _is_export(path: Path) -> bool:
    try:
        return bool(read_metadata(path))
    except InputError:
        return False


def read_metadata(path: str | Path) -> dict:
    """Reads the labels and the preprocessing stored in an exported file.

    Returns:
        Dictionary with `label_names` in the order of the logits, `input_size`, `mean`, `std`, `interpolation`,
        `crop_pct`, `crop_mode`, `problem_type`, `function_to_apply`, `architecture` and `msff_timm_version`; where the
        model has them, also `thresholds`, `temperatures` and `biases`, see `msff_timm.calibration`.

    Raises:
        InputError: The file does not exist, or was not exported by this package.

    Examples:
        >>> from msff_timm import hub
        >>> exported = export(hub.load('msff_test_resnet'), 'model.pt', 'torchscript')
        >>> read_metadata(exported.path)['label_names'][:2]
        ['arrow', 'bolt']
    """
    if not Path(path).is_file():
        raise InputError(f'{path}: there is no such file.')
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith(f'/{METADATA_FILE}'))
                metadata = json.loads(archive.read(name))
        else:
            properties = _import_extra('onnx').load(path, load_external_data=False).metadata_props
            metadata = {entry.key: json.loads(entry.value) for entry in properties}
        metadata['msff_timm_version']
    except InputError:
        raise
    except Exception as e:
        # Each package has its own exceptions for a foreign file.
        raise InputError(f'{path}: was not exported by msff-timm.') from e
    return metadata


class _Exportable(nn.Module):
    """Names the model's input `image`, and refuses images of another size."""

    def __init__(self, model: nn.Module, input_size: Sequence[int]):
        super().__init__()
        self.model = model
        self.input_size = list(input_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, K)."""
        if list(image.shape[1:]) != self.input_size:
            raise ValueError(f'image: its shape must be (B, C, H, W) with (C, H, W) = {self.input_size}')
        return self.model(image)


def _metadata(model: nn.Module, preprocessing: Preprocessing) -> dict:
    if not model.num_classes:
        raise InputError('the model has no labels (num_classes=0).')
    keys = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    return {
        'label_names': display_names(model),
        **{key: preprocessing.data_config[key] for key in keys},
        **_decisions(model),
        'problem_type': 'multi_label_classification',
        'function_to_apply': 'sigmoid',
        'architecture': model.pretrained_cfg['architecture'],
        'msff_timm_version': __version__,
    }


def _decisions(model: nn.Module) -> dict:
    """Returns the stored thresholds, temperatures and biases of a model, as far as there are any."""
    thresholds, calibration = get_thresholds(model), get_calibration(model)
    stored = {} if thresholds is None else {'thresholds': thresholds}
    return stored if calibration is None else {**stored, 'temperatures': calibration[0], 'biases': calibration[1]}


def _import_extra(package: str):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise missing_package(package, 'export') from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' messages and warnings, e.g. about constants: the comparison of logits decides."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)


def _batches(images: Sequence[str | Path], preprocessing: Preprocessing) -> Iterator[torch.Tensor]:
    """Yields batches (B, C, H, W): one image, then several at a time; noise follows where images are too few."""
    noise = preprocessing.noise(max(0, 1 + LARGER_BATCH - len(images)))
    tensors = chain(map(preprocessing.load, images), noise)
    yield torch.stack([next(tensors)])
    while batch := list(islice(tensors, LARGER_BATCH)):
        yield torch.stack(batch)


def _compare(model: nn.Module, run: Callable, batches: Iterator[torch.Tensor]) -> float:
    """Returns the largest difference between the logits of a model and those of its file.

    Raises:
        InputError: The difference is above the tolerance.
    """
    max_difference = 0.0
    for image in batches:
        expected, logits = model(image), run(image)
        # Logits of another shape, e.g. of one image for several, would be broadcast.
        difference = (logits - expected).abs().max().item() if logits.shape == expected.shape else math.inf
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):  # refuses NaN, too
            raise InputError(f'its logits differ from those of the model by {difference:.2g}.')
        max_difference = max(max_difference, difference)
    return max_difference


def _exported_program(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim('batch')},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths on this machine
    return program


def _write_onnx(model: nn.Module, example: torch.Tensor, file: Path, metadata: dict) -> None:
    program = torch.onnx.export(
        _exported_program(model, example),
        dynamo=True,
        dynamic_shapes=({0: 'batch'},),
        input_names=['image'],
        output_names=['logits'],
        opset_version=OPSET,
        verbose=False,
    )
    program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    program.save(file, external_data=num_bytes > MAX_BYTES_IN_ONNX)


def _open_onnx(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the comparison of logits or of mAP decides
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return lambda image: torch.from_numpy(session.run(['logits'], {'image': image.numpy()})[0])


def _write_torch_export(model: nn.Module, example: torch.Tensor, file: Path, metadata: dict) -> None:
    torch.export.save(_exported_program(model, example), file, extra_files={METADATA_FILE: json.dumps(metadata)})


def _open_torch_export(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(file).module()


def _write_torchscript(model: nn.Module, example: torch.Tensor, file: Path, metadata: dict) -> None:
    # The model is traced, because some backbones (e.g. Swin with `features_only`) cannot be scripted. The wrapper is
    # scripted, because a trace would accept images of other sizes and compute wrong logits.
    scripted = torch.jit.script(_Exportable(torch.jit.trace(model.model, example, check_trace=False), model.input_size))
    torch.jit.save(scripted, file, _extra_files={METADATA_FILE: json.dumps(metadata)})


def _open_torchscript(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.jit.load(file)


FORMATS = {
    'onnx': (_write_onnx, _open_onnx),
    'torch-export': (_write_torch_export, _open_torch_export),
    'torchscript': (_write_torchscript, _open_torchscript),
}
