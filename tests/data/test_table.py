import csv
import io
import json
import random
import time

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from msff_timm.data import label_cells, label_names, load, notes, table
from msff_timm.data.columns import NOT_LABELS
from msff_timm.errors import InputError

IMAGES = ('a.png', 'b.png', 'c.png', 'd.png')
LABELS = (['cat', 'dog'], [], ['dog'], ['bird'])
FORMATS = ('csv', 'tsv', 'jsonl', 'parquet')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of images without a table."""
    root = tmp_path_factory.mktemp('images')
    for number, name in enumerate(IMAGES):
        Image.new('RGB', (4, 3), (40 * number, 0, 0)).save(root / name)
    return root


@pytest.fixture(autouse=True, scope='module')
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
        yield


@pytest.fixture
def root(folder, tmp_path):
    for name in IMAGES:
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


def write(path, rows):
    """Writes dicts in the format of the suffix; CSV and TSV get lists as text with `|`."""
    suffix = path.suffix[1:]
    if suffix == 'jsonl':
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    elif suffix == 'parquet':
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        flat = [{k: '|'.join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        with open(path, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter='\t' if suffix == 'tsv' else ',')
            writer.writeheader()
            writer.writerows(flat)
    return path


def lists(labels=LABELS, **more):
    return [
        {'image': name, 'labels': list(present), **{k: v[row] for k, v in more.items()}}
        for row, (name, present) in enumerate(zip(IMAGES, labels, strict=True))
    ]


def named(dataset, column='labels'):
    names = label_names(dataset)
    return [[names[label] for label in row] for row in dataset[column]]


def fails(root, *parts, name='table', split='train', **arguments):
    with pytest.raises(InputError) as caught:
        load(name, split, str(root), **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_reads_lists_in_every_format(root, suffix):
    write(root / f'train.{suffix}', lists(ignore=[[], ['cat', 'bird'], [], []], image_id=['1', '2', '3', '4']))
    dataset = load('table', 'train', str(root))
    assert label_names(dataset) == ['bird', 'cat', 'dog']
    assert dataset['labels'][:] == [[1, 2], [], [2], [0]]
    assert dataset['ignore'][:] == [[], [0, 1], [], []]
    assert dataset['area'][:] == [[]] * 4
    assert dataset['image_id'][:] == ['1', '2', '3', '4']
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [0, 40, 80, 120]


@pytest.mark.parametrize('suffix', FORMATS)
def test_load_table_reads_column_per_label_in_every_format(root, suffix):
    columns = {'dog': [1, 0, -1, None], 'cat': [True, False, True, False]}
    rows = [{'file_name': n, **{k: v[i] for k, v in columns.items()}} for i, n in enumerate(IMAGES)]
    write(root / f'train.{suffix}', rows)
    dataset = load('table', 'train', str(root))
    assert label_names(dataset) == ['dog', 'cat']
    assert dataset['labels'][:] == [[0, 1], [], [1], []]
    assert dataset['ignore'][:] == [[], [], [0], [0]]
    assert dataset['image_id'][:] == list(IMAGES)


def test_load_table_reads_files_of_pandas(root):
    frame = pd.DataFrame({'path': IMAGES, 'x': [1.0, None, 0.0, -1.0], 'y': [1, 0, 0, 1]})
    frame.to_parquet(root / 'train.parquet')
    frame.to_csv(root / 'val.csv', index=False)
    for split in ('train', 'val'):
        dataset = load('table', split, str(root))
        assert named(dataset) == [['x', 'y'], [], [], ['y']]
        assert named(dataset, 'ignore') == [[], ['x'], [], ['x']]
    frame.to_csv(root / 'test.csv')  # with its index
    assert named(load('table', 'test', str(root))) == [['x', 'y'], [], [], ['y']]


def test_load_table_numbers_labels_over_all_splits(root):
    write(root / 'train.csv', lists()[:1])
    write(root / 'val.jsonl', lists()[1:3])
    write(root / 'test.parquet', lists()[3:])
    loaded = {split: load('table', split, str(root)) for split in ('train', 'validation', 'val', 'test')}
    assert {tuple(label_names(dataset)) for dataset in loaded.values()} == {('bird', 'cat', 'dog')}
    assert [named(loaded[split]) for split in ('train', 'val', 'test')] == [[['cat', 'dog']], [[], ['dog']], [['bird']]]
    assert named(loaded['val']) == named(loaded['validation'])


def test_load_table_orders_columns_by_first_split(root):
    (root / 'train.csv').write_text('image,x,y\na.png,1,0\n')
    (root / 'val.csv').write_text('image,y,x\nb.png,1,0\n')
    dataset = load('table', 'val', str(root))
    assert label_names(dataset) == ['x', 'y'] and named(dataset) == [['y']]
    (root / 'val.csv').write_text('image,x,z\nb.png,1,0\n')
    fails(root, 'train.csv', 'val.csv', 'x, z', 'data.label_columns')
    (root / 'val.csv').write_text('image,labels\nb.png,x\n')
    fails(root, 'train.csv', 'val.csv')
    assert named(load('table', 'train', str(root), label_names=['y', 'x'])) == [['x']]


def test_load_table_splits_one_file_by_column(root):
    path = write(root / 'all.csv', lists(split=['train', 'val', ' validation', 'test']))
    assert label_names(load('table', 'train', str(path))) == ['bird', 'cat', 'dog']
    assert load('table', 'validation', str(path))['image_id'][:] == ['b.png', 'c.png']
    write(path, lists(split=['train'] * 4))
    fails(path, 'all.csv', 'no row of test', 'train', split='test')
    write(path, lists(split=['train', 'trane', 'val', 'val']))
    fails(path, 'line 3', "'trane'")
    write(path, lists())
    assert len(load('table', 'train', str(path))) == 4
    fails(path, 'no column split', split='val')


def test_load_table_orders_labels_by_label_names(root):
    write(root / 'train.csv', lists())
    (root / 'val.csv').write_text('not a table')
    dataset = load('table', 'train', str(root), label_names=['dog', 'fish', 'cat', 'bird'])
    assert dataset['labels'][:] == [[0, 2], [], [0], [3]]
    fails(root, 'train.csv', 'line 2', "unknown label 'cat'", 'did you mean cats', label_names=['dog', 'cats', 'bird'])
    fails(root, 'data.label_names', "'dog' is listed twice", label_names=['dog', 'dog'])
    fails(root, 'data.label_names', 'empty', label_names=['dog', ' '])
    fails(root, 'data.label_names', 'line break', label_names=['dog\n'])


def test_load_table_refuses_names_that_differ_from_columns(root):
    (root / 'train.csv').write_text('image,x,y\na.png,1,0\n')
    assert load('table', 'train', str(root), label_names=['y', 'x'])['labels'][:] == [[1]]
    fails(root, "unknown label column 'y'", label_names=['x', 'z'])
    fails(root, "no column for the label 'z'", label_names=['x', 'y', 'z'])


def test_load_table_uses_named_columns(root):
    (root / 'train.csv').write_text('photo,tags,note,x,y\na.png,cat; dog,hello,1,0\nb.png,,,0,\n')
    dataset = load('table', 'train', str(root), image_column='photo', label_columns=['tags'], label_delimiter=';')
    assert named(dataset) == [['cat', 'dog'], []]
    dataset = load('table', 'train', str(root), image_column='photo', label_columns=['y', 'x'])
    assert (label_names(dataset), named(dataset), named(dataset, 'ignore')) == (['y', 'x'], [['x'], []], [[], ['y']])
    assert named(load('table', 'train', str(root), label_columns=['x'])) == [['x'], []]  # the image exists
    fails(root, "no column 'pohto'", image_column='pohto')
    dataset = load('table', 'train', str(root), image_column='photo', label_columns=['y'])
    assert label_names(dataset) == ['y']
    fails(root, "unknown label column 'tag'", 'did you mean tags', image_column='photo', label_columns=['tag'])
    fails(root, "unknown label column 'photo'", image_column='photo', label_columns=['photo'])
    fails(root, 'line 2', "'tags' is 'cat; dog'", 'data.label_columns', image_column='photo')
    fails(root, 'data.label_columns', 'twice', label_columns=['x', 'x'])
    fails(root, 'data.label_delimiter', label_delimiter='')


def test_load_table_finds_images_elsewhere(folder, tmp_path):
    (tmp_path / 'train.csv').write_text(f'image,x\na.png,1\n{folder / "b.png"},0\n')
    dataset = load('table', 'train', str(tmp_path), image_root=str(folder))
    assert dataset['image_id'][:] == ['a.png', str(folder / 'b.png')]
    fails(tmp_path, 'line 2', 'a.png', 'data.image_root')
    (tmp_path / 'train.csv').write_text(f'image,x\n{folder / "b.png"},0\n')
    fails(tmp_path, 'line 2', 'is not inside')
    (tmp_path / 'train.csv').write_text('image,x\n../b.png,0\n')
    fails(tmp_path, 'line 2', 'is not inside')


def test_load_table_ignores_byte_order_mark(root):
    (root / 'train.csv').write_bytes(b'\xef\xbb\xbf' + 'image,häuser\na.png,1\n'.encode())
    assert label_names(load('table', 'train', str(root))) == ['häuser']
    (root / 'train.csv').unlink()
    (root / 'train.jsonl').write_bytes(b'\xef\xbb\xbf{"image": "a.png", "labels": ["x"]}\r\n\r\n')
    assert named(load('table', 'train', str(root))) == [['x']]


def test_load_table_counts_lines_as_editors(root):
    (root / 'train.csv').write_bytes(b'image,labels,note\r\na.png,x,"two\r\nlines"\r\n\r\nz.png,x,\r\n')
    fails(root, 'line 5', "'z.png'")
    (root / 'train.csv').write_bytes(b'image,labels\na.png, x | y |\nb.png,\n')
    assert named(load('table', 'train', str(root))) == [['x', 'y'], []]


@pytest.mark.parametrize(
    ('content', 'parts'),
    {
        'empty': (b'', ['is empty']),
        'blank': (b'\n\n', ['is empty']),
        'header only': (b'image,x\n', ['contains no rows']),
        'no image': (b'photo,x\nz.png,1\n', ['photo, x']),
        'no labels': (b'image\na.png\n', ['no label column']),
        'no label': (b'image,labels\na.png,\n', ['contains no labels', 'data.label_names']),
        'same column': (b'image,x,x\na.png,1,1\n', ["'x' is listed twice"]),
        'unnamed column': (b'image,,x\na.png,1,1\n', ['a name is empty']),
        'too many': (b'image,x\na.png,1,2\n', ['line 2', '3 fields']),
        'too few': (b'image,x\na.png\n', ['line 2', '1 fields']),
        'open quote': (b'image,x\na.png,1\nb.png,"1\n', ['line 3', 'quotes']),
        'text after quote': (b'image,x\n"a"b.png,1\n', ['line 2', 'quotes']),
        'huge field': (b'image,x\na.png,' + b'1' * 140_000 + b'\n', ['line 2', 'limit']),
        'latin-1': (b'image,x\na.png,1\n\xe4.png,1\n', ['line 3', '0xe4', 'UTF-8']),
        'utf-16': ('image,x\na.png,1\n'.encode('utf-16'), ['line 1', 'UTF-8']),
        'nul': (b'image,x\na.png,1\nb.p\0ng,1\n', ['line 3', 'NUL']),
        'no state': (b'image,x\na.png,2\n', ['line 2', "'x' is '2'"]),
        'both': (b'image,labels,ignore\na.png,x|y,y\n', ['line 2', "'y' is in both"]),
        'same image': (b'image,x\na.png,1\nb.png,1\n./a.png,1\n', ['line 4', 'line 2']),
        'same id': (b'image,image_id,x\na.png,1,1\nb.png,1,1\n', ['line 3', "'1'", 'line 2']),
        'no id': (b'image,image_id,x\na.png,,1\n', ['line 2', 'image_id']),
        'no path': (b'image,x\n,1\n', ['line 2', "'image' is empty"]),
        'absent': (b'image,x\na.png,1\nz.png,1\n', ['line 3', 'z.png']),
        'a folder': (b'image,x\n.,1\n', ['line 2']),
        'two lines in a path': (b'image,x\n"a\nb.png",1\n', ['line 2', 'line break']),
        'two lines in a name': (b'image,"x\ny"\na.png,1\n', ['line break']),
        'two lines in a label': (b'image,labels\na.png,"x\ny"\n', ['line 2', 'line break']),
    }.values(),
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_load_table_refuses_invalid_csv(root, content, parts):
    (root / 'train.csv').write_bytes(content)
    fails(root, 'train.csv', *parts)


@pytest.mark.parametrize(
    ('content', 'parts'),
    [
        ('{"image": "a.png", "labels": ["x"]\n', ['line 1', 'not valid JSON']),
        ('\x85\n', ['is empty']),
        ('["a.png"]\n', ['line 1', 'not an object']),
        ('{"image": "a.png", "image": "b.png", "labels": []}\n', ['line 1', "'image' is listed twice"]),
        ('{"image": "a.png", "labels": ["x"]}\n\n{"labels": ["x"]}\n', ['line 3', "'image'"]),
        ('{"image": "a.png"}\n{"image": "b.png", "labels": []}\n', ['contains no labels', 'data.label_names']),
        ('{"image": "a.png", "labels": [0.5]}\n', ['line 1', 'label 0.5, which is neither text nor a whole number']),
        ('{"image": "a.png", "labels": true}\n', ['line 1', "'labels' has the label True"]),
        ('{"image": 3.5, "labels": ["x"]}\n', ['line 1', 'path 3.5']),
        ('{"image": "a\\u0000.png", "labels": ["x"]}\n', ['line 1', 'NUL']),
        ('{"image": "a.png", "labels": ["\\ud800"]}\n', ['line 1', 'not valid JSON']),
        ('{"image": "a.png", "labels": ["x"], "image_id": true}\n', ['line 1', 'True']),
        ('{"image": "a.png", "x": {}}\n', ['line 1', "'x' is {}"]),
        ('{"image": "a.png", "x": ' + '[' * 100_000, ['line 1', 'not valid JSON']),
        ('{"image": "a.png", "x": ' + '1' * 5_000 + '}', ['line 1', 'not valid JSON']),
    ],
    ids=range(15),
)
def test_load_table_refuses_invalid_json_lines(root, content, parts):
    (root / 'train.jsonl').write_text(content, encoding='utf-8')
    fails(root, 'train.jsonl', *parts)


def test_load_table_refuses_invalid_parquet(root):
    path = root / 'train.parquet'
    write(path, lists(labels=(['x'], ['x', 'z'], [], [])))
    fails(root, 'train.parquet', 'row 1', "unknown label 'z'", label_names=['x', 'y'])
    write(path, [{'image': {'bytes': b'', 'path': 'a.png'}, 'labels': ['x']}])
    fails(root, 'train.parquet', "'image'", 'set data.name to hub')
    whole = write(path, lists()).read_bytes()
    for content in (b'', b'PAR1', whole[:-20], whole[20:]):
        path.write_bytes(content)
        fails(root, 'train.parquet', 'not a valid Parquet file')
    pq.write_table(pa.table([pa.array(['a.png']), pa.array([1]), pa.array([1])], names=['image', 'x', 'x']), path)
    fails(root, 'train.parquet', "'x' is listed twice")


def test_load_table_refuses_invalid_roots(root):
    fails(root, 'contains no train.csv')
    fails(root / 'absent', 'is not a folder or a file', 'data.root')
    (root / 'table.xlsx').write_text('')
    fails(root / 'table.xlsx', '.csv, .tsv, .jsonl, .parquet')
    write(root / 'train.csv', lists())
    fails(root, 'split validation', 'train.csv', split='val')
    fails(root, "unknown split of a table 'trainval'", split='trainval')
    write(root / 'train.tsv', lists())
    fails(root, 'train.csv', 'train.tsv', 'remove one')
    for name in ('table', 'folder'):
        with pytest.raises(InputError, match=f'{name} needs data.root'):
            load(name, 'train')


@pytest.mark.parametrize('suffix', ['csv', 'jsonl', 'parquet'])
def test_load_folder_reads_metadata_of_splits(folder, tmp_path, suffix):
    for split, names, labels in (('train', IMAGES[:2], ['cat', 'dog']), ('val', IMAGES[2:], ['cow', 'dog'])):
        (tmp_path / split / 'deep').mkdir(parents=True)
        rows = []
        for name, label in zip(names, labels, strict=True):
            (tmp_path / split / 'deep' / name).symlink_to(folder / name)
            rows.append({'file_name': f'deep/{name}', 'labels': [label]})
        write(tmp_path / split / f'metadata.{suffix}', rows)
    dataset = load('folder', 'validation', str(tmp_path))
    assert label_names(dataset) == ['cat', 'cow', 'dog'] and named(dataset) == [['cow'], ['dog']]
    assert dataset[0]['image'].getpixel((0, 0))[0] == 80
    fails(tmp_path, 'no folder of the split test', name='folder', split='test')
    write(tmp_path / f'metadata.{suffix}', rows)
    fails(tmp_path, 'remove one', name='folder')


def test_load_folder_reads_single_split(root):
    fails(root, 'metadata.csv', name='folder')
    write(root / 'metadata.csv', lists())
    fails(root, "no column 'file_name'", name='folder')
    assert len(load('folder', 'train', str(root), image_column='image', size=3)) == 3


def test_load_table_reads_lists_in_text_in_every_format(root):
    texts = ["['cat', 'dog']", '[]', '["dog"]', "{'bird'}"]
    for suffix in FORMATS:
        for other in root.glob('train.*'):
            other.unlink()
        rows = [{'image': n, 'labels': text, 'ignore': '["bird"]'} for n, text in zip(IMAGES[:3], texts, strict=False)]
        write(root / f'train.{suffix}', [*rows, {'image': IMAGES[3], 'labels': texts[3], 'ignore': None}])
        dataset = load('table', 'train', str(root))
        assert label_names(dataset) == ['bird', 'cat', 'dog'] and named(dataset) == list(LABELS)
        assert named(dataset, 'ignore') == [['bird'], ['bird'], ['bird'], []]


def test_load_table_finds_delimiter_over_all_splits(root):
    (root / 'train.csv').write_text('image,labels\na.png,cat dog\nb.png,bird\n')
    (root / 'val.csv').write_text('image,labels,ignore\nc.png,cat,dog\n')
    dataset = load('table', 'train', str(root))
    assert named(dataset) == [['cat', 'dog'], ['bird']]
    assert notes(dataset) == ["labels: column 'labels', delimited by a space, e.g. 'cat dog' (data.label_delimiter)"]
    assert notes(load('table', 'train', str(root))) == notes(dataset)  # from the cache
    dataset = load('table', 'train', str(root), label_delimiter='none')
    assert named(dataset) == [['cat dog'], ['bird']] and notes(dataset) == ["labels: column 'labels'"]


def test_load_table_refuses_ambiguous_text(root):
    (root / 'train.csv').write_text('image,labels\na.png,red apple\nb.png,green apple\nc.png,pear\n')
    fails(root, "train.csv: 'labels': 'green apple' may be one label or several", 'data.label_delimiter')
    assert named(load('table', 'train', str(root), label_delimiter=' '))[0] == ['apple', 'red']
    dataset = load('table', 'train', str(root), label_names=['green apple', 'pear', 'red apple'])
    assert named(dataset) == [['red apple'], ['green apple'], ['pear']]


def test_load_table_reads_lists_without_quotes(root):
    (root / 'train.csv').write_text('image,labels\na.png,"[traffic light, car]"\nb.png,[traffic light]\nc.png,[]\n')
    assert named(load('table', 'train', str(root))) == [['car', 'traffic light'], ['traffic light'], []]
    (root / 'train.csv').write_text('image,labels\na.png,[cat dog]\nb.png,[cat]\n')
    dataset = load('table', 'train', str(root))
    assert named(dataset) == [['cat', 'dog'], ['cat']]
    assert notes(dataset) == ["labels: column 'labels', lists separated by spaces, e.g. '[cat dog]'"]


def test_load_table_notes_words_that_mean_no_label(root):
    (root / 'train.csv').write_text('image,labels,ignore\na.png,x|NA,None\nb.png,NA,\nc.png,nan,\n')
    dataset = load('table', 'train', str(root))
    assert named(dataset) == [['NA', 'x'], [], []]
    assert notes(dataset)[0].endswith(", 'NA' or 'None' means no label")


def test_load_table_needs_names_for_vectors(root):
    (root / 'train.csv').write_text('image,labels\na.png,"[0, 1]"\nb.png,[1 1]\n')
    fails(root, "'labels' holds vectors of 2 numbers", 'data.label_names')
    assert named(load('table', 'train', str(root), label_names=['x', 'y'])) == [['y'], ['x', 'y']]
    fails(root, "'labels' holds vectors of 2 numbers", label_names=['x', 'y', 'z'])


def test_load_table_skips_and_notes_other_columns(root):
    (root / 'train.csv').write_text('image,id,cat,fold,dog,Is_Crowd,url\na.png,7,1,0,0,1,http://x\nb.png,8,0,1,-1,0,\n')
    dataset = load('table', 'train', str(root))
    assert (label_names(dataset), named(dataset)) == (['cat', 'dog'], [['cat'], []])
    assert notes(dataset) == ['labels: 2 columns (cat, dog); not labels: id, fold, Is_Crowd, url']
    dataset = load('table', 'train', str(root), label_columns=['fold', 'cat'])
    assert label_names(dataset) == ['fold', 'cat'] and named(dataset) == [['cat'], ['fold']]
    dataset = load('table', 'train', str(root), label_names=['fold', 'dog', 'cat'])
    assert named(dataset) == [['cat'], ['fold']]
    (root / 'train.csv').write_text('image,fold\na.png,1\n')
    fails(root, 'no label column', 'fold')


@pytest.mark.parametrize('index', [None, ['p', 'q', 'r', 's'], pd.MultiIndex.from_product([[0, 1], [0, 1]])])
@pytest.mark.parametrize('suffix', ['csv', 'tsv', 'parquet'])
def test_load_table_skips_index_of_pandas(root, index, suffix):
    frame = pd.DataFrame({'image': IMAGES, 'x': [1, 0, 1, 0]}, index=index)
    for written in (frame, frame.reset_index()):
        if suffix == 'parquet':
            written.to_parquet(root / 'train.parquet')
        else:
            written.to_csv(root / f'train.{suffix}', sep='\t' if suffix == 'tsv' else ',')
        dataset = load('table', 'train', str(root))
        assert label_names(dataset) == ['x'] and named(dataset) == [['x'], [], ['x'], []]
    again = pd.read_csv(root / 'train.csv') if suffix == 'csv' else frame  # with its index as the column `Unnamed: 0`
    again.to_csv(root / 'validation.csv')
    assert label_names(load('table', 'validation', str(root), label_columns=['x'])) == ['x']


def test_load_table_skips_empty_columns_without_name(root):
    (root / 'train.csv').write_text('image,x,,\na.png,1,,\nb.png,0, ,\n')
    assert label_names(load('table', 'train', str(root))) == ['x']
    (root / 'train.csv').write_text('image,x,,\na.png,1,,\nb.png,0,1,\n')
    fails(root, 'a name is empty')


@pytest.mark.parametrize('delimiter', [';', '\t', '|'])
@pytest.mark.parametrize('first', ['', 'sep={}\n', '"sep={}"\r\n'])
def test_load_table_reads_csv_of_european_excel(root, delimiter, first):
    rows = pd.DataFrame({'image': IMAGES, 'labels': ['cat,dog', '', 'dog', 'cat'], 'note': ['a;b', '', 'c', 'd|e']})
    text = rows.to_csv(index=False, sep=delimiter)
    (root / 'train.csv').write_text('\ufeff' + first.format(delimiter) + text, encoding='utf-8')
    dataset = load('table', 'train', str(root))
    assert named(dataset) == [['cat', 'dog'], [], ['dog'], ['cat']]
    spoken = 'a tab' if delimiter == '\t' else repr(delimiter)
    assert notes(dataset)[0] == f'fields: delimited by {spoken}'
    states = pd.DataFrame({'image': IMAGES, 'x': [1.0, 0.0, -1.0, None]})
    (root / 'train.csv').write_text(first.format(delimiter) + states.to_csv(index=False, sep=delimiter, decimal=','))
    dataset = load('table', 'train', str(root))
    assert (named(dataset), named(dataset, 'ignore')) == ([['x'], [], [], []], [[], [], ['x'], ['x']])
    (root / 'train.csv').write_text(first.format(delimiter) + f'image{delimiter}x\na.png{delimiter}2\n')
    fails(root, f'line {3 if first else 2}', "'x' is '2'")


def test_load_table_keeps_other_delimiters_within_fields(root):
    (root / 'train.csv').write_text('image,labels\na.png,cat;dog\nb.png,"bird;cat"\n')
    assert named(load('table', 'train', str(root))) == [['cat', 'dog'], ['bird', 'cat']]
    (root / 'train.csv').write_text('photo;1,labels\na.png,cat\n')
    assert named(load('table', 'train', str(root), image_column='photo;1')) == [['cat']]
    fails(root, 'no column image', 'photo;1, labels')


def test_load_table_interprets_minus_one_and_blank(root):
    (root / 'train.csv').write_text('image,x,y\na.png,1,-1\nb.png,,0\nc.png,-1.0,nan\n')
    for minus_one in ('unannotated', 'absent'):
        for blank in ('unannotated', 'absent'):
            dataset = load('table', 'train', str(root), minus_one=minus_one, blank=blank)
            first, second = minus_one == 'unannotated', blank == 'unannotated'
            assert named(dataset) == [['x'], [], []]
            assert named(dataset, 'ignore') == [['y'] * first, ['x'] * second, ['x'] * first + ['y'] * second]
    fails(root, "unknown data.minus_one 'missing'", 'unannotated', minus_one='missing')
    fails(root, "unknown data.blank '0'", 'absent', blank='0')


def test_load_table_reads_missing_keys_as_null(root):
    (root / 'train.jsonl').write_text('{"image": "a.png", "x": 1}\n{"y": 0, "image": "b.png"}\n')
    dataset = load('table', 'train', str(root))
    assert (named(dataset), named(dataset, 'ignore')) == ([['x'], []], [['y'], ['x']])
    assert named(load('table', 'train', str(root), blank='absent'), 'ignore') == [[], []]
    (root / 'train.jsonl').write_text('{"image": "a.png", "labels": ["x"]}\n{"image": "b.png"}\n')
    assert named(load('table', 'train', str(root))) == [['x'], []]
    (root / 'train.jsonl').write_text('{"image": "a.png", "labels": ["x"]}\n{"labels": ["x"]}\n')
    fails(root, 'line 2', "'image'")


ALIASES = [
    ('train', 'train', 'training', 'Train', 'TRAINING'),
    ('validation', 'validation', 'val', 'valid', 'dev', 'Val', 'VALID'),
    ('test', 'test', 'testing', 'eval', 'evaluation', 'Test'),
]


@pytest.mark.parametrize(('split', 'alias'), [(names[0], alias) for names in ALIASES for alias in names[1:]])
def test_load_table_accepts_split_names_of_datasets(root, split, alias):
    text = 'file_name,labels\na.png,cat\n'
    (root / f'{alias}.csv').write_text(text)
    assert named(load('table', split, str(root))) == [['cat']]
    path = root / 'all.jsonl'
    rows = [{'image': 'a.png', 'labels': ['cat'], 'split': alias}, {'image': 'b.png', 'labels': [], 'split': 'trane'}]
    write(path, rows[:1])
    assert named(load('table', split, str(path))) == [['cat']]
    write(path, rows)
    fails(path, 'line 2', "'trane'")
    (root / alias).mkdir()
    (root / alias / 'a.png').symlink_to(root / 'a.png')
    (root / alias / 'metadata.csv').write_text(text)
    assert named(load('folder', split, str(root))) == [['cat']]
    other = next(name for names in ALIASES if split in names for name in names if name != alias)
    (root / f'{other}.tsv').write_text('x')
    fails(root, 'remove one', alias, other, split=split)


def test_load_table_splits_single_table_by_is_valid(root):
    text = 'image,x,is_valid\na.png,1,False\nb.png,0,True\nc.png,1,False\n'
    (root / 'train.csv').write_text(text)
    for base in (root, root / 'train.csv'):
        assert load('table', 'train', str(base))['image_id'][:] == ['a.png', 'c.png']
        dataset = load('table', 'validation', str(base))
        assert dataset['image_id'][:] == ['b.png']
        assert notes(dataset) == ['splits: by the column is_valid', 'labels: 1 column (x); not labels: is_valid']
        fails(base, 'no row of test', 'is_valid', split='test')
    (root / 'train.csv').write_text(text.replace('True', ''))
    fails(root, 'line 3', 'is_valid')
    # In the table of one split, the column must not assign rows to another split.
    (root / 'train.csv').write_text(text)
    (root / 'val.csv').write_text('image,x,is_valid\nd.png,1,1\n')
    fails(root, 'train.csv: line 3', 'to validation', 'is_valid')
    (root / 'train.csv').write_text(text.replace('True', 'False'))
    assert len(load('table', 'train', str(root))) == 3 and len(load('table', 'val', str(root))) == 1
    (root / 'val.csv').write_text('image,x,split\nd.png,1,train\n')
    (root / 'train.csv').write_text('image,x,split\na.png,1,train\n')
    fails(root, 'val.csv: line 2', 'to train', "'split'")


@pytest.mark.parametrize('column', ['Split', 'SPLIT', 'subset', 'Usage', 'partition'])
def test_load_table_finds_other_split_columns(root, column):
    path = root / 'all.csv'
    text = f'image,x,{column}\na.png,1,Training\nb.png,0,PublicTest\n'
    path.write_text(text.replace('PublicTest', 'valid'))
    assert load('table', 'validation', str(path))['image_id'][:] == ['b.png']
    assert load('table', 'train', str(path))['image_id'][:] == ['a.png']
    path.write_text(text)  # unknown names of splits
    if column.lower() == 'split':
        fails(path, 'line 3', "'PublicTest'")
    else:
        assert label_names(load('table', 'train', str(path))) == ['x'] and len(load('table', 'train', str(path))) == 2


def test_load_table_splits_only_table_of_folder(root):
    write(root / 'train.csv', lists(split=['train', 'val', 'val', 'test']))
    assert [len(load('table', split, str(root))) for split in ('train', 'validation', 'test')] == [1, 2, 1]
    assert label_names(load('table', 'test', str(root))) == ['bird', 'cat', 'dog']


@pytest.mark.parametrize('suffix', ['csv', 'jsonl', 'parquet'])
def test_load_folder_reads_metadata_above_splits(folder, tmp_path, suffix):
    rows = []
    for name, split in zip(IMAGES, ('train', 'Valid', 'test', 'train'), strict=True):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / name).symlink_to(folder / name)
        rows.append({'file_name': f'{split}/{name}', 'labels': [f'of_{name[0]}']})
    write(tmp_path / f'metadata.{suffix}', rows)
    expected = {'train': [['of_a'], ['of_d']], 'validation': [['of_b']], 'test': [['of_c']]}
    for name in ('folder', 'hub'):
        for split, labels in expected.items():
            dataset = load(name, split, str(tmp_path))
            assert label_names(dataset) == ['of_a', 'of_b', 'of_c', 'of_d'] and named(dataset) == labels
            assert 'splits: by the folders of the images' in notes(dataset)
    # `datasets` assigns the same images to splits by its own rules, which expect lower case.
    (tmp_path / 'Valid').rename(tmp_path / 'valid')
    theirs = datasets.load_dataset('imagefolder', data_dir=str(tmp_path), drop_metadata=True, drop_labels=True)
    assert {split: len(part) for split, part in theirs.items()} == {s: len(labels) for s, labels in expected.items()}
    (tmp_path / 'a.png').symlink_to(folder / 'a.png')
    write(tmp_path / f'metadata.{suffix}', [*rows, {'file_name': 'a.png', 'labels': []}])
    fails(tmp_path, "'a.png' is not in the folder of a split", name='folder')


def test_load_table_splits_by_image_folders(folder, tmp_path):
    for number, name in enumerate(IMAGES):
        (tmp_path / 'images' / f'{("train", "val")[number % 2]}2017').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'images' / f'{("train", "val")[number % 2]}2017' / name).symlink_to(folder / name)
    names = [f'images/{("train", "val")[number % 2]}2017/{name}' for number, name in enumerate(IMAGES)]
    path = write(tmp_path / 'all.csv', [{'image': name, 'x': 1} for name in names])
    assert load('table', 'train', str(path))['image_id'][:] == names[::2]
    assert load('table', 'validation', str(path))['image_id'][:] == names[1::2]
    write(path, [{'image': names[1], 'x': 1}])  # a single folder does not separate splits
    assert len(load('table', 'train', str(path))) == 1


def test_load_table_reads_many_columns_in_seconds(tmp_path):
    """Looking up each of 600 x 2,000 cells by the name of its column would be slow."""
    generator = np.random.default_rng(0)
    states = generator.integers(-1, 2, (2_000, 600))
    frame = pd.DataFrame(states, columns=[f'label {k}' for k in range(600)])
    frame.insert(0, 'image', [f'{number}.jpg' for number in range(2_000)])
    for name in frame['image']:
        (tmp_path / name).touch()
    frame.to_csv(tmp_path / 'train.csv', index=False)
    started = time.process_time()
    dataset = load('table', 'train', str(tmp_path))
    assert time.process_time() - started < 5
    for column, value in (('labels', 1), ('ignore', -1)):
        assert dataset[column][:] == [np.flatnonzero(row == value).tolist() for row in states]


def test_load_table_caches_content(root, monkeypatch):
    reads = []
    monkeypatch.setattr(
        table, 'read_table', lambda path, names, read=table.read_table: reads.append(path.name) or read(path, names)
    )
    write(root / 'train.csv', lists())
    write(root / 'val.csv', lists())
    assert named(load('table', 'train', str(root))) == named(load('table', 'train', str(root))) == list(LABELS)
    assert reads == ['train.csv', 'val.csv']
    write(root / 'val.csv', lists(labels=[['ant']] * 4))
    assert label_names(load('table', 'train', str(root))) == ['ant', 'bird', 'cat', 'dog'] and len(reads) == 4
    load('table', 'train', str(root), label_delimiter=';')
    assert len(reads) == 6


def test_load_table_exports_to_timm(root, tmp_path_factory):
    write(root / 'train.csv', lists())
    dataset = load('table', 'train', str(root))
    exported = tmp_path_factory.mktemp('exported')
    dataset.to_parquet(exported / 'train.parquet')
    theirs = timm.data.create_dataset(f'hfds/{exported}', None, split='train', target_key='labels')
    assert theirs.reader.class_to_idx == {'bird': 0, 'cat': 1, 'dog': 2}
    assert [target for _, target in theirs] == dataset['labels'][:]
    encode = timm.data.MultiLabelTarget(3, dense=theirs.reader.dense_target)  # as timm's train.py does
    assert [encode(target).nonzero().flatten().tolist() for _, target in theirs] == dataset['labels'][:]
    assert [image.getpixel((0, 0))[0] for image, _ in theirs] == [0, 40, 80, 120]


name = st.text(st.characters(codec='utf-8', exclude_categories=('Cc', 'Zl', 'Zp')), min_size=1, max_size=6)
label = name.map(str.strip).filter(
    lambda text: text and '|' not in text and text[0] not in '[({"\'' and text not in label_cells.MISSING
)
quick = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize('suffix', FORMATS)
@quick
@given(data=st.data())
def test_load_table_reads_written_tables(folder, suffix, data):
    rows = data.draw(st.lists(st.lists(label, unique=True, max_size=4), min_size=1, max_size=4).filter(any))
    names = IMAGES[: len(rows)]
    for other in folder.glob('train.*'):
        other.unlink()
    write(folder / f'train.{suffix}', [{'image': n, 'labels': r} for n, r in zip(names, rows, strict=True)])
    dataset = load('table', 'train', str(folder), label_delimiter='|')
    assert [set(row) for row in named(dataset)] == [set(row) for row in rows]
    states = [[data.draw(st.sampled_from([1, 0, -1])) for _ in names] for _ in range(3)]
    columns = dict(zip(data.draw(st.lists(label, min_size=3, max_size=3, unique=True)), states, strict=True))
    if not columns.keys() & {'image', 'labels', *NOT_LABELS}:
        rows = [{'image': n, **{k: v[i] for k, v in columns.items()}} for i, n in enumerate(names)]
        write(folder / f'train.{suffix}', rows)
        dataset = load('table', 'train', str(folder))
        present, ignore = named(dataset), named(dataset, 'ignore')
        for row in range(len(names)):
            assert present[row] == [k for k, v in columns.items() if v[row] == 1]
            assert ignore[row] == [k for k, v in columns.items() if v[row] == -1]


def mutated(data, whole):
    """Returns bytes with a few removed, doubled, changed or inserted."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 12)))
        piece = data.draw(st.sampled_from([b'', bytes(content[start:end]) * 2]) | st.binary(max_size=6))
        content[start:end] = piece
    return bytes(content)


