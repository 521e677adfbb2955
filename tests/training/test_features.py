"""Cached features: runs that train on them, compared with runs that compute them in each step."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms import RandomHorizontalFlip
from torchvision.transforms.functional import hflip, normalize, to_tensor

import msff_timm.data
from msff_timm import hub
from msff_timm.data.samples import Samples, seeded
from msff_timm.data.transforms import Normalize, eval_transform, train_transform
from msff_timm.errors import InputError
from msff_timm.training import console, features, run_folder, train, trainer
from msff_timm.training.commands import Stopped
from msff_timm.training.config import TrainConfig, parse
from msff_timm.training.features import FeatureCache, NotCached, OnMaps, ToMaps, cache_obstacles, maps_of
from msff_timm.training.freezing import describe_frozen

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'train' / 'configs' / 'demo.yaml'
SMALL = {
    'data.train_size': 24, 'data.eval_size': 12, 'data.image_size': 64, 'data.workers': 0, 'optim.batch_size': 8,
    'optim.epochs': 2, 'model.drop_rate': 0.1, 'model.freeze': 'backbone', 'log_every': 1, 'checkpoint.every': 2,
}  # fmt: skip
pytestmark = pytest.mark.usefixtures('one_thread')


class StopAfter:
    """A stop request that arrives after a number of looks at it."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def received(self) -> int | None:
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None


def config_of(output: Path, **settings: object) -> TrainConfig:
    settings = {**SMALL, 'output': output, **settings}
    return parse(TrainConfig, [f'--{key}={value}' for key, value in settings.items()], default_file=DEMO)


def run(output: Path, stop: object = None, **settings: object) -> trainer.Trainer:
    """Trains in this process, in one thread, without figures."""
    config = config_of(output, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ACCELERATE_USE_CPU', '1')
        for module in (train, trainer):
            patch.setattr(module, 'share_cores', lambda accelerator, workers: torch.set_num_threads(1))
        for name in ('plot_curves', 'write_report'):
            patch.setattr(run_folder, name, lambda *args: None)
        accelerator = train.make_accelerator(config)
        accelerator.init_trackers('tensorboard')
        made = trainer.Trainer(config, accelerator, stop or SimpleNamespace(received=None))
        made.train()
        accelerator.end_training()
    return made


def losses(output: Path) -> list[float]:
    return [e.value for e in EventAccumulator(str(output / 'tensorboard')).Reload().Scalars('step/loss')]


def newest(output: Path) -> Path:
    return max((output / 'checkpoints').glob('step-*'))


def results(output: Path) -> dict:
    return json.loads((output / 'results.json').read_text())


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> str:
    """A model to start from, with statistics in its BatchNorm layers."""
    torch.manual_seed(1)
    model = timm.create_model('msff_test_resnet', num_classes=12)
    model.train()(torch.randn(16, 3, 64, 64))
    folder = tmp_path_factory.mktemp('start') / 'model'
    names = msff_timm.data.label_names(msff_timm.data.load('scenes', 'train', size=1))
    hub.save(model, folder, names, timm.data.resolve_model_data_config(model, {'img_size': 64}))
    return f'local-dir:{folder}'


@pytest.fixture(scope='module')
def undisturbed(start, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('undisturbed') / 'run'
    run(folder, **{'model.init_from': start})
    return folder


def test_cached_run_trains_the_head_only(undisturbed, start):
    before = load_file(Path(start.removeprefix('local-dir:')) / 'model.safetensors')
    for file in (undisturbed / 'model.safetensors', newest(undisturbed) / 'model.safetensors'):
        after = load_file(file)
        assert after.keys() == before.keys()
        same = {name for name in after if torch.equal(after[name], before[name])}
        assert {name for name in after if name.startswith('backbone.')} <= same
        assert {'classifier.weight', 'label_embed.weight', 'projection.x1.weight', 'position.table'} & same == set()
    assert not (undisturbed / 'features').exists()


def test_cached_run_has_the_metrics_of_its_weights(undisturbed):
    """Evaluated with scikit-learn from the pixels; the cache is in float16."""
    model = timm.create_model(f'local-dir:{undisturbed}', pretrained=True).eval()
    rows = msff_timm.data.load('scenes', 'validation', size=12, image_size=64)
    images = torch.stack([normalize(to_tensor(row['image']), [0.5] * 3, [0.5] * 3) for row in rows])
    with torch.inference_mode():
        scores = model(images).sigmoid().numpy()
    present = np.array([[k in labels for labels in rows['labels']] for k in range(12)])
    counted = [k for k in range(12) if 0 < present[k].sum() < 12]
    expected = 100 * np.mean([average_precision_score(present[k], scores[:, k]) for k in counted])
    assert results(undisturbed)['metrics']['mAP'] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ('name', 'args'),
    [
        # Without `fusion_norm`: the gradient of a bias before it is nothing but rounding errors, which AdamW magnifies.
        ('msff_test_resnet', '{backbone: test_efficientnet, pooled_classifier: true, fusion_norm: false}'),
        *(
            pytest.param(name, '{}', marks=pytest.mark.slow)
            for name in ('msff_test_resnet', 'mldecoder_test_resnet', 'test_resnet')
        ),
    ],
)
def test_cached_run_agrees_with_an_uncached_run(tmp_path, monkeypatch, capsys, name, args):
    """In float32, with flips and dropout in the head, which draw the same random numbers in both runs."""
    settings = {
        'model.name': name,
        'model.args': args,
        'optim.epochs': 2,
        'data.hflip': 0.5,
        'model.channels_last': name != 'test_resnet',
    }
    monkeypatch.setattr(features, 'DTYPES', ('float32',))
    run(tmp_path / 'cached', **settings)
    assert 'MB of float32, computed in ' in capsys.readouterr().out
    for module in (trainer, console):
        monkeypatch.setattr(module, 'cache_obstacles', lambda config: ['data.cutout 0.5'])
    run(tmp_path / 'each', **settings)
    line = (
        'The feature maps of the frozen backbone are not cached: each step computes them, because of data.cutout 0.5.'
    )
    assert line in capsys.readouterr().out.splitlines()
    expected = losses(tmp_path / 'each')
    assert len(expected) == 6 and len(set(expected)) == 6
    assert losses(tmp_path / 'cached') == pytest.approx(expected, rel=1e-5)
    a, b = (load_file(tmp_path / run / 'model.safetensors') for run in ('cached', 'each'))
    without_gradient = 'attn.kv.bias'  # that of the keys, as all logits of a softmax change alike
    others = [key for key in a if not key.endswith(without_gradient)]
    assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in others)


