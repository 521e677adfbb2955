import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from hub_server import Fault, HubServer
from test_push import client, environment, pulled_logits, server, weights  # noqa: F401  fixtures
from timm.models import _registry

from msff_timm import hub
from msff_timm.errors import InputError


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


TAG = 'msff_test_resnet.scenes'


def fetched(name, cache=None):
    """Loads a model in the client's process; returns its logits or the error message, and the pauses."""
    pauses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('time.sleep', pauses.append)
        if name.startswith('tag:'):  # as if the weights were in that repository, not in the package
            cfg = dataclasses.replace(timm.get_pretrained_cfg(TAG), file=None, hf_hub_id=name.removeprefix('tag:'))
            patch.setitem(_registry._model_pretrained_cfgs, TAG, cfg)
            name = TAG
        try:
            model = hub.load(name, cache)
        except InputError as e:
            return str(e), pauses
        with torch.inference_mode():
            return model(torch.zeros(1, 3, 64, 64)).tolist(), pauses


def noted(name, cache=None):
    """Returns the logged lines too."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger('msff_timm')
    logger.addHandler(handler)
    try:
        return *fetched(name, cache), lines
    finally:
        logger.removeHandler(handler)


def asked_files(server, repo_id):  # noqa: F811
    return {path.rpartition('/')[2] for _, path in server.requests if path.startswith(f'/{repo_id}/resolve/')}


def test_load_requests_safetensors_alone_and_reads_no_pickle(server, client, weights, tmp_path):  # noqa: F811
    torch.save(Planted(tmp_path / 'ran'), tmp_path / 'pickle')
    evil = {'pytorch_model.bin': (tmp_path / 'pickle').read_bytes(), 'config.json': weights['config.json']}
    server.create('org/both', weights | evil)
    server.create('org/only', evil)
    server.create('org/named', evil | {'model.safetensors': evil['pytorch_model.bin']})
    elsewhere = json.loads(weights['config.json'])
    elsewhere['pretrained_cfg'] |= {
        'custom_load': 'hf',
        'hf_hub_filename': 'pytorch_model.bin',
        'hf_hub_id': 'org/only',
    }
    server.create('org/elsewhere', weights | evil | {'config.json': json.dumps(elsewhere).encode()})
    # A plain timm model, with a weights file of another name
    model = timm.create_model('test_resnet', num_classes=3)
    hub.save(model, tmp_path / 'plain', ['a', 'b', 'c'], timm.data.resolve_model_data_config(model))
    plain = json.loads((tmp_path / 'plain' / 'config.json').read_text())
    plain['pretrained_cfg'] |= {'hf_hub_filename': 'evil.pth'}  # timm knows no safe alternative to it
    saved = {
        'evil.pth': evil['pytorch_model.bin'],
        'model.safetensors': (tmp_path / 'plain' / 'model.safetensors').read_bytes(),
    }
    server.create('org/plain', saved | evil | {'config.json': json.dumps(plain).encode()})
    assert len(client(fetched, 'hf-hub:org/plain')[0][0]) == 3
    sound, _ = client(fetched, 'hf-hub:org/both')
    assert len(sound[0]) == 3 and client(fetched, 'hf-hub:org/elsewhere')[0] == sound
    by_timm = client(pulled_logits, 'hf-hub:org/both', None)
    assert client(pulled_logits, 'hf-hub:org/elsewhere', None) == by_timm
    for name in ('only', 'named'):
        message, _ = client(fetched, f'hf-hub:org/{name}')
        assert message.startswith(f'hf-hub:org/{name}: cannot be loaded from {server.url} (')
        assert len(message.splitlines()) == 1
    for name in ('both', 'only', 'named', 'elsewhere', 'plain'):
        assert asked_files(server, f'org/{name}') == {'config.json', 'model.safetensors'}
    assert not (tmp_path / 'ran').exists()


def test_fetch_removes_files_of_another_digest(server, client, weights, tmp_path):  # noqa: F811
    server.create('org/digest', weights)
    for path in ('/org/digest/resolve/.*/config.json', '/storage/'):
        server.faults.append(Fault(path, 'corrupt', method='GET'))
        message, _ = client(fetched, 'hf-hub:org/digest', tmp_path)
        assert 'is damaged: its digest is' in message and 'Try again' in message and len(message.splitlines()) == 1
        assert server.faults.pop().times == 0
    logits, _ = client(fetched, 'hf-hub:org/digest', tmp_path)
    assert len(logits[0]) == 3
    # Files in the cache are checked before each use too.
    blob = next((tmp_path / 'models--org--digest' / 'snapshots').rglob('model.safetensors')).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert 'is damaged' in client(fetched, 'hf-hub:org/digest', tmp_path)[0]
    assert client(fetched, 'hf-hub:org/digest', tmp_path)[0] == logits


def test_fetch_completes_or_refuses_truncated_files(server, client, weights, tmp_path):  # noqa: F811
    server.create('org/cut', weights)
    fault = Fault('/storage/', 'truncate', method='GET')
    server.faults.append(fault)
    # Before 1.0, huggingface_hub does not retry.
    first, _ = client(fetched, 'hf-hub:org/cut', tmp_path / 'a')
    assert not fault.times
    logits, _ = client(fetched, 'hf-hub:org/cut', tmp_path / 'a')
    assert len(logits[0]) == 3 and (first == logits or first.startswith('hf-hub:org/cut: cannot be loaded'))
    fault.times = 10**6
    message, _ = client(fetched, 'hf-hub:org/cut', tmp_path / 'b')
    server.faults.clear()
    assert message.startswith('hf-hub:org/cut: cannot be loaded') and len(message.splitlines()) == 1
    assert not list((tmp_path / 'b').rglob('model.safetensors'))


@pytest.mark.parametrize(
    ('revision', 'fault'),
    [
        ('@nothing', None),
        ('', Fault('/org/faulty/', 401)),
        ('', Fault('/org/faulty/', 403)),
        ('', Fault('/org/faulty/', 404)),
        ('', Fault('/org/faulty/', 500)),
        ('', Fault('/org/faulty/', 'close')),
        ('', Fault('/storage/', 403, method='GET')),
    ],
)
def test_load_names_a_failing_hub(server, client, weights, tmp_path, revision, fault):  # noqa: F811
    server.create('org/faulty', weights)
    if fault:
        fault.times = 10**6
        server.faults.append(fault)
    message, _ = client(fetched, f'hf-hub:org/faulty{revision}', tmp_path)
    server.faults.clear()
    assert message.startswith(f'hf-hub:org/faulty{revision}: cannot be loaded from {server.url} (')
    assert len(message.splitlines()) == 1


def test_fetch_waits_for_rate_limits(server, client, weights, tmp_path):  # noqa: F811
    server.create('org/limited', weights)
    server.faults.append(Fault('/storage/', 429, headers={'Retry-After': '7'}, method='GET'))
    logits, pauses = client(fetched, 'hf-hub:org/limited', tmp_path)
    server.faults.clear()
    assert len(logits[0]) == 3 and pauses in ([8], [1])  # the client adds one; before 1.0 it does not read the header


@pytest.mark.parametrize('name', ['hf-hub:../../evil', 'hf-hub:org/..', 'hf-hub:org/a/../../b', 'hf-hub:org/a@../../b'])
def test_load_stays_in_the_cache_for_any_name(client, tmp_path, name):  # noqa: F811
    (tmp_path / 'in' / 'cache').mkdir(parents=True)
    message, _ = client(fetched, name, tmp_path / 'in' / 'cache')
    assert message.startswith(f'{name}: cannot be loaded') and len(message.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == []


def lie(patch, header, value, name=None, status=None):
    """Replaces a header of the Hub's responses about files; N becomes a number for each."""
    resolve = HubServer.resolve

    def resolved(self, request, *arguments, **named):
        response = resolve(self, request, *arguments, **named)
        if header in response.headers and status in (None, response.status_code) and request.path.endswith(name or ''):
            response.headers[header] = value.replace('N', str(len(request.path)))
        return response

    patch.setattr(HubServer, 'resolve', resolved)


