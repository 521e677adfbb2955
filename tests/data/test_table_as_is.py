"""Tables as people have them: numbers, vectors, several rows of an image, names without suffix, folds."""

import json
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from msff_timm.data import label_names, load, notes
from msff_timm.errors import InputError

FORMATS = ('csv', 'tsv', 'jsonl', 'parquet')
IMAGES = ('a.png', 'b.png', 'c.png', 'd.png')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    for number, name in enumerate(IMAGES):
        PilImage.new('RGB', (4, 3), (40 * number, 0, 0)).save(root / name)
    return root


@pytest.fixture
def root(images, tmp_path):
    for name in IMAGES:
        (tmp_path / name).symlink_to(images / name)
    return tmp_path


@pytest.fixture(autouse=True, scope='module')
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
        yield


def write(root, suffix, columns, split='train'):
    """Writes a table by pandas, as its users do."""
    for other in root.glob(f'{split}.*'):
        other.unlink()
    path, frame = root / f'{split}.{suffix}', pd.DataFrame(columns)
    if suffix == 'parquet':
        frame.to_parquet(path)
    elif suffix == 'jsonl':
        frame.to_json(path, orient='records', lines=True)
    else:
        frame.to_csv(path, sep='\t' if suffix == 'tsv' else ',', index=suffix == 'csv')
    return path


def write_hub(folder, columns, schema, split='train'):
    count = len(next(iter(columns.values())))
    pictures = [PilImage.new('RGB', (4, 3), (40 * number, 0, 0)) for number in range(count)]
    dataset = Dataset.from_dict({'image': pictures, **columns}, Features({'image': Image(), **schema}))
    dataset.to_parquet(folder / f'{split}-00000-of-00001.parquet')


def named(dataset, column='labels'):
    names = label_names(dataset)
    return [[names[label] for label in row[column]] for row in dataset]


def fails(root, *parts, name='table', split='train', **arguments):
    with pytest.raises(InputError) as caught:
        list(load(name, split, str(root), **arguments))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


# --- numbers and vectors


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_reads_numbers_as_labels(root, suffix):
    numbers = [3, 17, 3, 5]
    write(root, suffix, {'image': IMAGES, 'labels': numbers})
    dataset = load('table', 'train', str(root))
    assert label_names(dataset) == ['17', '3', '5'] and named(dataset) == [[str(number)] for number in numbers]
    if suffix in ('jsonl', 'parquet'):
        write(root, suffix, {'image': IMAGES, 'labels': [[3, 17], [], [5], [3]]})
        assert named(load('table', 'train', str(root))) == [['17', '3'], [], ['5'], ['3']]
        write(root, suffix, {'image': IMAGES, 'labels': [3, None, 5, 3]})  # pandas makes them 3.0
        assert named(load('table', 'train', str(root))) == [['3'], [], ['5'], ['3']]


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('cells', 'kind', 'labels'),
    [
        ([3, 17, 3], Value('int64'), [['3'], ['17'], ['3']]),
        ([3.0, None, 17.0], Value('float32'), [['3'], [], ['17']]),
        ([[17, 3], [], [3]], List(Value('int32')), [['17', '3'], [], ['3']]),
        ([[0, 1], [1, 1], [0, 0]], List(Value('bool')), [['y'], ['x', 'y'], []]),
    ],
)
def test_load_hub_reads_numbers_and_vectors(tmp_path, cells, kind, labels, streaming):
    write_hub(tmp_path, {'labels': cells}, {'labels': kind})
    names = ['x', 'y'] if 'y' in labels[0] else ['0', '1', '17', '3']
    dataset = load('hub', 'train', str(tmp_path), label_names=names, streaming=streaming)
    assert [sorted(row) for row in named(dataset)] == labels
    if 'y' not in labels[0]:
        assert label_names(load('hub', 'train', str(tmp_path))) == ['17', '3']


