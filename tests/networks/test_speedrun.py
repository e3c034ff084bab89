"""The second network, small: what it is made of, and that it trains through the same code as the first."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import augment, checkpoints, fit, layers, networks, train
from jaxcnn.config import DEFAULTS
from jaxcnn.networks import speedrun
from jaxcnn.networks.speedrun import Speedrun
from jaxcnn.recipe import growing, recipe_for, resized_forward, smoothed_loss, whitening_epochs
from jaxcnn.sharding import divided, make_mesh, replicate
from jaxcnn.train import Arrays

CONFIG = dataclasses.replace(DEFAULTS["speedrun"]["digits"], epochs=2, batch_size=32, widths=(2, 3, 4))
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@given(st.integers(-2, 2), st.integers(-2, 2), st.booleans())
def test_an_image_is_moved_with_its_border_reflected_and_mirrored(down, right, mirrored):
    moved = augment.shifted(jnp.asarray(IMAGES), jnp.full((12, 2), jnp.array([down, right]), jnp.int32), 2)
    found = augment.flipped(moved, jnp.full(12, mirrored))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = padded[:, 2 - down : 34 - down, 2 - right : 34 - right]
    np.testing.assert_array_equal(found, expected[:, :, ::-1] if mirrored else expected)
    view = augment.viewed(jnp.asarray(IMAGES), augment.View(1.0, down, right, mirrored))
    np.testing.assert_array_equal(view, found)


def test_each_image_is_mirrored_in_every_other_epoch_and_half_of_them_at_first():
    key, indices = jax.random.key(0), jnp.arange(1000, dtype=jnp.int32)
    first, second, third = (augment.alternating(key, indices, jnp.uint32(epoch)) for epoch in range(3))
    assert (first != second).all()
    assert (first == third).all()
    assert 420 < first.sum() < 580
    np.testing.assert_array_equal(augment.alternating(key, indices[7:9], jnp.uint32(0)), first[7:9])


def test_all_shifts_are_drawn_and_depend_on_the_image_alone():
    key, indices = jax.random.key(0), jnp.arange(1000, dtype=jnp.int32)
    shifts = augment.random_shifts(key, indices, 2)
    assert {tuple(shift) for shift in shifts.tolist()} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    np.testing.assert_array_equal(augment.random_shifts(key, indices[5:6], 2), shifts[5:6])


@pytest.mark.parametrize("size", [19, 23, 27])
def test_resizing_is_pytorch_s(size):
    x = IMAGES.astype(np.float32) / np.float32(255)
    options = {"size": (size, size), "mode": "bilinear", "antialias": True}
    expected = F.interpolate(torch.tensor(x).permute(0, 3, 1, 2), **options).permute(0, 2, 3, 1)
    np.testing.assert_allclose(augment.resized(jnp.asarray(x), size), expected, atol=1e-6)


def test_images_grow_and_end_whole():
    assert growing(14) == (19, 19, 23, 23, 23, 27, 27, 27, 32, 32, 32, 32, 32, 32)
    for epochs in range(1, 40):
        assert list(growing(epochs)) == sorted(growing(epochs))
        assert growing(epochs)[-1] == 32


@given(st.integers(1, 12))
def test_batch_norm_is_pytorch_s_over_the_images_that_are_real(count):
    rng = np.random.default_rng(count)
    x, bias, dy = (rng.normal(2, 3, shape) for shape in ((12, 5, 4, 3), 3, (12, 5, 4, 3)))
    real = np.arange(12) < count
    dy[~real] = 0
    with jax.enable_x64(True):
        found = lambda x, bias: layers.batch_norm(x, bias, 1e-12, jnp.asarray(real))  # noqa: E731
        (y, mean, variance, total), gradient = jax.vjp(found, jnp.asarray(x), jnp.asarray(bias))
        dx, dbias = gradient((jnp.asarray(dy), *map(jnp.zeros_like, (mean, variance, total))))
    y, mean, variance, total, dx, dbias = map(np.asarray, (y, mean, variance, total, dx, dbias))
    given_x, given_bias = (torch.tensor(a, requires_grad=True) for a in (x[real], bias))
    expected = F.batch_norm(given_x.permute(0, 3, 1, 2), None, None, None, given_bias, True, eps=1e-12)
    expected.backward(torch.tensor(dy[real]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(y[real], expected.detach().permute(0, 2, 3, 1), atol=1e-12)
    np.testing.assert_allclose(dx[real], given_x.grad, atol=1e-12)
    np.testing.assert_allclose(dx[~real], 0)
    np.testing.assert_allclose(dbias, given_bias.grad, atol=1e-12)
    np.testing.assert_allclose(mean, x[real].mean(axis=(0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(variance, x[real].var(axis=(0, 1, 2)), atol=1e-12)
    assert total == count * 20


@pytest.fixture(scope="module")
def trainer(dataset):
    return fit.Trainer(CONFIG, dataset, make_mesh(jax.devices(), 1, CONFIG.batch_size))


def start(trainer):
    state = train.create_state(trainer.recipe, 0, trainer.dataset.train.images)
    return replicate(state, trainer.mesh)


def test_a_run_that_is_cut_goes_on_to_the_same_bits(trainer, tmp_path):
    """Momenta, counts of schedules and batch statistics are all in the state, and so in a checkpoint."""
    steps = trainer.per_epoch
    whole = start(trainer)
    for count in (steps, 2):
        whole = trainer.steps(whole, count)
    cut = trainer.steps(start(trainer), steps - 1)
    checkpoints.save(tmp_path, cut, {})
    restored, _ = checkpoints.restore_newest(tmp_path, start(trainer), print)
    restored = replicate(restored, trainer.mesh)
    for count in (1, 1, 1):
        restored = trainer.steps(restored, count)
    jax.tree.map(np.testing.assert_array_equal, restored, whole)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(whole.model_state["batch_stats"]["norm7"]["mean"]))


def test_the_whitening_s_bias_has_a_gradient_on_small_images_only(trainer):
    state, gradients = start(trainer), {}
    given = jnp.asarray(IMAGES), layers.BatchKey.of_batch(jax.random.key(0), len(IMAGES))
    for size in (23, 27):
        logits = lambda params, size=size: trainer.recipe.forward(  # noqa: E731
            {"params": params, **state.model_state}, *given, size
        )[0]
        gradients[size] = jax.jit(jax.grad(lambda params, of=logits: jnp.square(of(params)).sum()))(state.params)
    found = {size: bool(tree["whiten"]["bias"].any()) for size, tree in gradients.items()}
    assert found == {23: True, 27: False}
    assert all(tree["conv1"]["kernel"].any() for tree in gradients.values())
    assert whitening_epochs(14) == 5  # after which its optimizer stands still, which parity compares


def test_several_devices_take_the_step_of_one(trainer, dataset):
    """Statistics are of the whole batch; more than a step, and Muon makes 1e-3 of rounding."""
    ours = trainer.steps(start(trainer), 1)
    mesh = make_mesh(jax.devices(), 4, CONFIG.batch_size)
    recipe = recipe_for(CONFIG, 10, CONFIG.batch_size, trainer.per_epoch)
    data = Arrays(*replicate((dataset.train.images, dataset.train.labels), mesh))
    state = replicate(train.create_state(recipe, 0, dataset.train.images), mesh)
    shared = train.make_train_steps(recipe, CONFIG.batch_size, divided(mesh))(state, data, np.uint32(0), np.int32(1))
    np.testing.assert_allclose(shared.loss_sum, ours.loss_sum, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, shared.model_state["batch_stats"], ours.model_state["batch_stats"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), shared.params, ours.params)


def test_evaluation_is_the_mean_over_six_views(trainer):
    state, network = start(trainer), trainer.recipe.network
    logits = train.predict_logits(network, state.variables, jnp.asarray(IMAGES), batch_size=5)
    alone = lambda images: network.apply(state.variables, layers.scale_pixels(jnp.asarray(images)))  # noqa: E731
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    views = ((1 / 2, IMAGES), (1 / 4, padded[:, :32, :32]), (1 / 4, padded[:, 2:, 2:]))
    expected = sum(weight / 2 * (np.asarray(alone(v)) + np.asarray(alone(v[:, :, ::-1]))) for weight, v in views)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_grey_images_have_gradients_of_the_usual_size_and_bfloat16_the_same():
    """Grey images vary along four directions of twelve: what carries nothing is rounding, enlarged by each norm."""
    key, labels = layers.BatchKey.of_batch(jax.random.key(0), 12), jnp.arange(12, dtype=jnp.uint8) % 10

    @partial(jax.jit, static_argnums=0)
    def gradients(network, params, constants, images):
        def loss(params):
            logits = resized_forward(network, {"params": params} | constants, images, key, 19)[0]
            return smoothed_loss(logits, labels, jnp.ones(12, bool), 0.2)

        return jax.tree.map(jnp.linalg.norm, jax.grad(loss)(params))

    for images in IMAGES, IMAGES[..., :1].repeat(3, axis=-1), IMAGES * np.uint8([1, 0, 0]):
        norms = []
        for dtype in jnp.float32, jnp.bfloat16:
            network = Speedrun(24, 24, 24, dtype=dtype)
            variables = networks.initial_variables(network, jax.random.key(0)) | speedrun.constants(images)
            params = variables.pop("params")
            norms.append(jax.tree.leaves(gradients(network, params, variables, jnp.asarray(images))))
        np.testing.assert_allclose(norms[1], norms[0], rtol=0.15, atol=0.02)
        assert max(norms[0]) < 1e3
