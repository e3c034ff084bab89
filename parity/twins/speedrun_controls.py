"""The negative controls of speedrun: its classic mistakes made on purpose, and where the chain notices each first."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxcnn import augment, networks, recipe, train
from jaxcnn.data import Dataset
from jaxcnn.layers import scale_pixels
from jaxcnn.networks.speedrun import VIEWS, Speedrun
from jaxcnn.optimizers import linear, orthogonalised, sgd, to_norm
from parity.mistakes import Control, Mistake, attribute, axes, loss, operation, optimizer
from parity.twins import training
from parity.twins.cases import drawn
from parity.twins.pairs import started

NETWORK = Speedrun(4, 6, 8, 10)


def small_trial(data: Dataset) -> training.Trial:
    """Choose the training that the mistakes are made in."""
    data = training.grained(data)
    weights = drawn(NETWORK, data.train.images)
    sizes = {"images": 4, "subset": 12, "steps": 3, "evaluated": 40}
    return training.speedrun_trial(
        weights, data, **sizes, cases=("random", "training", "ties"), compiled=False, eager=True
    )


def of_recipe(**wrong: Callable[..., Any]) -> Mistake:
    """Change fields of Flax's recipe: `wrong` is given the right recipe first, then the field's own arguments."""

    def made(right: recipe.Recipe) -> recipe.Recipe:
        fields: dict[str, Any] = {name: partial(function, right) for name, function in wrong.items()}
        return replace(right, **fields)

    return lambda pair: replace(pair, make_recipe=lambda *given: made(pair.make_recipe(*given)))


def of_kind(kind: str, wrong: Callable[..., optax.GradientTransformation]) -> Mistake:
    """Change the optimizer of a kind of parameters: `wrong` is given its options by name."""

    def made(right: Any, taken: int, **options: Any) -> optax.GradientTransformation:
        kinds = recipe.speedrun_optimizers(*options.values())
        return started(recipe.by_kind({**kinds, kind: wrong(**options)}), taken)

    return optimizer(made)


def muon(
    nesterov: bool = True, newton_schulz: int = 3, last: tuple[optax.GradientTransformation, ...] = (to_norm(),)
) -> Mistake:
    """Make a different Muon."""
    matrices = partial(jax.tree.map, partial(orthogonalised, steps=newton_schulz))
    return of_kind("convolution", lambda rate, momentum, steps, **_: optax.chain(
        optax.trace(momentum, nesterov), optax.stateless(lambda updates, _: matrices(updates)),
        optax.scale_by_learning_rate(linear(rate, steps)), *last))  # fmt: skip


def nesterov(rate: float, steps: int, decay: float) -> optax.GradientTransformation:
    """Make the SGD of all parameters except convolutions."""
    return sgd(linear(rate, steps), 0.85, nesterov=True, weight_decay=decay)


def biased(module: Any, call: Callable[..., Array], x: Array, key: Any) -> Array:
    """Keep the biased variance."""
    before, y = module.get_variable("batch_stats", "var"), call(x, key)
    if key is not None:
        values = key.real.sum(dtype=x.dtype) * (x.shape[1] * x.shape[2])
        old, new = module.kept * before, module.get_variable("batch_stats", "var")
        module.put_variable("batch_stats", "var", old + (new - old) * ((values - 1) / values))
    return y


def without_residual(pair: Any) -> Any:
    """Leave out the residual of the first group."""
    seen: dict[str, Array] = {}

    def kept(module: Any, call: Callable[..., Array], *given: Any) -> Array:
        seen["x"] = call(*given)
        return seen["x"]

    return operation("act2", lambda layer, call, x: call(seen["x"]))(operation("norm2", kept)(pair))


def undivided(pair: Any) -> Any:
    """Leave out the division of logits by the head's width."""

    def apply(network: Speedrun, *given: Any) -> Any:
        logits, after = pair.apply(network, *given)
        return logits * network.width3, after

    return replace(pair, apply=apply)


def resized(method: Callable[[Array, int], Array]) -> Mistake:
    """Resize the images of training in another way."""

    def forward(right: recipe.Recipe, variables: Any, images: Array, key: Any, size: int | None = None) -> Any:
        x = scale_pixels(images, right.network.param_dtype)
        x = x if size is None else method(x, size)
        logits, kept = right.network.apply(variables, x, key, mutable=["batch_stats"])
        return logits, {name: tree for name, tree in variables.items() if name != "params"} | dict(kept)

    return of_recipe(forward=forward)


def augmented(shifts: Callable[[Array], Array] = lambda x: x, epoch: Callable[[Array], Array] = lambda x: x) -> Mistake:
    """Shift and mirror images in another way."""

    def images(right: recipe.Recipe, batch: Any, key: Any, flip_key: Any, now: Array) -> Array:
        moved = augment.shifted(batch.images, shifts(augment.random_shifts(key, batch.indices, 2)), 2)
        return augment.flipped(moved, augment.alternating(flip_key, batch.indices, epoch(now)))

    return of_recipe(augment=images)


