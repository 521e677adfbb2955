"""Tags: `pretrained=True` with weights in the package, on a Hub, or not published yet."""

import json
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hub_server import Fault, HubServer
from PIL import Image
from sklearn.metrics import average_precision_score

import msff_timm.data
from msff_timm import hub
from msff_timm.data import scenes, voc
from msff_timm.data.voc_files import read_boxes
from msff_timm.inference.attention import smooth_map
from msff_timm.inference.explain import explain
from msff_timm.labels import COCO_LABELS, VOC_LABELS
from msff_timm.models import msff
from msff_timm_cli.commands import main

pytestmark = pytest.mark.usefixtures('one_thread')
NOWHERE = {'HF_ENDPOINT': 'http://127.0.0.1:9'}
TAGS = {
    'msff_resnet101.coco2014_448': (COCO_LABELS, 448),
    'msff_resnet101.coco2014_576': (COCO_LABELS, 576),
    'msff_resnet101.voc2007_448': (VOC_LABELS, 448),
    'msff_resnet101.voc2012_448': (VOC_LABELS, 448),
    'msff_efficientnet_lite0.voc2012_subset': (VOC_LABELS, 320),
    'msff_test_resnet.scenes': (scenes.LABEL_NAMES, 96),
}
TAG = 'msff_test_resnet.scenes'  # its weights are part of the package, and small enough to be published in a test too
ON_HUB = {'file': None}
THRESHOLDS = [k / 16 for k in range(12)]
PHOTOS = 'msff_efficientnet_lite0.voc2012_subset'  # its weights are part of the package too
RESULTS = Path(__file__).parents[2] / 'hub_cards' / 'results' / f'{TAG}.json'


def python(code: str, environment: dict[str, str], home: Path) -> list[str]:
    """Runs code in another process, without pauses between the Hub client's retries; returns the printed lines."""
    code = f'import time; time.sleep = lambda seconds: None\nimport timm, msff_timm, torch\n{code}'
    environment = {**os.environ, 'HF_HOME': str(home), **environment}
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def attempt(name: str, **overlay: object) -> str:
    """Returns code that prints the exception of creating a pretrained model of the Hub."""
    return f"""
try: timm.create_model({name!r}, pretrained=True, pretrained_cfg_overlay={ON_HUB | overlay!r})
except Exception as e: print(type(e).__name__, e)
"""


