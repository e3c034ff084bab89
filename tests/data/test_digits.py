"""The embedded digits, and finding images by id."""

import numpy as np
import pytest

from jaxcnn import data, pictures
from jaxcnn.data import Split
from jaxcnn.errors import UserError


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits, reference = data.load("digits"), load_digits()
    n = len(digits.train) + len(digits.test)
    assert (n, len(digits.test)) == (1797, 355)
    assert digits.train.images.shape == (1442, 32, 32, 3)
    assert digits.train.images.dtype == digits.train.labels.dtype == np.uint8
    assert digits.class_names == tuple("0123456789")
    assert digits.train.images.max() == 255
    # Each class gives every fifth of its images, in the order of the original.
    expected = [i for c in range(10) for i in np.flatnonzero(reference.target == c)[4::5]]
    expected.sort()
    np.testing.assert_array_equal(digits.test.labels, reference.target[expected])
    small = digits.test.images[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    original = reference.images[expected] * 255 / 16
    assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.97
    counts = np.bincount(digits.test.labels) / np.bincount(reference.target)
    assert counts.min() > 0.19
    assert counts.max() < 0.2001


def test_find_by_id(forms):
    cifar = data.load("cifar10", forms.tfrecord)
    image, label = cifar.find("train_00007")
    np.testing.assert_array_equal(image, forms.images[7])
    assert label == forms.labels[7]
    np.testing.assert_array_equal(cifar.find("test_00003")[0], forms.images[53])
    for unknown in ("train_00050", "test_7", "horse", "train_00007\n"):
        with pytest.raises(UserError, match="train_00000 to train_00049 and test_00000 to test_00009"):
            cifar.find(unknown)


def test_ids_beyond_five_digits_are_found():
    many = Split("train", np.zeros((100_002, 1, 1, 3), np.uint8), np.arange(100_002).astype(np.uint32))
    few = Split("test", np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.uint32))
    found = data.Dataset("folder", tuple(map(str, range(100_002))), many, few)
    assert found.find("train_100001")[1] == 100_001
    with pytest.raises(UserError, match="ids are train_00000 to train_100001"):
        found.find("train_100002")
    with pytest.raises(UserError, match="did you mean train_100001"):
        pictures.read_image("trian_100001", lambda: found)
