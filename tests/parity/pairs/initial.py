"""A classifier of short texts whose first weights are drawn as PyTorch draws them, ported to Linen and to NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
from flax import nnx

from tests.parity.pairs.example import Example, tokens


class TorchTextClassifier(torch.nn.Module):
    def __init__(self, vocabulary, width, hidden, classes):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.conv = torch.nn.Conv1d(width, hidden, 3, padding=1)
        self.fc1 = torch.nn.Linear(hidden, hidden)
        self.fc2 = torch.nn.Linear(hidden, classes)
        torch.nn.init.xavier_uniform_(self.fc2.weight)
        torch.nn.init.zeros_(self.fc2.bias)

    def forward(self, tokens):
        x = self.embedding(tokens).transpose(1, 2)
        x = torch.relu(self.conv(x)).mean(dim=2)
        x = torch.relu(self.fc1(x))
        return self.fc2(x)


def torch_bias(fan_in: int):
    """Draw uniformly between -1/sqrt(fan_in) and its opposite, as PyTorch draws biases."""

    def draw(key, shape, dtype=jnp.float32, **options):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return draw


torch_kernel = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier = jax.nn.initializers.xavier_uniform()


class TextClassifier(nn.Module):
    vocabulary: int
    width: int
    hidden: int
    classes: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width, embedding_init=nn.initializers.normal(1.0))(tokens)
        x = nn.Conv(self.hidden, (3,), kernel_init=torch_kernel, bias_init=torch_bias(3 * self.width))(x)
        x = jnp.mean(nn.relu(x), axis=1)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=torch_kernel, bias_init=torch_bias(self.hidden))(x))
        return nn.Dense(self.classes, kernel_init=xavier)(x)


class NNXTextClassifier(nnx.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int, classes: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.conv = nnx.Conv(width, hidden, (3,), kernel_init=torch_kernel, bias_init=torch_bias(3 * width), rngs=rngs)
        self.middle = nnx.Linear(hidden, hidden, kernel_init=torch_kernel, bias_init=torch_bias(hidden), rngs=rngs)
        self.last = nnx.Linear(hidden, classes, kernel_init=xavier, rngs=rngs)

    def __call__(self, tokens):
        x = jnp.mean(nnx.relu(self.conv(self.embed(tokens))), axis=1)
        return self.last(nnx.relu(self.middle(x)))


SIZES = (11, 6, 16, 5)


def initial(seed: int = 0) -> Example:
    return Example(TorchTextClassifier(*SIZES), TextClassifier(*SIZES), (tokens(11, 4, 7),))


def initial_nnx(seed: int = 0) -> Example:
    return Example(TorchTextClassifier(*SIZES), NNXTextClassifier(*SIZES, rngs=nnx.Rngs(seed)), (tokens(11, 4, 7),))
