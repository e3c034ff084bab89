"""Training as pure functions of explicit state: loss, gradients, one step, many steps to a dispatch, evaluation.

Nothing here reads or writes anything. A random number is a function of (seed, step, index): initial weights are
drawn from the stream INIT, epoch e's order from (SHUFFLE, e), step t's dropout masks from (DROPOUT, t), so that a
resumed run, another framework or another number of devices draws the same.
"""

from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8, UInt32

from jaxcnn.config import Config
from jaxcnn.model import CNN, Params, initial_params, scale_pixels

INIT, SHUFFLE, DROPOUT = range(3)
CHUNK = 4  # images: a step takes 38 ms so for 42 all at once at batch 32, 122 for 150 at 128, 480 for 750 at 512


# jaxlib 0.10 gives the CPU's convolutions to YNNPACK, which in training runs them on one thread; with this they go to
# Eigen, on all: conv2 at batch 32 takes 4.1 ms for 8.3 on two cores. Evaluation keeps YNNPACK, which there fuses the
# whole network: 26 ms for 34 at batch 128. For this version alone, since another need not know the option.
COMPILER_OPTIONS = (
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if version("jaxlib").startswith("0.10.")
    else None
)


class TrainState(NamedTuple):
    """All that changes while training, and so all that a checkpoint holds.

    step: how many steps were taken.  loss_sum, correct: over the images of the running epoch, dropout on.
    """

    step: UInt32[Array, ""]
    params: Params
    opt_state: Any
    loss_sum: Float[Array, ""]
    correct: Int32[Array, ""]


class Batch(NamedTuple):
    """Images, labels, and which of them are real: the last batch of an epoch is filled up to the others' size."""

    images: UInt8[Array, "b h w c"]
    labels: UInt8[Array, "b"]
    real: Bool[Array, "b"]


class Arrays(NamedTuple):
    """A split on the device."""

    images: UInt8[Array, "n h w c"]
    labels: UInt8[Array, "n"]


def random_stream(seed: int | Array, stream: int, index: int | Array = 0) -> Key[Array, ""]:
    """The key of number `index` of a stream: INIT, SHUFFLE (index: epoch) or DROPOUT (index: step)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


@lru_cache
def sgd(
    learning_rate: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.SGD`: g += weight_decay p; m = momentum m + g; p -= learning_rate m (Nesterov: g + momentum m).

    Cached, since jit compiles anew for another optimizer object.
    """
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optax.sgd(learning_rate, momentum or None, nesterov))


def network(config: Config, classes: int = 10) -> CNN:
    """The network that a configuration describes."""
    return CNN(config.channels, config.hidden, classes, dtype=jnp.dtype(config.precision))


def create_state(model: CNN, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    return with_params(optimizer, initial_params(model, random_stream(seed, INIT)))


def with_params(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """The state before the first step, from given parameters."""
    dtype = jnp.result_type(*jax.tree.leaves(params))
    return TrainState(jnp.uint32(0), params, optimizer.init(params), jnp.zeros((), dtype), jnp.int32(0))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Every image once: the last batch is as small as it comes."""
    return -(-images // batch_size)


def epoch_order(seed: int | Array, epoch: int | Array, images: int) -> Int32[Array, "n"]:
    """The order in which epoch `epoch` takes the training images. The same with and without x64."""
    return jax.random.permutation(random_stream(seed, SHUFFLE, epoch), jnp.arange(images, dtype=jnp.int32))


def cross_entropy(logits: Float[Array, "b classes"], labels: UInt8[Array, "b"]) -> Float[Array, "b"]:
    """Each image's own loss, in nats."""
    wide = logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(wide, labels.astype(jnp.int32))


def mean_loss(
    logits: Float[Array, "b classes"], batch: Batch
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Int32[Array, ""]]]:
    """The mean loss over a batch's real images; with it their summed loss and how many are classified correctly."""
    losses = jnp.where(batch.real, cross_entropy(logits, batch.labels), 0)
    total = losses.sum(dtype=losses.dtype)
    correct = (lax.argmax(logits, 1, jnp.int32) == batch.labels.astype(jnp.int32)) & batch.real
    return total / batch.real.sum(dtype=losses.dtype), (total, correct.sum(dtype=jnp.int32))


def training_logits(
    model: CNN,
    params: Params,
    images: UInt8[Array, "n h w c"],
    dropout_key: Key[Array, ""] | None,
    shards: int = 1,
) -> Float[Array, "n classes"]:
    """The network's logits of a batch that a gradient is wanted of.

    On the CPU its convolutions go over the batch CHUNK images at a time, so that forward and backward what they work on
    stays in the cache. Not where the batch is divided among several `shards`: each chunk's gradient would be sent.
    """
    variables, n = {"params": params}, len(images)
    size = max(size for size in range(1, CHUNK + 1) if n % size == 0)

    def convolutions(images: Array, rows: Array) -> Array:
        return model.apply(variables, scale_pixels(images, model.param_dtype), dropout_key, "convolutions", rows)

    def in_chunks(*batch: Array) -> Array:
        chunks = tuple(x.reshape(-1, size, *x.shape[1:]) for x in batch)
        return lax.map(lambda chunk: convolutions(*chunk), chunks).reshape(n, -1)

    rows = jnp.arange(n, dtype=jnp.uint32)
    cpu = in_chunks if shards == 1 else convolutions
    features = lax.platform_dependent(images, rows, cpu=cpu, default=convolutions)
    return model.apply(variables, features, dropout_key, "dense")


def batch_loss(
    model: CNN, params: Params, batch: Batch, dropout_key: Key[Array, ""] | None, shards: int = 1
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Int32[Array, ""]]]:
    """`mean_loss` of a batch as a function of the parameters."""
    return mean_loss(training_logits(model, params, batch.images, dropout_key, shards), batch)


