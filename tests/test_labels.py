import unicodedata

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import msff_timm.data
from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.labels import (
    compute_probabilities,
    decision_thresholds,
    describe_matches,
    display_names,
    get_calibration,
    get_label_names,
    get_thresholds,
    match_labels,
    relabel,
    set_label_names,
)

VOC = 'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person'.split()
VOC += 'pottedplant sheep sofa train tvmonitor'.split()
COCO_FOR_VOC = {
    'aeroplane': 'airplane',
    'diningtable': 'dining table',
    'motorbike': 'motorcycle',
    'pottedplant': 'potted plant',
    'sofa': 'couch',
    'tvmonitor': 'tv',
}


def named(label_names, **args):
    """Creates a model with label names and random weights, whose logits differ between labels."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=len(label_names), **args).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.pretrained_cfg['label_names'] = list(label_names)
    return model


def test_match_labels_finds_every_label_of_voc_in_coco(coco_root):
    coco = msff_timm.data.label_names(msff_timm.data.load('coco2014', 'train', coco_root))
    assert match_labels(coco, VOC) == {name: COCO_FOR_VOC.get(name, name) for name in VOC}
    assert match_labels(VOC, coco) == {COCO_FOR_VOC.get(name, name): name for name in VOC}


def test_match_labels_prefers_equal_names_and_uses_no_label_twice():
    assert match_labels(['tv', 'sofa'], ['tvmonitor', 'tv', 'Couch', 'sofa bed']) == {'tv': 'tv', 'Couch': 'sofa'}
    assert match_labels(['cat'], ['dog']) == {}


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('dining table', 'diningtable'),
        ('dining_table', 'Dining-Table'),
        ('dining  table', 'dining - table'),
        ('STRAẞE', 'straße'),
        ('Caf\u00e9', 'cafe\u0301'),
        ('ΟΔΟΣ', 'οδος'),
        ('\uff23\uff21\uff34', 'cat'),  # full width
        ('\uff7c\uff9e', '\u30b8'),  # half width, of two characters
        ('हिन्दी भाषा', 'हिन्दी_भाषा'),
        ('age<30 Years', 'AGE<30 years'),
    ],
)
def test_match_labels_ignores_case_unicode_composition_and_separators(one, other):
    assert match_labels([one, 'x'], ['y', other]) == {other: one}
    assert match_labels([other], [one]) == {one: other}


@pytest.mark.parametrize(
    'names',
    [
        ['HER2+', 'HER2-', 'HER2'],
        ['age<30', 'age>30', 'age 30', 'age=30'],
        ['C', 'C++', 'C#', 'C-'],
        ['😀', '😢', '❤️ a', '❤️a'],
        ['कि', 'की', 'कु', 'क'],
        ['ปา', 'ปี', 'ปู', 'ป่า'],
        ['-1', '1', '+1', '- 1'],
        ['T-4', 'T4', 'T 4', 'T_4'],
        ['a-1', 'a1', '1-a', '1a'],
        ['A', 'A-', '-A', 'A+'],
        ['Maße', 'Masse'],
        ['m²', 'm2', 'm₂'],
        ['①', '1', '½'],
        ['résumé', 'resume'],
        ['ı', 'i', 'İ'],
        ['', ' ', '-', '_'],
        ["don't", 'dont'],
        ['a.b', 'ab', 'a/b', 'a,b', 'a&b'],
    ],
    ids=str,
)
def test_match_labels_distinguishes_signs(names):
    for one in names:
        others = [name for name in names if name != one]
        assert match_labels(others, [one]) == {}
        assert match_labels([one], others) == {}


SPELT = st.text(alphabet='aAbBßẞéÉe\u0301σΣςकि\u093f\u0940ปี1²+-_ #<>😀', max_size=5)


@settings(max_examples=400, deadline=None)
@given(SPELT, SPELT)
@example('a- b', 'A_B')
def test_match_labels_ignores_only_case_and_separators(one, other):
    def without(name):
        name = unicodedata.normalize('NFD', name.translate(dict.fromkeys(map(ord, ' _-'))))
        return unicodedata.normalize('NFD', name.casefold())

    if match_labels([one], [other]):
        assert without(one) == without(other)
        # All characters that are no letters stay.
        assert [c for c in one if c in '1²+#<>😀'] == [c for c in other if c in '1²+#<>😀']


@pytest.mark.parametrize(
    ('known', 'wanted', 'expected'),
    [
        (['tv', 'TV'], ['Tv'], {}),
        (['tv', 'TV'], ['tv', 'Tv'], {'tv': 'tv'}),  # not the remaining one
        (['Cat'], ['cat', 'CAT'], {}),
        (['couch', 'sofa'], ['Sofa'], {'Sofa': 'sofa'}),
        (['couch', 'Sofa'], ['sofa', 'Couch'], {'sofa': 'Sofa', 'Couch': 'couch'}),
        (['sofa', 'Sofa'], ['couch'], {}),
        (['couch'], ['sofa', 'Sofa'], {}),
        (['sofa', 'couch', 'x'], ['SO FA', 'couch'], {'SO FA': 'sofa', 'couch': 'couch'}),
        (['airplane', 'tv'], ['TV-Monitor', 'Aeroplane'], {'TV-Monitor': 'tv', 'Aeroplane': 'airplane'}),
    ],
)
def test_match_labels_skips_ambiguous_names(known, wanted, expected):
    assert match_labels(known, wanted) == expected


def test_describe_matches_lists_different_names():
    matched = match_labels(['airplane', 'cat'], ['cat', 'aeroplane'])
    assert describe_matches(matched) == ["'aeroplane' is matched to 'airplane'."]


@pytest.mark.parametrize('args', [{}, {'share_branches': False}, {'decoder_depth': 0}], ids=str)
def test_relabel_keeps_logits_of_shared_labels_and_draws_the_others(args):
    known, wanted = ['cat', 'tv', 'dog', 'couch'], ['zebra', 'sofa', 'cat', 'giraffe', 'tvmonitor']
    model = named(known, **args)
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    assert relabel(model, wanted) == {'sofa': 'couch', 'cat': 'cat', 'tvmonitor': 'tv'}
    after = model(x)
    assert after.shape == (2, 5)
    for new, old in (('sofa', 'couch'), ('cat', 'cat'), ('tvmonitor', 'tv')):
        torch.testing.assert_close(after[:, wanted.index(new)], before[:, known.index(old)])
    for new in ('zebra', 'giraffe'):
        assert (after[:, wanted.index(new), None] - before).abs().min() > 1e-4
    assert model.pretrained_cfg['label_names'] == wanted and model.pretrained_cfg['num_classes'] == 5


def test_relabel_survives_saving_and_loading(tmp_path):
    model = named(['cat', 'dog'])
    relabel(model, ['dog', 'cow', 'cat'])
    hub.save(model, tmp_path, ['dog', 'cow', 'cat'], timm.data.resolve_model_data_config(model))
    again = hub.load(f'local-dir:{tmp_path}')
    x = torch.randn(1, 3, 64, 64)
    assert again.pretrained_cfg['label_names'] == ['dog', 'cow', 'cat'] and torch.equal(again(x), model(x))


def test_relabel_refuses_repeated_names_and_models_without_names():
    with pytest.raises(InputError, match="2 label names for 2 logits, 'cat' more than once"):
        relabel(named(['cat', 'dog']), ['cat', 'cat'])
    nameless = timm.create_model('msff_test_resnet', num_classes=2)
    with pytest.raises(InputError, match='the model has no label names'):
        relabel(nameless, ['cat', 'dog'])


def state_of(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        model.pretrained_cfg,
        display_names(model),
    )


@pytest.mark.parametrize(
    ('name', 'args', 'known', 'wanted'),
    [
        ('mldecoder_test_resnet', {}, 100, 101),
        ('mldecoder_test_resnet', {}, 101, 100),
        ('mldecoder_test_resnet', {'max_queries': 3}, 3, 4),
        ('msff_test_resnet', {}, 100, 101),
        ('msff_test_resnet', {'max_queries': 3}, 3, 4),
        ('msff_test_resnet', {'max_queries': 3}, 4, 3),
    ],
)
def test_relabel_leaves_the_model_unchanged_if_labels_share_queries(name, args, known, wanted):
    model = timm.create_model(name, num_classes=known, **args)
    set_label_names(model, [f'label {k}' for k in range(known)])
    state, cfg, names = state_of(model)
    modules = dict(model.named_modules())
    with pytest.raises(InputError, match='so no label can be kept: train without keep_labels'):
        relabel(model, [f'label {k}' for k in range(wanted)])
    assert model.num_classes == known and display_names(model) == names and model.pretrained_cfg == cfg
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    # Equal labels need no change.
    assert relabel(model, names) == dict(zip(names, names, strict=True)) and dict(model.named_modules()) == modules


def test_relabel_allows_one_label_for_each_query():
    for name, args in (('mldecoder_test_resnet', {}), ('msff_test_resnet', {'decoder_depth': 0, 'max_queries': 3})):
        model = timm.create_model(name, num_classes=2, **args).eval()
        set_label_names(model, ['cat', 'dog'])
        x = torch.randn(1, 3, 64, 64)
        before = model(x)
        assert relabel(model, [*map(str, range(98)), 'dog', 'cat']) == {'dog': 'dog', 'cat': 'cat'}
        torch.testing.assert_close(model(x)[:, [99, 98]], before)


def test_relabel_without_keep_shared_keeps_labels_of_an_equal_set_only():
    model = named(['cat', 'dog', 'cow'])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert relabel(model, ['cow', 'cat', 'dog'], keep_shared=False) == {'cow': 'cow', 'cat': 'cat', 'dog': 'dog'}
    assert torch.equal(model.classifier.bias, before['classifier.bias'][[2, 0, 1]])
    assert relabel(model, ['cow', 'cat', 'fox'], keep_shared=False) == {}
    assert get_label_names(model) == ['cow', 'cat', 'fox'] and not model.classifier.bias.any()
    nameless = timm.create_model('msff_test_resnet', num_classes=2)
    assert relabel(nameless, ['cat', 'dog'], keep_shared=False) == {} and display_names(nameless) == ['cat', 'dog']


@pytest.mark.parametrize('name', ['msff_test_resnet', 'mldecoder_test_resnet', 'q2l_test_resnet'])
@pytest.mark.parametrize('num_classes', [0, 2, 3])
def test_reset_classifier_drops_names_and_thresholds(name, num_classes):
    model = timm.create_model(name, num_classes=3)
    set_label_names(model, ['cat', 'dog', 'cow'])
    model.thresholds = [0.1, 0.2, 0.3]
    model.reset_classifier(num_classes)  # as timm does it
    assert get_label_names(model) is None and display_names(model) == ['0', '1', '2'][:num_classes]
    assert get_thresholds(model) is None and model.default_cfg is model.pretrained_cfg


def test_display_names_fits_the_logits_of_a_plain_timm_model():
    model = timm.create_model('test_resnet', num_classes=3)
    assert display_names(model) == ['0', '1', '2']
    set_label_names(model, ['cat', 'dog', 'cow'])
    model.thresholds = [0.1, 0.2, 0.3]
    assert display_names(torch.nn.DataParallel(model)) == ['cat', 'dog', 'cow'] == display_names(model)
    model.reset_classifier(2)
    assert display_names(model) == ['0', '1'] and get_thresholds(model) is None


def test_compute_probabilities_calibrates_probabilities_and_thresholds_alike():
    model = timm.create_model('test_resnet', num_classes=3)
    logits = 4 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compute_probabilities(model, logits), logits.sigmoid())
    assert decision_thresholds(model) == [0.5] * 3 and decision_thresholds(model, 0.2) == [0.2] * 3
    model.thresholds = [0.0, 0.3, 0.9]
    assert decision_thresholds(model) == [0.0, 0.3, 0.9]
    plain = logits.sigmoid() > torch.tensor(model.thresholds)

    model.calibration = [0.5, 1.5, 2.0], [-1.0, 0.0, 0.5]
    found = compute_probabilities(torch.nn.DataParallel(model), logits)
    by_hand = 1 / (1 + torch.exp(-(logits.double() / torch.tensor([0.5, 1.5, 2.0]) + torch.tensor([-1.0, 0, 0.5]))))
    torch.testing.assert_close(found, by_hand)
    thresholds = torch.tensor(decision_thresholds(model), dtype=torch.float64)
    assert (
        thresholds[0] == 0 and torch.equal(found > thresholds, plain) and 0 < plain[:, 1:].sum() < plain[:, 1:].numel()
    )
    assert decision_thresholds(model, 0.2) == [0.2] * 3
    set_label_names(model, ['cat', 'dog', 'cow'])
    assert get_calibration(model) is None and torch.equal(compute_probabilities(model, logits), logits.sigmoid())


def test_set_names_checks_them_and_drops_the_thresholds_of_others():
    model = timm.create_model('msff_test_resnet', num_classes=3)
    model.thresholds = [0.1, 0.2, 0.3]
    for names in (['cat', 'dog'], ['cat', 'dog', 'cat'], list('abcd')):
        with pytest.raises(InputError, match='label names for 3 logits'):
            set_label_names(model, names)
    assert get_thresholds(model) == [0.1, 0.2, 0.3]
    set_label_names(model, ['cat', 'dog', 'cow'])
    assert get_thresholds(model) is None


def test_display_names_numbers_repeated_names():
    """ImageNet has two cranes."""
    model = timm.create_model('test_resnet', num_classes=3)
    model.pretrained_cfg['label_names'] = ['crane', 'dog', 'crane']
    assert display_names(model) == ['crane (0)', 'dog', 'crane (2)']


def test_relabel_leaves_other_models_and_the_registry_unchanged():
    registered = timm.get_pretrained_cfg('msff_test_resnet.scenes')
    one, other = (timm.create_model('msff_test_resnet', pretrained=True) for _ in range(2))
    other.pretrained_cfg = one.pretrained_cfg  # even if a caller shares it
    relabel(one, ['star', 'moon'])
    one.pretrained_cfg['label_names'].append('x')
    assert display_names(other) == list(registered.label_names) and len(registered.label_names) == 12


NAMES = list('abcdefghijkl')


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        ({'pretrained': True}, 'tag'),
        ({'pretrained': True, 'num_classes': 12}, 'tag'),
        ({'pretrained': True, 'num_classes': 5}, None),
        ({'num_classes': 12}, None),
        ({'pretrained': True, 'pretrained_cfg_overlay': {'label_names': NAMES}}, NAMES),
        ({'pretrained_cfg_overlay': {'label_names': NAMES}}, NAMES),
        ({'pretrained': True, 'num_classes': 2, 'pretrained_cfg_overlay': {'label_names': ['x', 'y']}}, ['x', 'y']),
        ({'pretrained_cfg_overlay': {'label_names': ['x', 'y'], 'num_classes': 2}}, ['x', 'y']),
    ],
)
def test_get_label_names_of_a_new_model(args, expected):
    if expected == 'tag':
        expected = list(timm.get_pretrained_cfg('msff_test_resnet.scenes').label_names)
    assert get_label_names(timm.create_model('msff_test_resnet', **args)) == expected


def test_create_model_keeps_the_configuration_of_the_caller():
    asked = {'mean': (0.1, 0.2, 0.3), 'std': (1.0, 1.0, 1.0), 'tag': 'mine', 'crop_pct': 0.5}
    model = timm.create_model('msff_test_resnet', pretrained_cfg_overlay=asked)
    assert {key: model.pretrained_cfg[key] for key in asked} == asked
    for names in (['x'], NAMES[:11] + ['a']):
        with pytest.raises(InputError, match='label names for 12 logits'):
            timm.create_model('msff_test_resnet', pretrained_cfg_overlay={'label_names': names})
