import pytest
import timm
import torch
from PIL import Image

from msff_timm.errors import InputError
from msff_timm.inference.logits import Preprocessing, choose_device, compute_logits


def model(**args):
    return timm.create_model('msff_test_resnet', num_classes=2, **args).eval()


def test_preprocessing_takes_another_image_size():
    preprocessing = Preprocessing(torch.compile(model(in_chans=1)), image_size=64)
    assert preprocessing.input_size == (1, 64, 64)
    assert preprocessing.transform(Image.new('RGB', (30, 20))).shape == (1, 64, 64)


def test_noise_is_the_same_in_each_call_and_takes_any_channels():
    preprocessing = Preprocessing(model(in_chans=4), image_size=32)
    assert preprocessing.noise(3).shape == (3, 4, 32, 32) and preprocessing.noise(3).std() > 0.9
    assert torch.equal(preprocessing.noise(3), preprocessing.noise(3))


@pytest.mark.parametrize(('crop_mode', 'size'), [('squash', (64, 32)), ('center', (64, 64))])
def test_restore_undoes_normalization_and_squashing(crop_mode, size):
    one = model()
    one.pretrained_cfg.update(input_size=(3, 64, 64), crop_mode=crop_mode, crop_pct=1.0)
    preprocessing = Preprocessing(one)
    image = Image.new('RGB', (200, 100), (200, 100, 40))
    restored = preprocessing.restore(image, preprocessing.transform(image))
    assert restored.size == size and restored.getpixel((9, 9)) == pytest.approx((200, 100, 40), abs=1)


def test_compute_logits_returns_float32():
    logits = compute_logits(model().bfloat16(), torch.zeros(2, 3, 64, 64))
    assert logits.dtype == torch.float32 and logits.shape == (2, 2)


@pytest.mark.parametrize('accelerator', ['mps', None])
def test_choose_device_defaults_to_the_accelerator(accelerator, monkeypatch):
    found = accelerator and torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda check_available: found)
    assert choose_device().type == (accelerator or 'cpu') and choose_device('cpu').type == 'cpu'
    available = 'mps, cpu' if accelerator else 'cpu'
    with pytest.raises(InputError, match=f'^device is cuda: PyTorch does not find one; available: {available}.$'):
        choose_device('cuda')
