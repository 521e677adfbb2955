import csv
import io
import json
import shutil

import pytest
from exported import draw, fails, labels_of, masked_in, recognised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msff_timm.data import label_names, load, notes
from msff_timm.errors import InputError


def result(choices, control='tags', kind='choices', **value):
    return {
        'value': {**value, kind: choices},
        'id': 'jUc2qYVCTv',
        'from_name': control,
        'to_name': 'image',
        'type': kind,
        'origin': 'manual',
    }


def annotation(*results, **more):
    return {
        'id': 7,
        'completed_by': 1,
        'result': list(results),
        'was_cancelled': False,
        'ground_truth': False,
        'created_at': '2024-05-01T10:00:00.000000Z',
        'updated_at': '2024-05-01T10:00:00.000000Z',
        'draft_created_at': None,
        'lead_time': 3.2,
        **more,
    }


def task(number, image, *annotations, **data):
    return {
        'id': number,
        'annotations': list(annotations),
        'file_upload': image.rpartition('/')[2],
        'drafts': [{'result': [result(['draft'])]}],
        'predictions': [{'result': [result(['guess'])], 'score': 0.9}],
        'data': {'image': image, **data},
        'meta': {},
        'total_annotations': len(annotations),
    }


def write(root, tasks, name='project-3-at-2024-05-01-10-00-ab12cd34.json'):
    (root / name).write_text(json.dumps(tasks), encoding='utf-8')
    return root


@pytest.fixture
def root(tmp_path):
    """Five images as the export of images stores them: with the digits of their upload."""
    for number in range(5):
        draw(tmp_path / 'images' / f'ab12cd{number:02d}-{number}.png', number)
    return tmp_path


def upload(number):
    return f'/data/upload/3/ab12cd{number:02d}-{number}.png'


def image_id(number):
    return f'images/ab12cd{number:02d}-{number}.png'


@pytest.fixture
def tasks():
    return [
        task(1, upload(0), annotation(result(['cat']))),
        task(2, upload(1), annotation(result(['cat', 'dog']))),
        task(3, upload(2), annotation()),
        task(4, upload(3)),
        task(5, upload(4), annotation(result(['bird']), was_cancelled=True)),
    ]


def test_load_label_studio_reads_choices(root, tasks):
    write(root, tasks)
    assert labels_of('label_studio', 'train', root) == {
        image_id(0): {'cat'},
        image_id(1): {'cat', 'dog'},
        image_id(2): set(),  # annotated: none of the choices
    }
    dataset = load('label_studio', 'train', str(root))
    assert label_names(dataset) == ['cat', 'dog'] and not any(dataset['ignore'])
    assert notes(dataset)[0] == 'labels: of tags'
    assert 'not used: 2 of 5 tasks without annotations (1 annotations were skipped)' in notes(dataset)
    assert label_names(load('label_studio', 'train', str(root), label_names=['dog', 'cat'])) == ['dog', 'cat']
    fails('label_studio', root, "unknown label 'dog'", label_names=['cat'])
    fails('label_studio', root, 'no split validation', split='validation')


def test_load_label_studio_masks_labels_on_which_annotators_disagree(root):
    answers = (['cat'], ['cat', 'dog'], ['cat', 'bird'])
    several = [annotation(result(labels), completed_by=number) for number, labels in enumerate(answers)]
    truth = [annotation(result(['cat'])), annotation(result(['dog']), ground_truth=True)]
    skipped = [annotation(result(['cat'])), annotation(result(['dog']), was_cancelled=True)]
    write(root, [task(1, upload(0), *several), task(2, upload(1), *truth), task(3, upload(2), *skipped)])
    assert labels_of('label_studio', 'train', root) == {
        image_id(0): {'cat'},
        image_id(1): {'dog'},
        image_id(2): {'cat'},
    }
    assert masked_in('label_studio', 'train', root) == {
        image_id(0): {'bird', 'dog'},
        image_id(1): set(),
        image_id(2): set(),
    }
    line = 'masked: 2 labels of 1 images on which annotators disagree'
    assert line in notes(load('label_studio', 'train', str(root)))


def test_load_label_studio_unites_tasks_of_the_same_image(root):
    write(root, [task(1, upload(0), annotation(result(['cat']))), task(2, upload(0), annotation(result(['dog'])))])
    assert labels_of('label_studio', 'train', root) == {image_id(0): set()}
    assert masked_in('label_studio', 'train', root) == {image_id(0): {'cat', 'dog'}}


