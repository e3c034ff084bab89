"""LSTM and GRU over sequences."""

import flax.linen as nn
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example, floats, tokens


class TorchLSTMClassifier(torch.nn.Module):
    def __init__(self, vocabulary, embedding, hidden, classes, dropout=0.3):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, embedding)
        self.lstm = torch.nn.LSTM(embedding, hidden, batch_first=True)
        self.dropout = torch.nn.Dropout(dropout)
        self.fc = torch.nn.Linear(hidden, classes)

    def forward(self, tokens):
        out, _ = self.lstm(self.embedding(tokens))
        return self.fc(self.dropout(out[:, -1]))


class LSTMClassifier(nn.Module):
    vocabulary: int
    embedding: int
    hidden: int
    classes: int
    dropout: float = 0.3

    @nn.compact
    def __call__(self, tokens, *, deterministic: bool = True):
        x = nn.Embed(self.vocabulary, self.embedding)(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(self.hidden))(x)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x[:, -1])
        return nn.Dense(self.classes)(x)


class TorchTagger(torch.nn.Module):
    def __init__(self, features, hidden, tags, dropout=0.3):
        super().__init__()
        self.dropout = dropout
        self.lstm = torch.nn.LSTM(features, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.out = torch.nn.Linear(2 * hidden, tags)

    def forward(self, x):
        x, _ = self.lstm(x)
        x = F.dropout(x, self.dropout, self.training)
        return self.out(x)


class Tagger(nn.Module):
    hidden: int
    tags: int
    dropout: float = 0.3
    train: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            forward = nn.RNN(nn.OptimizedLSTMCell(self.hidden))
            backward = nn.RNN(nn.OptimizedLSTMCell(self.hidden))
            x = nn.Bidirectional(forward, backward)(x)
        x = nn.Dropout(self.dropout, deterministic=not self.train)(x)
        return nn.Dense(self.tags)(x)


class TorchGRUClassifier(torch.nn.Module):
    def __init__(self, features, hidden, classes, dropout=0.2):
        super().__init__()
        self.gru = torch.nn.GRU(features, hidden, batch_first=True)
        self.dropout = torch.nn.Dropout(dropout)
        self.linear = torch.nn.Linear(hidden, classes)

    def forward(self, x):
        _, h = self.gru(x)
        return self.linear(self.dropout(h[-1]))


class GRUCell(nnx.GRUCell):
    """A cell whose hidden transformation has biases too: PyTorch's b_hn is inside the reset gate's product."""

    def __init__(self, in_features: int, hidden_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.dense_h = nnx.Linear(hidden_features, 3 * hidden_features, rngs=rngs)


class GRUClassifier(nnx.Module):
    def __init__(self, features: int, hidden: int, classes: int, dropout: float = 0.2, *, rngs: nnx.Rngs):
        self.hidden = hidden
        self.rnn = nnx.RNN(GRUCell(features, hidden, rngs=rngs), return_carry=True)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.linear = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x):
        h, _ = self.rnn(x, initial_carry=jnp.zeros((x.shape[0], self.hidden), x.dtype))
        return self.linear(self.dropout(h))


def lstm() -> Example:
    sizes = (13, 5, 6, 4)
    return Example(TorchLSTMClassifier(*sizes), LSTMClassifier(*sizes), (tokens(13, 3, 7),))


def bilstm() -> Example:
    return Example(TorchTagger(5, 6, 4), Tagger(6, 4), (floats(3, 7, 5),))


def gru_nnx() -> Example:
    return Example(TorchGRUClassifier(5, 6, 4), GRUClassifier(5, 6, 4, rngs=nnx.Rngs(0)), (floats(3, 7, 5),))
