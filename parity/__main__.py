"""Show that the JAX network is the PyTorch network, and that training it is the same training: `python -m parity`."""

import argparse
import importlib
import inspect
import json
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import parity
from jaxcnn import cli, data, figures, files, platform
from jaxcnn.config import DEFAULTS
from jaxcnn.errors import UserError
from jaxcnn.networks import Network, describe
from jaxcnn.paths import at_home
from jaxcnn.recipe import recipe_for
from jaxcnn.run_directory import data_source
from jaxcnn.weights import check_classes
from parity import figure, report
from parity.bounds import FACTOR, float32_floor
from parity.files import require_torch
from parity.twins.tables import table_of

EPILOG = """examples:
  python -m parity                                random weights, the embedded digits; one to two minutes
  python -m parity runs/cifar10 --data-dir ~/tensorflow_datasets --json parity.json --figure parity.png
  python -m parity --recipe speedrun              the second network; about four minutes
  python -m parity --torch mymodels.resnet:build --flax myports.resnet:build --input 2,3,32,32

Without --torch and --flax it compares our own network: that of WEIGHTS, or of --recipe. With them, a pair of yours:
functions without arguments that make the PyTorch module, and its Flax port in Linen or NNX. Which weight is which is
found automatically.

The chain: outputs and every activation, every gradient, single optimizer steps, 200 steps of training with dropout
(speedrun: 50, with batch statistics, Muon and augmentation), evaluation. In float64 JAX and PyTorch agree to 1e-12
(training: 1e-9); in float32 JAX is at most twice as far from the float64 truth as PyTorch is. Then classic mistakes are
made on purpose, and each must be noticed where it was made.
Exit status: 0; 1 if something diverges, with the first tensor that does; 2 for bad usage or bad input."""


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser("Compare JAX with PyTorch, tensor by tensor, training included.", EPILOG)
    parser.prog = cli.as_called("python -m parity")
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS", help="weights in any form (default: random ones)")
    parser.add_argument("--recipe", choices=DEFAULTS,
        help="without WEIGHTS: whose network to compare, with random weights (default tutorial)")  # fmt: skip
    cli.add_entry(parser)
    cli.add_data_dir(parser)
    pair = parser.add_argument_group("a pair of your own")
    pair.add_argument("--torch", metavar="PKG.MOD:BUILD", help="a function that makes the PyTorch module")
    pair.add_argument("--flax", metavar="PKG.MOD:BUILD", help="a function that makes the Flax module")
    pair.add_argument("--input", action="append", type=shape, metavar="2,3,32,32",
        help="shape of an input of random numbers, as the PyTorch module takes it; once for each input")  # fmt: skip
    pair.add_argument("--inputs", metavar="PKG.MOD:FUNCTION",
        help="a function that makes the inputs: a tuple of arrays, or a dict of arguments of parity.check")  # fmt: skip
    pair.add_argument("--controls", action="store_true",
        help="make classic mistakes in the port on purpose, and see that each is noticed")  # fmt: skip
    parser.add_argument("--steps", type=cli.positive_int, metavar="N",
        help="length of the training that is compared (default 200; speedrun 50; a pair of your own 5)")  # fmt: skip
    parser.add_argument("--json", type=at_home, metavar="FILE", help="write every comparison as JSON")
    parser.add_argument("--figure", type=at_home, metavar="FILE", help="draw errors and bounds: .png, .svg or .pdf")
    return parser


def shape(text: str) -> tuple[int, ...]:
    """Read `2,3,32,32`."""
    try:
        return tuple(map(cli.positive_int, text.split(",")))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: write 2,3,32,32") from None


def main() -> int:
    """Compare, and report."""
    made = parser()
    arguments = made.parse_args()
    if arguments.figure:
        figures.check_format(arguments.figure)
    require_torch("python -m parity")
    for path in (arguments.json, arguments.figure):
        files.check_folder(path)
    if arguments.torch or arguments.flax or arguments.input or arguments.inputs:
        if not (arguments.torch and arguments.flax and (arguments.input or arguments.inputs)):
            made.error("a pair of your own needs --torch, --flax, and --input or --inputs")
        if arguments.weights or arguments.data_dir or arguments.recipe:
            made.error("WEIGHTS, --recipe and --data-dir are for our own network: --torch makes the weights of yours")
        return own_pair(arguments)
    if arguments.controls:
        made.error("--controls is for a pair of your own: of our own network they are always made")
    return own_network(arguments)


