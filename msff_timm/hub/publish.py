"""What a run folder publishes, known fields alone, and how it is sent to the Hub."""

import html
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar
from urllib.parse import unquote

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..errors import InputError
from . import card
from .errors import TOKEN, is_temporary, reason, said, secrets, status, told

__all__ = ['check_access', 'check_files', 'check_target', 'gather', 'patiently', 'send']

log = logging.getLogger(__name__)
T = TypeVar('T')

IMAGES = ('.png', '.jpg', '.svg')
FILES = ('model.safetensors', 'config.json', 'results.json', 'README.md', *card.RUN_IMAGES)
METADATA = {'format': 'pt'}  # of a safetensors file
URL_PASSWORD = re.compile(r'(?<=://)[^\s/@:]+:[^\s/@]+(?=@)')

# Fields of config.json that are published, at any depth: timm's, transformers' and ours.
CONFIG = frozenset(
    """
    architecture num_classes num_features global_pool model_args pretrained_cfg label_names label_descriptions
    tag custom_load input_size test_input_size min_input_size fixed_input_size interpolation crop_pct test_crop_pct
    crop_mode mean std pool_size test_pool_size first_conv classifier license description origin_url paper_name
    paper_ids notes hf_hub_id hf_hub_filename label_offset
    architectures dtype torch_dtype model_type transformers_version do_pooling id2label label2id initializer_range
    problem_type training transforms resize crop_scale crop_ratio hflip rand_augment rand_augment_interpolation
    color_jitter cutout image_size thresholds
    per_class overall out_of_fold default CF1 OF1 macro_F1 folds num_fitted data name split root keep_unlabelled
    difficult missing minus_one blank trained_on num_images
    """.split()
)
# Fields of results.json that are published, at any depth. Not the command, which may hold anything, nor the names of
# single images.
RESULTS = frozenset(
    """
    model num_parameters data init_from kept_labels weights epoch thresholds num_processes mixed_precision config
    git_commit git_dirty devices metrics top3 mAP_by_size num_positives_by_size definitions num_images num_classes
    num_classes_with_positives num_labels_counted labels versions history seconds peak_bytes model_weights
    mAP_interval_95 input_size flip
    labels_left_out label_map pos_weights
    top top_k k num_labels P R F1 N+ ignore_labels
    name title split trained_on root keep_unlabelled difficult missing minus_one blank
    per_class overall out_of_fold default macro_F1 folds num_fitted
    output overwrite resume force seed trackers log_every push_to push_private args backbone_pretrained backbone_from
    keep_labels drop_rate batch_norm freeze unfreeze_epochs channels_last compile image_root image_column label_columns
    label_delimiter label_names streaming unreadable train_split eval_split train_size eval_size image_size hflip
    crop_scale crop_ratio rand_augment color_jitter cutout mixup cutmix workers optim epochs batch_size max_per_process
    lr schedule warmup backbone_lr layer_decay weight_decay clip_grad loss gamma_pos gamma_neg asl_clip poly_epsilon
    label_smoothing pos_weight pos_weight_max ema_decay ema_epochs early_stop distill teacher weight temperature
    checkpoint every keep
    scores ap threshold bootstrap fit_thresholds submission size
    mAP CP CR CF1 OP OR OF1 AP num_positives num_negatives grad_norm small medium large unit sizes
    msff_timm timm torch torchvision accelerate datasets numpy pillow python cuda
    """.split()
)
FREE = ('model_args', 'args', 'label_descriptions', 'id2label', 'label2id', 'kept_labels', 'label_map')  # any keys
LABELS = (
    'labels',
    'label',
    'label_names',
    'label_columns',
    'labels_left_out',
    'ignore_labels',
    *FREE,
)  # texts that are no paths
FOLDERS = ('output', 'resume', 'root', 'image_root', 'scores', 'submission')

PAUSES = (1, 2, 4, 8, 8)  # seconds between tries
PATIENCE = 60  # seconds after which nothing is tried again, without the waits that the Hub asks for
LONGEST = 600  # seconds to wait when the Hub tells how long
REFUSED_FOR_NOW = (429, 503)  # surely nothing was done


def check_files(folder: Path) -> None:
    """Raises InputError for a file to be published that is a link, which may lead anywhere, or no regular file."""
    for name in FILES:
        path = folder / name
        if path.is_symlink():
            raise InputError(
                f'{path}: is a link, which is not followed: put the file itself there, or remove the link.'
            )
        if path.exists() and not path.is_file():
            raise InputError(f'{path}: is no regular file: put one there, or remove it.')


