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
    another = "save the state_dict anew, or use another copy"
    try:
        # torch.load does not look at the checksums that torch.save writes.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise UserError(f"damaged: {damaged} does not match its checksum", path, another)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as problem:  # a damaged pickle or archive raises whatever it likes
        text = str(problem) or type(problem).__name__
        if refused := re.search(r"GLOBAL (\S+)", text):
            todo = "save model.state_dict(), nothing else"
            raise UserError(f"refused: it asks for {refused[1]}, which could run code", path, todo) from None
        reason = re.split(r"WeightsUnpickler error:\s*", text)[-1].split("\n")[0]
        raise UserError(f"not a readable PyTorch file ({reason:.80})", path, another) from None
    return _tensors_as_arrays(_innermost(content, path, say), path)


def _innermost(content: Any, where: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """The innermost of nests such as `{"state_dict": ...}`."""
    opened: list[str] = []
    while isinstance(content, Mapping) and len(opened) < 9:  # a dict in a pickle may hold itself
        nests = [name for name in NESTS if isinstance(content.get(name), Mapping)]
        if not nests:
            break
        opened.append(nests[0])
        content = content[nests[0]]
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
        if dtype == "bfloat16":
            arrays[str(name)] = tensor.view(torch.uint16).numpy().view(dtype)
        else:
            arrays[str(name)] = tensor.numpy()
    return arrays


def write(path: Path, arrays: files.Arrays) -> None:
    """Write a `state_dict`."""
    tensors = {}
    for name, array in arrays.items():
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        tensor = torch.from_numpy(bits)
        tensors[name] = tensor.view(torch.bfloat16) if bits is not array else tensor
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with files.written_whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
        if files.digest(read(temporary, lambda _: None)) != files.digest(arrays):
            raise UserError("what was written reads back otherwise", path, "check the disk, then try again")
