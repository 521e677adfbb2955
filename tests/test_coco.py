import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import defaultdict

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import msff_timm.data
from msff_timm.data import coco
from msff_timm.data.samples import Samples
from msff_timm.errors import InputError

CATEGORIES = [{'id': 90, 'name': 'toothbrush'}, {'id': 1, 'name': 'person'}, {'id': 13, 'name': 'stop sign'}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'msff_timm'


def annotation(image_id, category_id, area, iscrowd=0):
    return {'image_id': image_id, 'category_id': category_id, 'area': area, 'iscrowd': iscrowd, 'bbox': [0, 0, 1, 1]}


@pytest.fixture
def root(tmp_path):
    """Three pictures of 20 x 10 in COCO 2014's layout; the second has no label."""
    return make(tmp_path / 'coco')


def make(tmp_path, year='2014'):
    content = {
        'images': [
            {'id': i, 'file_name': f'COCO_{i:012}.png', 'width': 20, 'height': 10} for i in (7, 3, 5)
        ],
        'categories': CATEGORIES,
        'annotations': [
            annotation(3, 90, 10), annotation(3, 1, 30), annotation(3, 90, 50), annotation(7, 13, 200, iscrowd=1)
        ],
    }  # fmt: skip
    (tmp_path / 'annotations').mkdir(parents=True)
    for folder in (f'train{year}', f'val{year}'):
        (tmp_path / folder).mkdir()
        for image in content['images']:
            Image.new('RGB', (20, 10), (image['id'], 0, 0)).save(tmp_path / folder / image['file_name'])
        (tmp_path / 'annotations' / f'instances_{folder}.json').write_text(json.dumps(content))
    return tmp_path


def edit(root, change):
    path = root / 'annotations' / 'instances_train2014.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_labels_areas_and_gaps_in_the_ids(root):
    dataset = msff_timm.data.load('coco2014', 'train', root)
    assert msff_timm.data.label_names(dataset) == ['person', 'stop sign', 'toothbrush']
    assert dataset['image_id'][:] == ['3', '5', '7']
    assert dataset['labels'][:] == [[0, 2], [], [1]] and dataset['ignore'][:] == [[], [], []]
    assert dataset.features['area'].feature.dtype == 'float64'
    assert dataset['area'][0] == [30 / 200, 50 / 200] and dataset['area'][2] == [1.0]
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [3, 5, 7]


def test_unlabelled_pictures_stay_in_training_and_leave_evaluation(root):
    assert len(msff_timm.data.load('coco2014', 'train', root)) == 3
    assert msff_timm.data.load('coco2014', 'validation', root)['image_id'][:] == ['3', '7']


def test_size_takes_the_first_ones(root):
    assert msff_timm.data.load('coco2014', 'train', root, size=2)['image_id'][:] == ['3', '5']
    assert len(msff_timm.data.load('coco2014', 'train', root, size=99)) == 3


def test_samples_hold_targets_and_row_numbers(root):
    samples = Samples(msff_timm.data.load('coco2014', 'train', root), transform=lambda image: image.size)
    assert [samples[i]['target'].tolist() for i in range(3)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert [samples[i]['index'] for i in range(3)] == [0, 1, 2]
    assert samples[0]['image'] == (20, 10)


def test_an_unreadable_photo_is_named(root):
    (root / 'train2014' / 'COCO_000000000005.png').write_bytes(b'not a picture')
    samples = Samples(msff_timm.data.load('coco2014', 'train', root), transform=lambda image: image)
    with pytest.raises(InputError, match=r'COCO_000000000005.png: cannot be read as a picture'):
        samples[1]


NOT_WHOLE = (None, [1], 'a', True, 1.5, float('nan'), float('inf'), -1, 0, 10**30)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['images'][0].update(file_name='gone.png'), r"images\[0\] names 'gone.png', which is not in"),
        (lambda c: c['images'][0].update(file_name='../x.png'), r"images\[0\]: '../x.png' does not lie in .*train2014"),
        (lambda c: c['images'][0].update(file_name='/etc/passwd'), r"images\[0\]: '/etc/passwd' does not lie in"),
        (lambda c: c['images'][2].update(file_name='COCO_000000000003.png'), r'images\[2\] names .* an earlier'),
        (lambda c: c['images'][2].update(file_name='./COCO_000000000003.png'), r'images\[2\] names .* an earlier'),
        (lambda c: c['images'][0].update(file_name='a\nb'), r"images\[0\] has file_name 'a\\nb', not text on one line"),
        (lambda c: c['images'][0].update(file_name='\ud800'), r"images\[0\] has file_name '\\ud800', not text"),
        (lambda c: c['images'][1].update(id=7), r'images\[1\] has id 7, which an earlier image has'),
        (lambda c: c['images'][1].update(id='7'), r"images\[1\] has id '7', not a whole number"),
        (lambda c: c['images'][1].pop('width'), r"images\[1\] .*'width' is missing"),
        (lambda c: c['images'].insert(1, None), r'images\[1\] .*it is None, not an object'),
        *((lambda c, v=v: c['images'][1].update(width=v), r'images\[1\] has width .*, not a whole') for v in NOT_WHOLE),
        (lambda c: c['categories'][1].update(id=90), r'categories\[1\] has id 90, which an earlier category has'),
        (lambda c: c['categories'][1].update(id=True), r'categories\[1\] has id True, not a whole number'),
        (lambda c: c['categories'][2].update(name='person'), r"categories\[2\] has name 'person', which an earlier"),
        (lambda c: c['categories'][2].update(name=' '), r"categories\[2\] has name ' ', not text"),
        (lambda c: c.update(categories=[], annotations=[]), r'holds no category'),
        (lambda c: c['annotations'][2].update(category_id=2), r'annotations\[2\] has category_id 2, not among'),
        (lambda c: c['annotations'][2].update(category_id=True), r'annotations\[2\] has category_id True, not among'),
        (lambda c: c['annotations'][2].update(category_id=[1]), r'annotations\[2\] has category_id \[1\], not among'),
        (lambda c: c['annotations'][1].update(image_id=99), r'annotations\[1\] has image_id 99, not among'),
        (lambda c: c['annotations'][1].update(image_id='3'), r"annotations\[1\] has image_id '3', not among"),
        (lambda c: c['annotations'][0].pop('area'), r"annotations\[0\] .*'area' is missing"),
        (lambda c: c['annotations'][0].update(area='big'), r"annotations\[0\] has area 'big', not a number"),
        (lambda c: c['annotations'][0].update(area=float('nan')), r'annotations\[0\] has area nan, not a number'),
        (lambda c: c['annotations'][0].update(area=-0.5), r'annotations\[0\] has area -0.5, not a number from 0'),
        (lambda c: c['annotations'][0].update(area=203), r'annotations\[0\] has area 203, not a number from 0 to 200'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, 1]), r'annotations\[0\] has bbox \[0, 0, 1\], not \[x, y'),
        (lambda c: c['annotations'][0].update(bbox=[0, 0, -1, 1]), r'annotations\[0\] has bbox .*, not \[x, y'),
        (lambda c: c['annotations'][0].update(bbox=[0, None, 1, 1]), r'annotations\[0\] has bbox .*, not \[x, y'),
        (lambda c: c['annotations'][0].update(bbox=None), r'annotations\[0\] has bbox None, not \[x, y'),
        (lambda c: c.pop('categories'), r"the file is not as .*'categories' is missing"),
        (lambda c: c.update(images={}), r"the file is not as .*'images' is \{\}, not a list"),
        (lambda c: c.update(images=[], annotations=[]), r'holds no image'),
    ],
)  # fmt: skip
def test_wrong_annotations_are_named(root, change, message):
    edit(root, change)
    with pytest.raises(InputError, match=message) as caught:
        msff_timm.data.load('coco2014', 'train', root)
    assert_one_line(caught.value)


