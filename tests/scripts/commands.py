"""The commands as modules, to be asked for their parsers."""

import importlib.util
import sys
from types import ModuleType

from parity import __main__ as parity_main
from tests.conftest import ROOT

sys.path.append(str(ROOT / "scripts"))  # as Python does for a script that it runs

NAMES = (
    "train", "evaluate", "prepare_data", "feature_maps", "explore", "predict", "convert", "benchmark", "compare_runs",
)  # fmt: skip


def module(name: str) -> ModuleType:
    """A script, imported from its file; `parity` is `python -m parity`."""
    if name == "parity":
        return parity_main
    key = f"scripts_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / "scripts" / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]
