"""Optimizers as PyTorch and airbench94 define them, built from optax's parts, and learning rate schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxcnn.layers import EXACT


def sgd(
    learning_rate: float | optax.Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Make `torch.optim.SGD`: g += weight_decay p; m = momentum m + g; p -= learning_rate m (Nesterov: g + momentum m).

    Weight decay goes into the gradient first, as in PyTorch; `optax.sgd` alone has none.
    """
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optax.sgd(learning_rate, momentum or None, nesterov))


# Coefficients of the Newton-Schulz iteration (Jordan 2024): they bring singular values to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(kernel: Float[Array, "h w i o"], steps: int = 3) -> Float[Array, "h w i o"]:
    """Bring the singular values of a kernel, as a matrix of patches by outputs, to about 1 (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    x = kernel.reshape(-1, kernel.shape[-1])
    x = x / (jnp.linalg.norm(x) + 1e-7)
    wide = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(steps):
        square = jnp.matmul(wide, wide.T, precision=EXACT)
        second = b * square + c * jnp.matmul(square, square, precision=EXACT)
        wide = a * wide + jnp.matmul(second, wide, precision=EXACT)
    return (wide.T if x.shape[0] > x.shape[1] else wide).reshape(kernel.shape)


def to_norm() -> optax.GradientTransformation:
    """Make the transformation that scales each kernel to the norm sqrt(outputs), and then adds its update."""

    def added(updates: Any, params: Any) -> Any:
        other = lambda kernel: kernel * (kernel.shape[-1] ** 0.5 / jnp.linalg.norm(kernel) - 1)  # noqa: E731
        return jax.tree.map(lambda update, kernel: update + other(kernel), updates, params)

    return optax.stateless(added)


def muon(schedule: optax.Schedule, momentum: float) -> optax.GradientTransformation:
    """Make airbench94's Muon: kernel = kernel sqrt(outputs) / norm - rate orthogonalised(Nesterov momentum).

    Not `optax.contrib.muon`, whose momentum is an average, corrected for its start, and which normalises no weight.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(orthogonalised, updates)),
        optax.scale_by_learning_rate(schedule),
        to_norm(),
    )


def linear(rate: float, steps: int) -> optax.Schedule:
    """Make a learning rate that falls linearly from `rate` to 0 in `steps` steps; without steps it is 0.

    Not `optax.linear_schedule`, whose rate is float32 in a float64 training too, and stays if there is no step.
    """
    return lambda step: rate * jnp.maximum(1 - jnp.asarray(step, float) / max(steps, 1), 0.0) * min(steps, 1)
