"""The published procedure on SciPy's L-BFGS-B: a slow twin to compare the engine with."""

from .oracles import NumpyNetwork, NumpyObject, ReferenceOracle, TorchModel
from .scipy_loop import minimize_distortion

__all__ = ["NumpyNetwork", "NumpyObject", "ReferenceOracle", "TorchModel", "minimize_distortion"]
