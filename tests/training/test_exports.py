"""Exports of annotation tools, from the folder to a trained and evaluated model, through the commands."""

import json
import re
import shlex

import datasets
import pytest

from made_classes import CLASS_WRITERS
from made_exports import WRITERS, make
from msff_timm.errors import InputError
from msff_timm.training import evaluate, train
from msff_timm.training.evaluate_config import EvaluateConfig
from msff_timm.training.parsing import parse
from msff_timm_cli import commands as cli

TINY = ['--model.name=msff_test_resnet', '--model.backbone_from=null', '--data.image_size=96', '--optim.epochs=1']
TINY += ['--optim.batch_size=4', '--data.workers=0', '--trackers=[]', '--model.freeze=null']


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')
    monkeypatch.chdir(tmp_path)


def run(monkeypatch, capsys, module, *arguments):
    monkeypatch.setattr('sys.argv', [f'msff-timm {module.__name__.rpartition(".")[2]}', *arguments])
    module.main()
    return capsys.readouterr().out.splitlines()


OBJECTS = {writer.__name__: writer for writer in WRITERS}
EXPORTS = {name: OBJECTS[f'{name}_roboflow'] for name in ('coco', 'voc', 'yolo')}
EXPORTS |= {writer.__name__: writer for writer in CLASS_WRITERS}


@pytest.mark.parametrize('form', EXPORTS)
def test_exports_train_and_evaluate_through_the_commands(form, tmp_path, monkeypatch, capsys):
    root = make(EXPORTS[form], tmp_path / 'my set')
    assert cli.main(['data', 'my set']) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f'recognised as {form} by ')
    assert any(re.fullmatch(r'cat +2 +50.00% +1 +50.00%', line) for line in printed)
    assert 'inspect-my set/inspect.json' in printed[-2]
    # The last line is the command that trains.
    command = shlex.split(printed[-1].removeprefix('train: '))
    assert command == ['msff-timm', 'train', '--data.root', 'my set']
    printed = run(monkeypatch, capsys, train, *command[2:], *TINY, '--output=run')
    assert printed[0] == 'data.root without --config and data.name: training by the recipe finetune'
    assert printed[1].startswith(f'recognised as {form} by ')
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['data']['name'] == results['config']['data']['name'] == form
    assert results['data']['root'] == 'my set' and results['num_images'] == 2
    assert results['labels']['dog'] | {'AP': None} == {'AP': None, 'num_positives': 1, 'num_negatives': 1}
    assert f'\n  name: {form}\n' in (tmp_path / 'run' / 'settings.yaml').read_text()

    arguments = ['--model=local-dir:run', '--data.name=auto', f'--data.root={root}', '--data.split=test']
    printed = run(monkeypatch, capsys, evaluate, *arguments, '--data.workers=0', '--output=test.json')
    assert printed[0].startswith(f'recognised as {form} by ')
    results = json.loads((tmp_path / 'test.json').read_text())
    assert results['data']['name'] == form and results['labels']['owl']['num_positives'] == 1


def test_data_names_settings_in_the_command_to_train(tmp_path, capsys):
    root = tmp_path / 'data'
    make(WRITERS[-1], root)
    rows = ''.join(f'{split}/{name}.png,{name}\n' for split, name in (('train', 'a'), ('train', 'b'), ('valid', 'e')))
    (root / 'all.csv').write_text('path,tag\n' + rows)
    options = ['--label-columns', 'tag', '--label-delimiter', 'none', '--blank', 'absent']
    assert cli.main(['data', 'table', '--root', 'data/all.csv', *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        'train: msff-timm train --config finetune --data.name table --data.root data/all.csv --data.label_columns'
        """ '["tag"]' --data.label_delimiter none --data.blank absent"""
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['tabel'], 'tabel: there is no such folder or file, and no such format (auto, coco, '),
        (['tabel', '--root', '.'], "unknown format 'tabel': did you mean table?"),
        (['auto'], 'data.root is null'),
        (['./coco'], './coco: there is no such folder or file'),
        (['.'], 'no known format is recognised in it (found: nothing)'),
    ],
)
def test_data_refuses_what_is_no_data(arguments, message, capsys):
    assert cli.main(['data', *arguments]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_refuses_scenes_with_a_root():
    with pytest.raises(
        InputError, match='data.root is photos, but data.name is scenes, which are drawn: set data.name'
    ):
        parse(EvaluateConfig, ['--model=m', '--data.root=photos'])


@pytest.mark.parametrize(
    ('arguments', 'recipe'),
    [
        ('', 'demo'),
        ('--data.root photos', 'finetune'),
        ('--data.root=photos --optim.epochs 3', 'finetune'),
        ('--data.root photos --data.name table', 'demo'),
        ('--config mine.yaml --data.root photos', 'demo'),
    ],
)
def test_train_chooses_recipe_by_what_is_named(arguments, recipe):
    assert train.default_recipe(arguments.split()).stem == recipe


def test_webdataset_streams_in_training(tmp_path, monkeypatch, capsys):
    root = make(EXPORTS['webdataset'], tmp_path / 'shards')
    stream = ['--data.name=webdataset', '--data.streaming=true', '--data.train_size=4', '--optim.loss=bce']
    run(monkeypatch, capsys, train, '--config=finetune', f'--data.root={root}', *stream, *TINY, '--output=run')
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['data']['name'] == 'webdataset' and results['num_images'] == 2
    assert results['labels']['dog'] | {'AP': None} == {'AP': None, 'num_positives': 1, 'num_negatives': 1}
