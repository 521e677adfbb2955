import math
from fnmatch import fnmatch

import pytest
import timm
import torch
from timm.models import group_parameters

from msff_timm.models.backbone import (
    check_size,
    copy_backbone,
    create_backbone,
    first_conv_of_backbone,
    group_backbone,
    no_weight_decay_of_backbone,
)

# timm creates feature maps in several ways: from unchanged modules, from flattened ones, by a class for EfficientNets,
# and from models that compute in NHWC at one image size.
BACKBONES = ['test_resnet', 'convnext_atto', 'test_efficientnet', 'swin_tiny_patch4_window7_224']


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('size', [(64, 96), (100, 132)])
def test_create_backbone_gives_the_maps_of_the_whole_model(name, size):
    torch.manual_seed(0)
    backbone = create_backbone(name, (16, 32), in_chans=2).eval()
    args = {'dynamic_img_size': True} if 'swin' in name else {}
    whole = timm.create_model(name, in_chans=2, **args).eval()
    names = {theirs: ours for ours, theirs in _pairs(backbone, whole)}
    state = backbone.state_dict()
    whole.load_state_dict({theirs: state[ours] for theirs, ours in names.items()}, strict=False)
    x = torch.randn(1, 2, *size)
    expected = {tuple(m.shape): m for m in whole.forward_intermediates(x, output_fmt='NCHW', intermediates_only=True)}
    maps = backbone(x)
    for channels, reduction, got in zip(backbone.feature_info.channels(), (16, 32), maps, strict=True):
        assert got.shape[1] == channels
        assert all(abs(got.shape[2 + i] - size[i] / reduction) < 1 for i in range(2))
        torch.testing.assert_close(got, expected[tuple(got.shape)])


@pytest.mark.parametrize('name', BACKBONES)
def test_copy_backbone_copies_weights_and_buffers(name):
    args = {'dynamic_img_size': True} if 'swin' in name else {}
    trained = timm.create_model(name, num_classes=3, **args).eval()
    for tensor in [*trained.parameters(), *trained.buffers()]:
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.1, 0.2)
    backbone, x = create_backbone(name, (16, 32)).eval(), torch.randn(1, 3, 64, 96)
    copy_backbone(trained, backbone)
    expected = trained.forward_intermediates(x, output_fmt='NCHW', intermediates_only=True)
    expected = {tuple(m.shape): m for m in expected}  # the last of each size
    for m in backbone(x):
        torch.testing.assert_close(m, expected[tuple(m.shape)])

    other = timm.create_model(name, num_classes=3, **args)
    head = {key: tensor.clone() for key, tensor in other.get_classifier().state_dict().items()}
    classifier = other.pretrained_cfg['classifier']
    copy_backbone(trained, other, (classifier,))
    for key, tensor in other.state_dict().items():
        module, _, leaf = key.rpartition('.')
        assert torch.equal(tensor, head[leaf] if module == classifier else trained.state_dict()[key]), key


def test_copy_backbone_rejects_another_model():
    with pytest.raises(ValueError, match='it has no conv1.weight of 64 x 3 x 7 x 7'):
        copy_backbone(timm.create_model('test_resnet'), create_backbone('resnet18'))


def _pairs(backbone, whole):
    """Pairs parameters and buffers by order and shape, since both forms consist of the same modules."""
    theirs = [(name, tensor.shape) for name, tensor in whole.state_dict().items()]
    at = 0
    for name, tensor in backbone.state_dict().items():
        while theirs[at][1] != tensor.shape:
            at += 1
        yield name, theirs[at][0]
        at += 1


@pytest.mark.parametrize('name', BACKBONES)
def test_groups_weight_decay_and_first_convolution_are_timms(name):
    backbone, whole = create_backbone(name, device='meta'), timm.create_model(name, device='meta')
    for coarse in (False, True):
        expected = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
        got = group_backbone(backbone, name, coarse)
        assert set(got) == {name for name, _ in backbone.named_parameters()}
        assert [expected[theirs] for _, theirs in _pairs_of_parameters(backbone, whole)] == list(got.values())
    free = no_weight_decay_of_backbone(backbone, name)
    assert len(free) == (12 if 'swin' in name else 0)
    assert all('relative_position_bias_table' in parameter for parameter in free)
    (conv,) = first_conv_of_backbone(backbone)
    assert (
        backbone.get_submodule(conv).weight.shape[1] == 3
        and group_backbone(backbone, name, False)[f'{conv}.weight'] == 0
    )


