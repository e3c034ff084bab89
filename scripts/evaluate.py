"""The exact test accuracy of trained weights."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import parity
from jaxcnn import cli, data, files, platform, train, weights
from jaxcnn.model import model_for

EXAMPLES = """examples:
  python scripts/evaluate.py runs/cifar10
  python scripts/evaluate.py cifar10model.pth
  python scripts/evaluate.py runs/digits/weights.safetensors --json result.json --logits logits.npz"""


def parser() -> cli.ArgumentParser:
    """The command line."""
    parser = cli.ArgumentParser("Classify every test image, dropout off, and print the exact accuracy.", EXAMPLES)
    parser.add_argument("weights", metavar="WEIGHTS", help="a run directory, a .safetensors, a .pth")
    cli.add_data_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON too")
    parser.add_argument("--logits", type=Path, metavar="FILE.npz",
        help="write logits float32 [n, 10], labels and ids, in the order of ids")  # fmt: skip
    return parser


def main() -> None:
    """Load, classify, print, write."""
    arguments = parser().parse_args()
    platform.start(None)
    loaded = parity.load_weights(arguments.weights)
    dataset = data.load(arguments.dataset or loaded.dataset or "cifar10", arguments.data_dir)
    weights.check_classes(loaded.params, dataset.class_names, arguments.weights)
    test = dataset.test
    logits = train.predict_logits(model_for(loaded.params), loaded.params, jnp.asarray(test.images))
    loss, accuracy = train.metrics(logits, jnp.asarray(test.labels))
    correct = round(float(accuracy) * len(test))
    print(f"{dataset.name} test accuracy {correct / len(test):.2%} ({correct} of {len(test)}), loss {float(loss):.4f}")
    result = {
        "dataset": dataset.name,
        "images": len(test),
        "correct": correct,
        "test_accuracy": correct / len(test),
        "test_loss": float(loss),
    }
    if arguments.json:
        files.write_text(arguments.json, json.dumps(result, indent=2) + "\n")
    if arguments.logits:
        with files.written_whole(arguments.logits) as temporary, temporary.open("wb") as file:
            np.savez(file, logits=np.asarray(logits, np.float32), labels=test.labels, ids=np.array(test.ids))


if __name__ == "__main__":
    cli.run(main)
