"""Put weights, pictures, arithmetic and drawing into one HTML file that loads nothing else."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from jaxcnn import map_figures
from jaxcnn.explorer.graph import layers_of
from jaxcnn.pictures import Picture
from jaxcnn.weights import Weights

HERE = Path(__file__).parent
# In the order of the page: each uses only those before it.
SCRIPTS = (
    "arithmetic.js",
    "pictures.js",
    "colours.js",
    "maps.js",
    "explained.js",
    "detail.js",
    "choices.js",
    "state.js",
    "page.js",
)


def make_page(weights: Weights, pictures: Sequence[Picture], class_names: Sequence[str], title: str) -> str:
    """Make the page of a network with pictures to choose from; no `<` in a text can end its data block."""
    data = json.dumps(_data(weights, pictures, class_names), separators=(",", ":")).replace("<", "\\u003c")
    script = "\n".join(['"use strict";', *((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)])
    style = (HERE / "page.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data: blob:"
    parts = {"POLICY": policy, "TITLE": html.escape(title), "STYLE": style, "SCRIPT": script, "DATA": data}
    return re.sub(r"\[\[([A-Z]+)\]\]", lambda part: parts[part[1]], (HERE / "page.html").read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """Return a text's hash for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(weights: Weights, pictures: Sequence[Picture], class_names: Sequence[str]) -> dict[str, Any]:
    layers, factor = layers_of(weights.network, weights.variables)
    return {
        "layers": [
            layer._asdict() | {"arrays": {name: _base64(array) for name, array in layer.arrays.items()}}
            for layer in layers
        ],
        "factor": factor,
        "views": [view._asdict() for view in weights.network.views],
        "classes": list(class_names),
        "pictures": [
            {"name": picture.name, "truth": picture.truth, "pixels": _base64(picture.image)} for picture in pictures
        ],
        "drawing": weights.dataset == "digits",
        "colours": {"sequential": _colours(map_figures.SEQUENTIAL), "diverging": _colours(map_figures.DIVERGING)},
    }


def _base64(array: np.ndarray) -> str:
    """Write an array's bytes, little-endian, as text."""
    return base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode()


def _colours(name: str) -> list[str]:
    return [to_hex(colour) for colour in mpl.colormaps[name](np.linspace(0, 1, 256))]
