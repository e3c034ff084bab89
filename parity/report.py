"""The report of a proof: a table, one line for a failure, a figure."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parity.bounds import EPSILON, Check

LINKS = ("activations", "outputs", "gradients", "step", "trajectory", "evaluation")
JAX, PYTORCH, BOUND = "#4477aa", "#999999", "#cc6677"

Result = dict[str, Any]


def plain(check: Check) -> Result:
    """Give a check as JSON has it: an error that is infinite is null."""
    error = check.error if math.isfinite(check.error) else None
    return {"name": check.name, "error": error, "bound": check.bound, "passed": check.passed}


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


def table(checks: Sequence[Check], faults: Sequence[Result]) -> Iterator[str]:
    """Make the lines of an aligned table: each tensor's worst case in both precisions; then the controls."""
    worst: dict[str, dict[tuple[str, str], Check]] = {"float64": {}, "float32": {}}
    for check in checks:  # of each tensor's, the one that is nearest to its bound or furthest beyond it
        half, tensor = worst[check.precision], (check.link, check.tensor)
        half[tensor] = max(half.get(tensor, check), check, key=lambda check: check.share)
    yield f"{'':33}   ----- float64 -----   ----------- float32 -----------"
    yield f"{'link':11} {'tensor':21}   {'error':>9} {'bound':>9}   {'JAX':>9} {'PyTorch':>9} {'bound':>9}   worst case"
    before = ""
    for link, name in sorted(worst["float32"] | worst["float64"], key=lambda tensor: LINKS.index(tensor[0])):
        exact, single = (half.get((link, name)) for half in worst.values())
        numbers = [exact and exact.error, exact and exact.bound, single and single.error, single and single.pytorch,
                   single and single.bound]  # fmt: skip
        error, bound, *others = (" " * 9 if number is None else f"{number:9.1e}" for number in numbers)
        both = [check for check in (exact, single) if check]
        case = "  ".join([both[-1].case, *(f"FAILED {c.name}" for c in both if not c.passed)])
        shown, before = "" if link == before else link, link
        yield f"{shown:11} {name:21}   {error} {bound}   {' '.join(others)}   {case}".rstrip()
    yield ""
    yield f"{'mistake made on purpose':37} first noticed at"
    for fault in faults:
        missed = "" if fault["passed"] else f"  FAILED: expected {fault['expected'] or 'nothing'}"
        yield f"{fault['name']:37} {fault['caught_by'] or '-'}{missed}"


def failures(checks: Sequence[Check], faults: Sequence[Result]) -> Iterator[str]:
    """Say where the networks first diverge, in order of execution, and which controls were not caught."""
    failed = sorted((c for c in checks if not c.passed), key=lambda c: LINKS.index(c.link))
    if failed:
        yield f"first divergence: {failed[0]}"
        yield f"failed: {len(failed)} of {len(checks)} comparisons"
    for fault in faults:
        if not fault["passed"]:
            expected, caught_by = (fault[key] or "nothing" for key in ("expected", "caught_by"))
            yield f"control failed: {fault['name']}: expected {expected}, caught by {caught_by}"


def figure(checks: Sequence[Check]) -> Figure:
    """Draw the errors of each link against their bounds, in both precisions, and how training drifts apart."""
    drawn = Figure(figsize=(11, 9), layout="constrained")
    axes = drawn.subplots(3, 1)
    for place, precision in zip(axes, ("float64", "float32"), strict=False):
        _errors(place, [c for c in checks if c.precision == precision and c.index is not None])
        place.set_ylabel(f"{precision}: error")
    tracks = drift(checks)  # of all parameters and momentum buffers
    for precision, who, colour, style, label in (
        ("float64", "error", JAX, "o-", "float64: JAX against PyTorch, from step 0 on"),
        ("float32", "error", JAX, "s:", "float32: JAX against float64, over every second four steps"),
        ("float32", "pytorch", PYTORCH, "s:", "float32: PyTorch against float64, likewise"),
    ):
        steps, values = zip(*((point["step"], point[who]) for point in tracks[precision]), strict=True)
        axes[2].plot(steps, values, style, color=colour, markersize=3, linewidth=1, label=label)
    bound = max(check.bound for check in checks if check.precision == "float64" and check.points)
    axes[2].axhline(bound, color=BOUND, linewidth=1, label="bound in float64")
    axes[2].set_title("peaks: rounding to float32 put a ReLU or a maximum on another side", fontsize=8)
    axes[2].set(xlabel="step of training, dropout on", ylabel="largest error of\nparameters and momentum")
    axes[2].legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.2))
    for place in axes:
        place.set_yscale("log")
        place.grid(alpha=0.3, axis="y")
        place.spines[["top", "right"]].set_visible(False)
    compared = sum(c.index is not None for c in checks)
    drawn.suptitle(f"JAX against PyTorch: max |a − b| / max |b| of {compared} tensors, in order of execution")
    return drawn


def _errors(axes: Axes, checks: Sequence[Check]) -> None:
    """Draw each tensor's error and bound, a column a link. What is equal has no logarithm and lies at the bottom."""
    bottom = 0.1 * min((c.error for c in checks if c.error > 0), default=EPSILON)
    ours, theirs = "JAX against PyTorch", ""
    if any(c.pytorch is not None for c in checks):
        ours, theirs = "JAX against PyTorch in float64", "PyTorch against itself in float64"
    for column, link in enumerate(LINKS):
        of_link = [c for c in checks if c.link == link]
        places = [column + (i + 0.5) / len(of_link) for i in range(len(of_link))]
        for values, marker, colour, label in (
            ([c.pytorch or math.nan for c in of_link], ".", PYTORCH, theirs),
            ([c.error or math.nan for c in of_link], ".", JAX, ours),
            ([math.nan if c.error else bottom for c in of_link], "v", JAX, "exactly equal"),
        ):
            axes.plot(places, values, marker, color=colour, markersize=4, label=None if column else label)
        bounds = [c.bound for c in of_link]
        axes.step(places, bounds, where="mid", color=BOUND, linewidth=1, label=None if column else "bound")
        axes.axvline(column, color="#dddddd", linewidth=0.8)
        axes.text(column + 0.5, 1.02, link, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    axes.set(xlim=(0, len(LINKS)), xticks=[], ylim=(bottom / 100, None))
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left")
