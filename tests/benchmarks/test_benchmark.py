"""Tests of `benchmark.py`: each command, and its bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch.nn as nn
from PIL import Image

import bench_decode
import bench_labels
import bench_predict
import bench_wait
import msff_timm  # noqa: F401  registers the models
from bench_annotations import write_annotations
from benchmark import main
from msff_timm.errors import InputError
from msff_timm.inference.export import export
from msff_timm.training.commands import run_command

RESULTS = Path(__file__).parents[2] / 'hub_cards' / 'results'
STEP = RESULTS / 'benchmark_model_train_gpu.json'


@pytest.fixture
def photos(coco_root, tmp_path):
    """Returns a folder of 5 photos, 2 of them in a subfolder, and a text file."""
    (tmp_path / 'photos' / 'inner').mkdir(parents=True)
    (tmp_path / 'photos' / 'notes.txt').write_text('no photo')
    for i, path in enumerate(sorted((coco_root / 'val2014').iterdir())[:5]):
        shutil.copy(path, tmp_path / 'photos' / ('inner' if i < 2 else '') / path.name)
    return tmp_path / 'photos'


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs the script in this process, expects exit code 2 and returns standard error."""

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['train/benchmarks/benchmark.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        printed = capsys.readouterr()
        assert ended.value.code == 2 and not printed.out
        return printed.err

    return run


@pytest.fixture
def measured(monkeypatch, capsys, tmp_path):
    """Returns a function that runs the script in this process and returns its output and the content of its file."""

    def measured(*arguments):
        file = tmp_path / 'measured.json'
        monkeypatch.setattr('sys.argv', ['train/benchmarks/benchmark.py', *map(str, arguments), '--output', str(file)])
        run_command(main)
        return capsys.readouterr().out, json.loads(file.read_text())

    return measured


def test_data_prints_and_writes_rates(script, photos, tmp_path):
    output = tmp_path / 'out' / 'data.json'
    arguments = ('data', '--root', photos, '--image_size', 64, '--seconds', 0.01, '--output', output)
    printed = script('benchmarks/benchmark.py', *arguments).stdout
    measured = json.loads(output.read_text())
    turns = measured['turns']
    assert measured['command'] == 'data' and measured['num_photos'] == 5 and measured['image_size'] == 64
    assert set(turns) == {'plain', 'default', 'every_operation'} and {len(rates) for rates in turns.values()} == {3}
    for name, rates in turns.items():
        assert min(rates) > 0 and measured['images_per_second'][name] == pytest.approx(sorted(rates)[1])
        assert f'{sorted(rates)[1]:.1f} images/s' in printed
    for name in ('default', 'every_operation'):
        ratios = sorted(ours / plain for ours, plain in zip(turns[name], turns['plain'], strict=True))
        assert measured['ratio'][name] == pytest.approx(ratios[1])
        low, high = measured['ratio_10_to_90_percent'][name]
        assert ratios[0] <= low <= ratios[1] <= high <= ratios[2]
        assert f'{ratios[1]:.3f} times plain' in printed
    assert f'torch {measured["machine"]["torch"]}' in printed and measured['machine']['cpu']


def test_predict_measures_each_way(measured, photos, monkeypatch):
    calls = []

    def predict_photos(name, images, settings):
        calls.append((len(images), settings))
        labels = settings and [['cat'], ['dog', 'sofa'], [], ['car' if 'precision' in settings else 'bus']]
        about = {'device': 'cpu', 'threads': 2, 'labels': labels}
        return {'seconds': 1 / len(calls), 'peak_mib': 100.0 + len(calls), **about}

    monkeypatch.setattr(bench_predict, 'in_own_process', lambda function, *arguments: predict_photos(*arguments))
    arguments = ['--root', photos, '--photos', 4, '--turns', 2, '--workers', 0]
    printed, found = measured('predict', *arguments)
    options = {'batch_size': None, 'workers': 0}
    assert [settings for _, settings in calls[:3]] == [None, options, {**options, 'precision': 'bf16'}]
    assert {count for count, _ in calls} == {4} and calls[3][1] == options  # another way comes first
    assert found['images_per_second'] == {'function': 4 * (1 + 6) / 2, 'file': 4 * 3, 'file_bf16': 4 * 4}
    assert found['ratios']['file']['median'] == pytest.approx((2 / 1 + 4 / 6) / 2)
    assert 'file          12.0 images/s, 1.333 (' in printed and ' times the function, peak 104 MiB' in printed
    assert 'bf16 adds or removes 2 of 4 labels' in printed and 'labels' not in found['turns']['file'][0]


@pytest.mark.slow
def test_predict_measures_in_own_processes(measured, photos):
    arguments = ['--root', photos, '--model', 'msff_test_resnet', '--photos', 4, '--turns', 1, '--workers', 1]
    _, found = measured('predict', *arguments)
    for turns in found['turns'].values():
        assert turns[0]['seconds'] > 0 and turns[0]['peak_mib'] >= turns[0]['peak_mib_before'] > 100


def test_decode_counts_labels_that_change(measured, photos, monkeypatch):
    arguments = ['--root', photos, '--model', 'msff_test_resnet', '--photos', 3, '--longer', 400, '--factors', 1, 9]
    printed, found = measured('decode', *arguments)
    reduced, full = found['factors']['1.0'], found['factors']['9.0']
    assert found['num_decisions'] == 3 * 12
    assert full['median_longer_side'] == 400 and full['largest_difference'] == full['labels_changed'] == 0
    assert reduced['median_longer_side'] in (100, 200) and 0 < reduced['largest_difference'] < 0.3
    assert '36 decisions on labels' in printed

    open_image = bench_decode.open_image
    black = lambda content, *arguments: Image.new('RGB', open_image(content, *arguments).size)  # noqa: E731
    monkeypatch.setattr(
        bench_decode,
        'open_image',
        lambda content, name=None, at_least=None: (black if at_least else open_image)(content, name, at_least),
    )
    _, found = measured('decode', *arguments)
    assert found['factors']['9.0']['largest_difference'] > 0.05


@pytest.mark.slow
def test_annotations_measures_two_loads(script, tmp_path):
    output = tmp_path / 'annotations.json'
    arguments = ('annotations', '--num_images', 50, '--num_boxes', 200, '--output', output)
    printed = script('benchmarks/benchmark.py', *arguments).stdout
    measured = json.loads(output.read_text())
    assert '50 images, 200 boxes' in printed
    for turn in ('first', 'second'):
        assert measured[turn]['rows'] == 50
        assert measured[turn]['seconds'] > 0 and measured[turn]['peak_mib'] >= measured[turn]['peak_mib_before'] > 50
        assert f'{measured[turn]["seconds"]:.3f} s, peak {measured[turn]["peak_mib"]:.0f} MiB' in printed


@pytest.mark.slow
def test_tables_measures_each_table(script, tmp_path):
    output = tmp_path / 'tables.json'
    options = ('--num_images', 40, '--num_classes', 30, '--labels_per_image', 2, '--output', output)
    printed = script('benchmarks/benchmark.py', 'tables', *options).stdout
    measured = json.loads(output.read_text())
    assert (measured['num_images'], measured['num_classes'], len(measured['tables'])) == (40, 30, 5)
    for kind, found in measured['tables'].items():
        assert found['rows'] == 40 and found['labels'] == measured['labels'] and found['cpu_seconds'] > 0
        assert found['peak_mib'] >= found['peak_mib_before'] > 50
        assert f'{kind:16} {found["seconds"]:7.1f} s' in printed


def test_write_annotations_resembles_coco(coco_root, tmp_path):
    real = json.loads(next((coco_root / 'annotations').glob('instances_train2014.json')).read_text())
    (tmp_path / 'made').mkdir()
    made = json.loads(write_annotations(tmp_path / 'made', 50, 2000).read_text())
    assert len(made['images']) == 50 and len(made['annotations']) == 2000 and len(made['categories']) == 80
    assert {a['category_id'] for a in made['annotations']} == {c['id'] for c in made['categories']}
    assert {a['image_id'] for a in made['annotations']} <= {i['id'] for i in made['images']}
    for part in ('images', 'annotations', 'categories'):
        assert set(real[part][0]) <= set(made[part][0])
    per_box = len(json.dumps(made['annotations'])) / 2000
    assert 400 < per_box < 700  # 332 MB for 604,907 boxes and 82,783 images of COCO 2014


@pytest.mark.slow
def test_metrics_measures_each_shape(script, tmp_path):
    output = tmp_path / 'metrics.json'
    printed = script('benchmarks/benchmark.py', 'metrics', '--shapes', '60x5', '2000x300', '--output', output).stdout
    shapes = json.loads(output.read_text())['shapes']
    assert list(shapes) == ['60x5', '2000x300']
    for shape, measured in shapes.items():
        assert f'{shape:14} {measured["seconds"]:8.3f} s, peak {measured["peak_mib"]:.0f} MiB' in printed
        assert np.isfinite(measured['mAP']) and measured['peak_mib'] >= measured['peak_mib_before']


def test_train_measures_recipe(script, tmp_path):
    output = tmp_path / 'train.json'
    settings = ['--data.train_size=16', '--data.eval_size=4', '--data.image_size=32', '--data.workers=1']
    arguments = [
        'train',
        '--steps',
        3,
        '--output',
        output,
        *settings,
        '--optim.batch_size=4',
        '--optim.max_per_process=2',
    ]
    printed = script('benchmarks/benchmark.py', *arguments).stdout
    measured = json.loads(output.read_text())
    assert (measured['model'], measured['batch_size'], measured['accumulation_steps']) == ('msff_test_resnet', 4, 2)
    turns = measured['turns']
    assert {name: len(seconds) for name, seconds in turns.items()} == {'run': 3, 'fed': 3, 'bare': 3}
    for name, seconds in turns.items():
        assert measured['images_per_second'][name] == pytest.approx(4 / sorted(seconds)[1])
    ratios = sorted(fed / bare for fed, bare in zip(turns['fed'], turns['bare'], strict=True))
    assert measured['overhead'] == pytest.approx(ratios[1] - 1) and 0 <= measured['waiting_share'] < 1
    # By hand: the first convolution, 3 x 3 from 3 to 32 channels with stride 2, and the gradient of its weights, on 4
    # images. The other layers come on top.
    assert measured['flops_per_step'] > 2 * 4 * 2 * 3 * 9 * 32 * 16 * 16
    assert 'waiting for data' in printed and measured['peak_bytes'] > 50e6


@pytest.mark.slow
def test_load_measures_all_ways(script, tmp_path):
    output = tmp_path / 'load.json'
    printed = script(
        'benchmarks/benchmark.py', 'load', '--model', 'msff_test_resnet', '--turns', 2, '--output', output
    ).stdout
    measured = json.loads(output.read_text())
    turns = measured['turns']
    assert {name: len(seconds) for name, seconds in turns.items()} == dict.fromkeys(
        ('create', 'read', 'pretrained', 'hub.load'), 2
    )
    parameters = sum(p.numel() for p in timm.create_model('msff_test_resnet').parameters())
    assert measured['num_parameters'] == parameters and measured['file_mib'] * 2**20 > 4 * parameters
    for way in ('pretrained', 'hub.load'):
        ratios = [a / (b + c) for a, b, c in zip(turns[way], turns['create'], turns['read'], strict=True)]
        assert measured['ratio'][way] == pytest.approx(np.median(ratios))
        assert f'{way:10} {measured["ratio"][way]:7.3f} times create and read' in printed
        assert measured['peak_mib'][way] > 100
    assert len(measured['import_turns']) == 2 and measured['import_seconds']['timm'] > 0


def test_model_measures_every_case(measured, one_thread):
    models = ['test_resnet', 'msff_test_resnet']
    options = ['--image_size', 96, '--num_classes', 5, '--batch_sizes', 1, 3, '--passes', 'forward', 'train']
    printed, found = measured('model', '--models', *models, *options, '--dtypes', 'bfloat16', '--turns', 3)
    assert [(case['batch_size'], case['kind']) for case in found['cases']] == [
        (1, 'forward'), (1, 'train'), (3, 'forward'), (3, 'train')
    ]  # fmt: skip
    for case in found['cases']:
        assert (case['dtype'], case['format'], case['mode']) == ('bfloat16', 'channels_last', 'eager')
        turns = case['turns']
        assert {name: len(seconds) for name, seconds in turns.items()} == dict.fromkeys(models, 3)
        for row in case['rows']:
            seconds = sorted(turns[row['model']])[1]
            assert row['seconds'] == pytest.approx(seconds)
            assert row['images_per_second'] == pytest.approx(case['batch_size'] / seconds)
            assert row['flops_per_second'] == pytest.approx(row['flops'] / seconds)
            ratios = [a / b for a, b in zip(turns[row['model']], turns['test_resnet'], strict=True)]
            assert row['time_to_reference']['median'] == pytest.approx(sorted(ratios)[1])
            assert f'| {row["model"]} | {1000 * row["seconds"]:.4g} |' in printed
    flops = [case['rows'][0]['flops'] for case in found['cases']]
    assert flops[2] == 3 * flops[0] and flops[1] > 2.5 * flops[0]  # a backward pass is about two forward passes
    assert 'train, batch 3, 96 x 96, bfloat16, channels_last, eager, 5 labels' in printed


def test_model_profiles_training_step(measured, one_thread):
    options = ['--image_size', 32, '--passes', 'train', '--turns', 1, '--profile']
    printed, found = measured('model', '--models', 'test_resnet', *options)
    operations = found['cases'][0]['rows'][0]['profile']['operations']
    assert {'aten::convolution_backward', 'aten::mkldnn_convolution'} <= {operation['name'] for operation in operations}
    assert f'test_resnet: {operations[0]["name"]} {operations[0]["share"]:.1%}, ' in printed


class Grouped(nn.Module):
    """Model that takes `max_queries`."""

    def __init__(self, num_classes, max_queries=None):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, min(num_classes, max_queries or num_classes))

    def forward(self, x):
        return self.head(x.flatten(1))


