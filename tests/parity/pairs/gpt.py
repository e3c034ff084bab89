"""A small GPT as nanoGPT has it, ported with split projections and blocks in a loop, and with fused ones in a scan."""

import flax.linen as nn
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.parity.pairs.example import Example, tokens


class CausalSelfAttention(torch.nn.Module):
    def __init__(self, n_embd, n_head, dropout):
        super().__init__()
        self.c_attn = torch.nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = torch.nn.Linear(n_embd, n_embd)
        self.resid_dropout = torch.nn.Dropout(dropout)
        self.n_head = n_head
        self.n_embd = n_embd
        self.dropout = dropout

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        dropout_p = self.dropout if self.training else 0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=dropout_p, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class TorchMLP(torch.nn.Module):
    def __init__(self, n_embd, dropout):
        super().__init__()
        self.c_fc = torch.nn.Linear(n_embd, 4 * n_embd)
        self.gelu = torch.nn.GELU()
        self.c_proj = torch.nn.Linear(4 * n_embd, n_embd)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class TorchBlock(torch.nn.Module):
    def __init__(self, n_embd, n_head, dropout):
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, dropout)
        self.ln_2 = torch.nn.LayerNorm(n_embd)
        self.mlp = TorchMLP(n_embd, dropout)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(torch.nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd, dropout):
        super().__init__()
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(vocab_size, n_embd),
                "wpe": torch.nn.Embedding(block_size, n_embd),
                "drop": torch.nn.Dropout(dropout),
                "h": torch.nn.ModuleList([TorchBlock(n_embd, n_head, dropout) for _ in range(n_layer)]),
                "ln_f": torch.nn.LayerNorm(n_embd),
            }
        )
        self.lm_head = torch.nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx):
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Block(nn.Module):
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        y = nn.LayerNorm(epsilon=1e-5)(x)
        y = nn.MultiHeadDotProductAttention(
            self.heads, dropout_rate=self.dropout, broadcast_dropout=False, deterministic=deterministic
        )(y, mask=mask)
        x = x + nn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = nn.LayerNorm(epsilon=1e-5)(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(y), approximate=False)
        y = nn.Dense(x.shape[-1])(y)
        return x + nn.Dropout(self.dropout)(y, deterministic=deterministic)


class GPT(nn.Module):
    vocabulary: int
    length: int
    layers: int
    heads: int
    width: int
    dropout: float

    @nn.compact
    def __call__(self, tokens, deterministic: bool = True):
        embed = nn.Embed(self.vocabulary, self.width)
        positions = nn.Embed(self.length, self.width)(jnp.arange(tokens.shape[1])[None])
        x = nn.Dropout(self.dropout)(embed(tokens) + positions, deterministic=deterministic)
        mask = nn.make_causal_mask(tokens, dtype=bool)
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, mask, deterministic)
        x = nn.LayerNorm(epsilon=1e-5)(x)
        return embed.attend(x)


class FusedAttention(nn.Module):
    heads: int
    dropout: float
    deterministic: bool

    @nn.compact
    def __call__(self, x):
        qkv = nn.Dense(3 * x.shape[-1], name="qkv")(x)
        q, k, v = (y.reshape(*y.shape[:-1], self.heads, -1) for y in jnp.split(qkv, 3, axis=-1))
        y = nn.dot_product_attention(
            q, k, v,
            mask=nn.make_causal_mask(x[..., 0], dtype=bool),
            broadcast_dropout=False,
            dropout_rng=None if self.deterministic else self.make_rng("dropout"),
            dropout_rate=self.dropout,
            deterministic=self.deterministic,
        )  # fmt: skip
        return nn.Dense(x.shape[-1], name="out")(y.reshape(x.shape))


class ScannedBlock(nn.Module):
    heads: int
    dropout: float
    deterministic: bool

    @nn.compact
    def __call__(self, x, _):
        y = FusedAttention(self.heads, self.dropout, self.deterministic)(nn.LayerNorm(epsilon=1e-5)(x))
        x = x + nn.Dropout(self.dropout, deterministic=self.deterministic)(y)
        y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm(epsilon=1e-5)(x))
        y = nn.Dense(x.shape[-1])(nn.gelu(y, approximate=False))
        return x + nn.Dropout(self.dropout, deterministic=self.deterministic)(y), None


class ScannedGPT(nn.Module):
    vocabulary: int
    length: int
    layers: int
    heads: int
    width: int
    dropout: float
    deterministic: bool = True

    def setup(self):
        self.embed = nn.Embed(self.vocabulary, self.width)
        self.positions = nn.Embed(self.length, self.width)
        self.drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        blocks = nn.scan(
            ScannedBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.layers,
        )
        self.blocks = blocks(self.heads, self.dropout, self.deterministic)
        self.norm = nn.LayerNorm(epsilon=1e-5)

    def __call__(self, tokens):
        x = self.drop(self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None])
        x, _ = self.blocks(x, None)
        return self.embed.attend(self.norm(x))


SIZES = (11, 8, 3, 2, 8, 0.1)


def gpt() -> Example:
    return Example(TorchGPT(*SIZES), GPT(*SIZES), (tokens(11, 2, 7),))


def gpt_scan() -> Example:
    return Example(TorchGPT(*SIZES), ScannedGPT(*SIZES), (tokens(11, 2, 7),))
