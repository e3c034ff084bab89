"""Weights that were converted wrongly, in ports that are right."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

import parity
from jaxcnn.files import flat_names
from tests.parity.wrong.case import Build, Wrong, trained

Spoil = Callable[[np.ndarray], np.ndarray]


def spoilt(variables: dict[str, Spoil]) -> Callable[[str, Build], Any]:
    """The weights of the right pair, of which these variables (collection/module/name) are spoilt."""

    def make(pair: str, builder: Build) -> Any:
        example = trained(pair)
        table = parity.propose(example.torch_module, example.flax_module, *example.inputs, **example.options)
        converted = table.to_flax(example.torch_module.state_dict())
        assert variables.keys() <= flat_names(converted).keys(), [*flat_names(converted)]

        def spoil(path: Any, array: np.ndarray) -> np.ndarray:
            name = "/".join(str(getattr(key, "key", key)) for key in path)
            return variables[name](np.asarray(array)) if name in variables else array

        return jax.tree_util.tree_map_with_path(spoil, converted)

    return make


def converted(pair: str, code: str, layer: str, **variables: Spoil) -> Wrong:
    return Wrong(pair, {}, ((code, layer),), {"variables": spoilt({f"params/{n}": f for n, f in variables.items()})})


def axes(*order: int) -> Spoil:
    return lambda array: array.transpose(order)


def rolled(parts: int, axis: int = -1) -> Spoil:
    """The equal parts of an axis, each in the place of the next."""
    return lambda array: np.roll(array, array.shape[axis] // parts, axis)


def chosen(*parts: int, axis: int = -1) -> Spoil:
    """The equal parts of an axis in another order."""
    return lambda array: np.concatenate([np.split(array, len(parts), axis)[i] for i in parts], axis)


def unpermuted(channels: int, height: int, width: int) -> Spoil:
    """Rows of a dense layer in the order in which PyTorch flattens."""
    return lambda kernel: kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


def reshaped(kernel: np.ndarray) -> np.ndarray:
    """A dense kernel brought to Flax's shape by reshape, where it should be transposed."""
    return kernel.T.reshape(kernel.shape)


def drawn(array: np.ndarray) -> np.ndarray:
    """Initial values of a kernel."""
    return np.random.default_rng(5).standard_normal(array.shape).astype(array.dtype) / 4


minus_one = partial(np.add, -1)

