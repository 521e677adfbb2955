"""Saving to, loading from and publishing in timm's Hub format: `model.safetensors`, `config.json` in one folder."""

import filecmp
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn as nn
from huggingface_hub import constants
from timm.models import get_model_args, get_model_traits, parse_model_name, save_for_hf
from timm.utils import unwrap_model

from ..errors import InputError, unknown
from ..labels import check_names, has_own_rows, relabel, set_names, stored_names
from ..models.backbone import copy_backbone
from .errors import is_of_hub, reason
from .publish import check_files, check_target, gather, patiently, send
from .verify import check_model, download, fetch

__all__ = [
    'DEFAULT_MODEL',
    'Push',
    'align',
    'create',
    'list_models',
    'load',
    'load_for',
    'push',
    'save',
    'set_thresholds',
]

DEFAULT_MODEL = 'msff_efficientnet_lite0'  # whose weights the package brings
LONGEST = 600  # characters of a reason: PyTorch names each tensor that does not fit


def list_models() -> list[str]:
    """Lists the models of this package."""
    return timm.list_models(module=['msff', 'query2label', 'ml_decoder'])


def save(
    model: nn.Module,
    folder: str | Path,
    label_names: list[str],
    data_config: dict,
    training: dict | None = None,
    thresholds: dict | None = None,
) -> None:
    """Saves a model so that `timm.create_model(f'local-dir:{folder}', pretrained=True)` gives it back.

    Each file is replaced in one step, so a reader never sees half of one.

    Args:
        model: A timm model, as `timm.create_model` made it, or one in a wrapper: compiled, parallel or of EMA weights.
        folder: Made when it is missing.
        label_names: Names in the order of the logits.
        data_config: Preprocessing, as `timm.data.resolve_model_data_config` gives it.
        training: What the model was trained with, its transforms say: JSON values.
        thresholds: As for `set_thresholds`.

    Raises:
        InputError: Label names repeat, or their number, or that of the thresholds, is not the number of logits.
    """
    model = unwrap_model(model)
    check_names(label_names, model.num_classes)
    if thresholds and (fault := _fault_of_thresholds(thresholds, model.num_classes)):
        raise InputError(fault)
    channels = get_model_traits(model).get('in_chans', 3)
    if data_config.get('input_size') and data_config['input_size'][0] != channels:
        # What timm resolves for RGB is fitted to the model's own channels, as timm does it where it loads images.
        source = {**model.pretrained_cfg, **data_config}
        data_config = {**data_config, **timm.data.resolve_input_data_config(model, pretrained_cfg=source)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.saving-') as temporary:
        save_for_hf(
            model,
            temporary,
            model_config={
                'label_names': list(label_names),
                'problem_type': 'multi_label_classification',
                **({'training': training} if training else {}),
                **({'thresholds': thresholds} if thresholds else {}),
            },
            # The saved weights hold the backbone's: whoever creates the model from this file fetches nothing else.
            model_args={'backbone_pretrained': False} if 'backbone_pretrained' in get_model_args(model) else None,
            safe_serialization=True,
            data_config=data_config,
        )
        path = Path(temporary, 'config.json')
        config = json.loads(path.read_text(encoding='utf-8'))
        # transformers' wrapper, as timm, takes the number from beside the arguments, and fails when it is told twice.
        config['model_args'].pop('num_classes')
        path.write_text(json.dumps(config, indent=2), encoding='utf-8')
        align(Path(temporary, 'model.safetensors'))
        # safetensors leaves its file to the owner alone, whatever the umask says.
        shutil.copymode(path, Path(temporary, 'model.safetensors'))
        for name in ('model.safetensors', 'config.json'):
            os.replace(Path(temporary, name), folder / name)


def align(path: Path) -> None:
    """Lays the tensors of a safetensors file out anew, so that matrices begin at multiples of 64 bytes.

    Tensors of parts that `torch.compile` wraps get the names that they have without it.

    transformers computes on the file as it is mapped into memory, and on a CPU the last bit of a product depends on
    where its matrix begins: elsewhere than in memory that torch has reserved, the logits would not be timm's.
    """
    other = path.with_suffix('.aligned')
    with path.open('rb') as source, other.open('wb') as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), 'little')))
        start, end = source.tell(), 0
        tensors = {name: header.pop(name) for name in list(header) if name != '__metadata__'}
        spans = {name: tensor['data_offsets'] for name, tensor in tensors.items()}

        def multiple(name: str) -> int:
            """The largest power of two, 64 at most, that divides the tensor's size in bytes."""
            size = spans[name][1] - spans[name][0]
            return min(64, size & -size)

        # Each then begins at a multiple of its own: what precedes it is of as large a multiple, or a larger one.
        order = sorted(tensors, key=multiple, reverse=True)
        for name in order:
            begin, end = end, end + spans[name][1] - spans[name][0]
            header[name.replace('_orig_mod.', '')] = {**tensors[name], 'data_offsets': [begin, end]}
        text = json.dumps(header, separators=(',', ':')).encode()
        text += b' ' * (-(8 + len(text)) % 64)
        target.write(len(text).to_bytes(8, 'little') + text)
        for name in order:
            source.seek(start + spans[name][0])
            target.write(source.read(spans[name][1] - spans[name][0]))
    os.replace(other, path)


