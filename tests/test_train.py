import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import use_abstract_mesh

import jaxcnn
from jaxcnn import checkpoints, networks, train
from jaxcnn.augment import ONE_VIEW
from jaxcnn.layers import BatchKey, cross_entropy, scale_pixels
from jaxcnn.networks import initial_variables
from jaxcnn.networks.tutorial import CNN, forward
from jaxcnn.recipe import mean_loss, tutorial
from jaxcnn.sharding import divided, make_mesh
from jaxcnn.train import Arrays, Batch
from jaxcnn.weights import Weights, save_weights
from tests.conftest import assert_trees_equal

SEED = jnp.uint32(0)


@functools.cache
def train_steps(recipe):
    return train.make_train_steps(recipe, 32)


def steps(training, count, state=None):
    recipe, initial, data = training
    state = jax.tree.map(jnp.copy, initial if state is None else state)
    return train_steps(recipe)(state, data, SEED, jnp.int32(count))


def dropout_key(step, images):
    return BatchKey.of_batch(train.random_stream(SEED, train.DROPOUT, step), images)


def test_random_streams_are_those_of_earlier_versions():
    """Other keys are other initial weights, orders and masks: every seed's training changes."""

    def key(*folds):
        return jax.random.key_data(functools.reduce(jax.random.fold_in, folds, jax.random.key(7))).tolist()

    assert (train.INIT, train.SHUFFLE, train.DROPOUT) == (0, 1, 2)
    assert jax.random.key_data(train.random_stream(7, train.INIT)).tolist() == key(0, 0)
    assert jax.random.key_data(train.random_stream(7, train.DROPOUT, 5)).tolist() == key(2, 5)
    assert train.epoch_order(7, 0, 12).tolist() == [0, 5, 3, 8, 4, 6, 10, 9, 2, 11, 7, 1]


def test_a_step_is_plain_gradient_descent_on_the_mean_loss(training):
    recipe, state, data = training
    order = train.epoch_order(SEED, 0, 70)
    images, labels = data.images[order[:32]], data.labels[order[:32]]

    def loss_of(params):
        logits = recipe.network.apply({"params": params}, scale_pixels(images), dropout_key(0, 32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(int)).mean()

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(state.params)
    after = steps(training, 1)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, state.params, gradients)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after.loss_sum, 32 * loss, rtol=1e-6)


def test_many_steps_to_a_dispatch_are_the_same_steps(training):
    one_by_one = steps(training, 1)
    for _ in range(2):
        one_by_one = steps(training, 1, state=one_by_one)
    assert_trees_equal(one_by_one, steps(training, 3))
    assert int(one_by_one.step) == 3


def test_what_fills_up_the_last_batch_has_no_part_in_it(training):
    """The third step's mean is over its own 6 images: the same as a batch of only those."""
    recipe, _, data = training
    before = steps(training, 2)
    order = train.epoch_order(SEED, 0, 70)[64:]
    own = Batch(data.images[order], data.labels[order], jnp.ones(6, bool), order)
    expected = train.train_step(recipe, before, own, SEED)
    after = steps(training, 1, state=before)
    assert np.isfinite(after.loss_sum)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_the_mean_loss_and_its_sums_count_the_real_images_only():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]]))
    labels, real = jnp.array([0, 2, 2, 0], jnp.uint8), jnp.array([True, True, True, False])
    total, correct = train.batch_sums(logits, labels, real)
    np.testing.assert_allclose(total, -np.log([0.5, 0.1, 0.6]).sum(), rtol=1e-6)
    np.testing.assert_allclose(mean_loss(logits, labels, real), total / 3, rtol=1e-6)
    assert int(correct) == 2


@pytest.mark.parametrize("batch_size", [1, 7, 32, 70, 100])
def test_every_image_once_an_epoch(batch_size):
    images = jnp.arange(70, dtype=jnp.uint8)
    data, seen = Arrays(images.reshape(70, 1, 1, 1), images), []
    order = train.epoch_order(5, 3, 70)
    for position in range(train.steps_per_epoch(70, batch_size)):
        batch = train.take_batch(data, order, jnp.uint32(position), batch_size)
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)
        seen += np.asarray(batch.labels)[np.asarray(batch.real)].tolist()
    assert sorted(seen) == list(range(70))


