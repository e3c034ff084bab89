"""PyTorch's files, and other pickles of weights, opened without PyTorch and without running anything.

`torch.save` and `torch.jit.save` write a pickle and the bytes of its tensors, in a zip archive or, before version 1.6,
one after the other. The pickle becomes an inert copy (`jaxcnn.pickles`); this module rebuilds the tensors in it, and
lists all of them by the names on the way to them.
"""

import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (gives NumPy its bfloat16)
import numpy as np
from numpy.lib.stride_tricks import as_strided

from jaxcnn import pickles
from jaxcnn.errors import UserError
from jaxcnn.pickles import Call, Name, NotAPickleError, text_of

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LARGEST = 20  # its content may be so many times as large as the file
EXPANDED = 1 << 20  # bytes that a tensor may take beyond those that it repeats
LONGEST_NAME, MOST_PARTS = 200, 16  # characters, and dots
MOST_ENTRIES = 50_000
TYPES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Byte": "uint8",
    "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "Untyped": "uint8"}  # fmt: skip
READABLE = {*TYPES.values(), "uint16", "uint32", "uint64"}
AROUND = re.compile(r"torch\._utils\._rebuild_(parameter(_with_state)?|xla_tensor|device_tensor_from_\w+)")
UNREADABLE = {"sparse_tensor": "a sparse tensor", "qtensor": "a quantised tensor", "nested_tensor": "a nested tensor",
    "meta_tensor_no_storage": "a tensor without numbers", "wrapper_subclass": "a tensor of another kind"}  # fmt: skip
NESTED = "torch.storage._load_from_bytes"
CONTAINERS = (Call, dict, list, tuple)
COPY = "use another copy, or save it again"


class Tensor(NamedTuple):
    """An array that is read when it is needed."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


class Unreadable(NamedTuple):
    """Anything else, in words."""

    what: str


class Entry(NamedTuple):
    """A value of a file, and the name of the dict or the module that lists it."""

    value: Tensor | Unreadable
    home: str = ""


Entries = dict[str, Entry]
Child = tuple[str, Any, str, bool]  # name, value, home, whether it is a module in a module


@dataclass(frozen=True)
class Storages:
    """The bytes of a file's tensors by their keys: how many there are, and a function that reads them."""

    sizes: dict[str, int]
    load: Callable[[str], bytes | memoryview]
    is_big_endian: bool


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle describes it: its key and the type of its items."""

    storages: Storages
    key: str
    kind: str


def read(path: Path) -> Entries:
    """List all tensors of a file, and what else its dicts hold, by their names. UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        content, entries = None, Entries()
        for content in _zipped(path) if is_zip else [_one_after_the_other(path.read_bytes())]:
            entries = _entries(content, path.stat().st_size)
            if any(isinstance(entry.value, Tensor) for entry in entries.values()):
                return entries
    except NotAPickleError as problem:
        raise UserError(f"not a readable PyTorch file: its pickle is {problem}", path, COPY) from None
    others = [f"{name}: {entry.value.what}" for name, entry in entries.items() if isinstance(entry.value, Unreadable)]
    what = str(content) if isinstance(content, Call | Name) else f"a {type(content).__name__}"
    raise UserError(f"no tensors in it, only {(others or [what])[0]:.80}", path, "name a file of weights")


