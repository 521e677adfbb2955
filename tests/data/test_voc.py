import gzip
import io
import os
import shutil
import tarfile
import warnings

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import msff_timm.data
from msff_timm.data import DIFFICULT, voc, voc_submission
from msff_timm.data.samples import Samples
from msff_timm.data.voc_files import VocBoxes, read_boxes
from msff_timm.errors import InputError

CAT, DOG, PERSON = (voc.LABEL_NAMES.index(name) for name in ('cat', 'dog', 'person'))
# Label, difficult, and corners of the box (counted from 1, inclusive) of each object in images of 20 x 10 pixels
OBJECTS = {
    '2008_000007': [('cat', 0, (1, 1, 10, 10)), ('cat', 0, (1, 1, 2, 2)), ('cat', 1, (1, 1, 20, 10))],
    '2008_000003': [('dog', 1, (11, 6, 20, 10)), ('dog', 1, (1, 1, 1, 1)), ('person', 0, (5, 5, 5, 5))],
    '2008_000005': [],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'msff_timm'


def xml(objects, size='<size><width>20</width><height>10</height><depth>3</depth></size>'):
    nodes = ''
    for name, difficult, corners in objects:
        box = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True))
        part = '<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>'
        nodes += f'<object><name>{name}</name>{part}<difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>\n'
    return f'<annotation><folder>VOC2012</folder>{size}\n{nodes}</annotation>\n'


@pytest.fixture
def root(tmp_path):
    """Three images in the splits trainval and val, and in a test split without class files."""
    base = tmp_path / 'VOCdevkit' / 'VOC2012'
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (base / folder).mkdir(parents=True)
    for image_id, objects in OBJECTS.items():
        Image.new('RGB', (20, 10), (int(image_id[-1]), 0, 0)).save(base / 'JPEGImages' / f'{image_id}.jpg', quality=100)
        (base / 'Annotations' / f'{image_id}.xml').write_text(xml(objects))
    for split in ('trainval', 'val', 'test'):
        (base / 'ImageSets' / 'Main' / f'{split}.txt').write_text(''.join(f'{image_id}\n' for image_id in OBJECTS))
    for split in ('trainval', 'val'):
        for name in voc.LABEL_NAMES:
            lines = ''
            for image_id, objects in OBJECTS.items():
                flags = [difficult for label, difficult, _ in objects if label == name]
                lines += f'{image_id} {-1 if not flags else 0 if all(flags) else 1:2d}\n'
            (base / 'ImageSets' / 'Main' / f'{name}_{split}.txt').write_text(lines)
    return base


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def assert_one_line(error):
    assert len(str(error).splitlines()) == 1 and str(error).isprintable() and len(str(error)) < 1200


@pytest.mark.parametrize(
    ('difficult', 'labels', 'ignore', 'areas'),
    [
        ('ignore', [[CAT], [PERSON], []], [[], [DOG], []], [[0.5], [1 / 200], []]),
        ('negative', [[CAT], [PERSON], []], [[], [], []], [[0.5], [1 / 200], []]),
        ('positive', [[CAT], [DOG, PERSON], []], [[], [], []], [[0.5], [0.25, 1 / 200], []]),
    ],
)
def test_load_voc_interprets_difficult_labels(root, difficult, labels, ignore, areas):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset = msff_timm.data.load('voc2012', 'trainval', root, difficult=difficult)
    assert dataset['image_id'][:] == list(OBJECTS)
    assert dataset['labels'][:] == labels and dataset['ignore'][:] == ignore
    assert dataset['area'][:] == areas
    assert msff_timm.data.label_names(dataset) == list(voc.LABEL_NAMES) == sorted(voc.LABEL_NAMES)
    assert dataset[1]['image'].size == (20, 10)


def test_load_voc_caches_by_difficult(root, monkeypatch):
    first = {d: msff_timm.data.load('voc2012', 'val', root, difficult=d).to_list() for d in DIFFICULT}
    monkeypatch.setattr(voc, 'read_objects', lambda *_: pytest.fail('parsed again'))
    assert first == {d: msff_timm.data.load('voc2012', 'val', root, difficult=d).to_list() for d in DIFFICULT}
    assert len({str(rows) for rows in first.values()}) == 3


def test_load_voc_reads_changed_content(root):
    msff_timm.data.load('voc2012', 'val', root)
    rewrite(root / 'Annotations' / '2008_000007.xml', '<xmax>10</xmax>', '<xmax>20</xmax>')
    assert msff_timm.data.load('voc2012', 'val', root)['area'][0] == [1.0]
    rewrite(root / 'ImageSets' / 'Main' / 'val.txt', '2008_000005\n', '')
    for name in voc.LABEL_NAMES:
        rewrite(root / 'ImageSets' / 'Main' / f'{name}_val.txt', '2008_000005 -1\n', '')
    assert len(msff_timm.data.load('voc2012', 'val', root)) == 2


