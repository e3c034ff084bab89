"""Weights in every form: run directories, PyTorch's `.pth`, safetensors in either naming. Only `.pth` needs torch."""

import importlib.util
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import files, progress
from jaxcnn import weights as flax_weights
from jaxcnn.errors import UserError
from jaxcnn.model import CNN, Params
from jaxcnn.weights import FLOATS, WRONG, Weights
from parity.weights import SEPARATOR, Naming, as_params, as_state_dict, carry_shapes

TORCH_SUFFIXES = (".pth", ".pt")
NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights", "checkpoint")
Say = Callable[[str], None]
PREFIX = re.compile(r"((module|_orig_mod|model|net|network|params)[./])*")


def load_weights(path: str | Path, dtype: str | None = "float32", say: Say = progress.say) -> Weights:
    """Weights from any form; what nests and prefixes were undone is said. UserError naming what does not fit.

    dtype: what to give them in; None keeps the file's: float16, bfloat16, float32 or float64.
    """
    file = flax_weights.weights_file(path)
    if not file.exists():
        raise UserError("no such file", path, "name a run directory, a .pth or a .safetensors")
    if file.suffix == ".safetensors":
        arrays, metadata = files.read_arrays(file)
    else:
        arrays, metadata = _read_torch(file, say), {}
    params = _params(_without_prefixes(arrays, file, say), file)
    if dtype is not None:
        with np.errstate(over="ignore"):
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        for name, array in files.flat_names(params).items():
            if not np.isfinite(array).all():
                raise UserError(f"{name}: expected numbers within {dtype}'s range, came larger ones", file, WRONG)
    return Weights(params, *flax_weights.known_of(metadata))


def save_weights(path: str | Path, weights: Weights, naming: Naming | None = None, say: Say = progress.say) -> None:
    """Write weights, the form chosen by the suffix: whole or not at all, read back and compared before they count.

    naming: `torch` in a `.pth`, always; `flax` in a `.safetensors` unless told otherwise.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if naming == "torch":
            files.save_arrays(path, as_state_dict(weights.params), flax_weights.metadata_of(weights, naming))
        else:
            flax_weights.save_weights(path, weights)
    elif path.suffix not in TORCH_SUFFIXES:
        raise UserError(f"the suffix is {path.suffix!r}", path, "end it in .pth, .pt or .safetensors")
    elif naming == "flax":
        raise UserError("a PyTorch file has PyTorch's names", path, "leave --naming out, or take a .safetensors")
    else:
        _write_torch(path, as_state_dict(weights.params))
        if weights.dataset:
            say(f"note: a {path.suffix} holds no data set and no class names: name it by --dataset {weights.dataset}")


def _params(arrays: Mapping[str, np.ndarray], where: Path) -> Params:
    """Arrays in either naming as parameters, once they are checked against the network that their widths tell."""
    if any(name.endswith("kernel") for name in arrays):
        return flax_weights.checked_params(arrays, where)
    channels = flax_weights.shape_of(arrays, "conv1.weight", 4, where)[0]
    classes, hidden = flax_weights.shape_of(arrays, "fc4.weight", 2, where)
    shapes = flax_weights.parameter_shapes(CNN(channels, hidden, classes))
    flax_weights.check_arrays(arrays, carry_shapes(shapes, "flax", "torch"), where)
    return as_params(arrays)


def _without_prefixes(arrays: files.NamedArrays, where: Path, say: Say) -> files.NamedArrays:
    """Entries without the prefixes that `DataParallel`, `torch.compile`, Lightning and Flax's `{"params": ...}` add."""
    removed, bare = dict[str, None](), {}
    flax = any(name.endswith("kernel") for name in arrays)
    for name, array in arrays.items():
        short = PREFIX.sub("", name, count=1)
        removed[name.removesuffix(short)] = None
        if flax:
            short = short.replace(".", SEPARATOR["flax"])
        if short in bare:
            raise UserError(f"{short}: expected once, came as {name} too", where, WRONG)
        bare[short] = array
    if told := ", ".join(repr(prefix) for prefix in removed if prefix):
        say(f"note: {where}: removed the prefix {told} from the names")
    return bare


def _read_torch(path: Path, say: Say) -> files.NamedArrays:
    """The arrays of the `state_dict` in a PyTorch file, in its order.

    It is a pickle, which can run any code: it is read with `weights_only=True`, always, and what would run is refused.
    """
    torch = _torch(path)
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
    arrays = {}
    for name, tensor in _innermost(content, path, say).items():
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
        if dtype not in FLOATS or tensor.layout != torch.strided:
            raise UserError(f"{name}: expected a tensor of {' or '.join(FLOATS)}, came {dtype}", path, WRONG)
        tensor = tensor.detach().resolve_neg().contiguous()
        # NumPy's bfloat16 is ml_dtypes', which torch does not know.
        bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
        arrays[str(name)] = bits.numpy().view(dtype)
    return arrays


def _innermost(content: Any, where: Path, say: Say) -> Mapping[str, Any]:
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


def _write_torch(path: Path, arrays: files.NamedArrays) -> None:
    """Write a `state_dict`."""
    torch, tensors = _torch(path), {}
    for name, array in arrays.items():
        narrow = array.dtype.name == "bfloat16"
        tensor = torch.from_numpy(array.view(np.uint16) if narrow else array)
        tensors[name] = tensor.view(torch.bfloat16) if narrow else tensor
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with files.written_whole(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
        if files.digest(_read_torch(temporary, lambda _: None)) != files.digest(arrays):
            raise UserError("what was written reads back otherwise", path, "check the disk, then try again")


def _torch(where: Path) -> Any:
    """PyTorch, which nothing else here needs."""
    if importlib.util.find_spec("torch") is None:
        todo = "pip install 'jaxcnn[parity]', or take a .safetensors"
        raise UserError("PyTorch is not installed, which a .pth needs", where, todo)
    import torch

    return torch
