import json
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from jaxcnn import figures, map_figures
from jaxcnn.errors import UserError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RNG = np.random.default_rng(0)


@pytest.fixture
def subject():
    probabilities = np.array([0.01, 0.02, 0.03, 0.2, 0.04, 0.05, 0.06, 0.5, 0.07, 0.02])
    image = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return figures.Subject("train_00007", image, probabilities, NAMES, "horse")


def signed(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def words(figure):
    return [text.get_text() for axes in [figure, *figure.axes] for text in axes.texts]


def ends(axes):
    return [label.get_text().replace("−", "-") for label in axes.get_xticklabels()]


def saved(figure, path):
    """Save a figure, and return a function that gives the picture's colour at a point of one of its Axes."""
    figures.save(figure, path)
    picture = np.asarray(Image.open(path).convert("RGB"))

    def pixel(axes, x, y):
        across, up = figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
        return picture[int((1 - up) * len(picture)), int(across * picture.shape[1])]

    return pixel


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (7, (2, 4)), (10, (2, 5)), (11, (3, 4)), (32, (4, 8)), (64, (8, 8)),
     (128, (8, 16)), (512, (16, 32)), (8192, (64, 128))],
)  # fmt: skip
def test_grids(count, expected):
    assert figures.grid(count) == expected


@given(st.integers(1, 3000), st.floats(0.2, 5))
def test_a_grid_has_room_for_all_and_no_empty_row(count, ratio):
    rows, columns = figures.grid(count, ratio)
    assert (rows - 1) * columns < count <= rows * columns


@pytest.mark.parametrize("low", [-1, 0])
def test_every_pixel_of_every_map_has_the_colour_of_its_value(tmp_path, subject, low):
    maps = np.linspace(low, 1, 2 * 2 * 6, dtype=np.float32).reshape(2, 2, 6)
    figure = map_figures.feature_maps(maps, "conv1", subject)
    grid = figure.axes[2]
    pixel = saved(figure, tmp_path / "a.png")
    colours, norm = mpl.colormaps["RdBu_r" if low else "viridis"], mpl.colors.Normalize(low, 1)
    for i, image in enumerate(grid.images):
        left, right, *heights = image.get_extent()
        top, bottom = sorted(heights)  # the unit is an inch from the top
        for row, y in enumerate((0.75 * top + 0.25 * bottom, 0.25 * top + 0.75 * bottom)):
            for column, x in enumerate((0.75 * left + 0.25 * right, 0.25 * left + 0.75 * right)):
                colour = pixel(grid, x, y)
                expected = 255 * np.array(to_rgb(colours(norm(maps[row, column, i]))))
                assert np.abs(colour - expected).max() <= 1.5
    assert ends(figure.axes[3]) == ([f"{low}", "0", "1"] if low else ["0", "0.5", "1"])


def test_the_grid_of_the_tutorial(subject):
    """32 maps as 4 x 8, numbered, each holding its own array, all on one scale."""
    maps = signed(32, 32, 32)
    figure = map_figures.feature_maps(maps, "conv1", subject)
    grid = figure.axes[2]
    for i, image in enumerate(grid.images):
        np.testing.assert_array_equal(image.get_array(), maps[:, :, i])
    limit = np.abs(maps).max()
    assert {(image.norm.vmin, image.norm.vmax) for image in grid.images} == {(-limit, limit)}
    corners = [image.get_extent() for image in grid.images]
    assert len({round(left, 6) for left, *_ in corners}) == 8
    assert len({round(top, 6) for *_, top in corners}) == 4
    assert [text.get_text() for text in grid.texts] == [str(i) for i in range(32)]
    assert words(figure)[:2] == ["conv1", "32 maps of 32 × 32, one scale for all"]
    assert figure.canvas.manager is None


def test_the_image_and_its_classes_stand_beside_the_maps(subject):
    figure = map_figures.feature_maps(signed(8, 8, 4), "conv1", subject)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), subject.image)
    rows = [(text.get_text(), text.get_weight()) for text in figure.axes[1].texts]
    assert rows[:4] == [("horse", "bold"), ("50.0%", "bold"), ("cat", "normal"), ("20.0%", "normal")]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0.5, 0.2, 0.07, 0.06, 0.05]
    assert {"train_00007", "true class: horse"} <= set(words(figure))


def test_each_map_on_its_own_scale(subject):
    maps = np.stack([np.eye(4), -3 * np.eye(4), np.zeros((4, 4))], axis=-1).astype(np.float32)
    figure = map_figures.feature_maps(maps, "conv1", subject, "map")
    grid, bar = figure.axes[2], figure.axes[3]
    assert [image.norm.vmax for image in grid.images] == [1, 3, 1]
    assert [image.norm.vmin for image in grid.images] == [-1, -3, -1]
    assert [text.get_text() for text in grid.texts] == ["0", "1", "1", "3", "2 dead"]
    assert ends(bar) == ["-1", "0", "1"]


