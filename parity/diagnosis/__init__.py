"""Why a port differs: each classic mistake is made on PyTorch's side, until Flax's own numbers come out."""
