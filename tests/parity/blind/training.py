"""Optimizers and losses of which PyTorch's and JAX's are not the same."""

import jax
import jax.numpy as jnp
import optax
import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam, AdamW

from tests.parity.blind.wrong import Wrong

LABELS = [3, 0, 7]


def clipped(parameters):
    parameters = list(parameters)
    optimizer = SGD(parameters, lr=0.1)

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def warmed(parameters):
    optimizer = SGD(list(parameters), lr=0.1, momentum=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def halved(parameters):
    optimizer = Adam(list(parameters), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def uncorrected_adam(rate, b1=0.9, b2=0.999, eps=1e-8):
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros

    def update(grads, state, params=None):
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], grads)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state[1], grads)
        return jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + eps), mean, square), (mean, square)

    return optax.GradientTransformation(init, update)


# By name: the code, and the pair.
OPTIMIZERS = {
    "a rate of another recipe": ("learning-rate", (lambda p: AdamW(p, lr=3e-3), optax.adamw(1e-3, weight_decay=0.01))),
    "no momentum in one of two": ("momentum", (lambda p: SGD(p, lr=0.02, momentum=0.8), optax.sgd(0.02))),
    "a momentum that is dampened": (
        "dampening",
        (lambda p: SGD(p, lr=0.02, momentum=0.9, dampening=0.9), optax.sgd(0.02, 0.9)),
    ),
    "looking ahead on one side": (
        "nesterov",
        (lambda p: SGD(p, lr=0.02, momentum=0.9), optax.sgd(0.02, 0.9, nesterov=True)),
    ),
    "decay added to the gradient": (
        "weight-decay",
        (lambda p: Adam(p, lr=1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1)),
    ),
    "decay left at its default": ("weight-decay", (lambda p: AdamW(p, lr=1e-2), optax.adamw(1e-2))),
    "epsilon under the root": (
        "adam-epsilon",
        (lambda p: Adam(p, lr=1e-2, eps=1e-4), optax.adam(1e-2, eps=0.0, eps_root=1e-4)),
    ),
    "moments as they are": ("bias-correction", (lambda p: Adam(p, lr=1e-2), uncorrected_adam(1e-2))),
    "elements clipped for the norm": ("clipping", (clipped, optax.chain(optax.clip(0.5), optax.sgd(0.1)))),
    "clipped after the rate": ("clipping", (clipped, optax.chain(optax.sgd(0.1), optax.clip_by_global_norm(0.5)))),
    "a warm-up that starts at nothing": (
        "schedule",
        (warmed, optax.sgd(optax.linear_schedule(0.0, 0.1, 4), momentum=0.5)),
    ),
    "a decay that never comes": ("schedule", (halved, optax.adam(0.01))),
}


def one_hot(logits):
    return jax.nn.one_hot(jnp.array(LABELS), logits.shape[-1])


def torch_smoothed(logits):
    return F.cross_entropy(logits, torch.tensor(LABELS), label_smoothing=0.1)


def others_smoothed(logits):
    hot = one_hot(logits)
    targets = jnp.where(hot > 0, 0.9, 0.1 / (logits.shape[-1] - 1))
    return optax.softmax_cross_entropy(logits, targets).mean()


LOSSES = {
    "a mean over classes too": (
        "loss-reduction",
        (
            lambda logits: F.cross_entropy(logits, torch.tensor(LABELS)),
            lambda logits: -(one_hot(logits) * jax.nn.log_softmax(logits)).mean(),
        ),
    ),
    "squares averaged over images only": (
        "loss-reduction",
        (
            lambda y: F.mse_loss(y, F.one_hot(torch.tensor(LABELS), 10).to(y.dtype)),
            lambda y: ((y - one_hot(y)) ** 2).sum(-1).mean(),
        ),
    ),
    "the right class gets no share": ("loss-smoothing", (torch_smoothed, others_smoothed)),
    "hard labels": (
        "loss-smoothing",
        (torch_smoothed, lambda y: optax.softmax_cross_entropy(y, one_hot(y)).mean()),
    ),
}

TRAINING = {
    name: Wrong("lenet5", {}, ((code, "optimizer"),), {"optimizer": pair}) for name, (code, pair) in OPTIMIZERS.items()
} | {name: Wrong("lenet5_nnx", {}, ((code, "loss"),), {"loss": pair}) for name, (code, pair) in LOSSES.items()}
