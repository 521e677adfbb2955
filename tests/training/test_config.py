import os
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from msff_timm.errors import InputError
from msff_timm.training.config import DataConfig, TrainConfig
from msff_timm.training.evaluate_config import EvaluateConfig
from msff_timm.training.parsing import parse

CONFIGS = sorted((Path(__file__).parents[2] / 'train' / 'configs').glob('*.yaml'))
DEMO = next(path for path in CONFIGS if path.stem == 'demo')
# The other recipes name only settings without their default; recipes of the paper name all.
RECIPES = [
    path
    for path in CONFIGS
    if path.stem not in ('corel5k', 'demo', 'distill', 'memorise') and 'subset' not in path.stem
]
PAPER = [path for path in RECIPES if path.stem != 'finetune']
# Settings that apply to one kind of data only; recipes do not stream, and official data are complete.
SOURCES = {
    'coco2014': {'keep_unlabelled'},
    'voc2007': {'difficult'},
    'voc2012': {'difficult'},
    'auto': {'image_root', 'image_column', 'label_columns', 'label_delimiter', 'label_names', 'minus_one', 'blank'}
    | {'none_label', 'repeated_images', 'image_suffix', 'validation_fold', 'validation'},
}
ELSEWHERE = {'root', 'config_name', 'title', 'streaming', 'missing', 'ignore_labels'}.union(*SOURCES.values())
FROM_COCO = {'output', 'model.init_from', 'model.keep_labels', 'model.backbone_pretrained'}


def settings(path: Path) -> dict:
    """Reads all settings that a file results in, e.g. `{'optim.lr': 1e-4}`."""
    nested = asdict(parse(TrainConfig, ['--config', str(path)]))
    groups = {key: value for key, value in nested.items() if isinstance(value, dict)}
    flat = {key: value for key, value in nested.items() if key not in groups}
    return flat | {f'{group}.{key}': value for group, values in groups.items() for key, value in values.items()}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_recipes_are_valid(path):
    assert parse(TrainConfig, ['--config', str(path)]).output.startswith('runs/')


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes_name_every_setting(path):
    content = yaml.safe_load(path.read_text())
    assert content.keys() - {'top_k'} == {'output', 'seed', 'model', 'data', 'optim'}
    for group in ('model', 'optim'):
        assert content[group].keys() == {f.name for f in fields(getattr(parse(TrainConfig, ['--output=x']), group))}
    data = {f.name for f in fields(DataConfig)} - ELSEWHERE | SOURCES[content['data']['name']]
    assert content['data'].keys() - {'ignore_labels'} == data


@pytest.mark.parametrize('path', PAPER, ids=lambda path: path.stem)
def test_recipes_of_the_paper_name_the_source_of_each_value(path):
    said = ''
    for line in path.read_text().partition('\nmodel:\n')[2].splitlines():
        said += line.partition('#')[2]
        if re.match(r'  \w', line):  # a value; comment lines above it count
            assert re.search('paper|Q2L|[Oo]urs|neither', said) or re.match('  name: (coco|voc)', line), line
            said = ''


def test_recipes_write_to_different_folders():
    outputs = [settings(path)['output'] for path in CONFIGS]
    assert outputs == [f'runs/{path.stem}' for path in CONFIGS]


