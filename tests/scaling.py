"""What a training step communicates and computes on each device, by the compiler's own account and by formula.

python -m tests.scaling     # the table of docs/scaling.md; 1, 2, 4 and 8 virtual devices of the CPU
"""

import re
from math import prod
from typing import Any

import jax
import numpy as np

from jaxcnn import sharding, train
from jaxcnn.compute import forward_flop
from jaxcnn.config import Config
from jaxcnn.recipe import recipe_for

BYTES = {"pred": 1, "u8": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
COLLECTIVES = r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"


def compiled(config: Config, devices: int, images: int = 128) -> Any:
    """The program of `train_steps` for so many devices; nothing is allocated or run."""
    mesh = sharding.make_mesh(jax.devices(), devices, config.batch_size)
    everywhere = sharding.divided(mesh).update(spec=jax.sharding.PartitionSpec())
    recipe = recipe_for(config)
    data = train.Arrays(
        jax.ShapeDtypeStruct((images, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((images,), np.uint8)
    )  # fmt: skip
    state = jax.eval_shape(lambda: train.create_state(recipe, 0))
    state, data = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), (state, data))
    steps = train.make_train_steps(recipe, config.batch_size, sharding.divided(mesh))
    return steps.lower(state, data, np.uint32(0), np.int32(1)).compile()


def collectives(program: str) -> list[tuple[str, int]]:
    """Each collective operation in a program's HLO: its kind, and the bytes of its result on each device."""
    found = re.findall(rf"= (.+?) ({COLLECTIVES})(?:-start)?\(", program)
    return [(kind, sum(map(_size, re.findall(r"(\w+)\[([\d,]*)\]", shapes)))) for shapes, kind in found]


def _size(shape: tuple[str, str]) -> int:
    return BYTES[shape[0]] * prod(int(extent) for extent in shape[1].split(",") if extent)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print("| devices | images each | collectives | bytes all-reduced a step | sent by each in a ring | GFLOP each |")
    print("| --- | --- | --- | --- | --- | --- |")
    for devices in (1, 2, 4, 8):
        program = compiled(Config(), devices)
        found = collectives(program.as_text())
        total = sum(size for _, size in found)
        kinds = ", ".join(f"{sum(k == kind for k, _ in found)} {kind}" for kind in sorted({k for k, _ in found}))
        ring = 2 * (devices - 1) * total // devices
        print(
            f"| {devices} | {32 // devices} | {kinds or 'none'} | {total:,} | {ring:,} | "
            f"{3 * 32 // devices * forward_flop(recipe_for(Config()).network) / 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
