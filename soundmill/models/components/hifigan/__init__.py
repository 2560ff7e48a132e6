"""HiFi-GAN (Kong, Kim & Bae 2020, arXiv:2010.05646): a vocoder trained here against discriminators, or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundmill.audio.mel import MelSpec
from soundmill.models.components.contracts import Kind, Made
from soundmill.models.components.hifigan.params import HifiGanParams


def _make(params: HifiGanParams, ctx: Any, clips: Path, mels: Path, catalog: Path) -> Made:
    from soundmill.models.components.hifigan import making

    return making.make(params, ctx, clips, mels, catalog)


def _load(directory: Path, spec: MelSpec) -> Any:
    from soundmill.models.components.hifigan import vocoder

    return vocoder.load(directory, spec)


def _network(params: HifiGanParams, spec: dict[str, Any]) -> Any:
    from soundmill.models.components.hifigan import vocoder

    return vocoder.build_vocoder(params.network, spec["n_mels"], spec["sample_rate"])


KIND = Kind(HifiGanParams, _make, _load, _network)