def test_labels_measures_alone_and_in_turns(measured, monkeypatch):
    """With fake processes; one of them fails."""
    calls = []

    def in_own_process(function, name, image_size, turns, variants):
        calls.append(variants)
        if variants == [{'num_classes': 70, 'max_queries': 10}]:
            raise InputError('the measurement failed (killed)')
        turns = [[turn * (number + 1.0) for number in range(len(variants))] for turn in (1, 2, 4)]
        return {'turns': turns, 'peak_mib': 300.0, 'peak_mib_before': 200.0, 'gpu_peak_mib': None}

    monkeypatch.setattr(bench_labels, 'in_own_process', in_own_process)
    monkeypatch.setattr(
        bench_labels.timm, 'create_model', lambda name, num_classes=1, **more: Grouped(num_classes, **more)
    )
    options = ['--num_classes', 20, 70, '--max_queries', 10, '--image_size', 32, '--turns', 3]
    printed, found = measured('labels', '--model', 'msff_test_resnet', *options)
    variants = [{'num_classes': k, **more} for k in (20, 70) for more in ({'max_queries': k}, {'max_queries': 10})]
    assert calls == [*([variant] for variant in variants), variants]
    rows = found['rows']
    # 10 or 70 x 3072 weights, each with a multiplication and an addition
    assert rows[2]['num_parameters'] == 70 * 3073 and rows[1]['gflops'] == pytest.approx(2 * 10 * 3072 / 1e9)
    assert rows[0]['seconds'] == 2 and rows[0]['peak_mib'] == 300 and 'seconds' not in rows[3]
    assert [row['time_to_first']['median'] for row in rows] == [1, 2, 3, 4]
    assert rows[1]['time_to_all_queries']['median'] == 2 and 'time_to_all_queries' not in rows[2]
    assert '| 70 | at most 70 | 0.2 M | 0.0 | 2.000 | 300 MiB | 200 MiB | – | 3.000' in printed
    assert 'the measurement failed (killed)' in printed


