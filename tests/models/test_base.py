"""The contract that all models share."""

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn as nn
from safetensors.torch import save_file
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from msff_timm.hub import list_models

NAMES = ['msff_test_resnet', 'q2l_test_resnet', 'mldecoder_test_resnet']
SMALL = dict(num_classes=6, embed_dim=48, ffn_dim=64)
LABEL_TENSORS = {
    'msff_test_resnet': {'label_embed.weight', 'classifier.weight', 'classifier.bias'},
    'q2l_test_resnet': {'query_embed.weight', 'classifier.weight', 'classifier.bias'},
    'mldecoder_test_resnet': {'query_embed.weight', 'classifier.weight', 'classifier.bias'},
}


def small(name: str, **args) -> nn.Module:
    """Creates a small model whose residual branches differ from 0, unlike those of a new MSFF model."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **args}).eval()
    if name.startswith('msff'):
        for part in (model.enhancement, model.selection, model.label_embed):
            for parameter in part.parameters() if part is not None else ():
                nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize('name', list_models())
def test_cfg_has_the_preprocessing_and_first_convolution_of_the_backbone(name):
    model = timm.create_model(name, device='meta')
    cfg, backbone_cfg = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(model.backbone_name)
    assert (cfg.mean, cfg.std) == (backbone_cfg.mean, backbone_cfg.std)
    assert model.pretrained_cfg['first_conv'] == (cfg.first_conv,)
    assert model.get_submodule(cfg.first_conv).in_channels == 3


@pytest.mark.parametrize('name', NAMES)
def test_forward_rejects_small_images(name):
    model = small(name)
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match='images of 31 x 64 pixels are too small: use at least 32 x 32'):
            call(torch.zeros(1, 3, 31, 64))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(32, 32), (64, 64), (100, 132), (128, 96), (33, 47)])
def test_forward_takes_any_size_channels_and_classes(name, size):
    model = timm.create_model(name, num_classes=7, in_chans=5).eval()
    assert model(torch.randn(2, 5, *size)).shape == (2, 7)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'backbone', ['test_efficientnet', 'convnext_atto', 'swin_tiny_patch4_window7_224', 'pvt_v2_b0']
)
def test_backbone_may_be_another_timm_model(name, backbone):
    model = small(name, backbone=backbone, in_chans=4)
    for size in ((64, 64), (100, 132)):
        x = torch.randn(1, 4, *size)
        assert model(x).shape == (1, 6)
        torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    backbone_cfg, data_config = timm.get_pretrained_cfg(backbone), timm.data.resolve_model_data_config(model)
    assert (data_config['mean'], data_config['std']) == (backbone_cfg.mean, backbone_cfg.std)
    assert [model.get_submodule(conv).in_channels for conv in model.pretrained_cfg['first_conv']] == [4]


@pytest.mark.parametrize('name', NAMES)
def test_forward_maps_takes_the_maps_in_head_maps(name):
    model, x = small(name), torch.randn(2, 3, 64, 96)
    maps = model.backbone(x)[model.head_maps]
    assert len(maps) == (2 if name.startswith('msff') else 1)
    assert torch.equal(model.forward_maps(maps), model(x))


@pytest.mark.parametrize('name', NAMES)
def test_backward_reaches_every_parameter(name):
    model = small(name, num_classes=42).train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # In timm's new ResNets the last norm of each block is 0, and so are the gradients before it.
    head = {name: p for name, p in model.named_parameters() if not name.startswith('backbone.layer')}
    assert [name for name, p in head.items() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize('name', NAMES)
def test_drop_rate_reaches_the_transformer(name):
    x = torch.randn(2, 3, 64, 64)
    for drop_rate, same in ((0.0, True), (0.5, False)):
        model = small(name, drop_rate=drop_rate).train()
        model.backbone.eval()
        assert torch.equal(model(x), model(x)) == same


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('num_classes', [0, 6])
def test_script_gives_the_same_logits(name, num_classes):
    model, x = small(name, num_classes=num_classes), torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('name', NAMES)
def test_fx_graph_gives_the_same_logits(name):
    """timm's functions and modules that torch.fx cannot trace stay whole."""
    model, x = small(name), torch.randn(2, 3, 64, 96)
    tracer_args = {'leaf_modules': [*get_notrace_modules()], 'autowrap_functions': [*get_notrace_functions()]}
    _, nodes = get_graph_node_names(model, tracer_kwargs=tracer_args)
    graph = create_feature_extractor(model, [nodes[-1]], tracer_kwargs=tracer_args).eval()
    torch.testing.assert_close(graph(x)[nodes[-1]], model(x))


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_compile_makes_one_graph(name):
    model, x = small(name), torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='aot_eager')(x), model(x))


