"""Small networks of sequences and vectors, as one writes them by hand, and their ports."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.blind.images import trained
from tests.parity.pairs.example import Example, floats, tokens
from tests.parity.pairs.linen_norm import BatchNorm


class TorchKeywords(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(6, 8, 5, stride=2, padding=2)
        self.bn1 = torch.nn.BatchNorm1d(8)
        self.conv2 = torch.nn.Conv1d(8, 8, 3, padding=2, dilation=2)
        self.bn2 = torch.nn.BatchNorm1d(8)
        self.conv3 = torch.nn.Conv1d(8, 8, 3, stride=2)
        self.drop = torch.nn.Dropout(0.4)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.avg_pool1d(F.relu(self.bn2(self.conv2(x))), 4, 2)
        x = F.silu(self.conv3(x)).amax(dim=2)
        return F.log_softmax(self.head(self.drop(x)), dim=1)


class Keywords(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (5,), strides=2, padding=2, name="conv1")(x)
        x = nn.relu(BatchNorm(use_running_average=not train, name="bn1")(x))
        x = nn.Conv(8, (3,), kernel_dilation=2, name="conv2")(x)
        x = BatchNorm(use_running_average=not train, name="bn2")(x)
        x = nn.avg_pool(nn.relu(x), (4,), strides=(2,))
        x = nn.Conv(8, (3,), strides=2, padding="VALID", name="conv3")(x)
        x = nn.silu(x).max(axis=1)
        x = nn.Dropout(0.4)(x, deterministic=not train)
        return nn.log_softmax(nn.Dense(4, name="head")(x))


def keywords_weights(state):
    w = {name: tensor.numpy() for name, tensor in state.items()}
    params, stats = {"head": {"kernel": w["head.weight"].T, "bias": w["head.bias"]}}, {}
    for i in (1, 2, 3):
        params[f"conv{i}"] = {"kernel": w[f"conv{i}.weight"].transpose(2, 1, 0), "bias": w[f"conv{i}.bias"]}
    for bn in ("bn1", "bn2"):
        params[bn] = {"scale": w[f"{bn}.weight"], "bias": w[f"{bn}.bias"]}
        stats[bn] = {"mean": w[f"{bn}.running_mean"], "var": w[f"{bn}.running_var"]}
    return {"params": params, "batch_stats": stats}


class TorchMixture(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden1 = torch.nn.Linear(4, 12)
        self.hidden2 = torch.nn.Linear(12, 12)
        self.shares = torch.nn.Linear(12, 6)
        self.means = torch.nn.Linear(12, 6)
        self.widths = torch.nn.Linear(12, 6)

    def forward(self, x):
        x = torch.tanh(self.hidden1(x))
        x = torch.tanh(self.hidden2(x))
        shares = F.softmax(self.shares(x).view(-1, 3, 2) / 0.7, dim=1)
        return shares, self.means(x).view(-1, 3, 2), F.softplus(self.widths(x)).view(-1, 3, 2)


class Mixture(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden1 = nnx.Linear(4, 12, rngs=rngs)
        self.hidden2 = nnx.Linear(12, 12, rngs=rngs)
        self.shares = nnx.Linear(12, 6, rngs=rngs)
        self.means = nnx.Linear(12, 6, rngs=rngs)
        self.widths = nnx.Linear(12, 6, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.hidden1(x))
        x = nnx.tanh(self.hidden2(x))
        shares = nnx.softmax(self.shares(x).reshape(-1, 3, 2) / 0.7, axis=1)
        return shares, self.means(x).reshape(-1, 3, 2), nnx.softplus(self.widths(x)).reshape(-1, 3, 2)


class TorchRMSNorm(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


def torch_rotated(x):  # n h t d
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half).to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class TorchPrenorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.norm1, self.norm2, self.norm3 = TorchRMSNorm(8), TorchRMSNorm(8), TorchRMSNorm(8)
        self.qkv = torch.nn.Linear(8, 24, bias=False)
        self.proj = torch.nn.Linear(8, 8, bias=False)
        self.gate, self.up = torch.nn.Linear(8, 12), torch.nn.Linear(8, 12)
        self.down = torch.nn.Linear(12, 8)
        self.head = torch.nn.Linear(8, 11)

    def forward(self, tokens):
        x = self.embed(tokens) * 8**0.5
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = torch_rotated(q) @ torch_rotated(k).transpose(-1, -2) / 2
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -1e9)
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm3(x))


class RMSNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.zeros_init(), (x.shape[-1],))
        y = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
        return y * (1 + weight)


def rotated(x):  # n t h d
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1)


class Prenorm(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8, name="embed")(tokens) * 8**0.5
        qkv = nn.Dense(24, use_bias=False, name="qkv")(RMSNorm(name="norm1")(x))
        q, k, v = (part.reshape(*x.shape[:2], 2, 4) for part in jnp.split(qkv, 3, axis=-1))
        scores = jnp.einsum("nqhd,nkhd->nhqk", rotated(q), rotated(k)) / 2
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        y = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(scores), v).reshape(x.shape)
        x = x + nn.Dense(8, use_bias=False, name="proj")(y)
        y = RMSNorm(name="norm2")(x)
        y = nn.silu(nn.Dense(12, name="gate")(y)) * nn.Dense(12, name="up")(y)
        x = x + nn.Dense(8, name="down")(y)
        return nn.Dense(11, name="head")(RMSNorm(name="norm3")(x))


def prenorm_weights(state):
    w = {name: tensor.numpy() for name, tensor in state.items()}
    params = {norm: {"weight": w[f"{norm}.weight"]} for norm in ("norm1", "norm2", "norm3")}
    params["embed"] = {"embedding": w["embed.weight"]}
    q, k, v = np.split(w["qkv.weight"], 3)
    params["qkv"] = {"kernel": np.concatenate([q, k, v]).T}
    params["proj"] = {"kernel": w["proj.weight"].T}
    for dense in ("gate", "up", "down", "head"):
        params[dense] = {"kernel": w[f"{dense}.weight"].T, "bias": w[f"{dense}.bias"]}
    return {"params": params}


class TorchCrossing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = torch.nn.Embedding(9, 8), torch.nn.Embedding(10, 8)
        self.bridge = torch.nn.Linear(6, 8)
        self.attention = torch.nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm1, self.norm2 = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
        self.ff = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
        self.head = torch.nn.Linear(16, 4)

    def forward(self, tokens, memory, ignored):
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1]) + 2)
        memory = self.bridge(memory)
        x = self.norm1(x + self.attention(x, memory, memory, key_padding_mask=ignored.bool())[0])
        x = self.norm2(x + self.ff(x))
        return self.head(torch.cat([x.mean(1), x[:, -1]], -1))


class Crossing(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.embed, self.positions = nnx.Embed(9, 8, rngs=rngs), nnx.Embed(10, 8, rngs=rngs)
        self.bridge = nnx.Linear(6, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 8, dropout_rate=0.1, broadcast_dropout=False, decode=False, rngs=rngs
        )
        self.norm1 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.ff1, self.ff2 = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, tokens, memory, ignored):
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]) + 2)
        memory = self.bridge(memory)
        x = self.norm1(x + self.attention(x, memory, mask=ignored[:, None, None] == 0))
        y = self.ff2(nnx.gelu(self.ff1(x), approximate=False))
        x = self.norm2(x + y)
        return self.head(jnp.concatenate([x.mean(1), x[:, -1]], -1))


class TorchCounter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(3, 6, batch_first=True)
        self.norm = torch.nn.LayerNorm(6)
        self.fc1, self.fc2 = torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm(self.gru(x)[0].mean(1))
        return self.fc2(x + F.selu(self.fc1(x)))


class Counter(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.GRUCell(6, name="cell"))(x)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x.mean(1))
        x = x + nn.selu(nn.Dense(6, name="fc1")(x))
        return nn.Dense(2, name="fc2")(x)


def counter_weights(state):
    w = {name: tensor.numpy() for name, tensor in state.items()}
    cell = {}
    for i, gate in enumerate("rzn"):
        rows = slice(6 * i, 6 * i + 6)
        inner = w["gru.bias_hh_l0"][rows]
        cell[f"i{gate}"] = {"kernel": w["gru.weight_ih_l0"][rows].T, "bias": w["gru.bias_ih_l0"][rows]}
        cell[f"h{gate}"] = {"kernel": w["gru.weight_hh_l0"][rows].T}
        if gate == "n":
            cell["hn"]["bias"] = inner
        else:
            cell[f"i{gate}"]["bias"] = cell[f"i{gate}"]["bias"] + inner
    params = {"cell": cell, "norm": {"scale": w["norm.weight"], "bias": w["norm.bias"]}}
    for dense in ("fc1", "fc2"):
        params[dense] = {"kernel": w[f"{dense}.weight"].T, "bias": w[f"{dense}.bias"]}
    return {"params": params}


def keywords() -> Example:
    module, x = trained(TorchKeywords()), floats(4, 6, 24)
    options = {"flax_inputs": (x.transpose(0, 2, 1),), "variables": keywords_weights(module.state_dict())}
    return Example(module, Keywords(), (x,), options)


def mixture() -> Example:
    return Example(trained(TorchMixture()), Mixture(rngs=nnx.Rngs(0)), (floats(5, 4),))


def prenorm() -> Example:
    module = trained(TorchPrenorm())
    return Example(module, Prenorm(), (tokens(11, 2, 6),), {"variables": prenorm_weights(module.state_dict())})


def crossing() -> Example:
    ignored = (np.arange(7) >= np.array([[5], [6]])).astype(int)
    inputs = tokens(9, 2, 5), floats(2, 7, 6), ignored
    return Example(trained(TorchCrossing()), Crossing(rngs=nnx.Rngs(0)), inputs)


def counter() -> Example:
    module = trained(TorchCounter())
    return Example(module, Counter(), (floats(3, 7, 3),), {"variables": counter_weights(module.state_dict())})
