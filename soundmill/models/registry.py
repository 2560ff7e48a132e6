"""Families and components by name. A line here is all that a new one needs beside its package and its conf; no stage depends on it.

A package is imported only when it is used, and offers `FAMILY`, or the `KIND` of a vocoder or codec.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundmill import disk
from soundmill.audio.mel import MelSpec, SpectrogramParams, mel_filterbank
from soundmill.errors import UserError
from soundmill.models.components.contracts import Encoder, Kind, LatentCodec, Vocoder
from soundmill.models.family import Family
from soundmill.params import StageParams, compose, did_you_mean, parse, section

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {
    "ddpm_mel": "soundmill.models.ddpm_mel",
    "diffusion_ae": "soundmill.models.diffusion_ae",
    "diffusion_vocoder": "soundmill.models.diffusion_vocoder",
    "diffwave": "soundmill.models.diffwave",
    "projected_gan": "soundmill.models.projected_gan",
    "rave": "soundmill.models.rave",
    "tango": "soundmill.models.tango",
    "upsampler": "soundmill.models.upsampler",
    "waveform_unet": "soundmill.models.waveform_unet",
}
VOCODERS = {  # that the stage makes; Griffin-Lim needs none
    "diffwave": "soundmill.models.components.diffwave",
    "hifigan": "soundmill.models.components.hifigan",
    "istft": "soundmill.models.components.istft",
    "melgan": "soundmill.models.components.melgan",
    "unet1d": "soundmill.models.components.unet1d.vocoder",
}
CODECS = {
    "mel_autoencoder": "soundmill.models.components.mel_autoencoder",
    "rave": "soundmill.models.components.rave",
    "unet1d": "soundmill.models.components.unet1d.codec",
}


def family(name: str) -> Family:
    return importlib.import_module(_find(FAMILIES, name, "model family")).FAMILY


def vocoder(kind: str) -> Kind:
    return importlib.import_module(_find(VOCODERS, kind, "vocoder")).KIND


def codec(kind: str) -> Kind:
    return importlib.import_module(_find(CODECS, kind, "autoencoder")).KIND


def code(name: str, parameters: dict[str, Any]) -> list[str]:
    """What a family's code finds by name: its own package, and what loads the vocoder and codec that params.yaml names for it."""
    components = parameters["families"][name]["components"]
    vocoders = [vocoder(kind).component for kind in VOCODERS if kind == components.get("vocoder")]
    codecs = [codec(kind) for kind in CODECS if kind == components.get("codec")]
    parts = [part for kind in codecs for part in (kind.component, kind.sounding) if part]
    return [FAMILIES[name], *vocoders, *parts]


def _find(known: Mapping[str, str], name: str, what: str) -> str:
    if name not in known:
        raise UserError(f"no {what} {name!r}{did_you_mean(name, list(known))} (there are: {', '.join(sorted(known))})")
    return known[name]


def check(document: dict[str, Any]) -> None:
    """Raise UserError where the content of a params.yaml has something that a stage would refuse, perhaps hours later."""
    for name, values in document["spectrogram"].items():
        spec = parse(SpectrogramParams, values, f"spectrogram.{name}").spec
        try:
            mel_filterbank(spec)
        except UserError as error:
            raise UserError(f"spectrogram.{name}: {error}") from None
    if document["vocoder"]:
        parse(params_of_vocoder(document["vocoder"]), document["vocoder"], "vocoder")
    for name in document["families"]:
        its = family(name)
        for stage, model in (("train", its.train_params), ("generate", its.generate_params)):
            parse(model, section(document, f"{name}.{stage}", "parameters"), f"{name}.{stage}")


def vocoder_note(document: dict[str, Any]) -> str | None:
    """Which families keep Griffin-Lim beside the vocoder that the content of a params.yaml has; None: all, or none does."""
    keeping = [name for name in document["mel_families"] if name not in document["vocoder_families"]]
    if not document["vocoder"] or not keeping:
        return None
    return (
        f"note: {' and '.join(keeping)} will sound by Griffin-Lim: this vocoder of kind {document['vocoder']['kind']!r} is loaded "
        "for `tango`'s log-mels; `vocoder=istft_laptop`, `diffwave_laptop` and `diffusion_laptop` train one for any"
    )


