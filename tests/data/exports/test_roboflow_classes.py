import pytest
from exported import draw, fails, labels_of, masked_in, recognised

from msff_timm.data import label_names, load, notes

# As Roboflow writes it: blanks after the commas, names of versions, and the labels in the order of the alphabet
HEADER = 'filename, crowd, helmet, no-vest\n'
ROWS = {
    'train': {'ppe_1_jpg.rf.e8a3.png': (0, 1, 0), 'ppe_2_jpg.rf.e7a5.png': (1, 1, 1), 'ppe_3_jpg.rf.aa.png': (0, 0, 0)},
    'valid': {'ppe_4_jpg.rf.bb.png': (0, 0, 1)},
    'test': {'ppe_5_jpg.rf.cc.png': (1, 0, 0)},
}


@pytest.fixture
def root(tmp_path):
    for split, rows in ROWS.items():
        for number, name in enumerate(rows):
            draw(tmp_path / split / name, number)
        lines = [', '.join([name, *map(str, states)]) + '\n' for name, states in rows.items()]
        (tmp_path / split / '_classes.csv').write_text(HEADER + ''.join(lines))
    (tmp_path / 'README.roboflow.txt').write_text('Provided by a Roboflow user')
    return tmp_path


@pytest.mark.parametrize(('split', 'folder'), [('train', 'train'), ('validation', 'valid'), ('test', 'test')])
def test_load_roboflow_reads_classes(root, split, folder):
    names = ['crowd', 'helmet', 'no-vest']  # `crowd` is a label here, unlike in tables
    expected = {
        image: {name for name, state in zip(names, states, strict=True) if state}
        for image, states in ROWS[folder].items()
    }
    assert labels_of('roboflow', split, root) == expected
    dataset = load('roboflow', split, str(root))
    assert label_names(dataset) == names and not any(dataset['ignore'])
    assert notes(dataset) == ['labels: 3 columns (crowd, helmet, no-vest)']


def test_load_roboflow_reads_settings(root):
    order = ['no-vest', 'helmet', 'crowd']
    assert label_names(load('roboflow', 'train', str(root), label_names=order)) == order
    only = {'label_columns': ['helmet', 'crowd']}
    assert label_names(load('roboflow', 'train', str(root), **only)) == ['helmet', 'crowd']
    path = root / 'train' / '_classes.csv'
    path.write_text(HEADER + 'ppe_1_jpg.rf.e8a3.png, -1, 1, \n')
    assert masked_in('roboflow', 'train', root) == {'ppe_1_jpg.rf.e8a3.png': {'crowd', 'no-vest'}}
    assert masked_in('roboflow', 'train', root, minus_one='absent', blank='absent') == {'ppe_1_jpg.rf.e8a3.png': set()}


def test_load_roboflow_reads_one_label(root):
    (root / 'train' / '_classes.csv').write_text('filename, hat\nppe_1_jpg.rf.e8a3.png, 1\nppe_2_jpg.rf.e7a5.png, 0\n')
    for split in ('valid', 'test'):
        (root / split / '_classes.csv').unlink()
    found = labels_of('roboflow', 'train', root)
    assert found == {'ppe_1_jpg.rf.e8a3.png': {'hat'}, 'ppe_2_jpg.rf.e7a5.png': set()}
    fails('roboflow', root, 'no _classes.csv of the split validation', split='validation')


def test_load_roboflow_refuses_invalid_files(root):
    path = root / 'train' / '_classes.csv'
    text = path.read_text()
    path.write_text(text.replace('helmet', 'hat'))
    fails('roboflow', root, "unknown label column 'helmet'", 'hat')
    path.write_text(text + 'ppe_9.png, 1, 1, 1\n')
    fails('roboflow', root, 'line 5', "'ppe_9.png'")
    path.write_text(text.replace('1, 1, 1', '1, 1, yes'))
    fails('roboflow', root, 'line 3', "'no-vest' is ' yes'")
    path.write_text(text.replace('1, 1, 1', '1, 1'))
    fails('roboflow', root, 'line 3 has 3 fields')
    path.write_text('Pixel Value, Class\n0, background\n')
    fails('roboflow', root, "no column 'filename'")
    path.write_text('')
    fails('roboflow', root, 'is empty')
    fails('roboflow', root / 'train' / 'absent', 'absent')


def test_recognise_roboflow(root, tmp_path):
    assert recognised('roboflow', root) == 'test/_classes.csv'
    for split in ROWS:
        (root / split / '_classes.csv').write_text('Pixel Value, Class\n0, background\n')  # of a segmentation
    assert recognised('roboflow', root) is None
