"""Data sets as uint8 arrays in memory: CIFAR-10 from any of its forms, scikit-learn's digits, one's own pictures."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from jaxcnn.data import digits, official, storage, tfds_folder
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.data.folder import FORM, load_folder
from jaxcnn.errors import UserError, os_errors
from jaxcnn.progress import say

__all__ = ["Dataset", "Split", "load", "prepare"]

Place = str | os.PathLike[str]
CHECK_DISK = "check its permissions and its disk, or name another place"


def load(name: str, data_dir: Place | None = None) -> Dataset:
    """Return a data set, images uint8 [n, 32, 32, 3]. Raise UserError if it is missing, damaged or another.

    name: `cifar10`, `digits`, or `folder`, of pictures of one's own in `data_dir`.
    data_dir: where CIFAR-10 is: a tensorflow-datasets folder, an official archive, its extracted folder, the folder
    above, or an address of one. The default is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`. If CIFAR-10 is not in
    the default folder, it is downloaded into it.
    """
    if name == "folder":
        if data_dir is None:
            raise UserError("no folder is named", "--dataset folder", f"add --data-dir DIR: {FORM}")
        with os_errors("{}", CHECK_DISK):
            return load_folder(Path(data_dir).expanduser().resolve())
    if name == "digits":
        return digits.load_digits()
    if name != "cifar10":
        raise UserError(f"no data set {name!r}", "--dataset", "there are cifar10, digits and folder")
    with os_errors("{}", CHECK_DISK):
        source = (_find_in(default_dir()) or prepare(None)) if data_dir is None else find(data_dir)
        return storage.cached(name, source, lambda: _read(_origin(source), storage.user_cache()))


def prepare(
    source: Place | None, data_dir: Place | None = None, allow_modified: bool = False, mirror: str | None = None
) -> Path:
    """Write CIFAR-10 to `data_dir/cifar10/3.0.2` for tensorflow-datasets, whole or not at all; return that folder.

    source: what `load` takes, or None to download it, first from `mirror` or `$JAXCNN_CIFAR10_MIRROR`.
    allow_modified: whether to take an archive whose checksum is not the official one.
    Raise UserError for the same reasons as `load`.
    """
    with os_errors("{}", CHECK_DISK):
        origin = _origin(None if source is None else find(source), mirror)
        folder = default_dir() if data_dir is None else Path(data_dir).expanduser()
        version = folder / "cifar10" / tfds_folder.VERSION
        folder.mkdir(parents=True, exist_ok=True)
        with storage.lock(folder / ".cifar10.lock"):
            if (version / "dataset_info.json").is_file():
                say(f"already there, and left as it is: {version}")
                return version
            # 150 MB of shards, 184 of decoded images, 170 of an archive if it is downloaded
            storage.require_space(folder, megabytes=600)
            data = _read(origin, folder / "downloads", allow_modified)
            tfds_folder.write(data, version)
            storage.cached("cifar10", version, lambda: data)
    return version


def default_dir() -> Path:
    """Return `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, as tensorflow-datasets does."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(source: Place) -> Path | str:
    """Return the file or folder of CIFAR-10 at or under a path, or an address. Raise UserError if there is none."""
    text = str(source)
    if match := re.match(r"(https?):/+(.+)", text):  # pathlib turns two slashes into one
        return f"{match[1]}://{match[2]}"
    local = url2pathname(urlsplit(text).path) if text.startswith("file:") else text
    path = Path(local).expanduser().resolve()
    if found := path if path.is_file() else _find_in(path):
        return found
    what = "no CIFAR-10 in this folder" if path.exists() else "no such file or folder"
    raise UserError(what, path, official.OTHER_SOURCES)


def _find_in(folder: Path) -> Path | None:
    if version := tfds_folder.find(folder):
        return version
    for batches in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        if any((batches / (name + suffix)).is_file() for name in official.BATCHES for suffix in ("", ".bin")):
            return batches
    return next((folder / name for name in official.ARCHIVES if (folder / name).is_file()), None)


def _origin(source: Path | str | None, mirror: str | None = None) -> Path | list[str]:
    """Return a path as it is, and for an address or None the addresses to try."""
    if isinstance(source, Path):
        return source
    from jaxcnn.data import download  # here, since it imports requests

    return download.expand(source) if source else download.default_addresses(mirror)


def _read(origin: Path | list[str], downloads: Path, allow_modified: bool = False) -> Dataset:
    """Return the data set in a file or a folder, or at the first of several addresses that gives it."""
    if isinstance(origin, Path):
        if origin.is_file():
            return official.read_archive(origin, allow_modified)
        return tfds_folder.read(origin) if tfds_folder.find(origin) == origin else official.read_folder(origin)
    from jaxcnn.data import download

    downloads.mkdir(parents=True, exist_ok=True)
    with storage.lock(downloads / ".cifar10.lock"):
        storage.require_space(downloads, megabytes=200)
        archive = download.fetch(origin, downloads, allow_modified)
        data = official.read_archive(archive, allow_modified)
        archive.unlink()
    return data
