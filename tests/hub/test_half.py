"""Weights that are stored in half the bytes, and those in the package."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.hub.half import halve
from msff_timm.models import msff
from msff_timm_cli import commands as cli

pytestmark = pytest.mark.usefixtures('one_thread')
SHIPPED = {name: cfg for name, cfg in msff.default_cfgs.items() if any(c.file for c in cfg.cfgs.values())}
LABELS = ['cat', 'dog', 'sofa']


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=3)
    for name, buffer in model.named_buffers():
        if name.endswith('running_var'):
            buffer.mul_(1e6)  # the largest float16 is 65504
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data *= 1e3
    folder = tmp_path_factory.mktemp('half') / 'whole'
    data_config = timm.data.resolve_model_data_config(model) | {'input_size': (3, 96, 96)}
    thresholds = {'per_class': [0.2, 0.4, 0.6]}
    hub.save(model, folder, LABELS, data_config, training={'image_size': 96}, thresholds=thresholds)
    return folder


def dtypes(folder: Path) -> dict[str, str]:
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}


def logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def test_halve_rounds_large_tensors_and_keeps_the_rest(folder, tmp_path):
    halved = halve(folder, tmp_path / 'half', keep_below=500)
    before, after = (load_file(path / 'model.safetensors') for path in (folder, tmp_path / 'half'))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        is_large = tensor.numel() >= 500
        assert after[name].dtype == (torch.float16 if is_large else tensor.dtype)
        assert torch.equal(after[name], torch.from_numpy(tensor.numpy().astype(np.float16)) if is_large else tensor)
    sizes = [(path / 'model.safetensors').stat().st_size for path in (folder, tmp_path / 'half')]
    assert [halved.num_bytes_before, halved.num_bytes] == sizes and sizes[1] < 0.52 * sizes[0]
    old, new = (json.loads((path / 'config.json').read_text()) for path in (folder, tmp_path / 'half'))
    assert new == {**old, 'torch_dtype': 'float32'}
    assert sorted(path.name for path in (tmp_path / 'half').iterdir()) == ['config.json', 'model.safetensors']
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / 'half' / 'model.safetensors').stat().st_mode) == 0o666 & ~umask


def test_halve_output_is_loaded_in_float32(folder, tmp_path):
    halve(folder, tmp_path / 'half', keep_below=250)
    assert set(dtypes(tmp_path / 'half').values()) >= {'F16'}
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    name = f'local-dir:{tmp_path / "half"}'
    model = hub.load(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.thresholds == [0.2, 0.4, 0.6]
    expected = logits(model, images)
    assert (expected - logits(hub.load(f'local-dir:{folder}'), images)).abs().max() < 1e-2
    by_timm = timm.create_model(name, pretrained=True).eval()
    assert {p.dtype for p in by_timm.parameters()} == {torch.float32}
    assert torch.equal(logits(by_timm, images), expected)
    for label_names in (LABELS, ['cat', 'bird']):  # as at the start of training
        again, _ = hub.load_for(name, label_names, keep_labels=True)
        assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert hub.push(tmp_path / 'half', 'me/half', dry_run=True).files['model.safetensors'] < 2.3e6


def test_halve_output_is_loaded_in_float32_by_transformers(folder, tmp_path):
    transformers = pytest.importorskip('transformers', '4.53', reason='needs the extra `transformers`')
    halve(folder, tmp_path, keep_below=250)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(
        logits(model, images).logits, logits(hub.load(f'local-dir:{tmp_path}'), images), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_halve_refuses_to_change_the_model(folder, tmp_path):
    with pytest.raises(InputError, match='holds the original weights; name another folder'):
        halve(folder, folder.parent / 'x' / '..' / 'whole')
    with pytest.raises(InputError, match='holds no config.json'):
        halve(tmp_path / 'gone', tmp_path / 'half')
    for number, message in (
        (3000.1, r'half is not written: a logit changes by .*, more than 0.01; raise keep_below above 250'),
        (70000.0, 'classifier.weight holds values that exceed float16'),
    ):
        changed = tmp_path / f'{number}'
        changed.mkdir()
        (changed / 'config.json').write_bytes((folder / 'config.json').read_bytes())
        tensors = load_file(folder / 'model.safetensors')
        tensors['classifier.weight'] = torch.full_like(tensors['classifier.weight'], number)
        save_file(tensors, changed / 'model.safetensors', metadata={'format': 'pt'})
        with pytest.raises(InputError, match=message):
            halve(changed, tmp_path / 'half', keep_below=250)
        assert not list(tmp_path.glob('half/*'))


def test_half_command_compares_photos_and_prints_both_sizes(folder, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    command = ['halve', str(folder), '-o', str(tmp_path / 'half'), '--keep-below', '1000']
    assert cli.main([*command, '--images', str(tmp_path / 'photo.png')]) == 0
    assert f'{tmp_path / "half"}: 2.2 MB instead of 4.3 MB; logits on 1 image differ by ' in capsys.readouterr().out
    assert cli.main(command) == 0 and 'logits on 16 images of noise differ by ' in capsys.readouterr().out
    assert cli.main(['halve', str(folder), '-o', str(folder)]) == 2
    assert 'name another folder' in capsys.readouterr().err


@pytest.mark.parametrize('name', SHIPPED)
def test_packaged_weights_are_small_and_tolerate_half_precision(name, tmp_path):
    model = hub.load(name)
    stored = Path(model.pretrained_cfg['file'])
    assert stored.stat().st_size <= 12e6 and set(dtypes(stored.parent).values()) <= {'F32', 'F16', 'I64'}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    config = json.loads((stored.parent / 'config.json').read_text())
    if 'F16' in dtypes(stored.parent).values():
        assert config['torch_dtype'] == 'float32'
    else:
        assert halve(stored.parent, tmp_path / 'half').max_difference <= 1e-2
    images = torch.randn(2, *timm.data.resolve_input_data_config(model)['input_size'])
    assert torch.equal(logits(timm.create_model(name, pretrained=True).eval(), images), logits(model, images))