@pytest.mark.parametrize(
    ('name', 'pixels', 'train_split', 'eval_split', 'num_train'),
    [
        ('coco2014_448', 448, 'train', 'validation', 82_783),
        ('coco2014_576', 576, 'train', 'validation', 82_783),
        ('voc2007_448', 448, 'trainval', 'test', 5011),
        ('voc2007_448_from_coco', 448, 'trainval', 'test', 5011),
        ('voc2012_448', 448, 'trainval', 'validation', 11_540),
        ('voc2012_448_from_coco', 448, 'trainval', 'validation', 11_540),
    ],
)
def test_recipes_hold_the_numbers_of_the_paper(name, pixels, train_split, eval_split, num_train):
    """Sections 4.1.1 and 4.3, Eq. 12 and Table 1; Query2Label's public recipe where they are silent."""
    found = settings(DEMO.with_stem(name))
    paper = {'optim.lr': 1e-4, 'optim.weight_decay': 1e-2, 'optim.epochs': 80, 'optim.loss': 'asl'}
    paper |= {'optim.gamma_pos': 0, 'optim.gamma_neg': 4, 'model.name': 'msff_resnet101', 'data.image_size': pixels}
    paper |= {'data.train_split': train_split, 'data.train_size': None, 'data.eval_size': None}
    query2label = {'optim.batch_size': 128, 'optim.schedule': 'one_cycle', 'optim.warmup': 0.2, 'data.cutout': 0.5}
    query2label |= {'data.mixup': 0, 'data.cutmix': 0, 'optim.backbone_lr': 1, 'optim.layer_decay': None}
    ours = {'data.eval_split': eval_split, 'optim.early_stop': 9 if name.startswith('coco') else None}
    expected = paper | query2label | ours
    assert {key: found[key] for key in expected} == expected and found['data.rand_augment'].startswith('rand-')
    # In an epoch, the EMA forgets as much as Query2Label's, 0.9997, in COCO's 646 steps of 128 images: 18 %.
    assert found['optim.ema_decay'] ** (num_train // 128) == pytest.approx(0.9997**646, abs=0.02)
    assert name.startswith('voc') or found['optim.ema_decay'] == 0.9997


@pytest.mark.parametrize(
    ('first', 'second', 'differences'),
    [
        ('coco2014_448', 'coco2014_576', {'output', 'data.image_size'}),
        ('voc2007_448', 'voc2007_448_from_coco', FROM_COCO),
        ('voc2012_448', 'voc2012_448_from_coco', FROM_COCO),
        ('voc2007_448', 'voc2012_448', {'output', 'data.name', 'data.eval_split', 'optim.ema_decay'}),
        (
            'coco2014_448',
            'voc2007_448',
            {'output', 'data.name', 'data.train_split', 'data.eval_split', 'optim.ema_decay', 'optim.early_stop'},
        ),
    ],
)
def test_recipes_differ_only_where_they_must(first, second, differences):
    one, other = (settings(DEMO.with_stem(name)) for name in (first, second))
    found = {key for key in one if one[key] != other[key]}
    assert found == differences
    if second.endswith('_from_coco'):
        assert other['model.init_from'] == f'local-dir:{settings(DEMO.with_stem("coco2014_448"))["output"]}'
        assert other['model.keep_labels'] and not other['model.backbone_pretrained']


def test_parse_lets_the_command_line_override_the_file(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text('output: here\noptim: {lr: 3e-4, epochs: 7}\ndata: {root: photos}\n')
    config = parse(TrainConfig, ['--config', str(file), '--optim.epochs', '9', '--data.train_size=null'])
    assert (config.output, config.optim.lr, config.optim.epochs, config.data.root) == ('here', 3e-4, 9, 'photos')
    assert (config.optim.batch_size, config.optim.gamma_neg, config.optim.weight_decay) == (128, 4, 1e-2)  # the paper's
    assert parse(TrainConfig, [f'--config={file}']).optim.epochs == 7
    assert parse(TrainConfig, [f'--config={file}', '--optim.ema-decay=0.5', '--data.root=a-b']).optim.ema_decay == 0.5


def test_parse_merges_model_args(tmp_path):
    file = tmp_path / 'mine.yaml'
    file.write_text(
        'output: here\nmodel: {name: msff_resnet18, args: {fusion_mode: 1, backbone_args: {stem_width: 32}}}\n'
    )

    def args(*arguments):
        return parse(TrainConfig, [f'--config={file}', *arguments, '--model.backbone_pretrained=false']).model.args

    assert args() == {'fusion_mode': 1, 'backbone_args': {'stem_width': 32}}
    one_by_one = ['--model.args.fusion_mode', '2', '--model.args.backbone_args.drop_path_rate=0.1']
    assert args(*one_by_one, '--model.args.decoder_self_attn=[true, false, false]') == {
        'fusion_mode': 2,
        'backbone_args': {'stem_width': 32, 'drop_path_rate': 0.1},
        'decoder_self_attn': [True, False, False],
    }
    assert args('--model.args={embed_dim: 64}') == {'embed_dim': 64}
    assert args('--model.args.backbone_args.drop_path_rate=1e-1')['backbone_args']['drop_path_rate'] == 0.1
    plain = ['--model.name=resnet18', '--model.args={drop_path_rate: 0.1}']
    assert args(*plain) == {'drop_path_rate': 0.1}


@pytest.mark.parametrize('name', ['q2l_resnet101', 'mldecoder_resnet101'])
def test_model_config_accepts_backbone_pretrained_for_peers(name):
    arguments = [f'--model.name={name}', '--model.backbone_pretrained=true']
    assert parse(TrainConfig, arguments, default_file=DEMO).model.backbone_pretrained


def test_parse_reads_lists_of_numbers():
    data = parse(TrainConfig, ['--output=x', '--data.crop_scale=[0.5, 1]', '--data.crop_ratio=[1, 2]']).data
    assert (data.crop_scale, data.crop_ratio) == ([0.5, 1.0], [1.0, 2.0])
    assert parse(TrainConfig, ['--output=x', '--data.crop_scale=null']).data.crop_scale is None


def test_parse_reads_the_default_file():
    assert parse(TrainConfig, ['--seed', '3'], default_file=DEMO).model.name == 'msff_test_resnet'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--data.rot', 'x'], "unknown setting '--data.rot': did you mean --data.root?"),
        (['--optim.batchsize=4'], "unknown setting '--optim.batchsize': did you mean --optim.batch_size?"),
        (['--optim.batch_size', '0'], 'optim.batch_size is 0: must be at least 1.'),
        (['--optim.epochs', '-1'], 'optim.epochs is -1: must be at least 1.'),
        (['--seed', '-1'], 'seed is -1: must be at least 0.'),
        (['--seed', '4294967296'], 'seed is 4294967296: must be at most 2147483647.'),  # too large for NumPy
        (['--optim.lr', '0'], 'optim.lr is 0.0: must be above 0.'),
        (['--optim.lr', 'nan'], 'optim.lr'),
        (['--optim.ema_decay', '1'], 'optim.ema_decay is 1.0: must be from 0 to below 1.'),
        (['--optim.ema_epochs', '0'], 'optim.ema_epochs is 0.0: must be above 0.'),
        (
            ['--optim.ema_epochs=2', '--optim.ema_decay=0.9'],
            'optim.ema_epochs is 2 and optim.ema_decay is 0.9: set ema_epochs to null, or leave ema_decay at 0.9997',
        ),
        (['--model.name', 'msff_resnet110'], "unknown model.name 'msff_resnet110': did you mean msff_resnet101?"),
        (
            ['--model.name=resnet18', '--model.backbone_pretrained=true'],
            'resnet18 has no backbone of its own; set it to false.',
        ),
        (
            ['--model.backbone_from=local-dir:x', '--model.backbone_pretrained=true'],
            'model.backbone_from is local-dir:x: also set model.backbone_pretrained false',
        ),
        (
            ['--model.backbone_from=local-dir:x', '--model.init_from=local-dir:y', '--model.backbone_pretrained=false'],
            'model.backbone_from is local-dir:x: also set model.init_from null',
        ),
        (['--model.keep_labels=true'], 'model.keep_labels is true: it needs model.init_from'),
        (['--model.drop_rate', '1'], 'model.drop_rate is 1.0: must be from 0 to below 1.'),
        (['--data.cutout', '2'], 'data.cutout is 2.0: must be from 0 to 1.'),
        (['--data.hflip', '1.5'], 'data.hflip is 1.5: must be from 0 to 1.'),
        (['--data.color_jitter', '-1'], 'data.color_jitter is -1.0: must be at least 0.'),
        (['--data.crop_scale=[0.5]'], 'data.crop_scale is [0.5]: must be null or two shares of the area'),
        (['--data.crop_scale=[0, 1]'], 'data.crop_scale is [0.0, 1.0]: must be null or two shares'),
        (['--data.crop_scale=[0.9, 0.2]'], 'data.crop_scale is [0.9, 0.2]: must be'),
        (['--data.crop_scale=[0.5, 1.5]'], 'data.crop_scale is [0.5, 1.5]: must be'),
        (['--data.crop_scale=0.5'], 'data.crop_scale is 0.5: must be a list of finite numbers ([0.5, 1]) or null.'),
        (['--data.crop_ratio=[0, 1]'], 'data.crop_ratio is [0.0, 1.0]: must be two ratios of width to height'),
        (['--data.image_size', '16'], 'data.image_size is 16: must be at least 32.'),
        (['--data.eval_size', '0'], 'data.eval_size is 0: must be at least 1.'),
        (['--data.workers', '-1'], 'data.workers is -1: must be at least 0.'),
        (['--data.workers', 'many'], 'data.workers'),
        (['--data.streaming=true', '--data.train_size=null'], 'data.streaming is true: set data.train_size'),
        (['stray'], 'stray'),
        (['--config', 'nowhere.yaml'], '--config is nowhere.yaml: there is no such file or recipe'),
        (['--trackers', '[tensorbord]'], "unknown trackers 'tensorbord': did you mean tensorboard?"),
        (['--distill.teacher=local-dir:x', '--data.mixup=0.2'], 'set data.mixup and data.cutmix to 0'),
        (['--optim.layer_decay=0.5', '--optim.backbone_lr=0.1'], 'set one of them'),
        (['--push-to', 'name'], "'name' is no repository id: give ORGANISATION/NAME"),
        (['--push-to', 'org/name'], 'org/name: pushing to https://huggingface.co needs a token with write access'),
        (['--push_private=true'], 'push_private is true: it needs push_to'),
        (['--model.batch_norm=frozn'], "unknown model.batch_norm 'frozn': did you mean frozen?"),
        (
            ['--model.args.fusion_mod=1'],
            "unknown argument of msff_test_resnet in model.args 'fusion_mod': did you mean fusion_mode?",
        ),
        (['--model.args={fusion_mode: 7}'], 'fusion_mode=7 must be one of 1, 2, 3.'),
        (['--model.args.drop_rate=0.5'], 'model.args has drop_rate: leave it out; it is set by model.drop_rate.'),
        (['--model.args.num_classes=3'], 'model.args has num_classes: leave it out; it is set by the labels'),
        (['--model.args.backbone=resnt'], "backbone 'resnt' is no timm model"),
        (['--model.arg.fusion_mode=1'], "unknown setting '--model.arg.fusion_mode': did you mean --model.args"),
        (['--model.args=3'], 'model.args'),
        (
            ['--model.args={fusion_mode: 1}', '--model.args.embed_dim=96'],
            '--model.args.embed_dim and --model.args: give',
        ),
        (['--model.args.fusion_mode=[1'], '--model.args.fusion_mode is [1: cannot be read as YAML ('),
    ],
)
def test_parse_names_wrong_settings(arguments, message, monkeypatch):
    monkeypatch.setattr(sys.modules['msff_timm.hub.push'], 'get_token', lambda: None)
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
def test_parse_names_wrong_files(tmp_path, content, message):
    file = tmp_path / 'mine.yaml'
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        parse(TrainConfig, ['--config', str(file)])
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_train_config_refuses_resume_with_overwrite():
    with pytest.raises(InputError, match='resume is auto and overwrite is true: set one of them.'):
        parse(TrainConfig, ['--output=x', '--resume=auto', '--overwrite=true'])