@pytest.mark.parametrize(
    ('reference', 'file'),
    [
        ('/data/upload/3/ab12cd34-1.png', 'ab12cd34-1.png'),
        ('/data/upload/3/ab12cd34-1.png', 'media/upload/3/ab12cd34-1.png'),
        ('/data/upload/3/ab12cd34-1.png', 'originals/1.png'),
        ('/data/upload/3/ab12cd34-my_photo_1.png', 'my photo (1).png'),  # the name of a file as it was uploaded
        ('/data/local-files/?d=photos/deep/1.png', 'deep/1.png'),
        ('/data/local-files/?d=photos%5Cdeep%5C1.png', 'photos/deep/1.png'),
        ('s3://bucket/photos/1.png', 'photos/1.png'),
        ('https://a.b/c/1%20a.png?token=x', '1 a.png'),
        ('/data/upload/3/ab12cd34-%E7%8C%AB.png', '猫.png'),
        ('1.png', '1.png'),
    ],
)
def test_load_label_studio_finds_images(tmp_path, reference, file):
    draw(tmp_path / file, 1)
    write(tmp_path, [task(1, reference, annotation(result(['cat'])))])
    assert labels_of('label_studio', 'train', tmp_path) == {file: {'cat'}}
    (line,) = (line for line in notes(load('label_studio', 'train', str(tmp_path))) if line.startswith('images:'))
    assert line.endswith(f'is {file}')


def test_load_label_studio_prefers_folders_that_agree(tmp_path):
    for folder in ('a', 'b'):
        draw(tmp_path / folder / '1.png', ord(folder))
    references = [f'/data/local-files/?d=all/{folder}/1.png' for folder in 'ab']
    write(tmp_path, [task(n, path, annotation(result([path[-7]]))) for n, path in enumerate(references)])
    assert labels_of('label_studio', 'train', tmp_path) == {'a/1.png': {'a'}, 'b/1.png': {'b'}}
    write(tmp_path, [task(1, '/data/upload/1/ab12cd34-1.png', annotation(result(['a'])))])
    fails('label_studio', tmp_path, 'may be a/1.png or b/1.png', 'data.image_root')
    assert labels_of('label_studio', 'train', tmp_path, image_root=str(tmp_path / 'a')) == {'1.png': {'a'}}
    shutil.rmtree(tmp_path / 'b')
    write(tmp_path, [task(n, path, annotation(result([path[-7]]))) for n, path in enumerate(references)])
    fails('label_studio', tmp_path, 'may both be the file a/1.png', 'data.image_root')


def test_load_label_studio_reports_missing_images(root, tasks):
    write(root, [*tasks, task(6, upload(77), annotation(result(['cat'])))])
    with pytest.warns(match=r'images that are not in .*: 1 of 4 \(e.g. .*ab12cd77-77.png'):
        assert len(labels_of('label_studio', 'train', root)) == 3
    fails('label_studio', root, '1 of 4', 'Fix the files', missing='error')
    shutil.rmtree(root / 'images')
    fails('label_studio', root, 'none of the images of 4 tasks', "'/data/upload/3/ab12cd00-0.png'", 'data.image_root')


def test_load_label_studio_reads_objects(root):
    box = {'x': 1.0, 'y': 2.0, 'width': 3.0, 'height': 4.0, 'rotation': 0}
    outline = {'points': [[1, 2], [3, 4], [5, 6]], 'closed': True}
    brush = {'format': 'rle', 'rle': [0, 1, 2]}
    results = [
        result(['cat'], 'box', 'rectanglelabels', **box),
        result(['cat'], 'box', 'rectanglelabels', **box),
        result(['dog'], 'outline', 'polygonlabels', **outline),
        result(['bird'], 'brush', 'brushlabels', **brush),
        result(['hidden'], 'visible', **box),  # a choice of the box
        result(['A tabby.'], 'caption', 'text'),
        {'type': 'relation', 'from_id': 'a', 'to_id': 'b', 'direction': 'right'},
    ]
    write(root, [task(1, upload(0), annotation(*results)), task(2, upload(1), annotation())])
    assert labels_of('label_studio', 'train', root) == {image_id(0): {'cat', 'dog', 'bird'}, image_id(1): set()}
    line = 'labels: of box, brush, outline; not labels: visible (1), caption (1)'
    assert notes(load('label_studio', 'train', str(root)))[0] == line
    only = {'label_columns': ['visible', 'box']}
    assert labels_of('label_studio', 'train', root, **only)[image_id(0)] == {'cat', 'hidden'}
    fails('label_studio', root, "unknown control in data.label_columns 'boxes'", label_columns=['boxes'])


