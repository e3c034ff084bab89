"""Wrong ports, each with one mistake, or two, and what has to be said of it."""

from tests.parity.wrong import attention, geometry, glue, modes, norms, training, two, weights
from tests.parity.wrong.case import Wrong, build

GROUPS = (weights, geometry, norms, attention, glue, modes, training, two)
CASES: dict[str, Wrong] = {name: wrong for group in GROUPS for name, wrong in group.CASES.items()}

__all__ = ["CASES", "Wrong", "build"]
