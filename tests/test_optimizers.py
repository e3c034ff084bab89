import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.optimizers import sgd


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_its_formula(momentum, weight_decay):
    optimizer = sgd(0.5, momentum, False, weight_decay)
    p = jnp.array(2.0)
    state = optimizer.init(p)
    velocity = 0.0
    expected = 2.0
    for g in (1.0, -3.0):
        updates, state = optimizer.update(jnp.array(g), state, p)
        p = optax.apply_updates(p, updates)
        velocity = momentum * velocity + g + weight_decay * expected
        expected -= 0.5 * velocity
        np.testing.assert_allclose(p, expected, rtol=1e-6)


def test_sgd_is_plain_unless_told_otherwise():
    optimizer = sgd(0.5)
    p, g = jnp.array(2.0), jnp.array(3.0)
    state = optimizer.init(p)
    for _ in range(2):
        updates, state = optimizer.update(g, state, p)
        assert float(updates) == -1.5
