import contextlib
import html
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from hub_server import Fault, HubServer, User

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.hub.card import escape
from msff_timm.hub.push import gather
from msff_timm_cli.commands import main

ROOT = Path(__file__).parents[2]
LABELS = ['cat', '/m/01g317', 'chair']
OWNER, STRANGER, READER = (f'hf_{name}{"x" * 30}' for name in ('owner', 'stranger', 'reader'))
SENT = {'model.safetensors', 'config.json', 'results.json', 'README.md', 'ap.png', 'curves.png'}
FOREVER = 10**6
NUMBERS = itertools.count()


def command(*arguments, token=OWNER, **environment):
    """Runs `msff-timm` with a token, without pauses; returns the exit code, both outputs and the pauses."""
    out, err, pauses = io.StringIO(), io.StringIO(), []
    environment |= {'HF_TOKEN': token} if token else {}
    with (
        patch.dict(os.environ, environment),
        patch('time.sleep', pauses.append),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(list(map(str, arguments)))
    return code, out.getvalue(), err.getvalue(), pauses


def pulled_logits(name, cache):
    """Loads a model with timm alone; returns its label names and its logits as bytes."""
    with patch.dict(os.environ, {'HF_TOKEN': OWNER}):
        model = timm.create_model(name, pretrained=True, cache_dir=cache).eval()
    return model.pretrained_cfg['label_names'], logits(model)


def logits(model):
    torch.manual_seed(3)
    with torch.inference_mode():
        return model(torch.randn(2, 3, 64, 64)).numpy().tobytes()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp('hub')) as server:
        server.users |= {OWNER: User('ann', ('org',)), STRANGER: User('eve'), READER: User('ann', ('org',), 'read')}
        yield server
        assert not [path for path, token, _ in server.received if path.startswith('/storage') and token]


@pytest.fixture(scope='module')
def environment(server, tmp_path_factory):
    clean = {name: value for name, value in os.environ.items() if not name.startswith('HF_')}
    return clean | server.environment(tmp_path_factory.mktemp('home')) | {'HF_HUB_DOWNLOAD_TIMEOUT': '2'}


@pytest.fixture(scope='module')
def client(environment):
    """Runs functions in another process, since huggingface_hub reads the Hub's address when it is imported."""
    with patch.dict(os.environ, environment, clear=True):
        # One thread: several processes with two each would mostly wait for each other.
        context = multiprocessing.get_context('spawn')
        pool = ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,))
        pool.submit(os.getpid).result()
    with pool:
        yield lambda function, *arguments, **named: pool.submit(function, *arguments, **named).result(120)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=3, ffn_dim=64, encoder_depth=1, decoder_depth=1).eval()
    folder = tmp_path_factory.mktemp('weights')
    hub.save(model, folder, LABELS, timm.data.resolve_model_data_config(model) | {'input_size': (3, 64, 64)})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(weights, tmp_path):
    """A run folder, with some files that others might add."""
    folder = tmp_path / 'my runs' / 'photos'
    folder.mkdir(parents=True)
    for name, content in weights.items():
        (folder / name).write_bytes(content)
    results = json.loads((ROOT / 'hub_cards/results/msff_test_resnet.scenes.json').read_text())
    results['config'] |= {'output': str(folder)}
    results['config']['data'] |= {'root': f'{tmp_path}/all photos', 'label_columns': ['/m/01g317']}
    results |= {'init_from': {'model': f'local-dir:{tmp_path}/older', 'kept_labels': {'/m/01g317': '/m/01g317'}}}
    results['labels'] = {name: {'AP': 50.0, 'num_positives': 7} for name in LABELS}
    results['command'] = f"{sys.executable} {tmp_path}/train.py '--data.root={tmp_path}/all photos' --key {OWNER}"
    results['mistakes'] = {'misses': [{'image_id': f'{tmp_path}/1.jpg', 'label': '/m/01g317', 'row': 0}]}
    (folder / 'results.json').write_text(json.dumps(results, indent=2))
    (folder / 'README.md').write_text(
        '---\nlicense: apache-2.0\n---\n`train.py --data.root=/data/x`\n/m/01g317 https://a.b/c {"seconds": 4096}\n'
    )
    for name in ('curves.png', 'ap.png'):
        (folder / name).write_bytes(b'\x89PNG\0' + name.encode() * 50)
    (folder / '.ap.png.saving.png').write_bytes(b'half')
    (folder / 'link.png').symlink_to('/etc/hostname')
    for name in (
        'mistakes.png',
        'checkpoints/step/model.bin',
        'tensorboard/events',
        'pytorch_model.bin',
        'report.md',
        'images/a.png',
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'private')
    return folder