def _zipped(path: Path) -> Iterator[Any]:
    """Read the pickles of a zip archive. TorchScript has a second one, for constants: a frozen model's weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except Exception as problem:  # a damaged one can raise anything
        raise UserError("a cut or damaged zip archive", path, COPY) from problem
    if sum(sizes.values()) > LARGEST * path.stat().st_size:
        raise UserError("a zip archive of far more than its own size", path, COPY)
    root = next((name.removesuffix("data.pkl") for name in sizes if name.endswith("data.pkl")), "")
    is_big = f"{root}byteorder" in sizes and _member(path, f"{root}byteorder") == b"big"
    for name in ("data", "constants"):
        if f"{root}{name}.pkl" in sizes:
            folder = f"{root}{name}/"
            inside = {key.removeprefix(folder): size for key, size in sizes.items() if key.startswith(folder)}
            load = cache(lambda key, folder=folder: _member(path, folder + key))
            content = BytesIO(_member(path, f"{root}{name}.pkl"))
            yield pickles.read(content, partial(_persistent, storages=Storages(inside, load, is_big), kinds={}))


def _member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except Exception as problem:
        raise UserError(f"damaged: {name} does not match its checksum", path, COPY) from problem


def _one_after_the_other(content: bytes) -> Any:
    """Read a pickle; or, from `torch.save` before version 1.6, the object, its keys, and the bytes of each."""
    file, views, kinds = BytesIO(content), dict[str, memoryview](), dict[str, str]()
    value = pickles.read(file)
    if type(value) is not int or value != MAGIC_NUMBER:
        return value
    pickles.read(file)
    system = pickles.read(file)
    is_big = isinstance(system, dict) and False in (system.get("little_endian"), system.get(b"little_endian"))
    storages = Storages({}, views.__getitem__, is_big)
    value = pickles.read(file, partial(_persistent, storages=storages, kinds=kinds))
    keys = pickles.read(file)
    for key in map(_key, keys if isinstance(keys, list) else ()):
        count = int.from_bytes(file.read(8), "big" if is_big else "little")
        start, size = file.tell(), count * np.dtype(TYPES.get(kinds.get(key, ""), "uint8")).itemsize
        if start + size > len(content):
            raise NotAPickleError("whole, but the tensors after it are cut")
        views[key], storages.sizes[key] = memoryview(content)[start : start + size], size
        file.seek(start + size)
    return value


def _persistent(pid: Any, storages: Storages, kinds: dict[str, str]) -> Any:
    """Give what a persistent id stands for, and note each storage's type."""
    match pid:
        case ("storage" | b"storage", Name(name=name), key, _, *_):
            kinds[_key(key)] = name.removesuffix("Storage")
            return Storage(storages, _key(key), name.removesuffix("Storage"))
        case ("module" | b"module", kind, *_):
            return kind
    raise NotAPickleError("damaged: it asks for something unknown")


def _key(key: Any) -> str:
    """Give the name that a key stands for."""
    is_short = isinstance(key, Call | Name) or (isinstance(key, int) and abs(key) < 2**64)
    return str(key) if is_short else "/".join(map(text_of, key)) if isinstance(key, tuple) else text_of(key)


def _tensor(call: Call, nested: dict[int, Any]) -> Tensor | Unreadable | None:
    """Rebuild the tensor or the array that a call would make; None if it makes something else.

    nested: the storages that are files inside a plain pickle of tensors, by the identity of their bytes.
    """
    for _ in range(9):  # a parameter around a subclass around a tensor
        match str(call), call.args:
            case "torch._tensor._rebuild_from_type_v2" | "torch._tensor._rebuild_from_type", (made, _, tuple(args), _):
                call = Call(made, args)
            case name, (Call() as inner, *_) if AROUND.fullmatch(name):
                call = inner
    match str(call), call.args:
        case _, (Call(args=(bytes() as content,)) as saved, *others) if str(saved) == NESTED:
            if id(content) not in nested:
                nested[id(content)] = _one_after_the_other(content)
            call = Call(call.function, (nested[id(content)], *others))
    match str(call), call.args:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (Storage() as storage, *place):
            return _view(storage, TYPES.get(storage.kind, storage.kind), place[:3], place[5:])
        case "torch._utils._rebuild_tensor_v3", (Storage() as storage, a, b, c, _, _, Name(name=kind), *signs):
            return _view(storage, kind, [a, b, c], signs)
        case name, _ if what := UNREADABLE.get(name.removeprefix("torch._utils._rebuild_")):
            return Unreadable(what)
    try:
        array = pickles.array_of(call)
    except ValueError as problem:
        return Unreadable(str(problem))
    return None if array is None else Tensor(array.shape, array.dtype, lambda: array)


