"""What is wrong with a folder of one's own pictures is one line."""

import os

import pytest

from jaxcnn import data
from jaxcnn.errors import UserError
from tests.data.conftest import picture

ERRORS = {
    "absent": ([], "no such folder: {}; the pictures of each class belong in DIR/train/CLASS and"),
    "empty": (["."], "no folders of classes: {}; the pictures"),
    "flat": (["./0.png"], "no folders of classes: {}; "),
    "one": (["cat/0.png"], "one class only, cat: {}; "),
    "one in train": (["train/cat/0.png", "test/cat/0.png"], "one class only, cat: {}/train; "),
    "no pictures": (["cat/0.png", "dog/0.txt"], "no pictures of this class: {}/dog; add some, or remove the folder"),
    "all broken": (
        ["train/cat/0.png", "train/dog/broken.png", "test/cat/0.png"],
        "no picture of the class dog can be read (not a picture): {}/train/dog/broken.png; replace them",
    ),
    "two in all": (["cat/0.png", "dog/0.png"], "no class has five pictures that can be read, of which one is kept"),
    "no test": (["train/a/0.png", "train/b/0.png", "test/a/broken.png"], "no test picture that can be read: {}/test;"),
    "empty test": (["train/a/0.png", "train/b/0.png", "test/."], "no test picture that can be read: {}/test; add some"),
    "other test": (
        ["train/cat/0.png", "train/dog/0.png", "test/cow/0.png", "test/ant/."],
        "classes that are not in training: ant, cow: {}/test; add such pictures to {}/train, or remove these folders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_wrong_with_a_folder_is_one_line(root, kind, capsys):
    paths, words = ERRORS[kind]
    for path in paths:
        file = root / path
        (file if path.endswith(".") else file.parent).mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png" and file.stem == "0":
            picture(0).save(file)
        elif file.suffix:
            file.write_text("junk")
    for _ in range(2):  # an error is not kept
        with pytest.raises(UserError) as problem:
            data.load("folder", root)
        assert capsys.readouterr().err == ""
        assert str(problem.value).startswith(words.replace("{}", str(root)))
        assert "\n" not in str(problem.value)


def test_a_file_and_no_folder_at_all(tmp_path):
    (tmp_path / "pictures.zip").touch()
    with pytest.raises(UserError, match=r"not a folder: .*pictures.zip; the pictures of each class belong in"):
        data.load("folder", tmp_path / "pictures.zip")
    with pytest.raises(UserError, match=r"no folder is named: --dataset folder; add --data-dir DIR: the pictures of"):
        data.load("folder")


def test_a_folder_that_may_not_be_read(root, fill, readonly):
    fill("a", "b")
    (root / "a/more").mkdir()
    readonly(root)
    os.seteuid(os.getuid())
    (root / "a/more").chmod(0)
    readonly()
    with pytest.raises(UserError, match=r"Permission denied: .*mine/a/more; check its permissions"):
        data.load("folder", root)
