"""Settings of tables from the command line to the reader."""

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
    changed = {'none_label': 'none', 'repeated_images': 'unite', 'validation_fold': 0}
    assert SourceConfig(name=name, root='x', **changed).definition('train').items() >= changed.items()


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--data.minus_one=0', "unknown data.minus_one '0': choose from absent, unannotated."),
        ('--data.blank=absnt', "unknown data.blank 'absnt': did you mean absent?"),
        ('--data.label_delimiter=', 'data.label_delimiter is empty'),
        ('--data.repeated_images=untie', "unknown data.repeated_images 'untie': did you mean unite?"),
        ('--data.validation_fold=first', 'data.validation_fold is first: must be a whole number or null.'),
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


def test_new_settings_reach_reader(root, tmp_path, capsys):
    (tmp_path / 'val.csv').unlink()
    (tmp_path / 'train.csv').write_text('image,fold,x,"y, z",normal\na,0,1,,0\na,0,0,0,0\nb,1,0,,1\nc,0,,1,0\n')
    settings = {'none_label': 'normal', 'repeated_images': 'repeat', 'image_suffix': '.png', 'validation_fold': 1}
    arguments = [f'--data.{key}={value}' for key, value in settings.items()]
    data = parse(TrainConfig, ['--output=x', '--data.name=table', f'--data.root={root}', *arguments]).data
    train_set, eval_set, names, _ = load_data(data, Accelerator(cpu=True))
    assert names == ['x', 'y, z'] and train_set['labels'][:] == [[0], [0], [1]] and train_set['ignore'][2] == [0]
    assert eval_set['labels'][:] == eval_set['ignore'][:] == [[]]
    options = [f'--{key.replace("_", "-")}={value}' for key, value in settings.items()]
    command = ['data', 'table', '--root', root, '-o', str(tmp_path / 'out'), *options]
    for key in ('--label-columns', '--label-names'):  # a repeated option keeps commas
        assert cli.main([*command, key, 'x', key, 'y, z', key, 'normal']) == 0
        assert 'labels: 3 columns (x, y, z, normal); not labels: fold' in capsys.readouterr().out
        assert cli.main([*command, key, 'x, y']) == 2
        assert "unknown label column 'y" in capsys.readouterr().err


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