def set_thresholds(name: str, thresholds: dict) -> Path:
    """Stores thresholds with a saved model; `load` gives them to the model, and `predict` uses them.

    Args:
        name: `local-dir:FOLDER`.
        thresholds: `per_class`, a list in the order of the logits, and whatever tells how it was found.

    Returns:
        The file.

    Raises:
        InputError: No model is saved there, or the thresholds are not one probability for each logit.
    """
    path = Path(name.removeprefix('local-dir:'), 'config.json')
    if not path.is_file():
        raise InputError(f'{name}: holds no config.json; give a folder that training or timm saved.')
    config = json.loads(path.read_text(encoding='utf-8'))
    if fault := _fault_of_thresholds(thresholds, config['num_classes']):
        raise InputError(f'{name}: {fault}')
    config['thresholds'] = thresholds
    temporary = path.with_name('.config.json.saving')
    temporary.write_text(json.dumps(config, indent=2), encoding='utf-8')
    os.replace(temporary, path)
    return path


def create(name: str, **model_args) -> nn.Module:
    """Creates a registered model as timm does.

    Raises:
        InputError: Weights that `model_args` ask for, the backbone's say, cannot be fetched.
    """
    try:
        return timm.create_model(name, **model_args)
    except OSError as e:
        asked = ', '.join(f'{key}={value}' for key, value in model_args.items())
        raise InputError(
            f'{name} ({asked}): weights cannot be fetched from {constants.ENDPOINT} ({_reason(e)})'
            ' Mend the network, or start without them.'
        ) from e


def load(name: str = DEFAULT_MODEL, cache_dir: str | Path | None = None, **model_args) -> nn.Module:
    """Loads a trained model for inference.

    What comes from a folder or the Hub is checked before it is used, and only safetensors are asked for: no file is
    unpickled. `model.pretrained_cfg['hf_hub_id']` names the commit that a model of the Hub was loaded from.

    Args:
        name: `local-dir:FOLDER`, `hf-hub:ORG/NAME[@REVISION]`, or a registered model with pretrained weights; by
            default `DEFAULT_MODEL`, which is there without network.
        cache_dir: For what is downloaded, in place of huggingface_hub's.
        **model_args: As for `timm.create_model`, in place of those that the model was saved with; other names for its
            labels are `pretrained_cfg_overlay={'label_names': [...]}`.

    Returns:
        The model in evaluation mode; `model.pretrained_cfg` holds its `label_names` and preprocessing, and
        `model.thresholds` a probability for each label, where some were stored, or None.

    Raises:
        InputError: There is no such model, or it has no weights that can be read.
    """
    try:
        source, where = parse_model_name(name)
    except ValueError as e:
        raise InputError(str(e)) from None
    if source == 'local-dir':
        for file_name in ('config.json', 'model.safetensors'):
            if not Path(where, file_name).is_file():
                raise InputError(f'{where}: holds no {file_name}; give a folder that training or timm saved.')
    elif source != 'hf-hub' and not timm.is_model(name.partition('.')[0]):
        raise unknown('model', name, list_models())
    overlay = dict(model_args.pop('pretrained_cfg_overlay', None) or {})
    try:
        found, saved = name, where if source == 'local-dir' else None
        if source == 'hf-hub':
            saved = fetch(where, ('config.json', 'model.safetensors'), cache_dir)
            # What was checked is what is loaded, whatever has been pushed since.
            found = f'hf-hub:{where.partition("@")[0]}@{saved.name}'
            overlay['hf_hub_filename'] = 'model.safetensors'  # with which timm reads it in no way of the config's
        if saved is not None:
            check_model(saved)
        model = timm.create_model(
            found, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache_dir, **model_args
        ).eval()
        if overlay.get('label_names'):
            check_names(overlay['label_names'], model.num_classes)
        if saved is None:
            saved = _folder_of_tag(model.pretrained_cfg, cache_dir)
        model.thresholds = None if saved is None else _stored_thresholds(saved, model.num_classes)
        return model
    except InputError:
        raise
    except Exception as e:
        # A damaged config.json or weights file and an unreachable Hub show themselves in many types of exception.
        origin = f' from {constants.ENDPOINT}' if source == 'hf-hub' else ''
        raise InputError(f'{name}: cannot be loaded{origin} ({_reason(e)})') from e


