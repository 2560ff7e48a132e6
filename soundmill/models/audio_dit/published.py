"""Convert published models of Stable Audio Open's kind: the same net, codec and text encoder, from either of two layouts.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundmill import hub, text
from soundmill import params as strict
from soundmill.diffusion.solvers import STABLE_AUDIO
from soundmill.errors import UserError
from soundmill.models.audio_dit import TrainParams
from soundmill.models.audio_dit import model as models
from soundmill.models.audio_dit.model import FAMILY, AudioDiT, layout
from soundmill.models.components import registry
from soundmill.models.components.contracts import Kind, save_codec
from soundmill.models.components.registry import AUTOENCODER
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.trained import TEXT_ENCODER
from soundmill.training import checkpoint, torch_weights

REMEDY = hub.REMEDY
NO_PICKLES = "weights in other formats can run code and are not read"
FACTS = strict.read_yaml(Path(__file__).with_suffix(".yaml"))

# diffusers' StableAudioPipeline: a directory for each part.
INDEX, PARTS = "model_index.json", FACTS["parts"]
CONFIGS = dict.fromkeys(PARTS, "config.json") | {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}
WITH_WEIGHTS = ("transformer", "projection_model", "vae")
UNUSED_OF_SCHEDULER = ("num_train_timesteps", "rho")  # of the scheduler: for training, and for another schedule
PART_WEIGHTS = "diffusion_pytorch_model.safetensors"

# stable-audio-tools: the weights of all parts but the text encoder in one file.
CONFIG, WEIGHTS = "model_config.json", "model.safetensors"
TRANSFORMER, CONDITIONERS, VAE = "model.model.", "conditioner.conditioners.", "pretransform.model."
ROTARY = f"{TRANSFORMER}transformer.rotary_pos_emb.inv_freq"
TEXT_PROJECTION = f"{CONDITIONERS}prompt.proj_out.weight"
LEAST_HEAD = 64  # narrower heads turn 32 channels there, and half of theirs in diffusers

# Keys of the configuration, with dots between its levels; entries of conditioning.configs are named by their ids.
DIT, PRETRANSFORM, CONDITIONING = "model.diffusion.config.", "model.pretransform.config.", "model.conditioning."
ENCODER, DECODER = f"{PRETRANSFORM}encoder.config.", f"{PRETRANSFORM}decoder.config."
PROMPT = f"{CONDITIONING}configs.prompt.config."
QK_NORM, PROJECTED = f"{DIT}attn_kwargs.qk_norm", f"{DIT}project_cond_tokens"
OBJECTIVE, SHIFT = "model.diffusion.diffusion_objective", "model.diffusion.distribution_shift_options."
SECONDS = ("seconds_start", "seconds_total")
SHIFTS = tuple(f"{SHIFT}{key}" for key in ("base_shift", "max_shift", "min_length", "max_length", "use_sine"))
CHOICES = {OBJECTIVE: tuple(FACTS["flows"]), QK_NORM: ("none", "ln"), PROJECTED: (True, False)}


def size_of(file: Path, config: Mapping[str, Any], key: str) -> int:
    """A size in a configuration; UserError unless it is a whole number."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9 or value != int(value):
        raise UserError(f"{file}: {key} is {value!r}, not a size; download it again")
    return int(value)


def agree(file: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], unused: tuple[str, ...] = ()) -> None:
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


