import csv
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

import msff_timm.data
from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.inference import export as exporting
from msff_timm.inference.export import export, read_metadata
from msff_timm.inference.precision import MOST_IMAGES, Checked, load_check
from msff_timm_cli import commands as cli

COLOURS = {'red': (200, 30, 30), 'green': (30, 200, 30), 'blue': (30, 30, 200)}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Images of one or two coloured halves, and a table of their colours."""
    root, rng, names = tmp_path_factory.mktemp('colours'), np.random.default_rng(0), list(COLOURS)
    with (root / 'validation.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['image', *names])
        for k in range(24):
            pair = rng.integers(3, size=2)
            pixels = np.array([COLOURS[names[c]] for c in pair]).repeat(32, 0)[None].repeat(64, 0)
            pixels = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f'{k}.png')
            writer.writerow([f'{k}.png', *(int(c in pair) for c in range(3))])
    return root


@pytest.fixture(scope='module')
def folder(root, tmp_path_factory):
    """A model whose classifier is fitted to these images, so that its mAP is high."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3).eval()
    data_config = {
        'input_size': (3, 64, 64),
        'crop_pct': 1.0,
        'crop_mode': 'squash',
        'mean': (0.5,) * 3,
        'std': (0.5,) * 3,
    }
    folder = tmp_path_factory.mktemp('model')
    samples = load_check('table', [f'root={root}'], 64)[0]
    images = torch.stack([torch.from_numpy(np.array(row['image'])).permute(2, 0, 1) / 127.5 - 1 for row in samples])
    targets = torch.tensor([[float(k in row['labels']) for k in range(3)] for row in samples])
    order = [msff_timm.data.label_names(samples).index(name) for name in COLOURS]
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        features = torch.cat([features, torch.ones(len(features), 1)], 1)
        weights = torch.linalg.lstsq(features, 4 * targets[:, order] - 2, driver='gelsd').solution
        model.fc.weight.copy_(weights[:-1].T), model.fc.bias.copy_(weights[-1])
    thresholds = {'per_class': [0.4, 0.5, 0.6], 'temperatures': [1, 2, 0.5], 'biases': [0, -1, 1]}
    hub.save(model, folder, list(COLOURS), data_config, thresholds=thresholds)
    return folder


def options(root, precision='int8', **more):
    images = sorted(map(str, root.glob('*.png')))
    return {'precision': precision, 'calibration_images': images, 'check_data': ('table', [f'root={root}']), **more}


@pytest.mark.parametrize('precision', ['float16', 'int8'])
def test_export_writes_a_smaller_file_whose_map_holds(precision, folder, root, tmp_path):
    """scikit-learn computes mAP of the file, run as its users do."""
    found = export(hub.load(f'local-dir:{folder}'), tmp_path / 'm.onnx', 'onnx', **options(root, precision, max_drop=5))
    assert [path.name for path in tmp_path.iterdir()] == ['m.onnx']
    assert found.num_bytes == (tmp_path / 'm.onnx').stat().st_size < 0.7 * found.num_bytes_before
    session = onnxruntime.InferenceSession(tmp_path / 'm.onnx')
    rows = list(csv.DictReader((root / 'validation.csv').open()))
    pixels = np.stack([np.array(Image.open(root / row['image']), np.float32) for row in rows]) / 127.5 - 1
    (logits,) = session.run(['logits'], {'image': pixels.transpose(0, 3, 1, 2)})
    targets = np.array([[int(row[name]) for name in COLOURS] for row in rows])
    expected = 100 * np.mean([average_precision_score(targets[:, k], logits[:, k]) for k in range(3)])
    checked = found.checked
    assert checked.after == pytest.approx(expected, abs=0.5) and abs(checked.before - checked.after) <= 5
    assert checked.before > 90 and (checked.num_images, checked.num_labels) == (24, 3)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / 'm.onnx').graph.initializer}
    assert (onnx.TensorProto.FLOAT16 if precision == 'float16' else onnx.TensorProto.INT8) in kinds
    metadata = read_metadata(tmp_path / 'm.onnx')
    assert metadata['label_names'] == list(COLOURS) and metadata['input_size'] == [3, 64, 64]
    assert (metadata['thresholds'], metadata['temperatures'], metadata['biases']) == (
        [0.4, 0.5, 0.6],
        [1, 2, 0.5],
        [0, -1, 1],
    )


