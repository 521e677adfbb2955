"""Tests of what a run says about its model."""

import pytest
import timm

import msff_timm  # noqa: F401  registers the models
from msff_timm.training.run_model import describe_queries


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