@pytest.fixture
def repo_id(server):
    """Returns an unused name."""
    server.faults.clear()
    server.quota = None
    yield f'org/run-{next(NUMBERS)}'
    server.faults.clear()
    server.quota = None


def gathered(run):
    """Returns the content of each file that a push would publish."""
    with tempfile.TemporaryDirectory() as outbox:
        return {path.name: path.read_bytes() for path in gather(run, Path(outbox), 'org/x')}


def error_of(result):
    """Checks that a command ended with one error line; returns it."""
    code, _, err, _ = result
    lines = [line for line in err.splitlines() if line.startswith('msff-timm: error: ')]
    assert code == 2 and len(lines) == 1 and err.endswith(f'{lines[0]}\n'), err
    assert not any(token in err for token in (OWNER, STRANGER, READER)) and 'Traceback' not in err
    return lines[0].removeprefix('msff-timm: error: ')


def puts(server):
    return sum(count for (method, _), count in server.requests.items() if method == 'PUT')


def test_push_publishes_a_run_in_one_commit(server, client, run, repo_id, tmp_path):
    before = len(server.received)
    code, out, err, pauses = client(command, 'push', run, repo_id, WANDB_API_KEY='wandb-key-1234')
    assert (code, err, pauses) == (0, '', [])
    repository = server.repository(repo_id)
    commit = repository.refs['main']
    assert f'hf-hub:{repo_id}@{commit}' in out and f'{server.url}/{repo_id}/commit/{commit}' in out
    assert len(repository.commits) == 2 and not repository.private  # the initial one and ours
    files = repository.files()
    assert set(files) == SENT | {'.gitattributes'}
    for name in SENT - {'results.json', 'README.md'}:
        assert files[name] == (run / name).read_bytes(), name

    # timm alone loads the same from an empty cache as from the folder.
    local = client(pulled_logits, f'local-dir:{run}', None)
    assert client(pulled_logits, f'hf-hub:{repo_id}', tmp_path / 'cache') == local and local[0] == LABELS

    # No path of this machine is sent, and the token goes to the Hub alone.
    for path, _, content in server.received[before:]:
        for secret in (str(tmp_path), str(Path.home()), sys.prefix, OWNER, 'wandb-key-1234'):
            assert secret.encode() not in content, (path, secret)
    for content in files.values():
        assert not any(secret.encode() in content for secret in (str(tmp_path), OWNER, 'wandb-key-1234'))
    assert files['README.md'] == (run / 'README.md').read_bytes()
    results, original = (json.loads(text) for text in (files['results.json'], (run / 'results.json').read_text()))
    assert results['config']['data']['root'] == 'all photos' and results['config']['output'] == 'photos'
    assert results['config']['data']['label_columns'] == ['/m/01g317']
    assert results['init_from'] == {'model': 'local-dir:older', 'kept_labels': {'/m/01g317': '/m/01g317'}}
    left_out = {'command', 'mistakes', 'unreadable'}
    assert original.keys() - results.keys() <= left_out and 'mistakes' not in results
    changed = {'config', 'init_from'}
    assert {key for key in original if original[key] != results.get(key)} == changed | left_out
    assert results['config']['optim'] == original['config']['optim']


HOSTILE = 'a"b\\c/d e<f>&%_*'  # written differently in JSON, Markdown, HTML and addresses


@pytest.mark.parametrize('name', ['config.json', 'results.json'])
@pytest.mark.parametrize(
    'path',
    ['/home/ann-e/photos', '//home/ann-e/photos', 'C:\\ann-e\\photos', '~ann-e/photos', 'local-dir:/ann-e/photos'],
)
def test_gather_removes_paths_from_unknown_fields(run, name, path):
    value, before = json.loads((run / name).read_text()), json.loads(gathered(run)[name])
    text = f'python {path} --data.root={path} ({path}) "{path}"'
    foreign = {path: 1, 'path': path, 'notes': [text, {path: {'deep': text}}], 'file': path, 'url': path}
    value |= {'command': text, 'mistakes': [{'image_id': path}], 'unreadable': [f'{path}: broken']}
    value |= {'metrics': {**value.get('metrics', {}), **foreign}, 'pretrained_cfg': foreign}
    (run / name).write_text(json.dumps(value))
    sent = gathered(run)[name]
    assert b'ann-e' not in sent
    sent, keys = json.loads(sent), {'metrics', 'pretrained_cfg', 'unreadable', 'mistakes'}
    short = path.partition(':')[0] + ':photos' if path.startswith('local') else 'photos'
    text = f'python {short} --data.root={short} ({short}) "{short}"'
    assert sent['metrics']['notes'] == [text, {short: {'deep': text}}] and 'url' not in sent['metrics']
    same = {key: value for key, value in sent.items() if key not in keys}
    assert same == {key: value for key, value in before.items() if key not in keys}


