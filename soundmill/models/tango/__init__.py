"""The family `tango`: sounds from text, by diffusion over latents of log-mels (the interface of models/registry.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.models.tango.params import GenerateParams, TrainParams

__all__ = ["PAPER", "TITLE", "GenerateParams", "TrainParams", "generate", "generate_sounds", "networks", "seconds", "train"]

TITLE = "text to sound: diffusion over latents of log-mels, told what to draw by a frozen text encoder"
PAPER = (
    "Ghosal, Majumder, Mehrish & Poria 2023, Text-to-audio generation using instruction-tuned LLM and latent diffusion model "
    "(arXiv:2304.13731)"
)


def train(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from soundmill.models.tango.training import train as run

    return run(*args, **kwargs)


def generate(*args: Any, **kwargs: Any) -> dict[str, Any]:
    from soundmill.models.tango.generation import generate as run

    return run(*args, **kwargs)


def generate_sounds(*args: Any, **kwargs: Any) -> list[Path]:
    from soundmill.models.tango.generation import generate_sounds as run

    return run(*args, **kwargs)


def seconds(*args, **kwargs):
    from soundmill.models.tango.cost import seconds

    return seconds(*args, **kwargs)


def networks(*args, **kwargs):
    from soundmill.models.tango.checkpoint import networks

    return networks(*args, **kwargs)
