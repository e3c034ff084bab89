"""Find CIFAR-10 in a folder, some levels below it, or in an archive; else say what is there instead."""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxcnn import kinds
from jaxcnn.data import batches, classes, identity, official, places, storage, tables, tfds_folder
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.folder import natural
from jaxcnn.data.places import Found, Tree
from jaxcnn.errors import UserError

SHOWN = 5  # of the files that are there instead
FORMS = (batches.find, tfds_folder.find, tables.find, classes.find)
LOOKED_FOR = "batches, parquet or arrow files, a tensorflow-datasets folder, folders of classes, or an archive of these"
TODO = "name another, download it (prepare_data.py without --from), or add --dataset folder for your own pictures"


class Source(NamedTuple):
    """CIFAR-10 that was found: where, in which files, and how to read it; `allow_modified` as in `prepare`."""

    place: Path
    files: list[Path]
    read: Callable[[bool], Dataset]


def in_folder(folder: Path) -> Source:
    """Find CIFAR-10 in a folder: a complete set if there is one, else an archive. Raise UserError if there is none."""
    tree = places.listed(folder)
    found = _best(tree)
    if (not found or found.lacks) and (archive := _archive(tree)):
        return _of_archive(archive)
    found = _checked(found, tree, "folder")
    return Source(folder / found.folder, [folder / name for name in sorted(found.names)], partial(_read, tree, found))


def in_default(folder: Path) -> Source | None:
    """Find CIFAR-10 in the default folder, which need not be there or hold it."""
    try:
        return in_folder(folder.resolve()) if folder.is_dir() else None
    except UserError:
        return None


def in_file(path: Path) -> Source:
    """Open a file as an archive of CIFAR-10. Raise UserError that says what it is otherwise."""
    kind = kinds.kind_of(path)
    if places.is_archive(places.head(path)) and (not kind or kind.todo == kinds.UNPACK):
        return _of_archive(path)
    whole = _best(places.listed(path.parent))
    if whole and not whole.lacks and path in (files := [path.parent / name for name in whole.names]):
        what = f"{kind.name if kind else 'a file'}, 1 of {len(files):,} that are CIFAR-10"
        raise UserError(what, path, f"name its folder, {path.parent / whole.folder}")
    error = kinds.unlike(path, "CIFAR-10", UserError("not CIFAR-10 in any known form", path, TODO))
    of_other_use = any(use in error.todo for use in ("weights", "safetensors", "picture"))
    raise UserError(error.what, path, TODO if of_other_use else error.todo)


def in_parts(parts: dict[str, Path], where: Path, allow_modified: bool) -> Dataset:
    """Read what was downloaded: an archive, or files that together are CIFAR-10, by their names."""
    if len(parts) == 1:
        return _read_archive(next(iter(parts.values())), allow_modified)
    tree = Tree(where, {**parts})
    return _read(tree, _checked(_best(tree), tree, "download"), allow_modified)


def _best(tree: Tree) -> Found | None:
    """Choose the best set: a complete one if possible, then the nearest, then the newest version."""
    found = sorted((one for find in FORMS for one in find(tree)), key=lambda one: natural(one.folder), reverse=True)
    return min(found, key=lambda one: (bool(one.lacks), len(PurePosixPath(one.folder).parts)), default=None)


def _checked(found: Found | None, tree: Tree, what: str) -> Found:
    """Return a complete set. Raise UserError that says what it lacks, or what is there instead."""
    if found and found.lacks:
        raise UserError(found.lacks, tree.where / found.folder, official.GET_ANOTHER_COPY)
    if found:
        return found
    by_folder = groupby(sorted(tree.files, key=natural), lambda name: name.rpartition("/")[0])
    ranked = [(rank, name) for _, names in by_folder for rank, name in enumerate(names)]
    names = [name for _, name in sorted(ranked, key=lambda item: item[0])[:SHOWN]]  # of each folder one, then two
    known = [(name, kinds.kind_of(tree.files[name])) for name in names]
    there = ", ".join(f"{name} ({kind.name})" if kind else name for name, kind in known) or "nothing"
    there += ", ..." if len(tree.files) > SHOWN else ""
    todo = next((kind.todo for _, kind in known if kind in (kinds.PAGE, kinds.LFS, kinds.CIFAR_100)), TODO)
    raise UserError(f"no CIFAR-10 in this {what} (no {LOOKED_FOR}; there is {there})", tree.where, todo)


def _read(tree: Tree, found: Found, allow_modified: bool) -> Dataset:
    known = all(official.is_known(file) for name in found.names if isinstance(file := tree.files[name], Path))
    return identity.identified(found.read(), tree.where / found.folder, known, allow_modified)


def _archive(tree: Tree) -> Path | None:
    """Choose an archive in a folder: one that was read before, or holds CIFAR-10, or at least says so by its name."""
    names = [name for name, head in tree.heads() if places.is_archive(head)]
    archives = [file for name in names if isinstance(file := tree.files[name], Path)]
    archives.sort(key=lambda path: ("cifar" not in path.name.lower(), len(path.parts), natural(path.name)))
    named = archives[0] if archives and "cifar" in archives[0].name.lower() else None
    if named and len(archives) == 1:
        return named
    return next((path for path in archives if storage.beside(path).is_file() or _holds(path)), named)


def _holds(archive: Path) -> bool:
    try:
        found = _best(places.unpacked(archive))
    except UserError:
        return False
    return bool(found and not found.lacks)


def _of_archive(path: Path) -> Source:
    return Source(path, [path], partial(_read_archive, path))


def _read_archive(path: Path, allow_modified: bool) -> Dataset:
    tree = places.unpacked(path)
    found, known = _checked(_best(tree), tree, "archive"), official.is_known(path)
    if path.name in official.ARCHIVES and not known and not allow_modified:
        raise official.not_known(path)
    return identity.identified(found.read(), path, known, allow_modified)
