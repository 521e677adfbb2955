import csv
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msff_timm.data import label_names, load
from msff_timm.data.split_table import split
from msff_timm.errors import InputError
from msff_timm_cli import commands as cli


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


def write(folder, header, rows, name='train.csv', start=0):
    """Writes a table of `rows` and an image for each, `images/0.png` etc."""
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    with open(folder / name, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['image', *header])
        for number, row in enumerate(rows, start):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / 'images' / f'{number}.png')
            writer.writerow([f'images/{number}.png', *row])
    return folder / name


def table_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def contents(*parts):
    """Label names, and the present and masked labels of each image by its path."""
    (names,) = {tuple(label_names(part)) for part in parts}
    rows = {}
    for part in parts:
        images = part.cast_column('image', datasets.Image(decode=False))['image'][:]
        for image, labels, ignore in zip(images, part['labels'][:], part['ignore'][:], strict=True):
            rows[image['path']] = (labels, ignore)
    return names, rows


def read_back(division, **arguments):
    image_root = division.image_root
    return [load('table', part, str(division.path), image_root=image_root, **arguments) for part in division.parts]


def test_split_table_has_the_labels_of_delimited_cells(tmp_path):
    cells = ['cat|dog', 'cat', '', 'dog|big cow', 'big cow', 'cat', 'dog', 'cat|big cow', 'dog', 'cat']
    path = write(tmp_path, ['tags'], [[cell] for cell in cells * 4])
    division = split('table', str(path), validation=0.25, label_columns=['tags'])
    assert division.path == tmp_path / 'split.csv' and division.image_root is None
    rows = table_of(division.path)
    assert rows[3] == {'image': 'images/3.png', 'labels': 'big cow|dog', 'split': rows[3]['split']}
    assert [row['split'] for row in rows].count('validation') == 10
    before = load('table', 'train', str(path), label_columns=['tags'])
    assert contents(*read_back(division)) == contents(before) == contents(*division.parts.values())


def test_split_table_has_the_masked_labels_of_columns(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path, ['dog', 'a,"b"', 'cat'], rng.choice(['0', '1', '-1', ''], (40, 3)))
    for settings in ({}, {'blank': 'absent'}, {'minus_one': 'absent'}):
        division = split('table', str(path), validation=0.2, test=0.1, overwrite=True, **settings)
        assert [*division.parts] == ['train', 'validation', 'test']
        assert contents(*read_back(division, **settings)) == contents(load('table', 'train', str(path), **settings))
    assert [*table_of(division.path)[0]] == ['image', 'dog', 'a,"b"', 'cat', 'split']


@pytest.mark.parametrize(
    'names', [['NA', 'dog'], ['a|b', 'dog'], ['[x]', 'dog'], ["'x'", 'dog'], ['a, b', 'c, b', 'a, d'], ['dog', 'cat']]
)
def test_split_table_has_names_that_text_cannot_hold(names, tmp_path):
    """They become columns, and so do labels in another order than the sorted one."""
    rows = [[int(k == number % len(names)) for k in range(len(names))] for number in range(12)]
    path = write(tmp_path, names, rows)
    division = split('table', str(path), validation=0.4)
    assert contents(*read_back(division)) == contents(load('table', 'train', str(path)))
    assert contents(*read_back(division))[0] == tuple(names) and 'labels' not in table_of(division.path)[0]


def test_split_refuses_names_that_are_never_columns_of_labels(tmp_path):
    path = write(tmp_path, ['labels', 'ignore'], [['path', 'area'], ['area', ''], ['path|area', '']] * 4, 'train.csv')
    with pytest.raises(InputError, match="the label 'area' cannot be the name of a column of labels: rename it"):
        split('table', str(path), validation=0.4)


def test_split_writes_folds_and_keeps_groups_together(tmp_path):
    rows = [[name, f'p{number // 3}', ''] for number, name in enumerate(['cat', 'dog', 'cow'] * 12)]
    path = write(tmp_path, ['labels', 'patient', 'remark'], rows)
    shutil.copy(tmp_path / 'images' / '0.png', tmp_path / 'images' / '35.png')
    division = split('table', str(path), folds=3, group='patient')
    assert [*division.parts] == ['fold 0', 'fold 1', 'fold 2'] and set(map(len, division.parts.values())) <= {9, 12, 15}
    rows = table_of(division.path)
    assert [row['group_id'] for row in rows] == [f'p{number // 3}' for number in range(36)]
    folds = {}
    for row in rows:
        folds.setdefault(row['group_id'], set()).add(row['fold'])
    assert all(len(found) == 1 for found in folds.values()) and folds['p0'] == folds['p11']
    assert division.notes == ['kept together: 36 images of the same content or patient, in 11 units']
    assert label_names(load('table', 'train', str(division.path))) == ['cat', 'cow', 'dog']
    again = split('table', str(division.path), folds=3, group='group_id', output=str(tmp_path / 'again.csv'))
    assert table_of(again.path) == rows
    with pytest.raises(InputError, match="unknown column of --group 'patience': did you mean patient"):
        split('table', str(path), folds=3, group='patience', overwrite=True)


