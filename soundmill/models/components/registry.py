"""Vocoders and codecs by kind. A new one needs its package, its conf and a line here; no stage depends on this file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill import hub
from soundmill.audio.mel import MelSpec, SpectrogramParams
from soundmill.errors import UserError
from soundmill.models.components.contracts import Encoder, Kind, LatentCodec, LatentsParams, Vocoder
from soundmill.params import did_you_mean, parse_section, section
from soundmill.training import checkpoint

if TYPE_CHECKING:
    from torch import nn

VOCODER = "vocoder"  # directory of the vocoder within a checkpoint
AUTOENCODER = "autoencoder"  # directory of the codec within a checkpoint, and within what its family is trained on
NO_VOCODER = "latents of waves need no vocoder: leave `vocoder=` out, or use latents of log-mels (codec `mel_autoencoder_laptop`)"
VOCODERS = {  # made by the stage `vocoder`; Griffin-Lim needs no stage
    "diffwave": Kind("soundmill.models.components.diffwave.vocoder", "DiffWaveParams"),
    "hifigan": Kind("soundmill.models.components.hifigan.vocoder", "HifiGanParams"),
    "istft": Kind("soundmill.models.components.istft.vocoder", "IstftParams"),
    "melgan": Kind("soundmill.models.components.melgan.vocoder", "MelGanParams"),
    "unet1d": Kind("soundmill.models.components.unet1d.vocoder.vocoder", "DiffusionVocoderParams"),
    "upscaler": Kind("soundmill.models.components.upscaler.vocoder", "UpscalerParams"),
}
CODECS = {
    "encodec": Kind("soundmill.models.components.encodec.codec", "EncodecParams", latents=True),
    "mel_autoencoder": Kind("soundmill.models.components.mel_autoencoder.autoencoder", "AutoencoderParams", latents=True),
    "oobleck": Kind("soundmill.models.components.oobleck.codec", "OobleckParams", latents=True),
    "rave": Kind("soundmill.models.components.rave.codec", "RaveParams", latents=True),
    "unet1d": Kind("soundmill.models.components.unet1d.codec.codec", "AutoencoderParams"),
}
KINDS = {VOCODER: VOCODERS, AUTOENCODER: CODECS}


def kind_of(what: str, named: Any, where: Path | str = "params.yaml") -> Kind:
    """A kind of VOCODER or AUTOENCODER by its name, or by a section or config, at `where`, that has it as `kind`."""
    name, kinds = named.get("kind") if isinstance(named, dict) else named, KINDS[what]
    if not isinstance(name, str) or name not in kinds:
        near = did_you_mean(str(name), list(kinds))
        raise UserError(f"{where}: no {what} of kind {name!r}{near} (there are: {', '.join(kinds)})")
    return kinds[name]


def code(components: dict[str, Any]) -> list[str]:
    """Modules that load a family's vocoder and codec, which its `components` in params.yaml name."""
    named = ((VOCODERS, components.get("vocoder")), (CODECS, components.get("codec")))
    return [kinds[kind].component for kinds, kind in named if kind in kinds]  # others are Griffin-Lim, or none


def kind_in(directory: Path) -> tuple[str, str]:
    """(`codec` or `vocoder`, kind) of the component in a directory; UserError if there is neither."""
    config = checkpoint.read(directory, "codec or vocoder")
    what, kinds = ("codec", CODECS) if "scaling_factor" in config else ("vocoder", VOCODERS)
    if config.get("kind") not in kinds:
        raise UserError(f"{directory}: neither a family's checkpoint nor a codec or vocoder; `dvc repro` makes them")
    return what, config["kind"]


def load_vocoder(directory: Path, spec: MelSpec | None) -> Vocoder:
    """Load a vocoder of any kind; UserError if it is for another spec than `spec` (None: any)."""
    remedy = "choose one (`vocoder=hifigan_laptop`) and `dvc repro`, or take Griffin-Lim (`vocoder=griffin_lim`)"
    return kind_of(VOCODER, checkpoint.read(directory, VOCODER, remedy), directory).module.load(directory, spec)


