"""Tests of studies: planning, training and tabulating runs."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from scipy import stats

from made_up import RECIPE, TINY, made_up
from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.labels import VOC_LABELS
from msff_timm.training.commands import Stopped
from msff_timm.training.config import ModelConfig, TrainConfig, parse
from msff_timm.training.run_model import make_model
from msff_timm.training.studies import ablate, compare, pages, study, tables
from msff_timm.training.studies.config import AblateConfig, CompareConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'train' / 'configs').glob('*/*.yaml'))
DEMO = ROOT / 'train' / 'configs' / 'compare' / 'demo.yaml'
MODELS = ['msff_test_resnet', 'test_resnet']


def settings(output: Path, *more: str) -> CompareConfig:
    own = [f'--output={output}', f'--train={RECIPE}', '--models=[msff_test_resnet, test_resnet]', '--seeds=[0]']
    shared = ['--settings.top_k=2', '--settings.data.title=a few scenes', '--backbone=null', '--turns=2']
    return parse(CompareConfig, [*own, *TINY, *shared, *more], DEMO)


def plan(config: CompareConfig) -> list[study.Run]:
    return study.plan(config, compare.make_rows(config))


@pytest.fixture(scope='module')
def compared(script, tmp_path_factory) -> Path:
    """Returns the folder of a comparison of two models, each trained for a moment."""
    folder = tmp_path_factory.mktemp('compared')
    arguments = [f'--output={folder}', f'--train={RECIPE}', '--models', '[msff_test_resnet, test_resnet]']
    arguments += ['--settings.top_k=2', '--settings.data.title=a few scenes']
    printed = script('compare.py', *arguments, '--seeds=[0]', *TINY, '--backbone=null', '--turns=2').stdout
    assert '0 of 2 runs are finished.' in printed and '| msff\\_test\\_resnet |' in printed
    return folder


def test_compare_trains_models_alike_and_writes_table(compared):
    runs = [json.loads((compared / name / 'seed-0' / 'results.json').read_text()) for name in MODELS]
    assert runs[0]['config']['optim'] == runs[1]['config']['optim'] and runs[0]['config']['optim']['epochs'] == 1
    assert runs[0]['config']['data'] == runs[1]['config']['data'] and runs[0]['config']['data']['eval_size'] == 24
    table = json.loads((compared / 'compare.json').read_text())
    for row, run, name in zip(table['rows'], runs, MODELS, strict=True):
        assert row['model'] == name and row['mean']['mAP'] == run['metrics']['mAP'] and row['std']['mAP'] is None
        assert row['mean']['mAP_small'] == run['mAP_by_size']['small']
        assert row['AP']['bolt'] == [run['labels']['bolt']['AP']]
        assert run['top']['k'] == 2 and row['mean']['N+_top2'] == run['top']['N+']
        assert row['values']['P_top2'] == [run['top']['P']]
        model = timm.create_model(name, num_classes=12)
        assert row['num_parameters'] == run['num_parameters'] == sum(p.numel() for p in model.parameters())
        assert row['images_per_second'] > 0 and row['train_peak_bytes'] > 100e6
    assert table['rows'][0]['time_ratio'] == 1 and 0 < table['rows'][1]['time_ratio'] != 1
    assert table['rows'][0]['gflops'] > table['rows'][1]['gflops'] > 0 and table['num_images'] == 24
    with (compared / 'compare.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['name'] for row in rows if row['figures_of'] == 'measured here'] == MODELS
    assert float(rows[1]['mAP']) == runs[1]['metrics']['mAP']
    assert {row['figures_of'] for row in rows[2:]} == {
        'the paper, Table 1, section 4.4.1', 'the paper, Table 2, section 4.4.2', 'the paper, Table 3, section 4.4.3'
    }  # fmt: skip
    text = (compared / 'compare.md').read_text()
    assert f'| test\\_resnet | {runs[1]["metrics"]["mAP"]:.2f} |' in text and 'the spread is unknown' in text
    assert text.count('The data is not a few scenes: do not compare') == 3 and '| MSFF (paper) | 95.8 |' in text
    for name in ('cost', 'labels'):
        assert f'(compare_{name}.png)' in text and Image.open(compared / f'compare_{name}.png').width > 500


def test_train_all_skips_finished_runs(compared, tmp_path, monkeypatch, capsys):
    folder, started = tmp_path / 'copy', []
    shutil.copytree(compared, folder)

    def train(run, launch, stop):
        started.append(run.argv)
        (run.output / 'report.md').touch()
        return 0

    monkeypatch.setattr(study, '_train', train)
    stop = SimpleNamespace(received=None)
    study.train_all(plan(settings(folder)), None, stop)
    assert not started and capsys.readouterr().out.startswith('2 of 2 runs are finished.')
    (folder / 'test_resnet' / 'seed-0' / 'report.md').unlink()  # it ended before its last file
    study.train_all(plan(settings(folder)), None, stop)
    assert len(started) == 1 and f'--output={folder}/test_resnet/seed-0' in started[0]
    (folder / 'test_resnet' / 'seed-0' / 'report.md').unlink()
    monkeypatch.setattr(study, '_train', lambda *_: 1)
    with pytest.raises(InputError, match='test_resnet/seed-0: training failed with exit code 1'):
        study.train_all(plan(settings(folder)), None, stop)
    with pytest.raises(InputError) as caught:
        plan(settings(folder, '--settings.optim.lr=0.5'))
    assert 'msff_test_resnet/seed-0 holds a run with other settings: optim.lr was 0.001 and is 0.5' in str(caught.value)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--models=[msff_test_resnet, tst_resnet]'], "unknown model 'tst_resnet': did you mean test_resnet?"),
        (['--models=[]'], 'models is []: must be one or more, each once.'),
        (['--backbone=tst_resnet'], "unknown backbone 'tst_resnet': did you mean test_resnet?"),
        (
            ['--backbone=test_resnet', '--settings.model.backbone_from=local-dir:x'],
            'settings has model.backbone_from: leave it out, or set backbone to null.',
        ),
        (['--seeds=[0,0]'], 'seeds is [0, 0]: must be one or more, each once.'),
        (['--seeds=[-1]'], 'seeds is -1: must be at least 0.'),
        (['--train=nowhere.yaml'], 'train is nowhere.yaml: there is no such file or recipe'),
        (['--settings.seed=1'], 'settings has seed: leave it out; each run has its own.'),
        (['--settings.model.args.fusion_mode=1'], 'settings has model.args.fusion_mode: leave it out'),
        (['--settings.optim.epoch=1'], "unknown setting '--optim.epoch': did you mean --optim.epochs?"),
        (['--settings.optim.epochs=0'], 'optim.epochs is 0: must be at least 1.'),
        (['--settings.data.name=scene'], "unknown data.name 'scene': did you mean scenes?"),
        (['--batch_size=0'], 'batch_size is 0: must be at least 1.'),
        (['--rows={a: test_resnet}'], 'rows.a is test_resnet: must be {model: NAME}, with args: {...} or settings'),
        (['--rows={a: {args: {}}}'], "rows.a is {'args': {}}: must be {model: NAME}"),
        (['--rows={a: {model: test_resnet, arg: {}}}'], 'must be {model: NAME}'),
        (['--rows={a: {model: test_resnet, args: [1]}}'], 'must be {model: NAME}'),
        (['--rows={a: {model: 3}}'], 'must be {model: NAME}'),
        (['--rows={a: {model: tst_resnet}}'], "unknown model in rows.a 'tst_resnet': did you mean test_resnet?"),
        (['--rows={test_resnet: {model: test_resnet}}'], 'rows.test_resnet: test_resnet is also in models'),
        (['--rows={a: {model: test_resnet}}'], 'rows.a is the same as test_resnet: remove one of them.'),
        (
            ['--rows={a: {model: test_resnet, settings: {seed: 1}}}'],
            'rows.a.settings has seed: leave it out; each run has its own.',
        ),
        (
            ['--rows={a: {model: test_resnet, settings: {data: {eval_size: 3}}}}'],
            'rows.a.settings has data.eval_size: leave it out; all rows share it.',
        ),
        (
            ['--rows={a: {model: test_resnet, settings: {model: {backbone_from: "local-dir:x"}}}}'],
            'rows.a.settings has model.backbone_from: leave it out; all rows share it.',
        ),
        (
            ['--rows={a: {model: test_resnet, settings: {optim: {epoch: 1}}}}'],
            "unknown setting '--optim.epoch': did you mean --optim.epochs?",
        ),
        (['--rows={a: {model: msff_test_resnet, args: {max_querys: 1}}}'], "'max_querys': did you mean max_queries?"),
    ],
)
def test_plan_rejects_wrong_settings(tmp_path, arguments, message):
    with pytest.raises(InputError) as caught:
        plan(settings(tmp_path, *arguments))
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_plan_accepts_configs_and_shares_runs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    is_ablation = path.parent.name == 'ablate'
    config = parse(AblateConfig if is_ablation else CompareConfig, [f'--config={path}', *['--table=4'] * is_ablation])
    assert config.output == f'runs/compare_{path.stem}' and len(config.seeds) >= 3
    ours = tables.Variant('ours', config.model if is_ablation else config.models[0])
    rows = ablate.make_rows('4', config.model)[0] if is_ablation else compare.make_rows(config)
    outputs = [str(run.output.relative_to(config.output)) for run in study.plan(config, rows)]
    folders = ['backbone'] * bool(config.backbone) + [row.folder for row in rows]
    assert outputs == [f'{folder}/seed-{seed}' for seed in config.seeds for folder in folders]
    assert ours.folder in folders and len(set(folders)) == len(folders)
    if path.stem == 'corel5k':  # the paper has no ablation on it
        return
    other = yaml.safe_load(path.parents[1].joinpath('compare' if is_ablation else 'ablate', path.name).read_text())
    shared = ('train', 'settings', 'backbone')
    assert {key: other.get(key) for key in shared} == {key: getattr(config, key) or None for key in shared}


def test_plan_starts_plain_model_from_pretrained_backbone(tmp_path):
    recipe = ROOT / 'train' / 'configs' / 'coco2014_448.yaml'
    config = CompareConfig(output=str(tmp_path), train=str(recipe), models=['msff_resnet101', 'resnet101'], seeds=[3])
    ours, plain = (run.config for run in plan(config))
    assert ours.model.backbone_pretrained and ours.model.init_from is None and ours.seed == plain.seed == 3
    assert not plain.model.backbone_pretrained and plain.model.init_from == 'resnet101'
    assert ours.optim == plain.optim and ours.data == plain.data


def test_plan_starts_all_rows_from_one_backbone_offline(tmp_path, monkeypatch):
    """Includes the plain model: timm must not download its weights, and its new classifier stays."""
    torch.manual_seed(0)
    source = timm.create_model('test_resnet', num_classes=5)
    data_config = timm.data.resolve_model_data_config(source)
    hub.save(source, tmp_path / 'backbone', list('abcde'), data_config)
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe['model'] |= {'backbone_pretrained': False, 'backbone_from': f'local-dir:{tmp_path / "backbone"}'}
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(recipe))
    models = ['msff_test_resnet', 'q2l_test_resnet', 'mldecoder_test_resnet', 'test_resnet']
    for name in ('load_state_dict_from_hf', 'load_state_dict_from_url'):
        monkeypatch.setattr(timm.models._builder, name, lambda *_, **__: pytest.fail('weights are fetched'))
    for run in plan(settings(tmp_path / 'out', f'--train={tmp_path / "recipe.yaml"}', f'--models={models}')):
        model, _ = make_model(run.config.model, list('xyz'), resumed=False)
        ours = getattr(model, 'backbone', model).state_dict()
        theirs = {name: tensor for name, tensor in source.state_dict().items() if name in ours}
        theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith('fc.')}
        assert len(theirs) > 50 and all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


def test_make_model_initializes_new_classifier_as_pytorch(tmp_path):
    """timm's EfficientNet would use the range 20 ** -0.5, eight times as wide."""
    source = timm.create_model('tf_efficientnet_lite0')
    hub.save(source, tmp_path, [str(k) for k in range(1000)], timm.data.resolve_model_data_config(source))
    config = ModelConfig('tf_efficientnet_lite0', backbone_pretrained=False, backbone_from=f'local-dir:{tmp_path}')
    model, _ = make_model(config, [str(k) for k in range(20)], resumed=False)
    largest = model.classifier.weight.abs().max().item()
    assert model.classifier.weight.shape == (20, 1280) and 0.99 < largest * 1280**0.5 <= 1


