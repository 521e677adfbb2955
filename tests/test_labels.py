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
    describe_matches,
    match_labels,
    names_of,
    relabel,
    set_names,
    stored_names,
    thresholds_of,
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
    """A model with random weights that knows its labels, and an image whose logits tell them apart."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', num_classes=len(label_names), **args).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.pretrained_cfg['label_names'] = list(label_names)
    return model


def test_every_label_of_voc_has_its_counterpart_in_coco(coco_root):
    coco = msff_timm.data.label_names(msff_timm.data.load('coco2014', 'train', coco_root))
    assert match_labels(coco, VOC) == {name: COCO_FOR_VOC.get(name, name) for name in VOC}
    assert match_labels(VOC, coco) == {COCO_FOR_VOC.get(name, name): name for name in VOC}


def test_a_name_itself_goes_before_a_synonym_and_no_label_serves_twice():
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
def test_match_labels_ignores_case_spelling_and_separators_between_letters(one, other):
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
def test_match_labels_keeps_signs_apart(names):
    for one in names:
        others = [name for name in names if name != one]
        assert match_labels(others, [one]) == {}
        assert match_labels([one], others) == {}


SPELT = st.text(alphabet='aAbBßẞéÉe\u0301σΣςकि\u093f\u0940ปี1²+-_ #<>😀', max_size=5)


@settings(max_examples=400, deadline=None)
@given(SPELT, SPELT)
@example('a- b', 'A_B')
def test_match_labels_ignores_nothing_but_case_and_separators(one, other):
    def without(name):
        name = unicodedata.normalize('NFD', name.translate(dict.fromkeys(map(ord, ' _-'))))
        return unicodedata.normalize('NFD', name.casefold())

    if match_labels([one], [other]):
        assert without(one) == without(other)
        # What is no letter has the same neighbours on both sides.
        assert [c for c in one if c in '1²+#<>😀'] == [c for c in other if c in '1²+#<>😀']


@pytest.mark.parametrize(
    ('known', 'wanted', 'expected'),
    [
        (['tv', 'TV'], ['Tv'], {}),
        (['tv', 'TV'], ['tv', 'Tv'], {'tv': 'tv'}),  # and not the one that is left
        (['Cat'], ['cat', 'CAT'], {}),
        (['couch', 'sofa'], ['Sofa'], {'Sofa': 'sofa'}),
        (['couch', 'Sofa'], ['sofa', 'Couch'], {'sofa': 'Sofa', 'Couch': 'couch'}),
        (['sofa', 'Sofa'], ['couch'], {}),
        (['couch'], ['sofa', 'Sofa'], {}),
        (['sofa', 'couch', 'x'], ['SO FA', 'couch'], {'SO FA': 'sofa', 'couch': 'couch'}),
        (['airplane', 'tv'], ['TV-Monitor', 'Aeroplane'], {'TV-Monitor': 'tv', 'Aeroplane': 'airplane'}),
    ],
)
def test_match_labels_matches_nothing_that_is_ambiguous(known, wanted, expected):
    assert match_labels(known, wanted) == expected


def test_describe_matches_lists_those_by_other_names():
    matched = match_labels(['airplane', 'cat'], ['cat', 'aeroplane'])
    assert describe_matches(matched) == ["'aeroplane' is taken for 'airplane'."]


@pytest.mark.parametrize('args', [{}, {'share_branches': False}, {'decoder_depth': 0}], ids=str)
def test_shared_labels_keep_their_logits_and_the_rest_is_new(args):
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


def test_a_relabelled_model_is_saved_and_loaded_with_its_labels(tmp_path):
    model = named(['cat', 'dog'])
    relabel(model, ['dog', 'cow', 'cat'])
    hub.save(model, tmp_path, ['dog', 'cow', 'cat'], timm.data.resolve_model_data_config(model))
    again = hub.load(f'local-dir:{tmp_path}')
    x = torch.randn(1, 3, 64, 64)
    assert again.pretrained_cfg['label_names'] == ['dog', 'cow', 'cat'] and torch.equal(again(x), model(x))


def test_what_cannot_be_carried_over_is_refused():
    with pytest.raises(InputError, match='label names repeat'):
        relabel(named(['cat', 'dog']), ['cat', 'cat'])
    nameless = timm.create_model('msff_test_resnet', num_classes=2)
    with pytest.raises(InputError, match='label_names are missing'):
        relabel(nameless, ['cat', 'dog'])


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, model.pretrained_cfg, names_of(model)


@pytest.mark.parametrize(
    ('name', 'args', 'known', 'wanted'),
    [
        ('mldecoder_test_resnet', {}, 100, 101),
        ('mldecoder_test_resnet', {}, 101, 100),
        ('mldecoder_test_resnet', {'max_queries': 3}, 3, 4),
        ('msff_test_resnet', {'max_queries': 3}, 3, 4),
        ('msff_test_resnet', {'max_queries': 3}, 4, 3),
    ],
)
def test_relabel_leaves_a_model_as_it_was_where_labels_share_queries(name, args, known, wanted):
    model = timm.create_model(name, num_classes=known, **args)
    set_names(model, [f'label {k}' for k in range(known)])
    state, cfg, names = state_of(model)
    modules = dict(model.named_modules())
    with pytest.raises(InputError, match=r'cannot be told apart|could not be told apart'):
        relabel(model, [f'label {k}' for k in range(wanted)])
    assert model.num_classes == known and names_of(model) == names and model.pretrained_cfg == cfg
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    # The same labels need nothing to be moved.
    assert relabel(model, names) == dict(zip(names, names, strict=True)) and dict(model.named_modules()) == modules


def test_relabel_goes_up_to_as_many_labels_as_there_are_queries():
    for name, args in (('mldecoder_test_resnet', {}), ('msff_test_resnet', {'decoder_depth': 0, 'max_queries': 3})):
        model = timm.create_model(name, num_classes=2, **args).eval()
        set_names(model, ['cat', 'dog'])
        x = torch.randn(1, 3, 64, 64)
        before = model(x)
        assert relabel(model, [*map(str, range(98)), 'dog', 'cat']) == {'dog': 'dog', 'cat': 'cat'}
        torch.testing.assert_close(model(x)[:, [99, 98]], before)


@pytest.mark.parametrize('name', ['msff_test_resnet', 'mldecoder_test_resnet', 'q2l_test_resnet'])
@pytest.mark.parametrize('num_classes', [0, 2, 3])
def test_names_and_thresholds_go_with_the_classifier(name, num_classes):
    model = timm.create_model(name, num_classes=3)
    set_names(model, ['cat', 'dog', 'cow'])
    model.thresholds = [0.1, 0.2, 0.3]
    model.reset_classifier(num_classes)  # as timm does it
    assert stored_names(model) is None and names_of(model) == ['0', '1', '2'][:num_classes]
    assert thresholds_of(model) is None and model.default_cfg is model.pretrained_cfg


def test_names_of_a_plain_timm_model_are_as_many_as_its_logits():
    model = timm.create_model('test_resnet', num_classes=3)
    assert names_of(model) == ['0', '1', '2']
    set_names(model, ['cat', 'dog', 'cow'])
    model.thresholds = [0.1, 0.2, 0.3]
    assert names_of(torch.nn.DataParallel(model)) == ['cat', 'dog', 'cow'] == names_of(model)
    model.reset_classifier(2)
    assert names_of(model) == ['0', '1'] and thresholds_of(model) is None


def test_set_names_checks_them_and_drops_the_thresholds_of_others():
    model = timm.create_model('msff_test_resnet', num_classes=3)
    model.thresholds = [0.1, 0.2, 0.3]
    for names in (['cat', 'dog'], ['cat', 'dog', 'cat'], list('abcd')):
        with pytest.raises(InputError, match='label names for 3 logits'):
            set_names(model, names)
    assert thresholds_of(model) == [0.1, 0.2, 0.3]
    set_names(model, ['cat', 'dog', 'cow'])
    assert thresholds_of(model) is None


def test_names_that_repeat_get_the_numbers_of_their_logits():
    """ImageNet has two cranes."""
    model = timm.create_model('test_resnet', num_classes=3)
    model.pretrained_cfg['label_names'] = ['crane', 'dog', 'crane']
    assert names_of(model) == ['crane (0)', 'dog', 'crane (2)']


def test_names_are_no_other_models_and_not_the_registrys():
    registered = timm.get_pretrained_cfg('msff_test_resnet.scenes')
    one, other = (timm.create_model('msff_test_resnet', pretrained=True) for _ in range(2))
    other.pretrained_cfg = one.pretrained_cfg  # even where a caller shares it
    relabel(one, ['star', 'moon'])
    one.pretrained_cfg['label_names'].append('x')
    assert names_of(other) == list(registered.label_names) and len(registered.label_names) == 12


NAMES = list('abcdefghijkl')


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        ({'pretrained': True}, 'those of the tag'),
        ({'pretrained': True, 'num_classes': 12}, 'those of the tag'),
        ({'pretrained': True, 'num_classes': 5}, None),
        ({'num_classes': 12}, None),
        ({'pretrained': True, 'pretrained_cfg_overlay': {'label_names': NAMES}}, NAMES),
        ({'pretrained_cfg_overlay': {'label_names': NAMES}}, NAMES),
        ({'pretrained': True, 'num_classes': 2, 'pretrained_cfg_overlay': {'label_names': ['x', 'y']}}, ['x', 'y']),
        ({'pretrained_cfg_overlay': {'label_names': ['x', 'y'], 'num_classes': 2}}, ['x', 'y']),
    ],
)
def test_names_of_a_new_model_are_those_that_the_caller_gives_or_that_fit(args, expected):
    if expected == 'those of the tag':
        expected = list(timm.get_pretrained_cfg('msff_test_resnet.scenes').label_names)
    assert stored_names(timm.create_model('msff_test_resnet', **args)) == expected


def test_what_a_caller_sets_in_the_configuration_stays():
    asked = {'mean': (0.1, 0.2, 0.3), 'std': (1.0, 1.0, 1.0), 'tag': 'mine', 'crop_pct': 0.5}
    model = timm.create_model('msff_test_resnet', pretrained_cfg_overlay=asked)
    assert {key: model.pretrained_cfg[key] for key in asked} == asked
    for names in (['x'], NAMES[:11] + ['a']):
        with pytest.raises(InputError, match='label names for 12 logits'):
            timm.create_model('msff_test_resnet', pretrained_cfg_overlay={'label_names': names})
