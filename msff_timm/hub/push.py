"""Publishing a run folder on the Hub: which files and fields go, the commit, and the check of what has arrived."""

import filecmp
import html
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

import torch
import torch.nn as nn
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..errors import InputError, one_line
from ..inference.logits import Preprocessing, compute_logits
from ..labels import check_label_names
from ..results import Results
from . import card
from .errors import TOKEN, describe_error, find_secrets
from .fetch import fetch
from .load import describe_failure, load
from .save import align

__all__ = ['Push', 'check_access', 'check_target', 'gather', 'push']

IMAGES = ('.png', '.jpg', '.svg')
FILES = ('model.safetensors', 'config.json', 'results.json', 'README.md', *card.RUN_IMAGES)
URL_PASSWORD = re.compile(r'(?<=://)[^\s/@:]+:[^\s/@]+(?=@)')
# Fields that are never published: command lines, names of images, and, at any depth, where files come from
PRIVATE_RESULTS = ('command', 'mistakes', 'unreadable')
PRIVATE = ('command', 'file', 'url', 'source', 'state_dict')
# Fields of label names, whose texts are never paths
LABELS = tuple(
    'label_names label_columns labels_left_out ignore_labels label_descriptions id2label label2id kept_labels'
    ' label_map'.split()
)
FOLDERS = ('output', 'resume', 'root', 'image_root', 'scores', 'submission')  # fields whose texts are always paths
# An absolute path within a text, on any system; not the rest of an address (https://...) or of a ratio (a/b)
PATH = re.compile(
    r'(?:(?<=local-dir:)|(?<=file:)|(?<![\w:/\\.~-]))(?:~[\w.-]*(?=/)|[A-Za-z]:(?=[\\/]))?(?:[\\/]+[^\s\\/\'"`,;|]+)+'
)


