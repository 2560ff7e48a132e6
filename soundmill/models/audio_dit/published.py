"""Convert published models of Stable Audio Open's kind: the same net, codec and text encoder, from either of two layouts.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from soundmill import hub, terminal, text
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models.audio_dit import layouts
from soundmill.models.audio_dit import model as models
from soundmill.models.audio_dit.model import FAMILY, TEXT_ENCODER, AudioDiT, layout
from soundmill.models.audio_dit.params import TrainParams
from soundmill.models.components import registry
from soundmill.models.components.contracts import save_codec
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states.states import TextConfig
from soundmill.training import torch_weights

SUFFIX = "/"  # a directory
CODEC = "oobleck"  # by name: no stage that runs this family with another codec depends on it
TERMS = ("LICENSE*", "NOTICE*", "README.md")  # kept beside the checkpoint
ENCODER_PARTS = ("tokenizer", "text_encoder")
ENCODER_FILES = tuple(f"{part}/{pattern}" for part in ENCODER_PARTS for pattern in text.FILES)

INDICES = (layouts.INDEX, layouts.CONFIG)  # one is in every directory that can be read
HUB_FILES = (*layouts.Pipeline.files, *TERMS)  # of a model on the hub


def missing(directory: Path) -> str | None:
    """What a model from the hub lacks to be in diffusers' layout, as after a download that was broken off."""
    if not (directory / layouts.INDEX).is_file():
        return f"{layouts.INDEX} of a StableAudioPipeline"
    needed = [f"{part}/{file}" for part, file in layouts.CONFIGS.items()]
    for part in (*layouts.WITH_WEIGHTS, "text_encoder"):
        indices = sorted((directory / part).glob("*.safetensors.index.json"))
        listed = [name for index in indices for name in set(layouts.read_config(index).get("weight_map", {}).values())]
        needed += [f"{part}/{name}" for name in listed] or [f"{part}/*.safetensors"]
    return ", ".join(name for name in needed if not any(directory.glob(name))) or None


def read(path: Path, document: dict[str, Any], name: str) -> tuple[AudioDiT, dict[str, Any], Callable[..., None]]:
    """The model in a directory; facts, and the function that saves it.

    `document`, the content of a params.yaml, gives how it is trained on; the facts call the model `name`. UserError names the file
    and the key that is unsupported.
    """
    path, kind = path.resolve(), registry.codec(CODEC)
    source = _source(path)
    train = document[FAMILY]["train"]
    train |= {"condition": "caption", "standardise": False, "use": "last"}
    for part in ("network", "flow", "sampling"):
        train[part] |= getattr(source, part)
    params = strict.parse(TrainParams, train, f"{path}: {FAMILY}.train")
    codecs = import_module(kind.component)
    with torch.device("meta"):
        codec = codecs.OobleckCodec(source.codec, codecs.build(source.codec))
        shape = codec.latent_shape(source.frames)
        net = models.build_net(params, shape, 0)
    parts = {"transformer": net.transformer, "projection_model": net.projection_model, "vae": codec.net}
    source.check(parts)
    _check_text_encoder(path, params.network.text_width, source.remedy)
    for part, module in parts.items():
        file, tensors = source.tensors(part, module)
        tensors = {name: value.float() for name, value in tensors.items()}
        if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
            raise UserError(f"{file}: {broken[0]!r} has values that are not finite; {layouts.REMEDY}")
        torch_weights.load_state(module, tensors, file, layouts.REMEDY)
    licence = _licence(path, name)
    facts = {
        "steps": 0,
        "weights": {"last": {"step": 0}},
        "imported": {"name": name, "digest": hub.digest(path, (*source.files, *ENCODER_FILES, *TERMS)), "licence": licence},
    }
    seconds = source.frames * codec.samples_per_frame / codec.sample_rate  # its crops fill the latents
    model = AudioDiT(params, net.eval(), kind, codec, source.frames, seconds, layout(shape, codec.scaling_factor))
    return model, facts, partial(_save, path)


def _source(path: Path) -> layouts.Pipeline | layouts.SingleFile:
    """The directory in the layout that its file of configuration shows; of two, diffusers', which has the text encoder."""
    if (path / layouts.INDEX).is_file():
        return layouts.Pipeline(path, registry.codec(CODEC))
    if (path / layouts.CONFIG).is_file():
        return layouts.SingleFile(path, registry.codec(CODEC))
    raise UserError(
        f"{path}: has neither model_index.json (the layout of diffusers' StableAudioPipeline) nor model_config.json (that of "
        "stable-audio-tools); name a directory in one of these layouts"
    )


def _save(path: Path, model: AudioDiT, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint, with the text encoder and the terms that were found in `path`."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        inputs, encoder = Path(folder), Path(folder) / TEXT_ENCODER
        save_codec(model.autoencoder, inputs / AUTOENCODER, {"kind": "load", **facts["imported"]})
        encoder.mkdir()
        for part in ENCODER_PARTS:
            for source in sorted({file for pattern in text.FILES for file in (path / part).glob(pattern)}):
                if (encoder / source.name).exists():
                    raise UserError(f"{source}: is in `tokenizer` too; remove one of them")
                shutil.copyfile(source, encoder / source.name)
        try:
            text.TextEncoder(encoder, model.params.network.text_tokens)
        except UserError as error:
            raise UserError(str(error).replace(str(encoder), str(path / "text_encoder"))) from None
        digest, tokens = hub.digest(encoder, text.FILES), model.params.network.text_tokens
        model.text = TextConfig(name=TEXT_ENCODER, revision=None, digest=digest, pretrained=True, max_tokens=tokens, scratch=None)
        model.save(directory, facts, parts=[inputs / AUTOENCODER])
        shutil.copytree(encoder, directory / TEXT_ENCODER)
    for source in sorted({file for pattern in TERMS for file in path.glob(pattern) if file.is_file()}):
        shutil.copyfile(source, directory / source.name)


def _check_text_encoder(path: Path, width: int, remedy: str) -> None:
    directory = path / "text_encoder"
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: has no config.json of a text encoder; {remedy}")
    file, config = directory / "config.json", layouts.read_config(directory / "config.json")
    for key, expected in {"model_type": "t5", "d_model": width}.items():
        if config.get(key) != expected:
            raise UserError(f"{file}: {key} is {config.get(key)!r}, which is not supported; it must be {expected!r}")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory}: has no *.safetensors ({layouts.NO_PICKLES})")
    for index in sorted(directory.glob("*.safetensors.index.json")):
        layouts.shards(index)  # transformers would open any path that it names


def _licence(path: Path, name: str) -> str | None:
    """Print the terms of the model `name`, and return what its card calls them; None if it has no card, or that names none."""
    card, stated = path / "README.md", {}
    if card.is_file() and (parts := card.read_text(encoding="utf-8").split("---\n", 2))[0] == "" and len(parts) == 3:
        try:
            stated = strict.parse_yaml(parts[1])
        except ValueError as error:
            raise UserError(f"{card}: its front matter is not readable as YAML: {error}") from None
    named = [str(stated[key]) for key in ("license", "license_name") if isinstance(stated, dict) and stated.get(key)]
    files = sorted(file.name for file in path.glob("LICENSE*") if file.is_file())
    licence = ", ".join(named) or None
    terminal.say(
        f"{name}: licence: {licence or 'not named in a README.md'} ({', '.join(files) or 'no LICENSE file'}); it also "
        "applies to what is generated with these weights or trained from them: read it before you use them"
    )
    return licence
