"""The codec and the vocoder of a family's model; latents of waves need no vocoder."""

from pathlib import Path
from typing import Any

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components import registry
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim


def load_vocoder(sampling: Any, directory: Path, spec: MelSpec | None) -> Vocoder | None:
    """The vocoder in `directory`, if `sampling` uses one; UserError if it is not for `spec` (None: latents of waves)."""
    if sampling.vocoder is None:
        return registry.vocoder_in(directory, spec)
    if sampling.vocoder != "trained":
        return None
    if spec is None:
        raise UserError(
            "latents of waves need no vocoder: leave `vocoder=` out, or use latents of log-mels (`latents=mel_autoencoder`)"
        )
    return registry.load_vocoder(directory / registry.VOCODER, spec)


def latent_components(sampling: Any, directory: Path, whole: Path) -> dict[str, Any]:
    """The fields of a model over latents that its checkpoint's components make; `whole` has those that adapters lack."""
    kind, autoencoder = registry.load_latent_codec(whole / registry.AUTOENCODER)
    return {"kind": kind, "autoencoder": autoencoder, "vocoder": load_vocoder(sampling, directory, autoencoder.spec)}


def vocoder_of(sampling: Any, trained: Vocoder | None, spec: MelSpec | None) -> Vocoder | None:
    """The vocoder that `sampling` asks for: Griffin-Lim or the `trained` one; None if latents become waves without one."""
    if spec is None:
        return None
    if sampling.vocoder == "griffin_lim" or (sampling.vocoder is None and trained is None):
        return GriffinLim(spec, sampling)
    if trained is None:
        raise UserError(
            "this checkpoint has no vocoder: set sampling.vocoder to `griffin_lim`, or train it with `vocoder=hifigan_laptop`"
        )
    return trained
