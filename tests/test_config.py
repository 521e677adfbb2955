from pathlib import Path

import pytest

from config import DataConfig, EvaluateConfig, TrainConfig, parse
from msff_timm.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / 'train' / 'configs').glob('*.yaml'))
DEMO = next(path for path in CONFIGS if path.stem == 'demo')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    assert parse(TrainConfig, ['--config', str(path)]).output.startswith('runs/')


def test_the_command_line_overrides_the_file_which_overrides_the_defaults(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('output: here\noptim: {lr: 3e-4, epochs: 7}\ndata: {root: photos}\n')
    config = parse(TrainConfig, ['--config', str(file), '--optim.epochs', '9', '--data.train_size=null'])
    assert (config.output, config.optim.lr, config.optim.epochs, config.data.root) == ('here', 3e-4, 9, 'photos')
    assert (config.optim.batch_size, config.optim.gamma_neg, config.optim.weight_decay) == (128, 4, 1e-2)  # the paper's
    assert parse(TrainConfig, [f'--config={file}']).optim.epochs == 7


@pytest.mark.parametrize('name', ['q2l_resnet101', 'mldecoder_resnet101'])
def test_peers_may_start_from_a_pretrained_backbone(name):
    arguments = [f'--model.name={name}', '--model.backbone_pretrained=true']
    assert parse(TrainConfig, arguments, default_file=DEMO).model.backbone_pretrained


def test_without_a_file_the_default_one_is_read():
    assert parse(TrainConfig, ['--seed', '3'], default_file=DEMO).model.name == 'msff_test_resnet'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--data.rot', 'x'], "unknown setting '--data.rot': did you mean --data.root?"),
        (['--optim.batchsize=4'], "unknown setting '--optim.batchsize': did you mean --optim.batch_size?"),
        (['--optim.batch_size', '0'], 'optim.batch_size is 0: must be at least 1.'),
        (['--optim.epochs', '-1'], 'optim.epochs is -1: must be at least 1.'),
        (['--optim.lr', '0'], 'optim.lr is 0.0: must be above 0.'),
        (['--optim.lr', 'nan'], 'optim.lr'),
        (['--optim.ema_decay', '1'], 'optim.ema_decay is 1.0: must be from 0 to below 1.'),
        (['--model.name', 'msff_resnet110'], "unknown model.name 'msff_resnet110': did you mean msff_resnet101?"),
        (
            ['--model.name=resnet18', '--model.backbone_pretrained=true'],
            'resnet18 has no backbone of its own; set it to false.',
        ),
        (['--model.keep_labels=true'], 'model.keep_labels is true: it needs model.init_from'),
        (['--model.drop_rate', '1'], 'model.drop_rate is 1.0: must be from 0 to below 1.'),
        (['--data.cutout', '2'], 'data.cutout is 2.0: must be from 0 to 1.'),
        (['--data.image_size', '16'], 'data.image_size is 16: must be at least 32.'),
        (['--data.eval_size', '0'], 'data.eval_size is 0: must be at least 1.'),
        (['--data.workers', '-1'], 'data.workers is -1: must be at least 0.'),
        (['--data.workers', 'many'], 'data.workers'),
        (['stray'], 'stray'),
        (['--config', 'nowhere.yaml'], 'nowhere.yaml: cannot be read as settings'),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, arguments, default_file=DEMO)
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('data: {rot: x}', "'data.rot': did you mean data.root?"),
        ('optm: {lr: 1}', "'optm.lr': did you mean optim.lr?"),
        ('data: {root: [', 'cannot be read as settings'),
        ('just words', 'settings must be'),
        ('output: x\noptim: {epochs: some}', 'optim.epochs'),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    file = tmp_path / 'mine.yaml'
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, ['--config', str(file)])
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_evaluation_needs_a_model():
    with pytest.raises(InputError, match='model'):
        parse(EvaluateConfig, [])


def test_results_name_the_users_own_data_but_no_path_of_this_machine(tmp_path):
    (tmp_path / 'satellites').mkdir()
    for name, root, named in (
        ('table', str(tmp_path / 'satellites'), 'satellites'),
        ('hub', str(tmp_path / 'satellites'), 'satellites'),
        ('hub', 'org/satellites@v2', 'org/satellites@v2'),
    ):
        assert DataConfig(name=name, root=root).definition('test') == {'name': name, 'split': 'test', 'root': named}
    assert DataConfig(name='voc2007').definition('test') == {'name': 'voc2007', 'split': 'test', 'difficult': 'ignore'}
