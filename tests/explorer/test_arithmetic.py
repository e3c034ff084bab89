"""The page's arithmetic against JAX's and Pillow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxcnn import augment, features, networks, pictures
from jaxcnn.data import digits
from jaxcnn.explorer import page
from jaxcnn.networks.speedrun import Speedrun, constants
from jaxcnn.networks.tutorial import CNN
from jaxcnn.pictures import Picture
from jaxcnn.weights import Weights
from tests.explorer.javascript import evaluate

NETWORKS = {"tutorial": CNN(6, 20), "speedrun": Speedrun(8, 10, 12)}


def images_of() -> np.ndarray:
    """Noise, a digit and a black image."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return np.concatenate([noise, digits.load_digits().test.images[:1], np.zeros((1, 32, 32, 3), np.uint8)])


IMAGES = images_of()


@pytest.fixture(scope="module", params=list(NETWORKS))
def weights(request):
    """A network as after some training: statistics and biases are not 0 and 1."""
    network = NETWORKS[request.param]
    variables = networks.initial_variables(network, jax.random.key(0))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + rng.uniform(-0.05, 0.05, leaf.shape).astype(np.float32), variables)
    if request.param == "speedrun":
        moved |= constants(IMAGES)
    return Weights(network, moved, tuple("abcdefghij"))


@pytest.fixture(scope="module")
def written(weights):
    return page._data(weights, [Picture("a", IMAGES[0])], weights.class_names)


def test_every_layer_is_jax_s_and_so_are_the_probabilities(weights, written):
    names = list(features.layer_shapes(weights.network))
    assert names == ["input", *(layer["name"] for layer in written["layers"])]
    expression = """input.images.map((pixels) => {
      const outputs = run(network, Uint8Array.from(pixels));
      return [outputs, probabilities(network, Uint8Array.from(pixels), outputs)];
    })"""
    found = evaluate(expression, page=written, images=IMAGES.reshape(len(IMAGES), -1).tolist())
    expected = features.feature_maps(weights.network, weights.variables, IMAGES, names)
    for i, (outputs, _) in enumerate(found):
        for name in names:
            maps = features.as_maps(np.asarray(expected[name][i]))
            assert tuple(outputs[name]["shape"]) == maps.shape, name
            error = np.abs(np.reshape(outputs[name]["data"], maps.shape) - maps).max()
            assert error <= 1e-4 * np.abs(maps).max(), f"{name} of image {i}: {error}"
    np.testing.assert_allclose([one[1] for one in found], weights.predict(IMAGES), atol=1e-5)


def test_softmax_of_logits_whose_powers_no_number_holds():
    found = evaluate("softmax(input.logits)", logits=[1000, 999, 0])
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0], rtol=1e-12)


def test_an_explanation_s_products_and_bias_sum_to_the_number(written):
    """At corners, where padding is, and inside."""
    expression = """network.layers.flatMap((layer) => {
      const outputs = run(network, Uint8Array.from(input.pixels)), [height, width, count] = outputs[layer.name].shape;
      const places = [[0, 0, 0], [height - 1, width - 1, count - 1], [height >> 1, width >> 1, count >> 1]];
      return places.map(([row, column, map]) => {
        const at = {map, row, column}, {terms, window, lines} = explained(network, outputs, layer.name, at);
        const bias = layer.arrays.bias?.[map] ?? 0;
        return {name: layer.name, kind: layer.kind, y: valueAt(outputs[layer.name], at), lines,
          sum: terms.reduce((sum, term) => sum + term.sum, bias), won: window?.values[window.place],
          largest: window && Math.max(...window.values)};
      });
    })"""
    found = evaluate(expression, page=written, pixels=IMAGES[2].ravel().tolist())
    for one in found:
        if one["kind"] in ("convolution", "dense"):
            assert one["sum"] == pytest.approx(one["y"], rel=1e-4, abs=1e-5), one
        if "Pool" in one["kind"]:
            assert one["won"] == one["largest"] == one["y"], one
        assert one["lines"], one
    text = [line for one in found for line in one["lines"]]
    assert any(line.startswith("x = ") for line in text) == (written["factor"] != 1)  # a residual, which speedrun has
    assert not any("undefined" in line or "NaN" in line for line in text)


