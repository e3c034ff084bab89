"""The proof that a Flax port equals its PyTorch original: weights carried both ways, and a chain of comparisons."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.checking import check
    from parity.files import load_weights, save_weights
    from parity.proposal import propose
    from parity.table import Entry, Table

HOMES = {
    "check": "checking",
    "propose": "proposal",
    "Entry": "table",
    "Table": "table",
    "load_weights": "files",
    "save_weights": "files",
}
__all__ = ["Entry", "Table", "check", "load_weights", "propose", "save_weights"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: PyTorch's twins are imported without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"parity.{HOMES[name]}"), name)
