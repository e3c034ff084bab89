"""The proof that `jaxcnn` is the PyTorch network: weights carried both ways, and a chain of comparisons."""
