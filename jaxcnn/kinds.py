"""What a file is, by its first bytes: an error for a wrong file says what it is and what to do."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxcnn.errors import UserError

HEAD = 4096  # bytes
# safetensors: the length of a JSON object, then that object. torch.save before 1.6: a pickled number of its own.
SAFETENSORS = re.compile(rb".{4}\0{4}\{", re.DOTALL)
TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# Protocols 2 to 5, 1, 0.
PICKLED = re.compile(rb"\x80[\x02-\x05]|[]}]q|\([dl]p\d|c[a-zA-Z_][\w.]*\n\w+\n(p\d|[()q])")
# flax.serialization writes a map whose keys are strings.
MSGPACK = re.compile(rb"([\x81-\x8f]|\xde..|\xdf.{4})[\xa1-\xbf][\w ./-]+", re.DOTALL)
ONNX = re.compile(rb"\x08[\x01-\x20]\x12.(pytorch|tf2onnx|keras|skl2onnx|onnx|jax)", re.DOTALL)
UNPACK = "unpack it, and name the file in it"
FROM_ITS_PROGRAM = "read it with the program that wrote it, and save the state_dict or a .safetensors"
COPY = "get another copy"


class Kind(NamedTuple):
    """What a file is, with its article, and what to do if that is not what is needed."""

    name: str
    todo: str


PYTORCH = Kind("a PyTorch file", "read it with parity.load_weights, or scripts/convert.py makes a .safetensors of it")
TORCHSCRIPT = Kind("a TorchScript archive", PYTORCH.todo)
ARRAYS = Kind("a safetensors file", "name it as weights")
ZIP = Kind("a zip archive", UNPACK)
PICKLE = Kind("a pickle", PYTORCH.todo)
BATCH = Kind("one batch of CIFAR-10", "name the folder of all six")
CIFAR_100 = Kind("CIFAR-100", "take CIFAR-10")
EMPTY = Kind("an empty file", COPY)
PAGE = Kind("an HTML page", "download the file itself, not the page about it")
LFS = Kind("a Git LFS pointer in place of the file", "run git lfs pull where it is from")
IN_PLACE = (EMPTY, PAGE, LFS)  # of the file that was meant
PICTURE = "name it as a picture"
# A label or two and the pixels of an image, 10,000 or 50,000 times.
BINARY = {30_730_000: BATCH, 30_740_000: CIFAR_100, 153_700_000: CIFAR_100}
MAGIC = {
    b"version https://git-lfs": LFS,
    TORCH_LEGACY: PYTORCH,
    b"\x93NUMPY": Kind("a NumPy array", "an array has no names: save the state_dict or a .safetensors"),
    b"\x89HDF\r\n\x1a\n": Kind("an HDF5 file (Keras or MATLAB 7.3)", FROM_ITS_PROGRAM),
    b"MATLAB 5.0 MAT-file": Kind("a MATLAB file", "name the folder of all of CIFAR-10's"),
    b"PAR1": Kind("a parquet file", "name the folder of train and test"),
    b"ARROW1": Kind("an Arrow file", "name the folder of train and test"),
    b"\xff\xff\xff\xff": Kind("an Arrow stream", "name the folder of train and test"),
    b"\x1f\x8b": Kind("a gzip archive", UNPACK),
    b"BZh": Kind("a bzip2 archive", UNPACK),
    b"\xfd7zXZ\0": Kind("an xz archive", UNPACK),
    b"7z\xbc\xaf'\x1c": Kind("a 7z archive", UNPACK),
    b"Rar!": Kind("a RAR archive", UNPACK),
    b"\xff\xd8\xff": Kind("a JPEG picture", PICTURE),
    b"\x89PNG": Kind("a PNG picture", PICTURE),
    b"GIF8": Kind("a GIF picture", PICTURE),
    b"%PDF": Kind("a PDF document", "name the file itself"),
}


def kind_of(file: Path | bytes) -> Kind | None:
    """Tell what a file is, None if its first bytes say nothing. Raise OSError if it cannot be read."""
    with _opened(file) as opened:
        head = opened.read(HEAD)
    return next(_kinds(head, file), None)


def _opened(file: Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def _kinds(head: bytes, file: Path | bytes) -> Iterator[Kind]:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        yield EMPTY
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        yield PAGE
    yield from (kind for magic, kind in MAGIC.items() if head.startswith(magic))
    if head.startswith(b"PK\x03\x04"):
        yield _kind_of_zip(file)
    if SAFETENSORS.match(head):
        yield ARRAYS
    if head[257:262] == b"ustar":
        yield Kind("a tar archive", UNPACK)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        yield Kind("a HEIC photograph", "save it as JPEG or PNG first")
    if PICKLED.match(head):
        yield _kind_of_pickle(file)
    if ONNX.match(head) or (isinstance(file, Path) and file.suffix == ".onnx"):
        yield Kind("an ONNX model", FROM_ITS_PROGRAM)
    if MSGPACK.match(head):
        yield Kind("a msgpack file of Flax", "restore it with flax.serialization, and save a .safetensors of it")
    if start.startswith((b"{", b"[")):
        yield Kind("a JSON file", "name the file of the arrays, or the folder of both")
    with _opened(file) as opened:
        size = opened.seek(0, io.SEEK_END)
    yield from (kind for bytes_, kind in BINARY.items() if size == bytes_)


def _kind_of_zip(file: Path | bytes) -> Kind:
    try:
        with _opened(file) as opened, zipfile.ZipFile(opened) as archive:
            names = archive.namelist()
    except Exception:  # a damaged one can raise anything
        return Kind("a cut or damaged zip archive", COPY)
    last = {Path(name).name for name in names}
    if "data.pkl" in last:
        return TORCHSCRIPT if "constants.pkl" in last else PYTORCH
    if names and all(name.endswith(".npy") for name in names):
        return Kind("a NumPy archive", FROM_ITS_PROGRAM)
    return Kind("a Keras model", FROM_ITS_PROGRAM) if "model.weights.h5" in last else ZIP


def _kind_of_pickle(file: Path | bytes) -> Kind:
    with _opened(file) as opened:
        content = opened.read(200_000_000)
    if b"joblib.numpy_pickle" in content:
        return Kind("a joblib file", FROM_ITS_PROGRAM)
    if b"fine_label" in content:
        return CIFAR_100
    if b"label_names" in content and b"num_vis" in content:
        return Kind("CIFAR-10's batches.meta, which holds no images", BATCH.todo)
    return BATCH if b"batch_label" in content else PICKLE


def unlike(path: Path, wanted: str, fallback: UserError) -> UserError:
    """Make the error for a file that is not what is wanted: what it is if that is known, else `fallback`."""
    kind = kind_of(path)
    return UserError(f"{kind.name}, not {wanted}", path, kind.todo) if kind else fallback
