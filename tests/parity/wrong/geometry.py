"""Convolutions and pooling."""

from tests.parity.wrong.case import Wrong, repeated

DOWN = tuple(f"layer{n}.0.conv1" for n in (2, 3, 4))
MAX_POOL = "x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))"
UP = "strides=(2, 2), padding=((1, 2), (1, 2)), transpose_kernel=True"

CASES = {
    "resnet18: SAME padding with stride 2 at the start": Wrong(
        "resnet18", {"padding=[(3, 3), (3, 3)]": 'padding="SAME"'}, (("padding", "conv1"),)
    ),
    "resnet18: SAME padding in the blocks": Wrong(
        "resnet18",
        {"self.conv(self.filters, (3, 3), self.strides, padding=1)": "self.conv(self.filters, (3, 3), self.strides)"},
        tuple(("padding", path) for path in DOWN[:2]),  # of 3 x 3 the same in the third
    ),
    "mobilenetv2: SAME padding with stride 2": Wrong(
        "mobilenetv2",
        {"padding=size // 2": 'padding="SAME"'},
        (("padding", "features.0.0"), ("padding", "features.2.conv.1.0"), ("padding", "features.4.conv.1.0")),
    ),
    "bridge_linen: default padding with stride 2": Wrong(
        "bridge_linen", {"strides=2, padding=1": "strides=2"}, (("padding", "conv1"),)
    ),
    "lenet5: padding by reflection": Wrong(
        "lenet5", {"nn.relu(nn.Conv(4, (5, 5))": 'nn.relu(nn.Conv(4, (5, 5), padding="REFLECT")'},
        (("padding", "conv1"),)
    ),
    "lenet5_nnx: circular padding": Wrong(
        "lenet5_nnx", {"nnx.Conv(1, 4, (5, 5)": 'nnx.Conv(1, 4, (5, 5), padding="CIRCULAR"'}, (("padding", "conv1"),)
    ),
    "wavenet: a filter that sees the future": Wrong(
        "wavenet",
        {'self.filter = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation, padding="CAUSAL"':
         'self.filter = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation, padding="SAME"'},
        repeated("padding", "blocks.{}.filter_conv", 0, 1, 2),
    ),
    "unet: SAME padding of the transposed convolution": Wrong(
        "unet", {UP: 'strides=(2, 2), padding="SAME", transpose_kernel=True'}, (("padding", "up2.up"),)
    ),
    "segmenter: strided pooling without stride": Wrong(
        "segmenter",
        {"nn.max_pool(low, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)))": "nn.max_pool(low, (3, 3))"},
        (("pooling-stride", "grouped"),),
    ),
    "resnet18: stride in the second convolution of a block": Wrong(
        "resnet18",
        {
            "(3, 3), self.strides, padding=1)(x)": "(3, 3), padding=1)(x)",
            "y = self.conv(self.filters, (3, 3), padding=1)(y)":
            "y = self.conv(self.filters, (3, 3), self.strides, padding=1)(y)",
        },
        tuple(("stride", path) for path in DOWN),
    ),
    "bridge_linen: stride forgotten": Wrong(
        "bridge_linen", {"strides=2, padding=1": "padding=1"}, (("stride", "conv1"),)
    ),
    "mobilenetv2: stride 1 at the start": Wrong(
        "mobilenetv2", {"first, 3, strides=2": "first, 3"}, (("stride", "features.0.0"),)
    ),
    "segmenter: dilation forgotten": Wrong(
        "segmenter", {"padding=2, kernel_dilation=2": "padding=1"}, (("dilation", "context"),)
    ),
    "wavenet: dilation of the gate forgotten": Wrong(
        "wavenet",
        {"self.gate = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation":
         "self.gate = nnx.Conv(channels, channels, (size,)"},
        repeated("dilation", "blocks.{}.gate_conv", 1, 2),
    ),
    "wavenet: dilations 1, 2, 3": Wrong(
        "wavenet",
        {"size, dilation, rngs=rngs) for dilation in dilations])":
         "size, i + 1, rngs=rngs) for i, _ in enumerate(dilations)])"},
        (*repeated("dilation", "blocks.{}.filter_conv", 2), *repeated("dilation", "blocks.{}.gate_conv", 2)),
    ),
    "segmenter: one group for two": Wrong(
        "segmenter", {"padding=1, feature_group_count=2": "padding=1"}, (("groups", "grouped"),)
    ),
    "segmenter: group norm of two groups": Wrong(
        "segmenter",
        {"x = nn.GroupNorm(num_groups=4,": "x = nn.GroupNorm(num_groups=2,"},
        (("groups", "norm1"),),
    ),
    "segmenter: group norm of groups of two": Wrong(
        "segmenter",
        {"y = nn.GroupNorm(num_groups=4,": "y = nn.GroupNorm(num_groups=None, group_size=2,"},
        (("groups", "norm2"),),
    ),
    "mobilenetv2: depthwise convolutions not depthwise": Wrong(
        "mobilenetv2", {"strides, groups=hidden, rngs=rngs": "strides, rngs=rngs"},
        repeated("groups", "features.{}.conv", 1, 2, 3, 4)
    ),
    "resnet18: SAME max pooling": Wrong(
        "resnet18",
        {MAX_POOL: 'x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")'},
        (("pooling-padding", "layer1.0.conv1"),),
    ),
    "segmenter: zeros counted in average pooling": Wrong(
        "segmenter", {"((1, 1), (1, 1)), count_include_pad=False)": "((1, 1), (1, 1)))"}, (("pooling-padding", "fuse"),)
    ),
    "squeezenet: pooling padded before": Wrong(
        "squeezenet",
        {"((0, (size - 3) % 2) for": "(((size - 3) % 2, 0) for"},
        (("pooling-padding", "features.3.squeeze"), ("pooling-padding", "features.6.squeeze")),
    ),
    "resnet18: max pooling with Flax's default stride": Wrong(
        "resnet18",
        {MAX_POOL: "x = nn.max_pool(x, (3, 3), padding=((1, 1), (1, 1)))"},
        (("pooling-stride", "layer1.0.conv1"),),
    ),
    "squeezenet: pooling with the window's size as stride": Wrong(
        "squeezenet",
        {"x = ceil_pool(nnx.relu(self.stem(x)))": "x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), strides=(3, 3))"},
        (("pooling-stride", "features.3.squeeze"),),
    ),
    "segmenter: ceil_mode forgotten": Wrong(
        "segmenter",
        {"strides=(2, 2), padding=((0, 1), (0, 1)))": "strides=(2, 2))"},
        (("pooling-ceil", "grouped"),),
    ),
    "squeezenet: ceil_mode forgotten in the first pooling": Wrong(
        "squeezenet",
        {"x = ceil_pool(nnx.relu(self.stem(x)))": "x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), strides=(2, 2))"},
        (("pooling-ceil", "features.3.squeeze"),),
    ),
    "squeezenet: ceil_mode forgotten in the last pooling": Wrong(
        "squeezenet",
        {"x = ceil_pool(self.fire2(self.fire1(x)))":
         "x = nnx.max_pool(self.fire2(self.fire1(x)), (3, 3), strides=(2, 2))"},
        (("pooling-ceil", "features.6.squeeze"),),
    ),
    "lenet5: average for maximum": Wrong(
        "lenet5",
        {"nn.Conv(4, (5, 5))(x))\n        x = nn.max_pool(": "nn.Conv(4, (5, 5))(x))\n        x = nn.avg_pool("},
        (("pooling-kind", "conv2"),),
    ),
    "captioner: maximum for adaptive average": Wrong(
        "captioner", {"nn.avg_pool(memory,": "nn.max_pool(memory,"}, (("pooling-kind", "pool"),)
    ),
    "captioner: the first of each window for adaptive average": Wrong(
        "captioner", {"nn.avg_pool(memory, (2,), strides=(2,))": "memory[:, ::2]"}, (("pooling-kind", "pool"),)
    ),
    "captioner: windows of 3 for adaptive average": Wrong(
        "captioner", {"(memory, (2,), strides=(2,))": '(memory, (3,), strides=(2,), padding="SAME")'},
        (("pooling-kind", "pool"),),
    ),
    "inputnorm: maximum for average": Wrong("inputnorm", {"nnx.avg_pool(": "nnx.max_pool("}, (("pooling-kind", "fc"),)),
    "unet: average for maximum": Wrong(
        "unet", {"(2 * self.width)(nn.max_pool(x1,": "(2 * self.width)(nn.avg_pool(x1,"}, (("pooling-kind", "down1"),)
    ),
    "bridge_linen: maximum for the mean of all": Wrong(
        "bridge_linen", {"return jnp.mean(x, axis=(1, 2))": "return jnp.max(x, axis=(1, 2))"},
        (("pooling-kind", "fc1"),)
    ),
}  # fmt: skip
