"""Convert models in the layout of diffusers' StableAudioPipeline, such as Stable Audio Open: the same net, codec and text encoder.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from soundmill import hub, text
from soundmill import params as strict
from soundmill.errors import UserError
from soundmill.models.audio_dit import model as models
from soundmill.models.audio_dit.dpm_solver import SCHEDULE
from soundmill.models.audio_dit.latents import layout
from soundmill.models.audio_dit.model import AUTOENCODER, FAMILY, TEXT_ENCODER, AudioDiT
from soundmill.models.audio_dit.network import DiT
from soundmill.models.audio_dit.params import TrainParams
from soundmill.models.components import registry
from soundmill.models.components.loaded import LoadedParams
from soundmill.models.components.text_states.states import TextConfig
from soundmill.training import checkpoint, torch_weights

SUFFIX = "/"  # a directory
CODEC = "oobleck"  # by name: no stage that runs this family with another codec depends on it
REMEDY = "its files do not belong together: download them again"
PARTS = {
    "vae": ("diffusers", "AutoencoderOobleck"),
    "transformer": ("diffusers", "StableAudioDiTModel"),
    "projection_model": ("stable_audio", "StableAudioProjectionModel"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", None),  # any
    "scheduler": ("diffusers", "CosineDPMSolverMultistepScheduler"),
}
UNUSED = ("num_train_timesteps", "rho")  # of the scheduler: for training, and for another schedule
WEIGHTS = "diffusion_pytorch_model.safetensors"
TERMS = ("LICENSE*", "NOTICE*", "README.md")  # kept beside the checkpoint
FILES = ("model_index.json", *(f"{part}/{pattern}" for part in PARTS for pattern in text.FILES), *TERMS)


def read(path: Path, document: dict[str, Any]) -> tuple[AudioDiT, dict[str, Any], Callable[..., None]]:
    """The model in a directory; facts, and the function that saves it.

    `document`, the content of a params.yaml, gives how it is trained on. UserError names the file and the key that is unsupported.
    """
    path = path.resolve()
    _check_parts(path)
    config = partial(_config, path)
    transformer, projection, vae = config("transformer"), config("projection_model"), config("vae")
    tokens = _value(path / "tokenizer/tokenizer_config.json", config("tokenizer", "tokenizer_config.json"), "model_max_length")
    of_transformer = partial(_value, path / "transformer/config.json", transformer)
    of_projection = partial(_value, path / "projection_model/config.json", projection)
    train = document[FAMILY]["train"]
    train |= {"condition": "caption", "standardise": False, "use": "last"}
    train["network"] |= {
        "layers": of_transformer("num_layers"),
        "heads": of_transformer("num_attention_heads"),
        "head_width": of_transformer("attention_head_dim"),
        "key_heads": of_transformer("num_key_value_attention_heads"),
        "condition_width": of_projection("conditioning_dim"),
        "text_width": of_projection("text_encoder_dim"),
        "text_tokens": tokens,
        "max_seconds": of_projection("max_value"),
    }
    params = strict.parse(TrainParams, train, f"{path}: {FAMILY}.train")
    codec = _codec(path, vae)
    frames, shape = of_transformer("sample_size"), codec.latent_shape(of_transformer("sample_size"))
    with torch.device("meta"):
        net = models.build_net(params, shape, 0)
    _agree(path / "transformer/config.json", transformer, net.transformer.config)
    _agree(path / "projection_model/config.json", projection, net.projection_model.config)
    _agree(path / "scheduler/scheduler_config.json", config("scheduler", "scheduler_config.json"), SCHEDULE, UNUSED)
    _check_text_encoder(path, params.network.text_width)
    net = _load(net, path)
    licence = _licence(path)
    facts = {
        "steps": 0,
        "weights": {"last": {"step": 0}},
        "imported": {"name": path.name, "digest": hub.digest(path, FILES), "licence": licence},
    }
    model = AudioDiT(params, net, registry.codec(CODEC), codec, frames, layout(shape, codec.scaling_factor))
    return model, facts, partial(_save, path)


def _save(path: Path, model: AudioDiT, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint, with the text encoder and the terms that were found in `path`."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        inputs, encoder = Path(folder), Path(folder) / TEXT_ENCODER
        import_module(model.kind.component).save(model.autoencoder, inputs / AUTOENCODER, {"kind": "load", **facts["imported"]})
        encoder.mkdir()
        for part in ("tokenizer", "text_encoder"):
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
        models.save(model, inputs, inputs, directory, facts)
        shutil.copytree(encoder, directory / TEXT_ENCODER)
    for source in sorted({file for pattern in TERMS for file in path.glob(pattern) if file.is_file()}):
        shutil.copyfile(source, directory / source.name)


def _check_parts(path: Path) -> None:
    """UserError if the index names another pipeline, or a part that is not supported or missing."""
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(f"{path}: has no model_index.json, so it is not in the layout of diffusers' StableAudioPipeline")
    named = strict.read_json(index, "download it again")
    if not isinstance(named, dict) or named.get("_class_name") != "StableAudioPipeline":
        raise UserError(f"{index}: _class_name is not StableAudioPipeline; only that layout of directories can be imported")
    for key, value in named.items():
        if key.startswith("_"):
            continue
        if key not in PARTS:
            raise UserError(f"{index}: {key} is {value!r}, which is not supported")
        library, kind = PARTS[key]
        if not isinstance(value, list) or len(value) != 2 or value[0] != library or kind not in (None, value[1]):
            raise UserError(f"{index}: {key} is {value!r}, which is not supported; it must be {kind or 'a tokenizer'} of {library}")
    if missing := [key for key in PARTS if key not in named]:
        raise UserError(f"{index}: {missing[0]} is missing; {REMEDY}")
    weights = [f"{part}/{WEIGHTS}" for part in ("transformer", "projection_model", "vae")]
    if absent := [file for file in weights if not (path / file).is_file()]:
        raise UserError(f"{path}: has no {', '.join(absent)} (weights in other formats can run code and are not read)")
    if not any((path / "text_encoder").glob("*.safetensors")):
        raise UserError(f"{path / 'text_encoder'}: has no *.safetensors (weights in other formats can run code and are not read)")


def _config(path: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    """A part's configuration; UserError if it is missing, or of another class than the index says."""
    file = path / part / name
    if not file.is_file():
        raise UserError(f"{file}: is missing; {REMEDY}")
    config = strict.read_json(file, "download it again")
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a JSON object; download it again")
    kind = PARTS[part][1]
    if kind and config.get("_class_name", kind) != kind:
        raise UserError(f"{file}: _class_name is {config['_class_name']!r}, not {kind}; {REMEDY}")
    return config


