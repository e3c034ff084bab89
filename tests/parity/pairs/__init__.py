"""Networks in PyTorch and their ports to Flax, small enough that each runs in a moment."""

from collections.abc import Callable
from functools import wraps

import pytest
import torch

from tests.parity.pairs.autoencoder import autoencoder
from tests.parity.pairs.bert import bert
from tests.parity.pairs.bridge import bridge_linen, bridge_nnx
from tests.parity.pairs.captioner import captioner
from tests.parity.pairs.convnext import convnext
from tests.parity.pairs.example import Example
from tests.parity.pairs.gpt import gpt, gpt_scan
from tests.parity.pairs.initial import initial, initial_nnx
from tests.parity.pairs.inputnorm import inputnorm
from tests.parity.pairs.lenet import lenet5, lenet5_nnx
from tests.parity.pairs.llama import llama
from tests.parity.pairs.mixer import mixer
from tests.parity.pairs.mobilenet import mobilenetv2
from tests.parity.pairs.recurrent import bilstm, gru_nnx, lstm
from tests.parity.pairs.resnet import resnet18
from tests.parity.pairs.segmenter import segmenter
from tests.parity.pairs.squeezenet import squeezenet
from tests.parity.pairs.unet import unet
from tests.parity.pairs.vgg import vgg_bn
from tests.parity.pairs.vit import vit
from tests.parity.pairs.wavenet import wavenet

BUILDERS = (
    lenet5, lenet5_nnx, vgg_bn, resnet18, mobilenetv2, convnext, unet, vit, gpt, gpt_scan,
    lstm, bilstm, gru_nnx, wavenet, mixer, bridge_nnx, bridge_linen,
    llama, segmenter, bert, inputnorm, squeezenet, initial, initial_nnx,
    autoencoder, captioner,
)  # fmt: skip


def seeded(build: Callable[[], Example]) -> Callable[[], Example]:
    """The builder, with the same initial weights in each call."""

    @wraps(build)
    def seeded_build() -> Example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build()

    return seeded_build


EXAMPLES: dict[str, Callable[[], Example]] = {build.__name__: seeded(build) for build in BUILDERS}

# Their whole proofs take five minutes: `make soak` makes those. Of each kind of layer one stays in the suite.
LARGE = (
    "autoencoder", "bert", "bilstm", "bridge_linen", "bridge_nnx", "captioner", "gpt_scan", "gru_nnx", "llama", "mixer",
    "mobilenetv2", "resnet18", "segmenter", "squeezenet", "vgg_bn", "vit",
)  # fmt: skip
SOME = [pytest.param(name, marks=[pytest.mark.soak] * (name in LARGE)) for name in EXAMPLES]

__all__ = ["EXAMPLES", "SOME", "Example"]
