"""Scikit-learn's handwritten digits: 1,797 real images that its package contains."""

import importlib.util
from pathlib import Path

import numpy as np

from jaxcnn.data.dataset import Dataset, Split, places_in_class
from jaxcnn.errors import UserError


def load_digits() -> Dataset:
    """Return the digits enlarged to grey uint8 [n, 32, 32, 3]. Every fifth image of a class is a test image."""
    from PIL import Image

    # Read without importing sklearn.datasets, which takes 0.8 s, nearly all of it SciPy's.
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin if spec and spec.origin else "sklearn").parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise UserError("scikit-learn's digits are not installed", path, "pip install --force-reinstall scikit-learn")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    grey, labels = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, 64]
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    test = places_in_class(labels) % 5 == 4
    splits = Split("train", images[~test], labels[~test]), Split("test", images[test], labels[test])
    return Dataset("digits", tuple("0123456789"), *splits)
