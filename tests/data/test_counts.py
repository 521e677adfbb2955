import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from msff_timm.data.counts import LabelCounts
from msff_timm.errors import InputError

SETTINGS = 'if -1 or blank means absent in the data, set data.minus_one or data.blank to absent.'


def counts_of(*columns, data='table'):
    """Counts the entries of columns of + (present), - (absent) and ? (masked)."""
    marks = np.array([list(column) for column in columns]).T
    targets = np.select([marks == '+', marks == '-'], [1, 0], -1)
    return LabelCounts.of(targets, [f'l{k}' for k in range(len(columns))], data)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.text('+-?', min_size=n, max_size=n), min_size=1, max_size=4)))
@settings(max_examples=100, deadline=None)
def test_counted_labels_can_be_ranked_wrongly(columns):
    """A label counts if its AP is below 1 for some scores and 1 for others."""
    for counts, column in zip(counts_of(*columns).counted, columns, strict=True):
        targets = [mark == '+' for mark in column if mark != '?']
        found = set()
        if any(targets):
            found = {average_precision_score(targets, s) for s in (targets, [not t for t in targets])}
        assert counts == (len(found) == 2)


@pytest.mark.parametrize(
    ('columns', 'data', 'kinds', 'fix'),
    [
        (['+?+', '??+'], 'table', '2 without an absent entry [l0, l1], 0 without a positive', SETTINGS),
        (['+?+', '??+'], 'folder', '2 without an absent entry [l0, l1], 0 without a positive', SETTINGS),
        (
            ['???', '---'],
            'hub',
            '0 without an absent entry, 1 masked throughout [l0], 1 without a positive [l1]',
            SETTINGS,
        ),
        # Neither setting would help: nothing is masked, or masked entries would at most be absent.
        (['+++'], 'table', '1 without an absent entry [l0], 0 without a positive', None),
        (['-?-'], 'table', '0 without an absent entry, 1 without a positive [l0]', None),
        (['++?'], 'coco2014', '1 without an absent entry [l0], 0 without a positive', None),
        (
            ['-?-'],
            'voc2007',
            '0 without an absent entry, 1 without a positive [l0]',
            'labels whose objects are all difficult are masked; data.difficult decides.',
        ),
    ],
)
def test_check_refuses_splits_without_counted_labels(columns, data, kinds, fix):
    counts = counts_of(*columns, data=data)
    with pytest.raises(InputError) as refused:
        counts.check('photos: validation', 'data.eval_split')
    assert str(refused.value) == (
        'photos: validation: there is nothing to evaluate on, as no label has both a positive and an absent entry among'
        f' the 3 images ({kinds}): {fix or "choose another data.eval_split, or a larger data.eval_size."}'
    )
    what = 'are left out of mAP and of fitted thresholds, which leaves nothing to evaluate on'
    of = f'{len(columns)} of {len(columns)} labels'
    end = f'; {fix}' if fix else '.'
    assert counts.warning('validation', trains=False) == f'validation: {of} {what}: {kinds}{end}'
    assert counts.warning('train', trains=True) == f'train: {of} cannot be learnt: {kinds}{end}'


def test_warning_lists_labels_that_do_not_count():
    counts = counts_of('+-', *['++'] * 7, '+?', '--')
    counts.check('photos: validation', 'data.eval_split')
    assert counts.warning('validation', trains=False) == (
        'validation: 9 of 10 labels are left out of mAP and of fitted thresholds: 8 without an absent entry [l1, l2,'
        f' l3, l4, l5 and 3 more], 1 without a positive [l9]; {SETTINGS}'
    )
    assert counts_of('+-', '-+').warning('train', trains=True) is None


def test_unseen_warns_of_evaluated_labels_without_training_images():
    train = counts_of('+-', '--', '--', '--', *['?-'] * 7)
    evaluated = counts_of('+-', '+-', '++', '--', *['+-'] * 7)  # the third label does not count, the fourth is absent
    assert evaluated.unseen(train, 'validation', 'train') == (
        'validation: 8 of 11 labels have positives here but none in train, and count in mAP: l1 (1), l4 (1), l5 (1), l6'
        ' (1), l7 (1) and 3 more; data.ignore_labels leaves them out.'
    )
    assert evaluated.unseen(evaluated, 'validation', 'train') is None