@dataclass(frozen=True)
class Push:
    """A publication, or with `dry_run` a planned one.

    Attributes:
        repo_id: Repository.
        files: Size of each file in bytes.
        commit: Hash of the commit; None if nothing was sent.
        url: Address of the commit.
        pull_request: Address of the pull request, if one was opened.

    Examples:
        >>> Push('org/pets', {'config.json': 2443}).url is None  # nothing was sent
        True
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
    """Publishes a run folder on the Hub in one commit, then downloads it to an empty cache and compares it.

    The weights, `config.json`, `results.json`, `README.md` and its images are published, and nothing else. Paths in the
    JSON files are reduced to their last part; links and secrets are refused. A failed push leaves the content of the
    repository as it was, and the next one skips what has already arrived.

    Args:
        folder: Folder of a training run, or one that `save` wrote.
        repo_id: Repository, `ORG/NAME`; created if it is missing.
        private: Create a private repository. An existing public one is refused.
        revision: Branch, created if it is missing, or pull request (`refs/pr/1`), instead of `main`.
        create_pr: Open a pull request instead of pushing to `main`.
        dry_run: Send nothing.
        commit_message: Message of the commit.

    Raises:
        InputError: The folder holds no model with a distinct label name for each logit, the Hub cannot be reached or
            refuses the push, or the published files differ from the local ones.

    Examples:
        >>> import timm
        >>> from msff_timm.hub import save
        >>> model = timm.create_model('msff_test_resnet', num_classes=2)
        >>> save(model, 'runs/pets', ['cat', 'dog'], timm.data.resolve_model_data_config(model))
        >>> planned = push('runs/pets', 'org/pets', dry_run=True)
        >>> sorted(planned.files)
        ['README.md', 'architecture.svg', 'config.json', 'model.safetensors']
    """
    folder = Path(folder)
    check_target(repo_id, revision, create_pr)
    _check_files(folder)
    model = load(f'local-dir:{folder}')
    logits = _compute_logits(model)
    _check_model(folder, model, logits)
    with tempfile.TemporaryDirectory(prefix='msff-timm-push-') as outbox:
        try:
            files = gather(folder, Path(outbox), repo_id)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:  # no valid JSON or UTF-8
            if isinstance(e, InputError):
                raise
            raise InputError(f'{folder}: cannot be published ({one_line(e)}).') from e
        sizes = {path.name: path.stat().st_size for path in files}
        if dry_run:
            return Push(repo_id, sizes)
        sent = _send(files, repo_id, private, revision, create_pr, commit_message)
        _check_published(files, logits, f'{repo_id}@{sent.oid}')
    return Push(repo_id, sizes, sent.oid, sent.commit_url, sent.pr_url)


def _compute_logits(model: nn.Module) -> torch.Tensor:
    return compute_logits(model, Preprocessing(model).noise(2))


def _check_model(folder: Path, model: nn.Module, logits: torch.Tensor) -> None:
    label_names = model.pretrained_cfg.get('label_names')
    if not label_names:
        raise InputError(f'{folder}: config.json holds no label_names: save the model with a name for each logit.')
    try:
        check_label_names(label_names, logits.shape[1])
    except InputError as e:
        raise InputError(f'{folder}: {e}') from None


def _check_files(folder: Path) -> None:
    """Refuses links, which may lead anywhere, and files that are not regular."""
    for name in FILES:
        path = folder / name
        if path.is_symlink():
            raise InputError(f'{path}: is a link, which push does not follow: put the file itself there.')
        if path.exists() and not path.is_file():
            raise InputError(f'{path}: is no regular file: replace or remove it.')


def gather(folder: Path, outbox: Path, repo_id: str) -> list[Path]:
    """Writes the files to be published to an empty folder.

    A `README.md` in the run folder is published as it is; otherwise a model card is rendered.

    Args:
        folder: Folder of a training run, or one that `save` wrote.
        outbox: Empty folder.
        repo_id: Repository that the card names.

    Returns:
        The files.

    Raises:
        InputError: A text holds a secret: a token of the Hub, a password in an address, or the value of a variable such
            as `WANDB_API_KEY`.
        ValueError: A file is damaged.
    """
    align(folder / 'model.safetensors', outbox / 'model.safetensors')
    contents = {'config.json': json.loads((folder / 'config.json').read_bytes())}
    label_names = frozenset(contents['config.json'].get('label_names') or ())
    if (folder / 'results.json').is_file():
        fields = asdict(Results.from_json(folder / 'results.json'))
        contents['results.json'] = {name: value for name, value in fields.items() if name not in PRIVATE_RESULTS}
    for name, content in contents.items():
        content = _remove_paths(content, label_names)
        _check_secrets(folder / name, _texts(content))
        (outbox / name).write_text(json.dumps(content, indent=2), encoding='utf-8')

    images = {path.name: path for path in folder.glob('[!.]*') if path.suffix in IMAGES and not path.is_symlink()}
    for name in card.RUN_IMAGES:
        if name in images:
            shutil.copy(images[name], outbox)
    readme = folder / 'README.md'
    text = readme.read_bytes().decode('utf-8') if readme.is_file() else card.render(outbox, repo_id)
    _check_secrets(readme, _readings(text))
    (outbox / 'README.md').write_bytes(text.encode())
    # Only images that the card shows are published: others may hold photos that nobody may publish.
    for name, path in {**images, **card.images(folder)}.items():
        if name in text and path.is_file():
            shutil.copy(path, outbox)
    return sorted(outbox.iterdir())


def _remove_paths(value: object, label_names: frozenset[str], key: str = '') -> object:
    """Copies JSON without private fields; paths are reduced to their last part, on which no machine's layout shows."""
    if isinstance(value, dict):
        return {
            name if key in LABELS or name in label_names else _remove_path(name): _remove_paths(
                inner, label_names, key if key in LABELS else name
            )
            for name, inner in value.items()
            if name not in PRIVATE
        }
    if isinstance(value, list | tuple):
        return [_remove_paths(inner, label_names, key) for inner in value]
    return _remove_path(value, key) if isinstance(value, str) and key not in LABELS else value


def _remove_path(text: str, key: str = '') -> str:
    source, colon, rest = text.partition(':') if text.startswith(('local-dir:', 'file:')) else ('', '', text)
    is_path = PurePosixPath(rest).is_absolute() or PureWindowsPath(rest).is_absolute() or rest.startswith('~')
    is_id = key == 'root' and re.fullmatch(r'[\w.-]+/[\w.-]+(@.+)?', rest) and not rest.startswith('.')  # of a data set
    if source or is_path or (key in FOLDERS and not is_id):
        return f'{source}{colon}{PureWindowsPath(rest).name}'
    return PATH.sub(lambda found: PureWindowsPath(found[0]).name, text)


