"""Read pickles without executing anything: names in them are not looked up, and calls are recorded, not made.

A pickle is a program, and any name in it may do harm. Here a class or a function becomes a `Name`, and an object or a
result a `Call` of it, which records whatever is done to it; our own code makes arrays of NumPy's. Time and memory are
bounded by the number of bytes, too.
"""

import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import ml_dtypes
import numpy as np

MOST = 2_000_000  # instructions: a state_dict takes some fifty a tensor, and each can fill 300 bytes with nothing
LONGEST_KEY = 1000  # of a dict, in bytes or names: comparing two takes as long as they are
PLAIN_TYPE = re.compile(r"[?]|b1|[iu][1248]|f[248]|c8|c16")
RECONSTRUCT, SCALAR, FROM_BUFFER = (
    [f"numpy.{core}.{name}" for core in ("core", "_core")]
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
)
JAX_ARRAY = "jax._src.array._reconstruct_array"
ARRAYS = (*RECONSTRUCT, *SCALAR, *FROM_BUFFER, JAX_ARRAY)
Persistent = Callable[[Any], Any]
# In Python, since eight bytes (LONG_BINPUT with index 2^28) make the C unpickler allocate 4 GB.
Base: Any = pickle._Unpickler
UNFRAMER: Any = pickle._Unframer  # type: ignore[attr-defined]


class NotAPickleError(ValueError):
    """The bytes are not a pickle, or one that is cut, damaged or malicious. Its text says which."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function by its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Call:
    """An object, or a function's result: what would be called with which arguments, and what would follow."""

    function: Any  # a Name, if the pickle is an honest one
    args: tuple[Any, ...] = ()
    state: Any = None  # its attributes
    items: dict[Any, Any] = field(default_factory=dict)  # if it is a kind of dict
    elements: list[Any] = field(default_factory=list)  # if it is a kind of list or set

    def __str__(self) -> str:
        return str(self.function) if isinstance(self.function, Name) else "a call"


def read(file: BytesIO, persistent: Persistent | None = None) -> Any:
    """Read one pickle at a file's position; strings of Python 2 become bytes. NotAPickleError if there is none.

    file: in memory, since one on the disk allocates whatever it is asked for.
    persistent: gives the value of an id, for what is kept outside of the pickle.
    """
    try:
        return _Unpickler(file, persistent).load()
    except NotAPickleError:
        raise
    except EOFError:
        raise NotAPickleError("cut") from None
    except Exception as problem:  # bytes that are no pickle can raise anything
        raise NotAPickleError("cut or damaged") from problem


def array_of(value: Any) -> np.ndarray | None:
    """Make the array of a pickled NumPy array, NumPy number or JAX array; None if it is none of these.

    ValueError says why one cannot be made: its type is not a plain one, or the number of its bytes is wrong.
    """
    if not isinstance(value, Call):
        return None
    match str(value), value.args, value.state:
        case name, (function, tuple(args), state, *_), _ if name == JAX_ARRAY:
            return array_of(Call(function, args, state))
        case name, _, (*_, shape, dtype, by_columns, data) if name in RECONSTRUCT:
            return _array(data, dtype, shape, "F" if by_columns else "C")
        case name, (dtype, data), _ if name in SCALAR:
            return _array(data, dtype, (), "C")
        case name, (data, dtype, shape, "C" | "F" as order), _ if name in FROM_BUFFER:
            return _array(data, dtype, shape, order)
        case name, (data, dtype, shape, "K", axes), _ if name in FROM_BUFFER and _are_sizes(axes):
            if sorted(axes) == [*range(len(shape))]:
                return _array(data, dtype, shape, "C").transpose(axes)
    if str(value) in ARRAYS:
        raise ValueError("a damaged NumPy array")
    return None


def text_of(value: Any) -> str:
    """Give a string, which may be bytes, or in protocols 0 to 2 a call that makes bytes; "" for anything else."""
    if isinstance(value, Call) and str(value) == "_codecs.encode" and len(value.args) == 2:
        value = value.args[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    kind = _type(dtype)
    if isinstance(data, Call):  # bytes in protocols 0 to 2
        match str(data), data.args:
            case "_codecs.encode", (str(text), *_):
                data = text.encode("latin1", "replace")
            case "builtins.bytes" | "__builtin__.bytes", ():
                data = b""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError("a NumPy array without its bytes")
    if not _are_sizes(shape) or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"a NumPy array whose {len(data):,} bytes are not what its shape says")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _type(dtype: Any) -> np.dtype:
    """Make the type of a pickled `numpy.dtype`. ValueError if its items are not plain numbers."""
    if isinstance(dtype, Call) and str(dtype) == "numpy.dtype" and dtype.args:
        name = dtype.args[0]
        if isinstance(name, Name) and str(name) == "ml_dtypes.bfloat16":
            return np.dtype(ml_dtypes.bfloat16)
        order: Any = text_of(dtype.state[1]) if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
        if PLAIN_TYPE.fullmatch(text_of(name)) and order in ("<", ">", "|", "="):
            return np.dtype(text_of(name)).newbyteorder(order)
        raise ValueError(f"a NumPy array of type {text_of(name) or name!s:.40}")
    raise ValueError("a NumPy array of no plain type")