def gather(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Collects what a run folder publishes: weights, configuration, results, card and its images, and nothing else.

    Of the configuration, the results and the weights' metadata known fields are sent, and of a folder its last name. A
    card that lies there is sent as it is.

    Args:
        folder: Of a run, or what `msff_timm.hub.save` made.
        repo_id: That the card is to speak of.

    Returns:
        A file, or its content, for each name.

    Raises:
        InputError: A file is a link, or what would be sent holds a secret: a token of the Hub, a password in an
            address, or the value of a variable such as `WANDB_API_KEY`.
        ValueError: A file is not what its name promises.
    """
    check_files(folder)
    found: dict[str, Path | bytes] = {'model.safetensors': _plain_weights(folder / 'model.safetensors')}
    label_names = json.loads((folder / 'config.json').read_bytes()).get('label_names') or ()
    for name, fields, end in (('config.json', CONFIG, ''), ('results.json', RESULTS, '\n')):
        if (folder / name).is_file():
            value = _known(json.loads((folder / name).read_bytes()), fields, frozenset(label_names))
            _check_secrets(folder / name, _texts(value))
            found[name] = (json.dumps(value, indent=2) + end).encode()
    images = (path for path in sorted(folder.iterdir()) if path.suffix in IMAGES and not path.name.startswith('.'))
    images = {path.name: path for path in images if path.is_file() and not path.is_symlink()}
    text = _card(folder, found | images, repo_id)
    _check_secrets(folder / 'README.md', _readings(text))
    found['README.md'] = text.encode()
    # Others stay here: photos in them may be nobody's to publish.
    shown = {**images, **card.images(folder)}
    return found | {name: path for name, path in shown.items() if name in card.RUN_IMAGES or name in text}


def _card(folder: Path, files: dict[str, Path | bytes], repo_id: str) -> str:
    """Reads the folder's card, or renders one from what is to be published."""
    if (folder / 'README.md').is_file():
        return (folder / 'README.md').read_bytes().decode('utf-8')
    with tempfile.TemporaryDirectory(prefix='msff-timm-card-') as clean:
        for name, file in files.items():
            if isinstance(file, bytes):
                Path(clean, name).write_bytes(file)
            else:
                Path(clean, name).symlink_to(file.absolute())
        return card.render(Path(clean), repo_id)


def _known(value: object, fields: frozenset[str], label_names: frozenset[str], key: str = '') -> object:
    """Keeps of JSON the fields that are published, and of a folder its last name."""
    if isinstance(value, dict):
        known = value if key in FREE else label_names if key == 'labels' else fields
        return {
            # Within the arguments of a model, or the labels of another, any name stays.
            name: _known(inner, fields, label_names, key if key in FREE else name)
            for name, inner in value.items()
            if name in known
        }
    if isinstance(value, list):
        return [_known(inner, fields, label_names, key) for inner in value]
    return _last_part(value, key) if isinstance(value, str) and key not in LABELS else value


def _last_part(text: str, key: str) -> str:
    """Shortens a folder or file to its last name: no more of it says anything on another machine."""
    source, colon, rest = text.partition(':') if text.startswith(('local-dir:', 'file:')) else ('', '', text)
    is_path = PurePosixPath(rest).is_absolute() or PureWindowsPath(rest).is_absolute() or rest.startswith('~')
    is_id = key == 'root' and re.fullmatch(r'[\w.-]+/[\w.-]+(@.+)?', rest) and not rest.startswith('.')  # of a data set
    if source or is_path or (key in FOLDERS and not is_id):
        return f'{source}{colon}{PureWindowsPath(rest).name}'
    return text


def _plain_weights(path: Path) -> Path | bytes:
    """Returns the file, or its content with a header of the tensors alone where that holds anything else."""
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length), object_pairs_hook=_distinct)
        metadata = header.pop('__metadata__', METADATA)
        plain = {
            name: {field: tensor[field] for field in ('dtype', 'shape', 'data_offsets')}
            for name, tensor in header.items()
        }
        if metadata == METADATA and plain == header:
            return path
        text = json.dumps({'__metadata__': METADATA, **plain}, separators=(',', ':')).encode()
        text += b' ' * (-(8 + len(text)) % 64)  # as `hub.save` aligns them
        return len(text).to_bytes(8, 'little') + text + file.read()


def _distinct(pairs: list[tuple[str, object]]) -> dict:
    """Makes an object of JSON, whose names are distinct: another reader might take the other value."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError('model.safetensors names something twice in its header')
    return dict(pairs)


def _texts(value: object) -> Iterator[str]:
    """Gives all texts of JSON, names and values: numbers are no secrets."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value:
            yield from _texts(inner)
        if isinstance(value, dict):
            for inner in value.values():
                yield from _texts(inner)


