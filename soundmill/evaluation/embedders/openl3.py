"""OpenL3 (Cramer et al. 2019, trained on AudioSet's environmental or music videos), with torchopenl3's weights."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from soundmill.errors import UserError
from soundmill.evaluation.embedders.base import Declaration, Embeddings, in_batches
from soundmill.pretrained import Weights

SAMPLE_RATE = 48_000
WINDOW = SAMPLE_RATE  # samples
WINDOWS_AT_ONCE = 8  # 300 MB of activations
TRANSFORM = ("speclayer.dft_real_kernels", "speclayer.dft_imag_kernels")  # of a checkpoint; it is not learnt


class OpenL3Embedder:
    """512-d embeddings per window of one second every `hop` seconds; not a classifier, so logits are [N, 0].

    With two channels they are 1024-d: those of the left and of the right channel.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, name: str, path: Path, *, hop: float = 0.5, channels: int = 1):
        import torch

        from soundmill.evaluation.embedders.openl3_net import FFT, OpenL3
        from soundmill.training import torch_weights
        from soundmill.training.device import pick_device
        from soundmill.training.torch_weights import without_transform

        if not 1 / SAMPLE_RATE <= hop <= 60:
            raise UserError(f"{name}: a hop of {hop} seconds; it is between {1 / SAMPLE_RATE:.2g} and 60")
        if channels not in (1, 2):
            raise UserError(f"{name}: {channels} channels; it has 1 (sounds are mixed down) or 2")
        self.name, self.channels = name, channels
        self._hop = int(hop * SAMPLE_RATE)
        self._device = pick_device("auto")
        state = torch_weights.read_state(path, "torchopenl3")
        with torch.device("meta"):
            net = OpenL3()
        torch_weights.load_state(net, without_transform(state, TRANSFORM, FFT, path), path)
        self._net = net.eval().fused().to(self._device, memory_format=torch.channels_last)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        frames = [self._of_wave(wave) if self.channels == 1 else self._of_stereo(wave) for wave in waves]
        return Embeddings(frames, np.zeros((len(waves), 0), np.float32))

    def _of_stereo(self, wave: np.ndarray) -> np.ndarray:
        left = self._of_wave(wave[0])
        right = left if np.array_equal(wave[0], wave[1]) else self._of_wave(wave[1])
        return np.concatenate([left, right], axis=1)

    def _of_wave(self, wave: np.ndarray) -> np.ndarray:
        from soundmill.evaluation.embedders.openl3_net import DIMENSIONS

        return in_batches(self._net, windows(wave, self._hop), WINDOWS_AT_ONCE, DIMENSIONS, self._device)


def windows(wave: np.ndarray, hop: int) -> np.ndarray:
    """Windows [P, 48000] every `hop` samples of a wave [T], the first centred on its beginning; P = 0 if T = 0.

    Zeros fill what lies before the wave and after it.
    """
    wave = np.asarray(wave, np.float32)
    if not len(wave):
        return np.zeros((0, WINDOW), np.float32)
    samples = WINDOW // 2 + len(wave)
    count = 1 + max(0, -(-(samples - WINDOW) // hop))
    padded = np.pad(wave, (WINDOW // 2, (count - 1) * hop + WINDOW - samples))
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::hop]


_COMMIT = "a5df8fd155993e1601590b19649e882a68f80186"

EMBEDDERS = {
    f"openl3_{content}": Declaration(
        partial(OpenL3Embedder, f"openl3_{content}"),
        Weights(
            name=f"openl3_{content}",
            file=f"torchopenl3_mel256_{content}_512.pth.tar",
            url=f"https://github.com/torchopenl3/torchopenl3-models/raw/{_COMMIT}/torchopenl3_mel256_{content}_512.pth.tar",
            git_blob=blob,
            licence="Apache-2.0",
            source="Cramer et al. 2019; ported by github.com/torchopenl3/torchopenl3-models",
        ),
        classifier=False,
        options=("hop", "channels"),
    )
    for content, blob in {
        "env": "a37a08222ebf9d8a88a84beeae76ad909dac0bc6",
        "music": "54df87b6bfe9747d001991da436b3d1ac768b2a6",
    }.items()
}
