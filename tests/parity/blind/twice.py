"""Ports with two mistakes."""

from tests.parity.blind.wrong import Wrong

TWICE = {
    "separable twice": Wrong(
        "separable",
        {"(3, 3), kernel_dilation=2, ": "(3, 3), ", "((1, 1), (1, 1)), count_include_pad=False)": "((1, 1), (1, 1)))"},
        (("dilation", "depth"), ("pooling-padding", "mixing")),
    ),
    "keywords twice": Wrong(
        "keywords",
        {"(5,), strides=2, padding=2,": "(5,), strides=2,", "nn.silu(x).max": "nn.relu(x).max"},
        (("padding", "conv1"), ("activation", "head")),
    ),
    "prenorm twice": Wrong(
        "prenorm",
        {
            "np.concatenate([q, k, v]).T": "np.concatenate([q, v, k]).T",
            "y = nn.silu(nn.Dense(12": "y = nn.gelu(nn.Dense(12",
        },
        (("weights-shuffled", "qkv"), ("activation", "down")),
    ),
    "crossing twice": Wrong(
        "crossing",
        {"ignored[:, None, None] == 0": "ignored[:, None, None] == 1", "self.ff1(x), approximate=False": "self.ff1(x)"},
        (("attention-mask", "attention"), ("activation-variant", "ff.2")),
    ),
    "resnet18 twice": Wrong(
        "resnet18",
        {
            "(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))": '(3, 3), strides=(2, 2), padding="SAME")',
            "x = jnp.mean(x, axis=(1, 2))": "x = jnp.max(x, axis=(1, 2))",
        },
        (("pooling-padding", "layer1.0.conv1"), ("pooling-kind", "fc")),
    ),
    "a stride in the block's other convolution": Wrong(
        "resnet18",
        {
            "(3, 3), self.strides, padding=1)(x)": "(3, 3), padding=1)(x)",
            "(3, 3), padding=1)(y)": "(3, 3), self.strides, padding=1)(y)",
        },
        (("stride", "layer2.0.conv1"), ("stride", "layer2.0.conv2")),
    ),
    "vit twice": Wrong(
        "vit",
        {
            "self.norm = nnx.LayerNorm(dim, epsilon=1e-6": "self.norm = nnx.LayerNorm(dim, epsilon=1e-5",
            "x = self.patches(x)": "x = self.patches(x / 255)",
        },
        (("input-scale", "conv_proj"), ("epsilon", "encoder.ln")),
    ),
    "mixture twice": Wrong(
        "mixture",
        {"nnx.tanh(self.hidden1(x))": "nnx.relu(self.hidden1(x))", " / 0.7, axis=1": " * 0.7, axis=1"},
        (("activation", "hidden2"), ("scale", "output")),
    ),
    "pyramid twice": Wrong(
        "pyramid",
        {"x = (x - jnp.array(MEAN, x.dtype)) /": "x = x /", 'fine.shape, "bilinear")': 'fine.shape, "nearest")'},
        (("input-scale", "fine"), ("resize", "smooth")),
    ),
    "gpt twice": Wrong(
        "gpt",
        {
            "embed(tokens) + positions, deterministic": "embed(tokens) * self.width**0.5 + positions, deterministic",
            "x = nn.LayerNorm(epsilon=1e-5)(x)\n        return embed.attend(x)": "return embed.attend(x)",
        },
        (("scale", "transformer.h.0.ln_1"), ("layer-missing", "transformer.ln_f")),
    ),
}
