"""The proof that a Flax port is its PyTorch original: weights carried both ways, and a chain of comparisons."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.files import load_weights, save_weights

__all__ = ["load_weights", "save_weights"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: PyTorch's twins are imported without JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("parity.files"), name)
