"""Wrong ports that nobody looked at while the diagnosis was written."""

import numpy as np
import optax
import torch

from tests.parity.wrong.case import Wrong, build, repeated
from tests.parity.wrong.training import judged, optimized
from tests.parity.wrong.weights import converted, drawn

LLAMA = "layers.{}.self_attn"
GPT = "transformer.h.{}.attn"
MAX_POOL = "x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))"
BERT_NORM = 'x = nn.LayerNorm(epsilon=1e-12, name="attention_norm")(y + x)'
BERT_POSITIONS = "positions = 2 + jnp.arange(tokens.shape[1])"


def by_steps(parameters):
    """SGD whose rate is halved after each second step."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


SINGLE = {
    "squeezenet: Flax's default padding of the stem": Wrong(
        "squeezenet", {'strides=2, padding="VALID", rngs=rngs)': "strides=2, rngs=rngs)"}, (("padding", "features.0"),)
    ),
    "captioner: stride forgotten": Wrong(
        "captioner", {"(5,), strides=2, padding=2)": "(5,), padding=2)"}, (("stride", "conv1"),)
    ),
    "wavenet: dilation of the filter forgotten": Wrong(
        "wavenet",
        {"self.filter = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation":
         "self.filter = nnx.Conv(channels, channels, (size,)"},
        repeated("dilation", "blocks.{}.filter_conv", 1, 2)
    ),
    "captioner: pooling with Flax's default stride": Wrong(
        "captioner", {"nn.avg_pool(memory, (2,), strides=(2,))": "nn.avg_pool(memory, (2,))"},
        (("pooling-stride", "cross"),)
    ),
    "autoencoder: squeezed by the maximum": Wrong(
        "autoencoder", {"jnp.mean(x, axis=(1, 2), keepdims=True)": "jnp.max(x, axis=(1, 2), keepdims=True)"},
        (("pooling-kind", "se.fc1"),)
    ),
    "resnet18: max pooling without padding": Wrong(
        "resnet18", {MAX_POOL: "x = nn.max_pool(x, (3, 3), strides=(2, 2))"}, (("pooling-padding", "layer1.0.conv1"),)
    ),
    "autoencoder: instance norm's default epsilon": Wrong(
        "autoencoder", {"nnx.InstanceNorm(width, epsilon=1e-5, ": "nnx.InstanceNorm(width, "}, (("epsilon", "norm1"),)
    ),
    "mixer: norm over patches": Wrong(
        "mixer", {"self.token_norm = nnx.LayerNorm(dim, rngs=rngs)":
                  "self.token_norm = nnx.LayerNorm(dim, reduction_axes=1, rngs=rngs)"},
        repeated("normalised-axes", "blocks.{}.norm1", 0, 1)
    ),
    "autoencoder: Hardsigmoid for a sigmoid": Wrong(
        "autoencoder", {"x * nnx.sigmoid(y)": "x * nnx.hard_sigmoid(y)"}, (("activation", "up1"),)
    ),
    "captioner: GELU without tanh": Wrong(
        "captioner", {"nn.gelu(nn.Dense(2 * self.dim)(x))": "nn.gelu(nn.Dense(2 * self.dim)(x), approximate=False)"},
        (("activation-variant", "fc2"),)
    ),
    "autoencoder: Softplus without its beta": Wrong(
        "autoencoder", {"softplus(self.up1(x), 2)": "nnx.softplus(self.up1(x))"},
        (("activation-variant", "up2"),)
    ),
    "mobilenetv2: no ReLU6 after depthwise convolutions": Wrong(
        "mobilenetv2", {"y = nnx.relu6(self.depthwise(y))": "y = self.depthwise(y)"},
        (("activation-missing", "features.1.conv.1"), *repeated("activation-missing", "features.{}.conv.2", 2, 3, 4))
    ),
    "llama: scores divided by the head's size": Wrong(
        "llama", {"/ q.shape[-1] ** 0.5": "/ q.shape[-1]"}, repeated("attention-scale", LLAMA, 0, 1)
    ),
    "gpt_scan: no mask": Wrong(
        "gpt_scan", {"            mask=nn.make_causal_mask(x[..., 0], dtype=bool),\n": ""},
        repeated("attention-mask", GPT, 0, 1, 2)
    ),
    "gpt_scan: heads and their size exchanged": Wrong(
        "gpt_scan", {"y.reshape(*y.shape[:-1], self.heads, -1)": "y.reshape(*y.shape[:-1], -1, self.heads)"},
        repeated("attention-heads", GPT, 0, 1, 2)
    ),
    "llama: rotary the other way round": Wrong(
        "llama", {"[a * cos - b * sin, b * cos + a * sin]": "[a * cos + b * sin, b * cos - a * sin]"},
        repeated("rotary", LLAMA, 0, 1)
    ),
    "bert: positions from 1": Wrong(
        "bert", {BERT_POSITIONS: BERT_POSITIONS.replace("2", "1")},
        (("position-offset", "embeddings.position_embeddings"),)
    ),
    "captioner: embedding not times the width's root": Wrong(
        "captioner", {"(words) * self.dim**0.5": "(words)"}, (("scale", "cross"),)
    ),
    "unet: no bias at the end": Wrong(
        "unet", {"nn.Conv(self.classes, (1, 1))": "nn.Conv(self.classes, (1, 1), use_bias=False)"},
        (("bias-missing", "outc"),)
    ),
    "gru_nnx: Flax's own cell": Wrong(
        "gru_nnx", {"nnx.RNN(GRUCell(": "nnx.RNN(nnx.GRUCell("}, (("bias-missing", "gru"),)
    ),
    "bert: no residual around attention": Wrong(
        "bert", {BERT_NORM: BERT_NORM.replace("(y + x)", "(y)")}, repeated("residual", "layer.{}.attention_norm", 0, 1)
    ),
    "bert: the second residual from before the first norm": Wrong(
        "bert",
        {BERT_NORM: "first = y + x\n        " + BERT_NORM.replace("(y + x)", "(first)"),
         'return nn.LayerNorm(epsilon=1e-12, name="norm")(y + x)':
         'return nn.LayerNorm(epsilon=1e-12, name="norm")(y + first)'},
        repeated("residual-order", "layer.{}.output_norm", 0, 1)
    ),
    "autoencoder: no excitation": Wrong(
        "autoencoder", {"        x = self.excite(x)\n": ""}, (("layer-missing", "se"),)
    ),
    "mobilenetv2: the block with a residual twice": Wrong(
        "mobilenetv2", {"            x = block(x)\n":
                        "            x = block(block(x)) if block.residual else block(x)\n"},
        (("layer-twice", "features.3"),)
    ),
    "segmenter: bicubic for bilinear": Wrong(
        "segmenter", {'y.shape[-1]), "bilinear")': 'y.shape[-1]), "bicubic")'}, (("resize", "fuse"),)
    ),
    "unet: the second time concatenated the other way": Wrong(
        "unet", {"jnp.concatenate([x1, x], axis=-1)": "jnp.concatenate([x, x1], axis=-1)"},
        (("concatenation", "up2.conv.double_conv.0"),)
    ),
    "mobilenetv2: as if between 0 and 1": Wrong(
        "mobilenetv2", {"self.stem(x)": "self.stem(2 * x - 1)"}, (("input-scale", "features.0.0"),)
    ),
    "bert: the pooler in float16": Wrong(
        "bert", {'nn.Dense(self.width, name="pooler")': 'nn.Dense(self.width, dtype=jnp.float16, name="pooler")'},
        (("precision", "pooler"),)
    ),
    "squeezenet: dropout of whole channels": Wrong(
        "squeezenet", {"nnx.Dropout(dropout, rngs=rngs)": "nnx.Dropout(dropout, broadcast_dims=(1, 2), rngs=rngs)"},
        (("dropout-broadcast", "classifier.0"),)
    ),
    "autoencoder: PyTorch's momentum": Wrong(
        "autoencoder", {"BatchNorm(2 * width, rngs=rngs)": "BatchNorm(2 * width, momentum=0.1, rngs=rngs)"},
        (("batch-norm-momentum", "norm2"),)
    ),
    "lenet5_nnx: a smooth schedule for one by steps": optimized(
        "lenet5_nnx", "schedule", by_steps, optax.sgd(optax.exponential_decay(0.1, 2, 0.5))
    ),
    "bridge_linen: squares summed over classes": judged(
        "bridge_linen", "loss-reduction", lambda output: torch.nn.functional.mse_loss(output, torch.ones_like(output)),
        lambda output: ((output - 1) ** 2).sum(axis=-1).mean()
    ),
    "lstm: recurrent kernels not transposed": converted(
        "lstm", "kernel-not-transposed", "lstm",
        **{f"OptimizedLSTMCell_0/h{gate}/kernel": np.transpose for gate in "ifgo"}
    ),
    "captioner: embedding left as it was": converted(
        "captioner", "weights-missing", "embedding", **{"Embed_0/embedding": drawn}
    ),
}  # fmt: skip

TWO = {
    "captioner: SAME padding with stride 2; no residual around attention": Wrong(
        "captioner",
        {"(5,), strides=2, padding=2)": "(5,), strides=2)",
         "x = nn.LayerNorm(epsilon=1e-5)(x + y)\n        y = ": "x = nn.LayerNorm(epsilon=1e-5)(y)\n        y = "},
        (("padding", "conv1"), ("residual", "norm1"))
    ),
    "autoencoder: colours reversed; ReLU for Softplus": Wrong(
        "autoencoder", {"self.down1(x)": "self.down1(x[..., ::-1])",
                        "softplus(self.up1(x), 2)": "nnx.relu(self.up1(x))"},
        (("channels-reversed", "conv1"), ("activation", "up2"))
    ),
    "gpt: GELU's tanh; logits divided": Wrong(
        "gpt", {"y = nn.gelu(nn.Dense(4 * x.shape[-1])(y), approximate=False)":
                "y = nn.gelu(nn.Dense(4 * x.shape[-1])(y))",
                "return embed.attend(x)": "return embed.attend(x) / self.width**0.5"},
        (*repeated("activation-variant", "transformer.h.{}.mlp.c_proj", 0, 1, 2), ("scale", "output"))
    ),
    "resnet18: epsilon 1e-3; maximum for the mean of all": Wrong(
        "resnet18", {'norm(name="bn_init")': 'norm(name="bn_init", epsilon=1e-3)',
                     "x = jnp.mean(x, axis=(1, 2))": "x = jnp.max(x, axis=(1, 2))"},
        (("epsilon", "bn1"), ("pooling-kind", "fc"))
    ),
    "llama: ReLU for SiLU; the last norm with epsilon 1e-5": Wrong(
        "llama", {"nnx.silu(self.gate(x))": "nnx.relu(self.gate(x))",
                  "self.norm = nnx.RMSNorm(dim, epsilon=1e-6": "self.norm = nnx.RMSNorm(dim, epsilon=1e-5"},
        (*repeated("activation", "layers.{}.mlp.down_proj", 0, 1), ("epsilon", "norm"))
    ),
    "wavenet: ReLU for tanh; the mean of skips for their sum": Wrong(
        "wavenet", {"nnx.tanh(self.filter(x))": "nnx.relu(self.filter(x))",
                    "jnp.sum(jnp.stack(skips), axis=0)": "jnp.mean(jnp.stack(skips), axis=0)"},
        (*repeated("activation", "blocks.{}.residual_conv", 0, 1, 2), ("scale", "output"))
    ),
}  # fmt: skip

CASES = SINGLE | TWO

__all__ = ["CASES", "Wrong", "build"]
