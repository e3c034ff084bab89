"""Downloads from a host that stalls, cuts, redirects, lies and serves; nothing leaves this machine."""

import re
import time
from pathlib import Path

import pytest

from jaxcnn import data
from jaxcnn.data import download, official
from jaxcnn.errors import UserError


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


@pytest.mark.parametrize("behaviour", ["good", "norange", "redirect", "cuts", "stalls_midway"])
def test_hosts_that_serve_in_the_end(server, forms, tmp_path, behaviour):
    start = time.monotonic()
    data.prepare(server(behaviour), tmp_path / "to")
    assert time.monotonic() - start < 9  # a stalling host lets go after 12 s
    forms.assert_same(data.load("cifar10", tmp_path / "to"))
    assert leftovers(tmp_path / "to/downloads") == []
    sent = [start for kind, start in server.requests if kind == behaviour and start]
    if behaviour in ("cuts", "stalls_midway"):
        assert len(sent) > 1
        assert int(sent[1][6:-1]) > 10_000  # resumed


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("html", "an HTML page"),
        ("wrong", "not an official file of CIFAR-10"),
        ("shorter", "not an official file of CIFAR-10"),
        ("claims", "not an official file of CIFAR-10"),
        ("longer", "ChunkedEncodingError"),
        ("dies", "ChunkedEncodingError"),
        ("nonsense", "InvalidHeader|ValueError|ChunkedEncodingError"),
        ("loop", "TooManyRedirects"),
        ("failing", "HTTP 503"),
        ("stalls", "ReadTimeout"),
    ],
)
def test_hosts_that_do_not(server, tmp_path, behaviour, reason):
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"cannot be downloaded: tried 127\.0\.0\.1:\d+ \(({reason}).*--dataset digits"
    ):
        data.prepare(server(behaviour), tmp_path / "to")
    assert time.monotonic() - start < 9
    assert all(name.endswith(".part") for name in leftovers(tmp_path / "to"))
    assert not (tmp_path / "to/cifar10").exists()


def test_address_of_a_file_and_one_that_is_not_there(server, forms, tmp_path):
    forms.assert_same(data.load("cifar10", server("good", "cifar-10-python.tar.gz")))
    with pytest.raises(UserError, match="HTTP 404"):
        data.load("cifar10", server("good", "typo.tar.gz"))
    for wrong in ("http://", "http:///x", "http://nowhere.invalid/", "http://[::bad/x.gz"):
        with pytest.raises(UserError):
            data.load("cifar10", wrong)


def test_loaded_from_an_address_once(server, forms):
    """The arrays are cached in the user's cache folder, and the second start asks no host."""
    for _ in range(2):
        forms.assert_same(data.load("cifar10", Path(server("good"))))  # pathlib makes http:/ of http://
    assert [kind for kind, start in server.requests if start] == ["good"]
    assert leftovers(Path("~/.cache").expanduser())[0].endswith(".npz")


def test_addresses_in_turn(server, forms, tmp_path, monkeypatch):
    """A dead, a failing, a lying and a breaking host, then one that resumes what the last one broke off."""
    monkeypatch.setattr(
        download, "HOSTS", ("http://127.0.0.1:9/", server("failing"), server("html"), server("dies"), server("good"))
    )
    monkeypatch.setattr(official, "ARCHIVES", {"cifar-10-python.tar.gz": official.ARCHIVES["cifar-10-python.tar.gz"]})
    data.prepare(None, tmp_path / "to")
    forms.assert_same(data.load("cifar10", tmp_path / "to"))
    transfers = [(kind, int(start[6:-1]) > 0) for kind, start in server.requests if start]
    assert transfers == [("html", False), ("dies", False), ("dies", True), ("good", True)]


def test_rest_of_another_file_is_thrown_away(server, forms, tmp_path):
    part = tmp_path / "to/downloads/cifar-10-python.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\x1f\x8bsomething else" * 100)
    data.prepare(server("good", "cifar-10-python.tar.gz"), tmp_path / "to")
    forms.assert_same(data.load("cifar10", tmp_path / "to"))


def test_host_that_cannot_go_on_sends_it_all(server, forms, tmp_path):
    part = tmp_path / "to/downloads/cifar-10-python.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(forms.python_tar.read_bytes()[:10_000])
    data.prepare(server("norange", "cifar-10-python.tar.gz"), tmp_path / "to")
    assert [start for _, start in server.requests] == [None, "bytes=10000-"]


