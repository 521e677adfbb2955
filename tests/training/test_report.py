import re
from types import SimpleNamespace

import datasets
import markdown
import numpy as np
import pytest
from PIL import Image

import msff_timm.data
from msff_timm import metrics
from msff_timm.data.records import features
from msff_timm.data.samples import Samples
from msff_timm.results import METRICS, Results, pick_metrics
from msff_timm.training import figures, report
from msff_timm.training.accumulator import MetricAccumulator
from msff_timm.training.evaluator import fit_thresholds

MADE_WITH = {'command': 'train.py', 'git_commit': None, 'git_dirty': None, 'devices': ['cpu']}


def scored_at_random(dataset):
    """Scores of a model that is better than chance, as `MetricAccumulator` holds them."""
    samples = Samples(dataset, None)
    rng = np.random.default_rng(0)
    scores = (0.6 * rng.random(samples.targets.shape) + 0.35 * (samples.targets == 1)).astype(np.float32)
    scored = MetricAccumulator()
    scored.update(np.arange(len(dataset)), scores, samples.targets == 1, samples.targets == -1, samples.areas)
    return scored


def make_run(dataset, **context):
    scored, label_names = scored_at_random(dataset), msff_timm.data.label_names(dataset)
    values = scored.compute()
    fitted, calibrated = fit_thresholds(scored, {'name': 'scenes'}, 'precision:0.8')
    context = {
        'thresholds': fitted,
        'calibration': calibrated,
        'model': 'msff_test_resnet',
        'data': {'name': 'scenes', 'split': 'validation', 'trained_on': 'train'},
        'history': [{'epoch': epoch, 'loss': 1 / epoch, **pick_metrics(values)} for epoch in (1, 2)],
        'mistakes': report.worst_mistakes(scored.arrays(), dataset, label_names),
        **MADE_WITH,
        **context,
    }
    return Results.from_metrics(values, label_names, **context), values


def make_dataset(folder, label_names, labels, ignore, image_ids):
    images = []
    for number in range(len(image_ids)):
        images.append(str(folder / f'{number}.png'))
        Image.new('RGB', (40, 30), (20 * number, 90, 90)).save(images[-1])
    columns = {'image': images, 'labels': labels, 'ignore': ignore, 'area': [[]] * len(images), 'image_id': image_ids}
    return datasets.Dataset.from_dict(columns, features=features(label_names))


def test_worst_mistakes_agrees_with_a_hand_made_case(tmp_path):
    dataset = make_dataset(tmp_path, list('abc'), [[0], [1, 2], []], [[], [], [0, 1]], ['one', 'two', 'three'])
    scored = {
        'scores': np.array([[0.2, 0.9, 0.8], [0.95, 0.4, 0.1], [0.99, 0.05, 0.3]], np.float32),
        'targets': np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0]], bool),
        'ignore': np.array([[0, 0, 0], [0, 0, 0], [1, 1, 0]], bool),
        'areas': None,
    }
    found = report.worst_mistakes(scored, dataset, list('abc'))
    named = {kind: [(m['row'], m['image_id'], m['label']) for m in entries] for kind, entries in found.items()}
    assert named['false_positives'] == [
        (1, 'two', 'a'), (0, 'one', 'b'), (0, 'one', 'c'), (2, 'three', 'c')
    ]  # fmt: skip
    assert named['misses'] == [(1, 'two', 'c'), (0, 'one', 'a'), (1, 'two', 'b')]
    assert [m['probability'] for m in found['misses']] == pytest.approx([0.1, 0.2, 0.4])


