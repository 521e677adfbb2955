import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import msff_timm  # noqa: F401  registers the models
from msff_timm.flops import count_flops, measure_share, measure_size


def test_count_flops_counts_forward_and_backward():
    linear = torch.nn.Linear(3, 5, device='meta')
    x = torch.empty(2, 3, device='meta')
    assert count_flops(lambda: linear(x)) == 2 * 2 * 3 * 5
    assert count_flops(lambda: linear(x).sum().backward()) == 2 * 2 * 2 * 3 * 5  # no gradient of x


@pytest.mark.parametrize('name', ['msff_test_resnet', 'q2l_test_resnet', 'mldecoder_test_resnet', 'test_resnet'])
def test_measure_size_equals_that_of_a_model_that_computes(name):
    with torch.device('meta'):
        found = measure_size(timm.create_model(name, num_classes=12), (3, 64, 64))
    model = timm.create_model(name, num_classes=12).eval()
    # The counter has no formula for the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 64, 64))
    assert found['gflops'] == counter.get_total_flops() / 1e9 > 0
    assert found['num_parameters'] == sum(p.numel() for p in model.parameters())


def test_measure_share_counts_what_the_other_parts_leave():
    model = timm.create_model('msff_test_resnet', num_classes=200, max_queries=0)
    with torch.device('meta'):
        total = measure_size(timm.create_model('msff_test_resnet', num_classes=200, max_queries=0), (3, 64, 64))
        pooled = measure_size(timm.create_model('msff_test_resnet', num_classes=200, decoder_depth=0), (3, 64, 64))
    linear = 2 * 200 * 3 * 96 / 1e9  # the classifier of the model without a decoder; that of the other is no product
    share = 1 - (pooled['gflops'] - linear) / total['gflops']
    assert measure_share(model, ('selection',), 64) == pytest.approx(share) and 0.5 < share < 0.9
    assert model.label_embed.weight.device.type == 'cpu'
