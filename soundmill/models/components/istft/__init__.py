"""A vocoder: a ConvNeXt at frame rate and an inverse STFT (Vocos, Siuzdak 2024, arXiv:2306.00814), trained or loaded."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.istft.params import IstftParams

KIND = Kind(IstftParams, maker=f"{__name__}.make", component=f"{__name__}.vocoder")
