import io
import json
import os
import subprocess
import sys
import tarfile

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from exported import encoded, fails, labels_of, recognised
from hub_server import HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msff_timm.data import label_names, load, notes
from msff_timm.errors import InputError

NAMES = ['dog', 'cat', 'bird']
LABELS = [['cat'], ['cat', 'dog'], [], ['bird']]


def write(path, samples, mode='w'):
    """Writes a shard as the package `webdataset` does: the files of a sample follow each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for key, files in samples:
            for extension, content in files.items():
                member = tarfile.TarInfo(f'{key}.{extension}')
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def as_json(labels):
    return {'json': json.dumps({'labels': labels, 'url': 'http://a.b/c.jpg', 'width': 8}).encode()}


def as_list(labels):
    return {'json': json.dumps(labels).encode()}


def as_numbers(labels):
    return {'json': json.dumps({'label': [NAMES.index(label) for label in labels]}).encode()}


def as_vector(labels):
    return {'json': json.dumps({'labels': [int(name in labels) for name in NAMES]}).encode()}


def as_lines(labels):
    return {'txt': '\n'.join(labels).encode()}


def as_cls(labels):
    return {'cls': ' '.join(str(NAMES.index(label)) for label in labels).encode()}


def export(root, encode, shards=('train-000000', 'train-000001', 'val-000000'), names=NAMES):
    """Writes the four samples to each shard, and the label names beside them."""
    for number, shard in enumerate(shards):
        samples = [
            (f'{number}{row:03d}', {'png': encoded(10 * number + row), **encode(labels)})
            for row, labels in enumerate(LABELS)
        ]
        write(root / f'{shard}.tar', samples)
    if names:
        (root / 'classes.txt').write_text('\n'.join(names) + '\n')
    return root


def expected(*shards):
    return {f'{shard}/{number}{row:03d}': set(labels) for number, shard in shards for row, labels in enumerate(LABELS)}


TRAIN = expected((0, 'train-000000'), (1, 'train-000001'))
VALIDATION = expected((2, 'val-000000'))


@pytest.mark.parametrize('encode', [as_json, as_list, as_numbers, as_vector, as_lines, as_cls])
@pytest.mark.parametrize('streaming', [False, True])
def test_load_webdataset_reads_labels(tmp_path, encode, streaming):
    export(tmp_path, encode)
    assert labels_of('webdataset', 'train', tmp_path, streaming=streaming) == TRAIN
    assert labels_of('webdataset', 'validation', tmp_path, streaming=streaming) == VALIDATION
    dataset = load('webdataset', 'train', str(tmp_path), streaming=streaming)
    assert label_names(dataset) == NAMES
    (note,) = notes(dataset)
    assert 'names: classes.txt' in note and ('one 0 or 1' in note) == (encode is as_vector)
    fails('webdataset', tmp_path, 'no split test', split='test')


def test_load_webdataset_streams_shard_by_shard(tmp_path):
    export(tmp_path, as_json)
    stream = load('webdataset', 'train', str(tmp_path), streaming=True)
    assert isinstance(stream, datasets.IterableDataset) and stream.num_shards == 2
    halves = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    assert [{row['image_id'] for row in half} for half in halves] == [
        {name for name in TRAIN if name.startswith(shard)} for shard in ('train-000000', 'train-000001')
    ]
    assert [row['image_id'] for row in stream.take(3)] == [f'train-000000/0{number:03d}' for number in range(3)]


def test_load_webdataset_collects_names(tmp_path):
    export(tmp_path, as_json, names=None)
    dataset = load('webdataset', 'train', str(tmp_path))
    assert label_names(dataset) == sorted(NAMES) and 'all that occur' in notes(dataset)[0]
    assert labels_of('webdataset', 'validation', tmp_path) == VALIDATION
    fails('webdataset', tmp_path, 'data.label_names', 'classes.txt', streaming=True)
    assert labels_of('webdataset', 'train', tmp_path, streaming=True, label_names=NAMES) == TRAIN
    fails('webdataset', tmp_path, "unknown label 'bird'", label_names=NAMES[:2])


@pytest.mark.parametrize('encode', [as_numbers, as_cls])
def test_load_webdataset_needs_names_for_numbers(tmp_path, encode):
    export(tmp_path, encode, names=None)
    for streaming in (False, True):
        fails('webdataset', tmp_path, 'data.label_names', 'classes.txt', streaming=streaming)
    fails('webdataset', tmp_path, 'must be a number from 0 to 1', label_names=NAMES[:2])
    assert labels_of('webdataset', 'train', tmp_path, label_names=NAMES) == TRAIN


@pytest.mark.parametrize(
    ('name', 'content'), [('label_names.json', json.dumps(NAMES)), ('label_names.txt', 'dog\r\ncat\r\nbird\r\n')]
)
def test_load_webdataset_finds_names(tmp_path, name, content):
    export(tmp_path, as_cls, names=None)
    (tmp_path / name).write_bytes(content.encode())
    assert label_names(load('webdataset', 'train', str(tmp_path))) == NAMES
    (tmp_path / name).write_text('{"dog": 0}' if name.endswith('json') else 'dog\ndog\n')
    fails('webdataset', tmp_path, name)


@pytest.mark.parametrize(
    ('shards', 'pattern', 'split', 'count'),
    [
        (['a-train-0', 'a-val-0'], '', 'train', 4),
        (['train/000', 'train/001', 'dev/000'], '', 'train', 8),
        (['train/000', 'train/001', 'dev/000'], '', 'validation', 4),
        (['000', '001', '002'], '', 'train', 12),
        (['train-00', 'train-01', 'train-02'], 'train-{00..01}.tar', 'train', 8),
        (['train-00', 'val-00'], '{train,val}-{00..00}.tar', 'validation', 4),
        (['train-00', 'val-00'], 'val-00.tar', 'validation', 4),
        (['val/00', 'val/01'], 'val/{00..01}.tar', 'validation', 8),
    ],
)
def test_load_webdataset_divides_shards_by_name(tmp_path, shards, pattern, split, count):
    export(tmp_path, as_json, shards)
    root = tmp_path / pattern if pattern else tmp_path
    assert len(labels_of('webdataset', split, root, label_names=NAMES)) == count


def test_load_webdataset_refuses_shards_it_cannot_divide(tmp_path):
    export(tmp_path, as_json, ['train-0', 'more-0'])
    fails('webdataset', tmp_path, 'more-0.tar names no split, but others do')
    fails('webdataset', tmp_path / 'train-{0..3}.tar', '3 of 4 shards are missing', 'train-1.tar')
    fails('webdataset', tmp_path / 'train-{3..0}.tar', '{FIRST..LAST}')
    fails('webdataset', tmp_path / 'train-{0..99999999}.tar', '{FIRST..LAST}')
    (tmp_path / 'empty').mkdir()
    fails('webdataset', tmp_path / 'empty', 'contains no shards')
    fails('webdataset', tmp_path / 'absent', 'absent')
    fails('webdataset', 'nowhere://a/b', 'nowhere')


def test_load_webdataset_reads_shards_anew_after_they_change(tmp_path):
    export(tmp_path, as_json)
    assert labels_of('webdataset', 'train', tmp_path) == TRAIN
    write(tmp_path / 'train-000001.tar', [('new', {'png': encoded(1), **as_json(['dog'])})])
    assert labels_of('webdataset', 'train', tmp_path) == {
        **expected((0, 'train-000000')),
        'train-000001/new': {'dog'},
    }


def test_load_webdataset_reads_compressed_shards_and_several_image_formats(tmp_path):
    samples = [('a/0', {'png': encoded(0), **as_json(['dog'])}), ('a/1', {'PNG': encoded(1), **as_json(['cat'])})]
    samples += [('b.c/0', {'jpg': encoded(2), **as_json([])})]
    write(tmp_path / 'train.tar.gz', samples, 'w:gz')
    assert labels_of('webdataset', 'train', tmp_path) == {
        'train/a/0': {'dog'},
        'train/a/1': {'cat'},
        'train/b.c/0': set(),
    }


def test_load_webdataset_needs_a_setting_for_two_kinds_of_labels(tmp_path):
    files = {'png': encoded(0), 'seg.png': encoded(1), 'cls': b'1', **as_json(['dog'])}
    write(tmp_path / 'train.tar', [('0', files)])
    names = {'label_names': NAMES}
    fails('webdataset', tmp_path, 'labels in both .cls and .json', 'data.label_columns', **names)
    fails('webdataset', tmp_path, 'data.image_column', label_columns=['cls'], **names)
    both = {'image_column': 'png', **names}
    assert labels_of('webdataset', 'train', tmp_path, label_columns=['cls'], **both) == {'train/0': {'cat'}}
    assert labels_of('webdataset', 'train', tmp_path, label_columns=['labels'], **both) == {'train/0': {'dog'}}
    fails('webdataset', tmp_path, "['tags']", 'cls, json, labels', label_columns=['tags'], **both)


def test_load_webdataset_takes_no_caption_for_labels(tmp_path):
    """As img2dataset writes it: a caption in `.txt`, and what else is known in `.json`."""
    about = {'caption': 'a dog', 'url': 'http://a.b/c.jpg', 'status': 'success'}
    write(tmp_path / '00000.tar', [('0', {'png': encoded(0), 'txt': b'a dog', 'json': json.dumps(about).encode()})])
    fails('webdataset', tmp_path, 'no labels', 'caption', 'data.label_columns')
    assert recognised('webdataset', tmp_path) == '00000.tar'
    tagged = {**about, 'tags': ['dog']}
    write(tmp_path / '00000.tar', [('0', {'png': encoded(0), 'txt': b'a dog', 'json': json.dumps(tagged).encode()})])
    assert labels_of('webdataset', 'train', tmp_path, label_columns=['tags']) == {'00000/0': {'dog'}}
    assert 'not labels: .txt' in notes(load('webdataset', 'train', str(tmp_path), label_columns=['tags']))[0]


def test_load_webdataset_finds_delimiter_of_lines(tmp_path):
    samples = [(str(number), {'png': encoded(number), 'txt': text.encode()}) for number, text in enumerate(TEXTS)]
    write(tmp_path / 'train.tar', samples)
    for arguments in ({}, {'label_names': NAMES}, {'label_delimiter': ', '}):
        found = labels_of('webdataset', 'train', tmp_path, **arguments)
        assert found == {f'train/{number}': set(filter(None, text.split(', '))) for number, text in enumerate(TEXTS)}


TEXTS = ['dog, cat', 'cat, bird', 'dog, bird', 'bird', '', 'dog, cat, bird']


@pytest.mark.parametrize(
    ('files', 'parts'),
    [
        ({}, ['no .json']),
        ({'json': b'{"labels": ["dog"]'}, ['.json cannot be read']),
        ({'json': b'{"label": ["dog"]}'}, ["no key 'labels'"]),
        ({'json': b'{"labels": [["dog"]]}'}, ["['dog']", 'must be a number or text']),
        ({'json': b'{"labels": [3]}'}, ['must be a number from 0 to 2']),
        ({'json': b'{"labels": ["cow"]}'}, ["unknown label 'cow'"]),
        ({'json': b'\xff'}, ['.json cannot be read']),
    ],
)
def test_load_webdataset_refuses_invalid_samples(tmp_path, files, parts):
    first = [(f'{number}', {'png': encoded(number), **as_json(['dog'])}) for number in range(120)]
    write(tmp_path / 'train.tar', [*first, ('bad', {'png': encoded(0), **files})])
    for streaming in (False, True):
        fails('webdataset', tmp_path, 'train.tar: bad', *parts, label_names=NAMES, streaming=streaming)


def test_load_webdataset_refuses_invalid_shards(tmp_path):
    path = write(tmp_path / 'train.tar', [('0', as_json(['dog']))])
    fails('webdataset', tmp_path, 'train.tar: 0 has no image', label_names=NAMES)
    sample = ('0', {'png': encoded(0), **as_json(['dog'])})
    write(path, [sample, ('1', {'png': encoded(1), **as_json([])}), sample])
    fails('webdataset', tmp_path, 'train.tar: 0 occurs twice')
    whole = write(path, [sample]).read_bytes()
    for content in (b'', b'no tar', whole[:700], whole[:100]):
        path.write_bytes(content)
        fails('webdataset', tmp_path, 'train.tar')
        assert recognised('webdataset', tmp_path) is None
    write(path, [])
    fails('webdataset', tmp_path, 'contains no samples')


def test_recognise_webdataset(tmp_path):
    export(tmp_path / 'shards', as_cls)
    assert recognised('webdataset', tmp_path / 'shards') == 'train-000000.tar'
    assert recognised('webdataset', tmp_path / 'shards' / 'val-000000.tar') == 'val-000000.tar'
    write(tmp_path / 'others' / 'photos.tar', [('0', {'png': encoded(0)})])
    assert recognised('webdataset', tmp_path / 'others') is None


STREAM = """
from msff_timm.data import load
root = 'hf://datasets/org/shards'
for root in (root, root + '/val-{000000..000000}.tar'):
    for streaming in (False, True):
        print(*(row['image_id'] for row in load('webdataset', 'validation', root, streaming=streaming)))
