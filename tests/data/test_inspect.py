import json
import os
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
from PIL import Image

from msff_timm.data import inspect as inspect_package
from msff_timm.data import scenes
from msff_timm.data.inspect import draw, files, inspect
from msff_timm.data.records import features
from msff_timm.errors import InputError
from msff_timm_cli import commands as cli

NAMES = ['cat', 'dog', 'owl', 'yak']


def image(path, colour, size=(30, 20), mode='RGB'):
    Image.new('RGB', size, (colour, 9, 9)).convert(mode).save(path)


def make(images, labels, ignore, ids):
    columns = {'image': list(map(str, images)), 'labels': labels, 'ignore': ignore, 'area': [[]] * len(ids)}
    return datasets.Dataset.from_dict({**columns, 'image_id': ids}, features=features(NAMES))


@pytest.fixture
def splits(tmp_path):
    """Two splits: one image is in both under two names, one file is missing, one broken, one empty."""
    paths = [tmp_path / f'{n}.png' for n in range(8)]
    for n in range(8):
        image(paths[n], 10 * n, (30 + n, 20), 'L' if n == 1 else 'RGB')
    paths[5].write_bytes(paths[0].read_bytes())
    paths[2].unlink()
    paths[6].write_bytes(b'broken')
    paths[7].write_bytes(b'')
    train = make(paths[:4], [[0, 1], [0], [], [0, 1]], [[], [2], [1, 2], []], list('abcd'))
    return {'train': train, 'validation': make(paths[4:], [[0], [2], [2], []], [[]] * 4, list('xaby'))}


def test_inspect_counts_rows(splits):
    report = inspect(splits)
    train, validation = report.splits.values()
    assert (train.num_images, train.num_unlabelled, validation.num_unlabelled) == (4, 1, 1)
    assert train.labels_per_image == {'min': 0, 'mean': 1.25, 'median': 1.5, 'max': 2}
    assert train.positives == [3, 2, 0, 0] and train.ignored == [0, 1, 2, 0]
    assert validation.positives == [1, 0, 2, 0]
    assert report.co_occurrence.tolist() == [[4, 2, 0, 0], [2, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert report.shared_ids == {('train', 'validation'): ['a', 'b']}


def test_inspect_counts_many_rows_in_blocks(monkeypatch):
    monkeypatch.setattr(inspect_package, 'BLOCK', 7)
    dataset = scenes.load('train', 50, 32).select(range(40, 3, -1))
    expected = np.zeros((12, 12), int)
    for labels in dataset['labels']:
        for i in labels:
            expected[i, labels] += 1
    report = inspect({'train': dataset})
    np.testing.assert_array_equal(report.co_occurrence, expected)
    assert report.splits['train'].positives == expected.diagonal().tolist()


def test_inspect_finds_missing_empty_and_duplicate_files(splits, tmp_path):
    report = inspect(splits)
    train, validation = report.splits.values()
    assert train.missing == [str(tmp_path / '2.png')] and not train.unreadable and not train.num_read
    assert validation.unreadable == [f'{tmp_path / "7.png"}: is empty.'] and not report.is_complete
    assert report.duplicates == [[('train', str(tmp_path / '0.png')), ('validation', str(tmp_path / '5.png'))]]


@pytest.mark.parametrize('workers', [0, 2])
def test_inspect_check_decodes_every_image(splits, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'CHUNK', 1)
    train, validation = inspect(splits, check=True, workers=workers).splits.values()
    assert (train.num_read, train.modes, train.widths) == (3, {'RGB': 2, 'L': 1}, [30, 31, 33])
    assert (validation.num_read, validation.heights) == (2, [20, 20, 20])
    assert [message.partition(':')[0] for message in validation.unreadable] == [
        str(tmp_path / name) for name in ('7.png', '6.png')
    ]


def test_inspect_reads_images_within_rows(splits, tmp_path):
    held = []
    for path in ('0.png', '1.png', '5.png'):
        held.append({'bytes': (tmp_path / path).read_bytes(), 'path': None})
    columns = {'image': held, 'labels': [[]] * 3, 'ignore': [[]] * 3, 'area': [[]] * 3, 'image_id': list('pqr')}
    dataset = datasets.Dataset.from_dict(columns, features=features(NAMES))
    report = inspect({**splits, 'test': dataset}, check=True, workers=0)
    group = ['0.png', '5.png']
    assert [name for _, name in report.duplicates[0]] == [*(str(tmp_path / n) for n in group), 'image p', 'image r']
    assert report.splits['test'].modes == {'RGB': 2, 'L': 1}


def test_inspect_compares_whole_files(tmp_path):
    paths = [tmp_path / 'a.png', tmp_path / 'b.png']
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) + b'\0' * 10_000)
    assert inspect({'train': make(paths, [[]] * 2, [[]] * 2, list('ab'))}).duplicates == []


def test_draw_is_deterministic(splits, tmp_path):
    report = inspect(splits)
    first, second = (draw(report, splits, tmp_path / name) for name in ('one', 'two'))
    assert [path.name for path in first] == ['classes.png', 'co_occurrence.png', 'samples.png', 'inspect.json']
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert all(250 < side < 2500 for path in first[:3] for side in Image.open(path).size)
    written = json.loads(first[3].read_text())
    assert written['splits']['train']['positives'] == [3, 2, 0, 0] and written['co_occurrence']['dog'] == {
        'cat': 2,
        'dog': 2,
    }