def test_cached_run_resumes_to_the_same_weights(undisturbed, start, tmp_path, capsys):
    """Stopped while features are computed, then in the second step; then with a damaged cache."""
    output, settings = tmp_path / 'run', {'model.init_from': start, 'resume': 'auto'}
    with pytest.raises(Stopped, match='there is no checkpoint to resume from yet'):
        run(output, StopAfter(1), **settings)
    assert not (output / 'features' / 'whole.json').exists()
    capsys.readouterr()
    with pytest.raises(Stopped, match='--resume auto resumes from'):
        run(output, StopAfter(4), **settings)
    assert ', computed in ' in capsys.readouterr().out
    assert 0 < int(newest(output).name.removeprefix('step-')) < 6
    kept = shutil.copytree(output, tmp_path / 'damaged')
    run(output, **settings)
    assert 'MB of float16, computed before.' in capsys.readouterr().out
    with (kept / 'features' / 'training.bin').open('r+b') as file:
        file.truncate(100)
    run(kept, **settings)
    assert 'MB of float16, computed in ' in capsys.readouterr().out
    for folder in (output, kept):
        names = ('model.safetensors', *(f'checkpoints/step-00000006/{n}.safetensors' for n in ('model', 'optimizer')))
        for name in names:
            a, b = load_file(folder / name), load_file(undisturbed / name)
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
        assert results(folder)['history'] == results(undisturbed)['history']
        assert not (folder / 'features').exists()


@pytest.mark.slow
def test_cached_run_stops_while_features_are_computed(tmp_path):
    settings = {**SMALL, 'data.train_size': 4000, 'output': tmp_path / 'run', 'data.workers': 1}
    command = [sys.executable, ROOT / 'train' / 'train.py', *(f'--{key}={value}' for key, value in settings.items())]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not (tmp_path / 'run' / 'features' / 'training.bin').exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75 and 'Traceback' not in errors, errors
        assert errors.splitlines()[-1].startswith('train.py: stopped; there is no checkpoint')
        shutil.rmtree(tmp_path / 'run')


@pytest.mark.parametrize(
    ('settings', 'named'),
    [
        ({}, []),
        ({'data.rand_augment': 'rand-m9'}, ['data.rand_augment rand-m9']),
        ({'data.cutout': 0.5, 'data.mixup': 0.2}, ['data.cutout 0.5', 'data.mixup 0.2']),
        ({'data.cutmix': 1.0}, ['data.cutmix 1.0']),
        ({'data.hflip': 0.5}, []),
        ({'data.crop_scale': '[0.5, 1.0]'}, ['data.crop_scale [0.5, 1.0]']),
        ({'data.color_jitter': 0.4}, ['data.color_jitter 0.4']),
        ({'data.streaming': 'true'}, ['data.streaming true']),
        ({'distill.teacher': 'msff_test_resnet'}, ['distill.teacher']),
    ],
)
def test_cache_obstacles_names_the_settings(tmp_path, settings, named):
    found = cache_obstacles(config_of(tmp_path, **settings))
    assert len(found) == len(named) and all(text.startswith(name) for text, name in zip(found, named, strict=True))


