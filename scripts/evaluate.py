"""Compute the exact test accuracy of trained weights."""

import csv
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a checkout needs no installation

import parity
from jaxcnn import cli, data, figures, files, platform, train, weights
from jaxcnn.errors import UserError
from jaxcnn.paths import at_home
from jaxcnn.progress import say
from jaxcnn.run_directory import data_source

EXAMPLES = """examples:
  python scripts/evaluate.py runs/cifar10
  python scripts/evaluate.py cifar10model.pth
  python scripts/evaluate.py runs/digits/weights.safetensors --json result.json --logits logits.npz
  python scripts/evaluate.py runs/cifar10 --predictions predictions.csv    a row for each image
  python scripts/evaluate.py runs/cifar10 --figures runs/cifar10    confusion.png and most_wrong.png"""


def parser() -> cli.ArgumentParser:
    """Make the command line."""
    parser = cli.ArgumentParser("Classify every test image, dropout off, and print the exact accuracy.", EXAMPLES)
    add = parser.add_argument
    cli.add_weights(parser)
    add("--json", type=at_home, metavar="FILE", help="write the result as JSON too")
    add("--logits", type=at_home, metavar="FILE.npz", help="write logits float32 [n, classes], labels and ids")
    add("--predictions", type=at_home, metavar="FILE.csv", help="write id, truth, prediction, probability")
    add("--figures", type=at_home, metavar="DIR", help="draw the confusion matrix and the worst mistakes")
    return parser


def draw(directory: Path, dataset: data.Dataset, probabilities: np.ndarray, count: int = 24) -> None:
    """Write `confusion.png`, and `most_wrong.png` with `count` images at most; print where they are."""
    test, names, predicted = dataset.test, dataset.class_names, probabilities.argmax(axis=1)
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (test.labels, predicted), 1)
    wrong = np.flatnonzero(predicted != test.labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]
    title, true = f"{dataset.name}, {len(test):,} test images", [names[label] for label in test.labels]
    subjects = [figures.Subject(test.names[i], test.images[i], probabilities[i], names, true[i]) for i in surest]
    confusion = figures.confusion(counts, names, title)
    most_wrong = figures.most_wrong(subjects, f"{title}: most confidently wrong")
    for figure, path in (confusion, directory / "confusion.png"), (most_wrong, directory / "most_wrong.png"):
        figures.save(figure, path)
        print(f"wrote {path}")


def write_predictions(path: Path, dataset: data.Dataset, probabilities: np.ndarray) -> None:
    """Write a row for each test image: id, class, most likely class, its probability, file if any."""
    test, names = dataset.test, dataset.class_names
    best = probabilities.argmax(axis=1)
    truth, predicted = ([names[label] for label in labels] for labels in (test.labels, best))
    with files.written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = {"id": test.ids, "truth": truth, "prediction": predicted}
        columns |= {"probability": probabilities.max(axis=1).astype(str)} | ({"file": test.files} if test.files else {})
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def main() -> None:
    """Load, classify, print, write."""
    arguments = parser().parse_args()
    for path in (arguments.json, arguments.logits, arguments.predictions):
        files.check_folder(path)
    if arguments.predictions and arguments.predictions.suffix != ".csv":
        raise UserError(f"the suffix is {arguments.predictions.suffix!r}", arguments.predictions, "end it in .csv")
    platform.start(None)
    loaded = parity.load_weights(arguments.weights, entry=arguments.entry)
    source = data_source(arguments.weights, loaded.dataset, arguments.dataset, arguments.data_dir)
    dataset = data.load(*source)
    weights.check_names(loaded, dataset.name, dataset.class_names, source[1])
    weights.check_classes(loaded, dataset.class_names, arguments.weights)
    if loaded.images and dataset.name == loaded.dataset == "folder" and dataset.train.mark != loaded.images:
        say("warning: these are not the pictures that it was trained on, and some that are tested now may have been")
    test = dataset.test
    logits = train.predict_logits(loaded.network, loaded.variables, jnp.asarray(test.images))
    loss, accuracy = train.metrics(logits, jnp.asarray(test.labels))
    correct = round(float(accuracy) * len(test))
    print(f"{dataset.name} test accuracy {correct / len(test):.2%} ({correct} of {len(test)}), loss {float(loss):.4f}")
    if arguments.json:
        result = {"dataset": dataset.name, "images": len(test), "correct": correct}
        result |= {"test_accuracy": correct / len(test), "test_loss": float(loss)}
        files.write_text(arguments.json, json.dumps(result, indent=2) + "\n")
    if arguments.logits:
        with files.written_whole(arguments.logits) as temporary, temporary.open("wb") as file:
            np.savez(file, logits=np.asarray(logits, np.float32), labels=test.labels, ids=np.array(test.ids))
    probabilities = np.asarray(jax.nn.softmax(logits))
    if arguments.predictions:
        write_predictions(arguments.predictions, dataset, probabilities)
    if arguments.figures:
        draw(figures.folder(arguments.figures), dataset, probabilities)


if __name__ == "__main__":
    cli.run(main)
