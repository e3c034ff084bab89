"""The tables of our own networks, by their names in `jaxcnn.networks`."""

from parity.table import CONV, DENSE, DENSE_AFTER_FLATTEN, Table, layer

TUTORIAL = Table((
    *layer("conv1", CONV),
    *layer("conv2", CONV),
    *layer("fc3", DENSE_AFTER_FLATTEN, h=16, w=16),
    *layer("fc4", DENSE),
))  # fmt: skip
TABLES = {"tutorial": TUTORIAL}