def test_export_removes_a_file_that_loses_too_much(folder, root, tmp_path, monkeypatch):
    path = tmp_path / 'm.onnx'
    export(hub.load(f'local-dir:{folder}'), path, 'onnx')
    before = path.read_bytes()
    for checked, message in (
        (
            Checked('table validation', 24, 3, 90.0, 89.4),
            r'int8 loses more than 0\.5 percentage points: mAP 89\.40 instead',
        ),
        (Checked('table validation', 24, 3, 90.0, float('nan')), r'int8 loses more than 0\.5'),
    ):
        monkeypatch.setattr(exporting, 'check', lambda *_, checked=checked: checked)
        with pytest.raises(InputError, match=message):
            export(hub.load(f'local-dir:{folder}'), path, 'onnx', **options(root))
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(exporting, 'check', lambda *_: Checked('table validation', 24, 3, 90.0, 90.0))
    monkeypatch.setattr(
        exporting, 'reduce_precision', lambda source, target, *_: target.write_bytes(source.read_bytes())
    )
    with pytest.raises(InputError, match='int8 saves nothing: mAP 90.00 instead of 90.00 on 24 images of table'):
        export(hub.load(f'local-dir:{folder}'), path, 'onnx', **options(root))


def test_export_takes_ranges_from_at_most_so_many_images(folder, root, tmp_path, monkeypatch):
    images = [str(root / f'{k % 24}.png') for k in range(2 * MOST_IMAGES + 50)]
    taken = []

    def reduce(source, target, precision, batches):
        taken.extend(batch.shape for batch in batches)
        target.write_bytes(source.read_bytes()[:100])

    monkeypatch.setattr(exporting, 'reduce_precision', reduce)
    monkeypatch.setattr(
        exporting, '_open_onnx', lambda file: lambda image: hub.load(f'local-dir:{folder}')(image).detach()
    )
    monkeypatch.setattr(exporting, '_write_onnx', None)
    monkeypatch.setitem(exporting.FORMATS, 'onnx', (lambda m, e, f, d: f.write_bytes(bytes(200)), exporting._open_onnx))
    export(hub.load(f'local-dir:{folder}'), tmp_path / 'm.onnx', 'onnx', **options(root, calibration_images=images))
    assert taken == [(1, 3, 64, 64)] * MOST_IMAGES


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'precision': 'int4'}, "unknown precision 'int4'"),
        ({'check_data': None}, 'give labelled images with --check'),
        ({'calibration_images': []}, 'give images like those to come with --calibrate'),
        ({'format': 'torch-export'}, 'only onnx files have it'),
        ({'check_data': ('table', ['root'])}, 'settings are KEY=VALUE'),
        ({'check_data': ('table', ['rot=x'])}, "unknown setting of --check 'rot': did you mean root"),
        ({'check_data': ('table', ['size=x'])}, 'x is no value of size'),
        ({'check_data': ('scenes', ['size=4'])}, 'the model has none of the labels of scenes validation'),
    ],
)
def test_export_refuses_a_precision_that_it_cannot_check(more, message, folder, root, tmp_path):
    given = options(root, **more)
    with pytest.raises(InputError, match=message):
        export(hub.load(f'local-dir:{folder}'), tmp_path / 'm.pt2', given.pop('format', 'onnx'), **given)
    assert list(tmp_path.iterdir()) == []


def test_export_command_prints_size_and_map(folder, root, tmp_path, capsys):
    arguments = ['export', '--model', f'local-dir:{folder}', '--format', 'onnx', '-o', str(tmp_path / 'm.onnx')]
    arguments += [
        '--precision',
        'int8',
        '--calibrate',
        str(root),
        '--check',
        'table',
        f'root={root}',
        '--max-drop',
        '9',
    ]
    assert cli.main(arguments) == 0
    line = capsys.readouterr().out
    assert line.startswith(f'{tmp_path}/m.onnx: onnx, int8, 0.') and ' on 24 images of table validation.' in line
    assert json.loads(json.dumps(read_metadata(tmp_path / 'm.onnx')))['architecture'] == 'test_resnet'
