"""Families by name. A new one needs its package, its conf and a line here; no stage depends on this file.

A package is imported only when it is used; it defines a `FAMILY`.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from soundmill import disk
from soundmill.audio.mel import SpectrogramParams, check_bands, check_overlap
from soundmill.errors import UserError
from soundmill.models.components import registry as components
from soundmill.models.family import Family
from soundmill.params import compose, did_you_mean, parse_section

TAGGER = "data/tagger"  # output of the stage `tagger`
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


def family(name: str) -> Family:
    if name not in FAMILIES:
        raise UserError(f"no model family {name!r}{did_you_mean(name, list(FAMILIES))} (there are: {', '.join(sorted(FAMILIES))})")
    return importlib.import_module(FAMILIES[name]).FAMILY


def code(name: str, parameters: dict[str, Any]) -> list[str]:
    """Modules that stages find by the name of a family: its package, and those that load its vocoder and codec in params.yaml."""
    return [FAMILIES[name], *components.code(parameters["families"][name]["components"])]


def check(document: dict[str, Any], home: Path | None = None) -> None:
    """UserError if the content of a params.yaml has values that a stage would refuse, perhaps hours later.

    `home`: the checkout, to which paths of published weights are relative; None: these are not looked at.
    """
    specs, vocoder = {}, None
    if document["vocoder"]:
        vocoder = parse_section(document, "vocoder", components.params_of_vocoder(document["vocoder"]))
    inverted = {item["mel"] for item in document["mel_families"].values()}
    vocoded = {item["mel"] for item in document["vocoder_families"].values()}
    for name in document["spectrogram"]:
        specs[name] = parse_section(document, f"spectrogram.{name}", SpectrogramParams).spec
        try:
            check_bands(specs[name])
            if name in inverted:
                check_overlap(specs[name])
            if name in vocoded:
                vocoder.check_spec(specs[name])
                if home:
                    components.check_weights(components.vocoder(vocoder.kind), vocoder, specs[name], home)
        except UserError as error:
            raise UserError(f"params.yaml: spectrogram.{name}: {error}") from None
    for name, item in document["latent_families"].items():
        codec = components.codec_params(document, name)
        if home and item["mel"] in specs:
            try:
                components.check_weights(components.codec(codec.kind), codec, specs[item["mel"]], home)
            except UserError as error:
                raise UserError(f"params.yaml: {name}.autoencoder: {error}") from None
    for name in document["families"]:
        train = parse_section(document, f"{name}.train", family(name).train_params)
        if train.score_every_steps is not None and document["families"][name]["tagger"] != TAGGER:
            raise UserError(f"params.yaml: {name}.train.score_every_steps needs the tagger: set families.{name}.tagger to {TAGGER}")
        parse_section(document, f"{name}.generate", family(name).generate_params)


def vocoder_note(document: dict[str, Any]) -> str | None:
    """A note about families that use Griffin-Lim although the content of a params.yaml has a vocoder; None if there are none."""
    without = [name for name in document["mel_families"] if name not in document["vocoder_families"]]
    if not document["vocoder"] or not without:
        return None
    return (
        f"note: {' and '.join(without)} will use Griffin-Lim: this vocoder of kind {document['vocoder']['kind']!r} is loaded "
        "for `tango`'s log-mels; docs/parameters.md#vocoders lists those that are trained for any"
    )


def parameter_counts(name: str, document: dict[str, Any]) -> dict[str, int]:
    """Number of parameters of each part of a family, for the content of a params.yaml."""
    import torch

    with torch.device("meta"):
        parts = family(name).networks(document)
    return {part: sum(weight.numel() for weight in net.parameters()) for part, net in parts.items()}


def describe(conf: Path, sizes: bool) -> dict[str, dict[str, Any]]:
    """Every family: `what` it is, its `source`, and with `sizes` its parameters by part at each scale in `conf` (Hydra's groups).

    `["ddpm_mel"]["paper"]["unet"]` is the published size of that net. Counting builds the nets, which takes seconds.
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
