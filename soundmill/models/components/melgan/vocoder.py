"""MelGAN as a vocoder. On disk: a directory with `model.safetensors` and `config.json`."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import VocoderConfig, read_vocoder
from soundmill.models.components.frame_vocoder import FrameVocoder
from soundmill.models.components.melgan.network import MelGanNet
from soundmill.models.components.melgan.params import MelGanParams, NetworkParams
from soundmill.training import checkpoint


class MelGanConfig(VocoderConfig):
    kind: Literal["melgan"]
    network: NetworkParams


class MelGan(FrameVocoder):
    """A `Vocoder` (components/contracts.py)."""

    network: NetworkParams

    def config(self, source: dict[str, Any]) -> MelGanConfig:
        return MelGanConfig(kind="melgan", network=self.network, mel_spec=self.spec, source=source)


def network(params: MelGanParams, spec: dict[str, Any]) -> nn.Module:
    return MelGanNet(params.network, spec["n_mels"])


def load(directory: Path, spec: MelSpec | None) -> MelGan:
    """The vocoder that `save_vocoder` wrote; UserError if its mel spec differs from `spec` (if given) or the weights do not fit."""
    saved = read_vocoder(directory, MelGanConfig, spec)
    net = checkpoint.load_weights(lambda: MelGanNet(saved.network, saved.mel_spec.n_mels), directory / checkpoint.WEIGHTS)
    return MelGan(saved.network, saved.mel_spec, net)
