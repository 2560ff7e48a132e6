"""MelGAN as a vocoder. On disk it is a directory: `model.safetensors`, and `config.json` with all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import VocoderConfig, read_vocoder, save_vocoder
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


def network(params: MelGanParams, spec: dict[str, Any]) -> nn.Module:
    return MelGanNet(params.network, spec["n_mels"])


def save(model: MelGan, directory: Path, source: dict[str, Any]) -> dict[str, Any]:
    """As contracts.py says; `source`: plain values."""
    config = MelGanConfig(kind="melgan", network=model.network, mel_spec=model.spec, source=source)
    return save_vocoder(directory, config, model.net)


def load(directory: Path, spec: MelSpec | None) -> MelGan:
    """The vocoder that `save` wrote; one for other log-mels than `spec`'s, or weights of another net, are a UserError."""
    saved = read_vocoder(directory, MelGanConfig, spec)
    net = MelGanNet(saved.network, saved.mel_spec.n_mels)
    return MelGan(saved.network, saved.mel_spec, checkpoint.load_weights(net, directory / checkpoint.WEIGHTS))
