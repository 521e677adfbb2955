import base64
import io
import json
import multiprocessing
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import chromium
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import RepoCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from msff_timm import hub
from msff_timm.data import scenes
from msff_timm.errors import InputError
from msff_timm.inference import app
from msff_timm.inference.explain import attention_maps, overlay, smooth_overlay
from msff_timm.inference.predict import predict
from msff_timm.inference.uploads import Uploads, hosts_of, own_folder
from msff_timm_cli import commands as cli

ROOT = Path(__file__).parents[2]
SPACE = ROOT / 'hub_cards' / 'space'
LABELS = [
    'cat',
    '<img src=x onerror=console.error(1)>',
    '</li></ol><script>console.error(2)</script>',
    '{{7*7}} ${console.error(3)} @children',
    '"double" & \'single\'',
    '**bold** [link](javascript:console.error(4))',
    *(f'label {number}' for number in range(14)),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """An untrained model of 20 labels whose thresholds are all different, some above and some below what it says."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=len(LABELS))
    for layer in model.selection.branches[0]:  # so that labels look at different places
        layer.attn.q.weight.data *= 300
    data_config = timm.data.resolve_model_data_config(model) | {'input_size': (3, 96, 96)}
    folder = tmp_path_factory.mktemp('space') / 'model'
    hub.save(model, folder, LABELS, data_config, thresholds={'per_class': np.linspace(0.2, 0.8, len(LABELS)).tolist()})
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return hub.load(f'local-dir:{folder}')


@pytest.fixture(scope='module')
def scene(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('scene') / 'scene.png'
    scenes.draw(0, 7, 128, 'test').crop((0, 0, 128, 64)).save(path)
    return str(path)


class Elements(HTMLParser):
    """Collects what a piece of HTML is made of, as a browser reads it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []  # class of the element around it, text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.tags[-1][1].get('class'), data))

    def of(self, name: str) -> list[str]:
        return [text for where, text in self.texts if where == name]


def images_in(addresses: list[str]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(a.partition('base64,')[2]))).convert('RGB') for a in addresses]


def test_a_look_gives_what_predict_and_attention_maps_give(model, scene):
    seen = app.look(model, scene)
    predicted = next(predict(model, [scene], threshold=0.0)).labels
    assert dict(zip(LABELS, seen.probabilities, strict=True)) == pytest.approx(predicted, abs=1e-6)
    assert [tuple(m.shape) for m in seen.maps] == [(20, 6, 6), (20, 3, 3), (20, 2, 2)] and seen.why_no_maps is None
    assert seen.image.size == (336, 168)  # larger than the 96 pixels that the model sees, in the photo's own shape


