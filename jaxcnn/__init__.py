"""The CIFAR-10 CNN of a well-known PyTorch tutorial, in JAX.

weights = jaxcnn.load("runs/digits")
probabilities = weights.predict(images)                       # uint8 [n, 32, 32, 3] -> float32 [n, 10]
[weights.class_names[i] for i in probabilities.argmax(axis=1)]
"""

from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.model import CNN
from jaxcnn.weights import Weights, load

__all__ = ["CNN", "Config", "UserError", "Weights", "load"]
