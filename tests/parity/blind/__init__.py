"""Wrong ports that the diagnosis was not made for, and what it should say of each."""

from tests.parity.blind.between import BETWEEN
from tests.parity.blind.layers import LAYERS
from tests.parity.blind.training import TRAINING
from tests.parity.blind.twice import TWICE
from tests.parity.blind.wrong import RIGHT, Wrong, build

CASES: dict[str, Wrong] = LAYERS | BETWEEN | TWICE | TRAINING

__all__ = ["CASES", "RIGHT", "Wrong", "build"]
