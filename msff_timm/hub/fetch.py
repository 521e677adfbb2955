"""Downloads from the Hub: the only place that fetches files, with their digests checked before use."""

import contextlib
import functools
import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, file_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from timm.models import PretrainedCfg
from timm.models._hub import download_from_hf

from ..errors import InputError, one_line
from .errors import describe_error, is_hub_error, status_code

__all__ = ['FILES', 'download', 'fetch', 'fetch_weights']

log = logging.getLogger(__name__)

FILES = ('config.json', 'model.safetensors')
UNCHECKED: set[Path] = set()  # files without a digest that a warning has named


def fetch(hub_id: str, names: Sequence[str] = FILES, cache_dir: str | Path | None = None) -> Path:
    """Fetches files of one commit from the Hub and checks their digests.

    huggingface.co states a digest for each file. A mirror or proxy may not; then a warning names the unchecked files.

    Args:
        hub_id: Repository, `ORG/NAME[@REVISION]`.
        names: Names of the files.
        cache_dir: Folder for downloads, instead of huggingface_hub's cache.

    Returns:
        The folder of the commit in the cache. Its name is the commit's hash.

    Raises:
        ValueError: A file differs from its digest, or the Hub states an ETag or commit that is no valid file name.
    """
    repo_id, unchecked = hub_id.partition('@')[0], []
    for name in names:
        path = download(hub_id, name, cache_dir)
        if not _check_digest(path) and path not in UNCHECKED:
            UNCHECKED.add(path)
            unchecked.append(name)
        folder = path.parents[name.count('/')]
        hub_id = f'{repo_id}@{folder.name}'
    if unchecked:
        names = ' and '.join(unchecked)
        log.warning('%s: %s states no digest for %s, so the content is unchecked.', repo_id, constants.ENDPOINT, names)
    return folder


def fetch_weights(cfg: PretrainedCfg, cache_dir: str | Path | None = None) -> dict:
    """Fetches the weights of a pretrained configuration, if they are on a Hub.

    Args:
        cfg: Resolved configuration of the model.
        cache_dir: Folder for downloads, instead of huggingface_hub's cache.

    Returns:
        Changes to the configuration, as a `pretrained_cfg_overlay`: timm then reads the fetched file and sends no
        request of its own. Empty if the configuration names a local file or no weights at all.

    Raises:
        InputError: The weights cannot be fetched; in most cases, nobody has published them yet.
        ValueError: See `fetch`.
    """
    if not cfg.hf_hub_id or (cfg.source != 'hf-hub' and (cfg.file or cfg.state_dict)):
        return {}
    try:
        folder = fetch(cfg.hf_hub_id, cache_dir=cache_dir)
    except Exception as e:
        if not isinstance(e, OSError | HFValidationError) and not is_hub_error(e):
            raise
        fix = 'Fix the cause, or use --model local-dir:FOLDER.'
        if cfg.source != 'hf-hub':
            fix = (
                'Train the model (train/README.md) and use --model local-dir:FOLDER, or set MSFF_HUB_NAMESPACE to'
                ' the owner of published weights.'
            )
        name = '.'.join(filter(None, (cfg.architecture, cfg.tag)))
        # The chained traceback would repeat the same in ten lines.
        raise InputError(
            f'{name}: {cfg.hf_hub_id} at {constants.ENDPOINT} {_describe_missing(e, cfg, cache_dir)}. {fix}'
        ) from None
    return {
        'source': None,
        'file': str(folder / 'model.safetensors'),
        'hf_hub_id': f'{cfg.hf_hub_id.partition("@")[0]}@{folder.name}',
        'custom_load': False,
    }


