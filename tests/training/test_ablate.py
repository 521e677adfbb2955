"""Tests of the paper's ablations: their variants, and the runs that they share."""

import json
import sys
from types import SimpleNamespace

import pytest
import timm
import torch

from made_up import RECIPE, TINY, made_up
from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.training.config import parse
from msff_timm.training.identity import about_run
from msff_timm.training.studies import ablate, study
from msff_timm.training.studies.config import TABLES, AblateConfig

# Copied from the paper by hand
FIGURES = {
    '4': {'all three modules': 85.14, 'without region selection': 84.03, 'without global feature enhancement': 84.89},
    '5': {'mode 1': 84.37, 'mode 2': 84.76, 'mode 3': 85.14},
    '6': {'nearest': 85.08, 'bilinear': 85.15, 'bicubic': 85.12, 'area': 85.11},
    '7': {'in layers 1, 2, 3': 85.08, 'in layers 2, 3': 85.01, 'in layer 1': 85.14, 'in none': 85.15},
    'fig5': {},
}


def model_of(variant, **more):
    with torch.device('meta'):
        return timm.create_model(variant.model, **variant.args, **more)


@pytest.mark.parametrize('table', TABLES)
def test_make_rows_matches_paper(table):
    rows, part = ablate.make_rows(table, 'msff_resnet101')
    assert part['where'].startswith(f'Table {table},' if table != 'fig5' else 'Figure 5,')
    assert len(rows) == {'4': 4, '5': 3, '6': 4, '7': 4, 'fig5': 9}[table]
    assert len({row.name for row in rows}) == len({row.folder for row in rows}) == len(rows)
    figures = {row.name: row.paper.get('mAP') for row in rows}
    assert FIGURES[table].items() <= figures.items()
    assert [row.args for row in rows].count({}) == 1  # the paper's choice, shared by all tables


def test_make_rows_variants_match_their_names():
    def models(table):
        return {row.name: model_of(row) for row in ablate.make_rows(table, 'msff_resnet101')[0]}

    modules = models('4')
    assert [name for name, m in modules.items() if m.scale_attention is None] == [
        'without hierarchical scale attention'
    ]
    assert [name for name, m in modules.items() if m.selection is None] == ['without region selection']
    assert [name for name, m in modules.items() if not len(m.enhancement.branches[0])] == [
        'without global feature enhancement'
    ]
    assert {name: m.scale_attention.interpolation for name, m in models('6').items()} == {
        name: name for name in ('nearest', 'bilinear', 'bicubic', 'area')
    }
    for name, m in models('fig5').items():
        assert name == f'm = {len(m.enhancement.branches[0])}, n = {len(m.selection.branches[0])}'
    # Table 5, by stride and kernel size: layers 2, 3 and 4 have strides 8, 16 and 32.
    for name, m in models('5').items():
        reductions = m.backbone.feature_info.reduction()
        convs = (m.projection.conv1, m.projection.conv2, m.projection.conv3)
        found = [
            (reductions[source], conv.kernel_size[0]) for source, conv in zip(m.projection.sources, convs, strict=True)
        ]
        assert (
            found
            == {
                'mode 1': [(16, 1), (16, 3), (32, 3)],
                'mode 2': [(8, 3), (16, 3), (32, 3)],
                'mode 3': [(16, 1), (32, 1), (32, 3)],
            }[name]
        )
    for row in ablate.make_rows('7', 'msff_resnet101')[0]:
        count = sum(p.numel() for p in model_of(row).parameters()) / 1e6
        assert count == pytest.approx(row.paper['million_parameters'], abs=0.06)


