"""The proof that `jaxcnn` is the PyTorch network: weights carried both ways, and a chain of comparisons."""

from parity.files import load_weights, save_weights

__all__ = ["load_weights", "save_weights"]
