import math

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2

from msff_timm.models.layers import AttentionLayer, GroupLinear
from msff_timm.models.ml_decoder import FixedQueries
from msff_timm.models.query2label import sine_position

NAMES = ['q2l_test_resnet', 'mldecoder_test_resnet']
SMALL = dict(num_classes=6, embed_dim=48, ffn_dim=64)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def randomise(module: nn.Module) -> nn.Module:
    """Gives every parameter a value that matters: biases of a new model are 0 and norms do nothing."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def small(name: str, **args) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **args}).eval()


def small_head(name: str, **args) -> nn.Module:
    """A model in float64 of which all parts but the backbone are random."""
    model = small(name, **args)
    for part, module in model.named_children():
        if part != 'backbone':
            randomise(module)
    return model.double()


def positions(height: int, width: int, d: int) -> np.ndarray:
    """DETR's formula, number by number: row and column scaled to 2 pi; sines at even, cosines at odd channels."""
    table = np.zeros((height * width, d))
    for row in range(height):
        for column in range(width):
            y = (row + 1) / (height + 1e-6) * 2 * math.pi
            x = (column + 1) / (width + 1e-6) * 2 * math.pi
            for half, place in enumerate((y, x)):
                for i in range(d // 2):
                    angle = place / 10000 ** (2 * (i // 2) / (d // 2))
                    wave = math.cos(angle) if i % 2 else math.sin(angle)
                    table[row * width + column, half * (d // 2) + i] = wave
    return table


def attend(attn: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention, written out head by head."""
    d = query.shape[-1]
    packed = zip((query, key, value), attn.in_proj_weight.split(d), attn.in_proj_bias.split(d), strict=True)
    queries, keys, values = ((x @ w.T + b).split(d // attn.num_heads, -1) for x, w, b in packed)
    heads = []
    for q, k, v in zip(queries, keys, values, strict=True):
        shares = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        heads.append(shares @ v)
    return torch.cat(heads, -1) @ attn.out_proj.weight.T + attn.out_proj.bias


def norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def layer_by_hand(layer: AttentionLayer, x, query, key, value) -> torch.Tensor:
    x = norm(layer.norm1, x + attend(layer.attn, query, key, value))
    hidden = F.relu(x @ layer.ffn.fc1.weight.T + layer.ffn.fc1.bias)
    return norm(layer.norm2, x + hidden @ layer.ffn.fc2.weight.T + layer.ffn.fc2.bias)


@pytest.mark.parametrize('grid', [(14, 14), (5, 9), (1, 3)])
def test_positions_are_detrs_formula(grid):
    x = torch.empty(2, 12, *grid)
    np.testing.assert_allclose(sine_position(x).numpy(), positions(*grid, 12), rtol=0, atol=1e-5)
    # In half precision they are rounded once, at the end.
    assert torch.equal(sine_position(x.bfloat16()), sine_position(x).bfloat16())


def test_layer_is_pytorchs_post_norm_encoder_layer():
    ours = randomise(AttentionLayer(12, 3, 20, drop_rate=0.1)).eval()
    torchs = nn.TransformerEncoderLayer(12, 3, 20, activation='relu', norm_first=False, batch_first=True).eval()
    pairs = [(torchs.self_attn, ours.attn), (torchs.linear1, ours.ffn.fc1), (torchs.linear2, ours.ffn.fc2)]
    for theirs, own in [*pairs, (torchs.norm1, ours.norm1), (torchs.norm2, ours.norm2)]:
        theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, x, x, x), torchs(x))


def test_layer_tells_query_key_and_value_apart():
    layer = randomise(AttentionLayer(12, 3, 20)).double()
    x, query = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    key, value = torch.randn(2, 2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x, query, key, value), layer_by_hand(layer, x, query, key, value))


@pytest.mark.parametrize('embed_dim', [96, 48])
@pytest.mark.parametrize('depths', [(1, 2), (0, 1), (2, 3)])
def test_query2label_is_the_paper_written_out(embed_dim, depths):
    model = small_head('q2l_test_resnet', embed_dim=embed_dim, encoder_depth=depths[0], decoder_depth=depths[1])
    x = torch.randn(2, 96, 3, 5, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    if embed_dim != 96:  # the backbone's width
        tokens = tokens @ model.encoder.proj.weight[:, :, 0, 0].T + model.encoder.proj.bias
    position = torch.from_numpy(positions(3, 5, embed_dim))
    for layer in model.encoder.layers:
        tokens = layer_by_hand(layer, tokens, tokens + position, tokens + position, tokens)
    features = model.encoder(x)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)

    label_embed = model.query_embed.weight
    z = torch.zeros(2, 6, embed_dim, dtype=torch.float64)
    for layer in model.decoder.layers:
        z = layer_by_hand(layer, z, z + label_embed, tokens + position, tokens)
    z = norm(model.decoder.norm, z)
    expected = torch.stack([z[:, k] @ model.classifier.weight[k] + model.classifier.bias[k] for k in range(6)], 1)
    torch.testing.assert_close(model.forward_head(features), expected, rtol=1e-5, atol=1e-5)
    assert [len(model.encoder.layers), len(model.decoder.layers)] == list(depths)


def test_mldecoder_is_the_paper_written_out():
    model = small_head('mldecoder_test_resnet', num_classes=7, max_queries=3)
    x = torch.randn(2, 96, 3, 5, dtype=torch.float64)
    decoder = model.decoder
    memory = F.relu(x.flatten(2).transpose(1, 2) @ decoder.proj.weight.T + decoder.proj.bias)
    query = model.query_embed.weight.repeat(2, 1, 1)
    z = norm(decoder.norm, 2 * query)
    z = layer_by_hand(decoder.layer, z, z, memory, memory)
    # Three queries for seven labels: three labels each, and two scores that stand for none.
    expected = torch.zeros(2, 7, dtype=torch.float64)
    for k in range(7):
        group, member = k // 3, k % 3
        expected[:, k] = z[:, group] @ model.classifier.weight[group, :, member] + model.classifier.bias[k]
    torch.testing.assert_close(model.forward_head(x), expected)


@pytest.mark.parametrize(('labels', 'queries', 'group'), [(80, 80, 1), (100, 100, 1), (101, 100, 2), (250, 100, 3)])
def test_up_to_a_hundred_queries_share_the_labels_among_them(labels, queries, group):
    model = timm.create_model('mldecoder_test_resnet', num_classes=labels, device='meta')
    assert model.query_embed.weight.shape == (queries, 96)
    assert model.classifier.weight.shape == (queries, 96, group)
    assert GroupLinear(labels, queries, 4)(torch.randn(2, queries, 4)).shape == (2, labels)


def test_fixed_queries_are_saved_and_never_trained():
    model = small('mldecoder_test_resnet').train()
    queries = model.query_embed.weight.clone()
    assert 'query_embed.weight' in model.state_dict()
    assert not any(name.startswith('query_embed') for name, _ in model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert model.query_embed.weight.grad is None and torch.equal(model.query_embed.weight, queries)
    assert not torch.equal(FixedQueries(6, 48).weight, queries)


def layer_parameters(d: int, ffn: int) -> int:
    """Four matrices and biases of attention, two of the feed-forward network, two norms."""
    return 4 * (d * d + d) + (d * ffn + ffn) + (ffn * d + d) + 4 * d


@pytest.mark.parametrize('labels', [80, 250])
def test_parameter_counts(labels):
    backbone = count(timm.create_model('resnet101', num_classes=0, device='meta'))
    # One encoder and two decoder layers, final norm, label embeddings, classifier; no projection of 2048 to 2048.
    q2l = 3 * layer_parameters(2048, 8192) + 2 * 2048 + labels * 2048 + labels * (2048 + 1)
    # Projection, norm of the queries, one layer, classifier of up to 100 groups; the queries are no parameters.
    queries = min(labels, 100)
    groups = queries * math.ceil(labels / queries) * 768 + labels
    mldecoder = (2048 * 768 + 768) + 2 * 768 + layer_parameters(768, 2048) + groups
    for name, head in (('q2l_resnet101', q2l), ('mldecoder_resnet101', mldecoder)):
        assert count(timm.create_model(name, num_classes=labels, device='meta')) == backbone + head


@pytest.mark.parametrize('labels', [20, 374])
def test_lite0_variants_are_narrow_heads_on_the_preprocessing_of_their_backbone(labels):
    last = 1280 * 320 + 2 * 1280  # of the last convolution and its norm, which no map needs
    whole = timm.create_model('tf_efficientnet_lite0', num_classes=0, device='meta')
    q2l = (320 * 128 + 128) + 3 * layer_parameters(128, 512) + 2 * 128 + labels * 128 + labels * (128 + 1)
    queries = min(labels, 100)
    mldecoder = (320 * 128 + 128) + 2 * 128 + layer_parameters(128, 512)
    mldecoder += queries * math.ceil(labels / queries) * 128 + labels
    for name, head in (('q2l_efficientnet_lite0', q2l), ('mldecoder_efficientnet_lite0', mldecoder)):
        assert count(timm.create_model(name, num_classes=labels, device='meta')) == count(whole) - last + head
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.input_size, cfg.interpolation, cfg.crop_mode) == ((3, 224, 224), 'bicubic', 'squash')
        assert cfg.mean == cfg.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize('name', timm.list_models(module=['query2label', 'ml_decoder']))
def test_configurations_speak_of_the_backbone(name):
    model = timm.create_model(name, device='meta')
    registered, of_backbone = timm.get_pretrained_cfg(name), timm.get_pretrained_cfg(model.backbone_name)
    assert (registered.mean, registered.std) == (of_backbone.mean, of_backbone.std)
    assert model.pretrained_cfg['first_conv'] == (registered.first_conv,)
    assert model.get_submodule(registered.first_conv).in_channels == 3


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    [
        ('q2l_test_resnet', dict(num_heads=5), 'num_heads=5 does not divide embed_dim=96.'),
        ('mldecoder_test_resnet', dict(num_heads=0), 'num_heads=0 does not divide embed_dim=96.'),
        ('q2l_test_resnet', dict(embed_dim=90, num_heads=5), 'embed_dim=90 must be a multiple of 4'),
        ('q2l_test_resnet', dict(encoder_depth=-1), 'encoder_depth=-1 must be 0 or more'),
        ('q2l_test_resnet', dict(decoder_depth=0), 'decoder_depth=0 1 or more'),
        ('mldecoder_test_resnet', dict(max_queries=0), 'max_queries=0 must be 1 or more.'),
        ('mldecoder_test_resnet', dict(backbone='vit_tiny_patch16_224'), 'has no stage of reduction 8'),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(name, args, message):
    with pytest.raises(ValueError) as caught:
        timm.create_model(name, **args)
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', NAMES)
def test_an_image_that_is_too_small_is_refused(name):
    model = small(name)
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match='images of 31 x 64 pixels are too small: 32 x 32 is the least'):
            call(torch.zeros(1, 3, 31, 64))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(32, 32), (100, 132), (33, 47)])
def test_any_input_size_channels_and_classes(name, size):
    model = timm.create_model(name, num_classes=7, in_chans=5).eval()
    assert model(torch.randn(2, 5, *size)).shape == (2, 7)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('backbone', ['test_efficientnet', 'convnext_atto', 'swin_tiny_patch4_window7_224'])
def test_other_backbones(name, backbone):
    model = small(name, backbone=backbone, in_chans=4)
    x = torch.randn(1, 4, 64, 64)
    assert model(x).shape == (1, 6)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x))
    of_backbone = timm.get_pretrained_cfg(backbone)
    data_config = timm.data.resolve_model_data_config(model)
    assert (data_config['mean'], data_config['std']) == (of_backbone.mean, of_backbone.std)
    assert [model.get_submodule(conv).in_channels for conv in model.pretrained_cfg['first_conv']] == [4]


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_receives_a_gradient(name):
    model = small(name).train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # In timm's new ResNets the last norm of each block is 0, and so are the gradients before it.
    head = {name: p for name, p in model.named_parameters() if not name.startswith('backbone.layer')}
    assert [name for name, p in head.items() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize('name', NAMES)
def test_drop_rate_reaches_the_transformer(name):
    x = torch.randn(1, 3, 64, 64)
    for drop_rate, same in ((0.0, True), (0.5, False)):
        model = small(name, drop_rate=drop_rate).train()
        model.backbone.eval()
        assert torch.equal(model(x), model(x)) == same


@pytest.mark.parametrize(('name', 'width'), [('q2l_test_resnet', 48), ('mldecoder_test_resnet', 96)])
def test_no_classes_give_the_embedding_that_pre_logits_give(name, width):
    model, x = small(name), torch.randn(2, 3, 64, 96)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 3) and model.num_features == model.head_hidden_size == width
    if name == 'mldecoder_test_resnet':
        assert torch.equal(features, model.backbone(x)[-1])
    before = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(before, features.mean((2, 3)))
    model.reset_classifier(0)
    assert torch.equal(model(x), before)
    assert torch.equal(small(name, num_classes=0)(x), before)
    model.reset_classifier(0, 'max')
    torch.testing.assert_close(model(x), features.amax((2, 3)))
    model.reset_classifier(0, '')
    assert torch.equal(model(x), features)
    model.reset_classifier(11)
    assert model(x).shape == (2, 11)


@pytest.mark.parametrize('name', NAMES)
def test_frozen_parameters_stay_frozen(name):
    model = small(name).requires_grad_(False)
    model.reset_classifier(0)
    assert not any(p.requires_grad for p in model.parameters())
    model.reset_classifier(4)
    trained = {'classifier.weight', 'classifier.bias'} | ({'query_embed.weight'} if 'q2l' in name else set())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('num_classes', [0, 6])
def test_scripted_and_in_half_precision(name, num_classes):
    model, x = small(name, num_classes=num_classes), torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_compiled_in_one_graph(name):
    model, x = small(name), torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='aot_eager')(x), model(x))


@pytest.mark.parametrize('name', NAMES)
def test_layer_decay_grows_from_the_stem_to_the_classifier(name):
    model = small(name)
    groups = create_optimizer_v2(model, opt='adamw', lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    settings = {name_of[p]: (group['lr_scale'], group['weight_decay']) for group in groups for p in group['params']}
    assert set(settings) == set(name_of.values())
    layers = ['backbone.conv1.0', 'backbone.layer1.0.conv1', 'backbone.layer4.0.conv1']
    layers += ['encoder.layers.0.ffn.fc1', 'decoder.layers.1.ffn.fc1'] if 'q2l' in name else ['decoder.layer.ffn.fc1']
    scales = [settings[f'{layer}.weight'][0] for layer in [*layers, 'classifier']]
    assert scales == sorted(set(scales)) and scales[-1] == 1
    assert settings['classifier.weight'] == (1, 0.1) and settings['classifier.bias'] == (1, 0)
    assert settings.get('query_embed.weight') == ((1, 0) if 'q2l' in name else None)
    layer_of = model.group_matcher(coarse=True)
    steps = ['encoder.layers.0.norm1.weight'] if 'q2l' in name else []
    steps += ['decoder.norm.weight', 'classifier.weight']
    last = layer_of('backbone.layer4.0.conv1.weight')
    assert [layer_of(step) - last for step in steps] == list(range(1, len(steps) + 1))


@pytest.mark.parametrize(
    ('name', 'levels'), [('q2l_test_resnet', [8, 16, 32, 32]), ('mldecoder_test_resnet', [8, 16, 32])]
)
def test_intermediates_are_the_maps_of_the_backbone_and_of_the_encoder(name, levels):
    model, x = small(name), torch.randn(2, 3, 100, 132)
    features, maps = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    assert [info['reduction'] for info in model.feature_info] == levels
    for info, got in zip(model.feature_info, maps, strict=True):
        assert got.shape[1:] == (info['num_chs'], *(math.ceil(side / info['reduction']) for side in (100, 132)))
    expected = [*model.backbone(x), features][: len(levels)]
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    first_two = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(first_two, maps[:2], strict=True))
    with pytest.raises(ValueError, match='output_fmt'):
        model.forward_intermediates(x, output_fmt='NHWC')


@pytest.mark.parametrize(
    ('name', 'levels'), [('q2l_test_resnet', [16, 32, 32]), ('mldecoder_test_resnet', [8, 16, 32])]
)
def test_features_only_gives_the_maps_without_what_it_does_not_need(name, levels):
    model = timm.create_model(name, features_only=True)
    assert model.feature_info.reduction() == levels
    sum(m.sum() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('out_indices', [[0], [1], [2], [0, 1]])
def test_features_only_of_the_backbone_has_nothing_that_gets_no_gradient(name, out_indices):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, out_indices=out_indices)
    torch.manual_seed(0)
    whole = timm.create_model(name).train()
    x = torch.randn(2, 3, 64, 64)
    maps = model(x)
    sum(m.sum() for m in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    for ours, theirs in zip(maps, [whole.backbone(x)[i] for i in out_indices], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('name', NAMES)
def test_a_model_made_on_the_meta_device_gets_its_weights_later(name):
    model = timm.create_model(name, device='meta', dtype=torch.float64, **SMALL)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {('meta', torch.float64)}
    model = model.to_empty(device='cpu').eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else -1)
    model.init_weights()
    made = timm.create_model(name, dtype=torch.float64, **SMALL)
    for (name, late), early in zip(model.state_dict().items(), made.state_dict().values(), strict=True):
        # What starts at 0 does so again, and what is drawn has the same spread.
        assert late.isfinite().all() and torch.equal(late == 0, early == 0), name
        if late.numel() > 500:
            assert late.std() == pytest.approx(early.std().item(), rel=0.2), name
    assert model(torch.randn(1, 3, 64, 64, dtype=torch.float64)).shape == (1, 6)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_checkpointing_changes_no_gradient(name):
    x, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = small(name).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)  # of dropout
        model(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize('name', NAMES)
def test_backbone_pretrained_fetches_the_backbones_weights_and_pretrained_does_not(name, monkeypatch, tmp_path):
    weights = timm.create_model('test_resnet').state_dict()
    asked = []

    def from_hub(name, **_):
        asked.append(name)
        return dict(weights)

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', from_hub)
    model = timm.create_model(name, backbone_pretrained=True)
    assert asked == ['timm/test_resnet.r160_in1k']
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], weights[key]) for key in state) and len(state) > 50

    fused = {'file': str(tmp_path / 'fused.safetensors')}
    save_file(model.state_dict(), fused['file'])
    asked.clear()
    again = timm.create_model(name, pretrained=True, backbone_pretrained=True, pretrained_cfg_overlay=fused)
    assert asked == []
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(('old', 'new'), [(80, 20), (250, 120)])
def test_a_checkpoint_is_tuned_at_other_classes_and_channels_by_timms_own_loading(name, old, new, tmp_path):
    model = timm.create_model(name, num_classes=old)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    overlay = {'file': str(tmp_path / 'model.safetensors'), 'num_classes': old}
    tuned = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=new, in_chans=1)
    assert tuned.eval()(torch.randn(2, 1, 64, 64)).shape == (2, new)
    state, tuned_state = model.state_dict(), tuned.state_dict()
    differing = {key for key in state if not torch.equal(state[key], tuned_state[key])}
    of_labels = {'query_embed.weight', 'classifier.weight', 'classifier.bias'}
    assert differing == {*of_labels, 'backbone.conv1.0.weight'}
    # timm's rule for one channel: the sum of the three.
    conv = 'backbone.conv1.0.weight'
    torch.testing.assert_close(tuned_state[conv], state[conv].sum(1, keepdim=True))
    features = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True).state_dict()
    assert all(torch.equal(tensor, state[key.removeprefix('model.')]) for key, tensor in features.items())
