"""Dropout, modes and precision."""

from tests.parity.wrong.case import Wrong, repeated

VGG_DROP = "x = nn.Dropout(self.dropout, deterministic=not train)(x)"
LSTM_DROP = "x = nn.Dropout(self.dropout, deterministic=deterministic)(x[:, -1])"
BERT_WEIGHTS = "nn.Dropout(self.dropout)(weights, deterministic=deterministic)"

CASES = {
    "lstm: another dropout rate": Wrong(
        "lstm", {"dropout: float = 0.3\n\n    @nn.compact\n    def __call__(self, tokens":
                 "dropout: float = 0.5\n\n    @nn.compact\n    def __call__(self, tokens"},
        (("dropout-rate", "dropout"),)
    ),
    "gru_nnx: the share kept for the rate": Wrong(
        "gru_nnx", {"nnx.Dropout(dropout, rngs=rngs)": "nnx.Dropout(1 - dropout, rngs=rngs)"},
        (("dropout-rate", "dropout"),)
    ),
    "vit: another dropout rate in attention": Wrong(
        "vit", {"heads, dim, dropout_rate=dropout,": "heads, dim, dropout_rate=3 * dropout,"},
        repeated("dropout-rate", "encoder_layer_{}.self_attention", 0, 1)
    ),
    "gpt: attention's dropout broadcast, as is the default": Wrong(
        "gpt", {"dropout_rate=self.dropout, broadcast_dropout=False, deterministic=deterministic":
                "dropout_rate=self.dropout, deterministic=deterministic"},
        repeated("dropout-broadcast", "transformer.h.{}.attn", 0, 1, 2)
    ),
    "vit: attention's dropout broadcast, as is the default": Wrong(
        "vit", {"dropout_rate=dropout, broadcast_dropout=False,": "dropout_rate=dropout,"},
        repeated("dropout-broadcast", "encoder_layer_{}.self_attention", 0, 1)
    ),
    "bert: dropout over the batch": Wrong(
        "bert", {BERT_WEIGHTS: BERT_WEIGHTS.replace("self.dropout", "self.dropout, broadcast_dims=(0,)")},
        repeated("dropout-broadcast", "layer.{}.attention.dropout", 0, 1)
    ),
    "bridge_nnx: dropout over the batch": Wrong(
        "bridge_nnx", {"nnx.Dropout(dropout, rngs": "nnx.Dropout(dropout, broadcast_dims=(0,), rngs"},
        (("dropout-broadcast", "dropout"),)
    ),
    "vgg_bn: dropout that is never on": Wrong(
        "vgg_bn", {VGG_DROP: VGG_DROP.replace("not train", "True")}, repeated("mode", "classifier.{}", 2, 5)
    ),
    "lstm: dropout that is never on": Wrong(
        "lstm", {LSTM_DROP: LSTM_DROP.replace("=deterministic", "=True")}, (("mode", "dropout"),)
    ),
    "mobilenetv2: dropout that is never on": Wrong(
        "mobilenetv2", {"self.classifier(self.dropout(x))": "self.classifier(self.dropout(x, deterministic=True))"},
        (("mode", "classifier.0"),)
    ),
    "lenet5: a dense layer in bfloat16": Wrong(
        "lenet5", {"class LeNet5(nn.Module)": "import jax.numpy as jnp\n\n\nclass LeNet5(nn.Module)",
                   "nn.Dense(24)": "nn.Dense(24, dtype=jnp.bfloat16)"},
        (("precision", "fc1"),)
    ),
    "vit: the patches in bfloat16": Wrong(
        "vit", {"nnx.Conv(3, dim, (patch, patch),": "nnx.Conv(3, dim, (patch, patch), dtype=jnp.bfloat16,"},
        (("precision", "conv_proj"),)
    ),
    "llama: the head in bfloat16": Wrong(
        "llama", {"nnx.Linear(dim, vocabulary,": "nnx.Linear(dim, vocabulary, dtype=jnp.bfloat16,"},
        (("precision", "lm_head"),)
    ),
    "lstm: dropout that is always on": Wrong(
        "lstm", {LSTM_DROP: LSTM_DROP.replace("=deterministic", "=False")}, (("mode", "dropout"),)
    ),
    "gru_nnx: dropout that is always on": Wrong(
        "gru_nnx", {"self.linear(self.dropout(h))": "self.linear(self.dropout(h, deterministic=False))"},
        (("mode", "dropout"),)
    ),
    "vgg_bn: batch statistics in evaluation": Wrong(
        "vgg_bn", {"use_running_average=not train": "use_running_average=False"},
        tuple(("running-average", f"features.{n}") for n in (1, 5, 9, 12))
    ),
}  # fmt: skip

# These are no cases: `check` refuses a port that is random in evaluation, or changes its statistics there.
