"""HiFi-GAN, by transformers, as a vocoder; its weights have transformers' names."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import VocoderConfig, read_vocoder
from soundmill.models.components.hifigan import HifiGanParams, NetworkParams
from soundmill.models.components.vocoding import FrameVocoder
from soundmill.training import checkpoint


class HifiGanConfig(VocoderConfig):
    kind: Literal["hifigan"]
    network: NetworkParams


class HifiGan(FrameVocoder):
    """A `Vocoder` (components/contracts.py)."""

    network: NetworkParams

    def config(self, source: dict[str, Any]) -> HifiGanConfig:
        return HifiGanConfig(kind="hifigan", network=self.network, mel_spec=self.spec, source=source)

    def synthesise(self, log_mels: Tensor) -> Tensor:
        return synthesise(self.net, log_mels, self.spec.hop_length)


def network(params: HifiGanParams, spec: dict[str, Any]) -> Any:
    return build_vocoder(params.network, spec["n_mels"], spec["sample_rate"])


def build_vocoder(params: NetworkParams, n_mels: int, sample_rate: int) -> Any:
    """The network, initialised from torch's global generator: 55,264,897 parameters at AudioLDM's sizes."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=n_mels,
            sampling_rate=sample_rate,
            upsample_initial_channel=params.channels,
            upsample_rates=params.rates,
            upsample_kernel_sizes=params.kernels,
            resblock_kernel_sizes=params.resblock_kernels,
            resblock_dilation_sizes=params.resblock_dilations,
            normalize_before=False,  # the input is not normalised
        )
    )


def synthesise(net: nn.Module, log_mel: Tensor, hop_length: int) -> Tensor:
    """Waves [B, frames · hop_length] for log-mels [B, n_mels, frames].

    A kernel that differs from its rate by an odd number adds samples at the end (32 at AudioLDM's sizes), which are cut.
    """
    return net(log_mel.transpose(1, 2))[:, : log_mel.shape[2] * hop_length]


def load(directory: Path, spec: MelSpec | None) -> HifiGan:
    saved = read_vocoder(directory, HifiGanConfig, spec)
    made = partial(build_vocoder, saved.network, saved.mel_spec.n_mels, saved.mel_spec.sample_rate)
    return HifiGan(saved.network, saved.mel_spec, checkpoint.load_weights(made, directory / checkpoint.WEIGHTS))
