import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from msff_timm import cli, hub
from msff_timm.errors import InputError
from msff_timm.predict import find_photos, predict


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'inner').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('b.png', 'a.JPG', 'c[1].png', 'inner/d.png'):
        Image.fromarray(rng.integers(0, 256, (70, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('not a photo')
    return folder


def test_probabilities_are_the_sigmoids_of_the_models_own_logits(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    label_names = model.pretrained_cfg['label_names']
    paths = [str(photos / name) for name in ('a.JPG', 'b.png', 'c[1].png')]
    predictions = list(predict(model, paths, threshold=0.0, batch_size=2))
    assert [p.photo for p in predictions] == paths
    for path, prediction in zip(paths, predictions, strict=True):
        # Preprocessed by hand: 64 x 64, (x - 0.5) / 0.5, as the run's config.json records.
        pixels = np.asarray(Image.open(path).convert('RGB').resize((64, 64), Image.Resampling.BILINEAR)) / 255
        image = torch.from_numpy((pixels.astype(np.float32) - 0.5) / 0.5).permute(2, 0, 1)[None]
        expected = 1 / (1 + np.exp(-model(image)[0].detach().numpy()))
        assert prediction.labels == pytest.approx(dict(zip(label_names, expected, strict=True)), abs=1e-5)
        assert list(prediction.labels.values()) == sorted(prediction.labels.values(), reverse=True)
        assert abs(sum(prediction.labels.values()) - 1) > 0.1  # no softmax


def test_threshold_keeps_what_is_above_it(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    everything = next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels
    middle = sorted(everything.values())[6]
    some = next(predict(model, [str(photos / 'b.png')], threshold=middle)).labels
    assert some == {name: p for name, p in everything.items() if p > middle} and 0 < len(some) < len(everything)


def test_a_models_own_thresholds_are_used_unless_another_is_given(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    everything = next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels
    ranked = list(everything)
    # Each label's threshold lies just below or just above its own probability, whatever the others'.
    kept = ranked[1::2]
    model.thresholds = [everything[n] + (-1e-6 if n in kept else 1e-6) for n in model.pretrained_cfg['label_names']]
    assert list(next(predict(model, [str(photos / 'b.png')])).labels) == kept
    assert len(next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels) == 12
    model.thresholds = None
    expected = [name for name in ranked if everything[name] > 0.5]
    assert list(next(predict(model, [str(photos / 'b.png')])).labels) == expected


def test_files_folders_and_globs_are_found(photos):
    def names(*patterns):
        return [path.removeprefix(f'{photos}/') for path in find_photos([str(photos / p) for p in patterns])]

    assert names('') == ['a.JPG', 'b.png', 'c[1].png']
    assert names('*.png') == ['b.png', 'c[1].png']
    assert names('**/*.png') == ['b.png', 'c[1].png', 'inner/d.png']
    assert names('c[1].png', 'gone.png') == ['c[1].png', 'gone.png']
    for nothing in ('*.gif', 'inner/empty'):
        (photos / 'inner' / 'empty').mkdir(exist_ok=True)
        with pytest.raises(InputError, match='no photo is there'):
            names(nothing)


def test_the_command_prints_a_table(trained, photos, capsys):
    assert cli.main(['predict', str(photos / 'b.png'), '--model', f'local-dir:{trained}', '--threshold', '0']) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['photo', 'probability', 'label'] and len(rows) == 12
    assert {row.split()[0] for row in rows} == {str(photos / 'b.png')}
    assert cli.main(['predict', str(photos / 'b.png'), '--model', f'local-dir:{trained}', '--threshold', '0.99']) == 0
    assert '(none above 0.99)' in capsys.readouterr().out


def test_the_command_goes_on_past_unreadable_photos_and_counts_them(trained, photos, capsys):
    arguments = [str(photos / name) for name in ('gone.jpg', 'b.png', 'notes.txt', 'a.JPG')]
    code = cli.main(['predict', *arguments, '--model', f'local-dir:{trained}', '--threshold', '0', '--json'])
    captured = capsys.readouterr()
    assert code == 1
    results = {entry['photo']: entry for entry in json.loads(captured.out)}
    assert list(results) == arguments
    assert [results[path]['error'] is None for path in arguments] == [False, True, False, True]
    assert all(len(results[path]['labels']) == (0 if results[path]['error'] else 12) for path in arguments)
    assert 'gone.jpg: there is no such file.' in captured.err and '2 of 4 photos could not be read' in captured.err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['x.jpg', '--model', 'local-dir:nowhere'], 'nowhere: holds no config.json'),
        (['x.jpg', '--model', 'msff_resnet10'], "unknown model 'msff_resnet10'"),
        (['*.nothing', '--model', 'msff_resnet101'], 'no photo is there'),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, capsys):
    assert cli.main(['predict', *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''


@pytest.mark.parametrize('threshold', ['1', '-0.1', 'half'])
def test_the_command_refuses_what_is_no_probability(threshold, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(['predict', 'x.jpg', '--model', 'm', '--threshold', threshold])
    assert caught.value.code == 2 and 'is not a probability' in capsys.readouterr().err


def test_a_model_without_label_names_gives_numbers(photos):
    model = timm.create_model('msff_test_resnet', num_classes=3).eval()
    assert set(next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels) == {'0', '1', '2'}
