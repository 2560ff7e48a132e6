"""A trained DiffWave: the model and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from soundmill.audio.mel import log_mel
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import ancestral
from soundmill.models import family
from soundmill.models.components import vocoding
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.vocoder import DiffWave, schedule
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.diffwave.params import TrainParams
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel
from soundmill.training.device import evaluating
from soundmill.training.seeds import seed_of

FAMILY = "diffwave"
WINDOW_SECONDS = 10.0


class Config(FamilyConfig):
    family: Literal["diffwave"] = FAMILY
    params: TrainParams
    sample_rate: int
    labels: list[str]
    text: TextConfig | None = None  # if conditioned on captions; earlier checkpoints lack it
    sigma_data: float = Field(1.0, gt=0)  # earlier checkpoints lack it


@dataclass
class _DiffWaveModel(TrainedModel):
    """A `Model` (models/family.py)."""

    config, channels = Config, 1

    params: TrainParams
    net: DiffWaveNet
    sample_rate: int
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided

    @classmethod
    def build(cls, config: Config) -> DiffWaveNet:
        return build_net(config.params, len(config.labels))


class Vocoding(_DiffWaveModel):
    """By log-mels: it reconstructs."""

    @property
    def num_samples(self) -> int:
        """Length of a window; longer sounds are processed in several."""
        return round(WINDOW_SECONDS * self.sample_rate / self.params.mel.hop_length) * self.params.mel.hop_length

    @property
    def vocoder(self) -> DiffWave:
        params = self.params
        return DiffWave(params.network, params.noise, params.sampling, params.mel, self.net)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → wave."""
        with evaluating(self.net):
            return vocoding.to_waves(self.vocoder_for(run), self.rebuilt(waves, run), run.device, waves.shape[2])

    def vocoder_for(self, run: Run) -> DiffWave:
        return replace(self.vocoder, sampling=run.sampling)

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        return torch.from_numpy(log_mel(waves.mean(1).numpy(), self.params.mel))


class Generating(_DiffWaveModel):
    """Of whole crops, by label, by caption or unconditional: it generates."""

    @property
    def num_samples(self) -> int:
        return self.params.crop_samples(self.sample_rate)

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → waves; the condition is a request's caption, or averages its labels, or is a label drawn by its seed."""
        betas, timesteps = schedule(self.params.noise, run.sampling)

        def work(items: slice) -> Tensor:
            part = requests[items]
            condition = self._conditions(part, run)
            denoise = in_precision(lambda xt, t: self.net(xt, t, condition), run)
            draw = Draw.of_seeds([request.seed for request in part])
            noise = draw.noise((self.channels, self.num_samples)).to(run.device)
            return self.sigma_data * sample(ancestral(betas, timesteps, 1 / self.sigma_data), denoise, noise, draw)

        return sampled(self.net, len(requests), run, work)

    def _conditions(self, requests: Sequence[Request], run: Run) -> Tensor | None:
        if self.condition == "none":
            return None
        if self.labels:
            requests = [replace(one, labels=one.labels or (self._draw_label(one.seed),)) for one in requests]
        return self.vectors(requests, run).to(run.device)

    def _draw_label(self, seed: int) -> str:
        return self.labels[int(np.random.default_rng(seed_of(seed, "label")).integers(len(self.labels)))]


def build_net(params: TrainParams, num_labels: int) -> DiffWaveNet:
    """The network, initialised from torch's global generator."""
    spec = params.mel if params.condition == "mel" else None
    return DiffWaveNet(params.network, spec, {"label": num_labels, "caption": params.text_width}.get(params.condition))


def kind_of(params: TrainParams) -> type[Vocoding] | type[Generating]:
    return Vocoding if params.condition == "mel" else Generating


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> DiffWaveNet:
    """See models/family.py."""
    return build_net(params, num_labels)


def load(directory: Path) -> Vocoding | Generating:
    return kind_of(family.read_config(directory, Config).params).load(directory)
