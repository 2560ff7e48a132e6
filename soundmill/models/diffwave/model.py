"""A trained DiffWave: the model and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from soundmill import params as strict
from soundmill.audio.mel import log_mel
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import ancestral
from soundmill.models import family
from soundmill.models.components import vocoding
from soundmill.models.components.diffwave.network import DiffWaveNet
from soundmill.models.components.diffwave.vocoder import DiffWave, schedule
from soundmill.models.components.text_states.states import TextConfig, Texts
from soundmill.models.diffwave.params import TrainParams
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.models.labels import conditions_of
from soundmill.models.sounds import in_precision, sampled
from soundmill.training import checkpoint
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
class Vocoding:
    """A `Model` (models/family.py) by log-mels: it reconstructs."""

    params: TrainParams
    net: DiffWaveNet
    sample_rate: int
    labels: Sequence[str] = ()
    sigma_data: float = 1.0
    channels: int = 1
    condition: Literal["none"] = "none"

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


@dataclass
class Generating:
    """A `Model` (models/family.py) of whole crops, by label, by caption or unconditional: it generates."""

    params: TrainParams
    net: DiffWaveNet
    sample_rate: int
    labels: Sequence[str]
    sigma_data: float = 1.0  # standard deviation of the waves, by which the net's input is divided
    text: TextConfig | None = None  # if conditioned on captions
    texts: Texts | None = None  # during training: precomputed states, so the text encoder is not loaded
    channels: int = 1

    @property
    def num_samples(self) -> int:
        return self.params.crop_samples(self.sample_rate)

    @property
    def condition(self) -> Literal["labels", "caption", "none"]:
        return {"label": "labels", "caption": "caption", "none": "none"}[self.params.condition]

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
        return conditions_of(requests, self.labels, self.text, self.texts, self.params.text_width, run).to(run.device)

    def _draw_label(self, seed: int) -> str:
        return self.labels[int(np.random.default_rng(seed_of(seed, "label")).integers(len(self.labels)))]


def build_net(params: TrainParams, num_labels: int) -> DiffWaveNet:
    """The network, initialised from torch's global generator."""
    spec = params.mel if params.condition == "mel" else None
    return DiffWaveNet(params.network, spec, {"label": num_labels, "caption": params.text_width}.get(params.condition))


def build_model(params: TrainParams, net: DiffWaveNet, sample_rate: int, *more: Any) -> Vocoding | Generating:
    """`more` are the fields of `Generating`."""
    return Vocoding(params, net, sample_rate) if params.condition == "mel" else Generating(params, net, sample_rate, *more)


def networks(document: dict[str, Any]) -> dict[str, nn.Module]:
    """See models/family.py; without label embeddings."""
    params = strict.parse_section(document, f"{FAMILY}.train", TrainParams)
    return {"net": build_net(params, num_labels=0)}


def save(model: Vocoding | Generating, directory: Path, facts: dict[str, Any]) -> None:
    about = {"sample_rate": model.sample_rate, "labels": list(model.labels), "sigma_data": model.sigma_data}
    config = Config(params=model.params, text=getattr(model, "text", None), **about)
    family.save(directory, config, model.net.state_dict(), facts)


def load(directory: Path) -> Vocoding | Generating:
    config = family.read_config(directory, Config)
    net = checkpoint.load_weights(lambda: build_net(config.params, len(config.labels)), directory / checkpoint.WEIGHTS)
    return build_model(config.params, net, config.sample_rate, config.labels, config.sigma_data, config.text)
