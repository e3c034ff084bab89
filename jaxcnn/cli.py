"""What the scripts' command lines share: one-line errors, exit statuses, suggestions for a mistyped flag."""

import argparse
import atexit
import difflib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from jaxcnn import streams
from jaxcnn.config import DATASETS
from jaxcnn.errors import UserError
from jaxcnn.paths import at_home

# A notebook sets matplotlib's backend for the shells that it starts, but here figures are written, never shown.
os.environ["MPLBACKEND"] = "agg"


def complain(message: str) -> None:
    """Print `error: message` as one line on standard error."""
    print("error:", " ".join(as_called(message).split()), file=sys.stderr)


def as_called(text: str) -> str:
    """Write `python scripts/train.py` as `jaxcnn train`, if that is how this command was called; parity too."""
    called = re.match(r"(python -m )?jaxcnn (?=\w)", sys.argv[0])  # `__main__` puts it there
    commands = r"(?<![/\w])(?:(?:python )?scripts/(\w+)\.py|python -m (parity)\b)"
    return re.sub(commands, lambda found: f"{called[0]}{found[1] or found[2]}", text) if called else text


def fail(message: str) -> NoReturn:
    """Print `error: message` as one line on standard error, and exit with status 2."""
    complain(message)
    raise SystemExit(2)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser with one-line errors and without abbreviations, whose help keeps its line breaks."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        keep_lines = argparse.RawDescriptionHelpFormatter
        epilog = epilog and as_called(epilog)
        super().__init__(description=description, epilog=epilog, allow_abbrev=False, formatter_class=keep_lines)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 after one line that says what is wrong and suggests the nearest flag."""
        flags = [option for action in self._actions for option in action.option_strings]
        unknown = re.findall(r"--[\w-]+", message) if "unrecognized" in message else []
        nearest = [flag for word in unknown for flag in difflib.get_close_matches(word, flags, n=1)]
        hints = "".join(f"; did you mean {flag}?" for flag in nearest)
        fail(f"{message}{hints}; {self.prog} --help lists all flags")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add WEIGHTS, `--dataset` and `--data-dir` to a command that applies weights to images."""
    forms = "a run directory, a .safetensors or any PyTorch file"
    parser.add_argument("weights", metavar="WEIGHTS", type=at_home, help=forms)
    add_entry(parser)
    default = "what the weights were trained on, else cifar10"
    parser.add_argument("--dataset", choices=DATASETS, help=f"cifar10, digits, or folder (default: {default})")
    add_data_dir(parser)


def add_entry(parser: argparse.ArgumentParser) -> None:
    """Add `--entry` to a command that takes weights."""
    parser.add_argument(
        "--entry", metavar="NAME", help="which network of the file, if several are in it: ema, model.net"
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--data-dir`."""
    default = "(default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    own = "or the folder of your own pictures, D/train/CLASS and D/test/CLASS, or D/CLASS"
    help_text = f"where CIFAR-10 is, in any form that prepare_data.py takes {default}; {own}"
    parser.add_argument("--data-dir", metavar="D", help=help_text)


def number(low: float, high: float, kind: type[float] = float) -> Callable[[str], Any]:
    """Return an argparse type that takes the numbers from `low` to `high`; with `int`, only those written in digits."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high and (kind is float or re.fullmatch(r"[0-9]+", text)):
                return value
        what = "a number" if kind is float else "a whole number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low:,.10g} to {high:,.10g}")

    return parse


positive_int = number(1, 999_999_999, int)
seed = number(0, 2**32 - 1, int)  # without x64, JAX drops the higher bits


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status that `main` returns, 0 for None, 2 after a UserError in one line, or 130 after Ctrl-C.

    Printing never changes it: if standard output cannot be written to, a last line on standard error says so.
    """
    streams.repair()
    if "matplotlib" in sys.modules:  # the user's matplotlibrc is not for these figures: it may ask for TeX
        sys.modules["matplotlib"].rcdefaults()
    try:
        Path.cwd()
        status = main()
    except UserError as problem:
        fail(str(problem))
    except PermissionError as problem:
        fail(f"{problem.strerror}: {problem.filename}; allow it, or name another")
    except FileNotFoundError as problem:
        if problem.filename is None:  # no path is at fault
            fail("the current folder is no longer there: cd to one that is")
        raise
    except KeyboardInterrupt:
        status = 130
        if "IPython" not in sys.modules:  # else the process goes on
            atexit.register(os._exit, status)  # if it was within XLA's compiler, Python's own end would crash
    finally:
        with suppress(Exception):  # of a stream that somebody put there
            sys.stdout.flush()
        if reason := streams.lost.get("stdout"):
            print(f"warning: standard output did not take what was printed ({reason.strerror})", file=sys.stderr)
    raise SystemExit(status)


def begin_worker() -> None:
    """Set up a process of a pool: it ignores Ctrl-C, which its parent handles, and ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
