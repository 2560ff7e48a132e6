"""The vocoder of a family over latents; latents of waves need none."""

from pathlib import Path
from typing import Any

from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.contracts import LatentCodec, Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim


def load_vocoder(sampling: Any, directory: Path, autoencoder: LatentCodec) -> Vocoder | None:
    """The vocoder in `directory`, if `sampling` uses one; UserError if its mel spec differs from the autoencoder's."""
    if sampling.vocoder != "trained":
        return None
    if autoencoder.spec is None:
        raise UserError(
            "latents of waves need no vocoder: leave `vocoder=` out, or use latents of log-mels (`latents=mel_autoencoder`)"
        )
    return registry.load_vocoder(directory / registry.VOCODER, autoencoder.spec)


def vocoder_of(sampling: Any, trained: Vocoder | None, autoencoder: LatentCodec) -> Vocoder | None:
    """The vocoder that `sampling` asks for: Griffin-Lim or the `trained` one; None if latents become waves without one."""
    if autoencoder.spec is None:
        return None
    if sampling.vocoder == "griffin_lim":
        return GriffinLim(autoencoder.spec, sampling)
    if trained is None:
        raise UserError(
            "this checkpoint has no vocoder: set sampling.vocoder to `griffin_lim`, or train it with `vocoder=hifigan_laptop`"
        )
    return trained
