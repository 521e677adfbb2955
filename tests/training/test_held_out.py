"""Validation images that are held out of the training split, and checks of the labels before the first step."""

import json
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
from PIL import Image

from msff_timm import hub
from msff_timm.data import load
from msff_timm.errors import InputError, NoSplitError
from msff_timm.training import evaluate
from msff_timm.training.config import DataConfig
from msff_timm.training.run_data import load_data

TINY = ['--data.train_size=null', '--data.eval_size=null', '--data.image_size=32', '--data.workers=0']
TINY += ['--optim.epochs=1', '--optim.batch_size=8', '--data.name=table']
COMMAND = 'msff-timm data split table --root {} --validation 0.2'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))


def write(path, rows):
    """Writes a table of `rows` with an image of noise for each."""
    path.parent.mkdir(exist_ok=True)
    lines = ['image,labels']
    for number, labels in enumerate(rows):
        name = f'{path.stem}-{number}.png'
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(path.with_name(name))
        lines.append(f'{name},{labels}')
    path.write_text('\n'.join(lines))
    return path


@pytest.fixture
def table(tmp_path):
    """60 images: a third with a cat, a third with a dog, one with a yak, and all with a sky."""
    rows = [f'sky{["|cat", "|dog", ""][number % 3]}' for number in range(60)]
    rows[0] += '|yak'
    return write(tmp_path / 'photos' / 'train.csv', rows)


def run_evaluate(monkeypatch, model, root, **settings):
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    arguments = [f'--{key.replace("__", ".")}={value}' for key, value in settings.items()]
    arguments += ['--data.name=table', f'--data.root={root}', f'--model=local-dir:{model}', '--data.workers=0']
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', *arguments])
    evaluate.main()


def test_run_holds_out_validation_images_that_evaluate_finds_again(script, table, tmp_path, monkeypatch, capsys):
    root, output = table.parent, tmp_path / 'run'
    printed = script(
        'train.py', *TINY, f'--data.root={root}', '--data.validation=0.2', f'--output={output}', processes=2
    ).stdout
    lines = printed.splitlines()
    note = 'validation: 12 images held out of train (data.validation 0.2, stratified, seed 0)'
    assert lines.count(f'{note}, which leaves 48; to write a split to a table: {COMMAND.format(root)}') == 1
    warnings = [
        'warning: validation: 2 of 4 labels are left out of mAP and of fitted thresholds: 1 without an absent entry'
        ' [sky], 1 without a positive [yak].',
        'warning: train: 1 of 4 labels cannot be learnt: 1 without an absent entry [sky], 0 without a positive.',
    ]
    start = next(number for number, line in enumerate(lines) if line.startswith('Training '))
    assert [line for line in lines[:start] if line.startswith('warning: ')] == warnings

    run = json.loads((output / 'results.json').read_text())
    definition = {'name': 'table', 'split': 'validation', 'root': 'photos'}
    definition['validation'] = '0.2 of train, stratified, seed 0'
    assert run['data'] == {**definition, 'trained_on': 'train'} and run['num_images'] == 12
    # Of the 60 images, a fifth of each label's
    positives = {name: label['num_positives'] for name, label in run['labels'].items()}
    assert positives == {'cat': 4, 'dog': 4, 'sky': 12, 'yak': 0}

    results = tmp_path / 'again.json'
    run_evaluate(monkeypatch, output, root, output=results)
    again = json.loads(results.read_text())
    assert f'{note}\n' in capsys.readouterr().out
    assert again['data'] == definition and again['metrics'] == pytest.approx(run['metrics'], abs=1e-6)
    run_evaluate(monkeypatch, output, root, data__size=5)
    assert '(5 images, ' in capsys.readouterr().out

    # Another image moves the split, so some of these images were trained on.
    write(table, ['cat', 'dog', ''] * 21)
    with pytest.raises(InputError, match='held out 0.2 of its training images, but not these: the data have changed'):
        run_evaluate(monkeypatch, output, root)
    run_evaluate(monkeypatch, output, root, data__validation=0.2)
    warning = 'warning: the model did not hold out these images: if it was trained on them, metrics are too high.'
    assert warning in capsys.readouterr().out.splitlines()


