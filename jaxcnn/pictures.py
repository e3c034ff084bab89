"""Read a picture file of any size and mode as an image for the network."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxcnn.errors import UserError

SIDE = 32


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
