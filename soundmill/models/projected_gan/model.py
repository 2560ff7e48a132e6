"""A trained projected GAN: the model and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from soundmill.audio.mel import MelSpec, log_mel
from soundmill.audio.pieces import closed
from soundmill.errors import UserError
from soundmill.models import family
from soundmill.models.components import registry, vocoding
from soundmill.models.components.contracts import Vocoder
from soundmill.models.components.griffin_lim.vocoder import GriffinLim
from soundmill.models.family import FamilyConfig, Request, Run
from soundmill.models.projected_gan.generator import Generator
from soundmill.models.projected_gan.params import TrainParams
from soundmill.models.projected_gan.picture import LoopPicture
from soundmill.models.trained import TrainedModel, label_weights
from soundmill.training import checkpoint
from soundmill.training.device import autocast, evaluating
from soundmill.training.seeds import seed_of

FAMILY = "projected_gan"
EMBEDDERS = ("vggish", "tagger")  # projectors whose networks are also embedders of the evaluation
MEAN_OF = 4096  # latents that estimate the mean style for truncation
CONTEXT = 32  # frames of circular padding at both ends of a loop for the vocoder
FADE_SECONDS = 0.02  # crossfade of a loop's end into the sound before its start


class Config(FamilyConfig):
    family: Literal["projected_gan"] = FAMILY
    params: TrainParams
    mel_spec: MelSpec
    labels: list[str]
    num_samples: int = Field(ge=1, le=2**28)
    projectors: list[str]
    trained_against: list[str]


@dataclass
class ProjectedGan(TrainedModel):
    """A `Model` (models/family.py).

    `projectors` are those of its discriminators; `trained_against` are the embedders among them and among those of earlier
    trainings: these do not rank the model.
    """

    config, channels = Config, 1

    params: TrainParams
    net: Generator
    mel_spec: MelSpec
    picture: LoopPicture
    projectors: Sequence[str]
    trained_against: Sequence[str]
    vocoder: Vocoder | None = None  # None: Griffin-Lim

    @property
    def sample_rate(self) -> int:
        return self.mel_spec.sample_rate

    @property
    def num_samples(self) -> int:
        return self.picture.num_samples

    @property
    def remark(self) -> str:
        return f"discriminators on {' and '.join(self.projectors)}".replace("none", "the pictures themselves")

    def generate(self, requests: Sequence[Request], run: Run) -> Tensor:
        """Latent → style → picture → log-mel → wave; the condition averages a request's labels or is a random one."""
        styles = [self._style(request, run.sampling.psi) for request in requests]
        seeds = [request.seed for request in requests]
        return self._to_waves(self._log_mels(styles, seeds, run), run, seeds)

    def reconstruct(self, waves: Tensor, run: Run) -> Tensor:
        """Wave → log-mel → picture → log-mel → wave."""
        return self._to_waves(self.rebuilt(waves, run), run)[..., : waves.shape[2]]

    @property
    def rebuilt_samples(self) -> int:
        """Length of a window of a longer sound: without the end that a picture lacks."""
        return self.picture.filled * self.mel_spec.hop_length

    def vocoder_for(self, run: Run) -> Vocoder:
        return self.vocoder or GriffinLim(self.mel_spec, run.sampling)

    @torch.no_grad()
    def rebuilt(self, waves: Tensor, run: Run) -> Tensor:
        fitted = pad(waves.mean(1), (0, max(0, self.num_samples - waves.shape[2])))[:, : self.num_samples]
        picture = self.picture.cpu()
        return picture.decode(picture.encode(torch.from_numpy(log_mel(fitted.numpy(), self.mel_spec))))

    def interpolate(self, ends: tuple[Request, Request], waves: Tensor | None, shares: Sequence[float], run: Run) -> Tensor:
        """Interpolate between the styles of two seeds, with the noise of the first."""
        if waves is not None:
            raise UserError(f"the family {FAMILY!r} interpolates only between seeds: recordings have no style; give two seeds")
        first, second = (self._style(request, run.sampling.psi) for request in ends)
        styles = [torch.lerp(first, second, share) for share in shares]
        seeds = [ends[0].seed] * len(shares)
        return self._to_waves(self._log_mels(styles, seeds, run), run, seeds)

    @torch.no_grad()
    def _style(self, request: Request, psi: float) -> Tensor:
        """The style [w_width] of a request, truncated towards the mean style of its label (Karras et al. 2019, sec. 2.1)."""
        net = self.net.cpu()
        label = label_weights(self._labels_of(request), self.labels)[None] if self.labels else None
        rng = torch.Generator().manual_seed(seed_of(request.seed, "z"))
        z = torch.randn(1, net.params.z_width, generator=rng)
        latents = torch.randn(MEAN_OF, net.params.z_width, generator=torch.Generator().manual_seed(0))
        mean = net.styles(latents, None if label is None else label.expand(MEAN_OF, -1)).mean(0)
        return torch.lerp(mean, net.styles(z, label)[0], psi)

    def _labels_of(self, request: Request) -> Sequence[str]:
        """The labels of a request that the model was trained on, or one drawn by the seed, as training is never unlabelled."""
        labels = [label for label in request.labels if label in self.labels]
        return labels or [self.labels[seed_of(request.seed, "label") % len(self.labels)]]

    def _log_mels(self, styles: Sequence[Tensor], seeds: Sequence[int], run: Run) -> Tensor:
        """Generated log-mels, on the CPU, each with the noise of its seed."""
        outputs = []
        net = self.net.to(run.device)
        with torch.no_grad(), evaluating(net):
            for start in range(0, len(styles), run.batch_size):
                part = torch.stack(list(styles[start : start + run.batch_size])).to(run.device)
                rngs = [torch.Generator().manual_seed(seed_of(seed, "noise")) for seed in seeds[start : start + run.batch_size]]
                noise = [torch.cat(layer).to(run.device) for layer in zip(*(net.noise(1, rng) for rng in rngs), strict=True)]
                with autocast(run.device, run.precision):
                    outputs.append(net(part[:, None].expand(-1, net.layers, -1), noise).float().cpu())
                run.progress(len(part))
        return self.picture.cpu().decode(torch.cat(outputs))

    def _to_waves(self, log_mels: Tensor, run: Run, seeds: Sequence[int] = ()) -> Tensor:
        """Seamless loops: log-mels are padded circularly before vocoding."""
        padded = torch.cat([log_mels[..., -CONTEXT:], log_mels, log_mels[..., :CONTEXT]], 2)
        waves = vocoding.to_waves(self.vocoder_for(run), padded, run.device, seeds=seeds)
        fade = round(FADE_SECONDS * self.sample_rate)
        return torch.from_numpy(closed(waves.numpy(), CONTEXT * self.mel_spec.hop_length, self.num_samples, fade))

    def tensors(self) -> dict[str, Tensor]:
        return _nets(self.net, self.picture).state_dict()

    @classmethod
    def load(cls, directory: Path) -> Self:
        config = family.read_config(directory, Config)
        params, spec = config.params, config.mel_spec

        def made() -> nn.ModuleDict:
            picture = LoopPicture(spec, config.num_samples, params.generator.frames, params.fit)
            return _nets(build_net(params, len(config.labels)), picture)

        nets = checkpoint.load_weights(made, directory / checkpoint.WEIGHTS)
        more = config.projectors, config.trained_against, registry.vocoder_in(directory, spec)
        return cls(params, nets["net"], spec, nets["picture"], *more, labels=config.labels)


def build_net(params: TrainParams, num_labels: int) -> Generator:
    """The generator, initialised from torch's global generator."""
    return Generator(params.generator, num_labels, looped=params.fit == "resize")


def net_in(document: dict[str, Any], params: TrainParams, num_labels: int) -> Generator:
    """See models/family.py."""
    return build_net(params, num_labels)


def _nets(net: nn.Module, picture: nn.Module) -> nn.ModuleDict:
    """Both as one module, whose weights are saved together."""
    return nn.ModuleDict({"net": net, "picture": picture})


load = ProjectedGan.load
