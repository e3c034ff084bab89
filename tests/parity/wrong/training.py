"""Loss, optimizer, and initial weights."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

from tests.parity.pairs import EXAMPLES
from tests.parity.small import clipped
from tests.parity.wrong.case import Build, Wrong

Optimizer = Callable[..., torch.optim.Optimizer]


def optimized(pair: str, code: str, theirs: Optimizer, ours: optax.GradientTransformation) -> Wrong:
    return Wrong(pair, {}, ((code, "optimizer"),), {"optimizer": (theirs, ours), "steps": 3})


def sgd(**options: Any) -> Optimizer:
    return lambda p: torch.optim.SGD(p, **{"lr": 0.1, **options})


def adam(**options: Any) -> Optimizer:
    return lambda p: torch.optim.Adam(p, **{"lr": 0.01, **options})


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters, lr=0.01, eps=1e-6)


def clipped_by_value(parameters):
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(parameters, 0.01))
    return optimizer


def scheduled(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def falling(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 8)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def adam_without_correction(rate: float, b1: float = 0.9, b2: float = 0.999) -> optax.GradientTransformation:
    """Adam whose moments, which start at 0, are taken as they are."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(gradients, state, params=None):
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], gradients)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state[1], gradients)
        updates = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + 1e-8), first, second)
        return updates, (first, second)

    return optax.GradientTransformation(init, update)


def judged(pair: str, code: str, theirs: Callable[..., Any], ours: Callable[..., Any]) -> Wrong:
    return Wrong(pair, {}, ((code, "loss"),), {"loss": (theirs, ours)})


def labels(output: Any) -> np.ndarray:
    return np.arange(len(output)) * 2 % 5


def torch_cross_entropy(**options: Any) -> Callable[..., Any]:
    return lambda output: F.cross_entropy(output, torch.tensor(labels(output)), **options)


def cross_entropy(output):
    return optax.softmax_cross_entropy_with_integer_labels(output, jnp.asarray(labels(output)))


def smoothed(share: float) -> Callable[..., Any]:
    def loss(output):
        targets = optax.smooth_labels(jax.nn.one_hot(labels(output), output.shape[-1], dtype=output.dtype), share)
        return jnp.mean(optax.softmax_cross_entropy(output, targets))

    return loss


def drawn(pair: str, changes: dict[str, str], *layers: str) -> Wrong:
    """Two functions of a seed, which make the modules anew; a Linen module's variables are drawn by its `init`."""

    def initial(pair: str, builder: Build) -> Any:
        def torch_module(seed: int) -> torch.nn.Module:
            torch.manual_seed(seed)
            return inspect.unwrap(EXAMPLES[pair])().torch_module

        return torch_module, lambda seed: builder(seed).flax_module

    return Wrong(pair, changes, tuple(("initialisation", layer) for layer in layers), {"initial": initial})


DECAY = optax.add_decayed_weights