class Pipeline:
    """A directory in the layout of diffusers' StableAudioPipeline; UserError names the file and the key that is unsupported."""

    remedy = REMEDY
    flow: Mapping[str, Any] = {}  # as the family's at paper scale
    sampling: Mapping[str, Any] = {}
    files = (INDEX, *(f"{part}/{pattern}" for part in PARTS for pattern in text.FILES))

    def __init__(self, path: Path, codec: Kind):
        _check_parts(path)
        self.path = path
        self.configs = {part: _config(path, part) for part in WITH_WEIGHTS}
        transformer, projection = (
            partial(size_of, path / part / "config.json", self.configs[part]) for part in ("transformer", "projection_model")
        )
        tokenizer = _config(path, "tokenizer", "tokenizer_config.json")
        width, context_width = projection("conditioning_dim"), transformer("cross_attention_dim")
        self.network = {
            "layers": transformer("num_layers"),
            "heads": transformer("num_attention_heads"),
            "head_width": transformer("attention_head_dim"),
            "key_heads": transformer("num_key_value_attention_heads"),
            "condition_width": width,
            "context_width": context_width if context_width != width else None,
            "text_width": projection("text_encoder_dim"),
            "text_tokens": size_of(path / "tokenizer/tokenizer_config.json", tokenizer, "model_max_length"),
            "max_seconds": projection("max_value"),
        }
        self.frames = transformer("sample_size")
        self.codec = codec.module.network_of(self.configs["vae"], path / "vae/config.json")
        scheduler = _config(path, "scheduler", "scheduler_config.json")
        agree(path / "scheduler/scheduler_config.json", scheduler, STABLE_AUDIO, UNUSED_OF_SCHEDULER)

    def check(self, parts: Mapping[str, Any]) -> None:
        """UserError if a configuration is not that of a net built from the sizes."""
        for part, config in self.configs.items():
            agree(self.path / part / "config.json", config, parts[part].config)

    def tensors(self, part: str, net: nn.Module) -> tuple[Path, dict[str, Tensor]]:
        """The weights of a part, of one file or of several that an index lists; and the file to name in errors."""
        directory = self.path / part
        file, index = directory / PART_WEIGHTS, directory / f"{PART_WEIGHTS}.index.json"
        if not index.is_file():
            return file, checkpoint.read_weights(file)
        tensors = {}
        for shard in hub.shards(index):
            tensors |= checkpoint.read_weights(shard)
        return index, tensors


def _check_parts(path: Path) -> None:
    """UserError if the index names another pipeline, or a part that is not supported or missing."""
    index = path / INDEX
    named = hub.read_config(index)
    if named.get("_class_name") != "StableAudioPipeline":
        raise UserError(
            f"{index}: _class_name is {named.get('_class_name')!r}; StableAudioPipeline and AudioLDMPipeline can be imported"
        )
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
    weights = [f"{part}/{PART_WEIGHTS}" for part in WITH_WEIGHTS]
    if absent := [file for file in weights if not any((path / name).is_file() for name in (file, f"{file}.index.json"))]:
        raise UserError(f"{path}: has no {', '.join(absent)} ({NO_PICKLES})")


