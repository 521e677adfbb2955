import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import msff_timm
from msff_timm import calibration, hub, metrics, thresholds
from msff_timm.errors import InputError
from msff_timm.hub import card
from msff_timm.results import Results, pick_metrics
from msff_timm_cli import commands as cli

ROOT = Path(__file__).parents[2]
LABELS = ['cat', 'dog', 'chair', 'always there', 'nearly so', 'never seen', 'rare']
HOSTILE = [
    '<script>alert(1)</script>',
    '</details><img src=x onerror=alert(1)>',
    '![x](http://evil.example/x.png)',
    '[click](javascript:alert(1))',
    'a | b | c',
    '{{ 7 * 7 }}{% raw %}',
    'x\n---\nlicense: mit\n---\n# Mine',
    '``` ` ~~~ **b** _i_ $x^2$ @someone',
    'lone \ud800 and \x00\x1b[31m and \u2028 line',
    'www.evil.example :smile: 猫 é',
]


def make_folder(folder: Path, label_names: list[str], **context) -> Path:
    """Saves a model with the results of random scores.

    The last four labels have no negative, one negative, no positive, and two positives.
    """
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=len(label_names))
    data_config = timm.data.resolve_model_data_config(model) | {'input_size': (3, 64, 96)}
    rng = np.random.default_rng(0)
    targets = rng.random((60, len(label_names))) < 0.4
    targets[:, -2], targets[2:, -1], targets[:2, -1] = False, False, True
    targets[:, -4], targets[:, -3] = True, np.arange(60) > 0
    scores = (0.5 * rng.random(targets.shape) + 0.5 * targets * rng.random(targets.shape)).astype(np.float32)
    computed = metrics.evaluate(scores, targets, bootstrap=20, areas=np.where(targets, rng.random(targets.shape), 0))
    fitted = thresholds.fit(scores, targets)
    calibrated = calibration.fit(scores, targets)
    stored = {**asdict(fitted), 'folds': 5, 'data': {'name': 'scenes', 'split': 'validation'}, 'num_images': 60}
    stored |= {'temperatures': calibrated.temperatures, 'biases': calibrated.biases}
    hub.save(model, folder, label_names, data_config, thresholds=stored)
    config = {
        'output': '/home/someone/runs/secret',
        'model': {
            'name': 'msff_test_resnet',
            'args': {'fusion_mode': 3},
            'init_from': 'local-dir:/home/someone/teacher',
            'drop_rate': 0.0,
        },
        'data': {'name': 'scenes', 'root': '/home/someone/photos', 'train_split': 'train', 'image_size': 64},
        'optim': {'epochs': 3, 'batch_size': 16, 'lr': 0.002, 'loss': 'asl'},
    }
    run = Results.from_metrics(
        computed,
        label_names,
        **{
            'model': 'msff_test_resnet',
            'data': {'name': 'scenes', 'split': 'validation', 'trained_on': 'train'},
            'config': config,
            'command': 'HF_TOKEN=hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaa train.py --output /home/someone/runs/secret',
            'epoch': 3,
            'seconds': 75.0,
            'devices': ['cpu (x86_64)', 'cpu (x86_64)'],
            'calibration': {'calibrated_by': 'values of other folds', **calibrated.out_of_fold},
            'model_weights': {'epoch': 3, **pick_metrics(computed), 'mAP': 12.345},
            'mistakes': {'misses': [{'row': 0, 'image_id': '/home/someone/photos/me.jpg', 'label': label_names[0]}]},
            **context,
        },
    )
    run.to_json(folder / 'results.json')
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('card') / 'run', LABELS)


@pytest.fixture
def copied(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / 'copy'))


@pytest.fixture(scope='module')
def text(folder):
    return card.render(folder, 'org/name')


def results_of(folder: Path) -> dict:
    return json.loads((folder / 'results.json').read_text())


def section(text: str, heading: str) -> str:
    return re.split(r'^## ', text.split(f'\n## {heading}\n')[1], flags=re.MULTILINE)[0]


