"""Mistakes of functions of one array: activations, softmax, and norms."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from parity.diagnosis.cause import Cause, Causes, Place, altered, edited, skipped, solved
from parity.diagnosis.tape import Op

Function = Callable[[torch.Tensor], torch.Tensor]
# By their usual names in Flax; those of one group are forms of one function.
FUNCTIONS: dict[str, Function] = {
    "gelu(approximate=False)": F.gelu,
    "gelu(approximate=True)": lambda x: F.gelu(x, approximate="tanh"),
    "gelu as x * sigmoid(1.702 * x)": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "silu": F.silu,
    "hard_silu": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "hard_tanh": F.hardtanh,
    "tanh": torch.tanh,
}
NAMES = {"hardswish": "hard_silu", "hardsigmoid": "hard_sigmoid", "hardtanh": "hard_tanh"}
NUMBERS = {"leaky_relu": ("negative_slope", "negative_slope"), "elu": ("alpha", "alpha"), "celu": ("alpha", "alpha"),
           "softplus": ("beta", "beta")}  # fmt: skip
ACTIVATIONS = ("gelu", "relu", "leaky_relu", "elu", "celu", "silu", "hardswish", "mish", "softplus", "sigmoid",
               "hardsigmoid", "hardtanh", "tanh", "_prelu_kernel", "threshold")  # fmt: skip
EPSILONS = (1e-5, 1e-3)  # where the search begins: smaller ones are found from there


def written(op: Op, nn: str) -> tuple[str, str]:
    """Name PyTorch's activation, and how it is written in Flax."""
    a, name = op.args, NAMES.get(op.kind, op.kind)
    if op.kind == "gelu":
        tanh = a.get("approximate", "none") == "tanh"
        return f"gelu(approximate={tanh})", f"{nn}.gelu(x, approximate={tanh})"
    if op.kind == "hardtanh" and (a.get("min_val", -1), a.get("max_val", 1)) == (0, 6):
        return "relu6", f"{nn}.relu6(x)"
    if op.kind == "hardtanh" and (limits := (a.get("min_val", -1), a.get("max_val", 1))) != (-1, 1):
        return f"clip({limits[0]:g}, {limits[1]:g})", f"jnp.clip(x, {limits[0]:g}, {limits[1]:g})"
    if op.kind == "elu" and a.get("scale", 1) != 1:
        return "selu", f"{nn}.selu(x)"
    if op.kind == "leaky_relu":
        return name, f"{nn}.leaky_relu(x, negative_slope={a.get('negative_slope', 0.01):g})"
    if op.kind in ("elu", "celu"):
        return name, f"{nn}.{name}(x, alpha={a.get('alpha', 1.0):g})"
    if op.kind == "threshold":
        return name, f"jnp.where(x > {a['threshold']:g}, x, {a['value']:g})"
    if op.kind == "mish":
        return name, "jax.nn.mish(x)"
    if op.kind == "softplus" and a.get("beta", 1) != 1:
        return name, f"{nn}.softplus({a['beta']} * x) / {a['beta']}"
    return name, f"{nn}.{name}(x)"


def activation(op: Op, place: Place) -> Causes:
    """Give the mistakes of an activation: none, another form or constant, another function."""
    name, repair = written(op, place.framework)
    yield Cause("activation-missing", f"Flax applies no {name}, PyTorch does", repair, skipped(op))
    for other, function in FUNCTIONS.items():
        if other != name:
            form = other.partition("(")[0].split()[0] == name.partition("(")[0]
            yield Cause("activation-variant" if form else "activation", f"Flax applies {other}, PyTorch {name}", repair,
                        edited(op, lambda now, f=function: f(now.input)))  # fmt: skip
    if op.kind in NUMBERS:
        argument, word = NUMBERS[op.kind]
        own = op.args.get(argument, 0.01 if op.kind == "leaky_relu" else 1.0)
        yield Cause("activation-variant", f"Flax applies {name} with {word} {{x:g}}, PyTorch {own:g}", repair,
                    solved(op, argument), (0.1, 1.5))  # fmt: skip
    if op.kind == "silu":
        swish = lambda x: edited(op, lambda now: now.input * torch.sigmoid(x * now.input))  # noqa: E731
        text = "Flax applies x * sigmoid({x:g} * x), PyTorch silu, x * sigmoid(x)"
        yield Cause("activation-variant", text, repair, swish, (1.5,))
    if op.kind == "elu" and name == "elu":
        celu = lambda x: edited(op, lambda now: F.celu(now.input, x))  # noqa: E731
        yield Cause("activation-variant", f"Flax applies celu with alpha {{x:g}}, PyTorch {name}", repair, celu, (1.5,))
    if op.kind == "relu":
        slope = lambda x: edited(op, lambda now: F.leaky_relu(now.input, x))  # noqa: E731
        yield Cause("activation", "Flax applies leaky_relu with slope {x:g}, PyTorch relu", repair, slope, (0.1,))


