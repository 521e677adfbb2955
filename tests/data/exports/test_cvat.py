import json
import shutil
from xml.etree import ElementTree

import pytest
from exported import draw, fails, labels_of, recognised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msff_timm.data import label_names, load, notes
from msff_timm.errors import InputError

META = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <{kind}>
      <id>7</id>
      <name>demo</name>
      {subset}
      <labels>
        <label><name>sunny</name><color>#66ff66</color><type>tag</type><attributes></attributes></label>
        <label>
          <name>car</name><color>#2080c0</color><type>any</type>
          <attributes><attribute><name>color</name><input_type>select</input_type></attribute></attributes>
        </label>
        <label><name>person</name><color>#c06060</color><type>skeleton</type><attributes></attributes></label>
        <label><name>nose</name><type>points</type><attributes></attributes><parent>person</parent></label>
        <label><name>unused</name><type>any</type><attributes></attributes></label>
      </labels>
      <owner><username>me</username><email></email></owner>
    </{kind}>
    <dumped>2024-05-01 10:00:00.000000+00:00</dumped>
  </meta>
"""
SHAPES = {
    'sunny': '<tag label="sunny" source="manual"></tag>',
    'car': (
        '<box label="car" source="manual" occluded="0" xtl="1.00" ytl="1.00" xbr="3.00" ybr="4.00" z_order="0">'
        '<attribute name="color">red</attribute></box>'
        '<polygon label="car" source="auto" occluded="0" points="1.00,2.00;3.00,4.00;5.00,6.00" z_order="0"></polygon>'
    ),
    'person': (
        '<skeleton label="person" source="manual" z_order="0">'
        '<points label="nose" source="manual" outside="0" occluded="0" points="1.00,2.00"></points></skeleton>'
    ),
    'tree': '<mask label="tree" source="manual" occluded="0" rle="3, 5" left="1" top="1" width="4" height="2"></mask>',
}
NAMES = ['sunny', 'car', 'person', 'unused']


def xml(images, kind='task', subset=''):
    """CVAT for images 1.1; images are (name, subset, labels)."""
    lines = [META.format(kind=kind, subset=subset)]
    for number, (name, part, labels) in enumerate(images):
        state = f' subset="{part}" task_id="3"' if part else ''
        lines.append(f'  <image id="{number}" name="{name}"{state} width="8" height="8">')
        lines += [f'    {SHAPES[label]}' for label in labels] + ['  </image>']
    return '\n'.join([*lines, '</annotations>\n'])


def write(root, images, folder='images', **settings):
    for number, (name, part, _) in enumerate(images):
        draw(root / folder / (part or '') / name, number)
    (root / 'annotations.xml').write_text(xml(images, **settings), encoding='utf-8')
    return root


TASK = [('a.png', None, ['car', 'sunny']), ('deep/b.png', None, ['person']), ('c.png', None, [])]
PROJECT = [('a.png', 'Train', ['car']), ('a.png', 'Validation', ['sunny', 'tree']), ('b.png', 'Validation', [])]


def test_load_cvat_reads_task(tmp_path):
    write(tmp_path, TASK)
    expected = {'images/a.png': {'car', 'sunny'}, 'images/deep/b.png': {'person'}, 'images/c.png': set()}
    assert labels_of('cvat', 'train', tmp_path) == labels_of('cvat', 'train', tmp_path / 'annotations.xml') == expected
    dataset = load('cvat', 'train', str(tmp_path))
    assert label_names(dataset) == NAMES and not any(dataset['ignore'])
    assert '1 of 3 images have no labels (data.keep_unlabelled)' in notes(dataset)
    assert len(labels_of('cvat', 'train', tmp_path, keep_unlabelled=False)) == 2
    fails('cvat', tmp_path, 'no split validation', split='validation')


def test_load_cvat_reads_project(tmp_path):
    write(tmp_path, PROJECT, kind='project')
    assert labels_of('cvat', 'train', tmp_path) == {'images/Train/a.png': {'car'}}
    validation = {'images/Validation/a.png': {'sunny', 'tree'}, 'images/Validation/b.png': set()}
    assert labels_of('cvat', 'validation', tmp_path) == validation
    dataset = load('cvat', 'train', str(tmp_path))
    assert label_names(dataset) == [*NAMES, 'tree'] and 'splits: by the subsets of the export' in notes(dataset)
    names = ['tree', 'sunny', 'car']
    assert label_names(load('cvat', 'train', str(tmp_path), label_names=names)) == names
    fails('cvat', tmp_path, 'a.png', "unknown label 'tree'", label_names=['car', 'sunny'])
    fails('cvat', tmp_path, 'no split test', split='test')


@pytest.mark.parametrize(
    'subsets', [('default', 'Train'), ('Train', 'batch 2')], ids=['some in none', 'some in one that is no split']
)
def test_load_cvat_refuses_images_in_no_split(tmp_path, subsets):
    write(tmp_path, [(f'{number}.png', subset, ['car']) for number, subset in enumerate(subsets)])
    fails('cvat', tmp_path, 'is no split, but others are in train')


def test_load_cvat_reads_subset_of_task_and_folders(tmp_path):
    write(tmp_path / 'val', TASK, subset='<subset>Val</subset>')
    assert len(labels_of('cvat', 'validation', tmp_path / 'val')) == 3
    fails('cvat', tmp_path / 'val', 'no split train')
    images = [('train/a.png', None, ['car']), ('val/a.png', None, ['sunny'])]
    write(tmp_path / 'folders', images)
    assert labels_of('cvat', 'validation', tmp_path / 'folders') == {'images/val/a.png': {'sunny'}}


def test_load_cvat_reads_several_tasks_together(tmp_path):
    for number, labels in enumerate((['car'], ['sunny', 'tree'])):
        write(tmp_path / f'task_{number}', [('a.png', None, labels)])
    assert labels_of('cvat', 'train', tmp_path) == {
        'task_0/images/a.png': {'car'},
        'task_1/images/a.png': {'sunny', 'tree'},
    }
    assert label_names(load('cvat', 'train', str(tmp_path))) == [*NAMES, 'tree']


@pytest.mark.parametrize('folder', ['images', '', 'elsewhere'])
def test_load_cvat_finds_images(tmp_path, folder):
    """Beside the file, in `images`, or where a setting says; frames of a video have no suffix in their names."""
    images = [('a.png', None, ['car']), ('frame_000001', None, ['sunny'])]
    draw(tmp_path / folder / 'a.png', 1)
    draw(tmp_path / folder / 'frame_000001.png', 2)
    (tmp_path / 'annotations.xml').write_text(xml(images))
    if folder == 'elsewhere':
        fails('cvat', tmp_path, 'not in', '2 of 2', "'a.png'", 'data.image_root')
    image_root = str(tmp_path / folder) if folder == 'elsewhere' else None
    found = labels_of('cvat', 'train', tmp_path, image_root=image_root)
    assert {path.rpartition('/')[2]: labels for path, labels in found.items()} == {
        'a.png': {'car'},
        'frame_000001.png': {'sunny'},
    }


def test_load_cvat_reports_missing_images(tmp_path):
    write(tmp_path, TASK)
    (tmp_path / 'images' / 'c.png').unlink()
    with pytest.warns(match=r"images that are not in .*: 1 of 3 \(e.g. 'c.png'\)"):
        assert len(labels_of('cvat', 'train', tmp_path)) == 2
    fails('cvat', tmp_path, '1 of 3', 'Fix the files', missing='error')


def datumaro(images, names):
    """CVAT's Datumaro 1.0; images are (path, numbers of labels)."""
    labels = [{'name': name, 'parent': '', 'attributes': []} for name in names]
    items = []
    for path, numbers in images:
        shapes = [
            {'id': 0, 'type': 'label', 'attributes': {'a': 'b'}, 'group': 0, 'label_id': number} for number in numbers
        ]
        shapes += [{'id': 0, 'type': 'bbox', 'label_id': None, 'bbox': [1.0, 1.0, 2.0, 2.0]}]
        image = {'path': path, 'size': [8, 8]}
        items.append({'id': path.rpartition('.')[0], 'annotations': shapes, 'attr': {'frame': 0}, 'image': image})
    categories = {'label': {'labels': labels, 'attributes': []}, 'points': {'items': []}}
    return json.dumps({'info': {}, 'categories': categories, 'items': items})


