"""Error messages for failed requests to the Hub: one line that explains the failure and how to fix it."""

import os
import re
from collections.abc import Iterator

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError

__all__ = ['TOKEN', 'describe_error', 'find_secrets', 'is_hub_error', 'status_code']

CLIENTS = ('httpx', 'httpx2', 'requests', 'urllib3')  # HTTP clients of the versions of huggingface_hub
# Environment variables with secret values; PWD itself is a folder.
SECRETS = re.compile('TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|(^|_)(PASS|PWD|KEY|AUTH)(_|$)', re.IGNORECASE)
NOT_SECRET = ('PWD', 'OLDPWD', 'SSH_AUTH_SOCK')
MIN_LENGTH = 8  # shorter values are words, not secrets
TOKEN = re.compile(r'\bhf_[A-Za-z0-9]{20,}')
REMOVED = '<removed>'


def find_secrets() -> dict[str, str]:
    """Returns the user's secrets by description: the Hub token and values of variables such as `DB_PASS`."""
    found = {
        f'the value of {name}': value
        for name, value in os.environ.items()
        if SECRETS.search(name) and name not in NOT_SECRET and not ('TOKEN' in name.upper() and _is_number(value))
    }
    found['your Hub token'] = get_token() or ''
    return {description: value for description, value in found.items() if len(value) >= MIN_LENGTH}


def _is_number(text: str) -> bool:
    """Returns whether a value is a number: `MAX_TOKENS` is a limit, not a secret."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_client_error(error: BaseException) -> bool:
    return type(error).__module__.partition('.')[0] in CLIENTS


def _find_response(error: BaseException) -> BaseException | None:
    """Finds the error that holds the Hub's response; before 1.0, huggingface_hub raises some of the client's own."""
    errors = (e for e in _chain(error) if isinstance(e, HfHubHTTPError) or _is_client_error(e))
    return next((e for e in errors if getattr(e, 'response', None) is not None), None)


def status_code(error: BaseException) -> int | None:
    """Returns the HTTP status of the Hub's response, or None if there was no response."""
    found = _find_response(error)
    return None if found is None else found.response.status_code


def _is_network_error(error: BaseException) -> bool:
    return any(isinstance(e, ConnectionError | TimeoutError) or _is_client_error(e) for e in _chain(error))


def is_hub_error(error: BaseException) -> bool:
    """Returns whether an error comes from a request to the Hub, so that `describe_error` can explain it."""
    return status_code(error) is not None or _is_network_error(error)


def _retry_after(error: BaseException) -> str | None:
    """Returns the number of seconds after which the Hub accepts the next request, if the response states it."""
    headers = _find_response(error).response.headers
    found = re.fullmatch(r'(\d+)', headers.get('Retry-After', '')) or re.search(
        r';\s*r=0;\s*t=(\d+)', headers.get('RateLimit', '')
    )
    return found and found[1]


def describe_error(error: BaseException, repo_id: str = 'the repository', is_push: bool = False) -> str:
    """Explains in one line why a request failed and how to fix it.

    Args:
        error: Exception of huggingface_hub or of its HTTP client, or one that was raised from either.
        repo_id: Id of the repository or data set.
        is_push: True if the request was part of a push.
    """
    code, text = status_code(error), _message(error)
    tokens = f'{constants.ENDPOINT}/settings/tokens'
    if code is None:
        if _is_network_error(error):
            return f'the Hub cannot be reached ({text}). Check the network and HF_ENDPOINT, and run the command again.'
        return text
    if code == 429:
        seconds = _retry_after(error)
        when = f'in {seconds} seconds' if seconds else 'later'
        return f'too many requests ({text}). Run the command again {when}.'
    if code >= 500:
        return f'the Hub fails with status {code} ({text}). Run the command again later.'
    if code == 404:
        return f'there is no such repository or revision ({text}).'
    if not is_push:
        if code == 401:
            return (
                f'the repository does not exist, or it needs a valid token ({text}). Check the name, and set HF_TOKEN'
                f' to a token from {tokens}.'
            )
        if code == 403:
            return (
                f'no access to {repo_id} ({text}). Request access on its page, and set HF_TOKEN to a token with read'
                f' access ({tokens}).'
            )
    if code == 401:
        return f'the token is not valid ({text}). Create one at {tokens}.'
    if code in (402, 413) or (code == 403 and re.search('storage|quota|limit|plan|billing', text, re.I)):
        return f'the storage is full ({text}). Free some space, or push to another account.'
    if code == 403:
        return (
            f'the token may not write to {repo_id} ({text}). Choose another name or use a token with write access'
            f' ({tokens}); if the repository exists, --create-pr works too.'
        )
    if code in (409, 412):
        return f'the name is taken, or somebody else has just pushed ({text}). Check it, and run the command again.'
    return f'the Hub refuses the request with status {code} ({text}).'


def _message(error: BaseException) -> str:
    """Returns the message of the Hub, or else of the error that caused the failure, in one line without secrets."""
    if type(error) is ValueError:  # huggingface_hub refuses some calls itself
        text = str(error)
    else:
        found = _find_response(error)
        source = found or next(filter(_is_client_error, _chain(error)), error)
        text = getattr(found, 'server_message', None) or str(source) or type(source).__name__
    for secret in find_secrets().values():
        text = text.replace(secret, REMOVED)
    return TOKEN.sub(REMOVED, ' '.join(text.split()).rstrip('.'))
