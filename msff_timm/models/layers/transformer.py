"""Global feature enhancement and region selection (sections 3.4 and 3.5 of the paper)."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp, register_notrace_module
from timm.models import checkpoint

from .dropout import Dropout

__all__ = ['GlobalFeatureEnhancement', 'MultiHeadAttention', 'RegionSelection', 'TransformerLayer']


class MultiHeadAttention(nn.Module):
    """Multi-head attention of queries on a memory, which is both key and value (Eq. 8)."""

    def __init__(self, embed_dim: int, num_heads: int, attn_drop_rate: float = 0.0, device=None, dtype=None):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dim={embed_dim}.')
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(embed_dim, embed_dim, **dd)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim, **dd)
        self.proj = nn.Linear(embed_dim, embed_dim, **dd)

    def forward(
        self, query: torch.Tensor, memory: torch.Tensor, query_lengths: list[int], memory_lengths: list[int]
    ) -> torch.Tensor:
        """Lets the queries of each scale gather from the memory of the same scale.

        The scales are concatenated, so that one matrix product projects all of them.

        Args:
            query: Queries (B, N, d).
            memory: Tokens (B, L, d).
            query_lengths: Number of queries of each scale; their sum is N.
            memory_lengths: Number of tokens of each scale; their sum is L.

        Returns:
            Projected outputs of the queries (B, N, d).
        """
        q, k, v = self.heads(query, memory)
        queries = q.split(query_lengths, dim=2)
        keys, values = k.split(memory_lengths, dim=2), v.split(memory_lengths, dim=2)
        dropout_p = self.attn_drop_rate if self.training else 0.0
        gathered: list[torch.Tensor] = []
        for i in range(len(queries)):
            x = F.scaled_dot_product_attention(queries[i], keys[i], values[i], dropout_p=dropout_p)
            gathered.append(x.transpose(1, 2).flatten(2))
        return self.proj(torch.cat(gathered, dim=1))

    def heads(self, query: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries (B, heads, N, d/heads), keys and values (B, heads, L, d/heads)."""
        q = self.q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    @torch.jit.ignore
    def attention(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Returns the attention weights of each query over the memory (B, heads, N, L), which sum to 1."""
        q, k, _ = self.heads(query, memory)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)


class TransformerLayer(nn.Module):
    """Attention and feed-forward network, each followed by a residual connection and a norm (Eqs. 9 and 10).

    With the queries as memory it is an encoder layer, with other memory a decoder layer.

    Args:
        embed_dim: Width d of queries and memory.
        num_heads: Number of attention heads; divides `embed_dim`.
        ffn_dim: Width of the feed-forward network.
        drop_rate: Dropout rate of the outputs of attention and feed-forward network, and within the latter.
        attn_drop_rate: Dropout rate of the attention weights.
        self_attn: True if the queries of a decoder layer attend to each other first (Table 7).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        self_attn: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, attn_drop_rate, **dd) if self_attn else None
        self.norm0 = nn.LayerNorm(embed_dim, **dd) if self_attn else None
        self.attn = MultiHeadAttention(embed_dim, num_heads, attn_drop_rate, **dd)
        self.norm1 = nn.LayerNorm(embed_dim, **dd)
        self.ffn = Mlp(embed_dim, ffn_dim, act_layer=nn.ReLU, **dd)
        self.ffn.drop1 = Dropout(drop_rate)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)
        self.drop = Dropout(drop_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """Initializes the residual branches to 0: otherwise a deep stack of post-norm layers learns slowly."""
        for attn in (self.self_attn, self.attn):
            if attn is not None:
                nn.init.xavier_uniform_(attn.q.weight)
                nn.init.xavier_uniform_(attn.kv.weight)
                nn.init.zeros_(attn.proj.weight)
                nn.init.zeros_(attn.proj.bias)
        nn.init.xavier_uniform_(self.ffn.fc1.weight)
        nn.init.zeros_(self.ffn.fc2.weight)
        nn.init.zeros_(self.ffn.fc2.bias)  # type: ignore[arg-type]

    def forward(
        self, query: torch.Tensor, memory: torch.Tensor, query_lengths: list[int], memory_lengths: list[int]
    ) -> torch.Tensor:
        """Maps queries (B, N, d) and memory (B, L, d) to queries (B, N, d); lengths as for `MultiHeadAttention`."""
        if self.self_attn is not None and self.norm0 is not None:
            query = self.norm0(query + self.drop(self.self_attn(query, query, query_lengths, query_lengths)))
        query = self.norm1(query + self.drop(self.attn(query, memory, query_lengths, memory_lengths)))
        return self.norm2(query + self.drop(self.ffn(query)))


@register_notrace_module
class GlobalFeatureEnhancement(nn.Module):
    """Encoder layers, in which the regions of a scale attend to each other (section 3.4, Eqs. 8 and 9).

    Args:
        depth: Number of layers.
        num_branches: 1 if the three scales share the layers, 3 if each scale has its own.
        **layer_args: Arguments of `TransformerLayer`.
    """

    def __init__(self, depth: int, num_branches: int = 1, **layer_args):
        super().__init__()
        self.grad_checkpointing = False
        self.branches = nn.ModuleList(
            nn.ModuleList(TransformerLayer(**layer_args) for _ in range(depth)) for _ in range(num_branches)
        )

    def forward(self, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps the tokens of three scales (B, L_i, d) to enhanced tokens of the same shapes."""
        enhanced: list[torch.Tensor] = []
        for i, layers in enumerate(self.branches):
            scales = tokens[i :: len(self.branches)]  # one scale, or all three if they share the layers
            lengths = [scale.shape[1] for scale in scales]
            x = torch.cat(scales, dim=1)
            for layer in layers:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(layer, x, x, lengths, lengths)
                else:
                    x = layer(x, x, lengths, lengths)
            enhanced.extend(x.split(lengths, dim=1))
        return enhanced


@register_notrace_module
class RegionSelection(nn.Module):
    """Decoder layers, in which each label attends to the regions of a scale (section 3.5, Eq. 10).

    Args:
        depth: Number of layers.
        num_branches: 1 if the three scales share the layers, 3 if each scale has its own.
        self_attn: For each layer, whether the labels attend to each other first (Table 7).
        **layer_args: Arguments of `TransformerLayer`.
    """

    def __init__(self, depth: int, num_branches: int = 1, self_attn: Sequence[bool] = (), **layer_args):
        super().__init__()
        self.grad_checkpointing = False
        self.branches = nn.ModuleList(
            nn.ModuleList(TransformerLayer(self_attn=own, **layer_args) for own in self_attn or depth * [False])
            for _ in range(num_branches)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Initializes the first attention to pass the image on: otherwise the features would hold only labels."""
        for layers in self.branches:
            nn.init.xavier_uniform_(layers[0].attn.proj.weight)

    def forward(self, query: torch.Tensor, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps label embeddings (branches, K, d) and the tokens of three scales (B, L_i, d) to Z_i (B, K, d)."""
        selected: list[torch.Tensor] = []
        num_queries = query.shape[1]
        for i, layers in enumerate(self.branches):
            scales = tokens[i :: len(self.branches)]  # one scale, or all three if they share the layers
            memory = torch.cat(scales, dim=1)
            memory_lengths = [scale.shape[1] for scale in scales]
            query_lengths = [num_queries] * len(scales)
            z = query[i].repeat(len(scales), 1).expand(memory.shape[0], -1, -1)
            for layer in layers:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    z = checkpoint(layer, z, memory, query_lengths, memory_lengths)
                else:
                    z = layer(z, memory, query_lengths, memory_lengths)
            selected.extend(z.split(num_queries, dim=1))
        return selected
