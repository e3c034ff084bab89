"""A pickle is read and never run: names stay names, calls are written down, arrays are ours to make."""

import argparse
import collections
import enum
import importlib.util
import io
import os
import pathlib
import pickle
import resource
import struct
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import pickles
from jaxcnn.pickles import Call, Name, NotAPickleError, array_of

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(content: bytes):
    return pickles.read(io.BytesIO(content))


class Colour(enum.Enum):
    RED = 1


class Thing:
    def __init__(self, folder=None):
        self.folder = folder


class Evil(Thing):
    def __reduce__(self):
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_what_pickle_makes_of_them(protocol):
    values = [
        None,
        True,
        3,
        -(2**70),
        1.5,
        "text",
        "\u00e9\ud800",
        b"" if protocol > 2 else 0,
        {"a": [1, (2,), ()]},
        {1: {}},
    ]
    assert read(pickle.dumps(values, protocol)) == values


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_calls_that_keep_what_is_done_to_them(protocol):
    ordered, default = collections.OrderedDict(a=1), collections.defaultdict(list, b=[2])
    values = [ordered, default, argparse.Namespace(lr=0.1), Colour.RED, pathlib.PurePosixPath("a/b"), {3}, os.getcwd]
    first, second, names, colour, path, some, function = read(pickle.dumps(values, protocol))
    assert (str(first), first.items) == ("collections.OrderedDict", {"a": 1})
    assert (second.items, str(second.args[0]).endswith(".list")) == ({"b": [2]}, True)
    assert names.state == {"lr": 0.1}
    assert colour.args[-1] == 1 or colour.args == (Name("tests.test_pickles", "Colour"), "RED")
    assert isinstance(path, Call)
    assert (some.elements or some.args[0]) == [3]
    assert function == Name("posix", "getcwd")


NUMBERS = ["?", "i1", "<u2", ">i4", "u8", "<f2", ">f4", "f8", "c8", "c16"]


@given(
    dtype=st.sampled_from(NUMBERS),
    shape=st.lists(st.integers(0, 3), max_size=4).map(tuple),
    protocol=st.sampled_from(PROTOCOLS),
    axes=st.permutations(range(4)),
    core=st.sampled_from([b"core", b"_core"]),
)
def test_arrays_are_what_numpy_makes_of_them(dtype, shape, protocol, axes, core):
    size = int(np.prod(shape))
    array = np.arange(size).astype(dtype).reshape(shape).transpose([axis for axis in axes if axis < len(shape)])
    content = pickle.dumps([array, array.T], protocol)
    if protocol < 4:  # whose names have no lengths
        content = content.replace(b"numpy._core", b"numpy." + core)
    for found, expected in zip(read(content), [array, array.T], strict=True):
        found = array_of(found)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_bfloat16_and_arrays_of_jax(protocol):
    for value in (np.float32(1.5), np.int64(-3), np.bool_(True), np.ones(3, ml_dtypes.bfloat16), jnp.arange(3)):
        found = array_of(read(pickle.dumps(value, protocol)))
        np.testing.assert_array_equal(found, np.asarray(value))
        assert found.dtype == value.dtype
    for value in ([1], Thing(), np.ones, Colour.RED):
        assert array_of(read(pickle.dumps(value, protocol))) is None


@pytest.mark.parametrize("array", [np.array([Thing()]), np.array(["a"]), np.zeros(2, "f4,i4"), np.zeros(2, "M8[s]")])
def test_arrays_of_anything_but_numbers_are_refused(array):
    with pytest.raises(ValueError, match="a NumPy array of type"):
        array_of(read(pickle.dumps(array, 4)))


@pytest.mark.parametrize(
    "change",
    [(b"K\x03\x85", b"K\x04\x85"), (b"K\x03\x85", b"J\xff\xff\xff\xff\x85"),
     (b"dtype", b"dtypf"),
     (b"C\x0c", b"C\x0b"), (b"K\x03\x85", b"\x8a\x08" + bytes(7) + b"\x40\x85")],
)  # fmt: skip
def test_arrays_whose_bytes_are_not_what_they_say_are_refused(change):
    content = pickle.dumps(np.zeros(3, np.float32), 4).replace(b"\x95" + struct.pack("<Q", 0), b"")
    changed = (content[:2] + content[11:]).replace(*change)
    assert changed != content[:2] + content[11:]
    with pytest.raises(ValueError, match=r"NumPy array|damaged|cut"):
        array_of(read(changed))


# What scanners of pickles look for: each names a function that would do harm, by each instruction that calls one.
GADGETS = ["os system", "posix system", "builtins exec", "builtins eval", "builtins getattr", "__builtin__ __import__",
    "subprocess Popen", "runpy _run_code", "torch.hub load", "numpy.testing._private.utils runstring", "pty spawn",
    "importlib import_module", "operator attrgetter", "webbrowser open", "pip main", "cProfile run"]  # fmt: skip
