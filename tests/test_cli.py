"""The commands that are not tested beside what they call."""

import io
import json
import os
import sys
import warnings

import datasets
import numpy as np
import onnxruntime
import pytest
import timm
from PIL import Image

from msff_timm import hub
from msff_timm.data import scenes
from msff_timm.hub import card
from msff_timm.inference import app
from msff_timm.inference.export import read_metadata
from msff_timm.training import commands
from msff_timm_cli import commands as cli


@pytest.fixture
def scene(tmp_path):
    scenes.draw(0, 7, 96, 'test').save(tmp_path / 'scene.png')
    return str(tmp_path / 'scene.png')


def test_explain_draws_an_image_and_prints_the_labels(trained, scene, tmp_path, capsys):
    arguments = ['explain', scene, '--model', f'local-dir:{trained}', '-o', str(tmp_path / 'out.png')]
    assert cli.main([*arguments, '--labels', 'square, heart', '--layers', 'last']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'{tmp_path / "out.png"}: square 0.') and ', heart 0.' in printed
    assert Image.open(tmp_path / 'out.png').format == 'PNG'


def test_without_a_model_commands_use_the_one_that_the_package_brings_and_name_it(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('socket.socket.connect', None)  # nothing is asked of anybody
    label_names = hub.load().pretrained_cfg['label_names']
    line = f'model: {hub.DEFAULT_MODEL} ({len(label_names)} labels of '
    for command in (['predict', scene, '--threshold=0'], ['explain', scene, '-o', str(tmp_path / 'out.png')]):
        assert cli.main([*command, '--model', hub.DEFAULT_MODEL]) == 0
        asked = capsys.readouterr()
        assert cli.main(command) == 0
        default = capsys.readouterr()
        assert default.out == asked.out and any(name in asked.out for name in label_names)
        assert asked.err == '' and default.err.startswith(line) and default.err.endswith('; --model for others)\n')
        assert default.err.count('\n') == 1
    served = []
    monkeypatch.setattr(app, 'serve', lambda *args: served.append(args))
    assert cli.main(['space']) == cli.main(['space', '--model', 'local-dir:x']) == 0
    assert served == [(hub.DEFAULT_MODEL, None, None), ('local-dir:x', None, None)]
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize('command', ['predict', 'explain', 'space'])
def test_help_names_the_default_model(command, capsys):
    with pytest.raises(SystemExit, match='0'):
        cli.main([command, '--help'])
    printed = ' '.join(capsys.readouterr().out.split())
    assert f'(default: {hub.DEFAULT_MODEL}, ' in printed or 'as for predict, with the same default' in printed


def test_export_writes_a_file_that_onnx_runtime_runs(trained, scene, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    arguments = ['export', '--model', f'local-dir:{trained}', '--format', 'onnx', '-o', str(path), '--photos', scene]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f'{path}: onnx, ')
    size = read_metadata(path)['input_size']
    (logits,) = onnxruntime.InferenceSession(path).run(['logits'], {'image': np.zeros((5, *size), np.float32)})
    assert logits.shape == (5, 12)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['explain', 'SCENE', '--labels', 'hart'], "unknown label 'hart': did you mean heart?"),
        (['explain', 'gone.png'], 'gone.png: there is no such file.'),
        (['export', '--format', 'onxx'], "unknown export format 'onxx': did you mean onnx?"),
        (['export', '--format', 'onnx', '--image-size', '16'], 'images of 16 x 16 pixels are too small'),
    ],
)
def test_bad_input_is_one_line(arguments, message, trained, scene, tmp_path, capsys):
    arguments = [scene if argument == 'SCENE' else argument for argument in arguments]
    assert cli.main([*arguments, '--model', f'local-dir:{trained}', '-o', str(tmp_path / 'out')]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''
    assert not (tmp_path / 'out').exists()


NAMES = ['猫', 'né', 'dog']
ENCODINGS = ['ascii', 'cp1252', 'cp932', 'utf-8']


@pytest.fixture
def terminal(monkeypatch):
    """Runs the command with stdout and stderr of an encoding; gives the exit code and the text of both."""

    def run(encoding, *arguments, errors='strict'):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'stdout', streams[0])
            patch.setattr(sys, 'stderr', streams[1])
            code = cli.main(list(map(str, arguments)))
        return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)

    return run


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    hub.save(timm.create_model('test_resnet', num_classes=3), folder, NAMES, {'input_size': (3, 32, 32)})
    return f'local-dir:{folder}'


