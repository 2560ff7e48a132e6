"""The layout of diffusers' StableAudioPipeline: a directory for each part."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundmill import text
from soundmill.diffusion.solvers import STABLE_AUDIO
from soundmill.errors import UserError
from soundmill.models.audio_dit.published import configs
from soundmill.models.components.contracts import Kind
from soundmill.training import checkpoint

INDEX = "model_index.json"
PARTS = {
    "vae": ("diffusers", "AutoencoderOobleck"),
    "transformer": ("diffusers", "StableAudioDiTModel"),
    "projection_model": ("stable_audio", "StableAudioProjectionModel"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", None),  # any
    "scheduler": ("diffusers", "CosineDPMSolverMultistepScheduler"),
}
CONFIGS = dict.fromkeys(PARTS, "config.json") | {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}
WITH_WEIGHTS = ("transformer", "projection_model", "vae")
UNUSED = ("num_train_timesteps", "rho")  # of the scheduler: for training, and for another schedule
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Pipeline:
    """A directory in this layout; UserError names the file and the key that is unsupported."""

    remedy = configs.REMEDY
    flow: Mapping[str, Any] = {}  # as the family's at paper scale
    sampling: Mapping[str, Any] = {}
    files = (INDEX, *(f"{part}/{pattern}" for part in PARTS for pattern in text.FILES))

    def __init__(self, path: Path, codec: Kind):
        _check_parts(path)
        self.path = path
        self.configs = {part: _config(path, part) for part in WITH_WEIGHTS}
        transformer, projection = (
            partial(configs.size, path / part / "config.json", self.configs[part]) for part in ("transformer", "projection_model")
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
            "text_tokens": configs.size(path / "tokenizer/tokenizer_config.json", tokenizer, "model_max_length"),
            "max_seconds": projection("max_value"),
        }
        self.frames = transformer("sample_size")
        self.codec = import_module(codec.maker).network_of(self.configs["vae"], path / "vae/config.json")
        scheduler = _config(path, "scheduler", "scheduler_config.json")
        configs.agree(path / "scheduler/scheduler_config.json", scheduler, STABLE_AUDIO, UNUSED)

    def check(self, parts: Mapping[str, Any]) -> None:
        """UserError if a configuration is not that of a net built from the sizes."""
        for part, config in self.configs.items():
            configs.agree(self.path / part / "config.json", config, parts[part].config)

    def tensors(self, part: str, net: nn.Module) -> tuple[Path, dict[str, Tensor]]:
        """The weights of a part, of one file or of several that an index lists; and the file to name in errors."""
        directory = self.path / part
        file, index = directory / WEIGHTS, directory / f"{WEIGHTS}.index.json"
        if not index.is_file():
            return file, checkpoint.read_weights(file)
        tensors = {}
        for shard in configs.shards(index):
            tensors |= checkpoint.read_weights(shard)
        return index, tensors


def _check_parts(path: Path) -> None:
    """UserError if the index names another pipeline, or a part that is not supported or missing."""
    index = path / INDEX
    named = configs.read(index)
    if named.get("_class_name") != "StableAudioPipeline":
        raise UserError(f"{index}: _class_name is not StableAudioPipeline; no other pipeline can be imported")
    for key, value in named.items():
        if key.startswith("_"):
            continue
        if key not in PARTS:
            raise UserError(f"{index}: {key} is {value!r}, which is not supported")
        library, kind = PARTS[key]
        if not isinstance(value, list) or len(value) != 2 or value[0] != library or kind not in (None, value[1]):
            raise UserError(f"{index}: {key} is {value!r}, which is not supported; it must be {kind or 'a tokenizer'} of {library}")
    if missing := [key for key in PARTS if key not in named]:
        raise UserError(f"{index}: {missing[0]} is missing; {configs.REMEDY}")
    weights = [f"{part}/{WEIGHTS}" for part in WITH_WEIGHTS]
    if absent := [file for file in weights if not any((path / name).is_file() for name in (file, f"{file}.index.json"))]:
        raise UserError(f"{path}: has no {', '.join(absent)} ({configs.NO_PICKLES})")


def _config(path: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    """A part's configuration; UserError if it is missing, or of another class than the index says."""
    file, kind = path / part / name, PARTS[part][1]
    config = configs.read(file)
    if kind and config.get("_class_name", kind) != kind:
        raise UserError(f"{file}: _class_name is {config['_class_name']!r}, not {kind}; {configs.REMEDY}")
    return config
