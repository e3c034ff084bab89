"""Training as pure functions of explicit state: one step, many steps to a dispatch, evaluation.

Nothing here reads or writes anything. A random number is a function of (seed, step, index): initial weights come from
the stream INIT, the order of epoch e from (SHUFFLE, e), the dropout masks of step t from (DROPOUT, t). A resumed run,
another framework or another number of devices draws the same.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh
from jaxtyping import Array, Bool, Float, Int32, Key, UInt, UInt8, UInt32

from jaxcnn import augment, cpu
from jaxcnn.layers import BatchKey, check_images, cross_entropy, scale_pixels
from jaxcnn.networks import Network, Variables, initial_variables, network_logits
from jaxcnn.recipe import Recipe

INIT, SHUFFLE, DROPOUT, SHIFT, FLIP = range(5)


class TrainState(NamedTuple):
    """All that changes while training, and so all that a checkpoint holds.

    step: how many steps were taken.  loss_sum, correct: over the images of the current epoch, dropout on.
    model_state: the network's variables that are not parameters, such as batch statistics.
    """

    step: UInt32[Array, ""]
    params: Any
    opt_state: Any
    loss_sum: Float[Array, ""]
    correct: Int32[Array, ""]
    model_state: Variables

    @property
    def variables(self) -> Variables:
        """Return the network's variables."""
        return {"params": self.params, **self.model_state}


class Batch(NamedTuple):
    """Images, labels, and which of them are real: the last batch of an epoch is padded to the others' size."""

    images: UInt8[Array, "b h w c"]
    labels: UInt[Array, "b"]
    real: Bool[Array, "b"]
    indices: Int32[Array, "b"]  # in the data set


class Arrays(NamedTuple):
    """A split on the device."""

    images: UInt8[Array, "n h w c"]
    labels: UInt[Array, "n"]


TrainSteps = Callable[..., TrainState]  # of state, data, seed and count


def random_stream(seed: int | Array, stream: int, index: int | Array = 0) -> Key[Array, ""]:
    """Make the key of number `index` of a stream: INIT, SHUFFLE (index: epoch) or DROPOUT (index: step)."""
    key = jax.random.key(seed, impl="threefry2x32")  # whichever one is JAX's default in this process
    return jax.random.fold_in(jax.random.fold_in(key, stream), index)


def create_state(recipe: Recipe, seed: int, images: UInt8[Any, "n h w c"] | None = None) -> TrainState:
    """Make the state before the first step. images: the training images, if the network has constants of them."""
    variables = initial_variables(recipe.network, random_stream(seed, INIT))
    return with_variables(recipe, variables if images is None else variables | recipe.constants(images))


def with_variables(recipe: Recipe, variables: Variables) -> TrainState:
    """Make the state before the first step from given variables."""
    params, model_state = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    loss_sum = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
    return TrainState(jnp.uint32(0), params, recipe.optimizer.init(params), loss_sum, jnp.int32(0), model_state)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Count the steps that take every image once: the last batch may be smaller."""
    return -(-images // batch_size)


def epoch_order(seed: int | Array, epoch: int | Array, images: int) -> Int32[Array, "n"]:
    """Shuffle the training images for an epoch. The same with and without x64."""
    return jax.random.permutation(random_stream(seed, SHUFFLE, epoch), jnp.arange(images, dtype=jnp.int32))


def take_batch(data: Arrays, order: Int32[Array, "n"], position: Array, batch_size: int) -> Batch:
    """Take batch `position` of an epoch that goes through `data` in `order`. Padding is not real."""
    places = position.astype(jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    images = order[jnp.minimum(places, len(order) - 1)]
    return Batch(data.images[images], data.labels[images], places < len(order), images)


def batch_sums(
    logits: Float[Array, "b classes"], labels: UInt[Array, "b"], real: Bool[Array, "b"]
) -> tuple[Float[Array, ""], Int32[Array, ""]]:
    """Sum the cross entropy of a batch's real images, and count those that are classified correctly."""
    losses = jnp.where(real, cross_entropy(logits, labels), 0)
    correct = (lax.argmax(logits, 1, jnp.int32) == labels.astype(jnp.int32)) & real
    return losses.sum(dtype=losses.dtype), correct.sum(dtype=jnp.int32)


def train_step(
    recipe: Recipe, state: TrainState, batch: Batch, seed: int | Array, size: int | None = None
) -> TrainState:
    """Take one step on a batch, with the dropout masks of (seed, step).

    size: of the images, for a recipe of several sizes.
    """
    key = BatchKey.of_batch(random_stream(seed, DROPOUT, state.step), len(batch.images), batch.real)
    forward = recipe.forward if size is None else partial(recipe.forward, size=size)

    def objective(params: Any) -> tuple[Array, Any]:
        logits, model_state = forward({"params": params, **state.model_state}, batch.images, key)
        sums = batch_sums(logits, batch.labels, batch.real)
        return recipe.loss(logits, batch.labels, batch.real), (sums, model_state)

    gradients, ((loss_sum, correct), model_state) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    return state._replace(
        step=state.step + jnp.uint32(1), params=optax.apply_updates(state.params, updates), opt_state=opt_state,
        loss_sum=state.loss_sum + loss_sum, correct=state.correct + correct, model_state=model_state,
    )  # fmt: skip


