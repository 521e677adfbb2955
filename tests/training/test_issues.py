import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from msff_timm import hub
from msff_timm.data import scenes
from msff_timm.errors import InputError
from msff_timm.training import issues
from msff_timm_cli import commands as cli

pytestmark = pytest.mark.usefixtures('one_thread')
SIDE, TRAIN, VALIDATION = 96, 70, 30
PLAIN = 5  # an image with neither label, of which there are copies
OPTIONS = ['--image-size', str(SIDE), '--workers', '0', '--device', 'cpu', '-q']


def draw(number: int, has_checks: bool, has_stripes: bool) -> Image.Image:
    """Draws a scene with a yellow checkerboard at the top or blue stripes at the bottom."""
    pixels = np.array(scenes.draw(0, number, SIDE))
    row, column = np.indices((SIDE, SIDE)) + 5 * number  # in another phase than in other images
    if has_checks:
        pixels[:30] = np.where((row + column)[:30, :, None] % 16 < 8, [255, 0, 0], [255, 255, 0])
    if has_stripes:
        pixels[70:] = np.where(column[70:, :, None] % 12 < 6, [0, 0, 255], [255, 255, 255])
    return Image.fromarray(pixels)


@pytest.fixture(scope='module')
def made_up(tmp_path_factory):
    """Tables of 70 and 30 images with planted errors, copies and a broken file, and what was planted."""
    root = tmp_path_factory.mktemp('made-up')
    rng = np.random.default_rng(0)
    labels = (rng.random((TRAIN + VALIDATION, 2)) < 0.35).astype(int)
    labels[PLAIN] = 0
    for number, (checks, stripes) in enumerate(labels):
        draw(number, checks, stripes).save(root / f'{number}.png')
    shutil.copy(root / '3.png', root / '71.png')  # the same file in both splits
    labels[71] = labels[3]
    with Image.open(root / f'{PLAIN}.png') as plain:
        plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / '80.jpg', quality=70)
        plain.resize((80, 80)).save(root / '6.jpg', quality=90)
    labels[80] = labels[6] = labels[PLAIN]
    (root / '9.png').write_bytes(b'broken')
    names = [f'{n}.jpg' if n in (6, 80) else f'{n}.png' for n in range(len(labels))]
    given = labels.astype(object)
    planted = {}
    for k, label in enumerate(('猫', 'stripes')):
        for value in (0, 1):
            chosen = next(n for n in range(10 + 7 * k, 70) if labels[n, k] == value and (n, 1 - k) not in planted)
            given[chosen, k], planted[chosen, k] = 1 - value, ('missing' if value else 'wrong', label)
    for hidden in range(85, 100):
        given[hidden, 1] = ''
        if labels[hidden, 1]:
            planted[hidden, 1] = 'unannotated', 'stripes'
    for split, rows in (('train', range(TRAIN)), ('validation', range(TRAIN, TRAIN + VALIDATION))):
        with open(root / f'{split}.csv', 'w', encoding='utf-8', newline='') as file:
            csv.writer(file).writerows([['image', '猫', 'stripes'], *([names[n], *given[n]] for n in rows)])
    return root, {(names[n], *about) for (n, _), about in planted.items()}