@pytest.mark.parametrize('streaming', [False, True])
def test_load_hub_reads_a_column_of_numbers(tmp_path, streaming):
    write_hub(tmp_path, {'kind': [3, 0, 17]}, {'kind': Value('int64')})
    names = {'label_names': ['17', '3', '0']}
    dataset = load('hub', 'train', str(tmp_path), label_columns=['kind'], streaming=streaming, **names)
    assert named(dataset) == [['3'], ['0'], ['17']]
    fails(tmp_path, "'kind' is 3: must be 1, 0, -1", 'data.label_columns', name='hub')
    assert label_names(load('hub', 'train', str(tmp_path), label_columns=['kind'])) == ['0', '17', '3']


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_reads_vectors_beside_label_names(root, suffix):
    states = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, -1]])
    write(root, suffix, {'file_name': IMAGES, 'target': list(states.tolist())})
    names = ['cat', 'dog', 'owl']
    dataset = load('table', 'train', str(root), label_names=names)
    assert named(dataset) == [['dog', 'owl'], ['cat'], [], []] and named(dataset, 'ignore') == [[], [], [], ['owl']]
    assert named(load('table', 'train', str(root), label_names=names, minus_one='absent'), 'ignore') == [[]] * 4
    assert notes(dataset)[-1] == "labels: column 'target', vectors of 0 and 1"
    fails(root, "'target' holds vectors of 3 numbers", 'data.label_names')
    fails(root, "'target' holds vectors of 3 numbers", label_names=['cat', 'dog'])


def test_load_table_finds_a_single_column_of_names(root):
    write(root, 'csv', {'image': IMAGES, 'tags': ['haze primary', 'primary', 'haze', 'primary']})
    dataset = load('table', 'train', str(root))
    assert label_names(dataset) == ['haze', 'primary']
    assert notes(dataset) == ["labels: column 'tags', delimited by a space, e.g. 'haze primary' (data.label_delimiter)"]
    for cells in (['yes', 'no', 'no', 'yes'], [1, 2, 3, 1]):  # states of one label, or numbers: not clear
        write(root, 'csv', {'image': IMAGES, 'cat': cells})
        fails(root, "'cat' is ", 'data.label_columns')


def test_load_table_accepts_splits_without_labels(root):
    write(root, 'csv', {'image': IMAGES, 'tags': ['cat', 'dog', 'cat', 'owl']})
    write(root, 'csv', {'image': IMAGES[:1], 'tags': [None]}, 'val')
    for split, labels in (('train', [['cat'], ['dog'], ['cat'], ['owl']]), ('val', [[]])):
        assert named(load('table', split, str(root))) == labels
    write(root, 'csv', {'image': IMAGES, 'cat': [1, 0, 1, 0]})
    write(root, 'csv', {'image': IMAGES[:1], 'cat': [None]}, 'val')
    assert named(load('table', 'val', str(root)), 'ignore') == [['cat']]


