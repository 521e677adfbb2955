"""A model that sees colours, for tests of where labels look."""

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

import msff_timm  # noqa: F401  registers the models


class Colours(nn.Module):
    """A backbone that passes on the colours of its images, at reductions 16 and 32."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(x, 16), F.avg_pool2d(x, 32)]


@torch.no_grad()
def seer_of_colours(share_branches: bool = True) -> nn.Module:
    """Makes a model whose labels attend to the red, green and blue places of an image, each to those of its name."""
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


# Cell (row, column) of the coarsest grid, of 2 x 3 cells, in which each colour is.
PLACES = {'red': (0, 2), 'green': (1, 0), 'blue': (1, 1)}
COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}
