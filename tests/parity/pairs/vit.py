"""Vision transformer: torchvision's, and a port to NNX."""

import jax.numpy as jnp
import torch
from flax import nnx

from tests.parity.pairs.example import Example, floats


class MLPBlock(torch.nn.Sequential):
    def __init__(self, in_dim, mlp_dim, dropout):
        super().__init__(
            torch.nn.Linear(in_dim, mlp_dim),
            torch.nn.GELU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(mlp_dim, in_dim),
            torch.nn.Dropout(dropout),
        )


class TorchEncoderBlock(torch.nn.Module):
    def __init__(self, num_heads, hidden_dim, mlp_dim, dropout):
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(hidden_dim, eps=1e-6)
        self.self_attention = torch.nn.MultiheadAttention(hidden_dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = torch.nn.Dropout(dropout)
        self.ln_2 = torch.nn.LayerNorm(hidden_dim, eps=1e-6)
        self.mlp = MLPBlock(hidden_dim, mlp_dim, dropout)

    def forward(self, input):
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x)
        x = x + input
        y = self.ln_2(x)
        y = self.mlp(y)
        return x + y


class TorchEncoder(torch.nn.Module):
    def __init__(self, seq_length, num_layers, num_heads, hidden_dim, mlp_dim, dropout):
        super().__init__()
        self.pos_embedding = torch.nn.Parameter(torch.empty(1, seq_length, hidden_dim).normal_(std=0.02))
        self.dropout = torch.nn.Dropout(dropout)
        self.layers = torch.nn.Sequential()
        for i in range(num_layers):
            block = TorchEncoderBlock(num_heads, hidden_dim, mlp_dim, dropout)
            self.layers.add_module(f"encoder_layer_{i}", block)
        self.ln = torch.nn.LayerNorm(hidden_dim, eps=1e-6)

    def forward(self, input):
        input = input + self.pos_embedding
        return self.ln(self.layers(self.dropout(input)))


class TorchVisionTransformer(torch.nn.Module):
    def __init__(self, image, patch, layers, heads, hidden_dim, mlp_dim, classes, dropout):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.conv_proj = torch.nn.Conv2d(3, hidden_dim, kernel_size=patch, stride=patch)
        self.class_token = torch.nn.Parameter(torch.zeros(1, 1, hidden_dim))
        self.encoder = TorchEncoder((image // patch) ** 2 + 1, layers, heads, hidden_dim, mlp_dim, dropout)
        self.head = torch.nn.Linear(hidden_dim, classes)

    def forward(self, x):
        n = x.shape[0]
        x = self.conv_proj(x)
        x = x.reshape(n, self.hidden_dim, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1)
        x = self.encoder(x)
        return self.head(x[:, 0])


class MLP(nnx.Module):
    def __init__(self, dim: int, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(dim, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, dim, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.gelu(self.up(x), approximate=False))
        return self.dropout(self.down(x))


class EncoderBlock(nnx.Module):
    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, dim, dropout_rate=dropout, broadcast_dropout=False, decode=False, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.mlp = MLP(dim, hidden, dropout, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nnx.Module):
    def __init__(
        self, image: int, patch: int, layers: int, heads: int, dim: int, hidden: int, classes: int, dropout: float,
        *, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.patches = nnx.Conv(3, dim, (patch, patch), strides=(patch, patch), padding="VALID", rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, dim)))
        positions = nnx.initializers.normal(0.02)(rngs.params(), (1, (image // patch) ** 2 + 1, dim))
        self.positions = nnx.Param(positions)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.blocks = nnx.List([EncoderBlock(dim, heads, hidden, dropout, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(dim, classes, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.positions[...]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit() -> Example:
    sizes = (12, 4, 2, 2, 8, 16, 10, 0.1)
    return Example(TorchVisionTransformer(*sizes), VisionTransformer(*sizes, rngs=nnx.Rngs(0)), (floats(3, 3, 12, 12),))
