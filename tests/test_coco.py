import json
from collections import defaultdict

import pytest
from PIL import Image

import msff_timm.data
from msff_timm.data.samples import Samples
from msff_timm.errors import InputError

CATEGORIES = [{'id': 90, 'name': 'toothbrush'}, {'id': 1, 'name': 'person'}, {'id': 13, 'name': 'stop sign'}]


def annotation(image_id, category_id, area, iscrowd=0):
    return {'image_id': image_id, 'category_id': category_id, 'area': area, 'iscrowd': iscrowd, 'bbox': [0, 0, 1, 1]}


@pytest.fixture
def root(tmp_path):
    """Three pictures of 20 x 10 in COCO 2014's layout; the second has no label."""
    content = {
        'images': [
            {'id': i, 'file_name': f'COCO_{i:012}.png', 'width': 20, 'height': 10} for i in (7, 3, 5)
        ],
        'categories': CATEGORIES,
        'annotations': [
            annotation(3, 90, 10), annotation(3, 1, 30), annotation(3, 90, 50), annotation(7, 13, 200, iscrowd=1)
        ],
    }  # fmt: skip
    (tmp_path / 'annotations').mkdir()
    for folder in ('train2014', 'val2014'):
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
    assert dataset['image_id'][:] == [3, 5, 7]
    assert dataset['labels'][:] == [[0, 2], [], [1]]
    assert dataset['area'][0] == pytest.approx([30 / 200, 50 / 200]) and dataset['area'][2] == [1.0]
    assert [row['image'].getpixel((0, 0))[0] for row in dataset] == [3, 5, 7]


def test_unlabelled_pictures_stay_in_training_and_leave_evaluation(root):
    assert len(msff_timm.data.load('coco2014', 'train', root)) == 3
    assert msff_timm.data.load('coco2014', 'validation', root)['image_id'][:] == [3, 7]


def test_size_takes_the_first_ones(root):
    assert msff_timm.data.load('coco2014', 'train', root, size=2)['image_id'][:] == [3, 5]
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


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['images'][0].update(file_name='gone.png'), r'image 7 names gone.png, which is not in .*train2014'),
        (lambda c: c['images'][0].update(file_name='../x.png'), r'image 7 names ../x.png, which is not in'),
        (lambda c: c['images'][1].pop('width'), r"images\[1\] .*'width' is missing"),
        (lambda c: c['annotations'][2].update(category_id=2), r'annotations\[2\] has category_id 2, not among'),
        (lambda c: c['annotations'][1].update(image_id=99), r'annotations\[1\] has image_id 99, not among'),
        (lambda c: c['annotations'][0].pop('area'), r"annotations\[0\] .*'area' is missing"),
        (lambda c: c['annotations'][0].update(area='big'), r'annotations\[0\] is not as'),
        (lambda c: c.pop('categories'), r"the file is not as .*'categories' is missing"),
        (lambda c: c.update(images=[], annotations=[]), r'holds no image'),
    ],
)
def test_wrong_annotations_are_named(root, change, message):
    edit(root, change)
    with pytest.raises(InputError, match=message) as caught:
        msff_timm.data.load('coco2014', 'train', root)
    assert 'instances_train2014.json' in str(caught.value) and '\n' not in str(caught.value)


def test_truncated_json_is_named(root):
    path = root / 'annotations' / 'instances_train2014.json'
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match=r'instances_train2014.json: is not whole JSON'):
        msff_timm.data.load('coco2014', 'train', root)


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
        (('coco2014', 'val', '.'), "unknown split of coco2014 'val': choose from train, validation."),
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
    got = {row['image_id']: {label_names[k] for k in row['labels']} for row in dataset.remove_columns('image')}
    if split == 'train':
        assert len(dataset) == len(content['images'])
        got = {image_id: labels for image_id, labels in got.items() if labels}
    assert len(label_names) == 80 and got == dict(expected)
    assert all(0 < area <= 1 for areas in dataset['area'] for area in areas)