def test_cached_run_continues_without_room_on_the_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, '_write', lambda file, rows: OSError(28, 'No space left on device'))
    run(tmp_path / 'run', **{'optim.epochs': 1})
    fault = 'No space left on device; each step computes the feature maps of the frozen backbone.'
    assert f'{tmp_path / "run" / "features"}: {fault}' in capsys.readouterr().out.splitlines()
    assert not (tmp_path / 'run' / 'features').exists() and len(results(tmp_path / 'run')['history']) == 1


def test_describe_frozen_warns_about_random_weights(tmp_path, start):
    def warned(**settings) -> bool:
        lines = describe_frozen(config_of(tmp_path, **settings), None, is_resumed=False)
        return any('warning: model.freeze is backbone, and the frozen backbone has random' in line for line in lines)

    assert warned() and not warned(**{'model.init_from': start}) and not warned(**{'model.freeze': 'null'})
    assert not warned(**{'model.backbone_pretrained': 'true'})


# The cache alone


@pytest.fixture
def photos(tmp_path) -> datasets.Dataset:
    """Ten photos of noise; the fourth is damaged."""
    rng, rows = np.random.default_rng(0), []
    for number in range(10):
        path = tmp_path / f'{number}.png'
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        rows.append(
            {'image': str(path), 'image_id': f'photo {number}', 'labels': [number % 3], 'ignore': [], 'area': []}
        )
    (tmp_path / '3.png').write_bytes(b'no image')
    kinds = {
        'image': datasets.Image(),
        'image_id': datasets.Value('string'),
        'area': datasets.List(datasets.Value('float64')),
    }
    labels = datasets.List(datasets.ClassLabel(names=['a', 'b', 'c']))
    return datasets.Dataset.from_list(rows, features=datasets.Features({**kinds, 'labels': labels, 'ignore': labels}))


def cache_of(photos, folder: Path, model, skip: bool = True, **changes) -> FeatureCache:
    data_config = timm.data.resolve_model_data_config(model, {'img_size': 64, 'crop_pct': 1.0, 'crop_mode': 'squash'})
    samples = Samples(photos, train_transform(data_config, None, 0.0), skip_unreadable=skip)
    settings = {
        'normalize': Normalize(data_config), 'channels_last': True, 'input_size': (3, 64, 64),
        'parts': {'training': samples}, 'mirrored': ('training',), **changes,
    }  # fmt: skip
    return FeatureCache(Accelerator(cpu=True), folder, model, **settings)


def fill(cache: FeatureCache, **about) -> str:
    return cache.fill(4, 0, SimpleNamespace(received=None), about)


