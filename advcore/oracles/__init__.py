"""Oracles: the evaluation of any model, by NumPy or through torch.

An oracle returns the logits of a batch, and their vector-Jacobian products. Loss, distortion and c
belong to the engine. Importing this package imports no torch.
"""

from .numpy_oracle import NumpyOracle
from .protocol import NumpyModel, Oracle
from .torch_oracle import TorchOracle

__all__ = ["NumpyModel", "NumpyOracle", "Oracle", "TorchOracle"]
