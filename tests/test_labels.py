import pytest
import timm
import torch

import msff_timm.data
from msff_timm import hub
from msff_timm.errors import InputError
from msff_timm.labels import match_labels, relabel

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
    """A model with random weights that knows its labels, and a picture whose logits tell them apart."""
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