@pytest.mark.parametrize('name', ['msff_test_resnet', 'q2l_test_resnet', 'test_resnet', 'test_vit'])
def test_feature_cache_holds_images_and_mirror_images(photos, tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **({'img_size': 64} if name == 'test_vit' else {}))
    cache = cache_of(photos, tmp_path / 'features', model)
    line = fill(cache)
    assert line.startswith('The feature maps of 10 training images with their mirror images are cached in ')
    assert len(cache.unreadable) == 1 and '3.png' in cache.unreadable[0]
    transform = eval_transform(timm.data.resolve_model_data_config(model, {'img_size': 64, 'crop_pct': 1.0}))
    for probability, change in ((0.0, lambda image: image), (1.0, hflip)):
        samples = cache.samples('training', probability)
        assert len(samples) == 10
        for index in (0, 3, 9):
            source = 4 if index == 3 else index  # the next readable image
            image = transform(change(photos[source]['image'].convert('RGB')))[None]
            sample = samples[20 + index]  # in the third epoch
            maps = cache.to_maps(sample['image'][None])
            with torch.inference_mode():
                expected = maps_of(model, image)
                assert len(maps) == len(expected)
                for one, other in zip(maps, expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
                torch.testing.assert_close(OnMaps(model)(maps), model(image), rtol=1e-2, atol=1e-2)
            assert sample['index'] == source and sample['target'].tolist() == [float(source % 3 == k) for k in range(3)]


def test_cached_samples_flip_as_torchvision_does(photos, tmp_path):
    cache = cache_of(photos, tmp_path / 'features', timm.create_model('msff_test_resnet', num_classes=3))
    fill(cache)
    samples, plain, mirrored = (cache.samples('training', share, seed=5) for share in (0.3, 0.0, 1.0))
    drawn = []
    for key in range(300):
        image = torch.arange(2.0).reshape(1, 1, 2)
        with seeded(5, key // 10, key % 10):
            expected = bool(RandomHorizontalFlip(0.3)(image)[0, 0, 0])
        drawn.append(expected)
        assert torch.equal(samples[key]['image'], (mirrored if expected else plain)[key]['image'])
    assert 60 < sum(drawn) < 120


def test_feature_cache_uses_float32_if_float16_overflows(photos, tmp_path):
    model = timm.create_model('test_resnet', num_classes=3)
    model.layer4[-1].act2 = torch.nn.Identity()
    torch.nn.init.constant_(model.layer4[-1].bn2.bias, 1e5)
    cache = cache_of(photos, tmp_path / 'features', model, mirrored=())
    assert 'MB of float32' in fill(cache)
    maps = cache.to_maps(cache.samples('training')[0]['image'][None])
    assert 6e4 < maps[0].max() < 2e5


def test_feature_cache_names_the_image_of_maps_that_are_not_finite(photos, tmp_path):
    model = timm.create_model('test_resnet', num_classes=3)
    torch.nn.init.constant_(model.conv1[0].weight, torch.nan)
    with pytest.raises(InputError, match="^image photo 0: the backbone's maps are not finite"):
        fill(cache_of(photos, tmp_path / 'features', model))


def test_feature_cache_refuses_an_unreadable_image(photos, tmp_path):
    with pytest.raises(InputError, match='3.png'):
        fill(cache_of(photos, tmp_path / 'features', timm.create_model('test_resnet', num_classes=3), skip=False))


def test_feature_cache_is_computed_again_for_other_weights_or_settings(photos, tmp_path):
    model = timm.create_model('msff_test_resnet', num_classes=3)

    def is_new(**about) -> bool:
        return ', computed in ' in fill(cache_of(photos, tmp_path / 'features', model), **about)

    assert is_new(mean=[0.5]) and not is_new(mean=[0.5]) and is_new(mean=[0.4]) and not is_new(mean=[0.4])
    torch.nn.init.ones_(model.classifier.bias)
    assert not is_new(mean=[0.4])
    model.backbone.conv1[0].weight.data[0, 0, 0, 0] += 1e-6
    assert is_new(mean=[0.4])
    model.backbone.conv1[1].running_mean += 1e-6
    assert is_new(mean=[0.4])


def test_feature_cache_checks_the_disk_first(photos, tmp_path, monkeypatch):
    model = timm.create_model('test_resnet', num_classes=3)
    size = 2 * 10 * model.num_features * 2 * 2 * 2  # bytes, mirror images, reduction 32 of 64 pixels
    for free in (size - 1, size):
        monkeypatch.setattr(features.shutil, 'disk_usage', lambda path, free=free: SimpleNamespace(free=free))
        with pytest.raises(NotCached, match='its disk has 0.0 MB left for 0.0') if free < size else nullcontext():
            fill(cache_of(photos, tmp_path / 'features', model))


def test_feature_cache_needs_a_shared_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(features, 'is_shared', lambda accelerator, folder: False)
    with pytest.raises(NotCached, match='the machines do not share the output folder'):
        fill(cache_of(photos, tmp_path / 'features', timm.create_model('test_resnet', num_classes=3)))


def test_to_maps_sets_the_memory_format():
    rows = torch.arange(48, dtype=torch.float16).reshape(2, 24)
    (plain, tokens), (last, _) = (ToMaps([(2, 2, 3), (4, 3)], channels_last)(rows) for channels_last in (False, True))
    assert plain[1, 1, 1].tolist() == [33.0, 34.0, 35.0] and tokens[0, 3].tolist() == [21.0, 22.0, 23.0]
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last) and torch.equal(plain, last)
    assert plain.dtype == torch.float32


@pytest.mark.slow
def test_feature_cache_is_filled_by_two_processes(script, tmp_path):
    """13 evaluation images in batches of 2 per process: the last batches are incomplete."""
    settings = {**SMALL, 'data.train_size': 20, 'data.eval_size': 13, 'optim.batch_size': 4, 'optim.epochs': 1}
    settings |= {'model.drop_rate': 0, 'optim.lr': 1e-3}
    arguments = [f'--{key}={value}' for key, value in settings.items()]
    printed = script('train.py', *arguments, f'--output={tmp_path / "two"}', processes=2).stdout
    assert 'maps of 20 training images and 13 evaluation images are cached' in printed
    run(tmp_path / 'one', **settings)
    assert results(tmp_path / 'two')['num_processes'] == 2 and results(tmp_path / 'two')['num_images'] == 13
    assert losses(tmp_path / 'two') == pytest.approx(losses(tmp_path / 'one'), rel=1e-3)
    a, b = (results(tmp_path / name)['metrics']['mAP'] for name in ('one', 'two'))
    assert a == pytest.approx(b, abs=0.5) and not (tmp_path / 'two' / 'features').exists()
