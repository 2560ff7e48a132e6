"""The family `ddpm_mel`: diffusion on mel-spectrogram pictures, unconditional or by label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.models.ddpm_mel.params import GenerateParams, TrainParams
from soundmill.models.family import Family


def _prepare(params: TrainParams, ctx: Any, inputs: Path, catalog: Path) -> Any:
    from soundmill.models.ddpm_mel import training

    return training.prepare(params, ctx, inputs, catalog)


def _load(directory: Path) -> Any:
    from soundmill.models.ddpm_mel import model

    return model.load(directory)


def _networks(document: dict[str, Any]) -> Any:
    from soundmill.models.ddpm_mel import model

    return model.networks(document)


def _rehearse(document: dict[str, Any], num_labels: int) -> Any:
    from soundmill.models.ddpm_mel import training

    return training.rehearse(document, num_labels)


FAMILY = Family(
    title="diffusion on pictures of mel spectrograms, unconditional or by label; phases by Griffin-Lim",
    paper="Ho, Jain & Abbeel 2020, Denoising diffusion probabilistic models (arXiv:2006.11239)",
    train_params=TrainParams,
    generate_params=GenerateParams,
    prepare=_prepare,
    load=_load,
    networks=_networks,
    rehearse=_rehearse,
)
