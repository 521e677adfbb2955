import io
import json
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from msff_timm import hub
from msff_timm.data.formats import HAS_AVIF
from msff_timm.data.images import open_image
from msff_timm.errors import InputError
from msff_timm.inference.app import analyze
from msff_timm.inference.predict import find_images, predict
from msff_timm_cli import commands as cli


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    (folder / 'inner').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('b.png', 'a.JPG', 'c[1].png', 'inner/d.png'):
        Image.fromarray(rng.integers(0, 256, (70, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('not an image')
    return folder


def test_predict_gives_the_sigmoids_of_the_models_logits(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    model.calibration = None
    label_names = model.pretrained_cfg['label_names']
    paths = [str(photos / name) for name in ('a.JPG', 'b.png', 'c[1].png')]
    predictions = list(predict(model, paths, threshold=0.0, batch_size=2))
    assert [p.image for p in predictions] == paths
    for path, prediction in zip(paths, predictions, strict=True):
        # Preprocessing by hand, as in the run's config.json: 64 x 64, (x - 0.5) / 0.5
        pixels = np.asarray(Image.open(path).convert('RGB').resize((64, 64), Image.Resampling.BILINEAR)) / 255
        image = torch.from_numpy((pixels.astype(np.float32) - 0.5) / 0.5).permute(2, 0, 1)[None]
        expected = 1 / (1 + np.exp(-model(image)[0].detach().numpy()))
        assert prediction.labels == pytest.approx(dict(zip(label_names, expected, strict=True)), abs=1e-5)
        assert list(prediction.labels.values()) == sorted(prediction.labels.values(), reverse=True)
        assert abs(sum(prediction.labels.values()) - 1) > 0.1  # no softmax


def test_predict_keeps_labels_above_the_threshold(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    everything = next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels
    middle = sorted(everything.values())[6]
    some = next(predict(model, [str(photos / 'b.png')], threshold=middle)).labels
    assert some == {name: p for name, p in everything.items() if p > middle} and 0 < len(some) < len(everything)


def test_predict_uses_the_models_own_thresholds_by_default(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    model.calibration = None
    everything = next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels
    ranked = list(everything)
    # Each label's threshold is just below or just above its own probability.
    kept = ranked[1::2]
    model.thresholds = [everything[n] + (-1e-6 if n in kept else 1e-6) for n in model.pretrained_cfg['label_names']]
    assert list(next(predict(model, [str(photos / 'b.png')])).labels) == kept
    assert len(next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels) == 12
    model.thresholds = None
    expected = [name for name in ranked if everything[name] > 0.5]
    assert list(next(predict(model, [str(photos / 'b.png')])).labels) == expected


def test_predict_prints_calibrated_probabilities_and_the_same_labels(trained, photos):
    model = hub.load(f'local-dir:{trained}')
    image = str(photos / 'b.png')
    model.calibration = None
    before = next(predict(model, [image])).labels
    model.calibration = [2.0] * 12, [-1.0] * 12
    after = next(predict(model, [image])).labels
    logits = {name: math.log(p / (1 - p)) for name, p in before.items()}
    expected = {name: 1 / (1 + math.exp(-(z / 2 - 1))) for name, z in logits.items()}
    assert list(after) == list(before) and after == pytest.approx(expected, rel=1e-4) and len(after) > 0
    assert all(p > 0.9 for p in next(predict(model, [image], threshold=0.9)).labels.values())


def test_find_images_takes_files_folders_and_globs(photos):
    def names(*patterns):
        return [path.removeprefix(f'{photos}/') for path in find_images([str(photos / p) for p in patterns])]

    assert names('') == ['a.JPG', 'b.png', 'c[1].png']
    assert names('*.png') == ['b.png', 'c[1].png']
    assert names('**/*.png') == ['b.png', 'c[1].png', 'inner/d.png']
    assert names('c[1].png', 'gone.png') == ['c[1].png', 'gone.png']
    for nothing in ('*.gif', 'inner/empty'):
        (photos / 'inner' / 'empty').mkdir(exist_ok=True)
        with pytest.raises(InputError, match='no image found'):
            names(nothing)


def test_predict_command_prints_a_table(trained, photos, capsys):
    assert cli.main(['predict', str(photos / 'b.png'), '--model', f'local-dir:{trained}', '--threshold', '0']) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ['image', 'probability', 'label'] and len(rows) == 12
    assert {row.split()[0] for row in rows} == {str(photos / 'b.png')}
    assert cli.main(['predict', str(photos / 'b.png'), '--model', f'local-dir:{trained}', '--threshold', '0.99']) == 0
    assert '(none above 0.99)' in capsys.readouterr().out


def test_predict_command_counts_unreadable_images(trained, photos, capsys):
    arguments = [str(photos / name) for name in ('gone.jpg', 'b.png', 'notes.txt', 'a.JPG')]
    code = cli.main(['predict', *arguments, '--model', f'local-dir:{trained}', '--threshold', '0', '--json'])
    captured = capsys.readouterr()
    assert code == 1
    results = {entry['image']: entry for entry in json.loads(captured.out)}
    assert list(results) == arguments
    assert [results[path]['error'] is None for path in arguments] == [False, True, False, True]
    assert all(len(results[path]['labels']) == (0 if results[path]['error'] else 12) for path in arguments)
    assert 'gone.jpg: there is no such file.' in captured.err and '2 of 4 images could not be read' in captured.err


def jpeg(**settings):
    file = io.BytesIO()
    Image.new('RGB', (40, 30), 'teal').save(file, 'JPEG', **settings)
    return file.getvalue()


def box(brand, *compatible):
    content = brand + bytes(4) + b''.join(compatible)
    return struct.pack('>L', 8 + len(content)) + b'ftyp' + content + bytes(100)


def thumbnail():
    """Returns a small TIFF that Pillow reads, as at the beginning of many raw files."""
    file = io.BytesIO()
    Image.new('RGB', (16, 12)).save(file, 'TIFF')
    return file.getvalue()


READ = {
    'a.jpg': jpeg(), 'b.JPG': jpeg(), 'c.jfif': jpeg(), 'no suffix': jpeg(), 'scan.0001': jpeg(), 'x.bak': jpeg(),
    'd.tif': thumbnail(), 'TIFF': thumbnail(), 'raw.jpg.cr2': jpeg(),
}  # fmt: skip
NAMED = {
    'p.HEIC': (box(b'heic', b'mif1'), 'pip install pillow-heif'),
    'p.heif': (b'', 'pip install pillow-heif'),
    'p.hif': (box(b'mif1', b'heic'), 'pip install pillow-heif'),
    'heic': (box(b'heix'), 'pip install pillow-heif'),
    'heic.jpg': (box(b'heic', b'mif1'), 'pip install pillow-heif'),
    'r.CR2': (b'II*\0\x10\0\0\0CR\2\0' + bytes(200), 'raw file'),
    'r.CR3': (box(b'crx ', b'isom'), 'raw file'),
    'canon': (box(b'crx ', b'isom'), 'raw file'),
    'r.NEF': (thumbnail(), 'raw file'),
    'r.arw': (thumbnail(), 'raw file'),
    'r.dng': (b'', 'raw file'),
    'r.RW2': (b'IIU\0' + bytes(100), 'raw file'),
    'r.raf': (b'FUJIFILMCCD-RAW ' + bytes(100), 'raw file'),
    'x.jxl': (b'\xff\x0a' + bytes(100), 'JXL'),
    'jxl': (b'\0\0\0\x0cJXL \r\n\x87\n' + bytes(100), 'JXL'),
    'x.exr': (b'v/1\1' + bytes(100), 'EXR'),
    'cut.jpg': (jpeg()[:300], 'Truncated'),
    'empty.png': (b'', 'not an image'),
}
IGNORED = {
    '._a.jpg': b'\0\5\x16\7' + bytes(80), '.hidden.jpg': jpeg(), '.DS_Store': b'\0\0\0\1Bud1' + bytes(100),
    'report.pdf': b'%PDF-1.4\n', 'notes.txt': b'notes', 'README': b'P is not for PPM',
    'clip.mp4': box(b'isom', b'mp42'),
    'clip.mov': box(b'qt  '), 'clip.mpg': b'\0\0\1\xb3' + bytes(100), 'data.h5': b'\x89HDF\r\n\x1a\n' + bytes(100),
    'table.csv': b'file,label\n', 'a.xmp': b'<x:xmpmeta/>', 'empty': b'', 'archive.zip': b'PK\3\4' + bytes(100),
}  # fmt: skip


def test_find_images_lists_every_kind_of_image(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'OPEN', {key: Image.OPEN[key] for key in Image.OPEN if key != 'HEIF'})
    monkeypatch.setattr(Image, 'ID', [key for key in Image.ID if key != 'HEIF'])  # of pillow-heif, if installed
    for name, content in {**READ, **{n: c for n, (c, _) in NAMED.items()}, **IGNORED}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'loop.jpg').symlink_to(tmp_path / 'loop.jpg')
    (tmp_path / 'link').symlink_to(tmp_path / 'a.jpg')
    os.mkfifo(tmp_path / 'fifo')
    os.mkfifo(tmp_path / 'fifo.png')
    expected = sorted([*READ, *NAMED, 'loop.jpg', 'link', 'fifo.png'])
    for pattern in (tmp_path, tmp_path / '*'):
        assert [path.removeprefix(f'{tmp_path}/') for path in find_images([str(pattern)])] == expected
    for name in READ:
        assert open_image(tmp_path / name).mode == 'RGB'
    for name, (_, reason) in NAMED.items():
        with pytest.raises(InputError, match=f'^{tmp_path}/{name}: cannot be read as an image .*{reason}'):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match='symbolic links'):
        open_image(tmp_path / 'loop.jpg')


def test_find_images_ignores_other_files(tmp_path):
    for name, content in IGNORED.items():
        (tmp_path / name).write_bytes(content)
    for pattern in (tmp_path, tmp_path / '*', tmp_path / '*.pdf'):
        with pytest.raises(InputError, match='no image found'):
            find_images([str(pattern)])
    assert find_images([str(tmp_path / 'report.pdf')]) == [str(tmp_path / 'report.pdf')]  # named directly


def test_find_images_keeps_an_image_that_is_too_large(tmp_path):
    rows = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 2, 0, 0, 0)
    head = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + rows + struct.pack('>I', zlib.crc32(b'IHDR' + rows))
    (tmp_path / 'large').write_bytes(head + b'\0\0\0\0IDAT' + struct.pack('>I', zlib.crc32(b'IDAT')))
    assert find_images([str(tmp_path)]) == [str(tmp_path / 'large')]


def test_find_images_names_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(InputError, match=r'cannot be read \(Permission denied\)'):
        find_images([str(tmp_path)])


def test_predict_command_names_unreadable_images_of_a_folder(trained, cases, capsys):
    folder = cases / 'folder_with_other_files'
    expected = {
        'heic': ([], ['IMG_0001.HEIC']),
        'mixed': (['IMG_0001.jpg', 'scan'], ['IMG_0002.HEIC', 'IMG_0003.DNG']),
        'photos': (
            ['a.jpg', 'b.JPG', 'c.jfif', 'd.png', 'f.webp', 'h.tif', 'noext'],
            ['IMG_0001.HEIC', 'IMG_0002.CR2'],
        ),
    }
    (expected['photos'][0 if HAS_AVIF else 1]).append('g.avif')
    for name, (labelled, named) in expected.items():
        code = cli.main(['predict', str(folder / name), '--model', f'local-dir:{trained}', '--json'])
        captured = capsys.readouterr()
        results = {Path(entry['image']).name: entry['error'] for entry in json.loads(captured.out)}
        assert code == 1 and results.keys() == {*labelled, *named}
        assert all((results[file] is None) == (file in labelled) for file in results)
        lines = captured.err.splitlines()
        assert len(lines) == len(named) + 1 and all(any(file in line for line in lines) for file in named)
        assert lines[-1] == f'msff-timm: {len(named)} of {len(results)} images could not be read.'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['x.jpg', '--model', 'local-dir:nowhere'], 'nowhere: holds no config.json'),
        (['x.jpg', '--model', 'msff_resnet10'], "unknown model 'msff_resnet10'"),
        (['*.nothing', '--model', 'msff_resnet101'], 'no image found'),
    ],
)
def test_predict_command_refuses_bad_input_in_one_line(arguments, message, capsys):
    assert cli.main(['predict', *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''


@pytest.mark.parametrize('threshold', ['1', '-0.1', 'half'])
def test_predict_command_refuses_a_threshold_outside_its_range(threshold, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(['predict', 'x.jpg', '--model', 'm', '--threshold', threshold])
    assert caught.value.code == 2 and 'is not a probability' in capsys.readouterr().err


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'mldecoder_test_resnet', 'test_resnet'])
def test_predict_names_weights_that_are_not_finite(architecture, photos, tmp_path, capsys):
    model = timm.create_model(architecture, num_classes=3)
    name = next(name for name, p in model.named_parameters() if p.ndim > 1)
    model.get_parameter(name).data.view(-1)[0] = float('nan')
    hub.save(model, tmp_path / 'model', ['a', 'b', 'c'], timm.data.resolve_model_data_config(model))
    arguments = ['predict', str(photos / 'b.png'), '--model', f'local-dir:{tmp_path / "model"}']
    for extra in ([], ['--json'], ['--threshold', '0.3']):
        assert cli.main([*arguments, *extra]) == 2
        error = capsys.readouterr().err
        assert f'the logits of the model are not finite ({name} holds NaN or infinity)' in error
        assert error.count('\n') == 1


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'mldecoder_test_resnet'])
def test_analyze_takes_one_channel_and_names_weights_that_are_not_finite(architecture, photos):
    model = timm.create_model(architecture, num_classes=3, in_chans=1).eval()
    assert len(analyze(model, photos / 'b.png').probabilities) == 3
    model.classifier.bias.data[0] = float('nan')
    with pytest.raises(InputError, match=r'not finite \(classifier.bias holds NaN or infinity\)'):
        analyze(model, photos / 'b.png')


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'test_resnet'])
@pytest.mark.parametrize('in_chans', [1, 4])
def test_predict_takes_one_channel_and_refuses_four(architecture, in_chans, photos, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=2, in_chans=in_chans).eval()
    # timm's configuration is for three channels.
    hub.save(model, tmp_path, ['a', 'b'], timm.data.resolve_model_data_config(model, {'img_size': 96}))
    loaded = hub.load(f'local-dir:{tmp_path}')
    assert tuple(loaded.pretrained_cfg['input_size']) == (in_chans, 96, 96)
    if in_chans == 4:
        for one in (model, loaded):
            with pytest.raises(InputError, match='the model takes 4 channels, and images are read with 3'):
                list(predict(one, [str(photos / 'b.png')]))
        return
    gray = Image.open(photos / 'b.png').convert('L').resize((96, 96), Image.Resampling.BILINEAR)
    if architecture == 'msff_test_resnet':  # squashes images
        image = torch.from_numpy(np.asarray(gray).astype(np.float32) / 127.5 - 1)[None, None]
        expected = dict(zip('ab', model(image)[0].sigmoid().tolist(), strict=True))
        found = next(predict(loaded, [str(photos / 'b.png')], 0.0)).labels
        assert found == pytest.approx(expected, abs=2e-3)
    assert set(next(predict(model, [str(photos / 'b.png')], 0.0)).labels) == {'0', '1'}


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'test_resnet'])
def test_predict_numbers_labels_after_reset_classifier(architecture, photos, tmp_path):
    model = timm.create_model(architecture, num_classes=2)
    thresholds = {'per_class': [0.0, 0.0]}
    hub.save(model, tmp_path, ['a', 'b'], timm.data.resolve_model_data_config(model), thresholds=thresholds)
    model = hub.load(f'local-dir:{tmp_path}')
    assert set(next(predict(model, [str(photos / 'b.png')])).labels) == {'a', 'b'}
    model.reset_classifier(3)
    assert set(next(predict(model, [str(photos / 'b.png')], 0.0)).labels) == {'0', '1', '2'}
    list(predict(model, [str(photos / 'b.png')]))


def test_predict_takes_wrapped_models_and_half_precision(photos):
    model = hub.load('msff_test_resnet')
    expected = next(predict(model, [str(photos / 'b.png')], 0.0)).labels
    for wrapped in (torch.nn.DataParallel(model), torch.optim.swa_utils.AveragedModel(model).eval()):
        assert next(predict(wrapped, [str(photos / 'b.png')], 0.0)).labels == pytest.approx(expected, abs=1e-6)
    half = next(predict(model.bfloat16(), [str(photos / 'b.png')], 0.0)).labels
    assert half == pytest.approx(expected, abs=0.05)


def test_predict_numbers_labels_without_names(photos):
    model = timm.create_model('msff_test_resnet', num_classes=3).eval()
    assert set(next(predict(model, [str(photos / 'b.png')], threshold=0.0)).labels) == {'0', '1', '2'}
