"""Vocode log-mels with any vocoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soundmill.errors import UserError
from soundmill.models.components.contracts import Vocoder


def to_waves(
    vocoder: Vocoder, log_mels: Tensor, device: torch.device, num_samples: int | None = None, seeds: Sequence[int] = ()
) -> Tensor:
    """Waves [N, C, T] in [−1, 1] on the CPU, at most `num_samples` long, of log-mels [N, n_mels, frames].

    Log-mels are vocoded one by one, so that results do not depend on the batch. `seeds` are for the vocoder's noise, of generated
    sounds: these are scaled to a peak of 1 if theirs is above it. Without `seeds`, all items use the same noise, and are clipped:
    a reconstruction is as loud as its recording.
    """
    if not torch.isfinite(log_mels).all():
        raise UserError("the model's log-mels are not finite; choose milder sampling settings, or retrain with `dvc repro`")
    vocoder = vocoder.to(device)
    with torch.no_grad():
        waves = torch.cat(
            [
                vocoder.vocode(log_mel[None].to(device), seed).cpu()[..., :num_samples]
                for log_mel, seed in zip(log_mels, seeds or [0] * len(log_mels), strict=True)
            ]
        )
    return waves / waves.abs().amax((1, 2), keepdim=True).clamp_min(1) if seeds else waves.clamp(-1, 1)
