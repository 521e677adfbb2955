"""Settings of tables from the command line to the reader."""

import doctest
from importlib import import_module

import datasets
import pytest
from accelerate import Accelerator
from PIL import Image

from msff_timm.data import notes
from msff_timm.errors import InputError
from msff_timm.training.config import DataConfig, SourceConfig, TrainConfig, parse
from msff_timm.training.run_data import load_data
from msff_timm_cli import commands as cli


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    for name in 'abc':
        Image.new('RGB', (8, 8)).save(tmp_path / f'{name}.png')
    (tmp_path / 'train.csv').write_text('image,fold,x,y\na.png,0,1,-1\nb.png,1,,0\nc.png,1,-1,1\n')
    (tmp_path / 'val.csv').write_text('image,fold,x,y\na.png,0,1,-1\n')
    return str(tmp_path)


@pytest.mark.parametrize('name', ['table', 'folder', 'hub'])
def test_definition_records_settings_of_cells(name):
    assert SourceConfig(name=name, root='x').definition('train') == {'name': name, 'split': 'train', 'root': 'x'}
    definition = SourceConfig(name=name, root='x', minus_one='absent', blank='absent').definition('train')
    assert definition == {'name': name, 'split': 'train', 'root': 'x', 'minus_one': 'absent', 'blank': 'absent'}
    assert SourceConfig(name=name, root='x', minus_one='absent', blank='absent').masking is None
    assert SourceConfig(name=name, root='x', minus_one='absent').masking == name
    assert 'blank' not in SourceConfig(name='coco2014', root='x', blank='absent').definition('train')


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--data.minus_one=0', "unknown data.minus_one '0': choose from absent, unannotated."),
        ('--data.blank=absnt', "unknown data.blank 'absnt': did you mean absent?"),
        ('--data.label_delimiter=', 'data.label_delimiter is empty'),
    ],
)
def test_parse_refuses_invalid_column_settings(argument, message):
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, ['--output=x', '--data.name=table', '--data.root=x', argument])
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_training_settings_reach_reader(root):
    for minus_one, ignore in (('unannotated', [[1], [0], [0]]), ('absent', [[], [0], []])):
        arguments = ['--output=x', '--data.name=table', f'--data.root={root}', f'--data.minus-one={minus_one}']
        data = parse(TrainConfig, [*arguments, '--data.label_delimiter=none']).data
        assert data.label_delimiter == 'none'
        train_set, _, names, _ = load_data(data, Accelerator(cpu=True))
        assert names == ['x', 'y'] and train_set['ignore'][:] == ignore
        assert notes(train_set) == ['labels: 2 columns (x, y); not labels: fold']


def test_label_delimiter_is_found_by_default():
    assert DataConfig().label_delimiter is SourceConfig().label_delimiter is None


def test_command_settings_reach_reader(root, tmp_path, capsys):
    command = ['data', 'table', '--root', root, '-o', str(tmp_path / 'out')]
    assert cli.main([*command, '--minus-one', 'absent', '--blank', 'absent']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith('labels: 2 columns (x, y); not labels: fold\n') and 'ignored' not in printed
    assert cli.main(command) == 0
    assert 'ignored' in capsys.readouterr().out
    assert cli.main([*command, '--blank', 'absnt']) == 2
    assert capsys.readouterr().err == "msff-timm: error: unknown data.blank 'absnt': did you mean absent?\n"
    assert cli.main([*command, '--label-columns', 'fold']) == 0
    assert 'labels: 1 column (fold); not labels: x, y' in capsys.readouterr().out


@pytest.mark.parametrize('module', ['data', 'data.counts', 'data.inspect', 'data.scenes'])
def test_docstrings_have_examples_that_run(module):
    results = doctest.testmod(import_module(f'msff_timm.{module}'))
    assert results.attempted and not results.failed
