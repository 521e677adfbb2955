import json
import shutil

import numpy as np
import pytest
import timm

import msff_timm  # noqa: F401  registers the models
from benchmark import main, write_annotations
from engine import run_command


@pytest.fixture
def photos(coco_root, tmp_path):
    """A folder of 5 photos, 2 of them in a subfolder, and of what is none."""
    (tmp_path / 'photos' / 'inner').mkdir(parents=True)
    (tmp_path / 'photos' / 'notes.txt').write_text('no photo')
    for i, path in enumerate(sorted((coco_root / 'val2014').iterdir())[:5]):
        shutil.copy(path, tmp_path / 'photos' / ('inner' if i < 2 else '') / path.name)
    return tmp_path / 'photos'


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script in this process, which has to end with code 2; gives what it printed as its error."""

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['train/benchmark.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        printed = capsys.readouterr()
        assert ended.value.code == 2 and not printed.out
        return printed.err

    return run


def test_data_prints_what_its_file_holds(script, photos, tmp_path):
    output = tmp_path / 'out' / 'data.json'
    arguments = ('data', '--root', photos, '--image_size', 64, '--seconds', 0.01, '--output', output)
    printed = script('benchmark.py', *arguments).stdout
    measured = json.loads(output.read_text())
    turns = measured['turns']
    assert measured['command'] == 'data' and measured['num_photos'] == 5 and measured['image_size'] == 64
    assert set(turns) == {'plain', 'default', 'every_operation'} and {len(rates) for rates in turns.values()} == {3}
    for name, rates in turns.items():
        assert min(rates) > 0 and measured['pictures_per_second'][name] == pytest.approx(sorted(rates)[1])
        assert f'{sorted(rates)[1]:.1f} pictures/s' in printed
    for name in ('default', 'every_operation'):
        ratios = sorted(ours / plain for ours, plain in zip(turns[name], turns['plain'], strict=True))
        assert measured['ratio'][name] == pytest.approx(ratios[1])
        low, high = measured['ratio_10_to_90_percent'][name]
        assert ratios[0] <= low <= ratios[1] <= high <= ratios[2]
        assert f'{ratios[1]:.3f} times plain' in printed
    assert f'torch {measured["machine"]["torch"]}' in printed and measured['machine']['cpu']


@pytest.mark.slow
def test_annotations_are_loaded_twice(script, tmp_path):
    output = tmp_path / 'annotations.json'
    arguments = ('annotations', '--num_images', 50, '--num_boxes', 200, '--output', output)
    printed = script('benchmark.py', *arguments).stdout
    measured = json.loads(output.read_text())
    assert '50 pictures, 200 boxes' in printed
    for turn in ('first', 'second'):
        assert measured[turn]['rows'] == 50
        assert measured[turn]['seconds'] > 0 and measured[turn]['peak_mib'] >= measured[turn]['peak_mib_before'] > 50
        assert f'{measured[turn]["seconds"]:.3f} s, peak {measured[turn]["peak_mib"]:.0f} MiB' in printed


def test_made_up_annotations_have_the_size_and_the_keys_of_coco(coco_root, tmp_path):
    real = json.loads(next((coco_root / 'annotations').glob('instances_train2014.json')).read_text())
    (tmp_path / 'made').mkdir()
    made = json.loads(write_annotations(tmp_path / 'made', 50, 2000).read_text())
    assert len(made['images']) == 50 and len(made['annotations']) == 2000 and len(made['categories']) == 80
    assert {a['category_id'] for a in made['annotations']} == {c['id'] for c in made['categories']}
    assert {a['image_id'] for a in made['annotations']} <= {i['id'] for i in made['images']}
    for part in ('images', 'annotations', 'categories'):
        assert set(real[part][0]) <= set(made[part][0])
    per_box = len(json.dumps(made['annotations'])) / 2000
    assert 400 < per_box < 700  # 332 MB for 604,907 boxes and 82,783 pictures of COCO 2014


@pytest.mark.slow
def test_metrics_measures_each_shape(script, tmp_path):
    output = tmp_path / 'metrics.json'
    printed = script('benchmark.py', 'metrics', '--shapes', '60x5', '2000x300', '--output', output).stdout
    shapes = json.loads(output.read_text())['shapes']
    assert list(shapes) == ['60x5', '2000x300']
    for shape, measured in shapes.items():
        assert f'{shape:14} {measured["seconds"]:8.3f} s, peak {measured["peak_mib"]:.0f} MiB' in printed
        assert np.isfinite(measured['mAP']) and measured['peak_mib'] >= measured['peak_mib_before']


def test_training_is_measured_with_a_recipes_own_settings(script, tmp_path):
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
    printed = script('benchmark.py', *arguments).stdout
    measured = json.loads(output.read_text())
    assert (measured['model'], measured['batch_size'], measured['passes']) == ('msff_test_resnet', 4, 2)
    turns = measured['turns']
    assert {name: len(seconds) for name, seconds in turns.items()} == {'run': 3, 'fed': 3, 'bare': 3}
    for name, seconds in turns.items():
        assert measured['pictures_per_second'][name] == pytest.approx(4 / sorted(seconds)[1])
    ratios = sorted(fed / bare for fed, bare in zip(turns['fed'], turns['bare'], strict=True))
    assert measured['overhead'] == pytest.approx(ratios[1] - 1) and 0 <= measured['waiting_share'] < 1
    # Convolutions alone, by hand: the first of the backbone, 3 x 3 from 3 to 32 channels at stride 2, and its gradient
    # for the weights, on 4 pictures; all others come on top.
    assert measured['flops_per_step'] > 2 * 4 * 2 * 3 * 9 * 32 * 16 * 16
    assert 'waiting for data' in printed and measured['peak_bytes'] > 50e6


@pytest.mark.slow
def test_loading_is_measured_beside_creating_and_reading(script, tmp_path):
    output = tmp_path / 'load.json'
    printed = script('benchmark.py', 'load', '--model', 'msff_test_resnet', '--turns', 2, '--output', output).stdout
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
        (('metrics', '--shapes', '10x'), "--shapes has '10x': must be pictures x labels"),
    ],
)
def test_bad_input_ends_with_one_line(run, arguments, message):
    error = run(*arguments)
    assert error.startswith('benchmark.py: error: ') and message in error and len(error.splitlines()) == 1


def test_photos_that_are_missing_or_broken_are_named(run, tmp_path):
    (tmp_path / 'none').mkdir()
    assert run('data', '--root', tmp_path / 'none').endswith('none: no photo is there.\n')
    (tmp_path / 'none' / 'broken.jpg').write_text('no photo')
    error = run('data', '--root', tmp_path / 'none')
    assert 'broken.jpg: cannot be read as a picture' in error and len(error.splitlines()) == 1
