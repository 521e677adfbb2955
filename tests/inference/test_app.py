import base64
import io
import json
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
from forks import forked
from huggingface_hub import RepoCard
from PIL import Image, ImageOps

from msff_timm import hub
from msff_timm.data import scenes
from msff_timm.errors import InputError
from msff_timm.inference import app
from msff_timm.inference.attention import attention_maps
from msff_timm.inference.explain import overlay, smooth_overlay
from msff_timm.inference.grad_cam import grad_cam
from msff_timm.inference.markup import attention_html, labels_html
from msff_timm.inference.predict import predict
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
    """Saves an untrained model of 20 labels with different thresholds, some above and some below the probabilities."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=len(LABELS))
    for layer in model.selection.branches[0]:  # so that labels attend to different places
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
    """Collects the tags and texts of HTML as a browser parses it."""

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


def test_analyze_agrees_with_predict_and_attention_maps(model, scene):
    seen = app.analyze(model, scene)
    predicted = next(predict(model, [scene], threshold=0.0)).labels
    assert dict(zip(LABELS, seen.probabilities, strict=True)) == pytest.approx(predicted, abs=1e-6)
    assert [tuple(m.shape) for m in seen.maps] == [(20, 6, 6), (20, 3, 3), (20, 2, 2)]
    assert seen.image.size == (336, 168)  # enlarged from 96 pixels, in the original aspect ratio


def test_analyze_turns_images_upright(model, scene, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # rotated by 90 degrees clockwise for display
    Image.open(scene).transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    upright, turned = app.analyze(model, scene), app.analyze(model, tmp_path / 'turned.png')
    assert turned.probabilities == upright.probabilities and turned.image.size == upright.image.size


@pytest.mark.parametrize('content', [b'', b'no image', 'cut'])
def test_analyze_names_an_unreadable_image_without_its_folder(content, model, scene, tmp_path):
    path = tmp_path / 'photo.png'
    path.write_bytes(Path(scene).read_bytes()[:2000] if content == 'cut' else content)
    with pytest.raises(InputError, match='^photo.png: cannot be read as an image'):
        app.analyze(model, path)


def test_labels_html_begins_with_labels_above_their_thresholds():
    elements = Elements(labels_html(['a', 'b', 'c', 'd'], [0.2, 0.9, 0.4, 0.6], [0.1, 0.95, 0.3, 0.5]))
    assert elements.of('msff-name') == ['d', 'c', 'a', 'b']
    assert [attrs['class'] for tag, attrs in elements.tags if tag == 'li'] == ['above'] * 3 + ['below msff-line']
    assert elements.of('msff-value') == ['0.600', '0.400', '0.200', '0.900']
    styles = [attrs['style'] for tag, attrs in elements.tags if tag in 'ib']
    assert styles[:2] == ['width:60.00%', 'left:50.00%'] and styles[-2:] == ['width:90.00%', 'left:95.00%']


@pytest.mark.parametrize(
    ('threshold', 'above', 'text'),
    [(0.95, 0, 'labels are above the threshold'), (0.5, 1, 'label is above'), (0.0, 3, 'labels are above')],
)
def test_labels_html_counts_labels_above_the_threshold(threshold, above, text):
    html = labels_html(['a', 'b', 'c'], [0.2, 0.9, 0.4], [threshold] * 3)
    assert html.count('<li class="above"') == above and f'<strong>{above} of 3</strong> {text}' in html


def test_labels_html_folds_labels_below_beyond_twelve():
    names, probabilities = [f'n{i}' for i in range(30)], [i / 30 for i in range(30)]
    few, many = (labels_html(names, probabilities, [threshold] * 30) for threshold in (0.9, 0.1))
    assert few.partition('<details>')[0].count('<li') == 12 and few.count('<li') == 30 and '18 less probable' in few
    assert (
        many.partition('<details>')[0].count('<li') == many.count('class="above"') == 26 and '4 less probable' in many
    )


def test_labels_html_escapes_names():
    elements = Elements(labels_html(LABELS, np.linspace(0.9, 0.1, 20), [0.5] * 20))
    assert elements.of('msff-name') == LABELS
    assert {tag for tag, _ in elements.tags} == {'p', 'strong', 'ol', 'li', 'span', 'i', 'b', 'details', 'summary'}


def test_attention_html_is_brightest_at_the_attention(model, scene):
    seen = app.analyze(model, scene)
    shares = torch.full((20, 2, 4), 1e-9)
    shares[1, 1, 2] = 1.0
    html = attention_html(seen.image, [shares[1]] * 3, LABELS[1])
    elements = Elements(html)
    images = images_in([attrs['src'] for tag, attrs in elements.tags if tag == 'img'])
    assert [p.size for p in images] == [(336, 168)] * 5
    assert np.abs(np.asarray(images[0], float) - np.asarray(seen.image, float)).mean() < 4
    grey = np.asarray(ImageOps.grayscale(seen.image), float)
    smooth = np.asarray(images[1], float)
    assert smooth[126, 210, 0] - smooth[126, 210, 2] > 50  # yellow at the cell's centre
    faded = (np.asarray(seen.image, float) + grey[..., None]) / 2
    assert np.abs(smooth - faded)[:20, :100].mean() < 4  # only the image elsewhere
    for image in images[2:]:
        added = np.asarray(image, float) - grey[..., None] / 2  # half of the overlay is the image in grey
        cell = added[84 + 8 : -8, 168 + 8 : 252 - 8]
        assert cell[..., :2].mean() > 100 and cell[..., 2].mean() < 100  # yellow
        assert added[:76].mean() < 6 and added[:, :160].mean() < 6  # black
    alts = [attrs['alt'] for tag, attrs in elements.tags if tag == 'img']
    assert alts[1:3] == [f'Attention of {LABELS[1]}, {scale}' for scale in ('all scales', 'fine scale')]
    assert '2 × 4 cells, 0 to 100.00% each' in html


def test_attention_html_shows_grad_cam_as_one_map(scene):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=5).eval()
    seen = app.analyze(model, scene)
    assert len(seen.probabilities) == 5 and seen.maps == []
    elements = Elements(attention_html(seen.image, [grad_cam(model, seen.pixels, [2])[0, 0]], 'owl', 'Grad-CAM'))
    alts = [attrs['alt'] for tag, attrs in elements.tags if tag == 'img']
    assert alts == ['Model input', 'Grad-CAM of owl, smooth map', 'Grad-CAM of owl, cells']


@pytest.mark.parametrize('package', ['gradio', 'matplotlib'])
def test_space_command_names_the_extra_of_a_missing_package(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', type(sys)('gradio'))
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(['space', '--model', 'local-dir:gone']) == 2
    assert capsys.readouterr().err == f"msff-timm: error: {package} is not installed: pip install 'msff-timm[space]'\n"


def test_space_command_refuses_a_port_in_use(monkeypatch, capsys):
    monkeypatch.setattr(app, '_gradio', lambda: None)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(['space', '--model', 'local-dir:gone', '--port', str(port)]) == 2
    assert capsys.readouterr().err == (
        f'msff-timm: error: cannot listen at 127.0.0.1, port {port} (Address already in use): choose others with --host'
        ' and --port.\n'
    )


def test_space_command_refuses_another_machines_address(monkeypatch, capsys):
    monkeypatch.setattr(app, '_gradio', lambda: None)
    assert cli.main(['space', '--model', 'local-dir:gone', '--host', '203.0.113.1']) == 2
    captured = capsys.readouterr().err
    assert captured.startswith('msff-timm: error: cannot listen at 203.0.113.1, port any') and captured.count('\n') == 1


def test_launch_reports_errors_in_one_line(monkeypatch):
    def refuse(**_):
        raise ValueError('localhost is\nnot accessible')

    monkeypatch.setattr(app, '_gradio', MagicMock())
    with pytest.raises(InputError, match=r'^the page cannot be started \(localhost is not accessible\)$'):
        app.launch(SimpleNamespace(launch=refuse, uploads=None))


def test_build_refuses_a_model_without_labels(monkeypatch):
    monkeypatch.setattr(app, '_gradio', MagicMock())
    with pytest.raises(InputError, match='^it: the model has no labels'):
        app.build(timm.create_model('msff_test_resnet', num_classes=0), 'it')


@pytest.mark.parametrize('port', ['0', '65536', '-1', 'http'])
def test_space_command_refuses_a_bad_port(port, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['space', '--model', 'local-dir:gone', f'--port={port}'])
    assert ended.value.code == 2 and f"'{port}' is not a port from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize('variable', [None, '', 'hf-hub:org/name'])
def test_space_app_serves_the_model_of_its_variable(variable, monkeypatch):
    shown = []
    monkeypatch.setattr(app, 'serve', lambda *args: shown.append(args))
    monkeypatch.delenv('MSFF_MODEL', raising=False)
    if variable is not None:
        monkeypatch.setenv('MSFF_MODEL', variable)
    runpy.run_path(str(SPACE / 'app.py'), run_name='__main__')
    ((name,),) = shown
    assert name == (variable or hub.DEFAULT_MODEL)
    assert variable or timm.get_pretrained_cfg(name).file  # ships with the package


def test_space_app_reports_a_missing_model_in_one_line(monkeypatch):
    monkeypatch.setattr(app, '_gradio', lambda: None)
    monkeypatch.setenv('MSFF_MODEL', 'local-dir:gone')
    with pytest.raises(SystemExit, match='^MSFF_MODEL=local-dir:gone: gone: holds no config.json'):
        runpy.run_path(str(SPACE / 'app.py'), run_name='__main__')


def test_space_card_is_valid_for_the_hub():
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
    """Sends requests to a page, as its own script and as others might."""

    def __init__(self, address: str):
        import httpx  # which comes with Gradio

        self.client = httpx.Client(base_url=address, timeout=30)
        dependencies = self.client.get('/config').json()['dependencies']
        self.see = next(d['id'] for d in dependencies if d['targets'] and d['targets'][0][1] == 'change')

    def upload(self, path: str | Path, name: str = 'photo.png') -> str:
        answer = self.client.post('/gradio_api/upload', files={'files': (name, Path(path).read_bytes(), 'image/png')})
        return answer.raise_for_status().json()[0]

    def ask(self, payload: object, session: str) -> tuple[bool, str]:
        """Requests the labels of an image; returns whether the request succeeded, and the list on the page."""
        data = {'data': [payload, False, 0.5], 'fn_index': self.see, 'session_hash': session}
        self.client.post('/gradio_api/queue/join', json=data).raise_for_status()
        with self.client.stream('GET', '/gradio_api/queue/data', params={'session_hash': session}) as answer:
            messages = (json.loads(line[5:]) for line in answer.iter_lines() if line.startswith('data:'))
            done = next(message for message in messages if message['msg'] == 'process_completed')
        return done['success'], done['output']['data'][1] if done['success'] else json.dumps(done['output'])


META = {'meta': {'_type': 'gradio.FileData'}}
REFUSED = 'This image cannot be used. It is not an upload of this page, or has been deleted: upload it again.'


@pytest.fixture(scope='module')
def served(model, tmp_path_factory):
    """Serves a page; returns it with the folder and the record of its uploads."""
    pytest.importorskip('gradio', reason="the page needs gradio: pip install 'msff-timm[space]'")
    folder = tmp_path_factory.mktemp('served') / 'uploads'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(folder))
        blocks = app.build(model, 'a model')
        yield Page(app.launch(blocks)), folder, blocks.uploads
        blocks.close(verbose=False)


@pytest.mark.filterwarnings('ignore:::gradio')
def test_page_opens_an_upload_for_its_session_only(served, scene):
    page, _, _ = served
    mine, other, late = (uuid.uuid4().hex for _ in range(3))
    path = page.upload(scene)
    for payload in ({'path': path, **META}, {'path': path}):
        assert 'of 20</strong>' in page.ask(payload, mine)[1]
        assert REFUSED in page.ask(payload, other)[1]
    assert page.upload(scene) == path  # the same image from another user
    assert 'of 20</strong>' in page.ask({'path': path}, other)[1] and REFUSED in page.ask({'path': path}, late)[1]


@pytest.mark.filterwarnings('ignore:::gradio')
def test_page_does_not_reveal_other_files(served, scene, tmp_path):
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
def test_page_answers_to_its_own_names_only(served, host, is_served):
    for path in ('/', '/config', '/gradio_api/upload'):
        status = served[0].client.get(path, headers={'Host': host}).status_code
        assert (status == 400) == (not is_served), path


@pytest.mark.filterwarnings('ignore:::gradio')
def test_page_limits_the_size_of_uploads(served, scene, monkeypatch):
    page, folder, uploads = served
    size = Path(scene).stat().st_size
    monkeypatch.setattr(uploads, 'max_bytes', sum(p.stat().st_size for p in folder.rglob('*.png')) + size + 2000)
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
    monkeypatch.setattr('msff_timm.inference.uploads.MAX_UPLOAD', 1000)
    body = (b'x' * 10_000 for _ in range(30))  # without a Content-Length
    kind = {'Content-Type': 'multipart/form-data; boundary=x'}
    assert page.client.post('/gradio_api/upload', content=body, headers=kind).status_code >= 400
    assert uploads.reserved == 0


def serve_nothing(pipe, temporary):
    def launch(page, host, port, mcp):
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
def test_serve_deletes_uploads_at_each_signal(end, tmp_path):
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


def check_browser(browser: chromium.Chromium, address: str) -> None:
    assert browser.complaints == []
    assert [r for r in browser.requests if not r.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture
def page(browser, model, tmp_path, monkeypatch):
    """Opens the page of a model in a browser; in the end, checks its console and requests."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'uploads'))
    blocks = app.build(model, 'a model')
    address = app.launch(blocks)
    assert not blocks.analytics_enabled and not blocks.share
    browser.open(address)
    browser.wait("!!document.querySelector('#image input[type=file]')")
    yield browser
    check_browser(browser, address)
    browser.open('about:blank')  # Gradio waits for open pages
    blocks.close(verbose=False)