def test_evaluate_config_needs_a_model():
    with pytest.raises(InputError, match='model'):
        parse(EvaluateConfig, [])


def test_definition_names_own_data_without_its_path(tmp_path):
    (tmp_path / 'satellites').mkdir()
    for name, root, named in (
        ('table', str(tmp_path / 'satellites'), 'satellites'),
        ('hub', str(tmp_path / 'satellites'), 'satellites'),
        ('hub', 'org/satellites@v2', 'org/satellites@v2'),
    ):
        assert DataConfig(name=name, root=root).definition('test') == {'name': name, 'split': 'test', 'root': named}
    assert DataConfig(name='voc2007').definition('test') == {'name': 'voc2007', 'split': 'test', 'difficult': 'ignore'}


def test_definition_records_that_missing_images_are_skipped():
    assert DataConfig(name='coco2014', missing='skip').definition('validation')['missing'] == 'skip'
    with pytest.raises(InputError, match="unknown data.missing 'skp': did you mean skip"):
        parse(EvaluateConfig, ['--model=x', '--data.name=coco2014', '--data.missing=skp'])


def test_parse_names_arguments_that_are_not_utf8():
    for argument in (b'--output=runs/caf\xe9', b'--config=caf\xe9.yaml', b'--data.root=\xff'):
        with pytest.raises(InputError, match=r'--.*\\udc.*: is not UTF-8') as caught:
            parse(TrainConfig, [os.fsdecode(argument)])
        assert str(caught.value).isascii() and '\n' not in str(caught.value)


def test_model_args_refuse_null_where_timm_would_use_another_default():
    """`max_queries: null` was no limit before the default of 100."""
    name = ['--output=run', '--model.name=msff_test_resnet']
    with pytest.raises(InputError, match='max_queries null, which timm ignores: leave it out for 100'):
        parse(TrainConfig, [*name, '--model.args={max_queries: null}'])
    config = parse(TrainConfig, [*name, '--model.args={backbone_args: null}'])
    assert config.model.args == {'backbone_args': None}
