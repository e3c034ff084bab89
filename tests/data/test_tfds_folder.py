"""Damaged tensorflow-datasets folders."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.data import tfds_folder
from jaxcnn.errors import UserError
from tests.data.forms import crc32c


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
@settings(max_examples=30)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_records_are_refused_or_the_same(made, form, where, bit, cut):
    version = getattr(made, form) / "cifar10/3.0.2"
    path = version / f"cifar10-train.{form}-00000-of-00001"
    good = path.read_bytes()
    at = int(where * len(good))
    message = ""
    try:
        path.write_bytes(good[:at] if cut else good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        made.assert_same(tfds_folder.read(version))
    except UserError as error:
        message = str(error)
    finally:
        path.write_bytes(good)
    assert not message or ("damaged" in message and str(version) in message)


def rewrite(path, change):
    """Change each record of a tfrecord file, with right checksums."""
    out = b""
    for index, record in enumerate(list(tfds_folder._tf_records(path))):
        for new in change(index, record):
            head = struct.pack("<Q", len(new))
            out += head + struct.pack("<I", crc32c(head)) + new + struct.pack("<I", crc32c(new))
    path.write_bytes(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, r: [r, r] if i == 3 else [r], "twice"),
        (lambda i, r: [] if i == 3 else [r], "1 of 60 images missing"),
        (lambda i, r: [r.replace(b"train_", b"trein_")], "trein_"),
        (lambda i, r: [r.replace(b"label", b"lebal")], "IndexError"),
        (lambda i, r: [r.replace(b"PNG", b"GIF")], "cannot identify image"),
        (lambda i, r: [b""], "IndexError"),
    ],
)
def test_records_that_are_not_cifar10(forms, change, message):
    version = forms.tfrecord / "cifar10/3.0.2"
    path = version / "cifar10-train.tfrecord-00000-of-00001"
    rewrite(path, change)
    with pytest.raises(UserError, match=rf"damaged tensorflow-datasets copy.*{message}.*remove"):
        tfds_folder.read(version)


def test_label_that_became_another(forms):
    """The one damage that nothing but the record's own checksum can tell."""
    path = forms.tfrecord / "cifar10/3.0.2/cifar10-test.tfrecord-00000-of-00001"
    content = bytearray(path.read_bytes())
    at = content.index(b"label") + 11  # the key, then four bytes of tags and lengths, then two of the packed value's
    label = next(tfds_folder._decode(record)[2] for record in tfds_folder._tf_records(path))
    assert content[at] == label
    content[at] = (label + 1) % 10
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"wrong checksum of a record.*{path}; remove"):
        tfds_folder.read(path.parent)


def test_missing_shard_and_damaged_description(forms):
    version = forms.array_record / "cifar10/3.0.2"
    (version / "cifar10-test.array_record-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"cifar10-test.array_record-00000-of-00001; remove"):
        tfds_folder.read(version)
    (version / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=rf"damaged.*{version}; remove"):
        tfds_folder.read(version)


@pytest.mark.parametrize("change", [('"name": "cifar10"', '"name": "cifar100"'), ('"tfrecord"', '"riegeli"')])
def test_another_data_set_or_format(forms, change):
    version = forms.tfrecord / "cifar10/3.0.2"
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace(*change))
    with pytest.raises(UserError, match="not cifar10 in array_record or tfrecord"):
        tfds_folder.read(version)


def test_crc32c_of_any_lengths():
    """The check value of CRC-32C is e3069283 for `123456789` (RFC 3720, appendix B.4 has more)."""
    rng = np.random.default_rng(0)
    parts = [b"123456789", b"", *(rng.bytes(n) for n in (1, 8, 31, 300))]
    assert tfds_folder._masked_crc32c(parts).tolist() == [crc32c(part) for part in parts]
    masked = 0xE3069283
    assert crc32c(b"123456789") == (((masked >> 15) | (masked << 17)) + 0xA282EAD8) & 0xFFFFFFFF