class Forgetful(Speedrun):
    """Speedrun without the last of its views."""

    views = VIEWS[:-1]


def view_forgotten(network: Speedrun, *given: Any, **options: Any) -> Array:
    """Evaluate without one of the views."""
    fields = {**networks.describe(network), "dtype": network.dtype, "param_dtype": network.param_dtype}
    fields.pop("name")
    return train.predict_logits(Forgetful(**fields), *given, **options)


def first_weights(layer: str, wrong: Callable[[Array], Array]) -> Mistake:
    """Draw the first weights of a layer in another way."""

    def draw(network: Speedrun, key: Any) -> Any:
        right = networks.initial_variables(network, key)
        params = {**right["params"], layer: jax.tree.map(wrong, right["params"][layer])}
        return {**right, "params": params}

    return lambda pair: replace(pair, draw=draw)


def unsmoothed(right: Any, logits: Array, labels: Array, real: Array) -> Array:
    """Leave out the smoothing of labels."""
    return recipe.smoothed_loss(logits, labels, real, 0.0)


CONTROLS = (
    Control("whitening kernel: height for width", ("activations", "whiten", "random"),
            axes("whiten/kernel", "o i h w -> w h i o")),
    Control("GELU's tanh form", ("activations", "act0", "random"),
            operation("act0", lambda layer, call, x: jax.nn.gelu(x, approximate=True))),
    Control("batch norm's epsilon 1e-5", ("activations", "norm1", "random"),
            attribute("norm1", "epsilon", lambda right: 1e-5)),
    Control("a residual left out", ("activations", "act2", "random"), without_residual),
    Control("head not divided by its width", ("outputs", "logits", "random"),
            undivided),
    Control("running statistics in training", ("activations", "norm1", "training"),
            operation("norm1", lambda layer, call, x, key: call(x, None))),
    Control("statistics over filled images", ("activations", "norm1", "training"),
            operation("norm1", lambda layer, call, x, key: call(x, key and key._replace(real=None)))),
    Control("batch norm keeps 0.4, not 0.6", ("statistics", "norm1.running_mean", "training"),
            attribute("norm1", "kept", lambda right: 1 - right)),
    Control("biased running variance", ("statistics", "norm1.running_var", "training"), operation("norm1", biased)),
    Control("pooling ties to the last maximum", ("gradients", "conv1.weight", "ties"),
            operation("pool1", lambda layer, call, x: call(x[:, :30, :30][:, ::-1, ::-1])[:, ::-1, ::-1])),
    Control("global pooling's ties to all maxima", ("gradients", "conv7.weight", "ties"),
            operation("pool7", lambda layer, call, x: x.max(axis=(1, 2)))),
    Control("label smoothing left out", ("outputs", "loss", "random"), loss(unsmoothed)),
    Control("mean for sum", ("outputs", "loss", "random"),
            loss(lambda right, x, labels, real: right(x, labels, real) / real.sum(dtype=x.dtype))),
    Control("Muon's kernels not normalised", ("step", "conv1.weight", "first"), muon(last=())),
    Control("five steps of Newton and Schulz", ("step", "conv1.weight", "first"), muon(newton_schulz=5)),
    Control("Nesterov left out of Muon", ("step", "conv1.weight", "first"), muon(nesterov=False)),
    Control("schedule one step off", ("step", "whiten.bias", "first"),
            optimizer(lambda right, taken, **options: started(right, taken + 1))),
    Control("whitening bias trained to the end", ("step", "whiten.bias", "whitening"),
            of_kind("whiten", lambda batch, steps, **_: nesterov(0.053, steps, 1e-6 * batch / 0.053))),
    Control("weight decay not divided by the rate", ("step", "head.weight", "first"),
            of_kind("head", lambda batch, steps, **_: nesterov(0.67, steps, 1e-6 * batch))),
    Control("constants of half the images", ("initial", "normalise.mean", ""),
            of_recipe(constants=lambda right, images: right.constants(images[::2]))),
    Control("shift in the wrong direction", ("trajectory", "images0", ""), augmented(shifts=lambda shifts: -shifts)),
    Control("flips that do not alternate", ("trajectory", "images1", ""), augmented(epoch=jnp.zeros_like)),
    Control("images not resized", ("trajectory", "conv1.weight", ""), resized(lambda x, size: x)),
    Control("resized without antialias", ("trajectory", "conv1.weight", ""),
            resized(lambda x, size: jax.image.resize(x, (len(x), size, size, 3), "linear", antialias=False))),
    Control("a view forgotten", ("evaluation", "logits", ""), partial(replace, predict_logits=view_forgotten)),
    Control("identities left out", ("trajectory", "conv1.weight.fixed", ""),
            first_weights("conv1", lambda kernel: kernel + 1e-3)),
    Control("head not divided by its deviation", ("trajectory", "head.weight.initial", ""),
            first_weights("head", lambda kernel: kernel * 8**-0.5)),
)  # fmt: skip
