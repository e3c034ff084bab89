"""The figure of a report: errors against their bounds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parity.bounds import EPSILON, LINKS, Check

Result = dict[str, Any]

JAX, PYTORCH, BOUND = "#4477aa", "#999999", "#cc6677"
LETTERS = 36  # of a layer's name
NAMED = 40  # layers: if there are more, only the wrong ones


def drift(checks: Sequence[Check]) -> dict[str, list[Result]]:
    """Give the largest error of all tensors, and PyTorch's own, at each step of training that was compared."""
    tracks: dict[str, list[Result]] = {}
    for precision in dict.fromkeys(check.precision for check in checks if check.points):
        tensors = [check.points for check in checks if check.precision == precision and check.points]
        tracks[precision] = [
            {"step": at_step[0][0], "error": max(p[1] for p in at_step), "pytorch": max(p[2] for p in at_step)}
            for at_step in zip(*tensors, strict=True)
        ]
    return tracks


def figure(checks: Sequence[Check], marks: Mapping[str, str] | None = None) -> Figure:
    """Draw the errors of each link against their bounds, in each precision, and how training drifts apart.

    marks: the layers, or inputs of layers, that are wrong, and the code of the cause; each layer's error is drawn then.
    """
    halves = [half for half in ("float64", "float32") if any(c.precision == half for c in checks)]
    tracks = drift(checks)  # of all parameters and momentum buffers
    layers = [c for c in checks if c.link == "layers"] if marks else []
    rows = len(halves) + bool(tracks) + bool(layers)
    drawn = Figure(figsize=(11, 3 * rows + bool(layers)), layout="constrained")
    axes = drawn.subplots(rows, 1, squeeze=False)[:, 0]
    if layers:
        _layers(axes[0], layers, marks or {})
    for place, precision in zip(axes[bool(layers) :], halves, strict=False):
        _errors(place, [c for c in checks if c.precision == precision and c.index is not None])
        place.set_ylabel(f"{precision}: error")
    if tracks:
        _drift(axes[-1], tracks, max(c.bound for c in checks if c.precision == "float64" and c.points))
    for place in axes:
        place.set_yscale("log")
        place.grid(alpha=0.3, axis="y")
        place.spines[["top", "right"]].set_visible(False)
    compared = sum(c.index is not None for c in checks)
    drawn.suptitle(f"JAX against PyTorch: max |a − b| / max |b| of {compared} tensors, in order of execution")
    return drawn


def _layers(axes: Axes, checks: Sequence[Check], marks: Mapping[str, str]) -> None:
    """Draw each layer's error, fed with PyTorch's input, in order of execution, with the cause where it is wrong."""
    finite = [c.error for c in checks if 0 < c.error < math.inf]
    bottom, top = 0.1 * min(finite, default=EPSILON), 10 * max([*finite, 1.0])
    errors = [min(c.error, top / 10) or bottom for c in checks]  # an error of 0 has no logarithm
    places = range(len(checks))
    axes.vlines(places, bottom, errors, color=PYTORCH, linewidth=1)
    for equal, marker, label in (
        (False, ".", "JAX against PyTorch in float64, each layer alone"),
        (True, "v", "exactly equal"),
    ):
        shown = [(x, y) for x, y, c in zip(places, errors, checks, strict=True) if (c.error == 0) == equal]
        axes.plot(*zip(*shown, strict=True), marker, color=JAX, markersize=5, label=label) if shown else None
    axes.step(places, [c.bound for c in checks], where="mid", color=BOUND, linewidth=1, label="bound")
    for x, check in enumerate(checks):
        if check.tensor in marks and not check.passed:
            axes.plot(x, errors[x], "o", color=BOUND, markersize=9, markerfacecolor="none")
            axes.annotate(
                marks[check.tensor], (x, errors[x]), (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
    named = [i for i, check in enumerate(checks) if len(checks) <= NAMED or not check.passed]
    labels = [shortened(checks[i].tensor.partition(" = ")[0]) for i in named]
    axes.set_xticks(named, labels, rotation=40, ha="right", fontsize=7)
    axes.set(ylim=(bottom / 3, 10 * top), ylabel="float64: error of\neach layer alone")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def shortened(name: str) -> str:
    """Leave out the middle of a long name."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS // 3]} … {name[-LETTERS // 2 :]}"


def _drift(axes: Axes, tracks: dict[str, list[Result]], bound: float) -> None:
    """Draw how training drifts apart, step by step."""
    for precision, who, colour, style, label in (
        ("float64", "error", JAX, "o-", "float64: JAX against PyTorch, from step 0 on"),
        ("float32", "error", JAX, "s:", "float32: JAX against float64, every other four steps alone"),
        ("float32", "pytorch", PYTORCH, "s:", "float32: PyTorch against float64, likewise"),
    ):
        steps, values = zip(*((point["step"], point[who]) for point in tracks[precision]), strict=True)
        axes.plot(steps, values, style, color=colour, markersize=3, linewidth=1, label=label)
    axes.axhline(bound, color=BOUND, linewidth=1, label="bound in float64")
    axes.set_title(
        "training, step by step; peaks: rounding to float32 put a ReLU or a maximum on another side", fontsize=9
    )
    axes.set(xlabel="step of training, dropout on", ylabel="largest error of\nparameters and momentum")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.2))


def _errors(axes: Axes, checks: Sequence[Check]) -> None:
    """Draw each tensor's error and bound, one column per link. An error of 0 has no logarithm and is at the bottom."""
    bottom = 0.1 * min((c.error for c in checks if c.error > 0), default=EPSILON)
    ours, theirs = "JAX against PyTorch", ""
    if any(c.pytorch is not None for c in checks):
        ours, theirs = "JAX against PyTorch in float64", "PyTorch against itself in float64"
    links = [link for link in LINKS if any(c.link == link for c in checks)]
    for column, link in enumerate(links):
        of_link = [c for c in checks if c.link == link]
        places = [column + (i + 0.5) / len(of_link) for i in range(len(of_link))]
        for values, marker, colour, label in (
            ([c.pytorch or math.nan for c in of_link], ".", PYTORCH, theirs),
            ([c.error or math.nan for c in of_link], ".", JAX, ours),
            ([math.nan if c.error else bottom for c in of_link], "v", JAX, "exactly equal"),
        ):
            axes.plot(places, values, marker, color=colour, markersize=4, label=None if column else label)
        ends = places if len(places) > 1 else [column + 0.1, column + 0.9]
        bounds = [c.bound for c in of_link] * (2 if len(places) == 1 else 1)
        axes.step(ends, bounds, where="mid", color=BOUND, linewidth=1, label=None if column else "bound")
        axes.axvline(column, color="#dddddd", linewidth=0.8)
        axes.text(column + 0.5, 1.02, link, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    top = max((c.error for c in checks if c.error < math.inf), default=1.0)
    axes.set(xlim=(-0.02, len(links) + 0.02), xticks=[], ylim=(bottom / 100, 10 * max(top, *(c.bound for c in checks))))
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left")
