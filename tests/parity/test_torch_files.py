"""PyTorch's files are read as PyTorch reads them, with nothing run, and any bytes are arrays or one line."""

import argparse
import collections
import io
import pickle
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import UserError
from parity import torch_files
from parity.torch_files import Tensor
from parity.twins.tutorial import CNN
from tests.conftest import assert_trees_equal
from tests.parity.conftest import damaged, load, small_weights, state_dict
from tests.test_pickles import CALLS, GADGETS, HOSTILE, Evil

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
    torch.int16, torch.complex64, torch.uint16]  # fmt: skip


def same(ours: np.ndarray, theirs: torch.Tensor) -> None:
    theirs = theirs.detach().resolve_neg().resolve_conj().contiguous()
    assert (ours.dtype.name, ours.shape) == (str(theirs.dtype).removeprefix("torch."), tuple(theirs.shape))
    assert np.ascontiguousarray(ours).tobytes() == bytes(theirs.flatten().view(torch.uint8).tolist())


def tensors(value, name="") -> dict[str, torch.Tensor]:
    """What is in PyTorch's own reading of a file, by the same names."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, torch.nn.Module):
        return tensors(value.state_dict(), name)
    items = vars(value) if isinstance(value, argparse.Namespace) else value
    pairs = items.items() if isinstance(items, dict) else enumerate(items) if isinstance(items, list | tuple) else ()
    return {k: t for key, item in pairs for k, t in tensors(item, f"{name}.{key}" if name else str(key)).items()}


VIEWS = [
    lambda t: t, lambda t: t.T, lambda t: t[1:, ::2], lambda t: t[:0], lambda t: t[0, 0], lambda t: t.expand(2, 3, 4),
    lambda t: torch.nn.Parameter(t) if t.is_floating_point() else t, lambda t: t.reshape(2, 1, 6)[:, :, 1:],
    lambda t: t._neg_view() if t.is_floating_point() else t,
]  # fmt: skip
LEAVES = st.builds(
    lambda dtype, view, seed: VIEWS[view](torch.arange(seed, seed + 12).reshape(3, 4).to(dtype)),
    st.sampled_from(DTYPES), st.integers(0, len(VIEWS) - 1), st.integers(0, 99),
)  # fmt: skip
NAMES = st.text("abc.", min_size=1, max_size=3)
CONTENTS = st.recursive(
    LEAVES | st.none() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner),
        st.dictionaries(NAMES | st.integers(0, 9), inner, max_size=3),
        st.dictionaries(NAMES, inner, max_size=3).map(collections.OrderedDict),
        st.dictionaries(NAMES, inner, max_size=3).map(lambda d: collections.defaultdict(list, d)),
        st.dictionaries(NAMES, inner, max_size=3).map(lambda d: argparse.Namespace(**d)),
    ),
    max_leaves=6,
)  # fmt: skip


@given(content=CONTENTS, is_zip=st.booleans(), protocol=st.sampled_from([2, 4]))
def test_tensors_are_those_that_torch_reads(tmp_path_factory, content, is_zip, protocol):
    path = tmp_path_factory.mktemp("torch") / "w"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    expected = tensors(torch.load(path, weights_only=False))
    if not expected:
        with pytest.raises(UserError, match="no tensors in it"):
            torch_files.read(path)
        return
    found = {name: entry.value for name, entry in torch_files.read(path).items() if isinstance(entry.value, Tensor)}
    assert {*found} >= {*expected}
    for name in expected.keys() & found.keys():
        same(found[name].load(), expected[name])


@pytest.mark.parametrize("is_zip", [True, False])
def test_views_of_all_types(tmp_path, is_zip):
    tensors = [view(torch.arange(12).reshape(3, 4).to(dtype)) for dtype in DTYPES for view in VIEWS]
    torch.save(tensors, tmp_path / "w", _use_new_zipfile_serialization=is_zip)
    for entry, tensor in zip(torch_files.read(tmp_path / "w").values(), tensors, strict=True):
        same(entry.value.load(), tensor)


def test_whole_models_and_torchscript_are_their_state_dict(tmp_path):
    model = CNN(2, 3).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, torch.zeros(1, 3, 32, 32))
        frozen = torch.jit.freeze(scripted)
        scripted.save(tmp_path / "scripted")
        traced.save(tmp_path / "traced")
        frozen.save(tmp_path / "frozen")
    torch.save(model, tmp_path / "model")
    torch.save(model, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    for name in ("model", "legacy", "scripted", "traced", "frozen"):
        entries = torch_files.read(tmp_path / name)
        for (found, entry), (expected, tensor) in zip(entries.items(), model.state_dict().items(), strict=True):
            assert name == "frozen" or found == expected
            same(entry.value.load(), tensor)
        assert load(tmp_path / name)[0].network.channels == 2


def test_a_plain_pickle_of_tensors_has_files_in_it(tmp_path):
    model = CNN(2, 3)
    for content in (model, {"a": model.state_dict(), "b": model.conv1.weight}):
        (tmp_path / "w").write_bytes(pickle.dumps(content))
        entries = torch_files.read(tmp_path / "w")
        for (found, entry), (name, tensor) in zip(entries.items(), model.state_dict().items(), strict=False):
            assert found.removeprefix("a.") == name
            same(entry.value.load(), tensor)


def test_names_of_very_many_parts_are_not_listed(tmp_path):
    torch.save({"a": torch.ones(1), "a" * 300: torch.ones(1), "a." * 30: torch.ones(1)}, tmp_path / "w")
    assert list(torch_files.read(tmp_path / "w")) == ["a"]


def test_buffers_that_are_not_kept_are_no_part_of_a_model(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("table", torch.ones(3), persistent=False)
    torch.save(model, tmp_path / "w")
    assert list(torch_files.read(tmp_path / "w")) == ["weight", "bias"]


def test_big_endian_files(tmp_path):
    """Written here by hand: PyTorch on this machine writes no such file."""
    state = {"a": torch.arange(3.0), "b": torch.arange(4, dtype=torch.bfloat16), "c": torch.tensor([1 + 2j])}
    torch.save(state, tmp_path / "little")
    with zipfile.ZipFile(tmp_path / "little") as old, zipfile.ZipFile(tmp_path / "w", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if "/data/" in name:
                width = (4, 2, 4)[int(name[-1])]
                content = b"".join(content[i : i + width][::-1] for i in range(0, len(content), width))
            new.writestr(name, b"big" if name.endswith("byteorder") else content)
    for name, entry in torch_files.read(tmp_path / "w").items():
        same(entry.value.load(), state[name])
        same(entry.value.load(), torch.load(tmp_path / "w", weights_only=True)[name])


EVIL = {
    "new.pth": lambda evil, path: torch.save(evil, path),
    "nested.pth": lambda evil, path: torch.save({"state_dict": {"conv1.weight": evil}}, path),
    "old.pth": lambda evil, path: torch.save(evil, path, _use_new_zipfile_serialization=False),
    "plain.pth": lambda evil, path: path.write_bytes(pickle.dumps(evil)),
    "plain.pt": lambda evil, path: path.write_bytes(pickle.dumps({"conv1.weight": evil}, 0)),
    "named.safetensors": lambda evil, path: path.write_bytes(pickle.dumps(evil)),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_pickle_that_would_run_does_not(tmp_path, weights, name):
    EVIL[name](Evil(tmp_path), tmp_path / name)
    with pytest.raises(UserError, match=r"no tensors in it, only (posix.mkdir|a dict)"):
        load(tmp_path / name)
    torch.save({"model": state_dict(weights), "beside": Evil(tmp_path)}, tmp_path / "w")
    assert_trees_equal(load(tmp_path / "w")[0].params, weights.params)
    assert not (tmp_path / "ran").exists()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("how", CALLS)
def test_gadgets_are_one_line(tmp_path, how):
    for gadget in GADGETS:
        content = CALLS[how].replace(b"%b", gadget.replace(" ", "\n").encode() + b"\n")
        for path in (zipped(tmp_path / "zip", {"a/data.pkl": content}), tmp_path / "plain"):
            (tmp_path / "plain").write_bytes(content)
            with pytest.raises(UserError, match=gadget.replace(" ", ".")):
                torch_files.read(path)


def views(*place: object, copies: int = 1) -> bytes:
    """The pickle of a tensor (start, shape, strides), or of many, of a storage of four numbers."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    numbers = b"".join(pickle.dumps(part, 2)[2:-1] for part in place)
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89NtR"
    return b"\x80\x02](" + one * copies + b"e."


