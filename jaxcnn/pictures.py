"""Read pictures of any size and mode, or images of a data set by their ids, as images for the network."""

import re
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError

SIDE = 32


class Picture(NamedTuple):
    """An image for the network, under the name of its id or its file."""

    name: str
    image: UInt8[np.ndarray, "32 32 3"]
    truth: str | None = None  # its class, if that is known
    done: str = ""  # to a picture file, to make an image of it


def read(path: Path) -> tuple[UInt8[np.ndarray, "32 32 3"], str]:
    """Return a picture as uint8 [32, 32, 3], and a description of what was done to it.

    Its first frame is turned as its EXIF says, transparency becomes white, 16 bits become 8, and the square in its
    middle is resized. Raise UserError if there is no such picture, or one with more pixels than Pillow considers safe.
    """
    if not path.is_file():
        raise UserError("no such picture file", path, "name an image's id or a picture file")
    try:
        with warnings.catch_warnings(action="ignore"):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _square(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels"
        raise UserError(limit, path, "shrink the picture first") from None
    except Exception as problem:  # damaged bytes can make a decoder raise anything
        unknown = isinstance(problem, UnidentifiedImageError)
        what = "not a picture" if unknown else f"not a readable picture ({problem})"
        raise UserError(what, path, "name a PNG, JPEG or other file that Pillow reads") from None


def _square(picture: Image.Image) -> tuple[UInt8[np.ndarray, "32 32 3"], str]:
    steps = [f"{picture.width} x {picture.height} {picture.mode}"]
    upright = ImageOps.exif_transpose(picture)
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        steps.append("turned upright")
    if upright.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, without a value for white")
    if upright.mode.startswith("I;16"):  # Pillow alone would clip 16 bits at 255
        upright = Image.fromarray((np.asarray(upright).astype(np.float64) * (255 / 65535)).round().astype(np.uint8))
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        steps.append("on white")
    if upright.width != upright.height:
        steps.append(f"its middle {min(upright.size)} x {min(upright.size)}")
    if upright.size != (SIDE, SIDE):
        steps.append(f"resized to {SIDE} x {SIDE}")
    fitted = ImageOps.fit(upright.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(fitted), ", ".join(steps)


def read_image(text: str, dataset: Callable[[], Dataset]) -> Picture:
    """Read the image of an id or a picture file; UserError offering the nearest of either."""
    if re.fullmatch(r"(train|test)_\d{5}", text, re.ASCII):
        image, label = dataset().find(text)
        return Picture(text, image, dataset().class_names[label])
    path = Path(text)
    if not path.exists():
        near = _nearest(path)
        raise UserError("neither an id nor a file", text, f"did you mean {near}?" if near else "ids: train_00007, ...")
    image, done = read(path)
    return Picture(path.stem.encode("utf-8", "replace").decode(), image, done=f"{text}: {done}")


def _nearest(path: Path) -> str | None:
    """Guess the id or the file that somebody who wrote this meant."""
    match = re.fullmatch(r"([a-z]+)[_-]?(\d{1,5})", str(path), re.ASCII)
    if match and (split := get_close_matches(match[1], ["train", "test"], 1)):
        return f"{split[0]}_{int(match[2]):05d}"
    near = get_close_matches(path.name, [file.name for file in path.parent.glob("*")], 1)
    return str(path.parent / near[0]) if near else None


def read_images(texts: Sequence[str], dataset: Callable[[], Dataset]) -> list[Picture]:
    """Read all images, each under a name of its own: two files of one name do not overwrite each other's figures."""
    named: dict[str, Picture] = {}
    for picture in (read_image(text, dataset) for text in dict.fromkeys(texts)):
        names = (f"{picture.name}-{k}" if k > 1 else picture.name for k in count(1))
        name = next(name for name in names if name not in named)
        named[name] = picture._replace(name=name)
    return list(named.values())
