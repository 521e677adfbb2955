"""Uploads of the page: access to them, limits on their size, and their deletion."""

import contextlib
import ipaddress
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ['Guard', 'Uploads', 'allowed_hosts', 'temporary_folder']

MAX_UPLOAD = 100_000_000  # bytes
OVERHEAD = 100_000  # bytes of a request besides its files
MAX_BYTES = 2_000_000_000  # of all uploads together
MAX_FILES = 2000
MIN_AGE = 60  # seconds before an upload may be deleted to make room: it may be in use
PREFIX = 'msff-timm-space-'
LOOPBACK = ('localhost', '127.0.0.1', '::1')


class Uploads:
    """Record of the files uploaded to a page.

    Each upload of a file lets one session open it. Knowing the path is not enough: another session may have learnt it.

    Args:
        folder: Folder that contains all uploads.
        max_bytes: Bytes that the folder may hold.
        max_files: Files that the folder may hold.
    """

    def __init__(self, folder: str | Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES):
        self.folder, self.max_bytes, self.max_files = Path(folder), max_bytes, max_files
        self.arrivals: dict[str, int] = {}
        self.sessions: dict[str, set[str]] = {}
        self.reserved = 0

    def add(self, path: str) -> None:
        """Records an upload. Gradio gives the same content under the same name the same path each time."""
        self.arrivals[path] = self.arrivals.get(path, 0) + 1

    def open(self, path: str, session: str | None) -> Path:
        """Returns the file of an upload for a session.

        Raises:
            InputError: The session may not open it, or there is no such upload; the message is the same.
        """
        sessions = self.sessions.get(path, set())
        is_known = path in self.arrivals and session is not None
        if not is_known or not (session in sessions or len(sessions) < self.arrivals[path]) or not self._holds(path):
            raise InputError('It is not an upload of this page, or has been deleted: upload it again.')
        self.sessions.setdefault(path, set()).add(session)
        return Path(path)

    def _holds(self, path: str) -> bool:
        """Returns whether a path leads to a regular file in the folder, with links followed."""
        try:
            found = Path(path).resolve(strict=True)
            return found.is_relative_to(self.folder.resolve()) and stat.S_ISREG(found.stat().st_mode)
        except (OSError, RuntimeError):  # deleted, or a loop of links
            return False

    def make_room(self, size: int) -> bool:
        """Deletes the oldest files until a new file of a given size fits; returns whether it does."""
        found = []
        for path in self.folder.rglob('*'):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    found.append((status.st_mtime, status.st_size, path))
        total, count = sum(size for _, size, _ in found) + self.reserved + size, len(found) + 1
        for changed, file_size, path in sorted(found):
            if total <= self.max_bytes and count <= self.max_files or time.time() - changed < MIN_AGE:
                break
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder holds other files
                path.parent.rmdir()
            total, count = total - file_size, count - 1
        for path in [path for path in self.arrivals if not os.path.exists(path)]:
            self.arrivals.pop(path)
            self.sessions.pop(path, None)
        return total <= self.max_bytes and count <= self.max_files


class Guard:
    """ASGI middleware that answers requests to known hosts only, and records uploads.

    Args:
        app: Application behind it.
        uploads: Record of uploads.
        hosts: Hosts from `allowed_hosts`.
    """

    def __init__(self, app, uploads: Uploads, hosts: tuple[set[str], bool]):
        self.app, self.uploads, self.hosts = app, uploads, hosts

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] not in ('http', 'websocket'):
            await self.app(scope, receive, send)
        elif not self._is_host_known(scope['headers']):
            await _refuse(send, 400, 'The page is not served under this name: use the address it was started with')
        elif not self._is_path_allowed(scope['path']):
            await _refuse(send, 404, 'Not found')
        elif scope.get('method') == 'POST':
            await self._receive(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_host_known(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = [value.decode('latin-1').lower() for name, value in headers if name == b'host']
        match = re.fullmatch(r'(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d+)?', given[0]) if len(given) == 1 else None
        if match is None:
            return False
        names, is_any_address = self.hosts
        host = match[1] or match[2]
        return host in names or is_any_address and _is_address(host)

    def _is_path_allowed(self, path: str) -> bool:
        """Restricts Gradio's file route to uploads: it would fetch addresses, and reveal whether other files exist."""
        _, is_file, requested = re.sub('/file[=/]', '\0', path, count=1).partition('\0')
        return not is_file or requested in self.uploads.arrivals

    async def _receive(self, scope, receive, send) -> None:
        """Forwards a request with a body of limited size, and records the files of an upload."""
        length = dict(scope['headers']).get(b'content-length', b'')
        limit = MAX_UPLOAD + OVERHEAD
        size = int(length) if length.isdigit() else limit
        is_upload = scope['path'].rstrip('/').endswith('/upload')
        if size > limit:
            await _refuse(send, 413, f'Too large: at most {MAX_UPLOAD:,} bytes')
            return
        if is_upload and not self.uploads.make_room(size):
            await _refuse(send, 503, 'Too many uploads at once: try again in a minute')
            return
        received, status, answer = 0, None, b''

        async def receive_counted() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get('body', b''))
            return message if received <= limit else {'type': 'http.disconnect'}

        async def send_recorded(message: dict) -> None:
            nonlocal status, answer
            if message['type'] == 'http.response.start':
                status = message['status']
            elif message['type'] == 'http.response.body':
                answer += message.get('body', b'')
                if status == 200 and not message.get('more_body'):
                    # Recorded before the browser learns the path and requests it.
                    for path in json.loads(answer):
                        self.uploads.add(path)
            await send(message)

        self.uploads.reserved += size if is_upload else 0
        try:
            await self.app(scope, receive_counted, send_recorded if is_upload else send)
        finally:
            self.uploads.reserved -= size if is_upload else 0


async def _refuse(send, status: int, text: str) -> None:
    headers = [(b'content-type', b'text/plain; charset=utf-8'), (b'connection', b'close')]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': f'{text}\n'.encode()})


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def allowed_hosts(host: str) -> tuple[set[str], bool]:
    """Returns the host names under which a page is served; another site could point a name of its own at it.

    Args:
        host: Address that the page listens at; 0.0.0.0 and :: stand for all addresses of this machine.

    Returns:
        Host names, and whether any IP address is allowed, too: an address is no name that a site could choose.
    """
    is_any = host in ('0.0.0.0', '::')
    names = {*LOOPBACK, host, os.environ.get('SPACE_HOST', '')}
    if is_any:
        names |= {socket.gethostname(), socket.getfqdn(), f'{socket.gethostname()}.local'}
    return {name.lower() for name in names if name}, is_any


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Creates a folder for the time of the block, and deletes the folders of servers that were killed.

    A lock that ends with its process distinguishes them from those of running servers. Without such locks (Windows),
    the folder of a killed server stays.
    """
    if fcntl is None:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            yield Path(folder)
        return
    _clean(Path(tempfile.gettempdir()))
    descriptor, name = tempfile.mkstemp(prefix=PREFIX)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    lock = Path(f'{name}.lock')
    os.rename(name, lock)  # others look for this name only, and now find it locked
    folder = Path(f'{name}.uploads')
    try:
        folder.mkdir(0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _clean(temporary: Path) -> None:
    """Deletes the folders of this user's servers that no longer run."""
    for lock in temporary.glob(f'{PREFIX}*.lock'):
        with contextlib.suppress(OSError):  # locked, another user's, or just deleted
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.with_suffix('.uploads'), ignore_errors=True)
                    lock.unlink()
            finally:
                os.close(descriptor)
