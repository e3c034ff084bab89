"""Attention and positions."""

from tests.parity.wrong.case import Wrong, repeated

BERT = "layer.{}.attention"
LLAMA = "layers.{}.self_attn"
GPT = "transformer.h.{}.attn"
VIT = "encoder_layer_{}.self_attention"
BERT_SCALE = " / jnp.sqrt(q.shape[-1]).astype(x.dtype)"
CAUSAL = "jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))"
GPT_HEADS = "self.heads, dropout_rate=self.dropout, broadcast_dropout=False, deterministic=deterministic"

CASES = {
    "bert: scores not divided": Wrong("bert", {BERT_SCALE: ""}, repeated("attention-scale", BERT, 0, 1)),
    "llama: scores divided by the width's root": Wrong(
        "llama", {"/ q.shape[-1] ** 0.5": "/ x.shape[-1] ** 0.5"}, repeated("attention-scale", LLAMA, 0, 1)
    ),
    "gpt_scan: scores divided twice": Wrong(
        "gpt_scan", {"            q, k, v,\n": "            q / q.shape[-1] ** 0.5, k, v,\n"},
        repeated("attention-scale", GPT, 0, 1, 2)
    ),
    "gpt: no mask": Wrong("gpt", {"(y, mask=mask)": "(y)"}, repeated("attention-mask", GPT, 0, 1, 2)),
    "llama: a mask that shows the next token": Wrong(
        "llama", {CAUSAL: "jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool), 1)"},
        repeated("attention-mask", LLAMA, 0, 1)
    ),
    "bert: the mask inverted": Wrong(
        "bert", {"(1.0 - attention_mask[:, None, None, :].astype(x.dtype)) * -10000.0":
                 "attention_mask[:, None, None, :].astype(x.dtype) * -10000.0"},
        repeated("attention-mask", BERT, 0)
    ),
    "bert: the mask as if it were to be added": Wrong(
        "bert", {"(1.0 - attention_mask[:, None, None, :].astype(x.dtype)) * -10000.0":
                 "attention_mask[:, None, None, :].astype(x.dtype)"},
        repeated("attention-mask", BERT, 0)
    ),
    "vit: a causal mask": Wrong(
        "vit", {"self.attention(self.norm1(x))": "self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))"},
        repeated("attention-mask", VIT, 0, 1)
    ),
    "vit: four heads for two": Wrong(
        "vit", {"            heads, dim, dropout_rate=dropout": "            2 * heads, dim, dropout_rate=dropout"},
        repeated("attention-heads", VIT, 0, 1)
    ),
    "gpt: one head": Wrong(
        "gpt", {GPT_HEADS: GPT_HEADS.replace("self.heads", "1")}, repeated("attention-heads", GPT, 0, 1, 2)
    ),
    "bert: heads split the other way": Wrong(
        "bert",
        {f'name="{name}")(x).reshape(n, length, self.heads, -1)':
         f'name="{name}")(x).reshape(n, length, -1, self.heads).swapaxes(2, 3)' for name in ("query", "key", "value")},
        repeated("attention-heads", BERT, 0, 1)
    ),
    "llama: heads merged without turning": Wrong(
        "llama", {"bhqk,bkhd->bqhd": "bhqk,bkhd->bhqd"}, repeated("attention-heads", LLAMA, 0, 1)
    ),
    "llama: rotary by neighbours": Wrong(
        "llama",
        {"a, b = x[..., :half], x[..., half:]": "a, b = x[..., ::2], x[..., 1::2]",
         "return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)":
         "return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)"},
        repeated("rotary", LLAMA, 0, 1)
    ),
    "llama: rotary with another base": Wrong(
        "llama", {"def rotary(x, theta: float = 10000.0)": "def rotary(x, theta: float = 500000.0)"},
        repeated("rotary", LLAMA, 0, 1)
    ),
    "llama: keys not turned": Wrong(
        "llama", {"q, k = rotary(q), rotary(k)": "q = rotary(q)"}, repeated("rotary", LLAMA, 0, 1)
    ),
    "llama: no rotary": Wrong("llama", {"        q, k = rotary(q), rotary(k)\n": ""}, repeated("rotary", LLAMA, 0, 1)),
    "bert: softmax over queries": Wrong(
        "bert", {"jax.nn.softmax(scores + mask, axis=-1)": "jax.nn.softmax(scores + mask, axis=-2)"},
        repeated("softmax-axis", BERT, 0, 1)
    ),
    "llama: softmax over heads": Wrong(
        "llama", {"jnp.where(mask, scores, -jnp.inf), axis=-1)": "jnp.where(mask, scores, -1e9), axis=1)"},
        repeated("softmax-axis", LLAMA, 0, 1)
    ),
    "inputnorm: log softmax over the batch": Wrong(
        "inputnorm", {"(x.reshape(x.shape[0], -1)), axis=-1)": "(x.reshape(x.shape[0], -1)), axis=0)"},
        (("softmax-axis", "output"),)
    ),
    "bert: positions from 0": Wrong(
        "bert", {"positions = 2 + jnp.arange": "positions = jnp.arange"},
        (("position-offset", "embeddings.position_embeddings"),)
    ),
    "gpt: positions from 1": Wrong(
        "gpt", {"jnp.arange(tokens.shape[1])[None])": "1 + jnp.arange(tokens.shape[1])[None])"},
        (("position-offset", "transformer.wpe"),)
    ),
    "gpt_scan: positions from 1": Wrong(
        "gpt_scan", {"self.positions(jnp.arange(tokens.shape[1]))": "self.positions(1 + jnp.arange(tokens.shape[1]))"},
        (("position-offset", "transformer.wpe"),)
    ),
    "vit: the class token's position comes last": Wrong(
        "vit", {"axis=1) + self.positions[...]": "axis=1) + jnp.roll(self.positions[...], -1, axis=1)"},
        (("position-offset", "encoder.layers.encoder_layer_0.ln_1"),)
    ),
}  # fmt: skip
