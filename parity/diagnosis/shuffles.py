"""Rows of an array in another order: find the order, and describe it in a few words."""

from collections.abc import Iterator

import numpy as np

from parity.diagnosis.axes import close

BLOCKS, SHORT = 8, 6  # blocks that are named one by one; rows of a longer order that are


def row_order(given: np.ndarray, made: np.ndarray, axis: int) -> np.ndarray | None:
    """Find the order of the rows along an axis: given[i] is made[order[i]]; None if they are not the same rows."""
    ours, theirs = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (given, made))
    weights = np.random.default_rng(0).normal(size=ours.shape[1])
    order = np.empty(len(ours), int)
    order[np.argsort(ours @ weights, kind="stable")] = np.argsort(theirs @ weights, kind="stable")
    return order if close(ours, theirs[order]) else None


def block_order(order: np.ndarray, count: int) -> list[int] | None:
    """Give the order as one of `count` equal blocks, None if it is not."""
    if len(order) % count:
        return None
    blocks = order.reshape(count, -1)
    size = blocks.shape[1]
    whole = (blocks[:, 0] % size == 0).all() and (blocks == blocks[:, :1] + np.arange(size)).all()
    return [int(i) for i in blocks[:, 0] // size] if whole else None


def turned(order: np.ndarray) -> tuple[int, int, int] | None:
    """Give (a, b, c) if rows in the order (b a c) were made from rows in the order (a b c), else None."""
    for a, b in _factors(len(order)):
        shape = (a, b, len(order) // (a * b))
        if (np.arange(len(order)).reshape(shape).swapaxes(0, 1).ravel() == order).all():
            return shape
    return None


def _factors(n: int) -> Iterator[tuple[int, int]]:
    divisors = [d for d in range(2, n) if n % d == 0]
    yield from ((a, b) for a in divisors for b in divisors if n % (a * b) == 0)


def of_groups(order: np.ndarray, groups: int) -> bool:
    """Tell if an order only moves the groups of a kernel, or takes each group's rows from all of them."""
    shape = turned(order)
    return groups > 1 and (block_order(order, groups) is not None or bool(shape and groups in shape[:2]))


def words(order: np.ndarray) -> str:
    """Describe an order."""
    n = len(order)
    if n > 2 and (order == np.arange(n)[::-1]).all():
        return "in reverse order"
    for count in range(2, BLOCKS + 1):
        if blocks := block_order(order, count):
            each = f"in {count} blocks of {n // count}, " if n > count else ""
            return f"{each}in the order {', '.join(map(str, blocks))}"
    if shape := turned(order):
        a, b, c = shape
        return f"of ({a} {b} {c}) in the order of ({b} {a} {c})"
    for heads in (d for d in range(2, n // 2 + 1) if n % d == 0):
        inside = order.reshape(heads, -1) - np.arange(heads)[:, None] * (n // heads)
        if (inside == inside[0]).all() and sorted(inside[0]) == [*range(n // heads)]:
            return f"in each of {heads} blocks {words(inside[0])}"
    moved = np.flatnonzero(order != np.arange(n))
    if len(moved) <= SHORT:
        return f"right but for {', '.join(map(str, moved))}, which are {', '.join(map(str, order[moved]))}"
    return f"in the order {', '.join(map(str, order[:SHORT]))} ..."
