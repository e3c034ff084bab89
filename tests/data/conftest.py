"""Every form of CIFAR-10 with ten images a batch, made without the code under test; a server that misbehaves."""

import contextlib
import copy
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jaxcnn import data
from jaxcnn.data import download, official, tfds_folder

N = 10  # images a batch


def pickled(labels: list[int], pixels: bytes, name: str = "a batch", dtype: bytes = b"u1") -> bytes:
    """The opcodes of the official files (Python 2, protocol 2), which Python 3's pickle cannot write."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n"
        + text(dtype)
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"J" + struct.pack("<i", len(pixels) // 3072) + b"M\x00\x0c\x86"
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    return (
        b"\x80\x02}q\x02(" + text(b"batch_label") + text(name.encode())
        + text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + text(b"data") + array + state + text(b"filenames") + b"](" + text(b"horse.png") * len(labels) + b"eu."
    )  # fmt: skip


def crc32c(data: bytes) -> int:
    """TFRecord's masked CRC-32C, bit by bit as in its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class Forms:
    """One random CIFAR-10 in every form, under one folder."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (6 * N, 32, 32, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 10, 6 * N, dtype=np.uint8)
        self.python, self.binary = root / "py/cifar-10-batches-py", root / "bin/cifar-10-batches-bin"
        self.python.mkdir(parents=True)
        self.binary.mkdir(parents=True)
        for batch, name in enumerate(official.BATCHES):
            rows = slice(batch * N, (batch + 1) * N)
            planes = self.images[rows].transpose(0, 3, 1, 2).reshape(N, -1)
            (self.python / name).write_bytes(pickled(self.labels[rows].tolist(), planes.tobytes(), name))
            (self.binary / f"{name}.bin").write_bytes(np.insert(planes, 0, self.labels[rows], axis=1).tobytes())
        # As in the official archives: other files, and the batches in no order.
        self.python_tar = self.tar(root / "cifar-10-python.tar.gz", self.python)
        self.binary_tar = self.tar(root / "cifar-10-binary.tar.gz", self.binary)
        self.array_record, self.tfrecord = root / "array_record", root / "tfrecord"
        tfds_folder.write(official.dataset(self.images, self.labels), self.array_record / "cifar10/3.0.2")
        self.rewrite_as_tfrecord(self.array_record / "cifar10/3.0.2", self.tfrecord / "cifar10/3.0.2")

    def tar(self, path: Path, folder: Path) -> Path:
        members = {f"{folder.name}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())[::-1]}
        return make_tar(path, {f"{folder.name}/readme.html": b"<html>", **members})

    def rewrite_as_tfrecord(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix in (".json", ".txt"):
                (target / file.name).write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
        for split in ("train", "test"):
            records = tfds_folder._array_records(source / f"cifar10-{split}.array_record-00000-of-00001")
            with (target / f"cifar10-{split}.tfrecord-00000-of-00001").open("wb") as file:
                for record in records:
                    head = struct.pack("<Q", len(record))
                    file.write(head + struct.pack("<I", crc32c(head)) + record + struct.pack("<I", crc32c(record)))

    def all(self) -> dict[str, Path]:
        return {name: path for name, path in vars(self).items() if isinstance(path, Path)}

    def assert_same(self, data) -> None:
        assert (data.name, data.class_names[7]) == ("cifar10", "horse")
        np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]), self.images)
        np.testing.assert_array_equal(np.concatenate([data.train.labels, data.test.labels]), self.labels)
        assert data.train.ids[7] == "train_00007"
        assert data.test.ids == [f"test_{i:05d}" for i in range(N)]


@pytest.fixture(scope="session", autouse=True)
def _small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "PER_BATCH", N)
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, _small_batches) -> Forms:
    """All forms, which no test may change."""
    return Forms(tmp_path_factory.mktemp("forms"))


@pytest.fixture
def forms(made: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forms:
    """A test's own copy of all forms, whose archives count as official. Home, cache and network are empty."""
    root = made.python_tar.parent
    shutil.copytree(root, tmp_path / "forms")
    mine = copy.copy(made)
    for name, path in made.all().items():
        setattr(mine, name, tmp_path / "forms" / path.relative_to(root))
    for path in (mine.python_tar, mine.binary_tar):
        entry = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        monkeypatch.setitem(official.ARCHIVES, path.name, entry)
    return mine


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.delenv("JAXCNN_CIFAR10_MIRROR", raising=False)
    monkeypatch.setattr(download, "HOSTS", ("http://127.0.0.1:9/", "http://127.0.0.1:9/mirror/"))
    for name, seconds in {"CONNECT": 1, "STALL": 1, "PROBE": 3, "PATIENCE": 0.3}.items():
        monkeypatch.setattr(download, name, seconds)