def _are_sizes(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) < 33 and all(type(n) is int and 0 <= n < 2**62 for n in shape)


def _key(key: Any) -> Any:
    """Return a stand-in for a dict key. Only what is always hashed and compared quickly is kept as it is.

    A tuple nested in itself by memo is hashed in 2**60 steps, and large numbers can be chosen to collide.
    """
    match key:
        case None | bool() | float() | Name() | Call():
            return key
        case int() if abs(key) < 2**60:
            return key
        case str() | bytes() if len(key) <= LONGEST_KEY:
            return key
        case tuple() if len(key) < 33 and all(isinstance(p, str) and len(p) <= LONGEST_KEY for p in key):
            return key
    return Call(Name("builtins", type(key).__name__), (key,))


class _Unpickler(Base):
    """An unpickler that looks up nothing and calls nothing."""

    def __init__(self, file: BytesIO, persistent: Persistent | None) -> None:
        super().__init__(file, encoding="bytes")
        self.persistent = persistent

    def load(self) -> Any:
        """Carry out the instructions, not more than `MOST`."""
        frames = self._unframer = UNFRAMER(self._file_read, self._file_readline)
        self.read, self.readline = frames.read, frames.readline
        self.metastack, self.stack = list[list[Any]](), list[Any]()
        self.append = self.stack.append
        for _ in range(MOST):
            if not (code := self.read(1)):
                raise EOFError
            if code == pickle.STOP:
                return self.stack.pop()
            self.instructions[code[0]](self)
        raise NotAPickleError(f"one of more than {MOST:,} instructions")

    def find_class(self, module: str, name: str) -> Name:
        if len(module) + len(name) > LONGEST_KEY:
            raise NotAPickleError("damaged: an endless name")
        return Name(module, name)

    def get_extension(self, code: int) -> None:
        self.append(Name("extension", str(code)))

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise NotAPickleError("one whose data are kept outside of it")
        return self.persistent(pid)

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(Call(klass, tuple(args)))

    def call(self, operands: int) -> None:  # three, if there are keywords
        function, args, *_ = self.stack[-operands:]
        if type(args) is not tuple:
            raise NotAPickleError("damaged: arguments that are no tuple")
        self.stack[-operands:] = [Call(function, args)]

    def build(self) -> None:
        state = self.stack.pop()
        self._last(Call).state = state

    def make_set(self) -> None:
        self.append(Call(Name("builtins", "set")))  # not a set: its elements would be hashed

    def make_frozenset(self) -> None:
        elements = self.pop_mark()
        self.append(Call(Name("builtins", "frozenset"), elements=elements))

    def extend(self, elements: list[Any]) -> None:
        last = self._last(list, Call)
        (last.elements if isinstance(last, Call) else last).extend(elements)

    def set_items(self, pairs: list[Any]) -> None:
        last = self._last(dict, Call)
        items = last.items if isinstance(last, Call) else last
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[_key(key)] = value

    def make_dict(self) -> None:
        pairs = self.pop_mark()
        self.append({})
        self.set_items(pairs)

    def take(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def make_bytearray(self) -> None:
        # Take the bytes that exist, not as many as are declared.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def _last(self, *kinds: type) -> Any:
        if not isinstance(last := self.stack[-1], kinds):
            raise NotAPickleError(f"damaged: it fills a {type(last).__name__}")
        return last

    instructions = dict(Base.dispatch) | {
        code[0]: act
        for code, act in {
            pickle.REDUCE: partial(call, operands=2),
            pickle.NEWOBJ: partial(call, operands=2),
            pickle.NEWOBJ_EX: partial(call, operands=3),
            pickle.BUILD: build,
            pickle.EMPTY_SET: make_set,
            pickle.FROZENSET: make_frozenset,
            pickle.ADDITEMS: lambda self: self.extend(self.pop_mark()),
            pickle.APPENDS: lambda self: self.extend(self.pop_mark()),
            pickle.APPEND: lambda self: self.extend(self.take(1)),
            pickle.SETITEMS: lambda self: self.set_items(self.pop_mark()),
            pickle.SETITEM: lambda self: self.set_items(self.take(2)),
            pickle.DICT: make_dict,
            pickle.BYTEARRAY8: make_bytearray,
        }.items()
    }
