"""MLP-Mixer, ported to NNX."""

import jax.numpy as jnp
import torch
from flax import nnx

from tests.parity.pairs.example import Example, floats


class TorchMlp(torch.nn.Module):
    def __init__(self, in_features, hidden_features, drop):
        super().__init__()
        self.fc1 = torch.nn.Linear(in_features, hidden_features)
        self.act = torch.nn.GELU()
        self.drop1 = torch.nn.Dropout(drop)
        self.fc2 = torch.nn.Linear(hidden_features, in_features)
        self.drop2 = torch.nn.Dropout(drop)

    def forward(self, x):
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))


class TorchMixerBlock(torch.nn.Module):
    def __init__(self, dim, seq_len, tokens_dim, channels_dim, drop):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(dim, eps=1e-6)
        self.mlp_tokens = TorchMlp(seq_len, tokens_dim, drop)
        self.norm2 = torch.nn.LayerNorm(dim, eps=1e-6)
        self.mlp_channels = TorchMlp(dim, channels_dim, drop)

    def forward(self, x):
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class TorchMlpMixer(torch.nn.Module):
    def __init__(self, image, patch, layers, dim, tokens_dim, channels_dim, classes, drop):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        length = (image // patch) ** 2
        blocks = [TorchMixerBlock(dim, length, tokens_dim, channels_dim, drop) for _ in range(layers)]
        self.blocks = torch.nn.Sequential(*blocks)
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.head = torch.nn.Linear(dim, classes)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x))
        return self.head(x.mean(dim=1))


class MlpBlock(nnx.Module):
    def __init__(self, features: int, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(
            nnx.Linear(features, hidden, rngs=rngs),
            lambda x: nnx.gelu(x, approximate=False),
            nnx.Dropout(dropout, rngs=rngs),
            nnx.Linear(hidden, features, rngs=rngs),
            nnx.Dropout(dropout, rngs=rngs),
        )

    def __call__(self, x):
        return self.layers(x)


class MixerBlock(nnx.Module):
    def __init__(self, dim: int, length: int, tokens: int, channels: int, dropout: float, *, rngs: nnx.Rngs):
        self.token_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.token_mixing = MlpBlock(length, tokens, dropout, rngs=rngs)
        self.channel_norm = nnx.LayerNorm(dim, rngs=rngs)
        self.channel_mixing = MlpBlock(dim, channels, dropout, rngs=rngs)

    def __call__(self, x):
        y = self.token_mixing(self.token_norm(x).swapaxes(1, 2))
        x = x + y.swapaxes(1, 2)
        return x + self.channel_mixing(self.channel_norm(x))


class MlpMixer(nnx.Module):
    def __init__(
        self, image: int, patch: int, layers: int, dim: int, tokens: int, channels: int, classes: int, dropout: float,
        *, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.stem = nnx.Conv(3, dim, (patch, patch), strides=patch, rngs=rngs)
        length = (image // patch) ** 2
        self.blocks = nnx.Sequential(
            *[MixerBlock(dim, length, tokens, channels, dropout, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.head = nnx.Linear(dim, classes, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = self.norm(self.blocks(x))
        return self.head(jnp.mean(x, axis=1))


def mixer() -> Example:
    sizes = (12, 4, 2, 8, 12, 16, 10, 0.1)
    return Example(TorchMlpMixer(*sizes), MlpMixer(*sizes, rngs=nnx.Rngs(0)), (floats(3, 3, 12, 12),))