@pytest.mark.parametrize('name', TAGS)
def test_tag_has_labels_preprocessing_licence_and_origin(name):
    (label_names, side), cfg = TAGS[name], timm.get_pretrained_cfg(name)
    assert cfg.hf_hub_id == f'{msff.HUB_NAMESPACE}/{name}' and cfg.label_names == label_names
    assert cfg.num_classes == len(label_names) and cfg.input_size == (3, side, side)
    assert cfg.pool_size == (side // 16, side // 16)
    is_lite = 'lite0' in name
    interpolation = 'bicubic' if is_lite else 'bilinear'
    assert (cfg.crop_mode, cfg.crop_pct, cfg.interpolation) == ('squash', 1.0, interpolation)
    backbone = 'test_resnet' if 'test' in name else 'tf_efficientnet_lite0' if is_lite else 'resnet101'
    backbone = timm.get_pretrained_cfg(backbone)
    assert (cfg.mean, cfg.std) == (backbone.mean, backbone.std)
    assert cfg.license == 'apache-2.0' and cfg.paper_ids == 'doi:10.32604/cmc.2025.059102'
    assert timm.is_model_pretrained(name) and name in timm.list_pretrained('msff_*')


def test_default_tag_is_the_first():
    assert timm.get_pretrained_cfg('msff_resnet101').tag == 'coco2014_448'
    assert not timm.is_model_pretrained('msff_resnet50')


def test_label_names_equal_those_of_the_data(coco_root):
    content = json.loads((coco_root / 'annotations' / 'instances_val2014.json').read_text())
    categories = sorted(content['categories'], key=lambda category: category['id'])
    assert list(COCO_LABELS) == [category['name'] for category in categories]
    assert VOC_LABELS == voc.LABEL_NAMES == tuple(sorted(VOC_LABELS)) and len(VOC_LABELS) == 20


def test_create_model_drops_a_tag_without_weights_and_labels_that_do_not_fit(tmp_path):
    model = timm.create_model('msff_test_resnet', num_classes=3)
    hub.save(model, tmp_path, ['a', 'b', 'c'], timm.data.resolve_model_data_config(model))
    saved = json.loads((tmp_path / 'config.json').read_text())
    assert 'tag' not in saved['pretrained_cfg'] and saved['label_names'] == ['a', 'b', 'c']
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert again.pretrained_cfg['label_names'] == ['a', 'b', 'c']
    for name, arguments in ((f'local-dir:{tmp_path}', {'pretrained': True, 'num_classes': 5}), (TAG, {})):
        assert timm.create_model(name, **arguments).pretrained_cfg['label_names'] is None


def line_of(namespace: str, why: str, home: Path, tag: str = TAG) -> str:
    return (
        f'{tag}: {namespace}/{tag} at http://127.0.0.1:9 {why}, and the cache {home / "hub"} holds no copy; perhaps'
        ' nobody has published weights there yet. Train the model (train/README.md) and use --model'
        ' local-dir:FOLDER, or set MSFF_HUB_NAMESPACE to the owner of published weights.'
    )


def test_fetch_weights_explains_a_missing_network_in_one_line(tmp_path):
    environment = {**NOWHERE, 'HF_HUB_OFFLINE': '0', 'MSFF_HUB_NAMESPACE': 'me'}
    (line,) = python(attempt('msff_test_resnet'), environment, tmp_path)
    # Older clients of the Hub put more around the reason.
    reason = re.search(r'\((.*Connection refused.*?)\), and the cache', line)[1]
    assert line == 'InputError ' + line_of('me', f'cannot be reached ({reason})', tmp_path)


def test_fetch_weights_explains_offline_mode(tmp_path):
    environment = {**NOWHERE, 'HF_HUB_OFFLINE': '1', 'MSFF_HUB_NAMESPACE': ''}
    command = ['predict', 'photo.jpg', '--model', 'msff_resnet101']
    code = attempt('msff_test_resnet') + attempt(TAG, hf_hub_id='not/valid/name')
    code += f'import sys; from msff_timm_cli import commands as cli; sys.stderr = sys.stdout; cli.main({command})'
    by_timm, invalid, by_command = python(code, environment, tmp_path)
    line = partial(line_of, 'msff-timm', 'was not contacted, since HF_HUB_OFFLINE is set', tmp_path)
    assert by_timm == f'InputError {line()}'
    assert by_command == f'msff-timm: error: {line("msff_resnet101.coco2014_448")}'
    assert invalid.startswith(f'InputError {TAG}: not/valid/name at http://127.0.0.1:9 cannot be read (Repo id must be')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Starts a Hub with the weights of a tag, a repository without weights, and one with a pickle."""
    root = tmp_path_factory.mktemp('hub')
    torch.manual_seed(0)
    model = timm.create_model(TAG).eval()
    folder = root / 'models' / 'msff-timm' / TAG
    data_config = timm.data.resolve_model_data_config(model)
    hub.save(model, folder, list(scenes.LABEL_NAMES), data_config, thresholds={'per_class': THRESHOLDS})
    for namespace in ('empty', 'gated'):
        (root / 'models' / namespace / TAG).mkdir(parents=True)
    (root / 'models' / 'empty' / TAG / 'README.md').write_text('nothing yet')
    pickled = root / 'models' / 'pickled' / TAG
    pickled.mkdir(parents=True)
    (pickled / 'config.json').write_bytes((folder / 'config.json').read_bytes())
    (pickled / 'pytorch_model.bin').write_bytes(pickle.dumps({'this': 'is never read'}))
    with HubServer(root) as server:
        yield server, model


CREATE = f"""
torch.set_num_threads(1)
model = timm.create_model({TAG!r}, pretrained=True, pretrained_cfg_overlay={ON_HUB}, cache_dir='CACHE').eval()
torch.manual_seed(1)
with torch.inference_mode():
    print(model(torch.randn(2, 3, 96, 96)).numpy().tobytes().hex())
print(*model.pretrained_cfg['label_names'])
"""


def test_fetch_weights_downloads_once_and_explains_what_is_missing(published, tmp_path):
    server, model = published
    commit = server.repository(f'msff-timm/{TAG}').refs['main']
    server.gated.add(f'gated/{TAG}')
    create = CREATE.replace('CACHE', str(tmp_path / 'cache'))
    code = create + f'timm.create_model("hf-hub:msff-timm/{TAG}@{commit}", pretrained=True)\n'
    for repo_id in (f'nobody/{TAG}', f'empty/{TAG}', f'gated/{TAG}', f'msff-timm/{TAG}@v7'):
        code += attempt(TAG, hf_hub_id=repo_id)
    code += attempt(f'hf-hub:pickled/{TAG}')
    environment = {**server.environment(tmp_path / 'home'), 'MSFF_HUB_NAMESPACE': ''}
    *created, nobody, empty, gated, revision, pickled = python(code, environment, tmp_path / 'home')
    at = f'at {server.url}'
    assert f'nobody/{TAG} {at} holds no weights yet: the repository does not exist, or HF_TOKEN' in nobody
    assert f'empty/{TAG} {at} holds no weights yet: it lacks config.json or model.safetensors. Train the' in empty
    assert f'gated/{TAG} {at} is gated: request access on its page, and set HF_TOKEN. Train the' in gated
    assert f'msff-timm/{TAG}@v7 {at} has no such revision. Train the model' in revision
    assert (
        f'pickled/{TAG} {at} holds no weights yet: it lacks config.json or model.safetensors. Fix the cause' in pickled
    )
    assert all(line.startswith('InputError msff_test_resnet') for line in (nobody, empty, gated, revision, pickled))
    asked = {path.rpartition('/')[2] for _, path in server.requests if '/resolve/' in path}
    assert asked == {'config.json', 'model.safetensors'}  # and no pickle

    server.requests.clear()
    assert python(create, {**environment, 'HF_HUB_OFFLINE': '1'}, tmp_path / 'home') == created
    assert not server.requests and len(list((tmp_path / 'cache').rglob('*.safetensors'))) == 1
    torch.manual_seed(1)
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 96, 96))
    assert created == [logits.numpy().tobytes().hex(), ' '.join(scenes.LABEL_NAMES)]


def test_load_finds_the_thresholds_of_a_tag(published, tmp_path):
    server, _ = published
    # As if the weights were not part of the package.
    code = f"""
import dataclasses, os
from timm.models import _registry
from msff_timm import hub
cfg = _registry._model_pretrained_cfgs[{TAG!r}]
_registry._model_pretrained_cfgs[{TAG!r}] = dataclasses.replace(cfg, file=None)
model = hub.load({TAG!r}, cache_dir=os.environ['HF_HOME'])
print(model.thresholds)
print(model.pretrained_cfg['hf_hub_id'])
"""
    thresholds, found = python(code, {**server.environment(tmp_path), 'MSFF_HUB_NAMESPACE': ''}, tmp_path)
    commit = server.repository(f'msff-timm/{TAG}').refs['main']
    assert json.loads(thresholds) == THRESHOLDS and found == f'msff-timm/{TAG}@{commit}'


def test_fetch_weights_refuses_another_digest(published, tmp_path):
    server, _ = published
    server.faults.append(Fault('/resolve/.*/model.safetensors|/storage/', 'corrupt', method='GET'))
    (line,) = python(attempt(TAG), {**server.environment(tmp_path), 'MSFF_HUB_NAMESPACE': ''}, tmp_path)
    assert server.faults.pop().times == 0
    assert line.startswith('ValueError model.safetensors is damaged: its digest is') and 'Try again' in line


def test_packaged_weights_have_the_recorded_metrics(monkeypatch):
    """Evaluates with timm's transform and scikit-learn's average precision instead of ours."""
    monkeypatch.setattr('socket.socket.connect', None)  # no network
    model = timm.create_model('msff_test_resnet', pretrained=True).eval()
    assert Path(model.pretrained_cfg['file']).stat().st_size < 6e6
    recorded = json.loads(RESULTS.read_text())
    dataset = msff_timm.data.load('scenes', recorded['data']['split'], size=recorded['num_images'], image_size=96)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    targets = np.zeros((len(dataset), 12), int)
    for i, labels in enumerate(dataset['labels']):
        targets[i, labels] = 1
    images = torch.stack([transform(row['image']) for row in dataset])
    with torch.inference_mode():
        logits = [model(part) for part in images.split(125)]
    AP = average_precision_score(targets, torch.cat(logits).numpy(), average=None)
    assert 100 * AP.mean() == pytest.approx(recorded['metrics']['mAP'], abs=0.01) and recorded['metrics']['mAP'] >= 90
    assert model.pretrained_cfg['label_names'] == tuple(recorded['labels']) == scenes.LABEL_NAMES
    by_label = [label['AP'] for label in recorded['labels'].values()]
    assert 100 * AP == pytest.approx(np.array(by_label), abs=0.1)  # versions of torch round differently
    assert recorded['command'] == 'accelerate launch train/train.py' and not recorded['git_dirty']


def test_packaged_weights_serve_for_prediction_and_training(tmp_path, capsys):
    msff_timm.data.load('scenes', 'test', size=1, image_size=96)[0]['image'].save(tmp_path / 'scene.png')
    assert main(['predict', str(tmp_path / 'scene.png'), '--model', 'msff_test_resnet', '--json']) == 0
    (photo,) = json.loads(capsys.readouterr().out)
    recorded = json.loads(RESULTS.read_text())
    per_class = recorded['thresholds']['per_class']
    model = hub.load('msff_test_resnet')
    assert model.thresholds == pytest.approx(per_class)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        probabilities = model(transform(Image.open(tmp_path / 'scene.png'))[None]).sigmoid()[0].tolist()
    present = {
        name: p for name, p, least in zip(scenes.LABEL_NAMES, probabilities, per_class, strict=True) if p > least
    }
    assert photo['labels'] == pytest.approx(present, abs=1e-5) and present
    with torch.inference_mode():
        fine = timm.create_model('msff_test_resnet', pretrained=True, num_classes=3).eval()
        assert fine(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    hub.save(fine, tmp_path, ['a', 'b', 'c'], timm.data.resolve_model_data_config(fine))
    assert 'weights' not in (tmp_path / 'config.json').read_text()


@pytest.mark.parametrize(
    ('image_id', 'labels'), [('2010_003331', {'dog', 'sofa'}), ('2008_004774', {'dog', 'person', 'sofa'})]
)
def test_default_model_needs_no_network(image_id, labels, voc_root, monkeypatch, capsys):
    monkeypatch.setattr('socket.socket.connect', None)
    photo = str(voc_root / 'VOC2012' / 'JPEGImages' / f'{image_id}.jpg')
    assert main(['predict', photo, '--json']) == 0
    printed = capsys.readouterr()
    line = 'model: msff_efficientnet_lite0 (20 labels of PASCAL VOC; --model for others)'
    assert printed.err.splitlines()[0] == line
    assert json.loads(printed.out)[0]['labels'].keys() == labels


def test_attention_peaks_in_the_box_of_each_label(voc_root):
    """The two boxes overlap by a few pixels only."""
    base = voc_root / 'VOC2012'
    photo, boxes = base / 'JPEGImages' / '2008_004774.jpg', read_boxes(base / 'Annotations' / '2008_004774.xml')
    explanation = explain(hub.load(PHOTOS), photo, ['person', 'sofa'])
    heats = smooth_map(explanation.maps, (boxes.height, boxes.width))
    for label, heat in zip(explanation.labels, heats, strict=True):
        row, column = divmod(heat.argmax().item(), boxes.width)
        ((left, top, right, bottom),) = boxes.easy[label]
        assert left < column < right and top < row < bottom
        assert (row > 177) == (label == 'sofa')  # below the person


@pytest.mark.slow
def test_packaged_photo_weights_have_the_recorded_metrics(voc_root):
    """Evaluates from the files with timm's transform and scikit-learn; the weights are stored in float16."""
    recorded = json.loads(RESULTS.with_name(f'{PHOTOS}.json').read_text())
    model = hub.load(PHOTOS)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    base = voc_root / 'VOC2012'
    states = {}  # from VOC's class files: 1 present, -1 absent, 0 difficult only
    for name in VOC_LABELS:
        for line in (base / 'ImageSets' / 'Main' / f'{name}_val.txt').read_text().splitlines():
            image_id, state = line.split()
            states.setdefault(image_id, {})[name] = int(state)
    with torch.inference_mode():
        scores = np.concatenate(
            [
                model(transform(Image.open(base / 'JPEGImages' / f'{image_id}.jpg'))[None]).sigmoid().numpy()
                for image_id in states
            ]
        )
    target = np.array([[state[name] for name in VOC_LABELS] for state in states.values()])
    AP = [
        100 * average_precision_score(target[kept, k] == 1, scores[kept, k])
        for k in range(len(VOC_LABELS))
        if len(kept := np.flatnonzero(target[:, k]))
    ]
    assert len(states) == recorded['num_images'] == 2001 and recorded['data']['title'].startswith('VOC 2012 subset')
    assert np.mean(AP) == pytest.approx(recorded['metrics']['mAP'], abs=0.1)
    assert [recorded['labels'][name]['AP'] for name in VOC_LABELS] == pytest.approx(AP, abs=0.5)
    assert recorded['command'].startswith('accelerate launch train/train.py --config') and not recorded['git_dirty']
