import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import IterativeStratification
from PIL import Image

from msff_timm.data import load
from msff_timm.data.splitting import divide, hold_out, stratify
from msff_timm.errors import InputError


@pytest.mark.parametrize('seed', range(5))
def test_stratify_follows_the_paper_by_hand(seed):
    """Labels a, b of images 0: a, 1: a, 2: a and b, 3: b, in two halves.

    Of b, the rarer label, each half wants 1: images 2 and 3 part. The half P of image 2 now wants 0.5 of a, the other
    half Q wants 1.5: Q takes one of images 0 and 1. Both then want 0.5 of a, but P wants one image more, and takes the
    last one.
    """
    parts = stratify(np.array([[1, 0], [1, 0], [1, 1], [0, 1]]), [0.5, 0.5], seed=seed)
    assert parts[2] != parts[3] and parts[0] != parts[1]


@pytest.mark.parametrize('seed', range(5))
def test_stratify_fills_unequal_parts_by_hand(seed):
    """Of a label with three images, parts of 0.8 and 0.2 want 2.4 and 0.6; after two for the first, 0.4 and 0.6."""
    targets = np.zeros((15, 1), int)
    targets[[2, 5, 7]] = 1
    parts = stratify(targets, [0.8, 0.2], seed=seed)
    assert sorted(parts[[2, 5, 7]]) == [0, 0, 1] and np.bincount(parts).tolist() == [12, 3]


def drawn(kind, seed, num_images=200, num_labels=16):
    rng = np.random.default_rng(seed)
    shares = {
        'long tail': 0.6 / np.arange(1, num_labels + 1),
        'even': np.full(num_labels, 0.1),
        'dense': rng.uniform(0.3, 0.7, num_labels),
        'rare': np.full(num_labels, 0.02),
    }[kind]
    return (rng.random((num_images, num_labels)) < shares).astype(int)


def deviation(targets, parts):
    """Mean absolute difference of the share of a label in a part from that in all images."""
    return np.mean([np.abs(targets[parts == part].mean(0) - targets.mean(0)).mean() for part in np.unique(parts)])


def test_stratify_deviates_no_more_than_iterative_stratification():
    ours, theirs, at_random = [], [], []
    for shares in ([0.2] * 5, [0.8, 0.2], [0.7, 0.2, 0.1]):
        for kind in ('long tail', 'even', 'dense', 'rare'):
            for seed in range(10):
                targets = drawn(kind, seed)
                ours.append(deviation(targets, stratify(targets, shares, seed=seed)))
                random = np.random.RandomState(seed)
                theirs.append(deviation(targets, IterativeStratification(targets == 1, np.array(shares), random)))
                at_random.append(deviation(targets, random.choice(len(shares), len(targets), p=shares)))
    assert np.mean(ours) <= np.mean(theirs) and np.mean(ours) < np.mean(at_random) / 2


@given(st.integers(0, 1000), st.sampled_from([[0.8, 0.2], [1 / 3] * 3, [0.7, 0.2, 0.1]]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_stratify_keeps_units_whole_and_parts_near_their_shares(seed, shares, has_units):
    rng = np.random.default_rng(seed)
    targets = rng.choice([-1, 0, 1], (90, 5), p=[0.2, 0.6, 0.2])
    units = np.unique(rng.integers(0, 40, 90), return_inverse=True)[1] if has_units else None
    parts = stratify(targets, shares, units, seed)
    np.testing.assert_array_equal(parts, stratify(targets, shares, units, seed))
    np.testing.assert_allclose(np.bincount(parts, minlength=len(shares)) / 90, shares, atol=0.1)
    for unit in range(units.max() + 1) if has_units else ():
        assert len(set(parts[units == unit])) == 1


def test_stratify_divides_absent_entries_of_partly_annotated_labels():
    """A label that is annotated in 10 of 1,000 images is measured only if the absent entries are divided, too."""
    targets = np.full((1000, 2), -1)
    targets[:5, 0], targets[5:10, 0] = 1, 0
    targets[:, 1] = np.arange(1000) % 2
    for seed in range(5):
        held_out = stratify(targets, [0.8, 0.2], seed=seed) == 1
        assert [(targets[held_out, 0] == value).sum() for value in (1, 0)] == [1, 1]


@pytest.fixture
def photos(tmp_path):
    """A table of 40 images, of which each of the first 8 has a copy among the last 8."""
    rng = np.random.default_rng(0)
    lines = ['image,cat,dog,cow']
    for number in range(40):
        if number < 32:
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f'{number}.png')
        else:
            shutil.copy(tmp_path / f'{number - 32}.png', tmp_path / f'{number}.png')
        lines.append(f'{number}.png,{",".join(rng.choice(["0", "1", ""], 3))}')
    (tmp_path / 'train.csv').write_text('\n'.join(lines))
    return tmp_path


def test_divide_keeps_the_same_content_and_groups_together(photos):
    dataset = load('table', 'train', str(photos))
    groups = [f'patient {number // 4}' if number < 24 else None for number in range(40)]
    for seed in range(5):
        parts, units = divide(dataset, [0.5, 0.5], groups, seed)
        # Images 0 to 23 are 6 groups of 4, and the copies of the first 8 join theirs; the other 8 are alone.
        assert units.max() + 1 == 14 and len(set(units[24:32])) == 8
        for group in range(6):
            together = [*range(4 * group, 4 * group + 4), *(range(32 + 4 * group, 36 + 4 * group) if group < 2 else ())]
            assert len(set(parts[together])) == 1


def test_hold_out_depends_neither_on_the_order_of_labels_nor_on_unused_ones(photos):
    held_out = [
        hold_out(load('table', 'train', str(photos), label_names=names), 0.25)
        for names in (['cat', 'dog', 'cow'], ['cow', 'cat', 'dog'])
    ]
    (train, validation), others = held_out
    assert [part['image_id'][:] for part in others] == [train['image_id'][:], validation['image_id'][:]]
    assert sorted(train['image_id'][:] + validation['image_id'][:]) == sorted(f'{n}.png' for n in range(40))
    assert 8 <= len(validation) <= 12


def test_divide_refuses_too_few_images(photos):
    dataset = load('table', 'train', str(photos)).select(range(3))
    with pytest.raises(InputError, match='3 images are too few to divide into parts of 0.9, 0.1'):
        divide(dataset, [0.9, 0.1])
    with pytest.raises(InputError, match='3 images in 1 units that stay together are too few'):
        divide(dataset, [0.5, 0.5], ['a', 'a', 'a'])
