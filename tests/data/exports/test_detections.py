"""What COCO-style JSON, VOC-style XML and YOLO files of tools mean, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import msff_timm.data
from made_exports import SPLITS, WRITERS, coco_json, make, save, voc_xml, write, yolo_txt
from msff_timm.data.exports import yolo_files
from msff_timm.errors import InputError

WRITER = {writer.__name__: writer for writer in WRITERS}
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))


def load(name, root, split='train', **settings):
    return msff_timm.data.load(name, split, str(root), **settings)


def read(name, root, split='train', **settings):
    """Returns the label names, and the labels of each image."""
    dataset = load(name, root, split, **settings)
    names = msff_timm.data.label_names(dataset)
    return names, {
        Path(image_id).stem: {names[label] for label in labels}
        for image_id, labels in zip(dataset['image_id'], dataset['labels'], strict=True)
    }


def refuse(name, root, message, split='train', **settings):
    with pytest.raises(InputError, match=message) as caught:
        load(name, root, split, **settings)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


# COCO


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco_leaves_out_the_group_that_no_annotation_has(tmp_path):
    root = make(WRITER['coco_roboflow'], tmp_path / 'data')
    dataset = load('coco', root)
    assert msff_timm.data.label_names(dataset) == ['cat', 'dog', 'owl']
    note = "not a label: 'animals', the group of all categories, which no annotation has"
    assert note in msff_timm.data.notes(dataset)
    # An annotation of any split makes it a label.
    entry = {'image_id': 0, 'category_id': 0, 'bbox': [0, 0, 1, 1], 'area': 1}
    edit(root / 'valid' / '_annotations.coco.json', lambda content: content['annotations'].append(entry))
    assert msff_timm.data.label_names(load('coco', root)) == ['animals', 'cat', 'dog', 'owl']
    assert msff_timm.data.label_names(load('coco', root, label_names=['dog', 'cat', 'owl'])) == ['dog', 'cat', 'owl']
    refuse('coco', root, "unknown label 'animals': choose from cat, dog, owl", 'val', label_names=['dog', 'cat', 'owl'])


def test_coco_keeps_categories_that_only_look_like_a_group(tmp_path):
    root = make(WRITER['coco_cvat'], tmp_path / 'data')
    for path in (root / 'annotations').iterdir():
        edit(path, lambda content: content['categories'].append({'id': 9, 'name': 'fox', 'supercategory': 'none'}))
    assert msff_timm.data.label_names(load('coco', root)) == ['cat', 'dog', 'owl', 'fox']


def test_coco_unites_the_categories_of_all_splits(tmp_path):
    root = make(WRITER['coco_cvat'], tmp_path / 'data')

    def change(content):  # the same id has another name there
        content['categories'][0]['name'] = 'fox'

    edit(root / 'annotations' / 'instances_Validation.json', change)
    names, labels = read('coco', root, 'val')
    assert names == ['cat', 'dog', 'owl', 'fox'] and labels == {'e': {'fox'}, 'f': {'dog', 'owl'}}
    assert read('coco', root) == (names, {stem: set(found) for stem, found in SPLITS['train'].items()})


def test_coco_masks_what_lvis_has_not_verified(tmp_path):
    """Its images lie where their URLs end, and each lists the categories that it verifiably lacks."""
    content = coco_json(SPLITS['train'])
    absent = {'a': [3], 'b': [], 'c': [1, 2], 'd': [2]}
    for image in content['images']:
        stem = image.pop('file_name')[0]
        folder = 'val2017' if stem == 'd' else 'train2017'
        image |= {'coco_url': f'http://images.cocodataset.org/{folder}/{stem}.png', 'not_exhaustive_category_ids': []}
        image['neg_category_ids'] = absent[stem]
        save(tmp_path / 'lvis' / folder / f'{stem}.png', stem)
    write(tmp_path / 'lvis' / 'lvis_v1_train.json', json.dumps(content))
    dataset = load('auto', tmp_path / 'lvis')
    assert dataset['labels'][:] == [[0, 1], [1], [], [0, 2]]
    assert dataset['ignore'][:] == [[], [0, 2], [2], []]
    assert any(line.startswith('neg_category_ids') for line in msff_timm.data.notes(dataset))


@pytest.mark.parametrize(
    'file_name',
    [
        'images/{}.png',
        'images\\{}.png',
        '..\\..\\label-studio\\media\\upload\\4\\{}.png',
        '/data/upload/1/{}.png',
        'http://localhost:8080/data/upload/1/{}.png?a=b',
        './{}.png',
    ],
)
def test_coco_finds_images_of_label_studio(file_name, tmp_path):
    for stem in SPLITS['train']:
        save(tmp_path / 'data' / 'images' / f'{stem}.png', stem)
    write(tmp_path / 'data' / 'result.json', json.dumps(coco_json(SPLITS['train'], file_name, 0)))
    assert read('auto', tmp_path / 'data')[1] == {stem: set(found) for stem, found in SPLITS['train'].items()}
    refuse('auto', tmp_path / 'data', 'has no split validation: no file or folder is named by one', 'val')
    (tmp_path / 'data' / 'images').rename(tmp_path / 'elsewhere')
    refuse('coco', tmp_path / 'data', r'images that are not in .*: 4 of 4 \(images\[0\] names ')
    assert len(load('coco', tmp_path / 'data', image_root=str(tmp_path / 'elsewhere'))) == 4


def test_coco_never_takes_the_image_of_another_folder(tmp_path):
    root = tmp_path / 'data'
    names = {'x/1': ['cat'], 'y/1': ['dog'], 'z/2': ['owl']}
    for name in ('y/1', 'z/2'):
        save(root / f'{name}.png', 'a')
    write(root / 'all.json', json.dumps(coco_json(names)))
    with pytest.warns(UserWarning, match=r"skipped images that are not in .*: 1 of 3 \(images\[0\] names 'x/1.png'"):
        assert load('coco', root)['labels'][:] == [[1], [2]]
    refuse('coco', root, 'images that are not in', missing='error')
    save(root / 'copy' / 'y' / '1.png', 'a')
    (root / 'all.json').rename(root / 'more.json')
    dataset = load('coco', root, missing='skip')
    assert dataset['image_id'][:] == ['y/1.png', 'z/2.png']


def test_coco_refuses_what_it_cannot_decide(tmp_path):
    root = make(WRITER['coco_names_in_file'], tmp_path / 'data')
    (root / 'valid' / '0.png').unlink()  # train/0.png and test/0.png are not of this split
    with pytest.warns(UserWarning, match='skipped'):
        assert len(load('coco', root, 'val', missing='skip')) == 1
    for name in 'pq':
        shutil.copytree(root / 'train', root / name)
    shutil.rmtree(root / 'train')
    refuse('coco', root, r"train_annotations.json: images\[0\] has file_name '0.png', which may be p/0.png or q/0.png")
    shutil.copy(root / 'test_annotations.json', root / 'annotations_test.json')
    refuse('coco', root, 'both annotations_test.json and test_annotations.json are COCO-style JSON of the split test')
    shutil.rmtree(root)
    write(root / 'a.json', json.dumps(coco_json(SPLITS['train'])))
    write(root / 'b.json', json.dumps(coco_json(SPLITS['train'])))
    refuse('coco', root, 'both a.json and b.json are COCO-style JSON without a split in the name: set data.root to one')


def test_coco_prefers_instances_and_says_what_it_leaves(tmp_path):
    root = make(WRITER['coco_cvat'], tmp_path / 'data')
    for name in ('person_keypoints_Train.json', 'instances_all.json'):
        shutil.copy(root / 'annotations' / 'instances_Train.json', root / 'annotations' / name)
    notes = msff_timm.data.notes(load('coco', root))
    assert notes[0] == 'not read: annotations/instances_all.json (no split in the name)'
    assert notes[1].startswith('splits: by the names of the files (annotations/instances_Train.json, ')


def test_coco_keeps_unlabelled_images_unless_told(tmp_path):
    root = make(WRITER['coco_roboflow'], tmp_path / 'data')
    assert [len(load('coco', root, 'test', keep_unlabelled=keep)) for keep in (None, True, False)] == [2, 2, 1]


# VOC


def test_voc_reads_images_in_one_folder(tmp_path):
    """labelImg writes no XML for an image that was not saved: it is not the same as one without objects."""
    root = tmp_path / 'data'
    for stem, labels in SPLITS['train'].items():
        save(root / f'{stem}.png', stem)
        write(root / f'{stem}.xml', voc_xml(stem, labels))
    save(root / 'z.png', 'z')
    write(root / 'annotations.xml', '<annotations><version>1.1</version></annotations>')  # of CVAT
    with pytest.warns(UserWarning, match=r"skipped images without valid XML: 1 of 5 \('z.png'\)"):
        assert read('voc', root) == (['cat', 'dog', 'owl'], {s: set(found) for s, found in SPLITS['train'].items()})
    refuse('voc', root, 'images without valid XML', missing='error')
    (root / 'a.png').unlink()
    (root / 'z.png').unlink()
    with pytest.warns(UserWarning, match=r"skipped images that are not in .*: 1 of 4 \('a.xml'\)"):
        assert len(load('auto', root)) == 3


def test_voc_has_own_labels_even_if_they_are_of_voc(tmp_path):
    root = tmp_path / 'data'
    for split, label in (('train', 'cat'), ('val', 'dog')):
        save(root / split / f'{label}.png', 'a')
        write(root / split / f'{label}.xml', voc_xml(label, [label]).replace('>0</d', '>1</d'))
    assert read('voc', root, difficult='positive') == (['cat', 'dog'], {'cat': {'cat'}})
    assert load('voc', root)['ignore'][:] == [[0]]
    assert read('voc', root, 'val', difficult='positive')[1] == {'dog': {'dog'}}
    refuse('voc', root, "cat.xml: unknown label 'cat': did you mean|cat.xml: unknown label", label_names=['dog', 'owl'])


def test_voc_reads_lists_with_quotes_folders_and_images_without_xml(tmp_path):
    root = tmp_path / 'data'
    for name in ('sub/a', 'my b', 'c'):
        save(root / 'JPEGImages' / f'{name}.png', name[-1])
        write(root / 'Annotations' / f'{name}.xml', voc_xml(name, ['cat']))
    write(root / 'ImageSets' / 'Main' / 'trainval.txt', 'sub/a\n"my b"\nc.png\nnone\n')
    with pytest.warns(UserWarning, match=r"skipped images that are not in .*: 1 of 4 \('none'\)"):
        assert set(read('voc', root)[1]) == {'a', 'my b', 'c'}
    write(root / 'ImageSets' / 'Main' / 'train.txt', 'c\n')
    dataset = load('voc', root)
    assert len(dataset) == 1 and msff_timm.data.notes(dataset) == ['splits: by the lists in ImageSets/Main']
    refuse('voc', root, r'has no split validation \(found: train\)', 'val')


def test_voc_refuses_two_images_of_one_annotation(tmp_path):
    save(tmp_path / 'data' / 'a.png', 'a')
    save(tmp_path / 'data' / 'a.jpg', 'a')
    write(tmp_path / 'data' / 'a.xml', voc_xml('a', ['cat']))
    refuse('voc', tmp_path / 'data', r'a.xml: may be of a.jpg or a.png: remove one of them')
    refuse('voc', save(tmp_path / 'other' / 'b.png', 'b').parent, 'contains no XML of VOC')


# YOLO


@pytest.fixture
def yolo(tmp_path):
    return make(WRITER['yolo_roboflow'], tmp_path / 'data')


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('3 0.5 0.5 0.1 0.1', r'a.txt: line 2 has class 3: .*data.yaml names 3 classes, from 0 to 2'),
        ('-1 0.5 0.5 0.1 0.1', 'line 2 has class -1'),
        ('0.5 0.5 0.5 0.1 0.1', "line 2 is '0.5 0.5 0.5 0.1 0.1': must be a class number and a box or a polygon"),
        ('cat 0.5 0.5 0.1 0.1', "line 2 is 'cat"),
        ('0 0.5 0.5', "line 2 is '0 0.5 0.5'"),
        ('nan 0.5 0.5 1 1', 'line 2 is'),
        ('1e400 0.5 0.5 1 1', 'line 2 is'),
        ('a photo of a cat', 'line 2 is'),
    ],
)
def test_yolo_names_file_and_line_of_a_mistake(yolo, line, message):
    write(yolo / 'train' / 'labels' / 'a.txt', f'\n{line}\n')
    refuse('yolo', yolo, message)


@pytest.mark.parametrize(
    ('line', 'area'),
    [
        ('0 0.5 0.5 0.5 0.5', 0.25),
        ('0.0 0.5 0.5 0.5 0.5 0.9', 0.25),  # with a score
        ('0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75', 0.25),  # oriented box, or polygon
        ('0 0.1 0.1 0.6 0.1 0.1 0.6', 0.25),
        ('0 0.0 0.5 0.5 1.0', 0.25),  # beyond the edge, within rounding
        ('0 120 80 30 40', None),  # pixels
        ('0 nan 0.5 0.5 0.5', None),
        ('0 0.5 0.5 -0.5 0.5', None),
    ],
)
def test_yolo_takes_area_from_box_or_polygon(yolo, line, area):
    line = line.replace('0.0 0.5 0.5 1.0', '0.245 0.5 0.5 0.5')
    write(yolo / 'train' / 'labels' / 'a.txt', line)
    with warnings.catch_warnings():
        warnings.simplefilter('error' if area else 'ignore')
        dataset = load('yolo', yolo)
    assert dataset['labels'][0] == [0]
    assert dataset['area'][0] == ([] if area is None else [pytest.approx(area, abs=0.003)])


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ("['cat', 'dog', 'owl']", '3', "names is '3': must be a list, or a mapping"),
        ("['cat', 'dog', 'owl']", "['cat', 'dog']", 'nc is 3, but there are 2 names'),
        ("['cat', 'dog', 'owl']", '[]', 'nc is 3, but there are 0 names'),
        ("['cat', 'dog', 'owl']", "['cat', ['dog'], 'owl']", r'the name of class 1 is \[.dog.\]: must be text'),
        ("['cat', 'dog', 'owl']", '{zero: cat}', 'names is .*: must be a list, or a mapping'),
        ("['cat', 'dog', 'owl']", "['cat', '', 'owl']", 'a name is empty'),
        ('../train/images', '../nothing/images', "train is '../nothing/images', which is not in"),
        ('../train/images', '{a: b}', 'train is .*: must be a folder, a list of folders, or a text file'),
        ('test:', 'training:', 'training means the split train, which another key means, too'),
    ],
)
def test_yolo_refuses_invalid_yaml(yolo, old, new, message):
    path = yolo / 'data.yaml'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    refuse('yolo', yolo, message)


def test_yolo_keeps_names_as_they_are_written(yolo):
    path = yolo / 'data.yaml'
    path.write_text(path.read_text().replace("['cat', 'dog', 'owl']", '[yes, no, 07]'))
    assert msff_timm.data.label_names(load('auto', yolo)) == ['yes', 'no', '07']
    names = ['no', '07', 'yes']
    dataset = load('auto', yolo, label_names=names)
    assert [[names[label] for label in labels] for labels in dataset['labels']][0] == ['no', 'yes']
    refuse('auto', yolo, "unknown label 'no'", label_names=['yes', '07'])


def test_yolo_finds_folders_of_another_machine_and_says_so(yolo):
    path = yolo / 'data.yaml'
    path.write_text(path.read_text().replace('../train/images', '/content/set-1/train/images'))
    dataset = load('yolo', yolo)
    assert len(dataset) == 4
    note = f"data.yaml: train is '/content/set-1/train/images', read as {yolo / 'train' / 'images'}"
    assert note in msff_timm.data.notes(dataset)
    assert yolo_files.resolve('/content/images', [yolo / 'train']) is None  # one word is no evidence
    # The folder beside the file is meant, even if another data set lies beside its folder.
    shutil.copytree(yolo / 'valid', yolo.parent / 'valid')
    dataset = load('yolo', yolo, 'val')
    assert dataset['image_id'][:] == ['valid/images/e.png', 'valid/images/f.png']


def test_yolo_needs_a_label_file_for_some_image(yolo):
    (yolo / 'train' / 'labels' / 'a.txt').unlink()
    (yolo / 'train' / 'labels' / 'b.txt').write_text('')
    dataset = load('yolo', yolo)
    assert dataset['labels'][:] == [[], [], [], [0, 2]]
    assert '1 of 4 images of train have no text file, and so no labels' in msff_timm.data.notes(dataset)
    shutil.rmtree(yolo / 'train' / 'labels')
    refuse('yolo', yolo, r'none of the 4 images of train has a text file of labels \(e.g. .*train/labels/a.txt\)')


def test_yolo_reads_lists_and_images_elsewhere(tmp_path):
    root = make(WRITER['yolo_darknet'], tmp_path / 'data')
    for path in root.rglob('*.png'):
        target = tmp_path / 'images' / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    refuse('yolo', root, r"train.txt: images that are not in .*: 4 of 4 \('data/obj_train_data/a.png'\): set data")
    expected = {stem: set(found) for stem, found in SPLITS['train'].items()}
    assert read('yolo', root, image_root=str(tmp_path / 'images'))[1] == expected
    (tmp_path / 'images' / 'obj_train_data' / 'a.png').unlink()
    with pytest.warns(UserWarning, match='skipped images that are not in .*: 1 of 4'):
        assert len(load('yolo', root, image_root=str(tmp_path / 'images'))) == 3
    refuse('yolo', root, '1 of 4', missing='error', image_root=str(tmp_path / 'images'))


def test_yolo_reads_classes_of_label_studio_and_labelimg(tmp_path):
    root = tmp_path / 'data'
    for stem, labels in SPLITS['train'].items():
        save(root / 'images' / f'{stem}.png', stem)
        write(root / 'labels' / f'{stem}.txt', yolo_txt(labels))
    write(root / 'classes.txt', 'cat\ndog\nowl\n')
    write(root / 'notes.json', '{}')
    expected = ['cat', 'dog', 'owl'], {stem: set(found) for stem, found in SPLITS['train'].items()}
    assert read('auto', root) == expected
    (root / 'classes.txt').rename(root / 'labels' / 'classes.txt')
    assert read('auto', root) == expected
    write(root / 'classes.txt', 'cat\n')
    refuse('yolo', root, 'classes.txt and labels/classes.txt name other classes')


def test_yolo_is_no_folder_of_captions_or_settings(tmp_path):
    root = tmp_path / 'data'
    save(root / 'a.png', 'a')
    write(root / 'a.txt', 'a photo of a cat')
    write(root / 'classes.txt', 'cat\n')
    write(root / 'args.yaml', 'train: true\nepochs: 3\n')
    with pytest.raises(InputError, match='no known format'):
        load('auto', root)


# Anything else that files may hold


TEXT = st.one_of(
    st.text(st.characters(codec='utf-8'), max_size=40), st.sampled_from(['', '0', '-', '[', '{', '<', 'null', '\0'])
)


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize('name', sorted(WRITER))
def test_exports_are_read_or_refused_in_one_line(name, tmp_path, data):
    root = make(WRITER[name], tmp_path / 'data')
    files = [path for path in sorted(root.rglob('*')) if path.is_file() and path.suffix != '.png']
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(start + 20, len(content))))
    path.write_bytes(content[:start] + data.draw(TEXT).encode() + content[end:])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            dataset = load(data.draw(st.sampled_from(['auto', name.partition('_')[0]])), root)
        except InputError as e:
            assert len(str(e).splitlines()) == 1 and len(str(e)) < 1200
        else:
            assert all(sorted(set(labels)) == labels for labels in dataset['labels'])
            assert all(0 <= area <= 1 or area != area for areas in dataset['area'] for area in areas)
