"""Two mistakes in one port."""

from tests.parity.wrong import attention, geometry, glue, modes, norms
from tests.parity.wrong.case import Wrong

SINGLE = {**geometry.CASES, **norms.CASES, **attention.CASES, **glue.CASES, **modes.CASES}


def both(first: str, second: str) -> Wrong:
    """Make the port with two mistakes of one pair."""
    a, b = SINGLE[first], SINGLE[second]
    assert a.pair == b.pair
    return Wrong(a.pair, a.changes | b.changes, a.findings + b.findings)


PAIRS = (
    ("lenet5: padding by reflection", "lenet5: no ReLU"),
    ("lenet5: average for maximum", "lenet5: GELU for ReLU"),
    ("lenet5_nnx: circular padding", "lenet5_nnx: no ReLU"),
    ("convnext: GELU's tanh", "convnext: layer scale forgotten"),
    ("bridge_linen: default padding with stride 2", "bridge_linen: maximum for the mean of all"),
    ("vgg_bn: Flax's default momentum", "vgg_bn: dropout that is never on"),
    ("unet: SAME padding of the transposed convolution", "unet: concatenated the other way"),
    ("segmenter: dilation forgotten", "segmenter: nearest for bilinear"),
    ("segmenter: LeakyReLU's default slope", "segmenter: zeros counted in average pooling"),
    ("gpt: no mask", "gpt: the last norm's default epsilon"),
    ("bert: scores not divided", "bert: positions from 0"),
    ("llama: rotary by neighbours", "llama: GELU for SiLU"),
    ("vit: epsilon 1e-5 for 1e-6", "vit: GELU by a sigmoid"),
    ("inputnorm: colours reversed", "inputnorm: maximum for average"),
    ("wavenet: a filter that sees the future", "wavenet: no bias"),
    ("squeezenet: ceil_mode forgotten in the first pooling", "squeezenet: concatenated the other way"),
)
CASES = {f"{first}; {second.partition(': ')[2]}": both(first, second) for first, second in PAIRS}