OUTSIDE = [
    '../evil',
    '../../../../evil',
    '..',
    '/TMP/evil',
    'x/../../../../../evil',
    '..\\evil',
    'C:evil',
    'a\x7fb',
    'x' * 300,
]


@pytest.mark.parametrize('header', ['ETag', 'X-Linked-Etag', 'X-Repo-Commit'])
@pytest.mark.parametrize('value', OUTSIDE)
def test_fetch_stays_in_the_cache_for_any_header(client, server, weights, tmp_path, monkeypatch, header, value):  # noqa: F811
    server.create('org/liar', weights)
    cache = tmp_path / 'a' / 'b' / 'c' / 'd' / 'cache'
    cache.mkdir(parents=True)
    value = value.replace('TMP', str(tmp_path).lstrip('/'))
    lie(monkeypatch, header, value if header == 'X-Repo-Commit' else f'"{value}"')
    for name in ('hf-hub:org/liar', *(['tag:org/liar'] if header != 'ETag' else [])):  # the ETag of small files only
        message, _ = client(fetched, name, cache)
        assert 'states an invalid ' in message and len(message.splitlines()) == 1
    monkeypatch.undo()
    assert not list(tmp_path.rglob('*evil*'))
    assert not [path for path in tmp_path.rglob('*') if cache not in path.parents and cache != path and path.is_file()]


