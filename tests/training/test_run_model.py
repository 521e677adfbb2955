"""Tests of what a run says about its model."""

import pytest
import timm
import torch

from msff_timm import hub
from msff_timm.training.config import ModelConfig
from msff_timm.training.run_model import describe_queries, make_model


def test_describe_queries_says_how_to_share_embeddings_that_dominate():
    model = timm.create_model('msff_test_resnet', num_classes=200, max_queries=0)
    line = describe_queries(model, 64)
    assert line.startswith('200 label embeddings take ') and '{max_queries: 100}' in line


@pytest.mark.parametrize(
    ('name', 'args'),
    [
        ('msff_test_resnet', dict(num_classes=200)),  # 100 embeddings
        ('msff_test_resnet', dict(num_classes=200, decoder_depth=0)),
        ('msff_test_resnet', dict(num_classes=200, max_queries=0, backbone='resnet101')),  # takes most itself
        ('mldecoder_test_resnet', dict(num_classes=200)),
        ('q2l_test_resnet', dict(num_classes=200)),
        ('test_resnet', dict(num_classes=200)),
    ],
)
def test_describe_queries_is_silent_otherwise(name, args):
    assert describe_queries(timm.create_model(name, **args), 64) is None


def test_make_model_lets_two_classifiers_train_separately(tmp_path):
    config = ModelConfig(name='msff_test_resnet', args={'pooled_classifier': True}, backbone_pretrained=False)
    model, _ = make_model(config, ['a', 'b'], resumed=False)
    hub.save(model, tmp_path, ['a', 'b'], timm.data.resolve_model_data_config(model))
    config.init_from = f'local-dir:{tmp_path}'
    tuned, _ = make_model(config, ['a', 'b'], resumed=False)
    for made in (model, tuned):
        assert [logits.shape for logits in made.train()(torch.zeros(2, 3, 64, 64))] == [(2, 2), (2, 2)]