CASES = {
    "lenet5: height and width swapped": converted(
        "lenet5", "kernel-axes", "conv1", **{"Conv_0/kernel": axes(1, 0, 2, 3)}
    ),
    "vit: height and width swapped": converted(
        "vit", "kernel-axes", "conv_proj", **{"patches/kernel": axes(1, 0, 2, 3)}
    ),
    "unet: channels swapped": converted(
        "unet", "kernel-axes", "inc.double_conv.3", **{"DoubleConv_0/Conv_1/kernel": axes(0, 1, 3, 2)}
    ),
    "bridge_nnx: channels swapped": converted(
        "bridge_nnx", "kernel-axes", "conv2", **{"encoder/Conv_1/kernel": axes(0, 1, 3, 2)}
    ),
    "lenet5_nnx: dense kernel reshaped": converted(
        "lenet5_nnx", "kernel-axes", "fc2", **{"hidden_b/kernel": reshaped}
    ),
    "vgg_bn: dense kernel not transposed": converted(
        "vgg_bn", "kernel-not-transposed", "classifier.3", **{"Dense_1/kernel": np.transpose}
    ),
    "llama: dense kernel not transposed": converted(
        "llama", "kernel-not-transposed", "layers.0.self_attn.o_proj", **{"layers/0/attention/out/kernel": np.transpose}
    ),
    "bert: dense kernel not transposed": converted(
        "bert", "kernel-not-transposed", "pooler", **{"pooler/kernel": np.transpose}
    ),
    "unet: transposed convolution not flipped": converted(
        "unet", "kernel-flipped", "up1.up", **{"ConvTranspose_0/kernel": partial(np.flip, axis=(0, 1))}
    ),
    "unet: transposed convolution flipped": converted(
        "unet", "kernel-flipped", "up2.up", **{"ConvTranspose_1/kernel": partial(np.flip, axis=(0, 1))}
    ),
    "wavenet: kernel flipped": converted(
        "wavenet", "kernel-flipped", "blocks.0.filter_conv", **{"blocks/0/filter/kernel": partial(np.flip, axis=0)}
    ),
    "lenet5: rows after flattening": converted(
        "lenet5", "flatten-order", "fc1", **{"Dense_0/kernel": unpermuted(8, 2, 2)}
    ),
    "inputnorm: rows after flattening": converted(
        "inputnorm", "flatten-order", "fc", **{"fc/kernel": unpermuted(4, 4, 4)}
    ),
    "vgg_bn: rows after flattening": converted(
        "vgg_bn", "flatten-order", "classifier.0", **{"Dense_0/kernel": unpermuted(12, 2, 2)}
    ),
    "gpt: positions left as they were": converted(
        "gpt", "weights-missing", "transformer.wpe", **{"Embed_1/embedding": drawn}
    ),
    "lenet5_nnx: head left as it was": converted(
        "lenet5_nnx", "weights-missing", "fc3", **{"classifier/kernel": drawn, "classifier/bias": np.zeros_like}
    ),
    "mixer: norm left as it was": converted(
        "mixer", "weights-missing", "norm", **{"norm/scale": np.ones_like, "norm/bias": np.zeros_like}
    ),
    "vgg_bn: statistics left as they were": Wrong(
        "vgg_bn", {}, tuple(("weights-missing", path) for path in ("features.1", "features.5")),
        {"variables": spoilt({
            f"batch_stats/BatchNorm_{n}/{name}": fill
            for n in (0, 1) for name, fill in (("mean", np.zeros_like), ("var", np.ones_like))
        })}
    ),
    "gpt_scan: keys, queries, values": converted(
        "gpt_scan", "weights-shuffled", "attn.c_attn",
        **{f"blocks/FusedAttention_0/qkv/{name}": chosen(1, 0, 2) for name in ("kernel", "bias")}
    ),
    "bert: heads in another order": converted(
        "bert", "weights-shuffled", "layer.0.attention.query",
        **{f"Layer_0/attention/query/{name}": rolled(2) for name in ("kernel", "bias")}
    ),
    "gru_nnx: gates in another order": converted(
        "gru_nnx", "weights-shuffled", "gru",
        **{f"rnn/cell/dense_{part}": chosen(1, 0, 2) for part in ("i/kernel", "h/kernel", "i/bias", "h/bias")}
    ),
    "llama: rows of the head in another order": converted(
        "llama", "weights-shuffled", "lm_head", **{"head/kernel": partial(np.flip, axis=1)}
    ),
    "segmenter: groups in another order": converted(
        "segmenter", "groups", "grouped", **{f"Conv_1/{name}": rolled(2) for name in ("kernel", "bias")}
    ),
    "llama: norms less 1": converted(
        "llama", "scale-offset", "norm", **{"norm/scale": minus_one}
    ),
    "bert: a norm less 1": converted(
        "bert", "scale-offset", "embeddings.LayerNorm", **{"norm/scale": minus_one}
    ),
    "llama: a norm that adds 1 to its weights": Wrong(
        "llama",
        {"class Llama(nnx.Module):":
         "class OneMore(nnx.RMSNorm):\n"
         "    def __call__(self, x):\n"
         "        return super().__call__(x) / self.scale[...] * (1 + self.scale[...])\n\n\n"
         "class Llama(nnx.Module):",
         "self.norm = nnx.RMSNorm(dim,": "self.norm = OneMore(dim,"},
        (("scale-offset", "norm"),)
    ),
}  # fmt: skip
