"""Draw a network's feature maps of images: the tutorial's figures of the horse, and any others."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import parity
from jaxcnn import cli, data, features, figures, files, map_figures, pictures, platform, weights
from jaxcnn.errors import UserError
from jaxcnn.networks import named
from jaxcnn.paths import at_home
from jaxcnn.run_directory import data_source
from jaxcnn.weights import Weights
from parity.files import require_torch

Maps = dict[str, np.ndarray]
EXAMPLES = """examples:
  python scripts/feature_maps.py runs/cifar10                  the tutorial's: the horse through conv1 and conv2
  python scripts/feature_maps.py runs/cifar10 --list
  python scripts/feature_maps.py runs/cifar10 --image photo.jpg test_00042 --layers act2 fc3 --format pdf
  python scripts/feature_maps.py runs/cifar10 --against cifar10model.pth --out against

Writes <image>_<layer>.png, and <image>.npz with what was drawn: for each layer a float32 array [H, W, C], [1, 1, C] if
it is dense; with --against <layer>_torch too. Map i of a figure is array[:, :, i]."""


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    cli.add_weights(parser)
    add("--image", nargs="+", action="extend", metavar="ID-OR-FILE",
        help="train_00007 (default), test_00042 or a picture file, several at once in one batch")  # fmt: skip
    add("--layers", nargs="+", default=["conv1", "conv2"], metavar="LAYER", help="default: conv1 conv2")
    add("--list", action="store_true", help="print the layers in order of execution with their shapes, and exit")
    add("--scale", choices=["layer", "map"], default="layer", help="of colours: layer (default) or map")
    add("--filters", action="store_true", help="draw the kernels of the convolutions among the layers, too")
    add("--against", metavar="WEIGHTS", help="JAX, PyTorch with these weights and their difference; one scale a layer")
    add("--format", choices=figures.FORMATS, default="png", help="default png")
    add("--out", type=at_home, default=Path("feature_maps"), metavar="DIR", help="default feature_maps")
    return parser


def torch_maps(path: str, ours: Weights, images: np.ndarray, layers: Sequence[str]) -> Maps:
    """Compute PyTorch's maps with weights of its own; UserError if they are not of the same network."""
    require_torch("--against")
    from parity.twins.cases import feature_maps

    theirs = parity.load_weights(path)
    if theirs.network != ours.network:
        what = "these weights are of another network or another width"
        raise UserError(what, path, "name weights of the same network")
    return feature_maps(theirs, images, layers)


def draw(arguments: Namespace, subject: figures.Subject, ours: Maps, theirs: Maps | None, last: str) -> None:
    """Write one image's figures and arrays."""
    out, arrays = arguments.out, dict[str, Any]()
    ranked = ", ".join(f"{name} {probability:.1%}" for name, probability in subject.ranked()[:3])
    print(f"{subject.name}: {ranked}" + (f" (true: {subject.truth})" if subject.truth else ""))
    for layer in dict.fromkeys(arguments.layers):
        maps = arrays[layer] = features.as_maps(ours[layer])
        names, difference = subject.class_names if layer == last else (), ""
        if theirs is None:
            figure = map_figures.feature_maps(maps, layer, subject, arguments.scale, names)
        else:
            other = arrays[f"{layer}_torch"] = features.as_maps(theirs[layer])
            figure = map_figures.comparison(maps, other, layer, subject, names)
            difference = f"  JAX and PyTorch differ by at most {np.abs(maps - other).max():.2g}"
        path = out / f"{subject.name}_{layer.replace('/', '.')}.{arguments.format}"
        figures.save(figure, path)
        print(f"  {layer:8} {' x '.join(map(str, maps.shape)):12} {path}{difference}")
    path = out / f"{subject.name}.npz"
    with files.written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    print(f"  {'arrays':21} {path}")


def kernels_of(weights: Weights, layers: Sequence[str]) -> Maps:
    """Return the kernels of the layers that are convolutions; UserError if there are none."""
    arrays = {name: np.asarray(array) for name, array in named(weights.variables).items() if array.ndim == 4}
    kernels = {layer: arrays[f"{layer}/kernel"] for layer in layers if f"{layer}/kernel" in arrays}
    if not kernels:
        raise UserError("none of the layers is a convolution", "--filters", "name one, as in --layers conv1")
    return kernels


def main() -> None:
    """Load, look, draw."""
    arguments = parser().parse_args()
    platform.start(None)
    loaded = parity.load_weights(arguments.weights, entry=arguments.entry)
    network = loaded.network
    shapes = features.layer_shapes(network)
    if arguments.list:
        for name, shape in shapes.items():
            print(f"{name:8} {' x '.join(map(str, shape))}")
        return
    features.check_layers(arguments.layers, shapes)
    source = data_source(arguments.weights, loaded.dataset, arguments.dataset, arguments.data_dir)
    load = cache(partial(data.load, *source))
    read = pictures.read_images(arguments.image or ["train_00007"], load)
    print(*(picture.done + "\n" for picture in read if picture.done), sep="", end="")
    images = np.stack([picture.image for picture in read])
    kernels = kernels_of(loaded, arguments.layers) if arguments.filters else {}
    theirs = torch_maps(arguments.against, loaded, images, arguments.layers) if arguments.against else None
    figures.folder(arguments.out)
    for layer, kernel in kernels.items():
        path = arguments.out / f"{layer}_kernels.{arguments.format}"
        figures.save(map_figures.filters(kernel, layer), path)
        print(f"kernels of {layer}: {' x '.join(map(str, kernel.shape))}, {path}")
    last = list(shapes)[-1]
    classes = weights.names_of_classes(loaded, source[0])
    probabilities = loaded.predict(images)
    batches = features.batched(network, loaded.variables, images, arguments.layers)
    each = (dict(zip(batch, rows, strict=True)) for batch in batches for rows in zip(*batch.values(), strict=True))
    for i, (ours, (name, image, truth, _)) in enumerate(zip(each, read, strict=True)):
        subject = figures.Subject(name, image, probabilities[i], classes, truth)
        draw(arguments, subject, ours, theirs and {layer: rows[i] for layer, rows in theirs.items()}, last)


if __name__ == "__main__":
    cli.run(main)
