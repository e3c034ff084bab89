"""Convert weights from any form to any other, bit for bit."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import parity
from jaxcnn import cli, platform
from jaxcnn.paths import at_home

EXAMPLES = """examples:
  python scripts/convert.py runs/cifar10 cifar10model.pth              for the tutorial's model.load_state_dict
  python scripts/convert.py cifar10model.pth weights.safetensors       Flax's names: conv1/kernel
  python scripts/convert.py cifar10model.pth model.safetensors --naming torch

Types (float16, bfloat16, float32, float64) are kept. A PyTorch file may be a state_dict, a checkpoint of any program, a
whole pickled model or TorchScript: nothing in it is executed, the network in it is found under any name, and a note
says what was taken and what was left. Exit status: 0; 2 for what is not this network's weights."""


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser("Convert weights between PyTorch and Flax.", EXAMPLES)
    add = parser.add_argument
    add(
        "source", metavar="SRC", type=at_home, help="a run directory, any PyTorch file, a .safetensors in either naming"
    )
    add("target", metavar="DST", type=at_home, help="a .pth, .pt or .safetensors")
    cli.add_entry(parser)
    add("--naming", choices=["flax", "torch"], help="of entries (default: torch in a .pth, flax in a .safetensors)")
    return parser


def main() -> None:
    """Load, check, write, print."""
    arguments = parser().parse_args()
    platform.start("cpu")
    weights = parity.load_weights(arguments.source, dtype=None, entry=arguments.entry)
    parity.save_weights(arguments.target, weights, arguments.naming)
    print(f"wrote {arguments.target}: {weights.dtype}, read back and equal")


if __name__ == "__main__":
    cli.run(main)