def vocoder_in(directory: Path, spec: MelSpec) -> Vocoder | None:
    """The vocoder below a checkpoint, or below the components given to a training; None if there is none."""
    return load_vocoder(directory / VOCODER, spec) if (directory / VOCODER).is_dir() else None


def chosen_vocoder(sampling: Any, directory: Path, spec: MelSpec | None) -> Vocoder | None:
    """The vocoder in `directory`, if `sampling` uses one; UserError if it is not for `spec` (None: latents of waves)."""
    if sampling.vocoder is None:
        return vocoder_in(directory, spec)
    if sampling.vocoder != "trained":
        return None
    if spec is None:
        raise UserError(NO_VOCODER)
    return load_vocoder(directory / VOCODER, spec)


def latent_components(sampling: Any, directory: Path, whole: Path) -> dict[str, Any]:
    """The fields of a model over latents that its checkpoint's components make; `whole` has those that adapters lack."""
    autoencoder = load_latent_codec(whole / AUTOENCODER)
    return {"autoencoder": autoencoder, "vocoder": chosen_vocoder(sampling, directory, autoencoder.spec)}


def load_codec(directory: Path) -> Encoder:
    return kind_of(AUTOENCODER, checkpoint.read(directory, AUTOENCODER), directory).module.load(directory)


def load_latent_codec(directory: Path) -> LatentCodec:
    """Load the codec of a family that diffuses its latents; UserError if its kind is for others."""
    config = checkpoint.read(directory, AUTOENCODER)
    if not kind_of(AUTOENCODER, config, directory).latents:
        fitting = ", ".join(other for other in CODECS if CODECS[other].latents)
        raise UserError(
            f"{directory}: latents of autoencoders of kind {config['kind']!r} are not for this family; it takes those of {fitting}"
        )
    return load_codec(directory)


def codec_params(document: dict[str, Any], family: str) -> Any:
    """The section `FAMILY.autoencoder` of the content of a params.yaml, parsed as its kind's parameters."""
    name = f"{family}.autoencoder"
    return parse_section(document, name, kind_of(AUTOENCODER, section(document, name, "params.yaml")).params)


def check_weights(what: str, params: Any, spec: MelSpec, home: Path) -> None:
    """UserError if published weights in a directory do not fit `params` or `spec`; the hub's are checked when they are loaded."""
    if params.weights.kind == "load" and hub.is_directory(params.weights.name, home):
        kind_of(what, params.kind).module.check(params, spec, home)


def latent_shape(document: dict[str, Any], family: str) -> tuple[int, int, int]:
    """(channels, frames, bands) of the latents that a family is trained on, by the content of a params.yaml."""
    spec = _spec(document, document["latent_families"][family]["mel"])
    num_samples = parse_section(document, f"{family}.latents", LatentsParams).num_samples
    return codec_params(document, family).latent_shape(spec, num_samples)


def networks(document: dict[str, Any], family: str, codec_name: str) -> dict[str, nn.Module]:
    """The nets of a family's codec and vocoder, newly initialised, by the content of a params.yaml; empty if it has neither."""
    made = {}
    if item := document["latent_families"].get(family):
        params, channels = codec_params(document, family), document["clips"][document["families"][family]["clips"]]["channels"]
        made[codec_name] = kind_of(AUTOENCODER, params.kind).module.network(params, _spec(document, item["mel"]), channels)
    if item := document["vocoder_families"].get(family):
        kind = kind_of(VOCODER, document["vocoder"])
        made[VOCODER] = kind.module.network(parse_section(document, "vocoder", kind.params), _spec(document, item["mel"]), 1)
    return made


def _spec(document: dict[str, Any], name: str) -> MelSpec:
    return parse_section(document, f"spectrogram.{name}", SpectrogramParams).spec