def test_load_label_studio_needs_a_setting_for_choices_of_the_same_name(root):
    questions = [result(['yes'], 'cloudy'), result(['yes'], 'at night')]
    write(root, [task(1, upload(0), annotation(*questions))])
    fails('label_studio', root, "'yes' is a choice of both 'at night' and 'cloudy'", 'data.label_columns')
    assert labels_of('label_studio', 'train', root, label_columns=['cloudy']) == {image_id(0): {'yes'}}
    write(root, [task(1, upload(0), annotation(result(['sun'], 'weather'), result(['night'], 'time')))])
    assert labels_of('label_studio', 'train', root) == {image_id(0): {'sun', 'night'}}


def test_load_label_studio_divides_into_splits(root, tasks):
    for number, name in enumerate(('train', 'val', 'train', 'val', 'val')):
        tasks[number]['data']['split'] = name
    write(root, tasks)
    assert labels_of('label_studio', 'train', root) == {image_id(0): {'cat'}, image_id(2): set()}
    assert labels_of('label_studio', 'validation', root) == {image_id(1): {'cat', 'dog'}}
    fails('label_studio', root, 'no split test', split='test')
    tasks[0]['data']['split'] = 'first batch'
    write(root, tasks)
    fails('label_studio', root, "'first batch', which is no split")


def test_load_label_studio_divides_by_folders_or_files(tmp_path):
    for split in ('train', 'val'):
        draw(tmp_path / 'photos' / split / '1.png', len(split))
    parts = {s: [task(1, f'/data/local-files/?d={s}/1.png', annotation(result([s])))] for s in ('train', 'val')}
    write(tmp_path, parts['train'] + parts['val'])
    assert labels_of('label_studio', 'validation', tmp_path) == {'photos/val/1.png': {'val'}}
    assert label_names(load('label_studio', 'train', str(tmp_path))) == ['train', 'val']
    for split, part in parts.items():
        write(tmp_path, part, f'{split}.json')
    fails('label_studio', tmp_path, 'several exports', 'train.json')
    (path,) = tmp_path.glob('project*.json')
    assert labels_of('label_studio', 'validation', path) == {'photos/val/1.png': {'val'}}
    path.unlink()
    assert labels_of('label_studio', 'validation', tmp_path) == {'photos/val/1.png': {'val'}}
    assert label_names(load('label_studio', 'train', str(tmp_path))) == ['train', 'val']
    fails('label_studio', tmp_path, 'no split test', split='test')
    (tmp_path / 'train.json').unlink()
    fails('label_studio', tmp_path, 'no split train')


def test_load_label_studio_needs_one_field_of_images(root):
    write(root, [task(1, upload(0), annotation(result(['cat'])), mask=upload(1))])
    fails('label_studio', root, 'several fields name images (image, mask)', 'data.image_column')
    assert labels_of('label_studio', 'train', root, image_column='mask') == {image_id(1): {'cat'}}


def small(rows):
    """Rows of JSON_MIN as Label Studio's converter writes them: fields, id, controls, and the annotation."""
    after = {'annotator': 1, 'created_at': 'x', 'updated_at': 'x', 'lead_time': 1.5}
    return [
        {**data, 'id': number, **answers, 'annotation_id': annotation_id, **after}
        if annotation_id is None
        else {**data, 'id': number, **answers, 'annotator': 1, 'annotation_id': annotation_id, **after}
        for number, data, answers, annotation_id in rows
    ]


ROWS = [
    (1, {'image': upload(0), 'note': 'shot by A'}, {'tags': 'cat'}, 11),
    (2, {'image': upload(1), 'note': 'shot by B'}, {'tags': {'choices': ['cat', 'dog']}}, 12),
    (2, {'image': upload(1), 'note': 'shot by B'}, {'tags': 'dog'}, 13),
    (3, {'image': upload(2), 'note': ''}, {}, 14),
    (4, {'image': upload(3), 'note': ''}, {}, None),
]
LABELS = {image_id(0): {'cat'}, image_id(1): {'dog'}, image_id(2): set()}


def test_load_label_studio_reads_json_min(root):
    write(root, small(ROWS))
    assert labels_of('label_studio', 'train', root) == LABELS
    assert masked_in('label_studio', 'train', root)[image_id(1)] == {'cat'}
    assert recognised('label_studio', root) == 'project-3-at-2024-05-01-10-00-ab12cd34.json'