def table_row(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {first} |')]
    return [cell.strip() for cell in line.strip('|').split('|')][1:]


def check(text: str, path: Path) -> dict:
    """Reads a card as huggingface_hub does; `ModelCard.validate` would need the Hub."""
    path.write_text(text, encoding='utf-8')
    data = metadata_load(path)
    loaded = ModelCard.load(path)
    assert loaded.data.to_dict() == data and str(loaded) == text
    assert data['library_name'] == 'timm' and data['pipeline_tag'] == 'image-classification'
    assert data['license'] == 'apache-2.0' and 'multi-label-classification' in data['tags']
    assert text.count('\n---\n') == 1 and text.startswith('---\n')
    # Traces of missing values; `[None]` is code, and one sentence begins so.
    assert not re.search(r'\{\{|\{%|(?<!\[)\bNone\b(?!:)|\n\n\n', text)
    return data


@pytest.mark.parametrize('tag', card.tags())
def test_render_tag_is_valid_and_shows_recorded_metrics_alone(tag, tmp_path):
    text = card.render_tag(tag)
    data = check(text, tmp_path / 'README.md')
    measured = (ROOT / 'hub_cards' / 'results' / f'{tag}.json').is_file()
    assert ('model-index' in data) == measured == ('**No results.**' not in text)
    cfg = timm.get_pretrained_cfg(tag)
    assert cfg.hf_hub_id in text and f'{cfg.input_size[2]} × {cfg.input_size[1]} pixels' in text
    assert ', '.join(cfg.label_names) in text
    about = yaml.safe_load((ROOT / 'hub_cards' / 'tags' / f'{tag}.yaml').read_text())
    assert (ROOT / about['recipe']).is_file() and about['recipe'] in text
    if 'paper' in about:
        (line,) = [line for line in text.splitlines() if 'Results of the paper' in line]
        assert all(f'{name} {value}' in line for name, value in about['paper']['metrics'].items())
        assert 'They do not apply to these weights.' in line


def test_tags_lists_each_tag_with_weights():
    published = timm.list_models('msff_*', module='msff', pretrained=True)
    assert card.tags() == sorted(published)


def test_render_shows_the_metrics_of_the_results(folder, text, tmp_path):
    data, run = check(text, tmp_path / 'README.md'), results_of(folder)
    evaluated = {result.metric_name.split()[0]: result for result in ModelCard(text).data.eval_results}
    ids = {name: result.metric_type for name, result in evaluated.items()}
    assert ids == {'mAP': 'mean_average_precision', 'CF1': 'f1', 'OF1': 'f1'}
    for name, result in evaluated.items():
        assert result.metric_value == pytest.approx(run['metrics'][name], abs=0.005)
        assert (result.dataset_type, result.dataset_split) == ('scenes', 'validation')
        assert result.dataset_args == {'num_images': 60, 'num_classes': 5}
    arguments = {name: result.metric_args for name, result in evaluated.items()}
    assert arguments == {'mAP': None, 'CF1': {'average': 'macro'}, 'OF1': {'average': 'micro'}}
    assert evaluated['mAP'].metric_name == 'mAP in percent (all-points)'
    assert evaluated['CF1'].metric_name == 'CF1 in percent (F1 of CP and CR, threshold 0.5)'
    assert evaluated['OF1'].metric_name == 'OF1 in percent (threshold 0.5)'
    assert data['model-index'][0]['name'] == 'name'

    names = ['mAP', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1']
    part = section(text, 'Results')
    assert table_row(part, 'these weights') == [f'{run["metrics"][name]:.2f}' for name in names]
    raw = ['12.35' if name == 'mAP' else f'{run["model_weights"][name]:.2f}' for name in names]
    assert table_row(part, 'model weights without EMA (not published)') in (
        raw,
        ['12.35', *raw[1:]],
        ['12.34', *raw[1:]],
    )
    top = run['top']
    assert table_row(part, 'these weights, top 3 labels') == ['–', *(f'{top[n]:.2f}' for n in names[1:])]
    assert 'With the 3 most probable labels of each image, over the 6 labels with a positive: ' in part
    assert f'mean precision P {top["P"]:.2f}, mean recall R {top["R"]:.2f}, ' in part
    assert f'F1 {top["F1"]:.2f}; {top["N+"]} labels are found' in part
    assert (
        f'**mAP {run["metrics"]["mAP"]:.2f} %** (all-points) on scenes validation, 60 images, over 5 of 7 labels'
        in text
    )
    assert '60 images, 5 of 7 labels, those with at least one positive and one negative' in part
    assert 'average over all labels (one without positives counts as 0)' in part
    assert 'all-points' in part and 'a probability of 0.5' in part
    low, high = run['mAP_interval_95']
    assert f'\n\n95 % interval of mAP (bootstrap over images): {low:.2f} to {high:.2f}.\n\n' in part
    stored = json.loads((folder / 'config.json').read_text())['thresholds']
    for name, threshold in zip(LABELS, stored['per_class'], strict=True):
        ap = run['labels'][name]['AP']
        shown = ['–' if ap is None else f'{ap:.2f}', str(run['labels'][name]['num_positives']), f'{threshold:.3f}']
        assert table_row(part, name) == shown
    for kind, row in (
        ('per_class', 'one threshold for each label'),
        ('overall', 'one for all labels'),
        ('default', '0.5'),
    ):
        expected = stored['out_of_fold'][kind]
        assert table_row(section(text, 'Thresholds'), row) == [
            f'{expected[name]:.2f}' for name in ('CF1', 'OF1', 'macro_F1')
        ]
    assert 'Unreliable, with fewer than 5 positives or too few negatives: nearly so, rare.' in text
    probabilities = section(text, 'Probabilities')
    for kind in ('uncalibrated', 'calibrated'):
        expected = run['calibration'][kind]
        assert table_row(probabilities, kind) == [f'{expected["ECE"]:.2f}', f'{expected["Brier"]:.4f}']
    for k, name in enumerate(LABELS):
        assert table_row(probabilities, name) == [f'{stored[key][k]:.3f}' for key in ('temperatures', 'biases')]
    assert 'is **not calibrated**' in text and 'calibrated by values of other folds. ECE' in probabilities
    assert 'Labels with fewer than 5 positives, so their metrics are unreliable: rare.' in text
    assert 'Labels with fewer than 5 negatives, so their metrics are unreliable: nearly so.' in text
    assert 'Labels without positives, which do not count in mAP: never seen.' in text
    assert 'Labels without negatives, which do not count in mAP: always there.' in text
    assert 'fitted for 5 of 7 labels; the others lack a positive or a negative, and keep 0.5.' in text
    assert stored['num_fitted'] == 5 and stored['per_class'][3] == stored['per_class'][5] == 0.5


def test_render_shows_no_number_that_is_in_no_file(folder, text):
    def leaves(value):
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from leaves(inner)
        elif isinstance(value, float):
            yield value

    files = [*leaves(results_of(folder)), *leaves(json.loads((folder / 'config.json').read_text()))]
    known = {f'{value:.{digits}f}' for value in files for digits in (2, 3)}
    parts = section(text, 'Results') + section(text, 'Thresholds')
    found = set(re.findall(r'\d+\.\d{2,3}\b', parts))
    assert len(found) > 30 and found <= known


def test_render_shows_the_size_of_the_model(folder, text):
    model = timm.create_model(f'local-dir:{folder}').eval()
    # Attention as matrix products, since the counter does not know the CPU's fused kernel.
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 64, 96))
    assert f'| {counter.get_total_flops() / 1e9:.3g} GFLOPs per image' in text
    assert f'({sum(p.numel() for p in model.parameters()):,})' in text
    assert f'{(folder / "model.safetensors").stat().st_size / 1e6:.1f} MB' in text
    assert '96 × 64 pixels, 3 channels' in text