def test_plan_applies_args_and_settings_of_rows(tmp_path):
    """Folder names contain both, so that runs cannot be confused."""
    rows = '{few: {model: msff_test_resnet, args: {max_queries: 2}},'
    rows += ' fast: {model: test_resnet, settings: {optim: {lr: 0.25, backbone_lr: 0.5}, model: {drop_rate: 0}}}}'
    first, plain, few, fast = plan(settings(tmp_path, f'--rows={rows}', '--settings.optim.lr=0.125'))
    assert [run.variant.name for run in (first, plain, few, fast)] == [*MODELS, 'few', 'fast']
    assert (few.config.model.name, few.config.model.args) == ('msff_test_resnet', {'max_queries': 2})
    assert (fast.config.optim.lr, fast.config.optim.backbone_lr, fast.config.model.drop_rate) == (0.25, 0.5, 0)
    for run in (first, plain, few):
        assert (run.config.optim.lr, run.config.optim.backbone_lr) == (0.125, 1)
    assert few.output == tmp_path / 'msff_test_resnet-max_queries=2' / 'seed-0'
    assert fast.output.parent.name == 'test_resnet-model.drop_rate=0-optim.backbone_lr=0.5-optim.lr=0.25'
    assert first.config.data == fast.config.data and plain.output == tmp_path / 'test_resnet' / 'seed-0'


