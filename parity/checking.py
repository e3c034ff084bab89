"""`check`: the whole chain for any pair, from weights to training, in one call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import optax
import torch
from torch import nn

from jaxcnn.errors import UserError
from jaxcnn.platform import check_process
from parity import chain
from parity.bounds import Check
from parity.controls import run_controls
from parity.diagnosis.diagnose import diagnose
from parity.diagnosis.finding import Finding
from parity.fed import Feeding, feed
from parity.given import Given
from parity.initial import Builders, draw_initial, initial_checks
from parity.matched import Matched
from parity.mistakes import Tried
from parity.report import Report
from parity.table import Table

INSIDE = ("layers", "activations")  # links that compare what is inside a network


def check(
    torch_module: nn.Module,
    flax_module: Any,
    *inputs: Any,
    flax_inputs: tuple[Any, ...] | None = None,
    torch_kwargs: Mapping[str, Any] | None = None,
    flax_kwargs: Mapping[str, Any] | None = None,
    variables: Any = None,
    table: Table | None = None,
    loss: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    optimizer: tuple[Callable[..., Any], optax.GradientTransformation] | None = None,
    initial: Builders | None = None,
    steps: int = 5,
    precision: Sequence[str] = ("float64", "float32"),
    train: bool = True,
    controls: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compare a PyTorch module with its Flax port: activations, outputs, gradients, statistics, steps of training.

    inputs: NumPy arrays, as the PyTorch module takes them. flax_inputs: as the Flax module takes them; by default the
    same, floating arrays of 4 or 5 axes with channels last. Arguments that choose the mode (`train`, `deterministic`,
    `use_running_average` ...) are found and set, unless `flax_kwargs` has them. variables: Flax's own converted
    weights, to be judged too. loss: (PyTorch's, JAX's) functions of the outputs; default: a fixed random projection.
    optimizer: (a function from parameters to a torch optimizer, an optax optimizer); default: SGD with momentum.
    initial: (functions of a seed that make PyTorch's and Flax's module anew): their initial distributions are compared.
    controls: make classic mistakes in the port on purpose, and see that each is noticed.
    say: is called with progress messages, since it takes seconds to a minute.
    Nothing that is passed in is changed. UserError if the modules cannot be called, or cannot be matched.
    """
    check_process()
    _check_arguments(table, loss, optimizer, initial, steps, precision)
    given = Given(torch_module, flax_module, inputs, flax_inputs, torch_kwargs, flax_kwargs)
    say("matching the layers ...")
    matched = Matched(given, table, loss, optimizer or chain.SGD, steps)
    checks, feeding = _compared(matched, () if matched.untied else precision, variables, train, say)
    checks, inside = set_aside(checks)
    drawn, findings = None, tuple[Finding, ...]()
    if initial is not None:
        say("drawing initial weights ...")
        drawn = draw_initial(initial, given, matched.table)
        checks += initial_checks(drawn)
    if not all(check.passed for check in checks):
        say("looking for the cause ...")
        findings = _causes(given.name, matched, feeding, checks, variables, initial, drawn, say)
    notes, made = (*chain.notes(matched), *_notes_of(inside)), tuple[Tried, ...]()
    notes += ("nothing was compared: first let Flax share what PyTorch shares",) if matched.untied else ()
    if controls and (why := _untried(checks)):
        notes = (*notes, f"no mistakes were made on purpose: {why}")
    elif controls:
        say("making mistakes on purpose ...")
        made = run_controls(matched, inside)
    names = given.name, given.flax_name
    return Report(tuple(checks), matched.table, *names, matched.pairs, notes, findings, made)


def _compared(
    matched: Matched, precision: Sequence[str], variables: Any, train: bool, say: Callable[[str], None]
) -> tuple[list[Check], Feeding | None]:
    """Compare all links except the initial weights. Return Flax fed layer by layer too, if float64 is included."""
    checks, feeding = [*chain.untied(matched)], None
    for one in precision:
        say(f"comparing in {one} ...")
        with (
            jax.enable_x64(one == "float64"),
            torch.enable_grad(),
            one_thread() if one == "float32" else nullcontext(),
        ):
            checks += chain.evaluation(matched, one)
            if one == "float64":
                feeding = feed(matched)
                checks += feeding.checks()
                checks += chain.converted(matched, variables) if variables is not None else []
            if train:
                say(f"training in {one} ...")
                checks += chain.training(matched, one)
    return checks, feeding


def set_aside(checks: list[Check]) -> tuple[list[Check], dict[str, Check]]:
    """Leave out differences inside, such as a slice that Flax has in a padding, if all that matters agrees in float64.

    That is outputs, also with the user's own and with large weights, gradients, and training. Give them by tensor.
    """
    exact = [check for check in checks if check.precision == "float64" and not check.passed]
    inside = {check.tensor: check for check in exact}
    if not inside or any(check.link not in INSIDE for check in exact):
        return checks, {}
    return [c for c in checks if c.link not in INSIDE or c.tensor not in inside], inside


def _notes_of(inside: dict[str, Check]) -> Iterator[str]:
    """Say what differs inside."""
    for first in list(inside.values())[:1]:
        more, why = f" and {len(inside) - 1} more" * (len(inside) > 1), first.note or f"error {first.error:.2g}"
        yield f"{first.tensor}{more} inside: not the same in Flax ({why}), but what comes out and all gradients agree"


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute in one thread: its float32 error depends on how many share a sum, and so would the bound."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _causes(name: str, *shown: Any) -> tuple[Finding, ...]:
    """Diagnose a difference; if it fails, since it runs the user's module in unusual ways, the report stands."""
    try:
        return diagnose(*shown)
    except Exception as problem:
        text = f"the search for the cause failed ({type(problem).__name__}: {problem})"
        return (Finding("unknown", name, False, " ".join(text.split()), ""),)


def _untried(checks: list[Check]) -> str:
    """Say why controls cannot be run on a pair; an empty string if they can."""
    if not all(check.passed for check in checks):
        return "the pair itself differs"
    return "" if any(check.precision == "float64" for check in checks) else "they need float64"


def _check_arguments(table: Any, loss: Any, optimizer: Any, initial: Any, steps: int, precision: Any) -> None:
    """Raise UserError for arguments that make no sense."""
    pair = "a pair: (PyTorch's, JAX's)"
    updates = lambda o: hasattr(o, "update")  # noqa: E731
    for name, value, second in (
        ("loss", loss, callable),
        ("optimizer", optimizer, updates),
        ("initial", initial, callable),
    ):
        fits = isinstance(value, tuple) and len(value) == 2 and callable(value[0]) and second(value[-1])
        if value is not None and not fits:
            kinds = {"optimizer": ", a function from parameters to an optimizer and an optax one",
                     "initial": ", functions of a seed that make the modules"}  # fmt: skip
            todo = pair + kinds.get(name, "")
            many = isinstance(value, tuple | list)
            what = f"({', '.join(type(one).__name__ for one in value)})" if many else type(value).__name__
            raise UserError(f"{name}= is {what}", "parity.check", f"give {todo}")
    if table is not None and not isinstance(table, Table):
        raise UserError(f"table= is {type(table).__name__}", "parity.check", "give a parity.Table")
    if steps < 1:
        raise UserError(f"steps={steps}", "parity.check", "give 1 or more, or train=False")
    if isinstance(precision, str) or not precision or {*precision} - {"float64", "float32"}:
        raise UserError(f"precision={precision!r}", "parity.check", 'give ("float64", "float32"), or one of them')
