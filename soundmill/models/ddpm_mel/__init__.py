"""The family `ddpm_mel`: diffusion on mel-spectrogram pictures, unconditional or by label (the interface of models/registry.py)."""

from __future__ import annotations

from soundmill.models.ddpm_mel.params import GenerateParams, TrainParams

__all__ = ["GenerateParams", "TrainParams", "generate", "generate_sounds", "seconds", "train"]


def train(*args, **kwargs):
    from soundmill.models.ddpm_mel.train import train

    return train(*args, **kwargs)


def generate(*args, **kwargs):
    from soundmill.models.ddpm_mel.generate import generate

    return generate(*args, **kwargs)


def generate_sounds(*args, **kwargs):
    from soundmill.models.ddpm_mel.generate import generate_sounds

    return generate_sounds(*args, **kwargs)


def seconds(*args, **kwargs):
    from soundmill.models.ddpm_mel.cost import seconds

    return seconds(*args, **kwargs)
