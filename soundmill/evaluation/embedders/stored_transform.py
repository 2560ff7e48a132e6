"""Fourier transforms that published checkpoints store as convolutions, although they are not learnt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soundmill.errors import UserError


def without_transform(state: Mapping[str, Any], keys: tuple[str, str], size: int, path: Path) -> dict[str, Any]:
    """The state without the real and imaginary part of a transform of `size` samples with a periodic Hann window.

    They are checked against the transform computed here; a difference raises UserError.
    """
    from torch import Tensor

    samples = np.arange(size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * samples / size)
    waves = window * np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), samples) / size)
    for key, expected in zip(keys, (waves.real, waves.imag), strict=True):
        weight = state.get(key)
        if not isinstance(weight, Tensor) or weight.shape != (len(expected), 1, size):
            raise UserError(f"{path}: {key} is not a transform of {size} samples: weights for another sample rate?")
        if not np.allclose(weight[:, 0].numpy(), expected, atol=1e-5):
            raise UserError(f"{path}: {key} is not the Fourier transform with a Hann window that this network uses")
    return {key: value for key, value in state.items() if key not in keys}
