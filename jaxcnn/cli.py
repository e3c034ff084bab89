"""What every script's command line shares: one-line errors, exit statuses, the nearest flag offered."""

import argparse
import difflib
import io
import math
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from jaxcnn.config import DEFAULTS
from jaxcnn.errors import UserError


def fail(message: str) -> NoReturn:
    """Print `error: message` on standard error, as one line, and exit with 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest flag, no abbreviations, a help that keeps its lines."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        lines_kept = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, allow_abbrev=False, formatter_class=lines_kept)

    def error(self, message: str) -> NoReturn:
        """Exit with 2 after one line: what is wrong, and the nearest flag where one is unknown."""
        flags = [option for action in self._actions for option in action.option_strings]
        unknown = re.findall(r"--[\w-]+", message) if "unrecognized" in message else []
        near = [flag for word in unknown for flag in difflib.get_close_matches(word, flags, n=1)]
        hints = "".join(f"; did you mean {flag}?" for flag in near)
        fail(f"{message}{hints}; {self.prog} --help lists what there is")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """`--dataset` and `--data-dir`, of the commands that look at images with given weights."""
    default = "cifar10 or digits (default: what the weights were trained on, else cifar10)"
    parser.add_argument("--dataset", choices=DEFAULTS, help=default)
    add_data_dir(parser)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """`--data-dir`."""
    forms = "where CIFAR-10 lies, in any form that prepare_data.py takes"
    default = "(default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    parser.add_argument("--data-dir", metavar="D", help=f"{forms} {default}")


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from low to high, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low:,} to {high:,}")
        return int(text)

    return parse


positive_int = whole(1, 999_999_999)
seed = whole(0, 2**32 - 1)  # more would be cut off where x64 is off


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a finite number from low to high, both included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main and exit: 0 or what it returned, 2 with one line for a UserError, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in a pipe or a log, too, a line is there when it is said
    try:
        status = main()
        sys.stdout.flush()
    except UserError as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        status = 0
    raise SystemExit(status)