@pytest.mark.slow
def test_labels_measures_in_own_processes(measured, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    options = ['--image_size', 64, '--num_classes', 10, 300, '--max_queries', 50, '--turns', 2]
    _, found = measured('labels', '--model', 'msff_test_resnet', *options)
    _, few, all_queries, groups = found['rows']
    for row, max_queries in ((all_queries, 0), (groups, 50)):
        model = timm.create_model('msff_test_resnet', num_classes=300, max_queries=max_queries)
        assert row['num_parameters'] == sum(p.numel() for p in model.parameters())
    assert all_queries['gflops'] > groups['gflops'] > few['gflops']  # 300, 50 and 10 queries
    for row in found['rows']:
        assert row['peak_mib'] >= row['peak_mib_before'] > 100 and row['seconds'] > 0
    turns = np.array(found['in_one_process']['turns'])
    assert turns.shape == (2, 4)
    assert groups['time_to_first']['median'] == pytest.approx(np.median(turns[:, 3] / turns[:, 0]))
    assert groups['time_to_all_queries']['median'] == pytest.approx(np.median(turns[:, 3] / turns[:, 2]))


def test_wait_compares_spins_in_the_same_turn(measured, monkeypatch):
    """With fake processes, whose times depend on the environment and on the busy cores."""
    calls, busy = [], []

    def in_own_process(function, name, image_size, batch_size, OMP_WAIT_POLICY, GOMP_SPINCOUNT):
        calls.append((OMP_WAIT_POLICY, GOMP_SPINCOUNT, len(busy)))
        speed = {'0': 1, '1000': 2}[GOMP_SPINCOUNT]
        return {'infer': len(calls) / speed, 'train': 8 / speed * (1 + len(busy)), 'threads': 2}

    class Process:
        def __init__(self, command):
            busy.append(self)

        def kill(self):
            busy.remove(self)

        def wait(self):
            assert self not in busy

    monkeypatch.setattr(bench_wait, 'in_own_process', in_own_process)
    monkeypatch.setattr(bench_wait.subprocess, 'Popen', Process)
    printed, found = measured('wait', '--models', 'msff_test_resnet', '--spins', 0, 1000, '--busy', 0, 2, '--turns', 2)
    assert calls == [('passive', spins, cores) for cores in (0, 2) for spins in ('0', '1000', '1000', '0')]
    assert found['threads'] == 2 and not busy
    rows = {(row['busy'], row['spins']): row for row in found['rows']}
    assert rows[0, 0]['infer_ms'] == 1000 * (1 + 4) / 2 and rows[0, 1000]['infer_ms'] == 1000 * (2 / 2 + 3 / 2) / 2
    assert rows[0, 1000]['infer_ratio']['median'] == (1 / 1 + 1.5 / 4) / 2 and rows[0, 0]['infer_ratio'] is None
    assert rows[2, 1000]['train_ms'] == 12_000 and rows[2, 1000]['train_ratio']['median'] == 0.5
    assert 'msff_test_resnet, 2 busy, GOMP_SPINCOUNT 1000: ' in printed


@pytest.mark.slow
def test_wait_measures_in_own_processes(measured):
    options = ['--models', 'msff_test_resnet', '--image_size', 64, '--batch_size', 2, '--spins', 0, '--busy', 1]
    _, found = measured('wait', *options, '--turns', 1)
    (row,) = found['rows']
    assert 0 < row['infer_ms'] < row['train_ms'] and found['threads'] >= 1


def test_scale_predicts_from_one_device(measured, tmp_path):
    rows = [{'model': 'msff_test_resnet', 'images_per_second': 100.0}]
    case = {'image_size': 448, 'kind': 'train', 'batch_size': 16, 'dtype': 'float32', 'format': 'a', 'mode': 'b'}
    step = {'command': 'model', 'device': 'card', 'machine': {'cpu': 'chip'}, 'cases': [{**case, 'rows': rows}]}
    (tmp_path / 'step.json').write_text(json.dumps(step))
    options = ['--step', tmp_path / 'step.json', '--batch_size', 4, '--devices', 4, 16]
    printed, found = measured('scale', '--model', 'msff_test_resnet', '--num_classes', 5, *options)
    parameters = sum(p.numel() for p in timm.create_model('msff_test_resnet', num_classes=5).parameters())
    assert found['gradient_bytes'] == 4 * parameters == sum(bucket['num_bytes'] for bucket in found['buckets'])
    assert found['step']['seconds'] == 0.04 and 'step.json, card (chip), float32, a, b' in printed
    # Four devices are in one node; sixteen are in two nodes, with each of two networks.
    assert [(row['devices'], row['nodes'], row['between']) for row in found['rows']] == [
        (4, 1, 400e9), (16, 2, 400e9), (16, 2, 3.125e9)
    ]  # fmt: skip
    for row in found['rows']:
        rate = row['images_per_second'] / row['devices']
        assert row['efficiency'] == pytest.approx(rate / 100) and 0 < rate < 100
        assert f'| {row["efficiency"]:.1%} |' in printed
        # One core loads 165.9 images per second: one worker for each process, so one shard.
        assert (row['workers'], row['shards']) == (1, row['devices'])
        assert row['node_bytes_per_second'] == pytest.approx(13e9 / 82783 * 100 * min(8, row['devices']))
        assert row['steps_per_epoch'] == 82783 // (4 * row['devices'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'the following arguments are required: command'),
        (('other',), "invalid choice: 'other'"),
        (('data',), 'the following arguments are required: --root'),
        (('data', '--root', 'nowhere'), '--root is nowhere: there is no such folder.'),
        (('data', '--root', '.', '--image_size', 'big'), "argument --image_size: invalid int value: 'big'"),
        (('data', '--root', '.', '--image_size', 8), '--image_size is 8: must be at least 32.'),
        (('data', '--root', '.', '--seconds', 0), '--seconds is 0.0: must be above 0.'),
        (('annotations', '--num_boxes', 3), '--num_boxes is 3: must be at least 80.'),
        (('load', '--turns', 0), '--turns is 0: must be at least 1.'),
        (('train', '--steps', 0), '--steps is 0: must be at least 1.'),
        (('train', '--optim.lrr', 1), 'did you mean --optim.lr?'),
        (('metrics', '--optim.lr', 1), 'unrecognized arguments: --optim.lr 1'),
        (
            ('model', '--models', 'msf_test_resnet'),
            "unknown --models 'msf_test_resnet': did you mean msff_test_resnet?",
        ),
        (('model', '--models', 'test_resnet', 'test_resnet'), 'must be one or more, each once.'),
        (('model', '--models'), 'argument --models: expected at least one argument'),
        (('model', '--batch_sizes', 2, 0), '--batch_sizes is 0: must be at least 1.'),
        (('model', '--dtypes', 'float16'), "argument --dtypes: invalid choice: 'float16'"),
        (('labels', '--model', 'msf_test_resnet'), "unknown --model 'msf_test_resnet'"),
        (('labels', '--max_queries', 0), '--max_queries is 0: must be at least 1.'),
        (('wait', '--spins', 0, 0), '--spins is 0 0: must be one or more, each once.'),
        (('wait', '--busy', 1, 1), '--busy is 1 1: must be one or more, each once.'),
        (('scale',), 'the following arguments are required: --step'),
        (('scale', '--step', STEP, '--between', 1, 0), '--between is 0.0: must be above 0.'),
        (('scale', '--step', STEP, '--devices', 12), '--devices is 12: must be a multiple of 8'),
        (('scale', '--step', STEP, '--data', 'nowhere'), '--data is nowhere: cannot be read (No such file'),
        (('scale', '--step', STEP, '--data', RESULTS / 'memorise.json'), 'not written by benchmark.py data'),
        (('scale', '--step', 'nowhere'), '--step is nowhere: cannot be read (No such file'),
        (('scale', '--step', RESULTS / 'benchmark_data.json'), 'not written by benchmark.py model'),
        (('scale', '--step', STEP, '--image_size', 64), 'it holds no training step of msff_resnet101 at 64'),
        (('metrics', '--shapes', '10x'), "--shapes has '10x': must be images x labels"),
    ],
)
def test_main_reports_bad_input_in_one_line(run, arguments, message):
    error = run(*arguments)
    assert error.startswith('benchmark.py: error: ') and message in error and len(error.splitlines()) == 1


def test_data_names_missing_or_broken_photos(run, tmp_path):
    (tmp_path / 'none').mkdir()
    assert run('data', '--root', tmp_path / 'none').endswith('none: it holds no photo.\n')
    (tmp_path / 'none' / 'broken.jpg').write_text('no photo')
    error = run('data', '--root', tmp_path / 'none')
    assert 'broken.jpg: cannot be read as an image' in error and len(error.splitlines()) == 1


def test_onnx_times_files_side_by_side(measured, tmp_path):
    model = timm.create_model('test_resnet', num_classes=2).eval()
    for name in ('a.onnx', 'b.onnx'):
        export(model, tmp_path / name, 'onnx', image_size=64)
    files = [tmp_path / 'a.onnx', tmp_path / 'b.onnx']
    printed, found = measured('onnx', '--files', *files, '--turns', 5, '--batch_size', 2, '--threads', 1)
    assert found['files']['a.onnx']['speed']['median'] == 1 and found['files']['b.onnx']['images_per_second'] > 0
    assert [file['num_bytes'] for file in found['files'].values()] == [file.stat().st_size for file in files]
    assert printed.startswith('a.onnx: ') and ' times the speed of a.onnx\n' in printed
