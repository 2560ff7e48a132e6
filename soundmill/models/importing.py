"""Convert published weights into checkpoints and vocoders of this project."""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from soundmill import hub, params
from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.hashing import file_digest
from soundmill.models import registry
from soundmill.models.components.contracts import save_vocoder
from soundmill.models.components.diffwave import NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveNet
from soundmill.models.generation import make_directory
from soundmill.params import parse
from soundmill.stage import publish
from soundmill.training import torch_weights

DIRECTORY = "/"  # in place of a suffix


def import_published(name: str, output: Path, conf: Callable[[], Path], revision: str | None = None) -> int:
    """Convert a directory, or a file with a family's suffix, into a checkpoint; any other, as DiffWave weights, into a vocoder.

    `name` may also be an id of the hub, with its commit as `revision`: a StableAudioPipeline. `output` must not exist; it is
    written atomically. `conf` returns the project's conf. Returns the number of parameters.
    """
    if output.exists():
        raise UserError(f"{output}: already exists; name a new directory")
    _, pipelines = _reads(DIRECTORY)
    path = Path(name)
    called = path.absolute().name
    if not path.exists():
        remedy = "name a file or directory that is there"
        path, _ = hub.find(str(name), revision, Path(), pipelines.HUB_FILES, pipelines.missing, remedy)
        called = f"{name}@{revision}"  # not the directory in the hub's cache
    if path.is_file() and any((path.parent / index).is_file() for index in _reads(DIRECTORY, path.parent)[1].INDICES):
        raise UserError(f"{path}: is a part of a model; name its directory, {path.parent}")
    family, published = _reads(DIRECTORY, path) if path.is_dir() else _reads(path.suffix)
    if family:
        model, facts, save = published.read(path, params.compose(conf(), [f"model={family}", "scale=paper"]), called)
        save = partial(save, model, facts=facts)
    else:
        model = read(path)
        save = partial(save_vocoder, model, source={"kind": "load", "name": path.name, "digest": file_digest(path)})
    make_directory(output.parent)
    with tempfile.TemporaryDirectory(prefix=".soundmill-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        save(staged)
        publish(staged, output)
    return sum(weight.numel() for weight in model.net.parameters())


def _reads(suffix: str, directory: Path | None = None) -> tuple[str, Any]:
    """The family that reads published files with a suffix, and its module for that; ("", None) if none does.

    Of those that read directories, the one that has one of its INDICES there, else the first.
    """
    named = [name for name in registry.FAMILIES if registry.family(name).published]
    modules = [(name, import_module(f"soundmill.models.{name}.published")) for name in named]
    reading = [(name, published) for name, published in modules if suffix == published.SUFFIX]
    shown = [one for one in reading if directory and any((directory / index).is_file() for index in one[1].INDICES)]
    return next(iter(shown or reading), ("", None))


REMEDY = (
    "download the file again; or, if its `params` are not a plain dictionary, save it again with the program that wrote it: "
    "torch.save({'model': old['model'], 'params': dict(old['params'])}, FILE), arrays in `params` as lists"
)
BETA_TOLERANCE = 1e-6  # tolerance of a beta: they are stored as decimals
NAMES = {
    "input_projection": "first",
    "diffusion_embedding.projection1": "embedding.layers.0",
    "diffusion_embedding.projection2": "embedding.layers.2",
    "spectrogram_upsampler.conv1": "upsampler.layers.0",
    "spectrogram_upsampler.conv2": "upsampler.layers.1",
    "skip_projection": "skip",
    "output_projection": "last",
}
OF_A_LAYER = {
    "dilated_conv": "dilated",
    "diffusion_projection": "timestep",
    "conditioner_projection": "condition",
    "output_projection": "out",
}


class Published(BaseModel):
    """The `params` that describe network, noise and mels; the others concern the training."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    sample_rate: int
    n_mels: int
    n_fft: int
    hop_samples: int
    residual_layers: int = Field(le=1000)
    residual_channels: int
    dilation_cycle_length: int
    noise_schedule: list[float] = Field(min_length=2)
    inference_noise_schedule: list[float]

    @property
    def spec(self) -> MelSpec:
        """The mel spec of `diffwave.preprocess`. Its `normalized` is part of the conditioner, which clips above this floor."""
        values = {
            "sample_rate": self.sample_rate,
            "n_fft": self.n_fft,
            "win_length": 4 * self.hop_samples,
            "hop_length": self.hop_samples,
            "n_mels": self.n_mels,
            "f_min": 20.0,
            "f_max": self.sample_rate / 2,
            "mel_scale": "htk",
            "norm": "none",
            "power": 1.0,
            "floor": 1e-5,
            "peak": None,
        }
        return parse(MelSpec, values, "params")

    @property
    def network(self) -> NetworkParams:
        sizes = {
            "layers": self.residual_layers,
            "channels": self.residual_channels,
            "dilation_cycle": self.dilation_cycle_length,
        }
        return parse(NetworkParams, sizes, "params")

    @property
    def noise(self) -> NoiseParams:
        betas = torch.tensor(self.noise_schedule, dtype=torch.float64)
        if (betas - torch.linspace(betas[0], betas[-1], len(betas), dtype=torch.float64)).abs().max() > BETA_TOLERANCE:
            raise UserError("params.noise_schedule: its betas are not evenly spaced, which is not supported")
        values = {"num_timesteps": len(betas), "beta_start": self.noise_schedule[0], "beta_end": self.noise_schedule[-1]}
        return parse(NoiseParams, values, "params.noise_schedule")


def read(path: Path) -> DiffWave:
    """The vocoder in a file `weights-*.pt`; it samples with the file's `inference_noise_schedule` and seed 0.

    Reads only tensors and plain values. UserError for any other file or network.
    """
    contents = torch_weights.read_checkpoint(path, remedy=REMEDY)
    if not isinstance(contents, dict) or not all(isinstance(contents.get(key), dict) for key in ("model", "params")):
        raise UserError(f"{path}: not a file of DiffWave's implementation: it needs both `model` and `params`")
    published = parse(Published, contents["params"], f"{path}: params")
    try:
        network, noise, spec = published.network, published.noise, published.spec
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    sampling = parse(SamplingParams, {"betas": published.inference_noise_schedule, "seed": 0}, f"{path}: params")
    net = torch_weights.built(lambda: DiffWaveNet(network, spec), renamed(contents["model"], path), path, REMEDY)
    return DiffWave(network, noise, sampling, spec, net.float().eval())


def renamed(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors with our names; UserError for a network without mels."""
    if not any(name.startswith("spectrogram_upsampler.") for name in state):
        raise UserError(f"{path}: an unconditional network, not a vocoder; only vocoders can be imported")
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    """Our name of a tensor; unknown names stay unchanged and fail when the weights are loaded."""
    module, _, kind = name.rpartition(".")
    if layer := re.fullmatch(r"residual_layers\.(\d+)\.(\w+)", module):
        return f"layers.{layer[1]}.{OF_A_LAYER.get(layer[2], layer[2])}.{kind}"
    return f"{NAMES.get(module, module)}.{kind}"