def test_a_receptive_field_holds_all_that_a_number_depends_on(written):
    """Every pixel outside is changed, and the number stays; the corners inside are changed, and it does not."""
    expression = """network.layers.filter((layer) => !layer.name.startsWith("pool7")).map((layer) => {
      const outputs = run(network, Uint8Array.from(input.pixels)), [height, width, count] = outputs[layer.name].shape;
      const at = {row: height >> 1, column: width >> 1, map: count - 1};
      const {top, bottom, left, right} = fieldOf(network, outputs, layer.name, at).input;
      const inside = (i) => {
        const [row, column] = [Math.floor(i / 96), Math.floor(i / 3) % 32];
        return row >= top && row <= bottom && column >= left && column <= right;
      };
      const others = Uint8Array.from(input.pixels, (value, i) => (inside(i) ? value : 255 - value));
      const values = [outputs, run(network, others)].map((all) => valueAt(all[layer.name], at));
      return [layer.name, ...values, top, bottom, left, right];
    })"""
    found = evaluate(expression, page=written, pixels=IMAGES[0].ravel().tolist())
    assert all(same == other for _, same, other, *_ in found), found
    boxes = {name: box for name, _, _, *box in found}
    first = "whiten" if "whiten" in boxes else "conv1"
    assert boxes[first][1] - boxes[first][0] + 1 == (2 if first == "whiten" else 3)
    assert boxes[found[-1][0]] == [0, 31, 0, 31]


@pytest.mark.parametrize(
    ("width", "height"), [(32, 32), (200, 131), (131, 200), (17, 40), (5, 5), (33, 64), (3, 4), (5, 7)]
)
def test_a_picture_is_cropped_and_resized_as_pillow_does(tmp_path, width, height):
    rng = np.random.default_rng(width)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = pictures.read(tmp_path / "picture.png")[0]
    opaque = np.concatenate([picture, np.full((height, width, 1), 255, np.uint8)], axis=-1).ravel().tolist()
    expression = "squared({data: Uint8Array.from(input.data), width: input.width, height: input.height})"
    found = evaluate(expression, data=opaque, width=width, height=height)
    assert np.abs(np.reshape(found, (32, 32, 3)).astype(int) - expected).max() <= 1


def test_a_drawing_becomes_a_digit_as_the_data_set_s_are():
    """Sixteen steps of grey of the mean of 4 x 4 pixels, whatever greys the pen's soft edge has."""
    soft = np.random.default_rng(0).integers(0, 256, (8, 8, 4, 4)) * np.linspace(0, 1, 8)[:, None, None, None]
    steps = np.round(np.floor(soft).mean(axis=(2, 3)) / 255 * 16)
    coarse = np.round(steps * (255 / 16)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(coarse).resize((32, 32), Image.Resampling.BILINEAR))
    pixels = np.floor(soft).astype(np.uint8).swapaxes(1, 2).reshape(32, 32)
    drawing = np.repeat(pixels[..., None], 4, axis=-1)
    found = evaluate("digitOf({data: Uint8Array.from(input.data), width: 32})", data=drawing.ravel().tolist())
    assert np.abs(np.reshape(found, (32, 32, 3)).astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("view", [augment.View(1.0, 1, -1, False), augment.View(1.0, -2, 2, True), augment.View(1.0)])
def test_a_view_is_moved_and_mirrored_as_jax_does(view):
    found = evaluate(
        "viewed(Uint8Array.from(input.pixels), input.view)", pixels=IMAGES[0].ravel().tolist(), view=view._asdict()
    )
    np.testing.assert_array_equal(np.reshape(found, (32, 32, 3)), augment.viewed(jnp.asarray(IMAGES[:1]), view)[0])
