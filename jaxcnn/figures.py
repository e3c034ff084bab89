"""Arrays to matplotlib figures. Functions return a figure and never show it; `save` writes it whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxcnn.files import written_whole

TRAIN, TEST = "#4477aa", "#cc6677"  # Paul Tol's bright pair: told apart in grey and by colour-blind eyes


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix, without the time in it: equal figures are equal files."""
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[path.suffix[1:]]
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


def curves(metrics: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Loss and accuracy of both splits against the epoch, the best test accuracy marked.

    metrics: the lines of `metrics.jsonl`. Training figures are the running epoch's, dropout on: they lag behind.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in metrics]
    for axes, quantity, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
        for split, colour, name in (("train", TRAIN, "training (dropout on)"), ("test", TEST, "test")):
            values = [scale * line[f"{split}_{quantity}"] for line in metrics]
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=name)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("mean cross entropy (nats)")
    right.set_ylabel("accuracy (%)")
    best = max(metrics, key=lambda line: line["test_accuracy"])
    height = 100 * best["test_accuracy"]
    right.plot(
        best["epoch"], height, "*", color=TEST, markersize=14, label=f"best: {height:.2f} %, epoch {best['epoch']}"
    )
    left.legend(frameon=False)
    right.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    return figure