@pytest.mark.parametrize(
    ("size", "stride", "start"),
    [((5,), (1,), 0), ((4,), (1,), 1), ((2, 2), (3, 2), 0), ((2**40,), (0,), 0), ((2**30, 2**30), (0, 0), 0),
     ((4,), (-1,), 3), ((4,), (1,), -1), ((4,), (1, 1), 0), ((-4,), (1,), 0), ((4,), (2**70,), 0),
     ((1,) * 40, (1,) * 40, 0)],
)  # fmt: skip
def test_tensors_outside_of_their_storage_are_not_read(tmp_path, size, stride, start):
    path = zipped(tmp_path / "w", {"a/data.pkl": views(start, size, stride), "a/data/0": bytes(16)})
    with pytest.raises(UserError, match="no tensors in it, only 0: a "):
        torch_files.read(path)
    path = zipped(
        tmp_path / "w", {"a/data.pkl": views(0, (2, 2), (2, 1)), "a/data/0": np.arange(4, dtype="f4").tobytes()}
    )
    assert torch_files.read(path)["0"].value.load().tolist() == [[0, 1], [2, 3]]


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.pkl", "w") as member:
        member.write(b"\x80\x03B\x00\x00\x00\x13")  # bytes
        for _ in range(304):
            member.write(bytes(1 << 20))


