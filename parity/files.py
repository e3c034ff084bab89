"""Weights in every form: run directories, PyTorch's files, safetensors in either naming. Only writing needs torch."""

import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import files, kinds, progress
from jaxcnn import weights as flax_weights
from jaxcnn.errors import UserError, os_errors
from jaxcnn.files import NamedArrays
from jaxcnn.paths import at_home
from jaxcnn.weights import NOT_THESE, Weights
from parity import torch_files
from parity.found import find
from parity.table import Naming
from parity.torch_files import Entries, Entry, Tensor
from parity.twins.tables import table_of

TORCH_SUFFIXES = (".pth", ".pt")
Say = Callable[[str], None]


def load_weights(
    path: str | Path, dtype: str | None = "float32", say: Say = progress.say, entry: str | None = None
) -> Weights:
    """Load weights from any form, as `dtype`; None keeps the file's. UserError names what does not fit.

    entry: their name in the file, if it has several networks.
    """
    file = at_home(path)
    entries, metadata = _entries(file)
    found = find(entries, metadata, entry, file)
    for note in found.notes:
        say(f"note: {file}: {note}")
    arrays = found.arrays
    if dtype is not None:
        with np.errstate(over="ignore"):
            arrays = {name: array.astype(dtype) for name, array in arrays.items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"{name}: expected numbers within {dtype}'s range, got larger ones", file, NOT_THESE)
    return flax_weights.make_weights(found.network, arrays, metadata)


def save_weights(path: str | Path, weights: Weights, naming: Naming | None = None, say: Say = progress.say) -> None:
    """Write weights in the form that the suffix names: whole or not at all, read back and compared before renaming.

    naming: `torch` in a `.pth`, always; `flax` in a `.safetensors` by default.
    """
    path = at_home(path)
    files.check_folder(path)
    if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        raise UserError(f"the suffix is {path.suffix!r}", path, "end it in .pth, .pt or .safetensors")
    if path.suffix == ".safetensors" and naming != "torch":
        return flax_weights.save_weights(path, weights)
    if naming == "flax":
        raise UserError("a PyTorch file has PyTorch's names", path, "leave --naming out, or take a .safetensors")
    arrays = table_of(weights.network).to_torch(weights.variables)
    if path.suffix == ".safetensors":
        return files.save_arrays(path, arrays, flax_weights.metadata_of(weights, "torch"))
    _write_torch(path, arrays)
    if weights.dataset:
        say(f"note: a {path.suffix} holds no data set and no class names: name it by --dataset {weights.dataset}")


def _entries(path: Path) -> tuple[Entries, Mapping[str, str]]:
    """List the entries of a file, a run, or all files of a network; and the metadata of the first file."""
    folder = path if path.is_dir() else path.parent
    for index in [path] if path.suffix == ".json" else sorted(folder.glob("*.index.json")):
        places = _indexed(index)
        if places and (path in (folder, index) or path.name in places.values()):
            if missing := [name for name in sorted({*places.values()}) if not (folder / name).exists()]:
                raise UserError(f"no file {missing[0]}, which this index names", index, "get it, too")
            read = {name: _entries_of(folder / name) for name in sorted({*places.values()})}
            entries = {name: read[file][0][name] for name, file in places.items() if name in read[file][0]}
            return entries, next(iter(read.values()))[1]
    single = [folder / name for name in (flax_weights.FILE, "model.safetensors", "pytorch_model.bin")]
    is_there = [file for file in single if path == folder and file.exists()]
    return _entries_of(is_there[0] if is_there else flax_weights.weights_file(path))


def _indexed(index: Path) -> dict[str, str]:
    """Tell in which file beside an index each entry is; nothing if it is not an index."""
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        return places if all(name == Path(name).name for name in places.values()) else {}  # no path is followed
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _entries_of(file: Path) -> tuple[Entries, Mapping[str, str]]:
    """List the entries of a file in any form, which is recognised by its content."""
    if not file.exists():
        raise UserError("no such file", file, "name a run directory, a .pth or a .safetensors")
    with os_errors("cannot be read ({})", "name a file of weights", file):
        kind = kinds.kind_of(file)
    if kind in (kinds.PYTORCH, kinds.TORCHSCRIPT, kinds.PICKLE):
        return torch_files.read(file), {}
    if kind != kinds.ARRAYS and (kind or file.suffix != ".safetensors"):
        unknown = UserError("neither a PyTorch file nor a safetensors file", file, "name a file of weights")
        raise kinds.unlike(file, "weights", unknown)
    arrays, metadata = flax_weights.read_arrays(file)
    return {name: Entry(Tensor(array.shape, array.dtype, partial(np.asarray, array)))
            for name, array in arrays.items()}, metadata  # fmt: skip


def _write_torch(path: Path, arrays: NamedArrays) -> None:
    torch, tensors = require_torch(path), {}
    for name, array in arrays.items():
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        tensors[name] = torch.from_numpy(bits).view(getattr(torch, array.dtype.name))
    buffer = io.BytesIO()
    torch.save(tensors, buffer)

    def check(temporary: Path) -> None:
        read = {name: entry.value for name, entry in torch_files.read(temporary).items()}
        written = {name: value.load() for name, value in read.items() if isinstance(value, Tensor)}
        if files.digest(written) != files.digest(arrays):
            raise UserError("what was written is not what was read back", path, "check the disk, then try again")

    with files.written_whole(path, check) as temporary:
        temporary.write_bytes(buffer.getvalue())


def require_torch(where: object) -> Any:
    """Import PyTorch; UserError if it is not installed."""
    if importlib.util.find_spec("torch") is None:
        todo = "pip install 'jaxcnn[parity]', or take a .safetensors if it is weights"
        raise UserError("PyTorch is not installed", where, todo)
    return importlib.import_module("torch")
