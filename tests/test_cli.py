"""The commands that are not tested beside what they call."""

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from msff_timm import cli
from msff_timm.data import scenes
from msff_timm.export import read_metadata


@pytest.fixture
def scene(tmp_path):
    scenes.draw(0, 7, 96, 'test').save(tmp_path / 'scene.png')
    return str(tmp_path / 'scene.png')


def test_explain_draws_a_picture_and_prints_the_labels(trained, scene, tmp_path, capsys):
    arguments = ['explain', scene, '--model', f'local-dir:{trained}', '-o', str(tmp_path / 'out.png')]
    assert cli.main([*arguments, '--labels', 'square, heart', '--layers', 'last']) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'{tmp_path / "out.png"}: square 0.') and ', heart 0.' in printed
    assert Image.open(tmp_path / 'out.png').format == 'PNG'


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
        (['export', '--format', 'onnx', '--image-size', '16'], 'pictures of 16 x 16 pixels are too small'),
    ],
)
def test_bad_input_is_one_line(arguments, message, trained, scene, tmp_path, capsys):
    arguments = [scene if argument == 'SCENE' else argument for argument in arguments]
    assert cli.main([*arguments, '--model', f'local-dir:{trained}', '-o', str(tmp_path / 'out')]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count('\n') == 1 and captured.out == ''
    assert not (tmp_path / 'out').exists()