def _describe_missing(error: Exception, cfg: PretrainedCfg, cache_dir: str | Path | None) -> str:
    """Completes the sentence 'REPOSITORY at ENDPOINT ...'."""
    code = status_code(error)
    cause = one_line(error.__cause__ or error)
    if isinstance(error, GatedRepoError):
        return 'is gated: request access on its page, and set HF_TOKEN'
    if isinstance(error, RepositoryNotFoundError):
        return 'holds no weights yet: the repository does not exist, or HF_TOKEN has no access to it'
    if isinstance(error, RevisionNotFoundError):
        return 'has no such revision'
    if code not in (None, 404):  # huggingface_hub reports a missing cached copy instead
        return f'cannot be fetched: {describe_error(error, cfg.hf_hub_id).removesuffix(".")}'
    if isinstance(error, LocalEntryNotFoundError):  # before its base, EntryNotFoundError
        why = (
            'was not contacted, since HF_HUB_OFFLINE is set'
            if constants.HF_HUB_OFFLINE
            else f'cannot be reached ({cause})'
        )
        cache = cache_dir or constants.HF_HUB_CACHE
        return f'{why}, and the cache {cache} holds no copy; perhaps nobody has published weights there yet'
    if isinstance(error, EntryNotFoundError):
        return f'holds no weights yet: it lacks {" or ".join(FILES)}'
    return f'cannot be read ({cause})'


def download(hub_id: str, name: str, cache_dir: str | Path | None = None) -> Path:
    """Downloads one file as timm does, after a check of the ETag and the commit that the Hub states.

    huggingface_hub uses both as file names without looking at them.
    """
    original = file_download.get_hf_file_metadata

    def get_checked_metadata(*args, **kwargs):
        try:
            metadata = original(*args, **kwargs)
        except HfHubHTTPError as e:  # the cache keeps the commit of a missing file too
            _check_file_name('commit', e.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))
            raise
        _check_file_name('ETag', metadata.etag)
        _check_file_name('commit', metadata.commit_hash)
        return metadata

    # A separate request beforehand would not do: the Hub could answer the second one differently.
    file_download.get_hf_file_metadata = get_checked_metadata
    try:
        return Path(download_from_hf(hub_id, name, cache_dir))
    finally:
        file_download.get_hf_file_metadata = original


def _check_file_name(kind: str, value: str | None) -> None:
    if value is not None and (not re.fullmatch(r'[\w.+=~@%-]{1,128}', value, re.ASCII) or set(value) == {'.'}):
        raise ValueError(f'the Hub at {constants.ENDPOINT} states an invalid {kind}: {value!r:.99}')


def _check_digest(path: Path) -> bool:
    """Compares a file in huggingface_hub's cache with the digest that the Hub stated, which is its name there.

    huggingface_hub itself compares the size only. A cache without links (Windows without its developer mode) does not
    keep the digest, so there is nothing to compare with.

    Returns:
        False if the Hub, or a mirror of it, stated no digest.

    Raises:
        ValueError: The digests differ; the file is removed from the cache, so that the next attempt fetches it anew.
            Or huggingface.co itself stated no digest.
    """
    if not path.is_symlink():
        return True
    blob = path.resolve()
    stated = blob.name.lower()
    if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', stated):
        if urlsplit(constants.ENDPOINT).hostname == 'huggingface.co':
            raise ValueError(f'{path.name}: the Hub states {blob.name!r:.99}, which is no digest')
        return False
    found = _digests(blob, blob.stat().st_mtime_ns)
    if stated not in found:
        with contextlib.suppress(OSError):  # a read-only cache
            path.unlink()
            blob.unlink()
        raise ValueError(f'{path.name} is damaged: its digest is {found[0]}, but the Hub states {stated}. Try again')
    return True


@functools.lru_cache  # keyed by the modification time too: a model's weights are checked more than once
def _digests(path: Path, modified: int) -> tuple[str, ...]:
    """Computes the digests that a name of this length can be: those of git and of proxies, or that of Git LFS."""
    if len(path.name) == 40:
        content = path.read_bytes()
        return git_hash(content), hashlib.sha1(content, usedforsecurity=False).hexdigest()
    with path.open('rb') as file:
        return (sha_fileobj(file).hex(),)