@pytest.fixture
def project(tmp_path):
    (tmp_path / 'annotations').mkdir()
    for subset, numbers in (('Train', ([1, 0], [])), ('Validation', ([2, 2],))):
        images = [(f'{number}.png', labels) for number, labels in enumerate(numbers)]
        for number, (path, _) in enumerate(images):
            draw(tmp_path / 'images' / subset / path, number)
        (tmp_path / 'annotations' / f'{subset}.json').write_text(datumaro(images, ['sun', 'car', 'fog']))
    return tmp_path


def test_load_cvat_reads_datumaro(project):
    assert labels_of('cvat', 'train', project) == {'images/Train/0.png': {'sun', 'car'}, 'images/Train/1.png': set()}
    assert labels_of('cvat', 'validation', project) == {'images/Validation/0.png': {'fog'}}
    assert label_names(load('cvat', 'train', str(project))) == ['sun', 'car', 'fog']
    assert recognised('cvat', project) == 'annotations/Train.json'


@pytest.mark.parametrize(
    'change',
    [
        lambda content: content.pop('items'),
        lambda content: content['items'][0]['annotations'][0].update(label_id=3),
        lambda content: content['items'][0]['annotations'][0].update(label_id='sun'),
        lambda content: content['categories']['label']['labels'][0].update(name=['sun']),
        lambda content: content['categories'].update(label=None),
        lambda content: content['items'].append(None),
    ],
)
def test_load_cvat_refuses_invalid_datumaro(project, change):
    path = project / 'annotations' / 'Train.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    fails('cvat', project, 'Train.json')


