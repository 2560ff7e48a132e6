"""EnCodec (Défossez et al. 2022, arXiv:2210.13438), MusicGen's codec; transformers' EncodecModel. It is loaded, not trained."""

from soundmill.models.components.encodec.params import EncodecParams
from soundmill.models.components.waves.kind import wave_codec

KIND = wave_codec(__name__, EncodecParams, pretrained=True)
