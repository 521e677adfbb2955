"""What a run folder publishes, without what speaks of the machine, and how it is sent to the Hub."""

import json
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import HfHubHTTPError, validate_repo_id

from . import __version__, card
from .errors import InputError

__all__ = ['check_access', 'check_target', 'gather', 'patiently', 'reason', 'send']

log = logging.getLogger(__name__)
T = TypeVar('T')

PICTURES = ('.png', '.jpg', '.svg')
LABELS = ('labels', 'label', 'label_names', 'label_columns', 'label_descriptions', 'kept_labels')  # keys in JSON
# A slash or a drive that begins a word, and is not that of a URL
PATH = re.compile(r'(?:file://|(?<![\w./\\~]))(?:/(?!/)|[A-Za-z]:[\\/](?!/))[^\s\'"`,;:|<>(){}\[\]]+')
SECRET = re.compile(r'\bhf_\w{20,}|(?<=://)[^\s/@]+:[^\s/@]+(?=@)')  # a token of the Hub, a name and password of a URL
SECRETS = re.compile('TOKEN|SECRET|PASSWORD|API_?KEY')  # in names of variables
REMOVED = '<removed>'

PAUSES = (1, 2, 4, 8, 8)  # seconds between tries
PATIENCE = 60  # seconds after which nothing is tried again, without the waits that the Hub asks for
LONGEST = 600  # seconds to wait when the Hub tells how long
BUSY = (408, 429, 500, 502, 503, 504)
REFUSED_FOR_NOW = (429, 503)  # surely nothing was done
CLIENTS = ('httpx', 'httpx2', 'requests', 'urllib3')  # whose errors huggingface_hub lets through, by its version


