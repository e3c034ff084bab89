"""A small BERT with RoBERTa's positions and attention written by hand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.parity.pairs.example import Example, tokens


class BertEmbeddings(torch.nn.Module):
    def __init__(self, vocab_size, max_positions, hidden_size, dropout, padding_idx=1):
        super().__init__()
        self.padding_idx = padding_idx
        self.word_embeddings = torch.nn.Embedding(vocab_size, hidden_size)
        self.position_embeddings = torch.nn.Embedding(max_positions, hidden_size)
        self.LayerNorm = torch.nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, input_ids):
        first = self.padding_idx + 1
        position_ids = torch.arange(first, first + input_ids.size(1), device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


class BertSelfAttention(torch.nn.Module):
    def __init__(self, hidden_size, num_heads, dropout):
        super().__init__()
        self.num_heads = num_heads
        self.head_size = hidden_size // num_heads
        self.query = torch.nn.Linear(hidden_size, hidden_size)
        self.key = torch.nn.Linear(hidden_size, hidden_size)
        self.value = torch.nn.Linear(hidden_size, hidden_size)
        self.dropout = torch.nn.Dropout(dropout)

    def transpose_for_scores(self, x):
        return x.view(x.size(0), x.size(1), self.num_heads, self.head_size).permute(0, 2, 1, 3)

    def forward(self, hidden_states, attention_mask):
        query = self.transpose_for_scores(self.query(hidden_states))
        key = self.transpose_for_scores(self.key(hidden_states))
        value = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.head_size)
        probs = self.dropout(torch.softmax(scores + attention_mask, dim=-1))
        context = torch.matmul(probs, value).permute(0, 2, 1, 3).contiguous()
        return context.view(context.size(0), context.size(1), -1)


class BertLayer(torch.nn.Module):
    def __init__(self, hidden_size, num_heads, intermediate_size, dropout):
        super().__init__()
        self.attention = BertSelfAttention(hidden_size, num_heads, dropout)
        self.attention_output = torch.nn.Linear(hidden_size, hidden_size)
        self.attention_norm = torch.nn.LayerNorm(hidden_size, eps=1e-12)
        self.intermediate = torch.nn.Linear(hidden_size, intermediate_size)
        self.output = torch.nn.Linear(intermediate_size, hidden_size)
        self.output_norm = torch.nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x, attention_mask):
        y = self.dropout(self.attention_output(self.attention(x, attention_mask)))
        x = self.attention_norm(y + x)
        y = self.dropout(self.output(torch.nn.functional.gelu(self.intermediate(x))))
        return self.output_norm(y + x)


class TorchBert(torch.nn.Module):
    def __init__(self, vocab_size, max_positions, layers, hidden_size, num_heads, intermediate_size, dropout):
        super().__init__()
        self.embeddings = BertEmbeddings(vocab_size, max_positions, hidden_size, dropout)
        self.layer = torch.nn.ModuleList(
            [BertLayer(hidden_size, num_heads, intermediate_size, dropout) for _ in range(layers)]
        )
        self.pooler = torch.nn.Linear(hidden_size, hidden_size)

    def forward(self, input_ids, attention_mask):
        x = self.embeddings(input_ids)
        extended_mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layer:
            x = layer(x, extended_mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class SelfAttention(nn.Module):
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        n, length, width = x.shape
        q = nn.Dense(width, name="query")(x).reshape(n, length, self.heads, -1)
        k = nn.Dense(width, name="key")(x).reshape(n, length, self.heads, -1)
        v = nn.Dense(width, name="value")(x).reshape(n, length, self.heads, -1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(x.dtype)
        weights = jax.nn.softmax(scores + mask, axis=-1)
        weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)


class Layer(nn.Module):
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        width = x.shape[-1]
        y = SelfAttention(self.heads, self.dropout, name="attention")(x, mask, deterministic)
        y = nn.Dropout(self.dropout)(nn.Dense(width, name="attention_out")(y), deterministic=deterministic)
        x = nn.LayerNorm(epsilon=1e-12, name="attention_norm")(y + x)
        y = nn.gelu(nn.Dense(self.hidden, name="up")(x), approximate=False)
        y = nn.Dropout(self.dropout)(nn.Dense(width, name="down")(y), deterministic=deterministic)
        return nn.LayerNorm(epsilon=1e-12, name="norm")(y + x)


class Bert(nn.Module):
    vocabulary: int
    length: int
    layers: int
    width: int
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, tokens, attention_mask, deterministic: bool = True):
        positions = 2 + jnp.arange(tokens.shape[1])  # RoBERTa's first two are for padding
        x = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        x = x + nn.Embed(self.length, self.width, name="positions")(positions)[None]
        x = nn.LayerNorm(epsilon=1e-12, name="norm")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        mask = (1.0 - attention_mask[:, None, None, :].astype(x.dtype)) * -10000.0
        for _ in range(self.layers):
            x = Layer(self.heads, self.hidden, self.dropout)(x, mask, deterministic)
        return x, jnp.tanh(nn.Dense(self.width, name="pooler")(x[:, 0]))


def bert() -> Example:
    sizes = (13, 12, 2, 8, 2, 16, 0.1)
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
    return Example(TorchBert(*sizes), Bert(*sizes), (tokens(13, 3, 7), mask))