# --- several rows of an image


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_unites_repeated_images(root, suffix):
    rows = {
        'image': ['a.png', 'b.png', 'a.png', 'a.png'],
        'x': [0, 0, 1, 0],
        'y': [-1, 1, 0, -1],
        'z': [-1, -1, -1, -1],
    }
    write(root, suffix, rows)
    fails(root, "'a.png' is already in", 'data.repeated_images to unite')
    dataset = load('table', 'train', str(root), repeated_images='unite')
    assert dataset['image_id'][:] == ['a.png', 'b.png'] and [row['image'].getpixel((0, 0))[0] for row in dataset] == [
        0,
        40,
    ]
    assert named(dataset) == [['x'], ['y']] and named(dataset, 'ignore') == [['z'], ['z']]
    assert 'repeated images: the labels of 4 rows are united to 2 images (data.repeated_images)' in notes(dataset)
    assert 'repeated images: 1 label is present in one row and absent in another, and read as present' in notes(dataset)
    fails(root, "unknown data.repeated_images 'merge'", repeated_images='merge')


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_repeats_images_for_training(root, suffix):
    rows = {'image': ['a.png', 'b.png', 'a.png'], 'labels': ['cat', 'dog', 'owl'], 'ignore': ['owl', 'owl', 'dog']}
    for split in ('train', 'val'):
        write(root, suffix, rows, split)
    dataset = load('table', 'train', str(root), repeated_images='repeat')
    assert named(dataset) == [['cat', 'owl'], ['dog'], ['cat', 'owl']]
    assert named(dataset, 'ignore') == [['dog'], ['owl'], ['dog']]
    assert dataset['image_id'][:] == ['a.png', 'b.png', 'a.png (2)']
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [0, 40, 0]
    for setting in ('unite', 'repeat'):  # an image is evaluated once
        dataset = load('table', 'val', str(root), repeated_images=setting)
        assert named(dataset) == [['cat', 'owl'], ['dog']] and dataset['image_id'][:] == ['a.png', 'b.png']


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_load_table_unites_rows_as_counted(images, data):
    """Rows of columns and of lists, against a count row by row."""
    for other in images.glob('train.*'):
        other.unlink()
    size = data.draw(st.integers(1, 8))
    files = [data.draw(st.sampled_from(IMAGES)) for _ in range(size)]
    states = [[data.draw(st.sampled_from([1, 0, -1])) for _ in range(size)] for _ in range(3)]
    write(images, data.draw(st.sampled_from(FORMATS)), {'image': files, **dict(zip('xyz', states, strict=True))})
    dataset = load('table', 'train', str(images), repeated_images='unite')
    order = list(dict.fromkeys(files))
    assert dataset['image_id'][:] == order
    for column, wanted in (('labels', 1), ('ignore', -1)):
        expected = [
            [k for k in range(3) if max(states[k][r] for r in range(size) if files[r] == file) == wanted]
            for file in order
        ]
        assert dataset[column][:] == expected
    lists = [[name for k, name in enumerate('xyz') if states[k][row] == 1] for row in range(size)]
    if any(lists):
        write(images, 'jsonl', {'image': files, 'labels': lists})
        dataset = load('table', 'train', str(images), repeated_images='unite', label_names=['x', 'y', 'z'])
        expected = [sorted({n for r in range(size) if files[r] == file for n in lists[r]}) for file in order]
        assert named(dataset) == expected


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_counts_repeated_labels_once(root, suffix):
    cells = ['x|y| x', 'y', '', 'y|y'] if suffix in ('csv', 'tsv') else [['x', 'y', 'x'], ['y'], [], ['y', 'y']]
    path = write(root, suffix, {'image': IMAGES, 'labels': cells})
    dataset = load('table', 'train', str(root))
    assert named(dataset) == [['x', 'y'], ['y'], [], ['y']]
    first = {'jsonl': 'line 1', 'parquet': 'row 0'}.get(suffix, 'line 2')
    line = f"repeated labels: 2 rows list a label more than once, e.g. {path}: {first}: 'labels'; it counts once"
    assert line in notes(dataset)


# --- names of images


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_finds_images_without_suffix(root, suffix):
    write(root, suffix, {'image_name': [name[0] for name in IMAGES], 'tags': ['x y', 'y', 'x', 'y']})
    dataset = load('table', 'train', str(root))
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [0, 40, 80, 120]
    line = "images: column 'image_name' (data.image_column); names without suffix, found with .png (data.image_suffix)"
    assert notes(dataset)[0] == line and dataset['image_id'][:] == ['a', 'b', 'c', 'd']
    (root / 'b.jpg').symlink_to(root / 'b.png')
    (root / 'a.txt').write_text('no image')
    fails(root, "'b' may be b.jpg or b.png", 'data.image_suffix', blank='absent')  # not the cached rows
    for known in ('.png', 'png'):
        assert len(load('table', 'train', str(root), image_suffix=known)) == 4
    fails(root, "'a' is not in", image_suffix='.jpg', image_column='image_name')


def test_load_table_finds_converted_images_again(root):
    write(root, 'csv', {'image': [name[0] for name in IMAGES], 'x': [1, 0, 1, 0]})
    assert load('table', 'train', str(root))[1]['image'].getpixel((0, 0))[0] == 40
    for name in IMAGES:
        PilImage.open(root / name).save(root / f'{name[0]}.bmp')
        (root / name).unlink()
    assert load('table', 'train', str(root))[1]['image'].getpixel((0, 0))[0] == 40


