"""VGGish (Hershey et al. 2017), pretrained on YouTube-8M: the network of the original FAD, with torchvggish's weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from soundmill.evaluation.embedders.base import Embedder, Embeddings, in_batches, mel_filters
from soundmill.params import choose
from soundmill.training import torch_weights
from soundmill.training.device import pick_device
from soundmill.training.vggish import BANDS, DIMENSIONS, FRAMES, Vggish

SAMPLE_RATE = 16_000
FFT, WINDOW, HOP = 512, 400, 160  # samples
LOWEST, HIGHEST = 125.0, 7500.0  # Hz
OFFSET = 0.01  # added before the logarithm
PATCH = (FRAMES - 1) * HOP + WINDOW  # samples of one patch
PATCHES_AT_ONCE = 32


class FrontEnd(NamedTuple):
    """How a wave is cut: a patch every `step` samples while at least `whole` samples remain; `peak`: normalise it first."""

    step: int
    whole: int
    peak: bool


FRONT_ENDS = {
    "torchvggish": FrontEnd(FRAMES * HOP, PATCH, peak=False),
    "google-fad": FrontEnd(SAMPLE_RATE // 2, SAMPLE_RATE, peak=True),  # of google-research's frechet_audio_distance
}


class VggishEmbedder(Embedder):
    """128-d embeddings per patch of 0.96 s, before the last ReLU and without PCA; not a classifier, so logits are [N, 0]."""

    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path, *, front_end: str = "torchvggish"):
        self._front_end = choose(FRONT_ENDS, front_end, "front end of vggish")
        with torch.device("meta"):
            net = Vggish()
        torch_weights.load_state(net, torch_weights.read_checkpoint(path), path)
        self._net = net.eval().to(pick_device("auto"), memory_format=torch.channels_last)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        by_wave = [patches(wave, self._front_end) for wave in waves]
        together = np.concatenate([np.zeros((0, FRAMES, BANDS), np.float32), *by_wave])[:, None]
        (embeddings,) = in_batches(self._net, together, PATCHES_AT_ONCE, [DIMENSIONS])
        return Embeddings.of_parts(embeddings, by_wave)


def patches(wave: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Log-mel magnitudes of a wave [T] at 16 kHz, in patches [P, 96, 64] float32; P = 0 if the wave is too short for one.

    Frames of 25 ms every 10 ms, periodic Hann window, not centred; an incomplete last patch is dropped.
    """
    wave = np.asarray(wave, np.float64)  # float32 rounding would be audible between partials
    count = 1 + (len(wave) - front_end.whole) // front_end.step if len(wave) >= front_end.whole else 0
    if not count:
        return np.zeros((0, FRAMES, BANDS), np.float32)
    if front_end.peak:
        wave = wave / max(0.1, wave.max())
    step = front_end.step // HOP
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP][: (count - 1) * step + FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))
    filters = mel_filters(np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1), LOWEST, HIGHEST, BANDS)
    log_mel = np.log(np.abs(np.fft.rfft(frames * window, FFT)) @ filters + OFFSET).astype(np.float32)
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(log_mel, FRAMES, axis=0)[::step].transpose(0, 2, 1))
