"""Networks of PANNs (Kong et al. 2020), pretrained on AudioSet (527 classes): Cnn14 for 16 and 32 kHz, Wavegram-Logmel-Cnn14."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from soundmill.evaluation.embedders.base import Declaration, Embeddings
from soundmill.pretrained import Weights

SHORTEST = 2.0  # seconds; shorter waves are padded with silence, as in audioldm_eval
SECONDS_AT_ONCE = 80.0  # of waves in a batch: 400 MB of activations
# The tensors of a checkpoint that hold the Fourier transform, which is not learnt.
TRANSFORM = ("spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight")
# NumPy objects in the 16 kHz checkpoint: the state of its sampler.
NUMPY = (
    (np.empty(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),  # rebuilds an array; its name in older versions
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
)


@dataclass(frozen=True)
class Variant:
    """What differs between the networks."""

    sample_rate: int
    window: int  # samples; also the FFT's size
    hop: int  # samples
    wavegram: bool = False  # whether it also hears the wave itself


VARIANTS = {
    "panns_cnn14_16k": Variant(16_000, 512, 160),
    "panns_cnn14_32k": Variant(32_000, 1024, 320),
    "panns_wavegram_logmel": Variant(32_000, 1024, 320, wavegram=True),
}


class Cnn14Embedder:
    """One 2048-d embedding per wave, after the first fully connected layer and its ReLU, and 527 logits before the sigmoid."""

    channels = 1

    def __init__(self, name: str, path: Path):
        import torch

        from soundmill.evaluation.embedders.cnn14 import Cnn14, WavegramLogmelCnn14
        from soundmill.training import torch_weights
        from soundmill.training.device import pick_device
        from soundmill.training.torch_weights import without_transform

        self.name = name
        self._variant = VARIANTS[name]
        self.sample_rate = self._variant.sample_rate
        self._device = pick_device("auto")
        state = torch_weights.read_state(path, "PANNs", "model", NUMPY)
        state = without_transform(state, TRANSFORM, self._variant.window, path)
        with torch.device("meta"):
            net = WavegramLogmelCnn14() if self._variant.wavegram else Cnn14(self._variant.window, self._variant.hop)
        torch_weights.load_state(net, state, path)
        self._net = net.eval().fused().to(self._device, memory_format=torch.channels_last)

    def embed(self, waves: Sequence[np.ndarray]) -> Embeddings:
        import torch

        from soundmill.evaluation.embedders.cnn14 import CLASSES
        from soundmill.training.device import full_precision

        shortest = round(SHORTEST * self.sample_rate)
        frames: list[np.ndarray] = [np.empty(0)] * len(waves)
        logits = np.zeros((len(waves), CLASSES), np.float32)
        lengths: dict[int, list[int]] = {}  # batches of equal length: padding would change the mean and maximum over time
        for index, wave in enumerate(waves):
            lengths.setdefault(max(shortest, len(wave)), []).append(index)
        with torch.inference_mode(), full_precision():
            for length, same in lengths.items():
                count = max(1, int(SECONDS_AT_ONCE * self.sample_rate / length))
                for start in range(0, len(same), count):
                    some = same[start : start + count]
                    batch = np.stack([np.pad(np.asarray(waves[i], np.float32), (0, length - len(waves[i]))) for i in some])
                    embeddings, scores = self._net(torch.from_numpy(batch).to(self._device))
                    logits[some] = scores.cpu().numpy()
                    for index, embedding in zip(some, embeddings.cpu().numpy(), strict=True):
                        frames[index] = embedding[None].copy()
        return Embeddings(frames, logits)


_ZENODO = "https://zenodo.org/records/3987831/files"

EMBEDDERS = {
    weights.name: Declaration(partial(Cnn14Embedder, weights.name), weights, patches=False)
    for weights in (
        Weights(
            name="panns_cnn14_16k",
            file="Cnn14_16k_mAP=0.438.pth",
            url=f"{_ZENODO}/Cnn14_16k_mAP%3D0.438.pth?download=1",
            num_bytes=358_668_570,
            sha256="e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
            licence="CC-BY-4.0",
            source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
            md5="362fc5ff18f1d6ad2f6d464b45893f2c",
        ),
        Weights(
            name="panns_cnn14_32k",
            file="Cnn14_mAP=0.431.pth",
            url=f"{_ZENODO}/Cnn14_mAP%3D0.431.pth?download=1",
            num_bytes=327_428_481,
            sha256="0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",
            licence="CC-BY-4.0",
            source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
            md5="541141fa2ee191a88f24a3219fff024e",
        ),
        Weights(
            name="panns_wavegram_logmel",
            file="Wavegram_Logmel_Cnn14_mAP=0.439.pth",
            url=f"{_ZENODO}/Wavegram_Logmel_Cnn14_mAP%3D0.439.pth?download=1",
            licence="CC-BY-4.0",
            source="Kong et al. 2020, arXiv:1912.10211; doi:10.5281/zenodo.3987831",
            md5="17fa9ab65af3c0eb5ffbc5f65552c4e1",
        ),
    )
}
