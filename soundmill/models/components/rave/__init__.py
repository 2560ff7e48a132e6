"""RAVE (Caillon & Esling 2021, arXiv:2111.05011): a variational autoencoder of multiband waves that plays in real time."""

from soundmill.models.components.contracts import Kind
from soundmill.models.components.rave.params import RaveParams

SOUNDING = "soundmill.models.components.waves.sounding"
KIND = Kind(RaveParams, maker=f"{__name__}.make", component=f"{__name__}.codec", sounding=SOUNDING)
