"""The CIFAR-10 CNN of a well-known PyTorch tutorial, in JAX.

weights = jaxcnn.load("runs/digits")
probabilities = weights.predict(images)                       # arrays, PIL images, paths -> float32 [n, 10]
[weights.class_names[i] for i in probabilities.argmax(axis=1)]
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcnn.config import Config
    from jaxcnn.errors import UserError
    from jaxcnn.networks.tutorial import CNN
    from jaxcnn.weights import Weights, load

__all__ = ["CNN", "Config", "UserError", "Weights", "load"]

_MODULES = {"config": ["Config"], "errors": ["UserError"], "networks.tutorial": ["CNN"], "weights": ["Weights", "load"]}


def __getattr__(name: str) -> Any:
    """Import a name or a module on first use: JAX and Flax take a second, which `--help` need not wait for."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"jaxcnn.{module}"), name)
    if name in _modules():
        return import_module(f"jaxcnn.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names and the modules."""
    return sorted({*__all__, *_modules()})


def _modules() -> list[str]:
    return [module.name for module in iter_modules(__path__) if module.name != "__main__"]