@pytest.mark.filterwarnings('ignore:::gradio')  # of its calls of pandas
def test_page_shows_labels_thresholds_and_attention_in_a_browser(page, model, coco_root, tmp_path):
    photo = sorted((coco_root / 'val2014').iterdir())[0]
    predicted = next(predict(model, [str(photo)], threshold=0.0)).labels
    names = "[...document.querySelectorAll('#labels li.above .msff-name')].map(e => e.textContent)"

    # Labels above their own thresholds appear.
    page.upload('#image input[type=file]', photo)
    page.wait("document.querySelectorAll('#labels li').length", lambda n: n == len(LABELS))
    own = next(predict(model, [str(photo)])).labels
    assert page.evaluate(names) == list(own) and 0 < len(own) < len(LABELS)
    values = page.evaluate("[...document.querySelectorAll('#labels li.above .msff-value')].map(e => +e.textContent)")
    assert values == pytest.approx(list(own.values()), abs=6e-4)
    shown = page.evaluate("[...document.querySelectorAll('#labels .msff-name')].map(e => e.textContent)")
    assert sorted(shown) == sorted(LABELS)
    assert page.evaluate("document.querySelectorAll('#labels :is(img, script, a)').length") == 0
    assert page.evaluate("document.querySelector('#own input').checked") is True

    # The slider sets one threshold for all.
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
    # The checkbox restores the labels' own thresholds.
    page.click('#own input')
    page.wait(names, lambda shown: shown == list(own))

    # The overlay of the most probable label appears, then that of a chosen label.
    sources = "[...document.querySelectorAll('#attention img')].filter(e => e.naturalWidth).map(e => e.src)"
    alts = "[...document.querySelectorAll('#attention img')].map(e => e.alt)"
    page.wait(sources, lambda found: len(found) == 5)
    assert page.evaluate(alts)[1] == f'Attention of {next(iter(predicted))}, all scales'
    page.click('#label input')
    last = LABELS.index(list(predicted)[-1])
    page.click(f'[role=option][data-index="{len(LABELS) - 1}"]')
    page.wait(alts, lambda shown: shown[4:] == [f'Attention of {LABELS[last]}, coarse scale'])
    seen, joined, *shown = images_in(page.wait(sources, lambda found: len(found) == 5))
    square = Image.open(photo).convert('RGB').resize((96, 96), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(square) / 255).float().permute(2, 0, 1)[None]
    _, maps = attention_maps(model, (pixels - 0.5) / 0.5)
    expected = [[overlay(seen, shares) for shares in of_scale[0]] for of_scale in maps]
    expected.append([smooth_overlay(seen, of_label) for of_label in zip(*(m[0] for m in maps), strict=True)])
    for image, overlays in zip([*shown, joined], expected, strict=True):
        overlays = np.stack([np.asarray(each, float) for each in overlays])
        differences = np.abs(overlays - np.asarray(image, float)).mean((1, 2, 3))  # both compressed
        assert differences.argmin() == last and 2 * differences[last] < np.median(differences)

    # A narrow window needs no horizontal scrolling.
    page.resize(390, 844)
    assert page.wait('document.documentElement.scrollWidth', lambda width: width == 390)

    # A file that is no image is reported on the page, and the old labels disappear.
    for name, content in (('cut.jpg', photo.read_bytes()[:1000]), ('text.jpg', b'text')):
        page.click('#image button[aria-label="Remove Image"]')
        page.wait("document.querySelectorAll('#labels :is(li, .msff-error)').length", lambda n: n == 0)
        (tmp_path / name).write_bytes(content)
        page.upload('#image input[type=file]', tmp_path / name)
        told = page.wait("document.querySelector('#labels .msff-error')?.textContent")
        assert told.startswith(f'This image cannot be used. {name}: cannot be read as an image')
        assert page.evaluate("document.querySelectorAll('#attention img').length") == 0


@pytest.mark.slow
@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_space_command_serves_the_page_and_deletes_uploads(end, browser, folder, coco_root, tmp_path):
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
            assert server.stdout.readline() == f'Serving local-dir:{folder} at {address}; press Ctrl-C to stop.\n', (
                server.stderr.read()
            )
            browser.open(address)
            browser.wait("!!document.querySelector('#image input[type=file]')")
            browser.upload('#image input[type=file]', sorted((coco_root / 'val2014').iterdir())[0])
            browser.wait("document.querySelectorAll('#labels li').length", lambda n: n == len(LABELS))
            assert list(temporary.rglob('*.jpg'))
            check_browser(browser, address)
            server.send_signal(end)  # while the page is open
            assert server.wait(20) == 0 and server.stderr.read() == ''
            assert not list(temporary.rglob('*.jpg'))
        finally:
            server.kill()