CASES = {
    "initial: learning rate 0.01 for 0.1": optimized("initial", "learning-rate", sgd(), optax.sgd(0.01)),
    "initial_nnx: Adam's learning rate 0.001 for 0.01": optimized(
        "initial_nnx", "learning-rate", adam(), optax.adam(0.001)
    ),
    "initial: no momentum": optimized("initial", "momentum", sgd(momentum=0.9), optax.sgd(0.1)),
    "initial_nnx: momentum 0.99 for 0.9": optimized("initial_nnx", "momentum", sgd(momentum=0.9), optax.sgd(0.1, 0.99)),
    "initial: dampening forgotten": optimized(
        "initial", "dampening", sgd(momentum=0.9, dampening=0.5), optax.sgd(0.1, 0.9)
    ),
    "initial_nnx: an average for a sum of gradients, so a tenth of the rate": optimized(
        "initial_nnx", "learning-rate", sgd(momentum=0.9), optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))
    ),
    "initial: not Nesterov's momentum": optimized(
        "initial", "nesterov", sgd(momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9)
    ),
    "initial_nnx: Nesterov's momentum": optimized(
        "initial_nnx", "nesterov", sgd(momentum=0.9), optax.sgd(0.1, 0.9, nesterov=True)
    ),
    "initial: no weight decay": optimized("initial", "weight-decay", sgd(weight_decay=0.01), optax.sgd(0.1)),
    "initial: decay after momentum": optimized(
        "initial", "weight-decay", sgd(momentum=0.9, weight_decay=0.01),
        optax.chain(optax.trace(0.9), DECAY(0.01), optax.scale(-0.1))
    ),
    "initial_nnx: AdamW for Adam with decay": optimized(
        "initial_nnx", "weight-decay", adam(weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)
    ),
    "initial: AdamW's default decay": optimized("initial", "weight-decay", adamw, optax.adamw(0.01)),
    "lenet5_nnx: Adam with decay for AdamW": optimized(
        "lenet5_nnx", "weight-decay", adamw, optax.chain(DECAY(0.1), optax.adam(0.01))
    ),
    "initial: Adam's epsilon 1e-7": optimized("initial", "adam-epsilon", adam(), optax.adam(0.01, eps=1e-7)),
    "initial_nnx: Adam's epsilon in the root": optimized(
        "initial_nnx", "adam-epsilon", adam(), optax.adam(0.01, eps=0, eps_root=1e-8)
    ),
    "lenet5_nnx: RMSprop's epsilon in the root, as is the default": optimized(
        "lenet5_nnx", "adam-epsilon", rmsprop, optax.rmsprop(0.01, decay=0.99, eps=1e-6)
    ),
    "initial: Adam without correction": optimized("initial", "bias-correction", adam(), adam_without_correction(0.01)),
    "initial_nnx: Adam with other betas, without correction": optimized(
        "initial_nnx", "bias-correction", adam(betas=(0.8, 0.99)), adam_without_correction(0.01, 0.8, 0.99)
    ),
    "initial: no clipping": optimized("initial", "clipping", clipped, optax.sgd(0.1)),
    "initial_nnx: clipped to another norm": optimized(
        "initial_nnx", "clipping", clipped, optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    ),
    "initial: clipped to the norm, without PyTorch's 1e-6": optimized(
        "initial", "clipping", clipped, optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))
    ),
    "lenet5: clipped by norm for by value": optimized(
        "lenet5", "clipping", clipped_by_value, optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.1))
    ),
    "initial: schedule a step early": optimized(
        "initial", "schedule", falling, optax.sgd(lambda step: 0.1 * (1 - (step + 1) / 8))
    ),
    "initial_nnx: schedule a step late": optimized(
        "initial_nnx", "schedule", scheduled, optax.sgd(lambda step: 0.1 * 0.5 ** jnp.maximum(step - 1, 0))
    ),
    "lenet5: no schedule": optimized("lenet5", "schedule", scheduled, optax.sgd(0.1)),
    "initial: sum for mean": judged(
        "initial", "loss-reduction", torch_cross_entropy(), lambda output: cross_entropy(output).sum()
    ),
    "lenet5_nnx: mean for sum": judged(
        "lenet5_nnx", "loss-reduction", torch_cross_entropy(reduction="sum"),
        lambda output: cross_entropy(output).mean()
    ),
    "initial_nnx: half the squares": judged(
        "initial_nnx", "loss-reduction", lambda output: F.mse_loss(output, torch.ones_like(output)),
        lambda output: optax.l2_loss(output, jnp.ones_like(output)).mean()
    ),
    "initial: labels not smoothed": judged(
        "initial", "loss-smoothing", torch_cross_entropy(label_smoothing=0.1),
        lambda output: cross_entropy(output).mean()
    ),
    "lenet5_nnx: labels smoothed otherwise": judged(
        "lenet5_nnx", "loss-smoothing", torch_cross_entropy(label_smoothing=0.1), smoothed(0.2)
    ),
    "initial: Flax's default weights": drawn(
        "initial", {"nn.Dense(self.hidden, kernel_init=torch_kernel, ": "nn.Dense(self.hidden, "}, "fc1"
    ),
    "initial: biases of zero": drawn(
        "initial", {"(3,), kernel_init=torch_kernel, bias_init=torch_bias(3 * self.width))":
                    "(3,), kernel_init=torch_kernel)"}, "conv"
    ),
    "initial_nnx: Flax's default embedding": drawn(
        "initial_nnx", {", embedding_init=nnx.initializers.normal(1.0), rngs=rngs": ", rngs=rngs"}, "embedding"
    ),
    "initial_nnx: normal for uniform": drawn(
        "initial_nnx", {"classes, kernel_init=xavier,": "classes, kernel_init=nnx.initializers.xavier_normal(),"}, "fc2"
    ),
}  # fmt: skip
