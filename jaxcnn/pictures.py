"""Make images for the network from pictures of any size and mode, ids of a data set, or arrays."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.paths import at_home

SIDE = 32
LARGEST = 200_000_000  # pixels of a picture: the largest cameras make; Pillow alone stops at 89 million
ID = re.compile(r"(train|test)_\d{5,}", re.ASCII)
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


class Picture(NamedTuple):
    """An image for the network, under the name of its id or its file."""

    name: str
    image: UInt8[np.ndarray, "32 32 3"]
    truth: str | None = None  # its class, if that is known
    done: str = ""  # what was done to a picture file to make the image


def read(path: Path) -> tuple[UInt8[np.ndarray, "32 32 3"], str]:
    """Return a picture as uint8 [32, 32, 3], and a description of what was done to it.

    Its first frame is rotated as its EXIF says, transparency becomes white, 16 bits become 8, and the square in its
    middle is resized. Raise UserError if there is no such picture, or one with absurdly many pixels.
    """
    with bombs_refused():
        return decoded(path)


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Make Pillow refuse absurdly large pictures, without warnings, in all threads."""
    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def decoded(path: Path) -> tuple[UInt8[np.ndarray, "32 32 3"], str]:
    """Do the work of `read` within `bombs_refused`, which threads must share: it changes the whole process."""
    if not path.is_file():
        raise UserError("no such picture file", path, "name a PNG, JPEG or other picture file")
    try:
        with Image.open(path) as picture:
            return _square(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"more than {LARGEST / 1e6:.0f} million pixels", path, "shrink the picture first") from None
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
        deep = np.asarray(upright).astype(np.float64)
        opaque = 255 * (deep != upright.info.get("transparency", -1))
        upright = Image.fromarray(np.stack([(deep * (255 / 65535)).round(), opaque], axis=-1).astype(np.uint8), "LA")
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        steps.append("on white")
    if upright.width != upright.height:
        steps.append(f"its middle {min(upright.size)} x {min(upright.size)}")
    if upright.size != (SIDE, SIDE):
        steps.append(f"resized to {SIDE} x {SIDE}")
    return np.asarray(_resized(upright.convert("RGB"))), ", ".join(steps)


def _resized(picture: Image.Image) -> Image.Image:
    """Resize the square in the middle, the shorter axis last: Pillow's own order of axes depends on its version."""
    side, how = min(picture.size), Image.Resampling.LANCZOS
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    if picture.height > picture.width:
        rows = picture.resize((picture.width, SIDE), how, (0, top, picture.width, top + side))
        return rows.resize((SIDE, SIDE), how, (left, 0, left + side, SIDE))
    columns = picture.resize((SIDE, picture.height), how, (left, 0, left + side, picture.height))
    return columns.resize((SIDE, SIDE), how, (0, top, SIDE, top + side))


def is_picture(path: Path) -> bool:
    """Tell if a file is a picture by its suffix, and not a hidden one."""
    forms = Image.registered_extensions()
    return forms.get(path.suffix.lower()) in Image.OPEN and not path.name.startswith(".") and path.is_file()


def read_image(text: str, dataset: Callable[[], Dataset]) -> Picture:
    """Read the image of an id or a picture file; UserError offering the nearest of either."""
    if ID.fullmatch(text):
        image, label = dataset().find(text)
        return Picture(text, image, dataset().class_names[label])
    path = at_home(text)
    if not path.exists():
        near = _nearest(path)
        what = "no such file or folder" if path.suffix or "/" in text else "neither an id nor a file"
        raise UserError(what, text, f"did you mean {near}?" if near else "ids: train_00007, ...")
    image, done = read(path)
    return Picture(path.stem.encode("utf-8", "replace").decode(), image, done=f"{text}: {done}")


def _nearest(path: Path) -> str | None:
    """Guess the id or the file that was meant."""
    match = re.fullmatch(r"([a-z]+)[_-]?(\d{1,9})", str(path), re.ASCII)
    if match and (split := get_close_matches(match[1], ["train", "test"], 1)):
        return f"{split[0]}_{int(match[2]):05d}"
    near = get_close_matches(path.name, [file.name for file in path.parent.glob("*")], 1)
    return str(path.parent / near[0]) if near else None


def read_images(texts: Sequence[str], dataset: Callable[[], Dataset]) -> list[Picture]:
    """Read all images under unique names: two files of one name do not overwrite each other's figures."""
    named: dict[str, Picture] = {}
    for picture in (read_image(text, dataset) for text in dict.fromkeys(texts)):
        names = (f"{picture.name}-{k}" if k > 1 else picture.name for k in count(1))
        name = next(name for name in names if name not in named)
        named[name] = picture._replace(name=name)
    return list(named.values())


