"""Arrays to matplotlib figures. Functions return a figure and never show it; `save` writes it whole or not at all.

In a notebook, `%matplotlib inline` makes a figure that ends a cell its picture. Lengths are inches on the page.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LinearLocator

from jaxcnn.errors import UserError, os_errors
from jaxcnn.files import written_whole

TRAIN, TEST = "#4477aa", "#cc6677"  # Paul Tol's bright pair: told apart in grey and by colour-blind eyes
QUIET, TINT = "#666666", "#c8d7e6"
MARGIN, HEAD = 0.15, 0.42

FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
STYLE: Any = {"svg.hashsalt": "jaxcnn", "image.composite_image": False}  # a PDF's images as one have grey edges


def check_format(path: Path) -> str:
    """The format that the suffix names; UserError where it is none of FORMATS."""
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"the suffix is {path.suffix!r}", path, "end it in .png, .svg or .pdf")
    return path.suffix[1:]


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, without the time in it: equal figures are equal files."""
    kind = check_format(path)
    with written_whole(path) as temporary, mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a picture's name may be in a script that the font lacks
        figure.savefig(temporary, format=kind, dpi=200, metadata=FORMATS[kind])


def folder(path: Path) -> Path:
    """The folder itself, made where it is not there; UserError where nothing can be written into it."""
    with os_errors("cannot write into this folder ({})", "choose another", path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path


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


def curves(metrics: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Loss and accuracy of both splits against the epoch, the epoch of the best test accuracy marked in both.

    metrics: the lines of `metrics.jsonl`. Training figures are the running epoch's, dropout on: they lag behind.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    epochs = [line["epoch"] for line in metrics]
    best = max(metrics, key=lambda line: line["test_accuracy"])
    label = f"best: {100 * best['test_accuracy']:.2f} %, epoch {best['epoch']:.0f}"
    panels = (("loss", 1, "mean cross entropy (nats)"), ("accuracy", 100, "accuracy (%)"))
    for axes, (quantity, scale, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for split, colour, mark, name in (("train", TRAIN, "o", "training (dropout on)"), ("test", TEST, "s", "test")):
            values = [scale * line[f"{split}_{quantity}"] for line in metrics]
            axes.plot(epochs, values, color=colour, marker=mark, markersize=3 if len(epochs) < 50 else 0, label=name)
        axes.axvline(best["epoch"], color=QUIET, linewidth=0.8, linestyle=":")
        axes.plot(best["epoch"], scale * best[f"test_{quantity}"], "*", color=TEST, markersize=11, label=label)
        axes.set(xlim=(0.5, epochs[-1] + 0.5), xlabel="epoch", ylabel=unit)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def confusion(counts: Int[np.ndarray, "true predicted"], class_names: Sequence[str], title: str) -> Figure:
    """How often each class is taken for each: numbers of images, coloured by their share of the true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right, images = int(np.trace(counts)), int(counts.sum())
    figure = page(5.4, 5.4, title, f"{right:,} of {images:,} right ({right / max(images, 1):.2%})")
    axes = place(figure, 0.9, HEAD + 0.1, 4.4, 4.1)
    # The square root lifts the few mistakes of a good network out of the white.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "#aaaaaa" if not count else "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, str(count), ha="center", va="center", size=7, color=colour)
    name_columns(axes, class_names)
    axes.set_yticks(range(len(class_names)), class_names, size=7, parse_math=False)
    axes.set_xlabel("predicted", size=8)
    axes.set_ylabel("true", size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colour_bar(figure, 0.9, HEAD + 4.9, 2.6, image, "share of the true class")
    return figure


def most_wrong(subjects: Sequence[Subject], title: str) -> Figure:
    """Wrongly classified images, in the caller's order: what each was taken for, how surely, and what it is."""
    side, high, pitch = 1.0, 1.55, 1.16
    rows, columns = grid(max(len(subjects), 1), ratio=1.6)
    note = "in bold the predicted class and its probability, the surest first" if subjects else "no image is wrong"
    figure = page(columns * pitch, rows * high, title, note)
    for i, subject in enumerate(subjects):
        left, top = i % columns * pitch, HEAD + 0.1 + i // columns * high
        axes = place(figure, left, top, side, side)
        axes.imshow(subject.image, interpolation="nearest")
        axes.set_axis_off()
        name, probability = subject.ranked()[0]
        write(figure, left, top + side + 0.04, f"{name} at {probability:.0%}", size=7, weight="bold")
        write(figure, left, top + side + 0.17, f"true: {subject.truth}", size=7)
        write(figure, left, top + side + 0.3, subject.name, size=6, color=QUIET)
    return figure


def grid(count: int, ratio: float = 2) -> tuple[int, int]:
    """Rows and columns for `count` things, near `ratio` columns to a row, without empty places where that can be."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        empty = rows * columns - count
        return round(abs(math.log(columns / rows / ratio)), 6) + 0.8 * (empty > 0) + empty / count

    columns = min(range(1, count + 1), key=cost)
    return math.ceil(count / columns), columns


def page(width: float, height: float, title: str = "", subtitle: str = "", left: float = 0) -> Figure:
    """A page for a body of this size, above it a head with what it shows, in two lines; wide enough for a title."""
    figure = Figure(figsize=(max(width, 5.6) + 2 * MARGIN, height + HEAD + 2 * MARGIN), facecolor="white")
    write(figure, left, 0, title, size=10, weight="bold")
    write(figure, left, 0.23, subtitle, size=7, color=QUIET)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place counted from the page's upper left corner within its margin."""
    w, h = figure.get_size_inches()
    return figure.add_axes(((left + MARGIN) / w, 1 - (top + MARGIN + height) / h, width / w, height / h))


def write(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Text at a place."""
    w, h = figure.get_size_inches()
    figure.text((left + MARGIN) / w, 1 - (top + MARGIN) / h, text, va="top", parse_math=False, **style)


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names below columns, aslant where they are long."""
    slant, align = (35, "right") if max(map(len, names)) > 3 else (0, "center")
    style: dict[str, Any] = {"rotation": slant, "ha": align, "rotation_mode": "anchor", "parse_math": False}
    axes.set_xticks(range(len(names)), names, size=7, **style)


def colour_bar(figure: Figure, left: float, top: float, width: float, colours: ScalarMappable, label: str) -> None:
    """What colours mean: a bar with its lower end, the value half way and its upper end numbered."""
    bar = place(figure, left, top, width, 0.09)
    figure.colorbar(colours, cax=bar, orientation="horizontal", ticks=LinearLocator(3), format="{x:.3g}")
    bar.tick_params(labelsize=6.5, length=2, pad=1.5)
    for text, side in zip(bar.get_xticklabels(), ("left", "center", "right"), strict=True):
        text.set(ha=side)
    bar.spines[:].set_visible(False)
    bar.set_xlabel(label, size=6.5, labelpad=1)