def test_worst_mistakes_returns_12_of_a_kind_and_2_of_an_image():
    dataset = msff_timm.data.load('scenes', 'validation', size=50, image_size=32)
    scored = scored_at_random(dataset).arrays()
    scored['scores'][7] = 1 - scored['targets'][7] * 0.999  # all wrong
    for kind, entries in report.worst_mistakes(scored, dataset, msff_timm.data.label_names(dataset)).items():
        wrong = scored['targets'] if kind == 'misses' else ~scored['targets']
        ranked = sorted(
            (1 if kind == 'misses' else -1) * scored['scores'][row, k] for row, k in np.argwhere(wrong) if row != 7
        )
        probabilities = [entry['probability'] for entry in entries if entry['row'] != 7]
        assert len(entries) == 12 and sum(entry['row'] == 7 for entry in entries) == 2
        assert max(sum(entry['row'] == row for entry in entries) for row in range(50)) == 2
        assert probabilities[0] == abs(ranked[0]) and entries[0]['row'] == 7
        assert probabilities == sorted(probabilities, reverse=kind == 'false_positives')


def test_write_report_needs_only_the_results(tmp_path):
    dataset = msff_timm.data.load('scenes', 'validation', size=40, image_size=48)
    run, values = make_run(dataset, epoch=2, model_weights={name: 12.34 for name in METRICS})
    run.to_json(tmp_path / 'results.json')
    path = report.write_report(tmp_path, Results.from_json(tmp_path / 'results.json'), dataset)
    text = path.read_text()
    files = {'ap.png', 'curves.png', 'mistakes.png', 'reliability.png', 'report.md', 'results.json'}
    assert {file.name for file in tmp_path.iterdir()} == files  # no temporary file is left
    assert set(re.findall(r'\]\((.*?\.png)\)', text)) == {file for file in files if file.endswith('.png')}
    for kind in ('uncalibrated', 'calibrated'):
        assert f'| {kind} | {run.calibration[kind]["ECE"]:.2f} | {run.calibration[kind]["Brier"]:.4f} |' in text
    line = next(line for line in text.splitlines() if line.startswith('Thresholds for a precision of 0.8: fitted'))
    assert f'; out of fold {run.thresholds["num_met"]} of 12 reach it' in line
    assert f'mAP {values["mAP"]:.2f}, CF1 {values["CF1"]:.2f}, OF1 {values["OF1"]:.2f} percent' in text
    assert 'EMA weights of epoch 2 on scenes validation (40 images, mAP all-points over 12 labels, ' in text
    assert '| model weights | 12.34 | 12.34 |' in text
    assert f'top 3 | – | {values["CP_top3"]:.2f} |' in text
    assert f'The top 3: CF1 {values["CF1_top3"]:.2f}  OF1 {values["OF1_top3"]:.2f}  P {values["P_top3"]:.2f}' in text
    assert f'N+ {values["N+_top3"]}  (P, R and N+ over 12 labels with a positive).' in text

    areas = [area for row in dataset for area in row['area']]
    bands = ('small', 0, 0.01), ('medium', 0.01, 0.1), ('large', 0.1, 2)
    for size, low, high in bands:
        positives = sum(low <= area < high for area in areas)
        assert run.num_positives_by_size[size] == positives > 0
        assert re.search(rf'\| {size}: .* \| {values[f"mAP_{size}"]:.2f} \| {positives} \|', text)
    for entries in run.mistakes.values():
        for entry in entries:
            assert f'| {entry["image_id"]} | {entry["label"]} | {entry["probability"]:.3f} |' in text


def states(*columns):
    """Scores, targets and ignore of columns of + (present), - (absent) and ? (masked)."""
    marks = np.array([list(column) for column in columns]).T
    scores = np.linspace(0.9, 0.1, marks.size).reshape(marks.shape)
    return scores, marks == '+', marks == '?'


