"""Why initial weights differ: both distributions, and the initialiser that draws PyTorch's."""

from parity.diagnosis.distributions import Distribution, distribution
from parity.diagnosis.finding import Finding
from parity.given import Given
from parity.initial import Builders, Drawn, draw_initial, initial_checks
from parity.pair import label
from parity.table import Table

KINDS = ("kernel", "bias", "scale", "embedding")  # that layers have an argument for: `kernel_init`


def initial_findings(builders: Builders, given: Given, table: Table, drawn: list[Drawn] | None = None) -> list[Finding]:
    """Say which initial weights differ, in modules made by two functions of a seed, (PyTorch's, Flax's).

    drawn: the weights, if `draw_initial` has been called.
    """
    drawn = draw_initial(builders, given, table) if drawn is None else drawn
    differ = [one for one, check in zip(drawn, initial_checks(drawn), strict=True) if not check.passed]
    return [_finding(one, given) for one in differ]


def _finding(one: Drawn, given: Given) -> Finding:
    """Say what differs in a tensor."""
    paths, stacked = one.entry.names("flax")[0], one.entry.names("torch")[1]
    shape = tuple(given.shapes[f"{one.entry.collection}/{paths[0]}"].shape)[len(stacked) :]
    if not paths[0].endswith("kernel"):
        shape = ()  # it has no fans
    fan = _fan_in(one, given)
    theirs, ours = (distribution(draws, shape, fan) for draws in (one.theirs, one.ours))
    kind = paths[0].rpartition("/")[2]
    repair = _repair(theirs, kind, given)
    text = f"{theirs.words} in PyTorch, {ours.words} in Flax"
    return Finding("initialisation", label(one.entry), bool(theirs.initialiser), text, repair)


def _fan_in(one: Drawn, given: Given) -> int:
    """Give the inputs of each output of the layer that a tensor belongs to."""
    layer = one.entry.names("torch")[0][0].rpartition(".")[0]
    weight = given.state.get(f"{layer}.weight" if layer else "weight")
    return weight[0].size if weight is not None and weight.ndim > 1 else 1


def _repair(theirs: Distribution, kind: str, given: Given) -> str:
    """Write the argument of the layer."""
    module = f"{given.port.framework}."
    made = theirs.initialiser
    if not made:
        return "carry PyTorch's own first weights over: table.to_flax(module.state_dict())"
    made = f"{module}{made}" if made.startswith("initializers") else made
    return f"{kind}_init={made}" if kind in KINDS else made
