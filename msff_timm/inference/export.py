"""Exporting a model to a file that runs without this package: ONNX, torch.export or TorchScript."""

import copy
import importlib
import io
import json
import logging
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import timm
import torch
import torch.nn as nn
from timm.utils import unwrap_model

from .. import __version__
from ..data.transforms import eval_transform, open_image
from ..errors import InputError, unknown
from ..labels import display_names
from .predict import check_finite

__all__ = ['FORMATS', 'Exported', 'export', 'read_metadata']

# What PyTorch's exporter is written in: a later opset is a conversion of it. ONNX Runtime reads it from 1.14 on.
OPSET = 18
# protobuf holds 2 GiB, of which the graph needs some.
MAX_BYTES_IN_ONNX = 2**31 - 2**27
# Of the logits, relative to the largest one where that is above 1; runtimes that round differently stay far below.
TOLERANCE = 1e-4
LARGER_BATCH = 3
# Among the extra files of a `.pt2` or TorchScript archive.
METADATA_FILE = 'metadata.json'


@dataclass(frozen=True)
class Exported:
    """A file that has been run and gives the logits of the model that it was made from.

    Attributes:
        path: The file.
        format: Its format.
        input_size: Channels, height and width of the images that it takes.
        num_bytes: Its size, with that of external data.
        max_difference: The largest difference of a logit from the model's own.
    """

    path: Path
    format: str
    input_size: tuple[int, int, int]
    num_bytes: int
    max_difference: float


def export(
    model: nn.Module, path: str | Path, format: str, image_size: int | None = None, photos: Sequence[str | Path] = ()
) -> Exported:
    """Exports a model for batches of any number of images of one size, in float32.

    The input is called `image`, the output `logits`. The file replaces one that is there only after it has been run, on
    one image and on several, and has given the model's logits.

    Args:
        model: What `msff_timm.hub.load` or `timm.create_model` gives, on any device; it is left as it is.
        path: The file to write; its folder is made when it is missing.
        format: A key of `FORMATS`.
        image_size: Side of the square images; None for the size that the model's own configuration says.
        photos: Paths of images to run the file on; noise stands in for what is missing.

    Raises:
        InputError: There is no such format, a package is missing, the file would replace one of a saved model, the
            model cannot be exported at that size, a photo cannot be read, or the file does not give the model's logits.
    """
    if format not in FORMATS:
        raise unknown('export format', format, FORMATS)
    path = Path(path)
    if format == 'torch-export' and path.suffix != '.pt2':
        raise InputError(f'{path}: the name of a {format} file has to end in .pt2.')
    if format == 'onnx':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            _import_extra(package)
    model = unwrap_model(model)
    data_config = timm.data.resolve_input_data_config(model)
    if image_size is not None:
        data_config['input_size'] = (data_config['input_size'][0], image_size, image_size)
    metadata = _metadata(model, data_config)
    write, open_file = FORMATS[format]

    _check_target(path, model)

    model = _Exportable(copy.deepcopy(model).cpu().float().eval(), data_config['input_size'])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent, prefix='.exporting-') as temporary:
            # Of two images: for a single one the number of images would be taken for a constant.
            example = torch.zeros(2, *data_config['input_size'])
            # It shows what is wrong with a size more clearly than any exporter does.
            check_finite(model.model, model(example))
            file = Path(temporary, path.name)
            with _quiet():
                write(model, example, file, metadata)
                run = open_file(file)
            max_difference = _compare(model, run, _batches(photos, data_config))
            num_bytes = sum(part.stat().st_size for part in Path(temporary).iterdir())
            # External data, where there is any, comes first: the file itself is then never without it.
            for part in sorted(Path(temporary).iterdir(), reverse=True):
                os.replace(part, path.parent / part.name)
    except InputError as e:
        raise InputError(f'{path} is not written: {e}') from e
    except Exception as e:
        # Exporters and models show what they cannot do in many types of exception, some of many pages.
        reason = str(e).strip().partition('\n')[0] or type(e).__name__
        raise InputError(f'{path} is not written: the model cannot be exported as {format} ({reason})') from e
    return Exported(path, format, tuple(data_config['input_size']), num_bytes, max_difference)


