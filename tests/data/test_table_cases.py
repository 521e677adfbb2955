"""Tables of real users, with the outcome that their README states."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msff_timm.data import label_names, load, notes
from msff_timm.errors import InputError
from msff_timm_cli import commands as cli

PLANTS = [['scab', 'rust'], ['scab'], ['rust', 'complex'], [], ['complex', 'scab', 'rust'], ['rust']]
PLANTS += [['scab', 'complex'], ['complex']]
ANIMALS = [[], ['cat'], ['dog'], ['cat', 'dog'], [], ['cat'], ['dog'], ['cat', 'dog']]


@pytest.fixture(autouse=True, scope='module')
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
        yield


def rows(name, split, root, **settings):
    """Returns the labels of each row, and the data set."""
    dataset = load(name, split, str(root), **settings)
    names = label_names(dataset)
    return [sorted(names[label] for label in row) for row in dataset['labels']], dataset


def equal(found, expected):
    return found == [sorted(row) for row in expected]


@pytest.mark.parametrize('name', ['crowd', 'fold'])
def test_load_table_skips_columns_that_are_not_labels(cases, name, tmp_path, capsys):
    root = cases / 'columns_that_are_no_labels' / name
    found, dataset = rows('table', 'train', root)
    assert label_names(dataset) == ['cat', 'dog'] and equal(found, ANIMALS)
    others = {'crowd': 'id, url, width, height', 'fold': 'fold'}[name]
    line = f'labels: 2 columns (cat, dog); not labels: {others}'
    assert notes(dataset) == [line]
    assert cli.main(['data', 'table', '--root', str(root), '-o', str(tmp_path)]) == 0
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(('name', 'labels'), [('is_valid', ANIMALS), ('fastai', PLANTS)])
def test_load_table_splits_by_is_valid(cases, name, labels):
    settings = {'image_column': 'fname'} if name == 'fastai' else {}
    root = cases / 'columns_that_are_no_labels' / name
    for base in (root, root / 'train.csv'):
        for split, expected in (('train', labels[:6]), ('validation', labels[6:])):
            found, dataset = rows('table', split, base, **settings)
            assert equal(found, expected) and 'is_valid' not in label_names(dataset)
            assert 'splits: by the column is_valid' in notes(dataset)


def test_load_table_accepts_is_valid_in_tables_of_one_split(cases):
    root = cases / 'columns_that_are_no_labels' / 'train_is_valid'
    for split, count in (('train', 16), ('validation', 8)):
        found, dataset = rows('table', split, root)
        assert len(found) == count and label_names(dataset) == ['cat', 'dog']


@pytest.mark.parametrize('name', ['json', 'numpy', 'parquetrepr', 'pyrepr', 'set', 'tuple'])
def test_load_table_reads_lists_in_text(cases, name):
    found, dataset = rows('table', 'train', cases / 'labels_as_lists' / name)
    assert label_names(dataset) == ['complex', 'rust', 'scab'] and equal(found, PLANTS)


def test_load_table_needs_names_for_vectors(cases):
    root = cases / 'labels_as_lists' / 'onehotrepr'
    with pytest.raises(InputError, match='data.label_names'):
        rows('table', 'train', root)
    found, _ = rows('table', 'train', root, label_names=['complex', 'scab', 'rust'])
    assert equal(found[:4], [['scab', 'rust'], ['rust'], ['complex', 'scab'], []])


@pytest.mark.parametrize('name', ['comma', 'commaspace', 'hash', 'pipe', 'semicolon', 'slash', 'space'])
def test_load_table_finds_delimiter(cases, name):
    found, dataset = rows('table', 'train', cases / 'labels_delimited' / name)
    assert label_names(dataset) == ['complex', 'rust', 'scab'] and equal(found, PLANTS)
    (line,) = notes(dataset)
    assert 'delimited by' in line and 'data.label_delimiter' in line


@pytest.mark.parametrize('reader', ['folder', 'hub'])
@pytest.mark.parametrize('name', ['root', 'rootcsv'])
def test_load_reads_metadata_above_splits(cases, name, reader):
    root = cases / 'metadata_above_splits' / name
    expected = {'train': PLANTS[:6], 'validation': PLANTS[6:], 'test': PLANTS[:2]}
    for split, labels in expected.items():
        found, dataset = rows(reader, split, root)
        assert label_names(dataset) == ['complex', 'rust', 'scab'] and equal(found, labels)
        assert all(f'/{split}/' in image['path'] for image in dataset.data['image'].to_pylist())


@pytest.mark.parametrize('suffix', ['csv', 'jsonl', 'parquet'])
@pytest.mark.parametrize('reader', ['folder', 'hub', 'table'])
def test_load_reads_metadata_above_splits_in_each_format(tmp_path, reader, suffix):
    images = {'train/a.png': 'x', 'train/b.png': 'x|y', 'val/a.png': 'y'}
    for number, name in enumerate(images):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (4, 4), (number, 0, 0)).save(tmp_path / name)
    path = tmp_path / f'metadata.{suffix}'
    columns = {'file_name': list(images), 'labels': list(images.values())}
    if suffix == 'parquet':
        pq.write_table(pa.table(columns), path)
    else:
        cells = [columns, *zip(*columns.values(), strict=True)]
        lines = [','.join(row) for row in cells] if suffix == 'csv' else [
            json.dumps(dict(zip(columns, row, strict=True))) for row in cells[1:]
        ]  # fmt: skip
        path.write_text('\n'.join(lines))
    for split, labels in (('train', [['x'], ['x', 'y']]), ('validation', [['y']])):
        found, dataset = rows(reader, split, path if reader == 'table' else tmp_path)
        assert found == labels and 'splits: by the folders of the images' in notes(dataset)


@pytest.mark.parametrize(
    ('name', 'settings', 'absent'),
    [
        ('celeba', {'image_column': 'image_id'}, {'minus_one': 'absent'}),
        ('blank', {}, {'blank': 'absent'}),
    ],
)
def test_load_table_reads_minus_one_and_blank_as_absent(cases, name, settings, absent):
    root = cases / 'minus_one_is_absent' / name
    for split in ('train', 'validation'):
        default, masked = rows('table', split, root, **settings)
        found, dataset = rows('table', split, root, **settings, **absent)
        assert found == default and not any(dataset['ignore'])
        assert [len(a) + len(b) for a, b in zip(masked['labels'], masked['ignore'], strict=True)] == [3] * len(found)


def test_load_table_reads_minus_one_and_blank_of_chexpert_as_unannotated(cases):
    labels = ['No Finding', 'Edema', 'Pleural Effusion']
    found, dataset = rows(
        'table', 'train', cases / 'minus_one_is_absent' / 'chexpert', image_column='Path', label_columns=labels
    )
    assert found == [['No Finding'], ['Pleural Effusion'], ['Pleural Effusion']]
    assert dataset['ignore'][:] == [[1, 2], [0, 1], [0]]


OTHERS = {'Val': 'validation', 'valid': 'validation', 'dev': 'validation', 'eval': 'test', 'training': 'test'}


@pytest.mark.parametrize(
    ('name', 'other'),
    [(f'{kind}_{name}', OTHERS[name]) for kind in ('files', 'column') for name in OTHERS]
    + [('folder_valid', 'validation')],
)
def test_load_accepts_split_names(cases, name, other):
    root = cases / 'split_names' / name
    reader = 'folder' if name.startswith('folder') else 'table'
    for split, labels in (('train', PLANTS[:6]), (other, PLANTS[6:])):
        found, _ = rows(reader, split, root / 'all.csv' if name.startswith('column') else root)
        assert equal(found, labels)