CALLS = {
    "REDUCE": b"\x80\x02c%b(X\x05\x00\x00\x00touchtR.",
    "NEWOBJ": b"\x80\x02c%b(X\x05\x00\x00\x00touchtN0\x81.",
    "NEWOBJ_EX": b"\x80\x02c%b(X\x05\x00\x00\x00toucht}\x92.",
    "INST": b"(S'touch'\ni%b.",
    "OBJ": b"(c%bS'touch'\no.",
    "BUILD": b"\x80\x02c%b)\x81}X\x05\x00\x00\x00touchK\x01sb.",
}


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("gadget", GADGETS)
def test_nothing_is_looked_up_or_called(gadget, how, monkeypatch):
    content = CALLS[how].replace(b"%b", gadget.replace(" ", "\n").encode() + b"\n")
    with monkeypatch.context() as patched:
        imported = []
        patched.setattr("builtins.__import__", lambda *names, **_: imported.append(names))
        found = read(content)
    assert not imported
    assert isinstance(found, Call)
    assert found.function == Name(*gadget.split())


def test_an_object_that_would_run_does_not(tmp_path):
    for protocol in PROTOCOLS:
        evil = pickle.dumps(Evil(tmp_path), protocol)
        assert str(read(evil)) == "posix.mkdir"
        loads = b"\x80\x03cpickle\nloads\n(B" + struct.pack("<I", len(evil)) + evil + b"tR."
        assert read(loads).args == (evil,)
    assert isinstance(read(b"\x80\x02\x82\x01)R."), Call)  # what a program registered as extension 1
    assert list(tmp_path.iterdir()) == []


def nested_tuple(depth: int) -> bytes:
    """A tuple of a tuple of ..., each twice: it is 2**depth tuples to whoever walks it."""
    return b"\x80\x02)" + b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(depth))


def colliding(number: int) -> bytes:
    """A key and a value; all keys have one hash."""
    return b"\x8a\x0a" + ((2**61 - 1) * number).to_bytes(10, "little") + b"K\x01"


HOSTILE = {
    "memo": b"\x80\x02}r\xff\xff\xff\x0f.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**29) + b".",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "string": b"\x80\x02T\xff\xff\xff\x7f.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b".",
    "key": nested_tuple(60) + b"q\xff0}h\xffK\x01s.",
    "keys": b"\x80\x02(" + nested_tuple(60)[2:] + b"K\x01d.",
    "in a set": b"\x80\x04\x8f(" + nested_tuple(60)[2:] + b"\x90.",
    "in a frozenset": b"\x80\x04(" + nested_tuple(60)[2:] + b"\x91.",
    "unhashable": b"\x80\x02}]K\x01s.",
    "collisions": b"\x80\x02}(" + b"".join(map(colliding, range(40_000))) + b"u.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "endless": b"\x80\x02" + b"N0" * 110_000 + b".",
    "many sets": b"\x80\x04" + b"\x8f" * 210_000 + b".",
    "long whole number": b"\x80\x02\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000 + b".",
    "digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "fills a number": b"\x80\x02K\x01K\x02a.",
    "arguments": b"\x80\x02cos\nsystem\nK\x01R.",
    "odd items": b"\x80\x02}(K\x01u.",
    "persistent": b"Pid\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_time_and_memory_are_bounded(name, monkeypatch):
    spec = importlib.util.spec_from_file_location("plain", pickles.__file__)
    plain = importlib.util.module_from_spec(spec)  # whose calls are not checked, which takes fifty times as long
    monkeypatch.setitem(sys.modules, "plain", plain)
    spec.loader.exec_module(plain)
    plain.MOST //= 10
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        plain.read(io.BytesIO(HOSTILE[name]))
    except plain.NotAPickleError as problem:
        assert len(str(problem)) < 80  # noqa: PT017
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_instructions_are_counted(monkeypatch):
    monkeypatch.setattr(pickles, "MOST", 19)
    with pytest.raises(NotAPickleError, match="more than 19 instructions"):
        read(b"\x80\x02" + b"N0" * 9 + b"N.")
    assert read(b"\x80\x02" + b"N0" * 8 + b"N.") is None


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "cut"), (b"\x80\x02}", "cut"), (b"<html>", "damaged"), (b"Pid\n.", "outside of it")]
)
def test_what_is_no_pickle_is_said(content, words):
    with pytest.raises(NotAPickleError, match=words):
        read(content)


@given(content=st.binary(max_size=60), place=st.integers(0, 400), cut=st.booleans())
def test_any_bytes_are_a_value_or_no_pickle(content, place, cut):
    whole = pickle.dumps({"a": np.ones(3), "b": Thing([{1}])}, 4)
    for changed in (content, whole[:place] + content + (b"" if cut else whole[place:])):
        try:
            read(changed)
        except NotAPickleError as problem:
            assert len(str(problem)) < 80  # noqa: PT017
