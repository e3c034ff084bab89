"""What `import jaxcnn` gives."""

import subprocess
import sys

from tests.conftest import ROOT

CODE = """
import sys
import jaxcnn
names = dir(jaxcnn)
assert {"CNN", "Config", "UserError", "Weights", "load", "features", "train"} <= set(names), names
assert not [name for name in names if name.startswith("_") or name in ("Any", "import_module", "iter_modules")], names
try:
    jaxcnn.absent
except AttributeError as problem:
    assert "absent" in str(problem)
assert not {"jax", "numpy", "PIL"} & sys.modules.keys()
for widths in ([4, 16], "ab"):  # without checks of annotations: a list, as JSON has it, is made a tuple
    try:
        assert jaxcnn.Config(widths=widths).widths == (4, 16)
    except jaxcnn.UserError as problem:
        assert widths == "ab" and "widths is 'ab'" in str(problem)
try:
    jaxcnn.Config(dataset="x")
except jaxcnn.UserError as problem:
    print(problem)
import numpy
try:
    jaxcnn.train.predict_logits(jaxcnn.CNN(), {}, numpy.zeros((1, 32, 32, 3), numpy.float32))
except TypeError as problem:
    print(problem)
assert jaxcnn.features.layer_shapes and jaxcnn.figures.save and jaxcnn.networks.tutorial
for name in ("config", "data", "features", "figures", "pictures", "weights", "networks", "train", "recipe"):
    assert getattr(jaxcnn, name) is sys.modules[f"jaxcnn.{name}"]
"""


def test_names_and_modules_are_there_and_cost_nothing_until_they_are_used():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dataset is 'x', not cifar10 or digits or folder: Config; ")
    assert "images should be uint8" in done.stdout