@pytest.mark.parametrize('suffix', FORMATS)
@settings(quick, max_examples=100)
@given(data=st.data())
def test_load_table_reads_or_refuses_any_bytes(folder, suffix, data):
    for other in folder.glob('train.*'):
        other.unlink()
    path = folder / f'train.{suffix}'
    with_lists, with_noise = data.draw(st.booleans()), data.draw(st.integers(0, 3)) == 0
    columns = [{'path': n, 'x': v, 'y': 1} for n, v in zip(IMAGES, (1, 0, -1, None), strict=True)]
    whole = write(path, lists(ignore=[['ant'], [], [], []]) if with_lists else columns).read_bytes()
    path.write_bytes(data.draw(st.binary(max_size=40)) if with_noise else mutated(data, whole))
    try:
        dataset = load('table', 'train', str(folder))
    except InputError as e:
        assert len(str(e).splitlines()) == 1 and path.name in str(e)
    else:
        assert len(dataset) and all(set(row) <= set(label_names(dataset)) for row in named(dataset))


def test_load_table_reads_many_rows_in_seconds(tmp_path):
    generator = random.Random(0)
    text = io.StringIO()
    for number in range(5_000):
        (tmp_path / f'{number}.jpg').touch()
        text.write(f'{number}.jpg,{"|".join(generator.sample("abcdefghij", 3))}\n')
    (tmp_path / 'train.csv').write_text('image,labels\n' + text.getvalue())
    assert len(load('table', 'train', str(tmp_path))) == 5_000
