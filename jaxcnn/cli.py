"""What every script's command line shares: one-line errors, exit statuses, the nearest flag offered."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from jaxcnn.errors import UserError


def fail(message: str) -> NoReturn:
    """Print `error: message` on standard error, as one line, and exit with 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors that name the nearest flag, no abbreviations, a help that keeps its lines."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with 2 after one line: what is wrong, and the nearest flag where one is unknown."""
        hints = [self._nearest(word) for word in re.findall(r"--[\w-]+", message) if "unrecognized" in message]
        fail(f"{message}{''.join(hints)}; {self.prog} --help lists what there is")

    def _nearest(self, flag: str) -> str:
        flags = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, flags, n=1)
        return f"; did you mean {near[0]}?" if near else ""


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """`--dataset` and `--data-dir`, of the commands that look at images with given weights."""
    help_dataset = "cifar10 or digits (default: what the weights were trained on, else cifar10)"
    parser.add_argument("--dataset", choices=["cifar10", "digits"], help=help_dataset)
    add_data_dir(parser)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """`--data-dir`."""
    help_data_dir = (
        "where CIFAR-10 lies, in any form that prepare_data.py takes "
        "(default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    )
    parser.add_argument("--data-dir", metavar="D", help=help_data_dir)


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1 that fits 32 bits."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999,999,999")
    return int(text)


def seed(text: str) -> int:
    """An argparse type: an integer of 32 bits, 0 included; more would be cut off where x64 is off."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4,294,967,295")
    return int(text)


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
