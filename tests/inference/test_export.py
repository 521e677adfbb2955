import copy
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from msff_timm import __version__, hub
from msff_timm.data.images import open_image
from msff_timm.data.transforms import eval_transform
from msff_timm.errors import InputError
from msff_timm.inference.export import FORMATS, METADATA_FILE, export, read_metadata

pytestmark = pytest.mark.usefixtures('one_thread')
LABELS = ['Zebra', 'chien d’été', 'a "chair"']
SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2', 'torchscript': '.pt'}
DATA_CONFIG = {'input_size': (3, 72, 72), 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7)}
DATA_CONFIG |= {'interpolation': 'bicubic', 'crop_pct': 0.9, 'crop_mode': 'center'}


def create(name='msff_test_resnet', **model_args):
    torch.manual_seed(0)
    model = timm.create_model(name, **{'num_classes': 3, 'encoder_depth': 1, 'decoder_depth': 1, **model_args}).eval()
    for name, parameter in model.named_parameters():  # zeros would hide lost parameters
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif not name.startswith('backbone'):
            torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():  # running statistics of a trained model
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    hub.save(create(), folder, LABELS, DATA_CONFIG)
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return hub.load(f'local-dir:{folder}')


@pytest.fixture(scope='module')
def process(folder):
    """Process in which the model was exported to every format, beside the saved model."""
    code = f"""
import pickle, sys
from msff_timm import hub
from msff_timm.inference.export import export
model = hub.load('local-dir:{folder}')
results = {{}}
for format, suffix in {SUFFIXES}.items():
    results[format] = export(model, f'{folder}/model{{suffix}}', format)
with open('{folder}/results', 'wb') as file:
    pickle.dump(results, file)
"""
    command = [sys.executable, '-W', 'default', '-c', code]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope='module')
def exported(folder, process):
    """Result of `export` for each format."""
    assert process.returncode == 0, process.stderr
    return pickle.loads((folder / 'results').read_bytes())


def run(format, path, image):
    """Runs a file as its users do, without our code."""
    if format == 'onnx':
        (logits,) = onnxruntime.InferenceSession(path).run(['logits'], {'image': image.numpy()})
        return torch.from_numpy(logits)
    with torch.no_grad():
        program = torch.export.load(path).module() if format == 'torch-export' else torch.jit.load(path)
        return program(image)


def test_export_prints_nothing_but_that_torchscript_is_deprecated(process):
    line = 'TorchScript is deprecated in PyTorch, and will be removed here: use torch-export or onnx.\n'
    assert (process.returncode, process.stdout, process.stderr) == (0, '', line)


