"""Why dropout differs, and what agrees only in float64."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from parity.bounds import Check
from parity.calls import Draw, Trace
from parity.diagnosis.finding import Finding
from parity.table import Entry

DIGITS = {"bfloat16": 8, "float16": 11}  # binary


def draw_findings(theirs: Mapping[str, Draw], seen: Trace, draws: Sequence[Entry], framework: str) -> Iterator[Finding]:
    """Say why Flax's dropout differs: another rate, shared by a batch, never on, missing."""
    ours, paired = seen.draws, {e.torch: e.flax for e in draws}
    spare = {name: draw for name, draw in ours.items() if name not in paired.values()}
    silent = [call for call in seen.calls.values() if "Dropout" in call.kind or "Attention" in call.kind]
    silent = [call for call in silent if not any(d.path.startswith(call.path) for d in ours.values())]
    lonely = [n for n in theirs if n not in paired]
    if len(lonely) == len(spare) and not any(
        _broadcasts([*ours[b].mask.shape], [*theirs[a].mask.shape]) for a, b in zip(lonely, spare, strict=True)
    ):  # masks of other sizes, since what is dropped has another size
        paired |= dict(zip(lonely, spare, strict=True))
        spare = {}
    for name, draw in theirs.items():
        where = draw.path.replace("/", ".") or f"after {draw.after.replace('/', '.') or 'the inputs'}"
        if name in paired:
            yield from _rate(f"{where} = {paired[name]}", draw.keep, ours[paired[name]].keep, framework)
            continue
        shape = [*draw.mask.shape]
        once = next((n for n, d in spare.items() if _broadcasts([*d.mask.shape], shape)), None)
        if once is not None:
            own = [*spare.pop(once).mask.shape]
            text = f"Flax draws a mask of shape {own}, PyTorch one of {shape}: what is dropped together is another"
            some = () if prod(own) < prod(shape) else tuple(i for i, n in enumerate(shape) if n == 1)
            repair = f"{framework}.Dropout(..., broadcast_dims={some}), as PyTorch counts axes"
            repair = "broadcast_dropout=False" if _attention(once, seen) else repair
            yield Finding("dropout-broadcast", f"{where} = {once}", True, text, repair)
        elif silent:
            call = silent.pop(0)
            text = "Flax's dropout is never on, PyTorch's is in training"
            yield Finding("mode", f"{where} = {call.path}", True, text, "deterministic=not train")
        else:
            text = f"Flax has no dropout here, PyTorch drops {1 - (draw.keep or 0):.4g}"
            yield Finding(
                "layer-missing", f"{where} of PyTorch", True, text, f"{framework}.Dropout({1 - (draw.keep or 0):.4g})"
            )
    for name in spare:
        text = "Flax drops out here, PyTorch does not"
        yield Finding("layer-missing", f"{name} of Flax", True, text, "leave the dropout out")


def _rate(layer: str, theirs: float | None, ours: float | None, framework: str) -> Iterator[Finding]:
    if theirs is None or ours is None or abs(float(ours) - float(theirs)) < 1e-6:
        return
    rates = f"{1 - float(ours):.4g}", f"{1 - float(theirs):.4g}"
    text = f"Flax drops {rates[0]} of the values, PyTorch {rates[1]}"
    yield Finding("dropout-rate", layer, True, text, f"{framework}.Dropout({rates[1]})")


def _broadcasts(ours: list[int], theirs: list[int]) -> bool:
    """Tell if one of two masks is broadcast to the other: some axis of it has size 1."""
    few, many = sorted((ours, theirs), key=prod)
    return 1 in few and prod(few) < prod(many) and prod(many) % prod(few) == 0 and few.count(1) > many.count(1)


def _attention(name: str, seen: Trace) -> bool:
    path = seen.draws[name].path
    return any("Attention" in call.kind and call.path == path for call in seen.calls.values())


def always_on(paths: Sequence[str], calls: Mapping[str, str]) -> Iterator[Finding]:
    """Say which dropout of Flax is on in evaluation. calls: of PyTorch, and what they are in Flax."""
    theirs = {flax.partition("#")[0]: torch.replace("/", ".") for torch, flax in calls.items()}
    for path in paths:
        layer = f"{theirs[path]} = {path}" if path in theirs else path
        text = "Flax drops out in evaluation too, PyTorch in training only"
        yield Finding("mode", layer, True, text, "deterministic=not train")


def precision_findings(checks: Sequence[Check]) -> Iterator[Finding]:
    """Say where float32 differs by more than rounding, if float64 agrees."""
    failed = [c for c in checks if not c.passed]
    if not failed or any(c.precision == "float64" for c in failed):
        return
    layers = [c for c in failed if c.link == "activations"]
    first = next(iter(layers or failed))
    sizes = (name for name, digits in DIGITS.items() if 2.0 ** (-digits - 4) < first.error < 2.0 ** (1 - digits))
    kind = next(sizes, "another type")
    errors = f"off by {first.error:.1e}, PyTorch by {first.pytorch or 0:.1e}"
    text = f"Flax agrees in float64; in float32 it is {errors}: it computes in {kind}"
    yield Finding("precision", first.tensor, True, text, "dtype=jnp.float32, and no astype, on the way to here")