def test_load_table_finds_numbered_images(root):
    for number, name in enumerate(IMAGES):
        (root / name).rename(root / f'{number}.png')
    for suffix in FORMATS:
        write(root, suffix, {'id': range(4), 'x': [1, 0, 1, 0]})
        dataset = load('table', 'train', str(root))
        assert label_names(dataset) == ['x'] and [row['image'].getpixel((0, 0))[0] for row in dataset] == [
            0,
            40,
            80,
            120,
        ]


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_reads_backslashes_in_paths(root, suffix):
    (root / 'sub' / 'deep').mkdir(parents=True)
    for name in IMAGES:
        (root / name).rename(root / 'sub' / 'deep' / name)
    write(root, suffix, {'image': [f'sub\\deep\\{name}' for name in IMAGES], 'x': [1, 0, 1, 0]})
    dataset = load('table', 'train', str(root))
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [0, 40, 80, 120]
    assert notes(dataset)[0] == 'images: backslashes in paths are read as slashes'
    (root / 'sub\\deep\\a.png').symlink_to(root / 'sub' / 'deep' / 'd.png')  # a name on Linux
    write(root, suffix, {'image': ['sub\\deep\\a.png'], 'x': [1]})
    assert load('table', 'train', str(root))[0]['image'].getpixel((0, 0))[0] == 120
    write(root, suffix, {'image': ['..\\a.png'], 'x': [1]})
    fails(root, 'is not inside')


def test_load_table_finds_folder_of_images(root):
    (root / 'train-jpg').mkdir()
    for name in IMAGES:
        (root / name).rename(root / 'train-jpg' / name)
    (root / 'train_labels.csv').write_text('image_name,tags\na,haze primary\nb,primary\nc,haze\nd,primary\n')
    dataset = load('table', 'train', str(root))
    assert named(dataset) == [['haze', 'primary'], ['primary'], ['haze'], ['primary']]
    assert notes(dataset)[:2] == [
        'table: train_labels.csv',
        "images: column 'image_name' (data.image_column); in the folder train-jpg (data.image_root); names without"
        ' suffix, found with .png (data.image_suffix)',
    ]
    shutil.copytree(root / 'train-jpg', root / 'copy')
    fails(root, "'a' is in several folders (copy and train-jpg)", 'data.image_root', blank='absent')
    (root / 'copy').rename(root / 'train')  # the folder of the split
    assert 'in the folder train (data.image_root)' in notes(load('table', 'train', str(root), blank='absent'))[1]
    (root / 'train_labels.csv').write_text('image_name,tags\nz,haze\n')
    fails(root, 'no column image', 'data.image_column')
    fails(root, "'z' is not in", 'data.image_root', image_column='image_name')


# --- a label that means none


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_reads_label_that_means_none(root, suffix):
    cells = ['No Finding', 'Edema|Mass', 'Mass', 'No Finding']
    write(root, suffix, {'image': IMAGES, 'labels': cells})
    dataset = load('table', 'train', str(root))
    assert label_names(dataset) == ['Edema', 'Mass', 'No Finding']
    assert "set data.none_label to 'No Finding'" in notes(dataset)[-1]
    dataset = load('table', 'train', str(root), none_label='No Finding')
    assert label_names(dataset) == ['Edema', 'Mass'] and named(dataset) == [[], ['Edema', 'Mass'], ['Mass'], []]
    assert notes(dataset)[-1] == "no label: 'No Finding' (2 rows, 0 of them with other labels, which count)"
    assert named(load('table', 'train', str(root), none_label='No Finding', label_names=['Mass', 'Edema']))[2] == [
        'Mass'
    ]
    fails(root, "unknown data.none_label 'No Findings': did you mean No Finding?", none_label='No Findings')
    columns = {'No Finding': [1, 0, None, 1], 'Edema': [None, 1, 0, None], 'Device': [None, None, 1, 1]}
    write(root, suffix, {'image': IMAGES, **columns})
    dataset = load('table', 'train', str(root), none_label='No Finding')
    assert label_names(dataset) == ['Edema', 'Device'] and named(dataset) == [[], ['Edema'], ['Device'], ['Device']]
    assert named(dataset, 'ignore') == [[], ['Device'], [], []]  # blank beside `No Finding` is absent
    assert notes(dataset)[-1] == "no label: 'No Finding' (2 rows, 1 of them with other labels, which count)"
    dataset = load('table', 'train', str(root), none_label='No Finding', label_names=['Device', 'Edema'])
    assert label_names(dataset) == ['Device', 'Edema'] and named(dataset)[1] == ['Edema']
    fails(root, "unknown data.none_label 'None'", none_label='None')


