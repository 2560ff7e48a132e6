"""A trained diffusion of mel pictures: the model and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from soundmill.audio.mel import MelSpec, log_mel
from soundmill.diffusion.guidance import guided
from soundmill.diffusion.paths import discrete
from soundmill.diffusion.sampling import Draw, sample
from soundmill.diffusion.solvers import scheduled
from soundmill.models import family
from soundmill.models.components import vocoding
from soundmill.models.components.choice import load_vocoder, vocoder_of
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.dit.network import PictureDiT
from soundmill.models.components.text_states.states import TextConfig
from soundmill.models.ddpm_mel.params import DiTParams, TrainParams
from soundmill.models.ddpm_mel.picture import PictureCodec, rescaled
from soundmill.models.ddpm_mel.residual import ResidualUNet
from soundmill.models.ddpm_mel.unet import UNet
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.models.sounds import in_precision, sampled
from soundmill.models.trained import TrainedModel
from soundmill.training import checkpoint
from soundmill.training.seeds import seed_of

FAMILY = "ddpm_mel"


class Config(FamilyConfig):
    family: Literal["ddpm_mel"] = FAMILY
    params: TrainParams
    labels: list[str]
    text: TextConfig | None = None  # if conditioned on captions; earlier checkpoints lack it
    mel_spec: MelSpec


@dataclass
class DdpmMel(TrainedModel):
    """A `Model` (models/family.py).

    `levels` [N] are the levels of the training clips and `level_labels` [N, conditions] their label weights or the vector of their
    first caption: the level of a generated clip is drawn from them (a single unused row if the level is absolute).
    """

    config, channels = Config, 1

    params: TrainParams
    net: nn.Module
    mel_spec: MelSpec
    picture: PictureCodec
    levels: Tensor
    level_labels: Tensor
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def sample_rate(self) -> int:
        return self.mel_spec.sample_rate

    @property
    def num_samples(self) -> int:
        return self.picture.num_samples

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Noise → latents → log-mels → waves; the condition is the mean of a request's labels, or its caption."""
        seeds = [request.seed for request in requests]
        return self._to_waves(sample_log_mels(self, self.vectors(requests, run), seeds, run), run, seeds)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → picture → log-mel → wave."""
        return vocoding.to_waves(self.vocoder_for(run), self.rebuilt(waves, run), run.device, waves.shape[2])

    def vocoder_for(self, run: Run) -> Vocoder:
        return vocoder_of(run.sampling, self.vocoder, self.mel_spec)

    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        length = waves.shape[2]
        fitted = torch.nn.functional.pad(waves.mean(1), (0, max(0, self.num_samples - length)))[:, : self.num_samples]
        picture = self.picture.cpu()
        with torch.no_grad():
            return picture.decode(*picture.encode(torch.from_numpy(log_mel(fitted.numpy(), self.mel_spec))))

    def _to_waves(self, log_mels: Tensor, run: Run, seeds: Sequence[int] = ()) -> Tensor:
        return vocoding.to_waves(self.vocoder_for(run), log_mels, run.device, self.num_samples, seeds)

    def tensors(self) -> dict[str, Tensor]:
        return {**_nets(self.net, self.picture).state_dict(), "levels": self.levels, "level_labels": self.level_labels}

    @classmethod
    def load(cls, directory: Path) -> Self:
        config = family.read_config(directory, Config)
        params, spec, labels = config.params, config.mel_spec, config.labels
        path, levels = directory / checkpoint.WEIGHTS, ("levels", "level_labels")
        made = checkpoint.built(lambda: _nets(build_net(params, len(labels)), PictureCodec(params.picture, spec)), path, levels)
        nets, tensors = made.eval(), checkpoint.read_weights(path)
        with checkpoint.must_fit(path):
            drawn = [tensors.pop(name) for name in levels]
            nets.load_state_dict(tensors)
            if drawn[1].shape != (*drawn[0].shape, params.text_width or len(labels)):
                raise RuntimeError(f"level_labels is {[*drawn[1].shape]} for {[*drawn[0].shape]} levels and {len(labels)} labels")
        vocoder = load_vocoder(params.sampling, directory, spec)
        return cls(params, nets["net"], spec, nets["picture"], *drawn, vocoder, labels=labels, text=config.text)


def sample_log_mels(model: DdpmMel, conditions: Tensor, seeds: list[int], run: Run) -> Tensor:
    """Log-mels [N, n_mels, frames] on the CPU for `conditions` [N, conditions]; `model.net` is moved to the run's device."""
    sampling, picture, diffusion = run.sampling, model.picture.cpu(), model.params.diffusion
    first, last = sampling.guidance_interval
    path = discrete(diffusion, diffusion.first_timestep)

    def work(items: slice) -> Tensor:
        condition = conditions[items].to(run.device)
        null, draw = torch.zeros_like(condition), Draw.of_seeds(seeds[items])
        outside = guided(model.net, (condition,), (null,), 1.0)
        inside = guided(model.net, (condition,), (null,), sampling.guidance_scale) if model.condition != "none" else outside
        steps = scheduled(path, sampling.sampler, sampling.num_steps, run.device, clip=sampling.clip)
        visited = iter(steps.levels)  # in order: reading them from `t` would synchronise with the GPU at each step

        def denoise(xt: Tensor, t: Tensor) -> Tensor:
            answer = inside if first <= next(visited) / diffusion.num_timesteps <= last else outside
            if model.params.network.channels_last:
                xt = xt.contiguous(memory_format=torch.channels_last)
            return answer(xt, t)

        return sample(steps, in_precision(denoise, run), draw.noise(picture.shape).to(run.device), draw)

    latents = sampled(model.net, len(seeds), run, work)
    with torch.no_grad():
        pictures = picture.from_latent(latents)
        if sampling.rescale:
            pictures = rescaled(pictures, picture.params.polarity)
        levels = torch.stack([_draw_level(model, *item) for item in zip(conditions, seeds, strict=True)])
        return picture.from_picture(pictures, levels)


def _draw_level(model: DdpmMel, condition: Tensor, seed: int) -> Tensor:
    """The level of a random training clip among those whose labels match `condition` best, drawn by the item's seed."""
    similarity = model.level_labels @ condition
    candidates = model.levels[similarity >= similarity.max() - 1e-6]
    rng = torch.Generator().manual_seed(seed_of(seed, "level"))
    return candidates[int(torch.randint(len(candidates), (), generator=rng))]


def build_net(params: TrainParams, num_labels: int) -> nn.Module:
    """The network, initialised from torch's global generator: (xt, t, label weights or vectors of captions) → prediction."""
    network, picture = params.network, params.picture
    conditions = params.text_width or num_labels if params.conditional else 0
    rows, columns = picture.height // picture.patch[0], picture.width // picture.patch[1]
    channels = picture.patch[0] * picture.patch[1]
    if isinstance(network, DiTParams):
        return PictureDiT(network, (channels, rows, columns), params.diffusion.num_timesteps, conditions)
    sizes = (network.widths, network.attention_levels, network.heads, network.embedding_size, conditions)
    if network.kind == "unet":
        net = UNet(channels, *sizes)
    else:
        net = ResidualUNet((channels, rows, columns), *sizes, blocks=network.blocks, dropout=network.dropout)
    return net.to(memory_format=torch.channels_last) if network.channels_last else net


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> nn.Module:
    """See models/family.py."""
    return build_net(params, num_labels)


def _nets(net: nn.Module, picture: nn.Module) -> nn.ModuleDict:
    """Both as one module, whose weights are saved together."""
    return nn.ModuleDict({"net": net, "picture": picture})


load = DdpmMel.load
