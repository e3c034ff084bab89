"""Our own networks in PyTorch, the engine's first clients: tables, twins, cases, controls of our training."""
