"""Families by name. A new one needs its package, its conf and a line here; no stage depends on this file.

A package is imported only when it is used; it defines a `FAMILY`.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from soundmill import hub, manifest, params, text
from soundmill.audio.mel import SpectrogramParams, check_bands, check_overlap, check_sample_rate
from soundmill.audio.pieces import to_samples
from soundmill.errors import UserError
from soundmill.models import adapted
from soundmill.models.components import registry as components
from soundmill.models.components.contracts import LatentsParams, WaveCodecParams, read_codec
from soundmill.models.family import Family, family_of, is_checkpoint
from soundmill.models.params import FamilyTrainParams, plan_of, read_clip_plan, read_sections
from soundmill.params import StageParams, choose, parse, parse_section
from soundmill.training import checkpoint
from soundmill.training.checkpoint import compare, start_directory
from soundmill.training.params import LoraParams

TAGGER = "data/tagger"  # output of the stage `tagger`
SAMPLING = re.compile(r"\w+\.generate\.sampling\.\w")  # null, unless an override sets a key
_NAMES = (one.name for one in pkgutil.iter_modules([str(Path(__file__).parent)]) if one.ispkg and one.name != "components")
FAMILIES = {name: f"soundmill.models.{name}" for name in _NAMES}


class FamilyComponents(StageParams):
    """Directories in soundmill/models/components/ that a family's stages depend on."""

    source: str
    codec: str
    net: str
    vocoder: str


class FamilyWiring(StageParams):
    """`families.FAMILY`: what its stages read and which code they run."""

    clips: str
    trained_on: str  # a variant of clips, or their mixes
    inputs: str
    parts: str
    tagger: str
    trainings: dict[str, Annotated[float, Field(ge=0)]] | None  # shares of a bake-off's minutes
    components: FamilyComponents


def family(name: str) -> Family:
    return importlib.import_module(choose(FAMILIES, name, "model family")).FAMILY