def test_ablate_shares_runs_between_tables(tmp_path, monkeypatch, capsys):
    trained = []

    def train(run, launch, stop):
        run.output.mkdir(parents=True)
        # The same images for all; the mAP is 80, plus the seed, minus the number of arguments.
        found = made_up(80 + run.config.seed - len(run.variant.args), 0, 'scenes')
        found.config = about_run(run.config, [], {})['config']
        found.model_weights = {'epoch': 1}
        found.to_json(run.output / 'results.json')
        for name in ('report.md', 'model.safetensors'):
            (run.output / name).touch()
        trained.append(run.variant.folder)
        return 0

    monkeypatch.setattr(study, '_train', train)
    monkeypatch.setattr(study, 'StopRequest', lambda: SimpleNamespace(received=None))

    def run(table, *more):
        own = [f'--table={table}', f'--output={tmp_path}', f'--train={RECIPE}', '--seeds=[0, 1]', *TINY]
        own += ['--backbone=null', *more]
        monkeypatch.setattr(sys, 'argv', ['ablate.py', *own])
        ablate.main()
        name = f'table{table}' if table.isdigit() else table
        return json.loads((tmp_path / f'{name}.json').read_text()), (tmp_path / f'{name}.md').read_text()

    table, text = run('6', '--turns=2')
    assert len(trained) == 8
    assert len(set(trained)) == 4 and 'msff_test_resnet' in trained and table['reference'] == 'bilinear'
    bilinear, bicubic = (next(row for row in table['rows'] if row['name'] == name) for name in ('bilinear', 'bicubic'))
    assert (
        bilinear['scale_attention_ratio'] == 1 and bicubic['scale_attention_ms'] > 0 < bicubic['scale_attention_ratio']
    )
    assert bicubic['difference']['mAP'] == {'mean': -1, 'low': -1, 'high': -1} and bilinear['mean']['mAP'] == 80.5
    assert "the paper's mAP (COCO 2014)" in text and '85.12 |' in text and 'at 448 pixels (Table 6' in text
    assert 'bicubic takes 4 to 5 times as long' in text and 'scale attention per image' in text

    trained.clear()
    table, text = run('7', '--turns=0')
    assert len(trained) == 6 and 'msff_test_resnet' not in trained  # trained for Table 6
    assert 'msff_test_resnet-decoder_self_attn=true,false,false' in trained
    assert table['reference'] == 'in none' and '| 72.7 M |' in text and 'scale attention per image' not in text
    counts = [row['num_parameters'] for row in table['rows']]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 4
    assert '2 of 8 runs are finished.' in capsys.readouterr().out


def test_ablate_config_rejects_other_models(tmp_path):
    with pytest.raises(InputError, match="unknown msff_. model 'q2l_test_resnet': did you mean msff_test_resnet?"):
        parse(AblateConfig, ['--table=4', f'--output={tmp_path}', f'--train={RECIPE}', '--model=q2l_test_resnet'])


def test_train_saves_and_loads_model_args(script, tmp_path):
    folder = tmp_path / 'run'
    settings = [argument.replace('settings.', '') for argument in TINY]
    args = ['--model.args.fusion_mode', 2, '--model.args.decoder_self_attn=[true, false, false]']
    script('train.py', f'--output={folder}', *args, *settings)
    expected = {'fusion_mode': 2, 'decoder_self_attn': [True, False, False]}
    run = json.loads((folder / 'results.json').read_text())
    assert run['config']['model']['args'] == expected and run['peak_bytes'] > 100e6
    assert expected.items() <= json.loads((folder / 'config.json').read_text())['model_args'].items()
    model = hub.load(f'local-dir:{folder}')
    assert model.projection.conv1.kernel_size == (3, 3)
    assert [layer.self_attn is not None for layer in model.selection.branches[0]] == [True, False, False]


@pytest.mark.slow
def test_ablate_trains_and_tabulates_variants(script, tmp_path):
    own = [f'--output={tmp_path}', f'--train={RECIPE}', '--seeds=[0, 1]', *TINY]
    own += ['--backbone=null', '--turns=3']
    script('ablate.py', '--table=5', *own)
    table = json.loads((tmp_path / 'table5.json').read_text())
    for row in table['rows']:
        run = json.loads(
            (
                tmp_path / study.Variant(row['name'], row['model'], row['args']).folder / 'seed-1' / 'results.json'
            ).read_text()
        )
        assert row['values']['mAP'][1] == run['metrics']['mAP'] and row['num_parameters'] == run['num_parameters']
    assert '6 of 6 runs are finished.' in script('ablate.py', '--table=5', *own).stdout