def test_render_names_the_split_that_chose_the_epoch(copied):
    run = json.loads((copied / 'results.json').read_text()) | {'weights': 'exponential moving average'}
    run['config']['data']['eval_split'] = 'test'
    for early_stop, epochs, chosen in ((None, '', ''), (2, 'at most ', ', chosen by early stopping on split test')):
        run['config']['optim']['early_stop'] = early_stop
        (copied / 'results.json').write_text(json.dumps(run))
        training = section(card.render(copied), 'Training')
        assert f'for {epochs}3 epochs with AdamW.' in training
        assert f'Weights: exponential moving average, after epoch 3{chosen}. ' in training


def test_render_shows_the_recipe_without_paths_commands_and_tokens(text):
    settings = yaml.safe_load(re.search(r'```yaml\n(.*?)```', text, re.DOTALL)[1])
    assert settings['optim'] == {'epochs': 3, 'batch_size': 16, 'lr': 0.002, 'loss': 'asl'}
    assert settings['data'] == {'image_size': 64} and settings['model'] == {
        'args': {'fusion_mode': 3},
        'drop_rate': 0.0,
    }
    assert 'starting from another run (a local folder), for 3 epochs' in text and '2 × cpu (x86\\_64). Duration' in text
    assert (
        'with all evaluations: 75 seconds.' in text
        and '/home' not in text
        and 'hf_a' not in text
        and 'secret' not in text
        and 'me.jpg' not in text
    )


