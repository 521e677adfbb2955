"""The `msff-timm` command: what is not tested beside the functions that it calls."""

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from importlib.metadata import entry_points

import datasets
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

import msff_timm
from msff_timm import errors, hub
from msff_timm.data import scenes
from msff_timm.data.inspect import near_duplicates
from msff_timm.hub import card
from msff_timm.hub.half import KEEP_BELOW
from msff_timm.inference import app, bulk, sidecars, similar
from msff_timm.inference.attention import LAYERS
from msff_timm.inference.export import FORMATS, read_metadata
from msff_timm.inference.precision import MAX_DROP, PRECISIONS
from msff_timm.training import commands, evaluate, issues, train
from msff_timm_cli import commands as cli
from msff_timm_cli import parser


@pytest.fixture
def scene(tmp_path):
    scenes.draw(0, 7, 96, 'test').save(tmp_path / 'scene.png')
    return str(tmp_path / 'scene.png')


def test_explain_draws_a_figure_and_prints_the_labels(trained, scene, tmp_path, capsys):
    arguments = ['explain', scene, '--model', f'local-dir:{trained}', '-o', str(tmp_path / 'out.png')]
    assert cli.main([*arguments, '--labels', 'square, heart', '--layers', 'last']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'{tmp_path / "out.png"}: square 0.') and ', heart 0.' in printed
    assert Image.open(tmp_path / 'out.png').format == 'PNG'


