"""Write one page to look inside a trained network, which runs in the page, on any picture, without a server."""

import sys
from functools import cache, partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import parity
from jaxcnn import cli, data, explorer, files, pictures, platform, weights
from jaxcnn.errors import UserError
from jaxcnn.paths import at_home
from jaxcnn.run_directory import data_source

EXAMPLES = """examples:
  python scripts/explore.py runs/digits                                page.html, to be opened in a browser
  python scripts/explore.py runs/cifar10 --image train_00007 cat.jpg --out horse.html
  python scripts/explore.py cifar10model.pth --image photos/*.jpg

The page holds the weights and the pictures and loads nothing else. In it, open, drop or paste a picture (digits: draw
one); click a map to see how its numbers are computed; point at a pixel to see what it depends on."""


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    cli.add_weights(parser)
    add("--image", nargs="+", action="extend", metavar="ID-OR-FILE",
        help="to choose from: ids as train_00007, picture files (default: a test image of each class)")  # fmt: skip
    add("--out", type=at_home, default=Path("page.html"), metavar="FILE", help="default page.html")
    return parser


def one_of_each(test: data.Split) -> list[str]:
    """Give the ids of the first image of each class; of twelve, if there are more."""
    _, first = np.unique(test.labels, return_index=True)
    return [test.ids[i] for i in first[:12]]


def main() -> None:
    """Load, read, write."""
    arguments = parser().parse_args()
    if arguments.out.suffix != ".html":
        raise UserError(f"the suffix is {arguments.out.suffix!r}", arguments.out, "end it in .html")
    files.check_folder(arguments.out)
    platform.start(None)
    loaded = parity.load_weights(arguments.weights, entry=arguments.entry)
    source = data_source(arguments.weights, loaded.dataset, arguments.dataset, arguments.data_dir)
    load = cache(partial(data.load, *source))
    read = pictures.read_images(arguments.image or one_of_each(load().test), load)
    print(*(picture.done + "\n" for picture in read if picture.done), sep="", end="")
    name = Path(arguments.weights).resolve().name.encode("utf-8", "replace").decode()
    page = explorer.make_page(loaded, read, weights.names_of_classes(loaded, source[0]), f"Inside {name}")
    files.write_text(arguments.out, page)
    print(f"wrote {arguments.out}: {len(page.encode()) / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    cli.run(main)