def test_a_turned_photo_is_seen_upright(model, scene, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees clockwise
    Image.open(scene).transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    upright, turned = app.look(model, scene), app.look(model, tmp_path / 'turned.png')
    assert turned.probabilities == upright.probabilities and turned.image.size == upright.image.size


@pytest.mark.parametrize('content', [b'', b'no image', 'cut'])
def test_a_photo_that_cannot_be_read_is_named_without_its_folder(content, model, scene, tmp_path):
    path = tmp_path / 'photo.png'
    path.write_bytes(Path(scene).read_bytes()[:2000] if content == 'cut' else content)
    with pytest.raises(InputError, match='^photo.png: cannot be read as an image'):
        app.look(model, path)


def test_labels_above_their_thresholds_come_first():
    elements = Elements(app.labels_html(['a', 'b', 'c', 'd'], [0.2, 0.9, 0.4, 0.6], [0.1, 0.95, 0.3, 0.5]))
    assert elements.of('msff-name') == ['d', 'c', 'a', 'b']
    assert [attrs['class'] for tag, attrs in elements.tags if tag == 'li'] == ['above'] * 3 + ['below msff-line']
    assert elements.of('msff-value') == ['0.600', '0.400', '0.200', '0.900']
    styles = [attrs['style'] for tag, attrs in elements.tags if tag in 'ib']
    assert styles[:2] == ['width:60.00%', 'left:50.00%'] and styles[-2:] == ['width:90.00%', 'left:95.00%']


@pytest.mark.parametrize(
    ('threshold', 'above', 'text'),
    [(0.95, 0, 'labels are above the threshold'), (0.5, 1, 'label is above'), (0.0, 3, 'labels are above')],
)
def test_the_threshold_decides_how_many_labels_are_above(threshold, above, text):
    html = app.labels_html(['a', 'b', 'c'], [0.2, 0.9, 0.4], [threshold] * 3)
    assert html.count('<li class="above"') == above and f'<strong>{above} of 3</strong> {text}' in html


def test_what_is_not_above_is_folded_beyond_twelve():
    names, probabilities = [f'n{i}' for i in range(30)], [i / 30 for i in range(30)]
    few, many = (app.labels_html(names, probabilities, [threshold] * 30) for threshold in (0.9, 0.1))
    assert few.partition('<details>')[0].count('<li') == 12 and few.count('<li') == 30 and '18 more' in few
    assert many.partition('<details>')[0].count('<li') == many.count('class="above"') == 26 and '4 more' in many


def test_names_are_shown_as_they_are():
    elements = Elements(app.labels_html(LABELS, np.linspace(0.9, 0.1, 20), [0.5] * 20))
    assert elements.of('msff-name') == LABELS
    assert {tag for tag, _ in elements.tags} == {'p', 'strong', 'ol', 'li', 'span', 'i', 'b', 'details', 'summary'}


def test_overlays_are_brightest_where_a_label_looked(model, scene):
    seen = app.look(model, scene)
    shares = torch.full((20, 2, 4), 1e-9)
    shares[1, 1, 2] = 1.0
    html = app.attention_html(app.Look(seen.image, seen.probabilities, [shares] * 3), 1, LABELS[1])
    elements = Elements(html)
    images = images_in([attrs['src'] for tag, attrs in elements.tags if tag == 'img'])
    assert [p.size for p in images] == [(336, 168)] * 5
    assert np.abs(np.asarray(images[0], float) - np.asarray(seen.image, float)).mean() < 4
    grey = np.asarray(ImageOps.grayscale(seen.image), float)
    smooth = np.asarray(images[1], float)
    assert smooth[126, 210, 0] - smooth[126, 210, 2] > 50  # yellow at the cell's centre
    faded = (np.asarray(seen.image, float) + grey[..., None]) / 2
    assert np.abs(smooth - faded)[:20, :100].mean() < 4  # nothing but the image elsewhere
    for image in images[2:]:
        added = np.asarray(image, float) - grey[..., None] / 2  # half of what is seen is the photo in grey
        cell = added[84 + 8 : -8, 168 + 8 : 252 - 8]
        assert cell[..., :2].mean() > 100 and cell[..., 2].mean() < 100  # yellow
        assert added[:76].mean() < 6 and added[:, :160].mean() < 6  # black
    alts = [attrs['alt'] for tag, attrs in elements.tags if tag == 'img']
    assert alts[1:3] == [f'Where {LABELS[1]} looked, {scale}' for scale in ('all scales', 'fine scale')]
    assert '2 × 4 cells, 0 to 100.00% each' in html


def test_other_models_have_labels_and_a_line_that_tells_why_no_attention(scene):
    torch.manual_seed(0)
    seen = app.look(timm.create_model('test_resnet', num_classes=5).eval(), scene)
    assert len(seen.probabilities) == 5 and seen.maps == []
    assert Elements(app.attention_html(seen, 0, 'a')).of('msff-note') == [
        'No attention to show: ResNet cannot be explained: only an MSFF model (msff_*) tells its regions.'
    ]


@pytest.mark.parametrize('package', ['gradio', 'matplotlib'])
def test_a_missing_package_is_one_line_that_names_the_extra(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', type(sys)('gradio'))
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(['space', '--model', 'local-dir:gone']) == 2
    assert capsys.readouterr().err == (f"msff-timm: error: the page needs {package}: pip install 'msff-timm[space]'\n")


def test_a_port_that_is_taken_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(app, '_gradio', lambda: None)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(['space', '--model', 'local-dir:gone', '--port', str(port)]) == 2
    assert capsys.readouterr().err == (
        f'msff-timm: error: cannot listen at 127.0.0.1, port {port} (Address already in use): choose others with --port'
        ' and --host.\n'
    )


def test_a_host_that_is_not_here_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(app, '_gradio', lambda: None)
    assert cli.main(['space', '--model', 'local-dir:gone', '--host', '203.0.113.1']) == 2
    captured = capsys.readouterr().err
    assert captured.startswith('msff-timm: error: cannot listen at 203.0.113.1, port any') and captured.count('\n') == 1


def test_whatever_keeps_the_page_from_starting_is_one_line(monkeypatch):
    def refuse(**_):
        raise ValueError('localhost is\nnot accessible')

    monkeypatch.setattr(app, '_gradio', MagicMock())
    with pytest.raises(InputError, match=r'^the page cannot be started \(localhost is not accessible\)$'):
        app.launch(SimpleNamespace(launch=refuse, uploads=None))


def test_a_model_without_labels_is_refused(monkeypatch):
    monkeypatch.setattr(app, '_gradio', MagicMock())
    with pytest.raises(InputError, match='^it: has no labels to show'):
        app.build(timm.create_model('msff_test_resnet', num_classes=0), 'it')


@pytest.mark.parametrize('port', ['0', '65536', '-1', 'http'])
def test_what_is_no_port_is_refused(port, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['space', '--model', 'local-dir:gone', f'--port={port}'])
    assert ended.value.code == 2 and f"'{port}' is not a port from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize('variable', [None, '', 'hf-hub:org/name'])
def test_the_app_shows_the_model_that_the_variable_names(variable, monkeypatch):
    shown = []
    monkeypatch.setattr(app, 'serve', lambda *args: shown.append(args))
    monkeypatch.delenv('MSFF_MODEL', raising=False)
    if variable is not None:
        monkeypatch.setenv('MSFF_MODEL', variable)
    runpy.run_path(str(SPACE / 'app.py'), run_name='__main__')
    ((name,),) = shown
    assert name == (variable or hub.DEFAULT_MODEL)
    assert variable or timm.get_pretrained_cfg(name).file  # the package brings it


def test_the_app_ends_with_one_line_when_there_is_no_such_model(monkeypatch):
    monkeypatch.setattr(app, '_gradio', lambda: None)
    monkeypatch.setenv('MSFF_MODEL', 'local-dir:gone')
    with pytest.raises(SystemExit, match='^MSFF_MODEL=local-dir:gone: gone: holds no config.json'):
        runpy.run_path(str(SPACE / 'app.py'), run_name='__main__')


def test_the_card_of_the_space_is_what_the_hub_reads():
    data = RepoCard.load(SPACE / 'README.md', ignore_metadata_errors=False).data.to_dict()
    assert data['sdk'] == 'gradio' and (SPACE / data['app_file']).is_file() and data['license'] == 'apache-2.0'
    assert data['title'] and data['emoji'] and len(data['short_description']) <= 60
    assert {'timm', 'multi-label-classification'} <= set(data['tags'])
    (shown,) = data['models']
    assert shown == timm.get_pretrained_cfg('msff_efficientnet_lite0.voc2012_subset').hf_hub_id
    (least,) = re.findall(r'"gradio>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())
    as_numbers = [[int(part) for part in version.split('.')] for version in (least, data['sdk_version'])]
    assert as_numbers == sorted(as_numbers)
    required = [line for line in (SPACE / 'requirements.txt').read_text().splitlines() if not line.startswith('#')]
    assert required == ['msff-timm[space]']


class Page:
    """Sends requests to a page as its own script does, and as others might."""

    def __init__(self, address: str):
        import httpx  # which comes with Gradio

        self.client = httpx.Client(base_url=address, timeout=30)
        dependencies = self.client.get('/config').json()['dependencies']
        self.see = next(d['id'] for d in dependencies if d['targets'] and d['targets'][0][1] == 'change')

    def upload(self, path: str | Path, name: str = 'photo.png') -> str:
        answer = self.client.post('/gradio_api/upload', files={'files': (name, Path(path).read_bytes(), 'image/png')})
        return answer.raise_for_status().json()[0]

    def ask(self, payload: object, session: str) -> tuple[bool, str]:
        """Asks for the labels of a photo; returns whether it went well, and what the page lists."""
        data = {'data': [payload, False, 0.5], 'fn_index': self.see, 'session_hash': session}
        self.client.post('/gradio_api/queue/join', json=data).raise_for_status()
        with self.client.stream('GET', '/gradio_api/queue/data', params={'session_hash': session}) as answer:
            messages = (json.loads(line[5:]) for line in answer.iter_lines() if line.startswith('data:'))
            done = next(message for message in messages if message['msg'] == 'process_completed')
        return done['success'], done['output']['data'][1] if done['success'] else json.dumps(done['output'])


META = {'meta': {'_type': 'gradio.FileData'}}
REFUSED = 'This photo cannot be used. It is no upload of this page, or no longer there: upload it again.'


@pytest.fixture(scope='module')
def served(model, tmp_path_factory):
    """A page at work, and the folder of its uploads."""
    pytest.importorskip('gradio', reason="the page needs gradio: pip install 'msff-timm[space]'")
    folder = tmp_path_factory.mktemp('served') / 'uploads'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(folder))
        blocks = app.build(model, 'a model')
        yield Page(app.launch(blocks)), folder, blocks.uploads
        blocks.close(verbose=False)


@pytest.mark.filterwarnings('ignore:::gradio')
def test_only_the_session_of_an_upload_sees_it(served, scene):
    page, _, _ = served
    mine, other, late = (uuid.uuid4().hex for _ in range(3))
    path = page.upload(scene)
    for payload in ({'path': path, **META}, {'path': path}):
        assert 'of 20</strong>' in page.ask(payload, mine)[1]
        assert REFUSED in page.ask(payload, other)[1]
    assert page.upload(scene) == path  # the same photo, of somebody else
    assert 'of 20</strong>' in page.ask({'path': path}, other)[1] and REFUSED in page.ask({'path': path}, late)[1]


@pytest.mark.filterwarnings('ignore:::gradio')
def test_other_files_of_the_server_are_neither_opened_nor_told_apart(served, scene, tmp_path):
    page, folder, _ = served
    session, path = uuid.uuid4().hex, page.upload(scene, 'mine.png')
    assert 'of 20</strong>' in page.ask({'path': path}, session)[1]
    os.mkfifo(tmp_path / 'fifo.png')
    (folder / 'link.png').symlink_to(scene)
    others = [scene, tmp_path / 'gone.png', tmp_path / 'fifo.png', folder / 'link.png', '/etc/passwd', '/', '\0', '.']
    others += ['http://127.0.0.1:9/x.png', os.path.relpath(scene), f'{path}/../mine.png', f'{folder}/../{path}']
    for other in map(str, others):
        success, listed = page.ask({'path': other}, session)
        assert success and REFUSED in listed, other
        assert 'of 20</strong>' not in page.ask({'path': other, **META}, session)[1], other
    gone = [page.ask({'path': str(other), **META}, session) for other in (scene, tmp_path / 'gone.png', '/etc/passwd')]
    assert len(set(gone)) == 1
    for prefix in ('/gradio_api/file=', '/file=', '/gradio_api/file/'):
        for other in ('/etc/passwd', scene, str(tmp_path / 'gone.png'), 'http://127.0.0.1:9/x.png'):
            assert page.client.get(f'{prefix}{other}').status_code == 404
    assert page.client.get(f'/gradio_api/file={path}').content == Path(scene).read_bytes()
    (folder / 'link.png').unlink()


@pytest.mark.parametrize(
    ('host', 'is_served'),
    [
        ('localhost', True),
        ('LOCALHOST:7860', True),
        ('127.0.0.1:1', True),
        ('[::1]:1', True),
        ('evil.example', False),
        ('localhost.evil.example', False),
        ('a@localhost', False),
        ('192.0.2.1', False),
        ('', False),
    ],
)
def test_the_page_is_served_under_its_own_names_only(served, host, is_served):
    for path in ('/', '/config', '/gradio_api/upload'):
        status = served[0].client.get(path, headers={'Host': host}).status_code
        assert (status == 400) == (not is_served), path


def test_hosts_are_those_that_it_listens_at(monkeypatch):
    monkeypatch.setenv('SPACE_HOST', 'org-name.hf.space')
    assert hosts_of('Photos.lan') == ({'localhost', '127.0.0.1', '::1', 'photos.lan', 'org-name.hf.space'}, False)
    monkeypatch.delenv('SPACE_HOST')
    names, is_any_address = hosts_of('0.0.0.0')
    assert is_any_address and socket.gethostname().lower() in names and 'evil.example' not in names


@pytest.mark.filterwarnings('ignore:::gradio')
def test_uploads_take_no_more_room_than_they_may(served, scene, monkeypatch):
    page, folder, uploads = served
    size = Path(scene).stat().st_size
    monkeypatch.setattr(uploads, 'most_bytes', sum(p.stat().st_size for p in folder.rglob('*.png')) + size + 2000)
    session, first = uuid.uuid4().hex, page.upload(scene, 'first.png')
    answer = page.client.post('/gradio_api/upload', files={'files': ('x.png', Path(scene).read_bytes())})
    assert answer.status_code == 503 and answer.text == 'Too many uploads at once: try again in a minute\n'
    for path in folder.rglob('*.png'):
        os.utime(path, (time.time() - 3600,) * 2)
    os.utime(first, (time.time() - 7200,) * 2)
    second = page.upload(scene, 'second.png')
    assert not Path(first).exists() and REFUSED in page.ask({'path': first}, session)[1]
    assert 'of 20</strong>' in page.ask({'path': second}, session)[1]
    with socket.create_connection((page.client.base_url.host, page.client.base_url.port), 10) as raw:
        raw.sendall(b'POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n')
        assert raw.recv(100).startswith(b'HTTP/1.1 413')
    monkeypatch.setattr('msff_timm.inference.uploads.LARGEST', 1000)
    body = (b'x' * 10_000 for _ in range(30))  # of no length that is told
    kind = {'Content-Type': 'multipart/form-data; boundary=x'}
    assert page.client.post('/gradio_api/upload', content=body, headers=kind).status_code >= 400
    assert uploads.reserved == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 600)), max_size=12), st.integers(0, 120))
