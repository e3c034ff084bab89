"""Recognise the distribution of a sample of initial weights, in words and as an initialiser of Flax."""

from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
from scipy.stats import kstest, norm, truncnorm, uniform

LIKELY = 1e-3  # the chance that a sample of a distribution is further from it
CUT = 0.87962566103423978  # standard deviation of the normal distribution that is cut off at 2
SCALES = {1 / 3: "1 / 3", 1.0: "1.0", 2.0: "2.0"}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Distribution:
    """A distribution: its kind, a number, how both depend on the layer, and how it is made in Flax."""

    kind: str  # constant, uniform, normal, truncated_normal, other
    words: str
    law: str = ""  # what is the same for all layers: `uniform, variance 1/3 of fan_in`
    initialiser: str = ""


def distribution(draws: np.ndarray, shape: Shape, fan_in: int) -> Distribution:
    """Recognise the distribution of draws of a Flax variable; `fan_in`: of the layer's kernel."""
    x = draws.ravel().astype(np.float64)
    if (draws == draws[:1]).all():
        return _constant(x)
    low, high, centre, std = x.min(), x.max(), float(x.mean()), float(x.std())
    centre = 0.0 if abs(centre) < 5 * std / sqrt(x.size) else _round(centre, std / sqrt(x.size))
    wide = (high - low) / (1 - 2 / (x.size + 1))
    found = {
        "uniform": uniform((high + low) / 2 - wide / 2, wide),
        "normal": norm(centre, std),
        "truncated_normal": truncnorm(-2, 2, centre, max(std / CUT, np.abs(x - centre).max() / 2)),
    }
    likely = [kind for kind, one in found.items() if kstest(x, one.cdf).pvalue > LIKELY]
    if not likely:
        return Distribution("other", f"mean {x.mean():.2g} and std {std:.2g}, neither uniform nor normal")
    kind = max(likely, key=lambda kind: found[kind].logpdf(x).sum())
    if kind == "uniform":
        std = wide / sqrt(12)
    # A uniform one's width is known much better than a normal one's.
    tolerance = 8 / x.size if kind == "uniform" else 3 / sqrt(2 * x.size)
    return _named(kind, centre, std, tolerance, shape, fan_in)


def _constant(x: np.ndarray) -> Distribution:
    if np.ptp(x):
        return Distribution("other", "the same numbers in each draw")
    value = float(x[0])
    known = {0.0: ("zeros", "zeros"), 1.0: ("ones", "ones")}
    words, initialiser = known.get(value, (f"all {value:.4g}", f"constant({value:.7g})"))
    return Distribution("constant", words, words, f"initializers.{initialiser}")


def _named(kind: str, centre: float, std: float, tolerance: float, shape: Shape, fan_in: int) -> Distribution:
    """Name the size of a distribution: by the layer's fans, or by a number."""
    half = sqrt(3) if kind == "uniform" else 1.0  # its bound, in standard deviations
    known = None if centre else _law(kind, std, tolerance, shape)
    if known:
        written, mode, std = known
        note = " = 1 / sqrt(fan_in)" if (kind, written, mode) == ("uniform", "1 / 3", "fan_in") else ""
        call = f'initializers.variance_scaling({written}, "{mode}", "{kind}")'
        return Distribution(kind, _words(kind, centre, std * half) + note, f"{kind} {written} {mode}", call)
    if kind == "uniform" and not shape and not centre and abs(std * half * sqrt(fan_in) - 1) < tolerance:
        words = _words(kind, centre, fan_in**-0.5)
        return Distribution(kind, f"{words} = 1 / sqrt(fan_in)", "uniform fan_in", _drawn(kind, 0, f"{fan_in}**-0.5"))
    number = _round(std * half, std * half * tolerance)
    words = _words(kind, centre, number)
    if kind == "uniform" or centre:
        scale = number / CUT if kind == "truncated_normal" else number
        return Distribution(kind, words, words, _drawn(kind, centre, f"{scale:.4g}"))
    cut = CUT if kind == "truncated_normal" else 1
    return Distribution(kind, words, words, f"initializers.{kind}({number / cut:.4g})")


def _law(kind: str, std: float, tolerance: float, shape: Shape) -> tuple[str, str, float] | None:
    """Find the variance scaling of a kernel that gives a standard deviation: its scale, its mode, and the deviation."""
    if len(shape) < 2:
        return None
    fans: dict[str, float] = {"fan_in": prod(shape[:-1]), "fan_out": shape[-1] * prod(shape[:-2])}
    fans["fan_avg"] = (fans["fan_in"] + fans["fan_out"]) / 2
    laws = [(written, mode, sqrt(scale / fan)) for scale, written in SCALES.items() for mode, fan in fans.items()]
    nearest = min(laws, key=lambda law: abs(std / law[2] - 1))
    return nearest if abs(std / nearest[2] - 1) < tolerance else None


def _words(kind: str, centre: float, number: float) -> str:
    cut = " cut off at 2 std" if kind == "truncated_normal" else ""
    words = f"uniform ±{number:.2g}" if kind == "uniform" else f"normal{cut}, std {number:.2g}"
    return f"{words} around {centre:.2g}" if centre else words


def _drawn(kind: str, centre: float, number: str) -> str:
    """Write an initialiser that Flax has no name for."""
    drawn = {"uniform": f"jax.random.uniform(key, shape, dtype, -({number}), {number})",
             "normal": f"{number} * jax.random.normal(key, shape, dtype)",
             "truncated_normal": f"{number} * jax.random.truncated_normal(key, -2, 2, shape, dtype)"}  # fmt: skip
    return f"lambda key, shape, dtype=jnp.float32: {f'{centre:g} + ' if centre else ''}{drawn[kind]}"


def _round(x: float, by: float) -> float:
    """Round a number that is known to within `by` to as few digits as suffice."""
    shorter = (float(f"{x:.{digits}e}") for digits in range(6))
    return next((short for short in shorter if abs(short - x) <= by), float(x))