@pytest.mark.parametrize('streaming', [False, True])
def test_load_hub_reads_label_that_means_none(tmp_path, streaming):
    names = ['cat', 'normal', 'dog']
    write_hub(tmp_path, {'labels': [[1], [0, 2], [0, 0]]}, {'labels': List(ClassLabel(names=names))})
    dataset = load('hub', 'train', str(tmp_path), none_label='normal', streaming=streaming)
    assert label_names(dataset) == ['cat', 'dog'] and named(dataset) == [[], ['cat', 'dog'], ['cat']]
    if not streaming:
        dataset = load('hub', 'train', str(tmp_path))
        assert notes(dataset)[1:] == [
            f"repeated labels: 1 row lists a label more than once, e.g. {tmp_path}, split train: row 2: 'labels';"
            ' it counts once',
            "'normal' is never together with another label (1 rows): if it means no label, set data.none_label to"
            " 'normal'",
        ]


# --- splits


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_splits_by_fold(root, suffix):
    path = write(root, suffix, {'image': IMAGES, 'x': [1, 0, 1, 0], 'kfold': [0, 1, 2, 1]})
    assert len(load('table', 'train', str(root))) == 4
    message = '; data.validation_fold makes a fold of its column kfold the validation split.'
    fails(path, 'has no column split', message, split='val')
    for base in (root, path):
        train, validation = (load('table', split, str(base), validation_fold=1) for split in ('train', 'val'))
        assert train['image_id'][:] == ['a.png', 'c.png'] and validation['image_id'][:] == ['b.png', 'd.png']
        assert notes(train)[-2] == 'splits: by the column kfold, validation is fold 1 (data.validation_fold)'
        assert label_names(train) == ['x']
        fails(base, 'data.validation_fold is 3', 'found: 0, 1, 2', validation_fold=3)
    write(root, suffix, {'image': IMAGES[:1], 'x': [1]}, 'test')
    assert len(load('table', 'test', str(root), validation_fold=1, label_names=['x'])) == 1
    assert len(load('table', 'val', str(root), validation_fold=1)) == 2
    write(root, suffix, {'image': IMAGES[:1], 'x': [1]}, 'val')
    fails(root, 'data.validation_fold is set, but', 'is the validation split', validation_fold=1)


def test_load_table_keeps_test_rows_beside_folds(root):
    rows = {'image': IMAGES, 'x': [1, 0, 1, 0], 'fold': ['0.0', 1, 1, 0], 'split': ['train', 'train', 'test', 'val']}
    path = write(root, 'csv', rows)
    found = {
        split: load('table', split, str(path), validation_fold=1)['image_id'][:] for split in ('train', 'val', 'test')
    }
    assert found == {'train': ['a.png', 'd.png'], 'val': ['b.png'], 'test': ['c.png']}
    write(root, 'csv', {**rows, 'fold': ['A', 1, 1, 0]})
    fails(path, "line 2: 'fold' is 'A'", validation_fold=1)
    write(root, 'csv', {'image': IMAGES, 'x': [1, 0, 1, 0]})
    fails(path, 'data.validation_fold is 1, but the table has no column', validation_fold=1)


