from flax import nnx


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation that keeps the unbiased variance, as PyTorch does."""

    def __init__(self, num_features: int, *, momentum: float = 0.9, rngs: nnx.Rngs):
        super().__init__(num_features, momentum=momentum, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        old = self.var[...]
        y = super().__call__(x)
        if not self.use_running_average:
            n = x.size // x.shape[-1]
            kept = self.momentum * old
            self.var[...] = kept + (self.var[...] - kept) * (n / (n - 1))
        return y