def test_plan_trains_backbone_for_each_seed(tmp_path):
    runs = plan(settings(tmp_path, '--backbone=test_resnet', '--seeds=[4, 2]'))
    recipe = parse(TrainConfig, [f'--output={tmp_path}'], RECIPE)
    for seed, (first, *others) in zip((4, 2), (runs[:3], runs[3:]), strict=True):
        assert (first.output, first.config.model.name) == (tmp_path / 'backbone' / f'seed-{seed}', 'test_resnet')
        assert (first.config.data, first.config.optim) == (recipe.data, recipe.optim) != (others[0].config.data, None)
        assert first.config.model.backbone_from is None
        assert [run.config.model.name for run in others] == MODELS
        assert {run.config.model.backbone_from for run in others} == {f'local-dir:{first.output}'}
        assert {run.config.seed for run in (first, *others)} == {seed}


def test_plan_rejects_recipe_with_model_args(tmp_path):
    recipe = tmp_path / 'mine.yaml'
    recipe.write_text(
        'output: x\nmodel: {name: msff_test_resnet, backbone_pretrained: false, args: {fusion_mode: 1}}\n'
    )
    with pytest.raises(InputError, match='mine.yaml sets model.args: remove it'):
        plan(settings(tmp_path, f'--train={recipe}'))


