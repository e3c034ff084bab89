"""Data sets as uint8 arrays in memory: CIFAR-10 from whatever form it is found in, and scikit-learn's digits."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from jaxcnn.data import download, official, storage, tfds_folder
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError, os_errors
from jaxcnn.progress import say

__all__ = ["Dataset", "Split", "load", "prepare"]

TODO = "look after its rights and its disk, or name another place"


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set `cifar10` or `digits`: images uint8 [n, 32, 32, 3], labels uint8 [n], rows in the order of ids.

    CIFAR-10 is taken from `data_dir`: a tensorflow-datasets folder, an official archive, its extracted folder, the
    folder above, or an address of one. Without it, from `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`, into which
    it is downloaded where it is not there yet. UserError for anything that is missing, damaged or not CIFAR-10.
    """
    if name == "digits":
        from jaxcnn.data.digits import load_digits

        return load_digits()
    if name != "cifar10":
        raise UserError(f"no data set {name!r}", "--dataset", "there are cifar10 and digits")
    with os_errors("{}", TODO):
        source = (_find_in(default_dir()) or prepare(None)) if data_dir is None else find(data_dir)
        return storage.cached(source, lambda: _read(source, storage.user_cache(), allow_modified=False))


def prepare(
    source: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str] | None = None,
    allow_modified: bool = False,
    mirror: str | None = None,
) -> Path:
    """Make `data_dir/cifar10/3.0.2` for tensorflow-datasets, all of it or nothing, and return that folder.

    source: what `load` takes, or None to download (from `mirror` or `$JAXCNN_CIFAR10_MIRROR` first).
    allow_modified: take an archive whose checksum is not the official one.  UserError as for `load`.
    """
    with os_errors("{}", TODO):
        found = download.default_addresses(mirror) if source is None else find(source)
        folder = default_dir() if data_dir is None else Path(data_dir).expanduser()
        version = folder / "cifar10" / tfds_folder.VERSION
        folder.mkdir(parents=True, exist_ok=True)
        with storage.lock(folder / ".cifar10.lock"):
            if (version / "dataset_info.json").is_file():
                say(f"already there, and left as it is: {version}")
                return version
            # 150 MB of shards, 184 of decoded images, 170 of an archive where it is downloaded
            storage.require_space(folder, megabytes=600)
            data = _read(found, folder / "downloads", allow_modified)
            tfds_folder.write(data, version)
            storage.cached(version, lambda: data)
    return version


def default_dir() -> Path:
    """`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`: where tensorflow-datasets looks, too."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(source: str | os.PathLike[str]) -> Path | str:
    """A file or folder with CIFAR-10 at or under a path, or an address; UserError where there is nothing of it."""
    text = str(source)
    if match := re.match(r"(https?):/+(.+)", text):  # pathlib makes one slash of two
        return f"{match[1]}://{match[2]}"
    local = url2pathname(urlsplit(text).path) if text.startswith("file:") else text
    path = Path(local).expanduser().resolve()
    if not path.exists():
        raise UserError("no such file or folder", path, download.WAYS_ON)
    if found := path if path.is_file() else _find_in(path):
        return found
    raise UserError("no CIFAR-10 in this folder", path, download.WAYS_ON)


def _find_in(folder: Path) -> Path | None:
    if version := tfds_folder.find(folder):
        return version
    for batches in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        if any((batches / (name + suffix)).is_file() for name in official.BATCHES for suffix in ("", ".bin")):
            return batches
    return next((folder / name for name in official.ARCHIVES if (folder / name).is_file()), None)


def _read(source: Path | str | list[str], downloads: Path, allow_modified: bool) -> Dataset:
    """A file, a folder, or what an address (or the first good one of some) gives."""
    if isinstance(source, Path) and source.is_file():
        return official.read_archive(source, allow_modified)
    if isinstance(source, Path):
        return tfds_folder.read(source) if tfds_folder.find(source) == source else official.read_folder(source)
    downloads.mkdir(parents=True, exist_ok=True)
    with storage.lock(downloads / ".cifar10.lock"):
        storage.require_space(downloads, megabytes=200)
        addresses = download.expand(source) if isinstance(source, str) else source
        archive = download.fetch(addresses, downloads, allow_modified)
        data = official.read_archive(archive, allow_modified)
        archive.unlink()
    return data
