"""Every export in every layout gives the same images and labels, and is recognised."""

import json
import warnings

import datasets
import pytest

import msff_timm.data
from made_exports import AREAS, FULL, NAMES, SPLITS, WRITERS, make, write
from msff_timm.data.exports import recognise
from msff_timm.errors import InputError, NoSplitError
from msff_timm_cli import commands as cli

IDS = [writer.__name__ for writer in WRITERS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))


@pytest.mark.parametrize('writer', WRITERS, ids=IDS)
def test_load_gives_labels_of_every_layout(writer, tmp_path):
    root = make(writer, tmp_path / 'data')
    name = writer.__name__.partition('_')[0]
    ids = []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for split, images in SPLITS.items():
            dataset = msff_timm.data.load('auto', FULL[split], str(root))
            assert msff_timm.data.label_names(dataset) == NAMES
            found = {}
            for row in dataset:
                labels = [NAMES[label] for label in row['labels']]
                assert row['area'] == pytest.approx([AREAS[label] for label in labels]) and row['ignore'] == []
                found[chr(row['image'].getpixel((0, 0))[0])] = sorted(labels)
            assert found == {stem: sorted(labels) for stem, labels in images.items()}
            ids += dataset['image_id'][:]
            again = msff_timm.data.load(name, FULL[split], str(root))
            assert again.to_list() == dataset.to_list()
            assert msff_timm.data.notes(dataset)[0].startswith(f'recognised as {name} by ')
    assert len(set(ids)) == len(ids)  # `data` reports ids that are in two splits


@pytest.mark.parametrize(
    ('name', 'evidence'),
    [
        ('coco_roboflow', 'test/_annotations.coco.json'),
        ('coco_one_file', 'result.json'),
        ('voc_lists', 'Annotations/a.xml'),
        ('yolo_roboflow', 'data.yaml'),
        ('yolo_darknet', 'obj.data'),
    ],
)
def test_recognise_names_evidence_below_a_folder(name, evidence, tmp_path):
    root = make(WRITERS[IDS.index(name)], tmp_path / 'archive' / 'set')
    write(tmp_path / 'archive' / '._set', '')  # macOS
    name = name.partition('_')[0]
    assert recognise(str(root)) == (name, evidence, str(root))
    found = recognise(str(tmp_path / 'archive'))
    assert found == (name, f'set/{evidence}', str(root))
    assert found.note == f'recognised as {name} by set/{evidence} (data.name)'


@pytest.mark.parametrize('name', ['coco_one_file', 'yolo_roboflow'])
def test_recognise_reads_a_single_file(name, tmp_path):
    root = make(WRITERS[IDS.index(name)], tmp_path / 'data')
    file = next(root.glob('*.json'), root / 'data.yaml')
    found = recognise(str(file))
    assert (found.name, found.root) == (name.partition('_')[0], str(file))
    assert len(msff_timm.data.load('auto', 'train', str(file))) == 4


def test_recognise_takes_known_formats(tmp_path, coco_root, voc_root):
    assert recognise(str(coco_root)).note == (
        'recognised as coco2014 by annotations/instances_train2014.json (data.name)'
    )
    assert recognise(str(voc_root)).name == recognise(str(voc_root.parent)).name == 'voc2012'
    assert recognise(str(voc_root / 'VOC2012')).evidence == 'ImageSets/Main'
    write(tmp_path / 'tables' / 'train.csv', 'image,labels\n')
    write(tmp_path / 'tables' / 'val.csv', 'image,labels\n')
    assert recognise(str(tmp_path / 'tables'))[:2] == ('table', 'train.csv')
    assert recognise(str(tmp_path / 'tables' / 'val.csv'))[:2] == ('table', 'val.csv')
    write(tmp_path / 'kaggle' / 'labels_v2.csv', 'image_name,tags\n')
    write(tmp_path / 'kaggle' / 'sample_submission.csv', 'image_name,tags\n')
    assert recognise(str(tmp_path / 'kaggle')) == ('table', 'labels_v2.csv', str(tmp_path / 'kaggle' / 'labels_v2.csv'))
    write(tmp_path / 'folder' / 'train' / 'metadata.jsonl', '{}')
    assert recognise(str(tmp_path / 'folder'))[:2] == ('folder', 'train/metadata.jsonl')
    rows = datasets.Dataset.from_dict({'image': [b'x'], 'labels': [[0]]})
    (tmp_path / 'hub' / 'data').mkdir(parents=True)
    images = rows.cast_column('image', datasets.Image())
    images.to_parquet(tmp_path / 'hub' / 'data' / 'train-00000-of-00001.parquet')
    assert recognise(str(tmp_path / 'hub'))[:2] == ('hub', 'data/train-00000-of-00001.parquet')
    rows.remove_columns('image').to_parquet(tmp_path / 'tables' / 'test.parquet')
    assert recognise(str(tmp_path / 'tables')).name == 'table'
    assert recognise('someone/photos') == ('hub', 'its id someone/photos', 'someone/photos')