def read(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def found(made_up, tmp_path_factory):
    """The folder of the issues of the made-up data, found by the command."""
    folder = tmp_path_factory.mktemp('found')
    assert cli.main(['data', 'issues', 'table', '--root', str(made_up[0]), '-o', str(folder), *OPTIONS]) == 0
    return folder


def test_issues_ranks_planted_errors_first(made_up, found):
    rows = read(found / 'label_issues.csv')
    errors = [row for row in rows if row['kind'] != 'unannotated']
    wanted = {about for about in made_up[1] if about[1] != 'unannotated'}
    assert {(row['image'], row['kind'], row['label']) for row in errors[: len(wanted)]} == wanted
    hidden = [row for row in rows if row['kind'] == 'unannotated']
    suggested = {(row['image'], row['kind'], row['label']) for row in hidden}
    assert suggested <= made_up[1] - wanted and 2 * len(suggested) >= len(made_up[1] - wanted)
    assert [int(row['rank']) for row in rows] == list(range(1, len(rows) + 1))
    assert {(row['kind'], row['given']) for row in rows} == {
        ('wrong', 'present'), ('missing', 'absent'), ('unannotated', 'unannotated'),
    }  # fmt: skip
    assert '9.png' not in {row['image'] for row in rows}


def test_issues_groups_duplicates_with_their_splits(made_up, found):
    rows = read(found / 'duplicates.csv')
    groups = {}
    for row in rows:
        groups.setdefault((row['kind'], row['across_splits']), set()).add((row['split'], row['image']))
    assert groups == {
        ('exact', 'yes'): {('train', '3.png'), ('validation', '71.png')},
        ('near', 'yes'): {('train', '5.png'), ('train', '6.jpg'), ('validation', '80.jpg')},
    }
    assert [row['group'] for row in rows] == ['1'] * 3 + ['2'] * 2
    assert rows[3]['file'] == str(made_up[0] / '3.png') and float(rows[4]['similarity']) == pytest.approx(1, abs=1e-3)


def test_issues_draws_a_sheet_of_each_kind(found):
    for name in ('label_issues.png', 'duplicates.png'):
        with Image.open(found / name) as image:
            assert image.width > 1000 and np.asarray(image.convert('L')).std() > 5


def test_issues_reads_embeddings_again_until_an_image_changes(made_up, found, monkeypatch, capsys):
    class Computed(Exception):
        pass

    def refuse(*args):
        raise Computed

    monkeypatch.setattr(issues, 'embed', refuse)
    command = ['data', 'issues', 'table', '--root', str(made_up[0]), '-o', str(found), *OPTIONS]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:3] == [
        '2 groups of duplicate images (1 exact, 1 near), 2 of them across splits',
        '  near   train 5.png, train 6.jpg, validation 80.jpg',
    ]
    assert any(line == 'left out, cannot be read: 9.png' for line in shown)
    path = made_up[0] / '50.png'
    before = path.read_bytes()
    path.write_bytes(before + b' ')
    try:
        with pytest.raises(Computed):
            cli.main(command)
    finally:
        path.write_bytes(before)


def test_issues_of_a_run_use_its_data_and_the_weights_it_started_from(trained, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    assert cli.main(['data', 'issues', str(folder), *OPTIONS, '--image-size', '64', '--most', '2']) == 0
    source = issues.open_run(folder, None, SIDE)
    assert source.model_name == hub.DEFAULT_MODEL  # the demo starts from random weights
    assert {split: len(dataset) for split, dataset in source.splits.items()} == {'train': 64, 'validation': 33}
    assert (folder / 'issues' / 'label_issues.csv').is_file() and (folder / 'issues' / 'embeddings.npz').is_file()
    assert 'of 1,164 labels' in capsys.readouterr().out  # 97 images of 12 labels
    settings = (folder / 'settings.yaml').read_text()
    (folder / 'settings.yaml').write_text(
        settings.replace('backbone_from: null', f'backbone_from: local-dir:{trained}')
    )
    assert issues.open_run(folder, None, 64).model_name == f'local-dir:{trained}'
    assert issues.open_run(folder, hub.DEFAULT_MODEL, SIDE).model_name == hub.DEFAULT_MODEL
    (folder / 'settings.yaml').write_text(settings.replace('backbone_from: null', 'backbone_from: local-dir:gone'))
    with pytest.raises(InputError, match=r'gone.* started from it: --model chooses another model\.'):
        issues.open_run(folder, None, 64)


def test_issues_refuses_what_does_not_fit(trained, tmp_path, capsys):
    with pytest.raises(InputError, match='has no settings.yaml'):
        issues.open_run(tmp_path, None, None)
    for arguments, message in (
        ([str(trained), '--root', 'elsewhere'], 'is the folder of a run, which names its data'),
        (['scenes', '--most', '0'], '--most is 0: must be at least 1.'),
        (['table', '--root', str(tmp_path)], 'train'),
    ):
        assert cli.main(['data', 'issues', *arguments, '-o', str(tmp_path / 'out'), *OPTIONS]) == 2
        assert message in capsys.readouterr().err


def test_source_refuses_splits_of_other_labels(made_up):
    source, _ = issues.open_data('table', ['train'], None, SIDE, root=str(made_up[0]))
    splits = {**source.splits, 'drawn': scenes.load('train', 3, SIDE)}
    with pytest.raises(InputError, match='the labels of drawn differ from those of train'):
        issues.Source(splits, source.model, source.model_name, source.data_config)