def test_load_voc_accepts_year_devkit_or_parent_as_root(root, tmp_path):
    for folder in (root, root.parent, tmp_path):
        assert len(msff_timm.data.load('voc2012', 'trainval', folder)) == 3
    with pytest.raises(
        InputError,
        match=r'VOCdevkit/VOC2007 contains ImageSets/Main \(found: Annotations.*: set data.root to the root',
    ):
        msff_timm.data.load('voc2007', 'trainval', root)
    with pytest.raises(InputError, match=r'\(found: no such folder\): set data.root to the root of VOC 2012'):
        msff_timm.data.load('voc2012', 'trainval', tmp_path / 'nowhere')
    with pytest.raises(InputError, match=r'voc2012 needs data.root: set it to the folder VOC2012, or VOCdevkit'):
        msff_timm.data.load('voc2012', 'trainval')
    root.rename(root.parent / 'VOC2007')
    assert len(msff_timm.data.load('voc2007', 'trainval', tmp_path)) == 3


def test_load_voc_masks_test_split_without_class_files(root):
    shutil.rmtree(root / 'Annotations')
    dataset = msff_timm.data.load('voc2012', 'test', root)
    assert dataset['image_id'][:] == list(OBJECTS)
    assert dataset['labels'][:] == dataset['area'][:] == [[]] * 3 and dataset['ignore'][:] == [[*range(20)]] * 3


def test_load_voc_reads_line_ends_of_windows(root):
    expected = msff_timm.data.load('voc2012', 'val', root).to_list()
    for path in (root / 'ImageSets' / 'Main').iterdir():
        path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n') + b'\r\n')
    assert msff_timm.data.load('voc2012', 'val', root).to_list() == expected


def test_load_voc_reads_peculiarities_of_official_files(root):
    path = root / 'Annotations' / '2008_000007.xml'
    objects = [('cat', 0, (0, 1, '10.700000762939453', 11)), ('unicorn', 0, (9, 9, 1, 1))]
    path.write_text(xml(objects).replace('<difficult>0</difficult>', ''))
    assert msff_timm.data.load('voc2012', 'val', root)['area'][0] == [pytest.approx(10.700000762939453 * 10 / 200)]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda text: text.replace('<difficult>0', '<difficult>1'), r'1 labels .* disagree, e.g. cat in .*7.xml'),
        (lambda text: text.replace('<name>cat', '<name>dog', 1), r'1 labels .* disagree, e.g. dog in .*7.xml'),
        (lambda text: 'dog'.join(text.rsplit('cat', 1)), r'1 labels .* disagree, e.g. dog in .*7.xml'),
    ],
    ids=['only difficult ones', 'one more class', 'one more class, difficult'],
)
def test_load_voc_prefers_class_files_to_xml(root, change, message):
    path = root / 'Annotations' / '2008_000007.xml'
    path.write_text(change(path.read_text()))
    with pytest.warns(UserWarning, match=message) as caught:
        dataset = msff_timm.data.load('voc2012', 'val', root)
    assert dataset['labels'][0] == [CAT] and dataset['ignore'][0] == []
    assert len(caught) == 1 and '\n' not in str(caught[0].message)


MAIN, XML = 'ImageSets/Main/', 'Annotations/2008_000007.xml'


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'message'),
    [
        (MAIN + 'val.txt', '2008_000003', '2008_000007', r"val.txt: line 2 repeats '2008_000007' of line 1"),
        (MAIN + 'val.txt', '2008_000003', '2008_000004', r"_val.txt: line 2 has '2008_000003', which is not in"),
        (MAIN + 'val.txt', '2008_000003', '../x', r"val.txt: line 2 has '../x': must not be a path"),
        (MAIN + 'val.txt', '2008_000003', '/etc/x', r"val.txt: line 2 has '/etc/x': must not be a path"),
        (MAIN + 'val.txt', '2008_000003', '2008_000003 1', r"val.txt: line 2 is '2008_000003 1': must be one image id"),
        (MAIN + 'cat_val.txt', '07  1', '07  2', r"cat_val.txt: line 1 has '2': must be 1, 0 or -1"),
        (MAIN + 'cat_val.txt', '07  1', '07', r"cat_val.txt: line 1 is '2008_000007': must be an image id and"),
        (MAIN + 'cat_val.txt', '2008_000003', '2008_000007', r"cat_val.txt: line 2 repeats '2008_000007'"),
        (MAIN + 'cat_val.txt', '2008_000003', '2008_000004', r"cat_val.txt: line 2 has '2008_000004', which is not in"),
        (MAIN + 'cat_val.txt', '2008_000003 -1\n', '', r"cat_val.txt: lacks '2008_000003' of line 2 of .*val.txt"),
    ],
)  # fmt: skip
def test_load_voc_refuses_invalid_files(root, file, old, new, message):
    rewrite(root / file, old, new)
    with pytest.raises(InputError, match=message) as caught:
        msff_timm.data.load('voc2012', 'val', root)
    assert_one_line(caught.value)


