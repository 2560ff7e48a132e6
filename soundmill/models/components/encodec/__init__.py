"""EnCodec (Défossez et al. 2022, arXiv:2210.13438), MusicGen's codec; transformers' EncodecModel. It is loaded, not trained."""

from __future__ import annotations

from soundmill.models.components.contracts import Kind
from soundmill.models.components.encodec.params import EncodecParams

KIND = Kind(
    EncodecParams,
    maker=f"{__name__}.make",
    component=f"{__name__}.codec",
    sounding="soundmill.models.components.waves.sounding",
    loading=f"{__name__}.pretrained",
)
