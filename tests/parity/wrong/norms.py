"""Normalisation and activations."""

from tests.parity.wrong.case import Wrong, repeated

VGG_NORM = "x = BatchNorm(use_running_average=not train)(x)"
VGG_NORMS = ("features.1", "features.5", "features.9", "features.12")
ENCODER = "encoder.layers.encoder_layer_{}"

CASES = {
    "gpt: the last norm's default epsilon": Wrong(
        "gpt", {"x = nn.LayerNorm(epsilon=1e-5)(x)\n        return embed.attend(x)":
                "x = nn.LayerNorm()(x)\n        return embed.attend(x)"},
        (("epsilon", "transformer.ln_f"),)
    ),
    "vit: epsilon 1e-5 for 1e-6": Wrong(
        "vit", {"self.norm2 = nnx.LayerNorm(dim, epsilon=1e-6": "self.norm2 = nnx.LayerNorm(dim, epsilon=1e-5"},
        repeated("epsilon", ENCODER + ".ln_2", 0, 1)
    ),
    "bert: default epsilon for 1e-12": Wrong(
        "bert", {'nn.LayerNorm(epsilon=1e-12, name="norm")(x)': 'nn.LayerNorm(name="norm")(x)'},
        (("epsilon", "embeddings.LayerNorm"),)
    ),
    "llama: RMSNorm with epsilon 1e-5": Wrong(
        "llama", {"self.norm1 = nnx.RMSNorm(dim, epsilon=1e-6": "self.norm1 = nnx.RMSNorm(dim, epsilon=1e-5"},
        repeated("epsilon", "layers.{}.input_layernorm", 0, 1)
    ),
    "segmenter: group norm's default epsilon": Wrong(
        "segmenter", {"x = nn.GroupNorm(num_groups=4, epsilon=1e-5,": "x = nn.GroupNorm(num_groups=4,"},
        (("epsilon", "norm1"),)
    ),
    "vgg_bn: epsilon 1e-3": Wrong(
        "vgg_bn", {VGG_NORM: "x = BatchNorm(use_running_average=not train, epsilon=1e-3)(x)"},
        tuple(("epsilon", path) for path in VGG_NORMS)
    ),
    "resnet18: momentum 0.1": Wrong(
        "resnet18", {'norm(name="bn_init")': 'norm(name="bn_init", momentum=0.1)'}, (("batch-norm-momentum", "bn1"),)
    ),
    "vgg_bn: Flax's default momentum": Wrong(
        "vgg_bn", {VGG_NORM: "x = BatchNorm(use_running_average=not train, momentum=0.99)(x)"},
        tuple(("batch-norm-momentum", path) for path in VGG_NORMS)
    ),
    "mobilenetv2: momentum 0.1": Wrong(
        "mobilenetv2", {"self.norm = BatchNorm(cout, rngs=rngs)":
                        "self.norm = BatchNorm(cout, momentum=0.1 if cin == 3 else 0.9, rngs=rngs)"},
        (("batch-norm-momentum", "features.0.1"),)
    ),
    "vgg_bn: Flax's own batch norm": Wrong(
        "vgg_bn", {VGG_NORM: "x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)"},
        tuple(("biased-variance", path) for path in VGG_NORMS)
    ),
    "mobilenetv2: Flax's own batch norm": Wrong(
        "mobilenetv2", {"self.norm = BatchNorm(cout, rngs=rngs)":
                        "self.norm = (nnx.BatchNorm if cin == 3 else BatchNorm)(cout, momentum=0.9, rngs=rngs)"},
        (("biased-variance", "features.0.1"),)
    ),
    "unet: Flax's own batch norm": Wrong(
        "unet", {"BatchNorm(use_running_average=not train)(x)":
                 "nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)"},
        tuple(("biased-variance", f"{part}.double_conv.{n}")
              for part in ("inc", "down1", "down2", "up1.conv", "up2.conv") for n in (1, 4))
    ),
    "resnet18: running statistics in training": Wrong(
        "resnet18", {'norm(name="bn_init")': 'norm(name="bn_init", use_running_average=True)'},
        (("running-average", "bn1"),)
    ),
    "vgg_bn: running statistics in training": Wrong(
        "vgg_bn", {VGG_NORM: "x = BatchNorm(use_running_average=True)(x)"},
        tuple(("running-average", path) for path in VGG_NORMS)
    ),
    "mobilenetv2: batch statistics in evaluation at the end": Wrong(
        "mobilenetv2", {"x = nnx.relu6(self.head(x))":
                        "self.head.norm.use_running_average = False\n        x = nnx.relu6(self.head(x))"},
        (("running-average", "features.5.1"),)
    ),
    "mobilenetv2: running statistics in training at the start": Wrong(
        "mobilenetv2", {"x = nnx.relu6(self.stem(x))":
                        "self.stem.norm.use_running_average = True\n        x = nnx.relu6(self.stem(x))"},
        (("running-average", "features.0.1"),)
    ),
    "convnext: layer norm over all but the batch": Wrong(
        "convnext", {"nn.LayerNorm(epsilon=1e-6)(y)": "nn.LayerNorm(epsilon=1e-6, reduction_axes=(1, 2, 3))(y)"},
        (("normalised-axes", "norm"),)
    ),
    "vit: the last norm over tokens too": Wrong(
        "vit", {"self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)":
                "self.norm = nnx.LayerNorm(dim, epsilon=1e-6, reduction_axes=(-2, -1), rngs=rngs)"},
        (("normalised-axes", "encoder.ln"),)
    ),
    "segmenter: group norm over groups without space": Wrong(
        "segmenter", {"y = nn.GroupNorm(num_groups=4,": "y = nn.GroupNorm(num_groups=4, reduction_axes=(-1,),"},
        (("normalised-axes", "norm2"),)
    ),
    "lenet5: GELU for ReLU": Wrong(
        "lenet5", {"x = nn.relu(nn.Dense(24)(x))": "x = nn.gelu(nn.Dense(24)(x))"}, (("activation", "fc2"),)
    ),
    "bridge_nnx: ReLU for SiLU": Wrong(
        "bridge_nnx", {"nnx.silu(self.linear(x))": "nnx.relu(self.linear(x))"}, (("activation", "fc2"),)
    ),
    "llama: GELU for SiLU": Wrong(
        "llama", {"nnx.silu(self.gate(x))": "nnx.gelu(self.gate(x), approximate=False)"},
        repeated("activation", "layers.{}.mlp.down_proj", 0, 1)
    ),
    "mobilenetv2: SiLU for ReLU6": Wrong(
        "mobilenetv2", {"x = nnx.relu6(self.stem(x))": "x = nnx.silu(self.stem(x))"},
        (("activation", "features.1.conv.0.0"),)
    ),
    "segmenter: SiLU for Hardswish": Wrong(
        "segmenter", {"y = nn.hard_swish(y)": "y = nn.silu(y)"}, (("activation", "fuse"),)
    ),
    "convnext: GELU's tanh": Wrong(
        "convnext", {"(y), approximate=False)": "(y))"}, (("activation-variant", "pwconv2"),)
    ),
    "mixer: GELU's tanh": Wrong(
        "mixer", {"lambda x: nnx.gelu(x, approximate=False)": "nnx.gelu"},
        (*repeated("activation-variant", "blocks.{}.mlp_tokens.fc2", 0, 1),
         *repeated("activation-variant", "blocks.{}.mlp_channels.fc2", 0, 1))
    ),
    "vit: GELU by a sigmoid": Wrong(
        "vit", {"nnx.gelu(self.up(x), approximate=False)": "self.up(x) * nnx.sigmoid(1.702 * self.up(x))"},
        repeated("activation-variant", ENCODER + ".mlp.3", 0, 1)
    ),
    "segmenter: LeakyReLU's default slope": Wrong(
        "segmenter", {"nn.leaky_relu(x, 0.2)": "nn.leaky_relu(x)"}, (("activation-variant", "grouped"),)
    ),
    "segmenter: ELU of another alpha": Wrong(
        "segmenter", {"y = nn.elu(y)": "y = nn.elu(y, 0.5)"}, (("activation-variant", "context"),)
    ),
    "lenet5: no ReLU": Wrong(
        "lenet5", {"x = nn.relu(nn.Dense(16)(x))": "x = nn.Dense(16)(x)"}, (("activation-missing", "fc3"),)
    ),
    "lenet5_nnx: no ReLU": Wrong(
        "lenet5_nnx", {"nnx.relu(self.body(x))": "self.body(x)"}, (("activation-missing", "fc1"),)
    ),
    "bert: no tanh in the pooler": Wrong(
        "bert", {"return x, jnp.tanh(": "return x, ("},
        (("activation-missing", "output"),)
    ),
    "wavenet: no sigmoid at the gate": Wrong(
        "wavenet", {"nnx.sigmoid(self.gate(x))": "self.gate(x)"},
        repeated("activation-missing", "blocks.{}.residual_conv", 0, 1, 2)
    ),
    "mobilenetv2: ReLU for ReLU6": Wrong(
        "mobilenetv2", {"x = nnx.relu6(self.stem(x))": "x = nnx.relu(self.stem(x))"},
        (("activation", "features.1.conv.0.0"),)
    ),
}  # fmt: skip

# This is no case: `check` passes it, for with its random weights no value exceeds 6.
