"""Your own pictures: a folder with a folder of pictures for each class, of any format and size that Pillow reads."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Bool, UInt8

from jaxcnn.data import storage
from jaxcnn.data.dataset import Dataset, Split, places_in_class
from jaxcnn.errors import UserError
from jaxcnn.progress import progress, say

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # the first that is there
FORM = "the pictures of each class belong in DIR/train/CLASS and DIR/test/CLASS, or all in DIR/CLASS"
EVERY = 5  # picture of a class is one for testing
SHOWN = 3  # of what a line lists


class File(NamedTuple):
    """A picture file, and where it belongs."""

    path: Path
    label: int
    is_test: bool


def load_folder(folder: Path) -> Dataset:
    """Return the pictures of a folder as uint8 [n, 32, 32, 3]; UserError if there are fewer than two classes.

    Classes are sorted by name. If there are no test pictures, every fifth of a class is one. Rows are the first picture
    of each class, then the second of each: the first rows show all classes.
    """
    if not folder.is_dir():
        raise UserError("not a folder" if folder.exists() else "no such folder", folder, FORM)
    train, test = _splits(folder)
    classes = list(_subfolders(train))
    if len(classes) < 2:
        what = f"one class only, {classes[0]}" if classes else "no folders of classes"
        raise UserError(what, train, FORM)
    if test and (alone := [name for name in _subfolders(test) if name not in classes]):
        todo = f"add such pictures to {train}, or remove these folders"
        raise UserError(f"classes that are not in training: {_some(alone)}", test, todo)
    files, others = [], list[Path]()
    for part in filter(None, (train, test)):
        for label, name in enumerate(classes):
            found, no_pictures = _pictures(part / name)
            if not found and part == train:
                raise UserError("no pictures of this class", part / name, "add some, or remove the folder")
            files += [File(path, label, part == test) for path in found]
            others += no_pictures
    unused = [path for path in _subfolders(folder).values() if test and path not in (train, test)]

    def build() -> Dataset:
        if unused:
            say(f"not used, beside {train.name} and {test and test.name}: {_some(path.name for path in unused)}")
        if others:
            kinds = sorted({path.suffix.lower() or "no suffix" for path in others})
            say(f"not used: {len(others):,} files that are no pictures by their suffix ({_some(kinds)})")
        return _decoded(folder, test, classes, files)

    return storage.cached("folder", folder, build, [file.path for file in files])


def natural(name: str) -> tuple[Any, ...]:
    """Return a key that sorts names as people do: 2 before 10, b before C."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_hidden(name: str) -> bool:
    """Tell if a file or a folder is one that systems make for their own use."""
    return name.startswith((".", "__MACOSX"))


def _subfolders(folder: Path) -> dict[str, Path]:
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=natural)
    return {name: folder / name for name in names if not is_hidden(name)}


def _splits(folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training and the test classes; None if all are together."""
    known = {name.lower(): path for name, path in _subfolders(folder).items()}
    train, test = (next((known[name] for name in names if name in known), None) for names in (TRAIN, TEST))
    if train and (test or len(known) == 1):
        return train, test
    if train and (classes := _subfolders(train)):  # else `train` is a class, of pictures of trains
        what = f"{train.name} has folders, {_some(classes)}, and none of {_some(sorted(known))} is of test pictures"
        raise UserError(what, folder, f"name that one {TEST[0]}, or put the classes into {folder.name} itself")
    return folder, None


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the pictures in a folder and in those below, in natural order; and the other files."""
    from jaxcnn.pictures import is_picture  # here, since it imports this package

    found: list[Path] = []

    def refuse(problem: OSError) -> NoReturn:
        raise problem  # os.walk alone would skip a folder that it may not read

    seen = {os.path.realpath(folder)}  # a link may lead back
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True) if folder.is_dir() else ():
        folders[:] = [name for name in folders if not is_hidden(name) and _is_new(Path(where, name), seen)]
        found += [Path(where, name) for name in names if not is_hidden(name)]
    found.sort(key=lambda path: natural(path.relative_to(folder).as_posix()))
    chosen = [path for path in found if is_picture(path)]
    others = {*found} - {*chosen}
    return chosen, [path for path in found if path in others]


def _is_new(folder: Path, seen: set[str]) -> bool:
    before, real = len(seen), os.path.realpath(folder)
    seen.add(real)
    return len(seen) > before


