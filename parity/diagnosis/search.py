"""The search: each place where Flax differs, in order, and the mistakes that give PyTorch Flax's own numbers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from parity.bounds import FLOAT64_BOUND, error
from parity.diagnosis import attention, operations, rotary
from parity.diagnosis.cause import Cause, Place
from parity.diagnosis.finding import Finding
from parity.diagnosis.lies import how_it_lies, noisy
from parity.diagnosis.operations import BY_KIND
from parity.diagnosis.seen import Seen, seen
from parity.diagnosis.solve import solve
from parity.diagnosis.tape import NOTHING, SLOW, Change, Op, Source, Tape
from parity.fed import Feeding
from parity.guided import layer_of
from parity.matched import Matched
from parity.table import Entry

ROUNDED = 2.0**-7  # of the largest value: bfloat16 is off by as much, and few mistakes are as small
MOST = 4  # places that nothing explains: what follows is a consequence
GENERAL = ("scale", "residual", "layer-missing", "layer-twice", "activation", "flatten-order", "position-offset")


class Hit(NamedTuple):
    """A cause that gives PyTorch Flax's numbers, in words, and what it changes."""

    cause: Cause
    change: Change
    text: str


@dataclass(eq=False)
class Search:
    """What is known of a pair, and what was found."""

    matched: Matched
    feeding: Feeding
    say: Callable[[str], None] = lambda text: None
    findings: list[Finding] = field(default_factory=list)
    accepted: Change = NOTHING

    def run(self) -> list[Finding]:
        """Explain each place where Flax differs."""
        fed = {f.torch: next(iter(self.matched.traces[0].calls[f.torch].outputs.values()))
               for f in self.feeding.layers if f.goes_on}  # fmt: skip
        self.tape = Tape(self.matched.given, fed)
        merges = self.matched.traces[0].merges
        places, unknown = seen(self.feeding, self.matched.names, self.tape.truth, merges), 0
        self.values = self.tape.truth
        for i, one in enumerate(places):
            now = self.tape.truth if one.target.side == "output" else self.values
            if one.target not in now or one.agrees(now[one.target]):
                continue
            self.say(f"looking for the cause: {one.target.side} of {one.name} ...")
            hits = self.hits(one, places[:i])
            unknown += not hits
            if unknown > MOST:
                break
            self.note(one, hits, now[one.target])
            if one.target.side != "output" or not (one.fed and one.fed.goes_on):
                self.accepted = self.accepted.also(hits[0].change if hits else self.as_flax(one))
                self.values = self.tape.run(self.accepted)
        return merged(self.findings)

    def hits(self, one: Seen, before: list[Seen]) -> list[Hit]:
        """List the causes that give PyTorch Flax's array; only the special ones, if there are any."""
        found: list[Hit] = []
        for causes in self.causes(one):
            for cause in causes:
                if any(hit.cause.code == cause.code and hit.cause.text == cause.text for hit in found):
                    continue
                hit = self.tried(cause, one)
                if hit and self.still(before, hit):
                    found.append(hit)
            if found:
                break
        left_out = [call for hit in found if hit.cause.code == "layer-missing" for call in hit.change.calls]
        found = [hit for hit in found if not hit.change.ops or not all(
            any(f"{call}/".startswith(f"{whole}/") for whole in left_out) for call, _ in hit.change.ops)]  # fmt: skip
        only_theirs = lambda call: any(name.startswith(f"{call}/") for name in self.unmatched)  # noqa: E731
        alone = [hit for hit in found if hit.cause.code == "layer-missing" and any(map(only_theirs, hit.change.calls))]
        special = alone or [hit for hit in found if hit.cause.code not in GENERAL]
        hits = [*{hit.cause.code: hit for hit in reversed(special or found)}.values()][::-1]
        known = [hit for hit in hits if any(f.code == hit.cause.code and f.certain for f in self.findings)]
        return known[:1] or hits  # a mistake that is made elsewhere too

    def tried(self, cause: Cause, one: Seen) -> Hit | None:
        """Make a mistake in PyTorch, and see if Flax's array comes out."""

        accepted = NOTHING if one.target.side == "output" else self.accepted  # a layer is fed with what is right

        def value(change: Change) -> torch.Tensor | None:
            try:
                return self.tape.run(accepted.also(change), one.target).get(one.target)
            except Exception:  # it cannot be done to these shapes
                return None

        if isinstance(cause.change, Change):
            tensor = value(cause.change)
            return Hit(cause, cause.change, cause.text) if tensor is not None and one.agrees(tensor) else None
        if one.array.dtype.kind != "f":
            return None
        made = cause.change
        tensor = next((found for start in cause.starts if (found := value(made(start))) is not None), None)
        for entry in one.layouts(tuple(tensor.shape)) if tensor is not None else ():

            def function(x: float, entry: Entry = entry) -> np.ndarray | None:
                tensor = value(made(x))
                return None if tensor is None else entry.carry(tensor.numpy(), "flax")

            x = solve(function, one.array, cause.starts, FLOAT64_BOUND)
            x = 0.0 if x is not None and abs(x) < ROUNDED**4 else x
            if x or (x == 0 and "scale" not in cause.code):  # a factor of 0 adds nothing
                return Hit(cause, made(x), cause.text.format(x=x))
        return None

    def still(self, before: list[Seen], hit: Hit) -> bool:
        """Tell if the earlier places are explained as they were."""
        inputs = [one for one in before if one.target.side != "output" and one.target in self.values]
        explained = [one for one in inputs if one.agrees(self.values[one.target])]
        values = self.tape.run(self.accepted.also(hit.change)) if explained else {}
        return all(one.target in values and one.agrees(values[one.target]) for one in explained)

    def causes(self, one: Seen) -> Iterator[Iterator[Cause]]:
        """List possible causes: of each operation, the nearest first; then of those further away."""
        sources: list[Source] = [*self.tape.slice(one.target)]
        if one.target.side == "output":
            known = self.tape.ops
            made = [s for s in sources if isinstance(s, tuple) and one.target.name in known[s].calls]
            given = {s for key in made for s in known[key].sources if isinstance(s, tuple)}
            pads = [s for s in given if known[s].kind == "constant_pad_nd"]  # before the layer, if PyTorch pads there
            sources = [*made, *pads]
        recurrent = [c for c, m in self.tape.layers.items() if isinstance(m, torch.nn.RNNBase)]
        ops = {s: self.tape.ops[s] for s in reversed(sources) if isinstance(s, tuple)}
        ops = {k: op for k, op in ops.items() if not any(c in recurrent for c in op.calls)}
        place = self.place(one, ops)
        calls = self.calls_of(sources) | ({one.target.name} if one.target.side == "output" else set())
        yield self.special(one, calls, ops, place)
        yield self.general(one, calls, sources, ops, place)

    def calls_of(self, sources: list[Source]) -> set[str]:
        """List the calls that sources are made in, or are the output of, with those around them."""
        names = {call for s in sources if isinstance(s, tuple) for call in self.tape.ops[s].calls}
        fed = {s for s in sources if isinstance(s, str) and s in self.tape.layers}
        around = {"/".join(parts[:i]) for name in fed if (parts := name.split("/")) for i in range(1, len(parts))}
        return {name for name in names | fed | around if name in self.tape.layers}

    def place(self, one: Seen, ops: Mapping[Any, Op]) -> Place:
        """Say where this is."""
        layer = one.target.side == "output"
        kinds = [op.kind for op in ops.values()]
        attention = any(kind.startswith("_scaled_dot") for kind in kinds) or (
            "_softmax" in kinds and kinds.count("bmm") + kinds.count("mm") > 1)  # fmt: skip
        framework = self.matched.given.port.framework
        spare = {name: np.asarray(value) for name, value in self.matched.rest.items()}
        embeddings = {c for c, m in self.tape.layers.items() if isinstance(m, torch.nn.Embedding)}
        until = next((i for i, name in enumerate(self.tape.held) if name == f"what {one.target.name} is given"), None)
        held = dict([*self.tape.held.items()][:until])
        known = one.array.shape, attention, ops, held, spare, layer
        return Place(framework, *known, frozenset(embeddings))

    def special(self, one: Seen, calls: set[str], ops: dict[Any, Op], place: Place) -> Iterator[Cause]:
        """Give the mistakes of each operation, and of the modules around them."""
        yield from rotary.rotary(ops)
        for op in reversed(ops.values()):
            for cause in BY_KIND[op.kind](op, place) if op.kind in BY_KIND else ():
                yield cause
                yield from operations.everywhere(cause, op, ops)
        yield from operations.heads_of_views(ops) if place.attention else ()
        for call in sorted(calls):
            layer, path = self.tape.layers[call], call.partition("#")[0].replace("/", ".")
            yield from attention.module(call, layer, path, self.tape.tensors, place)
            if one.target != ("output", call) and any(True for _ in layer.parameters()) and call not in self.tape.fed:
                yield from operations.missing(call, self.tape)
        spare = {name: tensor for name, tensor in self.tape.tensors.items() if name.replace(".", "/") in self.unmatched}
        yield from operations.spare_weights(self.tape, place, spare) if one.fed is None or spare else ()

    def general(
        self, one: Seen, calls: set[str], sources: list[Source], ops: dict[Any, Op], place: Place
    ) -> Iterator[Cause]:
        """Give what Flax may do where PyTorch does nothing."""
        ends = [s for i, s in enumerate(sources)
                if i == 0 or isinstance(s, str) or self.tape.ops[s].kind in (*SLOW, "cat")]  # fmt: skip
        if one.target.side == "output":
            calls = calls & {one.target.name}
        yield from operations.twice(sorted(calls), ops, self.tape)
        for i, source in enumerate(ends):
            yield from operations.inserted(source, self.tape, place, i == 0 or isinstance(source, str))
        for source in ends:
            yield from operations.added(source, self.tape, place)
        yield from operations.elsewhere(sources[0], one.target, self.tape) if sources else ()
        yield from self.normalised_input(one, sources)

    def normalised_input(self, one: Seen, sources: list[Source]) -> Iterator[Cause]:
        """Solve for another mean and deviation of each channel of the input."""
        source, x = next(iter(sources), None), self.tape.held.get("input 0")
        last = sources[-1:] == ["input 0"] and not any(
            s in self.tape.fed or (s in self.tape.ops and self.tape.ops[s].kind in SLOW) for s in sources)  # fmt: skip
        if source is None or x is None or not last or x.ndim < 3 or not x.is_floating_point():
            return
        for entry in one.layouts(tuple(x.shape)):
            try:
                given = entry.carry(one.array, "torch")
            except ValueError:
                continue
            if given.shape != x.shape:
                continue
            fits = [np.polyfit(x[:, c].numpy().ravel(), given[:, c].ravel(), 1) for c in range(x.shape[1])]
            slopes, shifts = (torch.tensor([fit[i] for fit in fits]).reshape(-1, *[1] * (x.ndim - 2)) for i in (0, 1))
            numbers = ", ".join(f"x * {a:.5g} {b:+.5g}" for a, b in fits[:4])
            taken = lambda now, a=slopes, b=shifts: x * a + b  # noqa: E731
            change = Change(ops={source: taken}) if isinstance(source, tuple) else Change(inputs={"0": taken})
            text = f"Flax takes {numbers} of the input's channels, PyTorch otherwise"
            yield Cause("input-scale", text, "normalise the input as PyTorch does", change)

    @cached_property
    def unmatched(self) -> set[str]:
        """Name PyTorch's weights without a counterpart."""
        return {name.split(" of PyTorch")[0].replace(".", "/") for name in self.matched.table.left}

    def whose(self, hit: Hit) -> str:
        """Name the layer without a counterpart that a cause lies in, if it is in one."""
        calls = [call for call, _ in hit.change.ops if any(True for _ in self.layer_parameters(call))]
        calls = calls if hit.cause.code not in GENERAL else []
        return hit.cause.layer or (calls[0].replace("/", ".") if len(calls) == len(hit.change.ops) and calls else "")

    def inside(self, hit: Hit, target: str) -> str:
        """Name the module whose operation a cause changes, if it does not hold the layer where it shows."""
        call = next((key[0] for key in hit.change.ops if isinstance(key, tuple)), "")
        return "" if f"{target}/".startswith(f"{call}/" if call else "") else call.partition("#")[0].replace("/", ".")

    def layer_parameters(self, call: str) -> Iterator[Any]:
        """Give the parameters that the module of a call has itself."""
        return self.tape.layers[call].parameters(recurse=False) if call in self.tape.layers else iter(())

    def as_flax(self, one: Seen) -> Change:
        """Go on as Flax does from a place that nothing explains."""
        source = next(iter(self.tape.slice(one.target)), None)
        if not isinstance(source, tuple) or one.axes is None:
            return NOTHING
        try:
            array = torch.tensor(one.axes.carry(one.array, "torch"))
        except ValueError:
            return NOTHING
        outputs = self.tape.ops[source].outputs
        whole = len(outputs) == 1 and isinstance(outputs[0], torch.Tensor)
        return Change(ops={source: lambda now: array.clone()}) if whole else NOTHING

    def note(self, one: Seen, hits: list[Hit], tensor: torch.Tensor) -> None:
        """Write down what was found."""
        between = "" if one.target.side == "output" else "before it, " if one.fed else ""
        # Layers that are matched in doubt, and already one that nothing explains: they may be other layers.
        lost = bool(self.matched.table.doubts) and any(one.code == "unknown" for one in self.findings)
        for hit in hits:
            repair = hit.cause.repair
            own = "" if one.target.side == "output" else self.whose(hit)
            inner = "" if one.target.side == "output" else self.inside(hit, one.target.name)
            layer = f"{own} of PyTorch" if own else f"{inner}, before {one.name}" if inner else one.name
            text = hit.text if own or inner else between + hit.text
            finding = Finding(hit.cause.code, layer, len(hits) == 1 and not lost, text, repair)
            self.findings += [finding] if finding not in self.findings else []
        if not hits:
            right = next((np.asarray(array, np.float64) for array in one.carried(tensor)), None)
            array = np.asarray(one.array, np.float64)
            rounded = right is not None and error(array, right) < ROUNDED and noisy(array, right)
            repair = "leave out casts" if rounded else "compare this layer by hand: nothing that is known explains it"
            text = between + how_it_lies(array, right)
            if extra := dict.fromkeys(layer_of(name) for name in self.matched.rest):
                text += f"; Flax has {', '.join(extra)}, PyTorch has no such layer"
            self.findings.append(Finding("precision" if rounded else "unknown", one.name, False, text, repair))


def merged(findings: list[Finding]) -> list[Finding]:
    """Take a residual that is left out before a norm, and one that is added after it, for one mistake."""
    found = list(findings)
    for one in findings:
        layer = one.layer.rpartition("before ")[2].partition(" ")[0]
        after = [other for other in found if other.code == "residual" and "Flax adds" in other.text
                 and f"to the output of {layer}," in other.text]  # fmt: skip
        if one.code == "residual" and "does not add" in one.text and after:
            text = "Flax adds the residual after this layer, PyTorch before it"
            found[found.index(one)] = replace(one, code="residual-order", text=text)
            found.remove(after[0])
    return found