def test_model_defaults_to_the_shipped_one_and_is_named(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('socket.socket.connect', None)  # without network
    label_names = hub.load().pretrained_cfg['label_names']
    line = f'model: {hub.DEFAULT_MODEL} ({len(label_names)} labels of PASCAL VOC; --model for others)\n'
    for command in (['predict', scene, '--threshold=0'], ['explain', scene, '-o', str(tmp_path / 'out.png')]):
        assert cli.main([*command, '--model', hub.DEFAULT_MODEL]) == 0
        named = capsys.readouterr()
        assert cli.main(command) == 0
        default = capsys.readouterr()
        assert default.out == named.out and any(name in named.out for name in label_names)
        assert named.err == '' and default.err == line
    served = []
    monkeypatch.setattr(app, 'serve', lambda *args: served.append(args))
    assert cli.main(['space']) == cli.main(['space', '--model', 'local-dir:x', '--device', 'cpu']) == 0
    assert served == [(hub.DEFAULT_MODEL, None, None, None, False), ('local-dir:x', None, None, 'cpu', False)]
    assert capsys.readouterr().err == line


def test_verbosity_chooses_the_messages(scene, tmp_path, capsys):
    command = ['predict', scene, str(tmp_path / 'gone.png'), '--json']
    errors = [
        f'msff-timm: {tmp_path}/gone.png: there is no such file.',
        'msff-timm: 1 of 2 images could not be read.',
    ]
    lines = {}
    for option in ('-q', '--quiet', '', '-v', '--verbose'):
        assert cli.main([*command, *filter(None, [option])]) == 1
        captured = capsys.readouterr()
        assert len(json.loads(captured.out)) == 2
        lines[option] = captured.err.splitlines()
    assert lines['-q'] == lines['--quiet'] == errors
    assert lines[''][0].startswith('model: ') and lines[''][1:] == errors
    assert lines['-v'] == lines['--verbose']
    assert any(line.startswith('device: ') for line in lines['-v']) and set(lines['']) < set(lines['-v'])
    assert any(line.startswith('Loading pretrained weights from file') for line in lines['-v'])  # of timm
    assert not logging.getLogger('msff_timm').level and not logging.getLogger('msff_timm').handlers


def test_warnings_are_shown_once_and_name_the_command(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'msff_test_resnet').mkdir()
    assert cli.main(['predict', scene, '--model', 'msff_test_resnet']) == 0
    line = 'msff_test_resnet is the registered model here: write ./msff_test_resnet for the folder of that name.'
    assert capsys.readouterr().err == f'msff-timm: {line}\n'


@pytest.mark.parametrize('command', ['predict', 'explain', 'space'])
def test_device_that_is_not_there_is_refused(command, scene, monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda check_available: None)
    arguments = {'predict': [scene], 'explain': [scene, '-o', 'x.png'], 'space': []}[command]
    monkeypatch.setattr(app, '_gradio', lambda: None)
    monkeypatch.setattr(app, '_check_address', lambda host, port: None)
    assert cli.main([command, *arguments, '--model', 'local-dir:gone', '--device', 'cuda']) == 2
    assert 'device is cuda: PyTorch does not find one; available: cpu.' in capsys.readouterr().err


@pytest.mark.parametrize('command', ['predict', 'explain', 'space'])
def test_help_names_the_default_model(command, capsys):
    with pytest.raises(SystemExit, match='0'):
        cli.main([command, '--help'])
    printed = ' '.join(capsys.readouterr().out.split())
    assert f'(default: {hub.DEFAULT_MODEL}, ' in printed and 'looked for in this order' in printed


def test_export_writes_a_file_that_onnx_runtime_runs(trained, scene, tmp_path, capsys):
    path = tmp_path / 'model.onnx'
    arguments = ['export', '--model', f'local-dir:{trained}', '--format', 'onnx', '-o', str(path), '--images', scene]
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
def test_bad_input_is_reported_in_one_line(arguments, message, trained, scene, tmp_path, capsys):
    arguments = [scene if argument == 'SCENE' else argument for argument in arguments]
    assert cli.main([*arguments, '--model', f'local-dir:{trained}', '-o', str(tmp_path / 'out')]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''
    assert not (tmp_path / 'out').exists()


NAMES = ['猫', 'né', 'dog']
ENCODINGS = ['ascii', 'cp1252', 'cp932', 'utf-8']


@pytest.fixture
def terminal(monkeypatch):
    """Returns a function that runs the command with an encoding; it returns the exit code and both outputs."""

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
def test_predict_escapes_characters_that_the_terminal_lacks(terminal, saved, tmp_path, encoding):
    photos = [tmp_path / '写真 – é.png', tmp_path / os.fsdecode(b'caf\xe9.png')]
    for photo in photos:
        Image.new('RGB', (40, 30)).save(photo)
    gone = tmp_path / os.fsdecode(b'\xff\xfe.png')
    code, out, err = terminal(encoding, 'predict', *photos, gone, '--model', saved, '--threshold', 0)
    assert code == 1 and '\\udcff\\udcfe.png: there is no such file' in err and '1 of 3' in err
    assert all(as_printed(text, encoding) in out for text in (*NAMES, str(photos[0]), str(photos[1])))
    code, out, _ = terminal(encoding, 'predict', *photos, '--model', saved, '--threshold', 0, '--json')
    rows = json.loads(out)
    assert code == 0 and [row['image'] for row in rows] == list(map(str, photos))
    assert all(sorted(row['labels']) == sorted(NAMES) for row in rows)


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_data_escapes_characters_that_the_terminal_lacks(terminal, tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    root, output = tmp_path / 'données', tmp_path / os.fsdecode(b'sor\xe9')
    root.mkdir()
    Image.new('RGB', (40, 30)).save(root / '写真.png')
    (root / '写真2.png').write_bytes(b'')
    (root / 'train.csv').write_text('image,labels\n写真.png,猫|né\n写真2.png,dog\n', encoding='utf-8')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # no font has the label's name
        code, out, err = terminal(encoding, 'data', 'table', '--root', root, '--splits', 'train', '-o', output)
    assert code == 1 and 'Traceback' not in err
    assert all(as_printed(text, encoding) in out for text in (*NAMES, '写真2.png', str(output)))
    report = json.loads((output / 'inspect.json').read_text(encoding='utf-8'))
    assert set(report['label_names']) == set(NAMES)
    assert report['splits']['train']['unreadable'] == [f'{root / "写真2.png"}: is empty.']


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_card_escapes_characters_that_the_terminal_lacks(terminal, tmp_path, encoding):
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


def test_error_handler_of_the_user_stays(terminal, saved, tmp_path):
    Image.new('RGB', (40, 30)).save(tmp_path / 'é.png')
    assert '?.png' in terminal('ascii', 'predict', tmp_path / 'é.png', '--model', saved, errors='replace')[1]
    assert (
        '\\xe9.png' in terminal('ascii', 'predict', tmp_path / 'é.png', '--model', saved, errors='surrogateescape')[1]
    )


def test_data_refuses_a_root_that_is_not_utf8(terminal, tmp_path):
    root = tmp_path / os.fsdecode(b'donn\xe9es')
    root.mkdir()
    for name in ('table', 'coco2014', 'voc2007', 'folder'):
        code, out, err = terminal('utf-8', 'data', name, '--root', root)
        assert code == 2 and err.count('\n') == 1 and "donn\\udce9es': its path is not UTF-8: rename it" in err


def test_scripts_escape_characters_that_the_terminal_lacks(monkeypatch):
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
def test_output_that_cannot_be_written_is_refused_first(arguments, tmp_path, capsys):
    """The other arguments are wrong, too: a check of the output after the work would come too late."""
    (tmp_path / 'file').touch()
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere' / 'x')
    for output in ('file/x', 'dangling/x', 'a' * 300, '/proc/x'):
        assert cli.main([*arguments, '-o', str(tmp_path / output)]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f'msff-timm: error: --output is {tmp_path / output}: nothing can be written to ')
        assert line.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['dangling', 'file']


def test_parser_constants_equal_their_sources():
    assert parser.DEFAULT_MODEL == hub.DEFAULT_MODEL and parser.KEEP_BELOW == KEEP_BELOW
    assert parser.MOST == issues.MOST and parser.SIMILAR == near_duplicates.SIMILAR
    assert parser.FORMATS == tuple(FORMATS) and parser.LAYERS == LAYERS
    assert parser.AUTOCAST == tuple(bulk.PRECISIONS) and parser.SIDECARS == sidecars.FORMATS
    assert parser.SIMILARITY == similar.NEAR_DUPLICATE
    assert parser.PRECISIONS == ('float32', *PRECISIONS) and parser.MAX_DROP == MAX_DROP
    commands = parser.make_parser()._subparsers._group_actions[0].choices
    assert set(commands) == {*cli.COMMANDS, 'train', 'evaluate'}


def test_parse_tells_data_split_from_a_folder_of_that_name():
    split = parser.parse(['data', 'split', 'photos', '--validation', '0.2'])
    assert (split.command, split.name, split.validation) == ('data split', 'photos', 0.2)
    for arguments in (['./split'], ['photos'], ['table', '--root', 'split']):
        found = parser.parse(['data', *arguments])
        assert (found.command, found.name) == ('data', arguments[0])


@pytest.mark.parametrize('arguments', [['--version'], ['--help'], ['predict', '--help'], ['predict', '--threshold=2']])
def test_command_answers_without_loading_pytorch(arguments):
    code = 'import sys; sys.modules |= dict.fromkeys(["torch", "timm", "numpy", "msff_timm"]);'
    code += f'from msff_timm_cli.commands import main; main({arguments})'
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if arguments == ['predict', '--threshold=2']:
        assert ended.returncode == 2 and "'2' is not a probability" in ended.stderr
    else:
        assert ended.returncode == 0 and ended.stderr == ''
    assert arguments != ['--version'] or ended.stdout == f'{msff_timm.__version__}\n'


def test_command_is_installed_and_runs_as_a_module():
    (script,) = entry_points(group='console_scripts', name='msff-timm')
    assert script.load() is cli.main
    ended = subprocess.run([sys.executable, '-m', 'msff_timm', 'card', 'gone'], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith('msff-timm: error: gone')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['export', '--photos', 'a.png', 'b.png'], 'argument --photos: is now --images'),
        (['halve', 'run', '--photos', 'a.png'], 'argument --photos: is now --images'),
        (['convert', 'a.whl', 'folder'], 'argument OUTPUT: is now -o FOLDER'),
    ],
)
def test_parser_refuses_old_names_with_the_new_ones(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_parser_names_options_the_same_in_every_command():
    commands = parser.make_parser()._subparsers._group_actions[0].choices
    options = {name: set(command._option_string_actions) for name, command in commands.items()}
    for name, found in options.items():
        assert ('--output' in found) == ('-o' in found)
        assert name in ('train', 'evaluate') or {'-q', '--quiet', '-v', '--verbose'} <= found
    computing = {name for name, found in options.items() if '--device' in found}
    assert computing == {'predict', 'embed', 'similar', 'explain', 'space', 'data issues'}


@pytest.mark.parametrize(('name', 'module'), [('train', train), ('evaluate', evaluate)])
def test_training_commands_pass_their_arguments_on(name, module, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, 'argv', ['msff-timm'])
    monkeypatch.setattr(module, 'main', lambda: seen.append(sys.argv))
    assert cli.main([name, '--config', 'x', '--output=-v', '-q']) == 0
    assert seen == [[f'msff-timm {name}', '--config', 'x', '--output=-v', '-q']]

    def refuse():
        raise errors.InputError('wrong.')

    monkeypatch.setattr(module, 'main', refuse)
    with pytest.raises(SystemExit, match='2'):
        cli.main([name])
    assert capsys.readouterr().err == f'msff-timm {name}: error: wrong.\n'


def test_training_commands_name_the_extra_that_is_missing(monkeypatch, capsys):
    for module in list(sys.modules):
        if module.startswith('msff_timm.training'):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    for name in ('train', 'evaluate'):
        assert cli.main([name, '--help']) == 2
        line = "msff-timm: error: accelerate is not installed: pip install 'msff-timm[train]'\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize('command', [['msff_timm', '--version'], ['msff_timm.training.train', '--help']])
def test_modules_set_up_their_process_before_pytorch(command):
    started = subprocess.run([sys.executable, '-X', 'importtime', '-m', *command], capture_output=True, text=True)
    imported = [line.rpartition('|')[2].strip() for line in started.stderr.splitlines()]
    assert started.returncode == 0 and imported.index('msff_timm_cli.startup') < imported.index('torch')