"""


def test_load_webdataset_reads_shards_of_the_hub(tmp_path):
    """In a process of its own: clients of the Hub read its address at import."""
    export(tmp_path / 'datasets' / 'org' / 'shards', as_cls)
    with HubServer(tmp_path) as server:
        environment = {**os.environ, 'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path / 'home')}
        command = [sys.executable, '-c', STREAM]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == 4 * [' '.join(VALIDATION)], result.stderr


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.floats()
    | st.sampled_from(['', 'dog', 'cat', 'a\nb', '\ud800']),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(['labels', 'label']), inner, max_size=2)
    ),
    max_leaves=4,
)
contents = st.fixed_dictionaries(
    {},
    optional={
        'png': st.just(encoded(0)),
        'json': values.map(lambda value: json.dumps(value).encode()),
        'cls': st.sampled_from([b'', b'1', b'0 2', b'1 0 1', b'dog', b'-1', b'1.0']),
        'txt': st.sampled_from([b'', b'dog', b'dog\ncat', b'dog, cat', b'1', b'\xff']),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(contents, min_size=1, max_size=3), st.sampled_from([None, NAMES]))
def test_load_webdataset_gives_labels_or_a_message(tmp_path, samples, names):
    write(tmp_path / 'train.tar', [(f's{number}', files) for number, files in enumerate(samples)])
    recognised('webdataset', tmp_path)
    try:
        found = labels_of('webdataset', 'train', tmp_path, label_names=names)
    except InputError as e:
        assert len(str(e).splitlines()) == 1
    else:
        assert set(found) <= {f'train/s{number}' for number in range(len(samples))}
