"""A Hub on this machine: speaks as much of its protocol over HTTP as downloads, `datasets` and commits use."""

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

__all__ = ['Fault', 'File', 'HubServer', 'Repository', 'User']

BINARY_FROM = 10_000_000  # bytes: larger text goes to the large file storage, too, as all that is binary does


class Refusal(Exception):
    """What the Hub answers instead of what was asked for.

    Args:
        status: Of HTTP.
        message: For people.
        code: The Hub's own, which tells clients what they raise.
        **more: What the answer tells besides.
    """

    def __init__(self, status: int, message: str, code: str = '', **more: str):
        super().__init__(message)
        self.status, self.code, self.more = status, code, more

    def response(self) -> Response:
        headers = {'X-Error-Message': str(self)} | ({'X-Error-Code': self.code} if self.code else {})
        return _json({'error': str(self), **self.more}, self.status, headers)


@dataclass(frozen=True)
class User:
    """Whom a token belongs to, what else than the user's own namespace it opens, and whether it may write there."""

    name: str
    organisations: tuple[str, ...] = ()
    role: str = 'write'

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition('/')[0] in (self.name, *self.organisations)


@dataclass
class Fault:
    """Misbehaviour at the next requests of a path.

    Args:
        path: Searched for in the request's path.
        how: A status of HTTP; or `close` the connection before anything is read; or spoil an answer: `truncate` it
            after half of it, `corrupt` a byte of it, or make it `slow`, with a pause in its middle.
        times: At how many requests.
        method: Of HTTP, where only one is meant.
        headers: Of the answer, `Retry-After` say.
        message: Of the answer.
        seconds: That the pause takes.
    """

    path: str
    how: int | str
    times: int = 1
    method: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = 'as the test wants it'
    seconds: float = 1

    def meets(self, request: Request, path: str) -> bool:
        return self.times > 0 and self.method in (None, request.method) and re.search(self.path, path) is not None

    def replaced(self, environ: dict) -> Response | None:
        """Answers in the Hub's place; None when its own answer is to be spoiled."""
        if self.how == 'close':
            environ['werkzeug.socket'].shutdown(2)
            raise ConnectionResetError
        if isinstance(self.how, int):
            response = Refusal(self.how, self.message).response()
            response.headers.extend(self.headers)
            return response
        return None

    def spoiled(self, response: Response) -> Response:
        content, half = response.get_data(), len(response.get_data()) // 2
        if self.how == 'corrupt':
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            return Response(content, response.status, response.headers)

        def pieces() -> Iterator[bytes]:
            yield content[:half]
            if self.how == 'slow':
                time.sleep(self.seconds)
                yield content[half:]

        return Response(pieces(), response.status, {**response.headers, 'Content-Length': str(len(content))})


@dataclass(frozen=True)
class File:
    """A file of a commit; `is_lfs` when git holds only a pointer to it."""

    content: bytes
    is_lfs: bool = False

    @property
    def oid(self) -> str:
        """As git digests what it holds."""
        pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{self.etag}\nsize {len(self.content)}\n'
        return _git_digest(pointer.encode()) if self.is_lfs else self.etag

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.is_lfs else _git_digest(self.content)


