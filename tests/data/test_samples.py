import io
import random
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from timm.loss import AsymmetricLossMultiLabel
from torch.utils.data import DataLoader

import msff_timm.data
from msff_timm.data.records import features
from msff_timm.data.samples import Samples, StreamedSamples, collate
from msff_timm.errors import InputError
from msff_timm.metrics import evaluate
from msff_timm.training.loaders import Unreadable
from msff_timm.training.losses import known_sum

COLOURS = (10, 20, 30, 40)


def to_tensor(image):
    return torch.tensor(image.getpixel((0, 0))[:1])


def noisy(image):
    return torch.cat([to_tensor(image), torch.rand(1), torch.tensor([np.random.rand(), random.random()])])


def make(folder, broken=()):
    """Returns a data set of four images of different colours with three labels; some are broken."""
    paths = []
    for number, colour in enumerate(COLOURS):
        paths.append(folder / f'{number}.png')
        Image.new('RGB', (3, 3), (colour, 0, 0)).save(paths[-1])
        if number in broken:
            paths[-1].write_bytes(b'broken')
    columns = {
        'image': list(map(str, paths)),
        'labels': [[0, 2], [], [1], [0]],
        'ignore': [[1], [2], [], [1, 2]],
        'area': [[0.005, 0.5], [], [], [0.02]],
        'image_id': list('abcd'),
    }
    return datasets.Dataset.from_dict(columns, features=features(['cat', 'dog', 'owl']))


def test_samples_return_targets_and_rows(tmp_path):
    samples = Samples(make(tmp_path), to_tensor)
    batch = collate([samples[i] for i in range(4)])
    expected = [[1, -1, 1], [0, 0, -1], [0, 1, 0], [1, -1, -1]]
    assert batch['target'].tolist() == expected and batch['index'].tolist() == [0, 1, 2, 3]
    assert batch['image'].flatten().tolist() == list(COLOURS) and batch['unreadable'] == []
    assert samples.targets.tolist() == expected


def test_samples_return_areas_of_present_labels(tmp_path):
    nan = np.nan
    expected = [[0.005, nan, 0.5], [nan] * 3, [nan] * 3, [0.02, nan, nan]]
    np.testing.assert_array_equal(Samples(make(tmp_path), to_tensor).areas, expected)
    without = make(tmp_path).map(lambda row: {'area': []}, input_columns='image_id')
    assert Samples(without, to_tensor).areas is None


def test_samples_follow_selected_rows(tmp_path):
    samples = Samples(make(tmp_path).select([3, 2]), to_tensor)
    assert samples.targets.tolist() == [[1, -1, -1], [0, 1, 0]] and samples[0]['image'].item() == 40


def test_samples_replace_or_refuse_unreadable_images(tmp_path):
    dataset = make(tmp_path, broken=(1, 2))
    samples = Samples(dataset, to_tensor, skip_unreadable=True)
    sample = samples[1]
    assert (sample['index'], sample['image'].item(), sample['target'].tolist()) == (3, 40, [1, -1, -1])
    assert [message.split(':')[0] for message in sample['unreadable']] == [str(tmp_path / f'{n}.png') for n in (1, 2)]
    assert collate([sample, samples[0]])['unreadable'] == sample['unreadable'] and samples[0]['unreadable'] == []
    with pytest.raises(InputError, match='1.png: cannot be read as an image'):
        Samples(dataset, to_tensor)[1]
    with pytest.raises(InputError, match='2.png'):
        Samples(make(tmp_path, broken=range(4)), to_tensor, skip_unreadable=True)[2]


