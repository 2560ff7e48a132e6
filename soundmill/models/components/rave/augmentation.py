"""Augmentation of RAVE's training crops as in its authors' rave/dataset.py: random phase mangling, and dequantisation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundmill.models.components.rave.params import AugmentationParams
from soundmill.models.components.waves.source import WaveCrops
from soundmill.training.loader import crop_places
from soundmill.training.seeds import seed_of

LOWEST_HZ, HIGHEST_HZ = 20.0, 2000.0  # of the all-pass filter's poles
RADIUS = 0.99


def draw_crops(seed: int, batch_size: int, step: int) -> Tensor:
    """Random numbers for each crop of a whole batch, [batch_size, 4] in [0, 1), float64.

    In order: start of the crop, whether to mangle its phases, the filter's frequency, and the seed of the noise.
    """
    rng = torch.Generator().manual_seed(seed_of(seed, "augmentation", step))
    augmentations = torch.rand(batch_size, 3, generator=rng, dtype=torch.float64)
    return torch.cat([crop_places(seed, batch_size, step).double()[:, None], augmentations], 1)


@dataclass(frozen=True)
class AugmentedCrops:
    """A source of crops [b, channels, num_samples]; `drawn` as from `draw_crops`. `augmentation` None: unchanged crops."""

    crops: WaveCrops
    sample_rate: int
    augmentation: AugmentationParams | None

    def batch(self, items: np.ndarray, drawn: np.ndarray) -> tuple[Tensor]:
        (waves,) = self.crops.batch(items, drawn[:, 0])
        if self.augmentation is not None:
            for wave, (_, mangled, frequency, noise) in zip(waves.numpy(), drawn.tolist(), strict=True):
                if mangled < self.augmentation.phase_mangle:
                    wave[:] = phase_mangled(wave, LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** frequency, self.sample_rate)
                if (bits := self.augmentation.dequantise_bits) is not None:
                    wave += np.random.default_rng(int(noise * 2**53)).random(wave.shape, np.float32) * np.float32(2.0**-bits)
        return (waves,)


def phase_mangled(wave: np.ndarray, hertz: float, sample_rate: int) -> np.ndarray:
    """A wave [channels, T] through a two-pole all-pass filter at `hertz`: changes the phases, keeps the magnitudes."""
    from scipy.signal import lfilter

    poles = [1.0, -2 * RADIUS * np.cos(2 * np.pi * hertz / sample_rate), RADIUS**2]
    return lfilter(poles[::-1], poles, wave)
