"""More ports by one who did not know: weights converted wrongly, training, and two mistakes at once."""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict, unflatten_dict

import parity
from tests.parity.pairs import EXAMPLES
from tests.parity.pairs.example import tokens
from tests.parity.wrong.case import Wrong, repeated, trained


def given(*changes: tuple[str, Callable]) -> dict:
    """The user's own weights, right but for those whose names end so."""

    def variables(pair, _):
        right = trained(pair)
        table = parity.propose(right.torch_module, right.flax_module, *right.inputs, **right.options)
        flat = flatten_dict(table.to_flax(right.torch_module.state_dict()), sep="/")
        for end, change in changes:
            names = [name for name in flat if name.endswith(end)]
            assert names, end
            flat.update({name: change(np.array(flat[name])) for name in names})
        return unflatten_dict(flat, sep="/")

    return {"variables": variables}


def parts(*order: int) -> Callable:
    """Put the parts of the last axis in this order."""
    return lambda w: np.concatenate([np.split(w, len(order), -1)[i] for i in order], -1)


def per_head(w):
    """Have q, k, v of each head beside each other, as GPT-NeoX has, of two heads."""
    return w.reshape(*w.shape[:-1], 3, 2, -1).swapaxes(-3, -2).reshape(w.shape)


WEIGHTS = {
    "lenet5: all axes of the second kernel turned round": Wrong(
        "lenet5", {}, (("kernel-axes", "conv2"),), given(("Conv_1/kernel", lambda w: w.swapaxes(0, 1)))
    ),
    "wavenet: square kernels reshaped, not transposed": Wrong(
        "wavenet", {}, repeated("kernel-axes", "blocks.{}.filter_conv", 0, 1, 2),
        given(("filter/kernel", lambda w: w.transpose(2, 1, 0).reshape(w.shape))),
    ),
    "bert: pooler as it is": Wrong(
        "bert", {}, (("kernel-not-transposed", "pooler"),), given(("pooler/kernel", np.transpose))
    ),
    "vgg_bn: first dense layer for channels first": Wrong(
        "vgg_bn", {}, (("flatten-order", "classifier.0"),),
        given(("Dense_0/kernel", lambda w: w.reshape(4, 12, -1).swapaxes(0, 1).reshape(w.shape))),
    ),
    "gru_nnx: Keras' order of gates": Wrong(
        "gru_nnx", {}, (("weights-shuffled", "gru"),),
        given(*((f"dense_{name}", parts(1, 0, 2)) for name in ("i/kernel", "i/bias", "h/kernel", "h/bias"))),
    ),
    "gpt_scan: q, k, v beside each other in each head": Wrong(
        "gpt_scan", {}, (("weights-shuffled", "attn.c_attn"),),
        given(("qkv/kernel", per_head), ("qkv/bias", per_head)),
    ),
    "llama: scales less one, as Gemma has": Wrong(
        "llama", {},
        (*repeated("scale-offset", "layers.{}.input_layernorm", 0, 1),
         *repeated("scale-offset", "layers.{}.post_attention_layernorm", 0, 1), ("scale-offset", "norm")),
        given(("scale", lambda w: w - 1)),
    ),
    "unet: taps of the last transposed convolution turned round": Wrong(
        "unet", {}, (("kernel-flipped", "up2.up"),), given(("ConvTranspose_1/kernel", lambda w: w[::-1, ::-1]))
    ),
    "autoencoder: statistics not loaded": Wrong(
        "autoencoder", {}, (("weights-missing", "norm2"),),
        given(("batch/mean", np.zeros_like), ("batch/var", np.ones_like)),
    ),
    "segmenter: groups taken as the inner axis": Wrong(
        "segmenter", {}, (("groups", "grouped"),),
        given(("Conv_1/kernel", lambda w: w.reshape(3, 3, 4, 2, 8).swapaxes(3, 4).reshape(w.shape))),
    ),
    "captioner: rows of the output projection as of the head's features": Wrong(
        "captioner", {}, (("weights-shuffled", "cross"),),
        given(("out/kernel", lambda w: w.reshape(4, 2, 8).swapaxes(0, 1))),
    ),
}  # fmt: skip


def hooked(make: Callable, before: Callable = lambda parameters: None, factor: Callable = lambda step: 1.0) -> Callable:
    """PyTorch's optimizer with something done to the parameters before each step, and a schedule."""

    def optimizer(parameters):
        parameters = list(parameters)
        made = make(parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)

        def first(*_):
            before(parameters)

        made.register_step_pre_hook(first)
        made.register_step_post_hook(lambda *_: schedule.step())
        return made

    return optimizer