def _config(path: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    """A part's configuration; UserError if it is missing, or of another class than the index says."""
    file, kind = path / part / name, PARTS[part][1]
    config = hub.read_config(file)
    if kind and config.get("_class_name", kind) != kind:
        raise UserError(f"{file}: _class_name is {config['_class_name']!r}, not {kind}; {REMEDY}")
    return config


class SingleFile:
    """A directory in the layout of stable-audio-tools and the text encoder's in it; UserError names the file and the key."""

    files = (CONFIG, WEIGHTS)

    def __init__(self, path: Path, codec: Kind):
        self.file, self.weights = path / CONFIG, path / WEIGHTS
        stated = {key: value for key, value in hub.read_config(self.file).items() if key != "training"}
        config = _flat(FACTS["defaults"]) | _flat(stated)
        for key, values in CHOICES.items():
            if config[key] not in values:
                raise UserError(f"{self.file}: {key} is {config[key]!r}, which is not supported; it must be one of {list(values)}")
        size = partial(size_of, self.file, config)
        heads, width = size(f"{DIT}num_heads"), size(f"{DIT}cond_token_dim")
        head_width = size(f"{DIT}embed_dim") // heads
        context_width = heads * head_width if config[PROJECTED] else width
        if head_width < LEAST_HEAD:
            raise UserError(
                f"{self.file}: {DIT}num_heads is {heads}, which is not supported: heads must be {LEAST_HEAD} channels wide or wider"
            )
        ae = {
            "decoder_channels": size(f"{DECODER}channels"),
            "downsampling_ratios": config.get(f"{DECODER}strides"),
            "channel_multiples": config.get(f"{DECODER}c_mults"),
            "decoder_input_channels": size(f"{DECODER}latent_dim"),
            "audio_channels": size("audio_channels"),
            "sampling_rate": size("sample_rate"),
        }
        self.codec = codec.module.network_of(ae, self.file)
        unused = (*FACTS["unused"], *(SHIFTS if config[OBJECTIVE] == "rf_denoiser" else ()))  # which shift only its training
        self.frames = size("sample_size") // self.codec.samples_per_latent
        self.network = {
            "layers": size(f"{DIT}depth"),
            "heads": heads,
            "head_width": head_width,
            "key_heads": context_width // head_width,
            "condition_width": width,
            "context_width": context_width if context_width != width else None,
            "query_key_norm": config[QK_NORM] == "ln",
            "start": any(key.startswith(f"{CONDITIONING}configs.{SECONDS[0]}.") for key in config),
            "text_tokens": size(f"{PROMPT}max_length"),
            "max_seconds": size(f"{CONDITIONING}configs.{SECONDS[1]}.config.max_val"),
        }
        agree(self.file, config, _expected(config, self.network, self.codec, self.frames), unused)
        self.flow, self.sampling = FACTS["flows"][config[OBJECTIVE]]
        if not self.weights.is_file():
            raise UserError(
                f"{path}: has no {WEIGHTS} ({NO_PICKLES}); download that file, published beside model.ckpt, or write the "
                "tensors of a model.ckpt that you trust with safetensors.torch.save_file"
            )
        self.loaded = checkpoint.read_weights(self.weights)
        projection = self.loaded.get(TEXT_PROJECTION)
        self.network["text_width"] = width if projection is None else projection.shape[-1]
        self.remedy = f"put the files of {config.get(f'{PROMPT}t5_model_name', 'its T5 encoder')!r} ({', '.join(text.FILES)}) there"

    def check(self, parts: Mapping[str, nn.Module]) -> None:
        """UserError unless the file has the tensors of these nets, and no others."""
        wanted = {self._name(part, name) for part, net in parts.items() for name in net.state_dict()}
        if missing := sorted(wanted - set(self.loaded)):
            raise UserError(f"{self.weights}: has no {missing[0]!r}; {REMEDY}")
        if unknown := sorted(set(self.loaded) - wanted - {ROTARY}):
            raise UserError(f"{self.weights}: {unknown[0]!r} is not supported: no part has a tensor of this name")
        frequencies = self.loaded.get(ROTARY)
        expected = 10_000.0 ** -torch.linspace(0, 1, self.network["head_width"] // 4 + 1)[:-1]
        close = partial(torch.allclose, other=expected, rtol=1e-2)  # they may have been stored in half precision
        if frequencies is not None and not (frequencies.shape == expected.shape and close(frequencies.float())):
            raise UserError(f"{self.weights}: {ROTARY!r} is not supported: this family's net turns by other frequencies")

    def tensors(self, part: str, net: nn.Module) -> tuple[Path, dict[str, Tensor]]:
        """The weights of a part, named and shaped as in `net`; and the file to name in errors."""
        return self.weights, {name: self._tensor(part, name, value.shape) for name, value in net.state_dict().items()}

    def _tensor(self, part: str, name: str, shape: torch.Size) -> Tensor:
        """A tensor that is there joined with others (queries, keys and values), has fewer axes (of snakes) or more (of times)."""
        theirs = self._name(part, name)
        value, joined = self.loaded[theirs], re.search(r"\.to_(q?kv)\.", theirs)
        own = re.search(r"\.to_([qkv])\.", name)
        count, place = (len(joined[1]), joined[1].index(own[1])) if joined and own else (1, 0)
        wanted = (count * shape[0], *shape[1:])
        if [one for one in value.shape if one != 1] != [one for one in wanted if one != 1]:
            raise UserError(f"{self.weights}: {theirs!r} has the shape {tuple(value.shape)}, not {wanted}; {REMEDY}")
        return value.reshape(count, *shape)[place].clone()

    def _name(self, part: str, name: str) -> str:
        """The name there of a tensor of a part."""
        if part == "vae":
            return VAE + _of_codec(name, len(self.codec.ratios))
        return (TRANSFORMER if part == "transformer" else CONDITIONERS) + torch_weights.renamed(name, FACTS[part])


def _of_codec(name: str, levels: int) -> str:
    side, layer, *rest = name.split(".")
    if layer != "block":
        place = {"conv1": 0, "snake1": levels + 1, "conv2": levels + 2}[layer]
        return ".".join([side, "layers", str(place), *rest])
    number, layer, *rest = rest
    unit = ["layers", str(FACTS["unit"][rest.pop(0)])] if layer.startswith("res_unit") else []
    return ".".join([side, "layers", str(int(number) + 1), "layers", str(FACTS["block"][side][layer]), *unit, *rest])


def _expected(config: Mapping[str, Any], network: Mapping[str, Any], codec: Any, frames: int) -> dict[str, Any]:
    """The configuration that a model of these sizes has; what may differ is as it is."""
    width, head_width, latents = network["condition_width"], network["head_width"], codec.latent_channels
    seconds = SECONDS[not network["start"] :]
    numbers = [f"{CONDITIONING}configs.{name}." for name in seconds]
    supported = {
        "sample_size": frames * codec.samples_per_latent,
        "model.io_channels": latents,
        f"{PRETRANSFORM}latent_dim": latents,
        f"{PRETRANSFORM}io_channels": codec.audio_channels,
        f"{PRETRANSFORM}downsampling_ratio": codec.samples_per_latent,
        f"{ENCODER}in_channels": codec.audio_channels,
        f"{ENCODER}channels": 2 * latents,  # one number in diffusers' AutoencoderOobleck
        f"{ENCODER}latent_dim": 2 * latents,
        f"{ENCODER}c_mults": codec.multiples,
        f"{ENCODER}strides": codec.ratios,
        f"{DECODER}out_channels": codec.audio_channels,
        f"{CONDITIONING}cond_dim": width,
        **{f"{name}type": "number" for name in numbers},
        **{f"{name}config.min_val": 0 for name in numbers},
        **{f"{name}config.max_val": network["max_seconds"] for name in numbers},
        "model.diffusion.cross_attention_cond_ids": ["prompt", *seconds],
        "model.diffusion.global_cond_ids": list(seconds),
        f"{DIT}io_channels": latents,
        f"{DIT}embed_dim": network["heads"] * head_width,
        f"{DIT}cond_token_dim": width if config[PROJECTED] else network["key_heads"] * head_width,
        f"{DIT}global_cond_dim": len(seconds) * width,
    }
    free = {key: config[key] for key in (*FACTS["sizes"], *CHOICES)}
    return _flat(FACTS["defaults"]) | free | FACTS["supported"] | supported


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Values of nested dictionaries, and of lists of dictionaries with ids, by their dotted names."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in value):
        by_id = {one["id"]: {key: rest for key, rest in one.items() if key != "id"} for one in value}
        value = by_id if len(by_id) == len(value) else value
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, one in value.items():
        flat |= _flat(one, f"{name}.{key}" if name else key)
    return flat


SUFFIX = "/"  # a directory
CODEC = "oobleck"  # by name: no stage that runs this family with another codec depends on it
ENCODER_PARTS = ("tokenizer", "text_encoder")
ENCODER_FILES = tuple(f"{part}/{pattern}" for part in ENCODER_PARTS for pattern in text.FILES)

INDICES = ("transformer/config.json", CONFIG)  # one is in every directory that can be read
HUB_FILES = (*Pipeline.files, *hub.TERMS)  # of a model on the hub


def missing(directory: Path) -> str | None:
    """What a model from the hub lacks to be in diffusers' layout, as after a download that was broken off."""
    if not (directory / INDEX).is_file():
        return f"{INDEX} of a StableAudioPipeline"
    needed = [f"{part}/{file}" for part, file in CONFIGS.items()]
    for part in (*WITH_WEIGHTS, "text_encoder"):
        indices = map(hub.read_config, (directory / part).glob("*.safetensors.index.json"))
        listed = {str(name) for one in indices if isinstance(named := one.get("weight_map"), dict) for name in named.values()}
        needed += [f"{part}/{name}" for name in sorted(listed)] or [f"{part}/*.safetensors"]
    return ", ".join(name for name in needed if not any(directory.glob(name))) or None


def read(path: Path, document: dict[str, Any], name: str) -> tuple[AudioDiT, dict[str, Any], Callable[..., None]]:
    """The model in a directory; facts, and the function that saves it.

    `document`, the content of a params.yaml, gives how it is trained on; the facts call the model `name`. UserError names the file
    and the key that is unsupported.
    """
    path = path.resolve()
    source = _source(path)
    train = document[FAMILY]["train"]
    train |= {"condition": "caption", "standardise": False, "use": "last"}
    for part in ("network", "flow", "sampling"):
        train[part] |= getattr(source, part)
    params = strict.parse(TrainParams, train, f"{path}: {FAMILY}.train")
    codecs = registry.kind_of(AUTOENCODER, CODEC).module
    count = sum(len(hub.declared(file)) for file in path.glob("**/*.safetensors"))
    with hub.bounded(str(path), REMEDY, count), torch.device("meta"):
        codec = codecs.OobleckCodec(source.codec, codecs.build(source.codec))
        shape = codec.latent_shape(source.frames)
        net = models.build_net(params, shape, 0)
    parts = {"transformer": net.transformer, "projection_model": net.projection_model, "vae": codec.net}
    source.check(parts)
    _check_text_encoder(path, params.network.text_width, source.remedy)
    for part, module in parts.items():
        file, tensors = source.tensors(part, module)
        tensors = {name: value.float() for name, value in tensors.items()}
        torch_weights.load_state(module, tensors, file, REMEDY)
    facts = {
        "steps": 0,
        "weights": {"last": {"step": 0}},
        "imported": {"name": name, "digest": hub.digest(path, (*source.files, *ENCODER_FILES, *hub.TERMS))},
    }
    seconds = source.frames * codec.samples_per_frame / codec.sample_rate  # its crops fill the latents
    model = AudioDiT(params, net.eval(), codec, source.frames, seconds, layout(shape, codec.scaling_factor))
    return model, facts, partial(_save, path)


def _source(path: Path) -> Pipeline | SingleFile:
    """The directory in the layout that its file of configuration shows; of two, diffusers', which has the text encoder."""
    if (path / INDEX).is_file():
        return Pipeline(path, registry.kind_of(AUTOENCODER, CODEC))
    if (path / CONFIG).is_file():
        return SingleFile(path, registry.kind_of(AUTOENCODER, CODEC))
    raise UserError(
        f"{path}: has neither model_index.json (the layout of diffusers' StableAudioPipeline) nor model_config.json (that of "
        "stable-audio-tools); name a directory in one of these layouts"
    )


def _save(path: Path, model: AudioDiT, directory: Path, facts: dict[str, Any]) -> None:
    """Write the checkpoint, with the text encoder that was found in `path`."""
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
        model.save(directory, facts, parts=[inputs / AUTOENCODER, encoder])


def _check_text_encoder(path: Path, width: int, remedy: str) -> None:
    directory = path / "text_encoder"
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: has no config.json of a text encoder; {remedy}")
    file, config = directory / "config.json", hub.read_config(directory / "config.json")
    for key, expected in {"model_type": "t5", "d_model": width}.items():
        if config.get(key) != expected:
            raise UserError(f"{file}: {key} is {config.get(key)!r}, which is not supported; it must be {expected!r}")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory}: has no *.safetensors ({NO_PICKLES})")
