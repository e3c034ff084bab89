"""Mistakes between layers, in attention, dropout and precision."""

from tests.parity.blind.wrong import Wrong

BETWEEN = {
    "the smooth form of an activation": Wrong("squeeze", {"nn.hard_swish(x)": "nn.silu(x)"}, (("activation", "fc1"),)),
    "a relative in a residual branch": Wrong("counter", {"nn.selu(": "nn.elu("}, (("activation", "fc2"),)),
    "another activation in one of three places": Wrong(
        "bridge_nnx", {"nnx.silu(self.linear(x))": "nnx.gelu(self.linear(x))"}, (("activation", "fc2"),)
    ),
    "a slope left out": Wrong(
        "denoiser",
        {"nn.leaky_relu(self.dec1(x), 0.1)": "nn.leaky_relu(self.dec1(x))"},
        (("activation-variant", "dec2"),),
    ),
    "a sharpness left out": Wrong(
        "pyramid", {"nn.softplus(2 * y) / 2": "nn.softplus(y)"}, (("activation-variant", "out"),)
    ),
    "the last activation left to the loss": Wrong(
        "denoiser", {"nn.sigmoid(self.dec2(x))": "self.dec2(x)"}, (("activation-missing", "output"),)
    ),
    "a bottleneck without its activation": Wrong(
        "squeeze",
        {'nn.relu(nn.Dense(8, name="fc1")(x.mean((1, 2))))': 'nn.Dense(8, name="fc1")(x.mean((1, 2)))'},
        (("activation-missing", "fc2"),),
    ),
    "scores divided by the model's width": Wrong(
        "prenorm", {"rotated(q), rotated(k)) / 2": "rotated(q), rotated(k)) / 8**0.5"}, (("attention-scale", "proj"),)
    ),
    "queries divided once more": Wrong(
        "gpt_scan",
        {"            q, k, v,": "            q / q.shape[-1] ** 0.5, k, v,"},
        (("attention-scale", "attn"),),
    ),
    "one token of the future": Wrong(
        "prenorm",
        {"jnp.tril(jnp.ones(scores.shape[-2:], bool))": "jnp.tril(jnp.ones(scores.shape[-2:], bool), 1)"},
        (("attention-mask", "proj"),),
    ),
    "ignored places not ignored": Wrong(
        "crossing", {", mask=ignored[:, None, None] == 0)": ")"}, (("attention-mask", "attention"),)
    ),
    "heads fastest": Wrong(
        "prenorm",
        {"(part.reshape(*x.shape[:2], 2, 4) for": "(part.reshape(*x.shape[:2], 4, 2).swapaxes(2, 3) for"},
        (("attention-heads", "proj"),),
    ),
    "heads put together before they are moved": Wrong(
        "prenorm", {'"nhqk,nkhd->nqhd"': '"nhqk,nkhd->nhqd"'}, (("attention-heads", "proj"),)
    ),
    "frequencies over the whole head": Wrong(
        "prenorm",
        {"(-jnp.arange(half, dtype=x.dtype) / half)": "(-jnp.arange(half, dtype=x.dtype) / (2 * half))"},
        (("rotary", "proj"),),
    ),
    "neighbours turned for halves": Wrong(
        "prenorm",
        {"x[..., half:]\n    return jnp": "x[..., half:]\n    a, b = x[..., ::2], x[..., 1::2]\n    return jnp"},
        (("rotary", "proj"),),
    ),
    "embeddings as they are": Wrong(
        "prenorm", {'name="embed")(tokens) * 8**0.5': 'name="embed")(tokens)'}, (("scale", "norm1"),)
    ),
    "a temperature forgotten": Wrong("mixture", {" / 0.7, axis=1": ", axis=1"}, (("scale", "output"),)),
    "skips averaged": Wrong(
        "wavenet", {"jnp.sum(jnp.stack(skips), axis=0)": "jnp.mean(jnp.stack(skips), axis=0)"}, (("scale", "output"),)
    ),
    "one of two biases": Wrong(
        "gru_nnx",
        {"3 * hidden_features, rngs=rngs)": "3 * hidden_features, use_bias=False, rngs=rngs)"},
        (("bias-missing", "gru"),),
    ),
    "no bias in a grouped convolution": Wrong(
        "separable",
        {"feature_group_count=2, rngs": "feature_group_count=2, use_bias=False, rngs"},
        (("bias-missing", "mixing"),),
    ),
    "no way round": Wrong("counter", {"x = x + nn.selu(": "x = nn.selu("}, (("residual", "fc2"),)),
    "the way round starts after the norm": Wrong(
        "vit",
        {
            "x = x + self.dropout(self.attention(self.norm1(x)))": "x = self.norm1(x)\n"
            "        x = x + self.dropout(self.attention(x))"
        },
        (("residual-order", "ln_2"),),
    ),
    "the sum after the norm": Wrong(
        "crossing", {"self.norm2(x + y)": "x + self.norm2(y)"}, (("residual-order", "norm2"),)
    ),
    "a norm left out": Wrong(
        "counter",
        {'nn.LayerNorm(epsilon=1e-5, name="norm")(x.mean(1))': "x.mean(1)"},
        (("layer-missing", "norm"),),
    ),
    "a layer once more": Wrong(
        "mixture",
        {"x = nnx.tanh(self.hidden2(x))": "x = nnx.tanh(self.hidden2(nnx.tanh(self.hidden2(x))))"},
        (("layer-twice", "hidden2"),),
    ),
    "positions from zero": Wrong(
        "crossing",
        {"self.positions(jnp.arange(tokens.shape[1]) + 2)": "self.positions(jnp.arange(tokens.shape[1]))"},
        (("position-offset", "positions"),),
    ),
    "positions from one": Wrong(
        "gpt_scan",
        {"self.positions(jnp.arange(tokens.shape[1]))": "self.positions(1 + jnp.arange(tokens.shape[1]))"},
        (("position-offset", "transformer.wpe"),),
    ),
    "smoothed before it is made smaller": Wrong(
        "pyramid", {'"linear", antialias=False)': '"linear")'}, (("resize", "out"),)
    ),
    "shares over the wrong axis": Wrong("mixture", {" / 0.7, axis=1": " / 0.7"}, (("softmax-axis", "output"),)),
    "the class token last": Wrong(
        "vit",
        {"jnp.concatenate([cls, x], axis=1)": "jnp.concatenate([x, cls], axis=1)"},
        (("concatenation", "encoder"),),
    ),
    "two poolings exchanged": Wrong(
        "separable",
        {"[x.mean((1, 2)), x.max((1, 2))]": "[x.max((1, 2)), x.mean((1, 2))]"},
        (("concatenation", "head"),),
    ),
    "blue first": Wrong(
        "pyramid", {"x = (x - jnp.array(MEAN": "x = (x[..., ::-1] - jnp.array(MEAN"}, (("channels-reversed", "fine"),)
    ),
    "no division by the deviation": Wrong("pyramid", {" / jnp.array(STD, x.dtype)": ""}, (("input-scale", "fine"),)),
    "the kept share as a rate": Wrong(
        "keywords", {"nn.Dropout(0.4)(x": "nn.Dropout(0.6)(x"}, (("dropout-rate", "drop"),)
    ),
    "elements dropped for channels": Wrong(
        "squeeze", {"nn.Dropout(0.2, broadcast_dims=(1, 2), ": "nn.Dropout(0.2, "}, (("dropout-broadcast", "drop"),)
    ),
    "a mask for all sentences": Wrong(
        "crossing", {"broadcast_dropout=False, ": ""}, (("dropout-broadcast", "attention"),)
    ),
    "a head that is never trained": Wrong(
        "bridge_linen",
        {"return head(x, deterministic=deterministic)": "return head(x, deterministic=True)"},
        (("mode", "dropout"),),
    ),
    "angles in single precision": Wrong(
        "prenorm", {"jnp.arange(half, dtype=x.dtype)": "jnp.arange(half, dtype=jnp.float32)"}, (("precision", "proj"),)
    ),
    "a norm's mean in half precision": Wrong(
        "prenorm", {"jnp.mean(x**2, -1,": "jnp.mean(x.astype(jnp.bfloat16) ** 2, -1,"}, (("precision", "norm"),)
    ),
}
