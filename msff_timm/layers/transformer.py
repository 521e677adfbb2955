"""Global feature enhancement and region selection (sections 3.4 and 3.5 of the paper)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp

__all__ = ['MultiHeadAttention', 'TransformerLayer', 'GlobalFeatureEnhancement', 'RegionSelection']


class MultiHeadAttention(nn.Module):
    """Multi-head attention of a query on a memory, which is both key and value (Eq. 8)."""

    def __init__(self, embed_dim: int, num_heads: int, drop_rate: float = 0.0, device=None, dtype=None):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dim={embed_dim}.')
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.drop_rate = drop_rate
        self.q = nn.Linear(embed_dim, embed_dim, **dd)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim, **dd)
        self.proj = nn.Linear(embed_dim, embed_dim, **dd)

    def forward(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Maps query (B, N, d) and memory (B, L, d) to (B, N, d)."""
        q = self.q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop_rate if self.training else 0.0)
        return self.proj(x.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Attention and feed-forward network (Eq. 9), each followed by residual connection and norm.

    With the query as its own memory it is an encoder layer; with other memory, a decoder layer without self-attention.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, drop_rate: float = 0.0, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.attn = MultiHeadAttention(embed_dim, num_heads, drop_rate, **dd)
        self.norm1 = nn.LayerNorm(embed_dim, **dd)
        self.ffn = Mlp(embed_dim, ffn_dim, act_layer=nn.ReLU, drop=(drop_rate, 0.0), **dd)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)
        self.drop = nn.Dropout(drop_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """Starts both residual branches at 0: a deep stack of post-norm layers learns slowly from anything else."""
        nn.init.xavier_uniform_(self.attn.q.weight)
        nn.init.xavier_uniform_(self.attn.kv.weight)
        nn.init.zeros_(self.attn.proj.weight)
        nn.init.zeros_(self.attn.proj.bias)
        nn.init.xavier_uniform_(self.ffn.fc1.weight)
        nn.init.zeros_(self.ffn.fc2.weight)
        nn.init.zeros_(self.ffn.fc2.bias)

    def forward(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Maps query (B, N, d) and memory (B, L, d) to (B, N, d)."""
        query = self.norm1(query + self.drop(self.attn(query, memory)))
        return self.norm2(query + self.drop(self.ffn(query)))


class GlobalFeatureEnhancement(nn.Module):
    """Encoder layers that relate the regions of one scale to each other (section 3.4)."""

    def __init__(self, depth: int, **layer_args):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(**layer_args) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens (B, L, d) to (B, L, d)."""
        for layer in self.layers:
            x = layer(x, x)
        return x


class RegionSelection(nn.Module):
    """Decoder layers in which each label gathers the regions of one scale that speak of it (section 3.5, Eq. 10)."""

    def __init__(self, depth: int, **layer_args):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(**layer_args) for _ in range(depth))
        # The first attention brings the picture to the labels: without it the features would hold labels only.
        nn.init.xavier_uniform_(self.layers[0].attn.proj.weight)

    def forward(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Maps label embeddings (B, K, d) and image tokens (B, L, d) to class-specific features Z (B, K, d)."""
        for layer in self.layers:
            query = layer(query, memory)
        return query