def as_printed(text, encoding):
    return text.encode(encoding, 'backslashreplace').decode(encoding)


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_predict_prints_names_that_the_terminal_lacks(terminal, saved, tmp_path, encoding):
    photos = [tmp_path / '写真 – é.png', tmp_path / os.fsdecode(b'caf\xe9.png')]
    for photo in photos:
        Image.new('RGB', (40, 30)).save(photo)
    gone = tmp_path / os.fsdecode(b'\xff\xfe.png')
    code, out, err = terminal(encoding, 'predict', *photos, gone, '--model', saved, '--threshold', 0)
    assert code == 1 and '\\udcff\\udcfe.png: there is no such file' in err and '1 of 3' in err
    assert all(as_printed(text, encoding) in out for text in (*NAMES, str(photos[0]), str(photos[1])))
    code, out, _ = terminal(encoding, 'predict', *photos, '--model', saved, '--threshold', 0, '--json')
    rows = json.loads(out)
    assert code == 0 and [row['photo'] for row in rows] == list(map(str, photos))
    assert all(sorted(row['labels']) == sorted(NAMES) for row in rows)


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_data_prints_names_that_the_terminal_lacks(terminal, tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    root, output = tmp_path / 'données', tmp_path / os.fsdecode(b'sor\xe9')
    root.mkdir()
    Image.new('RGB', (40, 30)).save(root / '写真.png')
    (root / '写真2.png').write_bytes(b'')
    (root / 'train.csv').write_text('image,labels\n写真.png,猫|né\n写真2.png,dog\n', encoding='utf-8')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that no font has a label's name
        code, out, err = terminal(encoding, 'data', 'table', '--root', root, '--splits', 'train', '-o', output)
    assert code == 1 and 'Traceback' not in err
    assert all(as_printed(text, encoding) in out for text in (*NAMES, '写真2.png', str(output)))
    report = json.loads((output / 'inspect.json').read_text(encoding='utf-8'))
    assert set(report['label_names']) == set(NAMES)
    assert report['splits']['train']['unreadable'] == [f'{root / "写真2.png"}: is empty.']


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_card_is_printed_with_escapes_and_written_whole(terminal, tmp_path, encoding):
    tag = 'msff_resnet101.coco2014_448'
    text = card.render_tag(tag) + '猫\n'
    path = tmp_path / os.fsdecode(b'caf\xe9.md')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, 'render_tag', lambda _: text)
        code, out, err = terminal(encoding, 'card', '--tag', tag)
        assert code == 0 and out == as_printed(text + '\n', encoding)
        assert (err == '') == (encoding in ('utf-8', 'cp932'))
        assert encoding in ('utf-8', 'cp932') or (f'{encoding} lacks ' in err and '-o FILE writes UTF-8' in err)
        assert terminal(encoding, 'card', '--tag', tag, '-o', path)[:2] == (0, as_printed(f'{path}\n', encoding))
    assert path.read_text(encoding='utf-8') == text


def test_a_users_own_way_to_replace_characters_stays(terminal, saved, tmp_path):
    Image.new('RGB', (40, 30)).save(tmp_path / 'é.png')
    assert '?.png' in terminal('ascii', 'predict', tmp_path / 'é.png', '--model', saved, errors='replace')[1]
    assert (
        '\\xe9.png' in terminal('ascii', 'predict', tmp_path / 'é.png', '--model', saved, errors='surrogateescape')[1]
    )


def test_a_root_that_is_not_utf8_is_named(terminal, tmp_path):
    root = tmp_path / os.fsdecode(b'donn\xe9es')
    root.mkdir()
    for name in ('table', 'coco2014', 'voc2007', 'folder'):
        code, out, err = terminal('utf-8', 'data', name, '--root', root)
        assert code == 2 and err.count('\n') == 1 and "donn\\udce9es': its path is not UTF-8; rename it" in err


def test_scripts_print_what_the_terminal_lacks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), 'cp1252', write_through=True)
    monkeypatch.setattr(sys, 'stdout', stream)
    commands.run_command(lambda: print('猫é'))
    assert stream.buffer.getvalue() == b'\\u732b\xe9' + os.linesep.encode()


@pytest.mark.parametrize(
    'arguments',
    [
        ['explain', 'gone.png', '--model=local-dir:gone'],
        ['export', '--model=local-dir:gone', '--format=onnx'],
        ['halve', 'gone'],
        ['card', 'gone'],
        ['data', 'scenes'],
    ],
)
def test_outputs_that_cannot_be_written_are_named_before_any_work(arguments, tmp_path, capsys):
    """The rest of each command is wrong, too, which a look at the output afterwards would name first."""
    (tmp_path / 'file').touch()
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere' / 'x')
    for output in ('file/x', 'dangling/x', 'a' * 300, '/proc/x'):
        assert cli.main([*arguments, '-o', str(tmp_path / output)]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f'msff-timm: error: --output is {tmp_path / output}: nothing can be written to ')
        assert line.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['dangling', 'file']