@pytest.mark.parametrize('second', ['config.json', 'model.safetensors'])
def test_fetch_checks_the_headers_of_each_request(
    client,  # noqa: F811
    server,  # noqa: F811
    weights,  # noqa: F811
    tmp_path,
    monkeypatch,
    second,
):
    server.create('org/turncoat', weights)
    (tmp_path / 'cache').mkdir()
    resolve, seen = HubServer.resolve, []

    def resolved(self, request, *arguments, **named):
        response = resolve(self, request, *arguments, **named)
        if request.path.endswith(second):
            seen.append(request.method)
            if len(seen) > 1:
                response.headers['ETag'] = response.headers['X-Linked-Etag'] = '"../../../evil"'
        return response

    monkeypatch.setattr(HubServer, 'resolve', resolved)
    for _ in range(3):
        client(fetched, 'hf-hub:org/turncoat', tmp_path / 'cache')
    assert not (tmp_path / 'evil').exists() and not list(tmp_path.rglob('evil*'))


def test_fetch_checks_the_commit_of_a_missing_file(client, server, weights, tmp_path, monkeypatch):  # noqa: F811
    server.create('org/missing', {'README.md': b'x'})
    lie(monkeypatch, 'X-Repo-Commit', '../../../../../evil', status=404)
    message, _ = client(fetched, 'hf-hub:org/missing', tmp_path / 'a' / 'b' / 'cache')
    assert 'states an invalid ' in message and not [p for p in tmp_path.rglob('*') if 'evil' in str(p)]


@pytest.mark.parametrize(
    'tag', ['"d41d8cd98f00b204e9800998ecf84N"', 'W/"4f-18c2aN"', '"5e-N-gzip"', '"v1.N+a=~@%"', '"sha256%3AN"']
)
def test_fetch_warns_of_a_mirror_without_digests(
    client,  # noqa: F811
    server,  # noqa: F811
    weights,  # noqa: F811
    tmp_path,
    monkeypatch,
    tag,
):
    server.create('org/mirror', weights)
    sound, _, nothing = client(noted, 'hf-hub:org/mirror', tmp_path / 'sound')
    lie(monkeypatch, 'X-Linked-Etag', tag)
    lie(monkeypatch, 'ETag', tag)
    logits, _, lines = client(noted, 'hf-hub:org/mirror', tmp_path / 'cache')
    assert logits == sound and nothing == []
    (line,) = lines
    assert line == (
        f'org/mirror: {server.url} states no digest for config.json and model.safetensors, so the content is unchecked.'
    )
    _, _, lines = client(noted, 'tag:org/mirror', tmp_path / 'tag')
    assert len(lines) == 1 and 'states no digest for config.json and model.safetensors' in lines[0]
    # Truncated weights are noticed anyway.
    server.create('org/mirror', weights | {'model.safetensors': weights['model.safetensors'][:-8]})
    message, _, _ = client(noted, 'hf-hub:org/mirror', tmp_path / 'cut')
    assert message.startswith('hf-hub:org/mirror: cannot be loaded') and len(message.splitlines()) == 1