def test_paired_interval_matches_hand_computation():
    # Worked by hand: differences 1, 2, 3; mean 2, s 1, t of 2 degrees of freedom 4.302653 (any table of it).
    found = tables.paired_interval([11, 22, 33], [10, 20, 30])
    half = 4.302653 / 3**0.5
    assert found == pytest.approx({'mean': 2, 'low': 2 - half, 'high': 2 + half})
    rng = np.random.default_rng(0)
    one, other = rng.normal(80, 5, 7), rng.normal(78, 5, 7)
    found, test = tables.paired_interval(one, other), stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found['low'], found['high']) == pytest.approx((test.low, test.high))
    assert tables.paired_interval([3], [1]) == {'mean': 2, 'low': None, 'high': None}


def made_up_table(data: str = 'voc2007', top_k: int = 3) -> dict:
    of = {'ours': (80, 82, 84), 'a|b': (79, 80, 81)}
    # The same images for every seed
    runs = [
        (tables.Variant(name, name), [made_up(x, 0, data, top_k=top_k) for x in found]) for name, found in of.items()
    ]
    speed = {'rows': [{'num_parameters': 2_000_000, 'gflops': 0.5}, {'num_parameters': 1_000_000, 'gflops': 0.25}]}
    return {'title': 'Made up', **tables.tabulate(runs, 'ours', speed)}


