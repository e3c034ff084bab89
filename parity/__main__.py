"""`python -m parity`: show that the JAX network is the PyTorch network, and that training it is the same training."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import parity
from jaxcnn import cli, data, figures, files, platform
from jaxcnn.networks.tutorial import CNN
from jaxcnn.weights import check_classes
from parity import report
from parity.bounds import FACTOR, float32_floor
from parity.files import require_torch, table_of

EPILOG = """examples:
  python -m parity                                random weights, the embedded digits; about a minute and a half
  python -m parity runs/cifar10 --data-dir ~/tensorflow_datasets --json parity.json --figure parity.png

The chain: outputs and every activation, every gradient, single optimizer steps, 200 steps of training with dropout,
evaluation. In float64 JAX and PyTorch agree to 1e-12 (training: 1e-9); in float32 JAX is at most twice as far from the
float64 truth as PyTorch is. Then classic mistakes are made on purpose, and each has to be noticed where it is.
Exit status: 0; 1 if something diverges, with the first tensor that does; 2 for bad usage or bad input."""


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser("Compare JAX with PyTorch, tensor by tensor, training included.", EPILOG)
    parser.add_argument("weights", nargs="?", metavar="WEIGHTS", help="weights in any form (default: random ones)")
    cli.add_data_dir(parser)
    parser.add_argument("--steps", type=cli.positive_int, default=200, metavar="N",
        help="length of the training that is compared (default 200)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every comparison as JSON")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw errors and bounds: .png, .svg or .pdf")
    return parser


def main() -> int:
    """Compare, and report."""
    arguments = parser().parse_args()
    if arguments.figure:
        figures.check_format(arguments.figure)
    require_torch("python -m parity")
    for path in (arguments.json, arguments.figure):
        files.check_folder(path)
    from parity.parts import run_parts
    from parity.twins.cases import torch_draws

    start = time.monotonic()
    source = ("cifar10", arguments.data_dir) if arguments.data_dir else ("digits", None)
    dataset = data.load(*source)
    if arguments.weights:
        platform.start("cpu")  # the parts take what there is
        weights = parity.load_weights(arguments.weights)
        check_classes(weights, dataset.class_names, arguments.weights)
        network, state_dict = weights.network, table_of(weights.network).to_torch(weights.variables)
    else:
        network = CNN()
        state_dict = torch_draws(network, 1)[0]
    print("comparing, in float64, in float32, and with mistakes made on purpose ...", file=sys.stderr)
    found = run_parts(network, state_dict, source, arguments.steps)
    checks, faults = found["checks"], found["faults"]
    failures = list(report.failures(checks, faults))
    print(f"{found['device']}; PyTorch {version('torch')} on the CPU, TF32 off on both sides")
    print(f"float32 bound: the larger of {FACTOR:g} times PyTorch's own error and {float32_floor(state_dict):.1e}\n")
    print("\n".join(report.table(checks, faults)))
    if arguments.json:
        versions = {name: version(name) for name in ("jax", "flax", "optax", "torch", "numpy")}
        result = {"passed": not failures, **found, "checks": [report.plain(check) for check in checks]}
        result |= {"drift": report.drift(checks), "versions": {"python": python_version(), **versions}}
        files.write_text(arguments.json, json.dumps(result, indent=1) + "\n")
    if arguments.figure:
        figures.save(report.figure(checks), arguments.figure)
    caught = sum(fault["passed"] for fault in faults if fault["expected"])
    print(f"\n{len(checks)} comparisons, {caught} mistakes caught, {time.monotonic() - start:.0f} s")
    print("\n".join(failures) or "passed: the same network, trained the same way")
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
