"""Mistakes in weights and in layers."""

from tests.parity.blind.wrong import Wrong

TRANSPOSED = "transpose(2, 3, 1, 0)"
LAYERS = {
    "all axes of a square kernel turned round": Wrong(
        "denoiser", {f'w["enc2.weight"].{TRANSPOSED}': 'w["enc2.weight"].T'}, (("kernel-axes", "enc2"),)
    ),
    "a transposed convolution's kernel read as a convolution's": Wrong(
        "denoiser",
        {f'w["dec1.weight"].{TRANSPOSED}': 'w["dec1.weight"].transpose(2, 3, 0, 1)'},
        (("kernel-axes", "dec1"),),
    ),
    "a recurrent kernel as it is": Wrong(
        "counter",
        {'w["gru.weight_hh_l0"][rows].T': 'w["gru.weight_hh_l0"][rows]'},
        (("kernel-not-transposed", "gru"),),
    ),
    "taps of a transposed convolution not turned": Wrong(
        "denoiser",
        {'w["dec2.weight"].transpose(2, 3, 0, 1)[::-1, ::-1]': 'w["dec2.weight"].transpose(2, 3, 0, 1)'},
        (("kernel-flipped", "dec2"),),
    ),
    "width before height in the rows of a dense layer": Wrong(
        "squeeze",
        {f"reshape(5, 8, 4, 4).{TRANSPOSED}": "reshape(5, 8, 4, 4).transpose(3, 2, 1, 0)"},
        (("flatten-order", "head"),),
    ),
    "statistics not converted": Wrong(
        "squeeze",
        {'"mean": w["bn.running_mean"], "var": w["bn.running_var"]': '"mean": jnp.zeros(8), "var": jnp.ones(8)'},
        (("weights-missing", "bn"),),
    ),
    "keys before queries": Wrong(
        "prenorm", {"np.concatenate([q, k, v]).T": "np.concatenate([k, q, v]).T"}, (("weights-shuffled", "qkv"),)
    ),
    "gates in another library's order": Wrong(
        "counter", {'enumerate("rzn")': 'enumerate("zrn")'}, (("weights-shuffled", "gru"),)
    ),
    "a norm's weight without its one": Wrong(
        "prenorm", {"return y * (1 + weight)": "return y * weight"}, (("scale-offset", "norm"),)
    ),
    "another number of groups in a norm": Wrong("denoiser", {"num_groups=3": "num_groups=2"}, (("groups", "norm"),)),
    "zeros at the edges for reflections": Wrong(
        "pyramid", {'jnp.pad(merged, edges, mode="reflect")': "jnp.pad(merged, edges)"}, (("padding", "smooth"),)
    ),
    "a strided 1-d convolution padded by default": Wrong(
        "keywords",
        {'nn.Conv(8, (5,), strides=2, padding=2, name="conv1")': 'nn.Conv(8, (5,), strides=2, name="conv1")'},
        (("padding", "conv1"),),
    ),
    "one of two gated convolutions sees the future": Wrong(
        "wavenet",
        {'dilation, padding="CAUSAL", rngs=rngs)\n        self.res': "dilation, rngs=rngs)\n        self.res"},
        (("padding", "gate_conv"),),
    ),
    "a stride forgotten before a maximum over time": Wrong(
        "keywords", {"(3,), strides=2, padding=": "(3,), padding="}, (("stride", "conv3"),)
    ),
    "a depthwise convolution without its dilation": Wrong(
        "separable", {"(3, 3), kernel_dilation=2, ": "(3, 3), "}, (("dilation", "depth"),)
    ),
    "the filter's dilation forgotten": Wrong(
        "wavenet",
        {
            "self.filter = nnx.Conv(channels, channels, (size,), kernel_dilation=dilation,": "self.filter = nnx.Conv("
            "channels, channels, (size,),",
        },
        (("dilation", "filter_conv"),),
    ),
    "an average that counts the padding": Wrong(
        "separable",
        {", padding=((1, 1), (1, 1)), count_include_pad=False)": ", padding=((1, 1), (1, 1)))"},
        (("pooling-padding", "mixing"),),
    ),
    "pooling over time without a stride": Wrong(
        "keywords", {"(4,), strides=(2,))": "(4,))"}, (("pooling-stride", "conv3"),)
    ),
    "the last column not pooled": Wrong(
        "separable", {'(2, 2), (2, 2), padding="SAME")': "(2, 2), (2, 2))"}, (("pooling-ceil", "head"),)
    ),
    "a mean over time for the maximum": Wrong(
        "keywords", {".max(axis=1)": ".mean(axis=1)"}, (("pooling-kind", "head"),)
    ),
    "the last norm's default": Wrong(
        "gpt_scan",
        {"self.norm = nn.LayerNorm(epsilon=1e-5)": "self.norm = nn.LayerNorm()"},
        (("epsilon", "transformer.ln_f"),),
    ),
    "epsilon of a norm by image": Wrong(
        "separable", {"nnx.InstanceNorm(8, epsilon=1e-5,": "nnx.InstanceNorm(8, epsilon=1e-3,"}, (("epsilon", "norm"),)
    ),
    "the new share for the kept one": Wrong(
        "squeeze", {"momentum=0.8": "momentum=0.2"}, (("batch-norm-momentum", "bn"),)
    ),
    "the framework's own statistics": Wrong(
        "mobilenetv2",
        {"self.norm = BatchNorm(cout, rngs=rngs)": "self.norm = nnx.BatchNorm(cout, momentum=0.9, rngs=rngs)"},
        (("biased-variance", "features"),),
    ),
    "one norm frozen in training": Wrong(
        "keywords",
        {'use_running_average=not train, name="bn2"': 'use_running_average=True, name="bn2"'},
        (("running-average", "bn2"),),
    ),
    "a norm over the whole image": Wrong(
        "convnext",
        {"nn.LayerNorm(epsilon=1e-6)": "nn.LayerNorm(epsilon=1e-6, reduction_axes=(1, 2, 3))"},
        (("normalised-axes", "norm"),),
    ),
    "a norm over channels for one by image": Wrong(
        "separable", {"nnx.InstanceNorm(": "nnx.LayerNorm("}, (("normalised-axes", "norm"),)
    ),
}