def _decoded(folder: Path, test: Path | None, classes: Sequence[str], files: Sequence[File]) -> Dataset:
    """Read the pictures, leave out those that cannot be read, and divide them. Say what the user should know."""
    if not test and max(Counter(file.label for file in files).values()) < EVERY:
        raise _too_few(folder)
    images, problems = _read(folder, [file.path for file in files])
    rows = np.array([i for i in range(len(files)) if i not in problems], int)
    labels = np.array([files[i].label for i in rows], np.min_scalar_type(len(classes) - 1))
    is_test = np.array([files[i].is_test for i in rows], bool) if test else places_in_class(labels) % EVERY == EVERY - 1
    for label in sorted({*range(len(classes))} - {*labels[~is_test].tolist()}):
        i = next(i for i in problems if files[i].label == label and not files[i].is_test)
        what = f"no picture of the class {classes[label]} can be read ({problems[i].what})"
        raise UserError(what, files[i].path, "replace them, or remove the class")
    if not is_test.any() and test:
        raise UserError("no test picture that can be read", test, "add some, or remove the folder")
    if not is_test.any():
        raise _too_few(folder)
    if problems:
        why = [f"{files[i].path.relative_to(folder)} ({problem.what})" for i, problem in problems.items()]
        say(f"left out: {len(why):,} of {len(files):,} pictures, which cannot be read: {_some(why)}")
    if untested := [classes[label] for label in sorted({*range(len(classes))} - {*labels[is_test].tolist()})]:
        say(f"no test picture of {len(untested):,} of {len(classes):,} classes: {_some(untested)}")
    parts = {name: _interleaved(part, labels) for name, part in (("train", ~is_test), ("test", is_test))}
    splits = {
        name: Split(name, images[rows[part]], labels[part], tuple(_name(files[i].path, folder) for i in rows[part]))
        for name, part in parts.items()
    }
    _say_duplicates(**splits)
    return Dataset("folder", tuple(name.encode("utf-8", "replace").decode() for name in classes), **splits)


def _too_few(folder: Path) -> UserError:
    what = "no class has five pictures that can be read, of which one is kept for testing"
    return UserError(what, folder, "add pictures, or divide them into DIR/train/CLASS and DIR/test/CLASS")


def _interleaved(chosen: Bool[np.ndarray, "n"], labels: np.ndarray) -> np.ndarray:
    """Reorder the chosen rows, which are sorted by class: the first of each class, then the second of each."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(places_in_class(labels[rows]), kind="stable")]


def _read(folder: Path, paths: Sequence[Path]) -> tuple[UInt8[np.ndarray, "n 32 32 3"], dict[int, UserError]]:
    """Read pictures in several threads, since Pillow decodes without Python's lock; and say which cannot be read."""
    from jaxcnn import pictures  # here, since it imports this package

    images, problems = np.zeros((len(paths), pictures.SIDE, pictures.SIDE, 3), np.uint8), dict[int, UserError]()

    def read(i: int) -> None:
        try:
            images[i], _ = pictures.decoded(paths[i])
        except UserError as problem:
            problems[i] = problem

    with pictures.bombs_refused(), progress(f"decoding {folder}", len(paths), "pictures") as update:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for _ in pool.map(read, range(len(paths))):
                    update(1)
            finally:
                pool.shutdown(cancel_futures=True)  # after Ctrl-C
    return images, dict(sorted(problems.items()))


def _name(path: Path, folder: Path) -> str:
    """Say where in the folder a file is, in text that can be written anywhere."""
    return path.relative_to(folder).as_posix().encode("utf-8", "replace").decode()


def _say_duplicates(train: Split, test: Split) -> None:
    """Name the test pictures that are training pictures, too, and say if they are of another class there."""
    trained, tested = ([hashlib.sha256(image.tobytes()).digest() for image in split.images] for split in (train, test))
    rows = {mark: i for i, mark in enumerate(trained)}
    twins = [(i, rows[mark]) for i, mark in enumerate(tested) if mark in rows]
    if twins:
        what = "test pictures are training pictures, too, so the test accuracy is too high"
        others = sum(int(test.labels[i] != train.labels[j]) for i, j in twins)
        what += f" ({others:,} are of another class there)" if others else ""
        pairs = _some(f"{test.files[i]} is {train.files[j]}" for i, j in twins)
        say(f"warning: {len(twins):,} of {len(test):,} {what}: {pairs}")


def _some(texts: Iterable[str]) -> str:
    """List the first few of many."""
    texts = list(texts)
    return ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")
