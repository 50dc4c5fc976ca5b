"""Pretrained weights: files -> named arrays <-> the network's variables; no file runs any code.

Tensors are dicts of NumPy arrays by torchvision's names of ResNet and RPNHead.
"""

from rpn_jax.weights.loading import checked, load, pixels
from rpn_jax.weights.variables import from_variables, to_variables

__all__ = ['checked', 'from_variables', 'load', 'pixels', 'to_variables']