def prepared(given: Any, largest: Any = 1) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Make images for the network from arrays, PIL images, picture files, or lists of any of these.

    Arrays are [h, w], [h, w, c], [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels, of whole numbers from 0 to 255 or
    of floats from 0 to `largest`, which is 1 or 255; floats are rounded to 8 bits. Other sizes and grey become 32 x 32
    in colour as in `read`. Raise TypeError or ValueError in one line for what is not an image, UserError for a file.
    """
    if not isinstance(largest, int | float) or largest not in (1, 255):
        raise ValueError(f"largest is {largest!r:.40}; say 1 or 255, whichever is white")
    if isinstance(given, list | tuple):
        if any(getattr(one, "ndim", None) == 2 and one.shape[1] in CHANNELS[1:] for one in given):
            raise ValueError("a list of the rows of an image; give the image itself, or arrays of images")
        if any(isinstance(one, int | float) for one in given):
            raise TypeError("images are nested lists; make an array of uint8 of them: numpy.array(images, numpy.uint8)")
        return np.concatenate([np.empty((0, SIDE, SIDE, 3), np.uint8), *(prepared(one, largest) for one in given)])
    if isinstance(given, str | os.PathLike):
        return read(at_home(given))[0][None]
    if isinstance(given, Image.Image):
        return _of_pillow(given)[None]
    array = _array(given)
    pixels = _eight_bits(_with_four_axes(array), largest, _describe(array))
    if pixels.shape[1:] == (SIDE, SIDE, 3):
        return pixels
    images = (Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image) for image in pixels)
    return prepared([_square(image)[0] for image in images])


def _of_pillow(picture: Image.Image) -> UInt8[np.ndarray, "32 32 3"]:
    try:
        if 0 in picture.size:
            raise ValueError("no pixels")
        return _square(picture)[0]
    except Exception as problem:  # a file that is read only now can make a decoder raise anything
        what = f"a PIL image of mode {picture.mode} and size {picture.size} that cannot be shown ({problem})"
        raise ValueError(f"{' '.join(what.split())}; give one of 8 bits a channel") from problem


def _describe(array: np.ndarray) -> str:
    return f"images are {array.dtype}{list(array.shape)}"


def _array(given: Any) -> np.ndarray:
    """Make an array of numbers from anything that NumPy takes. Raise TypeError if they are not pixels."""
    try:
        array = np.asarray(given)
    except Exception as problem:  # such as PyTorch's, of a tensor that has a gradient or is on a GPU
        what = f"images are a {type(given).__name__} that NumPy does not take ({problem})"
        raise TypeError(f"{' '.join(what.split())}; make it an array of uint8 or float32") from problem
    if array.dtype.name == "uint16":
        raise TypeError(f"{_describe(array)}; divide by the value that is white, 65535 for 16 bits")
    if not _is_float(array) and array.dtype.kind not in "iu":
        found = _describe(array) if hasattr(given, "dtype") else f"images are a {type(given).__name__}"
        raise TypeError(f"{found}; give whole numbers from 0 to 255 or floats from 0 to 1, PIL images or paths")
    return array


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _with_four_axes(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "n h w c"]:
    """Give images the axes [n, h, w, c]. Raise ValueError if their axes are wrong or ambiguous."""
    shape, found = array.shape, _describe(array)
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"{found}; give [h, w], [h, w, c], [n, h, w] or [n, h, w, c]")
    if array.ndim == 4 and shape[3] not in CHANNELS and shape[1] in CHANNELS:
        raise ValueError(f"{found}, channels first; transpose them to channels last: images.transpose(0, 2, 3, 1)")
    if array.ndim == 4 and shape[3] not in CHANNELS:
        raise ValueError(f"{found}; the last axis should be 1, 3 or 4 channels")
    if array.ndim == 3 and shape[2] not in CHANNELS and shape[0] in CHANNELS[1:]:
        what = f"one image with its channels first, or {shape[0]} grey ones"
        raise ValueError(f"{found}, {what}; say which: image.transpose(1, 2, 0) or images[..., None]")
    if array.ndim == 3 and shape[2] not in CHANNELS and shape[2] < 8:
        what = f"an image of {shape[2]} channels, or {shape[0]} grey ones {shape[2]} pixels wide"
        raise ValueError(f"{found}, {what}; give 1, 3 or 4 channels, or images[..., None]")
    array = array if array.ndim == 4 or (array.ndim == 3 and shape[2] in CHANNELS) else array[..., None]
    array = array if array.ndim == 4 else array[None]
    if 0 in array.shape[1:]:
        raise ValueError(f"{found}; give images of a pixel or more")
    return array


def _eight_bits(array: Shaped[np.ndarray, "n h w c"], largest: Any, found: str) -> UInt8[np.ndarray, "n h w c"]:
    """Round pixels to 8 bits. Raise ValueError if they are not from 0 to white."""
    if array.dtype == np.uint8:
        return array
    is_float = _is_float(array)
    white, wide = (largest, array.astype(np.float32) if array.itemsize < 4 else array) if is_float else (255, array)
    if array.size and not (wide.min() >= 0 and wide.max() <= white * (1 + 1e-6)):  # NaN is neither; 1e-6 is rounding
        low, high = float(wide.min()), float(wide.max())
        todo = "scale them, or say largest=255 if 255 is white" if is_float and white == 1 else "scale them"
        todo = "undo their normalisation" if low < 0 else todo
        todo = todo if np.isfinite([low, high]).all() else "find where NaN or infinity comes from"
        raise ValueError(f"{found} from {low:.9g} to {high:.9g}, not from 0 to {white}; {todo}")
    return np.rint(np.minimum(wide * (255 / white), 255)).astype(np.uint8)