def test_draw_limits_labels(tmp_path):
    names = [f'label number {n} $x' for n in range(1000)]
    columns = {'image': [None] * 50, 'labels': [[n, n + 100] for n in range(50)], 'ignore': [[]] * 50}
    columns |= {'area': [[]] * 50, 'image_id': list(map(str, range(50)))}
    splits = {'train': datasets.Dataset.from_dict(columns, features=features(names))}
    report = inspect(splits)
    assert sum(line.startswith('label number') for line in report.lines()) == 100
    for path in draw(report, splits, tmp_path)[:3]:
        assert max(Image.open(path).size) < 3000


def test_inspect_refuses_splits_with_different_labels(splits):
    splits['test'] = scenes.load('test', 2, 32)
    with pytest.raises(InputError, match='the labels of test differ from those of train'):
        inspect(splits)


def test_command_ends_all_processes_on_ctrl_c(tmp_path):
    script = tmp_path / 'run.py'
    script.write_text(f"""
import signal, sys, time
from msff_timm_cli import commands as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
from msff_timm.data import inspect
from msff_timm.data.inspect import files
def decode_images(*args):
    files.decode = lambda *args: time.sleep(60)  # in the forked processes too
    tasks = [[('image.jpg', 'image.jpg')]] * 2
    print('ready', flush=True)
    list(files._decode_in_processes(iter(tasks), 2))
inspect.decode_images = decode_images
sys.exit(cli.main(['data', 'scenes', '--size', '2', '--check', '-o', {str(tmp_path)!r}]))
""")
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, script], start_new_session=True, **streams)
    assert process.stdout.readline() == 'ready\n'
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[1] == '' and process.returncode == 130


def test_inspect_warns_of_labels_that_do_not_count():
    columns = {'image': [None] * 3, 'area': [[]] * 3, 'image_id': list('abc')}
    train = {'labels': [[0, 1], [0, 1], [0]], 'ignore': [[3], [3], [1, 3]]}
    validation = {'labels': [[0, 1], [1], []], 'ignore': [[2], [3], []]}
    splits = {
        name: datasets.Dataset.from_dict({**columns, **entries}, features=features(NAMES))
        for name, entries in (('train', train), ('validation', validation))
    }
    lines = inspect(splits, data='table').lines()
    settings = 'if -1 or blank means absent in the data, set data.minus_one or data.blank to absent.'
    assert (
        'train: 4 of 4 labels cannot be learnt: 2 without an absent entry [cat, dog], 1 masked throughout [yak], 1'
        f' without a positive [owl]; {settings}'
    ) in lines
    assert (
        'validation: 2 of 4 labels are left out of mAP and of fitted thresholds: 0 without an absent entry, 2 without a'
        ' positive [owl, yak].'
    ) in lines
    assert '1 to 4 absent entries in validation: 4 labels (cat, dog, owl, yak)' in lines


@pytest.mark.parametrize('case', ['celeba', 'blank'])
def test_command_warns_of_tables_without_absent_entries(case, cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    arguments = ['--root', str(cases / 'minus_one_is_absent' / case), '-o', str(tmp_path)]
    arguments += ['--image-column', 'image_id'] if case == 'celeba' else []
    assert cli.main(['data', 'table', *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    for split, what in (('train', 'cannot be learnt'), ('validation', 'are left out of mAP')):
        (line,) = [line for line in lines if line.startswith(f'{split}: 3 of 3 labels {what}')]
        assert 'set data.minus_one or data.blank to absent' in line


def test_command_suggests_only_settings_that_help(tmp_path, capsys, monkeypatch):
    """The column `ignore` masks the only entry that could be absent, regardless of -1 and blank."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    for name in 'ab':
        Image.new('RGB', (8, 8)).save(tmp_path / f'{name}.png')
    (tmp_path / 'train.csv').write_text('image,labels,ignore\na.png,cat|dog,\nb.png,dog,cat\n')
    arguments = ['data', 'table', '--root', str(tmp_path), '-o', str(tmp_path / 'out')]
    for settings, helps in (([], True), (['--minus-one', 'absent', '--blank', 'absent'], False)):
        cli.main([*arguments, *settings])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if 'cannot be learnt' in line]
        assert '[cat, dog]' in line and ('data.minus_one' in line) == helps


def test_command_prints_and_draws_report(tmp_path, capsys):
    assert cli.main(['data', 'scenes', '--size', '30', '--image-size', '48', '-o', str(tmp_path / 'out')]) == 0
    printed = capsys.readouterr().out
    counts = np.bincount(np.concatenate(scenes.load('train', 30, 48)['labels'][:]), minlength=12)
    line = next(line for line in printed.splitlines() if line.startswith('heart'))
    assert line.split()[1] == str(counts[scenes.LABEL_NAMES.index('heart')])
    assert printed.endswith(f'{tmp_path / "out" / "inspect.json"}\n')


def test_command_returns_one_for_missing_files(splits, tmp_path, monkeypatch, capsys):
    def load(name, split, **arguments):
        if split not in splits:
            raise InputError(f'no split {split}.')
        return splits[split]

    monkeypatch.setattr(inspect_package, 'load', load)
    output = ['-o', str(tmp_path / 'out')]
    assert cli.main(['data', 'table', *output]) == 1
    assert 'missing in train: 1 images' in capsys.readouterr().out
    del splits['train']
    splits['validation'] = splits['validation'].select([0])
    assert cli.main(['data', 'table', *output]) == 0
    assert capsys.readouterr().err == 'msff-timm: left out: no split train.\n'
    assert cli.main(['data', 'table', '--splits', 'train', 'validation', *output]) == 2
    assert cli.main(['data', 'table', '--workers', '-1', *output]) == 2
    splits.clear()
    assert cli.main(['data', 'table', *output]) == 2
