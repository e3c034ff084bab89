"""Ports that went wrong, by one who did not know what the diagnosis looks for."""

from tests.parity.wrong.case import Wrong, repeated
from tests.parity.wrong.strangers_more import MORE

IMAGES: dict[str, Wrong] = {
    "lenet5: first pool an average, as in LeCun's": Wrong(
        "lenet5",
        {
            "x = nn.max_pool(x, (2, 2), strides=(2, 2))\n        x = nn.relu(nn.Conv(8": (
                "x = nn.avg_pool(x, (2, 2), strides=(2, 2))\n        x = nn.relu(nn.Conv(8"
            )
        },
        (("pooling-kind", "conv"),),
    ),
    "lenet5: a ReLU on the logits": Wrong(
        "lenet5", {"return nn.Dense(self.classes)(x)": "return nn.relu(nn.Dense(self.classes)(x))"},
        (("activation", ""),),
    ),
    "lenet5_nnx: no ReLU between the last two layers": Wrong(
        "lenet5_nnx", {"x = nnx.relu(self.hidden_b(x))": "x = self.hidden_b(x)"}, (("activation-missing", "fc"),),
    ),
    "vgg_bn: deterministic given the flag for training": Wrong(
        "vgg_bn", {"deterministic=not train": "deterministic=train"}, repeated("mode", "classifier.{}", 2, 5),
    ),
    "resnet18: blocks step in their second convolution": Wrong(
        "resnet18",
        {
            "(3, 3), self.strides, padding=1)(x)": "(3, 3), padding=1)(x)",
            "(3, 3), padding=1)(y)": "(3, 3), self.strides, padding=1)(y)",
        },
        repeated("stride", "layer{}.0.conv1", 2, 3, 4) + repeated("stride", "layer{}.0.conv2", 2, 3, 4),
    ),
    "resnet18: shortcuts not normalised": Wrong(
        "resnet18", {'            residual = self.norm(name="norm_proj")(residual)\n': ""},
        repeated("layer-missing", "layer{}.0.downsample", 2, 3, 4),
    ),
    "mobilenetv2: ReLU6 after the linear bottleneck": Wrong(
        "mobilenetv2", {"y = self.project(y)": "y = nnx.relu6(self.project(y))"},
        repeated("activation", "features", 1, 2, 3, 4),
    ),
    "convnext: shortcut from behind the depthwise convolution": Wrong(
        "convnext", {"y = nn.Conv(dim, (7, 7)": "x = y = nn.Conv(dim, (7, 7)"}, (("residual", ""),),
    ),
    "convnext: normalised over height and width too": Wrong(
        "convnext", {"nn.LayerNorm(epsilon=1e-6)": "nn.LayerNorm(epsilon=1e-6, reduction_axes=(1, 2, 3))"},
        (("normalised-axes", "norm"),),
    ),
    "unet: upsampled before the skip": Wrong(
        "unet", {"jnp.concatenate([x2, x], axis=-1)": "jnp.concatenate([x, x2], axis=-1)"}, (("concatenation", "up1"),),
    ),
    "unet: last block not told that it trains": Wrong(
        "unet", {"jnp.concatenate([x1, x], axis=-1), train)": "jnp.concatenate([x1, x], axis=-1), False)"},
        repeated("running-average", "up2.conv.double_conv.{}", 1, 4),
    ),
    "segmenter: GroupNorm given the size of a group": Wrong(
        "segmenter", {"x = nn.GroupNorm(num_groups=4,": "x = nn.GroupNorm(num_groups=None, group_size=4,"},
        (("groups", "norm1"),),
    ),
    "segmenter: pool's ceil_mode by padding in front": Wrong(
        "segmenter", {"padding=((0, 1), (0, 1))": "padding=((1, 0), (1, 0))"}, (("pooling-padding", "pool"),),
    ),
    "segmenter: output upsampled bilinearly": Wrong(
        "segmenter", {'self.classes), "nearest")': 'self.classes), "bilinear")'}, (("resize", ""),),
    ),
    "squeezenet: second fire with a bypass": Wrong(
        "squeezenet",
        {"x = ceil_pool(self.fire2(self.fire1(x)))": "x = self.fire1(x)\n        x = ceil_pool(x + self.fire2(x))"},
        (("residual", "features."),),
    ),
    "autoencoder: up2 padded by one side": Wrong(
        "autoencoder",
        {"(width, 3, (4, 4), **up, rngs=rngs)": '(width, 3, (4, 4), **{**up, "padding": ((1, 3), (1, 3))}, rngs=rngs)'},
        (("padding", "up2"),),
    ),
    "autoencoder: hard sigmoid gates, as MobileNetV3 has": Wrong(
        "autoencoder", {"return x * nnx.sigmoid(y)": "return x * nnx.hard_sigmoid(y)"}, (("activation", "se"),),
    ),
    "inputnorm: images of OpenCV": Wrong(
        "inputnorm", {"x = (x / 255 - mean) / std": "x = (x[..., ::-1] / 255 - mean) / std"},
        (("channels-reversed", ""),),
    ),
    "inputnorm: images between -1 and 1": Wrong(
        "inputnorm", {"x = (x / 255 - mean) / std": "x = x / 127.5 - 1"}, (("input-scale", ""),),
    ),
    "inputnorm: dense layer in bfloat16": Wrong(
        "inputnorm",
        {"classes, rngs=rngs)": "classes, dtype=jax.numpy.bfloat16, rngs=rngs)"},
        (("precision", "fc"),),
    ),
    "bridge_nnx: max for mean over the image": Wrong(
        "bridge_nnx", {"jnp.mean(x, axis=(1, 2))": "jnp.max(x, axis=(1, 2))"}, (("pooling-kind", ""),),
    ),
    "bridge_linen: head not told that it is evaluated": Wrong(
        "bridge_linen", {"head(x, deterministic=deterministic)": "head(x)"}, (("mode", "dropout"),),
    ),
    "bridge_linen: GELU in the second convolution": Wrong(
        "bridge_linen", {"nn.silu(nn.Conv(self.channels, (3, 3))(x))": "nn.gelu(nn.Conv(self.channels, (3, 3))(x))"},
        (("activation", ""),),
    ),
}  # fmt: skip