def test_tabulate_computes_spread_and_differences(tmp_path):
    table = made_up_table()
    ours, other = table['rows']
    assert (ours['mean']['mAP'], ours['std']['mAP'], ours['difference']) == (82, 2, None)
    assert (other['mean']['mAP'], other['std']['mAP']) == (80, 1)
    # The differences are -1, -2, -3.
    half = 4.302653 / 3**0.5
    assert other['difference']['mAP'] == pytest.approx({'mean': -2, 'low': -2 - half, 'high': -2 + half})
    # All instances are medium, so that the other sizes have no mAP.
    assert 'mAP_medium' in ours['mean'] and 'mAP_small' not in ours['mean']
    tables.add_published(table)
    pages.write_table(table, tmp_path, 'made_up')
    text = (tmp_path / 'made_up.md').read_text()
    assert '| a\\|b | 80.00 ± 1.00 | -2.00 (-4.48 to +0.48) |' in text and '| ours | 82.00 ± 2.00 | reference |' in text
    assert 'images/s' in text and '| 0.25 | – | – | 1,024 MiB |' in text  # no speed was measured
    assert all(Image.open(tmp_path / f'made_up_{name}.png').height > 200 for name in ('cost', 'labels'))


def test_write_table_marks_published_figures(tmp_path):
    table = made_up_table('table', top_k=5)
    table['data']['name'] = 'Corel5k'
    tables.add_published(table)
    assert list(table['published']) == ['corel5k'] and table['paper'] == {}
    pages.write_table(table, tmp_path, 'corel')
    lines = (tmp_path / 'corel.md').read_text().splitlines()
    (head,) = (line for line in lines if 'P, top 5' in line)
    assert [cell.strip() for cell in head.split('|')[2:-1]] == ['P, top 5', 'R, top 5', 'F1, top 5', 'N+, top 5']
    rows = {line.split('|')[1].strip(): line.split('|')[2:-1] for line in lines if line.startswith('| ')}
    tagprop = rows['TagProp σML (Guillaumin et al., ICCV 2009) (published)']
    assert [cell.strip() for cell in tagprop] == ['33', '42', '37.0', '160']
    ours = [f'{np.mean(table["rows"][0]["values"][f"{name}_top5"]):.2f}' for name in ('P', 'R', 'F1', 'N+')]
    assert [cell.split('±')[0].strip() for cell in rows['**ours, measured here**']] == ours
    (line,) = (line for line in lines if line.endswith('| difference of F1 |'))
    other = table['rows'][1]['difference']['F1_top5']
    found = lines[lines.index(line) + 3].split('|')
    assert found[1].strip() == 'a\\' and found[-2].strip().startswith(f'{other["mean"]:+.2f} (')
    with (tmp_path / 'corel.csv').open() as file:
        found = {row['name']: row for row in csv.DictReader(file)}
    assert found['2PKNN (Verma and Jawahar, ECCV 2012)']['N+_top5'] == '177' and found['ours']['N+_top5']
    assert found['2PKNN (Verma and Jawahar, ECCV 2012)']['figures_of'].startswith('published, ')


