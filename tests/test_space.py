import base64
import io
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
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
from PIL import Image, ImageOps

from msff_timm import cli, hub, space
from msff_timm.data import scenes
from msff_timm.errors import InputError
from msff_timm.explain import attention_maps, overlay
from msff_timm.predict import predict

ROOT = Path(__file__).parents[1]
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


def pictures_in(addresses: list[str]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(a.partition('base64,')[2]))).convert('RGB') for a in addresses]


def test_a_look_gives_what_predict_and_attention_maps_give(model, scene):
    seen = space.look(model, scene)
    predicted = next(predict(model, [scene], threshold=0.0)).labels
    assert dict(zip(LABELS, seen.probabilities, strict=True)) == pytest.approx(predicted, abs=1e-6)
    assert [tuple(m.shape) for m in seen.maps] == [(20, 6, 6), (20, 3, 3), (20, 2, 2)] and seen.why_no_maps is None
    assert seen.picture.size == (336, 168)  # larger than the 96 pixels that the model sees, in the photo's own shape


def test_a_turned_photo_is_seen_upright(model, scene, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees clockwise
    Image.open(scene).transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    upright, turned = space.look(model, scene), space.look(model, tmp_path / 'turned.png')
    assert turned.probabilities == upright.probabilities and turned.picture.size == upright.picture.size


@pytest.mark.parametrize('content', [b'', b'no picture', 'cut'])
def test_a_photo_that_cannot_be_read_is_named_without_its_folder(content, model, scene, tmp_path):
    path = tmp_path / 'photo.png'
    path.write_bytes(Path(scene).read_bytes()[:2000] if content == 'cut' else content)
    with pytest.raises(InputError, match='^photo.png: cannot be read as a picture'):
        space.look(model, path)


def test_labels_above_their_thresholds_come_first():
    elements = Elements(space.labels_html(['a', 'b', 'c', 'd'], [0.2, 0.9, 0.4, 0.6], [0.1, 0.95, 0.3, 0.5]))
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
    html = space.labels_html(['a', 'b', 'c'], [0.2, 0.9, 0.4], [threshold] * 3)
    assert html.count('<li class="above"') == above and f'<strong>{above} of 3</strong> {text}' in html


def test_what_is_not_above_is_folded_beyond_twelve():
    names, probabilities = [f'n{i}' for i in range(30)], [i / 30 for i in range(30)]
    few, many = (space.labels_html(names, probabilities, [threshold] * 30) for threshold in (0.9, 0.1))
    assert few.partition('<details>')[0].count('<li') == 12 and few.count('<li') == 30 and '18 more' in few
    assert many.partition('<details>')[0].count('<li') == many.count('class="above"') == 26 and '4 more' in many


def test_names_are_shown_as_they_are():
    elements = Elements(space.labels_html(LABELS, np.linspace(0.9, 0.1, 20), [0.5] * 20))
    assert elements.of('msff-name') == LABELS
    assert {tag for tag, _ in elements.tags} == {'p', 'strong', 'ol', 'li', 'span', 'i', 'b', 'details', 'summary'}


def test_overlays_are_brightest_where_a_label_looked(model, scene):
    seen = space.look(model, scene)
    shares = torch.full((20, 2, 4), 1e-9)
    shares[1, 1, 2] = 1.0
    html = space.attention_html(space.Look(seen.picture, seen.probabilities, [shares] * 3), 1, LABELS[1])
    elements = Elements(html)
    pictures = pictures_in([attrs['src'] for tag, attrs in elements.tags if tag == 'img'])
    assert [p.size for p in pictures] == [(336, 168)] * 4
    assert np.abs(np.asarray(pictures[0], float) - np.asarray(seen.picture, float)).mean() < 4
    grey = np.asarray(ImageOps.grayscale(seen.picture), float)
    for picture in pictures[1:]:
        added = np.asarray(picture, float) - grey[..., None] / 2  # half of what is seen is the photo in grey
        cell = added[84 + 8 : -8, 168 + 8 : 252 - 8]
        assert cell[..., :2].mean() > 100 and cell[..., 2].mean() < 100  # yellow
        assert added[:76].mean() < 6 and added[:, :160].mean() < 6  # black
    assert [attrs['alt'] for tag, attrs in elements.tags if tag == 'img'][1] == f'Where {LABELS[1]} looked, fine scale'
    assert '2 × 4 cells, 0 to 100.00% each' in html


def test_other_models_have_labels_and_a_line_that_tells_why_no_attention(scene):
    torch.manual_seed(0)
    seen = space.look(timm.create_model('test_resnet', num_classes=5).eval(), scene)
    assert len(seen.probabilities) == 5 and seen.maps == []
    assert Elements(space.attention_html(seen, 0, 'a')).of('msff-note') == [
        'No attention to show: ResNet cannot be explained: only an MSFF model (msff_*) tells its regions.'
    ]


@pytest.mark.parametrize('package', ['gradio', 'matplotlib'])
def test_a_missing_package_is_one_line_that_names_the_extra(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', type(sys)('gradio'))
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(['space', '--model', 'local-dir:gone']) == 2
    assert capsys.readouterr().err == (f"msff-timm: error: the page needs {package}: pip install 'msff-timm[space]'\n")


def test_a_port_that_is_taken_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(space, '_gradio', lambda: None)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(['space', '--model', 'local-dir:gone', '--port', str(port)]) == 2
    assert capsys.readouterr().err == (
        f'msff-timm: error: cannot listen at 127.0.0.1, port {port} (Address already in use): choose others with --port'
        ' and --host.\n'
    )


def test_a_host_that_is_not_here_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(space, '_gradio', lambda: None)
    assert cli.main(['space', '--model', 'local-dir:gone', '--host', '203.0.113.1']) == 2
    captured = capsys.readouterr().err
    assert captured.startswith('msff-timm: error: cannot listen at 203.0.113.1, port any') and captured.count('\n') == 1


def test_whatever_keeps_the_page_from_starting_is_one_line(monkeypatch):
    def refuse(**_):
        raise ValueError('localhost is\nnot accessible')

    monkeypatch.setattr(space, '_gradio', MagicMock())
    with pytest.raises(InputError, match=r'^the page cannot be started \(localhost is not accessible\)$'):
        space.launch(SimpleNamespace(launch=refuse))


def test_a_model_without_labels_is_refused(monkeypatch):
    monkeypatch.setattr(space, '_gradio', MagicMock())
    with pytest.raises(InputError, match='^it: has no labels to show'):
        space.build(timm.create_model('msff_test_resnet', num_classes=0), 'it')


@pytest.mark.parametrize('port', ['0', '65536', '-1', 'http'])
def test_what_is_no_port_is_refused(port, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['space', '--model', 'local-dir:gone', f'--port={port}'])
    assert ended.value.code == 2 and f"'{port}' is not a port from 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize('variable', [None, '', 'hf-hub:org/name'])
def test_the_app_shows_the_model_that_the_variable_names(variable, monkeypatch):
    shown = []
    monkeypatch.setattr(space, 'serve', lambda *args: shown.append(args))
    monkeypatch.delenv('MSFF_MODEL', raising=False)
    if variable is not None:
        monkeypatch.setenv('MSFF_MODEL', variable)
    runpy.run_path(str(SPACE / 'app.py'), run_name='__main__')
    ((name,),) = shown
    assert name == (variable or 'msff_test_resnet.scenes')
    assert variable or timm.get_pretrained_cfg(name).tag == 'scenes'


def test_the_app_ends_with_one_line_when_there_is_no_such_model(monkeypatch):
    monkeypatch.setattr(space, '_gradio', lambda: None)
    monkeypatch.setenv('MSFF_MODEL', 'local-dir:gone')
    with pytest.raises(SystemExit, match='^MSFF_MODEL=local-dir:gone: gone: holds no config.json'):
        runpy.run_path(str(SPACE / 'app.py'), run_name='__main__')


def test_the_card_of_the_space_is_what_the_hub_reads():
    data = RepoCard.load(SPACE / 'README.md', ignore_metadata_errors=False).data.to_dict()
    assert data['sdk'] == 'gradio' and (SPACE / data['app_file']).is_file() and data['license'] == 'apache-2.0'
    assert data['title'] and data['emoji'] and len(data['short_description']) <= 60
    assert {'timm', 'multi-label-classification'} <= set(data['tags'])
    (shown,) = data['models']
    assert shown == timm.get_pretrained_cfg('msff_test_resnet.scenes').hf_hub_id
    (least,) = re.findall(r'"gradio>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text())
    as_numbers = [[int(part) for part in version.split('.')] for version in (least, data['sdk_version'])]
    assert as_numbers == sorted(as_numbers)
    required = [line for line in (SPACE / 'requirements.txt').read_text().splitlines() if not line.startswith('#')]
    assert required == ['msff-timm[space]']


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
    blocks = space.build(model, 'a model')
    address = space.launch(blocks)
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
    page.wait(sources, lambda found: len(found) == 4)
    assert page.evaluate(alts)[1] == f'Where {next(iter(predicted))} looked, fine scale'
    page.click('#label input')
    last = LABELS.index(list(predicted)[-1])
    page.click(f'[role=option][data-index="{len(LABELS) - 1}"]')
    page.wait(alts, lambda shown: shown[3:] == [f'Where {LABELS[last]} looked, coarse scale'])
    seen, *shown = pictures_in(page.wait(sources, lambda found: len(found) == 4))
    square = Image.open(photo).convert('RGB').resize((96, 96), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(square) / 255).float().permute(2, 0, 1)[None]
    _, maps = attention_maps(model, (pixels - 0.5) / 0.5)
    for picture, of_scale in zip(shown, maps, strict=True):
        overlays = np.stack([np.asarray(overlay(seen, shares), float) for shares in of_scale[0]])
        differences = np.abs(overlays - np.asarray(picture, float)).mean((1, 2, 3))  # both are compressed
        assert differences.argmin() == last and 2 * differences[last] < np.median(differences)

    # A narrow window shows all of it, too, without scrolling sideways.
    page.resize(390, 844)
    assert page.wait('document.documentElement.scrollWidth', lambda width: width == 390)

    # A file that is no picture is told in the page, and the old labels go.
    for name, content in (('cut.jpg', photo.read_bytes()[:1000]), ('text.jpg', b'text')):
        page.click('#photo button[aria-label="Remove Image"]')
        page.wait("document.querySelectorAll('#labels :is(li, .msff-error)').length", lambda n: n == 0)
        (tmp_path / name).write_bytes(content)
        page.upload('#photo input[type=file]', tmp_path / name)
        told = page.wait("document.querySelector('#labels .msff-error')?.textContent")
        assert told.startswith(f'This photo cannot be used. {name}: cannot be read as a picture')
        assert page.evaluate("document.querySelectorAll('#attention img').length") == 0


@pytest.mark.slow
@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_the_command_shows_the_page_and_leaves_no_photo_behind(end, browser, folder, coco_root, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    code = 'import sys; from msff_timm.cli import main; sys.exit(main())'
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
