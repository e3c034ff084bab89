"""A finding: the cause of a difference, its place, and its repair."""

from dataclasses import dataclass

CODES = (
    "kernel-axes", "kernel-not-transposed", "kernel-flipped", "groups", "flatten-order", "weights-missing",
    "weights-shuffled", "scale-offset",
    "padding", "stride", "dilation", "pooling-padding", "pooling-stride", "pooling-ceil", "pooling-kind",
    "epsilon", "batch-norm-momentum", "biased-variance", "running-average", "normalised-axes",
    "activation", "activation-variant", "activation-missing",
    "attention-scale", "attention-mask", "attention-heads", "rotary",
    "scale", "bias-missing", "residual", "residual-order", "layer-missing", "layer-twice", "position-offset",
    "resize", "softmax-axis", "concatenation",
    "channels-reversed", "input-scale",
    "dropout-rate", "dropout-broadcast", "mode",
    "precision",
    "loss-reduction", "loss-smoothing", "learning-rate", "momentum", "dampening", "nesterov", "weight-decay",
    "adam-epsilon", "bias-correction", "clipping", "schedule", "initialisation",
    "unknown",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One cause of a difference."""

    code: str  # one of CODES
    layer: str  # by both names: `layer1.0.conv1 = Block_0/Conv_0`, or `maxpool, before ` it
    certain: bool  # it alone, and nothing else that was tried, brings agreement back to rounding
    text: str  # what Flax does and what PyTorch does, with the values
    repair: str  # to paste into the port

    def __str__(self) -> str:
        likely = "" if self.certain else ", perhaps" if self.code != "unknown" else ""
        return f"{self.layer}: {self.text} [{self.code}{likely}]\n    {self.repair}"
