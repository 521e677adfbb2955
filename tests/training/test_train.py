import io
import json
import re
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.functional import normalize, to_tensor

import msff_timm.data
from msff_timm import hub
from msff_timm.data.samples import Samples
from msff_timm.errors import InputError
from msff_timm.hub.push import gather
from msff_timm.labels import match_labels
from msff_timm.results import METRICS, TOP_K_METRICS
from msff_timm.training.config import DataConfig
from msff_timm.training.freezing import freeze_norms
from msff_timm.training.run_data import load_data
from msff_timm.training.run_model import check_trainable

ROOT = Path(__file__).parents[2]
TINY = ['--data.train_size=32', '--data.image_size=64', '--data.workers=0', '--optim.epochs=1']


def results(folder: Path) -> dict:
    return json.loads((folder / 'results.json').read_text())


def test_run_writes_weights_config_results_and_figures(trained):
    assert {path.name for path in trained.iterdir()} == {
        'ap.png', 'checkpoints', 'config.json', 'curves.png', 'mistakes.png', 'model.safetensors',
        'reliability.png', 'report.md', 'results.json', 'settings.yaml', 'tensorboard'
    }  # fmt: skip
    run = results(trained)
    assert run['num_images'] == 33 and run['num_processes'] == 1
    assert run['data'] == {'name': 'scenes', 'split': 'validation', 'trained_on': 'train'}
    definitions = {key: run['definitions'][key] for key in ('mAP', 'threshold', 'unit')}
    assert definitions == {'mAP': 'all-points', 'threshold': 0.5, 'unit': 'percent'}
    assert run['unreadable'] == [] and set(run['top']) == {'k', 'num_labels', *TOP_K_METRICS}
    assert set(run['metrics']) == set(run['model_weights']) - {'epoch'} == set(METRICS) and len(run['labels']) == 12
    assert run['metrics'] != run['model_weights']
    assert [entry['epoch'] for entry in run['history']] == [1, 2]
    assert run['metrics'] == {name: run['history'][-1][name] for name in METRICS}
    assert (trained / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_run_logs_the_history_to_tensorboard(trained):
    events = EventAccumulator(str(trained / 'tensorboard')).Reload()
    for name in ('loss', 'lr', 'mAP'):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        # Each epoch has 4 steps.
        assert logged == [(4 * entry['epoch'], pytest.approx(entry[name])) for entry in results(trained)['history']]


def test_run_has_the_metrics_of_its_weights(trained):
    """Evaluated again with scikit-learn, without our loader, transform or metrics."""
    model = timm.create_model(f'local-dir:{trained}', pretrained=True).eval()
    dataset = msff_timm.data.load('scenes', 'validation', size=33, image_size=64)
    images = torch.stack([normalize(to_tensor(row['image']), [0.5] * 3, [0.5] * 3) for row in dataset])
    with torch.inference_mode():
        scores = model(images).sigmoid().numpy()
    ap = {}
    for k, name in enumerate(model.pretrained_cfg['label_names']):
        present = [k in labels for labels in dataset['labels']]
        ap[name] = 100 * average_precision_score(present, scores[:, k])
    run = results(trained)
    assert {name: label['AP'] for name, label in run['labels'].items()} == pytest.approx(ap, abs=1e-6)
    assert run['metrics']['mAP'] == pytest.approx(sum(ap.values()) / 12, abs=1e-6)


def test_run_follows_the_one_cycle_schedule(trained):
    # 8 steps: a rise over 1.6 steps, then a cosine to nearly 0. PyTorch puts the peak at step 0.2 * 8 - 1 of 0 to 7.
    # After 4 steps, at the end of epoch 1, the factor is 1/2 (1 + cos(pi (4 - 0.6) / (7 - 0.6))).
    peak, end = 2e-3, 2e-3 / 25 / 1e4
    share = (4 - 0.6) / (7 - 0.6)
    expected = end + (peak - end) * (1 + torch.cos(torch.tensor(torch.pi * share)).item()) / 2
    assert results(trained)['history'][0]['lr'] == pytest.approx(expected, rel=1e-4)


def test_run_in_two_processes_evaluates_alike_in_any_number(script, trained, tmp_path):
    def measure(run, size, processes):
        output = tmp_path / 'measured.json'
        arguments = [f'--model=local-dir:{run}', f'--data.size={size}', '--batch_size=4', f'--output={output}']
        script('evaluate.py', *arguments, processes=processes)
        return json.loads(output.read_text())

    run = tmp_path / 'run'
    settings = ['--optim.batch_size=8', '--optim.ema_decay=0', '--data.eval_size=99', f'--output={run}']
    script('train.py', *TINY, *settings, processes=2, as_user=True)
    assert results(run)['num_processes'] == 2 and results(run)['num_images'] == 99
    # Both processes evaluated the weights that the first one saved, including BatchNorm's statistics.
    assert measure(run, 99, processes=1)['metrics'] == pytest.approx(results(run)['metrics'], abs=1e-6)

    one = measure(trained, 33, processes=1)
    for processes in (2, 3):
        several = measure(trained, 33, processes)
        assert (one['num_processes'], several['num_processes']) == (1, processes)
        assert one['num_images'] == several['num_images'] == 33  # 2 and 3 processes repeat images to fill their batches
        same = ('metrics', 'top', 'mAP_by_size', 'labels', 'num_labels_counted')
        assert {key: several[key] for key in same} == {key: one[key] for key in same}
    assert one['metrics'] == pytest.approx(results(trained)['metrics'], abs=1e-6)


@pytest.mark.parametrize('case', ['celeba', pytest.param('blank', marks=pytest.mark.slow)])
def test_run_refuses_data_without_labels_before_its_first_step(case, script, cases, tmp_path):
    arguments = [f'--data.root={cases / "minus_one_is_absent" / case}', '--data.name=table', f'--output={tmp_path}']
    arguments += ['--data.image_column=image_id'] if case == 'celeba' else []
    sizes = ['--data.train_size=null', '--data.eval_size=null', '--optim.batch_size=4']
    result = script('train.py', *TINY, *sizes, *arguments, check=False)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and 'Training' not in result.stdout
    assert line.startswith('train.py: error: ') and ': validation: there is nothing to evaluate on' in line
    assert line.endswith('set data.minus_one or data.blank to absent.')


def test_check_labels_warns_about_labels_that_do_not_count():
    data, names = DataConfig(name='table', root='photos'), ['a', 'b']
    targets = np.array([[1, 1], [0, -1]])
    kinds = '1 without an absent entry [b], 0 without a positive; if -1 or blank means absent'
    line = data.check_labels(targets, names, 'train')
    assert line.startswith(f'warning: train: 1 of 2 labels cannot be learnt: {kinds}')
    line = data.check_labels(targets, names, 'validation', 'data.eval_split')
    assert line.startswith(f'warning: validation: 1 of 2 labels are left out of mAP and of fitted thresholds: {kinds}')
    targets[1] = -1
    assert 'cannot be learnt' in data.check_labels(targets, names, 'train')
    with pytest.raises(InputError, match='photos: validation: there is nothing to evaluate on'):
        data.check_labels(targets, names, 'validation', 'data.eval_split')
    assert data.check_labels(np.array([[1, 0], [0, 1]]), names, 'train') is None


def curve(folder: Path, tag: str) -> list[float]:
    return [event.value for event in EventAccumulator(str(folder / 'tensorboard')).Reload().Scalars(f'step/{tag}')]


@pytest.mark.parametrize('several', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_run_does_not_depend_on_the_number_of_processes(script, tmp_path, several):
    """50 steps, with BatchNorm frozen and dropout off: both would differ between processes."""
    settings = ['--data.train_size=400', '--data.eval_size=8', '--data.image_size=32', '--data.workers=1']
    settings += ['--data.rand_augment=rand-m5', '--data.cutout=0.5', '--optim.batch_size=8', '--optim.epochs=1']
    settings += ['--model.batch_norm=frozen', '--model.args.fusion_norm=false', '--log_every=1', '--optim.lr=1e-3']
    for processes, most, folder in ((1, 8, tmp_path / 'one'), (several, 2, tmp_path / 'several')):
        arguments = [*settings, f'--output={folder}', f'--optim.max_per_process={most}']
        script('train.py', *arguments, processes=processes)
        assert results(folder)['num_processes'] == processes
    rates, losses = curve(tmp_path / 'one', 'lr'), curve(tmp_path / 'one', 'loss')
    assert len(rates) == len(losses) == 50 and max(losses) > 1.5 * min(losses)
    assert curve(tmp_path / 'several', 'lr') == rates
    assert curve(tmp_path / 'several', 'loss') == pytest.approx(losses, rel=1e-3)


def test_run_starts_from_init_from(script, trained, coco_root, tmp_path):
    """A step with a tiny learning rate keeps the weights, except those of new labels."""
    start = ['--optim.lr=1e-12', '--optim.ema_decay=0', f'--model.init_from=local-dir:{trained}']
    printed = script('train.py', *TINY, *start, '--data.eval_size=33', f'--output={tmp_path / "same"}').stdout
    assert f'Starting from local-dir:{trained}, which has 12 of the labels.' in printed
    old, same = (load_file(folder / 'model.safetensors') for folder in (trained, tmp_path / 'same'))
    learnt = [name for name in old if 'running' not in name and 'num_batches' not in name]
    assert all(torch.allclose(old[name], same[name], atol=1e-6) for name in learnt)

    scenes = msff_timm.data.label_names(msff_timm.data.load('scenes', 'train', size=1))
    coco = msff_timm.data.label_names(msff_timm.data.load('coco2014', 'train', coco_root))
    assert not match_labels(scenes, coco)  # so no label is kept
    settings = [*start, '--data.name=coco2014', f'--data.root={coco_root}', '--model.keep_labels=true']
    script('train.py', *TINY, *settings, '--data.eval_size=33', f'--output={tmp_path / "other"}')
    other = load_file(tmp_path / 'other' / 'model.safetensors')
    assert len(other['label_embed.weight']) == 80 and results(tmp_path / 'other')['init_from']['kept_labels'] == {}
    assert torch.allclose(old['position.table'], other['position.table'], atol=1e-6)


def test_run_fine_tunes_on_a_table_of_photos(script, trained, coco_root, tmp_path):
    """The README's fine-tuning on photos: two splits as CSV files, made from COCO's annotations."""
    for split, folder in (('train', 'train2014'), ('validation', 'val2014')):
        content = json.loads((coco_root / 'annotations' / f'instances_{folder}.json').read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        rows = ['image,labels']
        for image in content['images'][:24]:
            found = {names[a['category_id']] for a in content['annotations'] if a['image_id'] == image['id']}
            rows.append(f'{folder}/{image["file_name"]},{"|".join(sorted(found))}')
        (tmp_path / f'{split}.csv').write_text('\n'.join(rows))
    arguments = [f'--config={ROOT / "train" / "configs" / "finetune.yaml"}', f'--data.root={tmp_path}']
    arguments += [f'--data.image_root={coco_root}', '--model.name=msff_test_resnet', '--data.image_size=96']
    arguments += [f'--model.init_from=local-dir:{trained}', '--model.backbone_from=null']
    arguments += ['--model.keep_labels=true', '--optim.epochs=1', '--optim.batch_size=8']
    printed = script('train.py', *arguments, '--data.workers=0', f'--output={tmp_path / "run"}').stdout
    assert printed.splitlines()[0] == 'recognised as table by train.csv (data.name)'
    assert printed.splitlines()[1].startswith("labels: column 'labels', delimited by '|', e.g. ")
    run = results(tmp_path / 'run')
    assert run['num_images'] == 24 and run['init_from']['model'] == f'local-dir:{trained.name}'
    named = {'name': 'table', 'split': 'validation', 'root': tmp_path.name, 'trained_on': 'train'}
    assert run['data'] == named
    model = hub.load(f'local-dir:{tmp_path / "run"}')
    assert 'person' in model.pretrained_cfg['label_names'] and model.num_classes == len(run['labels'])


@pytest.mark.parametrize(
    ('name', 'args', 'image_size', 'is_refused'),
    [
        ('msff_test_resnet', {}, 32, True),
        ('msff_test_resnet', {}, 64, True),  # the head's third scale has a single cell
        ('msff_test_resnet', {}, 96, False),
        ('msff_test_resnet', {'fusion_norm': False}, 64, False),
        ('msff_test_resnet', {'fusion_norm': False, 'backbone': 'test_convnext'}, 32, False),  # LayerNorm
        ('test_resnet', {}, 32, True),
        ('mobilenetv4_conv_small_035', {}, 64, True),  # a BatchNorm after the pooling
    ],
)
def test_check_trainable_refuses_a_batch_of_one_as_pytorch_does(name, args, image_size, is_refused):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **args).eval()
    before, random_state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    if is_refused:
        with pytest.raises(InputError, match=f'one image of {image_size} x {image_size} pixels at a time') as caught:
            check_trainable(model, image_size, 1)
        assert '\n' not in str(caught.value)
    else:
        check_trainable(model, image_size, 1)
    assert torch.equal(torch.get_rng_state(), random_state) and not model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    check_trainable(model, image_size, 2)
    if is_refused:
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            model.train()(torch.zeros(1, 3, image_size, image_size))
    freeze_norms(model)
    if args or not name.startswith('msff'):
        check_trainable(model, image_size, 1)
    elif is_refused:  # only norms of the backbone are frozen
        with pytest.raises(InputError, match='gets a single value'):
            check_trainable(model, image_size, 1)


def test_check_trainable_refuses_other_channels():
    model = timm.create_model('msff_test_resnet', num_classes=3, in_chans=1)
    with pytest.raises(InputError, match='model.args: the model takes 1 channels'):
        check_trainable(model, 64, 8)


def test_run_refuses_init_from_of_another_architecture(script, trained, tmp_path):
    arguments = [f'--model.init_from=local-dir:{trained}', '--model.name=msff_resnet18', f'--output={tmp_path / "run"}']
    result = script('train.py', *TINY, *arguments, check=False)
    assert result.returncode == 2
    fix = f'model.name is msff_resnet18: local-dir:{trained} is msff_test_resnet; set model.name to that.'
    assert result.stderr.splitlines()[-1] == f'train.py: error: {fix}'


def test_run_is_not_overwritten_by_mistake(script, trained):
    before = (trained / 'results.json').read_bytes()
    result = script('train.py', f'--output={trained}', check=False)
    assert result.returncode == 2
    fix = 'choose another --output, --resume auto to resume it, or --overwrite true.'
    assert result.stderr == f'train.py: error: {trained} holds a run already: {fix}\n'
    assert (trained / 'results.json').read_bytes() == before


@pytest.fixture
def photos(tmp_path):
    """COCO 2014's layout with 8 training photos, the last one unreadable, and 4 evaluation photos."""
    (tmp_path / 'annotations').mkdir()
    for split, count in (('train2014', 8), ('val2014', 4)):
        (tmp_path / split).mkdir()
        images = [{'id': i, 'file_name': f'{i}.jpg', 'width': 40, 'height': 40} for i in range(count)]
        annotations = [
            {'id': i, 'image_id': i, 'category_id': 1 + i % 2, 'area': 4, 'bbox': [0, 0, 2, 2], 'iscrowd': 0}
            for i in range(count)
        ]
        content = {'images': images, 'annotations': annotations}
        content['categories'] = [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
        (tmp_path / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
        for image in images:
            Image.new('RGB', (40, 40), (30 * image['id'], 0, 0)).save(tmp_path / split / image['file_name'])
    (tmp_path / 'train2014' / '7.jpg').write_text('not a photo')
    return tmp_path


PHOTOS = ['--data.name=coco2014', '--data.train_size=null', '--data.eval_size=null', '--data.image_size=32']
PHOTOS += ['--optim.batch_size=4', '--optim.epochs=2', '--data.workers=1']


def test_run_reports_unreadable_training_photos(script, photos):
    """With `error`, a data loader worker raises, and PyTorch adds the worker's traceback to the message."""
    reason = f'{photos}/train2014/7.jpg: cannot be read as an image (not an image that Pillow can read).'
    arguments = [*PHOTOS, f'--data.root={photos}', f'--output={photos / "run"}']
    result = script('train.py', *arguments, '--data.unreadable=error', check=False)
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1] == f'train.py: error: {reason}'

    result = script('train.py', *arguments, check=False)  # skip, but 1 of 8 is over 1 %
    assert result.returncode == 2 and f'skipped {reason}' in result.stderr
    assert '1 training images cannot be read, over 1% of them (0); the last' in result.stderr.splitlines()[-1]


def test_evaluate_refuses_an_unreadable_photo(script, trained, photos):
    scenes = msff_timm.data.label_names(msff_timm.data.load('scenes', 'train', size=1))
    table = '\n'.join(['image|labels', 'train2014/6.jpg|arrow', 'train2014/7.jpg|ring'])
    (photos / 'test.csv').write_text(table.replace('|', ','))
    arguments = ['--data.name=table', f'--data.root={photos}', '--data.split=test', f'--model=local-dir:{trained}']
    result = script('evaluate.py', *arguments, f'--data.label_names={json.dumps(scenes)}', check=False)
    assert result.returncode == 2 and '7.jpg: cannot be read as an image' in result.stderr.splitlines()[-1]


def test_run_stores_thresholds_that_evaluate_uses(script, trained, tmp_path):
    run = results(trained)
    stored = json.loads((trained / 'config.json').read_text())['thresholds']
    assert stored == run['thresholds'] and len(stored['per_class']) == 12 and stored['num_images'] == 33
    assert stored['data'] == {'name': 'scenes', 'split': 'validation'} and stored['folds'] == 5
    # The default of 0.5 is not fitted, so its out-of-fold metrics are the run's.
    assert stored['out_of_fold']['default']['OF1'] == pytest.approx(run['metrics']['OF1'], abs=1e-9)
    model = hub.load(f'local-dir:{trained}')
    assert model.thresholds == stored['per_class']

    folder, output = tmp_path / 'model', tmp_path / 'measured.json'
    shutil.copytree(trained, folder)
    arguments = [f'--model=local-dir:{folder}', '--data.size=40', f'--output={output}']
    script('evaluate.py', *arguments, '--threshold=null', '--ap=voc11', '--bootstrap=50', '--fit_thresholds=true')
    measured = json.loads(output.read_text())
    assert measured['definitions']['threshold'] == stored['per_class'] and measured['definitions']['mAP'] == 'voc11'
    low, high = measured['mAP_interval_95']
    assert low < measured['metrics']['mAP'] < high
    fitted = json.loads((folder / 'config.json').read_text())['thresholds']
    assert fitted == measured['thresholds'] and fitted['num_images'] == 40
    assert hub.load(f'local-dir:{folder}').thresholds == fitted['per_class']
    assert script('evaluate.py', *arguments, '--ap=voc12', check=False).returncode == 2


def test_run_accepts_the_settings_of_fine_tuning(script, trained, tmp_path):
    """The weights of present labels are counted by hand; a teacher takes part."""
    chosen = {'data.workers': 'null', 'data.hflip': 0.5, 'data.crop_scale': '[0.5, 1]', 'data.color_jitter': 0.2}
    chosen |= {'optim.pos_weight': 'balanced', 'optim.pos_weight_max': 5, 'optim.label_smoothing': 0.05}
    chosen |= {'optim.ema_decay': 0.9997, 'optim.ema_epochs': 2, 'distill.teacher': f'local-dir:{trained}'}
    output = tmp_path / 'run'
    arguments = [*TINY, '--optim.batch_size=8', '--data.eval_size=33', f'--output={output}']
    printed = script('train.py', *arguments, *(f'--{key}={value}' for key, value in chosen.items())).stdout
    run = results(output)
    targets = Samples(msff_timm.data.load('scenes', 'train', size=32, image_size=64), None).targets
    expected = [min(5, (32 - n) / n) if 0 < n < 32 else 1 for n in (targets == 1).sum(0)]
    assert run['pos_weights'] == pytest.approx(expected)
    assert re.search(r'^optim.pos_weight balanced: from [\d.]+ \(\w+.*\) to 5 ', printed, re.MULTILINE)
    line = re.search(r'^Loading an image takes .*: data.workers (\d+), \d+ compute threads', printed, re.MULTILINE)
    assert run['config']['data']['workers'] == int(line[1])
    assert 'set optim.ema_epochs to at most 0.25 to follow the model more closely.' in printed
    transforms = json.loads((output / 'config.json').read_text())['training']['transforms']
    assert transforms['resize'] == 'random_resized_crop' and transforms['hflip'] == 0.5
    outbox = output / 'outbox'
    outbox.mkdir()
    gather(output, outbox, 'org/name')
    published = [json.loads((outbox / name).read_text()) for name in ('results.json', 'config.json')]
    assert published[0]['pos_weights'] == run['pos_weights'] and published[1]['training']['transforms'] == transforms
    assert published[0]['config']['optim'] == run['config']['optim']
    assert published[0]['config']['data'].keys() == run['config']['data'].keys()
    card = (outbox / 'README.md').read_text()
    assert 'label_smoothing: 0.05' in card and 'ema_epochs: 2' in card and 'hflip: 0.5' in card


def test_run_describes_its_transforms_in_the_configuration(script, trained, tmp_path):
    arguments = ['--data.rand_augment=rand-m5', '--data.cutout=0.25', '--data.eval_size=8', f'--output={tmp_path}']
    script('train.py', *TINY, *arguments)
    transforms = json.loads((tmp_path / 'config.json').read_text())['training']['transforms']
    assert (transforms['resize'], transforms['rand_augment'], transforms['cutout']) == ('squash', 'rand-m5', 0.25)


@pytest.fixture
def shards(tmp_path):
    """A data set of four Parquet files that contain the images, as on the Hub."""
    (tmp_path / 'data').mkdir()
    for split, count in (('train', 4), ('validation', 1)):
        for shard in range(count):
            rows = []
            for i in range(12):
                buffer = io.BytesIO()
                Image.new('RGB', (40, 40), (20 * i, 40 * shard, 0)).save(buffer, 'PNG')
                rows.append({'image': {'bytes': buffer.getvalue(), 'path': None}, 'labels': [i % 2]})
            features = datasets.Features(
                image=datasets.Image(), labels=datasets.List(datasets.ClassLabel(names=['cat', 'dog']))
            )
            dataset = datasets.Dataset.from_list(rows, features=features)
            dataset.to_parquet(str(tmp_path / 'data' / f'{split}-{shard:05}-of-{count:05}.parquet'))
    return tmp_path


def test_run_streams_in_two_processes(script, shards):
    arguments = ['--data.name=hub', f'--data.root={shards}', '--data.streaming=true', '--data.workers=2']
    arguments += ['--data.eval_size=null', '--data.image_size=32', '--optim.batch_size=8', '--optim.epochs=2']
    script('train.py', *arguments, '--data.train_size=44', f'--output={shards / "run"}', processes=2)
    run = results(shards / 'run')
    assert run['num_processes'] == 2 and run['num_images'] == 12 and len(run['history']) == 2


@pytest.mark.parametrize(('processes', 'divide'), [(1, True), (2, True), (3, False), (4, True), (8, False)])
def test_load_data_refuses_shards_that_do_not_divide(shards, processes, divide):
    accelerator = SimpleNamespace(main_process_first=nullcontext, num_processes=processes, process_index=0)
    data = DataConfig(name='hub', root=str(shards), streaming=True, train_size=44, eval_size=None)
    with nullcontext() if divide else pytest.raises(InputError) as refused:
        stream, _, label_names, _ = load_data(data, accelerator)
        assert stream.num_shards == 4 // processes and label_names == ['cat', 'dog']
    assert divide or f'the 4 shards of train do not divide over the {processes} processes' in str(refused.value)


@pytest.mark.slow
def test_run_memorises_128_photos(script, coco_root, tmp_path):
    config = ROOT / 'train' / 'configs' / 'memorise.yaml'
    script('train.py', f'--config={config}', f'--data.root={coco_root}', f'--output={tmp_path}')
    run = results(tmp_path)
    assert run['num_images'] == 128 and run['metrics']['mAP'] > 95


@pytest.mark.slow
def test_demo_reaches_90(script, tmp_path):
    start = time.time()
    script('train.py', f'--output={tmp_path}')
    run = results(tmp_path)
    assert run['num_images'] >= 500 and run['metrics']['mAP'] >= 90, time.time() - start