class Repository:
    """A repository in memory.

    Args:
        repo_id: `organisation/name`.
        files: Of its first commit.
        private: Only those who own the namespace may read it.

    Attributes:
        commits: The files of each.
        refs: The newest commit of each branch, and of each pull request (`refs/pr/1`).
        messages: That each commit was made with.
    """

    def __init__(self, repo_id: str, files: dict[str, File], private: bool = False):
        self.repo_id, self.private = repo_id, private
        self.commits: dict[str, dict[str, File]] = {}
        self.refs: dict[str, str] = {}
        self.messages: dict[str, str] = {}
        self.commit('main', files, 'initial commit')

    def commit(self, ref: str, files: dict[str, File], message: str) -> str:
        parent = self.refs.get(ref, '')
        content = ''.join(f'{name} {files[name].oid}\n' for name in sorted(files))
        commit = hashlib.sha1(f'{self.repo_id} {parent} {content}'.encode()).hexdigest()
        self.commits[commit], self.messages[commit] = dict(sorted(files.items())), message
        self.refs[ref] = commit
        return commit

    def find(self, revision: str) -> str:
        """Finds the commit of a branch, a pull request or itself.

        Raises:
            Refusal: There is none.
        """
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return commit

    def files(self, revision: str = 'main') -> dict[str, bytes]:
        return {name: file.content for name, file in self.commits[self.find(revision)].items()}

    def info(self, commit: str) -> dict:
        siblings = [{'rfilename': name} for name in self.commits[commit]]
        return {'id': self.repo_id, 'sha': commit, 'private': self.private, 'gated': False, 'siblings': siblings}

    def entry(self, commit: str, path: str) -> dict | None:
        """Describes a file or folder; None where there is none."""
        files = self.commits[commit]
        if path in files:
            file = files[path]
            size = len(file.content)
            lfs = {'lfs': {'oid': file.etag, 'size': size, 'pointerSize': 130}} if file.is_lfs else {}
            return {'type': 'file', 'path': path, 'size': size, 'oid': file.oid, **lfs}
        if any(name.startswith(f'{path}/') for name in files):
            return {'type': 'directory', 'path': path, 'size': 0, 'oid': hashlib.sha1(path.encode()).hexdigest()}
        return None

    def tree(self, commit: str, folder: str, is_recursive: bool) -> list[dict]:
        """Describes what lies in a folder, '' for all.

        Raises:
            Refusal: There is no such folder.
        """
        prefix = f'{folder}/' if folder else ''
        names = [name for name in self.commits[commit] if name.startswith(prefix)]
        below = [name.removeprefix(prefix).split('/') for name in names]
        if folder and not below:
            raise Refusal(404, f'{folder} does not exist in {self.repo_id}', 'EntryNotFound')
        paths = sorted({prefix + '/'.join(parts[:n]) for parts in below for n in range(1, len(parts) + 1)})
        return [self.entry(commit, path) for path in paths if is_recursive or '/' not in path.removeprefix(prefix)]


