"""Transformer layer of Query2Label and ML-Decoder."""

import torch
import torch.nn as nn
from timm.layers import Mlp

from .dropout import Dropout

__all__ = ['AttentionLayer']


class AttentionLayer(nn.Module):
    """Attention and feed-forward network, each followed by a residual connection and a norm.

    Unlike in `TransformerLayer`, keys and values may differ, so that positions can be added to the keys alone; and the
    weights are initialized as PyTorch does.

    Args:
        embed_dim: Width d of tokens, keys and values.
        num_heads: Number of attention heads; divides `embed_dim`.
        ffn_dim: Width of the feed-forward network.
        drop_rate: Dropout rate.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, drop_rate: float = 0.0, device=None, dtype=None):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dim={embed_dim}.')
        dd = {'device': device, 'dtype': dtype}
        self.attn = nn.MultiheadAttention(embed_dim, num_heads, drop_rate, batch_first=True, **dd)
        self.norm1 = nn.LayerNorm(embed_dim, **dd)
        self.ffn = Mlp(embed_dim, ffn_dim, act_layer=nn.ReLU, **dd)
        self.ffn.drop1 = Dropout(drop_rate)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)
        self.drop = Dropout(drop_rate)

    def init_weights(self) -> None:
        # nn.MultiheadAttention has no public method that initializes it.
        nn.init.xavier_uniform_(self.attn.in_proj_weight)
        nn.init.zeros_(self.attn.in_proj_bias)
        nn.init.zeros_(self.attn.out_proj.bias)

    def forward(self, x: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Maps tokens and their queries (B, N, d), keys and values (B, L, d) to tokens (B, N, d)."""
        x = self.norm1(x + self.drop(self.attn(query, key, value, need_weights=False)[0]))
        return self.norm2(x + self.drop(self.ffn(x)))