def _view(storage: Storage, kind: str, place: list[Any], signs: list[Any]) -> Tensor | Unreadable:
    """Make a tensor from a part of a storage, given its start, shape and strides, if they lie inside."""
    if kind not in READABLE:
        return Unreadable(f"a tensor of {kind}")
    if [type(part) for part in place] != [int, tuple, tuple] or not all(
        map(_is_size, (place[0], *place[1], *place[2]))
    ):
        return Unreadable("a damaged tensor")
    start, shape, strides = place
    dtype, count, size = np.dtype(kind), math.prod(shape), storage.storages.sizes.get(storage.key, 0)
    end = start + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=False)) + 1 if count else start
    is_inside = end * dtype.itemsize <= size and count * dtype.itemsize <= size + EXPANDED
    if not is_inside or len(shape) != len(strides) or len(shape) > 32:
        return Unreadable("a tensor that is not inside its storage")
    changes = signs[0] if signs and isinstance(signs[0], dict) else {}
    if changes.get("conj"):
        return Unreadable("a conjugated tensor")

    def load() -> np.ndarray:
        if not count:
            return np.zeros(shape, dtype)
        items = np.frombuffer(storage.storages.load(storage.key), dtype, end - start, start * dtype.itemsize)
        if storage.storages.is_big_endian:
            items = items.view(f"u{dtype.itemsize // (1 + (dtype.kind == 'c'))}").byteswap().view(dtype)
        array = as_strided(items, shape, [stride * dtype.itemsize for stride in strides], writeable=False)
        return -array if changes.get("neg") else array

    return Tensor(shape, dtype, load)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _entries(content: Any, limit: int) -> Entries:
    """List the entries of a file, in its order; each object is opened once, even if it is named again.

    limit: bytes that pickled arrays may take, since a few bytes can ask for the same ones again and again.
    """
    entries, opened, nested = Entries(), set[int](), dict[int, Any]()
    made: dict[int, Tensor | Unreadable | None] = {}
    waiting: list[Child] = [("", content, "", False)]
    while waiting:
        name, value, home, is_part = waiting.pop()
        if len(name) > LONGEST_NAME or name.count(".") > MOST_PARTS:  # no network of ours is so deep in anything
            continue
        if isinstance(value, Call) and id(value) not in made:
            made[id(value)] = found = _tensor(value, nested)
            if isinstance(found, Tensor) and str(value) in pickles.ARRAYS:
                limit -= math.prod(found.shape) * found.dtype.itemsize
                if limit < 0:
                    raise NotAPickleError("one whose arrays are larger than the file")
        if found := made.get(id(value)):
            if name in entries and isinstance(entries[name].value, Tensor) and entries[name].value is not found:
                raise NotAPickleError(f"one with two entries called {name}")
            entries[name] = Entry(found, home)
            if len(entries) > 2 * MOST_ENTRIES:
                raise NotAPickleError(f"one of more than {MOST_ENTRIES:,} tensors")
        elif isinstance(value, str | bytes | int | float) and len(entries) < MOST_ENTRIES:
            entries[name] = Entry(Unreadable(type(value).__name__), home)
        elif isinstance(value, CONTAINERS) and id(value) not in opened:
            opened.add(id(value))
            waiting += list(_children(name, value, home if is_part else name))[::-1]
    return entries


def _children(name: str, value: Any, home: str) -> Iterator[Child]:
    """Give an object's contents; for a module, its parameters, buffers and modules, named as in a `state_dict`."""

    def named(items: Iterable[tuple[Any, Any]], only: Any = object) -> Iterator[tuple[str, Any]]:
        below = f"{name}." if name else ""
        return ((below + _key(key), item) for key, item in items if isinstance(item, only))

    if not isinstance(value, Call):
        items = named(value.items()) if isinstance(value, dict) else named(enumerate(value), CONTAINERS)
        yield from ((child, item, name, False) for child, item in items)
        return
    states = value.state if isinstance(value.state, tuple) else (value.state,)  # two dicts, if it has __slots__
    state = {key: item for some in states if isinstance(some, dict) for key, item in some.items()}
    state.pop("_metadata", None)  # versions of layers
    hidden = state.pop("_non_persistent_buffers_set", None)
    elements = [*hidden.elements, *hidden.args] if isinstance(hidden, Call) else []
    left_out = {text_of(key) for some in elements for key in (some if isinstance(some, list) else [some])}
    is_module = "_modules" in state
    for kind in ("_parameters", "_buffers", "_modules"):
        parts = [(key, item) for key, item in _items(state.pop(kind, None)) if _key(key) not in left_out]
        yield from ((child, item, home, True) for child, item in named(parts))
    for items in (named(_items(value)), named(enumerate(value.elements), CONTAINERS), named(state.items(), CONTAINERS)):
        yield from ((child, item, child if is_module else name, False) for child, item in items)
    others = [some for some in states if not isinstance(some, dict)]
    for child, argument in named(enumerate([*value.args, *others]), CONTAINERS):
        yield name if isinstance(argument, dict) else child, argument, name, False


def _items(value: Any) -> list[tuple[Any, Any]]:
    """List the items of a dict, or of an object that is a kind of one; Python 2 wrote an OrderedDict as a list."""
    if isinstance(value, Call) and str(value) == "collections.OrderedDict" and value.args:
        pairs = value.args[0] if isinstance(value.args[0], list) else []
        return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]
    return [*(value.items if isinstance(value, Call) else value if isinstance(value, dict) else {}).items()]