def test_epochs_and_seeds_are_shuffled_unlike_and_the_same_with_x64():
    orders = {(seed, epoch): np.asarray(train.epoch_order(seed, epoch, 70)) for seed in (0, 1) for epoch in (0, 1)}
    assert len({order.tobytes() for order in orders.values()}) == 4
    with jax.enable_x64(True):
        for (seed, epoch), order in orders.items():
            np.testing.assert_array_equal(train.epoch_order(seed, epoch, 70), order)


def test_an_epochs_sums_are_those_of_its_images_and_begin_anew_with_the_next(training):
    recipe, initial, data = training
    order, states, losses, correct = train.epoch_order(SEED, 0, 70), [initial], [], []
    for step in range(3):
        chosen = order[32 * step : 32 * step + 32]
        key = dropout_key(step, len(chosen))
        logits = recipe.network.apply(states[-1].variables, scale_pixels(data.images[chosen]), key)
        losses.append(cross_entropy(logits, data.labels[chosen]).sum())
        correct.append(int((np.asarray(logits).argmax(axis=1) == np.asarray(data.labels[chosen])).sum()))
        states.append(steps(training, 1, state=states[-1]))
        assert int(states[-1].correct) == sum(correct)
        np.testing.assert_allclose(states[-1].loss_sum, sum(losses), rtol=1e-5)
    assert sum(correct) > 4
    assert_trees_equal(steps(training, 0, state=states[-1]), states[-1])  # it only compiles
    second = steps(training, 1, state=states[-1])
    assert 0 < float(second.loss_sum) < float(states[-1].loss_sum)
    assert int(second.correct) <= 32


def test_a_state_begins_at_nothing_with_the_weights_of_its_seed(training):
    recipe, _, _ = training
    state = train.create_state(recipe, seed=7)
    assert (int(state.step), float(state.loss_sum), int(state.correct)) == (0, 0.0, 0)
    expected = initial_variables(recipe.network, train.random_stream(7, train.INIT))
    assert_trees_equal(state.variables, expected)


def test_training_learns(training):
    losses = []
    state = None
    for _ in range(12):
        state = steps(training, 3, state=state)
        losses.append(float(state.loss_sum) / 70)
    assert losses[-1] < 0.75 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_loop_at_its_step(training):
    _, state, _ = training
    broken = jax.tree.map(lambda p: p * jnp.inf, state.params)
    after = steps(training, 3, state=state._replace(params=broken))
    assert int(after.step) == 1
    assert not np.isfinite(after.loss_sum)


def test_nothing_is_transferred_inside_a_dispatch(training):
    recipe, state, data = training
    count = jnp.int32(3)
    with jax.transfer_guard("disallow"):
        after = train_steps(recipe)(state, data, SEED, count)
    assert int(after.step) == 3
    with pytest.raises(RuntimeError, match=r"[Dd]isallowed"), jax.transfer_guard("disallow"):
        train_steps(recipe)(after, data, SEED, 3)


def primitives(jaxpr) -> set[str]:
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


def test_a_dispatch_calls_nothing_back(training):
    recipe, state, data = training
    traced = train_steps(recipe).trace(state, data, SEED, jnp.int32(3))
    names = primitives(traced.jaxpr.jaxpr)
    assert {"while", "conv_general_dilated"} <= names
    assert not {name for name in names if "callback" in name or "infeed" in name or "outfeed" in name}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("widths", [(4, 8), (32, 512)])
def test_programs_for_other_platforms_have_stock_convolutions_and_no_chunks(training, platform, precision, widths):
    _, _, data = training
    recipe = tutorial(CNN(*widths, dtype=jnp.dtype(precision)), 0.01, 0.9)
    state = jax.eval_shape(lambda: train.create_state(recipe, 0))
    epoch = jax.export.export(train_steps(recipe), platforms=[platform])(state, data, SEED, jnp.int32(3))
    predict = jax.export.export(train.predict_logits, platforms=[platform])
    evaluation = predict(recipe.network, state.variables, data.images)
    # Forward twice, conv2's input gradient, both kernel gradients; with dropout off forward twice.
    for exported, convolutions in ((epoch, 5), (evaluation, 2)):
        found = re.findall(r"stablehlo.convolution.*tensor<(\d+)x\d+x\d+x\d+x(\w+)>", exported.mlir_module())
        assert len(found) == convolutions
        assert {kind for _, kind in found} == {{"float32": "f32", "bfloat16": "bf16"}[precision]}