def test_samples_open_bytes_upright(tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    left = Image.new('RGB', (6, 4), 'red')
    left.save(buffer, 'PNG', exif=exif)
    columns = {'image': [{'bytes': buffer.getvalue(), 'path': None}], 'labels': [[0]], 'ignore': [[]], 'area': [[]]}
    columns['image_id'] = ['x']
    dataset = datasets.Dataset.from_dict(columns, features=features(['cat']))
    assert Samples(dataset, lambda image: image.size)[0]['image'] == (4, 6)  # upright


def test_stream_restarts_and_skips_unreadable_images(tmp_path):
    stream = make(tmp_path, broken=(1,)).to_iterable_dataset()  # a single shard keeps the order
    samples = iter(StreamedSamples(stream, to_tensor, skip_unreadable=True))
    seen = [next(samples) for _ in range(7)]
    assert [sample['image'].item() for sample in seen] == [10, 30, 40] * 2 + [10]
    assert [len(sample['unreadable']) for sample in seen] == [0, 1, 0, 0, 1, 0, 0]
    with pytest.raises(InputError, match='1.png'):
        list(StreamedSamples(stream, to_tensor))
    nothing = make(tmp_path, broken=range(4)).to_iterable_dataset()
    with pytest.raises(InputError, match='0.png'):
        next(iter(StreamedSamples(nothing, to_tensor, skip_unreadable=True)))


def test_samples_augment_by_seed_epoch_and_row(tmp_path):
    samples = Samples(make(tmp_path), noisy, seed=5)
    keys = [2, 0, 6, 4, 10]  # rows 2, 0, 2, 0, 2 of epochs 0, 0, 1, 1, 2
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    drawn = [samples[key]['image'] for key in keys]
    untouched = random.random(), np.random.rand(), torch.rand(1).item()
    assert [samples[key]['index'] for key in keys] == [2, 0, 2, 0, 2]
    assert all(torch.equal(samples[key]['image'], image) for key, image in zip(keys[::-1], drawn[::-1], strict=True))
    values = torch.stack(drawn)[:, 1:].flatten()
    assert len(values.unique()) == len(values)
    assert not torch.equal(Samples(make(tmp_path), noisy, seed=6)[2]['image'], drawn[0])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert untouched == (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.parametrize('workers', [0, 2])
def test_stream_resumes_at_start(tmp_path, workers):
    paths = []
    for number in range(12):
        paths.append(str(tmp_path / f'{number}.png'))
        Image.new('RGB', (3, 3), (number, 0, 0)).save(paths[-1])
    columns = {'image': paths, 'labels': [[0]] * 12, 'ignore': [[]] * 12, 'area': [[]] * 12, 'image_id': paths}
    dataset = datasets.Dataset.from_dict(columns, features=features(['a']))

    def batches(epoch, start):
        stream = dataset.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=3)
        samples = StreamedSamples(stream, noisy, seed=5, epoch=epoch, batch_size=2, start=start)
        loader = DataLoader(samples, batch_size=2, num_workers=workers, collate_fn=collate)
        return torch.stack([batch['image'] for batch in islice(loader, 12 - start)])

    whole = batches(1, 0)
    assert len(whole) == 12 and set(range(12)) == set(whole[:6, :, 0].flatten().tolist())
    for start in (2, 4, 10):  # the last is beyond the end of the data
        assert torch.equal(batches(1, start), whole[start:])
    other = batches(2, 0)
    assert not torch.equal(other[..., 0], whole[..., 0])
    drawn = torch.cat([whole, other])[..., 1:].flatten()
    assert len(drawn.unique()) == len(drawn)  # each image of each epoch has its own augmentation


def test_unreadable_ends_run_with_too_many_images(capsys):
    unreadable = Unreadable(200, [])
    unreadable.add(['a.png: broken'])
    unreadable.add(['a.png: broken', 'b.png: broken'])
    assert capsys.readouterr().err.splitlines() == ['skipped a.png: broken', 'skipped b.png: broken']
    with pytest.raises(InputError, match=r'3 training images cannot be read, over 1% of them \(2\).*c.png'):
        unreadable.add(['c.png: broken'])


def test_known_sum_excludes_masked_labels():
    """Calculated by hand: with zero gammas, the loss is the cross entropy, -log p or -log(1 - p)."""
    loss_fn = AsymmetricLossMultiLabel(0, 0, clip=None, reduction='none')
    p = torch.tensor([[0.8, 0.3], [0.6, 0.9]], dtype=torch.float64)
    logits = p.logit().float().requires_grad_()
    target = torch.tensor([[1.0, -1.0], [0.0, 1.0]])
    loss = known_sum(loss_fn, logits, target)
    assert loss.item() == pytest.approx(-(np.log(0.8) + np.log(0.4) + np.log(0.9)), abs=1e-6)
    loss.backward()
    assert logits.grad[0, 1] == 0 and (logits.grad.flatten()[[0, 2, 3]] != 0).all()
    whole = known_sum(loss_fn, logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert whole.item() == pytest.approx(-(np.log(0.8) + np.log(0.7) + np.log(0.4) + np.log(0.9)), abs=1e-6)
    assert known_sum(loss_fn, logits, torch.full((2, 2), -1.0)).item() == 0


def test_known_sum_equals_timm_without_masked_labels():
    torch.manual_seed(0)
    logits, target = torch.randn(6, 5), (torch.rand(6, 5) < 0.4).float()
    ours = known_sum(AsymmetricLossMultiLabel(4, 0, clip=None, reduction='none'), logits, target) / 30
    torch.testing.assert_close(ours, AsymmetricLossMultiLabel(4, 0, clip=None, reduction='mean')(logits, target))


def test_difficult_labels_change_loss_and_ap():
    """One label, four images of probability 0.9, 0.8, 0.7, 0.6: present, difficult, absent, present."""
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    log = np.log
    expected = {  # AP from the precision at each positive, and mean cross entropy
        -1: ((1 / 1 + 2 / 3) / 2, -(log(0.9) + log(0.3) + log(0.6)) / 3),
        0: ((1 / 1 + 2 / 4) / 2, -(log(0.9) + log(0.2) + log(0.3) + log(0.6)) / 4),
        1: ((1 / 1 + 2 / 2 + 3 / 4) / 3, -(log(0.9) + log(0.8) + log(0.3) + log(0.6)) / 4),
    }
    loss_fn = AsymmetricLossMultiLabel(0, 0, clip=None, reduction='none')
    for value, (ap, loss) in expected.items():
        target = np.array([[1], [value], [0], [1]])
        measured = evaluate(scores, target == 1, target == -1)['mAP'] / 100
        assert measured == pytest.approx(ap, abs=1e-9)
        kept = target[:, 0] >= 0
        assert average_precision_score(target[kept, 0], scores[kept, 0]) == pytest.approx(ap, abs=1e-9)
        logits = torch.from_numpy(scores).logit()
        mean = known_sum(loss_fn, logits, torch.from_numpy(target)) / kept.sum()
        assert mean.item() == pytest.approx(loss, abs=1e-6)


def test_load_scenes_returns_columns_of_all_data_sets():
    dataset = msff_timm.data.load('scenes', 'train', size=3)
    assert dataset.column_names == list(features(['x'])) and dataset['image_id'][:] == ['train-0', 'train-1', 'train-2']
    assert dataset['ignore'][:] == [[], [], []]