SEQUENCES: dict[str, Wrong] = {
    "vit: class token behind the patches": Wrong(
        "vit", {"jnp.concatenate([cls, x], axis=1)": "jnp.concatenate([x, cls], axis=1)"}, (("concatenation", ""),),
    ),
    "vit: normalised after the attention": Wrong(
        "vit",
        {"x + self.dropout(self.attention(self.norm1(x)))": "self.norm1(x + self.dropout(self.attention(x)))"},
        repeated("residual-order", "encoder_layer_{}", 0, 1),
    ),
    "gpt: fairseq's positions": Wrong(
        "gpt", {"(jnp.arange(tokens.shape[1])[None])": "(1 + jnp.arange(tokens.shape[1])[None])"},
        (("position-offset", "wpe"),),
    ),
    "gpt: token 0 masked as padding": Wrong(
        "gpt",
        {
            "mask = nn.make_causal_mask(tokens, dtype=bool)": (
                "real = nn.make_attention_mask(tokens > 0, tokens > 0, dtype=bool)\n"
                "        mask = nn.combine_masks(nn.make_causal_mask(tokens, dtype=bool), real, dtype=bool)"
            )
        },
        repeated("attention-mask", "h.{}.attn", 0, 1, 2),
    ),
    "gpt: embeddings scaled as the Transformer's": Wrong(
        "gpt", {"(embed(tokens) + positions,": "(embed(tokens) * self.width**0.5 + positions,"},
        (("scale", "transformer"),),
    ),
    "gpt_scan: heads merged as if still in front": Wrong(
        "gpt_scan", {'name="out")(y.reshape(x.shape))': 'name="out")(y.swapaxes(1, 2).reshape(x.shape))'},
        repeated("attention-heads", "h.{}.attn", 0, 1, 2),
    ),
    "gpt_scan: queries scaled before attention scales them": Wrong(
        "gpt_scan", {"            q, k, v,\n": "            q / q.shape[-1] ** 0.5, k, v,\n"},
        repeated("attention-scale", "h.{}.attn", 0, 1, 2),
    ),
    "lstm: rate is what is kept": Wrong(
        "lstm", {"nn.Dropout(self.dropout, deterministic=deter": "nn.Dropout(1 - self.dropout, deterministic=deter"},
        (("dropout-rate", "dropout"),),
    ),
    "bilstm: backward before forward": Wrong(
        "bilstm",
        {
            "nn.Bidirectional(forward, backward)": (
                "nn.Bidirectional(forward, backward, merge_fn=lambda a, b: jnp.concatenate([b, a], axis=-1))"
            )
        },
        (("concatenation", ""),),
    ),
    "bilstm: Keras' hard gates forwards": Wrong(
        "bilstm",
        {
            "forward = nn.RNN(nn.OptimizedLSTMCell(self.hidden)": (
                "forward = nn.RNN(nn.OptimizedLSTMCell(self.hidden, gate_fn=nn.hard_sigmoid)"
            )
        },
        (("activation", "lstm"),),
    ),
    "gru_nnx: hidden transformation without biases": Wrong(
        "gru_nnx", {"3 * hidden_features, rngs=rngs)": "3 * hidden_features, use_bias=False, rngs=rngs)"},
        (("bias-missing", "gru"),),
    ),
    "gru_nnx: dropout never on": Wrong(
        "gru_nnx", {"self.dropout(h)": "self.dropout(h, deterministic=True)"}, (("mode", "dropout"),),
    ),
    "wavenet: filters not dilated": Wrong(
        "wavenet",
        {
            "self.filter = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation,": (
                "self.filter = nnx.Conv(channels, channels, (size,),"
            )
        },
        repeated("dilation", "blocks.{}.filter_conv", 1, 2),
    ),
    "wavenet: skips averaged": Wrong(
        "wavenet", {"jnp.sum(jnp.stack(skips), axis=0)": "jnp.mean(jnp.stack(skips), axis=0)"}, (("scale", ""),),
    ),
    "mixer: tokens mixed without a residual": Wrong(
        "mixer", {"x = x + y.swapaxes(1, 2)": "x = y.swapaxes(1, 2)"}, repeated("residual", "blocks.{}", 0, 1),
    ),
    "mixer: token norms with PyTorch's default": Wrong(
        "mixer", {"self.token_norm = nnx.LayerNorm(dim,": "self.token_norm = nnx.LayerNorm(dim, epsilon=1e-5,"},
        repeated("epsilon", "blocks.{}.norm1", 0, 1),
    ),
    "llama: heads turned backwards": Wrong(
        "llama", {"[a * cos - b * sin, b * cos + a * sin]": "[a * cos + b * sin, b * cos - a * sin]"},
        repeated("rotary", "layers.{}.self_attn", 0, 1),
    ),
    "llama: Mistral's window": Wrong(
        "llama",
        {"bool))[None, None]": "bool))[None, None] & ~jnp.tri(x.shape[1], k=-4, dtype=bool)"},
        repeated("attention-mask", "layers.{}.self_attn", 0, 1),
    ),
    "llama: softmax over the queries": Wrong(
        "llama", {"scores, -jnp.inf), axis=-1)": "scores, -jnp.inf), axis=-2)"},
        repeated("softmax-axis", "layers.{}.self_attn", 0, 1),
    ),
    "llama: final norm in the body and in the head": Wrong(
        "llama", {"self.head(self.norm(x))": "self.head(self.norm(self.norm(x)))"}, (("layer-twice", "norm"),),
    ),
    "bert: mask on the queries": Wrong(
        "bert", {"attention_mask[:, None, None, :].astype": "attention_mask[:, None, :, None].astype"},
        repeated("attention-mask", "layer.{}.attention", 0, 1),
    ),
    "bert: twice the heads": Wrong(
        "bert", {"SelfAttention(self.heads, self.dropout,": "SelfAttention(2 * self.heads, self.dropout,"},
        repeated("attention-heads", "layer.{}.attention", 0, 1),
    ),
    "captioner: sound pooled by Flax's default step": Wrong(
        "captioner", {"(memory, (2,), strides=(2,))": "(memory, (2,))"}, (("pooling-stride", "pool"),),
    ),
    "initial: convolution sees the past only": Wrong(
        "initial", {"nn.Conv(self.hidden, (3,)": 'nn.Conv(self.hidden, (3,), padding="CAUSAL"'}, (("padding", "conv"),),
    ),
    "initial_nnx: max over time for mean": Wrong(
        "initial_nnx", {"jnp.mean(nnx.relu(self.conv": "jnp.max(nnx.relu(self.conv"},
        (("pooling-kind", ""),),
    ),
}  # fmt: skip

CASES: dict[str, Wrong] = IMAGES | SEQUENCES | MORE
