"""Draw feature maps and kernels: grids of numbered maps, bars and strips for dense layers, JAX beside PyTorch."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxcnn.figures import (
    HEAD,
    QUIET,
    TEST,
    TINT,
    TRAIN,
    Subject,
    colour_bar,
    grid,
    name_columns,
    page,
    place,
    shortened,
    write,
)

WIDTH, CELL, GAP, LABEL = 5.52, 0.64, 0.05, 0.15  # at 200 dots an inch, a pixel of a 32 x 32 map is 4 x 4 dots
SIDEBAR, FOOT, LOW, NARROW = 1.62, 0.42, 2.75, 1.25
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"

Maps = Float[np.ndarray, "h w c"]
Scale = Literal["layer", "map"]
Names = Sequence[str]


def feature_maps(maps: Maps, layer: str, subject: Subject, scale: Scale = "layer", names: Names = ()) -> Figure:
    """Draw all maps of a layer in a numbered grid, beside the image and its most likely classes.

    maps: those of a dense layer, [1, 1, c], are drawn as bars, named by `names`, or as a strip if they are many.
    scale: `layer` draws all maps on one scale, for comparison; `map` draws each on its own and writes its limit.
    Signed maps are blue, white and red around zero, others begin at 0. A map of zeros alone is marked as dead.
    """
    layout = _layout(maps.shape, WIDTH, ratio=2.0)
    scaled = {"layer": ", one scale for all", "map": ", each on its own scale"}[scale] if layout.kind == "grid" else ""
    figure = _page(subject, layout.width, layout.height, layer, _summary(maps) + scaled)
    _panel(figure, SIDEBAR, HEAD, maps, layout, _colours(maps), names, scale)
    return figure


def comparison(ours: Maps, theirs: Maps, layer: str, subject: Subject, names: Names = ()) -> Figure:
    """Draw a layer's maps in JAX and in PyTorch on one scale, and their difference on another."""
    difference = ours.astype(np.float64) - theirs.astype(np.float64)
    largest, value = np.abs(difference).max(), np.abs(theirs).max()
    verdict = f"largest difference {largest:.2g}, largest value {value:.3g}" if largest else "both are equal"
    layout = _layout(ours.shape, WIDTH / 2.6, ratio=0.5)
    title, note = f"{layer}: JAX against PyTorch", f"{_summary(ours)}; {verdict}"
    figure = _page(subject, 3 * layout.width + 0.5, layout.height + 0.22, title, note)
    common, diverging = _colours(np.stack([ours, theirs])), _colours(difference, signed=True)
    panels = (("JAX", ours, common), ("PyTorch", theirs, common), ("JAX − PyTorch", difference, diverging))
    for i, (name, maps, colours) in enumerate(panels):
        left = SIDEBAR + i * (layout.width + 0.25)
        write(figure, left, HEAD + 0.05, name, size=8, weight="bold")
        _panel(figure, left, HEAD + 0.22, maps, layout, colours, names, mark_dead=colours is common)
    return figure


def filters(kernel: Float[np.ndarray, "kh kw i o"], layer: str) -> Figure:
    """Draw a convolution's kernels: in colour if its input is, else in a table of output by input channels."""
    height, width, inputs, outputs = kernel.shape
    title, colours = f"kernels of {layer}", _colours(kernel, signed=True)
    if inputs == 3:
        layout = _layout((height, width, outputs), WIDTH, ratio=2.0)
        note = f"{outputs} kernels of {height} × {width}; red, green, blue: grey is 0, ±{colours.norm.vmax:.2g}"
        figure = page(layout.width, layout.height, title, note)
        axes = place(figure, 0, HEAD, layout.width, layout.height)
        _grid(axes, np.asarray(colours.norm(kernel.astype(np.float64))), layout, colours, "layer", mark_dead=False)
        return figure
    table = np.pad(kernel.transpose(3, 0, 2, 1), ((0, 0), (0, 1), (0, 0), (0, 1)), constant_values=np.nan)
    table = table.reshape(outputs * (height + 1), -1)[:-1, :-1]
    high, wide = min(WIDTH / table.shape[1], 0.08) * np.array(table.shape)
    figure = page(wide + 0.4, high + 0.85, title, f"{outputs} × {inputs} kernels of {height} × {width}")
    axes = place(figure, 0.4, HEAD, wide, high)
    extent = (-0.5, inputs - 0.5 - 1 / (width + 1), outputs - 0.5 - 1 / (height + 1), -0.5)
    _squares(axes, table, colours, extent)
    axes.set_xlabel("input channel", size=7, labelpad=2)
    axes.set_ylabel("output channel", size=7, labelpad=2)
    colour_bar(figure, 0.4, HEAD + high + 0.45, 2.6, colours, "")
    return figure


