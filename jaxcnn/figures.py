"""Draw arrays as matplotlib figures, which are returned and never shown except by a notebook, and save them."""

import math
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
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
LINES = (TRAIN, TEST, "#882255", "#44aa99", "#ddaa99", "#88ccee")  # of several lines, his muted ones
MARGIN, HEAD = 0.15, 0.42

FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
STYLE: Any = {"svg.hashsalt": "jaxcnn", "image.composite_image": False}  # a composite PDF image has grey edges

_SAVING = threading.Lock()  # two threads would restore each other's style and warnings


def check_format(path: Path) -> str:
    """Return the format that the suffix names. Raise UserError if it is not one of FORMATS."""
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"the suffix is {path.suffix!r}", path, "end it in .png, .svg or .pdf")
    return path.suffix[1:]


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, in the format of the suffix. Equal figures make equal files."""
    kind = check_format(path)
    with _SAVING, written_whole(path) as temporary, mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font may lack the script of a picture's name
        figure.savefig(temporary, format=kind, dpi=200, metadata=FORMATS[kind])


def folder(path: Path) -> Path:
    """Make a folder if it is absent, and return it. Raise UserError if nothing can be written into it."""
    with os_errors("cannot write into this folder ({})", "choose another", path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    return path


@dataclass(frozen=True)
class Subject:
    """An image and the network's probabilities for it."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    probabilities: Float[np.ndarray, "classes"]  # in the order of class_names
    class_names: Sequence[str]
    truth: str | None = None  # the true class, if known

    def ranked(self) -> list[tuple[str, float]]:
        """Return classes and their probabilities, the most likely first."""
        order = np.argsort(-self.probabilities, kind="stable")
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


