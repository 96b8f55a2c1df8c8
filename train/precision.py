"""What train.dtype means in torch's types."""

import torch

from farside.configs.schema import Dtype

STORED = {Dtype.float64: torch.float64, Dtype.float32: torch.float32, Dtype.bfloat16: torch.float32}
"""Type of weights, moments and summed gradients."""
COMPUTED = {Dtype.float64: torch.float64, Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16}
"""Type of activations and of the weights that meet them."""
