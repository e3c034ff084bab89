import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

from jaxcnn import layers
from jaxcnn.layers import BatchKey

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


def draws(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def dropout_key(seed, images):
    return BatchKey.of_batch(jax.random.key(seed), images)


def value_and_gradients(f, *arguments):
    y, back = jax.vjp(f, *arguments)
    (cotangent,) = draws(99, y.shape, dtype=y.dtype)
    return [y, *back(cotangent)]


def assert_close(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        scale = float(jnp.abs(b).max()) or 1.0
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, **tolerance)


@settings(max_examples=5)
@given(
    n=st.integers(1, 5), h=st.integers(1, 9), w=st.integers(1, 9), c=st.integers(1, 40), o=st.integers(1, 40),
    kh=st.integers(1, 5), kw=st.integers(1, 5), pad=st.integers(0, 3), jit=st.booleans(),
)  # fmt: skip
@example(n=2, h=6, w=5, c=3, o=32, kh=3, kw=3, pad=1, jit=True)  # few channels: as the tutorial's conv1
@example(n=2, h=5, w=7, c=2, o=12, kh=2, kw=3, pad=1, jit=False)
def test_convolution_is_stock(n, h, w, c, o, kh, kw, pad, jit):
    pad = max(pad, kh - h, kw - w)
    x, kernel = draws(0, (n, h, w, c), (kh, kw, c, o))
    padding = ((pad, pad), (pad, max(0, pad - 1) if w + 2 * pad - 1 >= kw else pad))
    maybe_jit = jax.jit if jit else lambda f: f
    found = value_and_gradients(maybe_jit(lambda x, k: layers.conv2d(x, k, padding)), x, kernel)
    assert_close(found, value_and_gradients(lambda x, k: layers.stock_conv(x, k, padding), x, kernel), **FLOAT32)


@settings(max_examples=5)
@given(rows=st.integers(1, 40), c=st.integers(1, 9), dtype=st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_a_bias_and_its_gradient(rows, c, dtype):
    x, bias = draws(4, (rows, 2, c), (c,), dtype=dtype)
    found = value_and_gradients(layers.add_bias, x, bias)
    expected = value_and_gradients(lambda x, bias: x + bias[None, None], x, bias)
    assert [a.dtype for a in found] == [dtype] * 3
    tolerance = FLOAT32 if dtype == jnp.float32 else {"rtol": 3e-2, "atol": 3e-2}
    assert_close(
        [jnp.asarray(a, jnp.float32) for a in found], [jnp.asarray(a, jnp.float32) for a in expected], **tolerance
    )


def test_convolution_gradient_is_numerical_gradient():
    with jax.enable_x64(True):
        x, kernel = draws(2, (2, 5, 4, 3), (3, 3, 3, 4), dtype=jnp.float64)
        check_grads(
            jax.jit(lambda x, k: layers.conv2d(x, k, ((1, 1), (1, 1)))), (x, kernel), order=1, modes=["rev"], rtol=1e-7
        )


def stock_max_pool(x):
    return lax.reduce_window(x, jnp.asarray(-jnp.inf, x.dtype), lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@settings(max_examples=6)
@given(n=st.integers(1, 3), h=st.integers(2, 9), w=st.integers(2, 9), c=st.integers(1, 5), distinct=st.integers(1, 4))
def test_max_pool_and_its_ties(n, h, w, c, distinct):
    """`distinct` values only, so that most windows are tied; the gradient must go to each window's first maximum."""
    x = jnp.asarray(np.random.default_rng(n).integers(0, distinct, (n, h, w, c)), jnp.float32)
    y, back = jax.vjp(layers.max_pool, x)
    for pooled in (y, layers.max_pool(x)):  # with a gradient and without one
        np.testing.assert_array_equal(pooled, stock_max_pool(x))
    (dy,) = draws(3, y.shape)
    expected = np.zeros(x.shape, np.float32)
    for i, row, column, channel in np.ndindex(*y.shape):
        window = np.asarray(x[i, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel])
        a, b = np.unravel_index(window.argmax(), (2, 2))
        expected[i, 2 * row + a, 2 * column + b, channel] = dy[i, row, column, channel]
    np.testing.assert_array_equal(back(dy)[0], expected)


def test_max_pool_lets_nan_win():
    x = jnp.ones((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(x)).all()


@settings(max_examples=6)
@given(rows=st.integers(1, 6), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_random_numbers_of_a_row_depend_on_nothing_else(rows, shape):
    few, many = (layers.random_uint16(dropout_key(3, count), shape) for count in (rows, rows + 5))
    np.testing.assert_array_equal(few, many[:rows])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(few, layers.random_uint16(dropout_key(3, rows), shape))
    last = BatchKey(jax.random.key(3), jnp.arange(rows, rows + 5, dtype=jnp.uint32))
    np.testing.assert_array_equal(layers.random_uint16(last, shape), many[rows:])


def test_random_numbers_are_those_of_earlier_versions():
    """Other numbers are other dropout masks: every seed's training changes, and no run can be resumed as it began."""
    found = layers.random_uint16(dropout_key(3, 2), (6,))
    assert found.tolist() == [[25499, 56714, 13387, 29701, 32485, 53119], [46739, 1376, 56475, 58236, 11416, 49939]]


def test_random_numbers_are_uniform_and_unlike_each_other():
    numbers = np.asarray(layers.random_uint16(dropout_key(0, 64), (4096,)))
    counts = np.bincount(numbers.ravel() >> 8, minlength=256)
    chi_square = ((counts - 1024) ** 2 / 1024).sum()
    assert 170 < chi_square < 360  # 255 degrees of freedom: 5 standard deviations
    rows = numbers[:, :-1].ravel() / 65535 - 0.5, numbers[:, 1:].ravel() / 65535 - 0.5
    assert abs(np.corrcoef(*rows)[0, 1]) < 0.01
    other = np.asarray(layers.random_uint16(dropout_key(1, 64), (4096,)))
    assert (numbers == other).mean() < 1e-3
    assert len(np.unique(numbers[:, 0])) > 55


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_dropout(rate):
    x = jnp.ones((64, 4096))
    y = np.asarray(layers.dropout(x, dropout_key(5, 64), rate))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert abs((y == 0).mean() - rate) < 0.005
    np.testing.assert_array_equal(y != 0, layers.keep_mask(dropout_key(5, 64), rate, (4096,)))


def test_dropout_at_rate_0_keeps_every_element():
    """Among so many 16-bit numbers some are 0."""
    key = dropout_key(5, 64)
    assert (layers.random_uint16(key, (4096,)) == 0).any()
    assert layers.keep_mask(key, 0.0, (4096,)).all()


def test_initial_distribution_has_pytorchs_bounds():
    values = np.asarray(layers.torch_uniform(288)(jax.random.key(0), (3, 3, 32, 32)))
    bound = 288**-0.5
    assert values.dtype == np.float32
    assert -bound <= values.min() < -0.99 * bound
    assert 0.99 * bound < values.max() <= bound
    assert abs(values.std() - bound / 3**0.5) < 0.02 * bound