def bert_adam(rate: float) -> optax.GradientTransformation:
    """Adam as BERT's code has it: without correction of the bias."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None):
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], updates)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], updates)
        return jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + 1e-8), m, v), (m, v)

    return optax.GradientTransformation(init, update)


def trains(theirs: Callable, ours: optax.GradientTransformation) -> dict:
    return {"optimizer": (theirs, ours)}


SGD, ADAM, ADAMW = (
    partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    partial(torch.optim.Adam, lr=1e-3),
    partial(torch.optim.AdamW, lr=1e-3),
)
KERNELS = partial(jax.tree.map, lambda w: w.ndim > 1)
LABELS = np.array([1, 9, 4])
WORDS = tokens(11, 3, 6)


def smoothed(output):
    """Cross-entropy with what is smoothed given to the other classes only."""
    hot = jax.nn.one_hot(LABELS, 10)
    return optax.softmax_cross_entropy(output, jnp.where(hot == 1, 0.9, 0.1 / 9)).mean()


OPTIMIZERS = {
    "lenet5: each framework's own weight decay": Wrong(
        "lenet5", {}, (("weight-decay", "optimizer"),), trains(ADAMW, optax.adamw(1e-3))
    ),
    "mixer: L2 in the gradients became decoupled decay": Wrong(
        "mixer", {}, (("weight-decay", "optimizer"),),
        trains(partial(ADAM, weight_decay=0.1), optax.adamw(1e-3, weight_decay=0.1)),
    ),
    "gru_nnx: only kernels decay": Wrong(
        "gru_nnx", {}, (("weight-decay", "optimizer"),),
        trains(partial(ADAMW, weight_decay=0.1), optax.adamw(1e-3, weight_decay=0.1, mask=KERNELS)),
    ),
    "convnext: momentum without Nesterov": Wrong(
        "convnext", {}, (("nesterov", "optimizer"),), trains(partial(SGD, nesterov=True), optax.sgd(0.01, 0.9))
    ),
    "wavenet: momentum without dampening": Wrong(
        "wavenet", {}, (("dampening", "optimizer"),), trains(partial(SGD, dampening=0.5), optax.sgd(0.01, 0.9))
    ),
    "lstm: TensorFlow's epsilon": Wrong(
        "lstm", {}, (("adam-epsilon", "optimizer"),), trains(ADAM, optax.adam(1e-3, eps=1e-7))
    ),
    "bilstm: BERT's Adam": Wrong("bilstm", {}, (("bias-correction", "optimizer"),), trains(ADAM, bert_adam(1e-3))),
    "bridge_nnx: clipped by value, not by norm": Wrong(
        "bridge_nnx", {}, (("clipping", "optimizer"),),
        trains(hooked(SGD, before=partial(torch.nn.utils.clip_grad_norm_, max_norm=0.5)),
               optax.chain(optax.clip(0.5), optax.sgd(0.01, 0.9))),
    ),
    "captioner: warm-up begins a step later": Wrong(
        "captioner", {}, (("schedule", "optimizer"),),
        trains(hooked(SGD, factor=lambda step: min(1, (step + 1) / 4)),
               optax.sgd(lambda step: 0.01 * jnp.minimum(1, step / 4), 0.9)),
    ),
    "bridge_linen: no momentum": Wrong(
        "bridge_linen", {}, (("momentum", "optimizer"),), trains(SGD, optax.sgd(0.01))
    ),
    "initial_nnx: a third of the learning rate": Wrong(
        "initial_nnx", {}, (("learning-rate", "optimizer"),), trains(ADAM, optax.adam(3e-4))
    ),
    "captioner: loss summed over the words": Wrong(
        "captioner", {}, (("loss-reduction", "loss"),),
        {"loss": (
            lambda output: F.cross_entropy(output.flatten(0, 1), torch.tensor(WORDS).flatten()),
            lambda output: optax.softmax_cross_entropy_with_integer_labels(output, WORDS).sum(-1).mean(),
        )},
    ),
    "lenet5_nnx: smoothed over the other classes": Wrong(
        "lenet5_nnx", {}, (("loss-smoothing", "loss"),),
        {"loss": (lambda output: F.cross_entropy(output, torch.tensor(LABELS), label_smoothing=0.1), smoothed)},
    ),
}  # fmt: skip


def drawn(pair, builder):
    """Functions of a seed that make the modules."""
    right = inspect.unwrap(EXAMPLES[pair])
    return (lambda seed: right(seed).torch_module), (lambda seed: builder(seed).flax_module)


DRAWS = {
    "initial: bias drawn for the inputs, not for the kernel": Wrong(
        "initial", {"torch_bias(3 * self.width)": "torch_bias(self.width)"}, (("initialisation", "conv"),),
        {"initial": drawn},
    ),
    "initial_nnx: embedding by Flax's default": Wrong(
        "initial_nnx", {"embedding_init=nnx.initializers.normal(1.0), ": ""}, (("initialisation", "embedding"),),
        {"initial": drawn},
    ),
    "autoencoder: Flax's batch norm as it comes": Wrong(
        "autoencoder", {"from tests.parity.pairs.nnx_norm import BatchNorm\n": "\nBatchNorm = nnx.BatchNorm\n"},
        (("batch-norm-momentum", "norm2"), ("biased-variance", "norm2")),
    ),
    "vit: attention drops the same in all rows": Wrong(
        "vit", {"broadcast_dropout=False": "broadcast_dropout=True"},
        repeated("dropout-broadcast", "encoder_layer_{}.self_attention", 0, 1),
    ),
}  # fmt: skip

TWICE = {
    "gpt_scan: GELU by tanh, and final norm with Flax's epsilon": Wrong(
        "gpt_scan",
        {"nn.gelu(y, approximate=False)": "nn.gelu(y)", "norm = nn.LayerNorm(epsilon=1e-5": "norm = nn.LayerNorm("},
        (*repeated("activation-variant", "h.{}.mlp", 0, 1, 2), ("epsilon", "ln_f")),
    ),
    "segmenter: default slope, and padding counted": Wrong(
        "segmenter", {"nn.leaky_relu(x, 0.2)": "nn.leaky_relu(x)", "(1, 1)), count_include_pad=False": "(1, 1))"},
        (("activation-variant", "act1"), ("pooling-padding", "smooth")),
    ),
    "mobilenetv2: padded by SAME, and what is kept for the rate": Wrong(
        "mobilenetv2", {"padding=size // 2,": 'padding="SAME",', "dropout: float = 0.2": "dropout: float = 0.8"},
        (*repeated("padding", "features.{}", 0, 2, 4), ("dropout-rate", "classifier.0")),
    ),
    "captioner: exact GELU, and the words' residual lost": Wrong(
        "captioner",
        {"nn.gelu(nn.Dense(2 * self.dim)(x))": "nn.gelu(nn.Dense(2 * self.dim)(x), approximate=False)",
         "(x + y)\n        y = nn.gelu": "(y)\n        y = nn.gelu"},
        (("residual", ""), ("activation-variant", "act")),
    ),
    "bert: positions from one, and pooler without tanh": Wrong(
        "bert",
        {"2 + jnp.arange": "1 + jnp.arange", "jnp.tanh(nn.Dense(": "(nn.Dense("},
        (("position-offset", "position_embeddings"), ("activation-missing", "")),
    ),
    "squeezenet: pools that floor, and no ReLU on the classes": Wrong(
        "squeezenet", {", padding=padding)": ")", "x = nnx.relu(self.head(x))": "x = self.head(x)"},
        (*repeated("pooling-ceil", "features.{}", 2, 5), ("activation-missing", "classifier")),
    ),
    "llama: final norm with Llama 2's epsilon, and rotary base of Llama 3": Wrong(
        "llama",
        {"theta: float = 10000.0": "theta: float = 500000.0",
         "self.norm = nnx.RMSNorm(dim, epsilon=1e-6,": "self.norm = nnx.RMSNorm(dim, epsilon=1e-5,"},
        (*repeated("rotary", "layers.{}.self_attn", 0, 1), ("epsilon", "norm")),
    ),
    "vit: no final norm, and the mean of all tokens": Wrong(
        "vit", {"self.head(self.norm(x)[:, 0])": "self.head(jnp.mean(x, axis=1))"},
        (("layer-missing", "encoder.ln"), ("pooling-kind", "")),
    ),
    "convnext: GELU by tanh, and PyTorch's epsilon": Wrong(
        "convnext", {", approximate=False": "", "nn.LayerNorm(epsilon=1e-6)": "nn.LayerNorm(epsilon=1e-5)"},
        (("epsilon", "norm"), ("activation-variant", "act")),
    ),
    "resnet18: no weight decay, no Nesterov": Wrong(
        "resnet18", {}, (("weight-decay", "optimizer"), ("nesterov", "optimizer")),
        trains(partial(SGD, nesterov=True, weight_decay=0.01), optax.sgd(0.01, 0.9)),
    ),
}  # fmt: skip

MORE: dict[str, Wrong] = WEIGHTS | OPTIMIZERS | DRAWS | TWICE
