"""A folder of one's own pictures: found, read, divided, kept."""

import os
import shutil
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxcnn import data, pictures, train
from jaxcnn.data import folder, storage
from jaxcnn.data.dataset import places_in_class
from jaxcnn.errors import UserError
from tests.data.conftest import picture
from tests.test_pictures import png


def rows(split, root, files):
    """See that the rows of a split are these files, in this order."""
    assert len(split) == len(files)
    for image, file in zip(split.images, files, strict=True):
        np.testing.assert_array_equal(image, pictures.read(root / file)[0])


def test_every_form_of_picture_is_read_as_it_is_alone(root):
    (root / "a").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = Image.fromarray((np.arange(35 * 50).reshape(35, 50) * 37).astype(np.uint16))
    made = {
        "a.png": picture(0, 33, 21), "b.jpg": picture(1, 64, 48), "c.gif": picture(2, 31, 90).quantize(16),
        "d.bmp": picture(3, 5, 5), "e.png": picture(4, 40, 30).quantize(8), "f.png": picture(5, 70, 50).convert("RGBA"),
        "g.png": wide, "h.PNG": picture(6, 34, 34).convert("L"), "i.jpeg": picture(7, 60, 20), "j.webp": picture(8),
    }  # fmt: skip
    made["f.png"].putalpha(100)
    for name, one in made.items():
        one.save(root / "a" / name, **({"exif": turned} if name == "i.jpeg" else {}))
    (root / "b").mkdir()
    picture(9).save(root / "b/1.png")
    found = data.load("folder", root)
    rows(found.test, root, ["a/e.png", "a/j.webp"])
    expected = ["a/a.png", "b/1.png", *(f"a/{name}" for name in made if name[0] not in "aej")]
    rows(found.train, root, expected)
    assert found.train.labels.tolist() == [0, 1] + [0] * 7
    assert (found.name, found.class_names, found.train.labels.dtype) == ("folder", ("a", "b"), np.uint8)


def test_a_fifth_of_each_class_is_kept_in_natural_order(root, fill, capsys):
    fill("class 10", count=11)
    fill("class 9", count=5)
    fill("class 9/deeper", count=2)
    fill("small", count=4)
    found = data.load("folder", str(root))
    assert found.class_names == ("class 9", "class 10", "small")
    # class 9 is 0.png, ..., 4.png, deeper/0.png, deeper/1.png
    rows(found.test, root, ["class 9/4.png", "class 10/4.png", "class 10/9.png"])
    assert found.test.labels.tolist() == [0, 1, 1]
    assert found.train.labels.tolist() == [0, 1, 2] * 4 + [0, 1, 0, 1, 1, 1, 1]
    later = [
        "class 9/deeper/0.png",
        "class 10/5.png",
        "class 9/deeper/1.png",
        *(f"class 10/{i}.png" for i in (6, 7, 8, 10)),
    ]
    rows(found.train, root, [f"{name}/{i}.png" for i in range(4) for name in found.class_names] + later)
    assert "no test picture of 1 of 3 classes: small\n" in capsys.readouterr().err


@pytest.mark.parametrize(("train_name", "test_name"), [("train", "test"), ("Training", "Validation"), ("train", "val")])
def test_folders_of_training_and_test(root, fill, capsys, train_name, test_name):
    fill(f"{train_name}/b", f"{train_name}/a", count=3)
    fill(f"{test_name}/b", f"{test_name}/a", count=2)
    found = data.load("folder", root)
    rows(found.train, root, [f"{train_name}/{name}/{i}.png" for i in range(3) for name in "ab"])
    rows(found.test, root, [f"{test_name}/{name}/{i}.png" for i in range(2) for name in "ab"])
    assert capsys.readouterr().err == ""


def test_what_else_lies_in_the_folders(root, fill, capsys):
    fill("train/a", "train/b", "test/a", "val/a", ".git/objects", "train/.cache", "train/a/.hidden", "__MACOSX/train")
    for name in ("a/.DS_Store", "a/Thumbs.db", "a/notes.txt", "b/._0.png", "b/README", "list.csv"):
        (root / "train" / name).write_text("junk")
    (root / "train/a/gone.png").symlink_to("nowhere")
    found = data.load("folder", root)
    assert (found.class_names, len(found.train), len(found.test)) == (("a", "b"), 10, 5)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "not used, beside train and test: val",
        "not used: 4 files that are no pictures by their suffix (.db, .png, .txt, ...)",
        "no test picture of 1 of 2 classes: b",
    ]


def test_train_alone_is_divided_and_beside_other_classes_is_one(root, fill):
    fill("train/a", "train/b", count=6)
    rows(data.load("folder", root).test, root, ["train/a/4.png", "train/b/4.png"])
    fill("bus")
    with pytest.raises(UserError, match="train has folders, a, b, and none of bus, train is of test pictures"):
        data.load("folder", root)
    shutil.rmtree(root / "train")
    fill("train", count=6)
    assert data.load("folder", root).class_names == ("bus", "train")


def test_links_to_folders_are_followed_once(root, fill):
    fill("a", "b", count=5)
    fill("../elsewhere", count=2)
    (root / "a/link").symlink_to(root.parent / "elsewhere")
    (root / "a/back").symlink_to(root / "a")
    (root / "a/link/back").symlink_to(root / "a/link")
    found = data.load("folder", root)
    assert len(found.train) + len(found.test) == 5 + 5 + 2