def load_with_warning(root, split='val', name='voc2012', **arguments):
    """Returns a split and the text of its only warning, or None."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        dataset = msff_timm.data.load(name, split, root, **arguments)
    assert len(caught) <= 1
    warning = str(caught[0].message) if caught else None
    assert warning is None or (warning.isprintable() and warning.startswith(str(root)))
    return dataset, warning


@pytest.mark.parametrize(
    'changes',
    [
        {'<width>20</width>': ''},
        {'<width>20<': '<width>0<'},
        {'<height>10<': '<height>ten<'},
        {'<height>10<': '<height>nan<'},
        {'<height>10<': '<height>1e999<'},
        {'<size>': '<dimensions>', '</size>': '</dimensions>'},
        {'<xmax>10<': '<xmax>0<'},
        {'<xmax>10<': '<xmax>-9<'},
        {'<xmax>10<': '<xmax>1e999<'},
        {'<xmin>1</xmin><ymin>': '<ymin>'},
        {'<xmin>1</xmin><ymin>': '<xmin>21</xmin><ymin>'},
        {'<bndbox><xmin>1</xmin><ymin>': '<polygon><xmin>1</xmin><ymin>', '</bndbox></object>': '</polygon></object>'},
        {'</annotation>': ''},
        {'</annotation>': '</a>'},
        {'<annotation>': '<annotations>', '</annotation>': '</annotations>'},
    ],
)
def test_load_voc_loses_only_areas_by_invalid_xml(root, changes):
    for old, new in changes.items():
        rewrite(root / 'Annotations' / '2008_000007.xml', old, new)
    expected = {'labels': [[CAT], [PERSON], []], 'ignore': [[], [DOG], []], 'area': [[], [1 / 200], []]}
    for _ in range(2):  # once from the cache
        dataset, warning = load_with_warning(root)
        assert {key: dataset[key][:] for key in expected} == expected
        assert "areas of labels are unknown in 1 of 3 images (e.g. '2008_000007')" in warning
    assert np.array_equal(np.argwhere(~np.isnan(Samples(dataset, None).areas)), [[1, PERSON]])


def test_load_voc_loses_only_areas_by_missing_xml(root):
    (root / 'Annotations' / '2008_000007.xml').unlink()
    (root / 'Annotations' / '2008_000003.xml').write_bytes(b'')
    dataset, warning = load_with_warning(root)
    assert dataset['labels'][:] == [[CAT], [PERSON], []] and dataset['area'][:] == [[], [], []]
    assert 'unknown in 2 of 3 images' in warning and '1 XML files cannot be read' in warning
    (root / 'Annotations' / '2008_000007.xml').write_text(xml(OBJECTS['2008_000007']))
    assert load_with_warning(root)[0]['area'][:] == [[0.5], [], []]
    shutil.rmtree(root / 'Annotations')
    assert load_with_warning(root)[0]['labels'][:] == [[CAT], [PERSON], []]
    assert Samples(load_with_warning(root)[0], None).areas is None


def test_load_voc_keeps_areas_beside_an_unknown_one(root):
    rewrite(root / 'Annotations' / '2008_000003.xml', '<xmax>5<', '<xmax>4<')
    dataset, _ = load_with_warning(root, difficult='positive')
    dog, person = dataset['area'][1]
    assert dog == 0.25 and np.isnan(person)


@pytest.mark.parametrize('state', ['1', '0'])
def test_load_voc_keeps_labels_without_objects(root, state):
    rewrite(root / 'ImageSets' / 'Main' / 'bus_val.txt', '07 -1', f'07  {state}')
    dataset, warning = load_with_warning(root, difficult='positive')
    bus = voc.LABEL_NAMES.index('bus')
    assert dataset['labels'][0] == [bus, CAT] and np.isnan(dataset['area'][0][0]) and dataset['area'][0][1] == 0.5
    assert '1 labels of class files and XML disagree, e.g. bus in bus_val.txt and' in warning


@pytest.mark.parametrize('word', ['Unspecified', 'false', 'no', '', ' 0 ', None])
def test_load_voc_reads_words_for_difficult(root, word):
    path = root / 'Annotations' / '2008_000007.xml'
    flag = '' if word is None else f'<difficult>{word}</difficult>'
    path.write_text(xml([('cat', 0, (1, 1, 10, 10))]).replace('<difficult>0</difficult>', flag))
    dataset, warning = load_with_warning(root)
    assert dataset['area'][0] == [0.5] and warning is None
    for word in ('1', 'true', ' True ', 'yes'):
        path.write_text(xml([('cat', word, (1, 1, 10, 10))]))
        assert 'disagree, e.g. cat' in load_with_warning(root)[1]


DECLARED = '<?xml version="1.0" encoding="{}"?>\n'


@pytest.mark.parametrize(
    ('encoding', 'head'),
    [
        ('utf-8', ''), ('utf-8-sig', ''), ('utf-8', DECLARED), ('utf-8', DECLARED.format('utf-16')),
        ('utf-16', DECLARED), ('utf-16-le', DECLARED), ('utf-16-be', ''), ('gb2312', DECLARED), ('gbk', DECLARED),
        ('big5', DECLARED), ('shift_jis', DECLARED), ('gbk', ''), ('utf-8', '<!DOCTYPE annotation>'),
        ('utf-8', DECLARED + '<!DOCTYPE annotation SYSTEM "voc.dtd">'),
    ],
)  # fmt: skip
def test_load_voc_reads_encodings_of_xml(root, encoding, head):
    text = head.format(encoding) + xml(OBJECTS['2008_000007']).replace('VOC2012', '文件')
    (root / 'Annotations' / '2008_000007.xml').write_bytes(text.encode(encoding))
    dataset, warning = load_with_warning(root)
    assert dataset['area'][0] == [0.5] and warning is None


@pytest.mark.parametrize('suffix', ['.png', '.JPG', '.jpeg', '.bmp', '.WebP', '.tif'])
def test_load_voc_accepts_suffixes_of_pillow(root, suffix):
    for path in list((root / 'JPEGImages').iterdir()):
        Image.open(path).save(path.with_suffix('.new'), 'PNG')
        path.unlink()
        path.with_suffix('.new').rename(path.with_suffix(suffix))
    (root / 'JPEGImages' / '2008_000007.txt').touch()
    dataset, warning = load_with_warning(root)
    assert [row['image'].size for row in dataset] == [(20, 10)] * 3 and warning is None


def test_load_voc_refuses_two_images_of_one_id(root):
    shutil.copy(root / 'JPEGImages' / '2008_000007.jpg', root / 'JPEGImages' / '2008_000007.JPEG')
    assert load_with_warning(root)[1] is None  # `.jpg` takes precedence
    (root / 'JPEGImages' / '2008_000007.jpg').rename(root / 'JPEGImages' / '2008_000007.png')
    with pytest.raises(InputError, match=r"contains '2008_000007.JPEG' and '2008_000007.png': remove one") as caught:
        msff_timm.data.load('voc2012', 'val', root)
    assert_one_line(caught.value)


def test_load_voc_skips_missing_images_in_training_only(root):
    image = root / 'JPEGImages' / '2008_000003.jpg'
    image.rename(root / 'away.jpg')
    for split, missing in (('trainval', None), ('val', 'skip')):
        for _ in range(2):
            dataset, warning = load_with_warning(root, split, missing=missing)
            assert dataset['image_id'][:] == ['2008_000007', '2008_000005'] and dataset['labels'][:] == [[CAT], []]
            assert 'skipped images that are not in' in warning and "1 of 3 (line 2, '2008_000003')" in warning
    for split, missing in (('trainval', 'error'), ('val', None)):
        with pytest.raises(InputError, match='1 of 3 .line 2.*set missing to skip') as caught:
            msff_timm.data.load('voc2012', split, root, missing=missing)
        assert_one_line(caught.value)
    (root / 'away.jpg').rename(image)
    assert len(load_with_warning(root, 'trainval')[0]) == 3
    for path in list((root / 'JPEGImages').iterdir()):
        path.unlink()
    with pytest.raises(InputError, match='not in .*JPEGImages: 3 of 3'):
        msff_timm.data.load('voc2012', 'val', root, missing='skip')


def only_xml(root, names=None):
    """Removes all class files, and renames labels in the XML."""
    for path in (root / 'ImageSets' / 'Main').iterdir():
        if '_' in path.name:
            path.unlink()
    for path in (root / 'Annotations').iterdir():
        for old, new in (names or {}).items():
            path.write_text(path.read_text().replace(f'>{old}<', f'>{new}<'))


def test_load_voc_uses_xml_without_class_files(root):
    expected = [load_with_warning(root, difficult=d)[0].to_list() for d in DIFFICULT]
    only_xml(root)
    for difficult, rows in zip(DIFFICULT, expected, strict=True):
        dataset, warning = load_with_warning(root, difficult=difficult)
        assert dataset.to_list() == rows and 'the XML decides: the labels are the 20 of VOC' in warning
    assert load_with_warning(root, 'test')[0].to_list() == expected[0]
    (root / 'Annotations' / '2008_000003.xml').unlink()
    dataset, warning = load_with_warning(root, 'test')  # as in VOC 2012, where some test images have XML
    assert dataset['ignore'][:] == [[*range(20)]] * 3


def test_load_voc_finds_own_labels_in_xml(root):
    only_xml(root, {'cat': 'helmet', 'dog': 'vest', 'person': 'naïve 人'})
    (root / 'ImageSets' / 'Main' / 'train.txt').write_text('2008_000007\n')
    for split, labels in (('train', [[0]]), ('val', [[0], [1], []])):
        dataset, warning = load_with_warning(root, split)
        assert msff_timm.data.label_names(dataset) == ['helmet', 'naïve 人', 'vest'] and dataset['labels'][:] == labels
        assert 'the labels are helmet, naïve 人, vest' in warning
    dataset, _ = load_with_warning(root, label_names=['vest', 'helmet', 'naïve 人', 'glove'])
    assert dataset['labels'][:] == [[1], [2], []] and dataset['ignore'][:] == [[], [0], []]
    with pytest.raises(InputError, match=r"7.xml: unknown label 'helmet': choose from vest"):
        msff_timm.data.load('voc2012', 'val', root, label_names=['vest'])
    with pytest.raises(InputError, match='each label needs a name of its own'):
        msff_timm.data.load('voc2012', 'val', root, label_names=['vest', 'vest'])


def test_load_voc_finds_own_labels_in_class_files(root):
    main = root / 'ImageSets' / 'Main'
    helmet = (main / 'cat_val.txt').read_text()
    for path in list(main.glob('*_*.txt')):
        path.unlink()
    for split in ('val', 'trainval'):
        (main / f'helmet_{split}.txt').write_text(helmet)
        (main / f'safety vest_{split}.txt').write_text(helmet.replace('07  1', '07 -1').replace('05 -1', '05  0'))
    dataset, warning = load_with_warning(root)
    assert msff_timm.data.label_names(dataset) == ['helmet', 'safety vest']
    assert dataset['labels'][:] == [[0], [], []] and dataset['ignore'][:] == [[], [], [1]]
    assert 'the labels are those of the class files: helmet, safety vest' in warning
    dataset, warning = load_with_warning(root, label_names=['safety vest', 'helmet'])
    assert dataset['labels'][:] == [[1], [], []] and 'those of the class files' not in warning
    (main / 'helmet_val.txt').unlink()
    with pytest.raises(InputError, match=r'helmet_val.txt: is missing, as are 1 of the 2 class files'):
        msff_timm.data.load('voc2012', 'val', root)
    assert load_with_warning(root, label_names=['safety vest'])[0]['ignore'][:] == [[], [], [0]]
    (main / 'safety vest_val.txt').rename(main / 'cat_val.txt')
    (main / 'safety vest_trainval.txt').unlink()
    (main / 'helmet_trainval.txt').unlink()
    with pytest.raises(InputError, match=r'class files of only 1 of the 20 labels of VOC .cat.: .* set label_names'):
        msff_timm.data.load('voc2012', 'val', root)
    assert load_with_warning(root, label_names=['cat'])[0]['ignore'][:] == [[], [], [0]]


def test_load_voc_warns_of_unused_class_files(root):
    shutil.copy(root / 'ImageSets' / 'Main' / 'cat_val.txt', root / 'ImageSets' / 'Main' / 'kitten_val.txt')
    dataset, warning = load_with_warning(root)
    assert len(msff_timm.data.label_names(dataset)) == 20 and 'not used: kitten; set label_names' in warning


def test_load_voc_needs_xml_without_class_files(root):
    only_xml(root)
    (root / 'Annotations' / '2008_000007.xml').write_text('<annotation>')
    rewrite(root / 'Annotations' / '2008_000003.xml', '<name>dog</name>', '')
    with pytest.raises(InputError, match="images without valid XML: 1 of 3 .'2008_000007'.; objects without"):
        msff_timm.data.load('voc2012', 'val', root)
    dataset, warning = load_with_warning(root, 'trainval')
    assert dataset['image_id'][:] == ['2008_000003', '2008_000005'] and dataset['labels'][:] == [[PERSON], []]
    assert "objects without a name in 1 images ('2008_000003')" in warning
    shutil.rmtree(root / 'Annotations')
    with pytest.raises(InputError, match=r'Main: contains no class files .*trainval.txt.*Annotations contains no XML'):
        msff_timm.data.load('voc2012', 'trainval', root)


def test_load_voc_reads_encodings_of_lists(root):
    expected = msff_timm.data.load('voc2012', 'val', root).to_list()
    for path in (root / 'ImageSets' / 'Main').glob('*val.txt'):
        path.write_text(path.read_text(), encoding='utf-16' if 'cat' in path.name else 'utf-8-sig')
    assert load_with_warning(root)[0].to_list() == expected


def test_load_voc_reads_cases(cases):
    folders = sorted(path for path in (cases / 'voc_variants').iterdir() if path.is_dir())
    unknown = ('box_nan', 'box_swapped', 'no_bndbox', 'no_name', 'no_size', 'size_zero')
    for folder in folders:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            dataset = msff_timm.data.load('voc2007', 'train', folder)
        labels = [[0], [2], [1]] if folder.name == 'own_classes' else [[DOG], [CAT], [PERSON]]
        area = [] if folder.name in unknown else [1.0 if folder.name == 'box_from_zero' else 18 * 18 / (48 * 40)]
        assert dataset['labels'][:] == labels and dataset['area'][:] == [area] * 3, folder
        assert len(caught) == (folder.name in (*unknown, 'own_classes', 'no_class_files')), folder
        assert {row['image'].size for row in dataset} == {(48, 40)}, folder
    assert len(folders) >= 20


def test_load_voc_names_missing_files(root):
    with pytest.raises(InputError, match=r"unknown split of voc2012 'valid': did you mean validation\?"):
        msff_timm.data.load('voc2012', 'valid', root)
    with pytest.raises(InputError, match=r'Main/train.txt: is missing .*: unpack VOC 2012 train into .*VOC2012'):
        msff_timm.data.load('voc2012', 'train', root)
    (root / 'ImageSets' / 'Main' / 'cat_val.txt').unlink()
    with pytest.raises(InputError, match=r'cat_val.txt: is missing, as are 1 of the 20 class files'):
        msff_timm.data.load('voc2012', 'val', root)
    for path in (root / 'ImageSets' / 'Main').glob('*_val.txt'):
        path.unlink()
    with pytest.raises(
        InputError, match=r'aeroplane_val.txt: is missing, as are 20 of the 20 class files of this split'
    ):
        msff_timm.data.load('voc2012', 'val', root)
    (root / 'ImageSets' / 'Main' / 'dog_test.txt').touch()
    with pytest.raises(InputError, match=r'aeroplane_test.txt: is missing, as are 19 of the 20 class files'):
        msff_timm.data.load('voc2012', 'test', root)
    (root / 'JPEGImages' / '2008_000003.jpg').unlink()
    with pytest.raises(
        InputError, match=r"val.txt: images that are not in .*JPEGImages: 1 of 3 .line 2, '2008_000003'"
    ):
        msff_timm.data.load('voc2012', 'trainval', root, missing='error')
    shutil.rmtree(root / 'JPEGImages')
    with pytest.raises(InputError, match=r'JPEGImages: is missing'):
        msff_timm.data.load('voc2012', 'trainval', root)
    (root / 'ImageSets' / 'Main' / 'trainval.txt').write_text('\n')
    with pytest.raises(InputError, match=r'trainval.txt: contains no image ids'):
        msff_timm.data.load('voc2012', 'trainval', root)


ENTITIES = ''.join(f'<!ENTITY a{k + 1} "{f"&a{k};" * 10}">' for k in range(12))
LAUGHS = f'<!DOCTYPE a [<!ENTITY a0 "ha">{ENTITIES}]>'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
@pytest.mark.parametrize(
    'document',
    [
        LAUGHS + '<annotation>&a12;</annotation>',
        '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
        '<!DOCTYPE a [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><annotation/>',
    ],
)
def test_load_voc_refuses_entities(root, document, encoding):
    (root / 'Annotations' / '2008_000007.xml').write_bytes(document.encode(encoding))
    dataset, warning = load_with_warning(root)
    assert dataset['area'][:] == [[], [1 / 200], []]
    assert '7.xml: is not XML of VOC (it declares an entity' in warning


@pytest.mark.parametrize(
    'document',
    [
        b'',
        b'\xff\xfe',
        b'<?xml version="1.0" encoding="no-such"?><annotation/>',
        b'<?xml version="1.0" encoding="hex"?><annotation/>',
        b'<?xml version="1.0" encoding="utf-7"?><annotation>+2AA-</annotation>',
        b'<a>' * 100_000,
        b'<a>' * 100_000 + b'</a>' * 100_000,
        b'<annotation>' + b'<a>' * 100_000 + b'</a>' * 100_000 + b'</annotation>',
        b'<annotation><size><width>' + b'9' * 10_000 + b'</width></size></annotation>',
    ],
    ids=range(9),
)
def test_load_voc_loses_only_areas_by_other_xml(root, document):
    (root / 'Annotations' / '2008_000007.xml').write_bytes(document)
    dataset, warning = load_with_warning(root)
    assert dataset['labels'][:] == [[CAT], [PERSON], []] and dataset['area'][:] == [[], [1 / 200], []]
    assert '7.xml' in warning and len(warning) < 1200


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PIECES = st.sampled_from(['cat', '1', '-1', '0', '\n', ' ', '../', '2008_000003', '<object>', '</object>', '&a;'])


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize('file', [MAIN + 'val.txt', MAIN + 'cat_val.txt', XML])
def test_load_voc_reads_or_refuses_any_change(root, file, data):
    original = (root / file).read_bytes()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(original))] * 2)))
    stop = data.draw(st.sampled_from([start, stop, min(start + 1, len(original)), len(original)]))
    inserted = data.draw(st.binary(max_size=6) | PIECES.map(str.encode) | st.text(max_size=3).map(str.encode))
    (root / file).write_bytes(original[:start] + inserted + original[stop:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dataset = voc.load('voc2012', 'validation', root, data.draw(st.sampled_from(DIFFICULT)))
    except InputError as e:
        assert_one_line(e)
        assert str(root) in str(e) and (os.path.basename(file) in str(e) or 'val.txt' in str(e))
    else:
        for row in dataset.remove_columns('image'):
            assert len(row['area']) in (0, len(row['labels'])) and not set(row['labels']) & set(row['ignore'])
            assert all(0 < area <= 1 or area != area for area in row['area'])
            assert file != XML or row['labels'] in ([CAT], [PERSON], [DOG, PERSON], [])
    finally:
        (root / file).write_bytes(original)


@FUZZ
@given(data=st.data())
def test_load_voc_reads_any_value_in_xml(root, data):
    path = root / 'Annotations' / '2008_000007.xml'
    original = path.read_text()
    tag = data.draw(st.sampled_from(['width', 'height', 'name', 'difficult', 'xmin', 'ymin', 'xmax', 'ymax']))
    value = data.draw(st.integers() | st.floats() | st.text(st.characters(codec='utf-8'), max_size=5))
    before, after = original.split(f'<{tag}>', 1)
    path.write_text(f'{before}<{tag}>{value}{after[after.index(f"</{tag}>") :]}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dataset = voc.load('voc2012', 'validation', root)
    finally:
        path.write_text(original)
    assert dataset['labels'][:] == [[CAT], [PERSON], []] and dataset['ignore'][:] == [[], [DOG], []]
    assert all(0 < area <= 1 or area != area for areas in dataset['area'] for area in areas)


SCORES = np.random.default_rng(0).random((3, 20), np.float32)


@pytest.mark.parametrize('suffix', ['.tar', '.tar.gz', '.tgz'])
def test_write_submission_writes_files_of_comp2(root, tmp_path, suffix):
    scores = SCORES.copy()
    scores[0, :3] = 1e-12, 1.0, 0.25
    path = tmp_path / 'new' / f'submission{suffix}'
    voc.write_submission(path, list(OBJECTS), scores, voc.LABEL_NAMES)
    voc.check_submission(path, root)
    voc.check_submission(path, root.parent)
    voc.check_submission(path, list(OBJECTS))
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f'results/VOC2012/Main/comp2_cls_test_{name}.txt' for name in voc.LABEL_NAMES]
        assert all(entry.mtime == entry.uid == 0 and entry.isreg() for entry in tar)
        lines = [tar.extractfile(name).read().decode().splitlines() for name in tar.getnames()]
    assert [line.split()[0] for line in lines[5]] == list(OBJECTS)
    assert [column[0] for column in lines[:3]] == [
        '2008_000007 0.000000000001', '2008_000007 1.000000', '2008_000007 0.250000',
    ]  # fmt: skip
    assert (np.array([[line.split()[1] for line in column] for column in lines], np.float32).T == scores).all()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_write_submission_is_deterministic_in_any_order(tmp_path):
    order = np.random.default_rng(1).permutation(20)
    voc.write_submission(tmp_path / 'a.tar.gz', list(OBJECTS), SCORES, voc.LABEL_NAMES)
    names = [voc.LABEL_NAMES[label] for label in order]
    voc.write_submission(tmp_path / 'b.tar.gz', list(OBJECTS), SCORES[:, order], names)
    assert (tmp_path / 'a.tar.gz').read_bytes() == (tmp_path / 'b.tar.gz').read_bytes()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'path': 'a.zip'}, r'a.zip: must end in .tar or .tar.gz'),
        ({'image_ids': ['1', '2']}, r'type float32 and shape \(3, 20\): must be numbers of shape \(2, 20\)'),
        ({'image_ids': ['1', '2', '1']}, r"image_ids\[2\] repeats '1'"),
        ({'image_ids': ['1', '2', 'a b']}, r"image_ids\[2\] is 'a b': must be an image id of VOC"),
        ({'image_ids': ['1', '2', 3]}, r'image_ids\[2\] is 3: must be an image id of VOC'),
        ({'image_ids': [], 'scores': SCORES[:0]}, r'image_ids is empty'),
        ({'scores': SCORES[:, :19]}, r'shape \(3, 19\)'),
        ({'scores': np.where(SCORES == SCORES[1, 2], np.nan, SCORES)}, r'score of 2 for bird is not finite'),
        ({'scores': SCORES.astype(str)}, r'must be numbers of'),
        ({'label_names': voc.LABEL_NAMES[:19]}, r'label names lack tvmonitor'),
        ({'label_names': (*voc.LABEL_NAMES, 'cat')}, r'label names repeat a label'),
        ({'label_names': (*voc.LABEL_NAMES[:19], 'tv')}, r"unknown label of VOC 'tv'"),
    ],
)
def test_write_submission_refuses_invalid_arguments(tmp_path, change, message):
    arguments = {'path': 'a.tar', 'image_ids': ['1', '2', '3'], 'scores': SCORES, 'label_names': voc.LABEL_NAMES}
    arguments |= change
    with pytest.raises(InputError, match=message) as caught:
        voc.write_submission(tmp_path / arguments.pop('path'), **arguments)
    assert_one_line(caught.value)
    assert not list(tmp_path.iterdir())


def test_write_submission_keeps_earlier_file_when_interrupted(tmp_path, monkeypatch):
    path = tmp_path / 'a.tar'
    voc.write_submission(path, list(OBJECTS), SCORES, voc.LABEL_NAMES)
    before = path.read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(voc_submission, 'check_submission', interrupted)
    with pytest.raises(KeyboardInterrupt):
        voc.write_submission(path, list(OBJECTS), SCORES * 2, voc.LABEL_NAMES)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match=r'a.tar/b.tar: cannot be written'):
        voc.write_submission(path / 'b.tar', list(OBJECTS), SCORES, voc.LABEL_NAMES)


CAT_FILE = 'results/VOC2012/Main/comp2_cls_test_cat.txt'
GOOD = ''.join(f'{image_id} 0.5\n' for image_id in OBJECTS)


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({CAT_FILE: None}, r'comp2_cls_test_cat.txt is missing'),
        ({CAT_FILE: None, CAT_FILE.replace('2_cls', '1_cls'): GOOD}, r'comp1_cls_test_cat.txt is not a file of comp2'),
        ({'results/VOC2012/Main/comp2_cls_test_tv.txt': GOOD}, r'comp2_cls_test_tv.txt is not a file of comp2'),
        ({CAT_FILE: GOOD.replace('2008_000003 0.5\n', '')}, r"cat.txt, line 2 .* '2008_000005': must be '2008_000003'"),
        ({CAT_FILE: GOOD.replace('2008_000005 0.5\n', '')}, r"cat.txt ends after line 2: add '2008_000005'"),
        ({CAT_FILE: ''}, r"cat.txt ends after line 0: add '2008_000007'"),
        ({CAT_FILE: GOOD + '2008_000003 0.5\n'}, r"cat.txt, line 4 repeats '2008_000003'"),
        ({CAT_FILE: GOOD.replace('000003', '000004')}, r"cat.txt, line 2 has '2008_000004', which is not in the test"),
        ({CAT_FILE: GOOD.replace('3 0.5', '3 nan')}, r"cat.txt, line 2 has the confidence 'nan': must be a finite"),
        ({CAT_FILE: GOOD.replace('3 0.5', '3 1e999')}, r"cat.txt, line 2 has the confidence '1e999': must be a finite"),
        ({CAT_FILE: GOOD.replace('3 0.5', '3')}, r"cat.txt, line 2 is '2008_000003': must be an image id"),
        ({CAT_FILE: GOOD + '\n'}, r"cat.txt, line 4 is '': must be an image id"),
        ({CAT_FILE: '\n'.join(reversed(GOOD.splitlines()))}, r"cat.txt, line 1.* '2008_000005': must be '2008_000007'"),
        ({CAT_FILE: 'x' * 10_000}, r'cat.txt is not a text file of 3 lines'),
    ],
)  # fmt: skip
def test_check_submission_refuses_invalid_files(root, tmp_path, files, message):
    everything = {f'results/VOC2012/Main/comp2_cls_test_{name}.txt': GOOD for name in voc.LABEL_NAMES} | files
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        for name, text in everything.items():
            if text is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
    with pytest.raises(InputError, match=message) as caught:
        voc.check_submission(path, root)
    assert_one_line(caught.value)
    assert 'not a valid tar file' not in str(caught.value)


def test_check_submission_refuses_repeated_files(root, tmp_path):
    path = tmp_path / 'a.tar'
    voc.write_submission(path, list(OBJECTS), SCORES, voc.LABEL_NAMES)
    with tarfile.open(path, 'a') as tar:
        entry = tarfile.TarInfo(CAT_FILE)
        entry.size = len(GOOD)
        tar.addfile(entry, io.BytesIO(GOOD.encode()))
    with pytest.raises(InputError, match=r'a.tar: .*comp2_cls_test_cat.txt occurs twice'):
        voc.check_submission(path, root)


def test_check_submission_refuses_other_archives(root, tmp_path):
    path = tmp_path / 'a.tar'
    with pytest.raises(InputError, match=r'a.tar: there is no such file'):
        voc.check_submission(path, root)
    voc.write_submission(path, list(OBJECTS), SCORES, voc.LABEL_NAMES)
    for content in (b'', b'nonsense', path.read_bytes()[:3000], gzip.compress(path.read_bytes())[:400]):
        (tmp_path / 'b.tar').write_bytes(content)
        with pytest.raises(InputError, match=r'b.tar') as caught:
            voc.check_submission(tmp_path / 'b.tar', root)
        assert_one_line(caught.value)
    with tarfile.open(tmp_path / 'c.tar', 'w') as tar:
        entry = tarfile.TarInfo(CAT_FILE)
        entry.type, entry.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(entry)
    with pytest.raises(InputError, match=r'cat.txt is not a text file'):
        voc.check_submission(tmp_path / 'c.tar', root)


def test_read_boxes_returns_clipped_boxes_by_label(tmp_path):
    path = tmp_path / 'x.xml'
    path.write_text(
        xml(
            [
                ('cat', 0, (1, 1, 10, 10)),
                ('cat', 0, (-3, 4.5, 25, 10)),  # extends beyond the image
                ('cat', 1, (20, 10, 20, 10)),
                ('dog', 1, (2, 3, 4, 5)),
                ('dog', 0, (21, 1, 25, 5)),  # outside of the image
                ('', 0, (1, 1, 2, 2)),
                ('person', 0, ('', 1, 2, 2)),
            ]
        )
    )
    easy, difficult = {'cat': [(0, 0, 10, 10), (0, 3.5, 20, 10)]}, {'cat': [(19, 9, 20, 10)], 'dog': [(1, 2, 4, 5)]}
    assert read_boxes(path) == VocBoxes(20, 10, easy, difficult)


@pytest.mark.parametrize('size', ['', '<size><width>0</width><height>10</height></size>', '<size/>'])
def test_read_boxes_needs_image_size(size, tmp_path):
    (tmp_path / 'x.xml').write_text(xml([('cat', 0, (1, 1, 10, 10))], size))
    with pytest.raises(InputError, match=r'x\.xml: lacks the size of the image: add its width and height') as caught:
        read_boxes(tmp_path / 'x.xml')
    assert_one_line(caught.value)


def test_read_boxes_names_missing_file(tmp_path):
    with pytest.raises(InputError, match=r'gone\.xml: cannot be read \(No such file'):
        read_boxes(tmp_path / 'gone.xml')
