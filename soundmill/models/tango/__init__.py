"""The family `tango`: sounds from text, by diffusion over latents of log-mels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.models.family import Family
from soundmill.models.tango.params import GenerateParams, TrainParams


def _prepare(params: TrainParams, ctx: Any, inputs: Path, catalog: Path) -> Any:
    from soundmill.models.tango import training

    return training.prepare(params, ctx, inputs, catalog)


def _load(directory: Path) -> Any:
    from soundmill.models.tango import model

    return model.load(directory)


def _networks(document: dict[str, Any]) -> Any:
    from soundmill.models.tango import model

    return model.networks(document)


def _rehearse(document: dict[str, Any], num_labels: int) -> Any:
    from soundmill.models.tango import training

    return training.rehearse(document)


FAMILY = Family(
    title="text to sound: diffusion over latents of log-mels, told what to draw by a frozen text encoder",
    paper=(
        "Ghosal, Majumder, Mehrish & Poria 2023, Text-to-audio generation using instruction-tuned LLM and latent diffusion model "
        "(arXiv:2304.13731)"
    ),
    train_params=TrainParams,
    generate_params=GenerateParams,
    prepare=_prepare,
    load=_load,
    networks=_networks,
    rehearse=_rehearse,
)
