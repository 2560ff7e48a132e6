"""What a trained model is asked for, by labels, and what it makes of real clips (models/generation.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundmill.audio.mel import log_mel
from soundmill.errors import UserError
from soundmill.models.ddpm_mel.checkpoint import Model
from soundmill.models.ddpm_mel.params import SamplingParams
from soundmill.models.ddpm_mel.sample import sample_log_mels, to_waves
from soundmill.models.generation import How
from soundmill.params import did_you_mean


def asked_by_clips(model: Model, catalog: Path, clip_labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """The labels of each clip that the model knows."""
    unheard = sorted({label for labels in clip_labels.values() for label in labels} - set(model.labels))
    if unheard and model.labels:
        print(f"labels the model was not trained on, left out of the condition: {', '.join(unheard)}")
    return {clip_id: [label for label in labels if label in model.labels] for clip_id, labels in clip_labels.items()}


def asked_by_prompts(model: Model, prompts: list[str]) -> list[list[str]]:
    """One kind of sound, which mixes all labels asked for."""
    return [[match_label(label, model.labels) for label in prompts]]


def draw(model: Model, asked: list[list[str]], seeds: list[int], how: How) -> Tensor:
    conditions = torch.stack([model.condition(labels) for labels in asked])
    where = {"device": how.device, "precision": how.precision, "batch_size": how.batch_size, "progress": how.progress}
    return sample_log_mels(model, conditions, seeds, how.sampling, **where)


def through_codec(model: Model, wave: np.ndarray, sampling: SamplingParams, device: torch.device) -> np.ndarray:
    """Log-mel → picture → log-mel → wave."""
    fitted = np.zeros(model.num_samples, dtype=np.float32)
    kept = min(len(wave), len(fitted))
    fitted[:kept] = wave[:kept]
    picture = model.picture
    with torch.no_grad():
        rebuilt = picture.decode(*picture.encode(torch.from_numpy(log_mel(fitted[None], model.spec))))
    return to_waves(model, rebuilt, sampling, device)[0, :kept].numpy()


def match_label(asked: str, known: list[str]) -> str:
    """The known label meant: the same but for case, or the only one that contains the text."""
    if not known:
        raise UserError(f"label {asked!r}: this model was trained without labels; leave --label out")
    exact = [label for label in known if label.casefold() == asked.casefold()]
    within = [label for label in known if asked.strip() and asked.casefold() in label.casefold()]
    found = exact or within
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"label {asked!r} could be any of: {', '.join(found)}; say which")
    raise UserError(f"unknown label {asked!r}{did_you_mean(asked, known)} (labels: {', '.join(known)})")