def test_recognise_refuses_what_may_be_several_formats(tmp_path):
    root = make(WRITERS[IDS.index('voc_lists')], tmp_path / 'data')
    write(root / 'labels.csv', 'image,labels\n')
    with pytest.raises(InputError) as caught:
        recognise(str(root))
    assert str(caught.value) == (
        f'{root}: may be read as voc by Annotations/a.xml or table by labels.csv: set data.name to one of them.'
    )
    (root / 'labels.csv').write_text('threshold,precision\n')  # no column of images
    assert recognise(str(root)).name == 'voc'
    for year in ('2014', '2017'):
        write(tmp_path / 'coco' / 'annotations' / f'instances_val{year}.json', '{}')
        (tmp_path / 'coco' / f'val{year}').mkdir()
    with pytest.raises(InputError, match=r'may be read as coco2014 by .*2014.json or coco2017 by .*2017.json: set'):
        recognise(str(tmp_path / 'coco'))


@pytest.mark.parametrize('root', [None, ''])
def test_recognise_needs_a_root(root):
    with pytest.raises(InputError, match='data.root is null'):
        recognise(root)


def test_recognise_says_what_it_found(tmp_path):
    write(tmp_path / 'data' / 'notes.json', json.dumps({'images': []}))
    with pytest.raises(InputError, match=r'no known format .*\(found: notes.json\); known are coco, .*: set data.name'):
        recognise(str(tmp_path / 'data'))
    with pytest.raises(InputError, match='there is no such folder or file'):
        recognise(str(tmp_path / 'nothing'))


def test_recognise_reads_names_once(tmp_path, monkeypatch):
    root = make(WRITERS[IDS.index('yolo_ultralytics')], tmp_path / 'data')
    walked = []
    walk = msff_timm.data.exports.tree.os.walk
    monkeypatch.setattr('os.walk', lambda *args, **kwargs: walked.append(args) or walk(*args, **kwargs))
    recognise(str(root))
    assert len(walked) == 1


@pytest.mark.parametrize('name', ['coco_cvat', 'voc_roboflow', 'yolo_roboflow', 'yolo_roboflow_darknet'])
def test_load_refuses_a_split_that_is_not_there(name, tmp_path):
    root = make(WRITERS[IDS.index(name)], tmp_path / 'data')
    for path in sorted(root.rglob('*'), reverse=True):
        if any(word in str(path.relative_to(root)) for word in ('valid', 'Valid')) and path.is_file():
            path.unlink()
    yaml = root / 'data.yaml'
    if yaml.exists():
        yaml.write_text(yaml.read_text().replace('val: ../valid/images\n', ''))
    assert len(msff_timm.data.load('auto', 'train', str(root))) == 4
    with pytest.raises(NoSplitError, match=r'validation.*\(found: (train, test|test, train)\)'):
        msff_timm.data.load('auto', 'validation', str(root))


def test_data_command_recognises_a_folder_with_the_name_of_a_format(tmp_path, monkeypatch, capsys):
    make(WRITERS[IDS.index('coco_roboflow')], tmp_path / 'yolo')
    monkeypatch.chdir(tmp_path)
    assert cli.main(['data', 'yolo']) == 0
    assert capsys.readouterr().out.startswith('recognised as coco by ')
    assert cli.main(['data', 'yolo', '--root', 'yolo']) == 2
    assert 'data.yaml' in capsys.readouterr().err