def test_read_published_f1_is_harmonic_mean():
    for part in tables.read_published().values():
        for name, p, r, f1, found in part['rows']:
            assert f1 == pytest.approx(2 * p * r / (p + r), abs=0.06), name
            assert 0 < found <= 260, name


def test_add_published_separates_subset_from_full_data():
    table = made_up_table('voc2012')
    table['data'] = {**table['data'], 'name': 'VOC 2012 subset (1,984/2,001)'}
    tables.add_published(table)
    lines = '\n'.join(pages._published_tables(table))
    assert lines.count('The data is not VOC 2012 subset') == 3 and 'measured here**' not in lines
    assert table['published'] == {}


def test_add_published_adds_paper_table_of_same_data(tmp_path):
    table = made_up_table('voc2007')
    tables.add_published(table)
    assert list(table['paper']) == ['table2']
    lines = list(pages._published_tables(table))
    head = next(line for line in lines if line.startswith('|  | mAP'))
    bottle = head.split('|').index(' bottle ')
    rows = {line.split('|')[1].strip(): line.split('|') for line in lines if line.startswith('| ')}
    assert rows['MSFF (paper)'][bottle].strip() == '85.1' and rows['HCP (paper)'][bottle].strip() == '75.3'
    ours = table['rows'][0]['AP']['bottle']
    assert float(rows['**ours, measured here**'][bottle]) == pytest.approx(np.mean(ours), abs=0.05)
    assert any('by its authors, not here' in line for line in lines)
    assert not any('do not compare' in line for line in lines)


@pytest.mark.parametrize(
    ('changes', 'start'),
    [
        ({'backbone_pretrained': False, 'backbone_from': 'local-dir:x'}, 'the backbone of one trained model'),
        ({'backbone_pretrained': False, 'backbone_from': 'local-dir:{}'}, 'a backbone trained with the same seed'),
        ({'backbone_pretrained': True}, "timm's weights of the backbone"),
        ({'backbone_pretrained': False, 'init_from': 'resnet101'}, "timm's weights of the backbone"),
        ({'backbone_pretrained': False}, 'random weights'),
    ],
)
def test_write_table_describes_initial_weights(tmp_path, changes, start):
    runs = [made_up(80), made_up(81)]
    for seed, run in enumerate(runs):
        run.config['model'] |= changes
        if 'backbone_from' in changes:
            run.config['model']['backbone_from'] = changes['backbone_from'].format(seed)
    speed = {'rows': [{'num_parameters': 1, 'gflops': 1}]}
    table = {'title': 'A table', **tables.tabulate([(tables.Variant('a', 'test_resnet'), runs)], 'a', speed)}
    pages.write_table(table, tmp_path, 'table')
    assert f'trained alike from {start}, with seeds' in (tmp_path / 'table.md').read_text()


def test_tabulate_rejects_runs_on_other_images():
    variant = tables.Variant('ours', 'ours')
    others = made_up(81, num_images=39), made_up(81, seed=1), made_up(81, data='voc2012'), made_up(81, top_k=5)
    for other in others:
        with pytest.raises(InputError, match='ours, seed .: not evaluated on the same images'):
            tables.tabulate([(variant, [made_up(80), other])], 'ours', {'rows': [{}]})