def _check_target(path: Path, model: nn.Module) -> None:
    """Refuses to replace what makes up a saved model, this one or another: only an earlier export is replaced there.

    Links are followed, and names are compared as file systems do that do not tell upper from lower case.

    Raises:
        InputError: The file, or the one of external data beside it, is there and is no export.
    """
    own = Path(model.pretrained_cfg.get('file') or os.devnull).resolve()  # a folder, or the weights in it
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
    """Reads the labels and the preprocessing that travel in an exported file.

    Returns:
        `label_names` in the order of the logits, `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`,
        `problem_type`, `function_to_apply`, `architecture` and `msff_timm_version`.

    Raises:
        InputError: There is no such file, or it was not exported by this package.
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
        # Each package has an exception of its own for a file that is none of its own.
        raise InputError(f'{path}: is no file that msff-timm exported.') from e
    return metadata


class _Exportable(nn.Module):
    """Names the model's input, and refuses images of a size that the file was not made for."""

    def __init__(self, model: nn.Module, input_size: Sequence[int]):
        super().__init__()
        self.model = model
        self.input_size = list(input_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps images (B, C, H, W) to logits (B, K)."""
        if list(image.shape[1:]) != self.input_size:
            raise ValueError(f'image: its shape must be (B, C, H, W) with (C, H, W) = {self.input_size}')
        return self.model(image)


def _metadata(model: nn.Module, data_config: dict) -> dict:
    if not model.num_classes:
        raise InputError('the model has no labels (num_classes=0).')
    preprocessing = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    return {
        'label_names': display_names(model),
        **{key: data_config[key] for key in preprocessing},
        'problem_type': 'multi_label_classification',
        'function_to_apply': 'sigmoid',
        'architecture': model.pretrained_cfg['architecture'],
        'msff_timm_version': __version__,
    }


def _import_extra(package: str):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"{package} is not installed: pip install 'msff-timm[export]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what exporters say of their own ways and of constants: the comparison of the logits says more."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)


def _batches(photos: Sequence[str | Path], data_config: dict) -> Iterator[torch.Tensor]:
    """Yields images (B, C, H, W): one alone, then batches of several; noise follows where photos are too few."""
    transform = eval_transform(data_config) if photos else None
    generator = torch.Generator().manual_seed(0)
    count = max(len(photos), 1 + LARGER_BATCH)
    for start, stop in pairwise([0, *range(1, count, LARGER_BATCH), count]):
        images = [transform(open_image(photo)) for photo in photos[start:stop]]
        noise = stop - start - len(images)
        images += torch.randn(noise, *data_config['input_size'], generator=generator)
        yield torch.stack(images)


def _compare(model: nn.Module, run: Callable, batches: Iterator[torch.Tensor]) -> float:
    """Returns the largest difference between the logits of a model and those of its file.

    Raises:
        InputError: It is above the tolerance.
    """
    max_difference = 0.0
    for image in batches:
        logits, of_file = model(image), run(image)
        # Of another shape, one for a batch of several say, it would be repeated to fit.
        difference = (of_file - logits).abs().max().item() if of_file.shape == logits.shape else math.inf
        if not difference <= TOLERANCE * max(1.0, logits.abs().max().item()):  # nan is above it, too
            raise InputError(f'its logits differ from those of the model by {difference:.2g}.')
        max_difference = max(max_difference, difference)
    return max_difference


def _exported_program(model: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim('batch')},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths on this machine, in a file that others are given
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

    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    return lambda image: torch.from_numpy(session.run(['logits'], {'image': image.numpy()})[0])


def _write_torch_export(model: nn.Module, example: torch.Tensor, file: Path, metadata: dict) -> None:
    torch.export.save(_exported_program(model, example), file, extra_files={METADATA_FILE: json.dumps(metadata)})


def _open_torch_export(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(file).module()


def _write_torchscript(model: nn.Module, example: torch.Tensor, file: Path, metadata: dict) -> None:
    # Traced, since a backbone that timm wraps to give its maps, a Swin say, cannot be scripted, and since at one size
    # every branch is settled; scripted around it, since the trace by itself would take other sizes and err in silence.
    scripted = torch.jit.script(_Exportable(torch.jit.trace(model.model, example, check_trace=False), model.input_size))
    torch.jit.save(scripted, file, _extra_files={METADATA_FILE: json.dumps(metadata)})


def _open_torchscript(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.jit.load(file)


FORMATS = {
    'onnx': (_write_onnx, _open_onnx),
    'torch-export': (_write_torch_export, _open_torch_export),
    'torchscript': (_write_torchscript, _open_torchscript),
}
