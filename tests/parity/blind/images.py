"""Small networks of images, as one writes them by hand, and their ports."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.pairs.example import Example, floats
from tests.parity.pairs.linen_norm import BatchNorm

MEAN, STD = (0.48, 0.45, 0.4), (0.22, 0.23, 0.25)


def trained(module):
    """Draw parameters and statistics as training leaves them: nothing is 0 or 1 any more."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) if "running_var" in name else 0.1 * torch.randn_like(tensor))
    return module


class TorchDenoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1 = torch.nn.Conv2d(3, 6, 4, stride=2, padding=1)
        self.enc2 = torch.nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.norm = torch.nn.GroupNorm(3, 6)
        self.dec1 = torch.nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1)
        self.dec2 = torch.nn.ConvTranspose2d(6, 3, 2, stride=2)

    def forward(self, x):
        x = F.leaky_relu(self.enc1(x), 0.2)
        x = F.elu(self.norm(self.enc2(x)))
        x = F.leaky_relu(self.dec1(x), 0.1)
        return torch.sigmoid(self.dec2(x))


class Denoiser(nn.Module):
    def setup(self):
        self.enc1 = nn.Conv(6, (4, 4), strides=2, padding=1)
        self.enc2 = nn.Conv(6, (3, 3), strides=2, padding=1)
        self.norm = nn.GroupNorm(num_groups=3, epsilon=1e-5)
        self.dec1 = nn.ConvTranspose(6, (4, 4), strides=(2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True)
        self.dec2 = nn.ConvTranspose(3, (2, 2), strides=(2, 2))

    def __call__(self, x):
        x = nn.leaky_relu(self.enc1(x), 0.2)
        x = nn.elu(self.norm(self.enc2(x)))
        x = nn.leaky_relu(self.dec1(x), 0.1)
        return nn.sigmoid(self.dec2(x))


def denoiser_weights(state):
    w = {name: tensor.numpy() for name, tensor in state.items()}
    params = {name: {"bias": w[f"{name}.bias"]} for name in ("enc1", "enc2", "norm", "dec1", "dec2")}
    params["enc1"]["kernel"] = w["enc1.weight"].transpose(2, 3, 1, 0)
    params["enc2"]["kernel"] = w["enc2.weight"].transpose(2, 3, 1, 0)
    params["norm"]["scale"] = w["norm.weight"]
    params["dec1"]["kernel"] = w["dec1.weight"].transpose(2, 3, 1, 0)
    params["dec2"]["kernel"] = w["dec2.weight"].transpose(2, 3, 0, 1)[::-1, ::-1]
    return {"params": params}


class TorchSqueeze(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(8, momentum=0.2)
        self.fc1 = torch.nn.Linear(8, 8)
        self.fc2 = torch.nn.Linear(8, 8)
        self.drop = torch.nn.Dropout2d(0.2)
        self.head = torch.nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        x = F.max_pool2d(F.hardswish(self.bn(self.conv(x))), 2)
        s = F.relu(self.fc1(x.mean((2, 3))))
        x = x * (F.relu6(self.fc2(s) + 3) / 6)[:, :, None, None]
        return self.head(self.drop(x).flatten(1))


class Squeeze(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3, 3), use_bias=False, name="conv")(x)
        x = BatchNorm(use_running_average=not train, momentum=0.8, name="bn")(x)
        x = nn.max_pool(nn.hard_swish(x), (2, 2), strides=(2, 2))
        s = nn.relu(nn.Dense(8, name="fc1")(x.mean((1, 2))))
        s = nn.hard_sigmoid(nn.Dense(8, name="fc2")(s))
        x = x * s[:, None, None]
        x = nn.Dropout(0.2, broadcast_dims=(1, 2), deterministic=not train)(x)
        return nn.Dense(5, name="head")(x.reshape(len(x), -1))


def squeeze_weights(state):
    w = {name: tensor.numpy() for name, tensor in state.items()}
    head = w["head.weight"].reshape(5, 8, 4, 4).transpose(2, 3, 1, 0).reshape(-1, 5)
    params = {
        "conv": {"kernel": w["conv.weight"].transpose(2, 3, 1, 0)},
        "bn": {"scale": w["bn.weight"], "bias": w["bn.bias"]},
        "fc1": {"kernel": w["fc1.weight"].T, "bias": w["fc1.bias"]},
        "fc2": {"kernel": w["fc2.weight"].T, "bias": w["fc2.bias"]},
        "head": {"kernel": head, "bias": w["head.bias"]},
    }
    return {"params": params, "batch_stats": {"bn": {"mean": w["bn.running_mean"], "var": w["bn.running_var"]}}}


class TorchSeparable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.depth = torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.point = torch.nn.Conv2d(4, 8, 1)
        self.norm = torch.nn.InstanceNorm2d(8, affine=True)
        self.mixing = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.shrink = torch.nn.MaxPool2d(2, ceil_mode=True)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x):
        x = F.mish(self.norm(self.point(self.depth(x))))
        x = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
        x = self.shrink(F.mish(self.mixing(x)))
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))