class HubServer:
    """Is a Hub at `url` while the context lasts.

    What lies in `root/{models,datasets}/{organisation}/{name}/` when it is first asked for is the first commit of a
    repository; commits are kept in memory.

    Attributes:
        requests: How often each (method, path) was asked for.
        received: Path, authorization (None without) and content of each request.
        users: The user of each token. Without any, reading is all that one may do.
        gated: Ids of repositories that nobody may read.
        quota: Bytes that the large file storage takes in all, where there is a limit.
        objects: The large file storage, by SHA-256.
        faults: What goes wrong; add to it.
    """

    def __init__(self, root: Path):
        self.root = root
        self.requests: Counter[tuple[str, str]] = Counter()
        self.received: list[tuple[str, str | None, bytes]] = []
        self.users: dict[str, User] = {}
        self.gated: set[str] = set()
        self.quota: int | None = None
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._lock = threading.RLock()
        self._server = make_server('127.0.0.1', 0, self._application, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)

    @property
    def url(self) -> str:
        # A name, since `datasets` puts a subdomain before it, which an address cannot have.
        return f'http://localhost:{self._server.server_port}'

    @property
    def storage_url(self) -> str:
        """Of the large file storage: another host than the Hub's, which must not see tokens."""
        return f'http://127.0.0.1:{self._server.server_port}/storage'

    def __enter__(self) -> 'HubServer':
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Returns the variables under which a process has this as its Hub, and `home` for its caches.

        This Hub has no Xet storage. Newer clients that can use one do so without asking, so they are told.
        """
        return {
            'HF_ENDPOINT': self.url,
            'HF_HOME': str(home),
            'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_HUB_DISABLE_PROGRESS_BARS': '1',
            'NO_PROXY': 'localhost,127.0.0.1',
        }

    def repository(self, repo_id: str, kind: str = 'models') -> Repository | None:
        """Opens a repository; None where there is none."""
        with self._lock:
            folder = self.root / kind / repo_id
            if (kind, repo_id) not in self._repositories and folder.is_dir():
                names = [path for path in sorted(folder.rglob('*')) if path.is_file()]
                self.create(repo_id, {str(path.relative_to(folder)): path.read_bytes() for path in names}, kind=kind)
            return self._repositories.get((kind, repo_id))

    def create(self, repo_id: str, files: dict[str, bytes], private: bool = False, kind: str = 'models') -> Repository:
        """Makes a repository of files and their bytes."""
        # Its `datasets` are read as parts of a file, of which clients ask the Hub itself.
        made = {name: File(content, kind == 'models' and _is_large(name, content)) for name, content in files.items()}
        self.objects |= {file.etag: file.content for file in made.values() if file.is_lfs}
        with self._lock:
            self._repositories[kind, repo_id] = Repository(repo_id, made, private)
        return self._repositories[kind, repo_id]

    def _application(self, environ: dict, start_response: object) -> object:
        request = Request(environ)
        # As it was sent: a slash within a name, `refs%2Fpr%2F1` say, does not end it.
        raw = urlsplit(environ['REQUEST_URI']).path
        path = unquote(raw)
        self.requests[request.method, path] += 1
        with self._lock:
            fault = next((fault for fault in self.faults if fault.meets(request, path)), None)
            if fault:
                fault.times -= 1
        response = fault and fault.replaced(environ)
        if response is None:
            self.received.append((path, request.headers.get('Authorization'), request.get_data()))
            response = self._answer(request, raw)
            if fault:
                response = fault.spoiled(response)
        return response(environ, start_response)

    def _answer(self, request: Request, raw: str) -> Response:
        try:
            name, parts = ROUTES.bind('').match(raw, request.method)
            return getattr(self, name)(request, **{key: unquote(part) for key, part in parts.items()})
        except Refusal as e:
            return e.response()
        except HTTPException as e:
            return e.get_response() if e.code == 416 else Refusal(e.code or 500, f'{raw}: {e.name}').response()

    def _caller(self, request: Request) -> User | None:
        token = request.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in self.users:
            raise Refusal(401, 'Invalid credentials in Authorization header')
        return self.users.get(token)

    def _readable(self, request: Request, kind: str, repo_id: str) -> Repository:
        user, repository = self._caller(request), self.repository(repo_id, kind)
        if repository is None or repository.private and not (user and user.owns(repo_id)):
            raise Refusal(404 if user else 401, 'Repository not found', 'RepoNotFound')
        if repo_id in self.gated:
            raise Refusal(403, f'Access to {repo_id} is restricted', 'GatedRepo')
        return repository

    def _writer(self, request: Request, repo_id: str) -> User:
        user = self._caller(request)
        if user is None:
            raise Refusal(401, 'Invalid username or password.')
        if user.role != 'write' or not user.owns(repo_id):
            namespace = repo_id.partition('/')[0]
            raise Refusal(403, f"You don't have the rights to create or write to a model of the namespace {namespace}")
        return user

    def _writable(self, request: Request, kind: str, repo_id: str) -> Repository:
        repository = self._readable(request, kind, repo_id)
        # Whoever may read may ask for a change.
        if request.args.get('create_pr') != '1':
            self._writer(request, repo_id)
        elif self._caller(request) is None:
            raise Refusal(401, 'Invalid username or password.')
        return repository

    def whoami(self, request: Request) -> Response:
        user = self._caller(request)
        if user is None:
            raise Refusal(401, 'Invalid username or password.')
        organisations = [{'type': 'org', 'name': name, 'roleInOrg': user.role} for name in user.organisations]
        auth = {'type': 'access_token', 'accessToken': {'displayName': 'test', 'role': user.role}}
        return _json({'type': 'user', 'name': user.name, 'orgs': organisations, 'auth': auth})

    def create_repo(self, request: Request) -> Response:
        asked = request.get_json()
        kind, name = f'{asked.get("type", "model")}s', asked['name']
        user = self._caller(request)
        repo_id = f'{asked.get("organization") or (user and user.name)}/{name}'
        self._writer(request, repo_id)
        if self.repository(repo_id, kind):
            raise Refusal(409, 'You already created this model repo', url=f'{self.url}/{repo_id}')
        private = asked.get('private') or asked.get('visibility') == 'private'
        self.create(repo_id, {'.gitattributes': b'*.safetensors filter=lfs\n'}, private, kind)
        return _json({'url': f'{self.url}/{repo_id}', 'name': repo_id, 'id': repo_id})

    def validate_yaml(self, request: Request) -> Response:
        match = re.match(r'---\n(.*?)\n---\n', request.get_json()['content'], re.DOTALL)
        if not match:
            return _json({'errors': [], 'warnings': [{'message': 'empty or missing yaml metadata in repo card'}]})
        try:
            yaml.safe_load(match[1])
        except yaml.YAMLError as e:
            return _json({'errors': [{'message': f'YAML: {e}'}], 'warnings': []}, 400)
        return _json({'errors': [], 'warnings': []})

    def info(self, request: Request, kind: str, org: str, name: str, revision: str = 'main') -> Response:
        repository = self._readable(request, kind, f'{org}/{name}')
        return _json(repository.info(repository.find(revision)))

    def tree(self, request: Request, kind: str, org: str, name: str, revision: str, path: str = '') -> Response:
        repository = self._readable(request, kind, f'{org}/{name}')
        is_recursive = request.args.get('recursive', '').lower() in ('1', 'true')
        return _json(repository.tree(repository.find(revision), path, is_recursive))

    def paths_info(self, request: Request, kind: str, org: str, name: str, revision: str) -> Response:
        repository = self._readable(request, kind, f'{org}/{name}')
        paths = request.get_json()['paths'] if request.is_json else request.form.getlist('paths')
        commit = repository.find(revision)
        return _json([entry for path in paths if (entry := repository.entry(commit, path))])

    def refs(self, request: Request, kind: str, org: str, name: str) -> Response:
        found = self._readable(request, kind, f'{org}/{name}').refs
        asked = {'branches': 'refs/heads/', 'pullRequests': ''}
        listed = {key: [] for key in asked}
        for ref, commit in found.items():
            key = 'pullRequests' if ref.startswith('refs/pr/') else 'branches'
            listed[key].append({'name': ref, 'ref': asked[key] + ref, 'targetCommit': commit})
        return _json({'tags': [], 'converts': [], **listed})

    def branch(self, request: Request, kind: str, org: str, name: str, branch: str) -> Response:
        repository = self._readable(request, kind, f'{org}/{name}')
        self._writer(request, repository.repo_id)
        if branch.startswith('refs/'):
            raise Refusal(400, 'Invalid reference for a branch')
        if branch in repository.refs:
            raise Refusal(409, f'Reference refs/heads/{branch} already exists')
        repository.refs[branch] = repository.find((request.get_json(silent=True) or {}).get('startingPoint', 'main'))
        return _json({'success': True})

    def preupload(self, request: Request, kind: str, org: str, name: str, revision: str) -> Response:
        repository = self._writable(request, kind, f'{org}/{name}')
        there = repository.commits[repository.find(revision)]
        answers = []
        for file in request.get_json()['files']:
            is_large = _is_large(file['path'], base64.b64decode(file['sample']), file['size'])
            old = there.get(file['path'])
            known = {'oid': old.etag} if old and old.is_lfs == is_large else {}
            mode = 'lfs' if is_large else 'regular'
            answers.append({'path': file['path'], 'uploadMode': mode, 'shouldIgnore': False, **known})
        return _json({'files': answers})

    def lfs_batch(self, request: Request, org: str, name: str, kind: str = 'models') -> Response:
        repository = self._readable(request, kind, f'{org}/{name}')
        if self._caller(request) is None:
            raise Refusal(401, 'Invalid username or password.')
        wanted = request.get_json(force=True)['objects']
        if (
            self.quota is not None
            and sum(map(len, self.objects.values())) + sum(o['size'] for o in wanted) > self.quota
        ):
            raise Refusal(403, f'Storage limit reached for {org}: upgrade your plan, or delete files')
        verify = {'href': f'{self.url}/{repository.repo_id}.git/info/lfs/verify'}
        for entry in wanted:
            if entry['oid'] not in self.objects:
                upload = {'href': f'{self.storage_url}/{entry["oid"]}?signature=once'}
                entry['actions'] = {'upload': upload, 'verify': verify}
        return _json({'transfer': 'basic', 'objects': wanted})

    def lfs_verify(self, request: Request, org: str, name: str, kind: str = 'models') -> Response:
        self._readable(request, kind, f'{org}/{name}')
        asked = request.get_json()
        if len(self.objects.get(asked['oid'], b'')) != asked['size']:
            raise Refusal(404, f'{asked["oid"]} has not arrived')
        return _json({})

    def upload(self, request: Request, oid: str) -> Response:
        content = request.get_data()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, 'The provided SHA-256 does not match what was computed')
        self.objects[oid] = content
        return Response(b'', headers={'ETag': f'"{oid}"'})

    def commit(self, request: Request, kind: str, org: str, name: str, revision: str) -> Response:
        repository = self._writable(request, kind, f'{org}/{name}')
        header, *operations = map(json.loads, request.get_data().splitlines())
        with self._lock:
            parent = repository.find(revision)
            if revision not in repository.refs:
                raise Refusal(400, f'{revision} is no branch')
            if header['value'].get('parentCommit', parent) != parent:
                raise Refusal(412, 'A commit has happened since. Please refresh and try again.')
            files = dict(repository.commits[parent])
            for operation in operations:
                value = operation['value']
                if operation['key'] == 'file':
                    files[value['path']] = File(base64.b64decode(value['content']))
                elif operation['key'] == 'lfsFile':
                    if value['oid'] not in self.objects:
                        raise Refusal(400, f'{value["path"]}: its content has not been uploaded')
                    files[value['path']] = File(self.objects[value['oid']], is_lfs=True)
                else:
                    raise Refusal(400, f'{operation["key"]} is no part of this Hub')
            number = sum(ref.startswith('refs/pr/') for ref in repository.refs) + 1
            is_change = request.args.get('create_pr') == '1'
            ref = f'refs/pr/{number}' if is_change else revision
            repository.refs.setdefault(ref, parent)
            commit = repository.commit(ref, files, header['value']['summary'])
        url = f'{self.url}/{repository.repo_id}'
        asked = {'pullRequestUrl': f'{url}/discussions/{number}'} if is_change else {}
        return _json({'success': True, 'commitOid': commit, 'commitUrl': f'{url}/commit/{commit}', **asked})

    def resolve(
        self, request: Request, org: str, name: str, revision: str, path: str, kind: str = 'models'
    ) -> Response:
        repository = self._readable(request, kind, f'{org}/{name}')
        commit = repository.find(revision)
        headers = {'X-Repo-Commit': commit}
        file = repository.commits[commit].get(path)
        if file is None:
            response = Refusal(404, 'Entry not found', 'EntryNotFound').response()
            response.headers.extend(headers)
            return response
        if file.is_lfs:
            linked = {'X-Linked-Etag': f'"{file.etag}"', 'X-Linked-Size': str(len(file.content))}
            location = {'Location': f'{self.storage_url}/{file.etag}'}
            return Response(b'', 302, headers | linked | location)
        return _ranged(request, file.content, file.etag, headers)

    def download(self, request: Request, oid: str) -> Response:
        if oid not in self.objects:
            raise Refusal(404, f'{oid} is not stored')
        return _ranged(request, self.objects[oid], oid, {})


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        pass


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, content_type='application/json')


def _ranged(request: Request, content: bytes, etag: str, headers: dict[str, str]) -> Response:
    """Answers with what the request's `Range` asks for of the content, all without one."""
    response = Response(content, headers=headers, content_type='application/octet-stream')
    response.set_etag(etag)
    return response.make_conditional(request, accept_ranges=True, complete_length=len(content))


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def _is_large(name: str, sample: bytes, size: int | None = None) -> bool:
    """Tells whether the Hub puts a file into the large file storage."""
    size = len(sample) if size is None else size
    return name.endswith('.safetensors') or b'\0' in sample[:512] or size > BINARY_FROM