def _colours(values: np.ndarray, signed: bool = False) -> ScalarMappable:
    """Return colours from zero, or diverging around it if a value is negative; `norm.vmin` is then not 0."""
    finite = values[np.isfinite(values)].astype(np.float64)
    limit = float(np.abs(finite).max(initial=0)) or 1.0
    signed = signed or finite.min(initial=0) < 0
    return ScalarMappable(Normalize(-limit if signed else 0, limit), DIVERGING if signed else SEQUENTIAL)


def _dead(maps: Float[np.ndarray, "*pixels c"]) -> Bool[np.ndarray, "c"]:
    return np.logical_not(maps.reshape(-1, maps.shape[-1]).any(axis=0))


def _summary(maps: Maps) -> str:
    height, width, count = maps.shape
    if height == width == 1:
        return f"{count:,} values, {np.count_nonzero(maps == 0):,} of them zero"
    dead = int(_dead(maps).sum())
    return f"{count} map{'s' if count > 1 else ''} of {height} × {width}" + (f", {dead} dead (×)" if dead else "")


class _Layout(NamedTuple):
    kind: Literal["grid", "bars", "strip"]
    columns: int
    width: float
    height: float
    cell: tuple[float, float] = (0, 0)  # of a map


def _layout(shape: tuple[int, ...], width: float, ratio: float) -> _Layout:
    """Lay out maps of this shape in a panel of about this width, or a wider one if the maps would be too small."""
    dense = shape[:2] == (1, 1)
    rows, columns = grid(shape[2], 1.5 * ratio if dense else ratio)
    if dense and shape[2] <= 40:
        return _Layout("bars", columns, width, 2.4)
    if dense:
        return _Layout("strip", columns, width, (width - 0.3) * rows / columns + LABEL + 0.2)
    wide = max(0.3, min(CELL, (width + GAP) / columns - GAP))
    high = wide * shape[0] / shape[1]
    return _Layout("grid", columns, max(columns * (wide + GAP) - GAP, NARROW), rows * (high + LABEL), (wide, high))


def _page(subject: Subject, width: float, height: float, title: str, note: str) -> Figure:
    """Return a page for maps, with the image and its five most likely classes on the left, the true one in bold."""
    figure = page(SIDEBAR + width, max(height + FOOT, LOW), title, note, SIDEBAR)
    side = SIDEBAR - 0.34
    write(figure, 0, 0.02, shortened(subject.name, 19), size=8)
    write(figure, 0, 0.23, f"true class: {shortened(subject.truth, 16)}" if subject.truth else "", size=7, color=QUIET)
    picture = place(figure, 0, HEAD + LABEL, side, side)
    picture.imshow(subject.image, interpolation="nearest")
    bars = place(figure, 0, HEAD + LABEL + side + 0.08, side, 1.1)
    for row, (name, probability) in enumerate(subject.ranked()[:5]):
        bars.barh(row, probability, color=TINT, height=0.85)
        style: dict[str, Any] = {"size": 7, "va": "center", "weight": "bold" if name == subject.truth else "normal"}
        bars.text(0.02, row, shortened(name, 18), parse_math=False, **style)
        bars.text(1, row, f"{probability:.1%}", ha="right", **style)
    bars.set(xlim=(0, 1), ylim=(4.6, -0.6))
    for axes in (picture, bars):
        axes.set_axis_off()
    return figure