class Separable(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.depth = nnx.Conv(4, 4, (3, 3), kernel_dilation=2, feature_group_count=4, rngs=rngs)
        self.point = nnx.Conv(4, 8, (1, 1), rngs=rngs)
        self.norm = nnx.InstanceNorm(8, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.mixing = nnx.Conv(8, 8, (3, 3), feature_group_count=2, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.mish(self.norm(self.point(self.depth(x))))
        x = nnx.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)), count_include_pad=False)
        x = jax.nn.mish(self.mixing(x))
        x = nnx.max_pool(x, (2, 2), (2, 2), padding="SAME")
        return self.head(jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1))


class TorchPyramid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.coarse = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.lateral = torch.nn.Conv2d(8, 6, 1)
        self.smooth = torch.nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.out = torch.nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        fine = F.relu(self.fine(x))
        coarse = self.lateral(F.relu(self.coarse(fine)))
        merged = fine + F.interpolate(coarse, scale_factor=2, mode="bilinear")
        y = F.interpolate(F.softplus(self.smooth(merged), beta=2), scale_factor=0.5, mode="bilinear")
        return self.out(y)


class Pyramid(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = (x - jnp.array(MEAN, x.dtype)) / jnp.array(STD, x.dtype)
        fine = nn.relu(nn.Conv(6, (3, 3), name="fine")(x))
        coarse = nn.relu(nn.Conv(8, (3, 3), strides=2, padding=1, name="coarse")(fine))
        coarse = nn.Conv(6, (1, 1), name="lateral")(coarse)
        merged = fine + jax.image.resize(coarse, fine.shape, "bilinear")
        edges = ((0, 0), (1, 1), (1, 1), (0, 0))
        y = nn.Conv(6, (3, 3), padding="VALID", name="smooth")(jnp.pad(merged, edges, mode="reflect"))
        y = nn.softplus(2 * y) / 2
        y = jax.image.resize(y, (len(y), 8, 8, 6), "linear", antialias=False)
        return nn.Conv(2, (1, 1), name="out")(y)


def denoiser() -> Example:
    module = trained(TorchDenoiser())
    return Example(module, Denoiser(), (floats(2, 3, 16, 16),), {"variables": denoiser_weights(module.state_dict())})


def squeeze() -> Example:
    module = trained(TorchSqueeze())
    return Example(module, Squeeze(), (floats(4, 3, 8, 8),), {"variables": squeeze_weights(module.state_dict())})


def separable() -> Example:
    return Example(trained(TorchSeparable()), Separable(rngs=nnx.Rngs(0)), (floats(2, 4, 10, 10),))


def pyramid() -> Example:
    return Example(trained(TorchPyramid()), Pyramid(), (floats(2, 3, 16, 16),))
