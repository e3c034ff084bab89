"""Words that attend to a sound: convolutions in one dimension and attention to another sequence, ported to Linen."""

import flax.linen as nn
import torch
import torch.nn.functional as F

from tests.parity.pairs.example import Example, floats, tokens


class TorchCaptioner(torch.nn.Module):
    def __init__(self, features, vocabulary, dim, heads):
        super().__init__()
        self.conv1 = torch.nn.Conv1d(features, dim, 5, stride=2, padding=2)
        self.conv2 = torch.nn.Conv1d(dim, dim, 3, padding=1)
        self.pool = torch.nn.AdaptiveAvgPool1d(4)
        self.embedding = torch.nn.Embedding(vocabulary, dim)
        self.cross = torch.nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = torch.nn.LayerNorm(dim)
        self.fc1 = torch.nn.Linear(dim, 2 * dim)
        self.act = torch.nn.GELU(approximate="tanh")
        self.fc2 = torch.nn.Linear(2 * dim, dim)
        self.norm2 = torch.nn.LayerNorm(dim)
        self.head = torch.nn.Linear(dim, vocabulary)

    def forward(self, sound, words):
        memory = F.softplus(self.conv1(sound))
        memory = F.relu(self.conv2(memory))
        memory = self.pool(memory).transpose(1, 2)
        x = self.embedding(words) * self.embedding.embedding_dim**0.5
        y, _ = self.cross(x, memory, memory, need_weights=False)
        x = self.norm1(x + y)
        x = self.norm2(x + self.fc2(self.act(self.fc1(x))))
        return self.head(x)


class Captioner(nn.Module):
    vocabulary: int
    dim: int
    heads: int

    @nn.compact
    def __call__(self, sound, words):
        memory = nn.softplus(nn.Conv(self.dim, (5,), strides=2, padding=2)(sound))
        memory = nn.relu(nn.Conv(self.dim, (3,))(memory))
        memory = nn.avg_pool(memory, (2,), strides=(2,))
        x = nn.Embed(self.vocabulary, self.dim)(words) * self.dim**0.5
        y = nn.MultiHeadDotProductAttention(self.heads)(x, memory)
        x = nn.LayerNorm(epsilon=1e-5)(x + y)
        y = nn.gelu(nn.Dense(2 * self.dim)(x))
        y = nn.Dense(self.dim)(y)
        x = nn.LayerNorm(epsilon=1e-5)(x + y)
        return nn.Dense(self.vocabulary)(x)


def captioner() -> Example:
    sound, words = floats(3, 3, 16), tokens(11, 3, 6)
    options = {"flax_inputs": (sound.transpose(0, 2, 1), words)}
    return Example(TorchCaptioner(3, 11, 8, 2), Captioner(11, 8, 2), (sound, words), options)