def assert_one_line(error, name='instances_train2014.json'):
    assert name in str(error) and len(str(error).splitlines()) == 1 and str(error).isprintable()
    assert len(str(error)) < 800


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"images": [', 'is not whole JSON'),
        (b'', 'is not whole JSON'),
        (b'[]', r'it holds \[\], not an object'),
        (b'{"images": "\xff"}', 'is not UTF-8'),
        (b'\xef\xbb\xbf{}', 'is not whole JSON'),
        (b'[' * 200_000, 'is nested too deeply'),
        (b'{"a":' * 200_000, 'is nested too deeply'),
        (b'{"images": ' + b'1' * 5000 + b'}', 'is not whole JSON'),
    ],
)
def test_what_is_not_cocos_json_is_named(root, content, message):
    (root / 'annotations' / 'instances_train2014.json').write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        msff_timm.data.load('coco2014', 'train', root)
    assert_one_line(caught.value)


def test_a_folder_in_the_place_of_the_file_or_a_file_in_that_of_the_folder(root):
    path = root / 'annotations' / 'instances_train2014.json'
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r'instances_train2014.json is not what it should be'):
        msff_timm.data.load('coco2014', 'train', root)
    shutil.rmtree(root / 'val2014')
    (root / 'val2014').touch()
    with pytest.raises(InputError, match=r'val2014 is not what it should be'):
        msff_timm.data.load('coco2014', 'validation', root)


