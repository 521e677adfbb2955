import dataclasses
import hashlib
import json
import logging
import pickle
import resource
import shutil
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from hub_server import Fault, HubServer
from PIL import Image
from test_push import client, environment, pulled_logits, server, weights  # noqa: F401  fixtures
from timm.models import _registry

from msff_timm import hub
from msff_timm.data.transforms import Normalize, eval_transform
from msff_timm.errors import InputError

ARGUMENTS = {'num_classes': 3, 'ffn_dim': 64, 'encoder_depth': 1, 'decoder_depth': 1}


@pytest.fixture
def folder(weights, tmp_path):  # noqa: F811
    (tmp_path / 'saved').mkdir()
    for name, content in weights.items():
        (tmp_path / 'saved' / name).write_bytes(content)
    return tmp_path / 'saved'


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def changed(config, path, value):
    """Sets one entry of nested dictionaries."""
    *parents, last = path.split('.')
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value


def refused(folder, part=''):
    """Checks that a folder is refused in one line, at once and without memory for what it asks for."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError) as caught:
        hub.load(f'local-dir:{folder}')
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(folder) in message and part in message, message
    assert len(message) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
    assert time.monotonic() - start < 20


def test_what_is_sound_is_loaded(folder):
    assert hub.load(f'local-dir:{folder}').num_classes == 3


@pytest.mark.parametrize(
    ('path', 'value', 'part'),
    [
        ('architecture', None, 'Unknown model'),
        ('architecture', 12, 'Unknown model'),
        ('architecture', ['msff_test_resnet'], 'Unknown model'),
        ('architecture', '../../../etc/passwd', 'Unknown model'),
        ('architecture', 'hf-hub:org/evil', 'Unknown model'),
        ('architecture', 'x' * 100_000, 'Unknown model'),
        ('model_args', [3], 'cannot be loaded'),
        ('model_args.num_classes', 10**9, 'nothing in model.safetensors is as large'),
        ('model_args.num_classes', 10**300, 'nothing in model.safetensors is as large'),
        ('model_args.num_classes', float('nan'), 'nothing in model.safetensors is as large'),
        ('model_args.num_classes', 'three', 'num_classes is no whole number'),
        ('model_args.num_classes', True, 'num_classes is no whole number'),
        ('model_args.num_classes', -3, 'cannot be loaded'),
        ('model_args.ffn_dim', 16_000_000, 'nothing in model.safetensors is as large'),
        ('model_args.ffn_dim', 16_000, 'parameters, model.safetensors holds'),
        ('model_args.ffn_dim', '64', 'cannot be loaded'),
        ('model_args.decoder_depth', 10**6, 'nothing in model.safetensors is as large'),
        ('model_args.decoder_depth', 16_000, 'nothing in model.safetensors is as large'),
        ('model_args.backbone', 'hf-hub:org/evil', 'is no timm model'),
        ('model_args.backbone', 'local-dir:/etc', 'is no timm model'),
        ('model_args.backbone', '../../evil', 'is no timm model'),
        ('model_args.backbone_pretrained', True, 'asks for weights from elsewhere'),
        ('model_args.backbone_args', {'checkpoint_path': '/tmp/evil.pth'}, 'asks for weights from elsewhere'),
        ('model_args.backbone_args', {'pretrained': True}, 'asks for weights from elsewhere'),
        ('model_args.backbone_args', {'pretrained_cfg': {'url': 'http://evil'}}, 'asks for weights from elsewhere'),
        ('model_args.cache_dir', '/tmp/evil', 'asks for weights from elsewhere'),
        ('model_args.nothing', 1, 'cannot be loaded'),
        ('num_classes', 7, '3 label names for'),
        ('num_classes', 10**9, '3 label names for'),
        ('label_names', 'cat', 'label_names is no list of text'),
        ('label_names', [1, 2, 3], 'label_names is no list of text'),
        ('label_names', ['cat'] * 10**5, 'label names for 3 logits'),
        ('pretrained_cfg', 'text', 'cannot be loaded'),
        ('pretrained_cfg.input_size', [3, 10**9, 10**9], 'input_size is not channels, height and width'),
        ('pretrained_cfg.input_size', [3, 96], 'input_size is not channels, height and width'),
        ('pretrained_cfg.test_input_size', [3, 0, 96], 'test_input_size is not channels, height and width'),
        ('pretrained_cfg.mean', ['0.5', '0.5', '0.5'], 'mean is not a number for each channel'),
        ('pretrained_cfg.std', [0.5] * 10**5, 'std is not a number for each channel'),
        ('pretrained_cfg.input_size', 96, 'config.json is not what timm writes'),
        ('pretrained_cfg.input_size', [3, 2, 96], 'input_size is 2 x 96 pixels: 32 x 32 is the least'),
        ('pretrained_cfg.input_size', [3, 96, 31], 'input_size is 96 x 31 pixels: 32 x 32 is the least'),
        ('pretrained_cfg.mean', 0.5, 'mean is not a number for each channel: give a list of 3'),
        ('pretrained_cfg.std', 0.5, 'std is not a number for each channel: give a list of 3'),
        ('pretrained_cfg.std', '0.5', 'std is not a number for each channel: give a list of 3'),
        ('pretrained_cfg.std', [0.5, 0.5], 'std is not a number for each channel: give a list of 3'),
        ('pretrained_cfg.std', {'0': 0.5}, 'std is not a number for each channel: give a list of 3'),
        ('pretrained_cfg.std', [0.5, 0, 0.5], 'std holds a number that is not above 0'),
        ('pretrained_cfg.interpolation', 'x', "interpolation is 'x': must be one of nearest, bilinear, bicubic, "),
        ('pretrained_cfg.interpolation', 'random', "interpolation is 'random': must be one of"),
        ('pretrained_cfg.interpolation', 2, 'interpolation is 2: must be one of'),
        ('pretrained_cfg.interpolation', ['bilinear'], "interpolation is ['bilinear']: must be one of"),
        ('pretrained_cfg.crop_mode', 'squish', "crop_mode is 'squish': must be one of center, squash, border"),
        ('pretrained_cfg.crop_pct', 1e-9, 'crop_pct is not a share'),
        ('pretrained_cfg.nothing', 1, 'cannot be loaded'),
        ('thresholds', 'text', 'cannot be loaded'),
        ('thresholds', {'per_class': [0.5, 0.5, 1e300]}, 'thresholds'),
    ],
)
def test_a_hostile_configuration(folder, path, value, part):
    config = json.loads((folder / 'config.json').read_text())
    changed(config, path, value)
    (folder / 'config.json').write_text(json.dumps(config))
    refused(folder, part)


@pytest.mark.parametrize('max_queries', [20_000, 10**9])
@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'mldecoder_test_resnet'])
def test_a_bound_of_queries_may_be_larger_than_anything_in_the_weights(architecture, max_queries, tmp_path):
    model = timm.create_model(architecture, num_classes=3, max_queries=max_queries)
    hub.save(model, tmp_path, ['a', 'b', 'c'], timm.data.resolve_model_data_config(model))
    assert hub.load(f'local-dir:{tmp_path}').max_queries == max_queries


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'])
@pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
def test_what_passes_the_checks_makes_a_transform(folder, interpolation, crop_mode):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg'].update(interpolation=interpolation, crop_mode=crop_mode, std=[0.5], input_size=[3, 32, 40])
    (folder / 'config.json').write_text(json.dumps(config))
    data_config = timm.data.resolve_input_data_config(hub.load(f'local-dir:{folder}'))
    image = Image.new('RGB', (70, 50), 'teal')
    assert eval_transform(data_config)(image).shape == (3, 32, 40)
    assert Normalize(data_config)(torch.zeros(1, 3, 32, 40, dtype=torch.uint8)).shape == (1, 3, 32, 40)


@pytest.mark.parametrize(
    'content',
    [b'', b'null', b'[]', b'"text"', b'{}', b'\xff\xfe', b'[' * 10**6, b'{"num_classes": ' + b'9' * 10**5 + b'}'],
    ids=['empty', 'null', 'list', 'text', 'nothing', 'not UTF-8', 'deep', 'a number'],
)
def test_a_configuration_that_is_none(folder, content):
    (folder / 'config.json').write_bytes(content)
    refused(folder)


def test_a_configuration_that_is_too_long(folder):
    with (folder / 'config.json').open('r+b') as file:
        file.truncate(10**10)  # sparse: takes no place
    refused(folder, 'config.json has more than')


def header(content, data=b'\0' * 64):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack('<Q', len(content)) + content + data


def tensor(shape, start, end, dtype='F32'):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\0' * 7,
        struct.pack('<Q', 2**63) + b'{}',
        struct.pack('<Q', 10**8 + 1) + b'{}',
        struct.pack('<Q', 1000) + b'{}',
        header(b'{'),
        header([]),
        header({'a': 1}),
        header({'a': tensor([16], 0, 64)} | {'__metadata__': {'format': 3}}),
        header({'a': tensor([16], 0, 10**12)}),
        header({'a': tensor([16], 64, 0)}),
        header({'a': tensor([-16], 0, 64)}),
        header({'a': tensor([2**62, 2**62], 0, 64)}),
        header({'a': tensor([17], 0, 64)}),
        header({'a': tensor([16], 0, 64), 'b': tensor([16], 0, 64)}),
        header({'a': tensor([8], 32, 64)}),
        header({'a': tensor([16], 0, 64, 'F33')}),
        header({'../../evil': tensor([16], 0, 64)}),
        header(b'[' * 10**6),
        pickle.dumps({'a': 1}),
    ],
)
def test_a_hostile_header_of_weights(folder, content):
    (folder / 'model.safetensors').write_bytes(content)
    refused(folder)


def test_more_tensors_than_any_model_has(folder):
    many = {f'{number}': tensor([0], 0, 0) for number in range(20_000)}
    (folder / 'model.safetensors').write_bytes(header(many, b''))
    refused(folder, 'holds 20,000 tensors')


def test_weights_of_another_model_and_half_of_them(folder):
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole[: len(whole) // 2])
    refused(folder)
    other = timm.create_model('msff_test_resnet', **(ARGUMENTS | {'ffn_dim': 32}))
    data_config = timm.data.resolve_model_data_config(other)
    hub.save(other, folder.parent / 'other', ['a', 'b', 'c'], data_config)
    shutil.copy(folder.parent / 'other' / 'model.safetensors', folder)
    refused(folder, 'size mismatch')


def test_no_pickle_of_a_folder_is_loaded(folder, tmp_path):
    torch.save(Planted(tmp_path / 'ran'), folder / 'pytorch_model.bin')
    hub.load(f'local-dir:{folder}')
    (folder / 'model.safetensors').rename(folder / 'weights.bin')
    refused(folder, 'holds no model.safetensors')
    shutil.copy(folder / 'pytorch_model.bin', folder / 'model.safetensors')
    refused(folder)
    assert not (tmp_path / 'ran').exists()
    pickle.loads(pickle.dumps(Planted(tmp_path / 'ran')))
    assert (tmp_path / 'ran').exists()  # it would have


TAG = 'msff_test_resnet.scenes'


def fetched(name, cache=None):
    """Loads a model in the client's process; returns its logits of zeros, or the error's line, and the pauses."""
    pauses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('time.sleep', pauses.append)
        if name.startswith('tag:'):  # as if the package did not bring the weights, and they lay in that repository
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
    """As `fetched`, and returns the lines that were logged, too."""
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


def test_only_safetensors_are_asked_for_and_no_planted_pickle_is_loaded(server, client, weights, tmp_path):  # noqa: F811
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
    # One of timm's own, which knows nothing of what this package asks for
    model = timm.create_model('test_resnet', num_classes=3)
    hub.save(model, tmp_path / 'plain', ['a', 'b', 'c'], timm.data.resolve_model_data_config(model))
    plain = json.loads((tmp_path / 'plain' / 'config.json').read_text())
    plain['pretrained_cfg'] |= {'hf_hub_filename': 'evil.pth'}  # of which timm knows no safe alternative
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


def test_content_of_another_digest_is_not_used_and_not_kept(server, client, weights, tmp_path):  # noqa: F811
    server.create('org/digest', weights)
    for path in ('/org/digest/resolve/.*/config.json', '/storage/'):
        server.faults.append(Fault(path, 'corrupt', method='GET'))
        message, _ = client(fetched, 'hf-hub:org/digest', tmp_path)
        assert 'is damaged: its digest is' in message and 'Try again' in message and len(message.splitlines()) == 1
        assert server.faults.pop().times == 0
    logits, _ = client(fetched, 'hf-hub:org/digest', tmp_path)
    assert len(logits[0]) == 3
    # As good as any other damage of a cache: what lies in it is looked at before each use.
    blob = next((tmp_path / 'models--org--digest' / 'snapshots').rglob('model.safetensors')).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert 'is damaged' in client(fetched, 'hf-hub:org/digest', tmp_path)[0]
    assert client(fetched, 'hf-hub:org/digest', tmp_path)[0] == logits


def test_what_is_cut_off_is_completed_or_refused(server, client, weights, tmp_path):  # noqa: F811
    server.create('org/cut', weights)
    fault = Fault('/storage/', 'truncate', method='GET')
    server.faults.append(fault)
    # Before 1.0, huggingface_hub does not try again by itself.
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
def test_a_hub_that_does_not_give_it(server, client, weights, tmp_path, revision, fault):  # noqa: F811
    server.create('org/faulty', weights)
    if fault:
        fault.times = 10**6
        server.faults.append(fault)
    message, _ = client(fetched, f'hf-hub:org/faulty{revision}', tmp_path)
    server.faults.clear()
    assert message.startswith(f'hf-hub:org/faulty{revision}: cannot be loaded from {server.url} (')
    assert len(message.splitlines()) == 1


def test_limits_are_waited_for(server, client, weights, tmp_path):  # noqa: F811
    server.create('org/limited', weights)
    server.faults.append(Fault('/storage/', 429, headers={'Retry-After': '7'}, method='GET'))
    logits, pauses = client(fetched, 'hf-hub:org/limited', tmp_path)
    server.faults.clear()
    assert len(logits[0]) == 3 and pauses in ([8], [1])  # the client adds one; before 1.0 it does not read the header


@pytest.mark.parametrize('name', ['hf-hub:../../evil', 'hf-hub:org/..', 'hf-hub:org/a/../../b', 'hf-hub:org/a@../../b'])
def test_no_name_leads_out_of_the_cache(client, tmp_path, name):  # noqa: F811
    (tmp_path / 'in' / 'cache').mkdir(parents=True)
    message, _ = client(fetched, name, tmp_path / 'in' / 'cache')
    assert message.startswith(f'{name}: cannot be loaded') and len(message.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == []


def lie(patch, header, value, name=None, status=None):
    """Lets the Hub state something else in a header of its answers about files; N stands for a number of each."""
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
def test_what_the_hub_states_leads_nowhere(client, server, weights, tmp_path, monkeypatch, header, value):  # noqa: F811
    server.create('org/liar', weights)
    cache = tmp_path / 'a' / 'b' / 'c' / 'd' / 'cache'
    cache.mkdir(parents=True)
    value = value.replace('TMP', str(tmp_path).lstrip('/'))
    lie(monkeypatch, header, value if header == 'X-Repo-Commit' else f'"{value}"')
    for name in ('hf-hub:org/liar', *(['tag:org/liar'] if header != 'ETag' else [])):  # of a small file only
        message, _ = client(fetched, name, cache)
        assert 'cannot be the name of a file' in message and len(message.splitlines()) == 1
    monkeypatch.undo()
    assert not list(tmp_path.rglob('*evil*'))
    assert not [path for path in tmp_path.rglob('*') if cache not in path.parents and cache != path and path.is_file()]


@pytest.mark.parametrize('second', ['config.json', 'model.safetensors'])
def test_a_tag_that_changes_between_requests_is_looked_at_each_time(
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


def test_the_commit_of_a_file_that_is_not_there_leads_nowhere(client, server, weights, tmp_path, monkeypatch):  # noqa: F811
    server.create('org/missing', {'README.md': b'x'})
    lie(monkeypatch, 'X-Repo-Commit', '../../../../../evil', status=404)
    message, _ = client(fetched, 'hf-hub:org/missing', tmp_path / 'a' / 'b' / 'cache')
    assert 'cannot be the name of a file' in message and not [p for p in tmp_path.rglob('*') if 'evil' in str(p)]


@pytest.mark.parametrize(
    'tag', ['"d41d8cd98f00b204e9800998ecf84N"', 'W/"4f-18c2aN"', '"5e-N-gzip"', '"v1.N+a=~@%"', '"sha256%3AN"']
)
def test_a_mirror_with_tags_of_its_own_is_loaded_from_and_said_to_be_unchecked(
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
        f'org/mirror: {server.url} states no digest of config.json and model.safetensors: the content was compared with'
        ' none.'
    )
    _, _, lines = client(noted, 'tag:org/mirror', tmp_path / 'tag')
    assert len(lines) == 1 and 'states no digest of model.safetensors' in lines[0]
    # What a digest would show is still seen.
    server.create('org/mirror', weights | {'model.safetensors': weights['model.safetensors'][:-8]})
    message, _, _ = client(noted, 'hf-hub:org/mirror', tmp_path / 'cut')
    assert message.startswith('hf-hub:org/mirror: cannot be loaded') and len(message.splitlines()) == 1


def test_huggingface_itself_states_digests(client, server, weights, tmp_path, monkeypatch):  # noqa: F811
    server.create('org/untold', weights)
    lie(monkeypatch, 'X-Linked-Etag', '"no-digest"')
    message, _ = client(fetched_from_huggingface, 'hf-hub:org/untold', tmp_path)
    assert 'model.safetensors: the Hub states no digest' in message and len(message.splitlines()) == 1


def fetched_from_huggingface(name, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('msff_timm.hub.verify.urlsplit', lambda address: SimpleNamespace(hostname='huggingface.co'))
        return fetched(name, cache)


@pytest.mark.parametrize('digest', [hashlib.sha1, hashlib.sha256])
def test_a_proxy_that_states_a_plain_digest_is_checked_with_it(
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
        (Fault('/org/told/', 401), 'no valid token that opens it'),
        (Fault('/org/told/', 429, headers={'Retry-After': '77'}), 'too many requests'),
        (Fault('/org/told/', 429, headers={'Retry-After': '77'}), 'again in 77 seconds'),
        (Fault('/org/told/', 429), 'too many requests'),
        (Fault('/org/told/', 500), 'the Hub fails with status 500'),
        (Fault('/org/told/', 502), 'the Hub fails with status 502'),
        (Fault('/org/told/', 503), 'the Hub fails with status 503'),
        (Fault('/org/told/', 504), 'the Hub fails with status 504'),
        (Fault('/org/told/', 'close'), 'the network fails'),
        (Fault('/storage/', 503, method='GET'), 'the Hub fails with status 503'),
        (Fault('/storage/', 403, method='GET'), 'no access to'),
    ],
)
def test_what_the_hub_answers_is_told_as_what_it_is(client, server, weights, tmp_path, fault, part):  # noqa: F811
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
