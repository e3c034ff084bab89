"""A test's own CIFAR-10 in every form, and home; a server that misbehaves; other processes."""

import contextlib
import copy
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from jaxcnn import data
from jaxcnn.data import download, identity, official
from tests.data.forms import Forms, N


@pytest.fixture(scope="session", autouse=True)
def _small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "PER_BATCH", N)
        yield


def squares(image: np.ndarray) -> str:
    grey = image.astype(int).sum(2)
    means = grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]
    return np.packbits(np.diff(means, axis=1) > 0).tobytes().hex()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, _small_batches):
    """All forms, which no test may change, and whose labels are the original's."""
    forms = Forms(tmp_path_factory.mktemp("forms"))
    labels = forms.labels.astype(np.int64)
    known = tuple(hashlib.sha256(part.tobytes()).hexdigest() for part in (labels[: 5 * N], labels[5 * N :]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "LABELS", known)
        patch.setattr(identity, "SQUARES", squares(forms.images[7]))
        yield forms


@pytest.fixture
def forms(made: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forms:
    """A test's own copy of all forms, whose archives count as official. Home, cache and network are empty."""
    root = made.python_tar.parent
    shutil.copytree(root, tmp_path / "forms")
    mine = copy.copy(made)
    for name, path in made.all().items():
        setattr(mine, name, tmp_path / "forms" / path.relative_to(root))
    archives = [mine.python_tar, mine.binary_tar]
    for path in (*archives, *mine.parquet.iterdir()):
        entry = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        monkeypatch.setitem(official.ARCHIVES if path in archives else official.PARQUET, path.name, entry)
    return mine


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.delenv("JAXCNN_CIFAR10_MIRROR", raising=False)
    monkeypatch.setattr(download, "HOSTS", ("http://127.0.0.1:9/", "http://127.0.0.1:9/mirror/"))
    monkeypatch.setattr(download, "RAY", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name, seconds in {"CONNECT": 1, "STALL": 1, "PROBE": 3, "PATIENCE": 0.3}.items():
        monkeypatch.setattr(download, name, seconds)


class Handler(BaseHTTPRequestHandler):
    """`/<behaviour>/.../<file>`: serves a file of the server's folder or of those below, well or badly."""

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        _, behaviour, *_, name = urlsplit(self.path).path.split("/")  # a proxy is given the host, too
        self.server.requests.append((behaviour, self.headers["Range"]))
        body = next((file.read_bytes() for file in self.server.folder.rglob(name or "none")), None)
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

    def elsewhere(self, body, start, name):
        """Sends on to another host, as the hub does."""
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/cuts/{name}?signed=1")
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
    start += "from jaxcnn import data; from jaxcnn.data import batches, official, storage, tfds_folder\n"
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


def picture(seed: int, width: int = 9, height: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of one's own pictures."""
    return tmp_path / "mine"


@pytest.fixture
def fill(root: Path):
    """Write pictures of their own colours to `root/PATH/0.png`, ..., `count` to each path."""
    seeds = iter(range(10_000))

    def write(*paths, count=5):
        for path in paths:
            (root / path).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(next(seeds)).save(root / path / f"{i}.png")

    return write