def _folder_of_tag(pretrained_cfg: dict, cache_dir: str | Path | None) -> Path | None:
    """Finds the folder that a registered model's weights came from; None where it is of timm's own zoo."""
    if pretrained_cfg.get('architecture') not in list_models():
        return None
    if pretrained_cfg.get('file'):
        return Path(pretrained_cfg['file']).parent
    return fetch(pretrained_cfg['hf_hub_id'], ('config.json',), cache_dir)


def load_for(
    name: str, label_names: list[str], keep_labels: bool = False, **model_args
) -> tuple[nn.Module, dict[str, str]]:
    """Loads a trained model to be trained on: with the labels that are wanted now.

    Args:
        name: As for `load`.
        label_names: In the order of the logits.
        keep_labels: True to keep, where the model has other labels, what it has learnt of those that both sets
            share. Without it all labels start anew, unless both sets are the same.
        **model_args: As for `load`.

    Returns:
        The model, and the old name of each label whose embedding and classifier it keeps.

    Raises:
        InputError: As `load` and `msff_timm.labels.relabel` do.
    """
    model = load(name, **model_args)
    known = stored_names(model) or []
    # In another order they are the same labels, as long as each has weights of its own that can be moved.
    is_same = known == list(label_names) or (
        sorted(known) == sorted(label_names) and has_own_rows(model, len(label_names))
    )
    if keep_labels or is_same:
        return model, relabel(model, label_names)
    model.reset_classifier(len(label_names))
    set_names(model, label_names)
    return model, {}


def load_backbone(model: nn.Module, name: str) -> None:
    """Lets the backbone of a new model start from the weights of a trained model.

    Args:
        model: One of ours, or a plain timm model, which is all backbone but for its classifier.
        name: Of the trained model, ours or a plain one, as for `load`.

    Raises:
        InputError: As `load` does, or it has another backbone.
    """
    trained = load(name)
    classifier = () if hasattr(model, 'backbone') else model.pretrained_cfg['classifier']
    leave_out = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    try:
        copy_backbone(*(getattr(of, 'backbone', of) for of in (trained, model)), leave_out)
    except ValueError as e:
        raise InputError(f'{name}: is no trained backbone of this model: {e}.') from None


def _stored_thresholds(folder: str | Path, num_classes: int) -> list[float] | None:
    """Reads what `set_thresholds` stored: timm keeps of a config.json only the keys that it knows."""
    config = json.loads(Path(folder, 'config.json').read_text(encoding='utf-8'))
    thresholds = config.get('thresholds')
    if thresholds is None:
        return None
    if fault := _fault_of_thresholds(thresholds, config.get('num_classes', num_classes)):
        raise ValueError(fault)
    per_class = list(map(float, thresholds['per_class']))
    # A model that was loaded with another number of labels has none of its own.
    return per_class if len(per_class) == num_classes else None


def _fault_of_thresholds(thresholds: dict, num_classes: int) -> str | None:
    """Returns what is wrong with thresholds that are to be one probability for each logit, if anything is."""
    per_class = thresholds.get('per_class') if isinstance(thresholds, dict) else None
    if not isinstance(per_class, (list, tuple)) or len(per_class) != num_classes:
        return f'thresholds in config.json must hold per_class, a list of {num_classes} numbers'
    if not all(isinstance(threshold, (int, float)) and 0 <= threshold < 1 for threshold in per_class):
        return 'thresholds in config.json must be from 0 to below 1'
    return None


