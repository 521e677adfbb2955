import asyncio
import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

from msff_timm import hub
from msff_timm.data import scenes
from msff_timm.inference import app, endpoint
from msff_timm.inference.predict import predict


@pytest.fixture(scope='module')
def model():
    return hub.load('msff_test_resnet')


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp('images')
    paths = [str(folder / f'{number}.png') for number in range(6)]
    for number, path in enumerate(paths):
        scenes.draw(0, number, 96, 'test').save(path)
    return paths


@pytest.fixture(scope='module')
def address(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(tmp_path_factory.mktemp('uploads')))
        page = app.build(model, 'msff_test_resnet')
        yield app.launch(page, mcp=True)
        page.close(verbose=False)


def upload(address: str, path: str) -> dict:
    with open(path, 'rb') as file:
        (path,) = httpx.post(f'{address}gradio_api/upload', files={'files': file}).json()
    return {'path': path, 'meta': {'_type': 'gradio.FileData'}}


def call(address: str, *data: object) -> dict | None:
    """Calls the endpoint as `curl` does; returns its answer, or None for an error of the server."""
    event = httpx.post(f'{address}gradio_api/call/predict', json={'data': data}).json()['event_id']
    lines = httpx.get(f'{address}gradio_api/call/predict/{event}', timeout=60).text.splitlines()
    return json.loads(lines[1].removeprefix('data: '))[0] if lines[0] == 'event: complete' else None


def test_endpoint_gives_the_labels_of_predict(address, model, images):
    client = Client(address, verbose=False)
    found = list(predict(model, images))
    assert any(expected.labels for expected in found)
    for path, expected in zip(images, found, strict=True):
        by_client = client.predict(handle_file(path), api_name='/predict')
        by_http = call(address, upload(address, path), None)
        assert by_client == by_http and by_http['error'] is None
        assert by_http['labels'] == pytest.approx(expected.labels, abs=1e-6)
        assert list(by_http['labels']) == list(expected.labels)


def test_endpoint_applies_the_threshold(address, model, images):
    (expected,) = predict(model, images[:1], threshold=0.05)
    answer = call(address, upload(address, images[0]), 0.05)
    assert answer['labels'] == pytest.approx(expected.labels, abs=1e-6)
    assert len(answer['labels']) > len(next(predict(model, images[:1])).labels)


def test_endpoint_publishes_its_types(address):
    described = Client(address, verbose=False).view_api(return_format='dict')['named_endpoints']
    assert list(described) == ['/predict']
    image, threshold = described['/predict']['parameters']
    assert (image['parameter_name'], threshold['parameter_name']) == ('image', 'threshold')
    assert threshold['parameter_has_default'] and not image['parameter_has_default']
    (returned,) = described['/predict']['returns']
    assert 'labels' in returned['python_type']['type'] and 'error' in returned['python_type']['type']


def test_endpoint_computes_waiting_images_together(address, model, images, monkeypatch):
    sizes, busy = [], threading.Event()

    def compute(*args):
        sizes.append(len(args[1]))
        busy.wait(20 if len(sizes) == 1 else 0)  # until all others wait
        return real(*args)

    real = endpoint.compute_logits
    monkeypatch.setattr(endpoint, 'compute_logits', compute)
    files = [upload(address, path) for path in images]
    with ThreadPoolExecutor(len(images)) as pool:
        answers = [pool.submit(call, address, file, None) for file in files[:1]]
        while not sizes:
            busy.wait(0.01)
        answers += [pool.submit(call, address, file, None) for file in files[1:]]
        busy.wait(2)
        busy.set()
        labels = [answer.result()['labels'] for answer in answers]
    assert sizes == [1, len(images) - 1]
    for got, expected in zip(labels, predict(model, images), strict=True):
        assert got == pytest.approx(expected.labels, abs=1e-5)


@pytest.mark.parametrize(
    ('image', 'threshold', 'message'),
    [
        (None, None, 'image must be a file that was uploaded'),
        ('photo.png', None, 'image must be a file that was uploaded'),
        ({'path': 'http://127.0.0.1/a.png'}, None, 'It is not an upload of this page'),
        ('upload', 'high', "threshold is 'high': must be a probability from 0 to below 1."),
        ('upload', 1, 'threshold is 1: must be a probability'),
        ('text', None, 'notes.txt: cannot be read as an image'),
    ],
)
def test_endpoint_reports_bad_requests(address, images, image, threshold, message, tmp_path):
    (tmp_path / 'notes.txt').write_text('no image')
    if image in ('upload', 'text'):
        image = upload(address, images[0] if image == 'upload' else str(tmp_path / 'notes.txt'))
    answer = call(address, image, threshold)
    assert answer['labels'] == {} and message in answer['error'] and str(tmp_path) not in answer['error']


def test_endpoint_opens_an_upload_once_and_no_other_file(address, images, tmp_path):
    file = upload(address, images[0])
    assert call(address, file, None)['error'] is None
    assert 'not an upload' in call(address, file, None)['error']
    assert call(address, {**file, 'path': images[0]}, None) is None  # refused by Gradio


def test_endpoint_answers_mcp_clients(address, model, images):
    mcp = pytest.importorskip('mcp')
    from mcp.client.streamable_http import streamablehttp_client

    async def ask() -> str:
        async with streamablehttp_client(f'{address}gradio_api/mcp/') as (read, write, _):
            async with mcp.ClientSession(read, write) as session:
                await session.initialize()
                (tool,) = (await session.list_tools()).tools
                data = base64.b64encode(Path(images[0]).read_bytes()).decode()
                result = await session.call_tool(tool.name, {'image': f'data:image/png;base64,{data}'})
                return result.content[0].text

    answer = asyncio.run(ask())
    labels = next(predict(model, images[:1])).labels
    assert labels and all(repr(label) in answer for label in labels)
