"""Error of a vocoder: log-mels of its output compared with its input."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from soundmill.audio import figures, mel
from soundmill.audio.tags import CHANGED
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.components.log_mels.source import LogMels
from soundmill.models.samples import Samples

SHOWN_CLIPS = 3


def measure(vocoders: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device) -> dict[str, float]:
    """Mean absolute log-mel error in dB, by name of the vocoder."""
    errors: dict[str, list[float]] = {key: [] for key in vocoders}
    for item in range(len(log_mels)):
        real = log_mels.arrays.read(item)
        for key, vocoder in vocoders.items():
            fake = _log_mel_of(vocoder, _wave(real, vocoder, device), real.shape[1])
            errors[key].append(float(np.abs(fake - real.astype(np.float32)).mean()))
    decibels = 20 / next(iter(vocoders.values())).spec.power / math.log(10)
    return {key: decibels * float(np.mean(values)) for key, values in errors.items()}


def samples(vocoders: Mapping[str, Vocoder], log_mels: LogMels, device: torch.device, step: int) -> Samples:
    """Log-mels of some clips and of each vocoder's output, and the vocoded sounds."""
    pictures, titles, sounds, named, made = [], [], [], [], []
    for item, clip_id in enumerate(log_mels.arrays.ids[:SHOWN_CLIPS]):
        real = log_mels.arrays.read(item)
        pictures.append(real.astype(np.float32))
        titles.append(clip_id)
        for name, vocoder in vocoders.items():
            wave = _wave(real, vocoder, device)
            pictures.append(_log_mel_of(vocoder, wave, real.shape[1]))
            titles.append(name)
            sounds.append((wave, vocoder.spec.sample_rate))
            named.append(f"{clip_id} {name}")
            made.append(None if isinstance(vocoder, GriffinLim) else CHANGED)
    frames = min(picture.shape[1] for picture in pictures)
    spec = next(iter(vocoders.values())).spec
    columns, heading = 1 + len(vocoders), f"vocoder after {step} steps"
    figure = figures.draw_log_mels(np.stack([picture[:, :frames] for picture in pictures]), titles, spec, columns, heading)
    return Samples(figure, named, sounds, made)


def _wave(log_mel: np.ndarray, vocoder: Vocoder, device: torch.device) -> np.ndarray:
    """The mono wave [T] vocoded from a log-mel [n_mels, frames]."""
    with torch.no_grad():
        return vocoder.to(device).vocode(torch.from_numpy(log_mel.astype(np.float32))[None].to(device))[0].mean(0).cpu().numpy()


def _log_mel_of(vocoder: Vocoder, wave: np.ndarray, frames: int) -> np.ndarray:
    spec = vocoder.spec.model_copy(update={"peak": None})  # so that a wrong level counts as an error
    return mel.log_mel(wave, spec)[:, :frames]
