"""What is between layers, and before the first."""

from tests.parity.wrong.case import Wrong, repeated

GPT_ADD = "x = x + nn.Dropout(self.dropout)(y, deterministic=deterministic)"
LLAMA_LOOP = "self.embed(tokens)\n        for layer in self.layers"
BERT_LAYER = "x = Layer(self.heads, self.hidden, self.dropout)(x, mask, deterministic)"
INPUT_NORM = "x = (x / 255 - mean) / std"

CASES = {
    "gpt: embedding times the width's root": Wrong(
        "gpt", {"embed(tokens) + positions,": "embed(tokens) * self.width**0.5 + positions,"},
        (("scale", "transformer.h.0.ln_1"),)
    ),
    "llama: branch halved": Wrong(
        "llama", {"return x + self.mlp(self.norm2(x))": "return x + 0.5 * self.mlp(self.norm2(x))"},
        (("scale", "layers.1.input_layernorm"), ("scale", "norm"))
    ),
    "convnext: layer scale forgotten": Wrong(
        "convnext", {"gamma[None, None, None] * y": "y"}, (("scale", "output"),)
    ),
    "gpt_scan: logits divided": Wrong(
        "gpt_scan", {"self.embed.attend(self.norm(x))": "self.embed.attend(self.norm(x)) / self.width**0.5"},
        (("scale", "output"),)
    ),
    "lenet5: no bias": Wrong("lenet5", {"nn.Dense(24)": "nn.Dense(24, use_bias=False)"}, (("bias-missing", "fc1"),)),
    "wavenet: no bias": Wrong(
        "wavenet", {"channels, skip, (1,), rngs=rngs": "channels, skip, (1,), use_bias=False, rngs=rngs"},
        repeated("bias-missing", "blocks.{}.skip_conv", 0, 1, 2)
    ),
    "convnext: norm without bias": Wrong(
        "convnext", {"nn.LayerNorm(epsilon=1e-6)": "nn.LayerNorm(epsilon=1e-6, use_bias=False)"},
        (("bias-missing", "norm"),)
    ),
    "gpt: no residual around attention": Wrong(
        "gpt", {GPT_ADD: GPT_ADD.replace("x + ", "")}, repeated("residual", "transformer.h.{}.ln_2", 0, 1, 2)
    ),
    "convnext: no residual": Wrong(
        "convnext", {"return x + gamma[None, None, None] * y": "return gamma[None, None, None] * y"},
        (("residual", "output"),)
    ),
    "mobilenetv2: no residual": Wrong(
        "mobilenetv2", {"return x + y if self.residual else y": "return y"}, (("residual", "features.4.conv"),)
    ),
    "wavenet: filter and gate exchanged": Wrong(
        "wavenet", {"nnx.tanh(self.filter(x)) * nnx.sigmoid(self.gate(x))":
                    "nnx.tanh(self.gate(x)) * nnx.sigmoid(self.filter(x))"},
        repeated("weights-shuffled", "blocks.{}.residual_conv", 0, 1, 2),
    ),
    "wavenet: no residual": Wrong(
        "wavenet", {"return x + self.residual(z),": "return self.residual(z),"},
        (*repeated("residual", "blocks.{}.filter_conv", 1, 2), ("residual", "output"))
    ),
    "resnet18: ReLU before the addition": Wrong(
        "resnet18", {"return self.act(residual + y)": "return residual + self.act(y)"},
        (*repeated("residual-order", "layer{}.1.conv1", 1, 2, 3, 4),
         *repeated("residual-order", "layer{}.0.conv1", 2, 3, 4), ("residual-order", "fc"))
    ),
    "vit: the residual takes what is normalised": Wrong(
        "vit", {"x = x + self.dropout(self.attention(self.norm1(x)))":
                "x = self.norm1(x)\n        x = x + self.dropout(self.attention(x))"},
        repeated("residual-order", "encoder_layer_{}.ln_2", 0, 1)
    ),
    "bert: addition after the norm": Wrong(
        "bert", {'return nn.LayerNorm(epsilon=1e-12, name="norm")(y + x)':
                 'return nn.LayerNorm(epsilon=1e-12, name="norm")(y) + x'},
        repeated("residual-order", "layer.{}.output_norm", 0, 1)
    ),
    "gpt: no norm at the end": Wrong(
        "gpt", {"x = nn.LayerNorm(epsilon=1e-5)(x)\n        return embed": "return embed"},
        (("layer-missing", "transformer.ln_f"),)
    ),
    "vit: no norm at the end": Wrong(
        "vit", {"self.head(self.norm(x)[:, 0])": "self.head(x[:, 0])"}, (("layer-missing", "encoder.ln"),)
    ),
    "lenet5: no second hidden layer": Wrong(
        "lenet5", {"        x = nn.relu(nn.Dense(16)(x))\n": ""}, (("layer-missing", "fc2"),)
    ),
    "llama: a block too few": Wrong(
        "llama", {LLAMA_LOOP: LLAMA_LOOP + "[:-1]"}, (("layer-missing", "layers.1"),)
    ),
    "llama: the last block twice": Wrong(
        "llama", {LLAMA_LOOP: LLAMA_LOOP.replace("self.layers", "(*self.layers, self.layers[-1])")},
        (("layer-twice", "layers.1"),)
    ),
    "bert: each block twice": Wrong(
        "bert", {BERT_LAYER: "layer = Layer(self.heads, self.hidden, self.dropout)\n"
                             "            x = layer(layer(x, mask, deterministic), mask, deterministic)"},
        repeated("layer-twice", "layer.{}", 0, 1)
    ),
    "initial: hidden layer twice": Wrong(
        "initial",
        {"x = nn.relu(nn.Dense(self.hidden, kernel_init=torch_kernel, bias_init=torch_bias(self.hidden))(x))":
         "middle = nn.Dense(self.hidden, kernel_init=torch_kernel, bias_init=torch_bias(self.hidden))\n"
         "        x = nn.relu(middle(nn.relu(middle(x))))"},
        (("layer-twice", "fc1"),)
    ),
    "mixer: blocks twice": Wrong(
        "mixer", {"x = self.norm(self.blocks(x))\n        return self.head(jnp":
                  "x = self.norm(self.blocks(self.blocks(x)))\n        return self.head(jnp"},
        (("layer-twice", "blocks"),)
    ),
    "segmenter: nearest for bilinear": Wrong(
        "segmenter", {'y.shape[-1]), "bilinear")': 'y.shape[-1]), "nearest")'}, (("resize", "fuse"),)
    ),
    "segmenter: bilinear for nearest": Wrong(
        "segmenter", {'self.classes), "nearest")': 'self.classes), "bilinear")'}, (("resize", "output"),)
    ),
    "segmenter: corners aligned": Wrong(
        "segmenter",
        {'y = jax.image.resize(y, (n, *low.shape[1:3], y.shape[-1]), "bilinear")':
         "shape = (n, *low.shape[1:3], y.shape[-1])\n"
         "        scale = jnp.array([(shape[i] - 1) / (y.shape[i] - 1) for i in (1, 2)])\n"
         '        y = jax.image.scale_and_translate(y, shape, (1, 2), scale, 0.5 - scale / 2, "bilinear")'},
        (("resize", "fuse"),)
    ),
    "segmenter: concatenated the other way": Wrong(
        "segmenter", {"jnp.concatenate([low, y], axis=-1)": "jnp.concatenate([y, low], axis=-1)"},
        (("concatenation", "fuse"),)
    ),
    "unet: concatenated the other way": Wrong(
        "unet", {"jnp.concatenate([x2, x], axis=-1)": "jnp.concatenate([x, x2], axis=-1)"},
        (("concatenation", "up1.conv.double_conv.0"),)
    ),
    "squeezenet: concatenated the other way": Wrong(
        "squeezenet", {"[nnx.relu(self.one(x)), nnx.relu(self.three(x))]":
                       "[nnx.relu(self.three(x)), nnx.relu(self.one(x))]"},
        (*repeated("concatenation", "features.{}.squeeze", 4, 6), ("concatenation", "classifier.1"))
    ),
    "inputnorm: colours reversed": Wrong(
        "inputnorm", {INPUT_NORM: "x = (x[..., ::-1] / 255 - mean) / std"}, (("channels-reversed", "conv"),)
    ),
    "bridge_linen: colours reversed": Wrong(
        "bridge_linen", {"x = Encoder(self.channels)(x)": "x = Encoder(self.channels)(x[..., ::-1])"},
        (("channels-reversed", "conv1"),)
    ),
    "vit: colours reversed": Wrong(
        "vit", {"x = self.patches(x)": "x = self.patches(x[..., ::-1])"}, (("channels-reversed", "conv_proj"),)
    ),
    "inputnorm: not divided by 255": Wrong(
        "inputnorm", {INPUT_NORM: "x = (x - mean) / std"}, (("input-scale", "conv"),)
    ),
    "inputnorm: not normalised": Wrong("inputnorm", {INPUT_NORM: "x = x / 255"}, (("input-scale", "conv"),)),
    "inputnorm: between -1 and 1": Wrong("inputnorm", {INPUT_NORM: "x = x / 127.5 - 1"}, (("input-scale", "conv"),)),
    "lenet5: divided by 255": Wrong(
        "lenet5", {"x = nn.relu(nn.Conv(4, (5, 5))(x))": "x = nn.relu(nn.Conv(4, (5, 5))(x / 255))"},
        (("input-scale", "conv1"),)
    ),
}  # fmt: skip
