"""`python -m jaxcnn`, or `jaxcnn` where it is installed: list the commands, or run one of them."""

import ast
import difflib
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from jaxcnn import cli
from jaxcnn.errors import UserError

ROOT = Path(__file__).parents[1]
INSTALLED, CHECKOUT = ROOT / "jaxcnn_scripts", ROOT / "scripts"  # the same files: see pyproject.toml
VERSIONS = ("jaxcnn", "jax", "flax")


def commands() -> dict[str, Path]:
    """Find the commands: the scripts that are run, and parity."""
    scripts = sorted((INSTALLED if INSTALLED.is_dir() else CHECKOUT).glob("*.py"))
    found = {path.stem: path for path in scripts if "cli.run(main)" in path.read_text("utf-8")}
    return found | {"parity": ROOT / "parity/__main__.py"}


def main() -> int | None:
    """Run the command that is named, or list all of them."""
    called = "python -m jaxcnn" if Path(sys.argv[0]).name == "__main__.py" else "jaxcnn"
    name, *arguments = sys.argv[1:] or ["--help"]
    known = commands()
    if name in ("--help", "-h"):
        print(f"usage: {called} COMMAND ...\n\n{called} COMMAND --help explains a command. There are:\n")
        for command, path in known.items():
            print(f"  {command:14}", (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0])
        return None
    if name == "--version":
        print(", ".join(f"{package} {version(package)}" for package in VERSIONS))
        return None
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        todo = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no command {name!r}", called, todo)
    sys.argv = [f"{called} {name}", *arguments]
    # Found as the program runs, since the package knows neither parity nor the scripts.
    if name == "parity":
        return import_module("parity.__main__").main()
    sys.path.insert(0, str(known[name].parent))  # as Python does for a script that it runs
    return import_module(name).main()


def start() -> None:
    """Start the installed command."""
    cli.run(main)


if __name__ == "__main__":
    start()
