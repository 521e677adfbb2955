"""Tests of the training tables of the weights for photos, on subsets of VOC and COCO."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

import photos
from msff_timm.errors import InputError
from msff_timm.labels import VOC_LABELS


@pytest.fixture
def tables(voc_root, coco_root, tmp_path, monkeypatch) -> dict[str, list[dict]]:
    monkeypatch.setattr('sys.argv', ['photos.py', f'--voc={voc_root}', f'--coco={coco_root}', f'--output={tmp_path}'])
    photos.main()
    return {split: list(csv.DictReader((tmp_path / f'{split}.csv').open())) for split in ('train', 'validation')}


def states_of(rows: list[dict], label: str) -> dict[str, str]:
    return {Path(row['image']).name: row[label] for row in rows}


def test_main_copies_states_of_voc_class_files(tables, voc_root):
    assert list(tables['train'][0]) == ['image', *VOC_LABELS]
    folder = voc_root / 'VOC2012' / 'ImageSets' / 'Main'
    for split, file in (('train', 'train'), ('validation', 'val')):
        for label in ('sofa', 'person'):
            lines = [line.split() for line in (folder / f'{label}_{file}.txt').read_text().splitlines()]
            states = states_of(tables[split], label)
            expected = {'1': '1', '0': '-1', '-1': '0'}  # VOC's 0 is difficult, its -1 absent
            assert [states[f'{name}.jpg'] for name, _ in lines] == [expected[state] for _, state in lines]
    assert len(tables['validation']) == len(lines)


def test_main_masks_small_objects_of_coco(tables, coco_root):
    counts = Counter()
    for split in ('train2014', 'val2014'):
        content = json.loads((coco_root / 'annotations' / f'instances_{split}.json').read_text())
        images = {image['id']: image for image in content['images']}
        category = next(c['id'] for c in content['categories'] if c['name'] == 'car')
        largest = {}
        for annotation in content['annotations']:
            if annotation['category_id'] == category:
                image = images[annotation['image_id']]
                share = annotation['area'] / (image['width'] * image['height'])
                largest[image['file_name']] = max(share, largest.get(image['file_name'], 0))
        states = states_of(tables['train'], 'car')
        for image in images.values():
            share = largest.get(image['file_name'])
            expected = '0' if share is None else '1' if share >= 1 / 300 else '-1'
            assert states[image['file_name']] == expected
            counts[expected] += 1
    assert all(counts[state] > 5 for state in ('1', '0', '-1'))


def test_main_rejects_coco_without_voc_labels(voc_root, coco_root, tmp_path, monkeypatch):
    for split in ('train2014', 'val2014'):
        file = f'annotations/instances_{split}.json'
        content = json.loads((coco_root / file).read_text())
        kept = [category for category in content['categories'] if category['name'] != 'couch']
        ids = {category['id'] for category in kept}
        annotations = [annotation for annotation in content['annotations'] if annotation['category_id'] in ids]
        (tmp_path / split).symlink_to(coco_root / split)
        (tmp_path / 'annotations').mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content | {'categories': kept, 'annotations': annotations}))
    argv = ['photos.py', f'--voc={voc_root}', f'--coco={tmp_path}', f'--output={tmp_path / "out"}']
    monkeypatch.setattr('sys.argv', argv)
    with pytest.raises(InputError, match='no category for sofa;'):
        photos.main()
    assert not (tmp_path / 'out').exists()


def test_config_rejects_file_as_output(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setattr('sys.argv', ['photos.py', '--voc=v', '--coco=c', f'--output={tmp_path / "file"}'])
    with pytest.raises(InputError, match='not a folder'):
        photos.main()