def test_room_is_made_of_the_oldest(files, size):
    with tempfile.TemporaryDirectory() as folder:
        now = time.time()
        for number, (of_file, age) in enumerate(files):
            path = Path(folder, str(number), 'x')
            path.parent.mkdir()
            path.write_bytes(b'x' * of_file)
            os.utime(path, (now - age,) * 2)
        has_room = Uploads(folder, most_bytes=100, most_files=5).make_room(size)
        kept = [(of_file, age) for n, (of_file, age) in enumerate(files) if Path(folder, str(n), 'x').exists()]
        fits = sum(of_file for of_file, _ in kept) + size <= 100 and len(kept) < 5
        assert has_room == fits
        gone = [age for n, (_, age) in enumerate(files) if not Path(folder, str(n), 'x').exists()]
        assert all(age >= 59 for age in gone) and min(gone, default=600) >= max((age for _, age in kept), default=0) - 1
        assert fits or all(age <= 61 for _, age in kept)
        assert len(list(Path(folder).iterdir())) == len(kept)


def forked(function, *arguments) -> tuple[multiprocessing.Process, str]:
    """Starts a function in another process; returns that, and the first thing that the function sends."""
    context = multiprocessing.get_context('fork')  # starting Python anew takes seconds
    mine, others = context.Pipe()
    process = context.Process(target=function, args=(others, *arguments))
    process.start()
    return process, mine.recv()