@pytest.mark.parametrize(
    ('data', 'dataset', 'more'),
    [
        ({'name': 'hub', 'root': 'org/shop'}, 'org/shop', {'datasets': ['org/shop'], 'base_model': 'org/start'}),
        ({'name': 'table', 'root': 'photos'}, 'own images (photos)', {'base_model': 'org/start'}),
        ({'name': 'coco2014', 'keep_unlabelled': None}, 'COCO 2014', {'base_model': 'org/start'}),
    ],
)
def test_render_names_the_sources_of_model_and_data_in_metadata(copied, data, dataset, more):
    run = results_of(copied)
    run['data'] = {**data, 'split': 'validation', 'trained_on': 'validation'}
    run['config']['model']['init_from'] = 'hf-hub:org/start@v1'
    run['config']['data']['name'] = data['name']
    (copied / 'results.json').write_text(json.dumps(run))
    text = card.render(copied)
    found = ModelCard(text).data
    assert {key: found.get(key) for key in ('datasets', 'base_model') if found.get(key)} == more
    assert found.eval_results[0].dataset_name == dataset
    assert '**The model was trained on these images**' in text
    assert 'from hf-hub:org/start@v1, for 3 epochs' in html.unescape(section(text, 'Training'))
    run['config']['model'] |= {'init_from': None, 'backbone_from': 'hf-hub:org/start@v1'}
    (copied / 'results.json').write_text(json.dumps(run))
    text = card.render(copied)
    assert ModelCard(text).data.get('base_model') == 'org/start'
    assert 'from the backbone of hf-hub:org/start@v1, for 3 epochs' in html.unescape(section(text, 'Training'))
    assert ('Images without a label are left out.' in text) == (data['name'] == 'coco2014')


def test_render_escapes_texts_of_others(tmp_path):
    names = [*HOSTILE, 'never', 'rare']
    data = {'name': 'table', 'root': '](x) <b> `', 'split': 'val\n---\nlicense: mit', 'trained_on': 'train'}
    folder = make_folder(tmp_path / 'run', names, data=data, devices=['<b>GPU</b>'], git_commit='```\n# x')
    config = results_of(folder)['config']
    config['optim']['loss'] = '```\n# broken out\n```'
    run = {**results_of(folder), 'config': config}
    (folder / 'results.json').write_text(json.dumps(run))
    text = card.render(folder, 'org/name')
    metadata = check(text.replace('{{ 7', '( 7').replace('{%', '('), tmp_path / 'README.md')
    assert metadata['model-index'][0]['results'][0]['dataset']['split'] == 'val --- license: mit'
    body = text.split('\n---\n', 1)[1]
    assert set(re.findall(r'<(?!/)[^>]*>', body)) == {'<details>', '<summary>'} and body.count('</details>') == 3
    assert not re.search(r'(?<!\\)\]\((?!architecture|#results|#probabilities|https://(doi|github))', body)
    assert re.findall(r'^# .*', re.sub(r'^````+yaml.*?^````+$', '', body, flags=re.M | re.S), re.M) == ['# name']
    assert 'alert(1)&lt;/script&gt;' in body and '{{ 7 \\* 7 }}' in body
    rows = [line for line in section(text, 'Results').splitlines() if line.startswith('| ')]
    columns = {len(re.findall(r'(?<!\\)\|', line)) for line in rows}
    assert columns == {9, 5, 4}  # of the three tables
    assert '\x00' not in text and '\x1b' not in text and '猫 é' in text
    text.encode()


