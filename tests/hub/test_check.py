import json
import pickle
import resource
import shutil
import struct
import time

import pytest
import timm
import torch
from PIL import Image
from test_fetch import Planted
from test_push import weights  # noqa: F401  fixture

from msff_timm import hub
from msff_timm.data.transforms import Normalize, eval_transform
from msff_timm.errors import InputError

ARGUMENTS = {'num_classes': 3, 'ffn_dim': 64, 'encoder_depth': 1, 'decoder_depth': 1}


@pytest.fixture
def folder(weights, tmp_path):  # noqa: F811
    (tmp_path / 'saved').mkdir()
    for name, content in weights.items():
        (tmp_path / 'saved' / name).write_bytes(content)
    return tmp_path / 'saved'


def changed(config, path, value):
    """Sets an entry of nested dictionaries."""
    *parents, last = path.split('.')
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value


def refused(folder, part=''):
    """Checks that `load` refuses a folder in one line, soon and without taking much memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError) as caught:
        hub.load(f'local-dir:{folder}')
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(folder) in message and part in message, message
    assert len(message) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
    assert time.monotonic() - start < 20


def test_load_accepts_a_valid_folder(folder):
    assert hub.load(f'local-dir:{folder}').num_classes == 3


@pytest.mark.parametrize(
    ('path', 'value', 'part'),
    [
        ('architecture', None, 'Unknown model'),
        ('architecture', 12, 'Unknown model'),
        ('architecture', ['msff_test_resnet'], 'Unknown model'),
        ('architecture', '../../../etc/passwd', 'Unknown model'),
        ('architecture', 'hf-hub:org/evil', 'Unknown model'),
        ('architecture', 'x' * 100_000, 'Unknown model'),
        ('model_args', [3], 'cannot be loaded'),
        ('model_args.num_classes', 10**9, 'nothing in model.safetensors is that large'),
        ('model_args.num_classes', 10**300, 'nothing in model.safetensors is that large'),
        ('model_args.num_classes', float('nan'), 'nothing in model.safetensors is that large'),
        ('model_args.num_classes', 'three', 'must be a whole number'),
        ('model_args.num_classes', True, 'must be a whole number'),
        ('model_args.num_classes', -3, 'cannot be loaded'),
        ('model_args.ffn_dim', 16_000_000, 'nothing in model.safetensors is that large'),
        ('model_args.ffn_dim', 16_000, 'parameters, model.safetensors holds'),
        ('model_args.ffn_dim', '64', 'cannot be loaded'),
        ('model_args.decoder_depth', 10**6, 'nothing in model.safetensors is that large'),
        ('model_args.decoder_depth', 16_000, 'nothing in model.safetensors is that large'),
        ('model_args.backbone', 'hf-hub:org/evil', 'is no timm model'),
        ('model_args.backbone', 'local-dir:/etc', 'is no timm model'),
        ('model_args.backbone', '../../evil', 'is no timm model'),
        ('model_args.backbone_pretrained', True, 'loads other weights'),
        ('model_args.backbone_args', {'checkpoint_path': '/tmp/evil.pth'}, 'loads other weights'),
        ('model_args.backbone_args', {'pretrained': True}, 'loads other weights'),
        ('model_args.backbone_args', {'pretrained_cfg': {'url': 'http://evil'}}, 'loads other weights'),
        ('model_args.cache_dir', '/tmp/evil', 'loads other weights'),
        ('model_args.nothing', 1, 'cannot be loaded'),
        ('num_classes', 7, '3 label names for'),
        ('num_classes', 10**9, '3 label names for'),
        ('label_names', 'cat', 'label_names must be a list of texts'),
        ('label_names', [1, 2, 3], 'label_names must be a list of texts'),
        ('label_names', ['cat'] * 10**5, 'label names for 3 logits'),
        ('pretrained_cfg', 'text', 'cannot be loaded'),
        ('pretrained_cfg.input_size', [3, 10**9, 10**9], 'input_size must be channels, height and width'),
        ('pretrained_cfg.input_size', [3, 96], 'input_size must be channels, height and width'),
        ('pretrained_cfg.test_input_size', [3, 0, 96], 'test_input_size must be channels, height and width'),
        ('pretrained_cfg.mean', ['0.5', '0.5', '0.5'], 'mean must be a list of 3 numbers'),
        ('pretrained_cfg.std', [0.5] * 10**5, 'std must be a list of 3 numbers'),
        ('pretrained_cfg.input_size', 96, 'config.json is not in the format of timm'),
        ('pretrained_cfg.input_size', [3, 2, 96], 'input_size is 2 x 96 pixels: must be at least 32 x 32'),
        ('pretrained_cfg.input_size', [3, 96, 31], 'input_size is 96 x 31 pixels: must be at least 32 x 32'),
        ('pretrained_cfg.mean', 0.5, 'mean must be a list of 3 numbers, one for each channel'),
        ('pretrained_cfg.std', 0.5, 'std must be a list of 3 numbers, one for each channel'),
        ('pretrained_cfg.std', '0.5', 'std must be a list of 3 numbers, one for each channel'),
        ('pretrained_cfg.std', [0.5, 0.5], 'std must be a list of 3 numbers, one for each channel'),
        ('pretrained_cfg.std', {'0': 0.5}, 'std must be a list of 3 numbers, one for each channel'),
        ('pretrained_cfg.std', [0.5, 0, 0.5], 'std must be positive'),
        ('pretrained_cfg.interpolation', 'x', "interpolation is 'x': must be one of nearest, bilinear, bicubic, "),
        ('pretrained_cfg.interpolation', 'random', "interpolation is 'random': must be one of"),
        ('pretrained_cfg.interpolation', 2, 'interpolation is 2: must be one of'),
        ('pretrained_cfg.interpolation', ['bilinear'], "interpolation is ['bilinear']: must be one of"),
        ('pretrained_cfg.crop_mode', 'squish', "crop_mode is 'squish': must be one of center, squash, border"),
        ('pretrained_cfg.crop_pct', 1e-9, 'must be from 0.1 to 10'),
        ('pretrained_cfg.nothing', 1, 'cannot be loaded'),
        ('thresholds', 'text', 'cannot be loaded'),
        ('thresholds', {'per_class': [0.5, 0.5, 1e300]}, 'thresholds'),
    ],
)
def test_check_model_refuses_hostile_configurations(folder, path, value, part):
    config = json.loads((folder / 'config.json').read_text())
    changed(config, path, value)
    (folder / 'config.json').write_text(json.dumps(config))
    refused(folder, part)


@pytest.mark.parametrize('max_queries', [20_000, 10**9])
@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'mldecoder_test_resnet'])
def test_check_model_allows_any_max_queries(architecture, max_queries, tmp_path):
    model = timm.create_model(architecture, num_classes=3, max_queries=max_queries)
    hub.save(model, tmp_path, ['a', 'b', 'c'], timm.data.resolve_model_data_config(model))
    assert hub.load(f'local-dir:{tmp_path}').max_queries == max_queries


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'])
@pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
def test_check_model_accepts_what_makes_a_transform(folder, interpolation, crop_mode):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg'].update(interpolation=interpolation, crop_mode=crop_mode, std=[0.5], input_size=[3, 32, 40])
    (folder / 'config.json').write_text(json.dumps(config))
    data_config = timm.data.resolve_input_data_config(hub.load(f'local-dir:{folder}'))
    image = Image.new('RGB', (70, 50), 'teal')
    assert eval_transform(data_config)(image).shape == (3, 32, 40)
    assert Normalize(data_config)(torch.zeros(1, 3, 32, 40, dtype=torch.uint8)).shape == (1, 3, 32, 40)


@pytest.mark.parametrize(
    'content',
    [b'', b'null', b'[]', b'"text"', b'{}', b'\xff\xfe', b'[' * 10**6, b'{"num_classes": ' + b'9' * 10**5 + b'}'],
    ids=['empty', 'null', 'list', 'text', 'nothing', 'not UTF-8', 'deep', 'a number'],
)
def test_load_refuses_a_damaged_configuration(folder, content):
    (folder / 'config.json').write_bytes(content)
    refused(folder)


def test_check_model_refuses_a_huge_configuration(folder):
    with (folder / 'config.json').open('r+b') as file:
        file.truncate(10**10)  # sparse
    refused(folder, 'config.json has more than')


def header(content, data=b'\0' * 64):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack('<Q', len(content)) + content + data


def tensor(shape, start, end, dtype='F32'):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\0' * 7,
        struct.pack('<Q', 2**63) + b'{}',
        struct.pack('<Q', 10**8 + 1) + b'{}',
        struct.pack('<Q', 1000) + b'{}',
        header(b'{'),
        header([]),
        header({'a': 1}),
        header({'a': tensor([16], 0, 64)} | {'__metadata__': {'format': 3}}),
        header({'a': tensor([16], 0, 10**12)}),
        header({'a': tensor([16], 64, 0)}),
        header({'a': tensor([-16], 0, 64)}),
        header({'a': tensor([2**62, 2**62], 0, 64)}),
        header({'a': tensor([17], 0, 64)}),
        header({'a': tensor([16], 0, 64), 'b': tensor([16], 0, 64)}),
        header({'a': tensor([8], 32, 64)}),
        header({'a': tensor([16], 0, 64, 'F33')}),
        header({'../../evil': tensor([16], 0, 64)}),
        header(b'[' * 10**6),
        pickle.dumps({'a': 1}),
    ],
)
def test_load_refuses_hostile_headers_of_weights(folder, content):
    (folder / 'model.safetensors').write_bytes(content)
    refused(folder)


def test_check_model_refuses_too_many_tensors(folder):
    many = {f'{number}': tensor([0], 0, 0) for number in range(20_000)}
    (folder / 'model.safetensors').write_bytes(header(many, b''))
    refused(folder, 'holds 20,000 tensors')


def test_load_refuses_weights_of_another_model_and_half_of_them(folder):
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole[: len(whole) // 2])
    refused(folder)
    other = timm.create_model('msff_test_resnet', **(ARGUMENTS | {'ffn_dim': 32}))
    data_config = timm.data.resolve_model_data_config(other)
    hub.save(other, folder.parent / 'other', ['a', 'b', 'c'], data_config)
    shutil.copy(folder.parent / 'other' / 'model.safetensors', folder)
    refused(folder, 'size mismatch')


def test_load_reads_no_pickle_of_a_folder(folder, tmp_path):
    torch.save(Planted(tmp_path / 'ran'), folder / 'pytorch_model.bin')
    hub.load(f'local-dir:{folder}')
    (folder / 'model.safetensors').rename(folder / 'weights.bin')
    refused(folder, 'holds no model.safetensors')
    shutil.copy(folder / 'pytorch_model.bin', folder / 'model.safetensors')
    refused(folder)
    assert not (tmp_path / 'ran').exists()
    pickle.loads(pickle.dumps(Planted(tmp_path / 'ran')))
    assert (tmp_path / 'ran').exists()  # otherwise it runs
