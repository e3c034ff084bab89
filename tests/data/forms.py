"""Every form of CIFAR-10 with ten images a batch, made without the code under test."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.io
from PIL import Image
from pyarrow import parquet

from jaxcnn.data import official, tfds_folder

N = 10  # images a batch


def pickled(labels: list[int], pixels: bytes, name: str = "a batch", dtype: bytes = b"u1") -> bytes:
    """The opcodes of the official files (Python 2, protocol 2), which Python 3's pickle cannot write."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n"
        + text(dtype)
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"J" + struct.pack("<i", len(pixels) // 3072) + b"M\x00\x0c\x86"
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    return (
        b"\x80\x02}q\x02(" + text(b"batch_label") + text(name.encode())
        + text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + text(b"data") + array + state + text(b"filenames") + b"](" + text(b"horse.png") * len(labels) + b"eu."
    )  # fmt: skip


def crc32c(data: bytes) -> int:
    """TFRecord's masked CRC-32C, bit by bit as in its definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


LABELS = [*(f"training batch {i} of 5" for i in range(1, 6)), "testing batch 1 of 1"]
SPELLINGS = ["plane", "Car", "BIRD", "3", "04_deer", "dog", "frog", "horse", "ship", "truck"]
HUB = [batch * N + i for batch in (3, 2, 1, 4, 0) for i in range(N)]  # the order of the hub's rows


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return file.getvalue()


def table_of(rows: list[tuple[bytes, int]], **columns: list[object]) -> pa.Table:
    """A table of Hugging Face's, of pictures and labels."""
    pictures = [{"bytes": picture, "path": None} for picture, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"img": pa.array(pictures, kind), "label": [label for _, label in rows], **columns})


class Forms:
    """One random CIFAR-10 in every form, under one folder."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (6 * N, 32, 32, 3), dtype=np.uint8)
        ten = np.arange(10, dtype=np.uint8)
        self.labels = np.concatenate([rng.permutation(np.repeat(ten, 5 * N // 10)), rng.permutation(ten)])
        self.python, self.binary = root / "py/cifar-10-batches-py", root / "bin/cifar-10-batches-bin"
        self.python.mkdir(parents=True)
        self.binary.mkdir(parents=True)
        for batch, name in enumerate(official.BATCHES):
            rows = slice(batch * N, (batch + 1) * N)
            planes = self.images[rows].transpose(0, 3, 1, 2).reshape(N, -1)
            (self.python / name).write_bytes(pickled(self.labels[rows].tolist(), planes.tobytes(), name))
            (self.binary / f"{name}.bin").write_bytes(np.insert(planes, 0, self.labels[rows], axis=1).tobytes())
        self.make_others(root)
        # As in the official archives: other files, and the batches in no order.
        self.python_tar = self.tar(root / "cifar-10-python.tar.gz", self.python)
        self.binary_tar = self.tar(root / "cifar-10-binary.tar.gz", self.binary)
        self.array_record, self.tfrecord = root / "array_record", root / "tfrecord"
        tfds_folder.write(official.dataset(self.images, self.labels), self.array_record / "cifar10/3.0.2")
        self.rewrite_as_tfrecord(self.array_record / "cifar10/3.0.2", self.tfrecord / "cifar10/3.0.2")

    def make_others(self, root: Path) -> None:
        """What people have instead of the official forms."""
        pictures = {"train": [], "test": []}
        for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            pictures["test" if i >= 5 * N else "train"].append((png(image), int(label)))
        self.parquet, self.saved, self.mat = root / "hub/snapshots/0/plain_text", root / "saved", root / "mat/m"
        self.classes, self.repickled = root / "classes", root / "repickled"
        for folder in (self.parquet, self.mat, self.repickled, self.saved / "train", self.saved / "test"):
            folder.mkdir(parents=True)
        for split, rows in pictures.items():
            table = table_of([rows[i] for i in HUB] if split == "train" else rows)
            parquet.write_table(table, self.parquet / f"{split}-00000-of-00001.parquet", row_group_size=7)
            file = self.saved / split / "data-00000-of-00001.arrow"
            with file.open("wb") as opened, pa.ipc.new_stream(opened, table.schema) as stream:
                stream.write_table(table_of(rows), 7)
            (self.saved / split / "dataset_info.json").write_text("{}")
            for i, (picture, label) in enumerate(rows):
                folder = self.classes / split.upper() / SPELLINGS[label]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{i + 1}.png").write_bytes(picture)
        (self.saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        for batch, name in enumerate(official.BATCHES):
            rows = slice(batch * N, (batch + 1) * N)
            pixels, labels = self.images[rows].transpose(0, 3, 1, 2).reshape(N, -1), self.labels[rows]
            variables = {"data": pixels, "labels": labels[:, None], "batch_label": name}
            scipy.io.savemat(self.mat / f"{name}.mat", variables, do_compression=batch % 2 == 0)
            again = {"labels": labels if batch == 1 else labels.tolist(), "data": np.ascontiguousarray(pixels)}
            content = pickle.dumps({"batch_label": LABELS[batch], **again}, protocol=min(5, batch + 2))
            (self.repickled / f"part{batch}.pkl").write_bytes(content)

    def tar(self, path: Path, folder: Path) -> Path:
        members = {f"{folder.name}/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())[::-1]}
        return make_tar(path, {f"{folder.name}/readme.html": b"<html>", **members})

    def rewrite_as_tfrecord(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix in (".json", ".txt"):
                (target / file.name).write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
        for split in ("train", "test"):
            records = tfds_folder._array_records(source / f"cifar10-{split}.array_record-00000-of-00001")
            with (target / f"cifar10-{split}.tfrecord-00000-of-00001").open("wb") as file:
                for record in records:
                    head = struct.pack("<Q", len(record))
                    file.write(head + struct.pack("<I", crc32c(head)) + record + struct.pack("<I", crc32c(record)))

    def all(self) -> dict[str, Path]:
        return {name: path for name, path in vars(self).items() if isinstance(path, Path)}

    def assert_same(self, data) -> None:
        assert (data.name, data.class_names[7]) == ("cifar10", "horse")
        np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]), self.images)
        np.testing.assert_array_equal(np.concatenate([data.train.labels, data.test.labels]), self.labels)
        assert data.train.ids[7] == "train_00007"
        assert data.test.ids == [f"test_{i:05d}" for i in range(N)]
