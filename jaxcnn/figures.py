"""Arrays to matplotlib figures. Functions return a figure and never show it; `save` writes it whole or not at all.

In a notebook, `%matplotlib inline` makes a figure that ends a cell its picture. Lengths are inches on the page.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure

from jaxcnn.errors import UserError
from jaxcnn.files import written_whole

TRAIN, TEST = "#4477aa", "#cc6677"  # Paul Tol's bright pair: told apart in grey and by colour-blind eyes
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
QUIET, TINT = "#666666", "#c8d7e6"

FORMATS = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
WIDTH, CELL, GAP, LABEL = 5.52, 0.64, 0.05, 0.15  # at 200 dots an inch, a pixel of a 32 x 32 map is 4 x 4 dots
MARGIN, SIDEBAR, HEAD, FOOT, LOW = 0.15, 1.62, 0.42, 0.42, 2.75

Maps = Float[np.ndarray, "h w c"]
Colours = tuple[Colormap, Normalize]
Scale = Literal["layer", "map", "difference"]


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, without the time in it: equal figures are equal files."""
    kind = path.suffix[1:]
    with written_whole(path) as temporary, mpl.rc_context({"svg.hashsalt": "jaxcnn"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a picture's name may be in any script
        figure.savefig(temporary, format=kind, dpi=200, metadata=FORMATS[kind])


def folder(path: Path) -> Path:
    """The folder itself, made where it is not there; UserError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as problem:
        raise UserError(f"cannot write into this folder ({problem.strerror})", path, "choose another") from None


@dataclass(frozen=True)
class Subject:
    """An image and what the network makes of it.

    image: uint8 [h, w, 3].  probabilities: [classes], in the order of class_names.  truth: its class where known.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    probabilities: Float[np.ndarray, "classes"]
    class_names: Sequence[str]
    truth: str | None = None

    def ranked(self) -> list[tuple[str, float]]:
        """Classes and probabilities, the likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


def feature_maps(
    maps: Maps, layer: str, subject: Subject, scale: Scale = "layer", names: Sequence[str] = ()
) -> Figure:  # fmt: skip
    """All maps of a layer in a numbered grid, their colours explained, the image and its likeliest classes beside them.

    maps: float [h, w, c]; [1, 1, c], a dense layer's, are drawn as bars, named by `names`, or as a strip if many.
    scale: `layer` gives all maps one scale, so that they can be compared; `map` gives each its own, its limit at its
    right. Signed maps are blue, white and red around zero, others go from 0. A map with one value everywhere is dead.
    """
    layout = _Layout(maps.shape, WIDTH, ratio=2)
    figure = _page(SIDEBAR + layout.size[0], max(layout.size[1] + FOOT, LOW))
    _sidebar(figure, subject)
    scaled = "" if layout.kind != "grid" else ", one scale for all" if scale == "layer" else ", each on its own scale"
    _title(figure, SIDEBAR, layer, _summary(maps) + scaled)
    _panel(figure, SIDEBAR, HEAD, maps, layout, _colours(maps), scale, names)
    return figure


def comparison(ours: Maps, theirs: Maps, layer: str, subject: Subject, names: Sequence[str] = ()) -> Figure:
    """A layer's maps in JAX and in PyTorch on one scale, and JAX minus PyTorch on its own."""
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    layout = _Layout(ours.shape, WIDTH / 2.6, ratio=0.5)
    figure = _page(SIDEBAR + 3 * layout.size[0] + 0.5, max(layout.size[1] + FOOT + 0.22, LOW))
    _sidebar(figure, subject)
    largest, of = np.abs(difference).max(), np.abs(theirs).max()
    found = (
        f"differ by at most {largest:.2g}, where the largest is {of:.3g}" if largest else "are the same, bit for bit"
    )
    _title(figure, SIDEBAR, f"{layer}: JAX against PyTorch", f"{_summary(ours)}; the two {found}")
    common = _colours(np.stack([ours, theirs]))
    panels = (("JAX", ours, common), ("PyTorch", theirs, common), ("JAX − PyTorch", difference, _colours(difference)))
    for i, (name, maps, colours) in enumerate(panels):
        left = SIDEBAR + i * (layout.size[0] + 0.25)
        _text(figure, left, HEAD + 0.05, name, size=8, weight="bold")
        _panel(figure, left, HEAD + 0.22, maps, layout, colours, "difference" if i == 2 else "layer", names)
    return figure


def filters(kernel: Float[np.ndarray, "kh kw i o"], layer: str) -> Figure:
    """A convolution's kernels: in colour where the input is, else a table of output by input channels."""
    height, width, inputs, outputs = kernel.shape
    colours = _colours(np.stack([kernel, -kernel]))
    limit, title = colours[1].vmax, f"kernels of {layer}"
    if inputs == 3:
        layout = _Layout((height, width, outputs), WIDTH, ratio=2)
        figure = _page(*layout.size)
        _title(figure, 0, title, f"{outputs} kernels of {height} × {width}; red, green, blue: grey is 0, ±{limit:.2g}")
        _grid(_axes(figure, 0, HEAD, *layout.size), 0.5 + kernel / (2 * limit), layout, colours, "difference")
        return figure
    table = np.full((outputs, height + 1, inputs, width + 1), np.nan, kernel.dtype)
    table[:, :height, :, :width] = kernel.transpose(3, 0, 2, 1)
    table = table.reshape(outputs * (height + 1), -1)[:-1, :-1]
    high = WIDTH * table.shape[0] / table.shape[1]
    figure = _page(WIDTH + 0.4, high + 0.85)
    _title(figure, 0, title, f"{outputs} × {inputs} kernels of {height} × {width}")
    axes = _axes(figure, 0.4, HEAD, WIDTH, high)
    extent = (-0.5, inputs - 0.5 - 1 / (width + 1), outputs - 0.5 - 1 / (height + 1), -0.5)
    cmap = colours[0].with_extremes(bad="white")
    image = axes.imshow(table, cmap=cmap, norm=colours[1], extent=extent, interpolation="nearest", aspect="auto")
    _ticks(axes, "input channel", "output channel")
    _colour_bar(figure, 0.4, HEAD + high + 0.45, 2.6, image)
    return figure


def curves(metrics: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Loss and accuracy of both splits against the epoch, the epoch of the best test accuracy marked in both.

    metrics: the lines of `metrics.jsonl`. Training figures are the running epoch's, dropout on: they lag behind.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    epochs = [line["epoch"] for line in metrics]
    best = max(metrics, key=lambda line: line["test_accuracy"])
    for axes, quantity, unit, scale in zip(
        figure.subplots(1, 2),
        ("loss", "accuracy"),
        ("mean cross entropy (nats)", "accuracy (%)"),
        (1, 100),
        strict=True,
    ):
        for split, colour, mark in (("train", TRAIN, "o"), ("test", TEST, "s")):
            name = "training (dropout on)" if split == "train" else "test"
            values = [scale * line[f"{split}_{quantity}"] for line in metrics]
            axes.plot(epochs, values, color=colour, marker=mark, markersize=3, label=name)
        axes.axvline(best["epoch"], color=QUIET, linewidth=0.8, linestyle=":")
        at, label = scale * best[f"test_{quantity}"], f"{best['test_loss']:.3f}"
        if quantity == "accuracy":
            label = f"best: {100 * best['test_accuracy']:.2f} %, epoch {best['epoch']:.0f}"
        axes.plot(best["epoch"], at, "*", color=TEST, markersize=11, label=label if quantity == "accuracy" else None)
        axes.set(xlabel="epoch", ylabel=unit)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def confusion(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str], title: str) -> Figure:
    """How often each class is taken for each: numbers of images, coloured by their share of the true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _page(5.4, 5.4)
    right = int(np.trace(counts))
    _title(figure, 0, title, f"{right} of {counts.sum()} right ({right / max(counts.sum(), 1):.2%})")
    axes = _axes(figure, 0.9, HEAD + 0.1, 4.4, 4.1)
    # The square root lifts the few mistakes of a good network out of the white.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "#aaaaaa" if not count else "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, count, ha="center", va="center", size=7, color=colour)
    _name_columns(axes, class_names)
    axes.set_yticks(range(len(class_names)), class_names, size=7, parse_math=False)
    axes.set_xlabel("predicted", size=8)
    axes.set_ylabel("true", size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _colour_bar(figure, 0.9, HEAD + 4.9, 2.6, image, label="share of the true class")
    return figure


def most_wrong(subjects: Sequence[Subject], title: str) -> Figure:
    """Wrongly classified images: what each was taken for, how surely, and what it is. Order is the caller's."""
    rows, columns = grid(max(len(subjects), 1), ratio=1.6)
    side, high = 1.0, 1.55
    figure = _page(max(columns * (side + 0.12), 3), rows * high)
    _title(
        figure,
        0,
        title,
        "in bold the predicted class and its probability, the surest first" if subjects else "no image is wrong",
    )
    for i, subject in enumerate(subjects):
        left, top = i % columns * (side + 0.12), HEAD + 0.1 + i // columns * high
        axes = _axes(figure, left, top, side, side)
        axes.imshow(subject.image, interpolation="nearest")
        axes.set_axis_off()
        name, probability = subject.ranked()[0]
        _text(figure, left, top + side + 0.04, f"{name} at {probability:.0%}", size=7, weight="bold")
        _text(figure, left, top + side + 0.17, f"true: {subject.truth}", size=7)
        _text(figure, left, top + side + 0.3, subject.name, size=6, color=QUIET)
    return figure


def grid(count: int, ratio: float = 2) -> tuple[int, int]:
    """Rows and columns for `count` things, near `ratio` columns to a row, without empty places where that can be."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return (
            round(abs(math.log(columns / rows / ratio)), 6)
            + 0.8 * (rows * columns > count)
            + (rows * columns - count) / count
        )

    columns = min(range(1, count + 1), key=cost)
    return math.ceil(count / columns), columns


@dataclass(frozen=True)
class _Layout:
    """How maps of this shape come out in a panel of about this width: as a grid, as bars or as a strip."""

    shape: tuple[int, ...]
    width: float
    ratio: float

    @property
    def kind(self) -> str:
        if self.shape[:2] != (1, 1):
            return "grid"
        return "bars" if self.shape[2] <= 40 else "strip"

    @property
    def rows_columns(self) -> tuple[int, int]:
        return grid(self.shape[2], self.ratio)

    @property
    def cell(self) -> tuple[float, float]:
        """A map's width and height: rather a wide page than maps too small to see."""
        wide = max(0.3, min(CELL, (self.width + GAP) / self.rows_columns[1] - GAP))
        return wide, wide * self.shape[0] / self.shape[1]

    @property
    def size(self) -> tuple[float, float]:
        """The panel's width and height."""
        (rows, columns), (wide, high) = self.rows_columns, self.cell
        if self.kind == "grid":
            return columns * (wide + GAP) - GAP, rows * (high + LABEL)
        return self.width, 2.4 if self.kind == "bars" else (self.width - 0.3) * rows / columns + LABEL + 0.2


def _colours(values: np.ndarray) -> Colours:
    """Sequential from zero, or diverging around it where there are negative values; grey for what is not finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    limit = float(np.abs(finite).max(initial=0)) or 1.0
    signed = finite.min(initial=0) < 0
    colours = mpl.colormaps[DIVERGING if signed else SEQUENTIAL].with_extremes(bad="#bbbbbb")
    return colours, Normalize(-limit if signed else 0, limit)


def _dead(maps: np.ndarray) -> np.ndarray:
    places = tuple(range(maps.ndim - 1))
    return maps.min(axis=places) == maps.max(axis=places)


def _summary(maps: Maps) -> str:
    height, width, count = maps.shape
    if height == width == 1:
        return f"{count:,} values, {np.count_nonzero(maps == 0):,} of them zero"
    dead = int(_dead(maps).sum())
    return f"{count} maps of {height} × {width}" + (f", {dead} dead (×: one value everywhere)" if dead else "")


def _page(width: float, height: float) -> Figure:
    """A page for a body of this size below the head."""
    return Figure(figsize=(width + 2 * MARGIN, height + HEAD + 2 * MARGIN), facecolor="white")


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place counted from the page's upper left corner within its margin."""
    w, h = figure.get_size_inches()
    return figure.add_axes(((left + MARGIN) / w, 1 - (top + MARGIN + height) / h, width / w, height / h))


def _text(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    w, h = figure.get_size_inches()
    figure.text((left + MARGIN) / w, 1 - (top + MARGIN) / h, text, va="top", parse_math=False, **style)


def _title(figure: Figure, left: float, title: str, subtitle: str) -> None:
    _text(figure, left, 0, title, size=10, weight="bold")
    _text(figure, left, 0.23, subtitle, size=7, color=QUIET)


def _sidebar(figure: Figure, subject: Subject) -> None:
    """The image, and its five likeliest classes with the true one's name in bold."""
    side = SIDEBAR - 0.34
    picture = _axes(figure, 0, HEAD + LABEL, side, side)
    picture.imshow(subject.image, interpolation="nearest")
    picture.set_axis_off()
    _text(figure, 0, 0.02, subject.name if len(subject.name) < 20 else f"{subject.name[:18]}…", size=8)
    _text(figure, 0, 0.23, f"true class: {subject.truth}" if subject.truth else "", size=7, color=QUIET)
    bars = _axes(figure, 0, HEAD + LABEL + side + 0.08, side, 1.1)
    for row, (name, probability) in enumerate(subject.ranked()[:5]):
        bars.barh(row, probability, color=TINT, height=0.85)
        style = {
            "size": 7,
            "va": "center",
            "parse_math": False,
            "weight": "bold" if name == subject.truth else "normal",
        }
        bars.text(0.02, row, name, **style)
        bars.text(1, row, f"{probability:.1%}", ha="right", **style)
    bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
    bars.set_axis_off()


def _panel(
    figure: Figure, left: float, top: float, maps: Maps, layout: _Layout, colours: Colours, scale: Scale,
    names: Sequence[str],
) -> None:  # fmt: skip
    """Maps as a grid, bars or a strip, with the colour bar below them."""
    width, height = layout.size
    share = scale == "map" and layout.kind == "grid"
    if layout.kind == "grid":
        _grid(_axes(figure, left, top, width, height), maps, layout, colours, scale)
    elif layout.kind == "bars":
        _bars(_axes(figure, left + 0.42, top + LABEL, width - 0.42, height - LABEL), maps[0, 0], colours, names)
        return
    else:
        left, width = left + 0.3, width - 0.3
        _strip(_axes(figure, left, top + LABEL, width, height - LABEL - 0.2), maps[0, 0], layout, colours)
    norm = Normalize(-1 if colours[1].vmin else 0, 1) if share else colours[1]
    label = "share of the map's own limit, which is at its right" if share else ""
    _colour_bar(figure, left, top + height + 0.1, min(width, 2.6), ScalarMappable(norm, colours[0]), label)


def _grid(axes: Axes, maps: np.ndarray, layout: _Layout, colours: Colours, scale: Scale) -> None:
    """Each map an image of its own in one Axes whose unit is the inch: five hundred Axes would take a minute."""
    wide, high = layout.cell
    columns, (right, bottom) = layout.rows_columns[1], layout.size
    style = {"size": min(6.5, 11 * wide), "va": "bottom"}
    for i, dead in enumerate(_dead(maps) & (scale != "difference")):
        x, y = i % columns * (wide + GAP), i // columns * (high + LABEL) + LABEL
        norm = colours[1]
        if scale == "map":
            limit = _colours(maps[..., i])[1].vmax
            norm = Normalize(-limit if norm.vmin else 0, limit)
        extent = (x, x + wide, y + high, y)
        axes.imshow(maps[..., i], cmap=colours[0], norm=norm, extent=extent, interpolation="nearest")
        axes.text(x, y - 0.02, f"{i} dead" if dead and wide > 0.4 else str(i), color=TEST if dead else QUIET, **style)
        if dead:
            axes.plot([x, x + wide, np.nan, x, x + wide], [y, y + high, np.nan, y + high, y], color="#999999", lw=0.7)
        elif scale == "map" and wide > 0.4:
            axes.text(x + wide, y - 0.02, f"{norm.vmax:.2g}", color=QUIET, ha="right", **style)
    axes.set(xlim=(0, right), ylim=(bottom, 0), aspect="auto")
    axes.set_axis_off()


def _bars(axes: Axes, values: np.ndarray, colours: Colours, names: Sequence[str]) -> None:
    cmap, norm = colours
    axes.bar(range(len(values)), values, color=cmap(np.where(values < 0, 0.15, 0.85)) if norm.vmin else TRAIN)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=6.5, length=2)
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.locator_params(axis="y", nbins=6)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if len(names) == len(values):
        _name_columns(axes, names)
    else:
        axes.locator_params(axis="x", integer=True)


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    axes.set_xticks(range(len(names)), names, size=7, parse_math=False, **turned)


def _strip(axes: Axes, values: np.ndarray, layout: _Layout, colours: Colours) -> None:
    """Many values as rows of squares; an index is its row's plus its column's."""
    rows, columns = layout.rows_columns
    squares = np.full(rows * columns, np.nan, values.dtype)
    squares[: len(values)] = values
    cmap = colours[0].with_extremes(bad="white")
    axes.imshow(squares.reshape(rows, columns), cmap=cmap, norm=colours[1], interpolation="nearest", aspect="auto")
    _ticks(axes, "", "")
    axes.set_yticks(ticks := [int(t) for t in axes.get_yticks() if 0 <= t < rows], [str(columns * t) for t in ticks])
    axes.set_xticks(ticks := [int(t) for t in axes.get_xticks() if 0 <= t < columns], [f"+{t}" for t in ticks])


def _ticks(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, size=7, labelpad=2)
    axes.set_ylabel(y, size=7, labelpad=2)
    axes.tick_params(labelsize=6.5, length=2, pad=1.5)
    axes.locator_params(integer=True, nbins=9)
    axes.spines[:].set_visible(False)


def _colour_bar(
    figure: Figure, left: float, top: float, width: float, colours: ScalarMappable, label: str = ""
) -> None:
    bar = _axes(figure, left, top, width, 0.09)
    figure.colorbar(colours, cax=bar, orientation="horizontal")
    bar.set_xticks(colours.norm.inverse([0, 0.5, 1]))
    bar.xaxis.set_major_formatter("{x:.3g}")
    bar.tick_params(labelsize=6.5, length=2, pad=1.5)
    for text, side in zip(bar.get_xticklabels(), ("left", "center", "right"), strict=True):
        text.set_horizontalalignment(side)
    bar.spines["outline"].set_visible(False)
    if label:
        bar.set_xlabel(label, size=6.5, labelpad=1)