def _texts(value: object) -> Iterator[str]:
    """Yields all texts of JSON, keys and values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _readings(text: str) -> Iterator[str]:
    """Yields a text as it is, and as Markdown, JSON, HTML and addresses decode it."""
    markdown = re.sub(r'\\(?=[!-/:-@\[-`{-~])', '', text)  # a backslash before punctuation
    yield from (text, markdown, html.unescape(text), html.unescape(markdown), unquote(text))
    yield re.sub(r'\\u([0-9a-fA-F]{4})', lambda found: chr(int(found[1], 16)), markdown)


def _check_secrets(path: Path, texts: Iterable[str]) -> None:
    """Refuses texts that hold a secret, without repeating it in the message."""
    secrets = find_secrets()
    for text in texts:
        found = next((description for description, value in secrets.items() if value in text), None)
        found = found or ('a token of the Hub' if TOKEN.search(text) else None)
        found = found or ('a name and password in an address' if URL_PASSWORD.search(text) else None)
        if found:
            raise InputError(f'{path}: holds {found}, which must not be published: remove it.')


def check_target(repo_id: str, revision: str | None = None, create_pr: bool = False) -> None:
    """Checks the name of a repository and the revision to push to.

    Raises:
        InputError: The Hub accepts no such name or revision.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise InputError(f'{repo_id!r} is no repository id: {one_line(e)}') from None
    if '/' not in repo_id:
        raise InputError(f'{repo_id!r} is no repository id: give ORGANISATION/NAME or USER/NAME.')
    if create_pr and revision not in (None, 'main'):
        raise InputError(f'{repo_id}: a pull request goes to main: give a revision or --create-pr, not both.')
    if revision is not None and re.fullmatch('[0-9a-f]{40}', revision):
        raise InputError(f'{repo_id}: {revision} is a commit, which cannot be pushed to: give a branch.')


def check_access(repo_id: str) -> None:
    """Checks that there is a token and that the Hub may be asked; sends no request.

    Raises:
        InputError: There is no token, or `HF_HUB_OFFLINE` is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError(f'{repo_id}: HF_HUB_OFFLINE is set: unset it to push.')
    if not get_token():
        raise InputError(
            f'{repo_id}: pushing to {constants.ENDPOINT} needs a token with write access: set HF_TOKEN, or run'
            f' `hf auth login` ({constants.ENDPOINT}/settings/tokens).'
        )


def _send(
    files: list[Path], repo_id: str, private: bool, revision: str | None, create_pr: bool, commit_message: str | None
) -> CommitInfo:
    """Commits files, in a repository and a branch that are created if they are missing.

    huggingface_hub retries uploads and skips what has arrived already.
    """
    check_access(repo_id)
    api = HfApi(endpoint=constants.ENDPOINT, library_name='msff-timm', library_version=__version__)
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise InputError(f'{repo_id}: exists and is public: choose another name, or leave out --private.')
        if revision not in (None, 'main') and not revision.startswith('refs/'):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(path.name, path) for path in files],
            commit_message=commit_message or f'Push from msff-timm {__version__}',
            revision=revision,
            create_pr=create_pr,
        )
    except InputError:
        raise
    except Exception as e:  # from huggingface_hub or its HTTP client
        raise InputError(
            f'{repo_id}: cannot be pushed to {constants.ENDPOINT}: {describe_error(e, repo_id, is_push=True)}'
        ) from e


def _check_published(files: list[Path], logits: torch.Tensor, published: str) -> None:
    """Downloads the published files to an empty cache, and compares files and logits with the local ones."""
    with tempfile.TemporaryDirectory(prefix='msff-timm-push-') as cache:
        try:
            folder = fetch(published, [path.name for path in files], cache)
            for path in files:
                if not filecmp.cmp(folder / path.name, path, shallow=False):
                    raise InputError(f'{published}: {path.name} differs from the local file: push it again.')
            model = load(f'hf-hub:{published}', cache)
        except InputError:
            raise
        except Exception as e:
            raise InputError(
                f'{published}: is published, but cannot be downloaded for a check: {describe_failure(e)}.'
            ) from e
        if not torch.equal(_compute_logits(model), logits):
            raise InputError(f'{published}: is published, but its logits differ from those of the local model.')
