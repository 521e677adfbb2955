import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from datasets.distributed import split_dataset_by_node
from hub_server import HubServer
from PIL import Image as PilImage

from msff_timm.data import hub, label_names, load
from msff_timm.errors import InputError

ROOT = Path(__file__).parents[2]
NAMES = ['cat', 'dog', 'fish']
LABELS = [[0], [0, 2], [], [1], [2], [1, 2]]


@pytest.fixture(autouse=True, scope='module')
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
        yield


def images(count):
    return [PilImage.fromarray(np.full((4, 5, 3), 10 * number, np.uint8)) for number in range(count)]


def write(folder, columns, schema=None, split='train', shards=1):
    """Writes Parquet files that contain the images."""
    count = len(next(iter(columns.values())))
    columns = {'image': images(count), **columns}
    features = Features({'image': Image(), **schema}) if schema else None
    dataset = Dataset.from_dict(columns, features=features)
    if features is None:
        dataset = dataset.cast_column('image', Image())
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = dataset.shard(shards, shard, contiguous=True)
        part.to_parquet(folder / f'{split}-{shard:05d}-of-{shards:05d}.parquet')
    return folder


def named(dataset, column='labels'):
    names = label_names(dataset)
    return [[names[label] for label in row[column]] for row in dataset]


def fails(root, *parts, split='train', **arguments):
    with pytest.raises(InputError) as caught:
        dataset = load('hub', split, str(root), **arguments)
        next(iter(dataset))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """A Hub server with data sets, and a home folder for its clients."""
    root = tmp_path_factory.mktemp('hub')
    schema = {'labels': List(ClassLabel(names=NAMES)), 'image_id': Value('string')}
    columns = {'labels': LABELS, 'image_id': [f'p{number}' for number in range(len(LABELS))]}
    write(root / 'datasets' / 'org' / 'two', columns, schema, shards=2)
    write(root / 'datasets' / 'org' / 'two', columns, schema, split='test')
    write(root / 'datasets' / 'org' / 'closed', columns, schema)
    (root / 'datasets' / 'org' / 'script').mkdir()
    (root / 'datasets' / 'org' / 'script' / 'script.py').write_text('raise SystemExit("ran")')
    (root / 'models' / 'org' / 'net').mkdir(parents=True)
    (root / 'models' / 'org' / 'net' / 'config.json').write_text('{"answer": 42}')
    with HubServer(root) as server:
        server.gated.add('org/closed')
        yield server, tmp_path_factory.mktemp('home')


