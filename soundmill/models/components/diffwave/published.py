"""Convert the weights of DiffWave's own implementation, a file `weights-*.pt`: the same network with other tensor names."""

import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from soundmill.audio.mel import MelSpec
from soundmill.errors import UserError
from soundmill.models.components.diffwave import NetworkParams, NoiseParams, SamplingParams
from soundmill.models.components.diffwave.vocoder import DiffWave, DiffWaveNet
from soundmill.params import parse, read_yaml
from soundmill.training import torch_weights

REMEDY = (
    "download the file again; or, if its `params` are not a plain dictionary, save it again with the program that wrote it: "
    "torch.save({'model': old['model'], 'params': dict(old['params'])}, FILE), arrays in `params` as lists"
)
BETA_TOLERANCE = 1e-6  # tolerance of a beta: they are stored as decimals
FACTS = read_yaml(Path(__file__).with_suffix(".yaml"))


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
        of_hop = {"win_length": 4 * self.hop_samples, "hop_length": self.hop_samples}
        of_rate = {"sample_rate": self.sample_rate, "f_max": self.sample_rate / 2}
        return parse(MelSpec, FACTS["mels"] | of_hop | of_rate | {"n_fft": self.n_fft, "n_mels": self.n_mels}, "params")

    @property
    def network(self) -> NetworkParams:
        sizes = {"layers": self.residual_layers, "channels": self.residual_channels, "dilation_cycle": self.dilation_cycle_length}
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
    state = renamed(torch_weights.state_in(contents, path, "DiffWave", "model", REMEDY), path)
    net = torch_weights.built(lambda: DiffWaveNet(network, spec), state, path, REMEDY)
    return DiffWave(network, noise, sampling, spec, net.float().eval())


def renamed(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors with our names; unknown ones stay and fail when the weights are loaded. UserError for a network without mels."""
    if not any(name.startswith("spectrogram_upsampler.") for name in state):
        raise UserError(f"{path}: an unconditional network, not a vocoder; only vocoders can be imported")
    named = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if layer := re.fullmatch(r"residual_layers\.(\d+)\.(\w+)", module):
            named[f"layers.{layer[1]}.{FACTS['layer'].get(layer[2], layer[2])}.{kind}"] = value
        else:
            named[f"{FACTS['names'].get(module, module)}.{kind}"] = value
    return named
