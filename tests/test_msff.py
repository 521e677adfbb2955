import subprocess
import sys

import pytest
import timm
import torch

import msff_timm  # noqa: F401  registers the models

# Blueprint and paper, section 4.3: 69.5 M at 80 classes; Table of shapes for one image at 448.
PARAMETERS = {
    'msff_resnet101': 69_537_936,
    'msff_resnet50': 50_545_808,
    'msff_resnet34': 40_064_912,
    'msff_resnet18': 29_956_752,
    'msff_test_resnet': 1_092_384,
}


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def randomise_head(model: torch.nn.Module) -> torch.nn.Module:
    """Gives the Transformer's parameters values that matter: the residual branches of a new model are 0."""
    for part in (model.enhancement, model.selection, model.label_embed):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def parts(channels: tuple[int, int], d: int, ffn: int, labels: int) -> int:
    """Counts the head's parameters from the paper: Eq. 1, position table, 2 + 3 layers, embeddings, classifier."""
    projection = channels[0] * d + d + channels[1] * d + d + 9 * channels[1] * d + d
    layer = 4 * (d * d + d) + (d * ffn + ffn) + (ffn * d + d) + 4 * d
    return projection + 14 * 14 * d + 5 * layer + labels * d + labels * (3 * d + 1)


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_counts(name):
    model = timm.create_model(name, device='meta')
    assert count(model) == PARAMETERS[name]
    backbone = timm.create_model(name.removeprefix('msff_'), features_only=True, out_indices=(3, 4), device='meta')
    d, ffn = (96, 384) if name == 'msff_test_resnet' else (512, 2048)
    assert count(model) == count(backbone) + parts(backbone.feature_info.channels(), d, ffn, 80)


def test_the_papers_model_has_69_5_million_parameters():
    assert 69.50e6 <= PARAMETERS['msff_resnet101'] <= 69.55e6


def test_shapes_at_every_step_at_448():
    """The blueprint's table of shapes, read off the modules while a picture passes."""
    model = timm.create_model('msff_resnet101').eval()
    seen = {}

    def record(name):
        def hook(_, inputs, output):
            seen.setdefault(name, []).append(output)

        return hook

    for name in ('backbone', 'projection', 'scale_attention', 'position', 'enhancement', 'selection'):
        getattr(model, name).register_forward_hook(record(name))
    model.classifier.register_forward_hook(lambda _, inputs, output: seen.update(z=[inputs[0]]))
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, 448, 448))

    def shapes(name):
        outputs = seen[name][0] if isinstance(seen[name][0], list) else seen[name]
        return [tuple(output.shape[1:]) for output in outputs]

    grids = [(512, 28, 28), (512, 14, 14), (512, 7, 7)]
    tokens = [(784, 512), (196, 512), (49, 512)]
    assert shapes('backbone') == [(1024, 28, 28), (2048, 14, 14)]
    assert shapes('projection') == shapes('scale_attention') == grids
    assert shapes('position') == shapes('enhancement') == tokens
    assert shapes('selection') == [(80, 512)] * 3
    assert shapes('z') == [(80, 1536)]
    assert logits.shape == (1, 80)


@pytest.mark.parametrize('size', [(64, 64), (100, 132), (128, 96), (33, 47)])
def test_any_input_size_channels_and_classes(size):
    model = timm.create_model('msff_test_resnet', num_classes=7, in_chans=5).eval()
    assert model(torch.randn(2, 5, *size)).shape == (2, 7)


def test_every_parameter_receives_a_gradient():
    model = randomise_head(timm.create_model('msff_test_resnet', num_classes=42))
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # In timm's new ResNets the last norm of each block is 0, and so are the gradients before it.
    head = {name: p for name, p in model.named_parameters() if not name.startswith('backbone.layer')}
    assert [name for name, p in head.items() if not p.grad.abs().sum() > 0] == []


def test_drop_rate_reaches_the_transformer():
    x = torch.randn(1, 3, 64, 64)
    for drop_rate, same in ((0.0, True), (0.5, False)):
        model = randomise_head(timm.create_model('msff_test_resnet', drop_rate=drop_rate))
        model.backbone.eval()
        assert torch.equal(model(x), model(x)) == same


def test_no_classes_give_the_embedding_that_pre_logits_give():
    model = timm.create_model('msff_test_resnet').eval()
    x = torch.randn(2, 3, 64, 64)
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert before.shape == (2, model.num_features) and torch.equal(model(x), before)
    assert timm.create_model('msff_test_resnet', num_classes=0).eval()(x).shape == before.shape
    model.reset_classifier(11)
    assert model(x).shape == (2, 11)


def test_labels_do_not_influence_each_other():
    """Without self-attention of the labels, another label's embedding changes that label's logit only."""
    model = randomise_head(timm.create_model('msff_test_resnet', num_classes=6)).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    torch.nn.init.normal_(model.label_embed.weight.data[4])
    changed = (model(x) - before).abs().amax(0) > 1e-6
    assert changed.tolist() == [False] * 4 + [True, False]


def test_backbone_pretrained_fetches_the_backbones_weights_and_pretrained_does_not(monkeypatch, tmp_path):
    weights = timm.create_model('test_resnet').state_dict()
    asked = []

    def from_hub(name, **_):
        asked.append(name)
        return dict(weights)

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', from_hub)
    model = timm.create_model('msff_test_resnet', backbone_pretrained=True)
    assert asked == ['timm/test_resnet.r160_in1k']
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in state) and len(state) > 50

    fused = {'file': str(tmp_path / 'fused.pth')}
    torch.save(model.state_dict(), fused['file'])
    asked.clear()
    again = timm.create_model(
        'msff_test_resnet', pretrained=True, backbone_pretrained=True, pretrained_cfg_overlay=fused
    )
    assert asked == [] and torch.equal(again.classifier.weight, model.classifier.weight)


def test_another_class_count_keeps_all_but_the_labels(tmp_path):
    model = timm.create_model('msff_test_resnet', num_classes=80)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    tuned = timm.create_model(
        'msff_test_resnet',
        pretrained=True,
        num_classes=20,
        pretrained_cfg_overlay={'file': str(tmp_path / 'weights.pth')},
    )
    assert tuned.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 20)
    state, tuned_state = model.state_dict(), tuned.state_dict()
    differing = {key for key in state if not torch.equal(state[key], tuned_state[key])}
    assert differing == {'label_embed.weight', 'classifier.weight', 'classifier.bias'}


def test_import_registers_the_models_and_needs_neither_network_nor_training_extra():
    code = """
import socket, sys
for name in ('accelerate', 'datasets', 'jsonargparse', 'matplotlib'):
    sys.modules[name] = None
def refuse(*_, **__): raise AssertionError('network')
socket.socket.connect = socket.getaddrinfo = refuse
import timm, msff_timm, msff_timm.cli
print(*timm.list_models('msff_*'))
timm.create_model('msff_test_resnet')
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == set(PARAMETERS)
