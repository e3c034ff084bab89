"""Our own networks as pairs: each with its twin, its table, and its training on both sides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jaxtyping import Array

from jaxcnn import augment, networks, optimizers, recipe, train
from jaxcnn.layers import scale_pixels
from parity.pair import STEP_RATE, Case, Pair, torch_forward
from parity.torch_trace import channels_first
from parity.twins import speedrun, speedrun_training, tutorial
from parity.twins.speedrun_training import Augmented
from parity.twins.tables import table_of

SEED = 0
TWINS: dict[str, Any] = {"tutorial": tutorial.CNN, "speedrun": speedrun.Speedrun}
SGD: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"momentum": 0.9, "weight_decay": 0.1},
}
TAKEN = {"first": 0, "whitening": 2, "whitened": 3, "last": 7}  # the steps of 8 before the one that is compared
SCHEDULE: dict[str, Any] = {"momentum": 0.6, "batch": 1000, "steps": 8, "whitening": 3}


@dataclass(frozen=True, eq=False)
class TrainedPair(Pair):
    """One of our networks, its twin and its training, by default the tutorial's. A plan is a `training.Trial`."""

    # (network, plan) -> recipe
    make_recipe: Callable[..., recipe.Recipe] = lambda network, plan: recipe.tutorial(network, plan.rate, plan.momentum)
    # (plan, steps that are taken) -> options of `torch_optimizer`
    options: Callable[[Any, int], Mapping[str, Any]] = lambda plan, taken: {"lr": plan.rate, "momentum": plan.momentum}
    # (plan, images, their places in the data set, step) -> inputs of a batch in PyTorch
    batch: Callable[..., Any] = lambda plan, images, places, step: images
    torch_logits: Callable[[Pair, Case, torch.dtype], torch.Tensor] = lambda *given: torch_forward(*given)[0]
    torch_constants: Callable[..., Any] | None = None  # of training images
    draw: Callable[..., Any] = networks.initial_variables
    make_train_steps: Callable[..., Any] = train.make_train_steps
    predict_logits: Callable[..., Any] = train.predict_logits
    metrics: Callable[..., Any] = train.metrics


def pair_of(network: networks.Network, precision: str) -> TrainedPair:
    """Make the pair of one of our networks and its PyTorch twin."""
    with torch.device("meta"):  # the twin's own weights are not used
        torch_module = twin(network)
    common = TrainedPair(
        torch_module=torch_module,
        flax_module=network.clone(dtype=precision, param_dtype=precision),
        precision=precision,
        table=table_of(network),
        torch_input=lambda images, dtype: (pixels(images, dtype),),
        flax_input=lambda images, dtype: (flax_pixels(images, dtype),),
        apply=applied,
        torch_loss=mean_loss,
        flax_loss=recipe.mean_loss,
        optimizers={},
        output="logits",
        reported=lambda output, labels, real: mean_loss(output, labels, real).item() * real.sum(),
    )
    return RECIPES[networks.describe(network)["name"]](common)


def twin(network: networks.Network) -> torch.nn.Module:
    """Make the PyTorch twin of a network, with weights that PyTorch draws."""
    fields = networks.describe(network)
    return TWINS[fields.pop("name")](**fields)


def applied(module: Any, variables: Any, x: Any, key: Any) -> tuple[Array, Any]:
    """Apply one of our networks: its output, and its variables afterwards."""
    output, kept = module.apply(variables, *x, key, mutable=["batch_stats"] if key is not None else [])
    return output, {**variables, **kept}


def pixels(images: Any, dtype: torch.dtype) -> torch.Tensor:
    """Give images as PyTorch takes them: uint8 divided by 255, as `ToTensor` does."""
    if isinstance(images, Augmented):
        return speedrun_training.augmented(images, dtype)
    tensor = channels_first(images)
    return tensor.to(dtype) / 255 if tensor.dtype == torch.uint8 else tensor.to(dtype)


def flax_pixels(images: Any, dtype: str) -> Array:
    """Give images as Flax takes them."""
    if isinstance(images, Augmented):
        moved = augment.shifted(jnp.asarray(images.images), jnp.asarray(images.shifts), speedrun_training.MOST)
        return augment.resized(scale_pixels(augment.flipped(moved, jnp.asarray(images.mirrored)), dtype), images.size)
    array = jnp.asarray(images)
    return scale_pixels(array, dtype) if array.dtype == np.uint8 else array.astype(dtype)