def test_read_paper_matches_paper():
    """Copied from the paper by hand; the mean of the AP values printed there is the printed mAP, up to rounding."""
    paper = tables.read_paper()
    rows = {
        (row[0], row[1]): dict(zip(paper['table1']['columns'], row[1:], strict=True)) for row in paper['table1']['rows']
    }
    assert len(rows) == 25
    for method, pixels, mAP, CF1, OF1 in (
        ('MSFF', 448, 85.1, 79.8, 81.8), ('MSFF', 576, 86.6, 81.0, 83.0), ('Q2L', 448, 84.9, 79.3, 81.5),
        ('ResNet101', 224, 78.3, 72.8, 76.8), ('FL-Tran', 576, 85.4, 80.2, 82.2), ('IDA', 448, 84.8, 78.7, 80.9),
    ):  # fmt: skip
        found = rows[method, pixels]
        assert (found['mAP'], found['CF1'], found['OF1']) == (mAP, CF1, OF1)
    for name, methods, ours in (('table2', 15, 95.4), ('table3', 10, 95.8)):
        part = paper[name]
        assert len(part['rows']) == methods and part['columns'][1:] == list(VOC_LABELS)
        for method, mAP, *classes in part['rows']:
            assert np.mean(classes) == pytest.approx(mAP, abs=0.07), method
        assert part['rows'][-1][:2] == ['MSFF', ours]
    assert dict(zip(paper['table2']['columns'], paper['table2']['rows'][-1][1:], strict=True))['chair'] == 82.2
    assert dict(zip(paper['table3']['columns'], paper['table3']['rows'][-1][1:], strict=True))['tvmonitor'] == 95.9


def test_measure_speed_stops_on_request():
    rows = [tables.Variant(name, name) for name in MODELS]
    with pytest.raises(Stopped, match='the same command again to resume'):
        study.measure_speed(rows, 3, 32, 1, 1, MODELS[0], SimpleNamespace(received=signal.SIGINT))


@pytest.mark.parametrize('launched', [False, True])
def test_train_passes_stop_request_once_and_waits(tmp_path, monkeypatch, launched):
    """Also with a launcher in between that ends at once, like Accelerate's."""
    said = tmp_path / 'said'
    run = f"""
import pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
pathlib.Path({str(said)!r}).touch()
while not heard: time.sleep(0.01)
time.sleep(0.5)
pathlib.Path({str(said)!r}).write_text(f'saved {{len(heard)}}')
sys.exit(75)
"""
    launcher = f'import subprocess, sys\nsys.exit(subprocess.run([sys.executable, "-c", {run!r}]).returncode)'
    script = tmp_path / 'script.py'
    script.write_text(launcher if launched else run)
    monkeypatch.setattr(study, 'TRAIN', (str(script),))
    stop = SimpleNamespace(received=None)

    def ask():
        while not said.exists():
            time.sleep(0.01)
        stop.received = signal.SIGINT

    thread = threading.Thread(target=ask)
    thread.start()
    code = study._train(SimpleNamespace(argv=[]), None, stop)
    thread.join()
    assert said.read_text() == 'saved 1' and code == (-signal.SIGTERM if launched else 75)


@pytest.mark.slow
def test_compare_resumes_after_stop(tmp_path):
    """The backbone, which is trained first, sees a few images only."""
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe['data'] |= {'train_size': 64, 'eval_size': 24, 'image_size': 32}
    recipe['optim'] |= {'epochs': 1}
    tiny = tmp_path / 'tiny.yaml'
    tiny.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(ROOT / 'train' / 'compare.py'), f'--output={tmp_path}', f'--train={tiny}', *TINY]
    command += ['--models=[msff_test_resnet, test_resnet]', '--seeds=[0, 1]', '--settings.data.train_size=960']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    weights = tmp_path / 'msff_test_resnet' / 'seed-0' / 'checkpoints'
    while not weights.exists():
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and 'run the same command again to resume' in err
    assert any(weights.glob('step-*')) and not (tmp_path / 'compare.md').exists()
    assert 'Going on from' in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = json.loads((tmp_path / 'compare.json').read_text())
    runs = [json.loads(file.read_text()) for name in MODELS for file in tmp_path.glob(f'{name}/seed-*/results.json')]
    assert len(runs) == 4
    for run in runs:
        backbone = tmp_path / 'backbone' / f'seed-{run["config"]["seed"]}'
        assert run['config']['model']['backbone_from'] == f'local-dir:{backbone}' and (backbone / 'report.md').exists()
    assert table['seeds'] == [0, 1] and table['rows'][1]['difference']['mAP']['low'] is not None