def curves(metrics: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Draw the lines of `metrics.jsonl`: loss and accuracy of both splits by epoch, the best test accuracy marked."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    epochs = [line["epoch"] for line in metrics]
    best = max(metrics, key=lambda line: line["test_accuracy"])
    label = f"best: {100 * best['test_accuracy']:.2f} %, epoch {best['epoch']:.0f}"
    panels = (("loss", 1, "mean cross entropy (nats)"), ("accuracy", 100, "accuracy (%)"))
    for axes, (quantity, scale, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        # Training figures lag behind the test's, since they are means over the epoch, with dropout on.
        for split, colour, mark, name in (("train", TRAIN, "o", "training (dropout on)"), ("test", TEST, "s", "test")):
            values = [scale * line[f"{split}_{quantity}"] for line in metrics]
            axes.plot(epochs, values, color=colour, marker=mark, markersize=3 if len(epochs) < 50 else 0, label=name)
        axes.axvline(best["epoch"], color=QUIET, linewidth=0.8, linestyle=":")
        if quantity == "accuracy":
            axes.plot(best["epoch"], scale * best["test_accuracy"], "*", color=TEST, markersize=11, label=label)
        axes.set(xlim=(0.5, epochs[-1] + 0.5), xlabel="epoch", ylabel=unit)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(framealpha=1, edgecolor="none", fontsize=8)  # the line of the best epoch ends at it
    figure.suptitle(title)
    return figure


@dataclass(frozen=True)
class Trainings:
    """Trainings that differ in their seed: their accuracy after each epoch, and the PFLOP that it took till then."""

    name: str
    pflop: Float[np.ndarray, "epochs"]
    accuracy: Float[np.ndarray, "seeds epochs"]  # fractions


def accuracy_by_compute(
    trainings: Sequence[Trainings], published: Mapping[str, tuple[float, float]], title: str
) -> Figure:
    """Draw test accuracy by training compute: the mean of the seeds in a band from the lowest to the highest.

    published: PFLOP and accuracy that others report, by what they are.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    label: Any = {"textcoords": "offset points", "fontsize": 8, "parse_math": False}
    column, room = 2 * max(some.pflop[-1] for some in trainings), 200.0  # where the names stand, and below what
    lasts = [100 * float(some.accuracy[:, -1].mean()) for some in trainings]
    for last, some, colour in sorted(zip(lasts, trainings, cycle(LINES)), key=lambda line: -line[0]):
        low, high = 100 * some.accuracy.min(axis=0), 100 * some.accuracy.max(axis=0)
        axes.fill_between(some.pflop, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(some.pflop, 100 * some.accuracy.mean(axis=0), color=colour, marker="o", markersize=2.5)
        room = min(last, room - 4)
        axes.plot([some.pflop[-1], column], [last, room], color=colour, linewidth=0.8, linestyle=":")
        text = f"{some.name} {last:.1f} %"
        axes.annotate(text, (column, room), (3, 0), va="center", color=colour, weight="bold", **label)
    for name, (pflop, accuracy) in published.items():
        axes.plot(pflop, 100 * accuracy, "D", color=QUIET, markerfacecolor="white", markersize=6)
        axes.annotate(name, (pflop, 100 * accuracy), (0, 8), ha="center", color=QUIET, **label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="training compute (PFLOP)", ylabel="test accuracy (%)")
    axes.margins(x=0.15)
    axes.set_ylim(top=106)  # room for the names
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 100])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def confusion(counts: Int[np.ndarray, "classes classes"], class_names: Sequence[str], title: str) -> Figure:
    """Draw counts of images by true class and predicted class, coloured by their share of the true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right, images = int(np.trace(counts)), int(counts.sum())
    names, few = [shortened(name, 16) for name in class_names], len(class_names) <= 20
    left, below = (0.3 + inches * max(map(len, names)) for inches in (0.065, 0.045))
    figure = page(left + 4.5, 4.8 + below, title, f"{right:,} of {images:,} right ({right / max(images, 1):.2%})")
    axes = place(figure, left, HEAD + 0.1, 4.4, 4.1)
    # The square root lets the few mistakes of a good network stand out from white.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    for (row, column), count in np.ndenumerate(counts) if few else ():
        colour = "#aaaaaa" if not count else "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, str(count), ha="center", va="center", size=7, color=colour)
    shown = range(0, len(names), math.ceil(len(names) / 30))
    name_columns(axes, names, shown)
    axes.set_yticks(shown, [names[i] for i in shown], size=7, parse_math=False)
    axes.set_xlabel("predicted", size=8)
    axes.set_ylabel("true", size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colour_bar(figure, left, HEAD + 4.4 + below, 2.6, image, "share of the true class")
    return figure


def most_wrong(subjects: Sequence[Subject], title: str) -> Figure:
    """Draw misclassified images in the given order, each with its predicted and its true class."""
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
        write(figure, left, top + side + 0.04, f"{shortened(name, 12)} at {probability:.0%}", size=7, weight="bold")
        write(figure, left, top + side + 0.17, f"true: {shortened(subject.truth or '', 15)}", size=7)
        file = subject.name if len(subject.name) < 22 else f"…{subject.name[-20:]}"
        write(figure, left, top + side + 0.3, file, size=6, color=QUIET)
    return figure


def grid(count: int, ratio: float = 2.0) -> tuple[int, int]:
    """Return rows and columns for `count` items, near `ratio` columns to a row and, if possible, without gaps."""

    def cost(shape: tuple[int, int]) -> float:
        rows, columns = shape
        gaps = rows * columns - count
        return round(abs(math.log(columns / rows / ratio)), 6) + (0.8 + gaps / count if gaps else 0)

    return min(((math.ceil(count / columns), columns) for columns in range(1, count + 1)), key=cost)


def page(width: float, height: float, title: str = "", subtitle: str = "", left: float = 0) -> Figure:
    """Return a page for a body of this size below a head of two lines that begins at `left`."""
    # A title needs 5.6 inches.
    figure = Figure(figsize=(max(width, 5.6) + 2 * MARGIN, height + HEAD + 2 * MARGIN), facecolor="white")
    write(figure, left, 0, title, size=10, weight="bold")
    write(figure, left, 0.23, subtitle, size=7, color=QUIET)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a distance from the upper left corner within the margin."""
    w, h = figure.get_size_inches()
    return figure.add_axes(((left + MARGIN) / w, 1 - (top + MARGIN + height) / h, width / w, height / h))


def write(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Write text at a distance from the upper left corner within the margin."""
    w, h = figure.get_size_inches()
    figure.text((left + MARGIN) / w, 1 - (top + MARGIN) / h, text, va="top", parse_math=False, **style)


def name_columns(axes: Axes, names: Sequence[str], shown: Sequence[int] = ()) -> None:
    """Write names below columns, those `shown` or all, at an angle if they are long."""
    slant: Any = {"rotation": 35, "ha": "right"} if max(map(len, names)) > 3 else {}
    at = shown or range(len(names))
    axes.set_xticks(at, [names[i] for i in at], size=7, rotation_mode="anchor", parse_math=False, **slant)


def shortened(text: str, most: int) -> str:
    """Cut a text to `most` characters, the last of them an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def colour_bar(figure: Figure, left: float, top: float, width: float, colours: ScalarMappable, label: str) -> None:
    """Draw a bar of the colours, with the values of its ends and its middle."""
    bar = place(figure, left, top, width, 0.09)
    figure.colorbar(colours, cax=bar, orientation="horizontal", ticks=LinearLocator(3), format="{x:.3g}")
    bar.tick_params(labelsize=6.5, length=2, pad=1.5)
    for text, side in zip(bar.get_xticklabels(), ("left", "center", "right"), strict=True):
        text.set(ha=side)
    bar.spines[:].set_visible(False)
    bar.set_xlabel(label, size=6.5, labelpad=1)
