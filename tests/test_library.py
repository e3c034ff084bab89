"""The package in programs of others: JAX set up otherwise, several threads, processes of a pool, JAX started before."""

import copy
import dataclasses
import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxcnn import augment, figures, platform
from jaxcnn.errors import UserError
from jaxcnn.features import feature_maps
from jaxcnn.layers import BatchKey, keep_mask
from jaxcnn.networks import initial_variables, named
from jaxcnn.networks.tutorial import CNN
from jaxcnn.recipe import recipe_for
from jaxcnn.train import FLIP, SHIFT, Arrays, create_state, make_train_steps, random_stream
from jaxcnn.weights import Weights
from tests.conftest import small_dataset

ELSEWHERE = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
}


def trained(config):
    """What a short training draws and computes, by name."""
    recipe, train = recipe_for(config), small_dataset().train
    data, indices = Arrays(*map(jax.numpy.asarray, (train.images, train.labels))), jax.numpy.arange(70, dtype="int32")
    state = make_train_steps(recipe, 32)(create_state(recipe, 0), data, np.uint32(0), np.int32(3))
    drawn = {
        "shifts": augment.random_shifts(random_stream(0, SHIFT), indices, 2),
        "mirrored": augment.alternating(random_stream(0, FLIP), indices, jax.numpy.uint32(0)),
        "probabilities": Weights(recipe.network, state.variables).predict(train.images),
        **feature_maps(recipe.network, state.variables, train.images, ["act1"]),
        **{f"tutorial/{name}": array for name, array in named(state.variables).items()},
    }
    return {name: np.asarray(array) for name, array in drawn.items()}


def elsewhere(config, weights):
    """The same in a process of a pool, and what else may be wrong there."""
    assert {name: os.environ[name] for name in ELSEWHERE} == ELSEWHERE
    assert jax.config.jax_enable_x64
    results = {**trained(config), "carried": weights.predict(small_dataset().test.images)}
    own_key = BatchKey.of_batch(jax.random.key(0), 4)  # four words, not two
    assert 0.4 < keep_mask(own_key, 0.5, (1000,)).mean() < 0.6
    assert platform.start("cpu") == jax.devices()  # JAX has started long ago
    with pytest.raises(UserError, match="JAX runs on cpu already: --platform gpu; "):
        platform.start("gpu")
    return results


def test_a_pool_of_spawned_processes_with_other_settings_of_jax_computes_the_same(config, monkeypatch):
    config = dataclasses.replace(config, learning_rate=0.05)  # other tests' too, which is compiled
    weights = Weights(CNN(4, 16), initial_variables(CNN(4, 16), jax.random.key(0)))
    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(name, value)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = pool.submit(elsewhere, config, weights)
        here = {**trained(config), "carried": weights.predict(small_dataset().test.images)}
        for name, array in there.result().items():
            np.testing.assert_array_equal(array, here[name], err_msg=name, strict=True)


def test_two_models_in_threads_pickled_and_copied(dataset):
    models = [Weights(CNN(4, 16), initial_variables(CNN(4, 16), jax.random.key(i))) for i in range(2)]
    others = [*models, *copy.deepcopy(models), *pickle.loads(pickle.dumps(models))]
    with ThreadPoolExecutor(len(others)) as pool:
        found = list(pool.map(lambda model: model.predict(dataset.test.images), others))
    np.testing.assert_array_equal(found, [model.predict(dataset.test.images) for model in models] * 3)
    assert others[2:4] == models == others[4:]


def test_figures_of_threads_leave_matplotlib_as_it_was(tmp_path):
    before, inside, most = dict(mpl.rcParams), [], []

    class Slow(Figure):
        def savefig(self, path, **options):
            path.touch()
            inside.append(self)
            time.sleep(0.05)
            most.append(len(inside))
            inside.remove(self)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: figures.save(Slow(), tmp_path / f"{i}.png"), range(3)))
    assert most == [1, 1, 1]
    assert dict(mpl.rcParams) == before
