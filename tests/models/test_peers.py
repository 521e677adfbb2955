import math

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

from msff_timm.models.layers import AttentionLayer, GroupLinear
from msff_timm.models.ml_decoder import FixedQueries
from msff_timm.models.query2label import sine_position

NAMES = ['q2l_test_resnet', 'mldecoder_test_resnet']
SMALL = dict(num_classes=6, embed_dim=48, ffn_dim=64)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def randomise(module: nn.Module) -> nn.Module:
    """Randomizes every parameter: in a new model biases are 0 and norms have no effect."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def small(name: str, **args) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **args}).eval()


def small_head(name: str, **args) -> nn.Module:
    """Creates a model in float64, with a random head."""
    model = small(name, **args)
    for part, module in model.named_children():
        if part != 'backbone':
            randomise(module)
    return model.double()


def positions(height: int, width: int, d: int) -> np.ndarray:
    """DETR's formula: row and column are scaled to 2 pi; even channels are sines, odd ones cosines."""
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
    """Computes attention head by head."""
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
def test_sine_position_is_detrs_formula(grid):
    x = torch.empty(2, 12, *grid)
    np.testing.assert_allclose(sine_position(x).numpy(), positions(*grid, 12), rtol=0, atol=1e-5)
    # In half precision they are rounded once, at the end.
    assert torch.equal(sine_position(x.bfloat16()), sine_position(x).bfloat16())


def test_attention_layer_is_pytorchs_post_norm_encoder_layer():
    ours = randomise(AttentionLayer(12, 3, 20, drop_rate=0.1)).eval()
    torchs = nn.TransformerEncoderLayer(12, 3, 20, activation='relu', norm_first=False, batch_first=True).eval()
    pairs = [(torchs.self_attn, ours.attn), (torchs.linear1, ours.ffn.fc1), (torchs.linear2, ours.ffn.fc2)]
    for theirs, own in [*pairs, (torchs.norm1, ours.norm1), (torchs.norm2, ours.norm2)]:
        theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, x, x, x), torchs(x))


def test_attention_layer_takes_query_key_and_value():
    layer = randomise(AttentionLayer(12, 3, 20)).double()
    x, query = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    key, value = torch.randn(2, 2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x, query, key, value), layer_by_hand(layer, x, query, key, value))


@pytest.mark.parametrize('embed_dim', [96, 48])
@pytest.mark.parametrize('depths', [(1, 2), (0, 1), (2, 3)])
def test_query2label_is_its_papers_formula(embed_dim, depths):
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


def test_mldecoder_is_its_papers_formula():
    model = small_head('mldecoder_test_resnet', num_classes=7, max_queries=3)
    x = torch.randn(2, 96, 3, 5, dtype=torch.float64)
    decoder = model.decoder
    memory = F.relu(x.flatten(2).transpose(1, 2) @ decoder.proj.weight.T + decoder.proj.bias)
    query = model.query_embed.weight.repeat(2, 1, 1)
    z = norm(decoder.norm, 2 * query)
    z = layer_by_hand(decoder.layer, z, z, memory, memory)
    # Three queries for seven labels: three labels each, and two scores of no label.
    expected = torch.zeros(2, 7, dtype=torch.float64)
    for k in range(7):
        group, member = k // 3, k % 3
        expected[:, k] = z[:, group] @ model.classifier.weight[group, :, member] + model.classifier.bias[k]
    torch.testing.assert_close(model.forward_head(x), expected)


@pytest.mark.parametrize(('labels', 'queries', 'group'), [(80, 80, 1), (100, 100, 1), (101, 100, 2), (250, 100, 3)])
def test_mldecoder_shares_at_most_100_queries(labels, queries, group):
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
def test_lite0_variants_have_narrow_heads_and_their_backbones_preprocessing(labels):
    last = 1280 * 320 + 2 * 1280  # last convolution and its norm, which no map needs
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


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    [
        ('q2l_test_resnet', dict(num_heads=5), 'num_heads=5 does not divide embed_dim=96.'),
        ('mldecoder_test_resnet', dict(num_heads=0), 'num_heads=0 does not divide embed_dim=96.'),
        ('q2l_test_resnet', dict(embed_dim=90, num_heads=5), 'embed_dim=90 must be a multiple of 4'),
        ('q2l_test_resnet', dict(encoder_depth=-1), 'encoder_depth=-1 must be at least 0'),
        ('q2l_test_resnet', dict(decoder_depth=0), 'decoder_depth=0 at least 1'),
        ('mldecoder_test_resnet', dict(max_queries=0), 'max_queries=0 must be at least 1.'),
        ('mldecoder_test_resnet', dict(backbone='vit_tiny_patch16_224'), 'has no stage of reduction 8'),
    ],
    ids=str,
)
def test_init_rejects_wrong_arguments(name, args, message):
    with pytest.raises(ValueError) as caught:
        timm.create_model(name, **args)
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(('name', 'width'), [('q2l_test_resnet', 48), ('mldecoder_test_resnet', 96)])
def test_reset_classifier_to_0_gives_the_pre_logits(name, width):
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
def test_group_matcher_orders_layer_decay_from_stem_to_classifier(name):
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
def test_forward_intermediates_returns_maps_of_backbone_and_encoder(name, levels):
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
