"""The report of a proof: a table, one line for a failure, a figure."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from parity.bounds import EPSILON, Check
from parity.table import Table

LINKS = ("weights", "layers", "activations", "outputs", "gradients", "masks", "statistics", "step", "trajectory",
         "evaluation")  # fmt: skip
SINGLE = 1e-5  # float64 that differs by less has somewhere been float32
JAX, PYTORCH, BOUND = "#4477aa", "#999999", "#cc6677"

Result = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What `parity.check` found."""

    checks: tuple[Check, ...]
    table: Table
    torch: str  # the modules' classes
    flax: str
    calls: Mapping[str, str]  # of PyTorch, and what they are in Flax
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell if everything agrees."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        """List what differs, along the chain."""
        return sorted(
            (c for c in self.checks if not c.passed), key=lambda c: (c.precision != "float64", LINKS.index(c.link))
        )

    @property
    def first(self) -> Check | None:
        """Give the first comparison that differs, None if all agree."""
        return next(iter(self.failed), None)

    def __str__(self) -> str:
        lines = [f"{self.torch} of PyTorch and {self.flax} of Flax: {len(self.calls)} calls and "
                 f"{len(self.table.expanded)} arrays matched", ""]  # fmt: skip
        lines += [
            f"{'link':12} {'tensors':>7}   {'float64':>8} {'bound':>8}   "
            f"{'float32':>8} {'PyTorch':>8} {'bound':>8}   worst"
        ]
        for link in LINKS:
            lines += self._line(link)
        lines += [
            "",
            *(f"note: {note}" for note in self.notes),
            *(f"in doubt: {doubt}" for doubt in self.table.doubts[:5]),
        ]
        return "\n".join([*lines, self.verdict()])

    def _line(self, link: str) -> Iterator[str]:
        halves = [[c for c in self.checks if (c.link, c.precision) == (link, p)] for p in ("float64", "float32")]
        if not any(halves):
            return
        exact, single = (max(half, key=lambda c: c.share, default=None) for half in halves)
        a, b, *others = _numbers(exact, single, 8)
        worst = next((c for c in (exact, single) if c and not c.passed), exact or single)
        failed = sum(not c.passed for half in halves for c in half)
        where = (f"{failed} DIFFER: " if failed else "") + (worst.tensor if worst else "")
        yield f"{link:12} {len(halves[0] or halves[1]):7}   {a} {b}   {' '.join(others)}   {where}"

    def verdict(self) -> str:
        """Say in a line or two if everything agrees, or what differs first."""
        if self.first is None:
            return f"passed: {len(self.checks)} comparisons"
        lines = [f"first difference: {self.first}", f"failed: {len(self.failed)} of {len(self.checks)} comparisons"]
        exact = [check.error for check in self.failed if check.precision == "float64"]
        if exact and max(exact) < SINGLE:
            lines.append("differences are of the size of float32's rounding: a cast, or a table, may be in float32")
        return "\n".join(lines)

    def assert_passed(self) -> None:
        """Raise AssertionError, with a message that fits a screen, if something differs."""
        if not self.passed:
            raise AssertionError(
                "\n".join([f"{self.flax} is not {self.torch}", *map(str, self.failed[:8]), self.verdict()])
            )

    def json(self) -> str:
        """Write everything as JSON."""
        result = {
            "passed": self.passed,
            "torch": self.torch,
            "flax": self.flax,
            "first": self.first and self.first.name,
        }
        table = {
            "entries": [e._asdict() for e in self.table.entries],
            "doubts": self.table.doubts,
            "left": self.table.left,
        }
        result |= {
            "checks": [plain(c) for c in self.checks],
            "calls": {**self.calls},
            "table": table,
            "notes": self.notes,
        }
        return json.dumps(result, indent=1)

    def figure(self, path: str | Path) -> None:
        """Draw all errors against their bounds, into a .png, .svg or .pdf."""
        figure(self.checks).savefig(path, dpi=150)


def _numbers(exact: Check | None, single: Check | None, width: int) -> list[str]:
    """Write error and bound of a float64 check, and error, PyTorch's own and bound of a float32 one."""
    numbers = [exact and exact.error, exact and exact.bound, single and single.error, single and single.pytorch,
               single and single.bound]  # fmt: skip
    return [" " * width if number is None else f"{number:{width}.1e}" for number in numbers]


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
        error, bound, *others = _numbers(exact, single, 9)
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
    """Draw the errors of each link against their bounds, in each precision, and how training drifts apart."""
    halves = [half for half in ("float64", "float32") if any(c.precision == half for c in checks)]
    tracks = drift(checks)  # of all parameters and momentum buffers
    rows = len(halves) + bool(tracks)
    drawn = Figure(figsize=(11, 3 * rows), layout="constrained")
    axes = drawn.subplots(rows, 1, squeeze=False)[:, 0]
    for place, precision in zip(axes, halves, strict=False):
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


def _drift(axes: Axes, tracks: dict[str, list[Result]], bound: float) -> None:
    """Draw how training drifts apart, step by step."""
    for precision, who, colour, style, label in (
        ("float64", "error", JAX, "o-", "float64: JAX against PyTorch, from step 0 on"),
        ("float32", "error", JAX, "s:", "float32: JAX against float64, over every second four steps"),
        ("float32", "pytorch", PYTORCH, "s:", "float32: PyTorch against float64, likewise"),
    ):
        steps, values = zip(*((point["step"], point[who]) for point in tracks[precision]), strict=True)
        axes.plot(steps, values, style, color=colour, markersize=3, linewidth=1, label=label)
    axes.axhline(bound, color=BOUND, linewidth=1, label="bound in float64")
    axes.set_title("peaks: rounding to float32 put a ReLU or a maximum on another side", fontsize=8)
    axes.set(xlabel="step of training, dropout on", ylabel="largest error of\nparameters and momentum")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.2))


def _errors(axes: Axes, checks: Sequence[Check]) -> None:
    """Draw each tensor's error and bound, a column a link. What is equal has no logarithm and lies at the bottom."""
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
        bounds = [c.bound for c in of_link]
        axes.step(places, bounds, where="mid", color=BOUND, linewidth=1, label=None if column else "bound")
        axes.axvline(column, color="#dddddd", linewidth=0.8)
        axes.text(column + 0.5, 1.02, link, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
    axes.set(xlim=(0, len(links)), xticks=[], ylim=(bottom / 100, None))
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left")