def softmax(op: Op, place: Place) -> Causes:
    """Give the mistakes of a softmax: its axis, its logarithm, none."""
    name, own = op.kind.strip("_"), op.args["dim"] % op.input.ndim
    repair = f"{place.framework}.{name}(x, axis={own - op.input.ndim if own else 0})"
    for dim in range(op.input.ndim):
        if dim != own:
            text = f"Flax takes the {name} over axis {dim} (as PyTorch counts), PyTorch over axis {own}"
            yield Cause("softmax-axis", text, repair, altered(op, dim=dim))
    yield Cause("activation-missing", f"Flax takes no {name}, PyTorch does", repair, skipped(op))
    other = F.softmax if "log" in name else F.log_softmax
    text = f"Flax takes the {'softmax' if 'log' in name else 'log_softmax'}, PyTorch the {name}"
    yield Cause("activation", text, repair, edited(op, lambda now: other(now.input, dim=own)))


def norm(op: Op, place: Place) -> Causes:
    """Give the mistakes of a norm: epsilon, what it is taken over, scale and bias."""
    a, kind = op.args, op.kind.removeprefix("native_")
    name = {"layer_norm": "LayerNorm", "batch_norm": "BatchNorm", "group_norm": "GroupNorm"}[kind]
    name = "InstanceNorm" if a.get("training") else name  # which PyTorch makes of it: each channel of each image
    layer = f"{place.framework}.{name}(..., "
    yield Cause("epsilon", f"Flax uses epsilon {{x:g}}, PyTorch {a['eps']:g}", f"{layer}epsilon={a['eps']:g})",
                solved(op, "eps"), EPSILONS)  # fmt: skip
    for argument, word in (("weight", "scale"), ("bias", "bias")):
        if a.get(argument) is not None:
            yield Cause("bias-missing" if word == "bias" else "scale", f"Flax has no {word} here, PyTorch has",
                        f"{layer}use_{word}=True)", altered(op, **{argument: None}))  # fmt: skip
    if a.get("weight") is not None:
        yield from offsets(op, "weight", f"{layer.rpartition('(')[0]}: what it stores as scale")
    if name == "BatchNorm":
        text = "Flax normalises by the batch's own statistics in evaluation, PyTorch by the running ones"
        yield Cause("running-average", text, f"{layer}use_running_average=not train)", altered(op, training=True))
        yield _norm_over(op, (*range(2, a["input"].ndim),), "each image", f"{layer}...): over the batch too")
    if kind == "group_norm":
        for groups in range(1, a["C"] + 1):
            if a["C"] % groups == 0 and groups != a["group"]:
                yield Cause("groups", f"Flax has {groups} groups, PyTorch {a['group']}",
                            f"{layer}num_groups={a['group']})", altered(op, group=groups))  # fmt: skip
        text = "Flax normalises the channels of a group at each place, PyTorch over all places together"
        yield Cause("normalised-axes", text, f"{layer}reduction_axes=None)", edited(op, _at_each_place))
    if kind == "layer_norm":
        own = tuple(range(a["input"].ndim - len(a["normalized_shape"]), a["input"].ndim))
        for axes in [tuple(range(i, a["input"].ndim)) for i in range(1, a["input"].ndim)] + [
            (i,) for i in range(1, a["input"].ndim - 1)
        ]:
            if axes != own:
                yield _norm_over(
                    op, axes, f"axes {axes}", f"{layer}reduction_axes={[i - a['input'].ndim for i in own]})"
                )
        yield _norm_over(op, own, "", f"{layer}...): variance is divided by n", correction=1)
        yield _norm_over(op, own, "", f"{place.framework}.LayerNorm, not RMSNorm", centred=False)


