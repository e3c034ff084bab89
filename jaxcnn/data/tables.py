"""CIFAR-10 in the tables of Hugging Face: parquet files of the hub, arrow files of `datasets`."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from jaxcnn.data import official
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.folder import natural
from jaxcnn.data.places import File, Found, Tree
from jaxcnn.errors import UserError

FORMS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow stream"}
SPLIT = re.compile(r"(?<![a-z])(train|test)", re.IGNORECASE)
IMAGE = ("img", "image")
ROWS, MOST = 256, 1 << 29  # at once: rows, and bytes of them if all were as large as a file's largest may be
LARGEST = 1 << 16  # bytes of a picture


def find(tree: Tree) -> Iterator[Found]:
    """Find tables whose names, or whose folders' names, say train and test."""
    sets: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, head in tree.heads():
        form = next((form for magic, form in FORMS.items() if head.startswith(magic)), "")
        path = PurePosixPath(name)
        own, above = SPLIT.search(path.stem), SPLIT.match(path.parent.name)
        if form and (split := own or above) and not path.name.startswith("cache-"):
            folder = path.parent if own else path.parent.parent
            sets[str(folder), form][split[1].lower()].append(name)
    for (where, form), splits in sets.items():
        missing = {"train", "test"} - {*splits}
        names = [name for split in splits.values() for name in split]
        lacks = f"{form} file missing: {missing.pop()}" if missing else ""
        yield Found(where, names, partial(_read, tree, form, splits), lacks)


def _read(tree: Tree, form: str, splits: dict[str, list[str]]) -> Dataset:
    def rows(split: str) -> Iterator[tuple[Path, bytes, object]]:
        for name in sorted(splits[split], key=natural):
            for picture, label in _rows(tree.files[name], form, tree.where / name):
                yield tree.where / name, picture, label

    return official.collected({split: rows(split) for split in splits}, tree.where)


def _rows(file: File, form: str, where: Path) -> Iterator[tuple[bytes, object]]:
    """Yield the picture and the label of each row."""
    import pyarrow as pa

    try:
        with pa.BufferReader(file) if isinstance(file, bytes) else pa.memory_map(str(file)) as source:
            for batch in _batches(source, form):
                columns = batch.schema.names
                if "fine_label" in columns:
                    raise UserError("CIFAR-100, not CIFAR-10", where, "take CIFAR-10")
                image = next((name for name in IMAGE if name in columns), None)
                if not image or "label" not in columns:
                    what = f"a table of {', '.join(columns[:5])}, not of img and label"
                    raise UserError(what, where, official.GET_ANOTHER_COPY)
                batch.validate(full=True)
                yield from zip(_pictures(batch.column(image)), batch.column("label").to_pylist(), strict=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise UserError(f"cut or damaged {form} file", where, official.GET_ANOTHER_COPY) from error


def _batches(source: Any, form: str) -> Iterator[Any]:
    """Yield a few rows at a time: rows may refer to the same value, which then is in memory twice."""
    import pyarrow as pa
    from pyarrow import parquet

    if form == "parquet":
        with parquet.ParquetFile(source, pre_buffer=False) as table:
            sizes = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]
            if sum(sizes) > official.LARGEST_IMAGE * 6 * official.PER_BATCH:
                raise ValueError("far larger than CIFAR-10")
            names = [name for name in table.schema_arrow.names if name in (*IMAGE, "label", "fine_label")]
            for group, size in enumerate(sizes):
                rows = min(ROWS, max(1, MOST // max(1, size)))
                yield from table.iter_batches(rows, row_groups=[group], columns=names or None)
        return
    with (pa.ipc.open_file if form == "arrow" else pa.ipc.open_stream)(source) as table:
        batches = map(table.get_batch, range(table.num_record_batches)) if form == "arrow" else table
        yield from (batch.slice(at, ROWS) for batch in batches for at in range(0, len(batch), ROWS))


def _pictures(column: Any) -> list[bytes]:
    from pyarrow import compute, types

    values = column.field("bytes") if types.is_struct(column.type) else column
    if (compute.max(compute.binary_length(values)).as_py() or 0) > LARGEST:
        raise ValueError("far larger than a picture")
    return values.to_pylist()
