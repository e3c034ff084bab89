"""The programs in JAX that the benchmark compares: this project, and stock Flax layers."""

from dataclasses import replace
from functools import cache, partial
from itertools import cycle, islice
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from case import Case, Cost, Run, fixed_data
from flax.training.train_state import TrainState

from jaxcnn import networks, platform, sharding, train
from jaxcnn.augment import ONE_VIEW
from jaxcnn.recipe import recipe_for
from jaxcnn.weights import make_weights


def jax_runner(case: Case) -> Run:
    """Return a run of this project, which does all steps in one dispatch."""
    batch_size, arrays = case.batch_size, fixed_data(case.batch_size)
    mesh = sharding.make_mesh(platform.start_for(batch_size), None, batch_size)
    batches, seed = sharding.divided(mesh), sharding.replicate(np.uint32(0), mesh)
    data = train.Arrays(*sharding.replicate(arrays, mesh))
    recipe = recipe_for(case.config, batch_size=batch_size, per_epoch=case.per_epoch)
    recipe = replace(recipe, sizes=(case.size,)) if recipe.sizes else recipe  # that of all epochs
    state = sharding.replicate(train.create_state(recipe, 0, arrays[0]), mesh)
    train_steps = train.make_train_steps(recipe, batch_size, batches)
    # The network, but with one view of an image, as in PyTorch.
    network = type("OneView", (type(recipe.network),), {"views": ONE_VIEW})(*case.config.widths)
    images = cache(lambda count: data.images[jnp.arange(count) % len(data.images)])
    if case.task == "prediction":  # copies of the parameters, which would count as memory in the other tasks
        named = {name: np.asarray(array) for name, array in networks.named(state.variables).items()}
        predict = make_weights(network, named, {}).predict

    def run(steps: int) -> Cost:
        nonlocal state
        if case.task == "training":
            before = int(state.step)
            state = train_steps(state, data, seed, np.int32(steps))
            if int(state.step) != before + steps:  # which waits for it
                raise RuntimeError("the loss is not finite, which ends training")
            return 1, 4
        if case.task == "prediction":
            for image in islice(cycle(arrays[0]), steps):
                predict(image)
            return steps, steps * image.nbytes
        many = images(steps * batch_size)
        train.predict_logits(
            network, state.variables, many, batch_size=batch_size, sharding=batches
        ).block_until_ready()
        return 1, 0

    return run


class Stock(nn.Module):
    """The tutorial's network in stock Flax layers, as a user would write it."""

    channels: int
    hidden: int

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Return the logits of float32 images."""
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Conv(self.channels, (3, 3))(x)))
        x = nn.max_pool(nn.relu(nn.Conv(self.channels, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


def flax_runner(case: Case) -> Run:
    """Return a run of stock Flax layers, stepped from Python."""
    batch_size = case.batch_size
    model, (images, labels) = Stock(*case.config.widths), map(jnp.asarray, fixed_data(batch_size))
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.sgd(0.001, 0.9))

    def scaled(x: Any) -> Any:
        return x.astype(jnp.float32) / 255

    def batch(position: Any) -> tuple[Any, Any]:
        start = position * batch_size % len(images)
        x, y = (jax.lax.dynamic_slice_in_dim(a, start, batch_size) for a in (images, labels))
        return scaled(x), y.astype(jnp.int32)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, position: Any) -> Any:
        x, y = batch(position)

        def loss(params: Any) -> Any:
            key = {"dropout": jax.random.fold_in(jax.random.key(0), position)}
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x, True, rngs=key), y).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    logits = jax.jit(lambda params, position: model.apply(params, batch(position)[0], False))
    predict = jax.jit(lambda params, image: jax.nn.softmax(model.apply(params, scaled(image[None]), False)))
    singles = np.asarray(images)

    def run(steps: int) -> Cost:
        nonlocal state
        for position in map(np.int32, range(steps)):
            if case.task == "training":
                state = step(state, position)
            elif case.task == "prediction":
                np.asarray(predict(state.params, singles[position % len(singles)]))
            else:
                logits(state.params, position).block_until_ready()
        jax.block_until_ready(state)
        return steps, 4 * steps

    return run