def _readings(text: str) -> Iterator[str]:
    """Gives text as it is, and as Markdown, JSON, HTML and addresses read it."""
    markdown = re.sub(r'\\(?=[!-/:-@\[-`{-~])', '', text)  # a backslash before punctuation
    yield from (text, markdown, html.unescape(text), html.unescape(markdown), unquote(text))
    yield re.sub(r'\\u([0-9a-fA-F]{4})', lambda found: chr(int(found[1], 16)), markdown)


def _check_secrets(path: Path, texts: Iterable[str]) -> None:
    """Raises InputError for a secret in what would be sent, without repeating it."""
    known = secrets()
    for text in texts:
        what = next((what for what, value in known.items() if value in text), None)
        what = what or ('a token of the Hub' if TOKEN.search(text) else None)
        what = what or ('a name and password in an address' if URL_PASSWORD.search(text) else None)
        if what:
            raise InputError(f'{path}: holds {what}, which must not be published: take it out.')


def send(
    files: dict[str, Path | bytes],
    repo_id: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    commit_message: str | None,
) -> CommitInfo:
    """Makes one commit of the files, in a repository and a branch that are created when they are missing.

    Until the commit nothing of the repository is changed; what has arrived of the content is not sent again by the
    next try, and files that are there already are not sent at all.

    Raises:
        InputError: It cannot be done, and why.
    """
    check_access(repo_id)
    api = HfApi(endpoint=constants.ENDPOINT, library_name='msff-timm', library_version=__version__)
    try:
        patiently(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
        if private and not patiently(lambda: api.repo_info(repo_id)).private:
            raise InputError(f'{repo_id}: is there already and is public: take another name, or leave out --private.')
        if revision not in (None, 'main') and not revision.startswith('refs/'):
            patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))

        def commit() -> CommitInfo:
            # Made anew for each try: then the Hub is asked what it has, and a commit whose answer was lost is found.
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            message = commit_message or f'Push from msff-timm {__version__}'
            return api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr
            )

        # A pull request whose answer was lost would be made twice.
        return patiently(commit, REFUSED_FOR_NOW if create_pr else None)
    except InputError:
        raise
    except Exception as e:  # of huggingface_hub, of its HTTP client, and what either is raised from
        raise InputError(
            f'{repo_id}: cannot be pushed to {constants.ENDPOINT}: {reason(e, repo_id, is_push=True)}'
        ) from e


def check_target(repo_id: str, revision: str | None = None, create_pr: bool = False) -> None:
    """Raises InputError for a name, branch or both that no Hub takes."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise InputError(f'{repo_id!r} is no name of a repository: {" ".join(str(e).split())}') from None
    if '/' not in repo_id:
        raise InputError(f'{repo_id!r} is no name of a repository: give ORGANISATION/NAME, or your own name before it.')
    if create_pr and revision not in (None, 'main'):
        raise InputError(f'{repo_id}: a pull request is made to main: give a revision or --create-pr, not both.')
    if revision is not None and re.fullmatch('[0-9a-f]{40}', revision):
        raise InputError(f'{repo_id}: {revision} is a commit, which nothing can be added to: give a branch.')


def check_access(repo_id: str) -> None:
    """Raises InputError where nothing can be sent, for want of a token or because of `HF_HUB_OFFLINE`; asks nobody."""
    if constants.HF_HUB_OFFLINE:
        raise InputError(f'{repo_id}: HF_HUB_OFFLINE is set: unset it to push.')
    if not get_token():
        raise InputError(
            f'{repo_id}: pushing to {constants.ENDPOINT} needs a token: set HF_TOKEN, or run `hf auth login`, with one'
            f' that may write ({constants.ENDPOINT}/settings/tokens).'
        )


def patiently(call: Callable[[], T], temporary: Iterable[int] | None = None) -> T:
    """Calls until it works: again when the Hub is busy or the network fails, later each time or as the Hub tells.

    Args:
        call: What may be done twice.
        temporary: Statuses that it is tried again at, and no failure of the network; otherwise all that may pass.

    Raises:
        Exception: That of the last call.
    """
    start = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return call()
        except Exception as e:
            passes = status(e) in temporary if temporary else is_temporary(e)
            asked = told(e)
            if pause is None or not passes or time.monotonic() - start > PATIENCE or (asked or 0) > LONGEST:
                raise
            wait = pause if asked is None else asked
            log.warning('%s: trying again in %d s.', said(e), wait)
            if asked is not None:  # that it asks for is not held against it
                start += wait
            time.sleep(wait)