def test_load_hub_splits_by_columns(tmp_path):
    schema = {'x': Value('int8'), 'is_valid': Value('bool'), 'fold': Value('int64')}
    columns = {'x': [1, 0, 0], 'is_valid': [False, True, False], 'fold': [0, 1, 2]}
    write_hub(tmp_path, columns, schema)
    for split, settings_, rows in (
        ('train', {}, [0, 2]),
        ('validation', {}, [1]),
        ('train', {'validation_fold': 2}, [0, 1]),
        ('validation', {'validation_fold': 2}, [2]),
    ):
        dataset = load('hub', split, str(tmp_path), **settings_)
        assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [40 * row for row in rows]
        assert dataset['image_id'][:] == [f'train-{row}' for row in rows]
        assert dataset['labels'][:] == [[0]] * (0 in rows) + [[]] * (len(rows) - (0 in rows))
        assert notes(dataset)[0].startswith('splits: by the column')
    fails(tmp_path, "unknown split 'test'", name='hub', split='test')
    for values, rows in ((['train', 'dev', 'train'], [0, 2]), (['train', 'extra', 'dev'], [0, 1, 2])):
        write_hub(tmp_path, {'x': [1, 0, 0], 'split': values}, {'x': Value('int8'), 'split': Value('string')})
        assert load('hub', 'train', str(tmp_path))['image_id'][:] == [f'train-{row}' for row in rows]
    write_hub(tmp_path, columns, schema)
    write_hub(tmp_path, columns, schema, 'test')
    assert len(load('hub', 'test', str(tmp_path), validation_fold=2)) == 3
    assert load('hub', 'val', str(tmp_path), validation_fold=2)['image_id'][:] == ['train-2']
    write_hub(tmp_path, columns, schema, 'validation')
    fails(tmp_path, 'it has a validation split', name='hub', validation_fold=2)
    fails(tmp_path, 'data.repeated_images', 'leave it out', name='hub', repeated_images='unite')
    fails(tmp_path, 'data.validation_fold', 'leave it out', name='hub', streaming=True, validation_fold=1)


# --- malformed tables

cell = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from(
        [0.5, float('nan'), 10**30, '', 'x', 'x|y', "['x']", '[0, 1]', 'No Finding', '1', '-1', 'NA', '1;x']
    ),
    st.text(max_size=4),
    st.lists(st.one_of(st.none(), st.integers(-1, 2), st.sampled_from(['x', 'y', 'x '])), max_size=3),
)
image = st.sampled_from([*IMAGES, 'a', 'b', '.\\c.png', './d.png', 'z.png', '', 'A.PNG', '../a.png'])
setting = st.fixed_dictionaries(
    {},
    optional={
        'label_names': st.sampled_from([['x', 'y'], ['0', '1'], ['labels'], ['x', 'No Finding']]),
        'label_columns': st.sampled_from([['labels'], ['x'], ['x', 'y']]),
        'none_label': st.sampled_from(['No Finding', 'x', 'y']),
        'repeated_images': st.sampled_from(['unite', 'repeat']),
        'image_suffix': st.sampled_from(['.png', 'jpg']),
        'validation_fold': st.integers(0, 2),
        'label_delimiter': st.sampled_from(['|', 'none', ';']),
    },
)


@pytest.mark.parametrize('suffix', FORMATS)
@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_load_table_reads_or_refuses_any_cells(images, suffix, data):
    for other in images.glob('train.*'):
        other.unlink()
    size = data.draw(st.integers(1, 5))
    names = data.draw(
        st.lists(st.sampled_from(['labels', 'ignore', 'fold', 'split', 'x', 'y', 'image_id']), unique=True)
    )
    rows = [{'image': data.draw(image), **{name: data.draw(cell) for name in names}} for _ in range(size)]
    path = images / f'train.{suffix}'
    try:
        if suffix == 'jsonl':
            path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        elif suffix == 'parquet':
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            pd.DataFrame(rows).to_csv(path, sep='\t' if suffix == 'tsv' else ',', index=False)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return  # columns of several types, and text that no such file holds
    arguments = data.draw(setting)
    try:
        dataset = load('table', data.draw(st.sampled_from(['train', 'validation'])), str(path), **arguments)
    except InputError as e:
        assert len(str(e).splitlines()) == 1
        return
    present, ignore = dataset['labels'][:], dataset['ignore'][:]
    assert 0 < len(dataset) <= size and len(set(dataset['image_id'][:])) == len(dataset)
    for row in range(len(dataset)):
        assert present[row] == sorted(set(present[row])) and ignore[row] == sorted(set(ignore[row]))
        assert not set(present[row]) & set(ignore[row]) and set(present[row]) <= set(range(len(label_names(dataset))))
    assert arguments.get('none_label') not in label_names(dataset)
