"""The tables of our own networks, by their names in `jaxcnn.networks`."""

from jaxcnn import networks
from jaxcnn.networks import Network
from parity.table import CONV, DENSE, DENSE_AFTER_FLATTEN, Entry, Table, layer

TUTORIAL = Table((
    *layer("conv1", CONV),
    *layer("conv2", CONV),
    *layer("fc3", DENSE_AFTER_FLATTEN, h=16, w=16),
    *layer("fc4", DENSE),
))  # fmt: skip
SPEEDRUN = Table((
    Entry("normalise.{mean,deviation}", "normalise/{mean,deviation}", "c -> c", collection="constants"),
    Entry("whiten.bias", "whiten/bias", "o -> o"),
    Entry("whiten.weight", "whiten/kernel", CONV, collection="constants"),
    *(entry for place in range(1, 8) for entry in (
        Entry(f"conv{place}.weight", f"conv{place}/kernel", CONV),
        Entry(f"norm{place}.bias", f"norm{place}/bias", "c -> c"),
        Entry(f"norm{place}.running_{{mean,var}}", f"norm{place}/{{mean,var}}", "c -> c", collection="batch_stats"),
    )),
    Entry("head.weight", "head/kernel", DENSE),
))  # fmt: skip
TABLES = {"tutorial": TUTORIAL, "speedrun": SPEEDRUN}


def table_of(network: Network) -> Table:
    """Find the table of one of our networks."""
    return TABLES[networks.describe(network)["name"]]