@pytest.mark.filterwarnings('ignore:.*have fewer than 5')
@pytest.mark.parametrize(
    ('columns', 'basis'),
    [
        (['+++++-----'], '10 images, mAP all-points over 1 label, threshold 0.5'),
        (
            ['+++++-----', '?+++++++?+', '++++++++++'],
            '10 images, mAP all-points over 1 of 3 labels (2 without an absent entry, 0 without a positive),'
            ' CP and CR over 3, threshold 0.5',
        ),
        (
            ['+++++-----', '++++++++++', '----------', '??????????', '--------??', '?????????+'],
            '10 images, mAP all-points over 1 of 6 labels (2 without an absent entry, 1 masked throughout, 2 without a'
            ' positive), CP and CR over 5, threshold 0.5',
        ),
        (
            ['+++++-----', '+?????????', '-++++++++?', '+++++++++-', '+---------'],
            '10 images, mAP all-points over 4 of 5 labels (1 without an absent entry, 0 without a positive), 1 of them'
            ' with fewer than 5 positives, 2 of them with fewer than 5 absent entries, CP and CR over 5, threshold 0.5',
        ),
    ],
    ids=['all', 'no absent entry', 'each kind', 'few'],
)
def test_describe_counts_labels_that_are_left_out(columns, basis, tmp_path):
    scores, targets, ignore = states(*columns)
    values = metrics.evaluate(scores, targets, ignore)
    label_names = [f'label {k}' for k in range(len(columns))]
    results = Results.from_metrics(values, label_names, model='a', data={})
    assert report.describe(results).endswith(f'  ({basis})')
    results.to_json(tmp_path / 'results.json')
    read = Results.from_json(tmp_path / 'results.json')
    assert report.basis_of(read) == basis
    counted = [label['AP'] is not None for label in read.labels.values()]
    assert counted == ['+' in column and '-' in column for column in columns]
    assert read.num_labels_counted == sum(counted)
    assert [label['num_negatives'] for label in read.labels.values()] == [column.count('-') for column in columns]


def test_write_report_escapes_text_of_the_data(tmp_path):
    names = ['a|b', '<img src=x onerror=alert(1)>', '[x](javascript:y) *z* `c` $m$ \\']
    ids = ['one_two_three', '![i](http://h/p.png)', 'line\nbreak & more~~']
    dataset = make_dataset(tmp_path, names, [[0], [1], [2]], [[], [], []], ids)
    command = "train.py --output='```x'"
    run, _ = make_run(dataset, command=command)
    text = report.write_report(tmp_path / 'run', run, dataset).read_text()
    shown = markdown.markdown(text, extensions=['tables', 'fenced_code'])
    cells = [re.sub('<.*?>', '', row) for row in re.findall('<td.*?</td>', shown)]
    for name in (*names, *(image_id.replace('\n', ' ') for image_id in ids)):
        escaped = name.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
        for character in ':~$@':
            escaped = escaped.replace(character, f'&#{ord(character)};')
        assert escaped in cells
    assert shown.count('<img') == 3 and '<a ' not in shown and '<em>' not in shown
    assert "train.py --output='```x'" in shown.replace('&#x27;', "'").replace('&#39;', "'")


@pytest.mark.parametrize(('num_labels', 'num_shown'), [(12, 12), (80, 80), (1000, 100)])
def test_draw_ap_shows_the_highest_and_lowest_labels(num_labels, num_shown):
    labels = {f'label {k}': {'AP': k * 100 / num_labels, 'num_positives': k} for k in range(1, num_labels)}
    labels['label 0'] = {'AP': None, 'num_positives': 0}
    run = {'labels': labels, 'definitions': {'mAP': 'voc11'}, 'metrics': {'mAP': 50.0}, 'num_classes': num_labels}
    figure = figures.draw_ap(SimpleNamespace(**run))
    left, right = figure.axes
    shown = [label.get_text() for label in left.get_yticklabels()]
    assert len(shown) == min(num_shown, num_labels - 1) and shown[0] == f'label {num_labels - 1}'
    assert shown[-1] == 'label 1' and 'voc11' in left.get_xlabel()
    assert [bar.get_width() for bar in right.patches] == [int(name.split()[1]) for name in shown]
    assert figure.get_suptitle().endswith('1 more have no positive or no absent entry')
    assert ('highest' in figure.get_suptitle()) == (num_labels == 1000)


def test_write_report_accepts_a_missing_image(tmp_path):
    dataset = make_dataset(tmp_path, ['a', 'b'], [[0], [1]], [[], []], ['one', 'two'])
    run, _ = make_run(dataset)
    (tmp_path / '0.png').unlink()
    assert report.write_report(tmp_path / 'run', run, dataset).exists()
    assert (tmp_path / 'run' / 'mistakes.png').exists()