class Handler(BaseHTTPRequestHandler):
    """`/<behaviour>/<file>`: serves a file of the server's folder, well or badly."""

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        _, behaviour, name = self.path.split("/")
        self.server.requests.append((behaviour, self.headers["Range"]))
        body = (self.server.folder / name).read_bytes() if (self.server.folder / name).is_file() else None
        if body is None:
            return self.send_error(404)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, behaviour)(body, int((self.headers["Range"] or "bytes=0-")[6:-1]), name)

    def answer(self, body: bytes, start: int = 0, length: int | None = None, status: int | None = None) -> None:
        if length is None and start and start >= len(body):
            return self.send_error(416)
        self.send_response(status or (206 if start else 200))
        self.send_header("Content-Length", str(len(body) - start if length is None else length))
        self.end_headers()
        self.wfile.write(body[start:])

    def good(self, body, start, name):
        self.answer(body, start)

    def norange(self, body, start, name):
        self.answer(body)

    def redirect(self, body, start, name):
        self.send_response(302)
        self.send_header("Location", f"/good/{name}")
        self.end_headers()

    def loop(self, body, start, name):
        self.send_response(302)
        self.send_header("Location", f"/loop/{name}")
        self.end_headers()

    def cuts(self, body, start, name):
        """Breaks off each answer after a third of the file."""
        self.answer(body[: start + len(body) // 3], start, length=len(body) - start)

    def dies(self, body, start, name):
        """Gives the first third and nothing more, ever."""
        self.answer(body[: max(start, len(body) // 3)], start, length=len(body) - start)

    def claims(self, body, start, name):
        """Gives the first third, and then says that there is no more."""
        self.send_error(416) if start else self.dies(body, start, name)

    def stalls(self, body, start, name):
        time.sleep(12)

    def stalls_midway(self, body, start, name):
        if start:
            return self.answer(body, start)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        time.sleep(12)

    def slow(self, body, start, name):
        """Whole in the end, at about 100 kB/s."""
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        for i in range(start, len(body), 10_000):
            self.wfile.write(body[i : i + 10_000])
            self.wfile.flush()
            time.sleep(0.1)

    def html(self, body, start, name):
        self.answer(b"<!DOCTYPE html><html>Please log in</html>" * 20)

    def wrong(self, body, start, name):
        self.answer(body[:-1] + bytes([body[-1] ^ 1]), start)

    def longer(self, body, start, name):
        self.answer(body, start, length=len(body) - start + 1000)

    def shorter(self, body, start, name):
        self.answer(body[: len(body) // 2], start if start < len(body) // 2 else 0)

    def nonsense(self, body, start, name):
        self.send_response(200)
        self.send_header("Content-Length", "many")
        self.end_headers()
        self.wfile.write(body)

    def failing(self, body, start, name):
        self.send_error(503)


@pytest.fixture
def server(forms: Forms):
    """A local host that misbehaves as asked: `server(behaviour)` is a folder's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        host.daemon_threads = True
        host.block_on_close = False
        host.folder, host.requests = forms.python_tar.parent, []
        threading.Thread(target=host.serve_forever, args=[0.02], daemon=True).start()

        def address(behaviour: str, name: str = "") -> str:
            return f"http://127.0.0.1:{host.server_port}/{behaviour}/{name}"

        address.requests = host.requests
        yield address
        host.shutdown()


@pytest.fixture
def readonly(tmp_path_factory: pytest.TempPathFactory):
    """Make folders read-only for this process, even for root, which acts as `nobody` until the test ends."""
    uid = os.geteuid()

    def make(*folders: Path) -> None:
        for folder in folders:
            for path in [*folder.rglob("*"), folder]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            for path in folder.parents:
                if uid == 0 and path != Path("/"):
                    path.chmod(path.stat().st_mode | 0o055)
        if uid == 0:
            os.seteuid(65534)

    yield make
    os.seteuid(uid)


@pytest.fixture
def process():
    """Start Python code in another process, with `data` and its modules imported and the small batches."""
    # The package's own __init__ takes a second for JAX, which the data room does without.
    start = "import os, sys, types; sys.modules['jaxcnn'] = types.ModuleType('jaxcnn')\n"
    start += f"sys.modules['jaxcnn'].__path__ = [{str(Path(data.__file__).parents[1])!r}]\n"
    start += "from jaxcnn import data; from jaxcnn.data import official, storage, tfds_folder\n"
    start += f"official.PER_BATCH = {N}\n"
    running = []

    def run(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", start + code]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield run
    for child in running:
        child.kill()
        child.communicate()
