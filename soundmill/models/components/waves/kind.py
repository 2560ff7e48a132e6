"""The kind of codecs of waves."""

from soundmill.models.components.contracts import ComponentParams, Kind


def wave_codec(package: str, params: type[ComponentParams], pretrained: bool = False) -> Kind:
    """A kind of codec of waves, whose package has the modules `make`, `codec` and, if weights can be loaded, `pretrained`."""
    return Kind(
        params,
        maker=f"{package}.make",
        component=f"{package}.codec",
        sounding="soundmill.models.components.waves.sounding",
        loading=f"{package}.pretrained" if pretrained else "",
    )
