import os
import shutil

import pytest
from exported import draw, fails, labels_of, recognised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msff_timm.data import label_names, load, notes
from msff_timm.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Two labels in two splits: image 1 is in both folders of each, under the same name or another one."""
    for split in ('train', 'valid'):
        for label, numbers in (('cat', (0, 1)), ('dog', (1, 2))):
            for number in numbers:
                draw(tmp_path / split / label / f'{label if split == "train" else ""}{number}.png', number)
    return tmp_path


def test_load_folders_unites_images_of_the_same_content(root):
    assert labels_of('folders', 'train', root) == {
        'train/cat/cat0.png': {'cat'},
        'train/cat/cat1.png': {'cat', 'dog'},
        'train/dog/dog2.png': {'dog'},
    }
    assert labels_of('folders', 'validation', root) == {
        'valid/cat/0.png': {'cat'},
        'valid/cat/1.png': {'cat', 'dog'},
        'valid/dog/2.png': {'dog'},
    }
    dataset = load('folders', 'train', str(root))
    assert dataset['ignore'][:] == [[], [], []]
    (note,) = notes(dataset)
    assert 'cat, dog' in note and '1 files united' in note and '1 of 3 images have several labels' in note


def test_load_folders_keeps_images_of_the_same_size_apart(tmp_path):
    files = [tmp_path / label / '1.bmp' for label in ('cat', 'dog')]
    for number, path in enumerate(files):
        path.parent.mkdir()
        draw(path.with_suffix('.png'), number).rename(path)
        path.write_bytes(path.read_bytes() + bytes(200 - path.stat().st_size))
    assert len({path.stat().st_size for path in files}) == 1
    assert labels_of('folders', 'train', tmp_path) == {'cat/1.bmp': {'cat'}, 'dog/1.bmp': {'dog'}}


def test_load_folders_without_splits_is_train(root):
    root = root / 'train'
    assert len(labels_of('folders', 'train', root)) == 3
    fails('folders', root, 'no split validation', split='validation')


def test_load_folders_sees_changes(root):
    assert len(labels_of('folders', 'train', root)) == 3
    draw(root / 'train' / 'bird' / '9.png', 9)
    draw(root / 'train' / 'dog' / 'dog2.png', 0)  # the content of cat0
    assert labels_of('folders', 'train', root) == {
        'train/bird/9.png': {'bird'},
        'train/cat/cat0.png': {'cat', 'dog'},
        'train/cat/cat1.png': {'cat', 'dog'},
    }


def test_load_folders_takes_names_of_all_splits(root):
    draw(root / 'test' / 'eel' / '9.png', 9)
    for split in ('train', 'validation', 'test'):
        assert label_names(load('folders', split, str(root))) == ['cat', 'dog', 'eel']
    assert label_names(load('folders', 'train', str(root), label_names=['eel', 'dog', 'cat'])) == ['eel', 'dog', 'cat']
    fails('folders', root, "unknown label 'eel'", label_names=['cat', 'dog'])


def test_load_folders_reads_train_and_test_as_labels_beside_others(tmp_path):
    """A folder `train` that holds images itself is a label: a vehicle."""
    for number, label in enumerate(('car', 'train', 'test')):
        draw(tmp_path / label / '1.png', number)
    assert set(labels_of('folders', 'train', tmp_path)) == {'car/1.png', 'train/1.png', 'test/1.png'}
    assert label_names(load('folders', 'train', str(tmp_path))) == ['car', 'test', 'train']


def test_load_folders_reports_images_in_no_folder_of_a_label(root):
    draw(root / 'test' / '1.png', 9)
    draw(root / 'train' / '7.png', 7)
    (root / 'train' / 'cat' / 'notes.txt').write_text('no image')
    assert len(labels_of('folders', 'train', root)) == 3
    assert 'not used: 2 images that are in no folder of a label (test, train)' in notes(
        load('folders', 'train', str(root))
    )
    fails('folders', root, 'no split test', split='test')


def test_load_folders_ignores_hidden_files(root):
    for name in ('.cache/9.png', '__MACOSX/train/cat/8.png', 'train/.thumbnails/7.png', 'train/cat/._cat0.png'):
        draw(root / name, 9)
    assert len(labels_of('folders', 'train', root)) == 3
    assert label_names(load('folders', 'train', str(root))) == ['cat', 'dog']


def test_load_folders_reads_the_same_inner_folder_of_each_label(tmp_path):
    for number, label in enumerate(('n01', 'n02')):
        draw(tmp_path / 'train' / label / 'images' / '0.png', number)  # as in Tiny ImageNet
    assert labels_of('folders', 'train', tmp_path) == {
        'train/n01/images/0.png': {'n01'},
        'train/n02/images/0.png': {'n02'},
    }


@pytest.mark.parametrize(
    'files',
    [
        ['train/animal/cat/1.png', 'train/animal/dog/1.png'],
        ['train/animal/cat/1.png', 'train/tool/saw/1.png'],
        ['train/animal/1.png', 'train/animal/cat/2.png', 'train/tool/1.png'],
        ['archive/train/cat/1.png', 'archive/train/dog/1.png'],
    ],
)
def test_load_folders_refuses_nested_labels(tmp_path, files):
    for number, name in enumerate(files):
        draw(tmp_path / name, number)
    fails('folders', tmp_path, 'contains folders of images', 'data.root')
    assert recognised('folders', tmp_path) is None


def test_load_folders_reads_no_label(tmp_path):
    """CVAT and Datumaro write images without labels to `no_label`."""
    for number, name in enumerate(('cat/1.png', 'dog/2.png', 'no_label/3.png')):
        draw(tmp_path / name, number)
    assert labels_of('folders', 'train', tmp_path) == {
        'cat/1.png': {'cat'},
        'dog/2.png': {'dog'},
        'no_label/3.png': set(),
    }


def test_load_folders_follows_links(root):
    shutil.rmtree(root / 'train' / 'dog')
    os.symlink(root / 'valid' / 'dog', root / 'train' / 'dog')
    assert labels_of('folders', 'train', root)['train/cat/cat1.png'] == {'cat', 'dog'}


def test_load_folders_refuses_others(tmp_path):
    fails('folders', tmp_path / 'none', 'none')
    fails('folders', tmp_path, 'no folder of images per label')
    draw(tmp_path / 'train' / '1.png', 1)
    draw(tmp_path / 'val' / '1.png', 1)
    fails('folders', tmp_path, 'no folder of images per label', 'train, val')
    draw(tmp_path / 'val' / 'cat' / '1.png', 1)
    draw(tmp_path / 'valid' / 'cat' / '1.png', 1)
    (tmp_path / 'val' / '1.png').unlink()
    fails('folders', tmp_path, 'both val and valid are the split validation')


def test_recognise_folders(root):
    assert 'cat, dog' in recognised('folders', root)
    assert recognised('folders', root / 'train' / 'cat') is None
    for folder in ('images', 'masks'):
        draw(root / 'pairs' / folder / '1.png', 1)
    assert recognised('folders', root / 'pairs') is None


names = st.text('ab.-_ train', min_size=1, max_size=6).filter(lambda name: name.strip('. '))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(names, min_size=0, max_size=3), st.integers(0, 3)), min_size=1, max_size=6))
def test_load_folders_gives_labels_or_a_message(tmp_path, files):
    shutil.rmtree(tmp_path / 'data', ignore_errors=True)
    for number, (folders, content) in enumerate(files):
        try:
            draw(tmp_path.joinpath('data', *folders, f'{number}.png'), content)
        except (FileExistsError, NotADirectoryError):
            continue
    recognised('folders', tmp_path / 'data')
    try:
        found = labels_of('folders', 'train', tmp_path / 'data')
    except InputError as e:
        assert len(str(e).splitlines()) == 1
    else:
        assert all(labels for labels in found.values())