@pytest.mark.parametrize('name', ['config.json', 'results.json'])
@pytest.mark.parametrize('secret', [f'key {HOSTILE}', 'hf_' + 'a' * 30, 'https://me:secret@x.y/z'])
def test_gather_refuses_secrets_in_any_field(run, monkeypatch, name, secret):
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', f'key {HOSTILE}')
    value = json.loads((run / name).read_text())
    field = 'data' if name == 'results.json' else 'pretrained_cfg'
    for foreign in ({'notes': [f'x {secret}']}, {secret: 1}):
        (run / name).write_text(json.dumps({**value, field: {**value[field], **foreign}}))
        with pytest.raises(InputError, match=f'{name}: holds .*, which must not be published') as caught:
            gathered(run)
        assert secret not in str(caught.value)
    (run / name).write_text(json.dumps({**value, 'command': secret}))
    assert secret not in gathered(run)[name].decode()


@pytest.mark.parametrize('text', ['a/b', '1 / 2', 'https://a.b/c', 'hf-hub:org/name@v1', '24/7', 'R/CNN', 'm/s², 3/4'])
def test_gather_keeps_texts_that_are_no_paths(run, text):
    value = json.loads((run / 'results.json').read_text())
    (run / 'results.json').write_text(json.dumps({**value, 'devices': [text]}))
    assert json.loads(gathered(run)['results.json'])['devices'] == [text]


@pytest.mark.parametrize(
    'folder',
    [
        '/home/ann-e/my photos',
        '//home/ann-e/my photos',
        '///home/ann-e/my photos',
        '~/my photos',
        '../../ann-e/my photos',
        'C:\\ann-e\\my photos',
        '\\\\server\\ann-e\\my photos',
        'file:///ann-e/my photos',
        'runs/ann-e/my photos/',
    ],
)
@pytest.mark.parametrize('key', ['output', 'root', 'image_root', 'init_from'])
def test_gather_reduces_folders_to_their_last_part(run, key, folder):
    value = json.loads((run / 'results.json').read_text())
    prefix = 'local-dir:' if key == 'init_from' else ''
    value['config'][key] = prefix + folder
    (run / 'results.json').write_text(json.dumps(value))
    sent = gathered(run)['results.json']
    assert (
        json.loads(sent)['config'][key].removeprefix(prefix).removeprefix('file:') == 'my photos'
        and b'ann-e' not in sent
    )


def test_gather_keeps_ids_labels_and_numbers(run):
    value = json.loads((run / 'results.json').read_text())
    value['config']['data'] |= {'root': 'org/shop@v1', 'label_names': ['/m/01g317', 'a/b', '~'], 'label_delimiter': ';'}
    value |= {'devices': ['1 / 2', 'a/b'], 'model': 'hf-hub:org/name@v1', 'seconds': 1e-7, 'peak_bytes': 10**30}
    (run / 'results.json').write_text(json.dumps(value))
    sent = json.loads(gathered(run)['results.json'])
    assert sent['config']['data'] == {**value['config']['data']}
    assert all(sent[key] == value[key] for key in ('devices', 'model', 'seconds', 'peak_bytes', 'metrics', 'history'))


@pytest.mark.parametrize('variable', ['MAX_TOKENS', 'TOKEN_LIMIT', 'TOKENIZERS_PARALLELISM'])
def test_gather_takes_no_number_for_a_secret(run, monkeypatch, variable):
    value = json.loads((run / 'results.json').read_text())
    value['seconds'], value['peak_bytes'] = 12345678.5, 123456789
    (run / 'results.json').write_text(json.dumps(value))
    (run / 'README.md').write_text('It took 12345678.5 s and 123456789 bytes.')
    before = gathered(run)
    for number in ('12345678.5', '123456789', '4096', '0.5'):
        monkeypatch.setenv(variable, number)
        assert gathered(run) == before