_REPO = '/api/<any(models,datasets):kind>/<org>/<name>'
ROUTES = Map(
    [
        Rule('/api/whoami-v2', endpoint='whoami'),
        Rule('/api/repos/create', endpoint='create_repo', methods=['POST']),
        Rule('/api/validate-yaml', endpoint='validate_yaml', methods=['POST']),
        Rule(_REPO, endpoint='info'),
        Rule(f'{_REPO}/revision/<revision>', endpoint='info'),
        Rule(f'{_REPO}/tree/<revision>', endpoint='tree'),
        Rule(f'{_REPO}/tree/<revision>/<path:path>', endpoint='tree'),
        Rule(f'{_REPO}/paths-info/<revision>', endpoint='paths_info', methods=['POST']),
        Rule(f'{_REPO}/refs', endpoint='refs'),
        Rule(f'{_REPO}/branch/<branch>', endpoint='branch', methods=['POST']),
        Rule(f'{_REPO}/preupload/<revision>', endpoint='preupload', methods=['POST']),
        Rule(f'{_REPO}/commit/<revision>', endpoint='commit', methods=['POST']),
        Rule('/storage/<oid>', endpoint='upload', methods=['PUT']),
        Rule('/storage/<oid>', endpoint='download', methods=['GET']),
        *(
            Rule(f'{prefix}/<org>/<name>{rest}', endpoint=endpoint, methods=methods, defaults=defaults)
            for prefix, defaults in (('', {'kind': 'models'}), ('/datasets', {'kind': 'datasets'}))
            for rest, endpoint, methods in (
                ('.git/info/lfs/objects/batch', 'lfs_batch', ['POST']),
                ('.git/info/lfs/verify', 'lfs_verify', ['POST']),
                ('/resolve/<revision>/<path:path>', 'resolve', ['GET']),
            )
        ),
    ],
    strict_slashes=False,
    merge_slashes=False,
    redirect_defaults=False,
)
