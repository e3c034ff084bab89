"""Weights in every form: run directories, PyTorch's `.pth`, safetensors in either naming. Only `.pth` needs torch."""

import importlib.util
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn import files, networks, progress
from jaxcnn import weights as flax_weights
from jaxcnn.errors import UserError
from jaxcnn.files import NamedArrays
from jaxcnn.networks import Network
from jaxcnn.weights import FLOATS, NOT_THESE, Weights
from parity.table import Naming, Table
from parity.twins.tables import TABLES

TORCH_SUFFIXES = (".pth", ".pt")
NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights", "checkpoint")
Say = Callable[[str], None]
PREFIX = re.compile(r"((module|_orig_mod|model|net|network|params)[./])*")


def load_weights(path: str | Path, dtype: str | None = "float32", say: Say = progress.say) -> Weights:
    """Load weights from any form, as `dtype`; None keeps the file's. UserError names what does not fit."""
    file = flax_weights.weights_file(path)
    if not file.exists():
        raise UserError("no such file", path, "name a run directory, a .pth or a .safetensors")
    arrays, metadata = files.read_arrays(file) if file.suffix == ".safetensors" else (_read_torch(file, say), {})
    network, arrays = _in_flax_naming(_without_prefixes(arrays, file, say), metadata, file)
    if dtype is not None:
        with np.errstate(over="ignore"):
            arrays = {name: array.astype(dtype) for name, array in arrays.items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"{name}: expected numbers within {dtype}'s range, got larger ones", file, NOT_THESE)
    return flax_weights.make_weights(network, arrays, metadata)


def save_weights(path: str | Path, weights: Weights, naming: Naming | None = None, say: Say = progress.say) -> None:
    """Write weights in the form that the suffix names: whole or not at all, read back and compared before they count.

    naming: `torch` in a `.pth`, always; `flax` in a `.safetensors` by default.
    """
    path = Path(path)
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


def table_of(network: Network) -> Table:
    """Find the table of a network of ours."""
    return TABLES[networks.describe(network)["name"]]


def _in_files(table: Table) -> Table:
    """Give a table the names that variables have in files: those that are no parameters start with their collection."""
    return Table(tuple(e if e.collection == "params" else e._replace(flax=f"{e.collection}/{e.flax}")
                       for e in table.expanded))  # fmt: skip


def _is_flax(arrays: Iterable[str]) -> bool:
    return any(name.endswith("kernel") for name in arrays)


def _in_flax_naming(arrays: NamedArrays, metadata: Mapping[str, str], where: Path) -> tuple[Network, NamedArrays]:
    """Carry arrays in either naming to Flax's, checked by the file's own names against the network that they are of."""
    is_flax, entries = _is_flax(arrays), {entry.flax: entry for table in TABLES.values() for entry in table.expanded}

    def flax_shape(name: str, axes: int) -> tuple[int, ...]:
        if is_flax:
            return flax_weights.shape_of(arrays, name, axes, where)
        shape = flax_weights.shape_of(arrays, entries[name].torch, axes, where)
        return entries[name].carry_shape(shape, "flax")

    network = flax_weights.network_of(metadata, flax_shape, where)
    table, shapes = _in_files(table_of(network)), networks.variable_shapes(network)
    flax_weights.check_arrays(arrays, shapes if is_flax else table.carry_shapes(shapes, "torch"), where)
    return network, arrays if is_flax else table.carry(arrays, "flax")


def _without_prefixes(arrays: NamedArrays, where: Path, say: Say) -> NamedArrays:
    """Remove the prefixes that `DataParallel`, `torch.compile`, Lightning and Flax's `{"params": ...}` add."""
    removed, bare, is_flax = dict[str, None](), {}, _is_flax(arrays)
    for name, array in arrays.items():
        short = PREFIX.sub("", name, count=1)
        removed[name.removesuffix(short)] = None
        if is_flax:
            short = short.replace(".", "/")
        if short in bare:
            raise UserError(f"{short}: expected once, got {name} too", where, NOT_THESE)
        bare[short] = array
    if prefixes := ", ".join(repr(prefix) for prefix in removed if prefix):
        say(f"note: {where}: removed the prefix {prefixes} from the names")
    return bare


def _read_torch(path: Path, say: Say) -> NamedArrays:
    """Read the arrays of the `state_dict` in a PyTorch file, in its order."""
    torch = require_torch(path)
    try:
        # torch.load does not look at the checksums that torch.save writes.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"damaged: {damaged} does not match its checksum")
        with warnings.catch_warnings(action="ignore"):
            # A pickle can run any code: `weights_only=True` refuses what would run.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a damaged pickle or archive raises whatever it likes
        text = str(problem) or type(problem).__name__
        if refused := re.search(r"GLOBAL (\S+)", text):
            what = f"refused: it asks for {refused[1]}, which could run code"
            todo = "save model.state_dict(), nothing else"
        else:
            reason = re.split(r"WeightsUnpickler error:\s*", text)[-1].split("\n")[0]
            what, todo = f"not a readable PyTorch file ({reason:.80})", "save the state_dict again, or use another copy"
        raise UserError(what, path, todo) from None
    arrays = {}
    for name, tensor in _innermost(content, path, say).items():
        dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
        if dtype not in FLOATS or tensor.layout != torch.strided:
            raise UserError(f"{name}: expected a tensor of {' or '.join(FLOATS)}, got {dtype}", path, NOT_THESE)
        tensor = tensor.detach().resolve_neg().contiguous()
        # NumPy's bfloat16 is ml_dtypes', which torch does not know.
        bits = tensor.view(torch.uint16) if dtype == "bfloat16" else tensor
        arrays[str(name)] = bits.numpy().view(dtype)
    return arrays


def _innermost(content: Any, where: Path, say: Say) -> Mapping[str, Any]:
    """Open nests such as `{"state_dict": ...}`, down to the innermost."""
    if not isinstance(content, Mapping):
        raise UserError(f"expected a state_dict, got {type(content).__name__}", where, "save model.state_dict()")
    opened: list[str] = []  # at most 9: a dict in a pickle may hold itself
    while len(opened) < 9 and (nests := [name for name in NESTS if isinstance(content.get(name), Mapping)]):
        opened.append(nests[0])
        content = content[nests[0]]
    if opened:
        say(f"note: {where}: opened {' > '.join(opened)}")
    return content


def _write_torch(path: Path, arrays: NamedArrays) -> None:
    torch, tensors = require_torch(path), {}
    for name, array in arrays.items():
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        tensors[name] = torch.from_numpy(bits).view(getattr(torch, array.dtype.name))
    buffer = io.BytesIO()
    torch.save(tensors, buffer)

    def check(temporary: Path) -> None:
        if files.digest(_read_torch(temporary, lambda _: None)) != files.digest(arrays):
            raise UserError("what was written is not what was read back", path, "check the disk, then try again")

    with files.written_whole(path, check) as temporary:
        temporary.write_bytes(buffer.getvalue())


def require_torch(where: object) -> Any:
    """Import PyTorch; UserError if it is not installed."""
    if importlib.util.find_spec("torch") is None:
        todo = "pip install 'jaxcnn[parity]', or take a .safetensors if it is weights"
        raise UserError("PyTorch is not installed", where, todo)
    return importlib.import_module("torch")