def code_by_name(family: str, section: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """Modules that stages find by the name of a family: its package, and those that load its vocoder and codec in params.yaml."""
    return [FAMILIES[family], *components.code(parameters["families"][family]["components"])]


def compose(conf: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """`params.compose`; UserError if a vocoder is selected that no family uses, as it would be ignored silently."""
    document = params.compose(conf, [f"++{one}" if SAMPLING.match(one) else one for one in overrides])
    selected = next((text for text in overrides if text.startswith("vocoder=")), None)  # `scale=` sets it for every family
    if selected and document["vocoder"] and not document["vocoder_families"]:
        raise UserError(
            f"{selected}: no family of model={','.join(document['families'])} uses it; leave it out, select another of "
            "conf/vocoder/, or add a family that uses it to model= (docs/parameters.md#vocoders)"
        )
    return document


def check(document: dict[str, Any], home: Path | None = None) -> None:
    """UserError if the content of a params.yaml has values that a stage would refuse, perhaps hours later.

    `home`: the checkout, to which paths of weights are relative; None: these are not looked at.
    """
    specs, codecs, vocoder = {}, {}, None
    if manifest.MIXED in document["clips"]:
        raise UserError(f"params.yaml: clips.{manifest.MIXED}: the variant of mixes (`mixing=on`) has this name; choose another")
    if document["vocoder"]:
        vocoder = parse_section(document, "vocoder", components.kind_of("vocoder", document["vocoder"]).params)
    inverted = {item["mel"] for item in document["mel_families"].values()}
    vocoded = {item["mel"] for item in document["vocoder_families"].values()}
    for name in document["spectrogram"]:
        of_clips = parse_section(document, f"spectrogram.{name}", SpectrogramParams)
        specs[name], plan = of_clips.spec, plan_of(document, of_clips.clips)
        with _named(f"spectrogram.{name}: "):
            check_sample_rate(specs[name], plan["sample_rate"], f"clips.{of_clips.clips}")
            check_bands(specs[name])
            if name in inverted:
                check_overlap(specs[name])
            if name in vocoded:
                vocoder.check_spec(specs[name])
                if home:
                    components.check_weights("vocoder", vocoder, specs[name], home)
        if home and name in vocoded:
            _check_component("vocoder", vocoder, home, mel_spec=specs[name])
    for name, item in document["latent_families"].items():
        codecs[name] = codec = components.codec_params(document, name)
        spec, clips, plan = specs[item["mel"]], document["families"][name]["clips"], read_clip_plan(document, name)
        with _named(f"{name}.autoencoder: "):
            codec.check_spec(spec)
            if isinstance(codec, WaveCodecParams):
                codec.check_waves(plan["sample_rate"], plan["channels"], f"clips.{clips}")
            if home:
                components.check_weights("autoencoder", codec, spec, home)
        if home:
            _check_component(f"{name}.autoencoder", codec, home, mel_spec=spec, sample_rate=plan["sample_rate"])
        _check_lengths(name, document, codec.stride(spec))
    for name, item in document["text"].items() if home else ():
        with _named(f"text.{name}.encoder: "):
            text.check(item["encoder"], item["revision"], home)
    for name, item in document["families"].items():
        parse_section(document, f"families.{name}", FamilyWiring)
        if (variant := item["trained_on"]) != item["clips"]:
            if variant not in document["mixed"]:
                raise UserError(f"params.yaml: families.{name}.trained_on: no {variant!r}: take `mixing=on`, which makes `mixed`")
            if document["mixed"][variant]["clips"] != item["clips"]:
                clips = item["clips"]
                raise UserError(
                    f"params.yaml: mixup.clips: the mixes must be of families.{name}.clips: set it to {clips}, or "
                    f"families.{name}.trained_on to {clips}"
                )
        train, _, sampling = read_sections(document, name, family(name).train_params, family(name).generate_params)
        if train.score_every_steps is not None and document["families"][name]["tagger"] != TAGGER:
            raise UserError(f"params.yaml: {name}.train.score_every_steps needs the tagger: set families.{name}.tagger to {TAGGER}")
        if train.by_caption and name not in document["text"]:
            raise UserError(
                f"params.yaml: {name}.train is by caption, but text.{name} names no text encoder: take `{name}=captions`, or train "
                "by label"
            )
        if train.by_caption:
            _check_text(name, train, document["text"][name], home)
        spec, plan = specs.get(document["mel_families"].get(name, {}).get("mel")), read_clip_plan(document, name)
        for part, params_of in (("train", train), ("generate", train.model_copy(update={"sampling": sampling}))):
            with _named(f"{name}.{part}."):
                params_of.check_spec(spec, plan["sample_rate"], f"clips.{item['clips']}")
                _check_vocoder(name, params_of, train, document, codecs)
        with _named(f"{name}.train."):
            if name in codecs:
                train.check_latents(components.latent_shape(document, name))
            if home and train.start_from:
                _check_start(name, train, document, home)
            if train.lora:
                _check_adapters(name, train.lora, document)


def _check_text(name: str, train: FamilyTrainParams, item: dict[str, Any], home: Path | None) -> None:
    """UserError if a text encoder's states are not as wide as the net expects."""
    here, width = attrgetter(train.text_key)(train), text.width(item["encoder"], item["scratch"], home)
    if width not in (None, here):
        raise UserError(f"params.yaml: {name}.train.{train.text_key}: is {here}, but text.{name} is {width} wide; set it to that")


def _check_vocoder(name: str, made: FamilyTrainParams, train: FamilyTrainParams, document: dict[str, Any], codecs: Any) -> None:
    """UserError if `made` samples with a vocoder that no checkpoint of these parameters has."""
    if getattr(made.sampling, "vocoder", None) != "trained":
        return
    if isinstance(codecs.get(name), WaveCodecParams):
        raise UserError(f"sampling.vocoder: {components.NO_VOCODER}")
    if name not in document["vocoder_families"]:
        raise UserError("sampling.vocoder: no vocoder is trained: add `vocoder=hifigan_laptop`, or set it to griffin_lim")
    if train.sampling.vocoder == "griffin_lim":
        raise UserError(f"sampling.vocoder: the checkpoint takes none along: set {name}.train.sampling.vocoder to trained, too")


def _check_lengths(name: str, document: dict[str, Any], stride: int) -> None:
    """UserError unless the latents of a family last as long as its clips, and are whole latents of a codec of this stride."""
    key, clips = f"{name}.latents.num_samples", f"clips.{document['families'][name]['clips']}.clip_seconds"
    plan, length = read_clip_plan(document, name), parse_section(document, f"{name}.latents", LatentsParams).num_samples
    needed = to_samples(plan["clip_seconds"], plan["sample_rate"])
    nearest = -(-max(length, needed) // stride) * stride
    if length % stride:
        raise UserError(f"params.yaml: {key}: {length} must be a multiple of {stride}, which the codec needs: set it to {nearest}")
    if length < needed:
        raise UserError(
            f"params.yaml: {key}: {length} are less than {clips}, {needed} samples: set it to {nearest}, or lower {clips}"
        )


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put `key` before the message of a UserError, which may begin with it or with its last part."""
    try:
        yield
    except UserError as error:
        message = str(error).removeprefix(key).removeprefix(key.rpartition(".")[2])
        raise UserError(f"params.yaml: {key}{message}") from None


def _check_component(section: str, params: Any, home: Path, **data: Any) -> None:
    """UserError if the vocoder or codec that `weights.start_from` names does not fit; `data` as for `check_start`."""
    if getattr(params.weights, "start_from", None):  # loaded weights have none
        with _named(f"{section}.weights.start_from: "):
            params.check_start(home, **data)


def start_of(name: str, train: FamilyTrainParams, home: Path) -> Path:
    """The checkpoint that `start_from` names; UserError if it is missing, of another family, or only adapters."""
    where = start_directory(home / train.start_from)
    if not is_checkpoint(where):
        raise UserError(f"start_from: {where} is not a family's checkpoint: no config.json names one; name one of {name}")
    if (found := family_of(where)) != name:
        raise UserError(f"start_from: {where} is a checkpoint of family {found!r}, not {name!r}; name one of {name}")
    if adapted.are_in(where):
        raise UserError(f"start_from: {where} has only adapters; merge them first: `soundmill export {where} --output NEW`")
    if train.lora and not (where / family(name).weights).is_file():
        raise UserError(f"start_from: {where} has no {family(name).weights}; copy the whole checkpoint again")
    return where


def _check_start(name: str, train: FamilyTrainParams, document: dict[str, Any], home: Path) -> None:
    """UserError if the checkpoint that `start_from` names has another network, or adapters would be trained with another codec."""
    where, kind = start_of(name, train, home), family(name)
    before = parse(kind.train_params, checkpoint.read(where).get("params"), f"{where / checkpoint.CONFIG}: params")
    compare(str(where), before.model_dump(), train.model_dump(), kind.fixed)
    if not train.lora or name not in document["latent_families"]:
        return
    weights = components.codec_params(document, name).weights
    key = "name" if weights.kind == "load" else "start_from"
    taken = _taken_codec(weights, home)
    if taken and (theirs := read_codec(where / "autoencoder").digest) != (ours := read_codec(taken).digest):
        raise UserError(
            f"lora: the autoencoder {taken} (digest {ours[:12]}…) is not that of {where} (digest {theirs[:12]}…), to which "
            f"adapters cannot add another; set {name}.autoencoder.weights.{key} to {where / 'autoencoder'}"
        )


def _taken_codec(weights: Any, home: Path) -> Path | None:
    """The codec of this project that is taken as it is; None if it is trained, or converted from published weights."""
    if weights.kind != "load":
        return None if weights.steps else home / weights.start_from
    where = hub.directory_of(weights.name, home)
    saved = (where / checkpoint.CONFIG).is_file() and "kind" in checkpoint.read(where, "autoencoder")
    return where if saved else None


def _check_adapters(name: str, lora: LoraParams, document: dict[str, Any]) -> None:
    """UserError if adapters cannot be trained in this family, or do not fit its net."""
    kind = family(name)
    if not kind.adapted:
        able = ", ".join(other for other in FAMILIES if family(other).adapted)
        raise UserError(f"lora: adapters cannot be trained in this family, only in {able}; set it to null")
    import torch

    from soundmill.training import adapters

    with torch.device("meta"):
        net = kind.networks(document)[kind.part]
    adapters.check(net, lora)


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
    """Every family: `what` it is, its `source`, its `commands`, and with `sizes` its parameters by part at each scale in `conf`.

    `["ddpm_mel"]["paper"]["unet"]` is the published size of that net. Counting builds the nets, which takes seconds.
    """
    scales = sorted(path.stem for path in (conf / "scale").glob("*.yaml")) if sizes else []
    described = {}
    for name in FAMILIES:
        counts = {scale: parameter_counts(name, params.compose(conf, [f"model={name}", f"scale={scale}"])) for scale in scales}
        kind = family(name)
        described[name] = {"what": kind.title, "source": kind.paper, "commands": kind.commands, **counts}
    return described