@pytest.mark.parametrize(
    'variable',
    ['HF_TOKEN', 'WANDB_API_KEY', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'DB_PASS', 'PGPASSWORD', 'x_auth'],
)
@pytest.mark.parametrize('value', [HOSTILE, 'plain-secret-1234', 'pässword 猫'])
def test_gather_refuses_a_card_with_a_secret(run, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    before = (run / 'README.md').read_text()
    for written in (
        value,
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        html.escape(value),
        quote(value),
        escape(value),
        re.sub(r'([\\`*_<>&"])', r'\\\1', value),
    ):
        (run / 'README.md').write_text(f'{before}\n- {written}.\n', encoding='utf-8')
        with pytest.raises(InputError) as caught:
            gathered(run)
        message = str(caught.value)
        assert variable in message and 'README.md' in message and value not in message and '\n' not in message
    (run / 'README.md').write_text(before)
    assert gathered(run)['README.md'].decode() == before


@pytest.mark.parametrize('text', ['hf_' + 'aB3' * 11, 'https://me:secret@x.y/z', 'postgres://u:p@host/db'])
def test_gather_refuses_a_card_with_a_token_or_password(run, text):
    (run / 'README.md').write_text(f'see {text} there')
    with pytest.raises(InputError, match='README.md: holds a .*, which must not be published: remove it.$'):
        gathered(run)
    (run / 'README.md').write_text('see hf_hub_download_and_many_more_words, https://x.y/a:b@c, a user:pass@word there')
    gathered(run)


@pytest.mark.parametrize('name', sorted(SENT))
@pytest.mark.parametrize('kind', ['outside', 'inside', 'broken', 'fifo', 'folder'])
def test_push_refuses_links_and_irregular_files(client, run, tmp_path, name, kind):
    content = (run / name).read_bytes()
    (run / name).unlink()
    if kind == 'fifo':
        os.mkfifo(run / name)
    elif kind == 'folder':
        (run / name).mkdir()
    else:
        target = (run if kind == 'inside' else tmp_path) / 'target'
        if kind != 'broken':
            target.write_bytes(content)
        (run / name).symlink_to(target)
    message = error_of(client(command, 'push', run, 'org/x', '--dry-run'))
    assert f'{run / name}: is ' in message and ('a link' in message or 'no regular file' in message)


def rewritten(path, change):
    """Changes the header of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    text = change(content[8 : 8 + length])
    path.write_bytes(len(text).to_bytes(8, 'little') + text + content[8 + length :])


def with_fields(header, **fields):
    return json.dumps(json.loads(header) | fields).encode()


@pytest.mark.parametrize(
    'change',
    [
        lambda header: with_fields(header, __metadata__={'format': 'pt', 'ss_path': '/home/ann-e/secret'}),
        lambda header: with_fields(header, __metadata__={'/home/ann-e/secret': ''}),
        lambda header: header.replace(b'"shape":', b'"note":"/home/ann-e/secret","shape":', 1),
    ],
)
def test_gather_drops_metadata_of_the_weights(run, tmp_path, change):
    before = safetensors.torch.load((run / 'model.safetensors').read_bytes())
    rewritten(run / 'model.safetensors', change)
    sent = gathered(run)['model.safetensors']
    assert b'ann-e' not in sent
    (tmp_path / 'sent').write_bytes(sent)
    with safetensors.safe_open(tmp_path / 'sent', 'pt') as file:
        assert file.metadata() == {'format': 'pt'}
    after = safetensors.torch.load_file(tmp_path / 'sent')
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_gather_drops_metadata_that_a_header_names_twice(run):
    twice = b'{"__metadata__":{"path":"/home/ann-e"},"__metadata__":{"format":"pt"},'
    header = json.loads((run / 'model.safetensors').read_bytes()[8:].split(b' ')[0])
    header.pop('__metadata__')
    rewritten(run / 'model.safetensors', lambda _: twice + json.dumps(header).encode()[1:])
    assert b'ann-e' not in gathered(run)['model.safetensors']


def test_gather_publishes_images_of_the_card_alone(run):
    (run / 'own.png').write_bytes(b'x')
    assert set(gathered(run)) == SENT
    (run / 'README.md').write_text('![](own.png) ![](architecture.svg)')
    assert set(gathered(run)) == SENT | {'own.png', 'architecture.svg'}


def test_gather_renders_a_missing_card(run, tmp_path):
    (run / 'README.md').unlink()
    files = gathered(run)
    card = files['README.md'].decode()
    assert set(files) == SENT | {'architecture.svg'} and 'org/x' in card
    assert all(name in card for name in ('architecture.svg', 'ap.png', 'chair'))
    assert str(tmp_path) not in card and OWNER not in card
    assert {path.name for path in run.iterdir()} >= {'results.json', 'checkpoints'}


def test_push_sends_nothing_twice(server, client, run, repo_id):
    assert client(command, 'push', run, repo_id)[0] == 0
    sent, commits = puts(server), len(server.repository(repo_id).commits)
    assert client(command, 'push', run, repo_id)[0] == 0
    assert (puts(server), len(server.repository(repo_id).commits)) == (sent, commits)
    (run / 'README.md').write_text('---\nlicense: mit\n---\nnew\n')
    assert client(command, 'push', run, repo_id, '--message', 'Another licence')[0] == 0
    repository = server.repository(repo_id)
    assert puts(server) == sent and repository.messages[repository.refs['main']] == 'Another licence'
    assert b'license: mit' in repository.files()['README.md'] and set(repository.files()) > SENT
    body = [content for path, _, content in server.received if path == f'/api/models/{repo_id}/commit/main'][-1]
    paths = [json.loads(line)['value'].get('path') for line in body.splitlines()]
    # Before 1.0, huggingface_hub names all files in a commit when one is new, the small ones with their content.
    assert paths == [None, 'README.md'] or huggingface_hub.__version__ < '1'


def test_push_dry_run_lists_files_without_a_request(server, client, run, repo_id):
    before = server.requests.total()
    code, out, err, _ = client(command, 'push', run, repo_id, '--dry-run', token=None)
    assert (code, err, server.requests.total()) == (0, '', before)
    rows = {name: size for size, name in re.findall(r'^ +([\d,]+)  (\S+)$', out, re.M)}
    assert set(rows) == SENT and rows['ap.png'] == '305'
    assert rows['model.safetensors'] == f'{(run / "model.safetensors").stat().st_size:,}'


def test_push_to_branches_pull_requests_and_private_repositories(server, client, run, repo_id):
    assert client(command, 'push', run, repo_id, '--private', '--branch', 'try/1')[0] == 0
    repository = server.repository(repo_id)
    assert repository.private and set(repository.files()) == {'.gitattributes'}
    assert set(repository.files('try/1')) > SENT
    code, out, _, _ = client(command, 'push', run, repo_id, '--create-pr')
    assert code == 0 and f'{repo_id}/discussions/1' in out
    assert set(repository.files('refs/pr/1')) > SENT and set(repository.files()) == {'.gitattributes'}
    (run / 'ap.png').unlink()
    (run / 'README.md').write_text('---\nlicense: mit\n---\n')
    assert client(command, 'push', run, repo_id, '--revision', 'refs/pr/1')[0] == 0
    assert repository.files('refs/pr/1')['README.md'] == b'---\nlicense: mit\n---\n'
    message = error_of(client(command, 'push', run, repo_id, '--revision', 'refs/pr/9'))
    assert 'there is no such repository or revision' in message and 'refs/pr/9' in message


def test_push_opens_a_pull_request_without_write_access(server, client, run, repo_id):
    server.create(repo_id, {'README.md': b'theirs'})
    message = error_of(client(command, 'push', run, repo_id, token=STRANGER))
    assert repo_id in message and 'may not write' in message and '--create-pr' in message
    assert client(command, 'push', run, repo_id, '--create-pr', token=STRANGER)[0] == 0
    assert server.repository(repo_id).files() == {'README.md': b'theirs'}


def test_push_private_refuses_a_public_repository(server, client, run, repo_id):
    server.create(repo_id, {'README.md': b'public'})
    assert 'is public' in error_of(client(command, 'push', run, repo_id, '--private'))
    assert server.repository(repo_id).files() == {'README.md': b'public'}


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'label_names': ['cat', 'cat', 'chair']}, "3 label names for 3 logits, 'cat' more than once"),
        ({'label_names': ['cat', 'chair']}, '2 label names for 3 logits'),
        ({'label_names': [*LABELS, 'dog']}, '4 label names for 3 logits'),
        ({'label_names': None}, 'no label_names'),
        ({'label_names': 'cat'}, 'must be a list of texts'),
        ({'architecture': 'msff_nothing'}, 'Unknown model'),
    ],
)
def test_push_checks_the_model_before_the_first_request(server, client, run, repo_id, change, part):
    config = json.loads((run / 'config.json').read_text()) | change
    (run / 'config.json').write_text(json.dumps(config))
    before = server.requests.total()
    message = error_of(client(command, 'push', run, repo_id))
    assert part in message and str(run) in message and server.requests.total() == before


@pytest.mark.parametrize(
    ('arguments', 'part'),
    [
        (['org/a b'], "'org/a b' is no repository id"),
        (['../evil'], 'is no repository id'),
        (['name'], 'ORGANISATION/NAME'),
        (['org/x', '--create-pr', '--branch', 'b'], 'not both'),
        (['org/x', '--branch', 'a' * 40], 'is a commit'),
    ],
)
def test_push_refuses_invalid_targets(server, client, run, arguments, part):
    before = server.requests.total()
    assert part in error_of(client(command, 'push', run, *arguments))
    assert server.requests.total() == before


@pytest.mark.parametrize(
    ('token', 'repo', 'part'),
    [
        (None, None, 'needs a token with write access: set HF_TOKEN'),
        ('hf_' + 'z' * 30, None, 'the token is not valid'),
        (READER, None, 'may not write'),
        (STRANGER, None, "don't have the rights"),
        (OWNER, 'stranger/name', 'may not write to stranger/name'),
    ],
)
def test_push_explains_tokens_without_access(server, client, run, repo_id, token, repo, part):
    message = error_of(client(command, 'push', run, repo or repo_id, token=token))
    assert part in message and 'settings/tokens' in message
    assert server.repository(repo or repo_id) is None


@pytest.mark.parametrize('how', [500, 'close'])
def test_push_hides_the_token_in_tracebacks(server, client, run, repo_id, how):
    server.faults.append(Fault('/commit/', how, FOREVER))
    text = client(traceback_of_a_push, run, repo_id)
    assert 'Traceback' in text and 'InputError' in text and OWNER not in text


def test_push_hides_a_token_that_the_hub_repeats(server, client, run, repo_id):
    server.faults.append(Fault('/commit/', 400, FOREVER, message=f'What is {OWNER}?'))
    assert 'What is <removed>?' in error_of(client(command, 'push', run, repo_id))


def traceback_of_a_push(run, repo_id):
    with patch.dict(os.environ, {'HF_TOKEN': OWNER}), patch('time.sleep'):
        try:
            hub.push(run, repo_id)
        except InputError:
            return traceback.format_exc()


def test_hub_server_serves_other_calls_of_the_client(server, client, repo_id):
    server.create(repo_id, {'README.md': b'text', 'model.safetensors': b'0123456789'}, private=True)
    got = client(other_calls, repo_id)
    assert got['name'] == 'ann' and got['orgs'] == ['org'] and got['role'] == 'write'
    assert got['refs'] == [['main'], ['refs/pr/1']]
    assert got['lfs'] == ('84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882', 10)  # of sha256sum
    assert got['files'] == ['README.md', 'model.safetensors'] and got['range'] == b'345'
    assert got['stranger'] == 'RepositoryNotFoundError'


def other_calls(repo_id):
    api = huggingface_hub.HfApi(token=OWNER)
    me = api.whoami()
    operation = huggingface_hub.CommitOperationAdd('a.txt', b'a')
    api.create_commit(repo_id, [operation], commit_message='a', create_pr=True)
    refs = api.list_repo_refs(repo_id, include_pull_requests=True)
    entry = api.get_paths_info(repo_id, ['model.safetensors'])[0]
    with huggingface_hub.HfFileSystem(token=OWNER).open(f'{repo_id}/model.safetensors', block_size=3) as file:
        file.seek(3)
        part = file.read(3)
    try:
        huggingface_hub.HfApi(token=STRANGER).model_info(repo_id)
        stranger = None
    except huggingface_hub.errors.RepositoryNotFoundError as e:
        stranger = type(e).__name__
    return {
        'name': me['name'],
        'orgs': [org['name'] for org in me['orgs']],
        'role': me['auth']['accessToken']['role'],
        'refs': [[ref.name for ref in refs.branches], [ref.ref for ref in refs.pull_requests]],
        'lfs': (entry.lfs.sha256, entry.lfs.size),
        'files': api.list_repo_files(repo_id),
        'range': part,
        'stranger': stranger,
    }


def test_push_refuses_offline_mode(client, run, repo_id):
    assert 'HF_HUB_OFFLINE' in client(offline_message, run, repo_id)


def offline_message(run, repo_id):
    with patch('huggingface_hub.constants.HF_HUB_OFFLINE', True):
        return error_of(command('push', run, repo_id))


LIMIT = {'Retry-After': '7'}
PASSING = {
    'preupload is limited': ([Fault('/preupload/', 429, headers=LIMIT)], [7]),
    'batch fails': ([Fault('/objects/batch', 503)], [1]),
    'storage is cut off': ([Fault('/storage/', 'close', method='PUT')], [1]),
    'verification fails': ([Fault('/info/lfs/verify', 500)], [1]),
    'what comes back is cut off': ([Fault('/storage/', 'truncate', method='GET')], None),
    'what comes back is slow': ([Fault('/storage/', 'slow', method='GET', seconds=3.5)], None),
    'what comes back fails': ([Fault('/resolve/', 503)], None),
}


@pytest.mark.parametrize(('faults', 'waits'), PASSING.values(), ids=PASSING)
def test_push_survives_faults_that_the_client_retries(server, client, run, weights, repo_id, faults, waits):
    # Unique content, which the storage does not have yet.
    image = repo_id.encode() * 9000 + b'\0'
    (run / 'ap.png').write_bytes(b'\0' + image)
    server.faults += faults
    code, _, err, pauses = client(command, 'push', run, repo_id)
    assert code == 0, err
    assert not any(fault.times for fault in faults), 'no request met the fault'
    # The client may add a second.
    assert waits is None or [round(pause) - wait for pause, wait in zip(pauses, waits, strict=True)] in (
        [0] * len(waits),
        [1],
    )
    repository = server.repository(repo_id)
    assert repository.files()['ap.png'] == b'\0' + image
    assert len(repository.commits) == 2


LASTING = {
    'create': (Fault('/repos/create', 500, FOREVER), 'fails with status 500'),
    'create is cut off': (Fault('/repos/create', 'close', FOREVER), 'the Hub cannot be reached'),
    'preupload': (Fault('/preupload/', 404, FOREVER), 'no such repository or revision'),
    'storage is full': (Fault('/objects/batch', 413, FOREVER, message='too large'), 'storage is full (too large)'),
    'payment': (Fault('/objects/batch', 402, FOREVER, message='pay'), 'storage is full (pay)'),
    'storage': (Fault('/storage/', 403, FOREVER, 'PUT'), 'may not write'),
    'storage is cut off': (Fault('/storage/', 'close', FOREVER, 'PUT'), 'the Hub cannot be reached'),
    'commit': (Fault('/commit/', 503, FOREVER), 'fails with status 503'),
    'commit is cut off': (Fault('/commit/', 'close', FOREVER), 'the Hub cannot be reached'),
    'commit conflicts': (Fault('/commit/', 409, FOREVER), 'the name is taken, or somebody else'),
    'commit too early': (Fault('/commit/', 412, FOREVER), 'somebody else'),
    'branch': (Fault('/branch/', 502, FOREVER), 'fails with status 502'),
    'commit is limited for an hour': (Fault('/commit/', 429, FOREVER, headers={'Retry-After': '3600'}), 'in 3600 sec'),
    'commit is limited by a header of its own': (
        Fault('/commit/', 429, FOREVER, headers={'RateLimit': '"api";r=0;t=55'}),
        'in 55 seconds',
    ),
    'commit is unauthorized': (Fault('/commit/', 401, FOREVER), 'not valid'),
}


@pytest.mark.parametrize(('fault', 'part'), LASTING.values(), ids=LASTING)
def test_push_explains_lasting_faults_and_leaves_the_repository_unchanged(server, client, run, repo_id, fault, part):
    (run / 'ap.png').write_bytes(b'\0' + repo_id.encode() * 100)
    there = {'README.md': b'before'}
    server.create(repo_id, there)
    server.faults.append(fault)
    branch = ['--branch', 'b'] if fault.path == '/branch/' else []
    result = client(command, 'push', run, repo_id, *branch)
    message = error_of(result)
    assert part in message and repo_id in message and server.url in message
    assert max(result[3], default=0) <= 8  # seconds
    assert server.repository(repo_id).files() == there and fault.times < FOREVER
    server.faults.clear()
    assert client(command, 'push', run, repo_id)[0] == 0
    assert set(server.repository(repo_id).files()) == SENT


def test_push_explains_a_full_quota(server, client, run, repo_id):
    (run / 'ap.png').write_bytes(b'\0' + repo_id.encode() * 100)
    server.quota = 1000
    message = error_of(client(command, 'push', run, repo_id))
    assert 'storage is full' in message and 'upgrade your plan' in message
    assert set(server.repository(repo_id).files()) == {'.gitattributes'}


def test_push_explains_a_card_that_the_hub_refuses(server, client, run, repo_id):
    (run / 'README.md').write_text('---\nlicense: [\n---\n')
    assert 'README.md' in error_of(client(command, 'push', run, repo_id))
    assert set(server.repository(repo_id).files()) == {'.gitattributes'}


def test_push_again_after_a_lost_answer_makes_no_second_commit(server, client, run, repo_id):
    server.faults.append(Fault('/commit/', 'truncate'))
    assert 'run the command again' in error_of(client(command, 'push', run, repo_id))
    assert client(command, 'push', run, repo_id)[0] == 0
    assert len(server.repository(repo_id).commits) == 2


def test_push_never_repeats_a_pull_request(server, client, run, repo_id):
    server.create(repo_id, {'README.md': b'before'})
    server.faults.append(Fault('/commit/', 'truncate'))
    assert 'the Hub cannot be reached' in error_of(client(command, 'push', run, repo_id, '--create-pr'))
    assert len(server.repository(repo_id).refs) == 2


@pytest.mark.parametrize('path', ['/storage/', '/resolve/.*/config.json'])
def test_push_notices_damaged_files(server, client, run, repo_id, path):
    server.faults.append(Fault(path, 'corrupt', FOREVER, 'GET'))
    message = error_of(client(command, 'push', run, repo_id))
    assert 'is damaged: its digest is' in message and server.repository(repo_id).refs['main'] in message


def test_push_notices_files_that_cannot_be_downloaded(server, client, run, repo_id):
    server.faults.append(Fault('/resolve/', 500, FOREVER))
    message = error_of(client(command, 'push', run, repo_id))
    assert (
        'is published, but cannot be downloaded for a check' in message
        and server.repository(repo_id).refs['main'] in message
    )


def test_push_continues_after_being_killed(server, client, environment, run, repo_id):
    there = {'README.md': b'before'}
    server.create(repo_id, there)
    (run / 'ap.png').write_bytes(b'\0' + repo_id.encode() * 100)
    before = puts(server)
    server.faults += [Fault('/info/lfs/verify', 'slow', seconds=30), Fault('/commit/', 'close', FOREVER)]
    code = f'from msff_timm_cli.commands import main; main(["push", {str(run)!r}, {repo_id!r}])'
    process = subprocess.Popen([sys.executable, '-c', code], env=environment | {'HF_TOKEN': OWNER})
    try:
        while server.faults[0].times and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
    assert puts(server) == before + 1 and server.repository(repo_id).files() == there
    server.faults.clear()
    assert client(command, 'push', run, repo_id)[0] == 0
    assert puts(server) == before + 1 and set(server.repository(repo_id).files()) == SENT


def test_train_pushes_its_run(server, client, environment, script, repo_id, tmp_path, monkeypatch):
    for name, value in (environment | {'HF_TOKEN': OWNER}).items():
        monkeypatch.setenv(name, value)
    settings = {'output': tmp_path / 'run', 'data.train_size': 16, 'data.eval_size': 8, 'data.image_size': 64}
    settings |= {'data.workers': 0, 'optim.epochs': 1, 'optim.batch_size': 16, 'push-to': repo_id, 'push-private': True}
    arguments = [f'--{key}={value}' for key, value in settings.items()]
    server.faults.append(Fault('/commit/main', 403, FOREVER, message='not today'))
    failed = script('train.py', *arguments, check=False)
    assert failed.returncode == 2 and 'Traceback' not in failed.stderr and server.repository(repo_id).private
    command = f'`msff-timm push {tmp_path}/run {repo_id} --private`'
    assert (
        'not today' in failed.stderr
        and f'The run in {tmp_path}/run is complete; {command} publishes it.' in failed.stderr
    )
    server.faults.clear()
    again = script('train.py', *arguments, '--resume=auto')
    commit = server.repository(repo_id).refs['main']
    assert f'Published at {server.url}/{repo_id}/commit/{commit}' in again.stdout
    local = client(pulled_logits, f'local-dir:{tmp_path}/run', None)
    assert client(pulled_logits, f'hf-hub:{repo_id}', tmp_path / 'cache') == local
    assert {'README.md', 'results.json', 'curves.png'} <= set(server.repository(repo_id).files())
