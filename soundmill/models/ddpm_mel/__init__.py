"""The family `ddpm_mel`: diffusion on mel-spectrogram pictures, unconditional or by label (the interface of models/registry.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.models.ddpm_mel.params import GenerateParams, TrainParams

__all__ = ["PAPER", "TITLE", "GenerateParams", "TrainParams", "generate", "generate_sounds", "networks", "seconds", "train"]

TITLE = "diffusion on pictures of mel spectrograms, unconditional or by label; phases by Griffin-Lim"
PAPER = "Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models (arXiv:2006.11239)"


def train(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from soundmill.models.ddpm_mel.training import train as run

    return run(*args, **kwargs)


def generate(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from soundmill.models.ddpm_mel.generation import generate as run

    return run(*args, **kwargs)


def generate_sounds(*args: Any, **kwargs: Any) -> list[Path]:
    from soundmill.models.ddpm_mel.generation import generate_sounds as run

    return run(*args, **kwargs)


def seconds(*args, **kwargs):
    from soundmill.models.ddpm_mel.cost import seconds

    return seconds(*args, **kwargs)


def networks(*args, **kwargs):
    from soundmill.models.ddpm_mel.checkpoint import networks

    return networks(*args, **kwargs)
