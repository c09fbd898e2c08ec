"""The TensorFlow backend: tensors and variables alike; a whole step is one XLA computation."""

from __future__ import annotations

from polyopt_tensorflow import quiet as quiet  # before anything else: it imports TensorFlow

# isort: split
from polyopt_tensorflow.backend import TensorFlowBackend as TensorFlowBackend

backend = TensorFlowBackend()