def mean_loss(logits: torch.Tensor, labels: np.ndarray, real: np.ndarray) -> torch.Tensor:
    """Compute the mean cross entropy of the images that are real."""
    return torch.nn.functional.cross_entropy(logits[real], torch.from_numpy(labels[real]).long())


def _tutorial(pair: TrainedPair) -> TrainedPair:
    kinds = {kind: (o, optimizers.sgd(STEP_RATE, **o)) for kind, o in SGD.items()}
    return replace(pair, optimizers=kinds)


def speedrun_recipe(network: networks.Network, plan: Any) -> recipe.Recipe:
    """Make the recipe of a plan."""
    return recipe.speedrun(network, plan.rate, plan.momentum, plan.batch, plan.per_epoch, plan.epochs)


def speedrun_options(plan: Any, taken: int) -> dict[str, Any]:
    """Give the options of a plan's optimizer after `taken` steps."""
    steps, whitening = plan.epochs * plan.per_epoch, recipe.whitening_epochs(plan.epochs) * plan.per_epoch
    sizes = {"batch": plan.batch, "steps": steps, "whitening": whitening, "taken": taken}
    return {"rate": plan.rate, "momentum": plan.momentum, **sizes}


def started(optimizer: optax.GradientTransformation, taken: int) -> optax.GradientTransformation:
    """Make an optimizer that starts as if it had taken `taken` steps, which integers in its state count."""

    def counted(params: Any) -> Any:
        of = lambda leaf: jnp.full_like(leaf, taken) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf  # noqa: E731
        return jax.tree.map(of, optimizer.init(params))

    return optax.GradientTransformation(counted, optimizer.update)


def _speedrun(pair: TrainedPair) -> TrainedPair:
    right = recipe.by_kind(recipe.speedrun_optimizers(STEP_RATE, *SCHEDULE.values()))
    options = {"rate": STEP_RATE, **SCHEDULE}
    return replace(
        pair,
        torch_loss=speedrun_training.summed_loss,
        flax_loss=partial(recipe.smoothed_loss, smoothing=0.2),
        optimizers={kind: ({**options, "taken": taken}, started(right, taken)) for kind, taken in TAKEN.items()},
        torch_optimizer=speedrun_training.optimizer,
        statistics=tuple(name for name, _ in pair.torch_module.named_buffers() if "running" in name),
        keyed=lambda key, real: key and key._replace(real=real),
        make_recipe=speedrun_recipe,
        options=speedrun_options,
        batch=augmented_batch,
        torch_logits=mean_of_views,
        torch_constants=speedrun_training.constants,
    )


def augmented_batch(plan: Any, images: np.ndarray, places: np.ndarray, step: int) -> Augmented:
    """Make a batch of speedrun: both sides share the random draws for each image, but apply them separately."""
    epoch, of = step // plan.per_epoch, jnp.asarray(places)
    shifts = augment.random_shifts(train.random_stream(SEED, train.SHIFT, step), of, speedrun_training.MOST)
    first = augment.alternating(train.random_stream(SEED, train.FLIP), of, jnp.uint32(0))
    size = recipe.growing(plan.epochs)[epoch]
    return Augmented(images, np.asarray(shifts), np.asarray(first) ^ (epoch % 2 == 1), size)


def mean_of_views(pair: Pair, case: Case, dtype: torch.dtype) -> torch.Tensor:
    """Compute the logits of evaluation: the mean over the views of an image."""
    (x,) = pair.torch_input(case.inputs, dtype)
    seen = speedrun_training.views(x)
    of = lambda view: torch_forward(replace(pair, torch_input=lambda *_: (view,)), case, dtype)[0]  # noqa: E731
    return sum((weight * of(view) for weight, view in seen[1:]), seen[0][0] * of(seen[0][1]))


RECIPES: dict[str, Callable[[TrainedPair], TrainedPair]] = {"tutorial": _tutorial, "speedrun": _speedrun}
