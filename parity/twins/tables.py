"""The tables of our own networks, by their names in `jaxcnn.networks`."""

from parity.table import Table, conv, dense, dense_after_flatten

TABLES = {
    "tutorial": Table.of(conv("conv1"), conv("conv2"), dense_after_flatten("fc3", 16, 16), dense("fc4")),
}
