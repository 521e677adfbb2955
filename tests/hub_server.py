"""A Hub on this machine: serves folders over as much of its protocol as downloads and `datasets` use."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ['HubServer']


class Refusal(Exception):
    """What the Hub answers instead of what was asked for.

    Args:
        status: Of HTTP.
        code: The Hub's own, which tells clients what they raise.
        message: For people.
    """

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class Repository:
    """A folder as a repository of one revision, `main`, whose commit is a digest of the content."""

    def __init__(self, folder: Path, repo_id: str):
        self.folder = folder
        self.repo_id = repo_id
        self.files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob('*')) if path.is_file()}
        content = ''.join(f'{name} {self.oid(name)}\n' for name in self.files)
        self.commit = hashlib.sha1(content.encode()).hexdigest()

    def oid(self, name: str) -> str:
        """Digests a file as git does."""
        content = self.files[name].read_bytes()
        return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()

    def info(self) -> dict:
        siblings = [{'rfilename': name} for name in self.files]
        return {'id': self.repo_id, 'sha': self.commit, 'private': False, 'gated': False, 'siblings': siblings}

    def entry(self, path: str) -> dict | None:
        """Describes a file or folder; None where there is none."""
        if path in self.files:
            return {'type': 'file', 'path': path, 'size': self.files[path].stat().st_size, 'oid': self.oid(path)}
        if any(name.startswith(f'{path}/') for name in self.files):
            return {'type': 'directory', 'path': path, 'size': 0, 'oid': hashlib.sha1(path.encode()).hexdigest()}
        return None

    def tree(self, folder: str, is_recursive: bool) -> list[dict]:
        """Describes what lies in a folder, '' for all.

        Raises:
            Refusal: There is no such folder.
        """
        prefix = f'{folder}/' if folder else ''
        below = [name.removeprefix(prefix).split('/') for name in self.files if name.startswith(prefix)]
        if folder and not below:
            raise Refusal(404, 'EntryNotFound', f'{folder} does not exist in {self.repo_id}')
        depths = {prefix + '/'.join(parts[:n]) for parts in below for n in range(1, len(parts) + 1)}
        return [self.entry(path) for path in sorted(depths) if is_recursive or '/' not in path.removeprefix(prefix)]


class HubServer:
    """Serves `root/{models,datasets}/{organisation}/{name}/` at `url` while the context lasts.

    Attributes:
        requests: How often each (method, path) was asked for.
        gated: Ids of repositories that nobody may read.
    """

    def __init__(self, root: Path):
        self.root = root
        self.requests: Counter[tuple[str, str]] = Counter()
        self.gated: set[str] = set()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (_Handler,), {'hub': self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)

    @property
    def url(self) -> str:
        # A name, since `datasets` puts a subdomain before it, which an address cannot have.
        return f'http://localhost:{self._server.server_port}'

    def __enter__(self) -> 'HubServer':
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Returns the variables under which a process has this as its Hub, and `home` for its caches."""
        return {
            'HF_ENDPOINT': self.url,
            'HF_HOME': str(home),
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_HUB_DISABLE_PROGRESS_BARS': '1',
            'NO_PROXY': 'localhost',
        }

    def repository(self, kind: str, repo_id: str, revision: str = 'main') -> Repository:
        """Opens a repository as it is now.

        Raises:
            Refusal: There is none, it has no such revision, or it is gated.
        """
        folder = self.root / kind / repo_id
        if not folder.is_dir():
            raise Refusal(404, 'RepoNotFound', 'Repository not found')
        if repo_id in self.gated:
            raise Refusal(403, 'GatedRepo', f'Access to {repo_id} is restricted')
        repository = Repository(folder, repo_id)
        if revision not in ('main', repository.commit):
            raise Refusal(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return repository


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        self._answer(ROUTES)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, routes: list[tuple[re.Pattern, Callable]]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests[self.command, path] += 1
        self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        try:
            for pattern, answer in routes:
                if match := pattern.fullmatch(path):
                    answer(self, **match.groupdict(default=''))
                    return
            raise Refusal(404, 'EntryNotFound', f'{path} is no part of this Hub')
        except Refusal as e:
            self._send(b'', e.status, {'X-Error-Code': e.code, 'X-Error-Message': str(e)})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({'Content-Length': str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), headers={'Content-Type': 'application/json'})

    def info(self, kind: str, repo_id: str, revision: str) -> None:
        self._send_json(self.hub.repository(kind, repo_id, revision or 'main').info())

    def tree(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        is_recursive = query.get('recursive', [''])[0].lower() in ('1', 'true')
        self._send_json(self.hub.repository(kind, repo_id, revision).tree(path, is_recursive))

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        if 'json' in self.headers.get('Content-Type', ''):
            paths = json.loads(self.body)['paths']
        else:
            paths = parse_qs(self.body.decode())['paths']
        repository = self.hub.repository(kind, repo_id, revision)
        self._send_json([entry for path in paths if (entry := repository.entry(path))])

    def refs(self, kind: str, repo_id: str) -> None:
        main = {'name': 'main', 'ref': 'refs/heads/main', 'targetCommit': self.hub.repository(kind, repo_id).commit}
        self._send_json({'branches': [main], 'tags': [], 'converts': []})

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        repository = self.hub.repository(kind or 'models', repo_id, revision)
        headers = {'X-Repo-Commit': repository.commit}
        if path not in repository.files:
            error = {'X-Error-Code': 'EntryNotFound', 'X-Error-Message': 'Entry not found'}
            self._send(b'', 404, headers | error)
            return
        content = repository.files[path].read_bytes()
        headers |= {'ETag': f'"{repository.oid(path)}"', 'Accept-Ranges': 'bytes'}
        asked = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        if not asked or asked[0] == 'bytes=-':
            self._send(content, headers=headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        if start > end:
            self._send(b'', 416, headers | {'Content-Range': f'bytes */{len(content)}'})
            return
        self._send(content[start : end + 1], 206, headers | {'Content-Range': f'bytes {start}-{end}/{len(content)}'})


_REPO = r'(?P<repo_id>[\w.-]+/[\w.-]+)'
_API = rf'/api/(?P<kind>models|datasets)/{_REPO}'
ROUTES = [
    (re.compile(rf'{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?'), _Handler.tree),
    (re.compile(rf'{_API}/paths-info/(?P<revision>[^/]+)'), _Handler.paths_info),
    (re.compile(rf'{_API}/refs'), _Handler.refs),
    (re.compile(rf'{_API}(/revision/(?P<revision>[^/]+))?'), _Handler.info),
    (re.compile(rf'/((?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)'), _Handler.resolve),
]