@pytest.mark.parametrize('format', FORMATS)
def test_export_computes_the_models_logits_at_any_batch_size(format, model, exported):
    path = exported[format].path
    for batch_size in (1, 3):
        image = torch.randn(batch_size, 3, 72, 72, generator=torch.Generator().manual_seed(batch_size))
        with torch.no_grad():
            logits = model(image)
        torch.testing.assert_close(run(format, path, image), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('format', FORMATS)
def test_export_computes_the_models_logits_of_real_photos(format, model, exported, coco_root):
    transform = eval_transform(timm.data.resolve_model_data_config(model))
    photos = sorted((coco_root / 'val2014').iterdir())[:3]
    image = torch.stack([transform(open_image(photo)) for photo in photos])
    with torch.no_grad():
        logits = model(image)
    assert logits.std(0).min() > 1e-2  # the logits depend on the images
    torch.testing.assert_close(run(format, exported[format].path, image), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize('format', FORMATS)
def test_read_metadata_returns_labels_and_preprocessing(format, exported):
    assert read_metadata(exported[format].path) == {
        'label_names': LABELS,
        'input_size': [3, 72, 72],
        'mean': [0.1, 0.2, 0.3],
        'std': [0.5, 0.6, 0.7],
        'interpolation': 'bicubic',
        'crop_pct': 0.9,
        'crop_mode': 'center',
        'problem_type': 'multi_label_classification',
        'function_to_apply': 'sigmoid',
        'architecture': 'msff_test_resnet',
        'msff_timm_version': __version__,
    }


def test_export_stores_metadata_as_extra_files_of_pytorch(exported):
    for format, load in (('torch-export', torch.export.load), ('torchscript', torch.jit.load)):
        files = {METADATA_FILE: ''}
        load(exported[format].path, **{'extra_files' if format == 'torch-export' else '_extra_files': files})
        assert json.loads(files[METADATA_FILE])['label_names'] == LABELS


def test_export_to_onnx_runs_with_onnx_runtime_alone(exported, model, tmp_path):
    image = torch.randn(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / 'image.npy', image.numpy())
    code = f"""
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession('{exported['onnx'].path}')
(logits,) = session.run(None, {{'image': np.load('{tmp_path}/image.npy')}})
metadata = {{key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}}
imported = sorted({{'msff_timm', 'timm', 'torch'}} & set(sys.modules))
print(json.dumps([logits.tolist(), metadata, imported]))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    logits, metadata, imported = json.loads(result.stdout)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(image), rtol=0, atol=1e-5)
    assert metadata == read_metadata(exported['onnx'].path) and metadata['label_names'] == LABELS
    assert imported == []


def test_export_to_onnx_names_inputs_and_has_one_opset(exported):
    path = exported['onnx'].path
    onnx.checker.check_model(path, full_check=True)
    proto = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [('', 18)]
    (image,), (logits,) = proto.graph.input, proto.graph.output
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (image, logits)]
    assert (image.name, logits.name) == ('image', 'logits') and shapes == [['batch', 3, 72, 72], ['batch', 3]]
    assert [file.name for file in path.parent.glob('*.onnx*')] == ['model.onnx']


@pytest.mark.parametrize('format', ['onnx', 'torch-export'])
def test_export_stores_no_paths(format, exported):
    content = exported[format].path.read_bytes()
    assert str(Path(hub.__file__).parent).encode() not in content and b'site-packages' not in content


@pytest.mark.parametrize('format', FORMATS)
def test_export_returns_size_and_difference(format, exported):
    result = exported[format]
    assert (result.format, result.input_size) == (format, (3, 72, 72))
    assert result.num_bytes == result.path.stat().st_size
    assert 0 <= result.max_difference < 1e-5


REFUSALS = {
    'onnx': r'invalid dimensions for input: image .*\n index: 2 Got: 96 Expected: 72',
    # PyTorch's wording of today, and of 2.7
    'torch-export': r'Guard failed: image.size\(\)\[2\] == 72|shape\[2\] to be equal to 72, but got 96',
    'torchscript': r'image: its shape must be .* = \[3, 72, 72\]',
}


@pytest.mark.parametrize('format', FORMATS)
def test_export_refuses_images_of_another_size(format, exported):
    with pytest.raises(Exception, match=REFUSALS[format]):
        run(format, exported[format].path, torch.zeros(1, 3, 96, 96))


def test_export_does_not_change_the_model(tmp_path):
    model = create(num_classes=2).double().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    export(model, tmp_path / 'model.pt', 'torchscript', image_size=64)
    assert model.training and all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    # The file is of a model in evaluation mode, in float32.
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / 'model.pt')(image), model.float().eval()(image))
    assert read_metadata(tmp_path / 'model.pt')['label_names'] == ['0', '1']


def test_export_takes_another_image_size(model, tmp_path):
    result = export(model, tmp_path / 'new' / 'model.pt', 'torchscript', image_size=64)
    assert result.input_size == (3, 64, 64) and read_metadata(result.path)['input_size'] == [3, 64, 64]
    assert torch.jit.load(result.path)(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def recording(monkeypatch, change=lambda logits: logits):
    """Changes the logits of the file that is compared; returns the list of its batches."""
    write, open_file = FORMATS['torchscript']
    batches = []

    def open_changed(file):
        program = open_file(file)
        return lambda image: change(batches.append(image) or program(image))

    monkeypatch.setitem(FORMATS, 'torchscript', (write, open_changed))
    return batches


@pytest.mark.parametrize(('num_photos', 'sizes'), [(0, [1, 3]), (2, [1, 3]), (5, [1, 3, 1])])
def test_export_compares_on_one_image_and_on_several(num_photos, sizes, model, tmp_path, coco_root, monkeypatch):
    batches = recording(monkeypatch)
    photos = sorted((coco_root / 'val2014').iterdir())[:num_photos]
    export(model, tmp_path / 'model.pt', 'torchscript', images=photos)
    assert [len(batch) for batch in batches] == sizes
    transform = eval_transform(timm.data.resolve_model_data_config(model))
    for image, photo in zip(torch.cat(batches), photos, strict=False):
        assert torch.equal(image, transform(open_image(photo)))


@pytest.mark.parametrize(
    'change',
    [
        lambda logits: logits + 1e-3,
        lambda logits: logits.flip(1),
        lambda logits: logits * torch.nan,
        lambda logits: logits[:1].expand_as(logits),  # right for one image, wrong for several
        lambda logits: logits[:1],
    ],
)
def test_export_refuses_a_file_that_differs_and_keeps_the_earlier_one(change, model, tmp_path, monkeypatch):
    path = tmp_path / 'model.pt'
    path.write_text('the earlier file')
    recording(monkeypatch, change)
    with pytest.raises(InputError, match='is not written: its logits differ') as caught:
        export(model, path, 'torchscript')
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    assert path.read_text() == 'the earlier file' and [*tmp_path.iterdir()] == [path]


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
    """Folder of a run: a saved model and the files that training leaves beside it."""
    folder = tmp_path_factory.mktemp('saved') / 'run'
    hub.save(model, folder, LABELS, timm.data.resolve_model_data_config(model))
    for name in ('results.json', 'README.md', 'checkpoints/step-3/model.safetensors', 'checkpoints/step-3/state.bin'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('precious')
    return folder


@pytest.mark.parametrize(
    'target',
    [
        'run/model.safetensors',
        'run/config.json',
        'run/results.json',
        'run/README.md',
        'run/checkpoints/step-3/model.safetensors',
        'run/checkpoints/step-3/state.bin',
        'run/Model.SafeTensors',  # on macOS and Windows the same file
        'run/../run/model.safetensors',
        'link/model.safetensors',
        'link.pt',
    ],
)
@pytest.mark.parametrize('is_own', [True, False])
def test_export_never_replaces_a_file_of_a_saved_model(target, is_own, saved, model, monkeypatch):
    root = saved.parent
    if not (root / 'link').exists():
        (root / 'link').symlink_to(saved, target_is_directory=True)
        (root / 'link.pt').symlink_to(saved / 'model.safetensors')
    monkeypatch.chdir(root)
    before = {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}
    if is_own:
        model = hub.load(f'local-dir:{saved}')
    elif 'state.bin' in target:
        pytest.skip('no name or file beside it shows that it belongs to a model')
    with pytest.raises(InputError, match='is a file of a saved model: choose another name'):
        export(model, target, 'torchscript')
    assert {path: path.read_bytes() for path in root.rglob('*') if path.is_file()} == before


def test_export_replaces_an_earlier_export_beside_the_weights(model, tmp_path):
    hub.save(model, tmp_path, LABELS, timm.data.resolve_model_data_config(model))
    loaded = hub.load(f'local-dir:{tmp_path}')
    for image_size in (64, 96):
        export(loaded, tmp_path / 'model.pt', 'torchscript', image_size=image_size)
        assert read_metadata(tmp_path / 'model.pt')['input_size'] == [3, image_size, image_size]
    assert hub.load(f'local-dir:{tmp_path}').num_classes == 3


def test_export_names_weights_that_are_not_finite(model, tmp_path):
    damaged = copy.deepcopy(model)
    damaged.classifier.bias.data[1] = torch.nan
    with pytest.raises(InputError, match=r'm.pt is not written: .* not finite \(classifier.bias holds NaN or infinity'):
        export(damaged, tmp_path / 'm.pt', 'torchscript')
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('in_chans', [1, 4])
def test_export_takes_a_models_own_channels(in_chans, tmp_path, coco_root):
    photo = next((coco_root / 'val2014').iterdir())
    model = create(num_classes=2, in_chans=in_chans)
    result = export(torch.compile(model), tmp_path / 'm.pt', 'torchscript', image_size=64)
    assert result.input_size == (in_chans, 64, 64) and len(read_metadata(result.path)['mean']) == in_chans
    if in_chans == 1:
        export(model, tmp_path / 'm.pt', 'torchscript', image_size=64, images=[photo])
    else:
        with pytest.raises(InputError, match='the model takes 4 channels, and images are read with 3'):
            export(model, tmp_path / 'm.pt', 'torchscript', image_size=64, images=[photo])


def test_export_reports_a_failing_exporter_in_one_line(model, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('no such operation\nand pages of reasons')

    monkeypatch.setitem(FORMATS, 'onnx', (fail, fail))
    with pytest.raises(InputError, match=r'cannot be exported as onnx \(no such operation\)$'):
        export(model, tmp_path / 'model.onnx', 'onnx')
    assert not [*tmp_path.iterdir()]


def test_export_to_onnx_stores_large_weights_in_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr('msff_timm.inference.export.MAX_BYTES_IN_ONNX', 0)
    model = create(encoder_depth=0, decoder_depth=0)
    result = export(model, tmp_path / 'model.onnx', 'onnx', image_size=64)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['model.onnx', 'model.onnx.data']
    assert result.num_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(run('onnx', result.path, image), model(image), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'format', 'image_size', 'message'),
    [
        ('m.onnx', 'onxx', None, "unknown export format 'onxx': did you mean onnx?"),
        ('m.onnx', 'x', None, "unknown export format 'x': choose from onnx, torch-export, torchscript."),
        ('m.pt', 'torch-export', None, 'm.pt: the name of a torch-export file must end in .pt2.'),
        ('m.pt', 'torchscript', 16, 'images of 16 x 16 pixels are too small'),
        ('m.pt', 'torchscript', -1, 'm.pt is not written: the model cannot be exported as torchscript ('),
        ('folder', 'torchscript', None, 'folder is not written: the model cannot be exported'),
        ('file/m.pt', 'torchscript', None, 'm.pt is not written: the model cannot be exported'),
    ],
)
def test_export_refuses_bad_input_in_one_line(name, format, image_size, message, model, tmp_path):
    (tmp_path / 'file').touch(), (tmp_path / 'folder').mkdir()
    with pytest.raises(InputError) as caught:
        export(model, tmp_path / name, format, image_size)
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder']


def test_export_names_an_unreadable_image(model, tmp_path):
    with pytest.raises(InputError, match=r'm.pt is not written: .*nowhere.jpg: there is no such file'):
        export(model, tmp_path / 'm.pt', 'torchscript', images=['nowhere.jpg'])


def test_export_numbers_labels_after_reset_classifier(tmp_path):
    model = create()
    model.pretrained_cfg['label_names'] = LABELS
    model.reset_classifier(2)
    export(model, tmp_path / 'm.pt', 'torchscript')
    assert read_metadata(tmp_path / 'm.pt')['label_names'] == ['0', '1']
    model.reset_classifier(0)
    with pytest.raises(InputError, match='the model has no labels'):
        export(model, tmp_path / 'n.pt', 'torchscript')


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_export_names_a_missing_package_first(package, model, exported, tmp_path, monkeypatch):
    path = exported['onnx'].path
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package} is not installed: pip install 'msff-timm\[export\]'"
    with pytest.raises(InputError, match=message):
        export(model, tmp_path / 'new' / 'm.onnx', 'onnx')
    assert not [*tmp_path.iterdir()]
    if package == 'onnx':
        with pytest.raises(InputError, match=message):
            read_metadata(path)


def test_read_metadata_refuses_other_files(model, tmp_path):
    foreign = {name: tmp_path / name for name in ('empty', 'noise', 'weights.pt', 'other.zip', 'plain.onnx')}
    foreign['empty'].touch(), foreign['noise'].write_bytes(b'\xff' * 100)
    torch.save(model.state_dict(), foreign['weights.pt'])
    with zipfile.ZipFile(foreign['other.zip'], 'w') as archive:
        archive.writestr(f'extra/{METADATA_FILE}', '{}')
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], 'g', [], [])), foreign['plain.onnx'])
    for path in foreign.values():
        with pytest.raises(InputError, match=f'{path.name}: was not exported by msff-timm'):
            read_metadata(path)
    with pytest.raises(InputError, match='nowhere: there is no such file'):
        read_metadata('nowhere')