@pytest.mark.parametrize('name', NAMES)
def test_forward_in_half_precision(name):
    model = small(name).bfloat16()
    assert model(torch.randn(2, 3, 64, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize('name', NAMES)
def test_reset_classifier_keeps_frozen_parameters_frozen(name):
    model = small(name).requires_grad_(False)
    model.reset_classifier(0)
    assert not any(p.requires_grad for p in model.parameters())
    model.reset_classifier(4)
    fixed = {'query_embed.weight'} if name.startswith('mldecoder') else set()  # a buffer
    assert {n for n, p in model.named_parameters() if p.requires_grad} == LABEL_TENSORS[name] - fixed


@pytest.mark.parametrize(
    ('name', 'reductions'),
    [
        ('msff_test_resnet', [16, 16, 32, 32, 64]),
        ('q2l_test_resnet', [16, 32, 32]),
        ('mldecoder_test_resnet', [8, 16, 32]),
    ],
)
def test_features_only_removes_what_the_maps_do_not_need(name, reductions):
    model = timm.create_model(name, features_only=True)
    assert model.feature_info.reduction() == reductions
    sum(m.sum() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_convnext', 'test_efficientnet'])
@pytest.mark.parametrize(
    ('name', 'out_indices', 'maps_of_backbone'),
    [
        # Indices are those of `feature_info`, which holds the maps of MSFF's branches, too.
        ('msff_test_resnet', [0], [0]),
        ('msff_test_resnet', [2], [1]),
        ('msff_test_resnet', [0, 2], [0, 1]),
        *((name, indices, indices) for name in NAMES[1:] for indices in ([0], [1], [2], [0, 1])),
    ],
)
def test_features_only_of_the_backbone_removes_the_head(name, out_indices, maps_of_backbone, backbone):
    args = dict(backbone=backbone, pretrained_cfg_overlay={'num_classes': 3})
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, out_indices=out_indices, **args)
    torch.manual_seed(0)
    whole = timm.create_model(name, **args).train()
    model.model.set_grad_checkpointing(True), model.model.set_grad_checkpointing(False)
    x = torch.randn(2, 3, 64, 64)
    maps = model(x)
    sum(m.sum() for m in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert {name.partition('.')[0] for name, _ in model.model.named_parameters()} == {'backbone'}
    for ours, theirs in zip(maps, [whole.backbone(x)[i] for i in maps_of_backbone], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('name', NAMES)
def test_init_weights_fills_a_model_from_the_meta_device(name):
    model = timm.create_model(name, device='meta', dtype=torch.float64, **SMALL)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {('meta', torch.float64)}
    model = model.to_empty(device='cpu').eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else -1)
    model.init_weights()
    expected = timm.create_model(name, dtype=torch.float64, **SMALL).state_dict()
    for key, tensor in model.state_dict().items():
        # Tensors that are initially 0 are so again, and random ones have the same spread.
        assert tensor.isfinite().all() and torch.equal(tensor == 0, expected[key] == 0), key
        if tensor.numel() > 500:
            assert tensor.std() == pytest.approx(expected[key].std().item(), rel=0.2), key
    assert model(torch.randn(1, 3, 64, 64, dtype=torch.float64)).shape == (1, 6)


@pytest.mark.parametrize(
    ('name', 'args'),
    [*((name, {}) for name in NAMES), ('msff_test_resnet', dict(backbone='swin_tiny_patch4_window7_224'))],
    ids=str,
)
def test_grad_checkpointing_keeps_the_gradients(name, args):
    x, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = small(name, **args).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)  # for dropout
        model(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@pytest.mark.parametrize('name', NAMES)
def test_backbone_pretrained_downloads_weights_unless_pretrained_loads_all(name, monkeypatch, tmp_path):
    weights = timm.create_model('test_resnet').state_dict()
    downloads = []

    def from_hub(name, **_):
        downloads.append(name)
        return dict(weights)

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', from_hub)
    model = timm.create_model(name, backbone_pretrained=True)
    assert downloads == ['timm/test_resnet.r160_in1k']
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in state) and len(state) > 50

    fused = {'file': str(tmp_path / 'fused.safetensors')}
    save_file(model.state_dict(), fused['file'])
    downloads.clear()
    again = timm.create_model(name, pretrained=True, backbone_pretrained=True, pretrained_cfg_overlay=fused)
    assert downloads == []
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ('name', 'args', 'old', 'new'),
    [
        *((name, {}, *classes) for name in NAMES for classes in ((80, 20), (250, 120))),
        ('msff_test_resnet', dict(backbone='convnext_atto'), 80, 20),
    ],
    ids=str,
)
def test_pretrained_weights_fit_other_classes_and_channels(name, args, old, new, tmp_path):
    model = timm.create_model(name, num_classes=old, **args)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    args = {**args, 'pretrained': True}
    args['pretrained_cfg_overlay'] = {'file': str(tmp_path / 'model.safetensors'), 'num_classes': old}
    if 'backbone' in args:
        args['pretrained_cfg_overlay']['first_conv'] = model.pretrained_cfg['first_conv']
    tuned = timm.create_model(name, num_classes=new, in_chans=1, **args)
    assert tuned.eval()(torch.randn(2, 1, 64, 64)).shape == (2, new)
    state, tuned_state = model.state_dict(), tuned.state_dict()
    differing = {key for key in state if not torch.equal(state[key], tuned_state[key])}
    (first_conv,) = model.pretrained_cfg['first_conv']
    conv = f'{first_conv}.weight'
    pooled = {key for key in state if key.startswith('pooled_classifier.')}  # where labels share embeddings
    assert differing == {*LABEL_TENSORS[name], *pooled, conv}
    # timm's rule for one channel: the sum of the three.
    torch.testing.assert_close(tuned_state[conv], state[conv].sum(1, keepdim=True))
    features = timm.create_model(name, features_only=True, **args).state_dict()
    assert all(torch.equal(tensor, state[key.removeprefix('model.')]) for key, tensor in features.items())


def test_import_needs_neither_network_nor_training_extra():
    code = """
import socket, sys
for name in ('accelerate', 'datasets', 'jsonargparse', 'matplotlib'):
    sys.modules[name] = None
def refuse(*_, **__): raise AssertionError('network')
socket.socket.connect = socket.getaddrinfo = refuse
import timm, msff_timm, msff_timm_cli.commands
print(*timm.list_models('msff_*'), *timm.list_models('q2l_*'), *timm.list_models('mldecoder_*'))
timm.create_model('msff_test_resnet')
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert sorted(result.stdout.split()) == sorted(list_models())