def shared_bytes(path: Path) -> None:
    """One string, of which protocol 2 makes bytes again for each array."""
    array = pickle.dumps(np.zeros(1_000_000, np.uint8), 2)[2:-1]
    text = array.index(b"X\x40\x42\x0f\x00")
    place = text + 5 + 1_000_000
    again = array[:text] + b"h\xfe" + array[place + 2 :]
    path.write_bytes(b"\x80\x02](" + array[:place] + b"q\xfe" + array[place + 2 :] + again * 3000 + b"e.")


BOMBS = {
    "zip": bomb,
    "bytes": shared_bytes,
    "expanded": lambda path: zipped(path, {"data.pkl": views(0, (250_000,), (0,), copies=600), "data/0": bytes(16)}),
    "legacy": lambda path: path.write_bytes(
        b"".join(pickle.dumps(part, 2) for part in (torch_files.MAGIC_NUMBER, 1001, {}, {}, ["0"]))
        + struct.pack("<Q", 2**60)
    ),
    "module": lambda path: path.write_bytes(b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 9000 + b"N" + b"s" * 9000 + b"."),
    "laughs": lambda path: path.write_bytes(
        b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(15)) + b"."
    ),
    "objects": lambda path: path.write_bytes(b"\x80\x02ca\nb\nq\x00Nq\x01" + b"h\x00)\x81h\x01bq\x01" * 50_000 + b"."),
    **{name: lambda path, content=content: path.write_bytes(content) for name, content in HOSTILE.items()
       if name in ("key", "keys", "memo", "bytearray", "collisions")},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_time_and_memory_are_bounded(tmp_path, name):
    BOMBS[name](tmp_path / "w.pth")
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as raised:
        load(tmp_path / "w.pth")
    assert len(str(raised.value)) < 400
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def written() -> dict[str, bytes]:
    """Small valid files in each form."""
    state, forms = state_dict(small_weights()), {}
    for name, options in {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}.items():
        buffer = io.BytesIO()
        torch.save({"model": state, "epoch": 3}, buffer, **options)
        forms[name] = buffer.getvalue()
    forms["pickle"] = pickle.dumps({name: tensor.numpy() for name, tensor in state.items()}, 2)
    return forms


WRITTEN = written()


@given(form=st.sampled_from([*WRITTEN]), data=st.data())
def test_damaged_files_are_arrays_or_one_line(tmp_path_factory, form, data):
    """Of a zip archive the right ones: it has checksums."""
    path = tmp_path_factory.mktemp("damaged") / "w"
    path.write_bytes(damaged(data.draw, WRITTEN[form]))
    try:
        found, _ = load(path)
    except UserError as problem:
        assert "\n" not in str(problem)  # noqa: PT017
    else:
        if form == "zip":
            assert_trees_equal(found.params, small_weights().params)
