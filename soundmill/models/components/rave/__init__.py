"""RAVE (Caillon & Esling 2021, arXiv:2111.05011): a variational autoencoder of multiband waves that plays in real time."""

from soundmill.models.components.rave.params import RaveParams
from soundmill.models.components.waves.kind import wave_codec

KIND = wave_codec(__name__, RaveParams)
