"""Our own networks in PyTorch, by their names in `jaxcnn.networks`: tables, twins, cases, controls of our training."""

from parity.table import Table, conv, dense, dense_after_flatten

TABLES = {
    "tutorial": Table.of(conv("conv1"), conv("conv2"), dense_after_flatten("fc3", 16, 16), dense("fc4")),
}