def test_fetch_requires_digests_from_huggingface(client, server, weights, tmp_path, monkeypatch):  # noqa: F811
    server.create('org/untold', weights)
    lie(monkeypatch, 'X-Linked-Etag', '"no-digest"')
    message, _ = client(fetched_from_huggingface, 'hf-hub:org/untold', tmp_path)
    assert (
        "model.safetensors: the Hub states 'no-digest', which is no digest" in message
        and len(message.splitlines()) == 1
    )


def fetched_from_huggingface(name, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('msff_timm.hub.fetch.urlsplit', lambda address: SimpleNamespace(hostname='huggingface.co'))
        return fetched(name, cache)


@pytest.mark.parametrize('digest', [hashlib.sha1, hashlib.sha256])
def test_fetch_checks_plain_digests_of_proxies(
    client,  # noqa: F811
    server,  # noqa: F811
    weights,  # noqa: F811
    tmp_path,
    monkeypatch,
    digest,
):
    server.create('org/proxy', weights)
    lie(monkeypatch, 'X-Linked-Etag', f'"{digest(weights["model.safetensors"]).hexdigest().upper()}"')
    logits, _, lines = client(noted, 'hf-hub:org/proxy', tmp_path / 'a')
    assert len(logits[0]) == 3 and lines == []
    lie(monkeypatch, 'X-Linked-Etag', f'"{digest(b"other").hexdigest()}"')
    server.create('org/proxy', weights | {'README.md': b'another commit'})
    assert 'is damaged' in client(noted, 'hf-hub:org/proxy', tmp_path / 'b')[0]


@pytest.mark.parametrize(
    ('fault', 'part'),
    [
        (Fault('/org/told/', 403, message='private'), 'no access to'),
        (Fault('/org/told/', 401), 'or it needs a valid token'),
        (Fault('/org/told/', 429, headers={'Retry-After': '77'}), 'too many requests'),
        (Fault('/org/told/', 429, headers={'Retry-After': '77'}), 'again in 77 seconds'),
        (Fault('/org/told/', 429), 'too many requests'),
        (Fault('/org/told/', 500), 'the Hub fails with status 500'),
        (Fault('/org/told/', 502), 'the Hub fails with status 502'),
        (Fault('/org/told/', 503), 'the Hub fails with status 503'),
        (Fault('/org/told/', 504), 'the Hub fails with status 504'),
        (Fault('/org/told/', 'close'), 'the Hub cannot be reached'),
        (Fault('/storage/', 503, method='GET'), 'the Hub fails with status 503'),
        (Fault('/storage/', 403, method='GET'), 'no access to'),
    ],
)
def test_load_explains_the_response_of_the_hub(client, server, weights, tmp_path, fault, part):  # noqa: F811
    server.create('org/told', weights)
    fault.times = 10**6
    server.faults.append(fault)
    for name in ('hf-hub:org/told', 'tag:org/told'):
        message, _ = client(fetched, name, tmp_path)
        assert len(message.splitlines()) == 1 and server.url in message
        is_network = fault.how == 'close'
        cut_off = ('Server disconnected', 'Connection aborted', 'Connection reset')
        assert part in message or is_network and any(words in message for words in cut_off), message
        assert is_network or 'connection' not in message and 'holds no copy' not in message, message
    server.faults.clear()