def hold_folder(pipe, temporary):
    tempfile.tempdir = temporary
    with own_folder() as folder:
        (folder / 'photo.jpg').write_bytes(b'x')
        pipe.send(str(folder))
        time.sleep(60)


def test_the_next_start_cleans_what_a_killed_server_left_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / 'msff-timm-space-mine').mkdir()
    live, of_live = forked(hold_folder, str(tmp_path))
    killed, of_killed = forked(hold_folder, str(tmp_path))
    of_live, of_killed = Path(of_live), Path(of_killed)
    try:
        killed.kill()
        killed.join()
        assert (of_live / 'photo.jpg').exists() and (of_killed / 'photo.jpg').exists()
        monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
        with own_folder() as own:
            assert own.is_dir() and own.parent == tmp_path and own.stat().st_mode & 0o77 == 0
            assert (of_live / 'photo.jpg').exists() and not of_killed.exists()
    finally:
        live.kill()
        live.join()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {'msff-timm-space-mine', of_live.name, of_live.with_suffix('.lock').name}


def serve_nothing(pipe, temporary):
    def launch(page, host, port):
        Path(os.environ['GRADIO_TEMP_DIR'], 'photo.jpg').write_bytes(b'x')
        pipe.send('it is served')
        return 'it'

    tempfile.tempdir = temporary
    page = SimpleNamespace(server=SimpleNamespace(), close=lambda verbose: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    app._gradio, app.launch = lambda: None, launch
    app.build = lambda model, name: page
    hub.load = lambda name: torch.nn.Identity()
    app.serve('model')


@pytest.mark.parametrize('end', ['SIGTERM', 'SIGHUP', 'SIGINT'])
def test_each_signal_that_ends_it_cleans(end, tmp_path):
    process, _ = forked(serve_nothing, str(tmp_path))
    try:
        assert list(tmp_path.rglob('photo.jpg'))
        os.kill(process.pid, getattr(signal, end))
        process.join(20)
        assert process.exitcode == 0 and not list(tmp_path.iterdir())
    finally:
        process.kill()


@pytest.fixture
def browser(tmp_path):
    pytest.importorskip('gradio', reason="the page needs gradio: pip install 'msff-timm[space]'")
    if not chromium.find():
        pytest.skip('no Chromium is installed (apt install chromium)')
    browser = chromium.Chromium(tmp_path / 'profile')
    browser.resize(1440, 900)
    yield browser
    browser.close()


def check_nothing_went_wrong(browser: chromium.Chromium, address: str) -> None:
    assert browser.complaints == []
    assert [r for r in browser.requests if not r.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture
def page(browser, model, tmp_path, monkeypatch):
    """A browser at the page of a model, and what it must have seen of the network in the end."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'uploads'))
    blocks = app.build(model, 'a model')
    address = app.launch(blocks)
    assert not blocks.analytics_enabled and not blocks.share
    browser.open(address)
    browser.wait("!!document.querySelector('#photo input[type=file]')")
    yield browser
    check_nothing_went_wrong(browser, address)
    browser.open('about:blank')  # Gradio waits for pages that are open
    blocks.close(verbose=False)


@pytest.mark.filterwarnings('ignore:::gradio')  # of what it calls in pandas
def test_in_a_browser_a_photo_gets_labels_a_threshold_and_attention(page, model, coco_root, tmp_path):
    photo = sorted((coco_root / 'val2014').iterdir())[0]
    predicted = next(predict(model, [str(photo)], threshold=0.0)).labels
    names = "[...document.querySelectorAll('#labels li.above .msff-name')].map(e => e.textContent)"

    # Labels appear: those above thresholds of their own.
    page.upload('#photo input[type=file]', photo)
    page.wait("document.querySelectorAll('#labels li').length", lambda n: n == len(LABELS))
    own = next(predict(model, [str(photo)])).labels
    assert page.evaluate(names) == list(own) and 0 < len(own) < len(LABELS)
    values = page.evaluate("[...document.querySelectorAll('#labels li.above .msff-value')].map(e => +e.textContent)")
    assert values == pytest.approx(list(own.values()), abs=6e-4)
    shown = page.evaluate("[...document.querySelectorAll('#labels .msff-name')].map(e => e.textContent)")
    assert sorted(shown) == sorted(LABELS)
    assert page.evaluate("document.querySelectorAll('#labels :is(img, script, a)').length") == 0
    assert page.evaluate("document.querySelector('#own input').checked") is True

    # The slider changes them: to as many as are above one for all, which half of them are.
    middle = round(sorted(predicted.values())[10], 2)
    page.click('#threshold input[type=number]')
    page.evaluate("document.querySelector('#threshold input[type=number]').select()")
    page.type(f'{middle}')
    above = [name for name, p in predicted.items() if p > middle]
    assert page.wait(names, lambda shown: shown == above) and above != list(own)
    page.wait("document.querySelector('#own input').checked", lambda checked: checked is False)
    page.click('#threshold input[type=range]')  # in its middle
    above = [name for name, p in predicted.items() if p > 0.5]
    page.wait(names, lambda shown: shown == above)
    # Back to thresholds of their own.
    page.click('#own input')
    page.wait(names, lambda shown: shown == list(own))

    # The overlay appears: of the most probable label, then of one that is chosen.
    sources = "[...document.querySelectorAll('#attention img')].filter(e => e.naturalWidth).map(e => e.src)"
    alts = "[...document.querySelectorAll('#attention img')].map(e => e.alt)"
    page.wait(sources, lambda found: len(found) == 5)
    assert page.evaluate(alts)[1] == f'Where {next(iter(predicted))} looked, all scales'
    page.click('#label input')
    last = LABELS.index(list(predicted)[-1])
    page.click(f'[role=option][data-index="{len(LABELS) - 1}"]')
    page.wait(alts, lambda shown: shown[4:] == [f'Where {LABELS[last]} looked, coarse scale'])
    seen, joined, *shown = images_in(page.wait(sources, lambda found: len(found) == 5))
    square = Image.open(photo).convert('RGB').resize((96, 96), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(square) / 255).float().permute(2, 0, 1)[None]
    _, maps = attention_maps(model, (pixels - 0.5) / 0.5)
    expected = [[overlay(seen, shares) for shares in of_scale[0]] for of_scale in maps]
    expected.append([smooth_overlay(seen, of_label) for of_label in zip(*(m[0] for m in maps), strict=True)])
    for image, overlays in zip([*shown, joined], expected, strict=True):
        overlays = np.stack([np.asarray(each, float) for each in overlays])
        differences = np.abs(overlays - np.asarray(image, float)).mean((1, 2, 3))  # both are compressed
        assert differences.argmin() == last and 2 * differences[last] < np.median(differences)

    # A narrow window shows all of it, too, without scrolling sideways.
    page.resize(390, 844)
    assert page.wait('document.documentElement.scrollWidth', lambda width: width == 390)

    # A file that is no image is told in the page, and the old labels go.
    for name, content in (('cut.jpg', photo.read_bytes()[:1000]), ('text.jpg', b'text')):
        page.click('#photo button[aria-label="Remove Image"]')
        page.wait("document.querySelectorAll('#labels :is(li, .msff-error)').length", lambda n: n == 0)
        (tmp_path / name).write_bytes(content)
        page.upload('#photo input[type=file]', tmp_path / name)
        told = page.wait("document.querySelector('#labels .msff-error')?.textContent")
        assert told.startswith(f'This photo cannot be used. {name}: cannot be read as an image')
        assert page.evaluate("document.querySelectorAll('#attention img').length") == 0


@pytest.mark.slow
@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_the_command_shows_the_page_and_leaves_no_photo_behind(end, browser, folder, coco_root, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    code = 'import sys; from msff_timm_cli.commands import main; sys.exit(main())'
    command = [sys.executable, '-c', code, 'space', '--model', f'local-dir:{folder}', '--port', str(port)]
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    environment = {**os.environ, 'TMPDIR': str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            address = f'http://127.0.0.1:{port}/'
            assert server.stdout.readline() == f'{address} shows it; Ctrl-C ends it.\n', server.stderr.read()
            browser.open(address)
            browser.wait("!!document.querySelector('#photo input[type=file]')")
            browser.upload('#photo input[type=file]', sorted((coco_root / 'val2014').iterdir())[0])
            browser.wait("document.querySelectorAll('#labels li').length", lambda n: n == len(LABELS))
            assert list(temporary.rglob('*.jpg'))
            check_nothing_went_wrong(browser, address)
            server.send_signal(end)  # while the page is open
            assert server.wait(20) == 0 and server.stderr.read() == ''
            assert not list(temporary.rglob('*.jpg'))
        finally:
            server.kill()
