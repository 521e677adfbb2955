"""Global feature enhancement and region selection (sections 3.4 and 3.5 of the paper)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import Mlp, register_notrace_module
from timm.models import checkpoint

__all__ = ['GlobalFeatureEnhancement', 'MultiHeadAttention', 'RegionSelection', 'TransformerLayer']


class MultiHeadAttention(nn.Module):
    """Multi-head attention of a query on a memory, which is both key and value (Eq. 8)."""

    def __init__(self, embed_dim: int, num_heads: int, drop_rate: float = 0.0, device=None, dtype=None):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide embed_dim={embed_dim}.')
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.drop_rate = drop_rate
        self.q = nn.Linear(embed_dim, embed_dim, **dd)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim, **dd)
        self.proj = nn.Linear(embed_dim, embed_dim, **dd)

    def forward(
        self,
        query: torch.Tensor,
        memory: torch.Tensor,
        query_lengths: list[int] | None = None,
        memory_lengths: list[int] | None = None,
    ) -> torch.Tensor:
        """Lets a query gather from a memory, or each scale's part of a query from that scale's part of the memory.

        Scales that lie one after another are projected at once, and a query that all have in common is projected once.

        Args:
            query: (B, N, d), or (1, N, d) where all images have it in common.
            memory: (B, L, d).
            query_lengths: Parts of N, one for each scale; a single one is the query of every scale.
            memory_lengths: Parts of L, one for each scale; None where there is but one.

        Returns:
            (B, N, d), or (B, scales * N, d) where the scales have the query in common.
        """
        q, k, v = self.heads(query, memory)
        q = q.expand(k.shape[0], -1, -1, -1)
        if memory_lengths is None or query_lengths is None:
            return self.proj(self._attend(q, k, v))
        queries = list(q.split(query_lengths, dim=2))
        keys, values = k.split(memory_lengths, dim=2), v.split(memory_lengths, dim=2)
        attended: list[torch.Tensor] = []
        for i in range(len(keys)):
            attended.append(self._attend(queries[i % len(queries)], keys[i], values[i]))
        return self.proj(torch.cat(attended, dim=1))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop_rate if self.training else 0.0)
        return x.transpose(1, 2).flatten(2)

    def heads(self, query: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the heads' query (B, heads, N, d/heads), key and value (B, heads, L, d/heads)."""
        q = self.q(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    @torch.jit.ignore
    def attention(self, query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Computes what share of its attention each query gives to each memory token: (B, heads, N, L)."""
        q, k, _ = self.heads(query, memory)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)


class TransformerLayer(nn.Module):
    """Attention and feed-forward network (Eq. 9), each followed by residual connection and norm.

    With the query as its own memory it is an encoder layer; with other memory, a decoder layer.

    Args:
        self_attn: Let the queries of a decoder layer attend to each other first (Table 7).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        drop_rate: float = 0.0,
        self_attn: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.self_attn = MultiHeadAttention(embed_dim, num_heads, drop_rate, **dd) if self_attn else None
        self.norm0 = nn.LayerNorm(embed_dim, **dd) if self_attn else None
        self.attn = MultiHeadAttention(embed_dim, num_heads, drop_rate, **dd)
        self.norm1 = nn.LayerNorm(embed_dim, **dd)
        self.ffn = Mlp(embed_dim, ffn_dim, act_layer=partial(nn.ReLU, inplace=True), drop=(drop_rate, 0.0), **dd)
        self.norm2 = nn.LayerNorm(embed_dim, **dd)
        self.drop = nn.Dropout(drop_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """Starts the residual branches at 0: a deep stack of post-norm layers learns slowly from anything else."""
        for attn in (self.self_attn, self.attn):
            if attn is not None:
                nn.init.xavier_uniform_(attn.q.weight)
                nn.init.xavier_uniform_(attn.kv.weight)
                nn.init.zeros_(attn.proj.weight)
                nn.init.zeros_(attn.proj.bias)
        nn.init.xavier_uniform_(self.ffn.fc1.weight)
        nn.init.zeros_(self.ffn.fc2.weight)
        nn.init.zeros_(self.ffn.fc2.bias)

    def forward(
        self,
        query: torch.Tensor,
        memory: torch.Tensor,
        query_lengths: list[int] | None = None,
        memory_lengths: list[int] | None = None,
    ) -> torch.Tensor:
        """Maps query and memory to what the query becomes, with the shapes and lengths of `MultiHeadAttention`."""
        if self.self_attn is not None and self.norm0 is not None:
            query = self.norm0(query + self.drop(self.self_attn(query, query, query_lengths, query_lengths)))
        update = self.drop(self.attn(query, memory, query_lengths, memory_lengths))
        # A query that images or scales have in common is added to what each of them makes of it.
        query = (query.unsqueeze(1) + update.unflatten(1, (-1, query.shape[1]))).flatten(1, 2)
        query = self.norm1(query)
        return self.norm2(query + self.drop(self.ffn(query)))


@register_notrace_module
class GlobalFeatureEnhancement(nn.Module):
    """Encoder layers that relate the regions of one scale to each other (section 3.4).

    Args:
        depth: Number of layers.
        num_branches: 1 where the three scales share the layers, 3 where each has its own.
        **layer_args: As for `TransformerLayer`.
    """

    def __init__(self, depth: int, num_branches: int = 1, **layer_args):
        super().__init__()
        self.grad_checkpointing = False
        self.branches = nn.ModuleList(
            nn.ModuleList(TransformerLayer(**layer_args) for _ in range(depth)) for _ in range(num_branches)
        )

    def forward(self, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps the tokens of three scales (B, L_i, d) to the same shapes."""
        enhanced: list[torch.Tensor] = []
        for i, layers in enumerate(self.branches):
            scales = tokens[i :: len(self.branches)]  # one, or all of them in one pass of shared layers
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
    """Decoder layers in which each label gathers the regions of one scale that speak of it (section 3.5, Eq. 10).

    Args:
        depth: Number of layers.
        num_branches: 1 where the three scales share the layers, 3 where each has its own.
        self_attn: For each layer, whether the labels attend to each other first (Table 7).
        **layer_args: As for `TransformerLayer`.
    """

    def __init__(self, depth: int, num_branches: int = 1, self_attn: Sequence[bool] = (), **layer_args):
        super().__init__()
        self.grad_checkpointing = False
        # Self-attention in the first layer depends on the labels alone, but dropout in it is each image's own.
        self.drops_labels = bool(self_attn and self_attn[0])
        self.branches = nn.ModuleList(
            nn.ModuleList(TransformerLayer(self_attn=own, **layer_args) for own in self_attn or depth * [False])
            for _ in range(num_branches)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Lets the first attention bring the image to the labels: the features would else hold labels only."""
        for layers in self.branches:
            nn.init.xavier_uniform_(layers[0].attn.proj.weight)

    def forward(self, query: torch.Tensor, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps label embeddings (branches, K, d) and the tokens of three scales (B, L_i, d) to Z_i (B, K, d)."""
        selected: list[torch.Tensor] = []
        num_labels = query.shape[1]
        for i, layers in enumerate(self.branches):
            scales = tokens[i :: len(self.branches)]  # one, or all of them in one pass of shared layers
            memory_lengths = [scale.shape[1] for scale in scales]
            memory = torch.cat(scales, dim=1)
            z, lengths = query[i : i + 1], [num_labels]
            if self.training and self.drops_labels:
                z, lengths = z.repeat(memory.shape[0], len(scales), 1), [num_labels] * len(scales)
            for layer in layers:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    z = checkpoint(layer, z, memory, lengths, memory_lengths)
                else:
                    z = layer(z, memory, lengths, memory_lengths)
                lengths = [num_labels] * len(scales)
            selected.extend(z.split(num_labels, dim=1))
        return selected