def test_part_that_is_whole(server, forms, tmp_path):
    part = tmp_path / "to/downloads/cifar-10-python.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(forms.python_tar.read_bytes())
    data.prepare(server("good", "cifar-10-python.tar.gz"), tmp_path / "to")
    assert leftovers(tmp_path / "to/downloads") == []


def test_slow_host_is_left_for_another_and_taken_where_it_is_the_last(server, forms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "SLOW", 10_000_000)
    slow, good = (server(kind, "cifar-10-binary.tar.gz") for kind in ("slow", "good"))
    download.fetch([(slow,), (good,)], tmp_path)
    assert next(request for request in server.requests if request[1]) == ("slow", "bytes=0-")
    assert server.requests[-1][0] == "good"
    assert int(server.requests[-1][1][6:-1]) > 0
    assert re.search(r"  only [\d,]+ kB/s, \d+ minutes more; going on with 127", capsys.readouterr().err)
    server.requests.clear()
    download.fetch([(slow,), (server("dies", "cifar-10-binary.tar.gz"),)], tmp_path)
    assert server.requests[-1][0] == "slow"


def test_own_mirror_comes_first(server, forms, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCNN_CIFAR10_MIRROR", server("good").rstrip("/"))
    forms.assert_same(data.load("cifar10"))  # nothing at hand: it downloads into the default folder
    assert (Path("~/tensorflow_datasets/cifar10/3.0.2").expanduser() / "dataset_info.json").exists()
    data.prepare(None, tmp_path / "flag", mirror=server("redirect"))
    assert server.requests[-2][0] == "redirect"
    with pytest.raises(UserError, match="not an http:// or https:// address: ftp://x"):
        data.prepare(None, tmp_path / "ftp", mirror="ftp://x")


def test_hub_gives_two_files_from_another_host(server, forms, tmp_path, monkeypatch, capsys):
    """Both are resumed when broken off, and neither is read if one is not the official one."""
    monkeypatch.setenv("HF_ENDPOINT", server("elsewhere"))
    data.prepare(None, tmp_path / "to")
    forms.assert_same(data.load("cifar10", tmp_path / "to"))
    assert leftovers(tmp_path / "to/downloads") == []
    assert {start for _, start in server.requests} >= {None, "bytes=0-"}
    assert sum(kind == "cuts" for kind, _ in server.requests) > 4
    said = capsys.readouterr().err
    assert "elsewhere//" not in said
    assert "datasets/uoft-cs/cifar10/resolve/main/plain_text/test-00000-of-00001.parquet from byte " in said
    assert "CIFAR-10, the official pixels; " in said
    (forms.parquet / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(UserError, match=r"not an official file of CIFAR-10 \(sha256 "):
        data.prepare(server("good", "datasets/uoft-cs/cifar10"), tmp_path / "more")
    assert leftovers(tmp_path / "more") == []


def test_proxy_of_the_environment(server, forms, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server("unused"))
    monkeypatch.delenv("no_proxy", raising=False)
    data.prepare("http://cifar.example/good/cifar-10-binary.tar.gz", tmp_path / "to")
    assert [kind for kind, _ in server.requests] == ["good", "good"]


def test_modified_archive_from_an_address(server, forms, tmp_path):
    forms.tar(forms.python_tar.parent / "mine.tar.gz", forms.python)
    (forms.python_tar.parent / "mine.tar.gz").write_bytes(forms.python_tar.read_bytes() + bytes(512))
    with pytest.raises(UserError, match="not an official"):
        data.prepare(server("good", "mine.tar.gz"), tmp_path / "to")
    address = server("cuts", "mine.tar.gz")
    part = tmp_path / "to/downloads" / "mine.tar.gz.part"
    part.write_bytes(b"\x1f\x8bof an earlier file at this address")
    data.prepare(address, tmp_path / "to", allow_modified=True)
    forms.assert_same(data.load("cifar10", tmp_path / "to"))


def test_offline_says_what_was_tried_and_three_ways_on(tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        data.load("cifar10")
    assert time.monotonic() - start < 9
    message = str(caught.value)
    assert message.count("127.0.0.1:9 (ConnectionError)") == 1
    assert all(way in message for way in ("--data-dir", "--from", "MIRROR", "--dataset digits"))


def test_real_limits_keep_offline_under_fifteen_seconds():
    import importlib.util

    spec = importlib.util.find_spec("jaxcnn.data.download")
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.PROBE <= 12
    assert all(host.startswith("https://") and host.endswith("/") for host in fresh.HOSTS)
