"""PaSST (Koutini et al. 2022), a transformer trained on AudioSet (527 classes), with the weights that hear21passt uses."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from soundmill.evaluation.embedders.base import Declaration, Embeddings, choice
from soundmill.pretrained import Weights

SAMPLE_RATE = 32_000
WINDOW = 10 * SAMPLE_RATE  # samples of the network's longest input
SCENE_HOP = 80_000  # samples between windows of a longer sound, as in hear21passt
SHORT = 48_000  # samples; stable-audio-metrics does not pad shorter sounds
WINDOWS_AT_ONCE = 4
UNUSED = ("head_dist.weight", "head_dist.bias")  # of a checkpoint: a head that only its training used


def scene(wave: np.ndarray) -> list[np.ndarray]:
    """hear21passt's scene embedding: up to ten seconds as they are, else windows every 2.5 s of the wave reflected at its ends."""
    if len(wave) <= WINDOW:
        return [wave]
    padded = np.pad(wave, WINDOW // 2, mode="reflect")
    return list(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::SCENE_HOP])


def overlapping(wave: np.ndarray) -> list[np.ndarray]:
    """stable-audio-metrics' windows every five seconds; the last one, or a sound of 1.5 to 10 seconds, is padded with zeros."""
    starts = range(0, max(WINDOW // 2, len(wave) - WINDOW // 2), WINDOW // 2)
    cut = [wave[start : start + WINDOW] for start in starts]
    return [padded(part) if len(part) > SHORT else part for part in cut]


def beginning(wave: np.ndarray) -> list[np.ndarray]:
    """av-benchmark's window: the first ten seconds, padded with zeros."""
    return [padded(wave[:WINDOW])] if len(wave) else []


def padded(wave: np.ndarray) -> np.ndarray:
    return np.pad(wave, (0, WINDOW - len(wave)))


FRONT_ENDS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "hear21passt": scene,
    "stable-audio-metrics": overlapping,
    "av-benchmark": beginning,
}


class PasstEmbedder:
    """One 768-d embedding and 527 logits before the sigmoid per wave, means over its windows of at most ten seconds.

    A wave shorter than 0.15 s has no patch, so no embedding.
    """

    name = "passt"
    sample_rate = SAMPLE_RATE
    channels = 1

    def __init__(self, path: Path, *, front_end: str = "hear21passt"):
        import torch

        from soundmill.evaluation.embedders.passt_net import Passt
        from soundmill.training import torch_weights
        from soundmill.training.device import pick_device

        self._windows = choice("passt", "front end", front_end, FRONT_ENDS)
        self._device = pick_device("auto")
        state = torch_weights.read_state(path, "PaSST")
        with torch.device("meta"):
            net = Passt()
        torch_weights.load_state(net, {key: value for key, value in state.items() if key not in UNUSED}, path)
        self._net = net.eval().to(self._device)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        import torch

        from soundmill.evaluation.embedders.passt_net import CLASSES, DIMENSIONS, SHORTEST
        from soundmill.training.device import full_precision

        owners, cut = [], []
        by_length: dict[int, list[int]] = {}  # batches of equal length: padding would change the embedding
        for owner, wave in enumerate(waves):
            for window in self._windows(np.asarray(wave, np.float32)):
                if len(window) >= SHORTEST:
                    by_length.setdefault(len(window), []).append(len(cut))
                    owners.append(owner)
                    cut.append(window)
        embeddings, logits = np.zeros((len(cut), DIMENSIONS)), np.zeros((len(cut), CLASSES))
        with torch.inference_mode(), full_precision():
            for same in by_length.values():
                for start in range(0, len(same), WINDOWS_AT_ONCE):
                    some = same[start : start + WINDOWS_AT_ONCE]
                    batch = torch.from_numpy(np.stack([cut[index] for index in some])).to(self._device)
                    embeddings[some], logits[some] = (part.cpu().numpy() for part in self._net(batch))
        of_wave = [np.flatnonzero(np.array(owners) == owner) for owner in range(len(waves))]
        frames = [embeddings[rows].mean(axis=0, keepdims=True) if len(rows) else embeddings[:0] for rows in of_wave]
        means = [logits[rows].mean(axis=0) if len(rows) else np.zeros(CLASSES) for rows in of_wave]
        return Embeddings([part.astype(np.float32) for part in frames], np.reshape(means, (len(waves), CLASSES)).astype(np.float32))


EMBEDDERS = {
    "passt": Declaration(
        PasstEmbedder,
        Weights(
            name="passt",
            file="passt-s-f128-p16-s10-ap.476-swa.pt",
            url="https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt",
            num_bytes=344_665_734,
            sha256="302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c",
            licence="Apache-2.0",
            source="Koutini et al. 2022, arXiv:2110.05069; github.com/kkoutini/PaSST",
        ),
        patches=False,
        options=("front_end",),
    )
}