@pytest.mark.parametrize("scale", ["layer", "map"])
def test_dead_maps_are_marked(subject, scale):
    """All zeros, not all the same: a bias alone makes a map of one value, and that one is alive."""
    maps = np.zeros((8, 8, 5), np.float32)
    maps[0, 0, 2], maps[..., 4] = 1, 5
    figure = map_figures.feature_maps(maps, "act1", subject, scale)
    texts = [text.get_text() for text in figure.axes[2].texts]
    assert [text for text in texts if "dead" in text] == ["0 dead", "1 dead", "3 dead"]
    assert len(figure.axes[2].lines) == 3
    assert any("3 dead (×)" in text for text in words(figure))


def test_numbers_of_any_size_and_none(tmp_path, subject):
    """Without a warning of division by zero or overflow. A value that is not finite is grey and sets no scale."""
    odd = np.float32([[np.nan, np.inf], [-1, 2]])
    maps = np.stack(
        [odd, np.zeros_like(odd), np.float32([[3e38, -3e38], [1, 1]]), np.full((2, 2), 1e-44, np.float32)], axis=-1
    )
    for part in (maps, maps[..., :1], maps[..., 3:], maps[:1, :1, 1:]):
        figures.save(map_figures.feature_maps(part, "odd", subject, "map"), tmp_path / "a.png")
    figure = map_figures.feature_maps(maps[..., :2], "odd", subject)
    assert figure.axes[2].images[0].norm.vmax == 2
    left, right, bottom, top = figure.axes[2].images[0].get_extent()
    colour = saved(figure, tmp_path / "a.png")(figure.axes[2], left + 0.1, top + 0.1)
    np.testing.assert_array_equal(colour, [0xBB] * 3)


def test_few_values_are_bars_and_many_a_strip(subject):
    values = signed(1, 1, 10)
    bars = map_figures.feature_maps(values, "fc4", subject, names=NAMES).axes[2]
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], values[0, 0])
    assert [label.get_text() for label in bars.get_xticklabels()] == list(NAMES)
    blue, red = ([bar.get_facecolor()[i] for bar in bars.patches] for i in (2, 0))
    assert [b > r for b, r in zip(blue, red, strict=True)] == list(values[0, 0] < 0)
    values = np.maximum(signed(1, 1, 101), 0)
    figure = map_figures.feature_maps(values, "act3", subject)
    axes = figure.axes[2]
    drawn = axes.images[0].get_array()
    np.testing.assert_array_equal(drawn.compressed(), values[0, 0])
    rows, columns = drawn.shape
    ticks = [(label.get_text(), tick) for label, tick in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)]
    assert ("0", 0) in ticks
    assert all(text == f"{columns * tick:.0f}" for text, tick in ticks)
    assert f"101 values, {(values == 0).sum()} of them zero" in words(figure)


def test_jax_beside_pytorch_and_their_difference(subject):
    ours = np.maximum(signed(4, 4, 8), 0)
    ours[..., 5] = 0
    ours[1, 2, 3] = 2
    theirs = ours.copy()
    theirs[1, 2, 3] -= 1e-3
    figure = map_figures.comparison(ours, theirs, "act1", subject)
    jax_axes, torch_axes, difference = (axes for axes in figure.axes if len(axes.images) == 8)
    for i in range(8):
        np.testing.assert_array_equal(jax_axes.images[i].get_array(), ours[..., i])
        np.testing.assert_array_equal(torch_axes.images[i].get_array(), theirs[..., i])
        np.testing.assert_array_equal(difference.images[i].get_array(), ours[..., i].astype(float) - theirs[..., i])
    assert jax_axes.images[0].norm.vmax == torch_axes.images[0].norm.vmax == max(ours.max(), theirs.max())
    assert difference.images[0].norm.vmin == -difference.images[0].norm.vmax
    assert [len(axes.lines) for axes in (jax_axes, torch_axes, difference)] == [1, 1, 0]
    text = " ".join(words(figure))
    assert "largest difference 0.001, largest value" in text
    assert "both are equal" in " ".join(words(map_figures.comparison(ours, ours, "act1", subject)))


def test_kernels_of_colour_images_are_coloured():
    kernel = signed(3, 3, 3, 8)
    images = map_figures.filters(kernel, "conv1").axes[0].images
    for i, image in enumerate(images):
        np.testing.assert_allclose(image.get_array(), 0.5 + kernel[..., i].astype(float) / (2 * np.abs(kernel).max()))
    assert len(images) == 8


def test_other_kernels_are_a_table_of_outputs_by_inputs():
    kernel = signed(3, 5, 4, 2)
    table = map_figures.filters(kernel, "conv2").axes[0].images[0].get_array()
    assert table.shape == (2 * 4 - 1, 4 * 6 - 1)
    for i in range(4):
        for o in range(2):
            np.testing.assert_array_equal(table[4 * o : 4 * o + 3, 6 * i : 6 * i + 5], kernel[:, :, i, o])
    assert table.mask[3].all()
    assert table.mask[:, 5].all()


