"""CIFAR-10 as pictures in folders of classes, such as train/airplane/0001.png."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.folder import TEST, TRAIN, natural
from jaxcnn.data.places import Found, Tree, content

SUFFIXES = (".png", ".jpg", ".jpeg")
OTHER_NAMES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile"}
NO_LABELS = "Kaggle's form of CIFAR-10, whose test images have no labels"


def find(tree: Tree) -> Iterator[Found]:
    """Find folders of all ten classes, and Kaggle's list of labels, which lacks the test images'."""
    sets: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: {"train": {}, "test": {}})
    for name in tree.files:
        *above, split, folder, file = ["", "", *name.split("/")]
        if file.lower() == "trainlabels.csv":
            yield Found("/".join(filter(None, [*above, split, folder])), [name], partial(_read, tree, {}), NO_LABELS)
        elif file.lower().endswith(SUFFIXES) and (label := _label(folder)) is not None:
            parent = above if split.lower() in (*TRAIN, *TEST) else [*above, split]
            sets["/".join(filter(None, parent))]["test" if split.lower() in TEST else "train"][name] = label
    for folder, splits in sets.items():
        classes = {split: {*labels.values()} for split, labels in splits.items()}
        both = [(split, i, name) for split in splits for i, name in enumerate(official.CLASS_NAMES)]
        missing = [f"{split}/{name}" for split, i, name in both if i not in classes[split]]
        lacks = f"no pictures of {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}" if missing else ""
        if len(missing) <= len(official.CLASS_NAMES):
            yield Found(folder, [*splits["train"], *splits["test"]], partial(_read, tree, splits), lacks)


def _label(folder: str) -> int | None:
    """Return the class that a folder is named after, in the usual spellings or by its number."""
    name = re.sub(r"^\d+[ _.-]+", "", folder.lower())
    if re.fullmatch(r"0?\d", name, re.ASCII):
        return int(name)
    name = OTHER_NAMES.get(name, name)
    return official.CLASS_NAMES.index(name) if name in official.CLASS_NAMES else None


def _read(tree: Tree, splits: dict[str, dict[str, int]]) -> Dataset:
    def pictures(split: str) -> Iterator[tuple[Path, bytes, object]]:
        # By their files' names in all classes together: where these are the original's numbers, so is the order.
        keys = ((natural(PurePosixPath(name).name), label, name) for name, label in splits[split].items())
        for _, label, name in sorted(keys):
            yield tree.where / name, content(tree.files[name], 10 * official.LARGEST_IMAGE), label

    return official.collected({split: pictures(split) for split in splits}, tree.where)