def _panel(
    figure: Figure, left: float, top: float, maps: Maps, layout: _Layout, colours: ScalarMappable,
    names: Names, scale: Scale = "layer", mark_dead: bool = True,
) -> None:  # fmt: skip
    """Draw maps as bars, or as a grid or a strip with a colour bar below."""
    _, columns, width, height, _ = layout
    label = ""
    if layout.kind == "bars":
        _bars(place(figure, left + 0.42, top + LABEL, width - 0.42, height - LABEL), maps[0, 0], colours, names)
        return
    if layout.kind == "strip":  # rows of squares: a value's index is its row's number plus its column's
        left, width = left + 0.3, width - 0.3
        axes = place(figure, left, top + LABEL, width, height - LABEL - 0.2)
        squares = np.pad(maps[0, 0], (0, -maps.size % columns), constant_values=np.nan).reshape(-1, columns)
        _squares(axes, squares, colours)
        axes.xaxis.set_major_formatter("+{x:.0f}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{columns * y:.0f}")
    else:
        _grid(place(figure, left, top, width, height), maps, layout, colours, scale, mark_dead)
        if scale == "map":
            label = "share of the map's limit, which is above it"
            colours = _colours(np.ones(1), bool(colours.norm.vmin))
    colour_bar(figure, left, top + height + 0.1, min(width, 2.6), colours, label)


def _grid(
    axes: Axes, maps: np.ndarray, layout: _Layout, colours: ScalarMappable, scale: Scale, mark_dead: bool
) -> None:
    """Draw each map as an image in one Axes whose unit is the inch, since an Axes a map would take a minute for 500."""
    wide, high = layout.cell
    style: dict[str, Any] = {"size": max(4.5, min(6.5, 11 * wide)), "va": "bottom"}
    dead = _dead(maps) if mark_dead else np.zeros(maps.shape[-1], bool)
    for i, marked in enumerate(dead):
        x, y = i % layout.columns * (wide + GAP), i // layout.columns * (high + LABEL) + LABEL
        of_map = _colours(maps[..., i], bool(colours.norm.vmin)) if scale == "map" else colours
        _image(axes, maps[..., i], of_map, (x, x + wide, y + high, y))
        word = f"{i} dead" if marked and wide > 0.4 else str(i)
        axes.text(x, y - 0.02, word, color=TEST if marked else QUIET, **style)
        if marked:
            axes.plot([x, x + wide, np.nan, x, x + wide], [y, y + high, np.nan, y + high, y], color="#aaaaaa", lw=0.7)
        elif scale == "map" and wide > 0.4:
            axes.text(x + wide, y - 0.02, f"{of_map.norm.vmax:.2g}", color=QUIET, ha="right", **style)
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0), aspect="auto")
    axes.set_axis_off()


def _image(axes: Axes, values: np.ndarray, colours: ScalarMappable, extent: Any = None, gaps: str = "#bbbbbb") -> None:
    """Draw values, or colours [h, w, 3], as squares; in float64, since matplotlib's sums overflow float32."""
    style: dict[str, Any] = {"cmap": colours.cmap.with_extremes(bad=gaps), "norm": colours.norm, "aspect": "auto"}
    axes.imshow(values.astype(np.float64), extent=extent, interpolation="nearest", **style)


def _bars(axes: Axes, values: np.ndarray, colours: ScalarMappable, names: Names) -> None:
    signed = colours.cmap(np.where(values < 0, 0.15, 0.85))
    axes.bar(range(len(values)), values, color=signed if colours.norm.vmin else TRAIN)
    axes.axhline(0, color="black", linewidth=0.6)
    if not values.any():
        axes.set_ylim(0, 1)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=6.5, length=2)
    axes.locator_params(axis="y", nbins=6)
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if len(names) == len(values):
        name_columns(axes, [shortened(name, 16) for name in names])
    else:
        axes.locator_params(axis="x", integer=True)


def _squares(axes: Axes, values: np.ndarray, colours: ScalarMappable, extent: Any = None) -> None:
    """Draw values as an image with indices on its axes."""
    _image(axes, values, colours, extent, gaps="white")
    axes.tick_params(labelsize=6.5, length=2, pad=1.5)
    axes.locator_params(integer=True, nbins=9, min_n_ticks=1)
    axes.spines[:].set_visible(False)