def parameter_counts(name: str, document: dict[str, Any]) -> dict[str, int]:
    """Number of trained or loaded parameters of each part of a family, as the content of a params.yaml has it."""
    import torch

    with torch.device("meta"):
        parts = family(name).networks(document)
    return {which: sum(weight.numel() for weight in net.parameters()) for which, net in parts.items()}


def describe(conf: Path, sizes: bool) -> dict[str, dict[str, Any]]:
    """Every family: `what` it is, its `source`, and if asked for each scale below `conf` (Hydra's groups) its parameters by part.

    So `["ddpm_mel"]["paper"]["unet"]` is the size of that net as it was published. Counting takes seconds: it builds the nets.
    """
    scales = sorted(path.stem for path in (conf / "scale").glob("*.yaml")) if sizes else []
    return {
        name: {
            "what": family(name).title,
            "source": family(name).paper,
            **{scale: parameter_counts(name, compose(conf, [f"model={name}", f"scale={scale}"])) for scale in scales},
        }
        for name in sorted(FAMILIES)
    }


def write_json(described: dict[str, dict[str, Any]], path: Path) -> None:
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    disk.write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def params_of_vocoder(section: dict[str, Any]) -> type[StageParams]:
    return vocoder(_kind(section, VOCODERS)).params


def params_of_codec(section: dict[str, Any]) -> type[StageParams]:
    return codec(_kind(section, CODECS)).params


def load_vocoder(directory: Path, spec: MelSpec | None) -> Vocoder:
    """The vocoder of any kind that its stage published; one for other log-mels than `spec`'s (if given) is a UserError."""
    remedy = "choose one (`vocoder=hifigan_laptop`) and `dvc repro`, or take Griffin-Lim (`vocoder=griffin_lim`)"
    return vocoder(_kind_of(directory, "vocoder", remedy)).load(directory, spec)


def load_codec(directory: Path) -> Encoder:
    """The codec of any kind that its stage published."""
    return codec(_kind_of(directory, "autoencoder", "`dvc repro` makes one")).load(directory)


def load_latent_codec(directory: Path) -> tuple[Kind, LatentCodec]:
    """The same for a family that diffuses its latents, and its kind; one of a kind that only others take is a UserError."""
    name = _kind_of(directory, "autoencoder", "`dvc repro` makes one")
    kind = codec(name)
    if not kind.sounding:
        fitting = ", ".join(other for other in CODECS if codec(other).sounding)
        raise UserError(
            f"{directory}: latents of an autoencoder of kind {name!r} are not for this family; it takes those of {fitting}"
        )
    return kind, kind.load(directory)


def codec_params(document: dict[str, Any], name: str) -> Any:
    """The section `FAMILY.autoencoder` of the content of a params.yaml, as its kind's parameters."""
    its = section(document, f"{name}.autoencoder", "parameters")
    return parse(codec(_kind(its, CODECS)).params, its, f"{name}.autoencoder")


def vocoder_network(document: dict[str, Any], name: str) -> dict[str, nn.Module]:
    """The net of the vocoder that the content of a params.yaml has for a family, freshly initialised, as `vocoder`; {}: none."""
    if name not in document["vocoder_families"]:
        return {}
    its = section(document, "vocoder", "parameters")
    kind, mel = vocoder(_kind(its, VOCODERS)), document["vocoder_families"][name]["mel"]
    return {"vocoder": kind.network(parse(kind.params, its, "vocoder"), section(document, f"spectrogram.{mel}", "parameters"))}


def _kind_of(directory: Path, what: str, remedy: str) -> str:
    from soundmill.training import weights

    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: no {what} here (config.json is missing); {remedy}")
    config = weights.read_json(directory / "config.json", what)
    kind = config.get("kind") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise UserError(f"{directory / 'config.json'}: names no `kind` of {what}; remake it with `dvc repro`")
    return kind


def _kind(section: Any, known: Mapping[str, str]) -> str:
    kind = section.get("kind") if isinstance(section, dict) else None
    if not isinstance(kind, str):
        raise UserError(f"params.yaml: a vocoder's or autoencoder's section needs a `kind` (there are: {', '.join(sorted(known))})")
    return kind