def test_escape_keeps_harmless_text():
    assert card.escape('traffic light') == 'traffic light' and card.escape('naïve 猫') == 'naïve 猫'
    assert card.escape('a_b') == 'a\\_b' and card.escape(7) == '7'


def test_render_without_results(copied, tmp_path):
    (copied / 'results.json').unlink()
    text = card.render(copied, 'org/name')
    data = check(text, tmp_path / 'README.md')
    assert 'model-index' not in data and '> **No results.** This model has not been evaluated' in text
    assert 'None: there is no `results.json`.' in section(text, 'Results')
    assert table_row(section(text, 'Thresholds'), 'cat')  # from config.json


def test_render_results_of_an_evaluation_without_a_recipe(copied):
    run = results_of(copied)
    for key in ('config', 'epoch', 'seconds', 'devices', 'model_weights'):
        run.pop(key)
    (copied / 'results.json').write_text(json.dumps(run))
    text = card.render(copied)
    assert 'does not describe the training' in section(text, 'Training') and 'hf-hub:ORG/NAME' in text


def test_render_adds_what_is_known_of_a_tag(tmp_path):
    scenes = list(timm.get_pretrained_cfg('msff_test_resnet.scenes').label_names)
    tag, other = make_folder(tmp_path / 'tag', scenes), make_folder(tmp_path / 'other', scenes[::-1])
    text = card.render(tag, 'me/msff_test_resnet.scenes')
    assert "It is the demo's model" in text and '**No results.**' not in text
    assert "It is the demo's model" not in card.render(other, 'me/msff_test_resnet.scenes')


