import flax.linen as nn


class BatchNorm(nn.BatchNorm):
    """Batch normalisation that keeps the unbiased variance, as PyTorch does."""

    momentum: float = 0.9
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x):
        old = self.get_variable("batch_stats", "var")
        y = super().__call__(x)
        if not self.use_running_average and not self.is_initializing():
            n = x.size // x.shape[-1]
            kept = self.momentum * old
            biased = self.get_variable("batch_stats", "var")
            self.put_variable("batch_stats", "var", kept + (biased - kept) * (n / (n - 1)))
        return y