def test_evaluate_holds_out_nothing_without_a_share(table, tmp_path, monkeypatch):
    trained, model = tmp_path / 'model', timm.create_model('msff_test_resnet', num_classes=4)
    hub.save(model, trained, ['cat', 'dog', 'sky', 'yak'], timm.data.resolve_model_data_config(model))
    assert hub.load(f'local-dir:{trained}').held_out is None
    advice = f'Set data.validation to the share of train to hold out, e.g. 0.2, or write a split to a table: {COMMAND}'
    with pytest.raises(InputError) as refused:
        run_evaluate(monkeypatch, trained, table.parent)
    root = table.parent
    found = f'{root}: has no table of the split validation (found: train.csv). '
    assert str(refused.value) == found + advice.format(root)
    with pytest.raises(NoSplitError, match='no table of the split test'):
        run_evaluate(monkeypatch, trained, root, data__split='test', data__validation=0.2)


def load_splits(**settings):
    accelerator = SimpleNamespace(main_process_first=nullcontext, num_processes=1, print=print)
    data = DataConfig(name='table', **settings)
    return data, *load_data(data, accelerator)


def test_load_data_holds_out_only_if_there_is_no_validation_split(table, capsys):
    root = str(table.parent)
    with pytest.raises(InputError, match='has no table of the split validation .* Set data.validation to the share'):
        load_splits(root=root)
    with pytest.raises(NoSplitError, match='no table of the split test'):
        load_splits(root=root, validation=0.2, eval_split='test')
    data, train, validation, _, held_out = load_splits(root=root, validation=0.2, eval_split='val', train_size=10)
    assert data.definition('val')['validation'] == '0.2 of train, stratified, seed 0'
    assert (len(train), len(validation), data.validation, held_out['share']) == (10, 12, 0.2, 0.2)
    assert not {*train['image_id'][:]} & {*validation['image_id'][:]}
    assert len(load_splits(root=root, validation=0.2, eval_size=5)[2]) == 5

    shutil.copy(table, table.with_name('validation.csv'))
    capsys.readouterr()
    data, train, validation, _, held_out = load_splits(root=root, validation=0.2)
    assert (len(train), len(validation), data.validation, held_out) == (60, 60, None, None)
    assert 'validation' not in data.definition('validation') and capsys.readouterr().out == ''

    # A fault in the files of a validation split is no reason to do without it.
    table.with_name('validation.csv').write_text('image,labels\ngone.png,cat')
    with pytest.raises(InputError, match='gone.png'):
        load_splits(root=root, validation=0.2)


@pytest.mark.parametrize('validation', [0, 1, 20])
def test_data_config_refuses_shares(validation):
    with pytest.raises(InputError, match=f'data.validation is {validation}: must be a share'):
        DataConfig(name='table', validation=validation).validate()


def test_hold_out_drops_unlabelled_images_of_coco_as_evaluation_does(coco_root, tmp_path):
    for name in ('train2014', 'annotations/instances_train2014.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(coco_root / name)
    kept = {}
    for keep in (None, True):
        data = DataConfig(name='coco2014', root=str(tmp_path), validation=0.5, keep_unlabelled=keep)
        with pytest.raises(NoSplitError, match='instances_val2014.json is missing'):
            data.load('validation', None, 32)
        kept[keep] = data.hold_out(32)
    unlabelled = [labels for labels in kept[True][1]['labels'][:] if not labels]
    assert len(kept[None][0]) == len(kept[True][0]) and len(kept[True][1]) - len(kept[None][1]) == len(unlabelled)
    assert all(kept[None][1]['labels'][:])


def test_run_names_labels_of_validation_that_train_lacks(script, table, tmp_path):
    write(table.with_name('validation.csv'), ['sky|gnu', 'sky|gnu', 'cat', 'dog'])
    printed = script('train.py', *TINY, f'--data.root={table.parent}', f'--output={tmp_path / "run"}').stdout
    before, training, _ = printed.partition('\nTraining ')
    assert training and before.splitlines()[-3:] == [
        'warning: validation: 1 of 5 labels are left out of mAP and of fitted thresholds: 0 without an absent entry, 1'
        ' without a positive [yak].',
        'warning: train: 2 of 5 labels cannot be learnt: 1 without an absent entry [sky], 1 without a positive [gnu].',
        'warning: validation: 1 of 5 labels have positives here but none in train, and count in mAP: gnu (2);'
        ' data.ignore_labels leaves them out.',
    ]
    assert load('table', 'validation', str(table.parent))['labels'][0] == [2, 3]