def gather(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Collects what a run folder publishes: weights, configuration, results, card and its pictures, and nothing else.

    In the configuration, the results and the card, absolute paths keep their last part only, and secrets nothing:
    tokens of the Hub, passwords in addresses, and the values of variables such as `WANDB_API_KEY`. Label names stay.

    Args:
        folder: Of a run, or what `msff_timm.hub.save` made.
        repo_id: That the card is to speak of.

    Returns:
        A file, or its content, for each name.
    """
    found: dict[str, Path | bytes] = {'model.safetensors': folder / 'model.safetensors'}
    paths: dict[str, str] = {}
    for name in ('config.json', 'results.json'):
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            value = json.loads(content)
            cleaned = _without_paths(value, paths)
            if cleaned != value:
                content = (json.dumps(cleaned, indent=2, ensure_ascii=False) + '\n').encode()
            found[name] = _without_secrets(content)
    pictures = (path for path in sorted(folder.iterdir()) if path.suffix in PICTURES and not path.name.startswith('.'))
    pictures = {path.name: path for path in pictures if path.is_file() and not path.is_symlink()}
    text = _card(folder, found | pictures, repo_id)
    found['README.md'] = _without_secrets(_replaced(text, paths, folder).encode())
    # Others stay here: photos in them may be nobody's to publish.
    shown = {**pictures, **card.pictures(folder)}
    return found | {name: path for name, path in shown.items() if name in card.RUN_PICTURES or name in text}


def _card(folder: Path, files: dict[str, Path | bytes], repo_id: str) -> str:
    """Reads the folder's card, or renders one from what is to be published."""
    if (folder / 'README.md').is_file():
        return (folder / 'README.md').read_text(encoding='utf-8')
    with tempfile.TemporaryDirectory(prefix='msff-timm-card-') as clean:
        for name, file in files.items():
            if isinstance(file, bytes):
                Path(clean, name).write_bytes(file)
            else:
                Path(clean, name).symlink_to(file.absolute())
        return card.render(Path(clean), repo_id)


def _without_paths(value: object, paths: dict[str, str], key: str = '') -> object:
    """Shortens the absolute paths in JSON; notes in `paths` what it has replaced."""
    if key in LABELS:
        return value
    if isinstance(value, dict):
        return {key: _without_paths(inner, paths, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner, paths, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key == 'command':
        try:
            cleaned = shlex.join(_shortened(word, paths) for word in shlex.split(value))
        except ValueError:  # a quote that does not end
            cleaned = _shortened(value, paths)
        paths[value] = cleaned
        return cleaned
    return _shortened(value, paths)


def _shortened(text: str, paths: dict[str, str]) -> str:
    """Shortens the absolute paths in text; one that stands alone or behind `--key=` may have spaces in it."""
    option, equals, rest = text.partition('=') if text.startswith('-') else ('', '', text)
    is_path = PurePosixPath(rest).is_absolute() or PureWindowsPath(rest).is_absolute()
    if is_path and not rest.startswith('//'):
        if not _last_part(rest):  # the root itself, which every machine has
            return text
        paths[rest] = _last_part(rest)
        return f'{option}{equals}{paths[rest]}'

    def shorten(found: re.Match) -> str:
        paths[found[0]] = _last_part(found[0])
        return paths[found[0]]

    return PATH.sub(shorten, text)


def _last_part(path: str) -> str:
    return PureWindowsPath(path).name


def _replaced(text: str, paths: dict[str, str], folder: Path) -> str:
    """Takes the paths that JSON held out of other text, and those below this user's folders."""
    for path in sorted(paths, key=len, reverse=True):
        text = re.sub(rf'(?<![\w./]){_escapable(path)}(?!\w)', lambda found, path=path: paths[path], text)
    for base in {Path.home(), Path.cwd(), folder.resolve()} - {Path('/')}:
        below = rf'(?<![\w./]){_escapable(str(base))}(?:[/\\][^\s\'"`,;:|<>()]*)?(?!\w)'
        text = re.sub(below, lambda found: _last_part(found[0]), text)
    return text


def _escapable(text: str) -> str:
    """Makes the pattern of text that may stand in Markdown, with backslashes before what means something there."""
    return ''.join(rf'\\?{re.escape(c)}' if c in '_*[]`|\\' else re.escape(c) for c in text)


def _secrets() -> Iterator[str]:
    values = [value for name, value in os.environ.items() if SECRETS.search(name.upper())] + [get_token() or '']
    yield from (value for value in values if len(value) >= 8)  # shorter ones are words


def _without_secrets(content: bytes) -> bytes:
    text = content.decode()
    for secret in _secrets():
        text = text.replace(secret, REMOVED)
    return SECRET.sub(REMOVED, text).encode()


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
        raise InputError(f'{repo_id}: cannot be pushed to {constants.ENDPOINT}: {reason(e, repo_id)}') from e


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
            passes = _status(e) in temporary if temporary else _is_temporary(e)
            told = _told(e)
            if pause is None or not passes or time.monotonic() - start > PATIENCE or (told or 0) > LONGEST:
                raise
            wait = pause if told is None else told
            log.warning('%s: trying again in %d s.', _said(e), wait)
            if told is not None:  # that it asks for is not held against it
                start += wait
            time.sleep(wait)


def _is_temporary(error: BaseException) -> bool:
    """Tells whether the same request may work later."""
    return _status(error) in BUSY or (_status(error) is None and _is_network(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> object | None:
    found = (e.response for e in _chain(error) if isinstance(e, HfHubHTTPError))
    return next(found, None)


def _status(error: BaseException) -> int | None:
    return getattr(_response(error), 'status_code', None)


def _is_network(error: BaseException) -> bool:
    return any(
        isinstance(e, (ConnectionError, TimeoutError)) or type(e).__module__.partition('.')[0] in CLIENTS
        for e in _chain(error)
    )


def _told(error: BaseException) -> int | None:
    """Reads after how many seconds the Hub wants to be asked again."""
    headers = getattr(_response(error), 'headers', {})
    if headers.get('Retry-After', '').isdigit():
        return int(headers['Retry-After'])
    limit = re.search(r';\s*r=0;\s*t=(\d+)', headers.get('RateLimit', ''))
    return int(limit[1]) + 1 if limit and _status(error) == 429 else None


def reason(error: BaseException, repo_id: str = 'the repository') -> str:
    """Says in one line why a request failed, and what to do."""
    status, said = _status(error), _said(error)
    tokens = f'{constants.ENDPOINT}/settings/tokens'
    if status is None:
        if _is_network(error):
            return (
                f'the network fails or no Hub is there ({said}). Check it and HF_ENDPOINT, and run the command again.'
            )
        return said
    if status == 401:
        return f'the token is not valid there ({said}). Make one at {tokens}.'
    if status == 402 or status == 413 or (status == 403 and re.search('storage|quota|limit|plan|billing', said, re.I)):
        return f'its storage is full ({said}). Free some, or push elsewhere.'
    if status == 403:
        return (
            f'the token may not write to {repo_id} ({said}). Take another name or a token that may ({tokens}),'
            ' or, where the repository is there, --create-pr.'
        )
    if status == 404:
        return f'there is no such repository or revision ({said}).'
    if status in (409, 412):
        return f'the name is taken, or somebody else has just changed it ({said}). Look, and run the command again.'
    if status == 429:
        told = _told(error)
        when = 'later' if told is None else f'in {told} seconds'
        return f'too many requests ({said}). Run the command again {when}.'
    if status >= 500:
        return f'the Hub fails with status {status} ({said}). Run the command again later.'
    return f'the Hub refuses it with status {status} ({said}).'


def _said(error: BaseException) -> str:
    """Puts into one line what the Hub said, or what else is known, without secrets."""
    known = next((e for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    if type(error) is ValueError:  # huggingface_hub's own words for some refusals
        text = str(error)
    else:
        deepest = known or next((e for e in _chain(error) if _is_network(e)), error)
        text = getattr(known, 'server_message', None) or str(deepest) or type(deepest).__name__
    text = ' '.join(text.split()).rstrip('.')
    return _without_secrets(text.encode()).decode()
