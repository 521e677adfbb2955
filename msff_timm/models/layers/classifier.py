"""Final classification (section 3.6 of the paper), its form for groups of labels, and a classifier of pooled maps."""

import math

import torch
import torch.nn as nn

__all__ = ['ClassWiseLinear', 'GroupLinear', 'PooledClassifier']

# Probability of a label at the start of training, as in RetinaNet (https://arxiv.org/abs/1708.02002, section 4.1)
PRIOR = 0.05


class ClassWiseLinear(nn.Module):
    """One linear classifier per label, on the feature of that label (Eq. 11): logit_k = w_k . z_k + b_k.

    Args:
        num_classes: Number of labels K.
        in_features: Width C of the features.
    """

    def __init__(self, num_classes: int, in_features: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Maps features of the labels (B, K, C) to logits (B, K)."""
        return (z * self.weight).sum(-1) + self.bias


class GroupLinear(nn.Module):
    """One linear layer per query, which scores a group of g labels: those from n*g to n*g + g - 1 for query n.

    Args:
        num_classes: Number of labels K.
        num_queries: Number of queries N; g is K / N, rounded up.
        embed_dim: Width d of the features.
    """

    def __init__(self, num_classes: int, num_queries: int, embed_dim: int, device=None, dtype=None):
        super().__init__()
        self.num_classes = num_classes
        group_size = math.ceil(num_classes / num_queries)
        self.weight = nn.Parameter(torch.empty(num_queries, embed_dim, group_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.xavier_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Maps features of the queries (B, N, d) to logits (B, K)."""
        logits = torch.einsum('bnd,ndg->bng', z, self.weight).flatten(1)
        return logits[:, : self.num_classes] + self.bias


class PooledClassifier(nn.Module):
    """A linear classifier on the means of a map's channels, each normalized over the batch.

    Its probabilities are `PRIOR` at first. Normalized features have mean 0, so the bias alone sets the mean of the
    logits, and in a short training a bias of 0 would stay near 0: too high for labels that most images do not have.
    With 374 labels, a start at 0 costs more than three points of mAP; with 20, it gains one
    (hub_cards/results/pooled_classifier.json).

    Args:
        num_classes: Number of labels K.
        in_features: Number of channels C.
    """

    def __init__(self, num_classes: int, in_features: int, device=None, dtype=None):
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features, affine=False, device=device, dtype=dtype)
        self.linear = nn.Linear(in_features, num_classes, device=device, dtype=dtype)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps a map (B, C, H, W) to logits (B, K)."""
        return self.linear(self.norm(x.mean((2, 3))))