@given(st.lists(st.integers(0, 300), max_size=60))
def test_a_fifth_is_stratified_fixed_and_disjoint(drawn):
    """Of each class exactly n // 5 images, and whether one is kept depends on those of its class before it only."""
    labels = np.array(drawn, np.uint16)
    places = places_in_class(labels)
    for label in set(drawn):
        assert places[labels == label].tolist() == list(range(drawn.count(label)))
    for n in range(len(drawn)):
        np.testing.assert_array_equal(places_in_class(labels[:n]), places[:n])


@given(random=st.randoms(use_true_random=False))
def test_the_order_of_the_file_system_does_not_matter(tmp_path_factory, random):
    base = tmp_path_factory.getbasetemp() / "shuffled"
    for seed, name in enumerate(("x/a", "x/b/deep", "y/c")):
        if not (base / name).is_dir():
            (base / name).mkdir(parents=True)
            for i in range(7):
                picture(10 * seed + i).save(base / name / f"{i + 5}.png")
    expected = data.load("folder", base)
    storage.beside(base).unlink()
    walk, iterdir = os.walk, Path.iterdir

    def shuffled_walk(top, **more):
        for where, folders, names in walk(top, **more):
            random.shuffle(folders)
            random.shuffle(names)
            yield where, folders, names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.os, "walk", shuffled_walk)
        patch.setattr(Path, "iterdir", lambda path: iter(random.sample(every := [*iterdir(path)], len(every))))
        found = data.load("folder", base)
    for ours, theirs in (found.train, expected.train), (found.test, expected.test):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert {image.tobytes() for image in found.train.images}.isdisjoint(image.tobytes() for image in found.test.images)


def test_broken_pictures_are_named_and_left_out(root, fill, capsys):
    fill("a", "b", count=7)
    (root / "a/0.png").write_bytes(b"junk")
    (root / "a/2.png").write_bytes(png(15_000, 15_000))
    (root / "b/1.png").write_bytes((root / "b/1.png").read_bytes()[:-40])
    (root / "b/3.png").write_bytes(b"")
    with warnings.catch_warnings(action="ignore"):  # Pillow's own of large pictures too
        filters = list(warnings.filters)
        found = data.load("folder", root)
        assert warnings.filters == filters  # which threads share
    rows(found.test, root, ["a/6.png", "b/6.png"])  # the fifth of those that are left
    rows(found.train, root, ["a/1.png", "b/0.png", "a/3.png", "b/2.png", "a/4.png", "b/4.png", "a/5.png", "b/5.png"])
    said = capsys.readouterr().err
    assert said.startswith(
        "left out: 4 of 14 pictures, which cannot be read: a/0.png (not a picture), "
        "a/2.png (more than 200 million pixels), b/1.png (not a readable picture ("
    )
    assert said.endswith(", ...\n")
    assert said.count("\n") == 1


def test_test_pictures_that_are_training_pictures_are_named(root, fill, capsys):
    fill("train/a", "train/b", "test/a", "test/b", count=2)
    (root / "test/b/1.png").write_bytes((root / "train/a/0.png").read_bytes())
    pixels = Image.open(root / "train/b/1.png")
    pixels.save(root / "test/a/0.bmp")
    assert len(data.load("folder", root).test) == 5
    assert capsys.readouterr().err == (
        "warning: 2 of 5 test pictures are training pictures, too, so the test accuracy is too high "
        "(2 are of another class there): "
        "test/a/0.bmp is train/b/1.png, test/b/1.png is train/a/0.png\n"
    )


def test_decoded_once_and_again_when_anything_changed(root, fill, capsys, monkeypatch):
    fill("a", "b", "c/deep")
    decoded, count = pictures.decoded, []
    monkeypatch.setattr(pictures, "decoded", lambda path: count.append(path) or decoded(path))

    def loaded(times, *words):
        count.clear()
        found = data.load("folder", root)
        assert len(count) == times
        said = capsys.readouterr().err
        assert said.count("\n") == len(words)
        assert all(word in said for word in words)
        return found

    first, second = loaded(15), loaded(0)
    assert second.class_names == ("a", "b", "c")
    for ours, theirs in (first.train, second.train), (first.test, second.test):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    stat = (root / "c/deep/1.png").stat()
    os.utime(root / "c/deep/1.png", ns=(0, stat.st_mtime_ns + 1))
    loaded(15, "older than the data set")
    (root / "c/deep/1.png").rename(root / "c/1.png")
    loaded(15, "older than the data set")
    place = storage.beside(root)
    place.write_bytes(place.read_bytes()[:-30])
    loaded(15, "decoded images are damaged")
    loaded(0)


def test_hundreds_of_classes(root):
    """Labels beyond 255, from the folder through the loss to the count of what is right."""
    for name in range(300):
        (root / f"train/{name}").mkdir(parents=True)
        Image.new("RGB", (2, 2), (name % 256, name // 256, 0)).save(root / f"train/{name}/0.bmp")
    (root / "test/299").mkdir(parents=True)
    Image.new("RGB", (2, 2), "white").save(root / "test/299/0.bmp")
    for _ in range(2):
        found = data.load("folder", root)
        assert found.train.labels.tolist() == list(range(300))
        assert found.test.labels.tolist() == [299]
    logits = 50 * jnp.eye(300)
    loss, accuracy = train.metrics(logits, jnp.asarray(found.train.labels))
    assert (float(accuracy), float(loss) < 1e-6) == (1, True)
