"""The kind of codecs of waves."""

from __future__ import annotations

from soundmill.models.components.contracts import Kind
from soundmill.params import StageParams


def wave_codec(params: type[StageParams], loading: str = "") -> Kind:
    """A kind of codec of waves: the package of `params` has the modules `make`, `codec` and perhaps `loading`."""
    package = params.__module__.rpartition(".")[0]
    return Kind(
        params,
        maker=f"{package}.make",
        component=f"{package}.codec",
        sounding="soundmill.models.components.waves.sounding",
        loading=f"{package}.{loading}" if loading else "",
    )