def client(code, environment, **more):
    """Runs code in a new process, as the address of the Hub is read at import; returns the JSON that it prints."""
    prelude = """
        import json, sys
        from msff_timm.data import load
        from msff_timm.errors import InputError

        def error(*arguments, **settings):
            try:
                load('hub', *arguments, **settings)
            except InputError as e:
                return str(e)
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if not k.startswith('HF_')}, **environment, **more},
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_load_hub_fetches_and_streams(served):
    server, home = served
    got = client(
        """
        from datasets.distributed import split_dataset_by_node
        from huggingface_hub import hf_hub_download, snapshot_download

        dataset = load('hub', 'train', 'org/two')
        stream = load('hub', 'train', 'org/two', streaming=True)
        nodes = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
        print(json.dumps({
            'labels': dataset['labels'][:], 'ids': dataset['image_id'][:],
            'pixels': [row['image'].getpixel((0, 0))[0] for row in dataset],
            'stream': [[row['labels'], row['image_id'], row['image'].getpixel((0, 0))[0]] for row in stream],
            'names': stream.features['labels'].feature.names, 'shards': stream.num_shards,
            'nodes': [[row['image_id'] for row in node] for node in nodes],
            'revision': len(load('hub', 'test', 'org/two@main')),
            'model': json.load(open(hf_hub_download('org/net', 'config.json'))),
            'snapshot': len(load('hub', 'train', snapshot_download('org/two', repo_type='dataset'))),
            'errors': [
                error('train', 'org/tow'), error('train', 'org/closed'), error('validation', 'org/two'),
                error('train', 'org/script'), error('train', 'org/two@old'), error('train', 'org/tow', streaming=True),
            ],
        }))
        """,
        server.environment(home),
    )
    ids = [f'p{number}' for number in range(len(LABELS))]
    pixels = [10 * number for number in range(len(LABELS))]
    assert (got['labels'], got['ids'], got['pixels']) == (LABELS, ids, pixels)
    assert got['stream'] == [list(row) for row in zip(LABELS, ids, pixels, strict=True)]
    assert (got['names'], got['shards'], got['revision']) == (NAMES, 2, len(LABELS))
    assert got['nodes'] == [ids[:3], ids[3:]]
    assert (got['model'], got['snapshot']) == ({'answer': 42}, len(LABELS))
    assert sum(count for (method, path), count in server.requests.items() if path.endswith('.parquet')) > 2
    assert all(len(message.splitlines()) == 1 for message in got['errors'])
    missing, closed, split, script, revision, stream = got['errors']
    assert 'org/tow' in missing and server.url in missing and 'data.root' in missing and 'org/tow' in stream
    assert 'gated' in closed and 'access' in closed
    assert 'unknown split' in split and 'test, train' in split
    assert 'never run' in script and 'Parquet' in script
    assert 'old' in revision


def test_load_hub_offline_reads_fetched_data(served):
    server, home = served
    before = server.requests.total()
    code = """
        dataset = load('hub', 'train', 'org/two')
        stream = load('hub', 'train', 'org/two', streaming=True)
        streamed = [row['labels'] for row in stream]
        print(json.dumps([dataset['labels'][:], streamed, error('train', 'org/closed')]))
    """
    labels, streamed, message = client(code, server.environment(home), HF_HUB_OFFLINE='1')
    assert labels == streamed == LABELS and server.requests.total() == before
    assert len(message.splitlines()) == 1 and 'org/closed' in message and 'HF_HUB_OFFLINE' in message


def test_load_hub_reports_unreachable_hub(served, tmp_path):
    server, _ = served
    environment = {**server.environment(tmp_path), 'HF_ENDPOINT': 'http://localhost:9'}
    # The waits between retries add up to 23 seconds.
    code = "import time; time.sleep = lambda seconds: None; print(json.dumps(error('train', 'org/two')))"
    message = client(code, environment)
    assert len(message.splitlines()) == 1
    assert 'org/two' in message and 'http://localhost:9' in message and 'network' in message


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('columns', 'schema', 'labels', 'ignore'),
    [
        ({'label': [0, 2, 1]}, {'label': ClassLabel(names=NAMES)}, [['cat'], ['fish'], ['dog']], [[]] * 3),
        (
            {'labels': [['dog', 'cat'], [], ['fish']], 'ignore': [[], ['cat', 'dog'], []]},
            {'labels': List(Value('string')), 'ignore': List(Value('string'))},
            [['cat', 'dog'], [], ['fish']],
            [[], ['cat', 'dog'], []],
        ),
        (
            {'labels': ['dog| cat', '', None], 'ignore': ['fish', None, '']},
            {'labels': Value('string'), 'ignore': Value('string')},
            [['cat', 'dog'], [], []],
            [['fish'], [], []],
        ),
        (
            {'cat': [1, 0, -1], 'dog': [True, False, None], 'fish': [1.0, 0.0, float('nan')]},
            {'cat': Value('int8'), 'dog': Value('bool'), 'fish': Value('float32')},
            [['cat', 'dog', 'fish'], [], []],
            [[], [], ['cat', 'dog', 'fish']],
        ),
    ],
    ids=['one class', 'lists of text', 'text', 'columns'],
)
def test_load_hub_reads_forms_of_labels(tmp_path, columns, schema, labels, ignore, streaming):
    write(tmp_path, columns, schema)
    for names in (NAMES, NAMES[::-1]):
        dataset = load('hub', 'train', str(tmp_path), label_names=names, streaming=streaming)
        assert label_names(dataset) == names and list(dataset.features) == ['image', *hub.OURS]
        assert [sorted(row) for row in named(dataset)] == labels
        assert [sorted(row) for row in named(dataset, 'ignore')] == ignore
        rows = list(dataset)
        assert all(row['labels'] == sorted(row['labels']) and row['area'] == [] for row in rows)
        assert [row['image_id'] for row in rows] == ['train-0', 'train-1', 'train-2']
        assert [row['image'].getpixel((0, 0))[0] for row in rows] == [0, 10, 20]


def test_load_hub_numbers_text_labels_over_all_splits(tmp_path):
    write(tmp_path, {'labels': [['dog'], ['cat']]})
    write(tmp_path, {'labels': [['ant'], []]}, {'labels': List(Value('string'))}, split='validation')
    assert label_names(load('hub', 'train', str(tmp_path))) == ['ant', 'cat', 'dog']
    assert named(load('hub', 'val', str(tmp_path))) == [['ant'], []]
    fails(tmp_path, 'data.label_names', streaming=True)


def test_load_hub_finds_split_named_val(tmp_path):
    write(tmp_path / 'data', {'x': [1]})
    configs = '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: val\n    path: data/*\n---\n'
    (tmp_path / 'README.md').write_text(configs)
    assert named(load('hub', 'validation', str(tmp_path))) == [['x']]
    fails(tmp_path, "unknown split 'train'", 'val')


def test_load_hub_uses_named_columns(tmp_path):
    columns = {'photo': images(2), 'tags': ['cat;dog', ''], 'note': ['a', 'b'], 'x': [0, 1], 'id': [7, 9]}
    text, number = Value('string'), Value('int64')
    schema = {'photo': Image(), 'tags': text, 'note': text, 'x': number, 'id': number}
    write(tmp_path, columns, schema)
    arguments = {'image_column': 'photo', 'label_columns': ['tags'], 'label_delimiter': ';'}
    dataset = load('hub', 'train', str(tmp_path), **arguments)
    assert named(dataset) == [['cat', 'dog'], []] and dataset['image_id'][:] == ['7', '9']
    assert named(load('hub', 'train', str(tmp_path), label_columns=['x'])) == [[], ['x']]
    fails(tmp_path, "'photo'", 'data.label_columns')
    fails(tmp_path, "unknown image column 'phot'", 'did you mean photo', image_column='phot')
    fails(tmp_path, "'x' does not hold images", image_column='x', label_columns=['tags'])
    fails(tmp_path, "unknown label column 'tag'", label_columns=['tag'])
    fails(tmp_path, "unknown label column 'x'", label_columns=['x'], label_names=['y'])


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('columns', 'schema', 'part'),
    [
        ({'labels': [['cat'], ['cow']]}, {'labels': List(Value('string'))}, "row 1: unknown label 'cow'"),
        (
            {'labels': [['cat'], ['dog', 'dog']]},
            {'labels': List(Value('string'))},
            "'labels' has the label 'dog'",
        ),
        ({'label': [0, -1]}, {'label': ClassLabel(names=NAMES)}, "row 1: 'label' is -1"),
        ({'labels': [0, 1]}, {'labels': Value('int64')}, "row 0: 'labels' is 0"),
        ({'cat': [1, 2], 'dog': [0, 0], 'fish': [0, 0]}, None, "row 1: 'cat' is 2"),
    ],
    ids=['unknown', 'twice', 'no class', 'a number', 'no state'],
)
def test_load_hub_refuses_invalid_rows(tmp_path, columns, schema, part, streaming):
    write(tmp_path, columns, schema)
    with pytest.raises(InputError) as caught:
        list(load('hub', 'train', str(tmp_path), label_names=NAMES, streaming=streaming))
    assert part in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_load_hub_refuses_invalid_roots(tmp_path):
    with pytest.raises(InputError, match='hub needs data.root'):
        load('hub', 'train')
    fails(tmp_path, 'cannot be read as a data set')
    fails(tmp_path / 'absent', 'neither a folder nor the id')
    (tmp_path / 'train.parquet').write_bytes(b'PAR1 not really')
    fails(tmp_path, 'cannot be read as a data set')
    fails(tmp_path / 'train.parquet', 'neither a folder nor the id')


def test_load_hub_finds_images_without_metadata_of_datasets(tmp_path):
    write(tmp_path, {'x': [1, 0]})
    path = next(tmp_path.glob('*.parquet'))
    table = pq.read_table(path).replace_schema_metadata(None)
    pq.write_table(table, path)
    assert [row['image'].getpixel((0, 0))[0] for row in load('hub', 'train', str(tmp_path))] == [0, 10]
    binary = pa.array([row['bytes'] for row in table['image'].to_pylist()])
    pq.write_table(pa.table({'photo': binary, 'x': [0, 1]}), path)
    for streaming in (False, True):
        dataset = load('hub', 'train', str(tmp_path), streaming=streaming)
        assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [0, 10]


def test_load_hub_streams_uneven_shards_to_nodes(tmp_path):
    write(tmp_path, {'labels': LABELS}, {'labels': List(ClassLabel(names=NAMES))}, shards=3)
    stream = load('hub', 'train', str(tmp_path), streaming=True)
    assert stream.num_shards == 3
    rows = [row['image'].getpixel((0, 0))[0] for rank in range(2) for row in split_dataset_by_node(stream, rank, 2)]
    assert sorted(rows) == [10 * number for number in range(len(LABELS))]


def test_load_hub_does_not_decode_images(tmp_path, monkeypatch):
    write(tmp_path, {'labels': LABELS}, {'labels': List(ClassLabel(names=NAMES))})
    monkeypatch.setattr(Image, 'decode_example', lambda *_, **__: pytest.fail('decoded'))
    dataset = load('hub', 'train', str(tmp_path))
    stream = load('hub', 'train', str(tmp_path), streaming=True).cast_column('image', Image(decode=False))
    assert dataset['labels'][:] == [row['labels'] for row in stream] == LABELS


def configure(folder, names, splits=('train',)):
    """Adds one configuration per folder to a data set."""
    lines = [
        f'- config_name: {name}\n  data_files:\n'
        + ''.join(f'  - split: {split}\n    path: {name}/{split}-*.parquet\n' for split in splits)
        for name in names
    ]
    (folder / 'README.md').write_text(f'---\nconfigs:\n{"".join(lines)}---\n')


@pytest.fixture(scope='module')
def fetched(tmp_path_factory):
    """Results of loading parts of data sets from a Hub server, the same offline, and the requested paths."""
    root = tmp_path_factory.mktemp('more')
    folder = root / 'datasets' / 'org'
    binary = {'cat': [1, 0], 'dog': [-1, 1], 'fold': [0, 1]}
    for split in ('train', 'valid', 'test'):
        write(folder / 'columns', binary, split=split)
        write(
            folder / 'text',
            {'labels': ['cat,dog', {'train': 'cat', 'valid': 'dog', 'test': 'cow'}[split]]},
            split=split,
        )
    for name in ('large', 'small'):
        for split in ('train', 'validation'):
            write(folder / 'configs' / name, {'x': [1, 0], name: [0, 1]}, split=split)
    configure(folder / 'configs', ['large', 'small'], ['train', 'validation'])
    for split in ('train', 'test'):
        (folder / 'own' / split).mkdir(parents=True)
        images(1)[0].save(folder / 'own' / split / 'a.png')
        (folder / 'own' / split / 'metadata.jsonl').write_text(json.dumps({'file_name': 'a.png', 'labels': [split]}))
    rows = []
    for split in ('train', 'validation', 'test'):
        (folder / 'above' / split).mkdir(parents=True)
        for number, image in enumerate(images(2)):
            image.save(folder / 'above' / split / f'{number}.png')
            rows.append({'file_name': f'{split}/{number}.png', 'labels': [f'{split} {number}']})
    (folder / 'above' / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    code = """
        from msff_timm.data import label_names, notes

        def show(name, split, **settings):
            dataset = load('hub', split, name, **settings)
            names = label_names(dataset)
            rows = [[[names[k] for k in row] for row in dataset[column]] for column in ('labels', 'ignore')]
            return [names, *rows, [row['image'].getpixel((0, 0))[0] for row in dataset], notes(dataset)]

        print(json.dumps({
            'columns': show('org/columns', 'validation', minus_one='absent'),
            'names given': show('org/text', 'test', label_names=['cat', 'cow', 'dog']),
            'names found': show('org/text', 'train'),
            'above': show('org/above', 'test'),
            'small': show('org/configs', 'validation', config_name='small'),
            'own': show('org/own', 'test', label_names=['test', 'train']),
            'error': error('train', 'org/configs'),
            'misspelt': error('train', 'org/configs', config_name='smal'),
            'in root': error('train', 'org/configs:small@main'),
        }))
    """
    with HubServer(root) as server:
        environment = server.environment(tmp_path_factory.mktemp('home'))
        online = client(code, environment)
        before = server.requests.total()
        offline = client(code, environment, HF_HUB_OFFLINE='1')
        assert server.requests.total() == before
        gets = {path for method, path in server.requests if method == 'GET'}
    return online, offline, gets


def test_load_hub_fetches_only_the_split(fetched):
    found, _, gets = fetched
    note = 'labels: 2 columns (cat, dog); not labels: fold'
    assert found['columns'] == [['cat', 'dog'], [['cat'], ['dog']], [[], []], [0, 10], [note]]
    parquet = {path.partition('/resolve/')[2].partition('/')[2] for path in gets if '/org/columns/resolve/' in path}
    assert {name for name in parquet if name.endswith('.parquet')} == {'valid-00000-of-00001.parquet'}
    names = ['cat', 'cow', 'dog']
    assert found['names given'][:3] == [names, [['cat', 'dog'], ['cow']], [[], []]]
    assert found['names found'][:3] == [names, [['cat', 'dog'], ['cat']], [[], []]]
    assert 'names found in all splits' in found['names found'][4][0]
    assert "delimited by ','" in found['names found'][4][0]


def test_load_hub_reads_metadata_above_splits(fetched):
    found, _, gets = fetched
    names = sorted(f'{split} {number}' for split in ('train', 'validation', 'test') for number in range(2))
    assert found['above'][:4] == [names, [['test 0'], ['test 1']], [[], []], [0, 10]]
    images = {path.rpartition('/org/above/')[2] for path in gets if '/org/above/' in path and path.endswith('.png')}
    assert {'/'.join(path.split('/')[-2:]) for path in images} == {'test/0.png', 'test/1.png'}


def test_load_hub_offline_reads_data_fetched_in_parts(fetched):
    online, offline, _ = fetched
    errors = dict.fromkeys(('error', 'misspelt'))
    assert {**offline, **errors} == {**online, **errors}


def test_load_hub_lists_and_selects_configurations(fetched):
    found, _, gets = fetched
    assert found['error'] == (
        'org/configs: has several configurations (large, small): set data.config_name to one of them.'
    )
    assert found['misspelt'] == "org/configs: unknown data.config_name 'smal': did you mean small?"
    assert found['in root'] == (
        'org/configs@main:small: set data.root to org/configs@main and data.config_name to small.'
    )
    assert found['small'][:2] == [['x', 'small'], [['x'], ['small']]]
    fetched_files = {
        path.partition('/resolve/')[2].partition('/')[2] for path in gets if '/org/configs/resolve/' in path
    }
    assert {name for name in fetched_files if name.endswith('.parquet')} == {'small/validation-00000-of-00001.parquet'}


def test_load_hub_fetches_images_of_one_split_with_its_metadata(fetched):
    found, _, gets = fetched
    assert found['own'][:2] == [['test', 'train'], [['test']]]
    images = {path.rpartition('/org/own/')[2] for path in gets if '/org/own/' in path and path.endswith('.png')}
    assert {'/'.join(path.split('/')[-2:]) for path in images} == {'test/a.png'}


def test_load_hub_lists_configurations_of_folder(tmp_path):
    for name in ('large', 'small'):
        write(tmp_path / name, {name: [1, 0]})
    configure(tmp_path, ['large', 'small'])
    fails(tmp_path, 'several configurations (large, small)', 'set data.config_name')
    assert named(load('hub', 'train', str(tmp_path), config_name='large')) == [['large'], []]
    with pytest.raises(InputError, match='config_name is large: table has no configurations'):
        load('table', 'train', str(tmp_path), config_name='large')


@pytest.mark.parametrize('streaming', [False, True])
def test_load_hub_interprets_minus_one_and_blank(tmp_path, streaming):
    schema = {'cat': Value('int8'), 'dog': Value('float32')}
    write(tmp_path, {'cat': [1, 0, -1], 'dog': [-1.0, None, float('nan')]}, schema)
    for minus_one in ('unannotated', 'absent'):
        for blank in ('unannotated', 'absent'):
            dataset = load('hub', 'train', str(tmp_path), minus_one=minus_one, blank=blank, streaming=streaming)
            of_minus_one = minus_one == 'unannotated'
            expected = [['dog'] * of_minus_one, ['dog'] * (blank == 'unannotated')]
            expected.append(['cat'] * of_minus_one + ['dog'] * (blank == 'unannotated'))
            assert named(dataset, 'ignore') == expected
            assert named(dataset) == [['cat'], [], []]
    fails(tmp_path, "unknown data.blank 'none'", blank='none')


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('cells', 'settings'),
    [
        (["['cat', 'dog']", '["fish"]', '[]', "{'dog'}"], {}),
        (['[cat dog]', '[fish]', '[]', '[dog]'], {}),
        (['cat,dog', 'fish', '', 'dog'], {}),
        (['cat dog', 'fish', 'nan', 'dog'], {}),
        (['cat_dog', 'fish', None, 'dog'], {'label_delimiter': '_'}),
        (['[1, 1, 0]', '[0, 0, 1]', '[0, 0, 0]', '[0, 1, 0]'], {}),
        ([[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]], {}),
    ],
    ids=['lists', 'lists without quotes', 'commas', 'spaces', 'given', 'vectors in text', 'vectors'],
)
def test_load_hub_reads_labels_in_text(tmp_path, cells, settings, streaming):
    schema = List(Value('int64')) if isinstance(cells[0], list) else Value('string')
    write(tmp_path, {'labels': cells}, {'labels': schema})
    is_stream_of_text = streaming and cells[0] == '[1, 1, 0]'
    if is_stream_of_text:
        return  # only all cells together show that they are vectors
    dataset = load('hub', 'train', str(tmp_path), label_names=NAMES, streaming=streaming, **settings)
    assert [sorted(row) for row in named(dataset)] == [['cat', 'dog'], ['fish'], [], ['dog']]


def test_load_hub_refuses_vectors_without_names(tmp_path):
    write(tmp_path, {'labels': [[1, 0], [1, 1]]}, {'labels': List(Value('int64'))})
    fails(tmp_path, "'labels' holds vectors of 2 numbers", 'data.label_names')
    fails(tmp_path, "'labels' holds vectors of 2 numbers", label_names=NAMES)


def test_load_hub_refuses_ambiguous_text(tmp_path):
    write(tmp_path, {'labels': ['red apple', 'green apple', 'pear']}, {'labels': Value('string')})
    fails(tmp_path, "'labels': 'green apple' may be one label or several", 'data.label_delimiter')
    assert named(load('hub', 'train', str(tmp_path), label_delimiter='none'))[2] == ['pear']


@pytest.mark.parametrize(('existing', 'split'), [('dev', 'validation'), ('eval', 'test'), ('training', 'train')])
def test_load_hub_accepts_split_names_of_datasets(tmp_path, existing, split):
    write(tmp_path / 'data', {'x': [1]})
    configs = f'---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {existing}\n    path: data/*\n---\n'
    (tmp_path / 'README.md').write_text(configs)
    assert named(load('hub', split, str(tmp_path))) == named(load('hub', existing, str(tmp_path))) == [['x']]
    (tmp_path / 'README.md').write_text(
        '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: val\n    path: data/*\n'
        '  - split: dev\n    path: data/*\n---\n'
    )
    fails(tmp_path, 'both val and dev', split='validation')


def test_load_hub_refuses_folders_of_splits_as_labels(tmp_path):
    for split in ('train', 'test'):
        (tmp_path / split).mkdir()
        images(1)[0].save(tmp_path / split / '0.png')
    fails(tmp_path, 'has no labels', 'metadata.csv')
    (tmp_path / 'metadata.csv').write_text('file_name,labels\ntrain/0.png,cat\ntest/0.png,dog\n')
    assert named(load('hub', 'train', str(tmp_path))) == [['cat']]
    fails(tmp_path, 'metadata file above the splits', streaming=True)


def test_load_hub_reads_label_folders_as_datasets(tmp_path):
    for split, label in (('train', 'cat'), ('train', 'dog'), ('test', 'dog')):
        (tmp_path / split / label).mkdir(parents=True)
        images(1)[0].save(tmp_path / split / label / '0.png')
    theirs = datasets.load_dataset(str(tmp_path), split='test')
    ours = load('hub', 'test', str(tmp_path))
    assert label_names(ours) == theirs.features['label'].names
    assert ours['labels'][:] == [[label] for label in theirs['label']]


@pytest.mark.parametrize('folder', ['', 'data'])
@pytest.mark.parametrize('is_folder', [False, True])
def test_load_hub_finds_capitalised_splits(tmp_path, is_folder, folder):
    """`datasets` assigns all of them to training, or skips some."""
    for first in ('Train', 'train'):
        root = tmp_path / first
        for number, split in enumerate((first, 'Valid', 'TEST')):
            where = root / folder / split if is_folder else root / folder
            write(where, {'x': [number == 0], 'y': [number == 1]}, split='part' if is_folder else split)
        (root / 'Evaluation.md').write_text('')
        assert named(load('hub', 'train', str(root))) == [['x']]
        assert named(load('hub', 'validation', str(root))) == [['y']]
        assert named(load('hub', 'test', str(root))) == [[]]


def test_load_hub_finds_capitalised_image_folders(tmp_path):
    for split, label in (('Train', 'cat'), ('Train', 'dog'), ('Val', 'cat'), ('Val', 'dog'), ('Val', 'cow')):
        (tmp_path / split / label).mkdir(parents=True)
        images(1)[0].save(tmp_path / split / label / '0.png')
    assert sorted(named(load('hub', 'train', str(tmp_path)))) == [['cat'], ['dog']]
    dataset = load('hub', 'val', str(tmp_path))
    assert sorted(named(dataset)) == [['cat'], ['cow'], ['dog']] and label_names(dataset) == ['cat', 'cow', 'dog']


def test_load_hub_checks_sizes_of_readme_for_the_split(tmp_path):
    for split in ('train', 'test'):
        write(tmp_path, {'x': [1, 0]}, split=split)
    sizes = '---\ndataset_info:\n  features:\n  - {name: image, dtype: image}\n  - {name: x, dtype: int64}\n  splits:\n'
    sizes += '  - {name: train, num_examples: 2}\n  - {name: test, num_examples: 3}\n---\n'
    (tmp_path / 'README.md').write_text(sizes)
    assert named(load('hub', 'train', str(tmp_path))) == [['x'], []]
    fails(tmp_path, 'NonMatchingSplitsSizesError', split='test')