def test_images_lists_the_images_of_a_card(copied):
    assert sorted(card.images(copied)) == ['architecture.svg']
    for name in ('curves.png', 'ap.png', 'mistakes.png'):
        (copied / name).write_bytes(b'')
    found = card.images(copied)
    assert set(re.findall(r'!\[[^]]*\]\(([^)]*)\)', card.render(copied))) == set(found)
    assert sorted(found) == ['ap.png', 'architecture.svg', 'curves.png'] and all(p.is_file() for p in found.values())


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda f: (f / 'config.json').unlink(), 'holds no config.json'),
        (lambda f: (f / 'config.json').write_text('{"architecture": "nothing"}'), 'config.json: describes no model'),
        (lambda f: (f / 'config.json').write_text('[' * 100_000), 'config.json: cannot be read'),
        (lambda f: (f / 'results.json').write_text('[]'), 'results.json: holds no JSON object;'),
        (lambda f: (f / 'results.json').write_text('{"labels": 3}'), 'results.json: was written by an unknown version'),
        (lambda f: _change(f, labels={'bird': {'AP': 1.0, 'num_positives': 3}}), "its label 'bird' is not in config"),
        (lambda f: _change(f, num_images='many'), 'results.json: is damaged, or belongs to another model'),
    ],
)
def test_card_command_explains_damaged_files_in_one_line(copied, damage, message, capsys):
    damage(copied)
    assert cli.main(['card', str(copied)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''


def put(value, path, inner):
    """Sets a value in nested JSON."""
    *parents, last = path
    for parent in parents:
        value = value[parent]
    value[last] = inner


def paths(value, path=()):
    """Yields the path to each value of nested JSON."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths(value[key], (*path, key))


@pytest.fixture(scope='module')
def created(folder):
    return timm.create_model(f'local-dir:{folder}')


@pytest.fixture
def quick(created, monkeypatch):
    """Creates the model once for many cards, to save time."""
    monkeypatch.setattr(card, 'measure_size', lambda *_: {'num_parameters': 1, 'gflops': 1.0})
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: created)


def nested(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        *(
            (path, value)
            for path in ('num_images', 'num_classes', 'num_labels_counted', 'labels.cat.num_positives')
            for value in (math.inf, -math.inf, math.nan, -1, 10**400, 1.5, True, '60', [60], {})
        ),
        *(
            (f'metrics.{name}', value)
            for name in ('mAP', 'CF1')
            for value in (math.inf, -1, 101, 1e300, '50', True, [])
        ),
        *(('labels.cat.AP', value) for value in (math.inf, -0.5, 1e400, 'x', {})),
        *(('definitions.threshold', value) for value in (math.inf, math.nan, -1, 1.5, 'x')),
        *((f'num_positives_by_size.{size}', math.inf) for size in ('small', 'large')),
        ('mAP_interval_95', [0, math.inf]),
        ('mAP_interval_95', 7),
        ('seconds', math.inf),
        ('seconds', math.nan),
        ('epoch', math.inf),
        ('num_processes', math.inf),
        ('config.optim.epochs', math.inf),
        ('config.optim.loss', nested(900)),
        ('config.model.args', nested(900)),
        ('config.optim', []),
        ('config.data', 3),
        ('config.model', None),
        ('config.model.init_from', nested(3)),
        ('config', 'optim'),
        ('data.split', {'<script>': 1}),
        ('data.name', ['coco2014']),
        ('data', None),
        ('devices', [{}]),
        ('devices', 3),
        ('versions', ['torch']),
        ('data.name', None),
        ('data.name', ' '),
        ('data.split', None),
        ('versions', {'torch': {'<b>': 1}}),
        ('labels', nested(900)),
        ('labels', {'cat': None}),
        ('top', 'x'),
        ('top.P', '<b>'),
        ('top.N+', 1.5),
        ('top.k', None),
    ],
)
def test_render_explains_wrong_values_in_one_line(copied, quick, path, value):
    run = results_of(copied)
    put(run, path.split('.'), value)
    (copied / 'results.json').write_text(json.dumps(run))
    with pytest.raises(InputError) as caught:
        card.render(copied)
    message = str(caught.value)
    assert message.startswith(f'{copied / "results.json"}: ') and '\n' not in message and len(message) < 400


def test_render_shows_top_k(copied, quick):
    run = results_of(copied)
    run['top']['k'] = 5
    (copied / 'results.json').write_text(json.dumps(run))
    text = card.render(copied)
    assert 'these weights, top 5 labels' in text and 'With the 5 most probable labels of each image' in text


@pytest.mark.parametrize('value', [None, math.nan])
@pytest.mark.parametrize(
    'path', ['metrics.mAP', 'metrics.CF1', 'model_weights.mAP', 'labels.cat.AP', 'mAP_by_size.small']
)
def test_render_shows_undefined_metrics_as_such(copied, quick, path, value, tmp_path):
    run = results_of(copied)
    put(run, path.split('.'), value)
    (copied / 'results.json').write_text(json.dumps(run))
    data = check(card.render(copied), tmp_path / 'README.md')
    names = [metric['name'].split()[0] for metric in data['model-index'][0]['results'][0]['metrics']]
    assert sorted(names) == sorted({'mAP', 'CF1', 'OF1'} - ({path[8:]} if path.startswith('metrics') else set()))


@pytest.mark.parametrize(
    'content', ['1e400', '{"num_images": 1e400}', '[' * 10**5, '{"a":' * 10**5, '"x"', '', '\x00', 'null']
)
def test_card_command_refuses_unreadable_results(copied, capsys, content):
    (copied / 'results.json').write_text(content)
    assert cli.main(['card', str(copied)]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'results.json' in error and len(error) < 500


@pytest.mark.parametrize('name', ['config.json', 'results.json'])
def test_card_command_reads_no_pipe_and_no_huge_file(copied, name, capsys):
    content = (copied / name).read_bytes()
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert cli.main(['card', str(copied)]) == (2 if name == 'config.json' else 0)
    (copied / name).unlink()
    with (copied / name).open('wb') as file:
        file.write(content)
        file.truncate(10**10)  # sparse
    assert cli.main(['card', str(copied)]) == 2 and 'over 50,000,000 bytes' in capsys.readouterr().err


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.none() | st.text(max_size=3) | st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none() | st.floats() | st.text(max_size=3), max_size=2),
    st.integers(100, 1500).map(nested),
    st.just(10**400),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_render_makes_a_card_or_one_line_of_any_values(copied, quick, folder, data):
    run = results_of(folder)
    where = list(paths(run))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(where))
        try:
            put(run, path, data.draw(ODD_VALUES))
        except (KeyError, TypeError, IndexError):  # removed by another change
            continue
    (copied / 'results.json').write_text(json.dumps(run))
    try:
        text = card.render(copied, 'org/name')
    except InputError as e:
        assert '\n' not in str(e) and len(str(e)) < 500
    else:
        assert not re.search(r'\| (nan|-?inf) \|', text) and ModelCard(text).data.library_name == 'timm'
        assert set(re.findall(r'<(?!/)[^>]*>', text.split('\n---\n', 1)[1])) <= {'<details>', '<summary>'}


def test_render_names_data_by_their_title(copied):
    run = results_of(copied)
    _change(copied, data={**run['data'], 'title': 'a part of the scenes'})
    text = card.render(copied, 'org/name')
    assert 'on a part of the scenes validation, 60 images' in text
    assert ModelCard(text).data.eval_results[0].dataset_name == 'a part of the scenes'


def _change(folder: Path, **values) -> None:
    (folder / 'results.json').write_text(json.dumps({**results_of(folder), **values}))


def test_card_command_prints_or_writes(folder, text, tmp_path, capsys):
    assert cli.main(['card', str(folder), '--repo', 'org/name']) == 0
    assert capsys.readouterr().out == text + '\n'
    assert cli.main(['card', str(folder), '--repo', 'org/name', '-o', str(tmp_path / 'README.md')]) == 0
    assert (tmp_path / 'README.md').read_text(encoding='utf-8') == text
    assert cli.main(['card', '--tag', 'msff_resnet101.coco2014_44']) == 2
    assert 'did you mean msff_resnet101.coco2014_448?' in capsys.readouterr().err
    assert cli.main(['card', str(folder), '--repo', 'a/b/c']) == 2
    assert cli.main(['card', str(folder), '-o', str(tmp_path / 'gone' / 'README.md')]) == 2
    with pytest.raises(InputError, match='is no repository id'):
        card.render(folder, 'org/na me')


def test_render_works_in_a_wheel(folder, tmp_path):
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns('__pycache__')
    for name in ('msff_timm', 'hub_cards', 'train'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    build = 'from setuptools import build_meta; print(build_meta.build_wheel("dist"))'
    subprocess.run([sys.executable, '-c', build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / 'dist').glob('*.whl')
    installed = tmp_path / 'elsewhere' / 'site'
    zipfile.ZipFile(wheel).extractall(installed)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / 'msff_timm').rglob('*.py')}
    modules = {name.replace('msff_timm/cli/', 'msff_timm_cli/') for name in modules}
    assert modules <= {str(path.relative_to(installed)) for path in installed.rglob('*.py')}
    of_space = {path.name: path.read_bytes() for path in (ROOT / 'hub_cards' / 'space').iterdir() if path.is_file()}
    assert {p.name: p.read_bytes() for p in (installed / 'msff_timm/hub_cards/space').iterdir()} == of_space
    assert {'app.py', 'requirements.txt', 'README.md'} <= set(of_space)
    code = f"""
import msff_timm, sys, timm
from pathlib import Path
from msff_timm.hub import card
assert timm.create_model('msff_test_resnet', pretrained=True).pretrained_cfg['label_names'][0] == 'arrow'
assert Path(msff_timm.__file__).is_relative_to({str(installed)!r}), msff_timm.__file__
assert card.tags() == {card.tags()!r}
assert card.render_tag('msff_test_resnet.scenes') == {card.render_tag('msff_test_resnet.scenes')!r}
found = card.images({str(folder)!r})
assert found['architecture.svg'].is_file() and found['architecture.svg'].is_relative_to({str(installed)!r})
sys.stdout.write(card.render({str(folder)!r}, 'org/name'))
"""
    environment = {**os.environ, 'PYTHONPATH': str(installed)}
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=tmp_path / 'elsewhere', env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == card.render(folder, 'org/name') and msff_timm.__version__ in result.stdout