@dataclass(frozen=True)
class Push:
    """What was published, or with `dry_run` would be.

    Attributes:
        repo_id: Where.
        files: Their sizes in bytes.
        commit: That has them; None when nothing was sent.
        url: Of that commit.
        pull_request: Its address, where one was made.
    """

    repo_id: str
    files: dict[str, int]
    commit: str | None = None
    url: str | None = None
    pull_request: str | None = None


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    commit_message: str | None = None,
) -> Push:
    """Publishes a run folder on the Hub in one commit, pulls it into a clean cache, and compares it.

    Sent are the weights, `config.json`, `results.json`, `README.md` and images, as far as they are there, and nothing
    else; of JSON known fields alone, `README.md` as it is. Links and secrets are refused. Either all of it gets there
    or the repository's content stays as it was (one that is made for it stays empty); the same call again sends what is
    still missing.

    Args:
        folder: Of a run, or what `save` made.
        repo_id: `ORG/NAME`; made when it is missing.
        private: Make it so that only its owners see it; one that is public already is refused.
        revision: A branch, made when it is missing, or a pull request (`refs/pr/1`), in place of `main`.
        create_pr: Ask its owners to take the commit instead of making it.
        dry_run: Send nothing.
        commit_message: For its history.

    Raises:
        InputError: The folder holds no model whose label names are distinct and fit its logits, the Hub cannot be
            reached or refuses, or what it gives back is not what was sent.
    """
    folder = Path(folder)
    check_target(repo_id, revision, create_pr)
    check_files(folder)
    model = load(f'local-dir:{folder}')
    logits = _logits_of_noise(model)
    _check_label_names(folder, model, logits)
    try:
        files = gather(folder, repo_id)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:  # JSON or text that is none
        raise e if isinstance(e, InputError) else InputError(f'{folder}: cannot be published ({_reason(e)})') from e
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    if dry_run:
        return Push(repo_id, sizes)
    sent = send(files, repo_id, private, revision, create_pr, commit_message)
    _check_published(files, logits, f'{repo_id}@{sent.oid}')
    return Push(repo_id, sizes, sent.oid, sent.commit_url, sent.pr_url)


def _logits_of_noise(model: nn.Module) -> torch.Tensor:
    size = timm.data.resolve_model_data_config(model)['input_size']
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(images)


def _check_label_names(folder: Path, model: nn.Module, logits: torch.Tensor) -> None:
    names = model.pretrained_cfg.get('label_names')
    if not names:
        raise InputError(f'{folder}: config.json holds no label_names: nobody would know what the logits are of.')
    if len(set(names)) != len(names) or logits.shape[1] != len(names):
        raise InputError(
            f'{folder}: config.json has {len(names)} label names, {len(set(names))} of them distinct, for'
            f' {logits.shape[1]} logits: give each logit a name of its own.'
        )
    if not logits.isfinite().all():
        raise InputError(f'{folder}: the logits are not finite: the weights are of no use to anybody.')


def _check_published(files: dict[str, Path | bytes], logits: torch.Tensor, published: str) -> None:
    """Pulls what was published into a clean cache and compares the files and the logits with what was sent."""
    with tempfile.TemporaryDirectory(prefix='msff-timm-push-') as cache:
        try:
            for name, file in files.items():
                pulled = patiently(lambda name=name: download(published, name, cache))
                is_same = pulled.read_bytes() == file if isinstance(file, bytes) else filecmp.cmp(pulled, file, False)
                if not is_same:
                    raise InputError(f'{published}: {name} is there with another content than was sent: push it again.')
            model = load(f'hf-hub:{published}', cache)
        except InputError:
            raise
        except Exception as e:
            raise InputError(
                f'{published}: is published, but could not be pulled to be checked: {reason(e, published)}'
            ) from e
        if not torch.equal(_logits_of_noise(model), logits):
            raise InputError(f'{published}: is published, but does not give the logits of the model that was sent.')


def _reason(error: Exception) -> str:
    """Puts an exception's message into one line, of a length that is read."""
    text = reason(error) if is_of_hub(error) else ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f'{text[:LONGEST]} ...'