def test_split_leaves_a_test_split_and_refuses_one_that_exists(tmp_path):
    write(tmp_path, ['labels'], [['cat'], ['dog']] * 10)
    write(tmp_path, ['labels'], [['cat'], ['dog']] * 3, 'test.csv', start=20)
    division = split('table', str(tmp_path), validation=0.2)
    assert {key: len(part) for key, part in division.parts.items()} == {'train': 16, 'validation': 4, 'test': 6}
    assert division.notes == ['not divided: test']
    before = [load('table', key, str(tmp_path)) for key in ('train', 'test')]
    assert contents(*read_back(division)) == contents(*before)
    (test,) = [part for part in read_back(division) if len(part) == 6]
    assert test['labels'][:] == before[1]['labels'][:]
    with pytest.raises(InputError, match='has a split test already: .* --splits train test for both'):
        split('table', str(tmp_path), validation=0.2, test=0.2, overwrite=True)
    pooled = split('table', str(tmp_path), validation=0.5, splits=['train', 'test'], overwrite=True)
    assert {key: len(part) for key, part in pooled.parts.items()} == {'train': 13, 'validation': 13}
    folds = split('table', str(tmp_path), folds=2, overwrite=True)
    assert folds.notes == ['not in the table: test'] and sum(map(len, folds.parts.values())) == 20


def test_split_reads_coco(coco_root, tmp_path):
    for name in ('train2014', 'annotations/instances_train2014.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(coco_root / name)
    division = split('coco2014', str(tmp_path), validation=0.2)
    found = contents(*read_back(division))
    assert found == contents(load('coco2014', 'train', str(tmp_path))) and len(found[0]) == 80
    assert table_of(division.path)[0]['image'].startswith('train2014/COCO_train2014_')
    with pytest.raises(InputError, match='--group is patient: no table in .* names the image'):
        split('coco2014', str(tmp_path), validation=0.2, group='patient', overwrite=True)


def test_split_names_images_elsewhere_by_a_common_folder(tmp_path, capsys, monkeypatch):
    write(tmp_path / 'photos', ['labels'], [['cat'], ['dog']] * 10)
    shutil.move(tmp_path / 'photos' / 'train.csv', tmp_path / 'train.csv')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tables').mkdir()
    arguments = ['data', 'split', 'train.csv', '--validation', '0.2', '--image-root', 'photos', '-o', 'tables/mine.csv']
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    images = tmp_path / 'photos'
    assert lines[-1] == (
        f'{tmp_path}/tables/mine.csv: train on it with msff-timm train --data.root tables/mine.csv --data.image_root'
        f' {images}'
    )
    assert [line.split() for line in lines if line.startswith(('train ', 'validation ', 'cat '))] == [
        ['train', '16', '0', '1', '1.00', '1', '1'],
        ['validation', '4', '0', '1', '1.00', '1', '1'],
        ['cat', '8', '50.00%', '2', '50.00%'],
    ]
    assert len(load('table', 'validation', 'tables/mine.csv', image_root=str(images))) == 4
    assert cli.main(arguments) == 2
    assert 'tables/mine.csv: exists already: choose another file with -o FILE, or add --overwrite.' in (
        capsys.readouterr().err
    )
    assert cli.main([*arguments, '--overwrite']) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, 'choose either --validation, with or without --test, or --folds'),
        ({'validation': 0.2, 'folds': 3}, 'choose either'),
        ({'folds': 3, 'test': 0.1}, 'choose either'),
        ({'folds': 1}, '--folds is 1: must be at least 2'),
        ({'validation': 20.0}, '--validation is 20: must be a share'),
        ({'validation': 0.5, 'test': 0.5}, 'leave no images for training'),
        ({'validation': 0.2, 'seed': -1}, '--seed is -1'),
        ({'validation': 0.2, 'output': 'x.parquet'}, r'--output is x.parquet: must end in \.csv'),
        ({'validation': 0.01}, '4 images are too few to divide into parts of 0.99, 0.01'),
    ],
)
def test_split_refuses_arguments(arguments, message, tmp_path):
    write(tmp_path, ['labels'], [['cat'], ['dog']] * 2)
    with pytest.raises(InputError, match=message):
        split('table', str(tmp_path), **arguments)
    assert not (tmp_path / 'split.csv').exists()


def test_split_refuses_images_that_are_not_files(tmp_path):
    with pytest.raises(InputError, match='scenes: its images are not files, so no table can name them'):
        split('scenes', None, validation=0.2)
    image = write(tmp_path, ['labels'], [['cat']]).parent / 'images' / '0.png'
    content = {'bytes': Path(image).read_bytes(), 'path': None}
    pq.write_table(pa.table({'image': [content] * 4, 'labels': [['cat'], ['dog']] * 2}), tmp_path / 'train.parquet')
    (tmp_path / 'train.csv').unlink()
    with pytest.raises(InputError, match='hub: its images are not files'):
        split('hub', str(tmp_path), validation=0.5)
