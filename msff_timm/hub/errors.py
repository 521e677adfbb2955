"""What a failed request to the Hub means: one line that tells why, and what to do."""

import os
import re
from collections.abc import Iterator

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError

__all__ = ['is_network', 'is_of_hub', 'is_temporary', 'reason', 'said', 'secrets', 'status', 'told']

BUSY = (408, 429, 500, 502, 503, 504)
CLIENTS = ('httpx', 'httpx2', 'requests', 'urllib3')  # whose errors huggingface_hub lets through, by its version
# In names of variables; PWD itself is a folder.
SECRETS = re.compile('TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|(^|_)(PASS|PWD|KEY|AUTH)(_|$)', re.IGNORECASE)
NOT_SECRET = ('PWD', 'OLDPWD', 'SSH_AUTH_SOCK')
LEAST = 8  # characters of a secret: shorter ones are words
TOKEN = re.compile(r'\bhf_[A-Za-z0-9]{20,}')
REMOVED = '<removed>'


def secrets() -> dict[str, str]:
    """Finds this user's secrets, by what each is: the token of the Hub, values of variables such as `DB_PASS`."""
    found = {
        f'the value of {name}': value
        for name, value in os.environ.items()
        if SECRETS.search(name) and name not in NOT_SECRET and not ('TOKEN' in name.upper() and _is_number(value))
    }
    found["this user's token of the Hub"] = get_token() or ''
    return {what: value for what, value in found.items() if len(value) >= LEAST}


def _is_number(text: str) -> bool:
    """Tells whether a value is a number: `MAX_TOKENS` is a limit, not a token."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_client(error: BaseException) -> bool:
    return type(error).__module__.partition('.')[0] in CLIENTS


def _answered(error: BaseException) -> BaseException | None:
    """Finds the error that holds what the Hub answered; before 1.0, huggingface_hub raises some of the client's own."""
    of_http = (e for e in _chain(error) if isinstance(e, HfHubHTTPError) or _is_of_client(e))
    return next((e for e in of_http if getattr(e, 'response', None) is not None), None)


def status(error: BaseException) -> int | None:
    """Finds the status that the Hub answered with; None where it did not answer."""
    answered = _answered(error)
    return None if answered is None else answered.response.status_code


def is_network(error: BaseException) -> bool:
    """Tells whether it comes of the network, or of what the Hub answered."""
    return any(isinstance(e, ConnectionError | TimeoutError) or _is_of_client(e) for e in _chain(error))


def is_of_hub(error: BaseException) -> bool:
    """Tells whether `reason` knows more of it than its own message."""
    return status(error) is not None or is_network(error)


def is_temporary(error: BaseException) -> bool:
    """Tells whether the same request may work later."""
    return status(error) in BUSY or (status(error) is None and is_network(error))


def told(error: BaseException) -> int | None:
    """Reads after how many seconds the Hub wants to be asked again."""
    answered = _answered(error)
    headers = {} if answered is None else answered.response.headers
    if headers.get('Retry-After', '').isdigit():
        return int(headers['Retry-After'])
    limit = re.search(r';\s*r=0;\s*t=(\d+)', headers.get('RateLimit', ''))
    return int(limit[1]) + 1 if limit and status(error) == 429 else None


def reason(error: BaseException, repo_id: str = 'the repository', is_push: bool = False) -> str:
    """Says in one line why a request failed, and what to do.

    Args:
        error: Exception of huggingface_hub, of its HTTP client, or one raised from either.
        repo_id: Repository, or data set, that was asked for.
        is_push: True where something was to be sent.
    """
    code, text = status(error), said(error)
    tokens = f'{constants.ENDPOINT}/settings/tokens'
    if code is None:
        if is_network(error):
            return (
                f'the network fails or no Hub is there ({text}). Check it and HF_ENDPOINT, and run the command again.'
            )
        return text
    if code == 429:
        seconds = told(error)
        when = 'later' if seconds is None else f'in {seconds} seconds'
        return f'too many requests ({text}). Run the command again {when}.'
    if code >= 500:
        return f'the Hub fails with status {code} ({text}). Run the command again later.'
    if code == 404:
        return f'there is no such repository or revision ({text}).'
    if not is_push:
        if code == 401:
            return (
                f'there is no such repository, or no valid token that opens it ({text}). Check the name, and set'
                f' HF_TOKEN to a token of {tokens}.'
            )
        if code == 403:
            return (
                f'no access to {repo_id} ({text}). Ask for it on its page, and set HF_TOKEN to a token that may read it'
                f' ({tokens}).'
            )
    if code == 401:
        return f'the token is not valid there ({text}). Make one at {tokens}.'
    if code == 402 or code == 413 or (code == 403 and re.search('storage|quota|limit|plan|billing', text, re.I)):
        return f'its storage is full ({text}). Free some, or push elsewhere.'
    if code == 403:
        return (
            f'the token may not write to {repo_id} ({text}). Take another name or a token that may ({tokens}),'
            ' or, where the repository is there, --create-pr.'
        )
    if code in (409, 412):
        return f'the name is taken, or somebody else has just changed it ({text}). Look, and run the command again.'
    return f'the Hub refuses it with status {code} ({text}).'


def said(error: BaseException) -> str:
    """Puts into one line what the Hub said, or what else is known, without secrets."""
    known = _answered(error)
    if type(error) is ValueError:  # huggingface_hub's own words for some refusals
        text = str(error)
    else:
        deepest = known or next(filter(_is_of_client, _chain(error)), error)
        text = getattr(known, 'server_message', None) or str(deepest) or type(deepest).__name__
    for secret in secrets().values():
        text = text.replace(secret, REMOVED)
    return TOKEN.sub(REMOVED, ' '.join(text.split()).rstrip('.'))