def test_curves_mark_the_best_epoch():
    accuracy = [0.5, 0.75, 0.7]
    lines = [
        {"epoch": i + 1, "train_loss": 2 - i, "test_loss": 1.9 - i, "train_accuracy": 0.1 * i, "test_accuracy": a}
        for i, a in enumerate(accuracy)
    ]
    loss, percent = figures.curves(json.loads(json.dumps(lines)), "digits").axes
    for axes, split in ((loss, "loss"), (percent, "accuracy")):
        training, test, mark, *star = axes.lines
        scale = 100 if split == "accuracy" else 1
        np.testing.assert_allclose(training.get_ydata(), [scale * line[f"train_{split}"] for line in lines])
        np.testing.assert_allclose(test.get_ydata(), [scale * line[f"test_{split}"] for line in lines])
        assert list(mark.get_xdata()) == [2, 2]
        assert [(*s.get_xdata(), *s.get_ydata()) for s in star] == ([(2, 75)] if split == "accuracy" else [])
    assert star[0].get_label() == "best: 75.00 %, epoch 2"


def test_confusion():
    counts = np.diag([5, 0, 7]) + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    figure = figures.confusion(counts, ["cat", "dog", "a $"], "test")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[5 / 6, 1 / 6, 0], [0, 0, 0], [0, 0, 1]])
    assert [text.get_text() for text in axes.texts] == ["5", "1", "0", "0", "0", "0", "0", "0", "7"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "a $"]
    assert "12 of 13 right (92.31%)" in words(figure)


@pytest.mark.parametrize(("count", "length"), [(4, 40), (100, 12)])
def test_confusion_of_long_names_and_of_many(count, length):
    names = [f"{i:03}".ljust(length, "n") for i in range(count)]
    figure = figures.confusion(np.eye(count, dtype=int), names, "test")
    axes, bar = figure.axes
    figure.draw_without_rendering()
    assert axes.yaxis.label.get_window_extent().x0 >= 0
    assert axes.xaxis.label.get_window_extent().y0 >= bar.get_window_extent().y1
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(one.y0 >= other.y1 for one, other in pairwise(labels))
    assert len(axes.texts) == (16 if count == 4 else 0)


def test_accuracy_by_compute():
    """Each line ends at its name, the names do not touch, and what others report is marked apart."""
    pflop = np.array([0.01, 0.02, 0.08])
    accuracy = np.array([[0.3, 0.5, 0.89], [0.4, 0.6, 0.91]])
    some = [figures.Trainings(name, scale * pflop, accuracy - less) for name, scale, less in
            (("a_1", 1, 0), ("$b", 1, 0.01), ("c", 4, 0.3))]  # fmt: skip
    (axes,) = figures.accuracy_by_compute(some, {"others": (0.3, 0.94)}, "title").axes
    means = [line for line in axes.lines if line.get_marker() == "o"]
    assert len({line.get_color() for line in means}) == 3
    np.testing.assert_allclose(means[0].get_xydata(), np.stack([pflop, 100 * accuracy.mean(axis=0)], axis=1))
    band = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose((band[:, 1].min(), band[:, 1].max()), (30, 91))
    assert axes.get_xscale() == "log"
    names = {text.get_text(): text for text in axes.texts}
    assert list(names) == ["a_1 90.0 %", "$b 89.0 %", "c 60.0 %", "others"]
    assert [names[name].xy[1] for name in list(names)[:3]] == pytest.approx([90, 86, 60])
    assert {names[name].xy[0] for name in list(names)[:3]} == {0.64}  # beyond the end of every line
    assert [text.get_color() for text in list(names.values())[:3]] == [line.get_color() for line in means]
    assert names["others"].xy == pytest.approx((0.3, 94))


def test_most_wrong(subject):
    figure = figures.most_wrong([subject], "test")
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), subject.image)
    assert words(figure)[2:] == ["horse at 50%", "true: horse", "train_00007"]
    assert "no image is wrong" in words(figures.most_wrong([], "test"))


@pytest.mark.parametrize("kind", figures.FORMATS)
def test_equal_figures_are_equal_files(tmp_path, subject, kind):
    maps = signed(4, 4, 3)
    odd = figures.Subject("猫 $x_", subject.image, subject.probabilities, ["$_{"] * 10, "$\\frac")
    for name in "ab":
        figures.save(map_figures.feature_maps(maps, "$^", odd), tmp_path / f"{name}.{kind}")
    written = (tmp_path / f"a.{kind}").read_bytes()
    assert written == (tmp_path / f"b.{kind}").read_bytes()
    assert b"CreationDate" not in written
    assert b"dc:date" not in written
    assert written.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


def test_a_folder_that_cannot_be_written(tmp_path, subject):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write into this folder"):
        figures.folder(tmp_path / "file" / "below")
    if Path("/proc/version").exists():  # not even root makes a file there
        with pytest.raises(UserError, match="cannot write into this folder"):
            figures.folder(Path("/proc"))
    with pytest.raises(UserError, match="cannot write"):
        figures.save(figures.most_wrong([subject], "x"), tmp_path / "absent" / "a.png")
    assert figures.folder(tmp_path / "new" / "below").is_dir()
    assert list((tmp_path / "new" / "below").iterdir()) == []