def test_the_network_in_chunks_is_the_network(training, dataset):
    """Logits and gradients, dropout on, of batches that divide into chunks of 4, 3, 2 and 1, and on several devices."""
    recipe, state, _ = training

    def whole(params, images):
        return recipe.network.apply({"params": params}, scale_pixels(images), dropout_key(5, len(images)))

    def chunked(params, images, devices):
        key = dropout_key(5, len(images))
        if devices == 1:
            return forward(recipe.network, {"params": params}, images, key)[0]
        mesh = make_mesh(jax.devices(), devices, len(images))
        images = jax.lax.with_sharding_constraint(images, divided(mesh))
        with use_abstract_mesh(mesh.abstract_mesh):
            return forward(recipe.network, {"params": params}, images, key)[0]

    @functools.partial(jax.jit, static_argnames="devices")
    def both(params, images, devices):
        logits, back = jax.vjp(lambda p: chunked(p, images, devices), params)
        expected, expected_back = jax.vjp(lambda p: whole(p, images), params)
        return logits, expected, back(expected), expected_back(expected)

    for count, devices in ((8, 1), (9, 1), (14, 1), (7, 1), (12, 2), (20, 4)):
        images = jnp.asarray(dataset.train.images[:count])
        logits, expected, *gradients = both(state.params, images, devices)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
        for found, truth in zip(*map(jax.tree.leaves, gradients), strict=True):
            np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5 * float(jnp.abs(truth).max()))


class Normalised(nn.Module):
    """A network with batch statistics, which this package knows nothing of."""

    views = ONE_VIEW
    classes: int = 10
    features: int = 3  # a number, as in many a Flax module, and no stage
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, key=None):
        x = x[:, ::8, ::8].reshape(len(x), -1)
        x = nn.BatchNorm(use_running_average=key is None, momentum=0.5, name="norm")(x)
        return nn.Dense(self.classes, name="head")(x)


def test_a_network_with_batch_statistics_trains_through_the_same_code(dataset, tmp_path, monkeypatch):
    def forward(variables, images, key):
        return network.apply(variables, scale_pixels(images), key, mutable=["batch_stats"])

    network = Normalised()
    recipe = dataclasses.replace(tutorial(CNN(2, 2), 0.05, 0.9), network=network, forward=forward)
    before = train.create_state(recipe, 0)
    data = Arrays(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels))
    start = jax.tree.map(np.asarray, before.variables)
    state = train.make_train_steps(recipe, 35)(before, data, SEED, jnp.int32(2))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, state.variables)
    assert all(distance > 0 for distance in jax.tree.leaves(moved))
    assert {"params", "batch_stats"} == state.variables.keys()

    checkpoints.save(tmp_path, state, {})
    assert_trees_equal(checkpoints.restore(checkpoints.saved(tmp_path)[0], state)[0], state)
    monkeypatch.setitem(networks.NETWORKS, "normalised", Normalised)
    save_weights(tmp_path / "w.safetensors", Weights(network, state.variables))
    weights = jaxcnn.load(tmp_path / "w.safetensors")
    assert_trees_equal(weights.variables, state.variables)
    logits = network.apply(state.variables, scale_pixels(dataset.test.images))
    np.testing.assert_allclose(weights.predict(dataset.test.images), jax.nn.softmax(logits), rtol=1e-5)


def test_predictions_do_not_depend_on_the_batch(training, dataset):
    recipe, state, _ = training
    images = jnp.asarray(dataset.test.images)
    alone = train.predict_logits(recipe.network, state.variables, images, batch_size=1)
    for batch_size in (7, 50, 128):
        found = train.predict_logits(recipe.network, state.variables, images, batch_size=batch_size)
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-6)
        assert found.shape == (50, 10)


def test_metrics():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]]))
    loss, accuracy = train.metrics(logits, jnp.array([0, 1, 0, 0], jnp.uint8))
    np.testing.assert_allclose(loss, -np.log([0.5, 0.8, 0.2, 0.6]).mean(), rtol=1e-6)
    assert float(accuracy) == 0.75
