"""What a trained model is asked for, by captions, and what it makes of real clips (models/generation.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundmill import manifest, shards
from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models.generation import How
from soundmill.models.tango import conditions
from soundmill.models.tango.checkpoint import Model
from soundmill.models.tango.params import SamplingParams
from soundmill.models.tango.sample import sample_latents, to_log_mels, to_waves


def asked_by_clips(model: Model, catalog: Path, clip_labels: dict[str, list[str]]) -> dict[str, list[str]]:
    return {clip_id: [prompt] if prompt else [] for clip_id, prompt in prompts_of(catalog, list(clip_labels)).items()}


def prompts_of(catalog: Path, wanted: list[str]) -> dict[str, str]:
    """The first caption of each clip, "" where it has none."""
    rows = shards.read_table(catalog, manifest.CATALOG, ["clip_id", "captions"]).to_pylist()
    captions = {row["clip_id"]: row["captions"] or [""] for row in rows}
    return {clip_id: captions[clip_id][0] for clip_id in wanted}


def asked_by_prompts(model: Model, prompts: list[str]) -> list[list[str]]:
    if not prompts:
        raise UserError('this family draws what a text says: give a prompt, such as "a dog barks, then rain"')
    return [[prompt] for prompt in prompts]


def draw(model: Model, asked: list[list[str]], seeds: list[int], how: How) -> Tensor:
    prompts = [prompt for its in asked for prompt in its or [""]]
    *states, empty = conditions.encode(model.text, [*prompts, ""], how.home, how.scratch, how.digests)
    null = conditions.null_of(model.params.null_text, empty)
    where = {"device": how.device, "precision": how.precision, "batch_size": how.batch_size, "progress": how.progress}
    return to_log_mels(model, sample_latents(model, states, null, seeds, how.sampling, **where), how.device)


def through_codec(model: Model, wave: np.ndarray, sampling: SamplingParams, device: torch.device) -> np.ndarray:
    """Log-mel → latent → log-mel → wave."""
    autoencoder = model.autoencoder.to(device)
    mean, _ = autoencoder.encode(fitted_log_mel(wave, model).to(device))
    rebuilt = autoencoder.decode(mean * autoencoder.scaling_factor).cpu()
    return to_waves(model, rebuilt, sampling, device)[0, : len(wave)].numpy()


def fitted_log_mel(wave: np.ndarray, model: Model) -> Tensor:
    """Log-mel [1, n_mels, model.frames] of a wave, cut there or followed by silence."""
    values = torch.from_numpy(log_mel(wave, model.spec))[None, :, : model.frames]
    return torch.nn.functional.pad(values, (0, model.frames - values.shape[2]), value=model.autoencoder.silence)