def _norm_over(
    op: Op, axes: tuple[int, ...], words: str, repair: str, correction: int = 0, centred: bool = True
) -> Cause:
    """Normalise over other axes, by another variance, or without subtracting the mean."""

    def norm(now: Op) -> Any:
        x, a = now.args["input"], now.args
        mean = x.mean(axes, keepdim=True) if centred else torch.zeros((), dtype=x.dtype)
        size = x[(0,) * x.ndim].numel() * torch.tensor([x.shape[i] for i in axes]).prod()
        variance = ((x - mean) ** 2).sum(axes, keepdim=True) / (size - correction)
        made = (x - mean) * torch.rsqrt(variance + a["eps"])
        shape = [-1, *[1] * (x.ndim - 2)] if "layer" not in op.kind else list(a["normalized_shape"])
        return _scaled_and_shifted(made, a, shape)

    if not centred:
        return Cause("layer-missing", "Flax does not subtract the mean, PyTorch does", repair, edited(op, norm))
    if correction:
        return Cause("biased-variance", "Flax divides the variance by n - 1, PyTorch by n", repair, edited(op, norm))
    return Cause("normalised-axes", f"Flax normalises over {words}, PyTorch not", repair, edited(op, norm))


def _at_each_place(now: Op) -> Any:
    """Normalise the channels of each group at each place separately."""
    x, a = now.args["input"], now.args
    groups = x.unflatten(1, (a["group"], -1))
    centred = groups - groups.mean(2, keepdim=True)
    made = (centred * torch.rsqrt((centred**2).mean(2, keepdim=True) + a["eps"])).reshape(x.shape)
    return _scaled_and_shifted(made, a, [-1, *[1] * (x.ndim - 2)])


def _scaled_and_shifted(made: torch.Tensor, a: Mapping[str, Any], shape: list[int]) -> Any:
    """Multiply by a norm's weight and add its bias, if it has them; give as many outputs as PyTorch's operation has."""
    for name, function in (("weight", torch.mul), ("bias", torch.add)):
        made = made if a.get(name) is None else function(made, a[name].reshape(shape))
    return made, *[torch.empty(0)] * 2


def offsets(op: Op, argument: str, words: str) -> Causes:
    """Give a scale that is stored as w where 1 + w is meant, or the reverse."""
    for shift, text in ((1.0, "1 + w"), (-1.0, "w - 1")):
        right = "w" if shift > 0 else "w, where Flax stores it less 1"
        yield Cause("scale-offset", f"Flax multiplies by {text}, PyTorch by {right}",
                    f"{words} {'less' if shift > 0 else 'plus'} 1 is PyTorch's weight",
                    edited(op, lambda now, s=shift: now.compute(**{argument: now.args[argument] + s})))  # fmt: skip


def variance(op: Op, place: Place) -> Causes:
    """Give a variance or a deviation that is divided by another number."""
    own = 1 if op.args.get("correction", 1) is None else op.args.get("correction", 1)
    words = {0: "n", 1: "n - 1"}
    yield Cause("biased-variance", f"Flax divides the {op.kind} by {words[1 - own]}, PyTorch by {words[own]}",
                f"jnp.{op.kind}(x, ddof={own})", altered(op, correction=1 - own))  # fmt: skip


def exchanged(op: Op, place: Place) -> Causes:
    """Give the exchange of the factors of a product of which one, at least, goes through a function: a gate."""
    factors = [op.args[name] for name in ("self", "other")]
    if not all(isinstance(factor, torch.Tensor) and factor.shape == op.outputs[0].shape for factor in factors):
        return
    made = [place.ops[key] for key in op.sources if key in place.ops and place.ops[key].kind in ACTIVATIONS]
    of = [next((one for one in made if torch.equal(one.outputs[0], factor)), None) for factor in factors]
    a, b = (factor if one is None else one.input for one, factor in zip(of, factors, strict=True))
    names = [written(one, place.framework)[0] if one else "" for one in of]
    if names[0] == names[1]:
        return
    whole = " * ".join(f"{name}({x})" if name else x for name, x in zip(names, "ab", strict=True))
    turned = [x if one is None else one.function(**{**one.args, next(iter(one.args)): x})
              for one, x in zip(of, (b, a), strict=True)]  # fmt: skip
    yield Cause("weights-shuffled", f"Flax exchanges a and b of {whole}", whole, edited(
        op, lambda now: turned[0] * turned[1]))  # fmt: skip
