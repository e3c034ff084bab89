"""The report of a proof: a table, one line for a failure, a figure."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from parity.bounds import LINKS, Check
from parity.diagnosis.finding import Finding
from parity.figure import Result, figure
from parity.mistakes import Tried
from parity.table import Table

SINGLE = 1e-5  # float64 values that differ by less were float32 somewhere

TOLD = 5  # causes that are described in full


@dataclass(frozen=True)
class Report:
    """What `parity.check` found."""

    checks: tuple[Check, ...]
    table: Table
    torch: str  # the modules' classes
    flax: str
    calls: Mapping[str, str]  # of PyTorch, and what they are in Flax
    notes: tuple[str, ...] = ()
    diagnosis: tuple[Finding, ...] = ()  # why it differs, if it does
    controls: tuple[Tried, ...] = ()  # mistakes made on purpose

    @property
    def passed(self) -> bool:
        """Tell if everything agrees, and each mistake made on purpose was noticed."""
        return all(c.passed for c in self.checks) and all(c.passed for c in self.controls)

    @property
    def failed(self) -> list[Check]:
        """List the comparisons that differ, along the chain."""
        return sorted(
            (c for c in self.checks if not c.passed), key=lambda c: (c.precision != "float64", LINKS.index(c.link))
        )

    @property
    def first(self) -> Check | None:
        """Give the first comparison that differs, None if all agree."""
        return next(iter(self.failed), None)

    def __str__(self) -> str:
        matched = f"{len(self.calls)} calls and {len(self.table.expanded)} arrays matched"
        lines = [f"{self.torch} of PyTorch and {self.flax} of Flax: {matched}", ""]
        if self.diagnosis:
            lines = [f"{self.headline()}: {matched}", "", *told(self.diagnosis), ""]
        heads = f"{'float64':>8} {'bound':>8}   {'float32':>8} {'PyTorch':>8} {'bound':>8}"
        lines += [f"{'link':12} {'tensors':>7}   {heads}   worst"]
        for link in LINKS:
            lines += self._line(link)
        doubts = self.table.doubts[: 1 if self.diagnosis else 5]  # a mistake causes doubts
        notes = [*(f"note: {note}" for note in self.notes), *(f"in doubt: {doubt}" for doubt in doubts)]
        return "\n".join([*lines, "", *notes, self.verdict()])

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
            word = "passed" if self.passed else "not passed, though all agree"
            return "\n".join([*noticed(self.controls), f"{word}: {len(self.checks)} comparisons"])
        lines = [f"first difference: {self.first}", f"failed: {len(self.failed)} of {len(self.checks)} comparisons"]
        exact = [check.error for check in self.failed if check.precision == "float64"]
        if exact and max(exact) < SINGLE:
            lines.append("differences are of the size of float32's rounding: a cast, or a table, may be in float32")
        return "\n".join(lines)

    def headline(self) -> str:
        """Say in a line what did not pass."""
        return f"{self.flax} is not {self.torch}" if self.failed else f"{self.flax} is not shown to be {self.torch}"

    def assert_passed(self) -> None:
        """Raise AssertionError, with a message that fits a screen, if something differs."""
        if not self.passed:
            lines = [self.headline(), *told(self.diagnosis), *map(str, self.failed[: 4 if self.diagnosis else 8])]
            raise AssertionError("\n".join([*lines, self.verdict()]))

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
            "diagnosis": [asdict(finding) for finding in self.diagnosis],
            "controls": [tried._asdict() for tried in self.controls],
        }
        return json.dumps(result, indent=1)

    def figure(self, path: str | Path) -> None:
        """Draw all errors against their bounds, into a .png, .svg or .pdf."""
        self.drawn().savefig(Path(path).expanduser(), dpi=150)

    def drawn(self) -> Figure:
        """Draw all errors against their bounds, the layers that are wrong marked with the cause."""
        marks = {}
        for finding in self.diagnosis:
            inner, _, layer = finding.layer.rpartition(", before ")
            between = inner or finding.text.startswith("before it, ")
            marks[f"input of {layer}" if between else layer] = finding.code
        return figure(self.checks, marks)


def told(findings: Sequence[Finding]) -> Iterator[str]:
    """Describe findings: layers with the same cause together, and possible causes of a layer together."""
    groups = dict[Any, list[Finding]]()
    for finding in findings:
        groups.setdefault((finding.code, finding.text, finding.repair, finding.certain), []).append(finding)
    others = {layer: [f.code for f in findings if f.layer == layer and not f.certain] for layer in
              {f.layer for f in findings}}  # fmt: skip
    for (code, text, repair, certain), some in [*groups.items()][:TOLD]:
        layers = ", ".join(f.layer for f in some[:2]) + (f" and {len(some) - 2} more" if len(some) > 2 else "")
        codes = " or ".join(dict.fromkeys(others[some[0].layer]))
        yield f"{layers}   [{code}]" if certain or code == codes else f"{layers}   [{code}; {codes}, not sure which]"
        yield f"    {text}"
        first, *rest = repair.splitlines() or [""]
        yield from [f"    repair: {first}", *(f"    {line}" for line in rest)] if repair else []
    if len(groups) > TOLD:
        yield f"and {len(groups) - TOLD} more causes: see .diagnosis"


def noticed(controls: Sequence[Tried]) -> Iterator[str]:
    """Say whether each mistake made on purpose was noticed, or which were not and what that means."""
    missed = [tried for tried in controls if not tried.passed]
    if controls:
        each = f"{len(missed)} NOT noticed" if missed else "each noticed"
        yield f"controls: {len(controls)} mistakes made on purpose, {each}"
    for tried in missed:
        if tried.caught_by is None:
            yield (f"not noticed: {tried.name} (expected {tried.expected}): "
                   "this comparison cannot see such a mistake; give other inputs")  # fmt: skip
        else:
            yield f"not noticed where it is: {tried.name}: by {tried.caught_by}, expected {tried.expected}"


def _numbers(exact: Check | None, single: Check | None, width: int) -> list[str]:
    """Write error and bound of a float64 check, and error, PyTorch's own and bound of a float32 one."""
    numbers = [exact and exact.error, exact and exact.bound, single and single.error, single and single.pytorch,
               single and single.bound]  # fmt: skip
    return [" " * width if number is None else f"{number:{width}.1e}" for number in numbers]


def plain(check: Check) -> Result:
    """Give a check as JSON has it: an error that is infinite is null."""
    error = check.error if math.isfinite(check.error) else None
    return {"name": check.name, "error": error, "bound": check.bound, "passed": check.passed}


def table(checks: Sequence[Check], faults: Sequence[Result]) -> Iterator[str]:
    """Make the lines of an aligned table: each tensor's worst case in both precisions; then the controls."""
    worst: dict[str, dict[tuple[str, str], Check]] = {"float64": {}, "float32": {}}
    for check in checks:  # for each tensor, the one nearest to its bound or furthest beyond it
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
