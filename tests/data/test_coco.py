import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import defaultdict

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import msff_timm.data
from msff_timm.data import coco
from msff_timm.data.samples import Samples
from msff_timm.errors import InputError
from msff_timm.training.config import DataConfig
from msff_timm_cli import commands as cli

CATEGORIES = [{'id': 90, 'name': 'toothbrush'}, {'id': 1, 'name': 'person'}, {'id': 13, 'name': 'stop sign'}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'msff_timm'


def annotation(image_id, category_id, area, iscrowd=0):
    return {'image_id': image_id, 'category_id': category_id, 'area': area, 'iscrowd': iscrowd, 'bbox': [0, 0, 1, 1]}


@pytest.fixture
def root(tmp_path):
    """Three images of 20 x 10 pixels in the layout of COCO 2014; the second has no labels."""
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


def test_load_coco_returns_labels_and_areas(root):
    dataset = msff_timm.data.load('coco2014', 'train', root)
    assert msff_timm.data.label_names(dataset) == ['person', 'stop sign', 'toothbrush']
    assert dataset['image_id'][:] == ['3', '5', '7']
    assert dataset['labels'][:] == [[0, 2], [], [1]] and dataset['ignore'][:] == [[], [], []]
    assert dataset.features['area'].feature.dtype == 'float64'
    assert dataset['area'][0] == [30 / 200, 50 / 200] and dataset['area'][2] == [1.0]
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [3, 5, 7]


def test_load_coco_drops_unlabelled_images_in_evaluation_only(root):
    assert len(msff_timm.data.load('coco2014', 'train', root)) == 3
    assert msff_timm.data.load('coco2014', 'validation', root)['image_id'][:] == ['3', '7']


def test_load_returns_first_images_with_size(root):
    assert msff_timm.data.load('coco2014', 'train', root, size=2)['image_id'][:] == ['3', '5']
    assert len(msff_timm.data.load('coco2014', 'train', root, size=99)) == 3


def test_samples_return_targets_and_rows_of_coco(root):
    samples = Samples(msff_timm.data.load('coco2014', 'train', root), transform=lambda image: image.size)
    assert [samples[i]['target'].tolist() for i in range(3)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert [samples[i]['index'] for i in range(3)] == [0, 1, 2]
    assert samples[0]['image'] == (20, 10)


def test_samples_name_unreadable_image(root):
    (root / 'train2014' / 'COCO_000000000005.png').write_bytes(b'not an image')
    samples = Samples(msff_timm.data.load('coco2014', 'train', root), transform=lambda image: image)
    with pytest.raises(InputError, match=r'COCO_000000000005.png: cannot be read as an image'):
        samples[1]


NO_ID = (None, [1], ' ', 'a\nb', True, 1.5, float('nan'), float('inf'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['images'][0].update(file_name='../x.png'), r"images\[0\]: '../x.png' is not inside .*train2014"),
        (lambda c: c['images'][0].update(file_name='..\\x.png'), r"images\[0\]: '../x.png' is not inside .*train"),
        (lambda c: c['images'][0].update(file_name='val2014/../../x'), r'images\[0\]: .* is not inside .*train2014'),
        (lambda c: c['images'][0].update(file_name='val2014/a/../../x'), r'images\[0\]: .* is not inside .*val2014'),
        (lambda c: c['images'][0].update(file_name='/etc/passwd'), r"images\[0\]: '/etc/passwd' is not inside"),
        (lambda c: c['images'][0].update(file_name='a\nb'), r"images\[0\] has file_name 'a\\nb': must be text"),
        (lambda c: c['images'][0].update(file_name='\ud800'), r"images\[0\] has file_name '\\ud800': must be text"),
        (lambda c: c['images'][0].pop('file_name'), r'images\[0\] has file_name None: must be text'),
        (lambda c: c['images'][1].update(id=7), r'images\[1\] has id 7, which an earlier image has'),
        (lambda c: c['images'][1].update(id='7'), r"images\[1\] has id '7', which an earlier image has"),
        (lambda c: c['images'][1].pop('id'), r"images\[1\]: 'id' is missing"),
        (lambda c: c['images'].insert(1, None), r'images\[1\] is None: must be an object'),
        *((lambda c, v=v: c['images'][1].update(id=v), r'images\[1\] has id .*: must be a whole') for v in NO_ID),
        (lambda c: c['categories'][1].update(id=90.0), r'categories\[1\] has id 90.0, which an earlier category has'),
        (lambda c: c['categories'][1].update(id=True), r'categories\[1\] has id True: must be a whole number'),
        (lambda c: c['categories'][2].update(name=' '), r"categories\[2\] has name ' ': must be text"),
        (lambda c: c.update(categories=[], annotations=[]), r'contains no categories'),
        (lambda c: c['annotations'].insert(2, [1]), r'annotations\[2\] is \[1\]: must be an object'),
        (lambda c: [a.update(image_id=9) for a in c['annotations']], r'no image or category: 4 of 4 .*has image_id 9 '),
        (lambda c: [a.pop('category_id') for a in c['annotations']], r'no image or category: 4 of 4 .*_id None'),
        (lambda c: [i.update(file_name=f'{i["id"]}.gif') for i in c['images']], r"not in .*: 3 of 3 .*names '7.gif'\)"),
        (lambda c: c.pop('categories'), r"json: 'categories' is missing"),
        (lambda c: c.pop('annotations'), r"json: 'annotations' is missing"),
        (lambda c: c.update(images={}), r"json: 'images' is \{\}: must be a list"),
        (lambda c: c.update(images=[], annotations=[]), r'contains no images'),
    ],
)  # fmt: skip
def test_load_coco_refuses_invalid_annotations(root, change, message):
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
        (b'{"images": [', 'is not valid JSON'),
        (b'', 'is not valid JSON'),
        (b'[]', r'contains \[\]: must be an object'),
        (b'{"images": "\xff"}', 'is not utf-8 .*: save it as UTF-8'),
        (b'\xff\xfe{\x00\x00', 'is not utf-16 .*: save it as UTF-8'),
        (b'[' * 200_000, 'is nested too deeply'),
        (b'{"a":' * 200_000, 'is nested too deeply'),
        (b'{"images": ' + b'1' * 5000 + b'}', 'is not valid JSON'),
    ],
)
def test_load_coco_refuses_invalid_json(root, content, message):
    (root / 'annotations' / 'instances_train2014.json').write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        msff_timm.data.load('coco2014', 'train', root)
    assert_one_line(caught.value)


