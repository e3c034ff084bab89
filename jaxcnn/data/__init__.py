"""Data sets as uint8 arrays in memory: CIFAR-10 from any of its forms, scikit-learn's digits, your own pictures."""

import os
import re
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from jaxcnn.data import digits, identity, official, search, storage, tfds_folder
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.data.folder import FORM, load_folder
from jaxcnn.errors import UserError, os_errors
from jaxcnn.paths import at_home, user_cache
from jaxcnn.progress import say

__all__ = ["Dataset", "Split", "load", "prepare"]

Place = str | os.PathLike[str]
CHECK_DISK = "check its permissions and its disk, or name another place"


def load(name: str, data_dir: Place | None = None) -> Dataset:
    """Return a data set, images uint8 [n, 32, 32, 3]. Raise UserError if it is missing, damaged or another.

    name: `cifar10`, `digits`, or `folder`, for your own pictures in `data_dir`.
    data_dir: where CIFAR-10 is: a folder that holds it in any form listed in docs/files.md, an archive, or an address.
    The default is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`. If CIFAR-10 is not there, it is downloaded into it.
    """
    if name == "folder":
        if data_dir is None:
            raise UserError("no folder is named", "--dataset folder", f"add --data-dir DIR: {FORM}")
        with os_errors("{}", CHECK_DISK):
            return load_folder(at_home(data_dir).resolve())
    if name == "digits":
        return digits.load_digits()
    if name != "cifar10":
        raise UserError(f"no data set {name!r}", "--dataset", "there are cifar10, digits and folder")
    with os_errors("{}", CHECK_DISK):
        source = search.in_default(default_dir()) if data_dir is None else find(data_dir)
        source = source or search.in_folder(prepare(None))
        if isinstance(source, str):
            address = source
            return storage.cached(name, address, lambda: _downloaded(_offers(address), user_cache()))
        return storage.cached(name, source.place, partial(source.read, False), source.files)


def prepare(
    source: Place | None, data_dir: Place | None = None, allow_modified: bool = False, mirror: str | None = None
) -> Path:
    """Write CIFAR-10 to `data_dir/cifar10/3.0.2` for tensorflow-datasets, whole or not at all; return that folder.

    source: what `load` takes, or None to download it, first from `mirror` or `$JAXCNN_CIFAR10_MIRROR`.
    allow_modified: whether to take an archive without the official checksum, and classes with other numbers of images
    than CIFAR-10's.
    Raise UserError for the same reasons as `load`.
    """
    with os_errors("{}", CHECK_DISK):
        origin = None if source is None else find(source)
        offers = [] if isinstance(origin, search.Source) else _offers(origin, mirror)
        folder = default_dir() if data_dir is None else at_home(data_dir)
        version = folder / "cifar10" / tfds_folder.VERSION
        folder.mkdir(parents=True, exist_ok=True)
        with storage.lock(folder / ".cifar10.lock"):
            if (version / "dataset_info.json").is_file():
                say(f"already there, and left as it is: {version}")
                say(identity.description(load("cifar10", version)))
                return version
            # 150 MB of shards, 184 of decoded images, 170 of an archive if it is downloaded
            storage.require_space(folder, megabytes=600)
            if isinstance(origin, search.Source):
                data = origin.read(allow_modified)
            else:
                data = _downloaded(offers, folder / "downloads", allow_modified)
            tfds_folder.write(data, version)
            storage.cached("cifar10", version, lambda: data)
    return version


def default_dir() -> Path:
    """Return `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as tensorflow-datasets does."""
    return at_home(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def find(source: Place) -> search.Source | str:
    """Return CIFAR-10 at or under a path, or an address. Raise UserError if there is none."""
    text = str(source)
    if match := re.match(r"(https?):/+(.+)", text):  # pathlib turns two slashes into one
        return f"{match[1]}://{match[2]}"
    local = url2pathname(urlsplit(text).path) if text.startswith("file:") else text
    path = at_home(local).resolve()
    if not path.is_file() and not path.is_dir():
        raise UserError("no such file or folder", path, official.OTHER_SOURCES)
    return search.in_folder(path) if path.is_dir() else search.in_file(path)


def _offers(address: str | None, mirror: str | None = None) -> list[tuple[str, ...]]:
    """Return the addresses to try, each a tuple of the addresses of all files needed from there."""
    from jaxcnn.data import download  # here, since it imports requests

    return download.expand(address) if address else download.default_offers(mirror)


def _downloaded(offers: list[tuple[str, ...]], downloads: Path, allow_modified: bool = False) -> Dataset:
    """Return the data set from the first of several offers that has it."""
    from jaxcnn.data import download

    downloads.mkdir(parents=True, exist_ok=True)
    with storage.lock(downloads / ".cifar10.lock"):
        storage.require_space(downloads, megabytes=200)
        return download.fetch(offers, downloads, allow_modified)