def as_csv(rows, delimiter=','):
    """Text of CSV as Label Studio's converter writes it: columns sorted, lists and objects as JSON."""
    names = sorted({name for row in rows for name in row})
    file = io.StringIO()
    writer = csv.DictWriter(file, names, quoting=csv.QUOTE_NONNUMERIC, delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return file.getvalue()


@pytest.mark.parametrize(('suffix', 'delimiter'), [('csv', ','), ('tsv', '\t')])
def test_load_label_studio_reads_csv(root, suffix, delimiter):
    path = root / f'export.{suffix}'
    path.write_text(as_csv(small(ROWS), delimiter))
    fails('label_studio', root, 'the columns tags, note may hold labels or other text', 'data.label_columns')
    assert labels_of('label_studio', 'train', root, label_columns=['tags']) == LABELS
    rows = [(number, {'image': data['image']}, *rest) for number, data, *rest in ROWS]
    path.write_text(as_csv(small(rows), delimiter))
    assert labels_of('label_studio', 'train', root) == LABELS
    assert recognised('label_studio', root) == path.name and recognised('label_studio', path) == path.name


def test_load_label_studio_reads_objects_of_json_min_and_csv(root):
    box = {'x': 1.0, 'y': 2.0, 'width': 3.0, 'height': 4.0, 'original_width': 8, 'original_height': 8}
    objects = [{**box, 'rectanglelabels': ['cat']}, {**box, 'rectanglelabels': ['dog']}]
    rows = small([(1, {'image': upload(0)}, {'box': objects}, 11), (2, {'image': upload(1)}, {'box': []}, 12)])
    expected = {image_id(0): {'cat', 'dog'}, image_id(1): set()}
    write(root, rows)
    assert labels_of('label_studio', 'train', root) == expected
    next(root.glob('*.json')).unlink()
    (root / 'export.csv').write_text(as_csv(rows))
    assert labels_of('label_studio', 'train', root) == expected


def test_load_label_studio_refuses_others(root, tasks):
    fails('label_studio', root / 'absent', 'absent')
    fails('label_studio', root, 'contains no export of Label Studio')
    write(root, [task(1, upload(0))])
    fails('label_studio', root, 'no labels in annotations')
    tasks[0]['annotations'][0]['result'] = 'cat'
    write(root, tasks)
    fails('label_studio', root, 'tasks[0]: result', "'cat'")
    tasks[0] = task(1, upload(0), annotation(result('cat')))
    write(root, tasks)
    fails('label_studio', root, 'tasks[0]', "'choices' of 'tags' is 'cat'")
    tasks[0]['data'] = None
    write(root, tasks)
    fails('label_studio', root, "tasks[0]: 'data' is None")
    path = next(root.glob('*.json'))
    path.write_text(path.read_text()[:-1])
    fails('label_studio', root, 'is not valid JSON')


def test_recognise_label_studio(root, tasks):
    assert recognised('label_studio', root) is None
    (root / 'coco.json').write_text(json.dumps({'images': [], 'annotations': [], 'categories': []}))
    (root / 'table.csv').write_text('image,labels\n')
    assert recognised('label_studio', root) is None
    write(root, [task(1, upload(0)), *tasks], 'b.json')
    assert recognised('label_studio', root) == 'b.json'
    imported = [{'data': {'image': upload(0)}, 'annotations': [{'result': [result(['cat'])]}]}]
    write(root, imported, 'b.json')
    assert recognised('label_studio', root) == 'b.json' and labels_of('label_studio', 'train', root) == {
        image_id(0): {'cat'}
    }


parts = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(['', 'cat', upload(0), '\ud800', 'a\nb']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from('choices rectanglelabels x value result annotations data image id from_name type'.split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


@pytest.mark.filterwarnings('ignore:.*images that are not in')
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_load_label_studio_gives_labels_or_a_message(root, data):
    tasks = [task(1, upload(0), annotation(result(['cat']))), task(2, upload(1), annotation(result(['dog'])))]
    rows = data.draw(st.sampled_from([tasks, small(ROWS)]))
    rows = json.loads(json.dumps(rows))
    node = rows
    while isinstance(node, (dict, list)) and node:  # replaces a part somewhere in the file
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], (dict, list)) or data.draw(st.booleans()):
            node[key] = data.draw(parts)
            break
        node = node[key]
    write(root, rows)
    try:
        found = labels_of('label_studio', 'train', root, missing='skip')
    except InputError as e:
        assert len(str(e).splitlines()) == 1
    else:
        assert found.keys() <= {image_id(number) for number in range(5)}
