"""A gain for each channel of a net's input: features of fewer channels cannot pass on the noise of each.

The net predicts shift + gain · xt, as a Wiener filter does, and also sees |xt|, from which the gain follows.
"""

import torch
from torch import Tensor


def with_magnitude(xt: Tensor) -> Tensor:
    """What the net sees [B, 2 · channels, ...] of xt [B, channels, ...]."""
    return torch.cat([xt, xt.abs()], dim=1)


def apply_gain(predicted: Tensor, xt: Tensor) -> Tensor:
    """shift + gain · xt of both [B, 2 · channels, ...] together, and xt [B, channels, ...]."""
    shift, gain = predicted.chunk(2, dim=1)
    return torch.addcmul(shift, gain, xt)
