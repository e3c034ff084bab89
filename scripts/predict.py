"""Say what pictures show: the most likely classes of each, with their probabilities."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import parity
from jaxcnn import cli, data, files, pictures, platform, weights
from jaxcnn.data.folder import natural
from jaxcnn.errors import UserError, os_errors
from jaxcnn.figures import Subject
from jaxcnn.paths import at_home
from jaxcnn.progress import progress
from jaxcnn.run_directory import data_source
from jaxcnn.weights import Weights

EXAMPLES = """examples:
  python scripts/predict.py runs/cifar10 photo.jpg
  python scripts/predict.py runs/cifar10 photos/ "more/**/*.png" test_00042
  python scripts/predict.py cifar10model.pth photos/ --top 10 --json predictions.json
  find . -name "*.jpg" | python scripts/predict.py runs/cifar10 -

The square in the middle of each picture is classified, at 32 x 32 pixels. What cannot be read is named and left out.
Exit status: 0 done; 2 bad usage, or a picture that could not be read."""

BATCH = 128
Found = Subject | UserError  # what became of a picture


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    cli.add_weights(parser)
    add("pictures", metavar="PICTURE", nargs="+", help="a file, a folder, a pattern such as 'photos/*.jpg', "
        "an image's id such as test_00042, or - to read such names from standard input, one on each line")  # fmt: skip
    add("--top", type=cli.positive_int, default=3, metavar="N", help="print the N most likely classes (default 3)")
    add("--json", type=at_home, metavar="FILE", help="write the probabilities of all classes as JSON too")
    return parser


def named(words: Sequence[str]) -> list[str]:
    """List each picture that is named, in order and once; UserError if there is none."""
    if "" in words:
        raise UserError("an empty name", "PICTURE", "name a file, a folder or an id")
    given = (line for word in words for line in (listed() if word == "-" else [word]))
    if names := list(dict.fromkeys(name for word in given for name in expanded(word))):
        return names
    raise UserError("no pictures", "standard input", "name some, one on each line")


def listed() -> list[str]:
    """Read the names on standard input, in the bytes that file names have: lines, or what `find -print0` writes."""
    given = sys.stdin.buffer.read()
    lines = given.split(b"\0") if b"\0" in given else given.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def expanded(word: str) -> Sequence[str]:
    """List the picture files in a folder, at any depth, or of a pattern, sorted; of anything else, itself."""
    path, found = at_home(word), list[str]()
    with suppress(OSError, ValueError):  # what cannot be looked up cannot be read either, and reading says why
        if path.is_dir():
            found = [str(file) for file in path.rglob("*") if pictures.is_picture(file)]
        elif not path.exists() and path.parts:
            pattern = path.relative_to(path.anchor)  # a Path's glob follows no links to folders, which may be endless
            matches = [match for match in Path(path.anchor).glob(str(pattern)) if match.is_file()]
            found = [str(match) for match in matches if pictures.is_picture(match)] or list(map(str, matches))
    return sorted(found, key=natural) or [word]


def read(name: str, dataset: Callable[[], data.Dataset]) -> pictures.Picture | UserError:
    """Read a picture, or say why it cannot be read."""
    try:
        with os_errors("cannot be read ({})", "name another", name):
            if Path(name).is_dir():
                list(Path(name).iterdir())  # the reason if it is closed
                raise UserError("no pictures in this folder", name, "name one with PNG, JPEG or other picture files")
            return pictures.read_image(name, dataset)
    except UserError as problem:
        return problem


def classified(
    loaded: Weights, names: Sequence[str], classes: Sequence[str], dataset: Callable[[], data.Dataset]
) -> Iterator[Found]:
    """Classify pictures in batches, one program for all of them; only one is held at its full size at a time."""
    size = min(BATCH, len(names))
    with progress("classifying", len(names), "pictures") as update:
        for start in range(0, len(names), size):
            batch, images = list[pictures.Picture | UserError](), np.zeros((size, 32, 32, 3), np.uint8)
            for i, name in enumerate(names[start : start + size]):
                batch.append(picture := read(name, dataset))
                if isinstance(picture, pictures.Picture):
                    images[i] = picture.image
                update(1)
            for name, picture, row in zip(names[start:], batch, loaded.predict(images), strict=False):
                if isinstance(picture, UserError):
                    yield picture
                else:
                    yield Subject(name, picture.image, row, classes, picture.truth)


def lines(found: Sequence[Subject], top: int) -> Iterator[str]:
    """Write a line for each picture, in columns."""

    # A file's name may hold what would break the line, or what cannot be printed.
    def plain(text: str) -> str:
        return "".join(c if c.isprintable() else "?" for c in text)

    shown = [plain(one.name) for one in found]
    wide, widest = max(map(len, shown), default=0), max((len(c) for one in found for c in one.class_names), default=0)
    for name, one in zip(shown, found, strict=True):
        ranked = "  ".join(f"{plain(c):{widest}} {probability:6.1%}" for c, probability in one.ranked()[:top])
        yield f"{name:{wide}}  {ranked}" + (f"  (true: {plain(one.truth)})" if one.truth else "")


def entry(name: str, found: Found) -> dict[str, Any]:
    """Return a picture's result as JSON has it."""
    if isinstance(found, UserError):
        return {"picture": name, "error": str(found)}
    ranked = [{"class": c, "probability": probability} for c, probability in found.ranked()]
    return {"picture": name, "truth": found.truth, "classes": ranked}


def main() -> int:
    """Load, read and classify, print, write; return the exit status."""
    arguments = parser().parse_args()
    files.check_folder(arguments.json)
    names = named(arguments.pictures)
    platform.start(None)
    loaded = parity.load_weights(arguments.weights, entry=arguments.entry)
    source = data_source(arguments.weights, loaded.dataset, arguments.dataset, arguments.data_dir)
    load = cache(partial(data.load, *source))
    if any(map(pictures.ID.fullmatch, names)):
        load()  # if it fails, it fails here, and once
    found = list(classified(loaded, names, weights.names_of_classes(loaded, source[0]), load))
    # Not before all is done: a line in between would break the progress bar.
    problems = [problem for problem in found if isinstance(problem, UserError)]
    for problem in problems:
        cli.complain(str(problem))
    for line in lines([one for one in found if isinstance(one, Subject)], arguments.top):
        print(line)
    if arguments.json:
        entries = [entry(name, one) for name, one in zip(names, found, strict=True)]
        files.write_text(arguments.json, json.dumps(entries, indent=2) + "\n")
    return 2 if problems else 0


if __name__ == "__main__":
    cli.run(main)