def own_pair(arguments: argparse.Namespace) -> int:
    """Compare a pair of the user's."""
    import numpy as np

    from parity import checking

    platform.start("cpu")
    made = call(arguments.inputs) if arguments.inputs else ()
    options: dict[str, Any] = dict(made) if isinstance(made, dict) else {"inputs": made}
    rng = np.random.default_rng(0)
    drawn = tuple(rng.normal(size=size).astype(np.float32) for size in arguments.input or ())
    inputs = options.pop("inputs", ())
    inputs = (*drawn, *(inputs if isinstance(inputs, tuple | list) else (inputs,)))
    settings: dict[str, Any] = {"steps": arguments.steps or 5, "say": lambda text: print(text, file=sys.stderr)}
    settings |= {"controls": True} if arguments.controls else {}
    known = inspect.signature(checking.check).parameters
    if unknown := [name for name in options if name not in known]:
        raise UserError(
            f"{unknown[0]!r} is not an argument of parity.check", arguments.inputs, f"there are {', '.join(known)}"
        )
    found = checking.check(call(arguments.torch), call(arguments.flax), *inputs, **settings, **options)
    print(found)
    if arguments.json:
        files.write_text(arguments.json, found.json() + "\n")
    if arguments.figure:
        figures.save(found.drawn(), arguments.figure)
    print_written(arguments)
    return 0 if found.passed else 1


def print_written(arguments: argparse.Namespace) -> None:
    """Say which files were written."""
    for path in filter(None, (arguments.json, arguments.figure)):
        print(f"wrote {path}")


def call(where: str) -> Any:
    """Call what `PKG.MOD:FUNCTION` names. UserError if there is no such thing, or if it fails."""
    module, colon, name = where.partition(":")
    if not colon:
        raise UserError("no colon in it", where, "write PKG.MOD:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)()
    except UserError:
        raise
    except Exception as problem:
        what = " ".join(f"{type(problem).__name__}: {problem}".split())
        at = [frame for frame in traceback.extract_tb(problem.__traceback__) if not frame.filename.startswith("<")][-1]
        todo = "name a function without arguments that can be imported from here and called"
        raise UserError(f"it fails: {what:.300}", where, f"{todo} ({at.filename}:{at.lineno})") from problem


def network_of(recipe: Any) -> Network:
    """Make the network of a recipe."""
    return recipe_for(DEFAULTS[recipe]["cifar10"]).network


def own_network(arguments: argparse.Namespace) -> int:
    """Compare our own network, and try the controls."""
    from parity.parts import run_parts
    from parity.twins.cases import drawn
    from parity.twins.training import grained

    start = time.monotonic()
    source = ("cifar10", arguments.data_dir) if arguments.data_dir else ("digits", None)
    if arguments.weights:
        platform.start("cpu")  # the parts take whatever device there is
        weights = parity.load_weights(arguments.weights, entry=arguments.entry)
        if weights.dataset == "folder":
            source = data_source(arguments.weights, "folder", None, arguments.data_dir)
    dataset = data.load(*source)
    if arguments.weights:
        check_classes(weights, dataset.class_names, arguments.weights)
        name = describe(weights.network)["name"]
        if arguments.recipe and name != describe(network_of(arguments.recipe))["name"]:
            raise UserError(f"weights of {name}, not of {arguments.recipe}", arguments.weights, "leave --recipe out")
        network, state_dict = weights.network, table_of(weights.network).to_torch(weights.variables)
    else:
        network = network_of(arguments.recipe or "tutorial")
        state_dict = drawn(network, grained(dataset).train.images)
    print("comparing, in float64, in float32, and with mistakes made on purpose ...", file=sys.stderr)
    found = run_parts(network, state_dict, source, arguments.steps)
    checks, faults = found["checks"], found["faults"]
    failures = list(report.failures(checks, faults))
    print(f"{found['device']}; PyTorch {version('torch')} on the CPU, TF32 off on both sides")
    print(
        f"float32 bound: the larger of {FACTOR:g} times PyTorch's own error and {float32_floor(state_dict):.1e},"
        " twice that for gradients and steps,\n"
        "and more where the loss magnifies an error of the logits, as after training\n"
    )
    print("\n".join(report.table(checks, faults)))
    if arguments.json:
        versions = {name: version(name) for name in ("jax", "flax", "optax", "torch", "numpy")}
        result = {"passed": not failures, **found, "checks": [report.plain(check) for check in checks]}
        result |= {"drift": figure.drift(checks), "versions": {"python": python_version(), **versions}}
        files.write_text(arguments.json, json.dumps(result, indent=1) + "\n")
    if arguments.figure:
        figures.save(figure.figure(checks), arguments.figure)
    caught = sum(fault["passed"] for fault in faults if fault["expected"])
    print(f"\n{len(checks)} comparisons, {caught} mistakes caught, {time.monotonic() - start:.0f} s")
    print("\n".join(failures) or "passed: the same network, trained the same way")
    print_written(arguments)
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
