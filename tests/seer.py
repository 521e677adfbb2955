"""Models for tests of attention: one that attends to colours, and a small one with its attention computed by hand."""

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

import msff_timm  # noqa: F401  registers the models


class Colours(nn.Module):
    """Backbone whose feature maps are the colours of its images, at reductions 16 and 32."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(x, 16), F.avg_pool2d(x, 32)]


@torch.no_grad()
def colour_model(share_branches: bool = True) -> nn.Module:
    """Creates a model with the labels red, green and blue, which attend to places of their colour."""
    model = timm.create_model(
        'msff_test_resnet',
        num_classes=3,
        embed_dim=4,
        num_heads=1,
        encoder_depth=0,
        decoder_depth=1,
        scale_attention=False,
        share_branches=share_branches,
    ).eval()
    model.backbone, channels = Colours(), torch.eye(4, 3)
    for name, side in (('conv1', 1), ('conv2', 1), ('conv3', 3)):
        old = getattr(model.projection, name)
        new = nn.Conv2d(3, 4, side, old.stride, old.padding, bias=False)
        new.weight.copy_(channels[:, :, None, None].expand_as(new.weight) / side**2)
        setattr(model.projection, name, new)
    model.position.table.zero_()
    for branch in model.selection.branches:
        attn = branch[0].attn
        attn.q.weight.copy_(torch.eye(4))
        attn.kv.weight[:4] = torch.eye(4)
        attn.q.bias.zero_()
        attn.kv.bias.zero_()
    model.label_embed.weight.copy_(40 * torch.eye(3, 4).repeat(1, model.num_branches))
    model.pretrained_cfg.update(input_size=(3, 128, 192), label_names=['red', 'green', 'blue'])
    return model


# Cell (row, column) of each colour in the coarsest grid of 2 x 3 cells
PLACES = {'red': (0, 2), 'green': (1, 0), 'blue': (1, 1)}
COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}
SMALL = dict(num_classes=6, embed_dim=24, num_heads=4, ffn_dim=32, encoder_depth=1, decoder_depth=2)


@torch.no_grad()
def small_model(**args) -> nn.Module:
    """Creates a model whose labels and places differ; in a new one the residual branches are 0, and they hardly do."""
    torch.manual_seed(0)
    model = timm.create_model('msff_test_resnet', **{**SMALL, **args})
    for part in (model.position, model.enhancement, model.selection, model.label_embed):
        for parameter in part.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model.eval()


def _in_pytorch(ours: nn.Module) -> nn.MultiheadAttention:
    """Copies an attention layer into PyTorch's."""
    theirs = nn.MultiheadAttention(ours.q.in_features, ours.num_heads, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight])
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias])
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    return theirs.eval()


def decoder_attention(model: nn.Module, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """Runs the decoder layer by layer; returns the attention (B, K, H_i, W_i) of each layer for each scale."""
    scales = model.projection(model.backbone(x))
    tokens = model.enhancement(model.position(model.scale_attention(scales)))
    maps = []
    for i, (scale, memory) in enumerate(zip(scales, tokens, strict=True)):
        branch = i if len(model.selection.branches) == 3 else 0
        z = model.label_embed.weight[:, branch * 24 : (branch + 1) * 24].expand(len(x), -1, -1)
        maps.append([])
        for layer in model.selection.branches[branch]:
            if layer.self_attn is not None:
                z = layer.norm0(z + _in_pytorch(layer.self_attn)(z, z, z)[0])
            found, weights = _in_pytorch(layer.attn)(z, memory, memory, need_weights=True, average_attn_weights=True)
            z = layer.norm1(z + found)
            z = layer.norm2(z + layer.ffn(z))
            maps[-1].append(weights.reshape(*weights.shape[:2], *scale.shape[-2:]))
    return maps