def make_train_steps(recipe: Recipe, batch_size: int, sharding: NamedSharding | None = None) -> TrainSteps:
    """Make the jitted function (state, data, seed, count) -> state that takes `count` steps in one dispatch.

    The sums of an epoch start at zero with its first step. `count` must not reach beyond the epoch that `state.step` is
    in. It is not static: one compilation serves a whole epoch and any part of one. A loss that is not finite ends the
    loop after its step, and stays in `state.loss_sum`. The given state is donated.

    A recipe of several sizes has a program for each; the function then chooses by the epoch, and is not jitted itself.
    sharding: how each batch is divided among devices; the state is the same on all.
    """
    programs = {size: _program(recipe, batch_size, sharding, size) for size in recipe.sizes or (None,)}
    if not recipe.sizes:
        return programs[None]

    def train_steps(state: TrainState, data: Arrays, *given: Any) -> TrainState:
        epoch = int(state.step) // steps_per_epoch(len(data.images), batch_size)
        return programs[recipe.size(epoch)](state, data, *given)

    return train_steps


def _program(recipe: Recipe, batch_size: int, sharding: NamedSharding | None, size: int | None) -> TrainSteps:
    @partial(jax.jit, donate_argnums=0, compiler_options=cpu.COMPILER_OPTIONS)
    def train_steps(state: TrainState, data: Arrays, seed: UInt32[Array, ""], count: Int32[Array, ""]) -> TrainState:
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
            batch = batch._replace(
                images=recipe.augment(
                    batch, random_stream(seed, SHIFT, state.step), random_stream(seed, FLIP), state.step // per_epoch
                )
            )
            with _shared_among(sharding):
                state = train_step(recipe, state, batch, seed, size)
            if sharding is None:
                return state
            return lax.with_sharding_constraint(state, NamedSharding(sharding.mesh, PartitionSpec()))

        return lax.while_loop(lambda s: (s.step < last) & jnp.isfinite(s.loss_sum), step, state)

    return train_steps


def _shared_among(sharding: NamedSharding | None) -> AbstractContextManager[None]:
    """Tell `cpu`, which asks for them, the devices that share a batch."""
    return nullcontext() if sharding is None else use_abstract_mesh(sharding.mesh.abstract_mesh)


@partial(jax.jit, static_argnames=("network", "batch_size", "sharding"))
def predict_logits(
    network: Network,
    variables: Variables,
    images: UInt8[Array, "n h w c"],
    *,
    batch_size: int = 128,
    sharding: NamedSharding | None = None,
) -> Float[Array, "n classes"]:
    """Compute the logits of any number of images, dropout off, in one dispatch; memory grows with `batch_size` only.

    If the network uses several views of an image, they are the mean over the views.
    sharding: how each batch is divided among devices.
    """
    check_images(images)  # floats would be taken for pixels from 0 to 255, and look black
    devices = 1 if sharding is None else sharding.mesh.size
    share = -(-min(batch_size, max(len(images), 1)) // devices)
    chunks = -(-share // cpu.EVALUATED)
    batch_size = devices * chunks * -(-share // chunks)  # chunks of one size, as many on each device
    batches = steps_per_epoch(len(images), batch_size)
    padded = jnp.pad(images, ((0, batches * batch_size - len(images)), *[(0, 0)] * (images.ndim - 1)))

    def logits(batch: Array) -> Array:
        if sharding is not None:
            batch = lax.with_sharding_constraint(batch, sharding)
        seen = (scale_pixels(augment.viewed(batch, view), network.param_dtype) for view in network.views)
        with _shared_among(sharding):
            outputs = [network_logits(network, variables, x) for x in seen]
        weighted = [output * view.weight for output, view in zip(outputs, network.views, strict=True)]
        return sum(weighted[1:], weighted[0])

    outputs = lax.map(logits, padded.reshape(batches, batch_size, *images.shape[1:]))
    return outputs.reshape(batches * batch_size, outputs.shape[-1])[: len(images)]  # -1 would fail for no images


@jax.jit
def metrics(logits: Float[Array, "n classes"], labels: UInt[Array, "n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the mean loss in nats, and the accuracy as a fraction of exactly n."""
    loss_sum, correct = batch_sums(logits, labels, jnp.ones(len(labels), bool))
    return loss_sum / len(labels), correct / len(labels)
