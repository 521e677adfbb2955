import json
import os
import sys
import tarfile
import warnings

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torchvision.transforms.functional import normalize, to_tensor

import msff_timm.data
from msff_timm import calibration, hub, thresholds
from msff_timm.data import voc
from msff_timm.errors import InputError
from msff_timm.training import evaluate
from msff_timm.training.config import TrainConfig
from msff_timm.training.data_config import EvalDataConfig
from msff_timm.training.evaluate_config import EvaluateConfig
from msff_timm.training.parsing import parse

# COCO's names of VOC's labels, in another order, and two labels that VOC lacks.
COCO = ['zebra', *reversed('airplane bicycle bird boat bottle bus car cat chair cow'.split()), 'dining table', 'dog']
COCO += ['toaster', 'horse', 'motorcycle', 'person', 'potted plant', 'sheep', 'couch', 'train', 'tv']
RENAMED = {'aeroplane': 'airplane', 'diningtable': 'dining table', 'motorbike': 'motorcycle'}
RENAMED |= {'pottedplant': 'potted plant', 'sofa': 'couch', 'tvmonitor': 'tv'}
NUM_IMAGES = 13


def make_model(folder, label_names, name='msff_test_resnet', own_thresholds=None, side=64):
    """Saves an untrained model with spread probabilities."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(label_names))
    data_config = timm.data.resolve_model_data_config(model)
    data_config |= {'input_size': (3, side, side), 'crop_pct': 1.0, 'crop_mode': 'squash'}
    hub.save(model, folder, label_names, data_config, thresholds=own_thresholds)
    return f'local-dir:{folder}'


def run(monkeypatch, **settings):
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    arguments = [f'--{key.replace("__", ".")}={value}' for key, value in settings.items()]
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', '--data.workers=0', *arguments])
    evaluate.main()


@pytest.fixture
def drawn_voc(tmp_path, monkeypatch):
    """VOC2012's layout: a val split with a dog that is always difficult, and a test split without labels."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    base, rng = tmp_path / 'VOCdevkit' / 'VOC2012', np.random.default_rng(0)
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (base / folder).mkdir(parents=True)
    ids = [f'2012_{n:06}' for n in range(NUM_IMAGES)]
    present = rng.random((NUM_IMAGES, 20)) < 0.3
    present[:2] = [[True], [False]]  # each label has a positive and a negative
    states = np.where(present, 1, -1)
    states[3, voc.LABEL_NAMES.index('dog')] = 0
    for image_id, row in zip(ids, states, strict=True):
        pixels = rng.integers(0, 255, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(base / 'JPEGImages' / f'{image_id}.jpg', quality=95)
        box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>48</xmax><ymax>9</ymax></bndbox>'
        objects = ''.join(
            f'<object><name>{name}</name><difficult>{int(state == 0)}</difficult>{box}</object>'
            for name, state in zip(voc.LABEL_NAMES, row, strict=True)
            if state >= 0
        )
        size = '<size><width>48</width><height>48</height><depth>3</depth></size>'
        (base / 'Annotations' / f'{image_id}.xml').write_text(f'<annotation>{size}{objects}</annotation>')
    for split in ('val', 'test'):
        (base / 'ImageSets' / 'Main' / f'{split}.txt').write_text(''.join(f'{image_id}\n' for image_id in ids))
    for name, column in zip(voc.LABEL_NAMES, states.T, strict=True):
        lines = ''.join(f'{image_id} {state}\n' for image_id, state in zip(ids, column, strict=True))
        (base / 'ImageSets' / 'Main' / f'{name}_val.txt').write_text(lines)
    return base, ids, states


def probabilities(folder, base, ids):
    """Probabilities of the images and of their mirror images, without our loader and transform."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images = [Image.open(base / 'JPEGImages' / f'{image_id}.jpg') for image_id in ids]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    with torch.inference_mode():
        return [
            model(torch.stack([normalize(to_tensor(image), [0.5] * 3, [0.5] * 3) for image in side])).sigmoid().numpy()
            for side in (images, mirrored)
        ]


def test_main_evaluates_coco_weights_on_voc_in_two_processes(script, drawn_voc, tmp_path, monkeypatch):
    """Compared with scikit-learn, and F1 by hand, with mapped and difficult labels, flips and own thresholds."""
    base, ids, states = drawn_voc
    label_names = [name for name in COCO if name not in ('sheep', 'tv')]
    per_class = np.linspace(0.3, 0.7, len(label_names)).tolist()
    model = make_model(tmp_path / 'model', label_names, own_thresholds={'per_class': per_class})
    output, scores = tmp_path / 'results.json', tmp_path / 'scores.parquet'
    arguments = ['--data.name=voc2012', f'--data.root={base}', '--data.workers=0', '--batch_size=3', '--threshold=null']
    arguments += [f'--model={model}', '--image_size=48', '--flip=true', f'--output={output}', f'--scores={scores}']
    printed = script('evaluate.py', *arguments, processes=2, as_user=True)
    left_out = f'{model} lacks 2 of the 20 labels; left out: sheep, tvmonitor.'
    assert printed.stdout.splitlines().count(left_out) == 1
    taken = [line for line in printed.stdout.splitlines() if ' is matched to ' in line]
    assert sorted(taken) == [f'{new!r} is matched to {old!r}.' for new, old in sorted(RENAMED.items()) if old != 'tv']

    names = [name for name in voc.LABEL_NAMES if name not in ('sheep', 'tvmonitor')]
    columns = [label_names.index(RENAMED.get(name, name)) for name in names]
    expected = sum(probabilities(tmp_path / 'model', base, ids))[:, columns] / 2
    table = pq.read_table(scores)
    assert table.column_names == ['image_id', *names] and table['image_id'].to_pylist() == ids
    assert {str(field.type) for field in table.schema if field.name != 'image_id'} == {'float'}
    found = np.stack([table[name].to_numpy() for name in names], 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    measured = json.loads(output.read_text())
    states = states[:, [voc.LABEL_NAMES.index(name) for name in names]]
    for k, name in enumerate(names):
        known = states[:, k] != 0
        ap = 100 * average_precision_score(states[known, k] == 1, found[known, k])
        assert measured['labels'][name]['AP'] == pytest.approx(ap, abs=1e-6)
    predicted = (found > np.array(per_class)[columns]) & (states != 0)
    correct = (predicted & (states == 1)).sum()
    of1 = 100 * 2 * correct / (predicted.sum() + (states == 1).sum())
    assert measured['metrics']['OF1'] == pytest.approx(of1, abs=1e-9) and of1 > 0
    assert measured['definitions']['threshold'] == pytest.approx([per_class[column] for column in columns])
    assert measured['labels_left_out'] == ['sheep', 'tvmonitor'] and list(measured['labels']) == names
    assert measured['label_map'] == {new: old for new, old in RENAMED.items() if new != 'tvmonitor'}
    assert (measured['flip'], measured['input_size'], measured['num_processes']) == (True, [3, 48, 48], 2)
    assert measured['mAP_by_size']['large'] is not None and measured['num_images'] == NUM_IMAGES
    assert '--num_processes=2' in measured['command'] and '--image_size=48' in measured['command']
    assert len(measured['devices']) == 2


def test_main_refuses_a_submission_without_all_labels_of_voc(drawn_voc, tmp_path, monkeypatch, capsys):
    base, ids, _ = drawn_voc
    settings = {'data__name': 'voc2012', 'data__root': base, 'data__split': 'test'}
    settings |= {'submission': tmp_path / 'results.tar', 'image_size': 48}
    lacking = make_model(tmp_path / 'lacking', [name for name in COCO if name != 'couch'])
    with pytest.raises(InputError, match=r"needs VOC's 20 labels, and local-dir:.*lacking lacks sofa\."):
        run(monkeypatch, model=lacking, **settings)
    assert not (tmp_path / 'results.tar').exists()

    run(monkeypatch, model=make_model(tmp_path / 'model', COCO), **settings)
    with tarfile.open(tmp_path / 'results.tar') as tar:
        lines = tar.extractfile('results/VOC2012/Main/comp2_cls_test_sofa.txt').read().decode().split()
    assert lines[::2] == ids
    expected = probabilities(tmp_path / 'model', base, ids)[0][:, COCO.index('couch')]
    np.testing.assert_allclose([float(number) for number in lines[1::2]], expected, atol=1e-5)


def test_main_stores_thresholds_and_temperatures_in_the_order_of_the_model(tmp_path, monkeypatch, capsys):
    scenes = msff_timm.data.label_names(msff_timm.data.load('scenes', 'train', size=1))
    names = [*scenes[5:], *scenes[:5]]
    model, scores = make_model(tmp_path / 'model', names), tmp_path / 'scores.parquet'
    run(monkeypatch, model=model, data__size=12, fit_thresholds='true', scores=scores, output=tmp_path / 'r.json')
    table = pq.read_table(scores)
    labels = msff_timm.data.load('scenes', 'validation', size=12)['labels'][:]
    targets = np.array([[scenes.index(name) in row for name in names] for row in labels])
    fitted = thresholds.fit(np.stack([table[name].to_numpy() for name in names], 1), targets)
    assert hub.load(model).thresholds == pytest.approx(fitted.per_class) and len(set(fitted.per_class)) > 1
    found = json.loads((tmp_path / 'r.json').read_text())
    assert found['labels_left_out'] == []
    calibrated = calibration.fit(np.stack([table[name].to_numpy() for name in names], 1), targets)
    expected = [pytest.approx(calibrated.temperatures), pytest.approx(calibrated.biases)]
    assert list(hub.load(model).calibration) == expected
    assert found['calibration']['calibrated']['ECE'] == pytest.approx(calibrated.out_of_fold['calibrated']['ECE'])

    # Without fitting, the model's own values are used.
    capsys.readouterr()
    run(monkeypatch, model=model, data__size=12, output=tmp_path / 'again.json')
    again = json.loads((tmp_path / 'again.json').read_text())['calibration']
    own = calibration.calibrate(np.stack([table[name].to_numpy() for name in names], 1), *hub.load(model).calibration)
    assert again['calibrated']['Brier'] == pytest.approx(calibration.measure(own, targets)['Brier'])
    assert again['uncalibrated'] == found['calibration']['uncalibrated']
    assert "(the model's own temperatures and biases)" in capsys.readouterr().out

    run(monkeypatch, model=model, data__size=12, fit_thresholds='recall:0.9')
    assert hub.load(model).thresholds == pytest.approx(
        thresholds.fit(np.stack([table[name].to_numpy() for name in names], 1), targets, target='recall:0.9').per_class
    )
    assert 'thresholds for a recall of 0.9: fitted for 12 of 12 labels; out of fold ' in capsys.readouterr().out

    with pytest.raises(InputError, match='fit_thresholds is f1: 4 images are too few; use at least 5'):
        run(monkeypatch, model=model, data__size=4, fit_thresholds='true')
    more = make_model(tmp_path / 'more', [*names, 'unicorn'])
    with pytest.raises(
        InputError, match=r'fit_thresholds is f1: each label of .* needs a threshold, and the data lack unicorn\.'
    ):
        run(monkeypatch, model=more, data__size=12, fit_thresholds='true')


@pytest.fixture
def table_root(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    for number in range(4):
        Image.new('RGB', (40, 40), (60 * number, 0, 0)).save(tmp_path / f'{number}.png')
    return tmp_path


def table_of(root, *labels):
    lines = [f'{number}.png,{entry}' for number, entry in enumerate(labels)]
    (root / 'test.csv').write_text('\n'.join(['image,labels', *lines]))


@pytest.mark.parametrize(
    ('labels', 'measured', 'left_out'),
    [
        # The model has all labels that occur: it is evaluated on all of its labels, as in training.
        (('cat', 'dog', 'cat|dog', ''), ['dog', 'cat', 'tv'], []),
        (('tvmonitor', 'unicorn', 'cat|unicorn', ''), ['cat', 'tvmonitor'], ['unicorn']),
    ],
)
def test_main_evaluates_the_labels_of_a_table_that_the_model_has(table_root, monkeypatch, labels, measured, left_out):
    model, output = make_model(table_root / 'model', ['dog', 'cat', 'tv']), table_root / 'results.json'
    table_of(table_root, *labels)
    settings = {'data__name': 'table', 'data__root': table_root, 'data__split': 'test', 'output': output}
    run(monkeypatch, model=model, top_k=5, **settings)
    found = json.loads(output.read_text())
    # All labels are predicted in each image: recall is 100, and precision the share of images that have the label.
    positives = [label['num_positives'] for label in found['labels'].values() if label['num_positives']]
    top = {key: found['top'][key] for key in ('k', 'num_labels', 'P', 'R', 'N+')}
    assert top == {'k': 5, 'num_labels': 2, 'P': pytest.approx(100 * np.mean(positives) / 4), 'R': 100, 'N+': 2}
    assert list(found['labels']) == measured and found['labels_left_out'] == left_out
    assert found['num_images'] == 4 and found['labels']['cat']['num_positives'] == sum('cat' in row for row in labels)


def test_main_leaves_ignored_labels_out_of_the_metrics(table_root, monkeypatch, capsys):
    """They count neither in mAP nor among the top k labels, as if the data did not have them."""
    model, output = make_model(table_root / 'model', ['dog', 'cat', 'tv']), table_root / 'results.json'
    table_of(table_root, 'cat|tv', 'dog', 'cat|dog', 'tv')
    settings = {'data__name': 'table', 'data__root': table_root, 'data__split': 'test', 'output': output, 'top_k': 1}
    scores = table_root / 'scores.parquet'
    run(monkeypatch, model=model, data__ignore_labels='[cat]', scores=scores, **settings)
    printed = capsys.readouterr().out
    assert 'mAP all-points over 2 of 3 labels' in printed and 'data.blank' not in printed
    found, table = json.loads(output.read_text()), pq.read_table(scores)
    truth = {'dog': np.array([0, 1, 1, 0]), 'tv': np.array([1, 0, 0, 1])}
    ap = {name: 100 * average_precision_score(present, table[name].to_numpy()) for name, present in truth.items()}
    aps = {name: label['AP'] for name, label in found['labels'].items()}
    assert aps.pop('cat') is None and aps == pytest.approx(ap)
    assert found['metrics']['mAP'] == pytest.approx(np.mean(list(ap.values())))
    is_dog = table['dog'].to_numpy() >= table['tv'].to_numpy()
    correct = np.where(is_dog, truth['dog'], truth['tv'])
    assert found['top']['OP'] == pytest.approx(100 * correct.mean()) and found['top']['num_labels'] == 2
    assert found['data']['ignore_labels'] == ['cat']
    with pytest.raises(InputError, match="unknown label in data.ignore_labels 'catt': did you mean cat?"):
        run(monkeypatch, model=model, data__ignore_labels='[catt]', **settings)


def test_main_refuses_labels_that_are_not_shared(table_root, monkeypatch):
    table_of(table_root, 'unicorn', 'griffin', '', '')
    settings = {'data__name': 'table', 'data__root': table_root, 'data__split': 'test'}
    named = make_model(table_root / 'model', ['cat', 'dog'])
    message = r'has none of the labels of the data \(griffin, unicorn\), only cat, dog\.'
    with pytest.raises(InputError, match=message):
        run(monkeypatch, model=named, **settings)
    with pytest.raises(InputError, match='m: has 3 labels without names, and the data have 2;'):
        evaluate.share_labels('m', 3, None, ['a', 'b'])
    assert evaluate.share_labels('m', 2, None, ['a', 'b']).columns == [0, 1]  # any model with the same number of logits

    table_of(table_root, 'cat', 'image_id', '', '')
    twice = make_model(table_root / 'twice', ['cat', 'image_id'])
    with pytest.raises(InputError, match='a label is named image_id'):
        run(monkeypatch, model=twice, scores=table_root / 's.parquet', **settings)


def masked_table(root, *rows):
    lines = [f'{number}.png,{row}' for number, row in enumerate(rows)]
    (root / 'test.csv').write_text('\n'.join(['image,cat,dog,owl', *lines]))


def test_main_reports_labels_that_do_not_count(table_root, monkeypatch, capsys):
    """The second of three labels has no absent entry, the third no positive."""
    Image.new('RGB', (40, 40)).save(table_root / '4.png')
    masked_table(table_root, '1,1,0', '0,-1,0', '1,,0', '0,1,', '0,1,0')
    model, output = make_model(table_root / 'model', ['dog', 'cat', 'owl']), table_root / 'results.json'
    scores = table_root / 'scores.parquet'
    settings = {'data__name': 'table', 'data__root': table_root, 'data__split': 'test', 'scores': scores}
    run(monkeypatch, model=model, output=output, fit_thresholds='true', **settings)
    labels, warning, line, top, probabilities, fitted, stored = capsys.readouterr().out.splitlines()
    assert labels == 'labels: 3 columns (cat, dog, owl)' and warning == (
        'warning: test: 2 of 3 labels are left out of mAP and of fitted thresholds: 1 without an absent entry [dog],'
        ' 1 without a positive [owl]; if -1 or blank means absent in the data, set data.minus_one or data.blank to'
        ' absent.'
    )
    assert 'over 1 of 3 labels (1 without an absent entry, 1 without a positive), 1 of them with fewer than 5' in line
    assert top.startswith('top 3: CF1 ') and top.endswith('  N+ 2  (P, R and N+ over 2 labels with a positive)')
    found, table = json.loads(output.read_text()), pq.read_table(scores)
    ap = 100 * average_precision_score([1, 0, 1, 0, 0], table['cat'].to_numpy())
    assert found['metrics']['mAP'] == found['labels']['cat']['AP'] == pytest.approx(ap)
    assert (found['labels']['dog']['AP'], found['labels']['owl']['AP'], found['num_labels_counted']) == (None, None, 1)
    assert probabilities.startswith('probabilities uncalibrated: ECE ')
    assert fitted == (
        'thresholds for the best F1: fitted for 1 of 3 labels, 0.5 for the others; unreliable, with fewer than 5'
        ' positives: cat'
    )
    assert stored.startswith('Thresholds, temperatures and biases stored in ')
    thresholds = json.loads((table_root / 'model' / 'config.json').read_text())['thresholds']
    dog, cat, owl = thresholds['per_class']
    assert thresholds['num_fitted'] == 1 and dog == owl == 0.5 != cat


def test_main_refuses_data_without_labels_before_scoring(table_root, monkeypatch):
    masked_table(table_root, '1,1,0', '-1,,0', '1,,0', '-1,1,')
    monkeypatch.setattr(evaluate, 'score', lambda *_: pytest.fail('it was scored'))
    settings = {'data__name': 'table', 'data__root': table_root, 'data__split': 'test'}
    message = (
        f'{table_root}: test: there is nothing to evaluate on, as no label has both a positive and an absent entry'
        r' among the 4 images .*: if -1 or blank means absent in the data, set data\.minus_one or data\.blank to'
        r' absent\.$'
    )
    with pytest.raises(InputError, match=message):
        run(monkeypatch, model=make_model(table_root / 'model', ['cat', 'dog', 'owl']), **settings)


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('where', ['first', 'last'])
def test_main_reports_weights_that_are_not_finite(tmp_path, monkeypatch, value, where):
    names = msff_timm.data.label_names(msff_timm.data.load('scenes', 'train', size=1))
    model, path = make_model(tmp_path, names), tmp_path / 'model.safetensors'
    weights = load_file(path)
    name = {'first': 'backbone.conv1.0.weight', 'last': 'classifier.bias'}[where]
    weights[name].view(-1)[0] = value
    save_file(weights, path, {'format': 'pt'})
    with pytest.raises(InputError, match=rf'^the logits of the model are not finite \({name} holds NaN or infinity\)'):
        run(monkeypatch, model=model, data__size=5, output=tmp_path / 'results.json')
    assert not (tmp_path / 'results.json').exists()


def test_scorer_averages_exactly_near_0_and_1():
    class Ends(torch.nn.Module):
        def forward(self, images):
            return images[:, 0, 0, :1].repeat(1, 2)  # the upper left pixel; the mirror image has it on the right

    left, right = np.array([0.3, 30, -40, 20]), np.array([-2, 25, -50, -20.0])
    images = torch.tensor(np.stack([left, right], 1), dtype=torch.float32)[:, None, None]
    logits = evaluate.Scorer(Ends(), [1], flip=True)(images).numpy()[:, 0].astype(np.float64)
    for sign in (1, -1):  # both p and 1 - p are exact
        expected = (1 / (1 + np.exp(-sign * left)) + 1 / (1 + np.exp(-sign * right))) / 2
        np.testing.assert_allclose(1 / (1 + np.exp(-sign * logits)), expected, rtol=1e-5)
    assert evaluate.Scorer(Ends(), [1], flip=False)(images)[:, 0].tolist() == pytest.approx(left.tolist())


def test_scorer_reports_weights_that_are_not_finite():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    model[1].bias.data[1] = torch.nan
    assert evaluate.Scorer(model, [0], flip=False)(torch.zeros(1, 3)).isfinite().all()
    with pytest.raises(InputError, match=r'not finite \(1.bias holds NaN or infinity\)'):
        evaluate.Scorer(model, [0, 1], flip=False)(torch.zeros(1, 3))


@pytest.mark.parametrize('image_size', [None, 48])
def test_load_model_resolves_the_channels_of_the_model(image_size, tmp_path):
    model = timm.create_model('msff_test_resnet', num_classes=2, in_chans=1)
    hub.save(model, tmp_path, ['a', 'b'], timm.data.resolve_model_data_config(model))
    _, data_config = evaluate.load_model(f'local-dir:{tmp_path}', image_size)
    side = image_size or 96
    assert tuple(data_config['input_size']) == (1, side, side) and len(data_config['mean']) == 1


def test_load_model_resizes_a_model_of_fixed_input_size(tmp_path):
    torch.manual_seed(0)
    vit = timm.create_model('test_vit', num_classes=2)
    hub.save(vit, tmp_path, ['a', 'b'], timm.data.resolve_model_data_config(vit))
    model, data_config = evaluate.load_model(f'local-dir:{tmp_path}', 96)
    assert data_config['input_size'] == (3, 96, 96) and model(torch.zeros(1, 3, 96, 96)).shape == (1, 2)
    assert evaluate.load_model(f'local-dir:{tmp_path}', None)[1]['input_size'] == (3, 160, 160)
    with pytest.raises(InputError, match='image_size is 100: local-dir:.* does not accept that size'):
        evaluate.load_model(f'local-dir:{tmp_path}', 100)  # not a multiple of the patch size


def test_reporting_faults_reports_a_full_disk(tmp_path):
    with pytest.raises(InputError) as caught, evaluate.reporting_faults(str(tmp_path / 'results.json')):
        raise OSError(28, os.strerror(28))
    assert str(caught.value) == f'{tmp_path}/results.json: cannot be written (No space left on device).'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--image_size=16'], 'image_size is 16: must be at least 32.'),
        (['--flip=perhaps'], 'flip'),
        (['--scores=scores.csv'], 'scores is scores.csv: must end in .parquet.'),
        (['--output={tmp}'], 'output is {tmp}: that is a folder; name a file.'),
        (['--output={tmp}/file/r.json'], 'output is {tmp}/file/r.json: nothing can be written to {tmp}/file (Not a'),
        (['--scores={tmp}/file/s.parquet'], 'scores is {tmp}/file/s.parquet: nothing can be written to {tmp}/file'),
        (['--output=/proc/r.json'], 'output is /proc/r.json: nothing can be written to /proc ('),
        (['--ap=voc12'], "unknown ap 'voc12': did you mean voc11?"),
        (['--top_k=0'], 'top_k is 0: must be at least 1.'),
        (['--top_k=2.5'], 'top_k'),
        (['--threshold=1'], 'threshold is 1.0: must be a probability'),
        (['--data.name=coco20'], "unknown data.name 'coco20': did you mean coco2017?"),
        (['--data.split=trainval'], "unknown data.split of scenes 'trainval': did you mean train?"),
        (['--data.difficult=easy'], "unknown data.difficult 'easy': choose from ignore, negative, positive."),
        (['--data.label_delimiter='], 'data.label_delimiter is empty: must be text'),
        (['--data.name=voc2007'], 'data.root is null: voc2007 needs a folder'),
        (['--data.name=table', '--data.root={tmp}/none'], 'data.root is {tmp}/none: there is no such folder or file.'),
        (['--fit_thresholds=precision:2'], "target 'precision:2' must be f1, or precision:P or recall:R"),
        (['--fit_thresholds=true', '--model=hf-hub:a/b'], 'hf-hub:a/b is not local-dir:FOLDER.'),
        (['--fit_thresholds=true', '--flip=true'], "for the model's own input; leave out flip and image_size."),
        (['--submission=a.tar'], 'submission is for the whole test split of voc2012'),
        ([*'--data.name=voc2012 --data.split=test --data.root={tmp} --submission=a.zip'.split()],
         'submission is a.zip: must end in .tar or .tar.gz or .tgz.'),
        ([*'--data.name=voc2012 --data.split=test --data.root={tmp} --submission=a.tar --output=r.json'.split()],
         'output is r.json: a submission has no metrics; leave it out.'),
    ],
)  # fmt: skip
def test_main_names_wrong_settings_before_loading(arguments, message, tmp_path):
    (tmp_path / 'file').touch()
    arguments = ['--model=local-dir:nowhere', *(argument.format(tmp=tmp_path) for argument in arguments)]
    with pytest.raises(InputError) as caught:
        parse(EvaluateConfig, arguments)
    assert message.format(tmp=tmp_path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', [name for name in msff_timm.data.NAMES if name not in ('auto', 'hub')])
def test_eval_data_config_accepts_the_splits_that_load(name, tmp_path):
    for split in ('train', 'validation', 'val', 'trainval', 'test'):
        allowed = split in (*msff_timm.data.SPLITS[name], 'val')
        try:
            EvalDataConfig(name=name, split=split, root=None if name == 'scenes' else str(tmp_path)).validate()
            assert allowed
        except InputError:
            assert not allowed
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                msff_timm.data.load(name, split, str(tmp_path), 1, image_size=32)
                known = True
            except InputError as e:
                known = not str(e).startswith(('unknown split', 'split must be'))
        assert known == allowed, split


def test_data_config_checks_the_splits():
    with pytest.raises(InputError, match="unknown data.eval_split of scenes 'tset': did you mean test"):
        parse(TrainConfig, ['--output=x', '--data.name=scenes', '--data.eval_split=tset', '--optim.epochs=1'])
