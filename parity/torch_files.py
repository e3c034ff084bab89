"""A `state_dict` in PyTorch's own file.

It is a pickle, which can run any code: it is read with `weights_only=True`, always, and what would run is refused.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxcnn import files
from jaxcnn.errors import UserError
from jaxcnn.weights import FLOATS, WRONG

NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights", "checkpoint")


def read(path: Path, say: Callable[[str], None]) -> files.Arrays:
    """The arrays of the `state_dict` in a PyTorch file, in its order."""
    try:
        # torch.load does not look at the checksums that torch.save writes.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"damaged: {damaged} does not match its checksum")
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a damaged pickle or archive raises whatever it likes
        text = str(problem) or type(problem).__name__
        if refused := re.search(r"GLOBAL (\S+)", text):
            todo = "save model.state_dict(), nothing else"
            raise UserError(f"refused: it asks for {refused[1]}, which could run code", path, todo) from None
        reason = re.split(r"WeightsUnpickler error:\s*", text)[-1].split("\n")[0]
        todo = "save the state_dict anew, or use another copy"
        raise UserError(f"not a readable PyTorch file ({reason:.80})", path, todo) from None
    return _tensors_as_arrays(_innermost(content, path, say), path)


def _innermost(content: Any, where: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """The innermost of nests such as `{"state_dict": ...}`."""
    opened: list[str] = []
    while isinstance(content, Mapping) and len(opened) < 9:  # a dict in a pickle may hold itself
        nest = next((name for name in NESTS if isinstance(content.get(name), Mapping)), None)
        if nest is None:
            break
        opened.append(nest)
        content = content[nest]
    if not isinstance(content, Mapping):
        raise UserError(f"expected a state_dict, came {type(content).__name__}", where, "save model.state_dict()")
    if opened:
        say(f"note: {where}: opened {' > '.join(opened)}")
    return content


def _tensors_as_arrays(tensors: Mapping[Any, Any], where: Path) -> files.Arrays:
    """NumPy arrays with the tensors' bits; NumPy's bfloat16 is ml_dtypes', which torch does not know."""
    arrays = {}
    for name, tensor in tensors.items():
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
        if dtype not in FLOATS or tensor.layout != torch.strided:
            raise UserError(f"{name}: expected a tensor of {' or '.join(FLOATS)}, came {dtype}", where, WRONG)
        tensor = tensor.detach().resolve_neg().contiguous()
        bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
        arrays[str(name)] = bits.numpy().view(dtype)
    return arrays


def write(path: Path, arrays: files.Arrays) -> None:
    """Write a `state_dict`."""
    tensors = {}
    for name, array in arrays.items():
        narrow = array.dtype.name == "bfloat16"
        tensor = torch.from_numpy(array.view(np.uint16) if narrow else array)
        tensors[name] = tensor.view(torch.bfloat16) if narrow else tensor
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with files.written_whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
        if files.digest(read(temporary, lambda _: None)) != files.digest(arrays):
            raise UserError("what was written reads back otherwise", path, "check the disk, then try again")
