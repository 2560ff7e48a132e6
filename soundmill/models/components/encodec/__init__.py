"""EnCodec (Défossez et al. 2022, arXiv:2210.13438), MusicGen's codec; transformers' EncodecModel. It is loaded, not trained."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.encodec.params import EncodecParams

SOUNDING = "soundmill.models.components.waves.sounding"
KIND = Kind(EncodecParams, maker=f"{__name__}.make", component=f"{__name__}.codec", sounding=SOUNDING)
