"""What a wrong port is, and how one is made from a right one."""

import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch

from tests.parity.pairs import EXAMPLES, Example

Build = Callable[..., Example]


class Wrong(NamedTuple):
    """A port with a mistake, and what has to be said of it."""

    pair: str  # of EXAMPLES
    changes: dict[str, str]  # text of the port, and what it becomes
    findings: tuple[tuple[str, str], ...]  # code, and a part of the PyTorch layer's path, "optimizer", "loss", "output"
    options: Mapping[str, Any] = {}  # of parity.check; a function is given the pair's name and builder


def build(wrong: Wrong) -> Example:
    """Give PyTorch's module as it is, with weights as if trained, and the wrong port."""
    right = trained(wrong.pair)
    builder = changed(EXAMPLES[wrong.pair], wrong)
    port = builder()
    made = {n: option(wrong.pair, builder) if callable(option) else option for n, option in wrong.options.items()}
    return Example(right.torch_module, port.flax_module, right.inputs, {**port.options, **made})


def trained(pair: str) -> Example:
    """The right pair, with weights as if trained."""
    example = EXAMPLES[pair]()
    _train(example.torch_module)
    return example


def repeated(code: str, path: str, *numbers: int) -> tuple[tuple[str, str], ...]:
    """The same finding in several blocks."""
    return tuple((code, path.format(n)) for n in numbers)


def _train(module: torch.nn.Module) -> None:
    """Move every weight and statistic a little, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.3)


def changed(build: Build, wrong: Wrong) -> Build:
    """Make the file of a pair's builder anew with the changes, and give the builder in it."""
    right = inspect.unwrap(build)
    source = inspect.getsource(sys.modules[right.__module__])
    for old, new in wrong.changes.items():
        assert source.count(old) == 1, f"{source.count(old)} times in {right.__module__}: {old}"
        source = source.replace(old, new)
    module = ModuleType(f"{right.__module__}_wrong")
    sys.modules[module.__name__] = module  # where dataclasses look for their annotations
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return getattr(module, right.__name__)
