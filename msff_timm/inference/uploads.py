"""The uploads of a page: who may open them, how much they take, and how they are cleaned up."""

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

__all__ = ['Guard', 'Uploads', 'hosts_of', 'own_folder']

LARGEST = 100_000_000  # bytes of one upload
OVERHEAD = 100_000  # bytes of a request around its files
MOST_BYTES = 2_000_000_000  # of all uploads together
MOST_FILES = 2000
YOUNG = 60  # seconds in which an upload may be in use: it is not deleted to make room
PREFIX = 'msff-timm-space-'
LOOPBACK = ('localhost', '127.0.0.1', '::1')


class Uploads:
    """The files that were uploaded to a page.

    Each upload of a file lets one session open it: the path alone, which another session may have learnt, does not.

    Args:
        folder: Folder that all uploads lie below.
        most_bytes: Bytes that the folder may hold.
        most_files: Files that the folder may hold.
    """

    def __init__(self, folder: str | Path, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES):
        self.folder, self.most_bytes, self.most_files = Path(folder), most_bytes, most_files
        self.arrivals: dict[str, int] = {}
        self.sessions: dict[str, set[str]] = {}
        self.reserved = 0

    def arrived(self, path: str) -> None:
        """Records one upload; the same content under the same name has the same path each time."""
        self.arrivals[path] = self.arrivals.get(path, 0) + 1

    def open(self, path: str, session: str | None) -> Path:
        """Returns the file of an upload to a session that may open it.

        Raises:
            InputError: It may not, or there is no such upload; the message does not tell the two apart.
        """
        sessions = self.sessions.get(path, set())
        is_known = path in self.arrivals and session is not None
        if not is_known or not (session in sessions or len(sessions) < self.arrivals[path]) or not self._holds(path):
            raise InputError('It is no upload of this page, or no longer there: upload it again.')
        self.sessions.setdefault(path, set()).add(session)
        return Path(path)

    def _holds(self, path: str) -> bool:
        """Tells whether a path is that of a regular file below the folder, wherever links lead."""
        try:
            found = Path(path).resolve(strict=True)
            return found.is_relative_to(self.folder.resolve()) and stat.S_ISREG(found.stat().st_mode)
        except (OSError, RuntimeError):  # it is gone, or links go round in circles
            return False

    def make_room(self, size: int) -> bool:
        """Deletes the oldest files until there is room for one more of a size; False where there cannot be."""
        found = []
        for path in self.folder.rglob('*'):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    found.append((status.st_mtime, status.st_size, path))
        total, count = sum(size for _, size, _ in found) + self.reserved + size, len(found) + 1
        for changed, of_file, path in sorted(found):
            if total <= self.most_bytes and count <= self.most_files or time.time() - changed < YOUNG:
                break
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other files are in it, or it is the folder of all
                path.parent.rmdir()
            total, count = total - of_file, count - 1
        for path in [path for path in self.arrivals if not os.path.exists(path)]:
            self.arrivals.pop(path)
            self.sessions.pop(path, None)
        return total <= self.most_bytes and count <= self.most_files


class Guard:
    """ASGI middleware that answers for known hosts only, and keeps the record of uploads.

    Args:
        app: The application behind it.
        uploads: The record.
        hosts: Hosts that `hosts_of` gave.
    """

    def __init__(self, app, uploads: Uploads, hosts: tuple[set[str], bool]):
        self.app, self.uploads, self.hosts = app, uploads, hosts

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] not in ('http', 'websocket'):
            await self.app(scope, receive, send)
        elif not self._is_host_known(scope['headers']):
            await _refuse(send, 400, 'The page is not served under this name: use the address that it was started with')
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
        """Lets Gradio give out uploads alone: it would fetch addresses, and tell whether other files exist."""
        _, is_file, asked = re.sub('/file[=/]', '\0', path, count=1).partition('\0')
        return not is_file or asked in self.uploads.arrivals

    async def _receive(self, scope, receive, send) -> None:
        """Hands on a request with a body, up to the largest; records what an upload leaves behind."""
        length = dict(scope['headers']).get(b'content-length', b'')
        largest = LARGEST + OVERHEAD
        size = int(length) if length.isdigit() else largest
        is_upload = scope['path'].rstrip('/').endswith('/upload')
        if size > largest:
            await _refuse(send, 413, f'Too large: {LARGEST:,} bytes at most')
            return
        if is_upload and not self.uploads.make_room(size):
            await _refuse(send, 503, 'Too many uploads at once: try again in a minute')
            return
        received, status, answer = 0, None, b''

        async def receive_counted() -> dict:
            nonlocal received
            message = await receive()
            received += len(message.get('body', b''))
            return message if received <= largest else {'type': 'http.disconnect'}

        async def send_noted(message: dict) -> None:
            nonlocal status, answer
            if message['type'] == 'http.response.start':
                status = message['status']
            elif message['type'] == 'http.response.body':
                answer += message.get('body', b'')
                if status == 200 and not message.get('more_body'):
                    # Before the browser knows the path, which it asks about next.
                    for path in json.loads(answer):
                        self.uploads.arrived(path)
            await send(message)

        self.uploads.reserved += size if is_upload else 0
        try:
            await self.app(scope, receive_counted, send_noted if is_upload else send)
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


def hosts_of(host: str) -> tuple[set[str], bool]:
    """Finds the names that a page is served under: a page of another site could reach it under a name of its own.

    Args:
        host: Address that it listens at; 0.0.0.0 and :: are all addresses of this machine.

    Returns:
        The names, and whether all addresses count as such: they are no names that others could give.
    """
    is_any = host in ('0.0.0.0', '::')
    names = {*LOOPBACK, host, os.environ.get('SPACE_HOST', '')}
    if is_any:
        names |= {socket.gethostname(), socket.getfqdn(), f'{socket.gethostname()}.local'}
    return {name.lower() for name in names if name}, is_any


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Gives a folder that is deleted in the end, after deleting those of servers that were killed.

    A lock that ends with its process tells them from those of servers that still run. Where there are no such locks
    (Windows), the folder of a killed server stays.
    """
    if fcntl is None:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            yield Path(folder)
        return
    _clean(Path(tempfile.gettempdir()))
    descriptor, name = tempfile.mkstemp(prefix=PREFIX)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    lock = Path(f'{name}.lock')
    os.rename(name, lock)  # only now is it looked at by others
    folder = Path(f'{name}.uploads')
    try:
        folder.mkdir(0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _clean(temporary: Path) -> None:
    """Deletes the folders of servers of this user that run no longer."""
    for lock in temporary.glob(f'{PREFIX}*.lock'):
        with contextlib.suppress(OSError):  # it is locked, another user's, or has just been deleted
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.with_suffix('.uploads'), ignore_errors=True)
                    lock.unlink()
            finally:
                os.close(descriptor)