def test_boxes_without_width_or_height_count_and_are_told_once(root):
    edit(root, lambda c: [a.update(bbox=[1, 2, 3.5, 0.0], area=0.0) for a in c['annotations'][1:3]])
    with pytest.warns(UserWarning, match=r'annotations\[1\] has a bbox without width or height, as 2 in all') as caught:
        dataset = msff_timm.data.load('coco2014', 'train', root)
    assert len(caught) == 1 and '\n' not in str(caught[0].message)
    assert dataset['labels'][0] == [0, 2] and dataset['area'][0] == [0.0, 10 / 200]


def test_an_area_a_rounding_above_the_whole_picture_is_the_whole(root):
    edit(root, lambda c: c['annotations'][3].update(area=200.01))
    assert msff_timm.data.load('coco2014', 'train', root)['area'][2] == [1.0]


def test_coco2017_has_folders_of_its_own(tmp_path):
    root = make(tmp_path / 'coco', '2017')
    assert msff_timm.data.load('coco2017', 'val', root)['image_id'][:] == ['3', '7']
    with pytest.raises(InputError, match=r'annotations/instances_train2014.json is missing'):
        msff_timm.data.load('coco2014', 'train', root)
    with pytest.raises(InputError, match=r'coco2017 needs data.root: the folder that holds train2017/'):
        msff_timm.data.load('coco2017', 'train')


def test_pictures_may_lie_in_folders_of_the_folder(root):
    folder = root / 'train2014' / 'more'
    folder.mkdir()
    (root / 'train2014' / 'COCO_000000000003.png').rename(folder / 'a.png')
    edit(root, lambda c: c['images'][1].update(file_name='more/a.png'))
    assert msff_timm.data.load('coco2014', 'train', root)[0]['image'].size == (20, 10)


def test_the_same_content_is_not_parsed_again(root, monkeypatch):
    first = msff_timm.data.load('coco2014', 'train', root)
    parse = json.load
    monkeypatch.setattr(coco.json, 'load', lambda *args, **kwargs: pytest.fail('parsed again'))
    os.utime(root / 'annotations' / 'instances_train2014.json', (0, 0))
    again = msff_timm.data.load('coco2014', 'train', str(root))
    assert again.to_list() == first.to_list()
    monkeypatch.setattr(coco.json, 'load', parse)
    edit(root, lambda c: c['annotations'].pop(0))
    assert msff_timm.data.load('coco2014', 'train', root)['area'][0] == [30 / 200, 50 / 200]
    edit(root, lambda c: c['annotations'].pop(0))
    assert msff_timm.data.load('coco2014', 'train', root)['labels'][0] == [2]


def test_settings_have_rows_of_their_own(root):
    kept = [len(msff_timm.data.load('coco2014', 'train', root, keep_unlabelled=keep)) for keep in (True, False, None)]
    assert kept == [3, 2, 3]


