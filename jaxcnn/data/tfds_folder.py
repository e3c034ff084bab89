"""CIFAR-10 in the folders of tensorflow-datasets, without TensorFlow, which would take the GPU's memory."""

import contextlib
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt32

from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.data.places import Found, Tree, content
from jaxcnn.errors import UserError
from jaxcnn.progress import progress

VERSION = "3.0.2"
CHUNK = 4096  # records


def find(tree: Tree) -> Iterator[Found]:
    """Find version folders of tensorflow-datasets, CIFAR-10's and others."""
    for name, file in tree.files.items():
        if not name.endswith("dataset_info.json"):
            continue
        path = PurePosixPath(name)
        is_whole = "incomplete" not in path.parent.name and str(path.with_name("features.json")) in tree.files
        if path.name == "dataset_info.json" and is_whole:
            lacks = ""
            names = [other for other in tree.files if PurePosixPath(other).parent == path.parent]
            with contextlib.suppress(ValueError, AttributeError):  # `read` reports what else is wrong with it
                other = json.loads(content(file)).get("name")
                lacks = "" if other == "cifar10" else f"the data set {other!r:.40}, not cifar10"
            yield Found(str(path.parent), names, partial(_read, tree, path.parent, names), lacks)


def _read(tree: Tree, folder: PurePosixPath, names: list[str]) -> Dataset:
    files = {PurePosixPath(name).name: tree.files[name] for name in names}
    if all(isinstance(file, Path) for file in files.values()):
        return read(tree.where / folder)
    with tempfile.TemporaryDirectory() as unpacked:  # since tensorflow-datasets reads from the disk only
        for name, file in files.items():
            Path(unpacked, name).write_bytes(content(file))
        try:
            return read(Path(unpacked))
        except UserError as error:
            raise UserError(error.what, tree.where / folder, official.GET_ANOTHER_COPY) from error


def read(folder: Path) -> Dataset:
    """Read a version folder of array_record or tfrecord files. Raise UserError if it is damaged."""
    import tensorflow_datasets as tfds

    n, where = len(official.BATCHES) * official.PER_BATCH, folder
    images, labels, seen = np.empty((n, 32, 32, 3), np.uint8), np.empty(n, np.uint8), np.zeros(n, bool)
    data = official.dataset(images, labels)
    rows = {name.encode(): row for row, name in enumerate(data.train.ids + data.test.ids)}
    forms = {"array_record": _array_records, "tfrecord": _tf_records}
    try:
        info = tfds.builder_from_directory(folder).info
        form = info.file_format.value
        if info.name != "cifar10" or form not in forms:
            what = f"{info.name} in {form} files, not cifar10 in {' or '.join(forms)}"
            raise UserError(what, folder, "name another folder")
        shards = [Path(file) for split in ("train", "test") for file in info.splits[split].filepaths]
        with progress(f"decoding {folder}", n, "images") as update:
            for where in shards:
                for record in forms[form](where):
                    image_id, image, label = _decode(record)
                    if seen[row := rows[image_id]]:
                        raise ValueError(f"{image_id!r} twice")
                    images[row], labels[row], seen[row] = image, label, True
                    update(1)
        if not seen.all():
            raise ValueError(f"{n - np.count_nonzero(seen):,} of {n:,} images missing")
    except UserError:
        raise
    except Exception as error:  # tensorflow-datasets, protobuf, Pillow: damaged bytes can raise anything
        todo = "remove that folder and run scripts/prepare_data.py"
        raise UserError(f"damaged tensorflow-datasets copy ({error!r:.120})", where, todo) from error
    return data


def _decode(record: bytes) -> tuple[bytes, UInt8[np.ndarray, "32 32 3"], int]:
    """Return a record's id, image and label: 6 us, and 67 for the PNG. tfds' deserialize_example_np takes 92 and 67."""
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    image_id, label = feature["id"].bytes_list.value[0], feature["label"].int64_list.value[0]
    image = official.decode(feature["image"].bytes_list.value[0])
    if not 0 <= label < len(official.CLASS_NAMES):
        raise ValueError(f"{image_id!r} has label {label}")
    return image_id, image, label


def _array_records(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    for start in range(0, reader.num_records(), CHUNK):
        yield from reader.read(start, min(start + CHUNK, reader.num_records()))


def _tf_records(path: Path) -> Iterator[bytes]:
    """Yield a file's records: length, its CRC, bytes, their CRC (tensorflow.org/tutorials/load_data/tfrecord)."""
    content, position = path.read_bytes(), 0
    while position < len(content):
        parts: list[bytes] = []
        checksums: list[int] = []
        while position < len(content) and len(parts) < CHUNK:
            (length,) = struct.unpack_from("<Q", content, position)
            for size in 8, length:
                parts.append(content[position : position + size])
                checksums += struct.unpack_from("<I", content, position + size)
                position += size + 4
        if (_masked_crc32c(parts) != np.array(checksums, np.uint32)).any():
            raise ValueError("wrong checksum of a record")
        yield from parts[1::2]


def _masked_crc32c(parts: list[bytes]) -> UInt32[np.ndarray, "n"]:
    """Return TFRecord's CRC-32C of each part. Python has none, and a loop over single bytes takes minutes."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ (table & 1) * np.uint32(0x82F63B78)
    lengths = np.array([len(part) for part in parts])
    columns = np.zeros((lengths.max(), len(parts)), np.uint8)
    for column, part in zip(columns.T, parts, strict=True):
        column[: len(part)] = np.frombuffer(part, np.uint8)
    crc = np.full(len(parts), 0xFFFFFFFF, np.uint32)
    for i, column in enumerate(columns):
        crc = np.where(i < lengths, table[(crc ^ column) & 0xFF] ^ (crc >> 8), crc)
    return ((~crc >> 15) | (~crc << 17)) + np.uint32(0xA282EAD8)


def write(data: Dataset, version: Path) -> None:
    """Write a version folder of array_record files in tfds' shuffled order, whole or not at all."""
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar

    def examples(split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image_id, image, label) in enumerate(zip(split.ids, split.images, split.labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            png.seek(0)
            update(1)
            yield index, {"id": image_id, "image": png, "label": int(label)}

    for leftover in version.parent.glob("*incomplete*"):  # of a killed run, since the caller holds the lock
        shutil.rmtree(leftover)
    with progress(f"writing {version}", len(data.train) + len(data.test), "images") as update:
        builder = cifar.Cifar10(data_dir=version.parent.parent, file_format="array_record")
        builder.info.features["label"].names = list(data.class_names)
        # tfds' own generators need TensorFlow.
        builder._split_generators = lambda _: {split.name: examples(split) for split in (data.train, data.test)}
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as unused:
            builder.download_and_prepare(download_dir=unused)