def test_load_cvat_refuses_others(tmp_path):
    fails('cvat', tmp_path / 'absent', 'absent')
    fails('cvat', tmp_path, 'contains no export of CVAT')
    write(tmp_path, TASK)
    path = tmp_path / 'annotations.xml'
    text = path.read_text()
    path.write_text(text[:-20])
    fails('cvat', tmp_path, 'annotations.xml', 'is not valid XML')
    path.write_text(text.replace('name="a.png"', 'name=""'))
    fails('cvat', tmp_path, "the image 0 has the name ''")
    path.write_text(text.replace('<image', '<track id="0" label="car"></track><image', 1))
    fails('cvat', tmp_path, 'CVAT for images 1.1')
    path.write_bytes(text.encode('utf-8').replace(b'sunny', b'\xff'))
    fails('cvat', tmp_path, 'annotations.xml')
    path.write_text(text[: text.index('<image')] + '</annotations>')
    fails('cvat', tmp_path, '0 of 0')


def test_recognise_cvat(tmp_path):
    assert recognised('cvat', write(tmp_path / 'cvat', TASK)) == 'annotations.xml'
    voc = tmp_path / 'voc' / 'Annotations'
    voc.mkdir(parents=True)
    (voc / '1.xml').write_text('<annotation><filename>1.png</filename></annotation>')
    (voc / 'coco.json').write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "label"}]}')
    assert recognised('cvat', tmp_path / 'voc') is None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.filterwarnings('ignore:.*images that are not in')
def test_load_cvat_gives_labels_or_a_message(tmp_path, data):
    if not (tmp_path / 'annotations.xml').exists():
        write(tmp_path, PROJECT, kind='project')
    tree = ElementTree.fromstring(xml(PROJECT, kind='project'))
    node = data.draw(st.sampled_from(list(tree.iter())))
    value = data.draw(st.sampled_from(['', ' ', 'car', '../a.png', 'a\nb', '\u2028', 'Test']))
    if node.attrib and data.draw(st.booleans()):
        node.set(data.draw(st.sampled_from(sorted(node.attrib))), value)
    elif data.draw(st.booleans()):
        node.text = value
    else:
        del node[:]
        node.tag = data.draw(st.sampled_from(['image', 'meta', 'label', 'box']))
    (tmp_path / 'annotations.xml').write_text(ElementTree.tostring(tree, encoding='unicode'))
    try:
        found = labels_of('cvat', 'train', tmp_path)
    except InputError as e:
        assert len(str(e).splitlines()) == 1
    else:
        assert all(path.startswith('images/') for path in found)
    shutil.rmtree(tmp_path / 'cache', ignore_errors=True)