def _value(file: Path, config: Mapping[str, Any], key: str) -> int:
    """A size in a configuration; UserError unless it is a whole number."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9 or value != int(value):
        raise UserError(f"{file}: {key} is {value!r}, not a size; download it again")
    return int(value)


def _agree(file: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], unused: tuple[str, ...] = ()) -> None:
    """UserError unless every key of a configuration is known and has the value that this family's part has."""
    for key, value in theirs.items():
        if key.startswith("_") or key in unused:
            continue
        if key not in ours:
            raise UserError(f"{file}: {key} is {value!r}, which is not supported: this key is unknown")
        supported = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
        if value != supported:
            raise UserError(f"{file}: {key} is {value!r}, which is not supported; with the other values it must be {supported!r}")
    if missing := [key for key in ours if not key.startswith("_") and key not in theirs]:
        raise UserError(f"{file}: {missing[0]} is missing; {REMEDY}")


def _codec(path: Path, vae: Mapping[str, Any]) -> Any:
    file, kind = path / "vae/config.json", registry.codec(CODEC)
    codecs, pretrained = import_module(kind.component), import_module(kind.loading)
    network = pretrained.network_of(vae, file)
    with torch.device("meta"):
        _agree(file, vae, codecs.build(network).config)
    return pretrained.load(LoadedParams(kind="load", name=path.name, revision=None), network, path.parent)[0]


def _check_text_encoder(path: Path, width: int) -> None:
    file, config = path / "text_encoder/config.json", _config(path, "text_encoder")
    for key, expected in {"model_type": "t5", "d_model": width}.items():
        if config.get(key) != expected:
            raise UserError(f"{file}: {key} is {config.get(key)!r}, which is not supported; it must be {expected!r}")


def _load(net: DiT, path: Path) -> DiT:
    """The net with the weights of `transformer` and `projection_model`, in float32."""
    for part in ("transformer", "projection_model"):
        file = path / part / WEIGHTS
        tensors = {name: value.float() for name, value in checkpoint.read_weights(file).items()}
        if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
            raise UserError(f"{file}: {broken[0]!r} has values that are not finite; {REMEDY}")
        torch_weights.load_state(getattr(net, part), tensors, file, REMEDY)
    return net.eval()


def _licence(path: Path) -> str | None:
    """Print the terms of the source, and return what its card calls them; None if it has no card, or that names none."""
    card, stated = path / "README.md", {}
    if card.is_file() and (parts := card.read_text(encoding="utf-8").split("---\n", 2))[0] == "" and len(parts) == 3:
        try:
            stated = strict.parse_yaml(parts[1])
        except ValueError as error:
            raise UserError(f"{card}: its front matter is not readable as YAML: {error}") from None
    named = [str(stated[key]) for key in ("license", "license_name") if isinstance(stated, dict) and stated.get(key)]
    files = sorted(file.name for file in path.glob("LICENSE*") if file.is_file())
    licence = ", ".join(named) or None
    print(
        f"{path.name}: licence: {licence or 'not named in a README.md'} ({', '.join(files) or 'no LICENSE file'}); it also "
        "applies to what is generated with these weights or trained from them: read it before you use them",
        flush=True,
    )
    return licence