def test_load_coco_refuses_folder_as_file_and_file_as_folder(root):
    path = root / 'annotations' / 'instances_train2014.json'
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r'instances_train2014.json is not a file'):
        msff_timm.data.load('coco2014', 'train', root)
    shutil.rmtree(root / 'val2014')
    (root / 'val2014').touch()
    with pytest.raises(InputError, match=r'val2014 is not a folder'):
        msff_timm.data.load('coco2014', 'validation', root)


def load_with_warning(root, split='train', **arguments):
    """Returns a split and the text of its only warning, or None."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        dataset = msff_timm.data.load('coco2014', split, root, **arguments)
    assert len(caught) <= 1
    warning = str(caught[0].message) if caught else None
    assert warning is None or (warning.isprintable() and warning.startswith(str(root)))
    return dataset, warning


def test_load_coco_warns_of_areas_of_zero(root):
    edit(root, lambda c: [a.update(bbox=[1, 2, 3.5, 0.0], area=0.0) for a in c['annotations'][1:3]])
    dataset, warning = load_with_warning(root)
    assert 'the area of 2 of 4 annotations is 0 (e.g. annotations[1])' in warning
    assert dataset['labels'][0] == [0, 2] and dataset['area'][0] == [0.0, 10 / 200]


NAN = float('nan')


@pytest.mark.parametrize(
    ('change', 'area'),
    [
        (lambda a: a.pop('area'), 12 / 200),
        (lambda a: a.update(area=None), 12 / 200),
        (lambda a: a.update(area=-1), 12 / 200),
        (lambda a: a.update(area=203), 12 / 200),
        (lambda a: a.update(area=NAN), 12 / 200),
        (lambda a: a.update(area=True), 12 / 200),
        (lambda a: a.update(area=10**400), 12 / 200),
        (lambda a: a.update(area='50.0'), 50 / 200),
        (lambda a: a.pop('bbox'), 200 / 200),
        (lambda a: a.update(area=None, bbox=['0', 0.0, '3', 4]), 12 / 200),
        (lambda a: a.update(area=None, bbox=[0, 0, -3, -4]), NAN),
        (lambda a: a.update(area='big', bbox=[]), NAN),
        (lambda a: a.update(area=[], bbox=[0, 0, 20, 11]), NAN),
        (lambda a: (a.pop('area'), a.pop('bbox')), NAN),
    ],
)
def test_load_coco_takes_area_from_box_or_leaves_it_unknown(root, change, area):
    edit(root, lambda c: (c['annotations'][3].update(bbox=[0, 0, 3, 4]), change(c['annotations'][3])))
    dataset, warning = load_with_warning(root)
    assert dataset['labels'][:] == [[0, 2], [], [1]]
    assert dataset['area'][:] == [[30 / 200, 50 / 200], [], [] if area != area else [area]]
    assert (warning is None) == (area == area) and (
        warning is None or 'the area of 1 of 4 annotations is unknown' in warning
    )


def test_load_coco_keeps_areas_beside_an_unknown_one(root):
    edit(root, lambda c: c['annotations'][0].update(area=None, bbox=None))  # the smaller of two toothbrushes
    dataset, _ = load_with_warning(root)
    first, second = dataset['area'][0]
    assert first == 30 / 200 and second != second
    np.testing.assert_equal(Samples(dataset, None).areas, [[30 / 200, NAN, NAN], [NAN] * 3, [NAN, 1, NAN]])
    edit(root, lambda c: [image.pop('width') for image in c['images']])
    dataset, _ = load_with_warning(root)
    assert dataset['labels'][:] == [[0, 2], [], [1]] and dataset['area'][:] == [[], [], []]
    assert Samples(dataset, None).areas is None


@pytest.mark.parametrize('size', [None, 0, -1, 'wide', [20], NAN, 10**400, True])
def test_load_coco_leaves_areas_unknown_without_image_size(root, size):
    edit(root, lambda c: c['images'][0].update(width=size))
    dataset, warning = load_with_warning(root)
    assert dataset['labels'][:] == [[0, 2], [], [1]]
    assert dataset['area'][:] == [[30 / 200, 50 / 200], [], []] and '1 of 4 annotations is unknown' in warning


@pytest.mark.parametrize(
    ('of_images', 'of_categories', 'of_annotations', 'image_ids'),
    [
        (float, float, int, ['3', '5', '7']),
        (int, int, float, ['3', '5', '7']),
        (str, str, int, ['3', '5', '7']),
        (int, int, str, ['3', '5', '7']),
        ('{:03}'.format, '{:04}'.format, str, ['003', '005', '007']),
        ('im{}'.format, 'c{}'.format, None, ['im3', 'im5', 'im7']),
        ('é{}'.format, ' {}'.format, None, ['é3', 'é5', 'é7']),
    ],
)
def test_load_coco_accepts_ids_as_numbers_and_text(root, of_images, of_categories, of_annotations, image_ids):
    def change(content):
        for image in content['images']:
            image['id'] = of_images(image['id'])
        for category in content['categories']:
            category['id'] = of_categories(category['id'])
        for annotation in content['annotations']:
            annotation['image_id'] = (of_annotations or of_images)(annotation['image_id'])
            annotation['category_id'] = (of_annotations or of_categories)(annotation['category_id'])

    edit(root, change)
    dataset, warning = load_with_warning(root)
    names = msff_timm.data.label_names(dataset)
    assert sorted(names) == ['person', 'stop sign', 'toothbrush'] and warning is None
    assert [sorted(names[k] for k in row) for row in dataset['labels']] == [
        ['person', 'toothbrush'], [], ['stop sign']
    ]  # fmt: skip
    assert dataset['image_id'][:] == image_ids


def test_load_coco_sorts_labels_by_numbers_then_text(root):
    ids = ['10', 2, 'b', 'a', '9', -1]
    edit(root, lambda c: c['categories'].extend({'id': i, 'name': f'of {i}'} for i in ids))
    assert msff_timm.data.label_names(msff_timm.data.load('coco2014', 'train', root)) == [
        'of -1', 'person', 'of 2', 'of 9', 'of 10', 'stop sign', 'toothbrush', 'of a', 'of b',
    ]  # fmt: skip


def test_load_coco_reads_numeric_names_as_text(root):
    edit(root, lambda c: [category.update(name=category['id']) for category in c['categories']])
    assert msff_timm.data.label_names(msff_timm.data.load('coco2014', 'train', root)) == ['1', '13', '90']


def test_load_coco_merges_categories_of_one_name(root):
    # Exports of Roboflow have their group as category 0, which may repeat the name of a label.
    edit(root, lambda c: c['categories'].append({'id': 0, 'name': 'toothbrush', 'supercategory': 'none'}))
    dataset, warning = load_with_warning(root)
    assert msff_timm.data.label_names(dataset) == ['toothbrush', 'person', 'stop sign']
    assert dataset['labels'][:] == [[0, 1], [], [2]]
    assert "categories[3] repeats the name 'toothbrush' and counts as the same label" in warning


@pytest.mark.parametrize(
    ('folder', 'change'),
    [
        ('train2014', lambda i: i.update(file_name='./' + i['file_name'])),
        ('train2014', lambda i: i.update(file_name='train2014/' + i['file_name'])),
        ('train2014', lambda i: i.update(file_name='./train2014/' + i['file_name'])),
        ('train2014', lambda i: i.update(file_name='train2014\\' + i['file_name'])),
        ('train2014/a/b', lambda i: i.update(file_name='a\\b\\' + i['file_name'])),
        ('train2014/train2014', lambda i: i.update(file_name='train2014/' + i['file_name'])),
        ('train2014', lambda i: i.update(coco_url=f'http://c.org/train2014/{i.pop("file_name")}?a=b')),
        ('train2014', lambda i: i.update(file_name=None, coco_url=f'http://c.org/train2014/{i["file_name"]}')),
        ('val2014', lambda i: i.update(coco_url=f'http://c.org/val2014/{i.pop("file_name")}')),
    ],
)
def test_load_coco_finds_files_by_names_of_tools(root, folder, change):
    shutil.rmtree(root / 'val2014')
    (root / 'train2014').rename(root / 'all')
    (root / 'train2014').mkdir()
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / folder, ignore_errors=True)
    (root / 'all').rename(root / folder)
    edit(root, lambda c: [change(image) for image in c['images']])
    dataset, warning = load_with_warning(root)
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [3, 5, 7] and warning is None
    assert dataset['labels'][:] == [[0, 2], [], [1]]


def test_load_coco_prefers_exact_file_names(root):
    Image.new('RGB', (20, 10), (99, 0, 0)).save(root / 'train2014' / 'a\\b.png')
    (root / 'train2014' / 'a').mkdir()
    Image.new('RGB', (20, 10)).save(root / 'train2014' / 'a' / 'b.png')
    edit(root, lambda c: c['images'][0].update(file_name='a\\b.png'))
    assert msff_timm.data.load('coco2014', 'train', root)[2]['image'].getpixel((0, 0))[0] == 99


MISSING = {
    'image': (lambda c: c['images'].insert(0, {'id': 1, 'file_name': 'gone'}), r"1 of 4 \(images\[0\] names 'gone'"),
    'its annotations': (
        lambda c: (c['images'].insert(0, {'id': 1, 'file_name': 'a'}), c['annotations'].append(annotation(1, 1, 1))),
        r"1 of 4 \(images\[0\] names 'a'\)",
    ),
    'image_id': (lambda c: c['annotations'].insert(2, annotation(9, 1, 1)), r'1 of 5 .annotations.2. has image_id 9 '),
    'category_id': (lambda c: c['annotations'].insert(2, annotation(3, 2, 1)), r'1 of 5 .* and category_id 2\)'),
    'no id': (lambda c: c['annotations'].insert(2, {'image_id': [3]}), r'image_id \[3\] and category_id None\)'),
}  # fmt: skip


@pytest.mark.parametrize(('change', 'message'), MISSING.values(), ids=MISSING)
def test_load_coco_skips_missing_content_in_training_only(root, change, message):
    edit(root, change)
    shutil.copy(root / 'annotations' / 'instances_train2014.json', root / 'annotations' / 'instances_val2014.json')
    for split, missing in (('train', None), ('train', 'skip'), ('validation', 'skip')):
        for _ in range(2):  # once from the cache
            dataset, warning = load_with_warning(root, split, missing=missing)
            assert re.search(message, warning)
            assert dataset['image_id'][:] == (['3', '5', '7'] if split == 'train' else ['3', '7'])
            assert dataset['labels'][0] == [0, 2] and dataset['labels'][-1] == [1]
    for split, missing in (('train', 'error'), ('validation', None), ('validation', 'error')):
        with pytest.raises(InputError, match=message + '.*set missing to skip') as caught:
            msff_timm.data.load('coco2014', split, root, missing=missing)
        assert_one_line(caught.value, 'instances_')
    with pytest.raises(InputError, match="unknown value of missing 'skp': did you mean skip"):
        msff_timm.data.load('coco2014', 'train', root, missing='skp')


def test_missing_reaches_reader_from_training_and_command(root, tmp_path, capsys):
    edit(root, lambda c: c['images'].insert(0, {'id': 1, 'file_name': 'gone.png'}))
    with pytest.raises(InputError, match='1 of 4'):
        DataConfig(root=str(root), missing='error').load('train', None, 32)
    with pytest.warns(UserWarning, match='skipped images'):
        assert len(DataConfig(root=str(root)).load('train', None, 32)) == 3
    command = ['data', 'coco2014', '--root', str(root), '--splits', 'train', '-o', str(tmp_path / 'out')]
    assert cli.main([*command, '--missing', 'error']) == 2
    assert 'set missing to skip' in capsys.readouterr().err


def test_load_coco_finds_images_added_later(root):
    (root / 'train2014' / 'COCO_000000000003.png').rename(root / 'away.png')
    assert load_with_warning(root)[0]['image_id'][:] == ['5', '7']
    (root / 'away.png').rename(root / 'train2014' / 'COCO_000000000003.png')
    dataset, warning = load_with_warning(root)
    assert dataset['image_id'][:] == ['3', '5', '7'] and warning is None


@pytest.mark.parametrize(
    'file_name', ['COCO_000000000003.png', './COCO_000000000003.png', 'train2014/COCO_000000000003.png']
)
def test_load_coco_merges_entries_of_one_file(root, file_name):
    edit(root, lambda c: c['images'][0].update(file_name=file_name))
    dataset, warning = load_with_warning(root, missing='error')
    assert dataset['image_id'][:] == ['5', '7']
    assert dataset['labels'][1] == [0, 1, 2] and dataset['area'][1] == [30 / 200, 1.0, 50 / 200]
    assert 'images that repeat the file of an earlier one: 1 (images[1] names' in warning


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_load_coco_reads_encodings_of_json(root, encoding):
    path = root / 'annotations' / 'instances_train2014.json'
    content = path.read_text().replace('person', 'persón')
    path.write_bytes(content.encode(encoding))
    dataset, warning = load_with_warning(root)
    assert msff_timm.data.label_names(dataset)[0] == 'persón' and len(dataset) == 3 and warning is None


FAULTS = {
    'area': st.sampled_from([None, -1, 1e9, 'x', NAN, [], {}, True]),
    'bbox': st.sampled_from([None, [], [1], [0, 0, -1, -1], 'x', [0, 0, None, 1], [NAN] * 4]),
    'iscrowd': st.sampled_from([None, 1, 'x']),
    'width': st.sampled_from([None, 0, -1, 'x', NAN, 20.0, '20']),
    'segmentation': st.sampled_from([None, [], {}, {'counts': 'abc', 'size': [1, 2]}, 5]),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_load_coco_needs_only_ids_and_names_for_labels(root, data):
    path = root / 'annotations' / 'instances_train2014.json'
    original = path.read_text()
    content = json.loads(original)
    for node in (*content['images'], *content['annotations']):
        for key in data.draw(st.sets(st.sampled_from(sorted(FAULTS)))):
            if data.draw(st.booleans()):
                node.pop(key, None)
            else:
                node[key] = data.draw(FAULTS[key])
    try:
        path.write_text(json.dumps(content))
        dataset, _ = load_with_warning(root)
    finally:
        path.write_text(original)
    assert dataset['labels'][:] == [[0, 2], [], [1]]
    for areas, labels in zip(dataset['area'], dataset['labels'], strict=True):
        assert len(areas) in (0, len(labels)) and all(0 <= area <= 1 or area != area for area in areas)


def test_load_coco_reads_cases(cases):
    folders = sorted(path for path in (cases / 'coco_variants').iterdir() if path.is_dir())
    for folder in folders:
        if folder.name == 'no_annotations_key':
            with pytest.raises(InputError, match="'annotations' is missing"):
                msff_timm.data.load('coco2017', 'train', folder)
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            dataset = msff_timm.data.load('coco2017', 'train', folder)
        names = msff_timm.data.label_names(dataset)
        assert names[:3] == ['cat', 'dog', 'cow'], folder
        assert dataset['labels'][:] == [[0, 1], [1], [2], []], folder
        assert len(caught) == (folder.name in WITH_WARNING), folder
        expected = [] if folder.name in ('no_bbox_no_area', 'no_size', 'size_zero') else [100 / 1920]
        assert dataset['area'][1] == expected, folder
        if folder.name in ('orphan', 'missing_picture'):
            with pytest.raises(InputError, match='1 of 5 .*set missing to skip'):
                msff_timm.data.load('coco2017', 'train', folder, missing='error')
    assert len(folders) >= 30


WITH_WARNING = ('missing_picture', 'no_bbox_no_area', 'no_size', 'orphan', 'same_file_twice', 'size_zero')


def test_load_coco_clips_areas_to_image(root):
    edit(root, lambda c: c['annotations'][3].update(area=200.01))
    assert msff_timm.data.load('coco2014', 'train', root)['area'][2] == [1.0]


def test_load_coco2017_reads_its_own_folders(tmp_path):
    root = make(tmp_path / 'coco', '2017')
    assert msff_timm.data.load('coco2017', 'val', root)['image_id'][:] == ['3', '7']
    with pytest.raises(InputError, match=r'annotations/instances_train2014.json is missing'):
        msff_timm.data.load('coco2014', 'train', root)
    with pytest.raises(InputError, match=r'coco2017 needs data.root: set it to the folder that contains train2017/'):
        msff_timm.data.load('coco2017', 'train')


def test_load_coco_finds_images_in_subfolders(root):
    folder = root / 'train2014' / 'more'
    folder.mkdir()
    (root / 'train2014' / 'COCO_000000000003.png').rename(folder / 'a.png')
    edit(root, lambda c: c['images'][1].update(file_name='more/a.png'))
    assert msff_timm.data.load('coco2014', 'train', root)[0]['image'].size == (20, 10)


def test_load_coco_caches_parsed_content(root, monkeypatch):
    first = msff_timm.data.load('coco2014', 'train', root)
    parse = json.load
    monkeypatch.setattr(json, 'load', lambda *args, **kwargs: pytest.fail('parsed again'))
    os.utime(root / 'annotations' / 'instances_train2014.json', (0, 0))
    again = msff_timm.data.load('coco2014', 'train', str(root))
    assert again.to_list() == first.to_list()
    monkeypatch.setattr(json, 'load', parse)
    edit(root, lambda c: c['annotations'].pop(0))
    assert msff_timm.data.load('coco2014', 'train', root)['area'][0] == [30 / 200, 50 / 200]
    edit(root, lambda c: c['annotations'].pop(0))
    assert msff_timm.data.load('coco2014', 'train', root)['labels'][0] == [2]


def test_load_coco_caches_by_settings(root):
    kept = [len(msff_timm.data.load('coco2014', 'train', root, keep_unlabelled=keep)) for keep in (True, False, None)]
    assert kept == [3, 2, 3]


def test_cached_leaves_no_partial_file_when_interrupted(root, cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('msff_timm.data.records.ArrowWriter.finalize', interrupted)
        with pytest.raises(KeyboardInterrupt):
            msff_timm.data.load('coco2014', 'train', root)
    assert list(cache.iterdir()) == []
    assert len(msff_timm.data.load('coco2014', 'train', root)) == 3
    assert [path.suffix for path in cache.iterdir()] == ['.arrow']


def test_cached_recovers_from_killed_writer(root, cache):
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
    """Yields container and key of each value below a JSON node."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])


