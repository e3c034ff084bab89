"""`check`: the whole chain for any pair, from weights to training, in one call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
import torch
from torch import nn

from jaxcnn.errors import UserError
from parity import chain
from parity.bounds import Check
from parity.given import Given
from parity.matched import Matched
from parity.report import Report
from parity.table import Table


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
    steps: int = 5,
    precision: Sequence[str] = ("float64", "float32"),
    train: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compare a PyTorch module with its Flax port: activations, outputs, gradients, statistics, steps of training.

    inputs: NumPy arrays, as the PyTorch module takes them. flax_inputs: as the Flax module takes them; by default the
    same, floating arrays of 4 or 5 axes with channels last. Arguments that choose the mode (`train`, `deterministic`,
    `use_running_average` ...) are found and set, unless `flax_kwargs` has them. variables: Flax's own converted
    weights, to be judged too. loss: (PyTorch's, JAX's) functions of the outputs; default: a fixed random projection.
    optimizer: (a function from parameters to a torch optimizer, an optax optimizer); default: SGD with momentum.
    say: is told what is being done, for it takes seconds to a minute.
    Nothing that is passed in is changed. UserError if the modules cannot be called, or cannot be matched.
    """
    _check_arguments(table, loss, optimizer, steps, precision)
    given = Given(torch_module, flax_module, inputs, flax_inputs, torch_kwargs, flax_kwargs)
    say("matching the layers ...")
    matched = Matched(given, table, loss, optimizer or chain.SGD, steps)
    checks: list[Check] = []
    for one in precision:
        say(f"comparing in {one} ...")
        with jax.enable_x64(one == "float64"), torch.enable_grad():
            checks += chain.evaluation(matched, one)
            if one == "float64":
                checks += chain.layers(matched)
                checks += chain.converted(matched, variables) if variables is not None else []
            if train:
                say(f"training in {one} ...")
                checks += chain.training(matched, one)
    return Report(tuple(checks), matched.table, given.name, given.flax_name, matched.pairs, tuple(chain.notes(matched)))


def _check_arguments(table: Any, loss: Any, optimizer: Any, steps: int, precision: Any) -> None:
    """Raise UserError for arguments that cannot be meant."""
    pair = "a pair: (PyTorch's, JAX's)"
    for name, value, second in (("loss", loss, callable), ("optimizer", optimizer, lambda o: hasattr(o, "update"))):
        fits = isinstance(value, tuple) and len(value) == 2 and callable(value[0]) and second(value[-1])
        if value is not None and not fits:
            todo = pair if name == "loss" else f"{pair}, a function from parameters to an optimizer and an optax one"
            raise UserError(f"{name}= is {type(value).__name__}", "parity.check", f"give {todo}")
    if table is not None and not isinstance(table, Table):
        raise UserError(f"table= is {type(table).__name__}", "parity.check", "give a parity.Table")
    if steps < 1:
        raise UserError(f"steps={steps}", "parity.check", "give 1 or more, or train=False")
    if isinstance(precision, str) or not precision or {*precision} - {"float64", "float32"}:
        raise UserError(f"precision={precision!r}", "parity.check", 'give ("float64", "float32"), or one of them')