def train_step(
    model: CNN,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    seed: int | Array,
    shards: int = 1,
) -> TrainState:
    """One step of stochastic gradient descent, with the dropout masks of (seed, step)."""
    key = random_stream(seed, DROPOUT, state.step)
    gradient = jax.grad(batch_loss, argnums=1, has_aux=True)
    gradients, (loss_sum, correct) = gradient(model, state.params, batch, key, shards)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + jnp.uint32(1), params, opt_state, state.loss_sum + loss_sum, state.correct + correct)


def take_batch(data: Arrays, order: Int32[Array, "n"], position: Array, batch_size: int) -> Batch:
    """Batch `position` of an epoch that goes through `data` in `order`. What it lacks to `batch_size` is not real."""
    places = position.astype(jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    images = order[jnp.minimum(places, len(order) - 1)]
    return Batch(data.images[images], data.labels[images], places < len(order))


@partial(
    jax.jit,
    static_argnames=("model", "optimizer", "batch_size", "sharding"),
    donate_argnames="state",
    compiler_options=COMPILER_OPTIONS,
)
def train_steps(
    model: CNN,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    data: Arrays,
    seed: UInt32[Array, ""],
    count: Int32[Array, ""],
    *,
    batch_size: int,
    sharding: NamedSharding | None = None,
) -> TrainState:
    """`count` steps of the epoch that `state.step` is in, in one dispatch; fewer where a loss is not finite.

    The sums of the epoch begin anew with its first step. `count` must not reach beyond the epoch. It is not static: one
    compilation serves a whole epoch and any part of one. A loss that is not finite ends the loop with the step that met
    it, and stays in `state.loss_sum`. `sharding` divides each batch among devices; the state is the same on all.
    """
    per_epoch = jnp.uint32(steps_per_epoch(len(data.images), batch_size))
    order = epoch_order(seed, state.step // per_epoch, len(data.images))
    fresh = (state.step % per_epoch == 0) & (count > 0)  # no step, no change: a count of 0 only compiles
    state = state._replace(
        loss_sum=jnp.where(fresh, 0, state.loss_sum), correct=jnp.where(fresh, 0, state.correct)
    )  # fmt: skip
    last = state.step + count.astype(jnp.uint32)

    def step(state: TrainState) -> TrainState:
        batch = take_batch(data, order, state.step % per_epoch, batch_size)
        if sharding is not None:
            batch = lax.with_sharding_constraint(batch, sharding)
        state = train_step(model, optimizer, state, batch, seed, sharding.mesh.size if sharding else 1)
        if sharding is not None:
            state = lax.with_sharding_constraint(state, NamedSharding(sharding.mesh, PartitionSpec()))
        return state

    return lax.while_loop(lambda s: (s.step < last) & jnp.isfinite(s.loss_sum), step, state)


@partial(jax.jit, static_argnames=("model", "batch_size", "sharding"))
def predict_logits(
    model: CNN,
    params: Params,
    images: UInt8[Array, "n h w c"],
    *,
    batch_size: int = 128,
    sharding: NamedSharding | None = None,
) -> Float[Array, "n classes"]:
    """Logits of any number of images, dropout off, in one dispatch; memory grows with `batch_size` only.

    `sharding` divides each batch among devices.
    """
    batch_size = min(batch_size, max(len(images), 1))
    batches = steps_per_epoch(len(images), batch_size)
    padded = jnp.pad(images, ((0, batches * batch_size - len(images)), *[(0, 0)] * (images.ndim - 1)))

    def logits(batch: Array) -> Array:
        if sharding is not None:
            batch = lax.with_sharding_constraint(batch, sharding)
        return model.apply({"params": params}, scale_pixels(batch, model.param_dtype))

    outputs = lax.map(logits, padded.reshape(batches, batch_size, *images.shape[1:]))
    return outputs.reshape(batches * batch_size, -1)[: len(images)]


@jax.jit
def metrics(logits: Float[Array, "n classes"], labels: UInt8[Array, "n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss in nats, and accuracy as a fraction of exactly n."""
    correct = (lax.argmax(logits, 1, jnp.int32) == labels.astype(jnp.int32)).sum(dtype=jnp.int32)
    return cross_entropy(logits, labels).mean(), correct / len(labels)