def check_loads_or_is_refused(root):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            dataset = coco.load('coco2014', 'train', root)
        except InputError as e:
            assert_one_line(e)
        else:
            assert all(sorted(labels) == labels for labels in dataset['labels'])
            assert all(0 <= area <= 1 or area != area for areas in dataset['area'] for area in areas)


@FUZZ
@given(data=st.data())
def test_load_coco_reads_or_refuses_any_change_of_json(root, data):
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
        check_loads_or_is_refused(root)
    finally:
        path.write_text(original)


@FUZZ
@given(data=st.data())
def test_load_coco_reads_or_refuses_any_bytes(root, data):
    path = root / 'annotations' / 'instances_train2014.json'
    original = path.read_bytes()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(original))] * 2)))
    try:
        path.write_bytes(original[:start] + data.draw(st.binary(max_size=8)) + original[stop:])
        check_loads_or_is_refused(root)
        path.write_bytes(original[:start])
        check_loads_or_is_refused(root)
    finally:
        path.write_bytes(original)


def test_load_coco_refuses_other_roots(tmp_path):
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
        (('scenes', 'train', None, 0), 'data size is 0: must be at least 1.'),
    ],
)
def test_load_refuses_invalid_arguments(arguments, message):
    with pytest.raises(InputError) as caught:
        msff_timm.data.load(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(('split', 'name'), [('train', 'train2014'), ('validation', 'val2014')])
def test_load_coco_returns_labels_of_real_photos(coco_root, split, name):
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