def test_an_interrupted_writer_leaves_no_half_file(root, cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('msff_timm.data.records.ArrowWriter.finalize', interrupted)
        with pytest.raises(KeyboardInterrupt):
            msff_timm.data.load('coco2014', 'train', root)
    assert list(cache.iterdir()) == []
    assert len(msff_timm.data.load('coco2014', 'train', root)) == 3
    assert [path.suffix for path in cache.iterdir()] == ['.arrow']


def test_a_killed_writer_is_no_hindrance(root, cache):
    code = (
        'import os, sys, datasets, msff_timm.data.coco as coco, msff_timm.data.records as records\n'
        'datasets.config.HF_DATASETS_CACHE = sys.argv[1]\n'
        'records.ArrowWriter.finalize = lambda self: os._exit(9)\n'
        "coco.load('coco2014', 'train', sys.argv[2])\n"
    )
    assert subprocess.run([sys.executable, '-c', code, cache.parent, root]).returncode == 9
    assert not list(cache.glob('*.arrow'))
    assert len(msff_timm.data.load('coco2014', 'train', root)) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def places(node):
    """Gives each place below a node of JSON: what holds it and the key."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])


def loads_or_is_named(root):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            dataset = coco.load('coco2014', 'train', root)
        except InputError as e:
            assert_one_line(e)
        else:
            assert all(sorted(labels) == labels for labels in dataset['labels'])
            assert all(0 <= area <= 1 for areas in dataset['area'] for area in areas)


@FUZZ
@given(data=st.data())
def test_any_change_of_the_json_loads_or_is_named(root, data):
    path = root / 'annotations' / 'instances_train2014.json'
    original = path.read_text()
    content = json.loads(original)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(list(places(content)) or [({'': 0}, '')]))
        if data.draw(st.booleans()):
            holder[key] = data.draw(JSON)
        else:
            del holder[key]
    try:
        path.write_text(json.dumps(content))
        loads_or_is_named(root)
    finally:
        path.write_text(original)


@FUZZ
@given(data=st.data())
def test_any_bytes_load_or_are_named(root, data):
    path = root / 'annotations' / 'instances_train2014.json'
    original = path.read_bytes()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(original))] * 2)))
    try:
        path.write_bytes(original[:start] + data.draw(st.binary(max_size=8)) + original[stop:])
        loads_or_is_named(root)
        path.write_bytes(original[:start])
        loads_or_is_named(root)
    finally:
        path.write_bytes(original)


def test_a_root_that_is_not_cocos_is_refused_with_what_was_found(tmp_path):
    (tmp_path / 'photos').mkdir()
    with pytest.raises(InputError, match=r'annotations/instances_train2014.json is missing \(found: photos\)'):
        msff_timm.data.load('coco2014', 'train', tmp_path)
    with pytest.raises(InputError, match=r'no such folder'):
        msff_timm.data.load('coco2014', 'train', tmp_path / 'nowhere')
    with pytest.raises(InputError, match=r'coco2014 needs data.root'):
        msff_timm.data.load('coco2014', 'train')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('coco2104', 'train'), "unknown data set 'coco2104': did you mean coco2014?"),
        (('coco2014', 'valid', '.'), "unknown split of coco2014 'valid': did you mean validation?"),
        (('scenes', 'train', None, 0), 'data size 0 must be at least 1.'),
    ],
)
def test_the_door_names_what_is_wrong(arguments, message):
    with pytest.raises(InputError) as caught:
        msff_timm.data.load(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(('split', 'name'), [('train', 'train2014'), ('validation', 'val2014')])
def test_real_photos_have_the_labels_that_an_independent_count_gives(coco_root, split, name):
    content = json.loads((coco_root / 'annotations' / f'instances_{name}.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    expected = defaultdict(set)
    for a in content['annotations']:
        expected[a['image_id']].add(names[a['category_id']])
    dataset = msff_timm.data.load('coco2014', split, coco_root)
    label_names = msff_timm.data.label_names(dataset)
    got = {int(row['image_id']): {label_names[k] for k in row['labels']} for row in dataset.remove_columns('image')}
    if split == 'train':
        assert len(dataset) == len(content['images'])
        got = {image_id: labels for image_id, labels in got.items() if labels}
    assert len(label_names) == 80 and got == dict(expected)
    assert all(0 < area <= 1 for areas in dataset['area'] for area in areas)