@pytest.mark.parametrize(
    ('name', 'args'),
    [
        ('convnext_atto', {'depths': (1, 1, 3, 1), 'dims': (16, 24, 32, 48)}),
        ('convnext_atto', {'depths': (3, 3, 9, 3)}),  # more layers than the name has
        ('resnet18', {'layers': (1, 1, 1, 1)}),
        ('resnet18', {'layers': (3, 4, 6, 3), 'feature_cls': 'getter'}),
        ('swinv2_cr_tiny_224', {'depths': (1, 1, 2, 1), 'embed_dim': 24, 'num_heads': (1, 2, 2, 4)}),
        ('swin_tiny_patch4_window7_224', {'depths': (1, 1, 2, 1), 'img_size': 64, 'window_size': 2}),
    ],
    ids=str,
)
def test_groups_and_weight_decay_follow_the_backbones_arguments(name, args):
    backbone = create_backbone(name, backbone_args=args, device='meta')
    whole = timm.create_model(name, **{k: v for k, v in args.items() if k != 'feature_cls'}, device='meta')
    pairs = _pairs_of_parameters(backbone, whole)
    for coarse in (False, True):
        expected = group_parameters(whole, whole.group_matcher(coarse=coarse), reverse=True)
        assert group_backbone(backbone, name, coarse, args) == {ours: expected[theirs] for ours, theirs in pairs}
    patterns = whole.no_weight_decay() if hasattr(whole, 'no_weight_decay') else ()
    expected = {ours for ours, theirs in pairs if any(fnmatch(theirs, pattern) for pattern in patterns)}
    assert no_weight_decay_of_backbone(backbone, name, args) == expected
    assert bool(expected) == ('swin_' in name)


@pytest.mark.parametrize('architecture', ['msff_test_resnet', 'mldecoder_test_resnet'])
def test_group_matcher_follows_the_backbones_arguments(architecture):
    for name, args, layers in (
        ('convnext_atto', {'depths': (3, 3, 9, 3)}, 1 + 3 + 3 + 9 + 3),
        ('swin_tiny_patch4_window7_224', {'depths': (1, 1, 3, 1), 'img_size': 64, 'window_size': 2}, None),
    ):
        model = timm.create_model(architecture, backbone=name, backbone_args=args, device='meta')
        groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        assert groups.keys() == dict(model.named_parameters()).keys()
        of_backbone = {layer for name, layer in groups.items() if name.startswith('backbone.')}
        assert min(of_backbone) == 0 and max(of_backbone) < groups['classifier.bias']
        assert layers is None or len(of_backbone) == layers
        free = {name for name in model.no_weight_decay() if name.startswith('backbone.')}
        assert len(free) == (sum(args['depths']) if 'swin' in name else 0)


def _pairs_of_parameters(backbone, whole):
    parameters = {name for name, _ in backbone.named_parameters()}
    return [(ours, theirs) for ours, theirs in _pairs(backbone, whole) if ours in parameters]


@pytest.mark.parametrize(
    ('name', 'reductions', 'message'),
    [
        ('resnet1O1', (16, 32), "backbone 'resnet1O1' is no timm model: did you mean resnet101?"),
        ('vit_tiny_patch16_224', (16, 32), "'vit_tiny_patch16_224' has no stage of reduction 32, only of [16, 16"),
        ('convnext_atto', (2, 16), "'convnext_atto' has no stage of reduction 2, only of [4, 8, 16, 32]."),
        ('test_byobnet', (16, 32, 64), "'test_byobnet' has no stage of reduction 64, only of ["),
    ],
)
def test_create_backbone_rejects_models_without_the_maps(name, reductions, message):
    with pytest.raises(ValueError) as caught:
        create_backbone(name, reductions)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_create_backbone_rejects_unknown_arguments():
    with pytest.raises(ValueError, match=r"backbone 'test_resnet' has no feature maps \(.*no_such_argument"):
        create_backbone('test_resnet', backbone_args={'no_such_argument': 1})


def test_create_backbone_passes_arguments_on():
    rates = [
        m.drop_prob
        for m in create_backbone('resnet18', backbone_args={'drop_path_rate': 0.3}).modules()
        if hasattr(m, 'drop_prob')
    ]
    assert math.isclose(max(rates), 0.3)


@pytest.mark.parametrize('size', [(31, 64), (64, 31)])
def test_check_size_rejects_small_images(size):
    with pytest.raises(ValueError, match=f'images of {size[0]} x {size[1]} pixels are too small: use at least 32 x 32'):
        check_size(torch.zeros(1, 3, *size))
    check_size(torch.zeros(1, 3, 32, 32))
